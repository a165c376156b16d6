//! What does a real server that gets three times the calls it can answer still answer, and how soon
//! does it turn away the rest?
#![allow(clippy::unwrap_used, reason = "the whole file is tests")]
#![allow(clippy::disallowed_types, reason = "processes run on the machine's clock")]

mod support;

use std::time::{Duration, Instant};

use srpc::backend::static_list::StaticList;
use srpc::call::Codec;
use srpc::{Call, Execution, Kind, XClient};
use support::Process;
use tokio::task::JoinSet;

const LIMIT: usize = 20;
const LASTING: Duration = Duration::from_secs(3);

/// Processor time that a process has used, in seconds.
fn processor(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // What follows the command's name, which may hold anything.
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / 100.0
}

fn call() -> Call {
    // Ten milliseconds.
    Call::new("Foo.Sleep").args_in(&Codec::Json, &serde_json::json!({"num1": 0.01})).unwrap()
}

/// Answers a second, with as many callers as the limit allows, each waiting for its answer.
async fn peak(client: &XClient) -> f64 {
    let until = Instant::now() + LASTING;
    let mut callers = JoinSet::new();
    for _ in 0..LIMIT {
        let client = client.clone();
        callers.spawn(async move {
            let mut answered = 0.0;
            while Instant::now() < until {
                answered += f64::from(u8::from(client.send(call()).await.is_ok()));
            }
            answered
        });
    }
    callers.join_all().await.into_iter().sum::<f64>() / LASTING.as_secs_f64()
}

/// Answers a second, and how long each rejection took, with calls on a schedule.
async fn offer(client: &XClient, rate: f64) -> (f64, Vec<Duration>) {
    let mut calls = JoinSet::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let started = Instant::now();
    let mut made = 0.0;
    while started.elapsed() < LASTING {
        ticks.tick().await;
        while made < started.elapsed().as_secs_f64() * rate {
            made += 1.0;
            let client = client.clone();
            calls.spawn(async move {
                let made = Instant::now();
                (client.send(call()).await.map(drop), made.elapsed())
            });
        }
    }
    let lasted = started.elapsed().as_secs_f64();
    let (mut answered, mut rejections) = (0.0, Vec::new());
    for (answer, took) in calls.join_all().await {
        let Err(error) = answer else {
            answered += 1.0;
            continue;
        };
        let what = (error.kind(), error.execution());
        assert_eq!(what, (Kind::ResourceExhausted, Execution::Rejected), "{error}");
        rejections.push(took);
    }
    rejections.sort();
    (answered / lasted, rejections)
}

#[test]
#[cfg(target_os = "linux")]
#[ignore = "needs a processor that is mostly free"]
fn three_times_the_load_costs_no_goodput_and_the_rest_is_rejected_at_once() {
    let limit = LIMIT.to_string();
    let (server, address) =
        Process::listening(&["serve", "--bind", "127.0.0.1:0", "--concurrency", &limit]);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let list = StaticList::parse(&address).unwrap();
        let client =
            XClient::builder("Foo", list).connections_per_endpoint(4).attempts(1).build().unwrap();
        // Whatever else runs on the machine takes from goodput and adds to times, and never the
        // other way round: one round of three must hold.
        let mut rounds = Vec::new();
        while rounds.len() < 3 {
            let (share, p99) = round(&client, server.id()).await;
            if share >= 0.8 && p99 <= Duration::from_millis(50) {
                return;
            }
            rounds.push((share, p99));
        }
        panic!("{rounds:?}");
    });
}

/// The share of the peak that is answered under three times its load, and the time within which 99
/// of 100 rejections came.
async fn round(client: &XClient, server: u32) -> (f64, Duration) {
    let peak = peak(client).await;
    let used = || processor(server) + processor(std::process::id());
    let before = used();
    let (goodput, rejections) = offer(client, 3.0 * peak).await;
    let cores = (used() - before) / LASTING.as_secs_f64();
    let p99 = rejections[rejections.len() * 99 / 100];
    let share = goodput / peak;
    println!(
        "figure overload goodput_share={share:.2} reject_p99_ms={:.1} reject_max_ms={:.1} \
             peak={peak:.0} offered={:.0} rejected={} cores={cores:.2}",
        p99.as_secs_f64() * 1000.0,
        rejections.last().unwrap().as_secs_f64() * 1000.0,
        3.0 * peak,
        rejections.len(),
    );
    (share, p99)
}
