//! What srpc's calls cost as there is more of everything: connections, endpoints, neighbours.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use srpc::backend::static_list::StaticList;
use srpc::call::{CodecId, Raw};
use srpc::{Call, Listener, Server, Service, XClient};
use tokio::task::JoinSet;

use crate::process::Process;

/// How long each row takes.
const TIME: Duration = Duration::from_secs(2);
const IN_FLIGHT: usize = 64;

/// Serves on so many listeners until the process is killed; prints their addresses.
pub async fn serve(listeners: usize) -> io::Result<()> {
    let mut serving = JoinSet::new();
    let mut addresses = Vec::new();
    for _ in 0..listeners {
        let listener = Listener::bind("tcp@127.0.0.1:0").await?;
        addresses.push(listener.address().target().to_owned());
        let service = Service::new("Bench")
            .method("Sum", async |(a, b): (i64, i64)| Ok::<_, String>(a + b))
            .method("Bytes", async |body: Raw| Ok::<_, String>(body))
            .method("Compute", compute);
        serving.spawn(Server::new().service(service).serve(listener, std::future::pending()));
    }
    crate::say(&addresses.join(","))?;
    while serving.join_next().await.is_some() {}
    Ok(())
}

/// Keeps a processor busy.
async fn compute(millis: u64) -> Result<(), String> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(millis) {
        std::hint::spin_loop();
    }
    Ok(())
}

/// Prints the tables.
pub async fn run() -> io::Result<()> {
    println!("{IN_FLIGHT} calls of Sum in flight, two processes, {TIME:?} a row\n");
    println!("{:<26} {:>10} {:>9} {:>9}", "", "calls/s", "p50 us", "p99 us");
    let (server, addresses) = Process::many_servers(1)?;
    for connections in [1, 4, 16] {
        let row = quick(&client(&addresses, connections), TIME).await;
        row.print(&format!("{connections} connections"));
    }
    for endpoints in [1, 10, 100, 1000] {
        let (_server, addresses) = Process::many_servers(endpoints)?;
        let client = client(&addresses, 1);
        // Every endpoint is dialled first.
        quick(&client, TIME / 2).await;
        quick(&client, TIME).await.print(&format!("{endpoints} endpoints"));
    }

    println!("\n8 calls of Sum in flight on one connection, beside\n");
    println!("{:<26} {:>10} {:>9} {:>9}", "", "calls/s", "p50 us", "p99 us");
    let client = client(&addresses, 1);
    few(&client).await.print("nothing");
    let slow = beside(&client, || Call::new("Bench.Compute").args(&5_u64)).await;
    slow.print("one call that computes 5 ms");
    let body = Bytes::from(vec![7; 4 * 1024 * 1024]);
    let call = || Ok(Call::new("Bench.Bytes").body(CodecId::RAW, body.clone()));
    beside(&client, call).await.print("one call of 4 MiB");
    drop(server);
    Ok(())
}

fn client(addresses: &[SocketAddr], connections: usize) -> XClient {
    let addresses: Vec<_> = addresses.iter().map(|address| format!("tcp@{address}")).collect();
    let list = StaticList::parse(&addresses.join(",")).expect("addresses");
    XClient::builder("Bench", list)
        .connections_per_endpoint(connections)
        .build()
        .expect("a valid name")
}

struct Row {
    calls_per_s: f64,
    latencies: Vec<u64>,
}

impl Row {
    fn print(mut self, name: &str) {
        self.latencies.sort_unstable();
        let at = |quantile: f64| {
            let last = self.latencies.len().saturating_sub(1);
            self.latencies.get((last as f64 * quantile) as usize).copied().unwrap_or_default()
        };
        let (p50, p99) = (at(0.5) as f64 / 1e3, at(0.99) as f64 / 1e3);
        println!("{name:<26} {:>10.0} {p50:>9.1} {p99:>9.1}", self.calls_per_s);
    }
}

async fn quick(client: &XClient, time: Duration) -> Row {
    calls(client, IN_FLIGHT, time).await
}

async fn few(client: &XClient) -> Row {
    calls(client, 8, TIME).await
}

/// Quick calls beside one other at a time on the same connection.
async fn beside(client: &XClient, call: impl Fn() -> Result<Call, srpc::Error>) -> Row {
    let stop = AtomicBool::new(false);
    let others = async {
        while !stop.load(Relaxed) {
            client.send(call().expect("it can be encoded")).await.expect("no call fails");
        }
    };
    let quick = async {
        let row = few(client).await;
        stop.store(true, Relaxed);
        row
    };
    tokio::join!(quick, others).0
}

async fn calls(client: &XClient, in_flight: usize, time: Duration) -> Row {
    let made = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..in_flight {
        let (client, made) = (client.clone(), Arc::clone(&made));
        workers.spawn(async move {
            let mut latencies = Vec::new();
            while start.elapsed() < time {
                let called = Instant::now();
                let sum: i64 = client.call("Bench.Sum", &(1, 2)).await.expect("no call fails");
                assert_eq!(sum, 3);
                latencies.push(called.elapsed().as_nanos() as u64);
                made.fetch_add(1, Relaxed);
            }
            latencies
        });
    }
    let latencies = workers.join_all().await.into_iter().flatten().collect();
    let calls_per_s = made.load(Relaxed) as f64 / start.elapsed().as_secs_f64();
    Row { calls_per_s, latencies }
}
