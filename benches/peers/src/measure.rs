//! What one client process does and counts: calls in a closed loop, for a time.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::peers::Caller;

/// What a call carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Work {
    /// Two numbers there and one back, one call at a time.
    Seq,
    /// The same, many at a time.
    Sum,
    /// A body of 1 KiB there and back.
    #[value(name = "1k")]
    Kilobyte,
    /// A body of 64 KiB there and back.
    #[value(name = "64k")]
    Body,
    /// 16 bytes there and back, which no codec touches.
    Bytes,
}

/// One measurement: which calls, how many at a time, for how long.
#[derive(Clone, Debug)]
pub struct Order {
    pub work: Work,
    pub in_flight: usize,
    pub warm_up: Duration,
    pub time: Duration,
    /// The servers' processes, whose processor time counts too.
    pub servers: Vec<u32>,
}

/// What was counted; the line that a client process prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub calls: u64,
    pub seconds: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Of client and servers together.
    pub cpu_s: f64,
}

impl Work {
    /// Its name in the table.
    pub fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn body(self) -> Bytes {
        let len = match self {
            Self::Seq | Self::Sum => 0,
            Self::Kilobyte => 1024,
            Self::Body => 64 * 1024,
            Self::Bytes => 16,
        };
        Bytes::from(vec![7; len])
    }
}

impl Order {
    /// Makes the calls and counts them.
    pub async fn run<C: Caller>(&self, caller: C) -> Report {
        let (counting, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let workers: Vec<_> = (0..self.in_flight)
            .map(|number| {
                let (caller, work) = (caller.clone(), self.work);
                let (counting, stop) = (Arc::clone(&counting), Arc::clone(&stop));
                tokio::spawn(worker(caller, work, number as i64, counting, stop))
            })
            .collect();
        tokio::time::sleep(self.warm_up).await;
        let (cpu, start) = (self.cpu(), Instant::now());
        counting.store(true, Relaxed);
        tokio::time::sleep(self.time).await;
        counting.store(false, Relaxed);
        let (seconds, cpu_s) = (start.elapsed().as_secs_f64(), self.cpu() - cpu);
        stop.store(true, Relaxed);
        let mut calls = 0;
        let mut latencies = Vec::new();
        for worker in workers {
            let (made, own) = worker.await.expect("no call failed");
            calls += made;
            latencies.extend(own);
        }
        latencies.sort_unstable();
        let at = |quantile: f64| {
            let last = latencies.len().saturating_sub(1);
            let nanos = latencies.get((last as f64 * quantile).round() as usize);
            f64::from(nanos.copied().unwrap_or_default()) / 1e3
        };
        Report { calls, seconds, p50_us: at(0.5), p99_us: at(0.99), cpu_s }
    }

    /// The processor time that client and servers have used so far, in seconds.
    fn cpu(&self) -> f64 {
        cpu_of(std::process::id()) + self.servers.iter().map(|pid| cpu_of(*pid)).sum::<f64>()
    }
}

/// Calls until it is stopped; how many calls began and ended while they counted, and how many
/// nanoseconds each of them took. A list, and no histogram: one for each of 512 callers would throw
/// what is measured out of the processor's caches.
async fn worker<C: Caller>(
    caller: C,
    work: Work,
    number: i64,
    counting: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
) -> (u64, Vec<u32>) {
    let body = work.body();
    let mut latencies = Vec::with_capacity(4096);
    let (mut made, mut n) = (0, 0_u64);
    while !stop.load(Relaxed) {
        n += 1;
        let counts = counting.load(Relaxed);
        let timed = counts.then(Instant::now);
        match work {
            Work::Seq | Work::Sum => {
                let sum = caller.sum(number, n as i64).await;
                assert_eq!(sum, number + n as i64, "a wrong answer");
            }
            Work::Kilobyte | Work::Body => {
                assert_eq!(caller.echo(&body).await, body.len(), "a wrong answer");
            }
            Work::Bytes => {
                assert_eq!(caller.bytes(&body).await, body.len(), "a wrong answer");
            }
        }
        if counts && counting.load(Relaxed) {
            made += 1;
            if let Some(start) = timed {
                latencies.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
            }
        }
    }
    (made, latencies)
}

/// The processor time of a process, by its threads, in seconds: `schedstat` counts nanoseconds,
/// where `stat` counts hundredths of a second.
pub fn cpu_of(pid: u32) -> f64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0.0 };
    let nanos = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    nanos.sum::<u64>() as f64 / 1e9
}
