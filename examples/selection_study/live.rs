//! Three of the ways on real processes: servers that do one thing after the other, and clients whose calls
//! come at random.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;
use srpc::backend::static_list::StaticList;
use srpc::selector::{P2c, Random, RoundRobin, Selector};
use srpc::server::State;
use srpc::{Listener, Server, Service, XClient};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::Fallible;

pub(crate) const SERVER: &str = "server";
pub(crate) const CLIENT: &str = "client";

const SERVERS: usize = 20;
/// Processes; each has as many clients, which share nothing.
const PROCESSES: usize = 4;
const CLIENTS: usize = 10;
/// What one call takes a server, in the mean, in seconds.
const WORK: f64 = 10e-3;
const LOAD: f64 = 0.9;

const POLICIES: [&str; 3] = ["random", "round robin", "P2c"];

/// Prints the 99th percentile of each, round after round.
pub(crate) fn compare(length: Duration, rounds: usize) -> Fallible<()> {
    println!(
        "{SERVERS} servers, {} clients in {PROCESSES} processes, {:.0} % load, one call takes {:.0} ms; \
         each {} s, in turns",
        PROCESSES * CLIENTS,
        LOAD * 100.0,
        WORK * 1e3,
        length.as_secs()
    );
    let mut found = vec![Vec::new(); POLICIES.len()];
    for _ in 0..rounds {
        for (policy, found) in POLICIES.iter().zip(&mut found) {
            found.push(p99(policy, length)?);
        }
    }
    println!("99th percentile in ms, the median of {rounds} (least to most)");
    for (policy, found) in POLICIES.iter().zip(&mut found) {
        found.sort_by(f64::total_cmp);
        let (least, most) = (found[0], found[rounds - 1]);
        println!("{policy:<34}{:>6.0} ({least:.0} to {most:.0})", crate::median(found));
    }
    Ok(())
}

/// Of calls by this policy, in milliseconds.
fn p99(policy: &str, length: Duration) -> Fallible<f64> {
    // Of their own, so that nothing is left of the one before.
    let mut servers = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..SERVERS {
        let mut server = Process::start(&[SERVER])?;
        addresses.push(server.line()?);
        servers.push(server);
    }
    let (addresses, seconds) = (addresses.join(","), length.as_secs().to_string());
    let clients = (0..PROCESSES).map(|_| Process::start(&[CLIENT, policy, &addresses, &seconds]));
    let mut took: Vec<u64> = Vec::new();
    for client in clients.collect::<Fallible<Vec<_>>>()? {
        took.extend(client.numbers()?);
    }
    took.sort_unstable();
    let place = took.get(took.len() * 99 / 100).ok_or("no call was made")?;
    Ok(*place as f64 / 1e3)
}

/// A process of this program. Dropping it kills it.
struct Process {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start(args: &[&str]) -> Fallible<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut child = command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Self { child, lines })
    }

    fn line(&mut self) -> Fallible<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        match line.trim() {
            "" => Err("a process of this study has ended".into()),
            text => Ok(text.to_owned()),
        }
    }

    /// All that it prints until it ends.
    fn numbers(mut self) -> Fallible<Vec<u64>> {
        let mut numbers = Vec::new();
        let mut line = String::new();
        while self.lines.read_line(&mut line)? > 0 {
            numbers.push(line.trim().parse()?);
            line.clear();
        }
        match self.child.wait()?.success() {
            true => Ok(numbers),
            false => Err("a process of this study has failed".into()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn runtime() -> Fallible<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// When a server is free again.
struct Bench {
    free: Mutex<Instant>,
}

pub(crate) fn serve() -> Fallible<()> {
    runtime()?.block_on(async {
        let bench = Bench { free: Mutex::new(Instant::now()) };
        let service = Service::with_state("Work", bench).method("Do", work);
        let listener = Listener::bind("tcp@127.0.0.1:0").await?;
        println!("{}", listener.address());
        Server::new().service(service).serve(listener, std::future::pending()).await?;
        Ok(())
    })
}

/// One thing after the other: each begins when those before it are done.
async fn work(bench: State<Bench>, (): ()) -> Result<(), &'static str> {
    let done = {
        let mut free = bench.free.lock();
        *free = (*free).max(Instant::now()) + random_time(WORK);
        *free
    };
    sleep_until(done).await;
    Ok(())
}

/// Calls, and prints how long each took, in microseconds, but for those of the first quarter.
pub(crate) fn call(words: &[String]) -> Fallible<()> {
    let [policy, addresses, seconds] = words else {
        return Err("what policy, whom, how long?".into());
    };
    let selectors: HashMap<&str, fn() -> Arc<dyn Selector>> = HashMap::from([
        ("random", (|| Arc::new(Random::new()) as _) as fn() -> Arc<dyn Selector>),
        ("round robin", || Arc::new(RoundRobin::new())),
        ("P2c", || Arc::new(P2c::new())),
    ]);
    let selector = selectors.get(policy.as_str()).ok_or("which policy?")?;
    let length = Duration::from_secs(seconds.parse()?);
    let pause = WORK * (PROCESSES * CLIENTS) as f64 / (LOAD * SERVERS as f64);
    let took = runtime()?.block_on(async {
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let list = StaticList::parse(addresses)?;
            let client = XClient::builder("Work", list).selector(selector()).build()?;
            clients.spawn(calls(client, pause, length));
        }
        let took = clients.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok::<_, Box<dyn std::error::Error>>(took.concat())
    })?;
    took.iter().for_each(|us| println!("{us}"));
    Ok(())
}

async fn calls(client: XClient, pause: f64, length: Duration) -> Result<Vec<u64>, srpc::Error> {
    let mut calls = JoinSet::new();
    let (start, mut next) = (Instant::now(), Instant::now());
    while start.elapsed() < length {
        let (client, is_warm) = (client.clone(), start.elapsed() > length / 4);
        calls.spawn(async move {
            let sent = Instant::now();
            client.call::<_, ()>("Work.Do", &()).await?;
            Ok::<_, srpc::Error>(is_warm.then(|| sent.elapsed().as_micros() as u64))
        });
        // By the clock, and not after the call before: late ones are made up for.
        next += random_time(pause);
        sleep_until(next).await;
    }
    let took = calls.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(took.into_iter().flatten().collect())
}

fn random_time(mean: f64) -> Duration {
    // Above 0: its logarithm is finite.
    let uniform: f64 = 1.0 - rand::rng().random::<f64>();
    Duration::from_secs_f64(-uniform.ln() * mean)
}
