//! What a drill prints.

use crate::args::Args;
use crate::cluster::{CLIENTS, IDEMPOTENT, SERVERS};
use crate::faults::{Kind, Tolerated, Window};
use crate::judge::{Story, Tally};

/// What will be done.
pub(crate) fn announce(args: &Args, kinds: &[Kind], network: Result<(), &str>) {
    let names: Vec<_> = kinds.iter().map(|kind| kind.name()).collect();
    let network = match network {
        Ok(()) => "with network namespaces".to_owned(),
        Err(why) => format!("without network namespaces ({why}), so that rows cut-* are left out"),
    };
    let control = match args.blind_retry {
        true => "; the control: calls that are not idempotent are sent again blindly",
        false => "",
    };
    let registries = match args.registries {
        1 => "1 registry".to_owned(),
        n => format!("{n} registries"),
    };
    println!(
        "drill: seed {}, {} s, {registries}, {SERVERS} servers, {IDEMPOTENT} clients with idempotent calls and {} \
         without, {network}{control}; faults: {}",
        args.seed,
        args.length.as_secs(),
        CLIENTS - IDEMPOTENT,
        names.join(" ")
    );
}

/// A row for each fault, and what the logs say.
pub(crate) fn table(story: &Story, windows: &[Window]) {
    println!(
        "\n{:<16} {:>5} {:>9} {:>9} {:>15} {:>15} {:>12} {:>15} {:>5} {:>5} {:>6} {:>9} {:>8} \
         {:>10}  expected",
        "fault",
        "times",
        "sent",
        "ok",
        "failed_not_sent",
        "failed_rejected",
        "failed_maybe",
        "failed_executed",
        "wrong",
        "dup",
        "gap_ms",
        "attempts",
        "whole_ms",
        "unexpected",
    );
    for (kind, times, tally) in story.by_kind(windows) {
        let recovered = windows.iter().filter(|window| window.kind == kind);
        let whole = recovered.filter_map(|window| window.whole_after).max();
        let whole = whole.map_or("-".to_owned(), |after| (after / 1_000).to_string());
        println!(
            "{:<16} {times:>5} {:>9} {:>9} {:>15} {:>15} {:>12} {:>15} {:>5} {:>5} {:>6} {:>9} \
             {whole:>8} {:>10}  {}",
            kind.name(),
            tally.sent,
            tally.ok,
            tally.not_sent,
            tally.rejected,
            tally.maybe,
            tally.executed,
            tally.wrong,
            tally.dup,
            tally.gap / 1_000,
            tally.attempts,
            tally.unexplained,
            expected(kind),
        );
    }
    let events = story.logs.events.iter().map(|(event, times)| format!("{times} x {event}"));
    println!("\nlogs: {}", events.collect::<Vec<_>>().join("; "));
}

/// What a row must show.
fn expected(kind: Kind) -> &'static str {
    match (kind, kind.tolerated()) {
        (Kind::Kill, _) => {
            "idempotent: 0 failed; others: maybe, in flight on it, at most 16 a time"
        }
        (_, Tolerated::InFlight) => "idempotent: 0 failed; others: maybe, on it, at most 2 %",
        (_, Tolerated::Answered) => "executed, on it alone, at most 2 % and 40 of each client",
        (_, Tolerated::Rejected) => "rejected only; attempts within 1.2 x calls + 10/s",
        (Kind::OneRegistry, _) => "0 failed; a new client finds all servers",
        (Kind::OperatorDrain, _) => "0 failed; it stays drained",
        (Kind::Takeover, _) => "0 failed; it keeps the address",
        (Kind::Abandon, _) => "0 failed; handlers gone within 1 s",
        (_, Tolerated::Nothing) => "0 failed",
    }
}

/// What did not hold.
pub(crate) fn broken(broken: &[String]) {
    if !broken.is_empty() {
        println!("\nbroken:");
        for what in broken {
            println!("  {what}");
        }
    }
}

/// The last line.
pub(crate) fn total(total: &Tally) {
    println!(
        "\ntotal sent={} ok={} failed_not_sent={} failed_rejected={} failed_maybe={} \
         failed_executed={} wrong={} dup={} not_sent_but_executed={} unresolved={} \
         longest_gap_ms={}",
        total.sent,
        total.ok,
        total.not_sent,
        total.rejected,
        total.maybe,
        total.executed,
        total.wrong,
        total.dup,
        total.not_sent_but_executed,
        total.unresolved,
        total.gap / 1_000,
    );
}
