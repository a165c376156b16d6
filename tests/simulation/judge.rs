//! Did what was promised hold in this run?

use std::time::Duration;

use srpc::Execution;

use super::ledger::{Ledger, Outcome};
use super::plan::{CLIENTS, Fault};
use super::world::DEADLINE;

/// How much later than its deadline a call may end: deadlines are looked after every 20 ms.
const LATE: Duration = Duration::from_millis(50);
/// How many times a call may run that is marked as idempotent: its attempts.
const ATTEMPTS: usize = 3;

/// What did not hold, in words; empty if all did.
pub(crate) fn broken(ledger: &Ledger) -> Vec<String> {
    let mut broken = Vec::new();
    for (id, call) in &ledger.calls {
        let ran = ledger.executions(*id);
        let mut not = |what: &str| {
            let outcome = &call.outcome;
            let (client, sent) = (call.client, call.sent);
            let at = &ledger.executed.get(id);
            broken.push(format!(
                "{what}: call {id:#x} of {client}, sent at {sent:?}, ran {ran} times at {at:?}: {outcome:?}"
            ));
        };
        if ran > if call.idempotent { ATTEMPTS } else { 1 } {
            not("executed more than once");
        }
        match &call.outcome {
            None => not("without an outcome"),
            Some((took, _)) if *took > DEADLINE + LATE => not("overdue"),
            Some((_, Outcome::Wrong)) => not("wrong reply"),
            Some((_, Outcome::Right)) if ran == 0 => not("answered without being executed"),
            Some((_, Outcome::Failed(_, Execution::NotSent | Execution::Rejected, _)))
                if ran > 0 =>
            {
                not("executed, and its client was told that it was not");
            }
            Some(_) => {}
        }
    }
    broken.extend(ledger.not_healed.iter().map(|what| format!("not healed: {what}")));
    for host in CLIENTS {
        if !ledger.looked.contains(&host) {
            broken.push(format!("{host} never came to its last look"));
        }
    }
    broken
}

/// As [`broken`], for runs in which nothing but the registry was hurt: no call may fail then, and
/// no client may lose its list.
pub(crate) fn broken_by_the_registry(ledger: &Ledger) -> Vec<String> {
    let mut broken = broken(ledger);
    broken.extend(ledger.failed().map(|(id, call, outcome)| {
        format!("failed: call {id:#x} of {}, sent at {:?}: {outcome:?}", call.client, call.sent)
    }));
    broken.extend(
        ledger.empty.iter().map(|(client, at)| format!("{client} lost its list at {at:?}")),
    );
    broken
}

/// Panics with what did not hold, and with what was done to the cluster.
pub(crate) fn assert_none(broken: &[String], faults: &[Fault]) {
    let shown = &broken[..broken.len().min(10)];
    assert!(broken.is_empty(), "{} broken:\n{shown:#?}\nafter {faults:#?}", broken.len());
}
