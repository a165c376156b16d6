//! Who gets how many calls while there is little to do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use srpc::Address;
use srpc::transport::{Listener, Memory, Stream, Transport};
use tokio::time::sleep;

use crate::world::World;

/// Takes half a second to connect to one address.
struct SlowDial {
    network: Arc<Memory>,
    slow: Address,
}

#[async_trait]
impl Transport for SlowDial {
    fn speaks(&self, protocol: &str) -> bool {
        self.network.speaks(protocol)
    }

    async fn connect(&self, address: &Address) -> io::Result<Stream> {
        if *address == self.slow {
            sleep(Duration::from_millis(500)).await;
        }
        self.network.connect(address).await
    }

    async fn bind(&self, address: &Address) -> io::Result<Listener> {
        self.network.bind(address).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_dial_moves_no_share() {
    let world = World::of(2).await;
    let transport = SlowDial { network: world.network(), slow: world.at(0).address.clone() };
    let client = world.client().transport(Arc::new(transport)).build().unwrap();
    for _ in 0..200 {
        client.call::<_, usize>("Foo.Do", &()).await.unwrap();
    }
    let started = world.started();
    assert!(started.iter().all(|calls| (70..=130).contains(calls)), "{started:?}");
}
