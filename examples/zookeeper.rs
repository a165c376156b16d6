//! ZooKeeper as the registry: servers register there as ephemeral nodes, a client follows them by watches,
//! and nothing fails while ZooKeeper is killed and restarted. It runs a ZooKeeper of its own:
//! `apt-get install zookeeperd`.
//!
//! ```text
//! cargo run --release --features zookeeper --example zookeeper
//! ```

#[path = "engines/mod.rs"]
mod engines;
#[path = "engines/story.rs"]
mod story;

use std::error::Error;

use self::engines::zookeeper::ZooKeeper;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let zookeeper = ZooKeeper::running().await;
    let restart = async || {
        zookeeper.run(false);
        zookeeper.answers().await;
    };
    story::tell("ZooKeeper", zookeeper.client(), || zookeeper.kill(), restart).await
}
