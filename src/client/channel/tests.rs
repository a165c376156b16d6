use std::io;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

use super::*;
use crate::instance::{Address, Instance};
use crate::protocol::{FrameType, Hello, Limits, encode_frame};
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
    channel.connection_of(0, deadline, false).await.expect("it stands");
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
    channel.connection_of(0, deadline, false).await.expect("the second place answers");
    assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
    drop(serving.await.unwrap());
}

/// How often callers dial a server in 3 s that shakes hands, says this and closes.
async fn dials(callers: usize, connections: usize, says: fn(&mut Vec<u8>)) -> usize {
    let network = Memory::new();
    let address = "mem@useless".parse().unwrap();
    let mut listener = network.bind(&address).await.unwrap();
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            counted.fetch_add(1, Relaxed);
            stream.read_exact(&mut [0; 24]).await.unwrap();
            let mut hello = Vec::new();
            Hello::new(Limits::default()).encode(&mut hello);
            says(&mut hello);
            stream.write_all(&hello).await.unwrap();
        }
    });
    let endpoint = Endpoint::new(Instance::at(address), Instant::now());
    let settings = ConnectionSettings { connections, ..ConnectionSettings::default() };
    let channel = Arc::new(Channel::new(endpoint, Arc::new(network), settings));
    let until = Instant::now() + Duration::from_secs(3);
    let callers: Vec<_> = (0..callers)
        .map(|_| {
            let channel = Arc::clone(&channel);
            tokio::spawn(async move {
                let call = Call::new("Foo.Sum");
                while Instant::now() < until {
                    let deadline = Instant::now() + Duration::from_secs(1);
                    channel.exchange(&call, deadline).await.unwrap_err();
                    sleep(Duration::from_millis(1)).await;
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    accepted.load(Relaxed)
}

#[tokio::test(start_paused = true)]
async fn a_server_that_shakes_hands_and_leaves_is_dialled_with_a_backoff() {
    type Saying = (&'static str, fn(&mut Vec<u8>));
    let sayings: [Saying; 5] = [
        ("nothing", |_| ()),
        ("a drain", |out| encode_frame(out, FrameType::Drain, 0, 0, |_| ())),
        ("a drain above all calls", |out| encode_frame(out, FrameType::Drain, 0, u64::MAX, |_| ())),
        ("an unasked pong", |out| {
            encode_frame(out, FrameType::Pong, 0, 0, |out| out.extend_from_slice(&[0; 8]));
        }),
        ("a breach", |out| encode_frame(out, FrameType::Cancel, 0, 1, |_| ())),
    ];
    for (name, says) in sayings {
        for (callers, connections) in [(1, 1), (16, 1), (16, 4)] {
            let dials = dials(callers, connections, says).await;
            assert!((2..=20).contains(&dials), "{name}, {callers} callers: {dials} dials");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_forgives_no_failed_dials_and_a_life_of_ten_seconds_does() {
    let channel = to_a_silent_server().await;
    let stats = channel.endpoint().stats();
    stats.connect_failed(Instant::now());
    sleep(Duration::from_millis(1)).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    channel.connection_of(0, deadline, false).await.expect("it stands");
    assert_eq!(stats.connect_failures(), 1, "a handshake is no answer");
    assert!(!stats.in_backoff(Instant::now()), "but calls may use it");
    sleep(Duration::from_secs(11)).await;
    assert_eq!(stats.connect_failures(), 0, "ten seconds of life are one");
}

#[tokio::test(start_paused = true)]
async fn what_a_newer_registration_earned_leaves_the_backoff_if_it_fails() {
    let network = Memory::new();
    let address: Address = "mem@renewed".parse().unwrap();
    let mut listener = network.bind(&address).await.unwrap();
    tokio::spawn(async move {
        // Shakes hands and leaves.
        while let Ok(mut stream) = listener.accept().await {
            let mut hello = Vec::new();
            Hello::new(Limits::default()).encode(&mut hello);
            stream.read_exact(&mut [0; 24]).await.unwrap();
            stream.write_all(&hello).await.unwrap();
        }
    });
    let endpoint = Endpoint::new(Instance::at(address), Instant::now());
    let channel = Channel::new(endpoint, Arc::new(network), ConnectionSettings::default());
    let (stats, call) = (channel.endpoint().stats(), Call::new("Foo.Sum"));
    let hour = Instant::now() + Duration::from_secs(3600);
    let exchange = || channel.exchange(&call, hour);
    stats.connect_failed(hour);
    for _ in 0..3 {
        stats.renew();
        assert!(!stats.in_backoff(Instant::now()), "one dial need not wait");
        exchange().await.unwrap_err();
        sleep(Duration::from_millis(10)).await;
        assert_eq!(stats.connect_failures(), 1);
        assert!(stats.in_backoff(hour - Duration::from_millis(1)), "it goes on where it stood");
        let error = exchange().await.unwrap_err();
        assert!(error.message().contains("waiting to reconnect"), "{error}");
    }
}
