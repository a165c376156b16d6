//! What a drill must show.

use crate::cluster::{CLIENTS, SERVERS};
use crate::faults::{Kind, Tolerated, Window};
use crate::judge::{Story, Tally};

/// The longest time without a success while a healthy server could be reached, in microseconds.
const LONGEST_GAP: u64 = 2_000_000;
/// How many idempotent calls may fail, where not all servers reject them: one in so many.
const IDEMPOTENT_FAILURES: u64 = 1_000;
/// What may fail of a window's calls where a server is stopped or cut off: one in so many.
const FAILURES_ON_VICTIMS: u64 = 50;
/// What a server that answers only errors may get of the calls made meanwhile: one in so many.
const ANSWERED_WITH_ERRORS: u64 = 50;
/// And what each client may call there beside these until it has learnt: an answer of Unknown may be the
/// caller's own fault, so it takes some thirty of them.
const TO_LEARN: u64 = 40;
/// What a server had in flight at most from clients that are not idempotent: 8 from each.
const IN_FLIGHT: u64 = 16;
/// Over how long a retry budget counts, in microseconds.
const BUDGET: u64 = 10_000_000;

/// What did not hold, in words; nothing if all did.
pub(crate) fn broken(story: &Story, windows: &[Window], accidents: &[String]) -> Vec<String> {
    let mut broken = accidents.to_vec();
    let total = &story.total;
    for (what, count) in [
        ("calls with somebody else's answer", total.wrong),
        ("calls that are not idempotent and were executed twice", total.dup),
        ("calls that were not sent or rejected, and executed", total.not_sent_but_executed),
        ("calls without an outcome", total.unresolved),
        ("failures that no fault explains", total.unexplained),
        ("panics", story.logs.panics.len() as u64),
    ] {
        if count > 0 {
            broken.push(format!("{count} {what}"));
        }
    }
    broken.extend(story.unexplained.iter().map(|call| format!("  {call}")));
    broken.extend(story.logs.panics.iter().map(|line| format!("  {line}")));

    let served = |window: &Window| {
        !matches!(window.kind.tolerated(), Tolerated::Answered | Tolerated::Rejected)
    };
    let mut idempotent = (0, 0);
    for (window, tally) in windows.iter().zip(&story.windows) {
        if served(window) {
            idempotent = (idempotent.0 + tally.idempotent, idempotent.1 + tally.idempotent_failed);
        }
        let told = window.broken.iter().cloned();
        let of_window = told.chain(of_window(story, window, tally));
        let at = format!("{} at {:.1} s", window.kind.name(), window.from as f64 / 1e6);
        broken.extend(of_window.map(|what| format!("{at}: {what}")));
    }
    if idempotent.1 * IDEMPOTENT_FAILURES > idempotent.0 {
        broken.push(format!("{} of {} idempotent calls failed", idempotent.1, idempotent.0));
    }
    broken
}

/// What the control must show: calls that were executed twice, found and counted.
pub(crate) fn broken_in_control(story: &Story) -> Vec<String> {
    let total = &story.total;
    let mut broken = Vec::new();
    if total.dup == 0 {
        broken.push("failed calls were sent again blindly, and none was seen twice".to_owned());
    }
    for (what, count) in [
        ("calls with somebody else's answer", total.wrong),
        ("calls that were not sent or rejected, and executed", total.not_sent_but_executed),
        ("calls without an outcome", total.unresolved),
    ] {
        if count > 0 {
            broken.push(format!("{count} {what}"));
        }
    }
    broken
}

fn of_window(story: &Story, window: &Window, tally: &Tally) -> Vec<String> {
    let mut broken = Vec::new();
    if tally.ok == 0 && window.until > window.from + LONGEST_GAP {
        broken.push("not one call succeeded".to_owned());
    }
    if tally.gap > LONGEST_GAP {
        broken.push(format!("{} ms without a success", tally.gap / 1_000));
    }
    match window.kind {
        Kind::Kill if tally.maybe > IN_FLIGHT => {
            broken.push(format!("{} calls failed; {IN_FLIGHT} were in flight", tally.maybe));
        }
        Kind::Stop | Kind::CutClients | Kind::CutRequests | Kind::CutReplies
            if tally.maybe * FAILURES_ON_VICTIMS > tally.sent =>
        {
            broken.push(format!("{} of {} calls failed", tally.maybe, tally.sent));
        }
        Kind::Erring(_) => {
            let (calls, errors) = tally.erring;
            let most = calls / ANSWERED_WITH_ERRORS + TO_LEARN * CLIENTS as u64;
            if errors > most {
                broken.push(format!("{errors} of {calls} calls were answered with errors"));
            }
        }
        _ => {}
    }
    if let Some((from, until)) = window.unserved {
        let from = from.saturating_sub(BUDGET);
        let (calls, attempts) = story.between(from, until);
        let most = allowance(calls, until - from);
        if attempts > most {
            broken.push(format!("{attempts} attempts for {calls} calls: {most} would be allowed"));
        }
    }
    broken
}

/// How many attempts so many calls in so much time may make: a fifth more than calls, and ten a
/// second for each client. A few calls may be counted on the other side of a tick.
fn allowance(calls: u64, micros: u64) -> u64 {
    let by_time = CLIENTS as u64 * 10 * micros.div_ceil(1_000_000);
    calls + calls / 5 + by_time + 2 * SERVERS as u64 * IN_FLIGHT
}
