//! etcd, run by its own program.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use srpc::backend::etcd::EtcdRegistry;
use srpc::discovery::Discovery;
use tokio::time::{Instant, sleep};

use super::program::{Program, free_port};

/// One member of a cluster.
pub(crate) struct Etcd {
    program: Program,
    name: String,
    client: u16,
    peer: u16,
    cluster: String,
    /// The files of a certificate and its key; `None`: without TLS.
    certificate: Option<[PathBuf; 2]>,
}

impl Etcd {
    /// A cluster of one, running.
    pub(crate) async fn alone() -> Self {
        let [one] = Self::cluster().await;
        one
    }

    /// A cluster of so many, running.
    pub(crate) async fn cluster<const N: usize>() -> [Self; N] {
        let ports: Vec<(u16, u16)> = (0..N).map(|_| (free_port(), free_port())).collect();
        let peers = ports.iter().enumerate();
        let peers = peers.map(|(n, (_, peer))| format!("m{n}=http://127.0.0.1:{peer}"));
        let cluster = peers.collect::<Vec<_>>().join(",");
        let members = std::array::from_fn(|n| Self {
            program: Program::new("etcd"),
            name: format!("m{n}"),
            client: ports[n].0,
            peer: ports[n].1,
            cluster: cluster.clone(),
            certificate: None,
        });
        members.iter().for_each(|member: &Self| member.run(false));
        for member in &members {
            member.answers().await;
        }
        members
    }

    /// A cluster of one that speaks TLS by these files, and may not answer yet.
    pub(crate) fn secured(certificate: PathBuf, key: PathBuf) -> Self {
        let [client, peer] = [free_port(), free_port()];
        let etcd = Self {
            program: Program::new("etcd"),
            name: "m0".to_owned(),
            client,
            peer,
            cluster: format!("m0=http://127.0.0.1:{peer}"),
            certificate: Some([certificate, key]),
        };
        etcd.run(false);
        etcd
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client)
    }

    /// Starts it, with what it had or without. It may take a while to answer.
    pub(crate) fn run(&self, empty: bool) {
        let data = self.program.folder.join("data");
        if empty {
            let _ = std::fs::remove_dir_all(&data);
        }
        let scheme = if self.certificate.is_some() { "https" } else { "http" };
        let client = format!("{scheme}://127.0.0.1:{}", self.client);
        let peer = format!("http://127.0.0.1:{}", self.peer);
        let mut command = Command::new("etcd");
        command
            .args(["--name", &self.name, "--data-dir"])
            .arg(&data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.cluster, "--logger", "zap"])
            // Faster than on disks of machines far apart, so that a test need not wait for long.
            .args(["--heartbeat-interval", "50", "--election-timeout", "500"]);
        if let Some([certificate, key]) = &self.certificate {
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
        }
        self.program.run(&mut command, "etcd-server");
    }

    /// Waits until it answers.
    pub(crate) async fn answers(&self) {
        let client = EtcdRegistry::new(&self.address()).unwrap();
        let start = Instant::now();
        while let Err(error) = client.resolve(&"Any".parse().unwrap()).await {
            let log = self.program.log();
            assert!(start.elapsed() < Duration::from_secs(20), "etcd: {error}\n{log}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends it as `kill -9` does.
    pub(crate) fn kill(&self) {
        self.program.kill();
    }

    /// Stops it, or lets it go on.
    pub(crate) fn signal(&self, name: &str) {
        self.program.signal(name);
    }
}
