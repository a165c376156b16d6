//! ZooKeeper, run by Debian's package of it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use srpc::backend::zookeeper::ZooKeeperRegistry;
use srpc::discovery::Discovery;
use tokio::time::{Instant, sleep};

use super::program::{Program, free_port};

/// One server.
pub(crate) struct ZooKeeper {
    program: Program,
    port: u16,
}

impl ZooKeeper {
    pub(crate) async fn running() -> Self {
        let this = Self { program: Program::new("zookeeper"), port: free_port() };
        this.run(true);
        this.answers().await;
        this
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn client(&self) -> ZooKeeperRegistry {
        let builder = ZooKeeperRegistry::builder(&self.address());
        builder.session_timeout(Duration::from_secs(4)).build().unwrap()
    }

    /// Starts it, with what it had or without. It takes some seconds to answer.
    pub(crate) fn run(&self, empty: bool) {
        let data = self.program.folder.join("data");
        if empty {
            let _ = fs::remove_dir_all(&data);
        }
        fs::create_dir_all(&data).unwrap();
        let config = self.program.folder.join("zoo.cfg");
        let text = format!(
            "tickTime=500\ndataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\n\
             admin.enableServer=false\nmaxClientCnxns=0\n",
            data.display(),
            self.port
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("java");
        command
            .args(["-cp", "/etc/zookeeper/conf:/usr/share/java/zookeeper.jar"])
            .arg("org.apache.zookeeper.server.ZooKeeperServerMain")
            .arg(&config);
        self.program.run(&mut command, "zookeeperd");
    }

    /// Waits until it answers.
    pub(crate) async fn answers(&self) {
        let client = self.client();
        let start = Instant::now();
        while let Err(error) = client.resolve(&"Any".parse().unwrap()).await {
            let log = self.program.log();
            assert!(start.elapsed() < Duration::from_secs(30), "ZooKeeper: {error}\n{log}");
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
