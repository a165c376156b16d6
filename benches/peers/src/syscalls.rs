//! How often client and server enter the kernel for a call, where `perf` can count it.

use std::collections::BTreeMap;
use std::io;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use crate::measure::Work;
use crate::peers::Peer;
use crate::process::{Server, drive, report};
use crate::rounds::{Cell, Rounds};

/// What `perf` calls entering the kernel.
const EVENT: &str = "raw_syscalls:sys_enter";

/// How long calls are made, and how long of that is counted.
const TIME: Duration = Duration::from_millis(1200);
const COUNTED: Duration = Duration::from_millis(600);

/// System calls per call, client and server apart; empty where they cannot be counted.
pub fn count(rounds: &Rounds) -> io::Result<BTreeMap<(Cell, Peer), [f64; 2]>> {
    let mut counts = BTreeMap::new();
    // Of a process that sleeps nothing may be counted: of one that starts, something is.
    let can = Command::new("perf").args(["stat", "-x,", "-e", EVENT, "true"]).output();
    if !can.is_ok_and(|output| output.status.success()) {
        eprintln!("system calls are not counted: that needs `perf` and the right to trace");
        return Ok(counts);
    }
    for cell in rounds.cells().iter().filter(|(work, _)| *work == Work::Sum) {
        for peer in rounds.peers_of(cell.0) {
            let group: Vec<_> =
                (0..peer.servers()).map(|_| Server::start(peer)).collect::<io::Result<_>>()?;
            let servers: Vec<_> = group.iter().collect();
            let mut client = drive(peer, cell.0, cell.1, TIME, &servers)?;
            sleep(TIME / 5 + Duration::from_millis(200));
            let mut pids = vec![client.pid()];
            pids.extend(group.iter().map(|server| server.process.pid()));
            let entered = entered(&pids, COUNTED);
            let report = report(&mut client)?;
            if let Some(entered) = entered {
                let calls = report.calls as f64 / report.seconds * COUNTED.as_secs_f64();
                let servers: f64 = entered[1..].iter().sum();
                counts.insert((*cell, peer), [entered[0] / calls, servers / calls]);
            }
        }
    }
    Ok(counts)
}

/// How often each of these processes enters the kernel within a time.
fn entered(pids: &[u32], time: Duration) -> Option<Vec<f64>> {
    let counters: Vec<_> = pids
        .iter()
        .map(|pid| {
            Command::new("perf")
                .args(["stat", "-x,", "-e", EVENT, "-p", &pid.to_string()])
                .args(["--", "sleep", &time.as_secs_f64().to_string()])
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::piped())
                .spawn()
        })
        .collect();
    let count = |counter: io::Result<std::process::Child>| {
        let output = counter.ok()?.wait_with_output().ok()?;
        String::from_utf8_lossy(&output.stderr).split(',').next()?.trim().parse().ok()
    };
    counters.into_iter().map(count).collect()
}
