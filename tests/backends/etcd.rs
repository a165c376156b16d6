//! etcd, one member and three.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use srpc::backend::etcd::EtcdRegistry;
use srpc::discovery::Discovery;
use srpc::testing::{discovery_suite, registry_suite};
use tokio::time::{Instant, sleep};

use crate::program::{Program, free_port};
use crate::{Engine, Subject};

/// How late etcd's leases end: half a second, on top of the second that they are longer.
const GRANULARITY: Duration = Duration::from_millis(2500);

/// One member of a cluster.
pub(crate) struct Etcd {
    program: Program,
    name: String,
    client: u16,
    peer: u16,
    cluster: String,
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
        });
        members.iter().for_each(|member: &Self| member.run(false));
        for member in &members {
            member.answers().await;
        }
        members
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client)
    }

    fn run(&self, empty: bool) {
        let data = self.program.folder.join("data");
        if empty {
            let _ = std::fs::remove_dir_all(&data);
        }
        let client = format!("http://127.0.0.1:{}", self.client);
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
        self.program.run(&mut command, "etcd-server");
    }

    async fn answers(&self) {
        let client = EtcdRegistry::new(&self.address()).unwrap();
        let start = Instant::now();
        while let Err(error) = client.resolve(&"Any".parse().unwrap()).await {
            let log = self.program.log();
            assert!(start.elapsed() < Duration::from_secs(20), "etcd: {error}\n{log}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

#[async_trait]
impl Engine for Etcd {
    async fn kill(&self) {
        self.program.kill();
    }

    async fn start(&self, empty: bool) {
        self.run(empty);
        self.answers().await;
    }
}

fn subject(engine: Etcd, client: EtcdRegistry) -> Subject<Etcd> {
    Subject {
        engine,
        registry: Some(Arc::new(client.clone())),
        discovery: Arc::new(client),
        granularity: GRANULARITY,
        ttl: Duration::from_secs(6),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server"]
async fn registers_as_promised() {
    let etcd = Etcd::alone().await;
    let client = EtcdRegistry::new(&etcd.address()).unwrap();
    let report = registry_suite(&subject(etcd, client)).await;
    assert_eq!(report.left_out, []);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server"]
async fn is_discovered_as_promised() {
    let etcd = Etcd::alone().await;
    let client = EtcdRegistry::new(&etcd.address()).unwrap();
    let report = discovery_suite(&subject(etcd, client)).await;
    assert_eq!(report.left_out, []);
}

/// As a registry server in front of it does.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd-server"]
async fn with_a_lease_for_each_it_registers_as_promised() {
    let etcd = Etcd::alone().await;
    let builder = EtcdRegistry::builder(&etcd.address()).lease_each(true).prefix("/other");
    let report = registry_suite(&subject(etcd, builder.build().unwrap())).await;
    assert_eq!(report.left_out, []);
}
