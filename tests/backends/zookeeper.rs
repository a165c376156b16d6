//! ZooKeeper, one server.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use srpc::backend::zookeeper::ZooKeeperRegistry;
use srpc::discovery::Discovery;
use srpc::testing::{discovery_suite, registry_suite};
use tokio::time::{Instant, sleep};

use crate::program::{Program, free_port};
use crate::{Engine, Subject};

/// How late a lost session's registrations are back: the client finds out by asking.
const GRANULARITY: Duration = Duration::from_secs(3);

pub(crate) struct ZooKeeper {
    program: Program,
    port: u16,
}

impl ZooKeeper {
    pub(crate) async fn running() -> Self {
        let this = Self { program: Program::new("zookeeper"), port: free_port() };
        this.start(true).await;
        this
    }

    pub(crate) fn client(&self) -> ZooKeeperRegistry {
        let servers = format!("127.0.0.1:{}", self.port);
        let builder = ZooKeeperRegistry::builder(&servers);
        builder.session_timeout(Duration::from_secs(4)).build().unwrap()
    }

    fn run(&self, empty: bool) {
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
}

#[async_trait]
impl Engine for ZooKeeper {
    async fn kill(&self) {
        self.program.kill();
    }

    async fn start(&self, empty: bool) {
        self.run(empty);
        let client = self.client();
        let start = Instant::now();
        while let Err(error) = client.resolve(&"Any".parse().unwrap()).await {
            let log = self.program.log();
            assert!(start.elapsed() < Duration::from_secs(30), "ZooKeeper: {error}\n{log}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

fn subject(engine: ZooKeeper) -> Subject<ZooKeeper> {
    let client = engine.client();
    Subject {
        engine,
        registry: Some(Arc::new(client.clone())),
        discovery: Arc::new(client),
        granularity: GRANULARITY,
        ttl: Duration::from_secs(6),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs zookeeperd"]
async fn registers_as_promised() {
    let report = registry_suite(&subject(ZooKeeper::running().await)).await;
    assert_eq!(report.left_out, []);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs zookeeperd"]
async fn is_discovered_as_promised() {
    let report = discovery_suite(&subject(ZooKeeper::running().await)).await;
    assert_eq!(report.left_out, []);
}
