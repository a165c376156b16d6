//! ZooKeeper, one server.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use srpc::testing::{discovery_suite, registry_suite};

use crate::engines::zookeeper::ZooKeeper;
use crate::{Engine, Subject, hangs, keeps_what_vanishes_together};

/// How late a lost session's registrations are back: the client finds out by asking.
const GRANULARITY: Duration = Duration::from_secs(3);

#[async_trait]
impl Engine for ZooKeeper {
    async fn kill(&self) {
        Self::kill(self);
    }

    async fn start(&self, empty: bool) {
        self.run(empty);
        self.answers().await;
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

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs zookeeperd"]
async fn one_that_hangs_is_not_waited_for() {
    let zookeeper = ZooKeeper::running().await;
    hangs(&zookeeper.client(), |name| zookeeper.signal(name)).await;
}

/// A session that is closed takes its nodes with it, as one that has ended does: without marks.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs zookeeperd"]
async fn sessions_that_end_together_do_not_empty_a_client() {
    let zookeeper = ZooKeeper::running().await;
    keeps_what_vanishes_together(|| zookeeper.client(), drop).await;
}
