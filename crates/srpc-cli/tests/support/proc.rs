//! What does a running process use? Linux tells it under /proc.
#![allow(dead_code, reason = "each file of tests uses a part of it")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a helper's failure is the test's")]

use std::fs;
use std::process::Command;
use std::time::Duration;

/// The memory that is resident, in KiB.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// How long its threads that live have run on a processor.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let of_thread = |text: String| text.split_whitespace().next().unwrap().parse::<u64>().unwrap();
    Duration::from_nanos(of_threads(pid, "schedstat").map(of_thread).sum())
}

/// How often its threads that live have waited and been woken: a server that gets few calls wakes
/// once for each at least.
pub(crate) fn wake_ups(pid: u32) -> u64 {
    let of_thread = |text: String| {
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    of_threads(pid, "status").map(of_thread).sum()
}

/// What a file of each of its threads says. A thread may end meanwhile.
fn of_threads(pid: u32, file: &'static str) -> impl Iterator<Item = String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.filter_map(move |thread| fs::read_to_string(thread.ok()?.path().join(file)).ok())
}

/// Lets a process open this many files from now on.
pub(crate) fn limit_files(pid: u32, files: u64) {
    let limit = format!("--nofile={files}:{files}");
    let set = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status().unwrap();
    assert!(set.success(), "prlimit {limit}: {set}");
}

/// Lets this process, and those that it starts from now on, open this many files at least.
pub(crate) fn need_files(files: u64) {
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut limits = line.split_whitespace().skip(3).map(|limit| limit.parse().unwrap_or(u64::MAX));
    let (soft, hard) = (limits.next().unwrap(), limits.next().unwrap());
    if soft < files {
        assert!(hard >= files, "{files} open files are needed, and {hard} are allowed");
        limit_files(std::process::id(), hard);
    }
}
