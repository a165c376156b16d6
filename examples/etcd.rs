//! etcd as the registry: servers register there with leases, a client follows them by a watch, and nothing
//! fails while etcd is killed and restarted. It runs an etcd of its own: `apt-get install etcd-server`.
//!
//! ```text
//! cargo run --release --features etcd --example etcd
//! ```

#[path = "engines/mod.rs"]
mod engines;
#[path = "engines/story.rs"]
mod story;

use std::error::Error;

use srpc::backend::etcd::EtcdRegistry;

use self::engines::etcd::Etcd;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let etcd = Etcd::alone().await;
    let backend = EtcdRegistry::new(&etcd.address())?;
    let restart = async || {
        etcd.run(false);
        etcd.answers().await;
    };
    story::tell("etcd", backend, || etcd.kill(), restart).await
}
