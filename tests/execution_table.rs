//! The table that says whether a failed call was executed, row by row, as it really happens; and
//! the rule on what may be sent again.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "sockets are opened here")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use srpc::backend::static_list::StaticList;
use srpc::call::{Codec, CodecId, Raw};
use srpc::client::{Connection, ConnectionSettings};
use srpc::error::{BoxError, Fate};
use srpc::protocol::decode_call;
use srpc::selector::from_fn;
use srpc::server::{Failure, MethodService, Request, Response, State};
use srpc::transport::{Memory, Peer, Stream, Transport};
use srpc::xclient::XClientBuilder;
use srpc::{
    Address, Call, Error, Execution, Instance, Kind, Listener, Reply, Server, Service, Status,
    XClient,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tower::layer::layer_fn;
use tower::service_fn;
use tower::timeout::TimeoutLayer;
use tower::util::BoxCloneService;

/// The table.
const TABLE: [(Fate, Execution); 15] = [
    (Fate::NoConnection, Execution::NotSent),
    (Fate::PartlyWritten, Execution::NotSent),
    (Fate::QueueFull, Execution::NotSent),
    (Fate::NeverWritten, Execution::NotSent),
    (Fate::NotEncodable, Execution::NotSent),
    (Fate::LayerRefused, Execution::NotSent),
    (Fate::Refused, Execution::Rejected),
    (Fate::AboveDrain, Execution::Rejected),
    (Fate::ConnectionLost, Execution::MaybeExecuted),
    (Fate::Overdue, Execution::MaybeExecuted),
    (Fate::HandlerDropped, Execution::MaybeExecuted),
    (Fate::Unknown, Execution::MaybeExecuted),
    (Fate::Failed, Execution::Executed),
    (Fate::Panicked, Execution::Executed),
    (Fate::Undecodable, Execution::Executed),
];

const CLASSES: [Execution; 4] =
    [Execution::NotSent, Execution::Rejected, Execution::MaybeExecuted, Execution::Executed];

/// Nothing takes as long; a test that waits for it fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a call gets, if its deadline is not what it is about.
const LONG: Duration = Duration::from_secs(5);

/// One way to a row of the table: the error that it really gave.
struct Row {
    fate: Fate,
    how: &'static str,
    error: Error,
    kind: Kind,
    text: &'static str,
}

/// The rows of one fate.
struct Rows(Fate, Vec<Row>);

impl Rows {
    fn add(&mut self, how: &'static str, error: Error, kind: Kind, text: &'static str) {
        self.1.push(Row { fate: self.0, how, error, kind, text });
    }
}

#[test]
fn each_fate_has_its_class() {
    for (fate, execution) in TABLE {
        assert_eq!(fate.execution(), execution, "{fate:?}");
        let error = Error::new(Kind::Unavailable, fate, "why");
        assert_eq!(error.execution(), execution, "{fate:?}");
    }
    let fates: HashSet<_> = TABLE.iter().map(|(fate, _)| fate).collect();
    assert_eq!(fates.len(), TABLE.len());
    assert!(CLASSES.is_sorted());
}

/// Every kind, class and word of the caller: what may be sent again, and nothing else.
#[test]
fn what_may_be_sent_again() {
    for kind in Kind::ALL {
        // It fails the same way everywhere, or nobody waits for it.
        let for_good = [Kind::InvalidArgument, Kind::Cancelled, Kind::Internal].contains(&kind);
        // Another server, or the same one later, may take it.
        let elsewhere = [Kind::Unavailable, Kind::ResourceExhausted].contains(&kind);
        for idempotent in [false, true] {
            for (execution, expected) in [
                (Execution::NotSent, !for_good),
                (Execution::Rejected, elsewhere),
                (Execution::MaybeExecuted, idempotent),
                (Execution::Executed, false),
            ] {
                let told = execution.may_be_sent_again(kind, idempotent);
                assert_eq!(told, expected, "{execution:?}, {kind:?}, idempotent {idempotent}");
                for (fate, _) in TABLE.iter().filter(|(fate, _)| fate.execution() == execution) {
                    let error = Error::new(kind, *fate, "why");
                    // A layer refuses as a server does.
                    let expected = if *fate == Fate::LayerRefused { elsewhere } else { expected };
                    assert_eq!(error.may_be_sent_again(idempotent), expected, "{fate:?} {kind:?}");
                }
            }
        }
    }
}

#[test]
fn the_strongest_class_of_all_attempts_surfaces() {
    for (fate, own) in TABLE {
        for earlier in CLASSES {
            let error = Error::new(Kind::Unavailable, fate, "why").after(earlier);
            assert_eq!(error.execution(), own.max(earlier));
            assert_eq!(error.kind(), Kind::Unavailable);
        }
    }
}

/// Provokes every row in memory, where time is what the test says.
#[tokio::test(start_paused = true)]
async fn every_row_happens() {
    let mut rows = Vec::new();
    rows.extend(no_connection().await);
    rows.extend(partly_written().await);
    rows.extend(queue_full().await);
    rows.extend(never_written().await);
    rows.extend(not_encodable().await);
    rows.extend(layer_refused().await);
    rows.extend(refused().await);
    rows.extend(above_drain().await);
    rows.extend(connection_lost().await);
    rows.extend(overdue().await);
    rows.extend(handler_dropped().await);
    rows.extend(unknown().await);
    rows.extend(failed().await);
    rows.extend(panicked().await);
    rows.extend(undecodable().await);
    let mut failures = Vec::new();
    for Row { fate, how, error, kind, text } in &rows {
        let told = (error.kind(), error.execution());
        if told != (*kind, fate.execution()) || !error.message().contains(text) {
            failures.push(format!("{fate:?}, {how}: {error}, instead of {kind} and {text:?}"));
        }
    }
    let (failed, of) = (failures.len(), rows.len());
    assert!(failures.is_empty(), "{failed} of {of}:\n{}", failures.join("\n"));
    for (fate, _) in TABLE {
        assert!(rows.iter().any(|row| row.fate == fate), "{fate:?} did not happen");
    }
}

async fn no_connection() -> Vec<Row> {
    let mut rows = Rows(Fate::NoConnection, Vec::new());
    let network = Memory::new();
    let address: Address = "tcp@nowhere:1".parse().unwrap();
    let client = client_of(&network, [&address]).build().unwrap();
    let only = sum().only(address.clone());
    let refused = client.send(only.clone()).await.unwrap_err();
    rows.add("nobody listens", refused, Kind::Unavailable, "nobody listens there");
    let backoff = client.send(only.clone()).await.unwrap_err();
    rows.add("waiting to reconnect", backoff, Kind::Unavailable, "reconnect");
    client.close().await;
    let closed = client.send(only).await.unwrap_err();
    rows.add("the client is closed", closed, Kind::Unavailable, "the client is closed");

    let mut listener = network.bind(&Address::to_bind("tcp@silent:0").unwrap()).await.unwrap();
    let address = listener.address().clone();
    let client = client_of(&network, [&address]).build().unwrap();
    let (silent, _stream) =
        tokio::join!(client.send(sum().only(address.clone())), listener.accept());
    let silent = silent.unwrap_err();
    rows.add("no handshake", silent, Kind::Unavailable, "in time");

    let client = client_of(&network, []).build().unwrap();
    let nobody = client.send(sum()).await.unwrap_err();
    rows.add("no instance", nobody, Kind::Unavailable, "no instance is known");

    let (connection, mut line) = pair(ConnectionSettings::default()).await;
    line.say(&frame(DRAIN, 0, &[])).await;
    while connection.is_open() {
        tokio::task::yield_now().await;
    }
    let drained = exchange(&connection, &sum(), LONG).await.unwrap_err();
    // The connection may have ended, since nothing is in flight.
    rows.add("a draining connection", drained, Kind::Unavailable, "the");
    let (connection, _line) = pair(ConnectionSettings::default()).await;
    connection.close();
    let closed = exchange(&connection, &sum(), LONG).await.unwrap_err();
    rows.add("a closed connection", closed, Kind::Unavailable, "the connection is closed");
    rows.1
}

async fn partly_written() -> Vec<Row> {
    let mut rows = Rows(Fate::PartlyWritten, Vec::new());
    for taken in [0, 1, 16, 1000, 200_000] {
        let (connection, mut line) = pair(ConnectionSettings::default()).await;
        let large = Call::new("Foo.Echo").body(CodecId::RAW, vec![0; 1 << 20]);
        // The second is behind the first, and no byte of it leaves.
        let small = sum();
        let (first, second, ()) = tokio::join!(
            exchange(&connection, &large, LONG),
            exchange(&connection, &small, LONG),
            async {
                line.bytes(taken).await.unwrap();
                // What is under way when the peer closes is taken by nobody.
                drop(line);
            }
        );
        rows.add("the first", first.unwrap_err(), Kind::Unavailable, "the connection ended: ");
        rows.add("the second", second.unwrap_err(), Kind::Unavailable, "the connection ended: ");
    }
    rows.1
}

async fn queue_full() -> Vec<Row> {
    let mut rows = Rows(Fate::QueueFull, Vec::new());
    let mut settings = ConnectionSettings::default();
    settings.waiting_windows = 1;
    let (connection, mut line) = pair_of([4 << 20, 64, 8 << 20], settings).await;
    let mut calls = JoinSet::new();
    for _ in 0..64 + 64 + 1 {
        let connection = connection.clone();
        calls.spawn(async move { exchange(&connection, &sum(), LONG).await });
    }
    let error = calls.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!((calls.len(), connection.in_flight()), (128, 64));
    rows.add("the window and its queue", error, Kind::ResourceExhausted, "wait for a place");
    // All others are served.
    tokio::spawn(async move {
        while let Some((id, _)) = line.call().await {
            line.say(&three(id)).await;
        }
    });
    while let Some(call) = calls.join_next().await {
        assert_eq!(call.unwrap().unwrap().decode::<i64>().unwrap(), 3);
    }
    rows.1
}

async fn never_written() -> Vec<Row> {
    let mut rows = Rows(Fate::NeverWritten, Vec::new());
    let short = Duration::from_millis(100);

    let (connection, mut line) = pair_of([4 << 20, 64, 8 << 20], Default::default()).await;
    let mut hogs = JoinSet::new();
    for _ in 0..64 {
        let connection = connection.clone();
        hogs.spawn(async move { exchange(&connection, &sum(), LONG).await });
    }
    while connection.in_flight() < 64 {
        tokio::task::yield_now().await;
    }
    let waiting = exchange(&connection, &number(7), short).await.unwrap_err();
    rows.add("it waited for a place", waiting, Kind::DeadlineExceeded, "deadline");
    let passed = exchange(&connection, &number(8), Duration::ZERO).await.unwrap_err();
    rows.add("the deadline had passed", passed, Kind::DeadlineExceeded, "deadline passed before");
    drop(connection);
    hogs.shutdown().await;
    while let Some((_, body)) = line.call().await {
        assert_ne!(body[..], 7_u32.to_be_bytes(), "it was said not to be sent");
        assert_ne!(body[..], 8_u32.to_be_bytes(), "it was said not to be sent");
    }

    let (connection, mut line) = pair(ConnectionSettings::default()).await;
    let large = Call::new("Foo.Echo").body(CodecId::RAW, vec![0; 1 << 20]);
    let behind = number(9);
    let (large, error, calls) = tokio::join!(
        exchange(&connection, &large, LONG),
        async {
            // Once the writer has taken the large one.
            sleep(Duration::from_millis(1)).await;
            exchange(&connection, &behind, short).await.unwrap_err()
        },
        async {
            sleep(short * 2).await;
            let (first, _) = line.call().await.unwrap();
            line.say(&three(first)).await;
            let mut calls = Vec::new();
            while let Ok(Some((_, body))) = timeout(short, line.call()).await {
                calls.push(body);
            }
            calls
        }
    );
    assert_eq!(large.unwrap().body[..], [3]);
    assert_eq!(calls, Vec::<Vec<u8>>::new(), "it was said not to be sent");
    rows.add("it was taken back", error, Kind::DeadlineExceeded, "no answer came in time");

    let network = Memory::new();
    let mut listener = network.bind(&Address::to_bind("tcp@silent:0").unwrap()).await.unwrap();
    let client = client_of(&network, [listener.address()]).build().unwrap();
    let (error, _stream) = tokio::join!(client.send(sum().timeout(short)), listener.accept());
    let error = error.unwrap_err();
    rows.add("still connecting", error, Kind::DeadlineExceeded, "while connecting");
    rows.1
}

async fn not_encodable() -> Vec<Row> {
    let mut rows = Rows(Fate::NotEncodable, Vec::new());
    let scene = Scene::of(|server| server).await;
    let json = XClient::builder("Foo", StaticList::new([])).codec(Codec::Json).build().unwrap();
    let keys = BTreeMap::from([((1, 2), 3)]);
    let error = json.call::<_, i64>("Foo.Sum", &keys).await.unwrap_err();
    rows.add("arguments without an encoding", error, Kind::InvalidArgument, "JSON");
    for method in ["Sum", "Foo.", ".Sum", "Foo.a b", "9.x", ""] {
        let error = scene.client.call::<_, i64>(method, &(1, 2)).await.unwrap_err();
        rows.add("no method's name", error, Kind::InvalidArgument, "is no method");
    }
    let long = Call::new("x".repeat(300)).args(&(1, 2)).unwrap();
    let error = scene.client.send(long).await.unwrap_err();
    rows.add("a name too long", error, Kind::InvalidArgument, "is no method");
    let large = Call::new("Foo.Echo").body(CodecId::RAW, vec![0; (4 << 20) + 1]);
    let error = scene.client.send(large).await.unwrap_err();
    rows.add("a body too large", error, Kind::InvalidArgument, "the server takes 4194304");
    let error = sum().metadata("key", "v".repeat(9000)).unwrap_err();
    rows.add("too much metadata", error, Kind::InvalidArgument, "8192");
    assert_eq!(scene.runs.load(SeqCst), 0);
    rows.1
}

async fn layer_refused() -> Vec<Row> {
    let mut rows = Rows(Fate::LayerRefused, Vec::new());
    let scene = Scene::of(|server| server).await;
    let client = client_of(&scene.network, [&scene.address])
        .layer(layer_fn(|_: BoxCloneService<Call, Reply, BoxError>| {
            service_fn(|_: Call| async { Err::<Reply, BoxError>("out of order".into()) })
        }))
        .build()
        .unwrap();
    let error = client.send(sum()).await.unwrap_err();
    rows.add("a layer around the client", error, Kind::Unknown, "out of order");
    assert_eq!(scene.runs.load(SeqCst), 0);
    rows.1
}

async fn refused() -> Vec<Row> {
    let mut rows = Rows(Fate::Refused, Vec::new());
    let scene = Scene::of(|server| server).await;
    let call = async |method: &'static str| scene.client.call::<_, i64>(method, &"x").await;
    let error = call("Foo.None").await.unwrap_err();
    rows.add("no such method", error, Kind::Unimplemented, "Foo.None");
    let error = call("Foo.Sum").await.unwrap_err();
    rows.add("bad arguments", error, Kind::InvalidArgument, "the arguments");
    let error = call("Foo.Guarded").await.unwrap_err();
    rows.add("not allowed", error, Kind::PermissionDenied, "not you");
    let error = call("Foo.Broken").await.unwrap_err();
    rows.add("a layer that fails first", error, Kind::Unknown, "broken");
    let unknown = Call::new("Foo.Sum").body(CodecId(99), "x");
    let error = scene.client.send(unknown).await.unwrap_err();
    rows.add("an unknown codec", error, Kind::InvalidArgument, "no codec 99");
    assert_eq!(scene.runs.load(SeqCst), 0);

    let (stop, address) = (scene.stop, scene.address);
    let started = tokio::spawn({
        let client = scene.client.clone();
        async move { client.call::<_, i64>("Foo.Sleep", &2000).await }
    });
    while scene.runs.load(SeqCst) == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    // Over a connection that has not seen the drain frame, so that the server must refuse.
    let stream = scene.network.connect(&address).await.unwrap();
    let mut line = Line(stream);
    line.say(&hello([4 << 20, 1024, 8 << 20])).await;
    line.bytes(24).await.unwrap();
    stop.send(()).unwrap();
    assert_eq!(line.frame().await.map(|(kind, id, _)| (kind, id)), Some((DRAIN, 0)));
    drop(line);
    assert_eq!(started.await.unwrap().unwrap(), 2000, "what was started ends");
    assert_eq!(scene.runs.load(SeqCst), 1);

    let (connection, mut line) = pair(ConnectionSettings::default()).await;
    let call = sum();
    let (error, ()) = tokio::join!(exchange(&connection, &call, LONG), async {
        let (id, _) = line.call().await.unwrap();
        line.say(&reply(id, 14, 1, b"the server is draining")).await;
    });
    rows.add("draining", error.unwrap_err(), Kind::Unavailable, "draining");
    rows.1
}

async fn above_drain() -> Vec<Row> {
    let mut rows = Rows(Fate::AboveDrain, Vec::new());
    let (connection, mut line) = pair(ConnectionSettings::default()).await;
    let call = sum();
    let (first, second, ()) = tokio::join!(
        exchange(&connection, &call, LONG),
        exchange(&connection, &call, LONG),
        async {
            let (first, _) = line.call().await.unwrap();
            let (second, _) = line.call().await.unwrap();
            assert!(first < second);
            line.say(&[frame(DRAIN, first, &[]), three(first)].concat()).await;
        }
    );
    assert_eq!(first.unwrap().decode::<i64>().unwrap(), 3);
    rows.add("the second", second.unwrap_err(), Kind::Unavailable, "draining");
    rows.1
}

async fn connection_lost() -> Vec<Row> {
    let mut rows = Rows(Fate::ConnectionLost, Vec::new());
    let call = sum();
    let (connection, mut line) = pair(ConnectionSettings::default()).await;
    let (error, ()) = tokio::join!(exchange(&connection, &call, LONG), async {
        line.call().await.unwrap();
        drop(line);
    });
    rows.add("the server hangs up", error.unwrap_err(), Kind::Unavailable, "the connection ended");

    let (connection, mut line) = pair(ConnectionSettings::default()).await;
    let (error, ()) = tokio::join!(exchange(&connection, &call, LONG), async {
        line.call().await.unwrap();
        line.say(&[0xff; 16]).await;
    });
    rows.add("garbage", error.unwrap_err(), Kind::Unavailable, "a frame of 4294967295 bytes");

    let (connection, mut line) = pair(ConnectionSettings::default()).await;
    let (error, ()) = tokio::join!(exchange(&connection, &call, LONG), async {
        line.call().await.unwrap();
        connection.close();
    });
    rows.add("we hang up", error.unwrap_err(), Kind::Unavailable, "the client closed");

    let (connection, mut line) = pair(ConnectionSettings::default()).await;
    let idempotent = sum().idempotent(true);
    let (error, _line) = tokio::join!(exchange(&connection, &idempotent, LONG), async {
        while !matches!(line.frame().await, Some((PING, ..))) {}
        line
    });
    rows.add("no pong", error.unwrap_err(), Kind::Unavailable, "does not answer a ping");

    // A server that is killed while its handler runs.
    let scene = Scene::of(|server| server).await;
    let (error, ()) = tokio::join!(scene.client.call::<_, i64>("Foo.Sleep", &3000), async {
        while scene.runs.load(SeqCst) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        scene.serving.abort();
    });
    rows.add("the server dies", error.unwrap_err(), Kind::Unavailable, "the connection ended");
    assert_eq!(scene.runs.load(SeqCst), 1);
    rows.1
}

async fn overdue() -> Vec<Row> {
    let mut rows = Rows(Fate::Overdue, Vec::new());
    let scene = Scene::of(|server| server).await;
    let sleeping = Call::new("Foo.Sleep").args(&3000).unwrap();
    let started = Instant::now();
    let call = sleeping.clone().timeout(Duration::from_millis(500));
    let error = scene.client.send(call).await.unwrap_err();
    rows.add("the deadline", error, Kind::DeadlineExceeded, "no answer came in time");
    assert_eq!(started.elapsed().as_millis() / 20, 500 / 20);
    let call = sleeping.attempt_timeout(Duration::from_millis(500));
    let error = scene.client.send(call).await.unwrap_err();
    rows.add("an attempt's timeout", error, Kind::DeadlineExceeded, "no answer came in time");
    assert_eq!(scene.runs.load(SeqCst), 2);

    let mut settings = ConnectionSettings::default();
    // A sweep that is late makes no difference.
    settings.sweep = Duration::from_secs(1);
    let (connection, mut line) = pair(settings).await;
    let call = sum();
    let limit = Duration::from_millis(300);
    let (error, ()) = tokio::join!(exchange(&connection, &call, limit), async {
        let (id, _) = line.call().await.unwrap();
        sleep(limit).await;
        line.say(&three(id)).await;
    });
    let error = error.unwrap_err();
    rows.add("a reply at the deadline", error, Kind::DeadlineExceeded, "no answer came in time");
    rows.1
}

async fn handler_dropped() -> Vec<Row> {
    let mut rows = Rows(Fate::HandlerDropped, Vec::new());
    let scene = Scene::of(|server| server.grace(Duration::from_secs(1))).await;
    let (error, ()) = tokio::join!(scene.client.call::<_, i64>("Foo.Sleep", &4000), async {
        while scene.runs.load(SeqCst) == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        scene.stop.send(()).unwrap();
    });
    let error = error.unwrap_err();
    rows.add("the grace is over", error, Kind::Unavailable, "the server stopped");
    assert_eq!((scene.runs.load(SeqCst), scene.ends.load(SeqCst)), (1, 0));

    let scene = Scene::of(|server| server).await;
    let error = scene.client.call::<_, i64>("Foo.Limited", &4000).await.unwrap_err();
    rows.add("a layer's timeout", error, Kind::DeadlineExceeded, "timed out");
    assert_eq!((scene.runs.load(SeqCst), scene.ends.load(SeqCst)), (1, 0));

    // A client of our own is never behind its server; one whose clock is slow is.
    let mut line = Line(scene.network.connect(&scene.address).await.unwrap());
    line.say(&hello([4 << 20, 1024, 8 << 20])).await;
    line.bytes(24).await.unwrap();
    let payload = b"\0\x09Foo.Sleep\x01\0\0\0\x32\0\xcd\x0f\xa0";
    line.say(&frame(CALL, 1, payload)).await;
    let (kind, id, payload) = line.frame().await.unwrap();
    assert_eq!((kind, id, payload[0], payload[1]), (REPLY, 1, 4, 2), "{payload:?}");
    let (connection, mut liar) = pair(ConnectionSettings::default()).await;
    let call = sum();
    let (error, ()) = tokio::join!(exchange(&connection, &call, LONG), async {
        let (id, _) = liar.call().await.unwrap();
        liar.say(&frame(REPLY, id, &payload)).await;
    });
    let error = error.unwrap_err();
    rows.add("its deadline", error, Kind::DeadlineExceeded, "dropped at its deadline");
    rows.1
}

async fn unknown() -> Vec<Row> {
    let mut rows = Rows(Fate::Unknown, Vec::new());
    let scene = Scene::of(|server| server).await;
    let error = scene.client.call::<_, i64>("Foo.Spoilt", &(1, 2)).await.unwrap_err();
    rows.add("a layer around the handler", error, Kind::Unknown, "spoilt");
    let client = client_of(&scene.network, [&scene.address])
        .layer(layer_fn(|inner: BoxCloneService<Call, Reply, BoxError>| {
            service_fn(move |call: Call| {
                let mut inner = inner.clone();
                async move {
                    tower::Service::call(&mut inner, call).await?;
                    Err::<Reply, BoxError>("out of order".into())
                }
            })
        }))
        .build()
        .unwrap();
    let error = client.send(sum()).await.unwrap_err();
    rows.add("a layer around the client", error, Kind::Unknown, "out of order");
    assert_eq!(scene.runs.load(SeqCst), 2);
    let client = client_of(&scene.network, [&scene.address])
        .layer(TimeoutLayer::new(Duration::from_millis(200)))
        .build()
        .unwrap();
    let error = client.call::<_, i64>("Foo.Sleep", &3000).await.unwrap_err();
    rows.add("a layer's timeout", error, Kind::DeadlineExceeded, "timeout");
    rows.1
}

async fn failed() -> Vec<Row> {
    let mut rows = Rows(Fate::Failed, Vec::new());
    let scene = Scene::of(|server| server).await;
    for kind in Kind::ALL {
        let error = scene.client.call::<_, ()>("Foo.Fail", &kind.code()).await.unwrap_err();
        rows.add("its own error", error, kind, "on purpose");
    }
    assert_eq!(scene.runs.load(SeqCst), Kind::ALL.len(), "none is sent again");
    let error = scene.client.call::<_, String>("Foo.Large", &()).await.unwrap_err();
    rows.add("a result too large", error, Kind::ResourceExhausted, "larger than the client takes");
    rows.1
}

async fn panicked() -> Vec<Row> {
    let mut rows = Rows(Fate::Panicked, Vec::new());
    let scene = Scene::of(|server| server).await;
    for how in ["at once", "later"] {
        let error = scene.client.call::<_, ()>("Foo.Panic", &(how == "later")).await.unwrap_err();
        rows.add(how, error, Kind::Internal, "on purpose");
    }
    assert_eq!(scene.client.call::<_, i64>("Foo.Sum", &(1, 2)).await.unwrap(), 3);
    assert_eq!(scene.runs.load(SeqCst), 3);
    rows.1
}

async fn undecodable() -> Vec<Row> {
    let mut rows = Rows(Fate::Undecodable, Vec::new());
    let scene = Scene::of(|server| server).await;
    let error = scene.client.call::<_, String>("Foo.Sum", &(1, 2)).await.unwrap_err();
    rows.add("another type", error, Kind::Internal, "the reply: ");
    let raw = Call::new("Foo.Echo").body(CodecId::RAW, "x");
    let error = scene.client.send(raw).await.unwrap().decode::<i64>().unwrap_err();
    rows.add("no type at all", error, Kind::Internal, "codec raw is not built in");
    assert_eq!(scene.runs.load(SeqCst), 2);

    let (connection, mut line) = pair(ConnectionSettings::default()).await;
    let call = sum();
    let (error, ()) = tokio::join!(exchange(&connection, &call, LONG), async {
        let (id, _) = line.call().await.unwrap();
        line.say(&reply(id, 0, 0, &vec![0; 5 << 20])).await;
    });
    let text = "larger than this client takes";
    rows.add("a reply too large", error.unwrap_err(), Kind::ResourceExhausted, text);
    rows.1
}

/// A socket that takes fewer bytes than the frame has: a peer that stops reading, and then closes.
#[tokio::test]
async fn a_frame_that_a_socket_did_not_take_whole_was_not_sent() {
    for taken in [0, 100, 100_000] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(8 * 1024).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(8).unwrap();
        let address: Address = format!("tcp@{}", listener.local_addr().unwrap()).parse().unwrap();
        let client = XClient::new("Foo", StaticList::new([Instance::at(address.clone())])).unwrap();
        // More than any socket's buffers hold.
        let large = Call::new("Foo.Echo").body(CodecId::RAW, vec![0; 32 << 20]).only(address);
        let closing = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut line = Line(Stream::new(stream, Peer::new("client")));
            line.bytes(24).await.unwrap();
            line.say(&hello([64 << 20, 1024, 64 << 20])).await;
            line.bytes(16 + taken).await.unwrap();
            // Until the client's socket is full.
            sleep(Duration::from_millis(100)).await;
        };
        let (error, ()) =
            timeout(PATIENCE, async { tokio::join!(client.send(large), closing) }).await.unwrap();
        let error = error.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        assert_eq!(error.execution(), Execution::NotSent, "{error}");
        assert!(error.message().starts_with("the connection ended: "), "{error}");
    }
}

/// Then it is sent again, once, where it is read whole: one execution in all.
#[tokio::test(start_paused = true)]
async fn what_was_partly_written_is_sent_again_elsewhere() {
    let scene = Scene::of(|server| server).await;
    let mut listener = scene.network.bind(&Address::to_bind("tcp@cut:0").unwrap()).await.unwrap();
    let cut = listener.address().clone();
    let closing = tokio::spawn(async move {
        let mut line = Line(listener.accept().await.unwrap());
        line.bytes(24).await.unwrap();
        line.say(&hello([4 << 20, 1024, 8 << 20])).await;
        line.bytes(100_000).await.unwrap();
    });
    let client = client_of(&scene.network, [&cut, &scene.address]).build().unwrap();
    let call = Call::new("Foo.Echo").body(CodecId::RAW, vec![7; 1 << 20]);
    assert_eq!(client.send(call).await.unwrap().body.len(), 1 << 20);
    assert_eq!(scene.runs.load(SeqCst), 1);
    closing.await.unwrap();
}

/// The last error surfaces, with the strongest class.
#[tokio::test(start_paused = true)]
async fn a_later_attempt_that_was_not_sent_does_not_hide_an_earlier_one_that_was() {
    let network = Memory::new();
    let mut listener = network.bind(&Address::to_bind("tcp@hangup:0").unwrap()).await.unwrap();
    let hangup = listener.address().clone();
    tokio::spawn(async move {
        let mut line = Line(listener.accept().await.unwrap());
        line.bytes(24).await.unwrap();
        line.say(&hello([4 << 20, 1024, 8 << 20])).await;
        line.call().await.unwrap();
    });
    let nowhere: Address = "tcp@nowhere:1".parse().unwrap();
    let client = client_of(&network, [&hangup, &nowhere]).build().unwrap();
    let error = client.send(sum().idempotent(true)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert_eq!(error.execution(), Execution::MaybeExecuted, "{error}");
    assert!(error.attempt() > 1, "{error}");
}

/// NotSent and Rejected are promises, also when a client is closed amid its calls, on threads that
/// write while others close.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_not_sent_was_not_executed_whenever_a_client_is_closed() {
    const ROUNDS: u32 = 200;
    const CALLS: u32 = 20;
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let foo = Service::with_state("Foo", Arc::clone(&seen)).method(
        "See",
        async |seen: State<Mutex<HashSet<u32>>>, number: u32| {
            let new = seen.lock().unwrap().insert(number);
            if new { Ok(number) } else { Err(Status::new(Kind::AlreadyExists, "twice")) }
        },
    );
    let listener = Listener::bind("tcp@127.0.0.1:0").await.unwrap();
    let address = listener.address().clone();
    let serving = tokio::spawn(Server::new().service(foo).serve(listener, std::future::pending()));
    let mut not_executed = Vec::new();
    let mut classes = HashSet::new();
    for round in 0..ROUNDS {
        let client = XClient::new("Foo", StaticList::new([Instance::at(address.clone())])).unwrap();
        // The connection stands when the calls start.
        client.call::<_, u32>("Foo.See", &(ROUNDS * CALLS + round)).await.unwrap();
        let mut calls = JoinSet::new();
        for call in 0..CALLS {
            let (number, client) = (round * CALLS + call, client.clone());
            calls.spawn(async move { (number, client.call::<_, u32>("Foo.See", &number).await) });
        }
        for _ in 0..round % 20 {
            tokio::task::yield_now().await;
        }
        client.close().await;
        for (number, answer) in calls.join_all().await {
            match answer {
                Ok(told) => assert_eq!(told, number),
                Err(error) => {
                    classes.insert(error.execution());
                    if error.execution() <= Execution::Rejected {
                        not_executed.push(number);
                    }
                    assert_ne!(error.execution(), Execution::Executed, "{error}");
                }
            }
        }
    }
    // Whatever is still under way arrives.
    sleep(Duration::from_secs(1)).await;
    let seen = seen.lock().unwrap();
    let broken: Vec<_> = not_executed.iter().filter(|number| seen.contains(number)).collect();
    assert!(broken.is_empty(), "not sent, and executed: {broken:?}");
    assert!(!classes.is_empty(), "no call was hit");
    serving.abort();
}

/// Frame types, by their numbers on the wire.
const CALL: u8 = 1;
const REPLY: u8 = 2;
const DRAIN: u8 = 4;
const PING: u8 = 5;

fn hello(limits: [u32; 3]) -> Vec<u8> {
    let limits: Vec<u8> = limits.iter().flat_map(|limit| limit.to_be_bytes()).collect();
    [b"SRPC\0\x12\x01\x01", &limits[..], &[0; 4]].concat()
}

fn frame(kind: u8, id: u64, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_be_bytes();
    [&len[..], &[kind, 0, 0, 0], &id.to_be_bytes(), payload].concat()
}

fn reply(id: u64, status: u8, class: u8, body: &[u8]) -> Vec<u8> {
    frame(REPLY, id, &[&[status, class, 0, 0, 0, 0, 0], body].concat())
}

/// The right answer to `Foo.Sum` of 1 and 2.
fn three(id: u64) -> Vec<u8> {
    reply(id, 0, 0, &[3])
}

fn sum() -> Call {
    Call::new("Foo.Sum").args(&(1, 2)).unwrap().timeout(LONG)
}

/// A call that is known by its body.
fn number(number: u32) -> Call {
    Call::new("Foo.Echo").body(CodecId::RAW, number.to_be_bytes().to_vec())
}

async fn exchange(connection: &Connection, call: &Call, limit: Duration) -> Result<Reply, Error> {
    connection.exchange(call, Instant::now() + limit).await
}

/// A client of these addresses, which asks the first one first.
fn client_of<'a>(
    network: &Memory,
    addresses: impl IntoIterator<Item = &'a Address>,
) -> XClientBuilder {
    let addresses: Vec<_> = addresses.into_iter().cloned().collect();
    let list = StaticList::new(addresses.iter().cloned().map(Instance::at));
    let in_order = from_fn(move |endpoints, cx| {
        addresses.iter().find_map(|address| {
            endpoints.iter().position(|endpoint| {
                endpoint.instance().address == *address
                    && endpoint.is_usable(cx.now)
                    && !cx.tried.iter().any(|tried| tried.is(endpoint))
            })
        })
    });
    XClient::builder("Foo", list).selector(in_order).transport(Arc::new(network.clone()))
}

/// A connection, and its other end, which does what the test says.
async fn pair(settings: ConnectionSettings) -> (Connection, Line) {
    pair_of([4 << 20, 1024, 8 << 20], settings).await
}

async fn pair_of(limits: [u32; 3], settings: ConnectionSettings) -> (Connection, Line) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let mut line = Line(Stream::new(far, Peer::new("client")));
    let stream = Stream::new(near, Peer::new("server"));
    let (connection, ()) = tokio::join!(Connection::open(stream, settings, None), async {
        line.bytes(24).await.unwrap();
        line.say(&hello(limits)).await;
    });
    (connection.unwrap(), line)
}

/// The other end of a connection.
struct Line(Stream);

impl Line {
    async fn say(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
    }

    async fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).await.ok()?;
        Some(bytes)
    }

    /// The next frame's type, id and payload; `None` at the end.
    async fn frame(&mut self) -> Option<(u8, u64, Vec<u8>)> {
        let header = self.bytes(16).await?;
        let len = u32::from_be_bytes(header[..4].try_into().unwrap()) as usize;
        let payload = self.bytes(len).await?;
        Some((header[4], u64::from_be_bytes(header[8..].try_into().unwrap()), payload))
    }

    /// The next call's id and body.
    async fn call(&mut self) -> Option<(u64, Vec<u8>)> {
        loop {
            if let (CALL, id, payload) = self.frame().await? {
                let (_, body) = decode_call(&payload).unwrap();
                return Some((id, body.to_vec()));
            }
        }
    }
}

/// A real server in memory, and a client of it.
struct Scene {
    network: Memory,
    address: Address,
    client: XClient,
    /// How many handlers have started, and how many have ended by themselves.
    runs: Arc<AtomicUsize>,
    ends: Arc<AtomicUsize>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

#[derive(Default)]
struct Counts {
    runs: Arc<AtomicUsize>,
    ends: Arc<AtomicUsize>,
}

impl Scene {
    async fn of(set: impl FnOnce(Server) -> Server) -> Self {
        let counts = Counts::default();
        let (runs, ends) = (Arc::clone(&counts.runs), Arc::clone(&counts.ends));
        let network = Memory::new();
        let listener = network.bind(&Address::to_bind("tcp@foo:0").unwrap()).await.unwrap();
        let address = listener.address().clone();
        let (stop, stopped) = oneshot::channel();
        let serving =
            tokio::spawn(set(Server::new().service(foo(counts))).serve(listener, async {
                // Dropped means: never.
                if stopped.await.is_err() {
                    std::future::pending().await
                }
            }));
        let client = client_of(&network, [&address]).build().unwrap();
        Self { network, address, client, runs, ends, stop, serving }
    }
}

async fn nap(counts: State<Counts>, millis: u64) -> Result<u64, Status> {
    counts.runs.fetch_add(1, SeqCst);
    sleep(Duration::from_millis(millis)).await;
    counts.ends.fetch_add(1, SeqCst);
    Ok(millis)
}

async fn add(counts: State<Counts>, (a, b): (i64, i64)) -> Result<i64, Status> {
    counts.runs.fetch_add(1, SeqCst);
    Ok(a + b)
}

fn foo(counts: Counts) -> Service<Counts> {
    Service::with_state("Foo", counts)
        .method("Limited", nap)
        .layer(TimeoutLayer::new(Duration::from_millis(300)))
        .method("Guarded", add)
        .layer(layer_fn(|inner: MethodService| {
            service_fn(move |request: Request| {
                let mut inner = inner.clone();
                async move {
                    if request.context.method() == "Foo.Guarded" {
                        let refusal = Failure::rejected(Kind::PermissionDenied, "not you");
                        return Err::<Response, BoxError>(refusal.into());
                    }
                    tower::Service::call(&mut inner, request).await
                }
            })
        }))
        .method("Broken", add)
        .layer(layer_fn(|inner: MethodService| {
            service_fn(move |request: Request| {
                let mut inner = inner.clone();
                async move {
                    if request.context.method() == "Foo.Broken" {
                        return Err::<Response, BoxError>("broken".into());
                    }
                    tower::Service::call(&mut inner, request).await
                }
            })
        }))
        .method("Spoilt", add)
        .layer(layer_fn(|inner: MethodService| {
            service_fn(move |request: Request| {
                let mut inner = inner.clone();
                async move {
                    let is_spoilt = request.context.method() == "Foo.Spoilt";
                    let answer = tower::Service::call(&mut inner, request).await?;
                    if is_spoilt { Err::<Response, BoxError>("spoilt".into()) } else { Ok(answer) }
                }
            })
        }))
        .method("Sum", add)
        .method("Sleep", nap)
        .method("Echo", async |counts: State<Counts>, bytes: Raw| {
            counts.runs.fetch_add(1, SeqCst);
            Ok::<_, Status>(bytes)
        })
        .method("Large", async |counts: State<Counts>, (): ()| {
            counts.runs.fetch_add(1, SeqCst);
            Ok::<_, Status>("x".repeat(5 << 20))
        })
        .method("Fail", async |counts: State<Counts>, code: u8| {
            counts.runs.fetch_add(1, SeqCst);
            Err::<(), _>(Status::new(Kind::from_code(code), "on purpose"))
        })
        .method("Panic", async |counts: State<Counts>, later: bool| -> Result<(), Status> {
            counts.runs.fetch_add(1, SeqCst);
            if later {
                sleep(Duration::from_millis(10)).await;
            }
            panic!("on purpose")
        })
}
