//! How long do the slowest calls take under each way to choose a server? By simulation, with this crate's
//! own pickers behind its own guard, and by processes.
//!
//! ```text
//! cargo run --release --example selection_study                 # simulates, and draws docs/selection.svg
//! cargo run --release --example selection_study -- live         # three of them on real processes
//! ```

mod chart;
mod fleet;
mod live;
mod policy;

use std::error::Error;
use std::fs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use self::chart::{Axis, Line};
use self::fleet::Fleet;
use self::policy::Policy;

const USAGE: &str = "\
usage: selection_study [--seeds N] [--seconds S] [--svg PATH] [--uneven]
       selection_study live [--rounds N] [--seconds S]

  --seeds N    simulates each point so many times (default: 10)
  --rounds N   runs each on processes so many times (default: 5)
  --seconds S  how long each run lasts, a quarter of it to warm up (default: 30)
  --svg PATH   where to draw (default: docs/selection.svg)
  --uneven     every other server takes three times as long as those between; prints, and draws nothing";

const SECONDS: Duration = Duration::from_secs(30);
/// What the fleet of the first picture is: 200 clients before 100 servers.
const SERVERS: usize = 100;
const LOADS: [f64; 7] = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95];
/// What the load of the second one is.
const LOAD: f64 = 0.9;
const FLEETS: [usize; 6] = [10, 20, 50, 100, 200, 400];
/// Each server has so many clients, up to a number that memory bears.
const CLIENTS_PER_SERVER: usize = 2;
const MOST_CLIENTS: usize = 400;

type Fallible<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let done = match words.first().map(String::as_str) {
        Some("live") => on_processes(&words[1..]),
        Some(live::SERVER) => live::serve(),
        Some(live::CLIENT) => live::call(&words[1..]),
        _ => study(&words),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("selection_study: {error}");
            ExitCode::from(2)
        }
    }
}

/// The words of the command line, flag by flag.
struct Words<'a>(std::slice::Iter<'a, String>);

impl Words<'_> {
    fn number(&mut self, least: u64, most: u64) -> Fallible<u64> {
        let number: u64 = self.0.next().ok_or(USAGE)?.parse()?;
        match (least..=most).contains(&number) {
            true => Ok(number),
            false => Err(format!("{number} is not {least} to {most}").into()),
        }
    }

    fn seconds(&mut self) -> Fallible<Duration> {
        Ok(Duration::from_secs(self.number(4, 3600)?))
    }
}

fn on_processes(words: &[String]) -> Fallible<()> {
    let (mut rounds, mut length) = (5, SECONDS);
    let mut words = Words(words.iter());
    while let Some(word) = words.0.next() {
        match word.as_str() {
            "--rounds" => rounds = words.number(1, 100)? as usize,
            "--seconds" => length = words.seconds()?,
            _ => return Err(USAGE.into()),
        }
    }
    live::compare(length, rounds)
}

/// Simulates every point, prints the tables and draws them.
fn study(words: &[String]) -> Fallible<()> {
    let (mut seeds, mut length, mut svg) = (10, SECONDS, "docs/selection.svg".to_owned());
    let mut uneven = false;
    let mut words = Words(words.iter());
    while let Some(word) = words.0.next() {
        match word.as_str() {
            "--seeds" => seeds = words.number(1, 1000)?,
            "--seconds" => length = words.seconds()?,
            "--svg" => svg.clone_from(words.0.next().ok_or(USAGE)?),
            "--uneven" => uneven = true,
            _ => return Err(USAGE.into()),
        }
    }
    let fleet = |servers: usize, load| {
        let clients = (servers * CLIENTS_PER_SERVER).min(MOST_CLIENTS);
        Fleet { servers, clients, load, uneven, length }
    };
    let by_load: Vec<Fleet> = LOADS.iter().map(|load| fleet(SERVERS, *load)).collect();
    let by_size: Vec<Fleet> = FLEETS.iter().map(|servers| fleet(*servers, LOAD)).collect();

    let first = points(&by_load, seeds);
    let second = points(&by_size, seeds);
    println!(
        "99th percentile in ms, the median of {seeds} runs (least to most); one call takes 10 ms"
    );
    let loads: Vec<String> = LOADS.iter().map(|load| format!("{:.0} %", load * 100.0)).collect();
    print("200 clients, 100 servers, by load", &loads, &first);
    let sizes: Vec<String> = FLEETS.iter().map(usize::to_string).collect();
    print("90 % load, by servers (two clients each, at most 400)", &sizes, &second);

    if uneven {
        return Ok(());
    }
    let picture = chart::draw(&[
        Axis {
            title: "200 clients, 100 servers: by load",
            label: "load",
            at: LOADS.to_vec(),
            names: loads,
            logarithmic: false,
            lines: lines(&first),
        },
        Axis {
            title: "90 % load: by size of the fleet",
            label: "servers, with two clients each (at most 400)",
            at: FLEETS.iter().map(|servers| *servers as f64).collect(),
            names: sizes,
            logarithmic: true,
            lines: lines(&second),
        },
    ]);
    fs::write(&svg, picture).map_err(|error| format!("{svg}: {error}"))?;
    println!("\ndrawn to {svg}");
    Ok(())
}

/// One figure for each seed, in order, for each policy and fleet.
fn points(fleets: &[Fleet], seeds: u64) -> Vec<(Policy, Vec<Vec<f64>>)> {
    let mut jobs = Vec::new();
    for (row, policy) in Policy::ALL.into_iter().enumerate() {
        for (column, fleet) in fleets.iter().enumerate() {
            jobs.extend((0..seeds).map(|seed| (row, column, policy, fleet, seed)));
        }
    }
    let empty = vec![Vec::new(); fleets.len()];
    let found = Mutex::new(vec![empty; Policy::ALL.len()]);
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((row, column, policy, fleet, seed)) =
                    jobs.get(next.fetch_add(1, Relaxed))
                {
                    let p99 = fleet.p99(*policy, *seed).as_secs_f64() * 1e3;
                    found.lock()[*row][*column].push(p99);
                }
            });
        }
    });
    let mut found = found.into_inner();
    found.iter_mut().flatten().for_each(|seeds| seeds.sort_by(f64::total_cmp));
    Policy::ALL.into_iter().zip(found).collect()
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

fn print(title: &str, names: &[String], rows: &[(Policy, Vec<Vec<f64>>)]) {
    println!("\n{title}");
    print!("{:<34}", "");
    names.iter().for_each(|name| print!("{name:>19}"));
    println!();
    for (policy, columns) in rows {
        print!("{:<34}", policy.name());
        for seeds in columns {
            let spread = format!("({:.0} to {:.0})", seeds[0], seeds[seeds.len() - 1]);
            print!("{:>6.0} {spread:<12}", median(seeds));
        }
        println!();
    }
}

fn lines(rows: &[(Policy, Vec<Vec<f64>>)]) -> Vec<Line> {
    rows.iter()
        .map(|(policy, columns)| Line {
            name: policy.name(),
            color: policy.color(),
            points: columns.iter().map(|seeds| median(seeds)).collect(),
            spread: columns.iter().map(|seeds| (seeds[0], seeds[seeds.len() - 1])).collect(),
        })
        .collect()
}
