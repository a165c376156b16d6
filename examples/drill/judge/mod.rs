//! What became of every call: joins the ledgers of clients and servers with what was broken when.

mod gaps;
mod logs;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::str::Split;

pub(crate) use self::logs::Logs;
use crate::Fallible;
use crate::cluster::{CLIENTS, IDEMPOTENT, client_ledger};
use crate::faults::{Kind, Tolerated, Window};
use crate::ledger::Class;

/// Attempts and calls are counted for each tenth of a second.
const TICK: u64 = 100_000;
/// How many calls that should not have failed are shown of each window.
const SHOWN: u64 = 3;

/// What became of every call.
#[derive(Debug, Default)]
pub(crate) struct Story {
    pub(crate) total: Tally,
    /// For each window, in order.
    pub(crate) windows: Vec<Tally>,
    /// Calls that failed where and as no fault explains, a few of them, in words.
    pub(crate) unexplained: Vec<String>,
    pub(crate) logs: Logs,
    /// For each tick: calls that started, and attempts that a server saw.
    pub(crate) ticks: Vec<(u64, u64)>,
}

/// What became of some calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) ok: u64,
    pub(crate) not_sent: u64,
    pub(crate) rejected: u64,
    pub(crate) maybe: u64,
    pub(crate) executed: u64,
    pub(crate) unresolved: u64,
    /// Among those that are ok.
    pub(crate) wrong: u64,
    /// Not marked as idempotent, and executed more than once.
    pub(crate) dup: u64,
    pub(crate) not_sent_but_executed: u64,
    /// Calls of the idempotent clients, and those of them that failed.
    pub(crate) idempotent: u64,
    pub(crate) idempotent_failed: u64,
    /// Failures that what was broken does not explain.
    pub(crate) unexplained: u64,
    /// Attempts that a server saw.
    pub(crate) attempts: u64,
    /// The longest time between two successes of one client, in microseconds.
    pub(crate) gap: u64,
    /// Lines in the logs.
    pub(crate) warnings: u64,
    /// Calls made while a server answered only errors, and those of them that it so answered.
    pub(crate) erring: (u64, u64),
}

impl Tally {
    fn count(&mut self, call: &Call, idempotent: bool) {
        self.sent += 1;
        match call.class {
            Class::Unresolved => self.unresolved += 1,
            Class::Ok => self.ok += 1,
            Class::Wrong => {
                self.ok += 1;
                self.wrong += 1;
            }
            Class::NotSent => self.not_sent += 1,
            Class::Rejected => self.rejected += 1,
            Class::Maybe => self.maybe += 1,
            Class::Executed => self.executed += 1,
        }
        // A success that no server knows of is nobody's answer.
        self.wrong += u64::from(call.class == Class::Ok && call.executed == 0);
        self.dup += u64::from(!idempotent && call.executed > 1);
        let promised_not = matches!(call.class, Class::NotSent | Class::Rejected);
        self.not_sent_but_executed += u64::from(promised_not && call.executed > 0);
        self.idempotent += u64::from(idempotent);
        self.idempotent_failed += u64::from(idempotent && call.class.is_failure());
    }
}

impl AddAssign<&Tally> for Tally {
    fn add_assign(&mut self, other: &Tally) {
        self.sent += other.sent;
        self.ok += other.ok;
        self.not_sent += other.not_sent;
        self.rejected += other.rejected;
        self.maybe += other.maybe;
        self.executed += other.executed;
        self.unresolved += other.unresolved;
        self.wrong += other.wrong;
        self.dup += other.dup;
        self.not_sent_but_executed += other.not_sent_but_executed;
        self.idempotent += other.idempotent;
        self.idempotent_failed += other.idempotent_failed;
        self.unexplained += other.unexplained;
        self.attempts += other.attempts;
        self.gap = self.gap.max(other.gap);
        self.warnings += other.warnings;
        self.erring.0 += other.erring.0;
        self.erring.1 += other.erring.1;
    }
}

/// A call, as the ledgers tell it. Kept small: ten minutes make some three million.
#[derive(Clone, Debug, Default)]
struct Call {
    /// 0 if its client never wrote that it starts.
    from: u64,
    until: u64,
    /// Where it ended: an index into the names of servers.
    server: u16,
    class: Class,
    attempt: u8,
    /// How often a handler started with it.
    executed: u8,
}

/// The servers' names, as clients write them.
#[derive(Default)]
struct Names {
    names: Vec<String>,
    indices: HashMap<String, u16>,
}

/// Reads everything that the processes of a drill have left in `dir`. Windows must be in the order
/// of their times; calls before the first count to it.
pub(crate) fn join(dir: &Path, windows: &[Window]) -> Fallible<Story> {
    let mut story = Story { windows: vec![Tally::default(); windows.len()], ..Story::default() };
    let mut names = Names::default();
    let mut clients = Vec::new();
    for client in 0..CLIENTS {
        clients.push(calls(&client_ledger(dir, client), &mut names)?);
    }
    for ledger in files(dir, "server-", ".ledger")? {
        executions(&ledger, &mut clients, &mut story, windows)?;
    }
    for (number, calls) in clients.iter().enumerate() {
        let idempotent = number < IDEMPOTENT;
        for (n, call) in calls.iter().enumerate() {
            let at = window_at(windows, call.from);
            if call.from == 0 {
                // A number that was skipped, or executed without having been called.
                story.windows[at].wrong += u64::from(call.executed);
                continue;
            }
            tick(&mut story.ticks, call.from).0 += 1;
            story.windows[at].count(call, idempotent);
            if windows[at].erring.is_some_and(|(from, until)| (from..until).contains(&call.from)) {
                story.windows[at].erring.0 += 1;
                story.windows[at].erring.1 += u64::from(call.class == Class::Executed);
            }
            let server = names.names.get(usize::from(call.server)).map_or("-", String::as_str);
            if call.class.is_failure() && !is_explained(call, server, &windows[at], idempotent) {
                story.windows[at].unexplained += 1;
                if story.windows[at].unexplained <= SHOWN {
                    story.unexplained.push(format!(
                        "{}: call {n} of client-{number} from {:.3} s to {:.3} s: {:?} at {server}, attempt {}",
                        windows[at].kind.name(),
                        call.from as f64 / 1e6,
                        call.until as f64 / 1e6,
                        call.class,
                        call.attempt,
                    ));
                }
            }
        }
        let successes = calls.iter().filter(|call| matches!(call.class, Class::Ok | Class::Wrong));
        let end = windows.last().map_or(0, |window| window.until);
        for gap in gaps::of(successes.map(|call| call.until).collect(), windows, end) {
            let tally = &mut story.windows[window_at(windows, gap.middle)];
            tally.gap = tally.gap.max(gap.length);
        }
    }
    for window in windows {
        tick(&mut story.ticks, window.from).0 += window.beside;
    }
    for log in files(dir, "", ".log")? {
        story.logs.read(&log, |time| story.windows[window_at(windows, time)].warnings += 1)?;
    }
    for tally in &story.windows {
        story.total += tally;
    }
    Ok(story)
}

/// The files of `dir` whose names begin and end like this.
fn files(dir: &Path, start: &str, end: &str) -> Fallible<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(start) && name.ends_with(end) {
            files.push(path);
        }
    }
    Ok(files)
}

/// The window that was open at a time.
fn window_at(windows: &[Window], time: u64) -> usize {
    windows.partition_point(|window| window.from <= time).saturating_sub(1)
}

/// Whether what was broken is reason enough for a call to fail.
fn is_explained(call: &Call, server: &str, window: &Window, idempotent: bool) -> bool {
    match window.kind.tolerated() {
        Tolerated::Nothing => false,
        Tolerated::InFlight => {
            let in_flight = call.class == Class::Maybe;
            in_flight && !idempotent && window.victims.iter().any(|victim| victim == server)
        }
        Tolerated::Answered => {
            call.class == Class::Executed && window.victims.iter().any(|victim| victim == server)
        }
        Tolerated::Rejected => call.class == Class::Rejected,
    }
}

fn tick(ticks: &mut Vec<(u64, u64)>, time: u64) -> &mut (u64, u64) {
    let at = (time / TICK) as usize;
    if ticks.len() <= at {
        ticks.resize(at + 1, (0, 0));
    }
    &mut ticks[at]
}

impl Story {
    /// Calls that started and attempts that servers saw, between two times.
    pub(crate) fn between(&self, from: u64, until: u64) -> (u64, u64) {
        let last = ((until / TICK) as usize + 1).min(self.ticks.len());
        let first = ((from / TICK) as usize).min(last);
        let ticks = &self.ticks[first..last];
        ticks.iter().fold((0, 0), |sum, tick| (sum.0 + tick.0, sum.1 + tick.1))
    }

    /// The windows of each kind together, in the order of [`Kind::ALL`], with how many they were.
    pub(crate) fn by_kind(&self, windows: &[Window]) -> Vec<(Kind, u64, Tally)> {
        let together = |kind: Kind| {
            let mut sum = (kind, 0, Tally::default());
            let of_kind =
                windows.iter().zip(&self.windows).filter(|(window, _)| window.kind == kind);
            for (_, tally) in of_kind {
                sum.1 += 1;
                sum.2 += tally;
            }
            sum
        };
        Kind::ALL.into_iter().map(together).filter(|(_, times, _)| *times > 0).collect()
    }
}

impl Names {
    fn index(&mut self, name: &str) -> u16 {
        if let Some(index) = self.indices.get(name) {
            return *index;
        }
        let index = u16::try_from(self.names.len()).unwrap_or(u16::MAX);
        self.names.push(name.to_owned());
        self.indices.insert(name.to_owned(), index);
        index
    }
}

/// The calls of a client, by their numbers.
fn calls(ledger: &Path, names: &mut Names) -> Fallible<Vec<Call>> {
    let mut calls: Vec<Call> = Vec::new();
    for_each_line(ledger, |verb, mut words| {
        let n = number(&mut words)? as usize;
        if calls.len() <= n {
            calls.resize(n + 1, Call::default());
        }
        let call = &mut calls[n];
        match verb {
            "s" => call.from = number(&mut words)?.max(1),
            "e" => {
                call.until = number(&mut words)?;
                call.class = Class::parse(words.next()?)?;
                call.attempt = u8::try_from(number(&mut words)?).unwrap_or(u8::MAX);
                call.server = names.index(words.next()?);
            }
            _ => return None,
        }
        Some(())
    })?;
    Ok(calls)
}

/// Adds what a server has executed or refused.
fn executions(
    ledger: &Path,
    clients: &mut [Vec<Call>],
    story: &mut Story,
    windows: &[Window],
) -> Fallible<()> {
    for_each_line(ledger, |verb, mut words| {
        if verb == "x" {
            let calls = clients.get_mut(number(&mut words)? as usize)?;
            let n = number(&mut words)? as usize;
            if calls.len() <= n {
                calls.resize(n + 1, Call::default());
            }
            calls[n].executed = calls[n].executed.saturating_add(1);
        } else if verb != "r" {
            return None;
        }
        let time = number(&mut words)?;
        story.windows[window_at(windows, time)].attempts += 1;
        tick(&mut story.ticks, time).1 += 1;
        Some(())
    })
}

fn number(words: &mut Split<'_, char>) -> Option<u64> {
    words.next()?.parse().ok()
}

/// Reads a ledger: the first word of each line, and the others. `None`: it is no such line.
fn for_each_line(
    ledger: &Path,
    mut each: impl FnMut(&str, Split<'_, char>) -> Option<()>,
) -> Fallible<()> {
    let mut reader = BufReader::with_capacity(1 << 16, File::open(ledger)?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let mut words = line.trim_end().split(' ');
        let verb = words.next().unwrap_or_default();
        if each(verb, words).is_none() {
            return Err(format!("{}: not a line: {line:?}", ledger.display()).into());
        }
        line.clear();
    }
    Ok(())
}
