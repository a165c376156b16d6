//! How did the calls end, and how long did they take?

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use srpc::{Error, Reply};

use crate::exit::Exit;

/// The histogram's end: an hour. What takes longer is counted as that.
const LONGEST_US: u64 = 60 * 60 * 1_000_000;
/// How many different failures are shown.
const EXAMPLES: usize = 5;

/// What has ended so far.
#[derive(Debug)]
pub(super) struct Tally {
    /// Microseconds, of every call, whether it failed or not.
    latency: Histogram<u64>,
    ok: u64,
    failed: u64,
    by_kind: BTreeMap<&'static str, u64>,
    by_execution: BTreeMap<&'static str, u64>,
    /// Failed calls by the address of their last attempt.
    by_instance: BTreeMap<String, u64>,
    /// The first few failures' texts, each once.
    examples: Vec<String>,
}

impl Tally {
    /// Nothing has ended yet.
    pub(super) fn new() -> Result<Self, Exit> {
        let latency = Histogram::new_with_max(LONGEST_US, 3)
            .map_err(|error| Exit::failed(format!("no histogram: {error}")))?;
        Ok(Self {
            latency,
            ok: 0,
            failed: 0,
            by_kind: BTreeMap::new(),
            by_execution: BTreeMap::new(),
            by_instance: BTreeMap::new(),
            examples: Vec::new(),
        })
    }

    /// Counts a call that has ended.
    pub(super) fn record(&mut self, latency: Duration, result: &Result<Reply, Error>) {
        self.latency.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        let Err(error) = result else {
            self.ok += 1;
            return;
        };
        self.failed += 1;
        *self.by_kind.entry(error.kind().as_str()).or_default() += 1;
        *self.by_execution.entry(error.execution().as_str()).or_default() += 1;
        if let Some(endpoint) = error.endpoint() {
            *self.by_instance.entry(endpoint.to_string()).or_default() += 1;
        }
        if self.examples.len() < EXAMPLES {
            let text = error.to_string();
            if !self.examples.contains(&text) {
                self.examples.push(text);
            }
        }
    }

    /// The first few failures' texts.
    pub(super) fn examples(&self) -> &[String] {
        &self.examples
    }

    /// One line about the state of things.
    pub(super) fn progress(&self) -> String {
        format!("{} calls, {} failed", self.ok + self.failed, self.failed)
    }

    /// The whole of it, with the answers and the failed attempts of each instance.
    pub(super) fn summary(
        &self,
        took: Duration,
        per_instance: BTreeMap<String, u64>,
        failed_attempts: BTreeMap<String, u64>,
    ) -> Summary {
        let calls = self.ok + self.failed;
        let seconds = took.as_secs_f64();
        let microseconds = |quantile| self.latency.value_at_quantile(quantile);
        Summary {
            calls,
            ok: self.ok,
            failed: self.failed,
            failed_by_kind: self.by_kind.clone(),
            failed_by_execution: self.by_execution.clone(),
            seconds,
            calls_per_s: if seconds > 0.0 { calls as f64 / seconds } else { 0.0 },
            p50_us: microseconds(0.5),
            p90_us: microseconds(0.9),
            p99_us: microseconds(0.99),
            p999_us: microseconds(0.999),
            max_us: self.latency.max(),
            per_instance,
            failed_per_instance: self.by_instance.clone(),
            failed_attempts_per_instance: failed_attempts,
        }
    }
}

/// The outcome of a bench: calls, not attempts; `ok + failed = calls`.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) calls: u64,
    pub(super) ok: u64,
    pub(super) failed: u64,
    /// By the kind's word, such as `deadline_exceeded`.
    pub(super) failed_by_kind: BTreeMap<&'static str, u64>,
    /// By the execution's word, such as `maybe_executed`.
    pub(super) failed_by_execution: BTreeMap<&'static str, u64>,
    pub(super) seconds: f64,
    pub(super) calls_per_s: f64,
    pub(super) p50_us: u64,
    pub(super) p90_us: u64,
    pub(super) p99_us: u64,
    pub(super) p999_us: u64,
    pub(super) max_us: u64,
    /// The calls that each address answered.
    pub(super) per_instance: BTreeMap<String, u64>,
    /// The calls that failed, by the address of their last attempt, if they had one.
    pub(super) failed_per_instance: BTreeMap<String, u64>,
    /// The attempts that failed at each address, also where another attempt was answered.
    pub(super) failed_attempts_per_instance: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use srpc::call::CodecId;
    use srpc::error::{Fate, Kind};

    use super::*;

    #[test]
    fn every_call_is_counted_once() {
        let mut tally = Tally::new().unwrap();
        for _ in 0..3 {
            tally.record(Duration::from_millis(1), &Ok(Reply::new(CodecId::JSON, "1")));
        }
        let lost = || {
            let error = Error::new(Kind::Unavailable, Fate::ConnectionLost, "reset");
            Err(error.at(&"tcp@a:1".parse().unwrap()))
        };
        tally.record(Duration::from_millis(9), &lost());
        tally.record(Duration::from_secs(9000), &lost());
        let summary = tally.summary(Duration::from_secs(2), BTreeMap::new(), BTreeMap::new());
        assert_eq!((summary.calls, summary.ok, summary.failed), (5, 3, 2));
        assert_eq!(summary.failed_by_kind.get("unavailable"), Some(&2));
        assert_eq!(summary.failed_by_execution.get("maybe_executed"), Some(&2));
        assert_eq!(summary.failed_per_instance.get("tcp@a:1"), Some(&2));
        assert!((999..=1001).contains(&summary.p50_us), "{}", summary.p50_us);
        assert!(summary.p999_us <= summary.max_us);
        assert_eq!(tally.examples().len(), 1);
    }
}
