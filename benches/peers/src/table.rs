//! Medians over rounds, as a table and as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::measure::{Report, Work};
use crate::peers::Peer;
use crate::rounds::Cell;

/// One peer at one work.
pub struct Row {
    cell: Cell,
    peer: Peer,
    calls_per_s: Spread,
    p50_us: Spread,
    p99_us: Spread,
    cpu_s_per_million: Spread,
    idle_kib: Option<f64>,
    ratio_to_raw: Spread,
    cpu_to_raw: Spread,
}

/// A median and what it lies between.
#[derive(Clone, Copy)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<_> = values.collect();
        values.sort_by(f64::total_cmp);
        let last = values.len() - 1;
        let median = (values[last / 2] + values[last.div_ceil(2)]) / 2.0;
        Self { min: values[0], median, max: values[last] }
    }
}

type Round = BTreeMap<(Cell, Peer), Vec<Report>>;

/// A row for each peer and work. A ratio is taken within a round, between the medians of that round.
pub fn rows(rounds: &[Round], idle: &BTreeMap<Peer, f64>) -> Vec<Row> {
    let Some(first) = rounds.first() else { return Vec::new() };
    let over = |of: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(of));
    let row = |cell: Cell, peer: Peer| {
        let within = |round: &Round, peer, of: fn(&Report) -> f64| {
            Spread::of(round[&(cell, peer)].iter().map(of)).median
        };
        let column = |of: fn(&Report) -> f64| over(&|round| within(round, peer, of));
        let against = |other, of: fn(&Report) -> f64| {
            over(&|round| within(round, peer, of) / within(round, other, of))
        };
        let ratio_to_raw = match cell.0 {
            Work::Seq => against(Peer::RawPingpong, |report| report.p50_us),
            _ => against(Peer::Raw, rate),
        };
        Row {
            cell,
            peer,
            calls_per_s: column(rate),
            p50_us: column(|report| report.p50_us),
            p99_us: column(|report| report.p99_us),
            cpu_s_per_million: column(cpu),
            idle_kib: idle.get(&peer.server()).copied(),
            ratio_to_raw,
            cpu_to_raw: against(Peer::Raw, cpu),
        }
    };
    first.keys().map(|(cell, peer)| row(*cell, *peer)).collect()
}

fn rate(report: &Report) -> f64 {
    report.calls as f64 / report.seconds
}

fn cpu(report: &Report) -> f64 {
    report.cpu_s / report.calls as f64 * 1e6
}

/// Prints a table for each work.
pub fn print(rows: &[Row], syscalls: &BTreeMap<(Cell, Peer), [f64; 2]>) {
    let mut above = None;
    for row in rows {
        let (work, in_flight) = row.cell;
        if above != Some(row.cell) {
            above = Some(row.cell);
            let ratio = match work {
                Work::Seq => "p50 / raw-pingpong",
                _ => "calls/s / raw",
            };
            println!("\n{}, {in_flight} in flight", work.name());
            println!(
                "{:<25} {:>10} {:>9} {:>9}  {:<21} {:>8} {:>9} {:>9}  syscalls per call",
                "peer", "calls/s", "p50 us", "p99 us", ratio, "CPU s/M", "CPU / raw", "idle KiB"
            );
        }
        let ratio = row.ratio_to_raw;
        let idle = row.idle_kib.map_or("-".to_owned(), |kib| format!("{kib:.1}"));
        let syscalls = syscalls
            .get(&(row.cell, row.peer))
            .map_or("-".to_owned(), |[client, server]| format!("{client:.2} + {server:.2}"));
        println!(
            "{:<25} {:>10.0} {:>9.1} {:>9.1}  {:<21} {:>8.2} {:>9.2} {:>9}  {syscalls}",
            row.peer.name(),
            row.calls_per_s.median,
            row.p50_us.median,
            row.p99_us.median,
            format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.min, ratio.max),
            row.cpu_s_per_million.median,
            row.cpu_to_raw.median,
            idle,
        );
    }
}

/// A row as JSON has it: medians.
#[derive(Serialize)]
pub struct JsonRow {
    peer: String,
    work: String,
    in_flight: usize,
    calls_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_s_per_million: f64,
    idle_kib_per_connection: Option<f64>,
    ratio_to_raw: f64,
}

/// The rows as JSON has them.
pub fn json(rows: &[Row]) -> Vec<JsonRow> {
    rows.iter()
        .map(|row| JsonRow {
            peer: row.peer.name(),
            work: row.cell.0.name(),
            in_flight: row.cell.1,
            calls_per_s: row.calls_per_s.median,
            p50_us: row.p50_us.median,
            p99_us: row.p99_us.median,
            cpu_s_per_million: row.cpu_s_per_million.median,
            idle_kib_per_connection: row.idle_kib,
            ratio_to_raw: row.ratio_to_raw.median,
        })
        .collect()
}
