//! Caps on a listener's connections within the process's limit of open files.

use std::io;

use super::Listener;
use crate::sync::event;

/// How many refused connections are told why at once, where there are files enough.
const MAX_REFUSING: usize = 64;
/// Files that are left for all else, at least.
const MIN_RESERVE: usize = 32;

/// How many connections a listener may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionCaps {
    pub(crate) total: usize,
    pub(crate) per_host: usize,
    /// Refused connections that are told why at the same time, beside the others.
    pub(crate) refusing: usize,
}

impl ConnectionCaps {
    /// These caps, or what the limit of open files allows of them.
    #[cfg(feature = "http")]
    pub(crate) fn within_open_files(total: usize, per_host: usize) -> Self {
        Self::within(total, per_host, max_open_files())
    }

    /// The caps of a listener: these, or what the limit of open files allows of them, which is logged
    /// if it is less. A listener in memory opens no files.
    pub(crate) fn for_listener(listener: &Listener, total: usize, per_host: usize) -> Self {
        let max_files = if listener.is_in_process() { None } else { max_open_files() };
        let caps = Self::within(total, per_host, max_files);
        if caps.total < total {
            event!(
                WARN,
                address = listener.address().as_str(),
                open_files = max_files,
                connections = caps.total,
                connections_per_host = caps.per_host,
                "connections are capped by the limit of open files: raise it (ulimit -n)"
            );
        }
        caps
    }

    fn within(total: usize, per_host: usize, max_files: Option<usize>) -> Self {
        let Some(max_files) = max_files else {
            return Self { total, per_host, refusing: MAX_REFUSING };
        };
        let refusing = MAX_REFUSING.min(max_files / 8).max(1);
        let reserve = refusing + MIN_RESERVE.max(max_files / 16);
        let room = max_files.saturating_sub(reserve).max(1);
        if room >= total {
            return Self { total, per_host, refusing };
        }
        // One host leaves an eighth to the others.
        Self { total: room, per_host: per_host.min(room - room / 8), refusing }
    }
}

/// Whether accepting failed because the process, or the system, has no file left.
pub(crate) fn is_out_of_files(error: &io::Error) -> bool {
    // ENFILE and EMFILE, which have these numbers on every Unix.
    cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24))
}

/// The soft limit of open files. `None`: there is none, or the system does not tell it under /proc.
fn max_open_files() -> Option<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caps_leave_files_for_the_rest() {
        let within = |max_files| {
            let ConnectionCaps { total, per_host, refusing } =
                ConnectionCaps::within(10_000, 256, max_files);
            (total, per_host, refusing)
        };
        assert_eq!(within(None), (10_000, 256, 64));
        assert_eq!(within(Some(1 << 20)), (10_000, 256, 64));
        assert_eq!(within(Some(1024)), (896, 256, 64));
        assert_eq!(within(Some(128)), (80, 70, 16));
        for max_files in 0..20_000 {
            let (total, per_host, refusing) = within(Some(max_files));
            assert!(total >= 1 && per_host >= 1 && refusing >= 1);
            assert!(max_files < 40 || total + refusing + MIN_RESERVE <= max_files, "{max_files}");
        }
    }
}
