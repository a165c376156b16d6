use std::io;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

use super::*;
use crate::instance::{Address, Instance};
use crate::protocol::{Hello, Limits};
use crate::transport::{Listener, Memory, Stream};

/// Connects after as many seconds as it did before.
struct Slower {
    network: Memory,
    connected: AtomicUsize,
}

#[async_trait]
impl Transport for Slower {
    fn speaks(&self, protocol: &str) -> bool {
        self.network.speaks(protocol)
    }

    async fn connect(&self, address: &Address) -> io::Result<Stream> {
        let before = self.connected.fetch_add(1, Relaxed) as u64;
        sleep(Duration::from_secs(before)).await;
        self.network.connect(address).await
    }

    async fn bind(&self, address: &Address) -> io::Result<Listener> {
        self.network.bind(address).await
    }
}

/// A way to a server that shakes hands and says nothing more.
async fn to_a_silent_server() -> Channel {
    let network = Memory::new();
    let address = "mem@silent".parse().unwrap();
    let mut listener = network.bind(&address).await.unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok(mut stream) = listener.accept().await {
            let mut hello = Vec::new();
            Hello::new(Limits::default()).encode(&mut hello);
            stream.write_all(&hello).await.unwrap();
            open.push(stream);
        }
    });
    let endpoint = Endpoint::new(Instance::at(address), Instant::now());
    let transport = Slower { network, connected: AtomicUsize::new(0) };
    Channel::new(endpoint, Arc::new(transport), ConnectionSettings::default())
}

#[tokio::test(start_paused = true)]
async fn closing_ends_calls_on_a_connection_that_lost_its_place() {
    let channel = to_a_silent_server().await;
    let (call, start) = (Call::new("Foo.Sum"), Instant::now());
    let deadline = start + Duration::from_secs(25);
    let replace_and_close = async {
        // By then a ping is late.
        sleep(Duration::from_secs(5)).await;
        let silent = channel.standing(0).expect("it is not given up yet");
        assert!(silent.is_suspect());
        channel.ping(deadline).await.expect("a new connection stands");
        assert!(!silent.is_open());
        assert_eq!(silent.in_flight(), 1, "the call stays where it was sent");
        drop(silent);
        channel.close();
    };
    let (answer, ()) = tokio::join!(channel.exchange(&call, deadline), replace_and_close);
    let error = answer.unwrap_err();
    assert_eq!((error.kind(), error.execution()), (Kind::Unavailable, Execution::MaybeExecuted));
    assert!(start.elapsed() < Duration::from_secs(7), "it does not wait for its deadline");
}

#[tokio::test(start_paused = true)]
async fn pings_at_once_of_a_silent_connection_are_all_answered_by_new_ones() {
    let channel = to_a_silent_server().await;
    let deadline = Instant::now() + Duration::from_secs(60);
    channel.connection_of(0, deadline).await.expect("it stands");
    // It is pinged after 10 s without a byte, and the answer may take 2 s.
    sleep(Duration::from_secs(13)).await;
    assert!(channel.standing(0).is_some_and(|silent| silent.is_suspect()));
    let pings = tokio::join!(channel.ping(deadline), channel.ping(deadline));
    assert!(pings.0.is_ok() && pings.1.is_ok(), "{pings:?}");
}

/// `multi` has two addresses.
struct Multi(Memory);

const PLACES: [&str; 2] = ["tcp@10.0.0.8:1", "tcp@10.0.0.9:1"];

#[async_trait]
impl Transport for Multi {
    fn speaks(&self, protocol: &str) -> bool {
        self.0.speaks(protocol)
    }

    async fn connect(&self, address: &Address) -> io::Result<Stream> {
        self.0.connect(address).await
    }

    async fn resolve(&self, address: &Address) -> io::Result<Vec<Address>> {
        match address.host() {
            Some("multi") => Ok(PLACES.iter().map(|place| place.parse().unwrap()).collect()),
            _ => Ok(vec![address.clone()]),
        }
    }

    async fn bind(&self, address: &Address) -> io::Result<Listener> {
        self.0.bind(address).await
    }
}

/// One takes connections and says nothing; the other shakes hands.
#[tokio::test(start_paused = true)]
async fn a_place_that_shakes_no_hands_does_not_keep_callers_from_the_next() {
    let network = Memory::new();
    let _silent = network.bind(&PLACES[0].parse().unwrap()).await.unwrap();
    let mut listener = network.bind(&PLACES[1].parse().unwrap()).await.unwrap();
    let serving = tokio::spawn(async move {
        let mut stream = listener.accept().await.unwrap();
        let mut hello = Vec::new();
        Hello::new(Limits::default()).encode(&mut hello);
        stream.write_all(&hello).await.unwrap();
        stream
    });
    let instance = Instance::at("tcp@multi:1".parse().unwrap());
    let endpoint = Endpoint::new(instance, Instant::now());
    let channel = Channel::new(endpoint, Arc::new(Multi(network)), ConnectionSettings::default());
    let start = Instant::now();
    let deadline = start + Duration::from_secs(12);
    channel.connection_of(0, deadline).await.expect("the second place answers");
    assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
    drop(serving.await.unwrap());
}
