//! What the parts of a call cost, one by one: `cargo bench --bench parts`.
//!
//! Whole calls between processes, beside other libraries, are in `benches/peers`.

#![allow(clippy::expect_used, missing_docs, reason = "a bench that cannot run says why")]

use std::future::{Ready, poll_fn, ready};
use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use srpc::backend::static_list::StaticList;
use srpc::call::{Codec, CodecId, Metadata};
use srpc::discovery::{Endpoint, EndpointSet};
use srpc::protocol::{
    CallHead, Cut, FrameReader, FrameType, MethodRef, ReplyHead, decode_call, decode_reply,
    encode_call, encode_frame, encode_reply,
};
use srpc::selector::{
    ConsistentHash, LeastInFlight, P2c, PickContext, Picker, Random, RoundRobin, Selector,
    guarded_pick,
};
use srpc::transport::{Memory, Transport};
use srpc::xclient::XClientBuilder;
use srpc::{Call, Instance, Server, Service, XClient, call::Raw};
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;
use tower::Service as TowerService;
use tower::balance::p2c::Balance;
use tower::discover::ServiceList;
use tower::limit::ConcurrencyLimitLayer;
use tower::load::{CompleteOnResponse, PendingRequests};
use tower::timeout::TimeoutLayer;
use tower::util::MapRequestLayer;

criterion_group!(parts, frames, codecs, in_flight, picks, calls);
criterion_main!(parts);

/// 100 frames, written and cut.
fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("frames");
    let call = |out: &mut Vec<u8>, id| {
        let head = CallHead {
            method: MethodRef::Name("Foo.Sum"),
            codec: CodecId::MESSAGE_PACK,
            remaining_ms: 10_000,
            metadata: Metadata::default(),
        };
        encode_frame(out, FrameType::Call, 0, id, |out| encode_call(out, &head, &[0x92, 1, 2]));
    };
    let reply = |out: &mut Vec<u8>, id| {
        let head = ReplyHead { status: Ok(()), load: 3, metadata: Metadata::default() };
        encode_frame(out, FrameType::Reply, 0, id, |out| encode_reply(out, &head, &[3]));
    };
    let mut out = Vec::new();
    group.bench_function("write 100 calls", |b| {
        b.iter(|| {
            out.clear();
            (1..=100).for_each(|id| call(&mut out, id));
            out.len()
        });
    });
    let mut calls = Vec::new();
    (1..=100).for_each(|id| call(&mut calls, id));
    let mut replies = Vec::new();
    (1..=100).for_each(|id| reply(&mut replies, id));
    group.bench_function("cut 100 calls", |b| {
        b.iter(|| {
            let mut reader = FrameReader::new(BytesMut::from(&*calls), 1 << 20);
            while let Ok(Some(Cut::Whole(_, payload))) = reader.cut() {
                black_box(decode_call(payload.as_slice()).map(|(head, _)| head.remaining_ms).ok());
            }
        });
    });
    group.bench_function("cut 100 replies", |b| {
        b.iter(|| {
            let mut reader = FrameReader::new(BytesMut::from(&*replies), 1 << 20);
            while let Ok(Some(Cut::Whole(_, payload))) = reader.cut() {
                black_box(decode_reply(payload.as_slice()).map(|(head, _)| head.load).ok());
            }
        });
    });
}

fn codecs(c: &mut Criterion) {
    let mut group = c.benchmark_group("codecs");
    for codec in [Codec::MessagePack, Codec::Json] {
        let body = codec.encode_bytes(&(1_i64, 2_i64)).expect("numbers");
        group.bench_function(format!("{:?} encode", codec.id()), |b| {
            b.iter(|| codec.encode_bytes(black_box(&(1_i64, 2_i64))));
        });
        group.bench_function(format!("{:?} decode", codec.id()), |b| {
            b.iter(|| codec.decode::<(i64, i64)>(black_box(&body)));
        });
    }
}

/// The client's table: 64 calls put in, answered and taken out.
fn in_flight(c: &mut Criterion) {
    c.bench_function("in-flight table, 64 calls", |b| {
        let mut table = srpc::client::InFlightBench::new(Instant::now());
        b.iter(|| table.round(64));
    });
}

fn set(endpoints: usize) -> Arc<EndpointSet> {
    let now = Instant::now();
    let endpoint = |n| {
        let address = format!("tcp@10.{}.{}.{}:7001", n / 65536, n / 256 % 256, n % 256);
        Endpoint::new(Instance::at(address.parse().expect("an address")), now)
    };
    Arc::new(EndpointSet::new((0..endpoints).map(endpoint).collect()))
}

fn picks(c: &mut Criterion) {
    let mut group = c.benchmark_group("pick with its guard");
    let selectors: [(&str, Box<dyn Selector>); 5] = [
        ("p2c", Box::new(P2c::new())),
        ("random", Box::new(Random::new())),
        ("round robin", Box::new(RoundRobin::new())),
        ("least in flight", Box::new(LeastInFlight::new())),
        ("hash", Box::new(ConsistentHash::new())),
    ];
    for (name, selector) in &selectors {
        for endpoints in [10, 1_000, 100_000] {
            let set = set(endpoints);
            let picker: Arc<dyn Picker> = Arc::from(selector.prepare(&set));
            group.bench_function(BenchmarkId::new(*name, endpoints), |b| {
                let mut picks = Picks::new(&picker, &set, 1);
                b.iter(|| picks.next());
            });
            // The same, while another thread picks from the same set.
            group.bench_function(BenchmarkId::new(format!("{name}, 2 threads"), endpoints), |b| {
                let stop = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        let mut picks = Picks::new(&picker, &set, 2);
                        while !stop.load(Relaxed) {
                            picks.next();
                        }
                    });
                    let mut picks = Picks::new(&picker, &set, 1);
                    b.iter(|| picks.next());
                    stop.store(true, Relaxed);
                });
            });
        }
    }
    // What it is compared with: the same choice by tower, over services that answer at once.
    group.bench_function(BenchmarkId::new("tower::balance", 10), |b| {
        let services =
            (0..10).map(|_| PendingRequests::new(Instantly, CompleteOnResponse::default()));
        let mut balance = Balance::new(ServiceList::new::<()>(services));
        let mut cx = Context::from_waker(Waker::noop());
        b.iter(|| {
            let ready = TowerService::<()>::poll_ready(&mut balance, &mut cx);
            assert!(ready.is_ready());
            let mut answer = std::pin::pin!(balance.call(()));
            assert!(answer.as_mut().poll(&mut cx).is_ready());
        });
    });
}

struct Picks<'a> {
    picker: &'a Arc<dyn Picker>,
    set: &'a EndpointSet,
    now: Instant,
    seed: u64,
}

impl<'a> Picks<'a> {
    fn new(picker: &'a Arc<dyn Picker>, set: &'a EndpointSet, seed: u64) -> Self {
        Self { picker, set, now: Instant::now(), seed }
    }

    fn next(&mut self) -> Option<usize> {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let cx = PickContext::new(self.now, self.seed).hash_key(Some(self.seed));
        black_box(guarded_pick(&**self.picker, self.set, &cx))
    }
}

struct Instantly;

impl TowerService<()> for Instantly {
    type Response = ();
    type Error = std::convert::Infallible;
    type Future = Ready<Result<(), Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        ready(Ok(()))
    }
}

type With = fn(XClientBuilder) -> XClientBuilder;

/// A call over the network in memory, on one thread, and what each layer adds to it.
fn calls(c: &mut Criterion) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let network = Memory::new();
    let list = runtime.block_on(async {
        let address = "mem@server".parse().expect("an address");
        let listener = network.bind(&address).await.expect("it is free");
        let service = Service::new("Foo")
            .method("Sum", async |(a, b): (i64, i64)| Ok::<_, String>(a + b))
            .method("Bytes", async |body: Raw| Ok::<_, String>(body));
        tokio::spawn(Server::new().service(service).serve(listener, std::future::pending()));
        StaticList::parse("mem@server").expect("an address")
    });
    let client = |with: With| {
        let _in_runtime = runtime.enter();
        let builder = XClient::builder("Foo", list.clone()).transport(Arc::new(network.clone()));
        with(builder).build().expect("a valid name")
    };
    let rows: [(&str, With); 6] = [
        ("default", |builder| builder),
        ("a layer that does nothing", |builder| {
            builder.layer(MapRequestLayer::new(|call: Call| call))
        }),
        ("tower's timeout", |builder| builder.layer(TimeoutLayer::new(Duration::from_secs(1)))),
        ("tower's concurrency limit", |builder| builder.layer(ConcurrencyLimitLayer::new(1000))),
        ("both", |builder| {
            let builder = builder.layer(TimeoutLayer::new(Duration::from_secs(1)));
            builder.layer(ConcurrencyLimitLayer::new(1000))
        }),
        ("an attempt layer that does nothing", |builder| {
            builder.attempt_layer(MapRequestLayer::new(|attempt: srpc::xclient::Attempt| attempt))
        }),
    ];
    let mut group = c.benchmark_group("call in memory");
    for (name, with) in rows {
        let client = client(with);
        group.bench_function(name, |b| b.iter(|| sum(&runtime, &client)));
    }
    let plain = client(|builder| builder);
    group.bench_function("raw bytes", |b| {
        let body = Bytes::from_static(&[7; 16]);
        b.iter(|| {
            let call = Call::new("Foo.Bytes").body(CodecId::RAW, body.clone());
            runtime.block_on(plain.send(call)).expect("no call fails")
        });
    });
    // 64 at once share what a write and a wake-up cost.
    group.bench_function("64 at once", |b| {
        b.iter(|| {
            let mut calls: Vec<Pin<Box<_>>> =
                (0..64).map(|_| Box::pin(plain.call::<_, i64>("Foo.Sum", &(1, 2)))).collect();
            runtime.block_on(poll_fn(|cx| {
                calls.retain_mut(|call| call.as_mut().poll(cx).is_pending());
                if calls.is_empty() { Poll::Ready(()) } else { Poll::Pending }
            }));
        });
    });
}

fn sum(runtime: &Runtime, client: &XClient) {
    let sum: i64 = runtime.block_on(client.call("Foo.Sum", &(1, 2))).expect("no call fails");
    assert_eq!(sum, 3);
}
