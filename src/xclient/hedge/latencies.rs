//! Within which time a share of the calls of the last seconds was answered.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::Instant;

use crate::sync::Mutex;

/// How long observations are gathered before those of the time before are forgotten.
const WINDOW: Duration = Duration::from_secs(10);
/// How many observations say something.
const ENOUGH: u64 = 100;
/// After how many observations the time is computed anew.
const EVERY: u64 = 32;
/// Buckets for each doubling: a time is known to an eighth.
const PARTS: u32 = 8;
/// Up to 2^36 us, some 19 hours.
const BUCKETS: usize = (36 * PARTS) as usize;
/// Nothing known.
const NONE: u64 = u64::MAX;

/// A histogram of latencies whose past fades: two windows, of which the older one goes.
pub(super) struct Latencies {
    share: f64,
    windows: Mutex<Windows>,
    /// What `at_share` answers, in microseconds: a call reads it without the lock.
    at_share: AtomicU64,
}

struct Windows {
    current: Box<[u32; BUCKETS]>,
    before: Box<[u32; BUCKETS]>,
    since: Instant,
    seen: u64,
}

impl Latencies {
    pub(super) fn new(share: f64, now: Instant) -> Self {
        let windows = Windows {
            current: Box::new([0; BUCKETS]),
            before: Box::new([0; BUCKETS]),
            since: now,
            seen: 0,
        };
        Self { share, windows: Mutex::new(windows), at_share: AtomicU64::new(NONE) }
    }

    /// The time within which the share was answered; `None` before enough was seen.
    pub(super) fn at_share(&self) -> Option<Duration> {
        let micros = self.at_share.load(Relaxed);
        (micros != NONE).then(|| Duration::from_micros(micros))
    }

    /// Takes an observation.
    pub(super) fn record(&self, latency: Duration, now: Instant) {
        let mut windows = self.windows.lock();
        let windows = &mut *windows;
        if now.saturating_duration_since(windows.since) >= WINDOW {
            std::mem::swap(&mut windows.current, &mut windows.before);
            windows.current.fill(0);
            windows.since = now;
        }
        let bucket = &mut windows.current[bucket_of(latency)];
        *bucket = bucket.saturating_add(1);
        windows.seen += 1;
        if windows.seen.is_multiple_of(EVERY) || windows.seen == ENOUGH {
            self.at_share.store(windows.at(self.share).unwrap_or(NONE), Relaxed);
        }
    }
}

impl Windows {
    fn at(&self, share: f64) -> Option<u64> {
        let both = || self.current.iter().zip(self.before.iter());
        let total: u64 = both().map(|(a, b)| u64::from(*a) + u64::from(*b)).sum();
        if total < ENOUGH {
            return None;
        }
        let wanted = (total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, (a, b)) in both().enumerate() {
            seen += u64::from(*a) + u64::from(*b);
            if seen >= wanted {
                return Some(end_of(index));
            }
        }
        None
    }
}

fn bucket_of(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
    let power = micros.ilog2();
    // The three bits below the highest one.
    let part = ((u128::from(micros) << 3) >> power) as u32 & (PARTS - 1);
    ((power * PARTS + part) as usize).min(BUCKETS - 1)
}

/// The first microsecond that is no longer in a bucket.
fn end_of(bucket: usize) -> u64 {
    let (power, part) = (bucket as u32 / PARTS, bucket as u64 % u64::from(PARTS));
    ((u64::from(PARTS) + part + 1) << power).div_ceil(u64::from(PARTS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_known_to_an_eighth() {
        for micros in [1, 2, 3, 7, 8, 9, 15, 16, 100, 1_000, 12_345, 1_000_000, 3_600_000_000] {
            let end = end_of(bucket_of(Duration::from_micros(micros)));
            assert!(end > micros && end <= micros + micros / 8 + 1, "{micros}: {end}");
        }
        assert_eq!(bucket_of(Duration::ZERO), bucket_of(Duration::from_micros(1)));
        assert_eq!(bucket_of(Duration::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_share_is_found_and_the_past_fades() {
        let start = Instant::now();
        let latencies = Latencies::new(0.95, start);
        for call in 0..99 {
            latencies.record(Duration::from_millis(call % 10 + 1), start);
        }
        assert_eq!(latencies.at_share(), None, "99 say nothing");
        for call in 0..901 {
            latencies.record(Duration::from_millis(call % 10 + 1), start);
        }
        let known = latencies.at_share().unwrap().as_millis();
        assert!((9..=11).contains(&known), "{known}");
        // Quick from now on: after two windows nothing else is left.
        for second in 1..=21 {
            for _ in 0..100 {
                latencies.record(Duration::from_micros(500), start + Duration::from_secs(second));
            }
        }
        let known = latencies.at_share().unwrap().as_micros();
        assert!((500..=570).contains(&known), "{known}");
    }
}
