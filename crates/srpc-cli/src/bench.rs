//! What does `srpc bench` do?

mod schedule;
mod shares;
mod tally;

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use srpc::call::Codec;
use srpc::{Call, XClient};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::schedule::Schedule;
use self::shares::Shares;
use self::tally::{Summary, Tally};
use crate::args::{self, Shared};
use crate::exit::Exit;
use crate::output::{self, Format};
use crate::signals::Signals;
use crate::target::{self, Target};

/// How many calls are made if nothing else ends the bench.
const DEFAULT_CALLS: u64 = 200;
/// How often the progress is shown.
const PROGRESS: Duration = Duration::from_millis(500);

/// Makes many calls and prints what they took. Failed calls are data, not a failure.
pub(crate) async fn run(shared: &Shared, args: &args::Bench) -> Result<(), Exit> {
    let argument = target::argument(&args.json)?;
    let transport = args.dialling.transport()?;
    let target = Target::parse(shared, &args.credentials, transport, &args.target, &args.method)?;
    let mut signals = Signals::new()?;
    let call = Call::new(target.method().to_owned())
        .args_in(&Codec::Json, &*argument)?
        .timeout(shared.timeout)
        .idempotent(args.idempotent);

    let resolver = target.resolver(false);
    let deadline = Instant::now() + shared.timeout;
    tokio::select! {
        known = target.first_instance(&resolver, deadline, shared.timeout) => known?,
        () = signals.next() => return Err(Exit::interrupted()),
    }
    let shares = Shares::default();
    let client = XClient::with_resolver(resolver)
        .transport(target.transport())
        .attempt_layer(shares.clone())
        .build()?;

    let tally = Arc::new(Mutex::new(Tally::new()?));
    let calls = match (args.calls, args.duration) {
        (None, None) => Some(DEFAULT_CALLS),
        (calls, _) => calls,
    };
    let started = Instant::now();
    let schedule = Arc::new(Schedule::new(started, calls, args.duration, args.rate));
    let mut workers = JoinSet::new();
    for _ in 0..args.concurrency.min(calls.unwrap_or(u64::MAX)) {
        workers.spawn(work(client.clone(), call.clone(), Arc::clone(&schedule), tally.clone()));
    }
    let ended = finish(&mut workers, &mut signals, &tally).await;
    let took = started.elapsed();
    client.close().await;

    let tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    for example in tally.examples() {
        output::note(&format!("failed: {example}"));
    }
    let (per_instance, failed_attempts) = shares.by_address();
    let summary = tally.summary(took, per_instance, failed_attempts);
    match shared.output {
        Format::Json | Format::Jsonl => output::print_json(&summary)?,
        Format::Table | Format::Wide | Format::Name => output::print(&table(&summary))?,
    }
    ended.map_err(Exit::after_data)
}

/// One worker: a call at a time, until there are no more.
async fn work(client: XClient, call: Call, schedule: Arc<Schedule>, tally: Arc<Mutex<Tally>>) {
    while let Some(due) = schedule.next().await {
        let result = client.send(call.clone()).await;
        let latency = due.elapsed();
        tally.lock().unwrap_or_else(PoisonError::into_inner).record(latency, &result);
    }
}

/// Waits for the workers; a signal ends them early, and what they had in flight is not counted.
async fn finish(
    workers: &mut JoinSet<()>,
    signals: &mut Signals,
    tally: &Mutex<Tally>,
) -> Result<(), Exit> {
    let shows_progress = io::stderr().is_terminal();
    let mut progress = interval(PROGRESS);
    progress.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut ended = Ok(());
    loop {
        tokio::select! {
            joined = workers.join_next() => match joined {
                None => break,
                Some(Err(error)) if error.is_panic() => {
                    ended = Err(Exit::failed(format!("a worker failed: {error}")));
                }
                Some(_) => {}
            },
            () = signals.next() => {
                workers.abort_all();
                ended = Err(Exit::interrupted());
            }
            _ = progress.tick(), if shows_progress => {
                let line = tally.lock().unwrap_or_else(PoisonError::into_inner).progress();
                show(&format!("\r{line}"));
            }
        }
    }
    if shows_progress {
        // Back to the line's start, and clear it.
        show("\r\u{1b}[K");
    }
    ended
}

fn show(text: &str) {
    let mut stderr = io::stderr();
    // A terminal that has gone needs no progress.
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

fn table(summary: &Summary) -> String {
    let milliseconds = |us: u64| format!("{:.3} ms", us as f64 / 1e3);
    let mut rows = vec![
        ("calls", summary.calls.to_string()),
        ("ok", summary.ok.to_string()),
        ("failed", summary.failed.to_string()),
        ("seconds", format!("{:.3}", summary.seconds)),
        ("calls/s", format!("{:.1}", summary.calls_per_s)),
        ("p50", milliseconds(summary.p50_us)),
        ("p90", milliseconds(summary.p90_us)),
        ("p99", milliseconds(summary.p99_us)),
        ("p99.9", milliseconds(summary.p999_us)),
        ("max", milliseconds(summary.max_us)),
    ];
    let by_kind = summary.failed_by_kind.iter().map(|(kind, n)| format!("{n} {kind}"));
    rows.extend(by_kind.map(|line| ("failed as", line)));
    let by_execution = summary.failed_by_execution.iter().map(|(class, n)| format!("{n} {class}"));
    rows.extend(by_execution.map(|line| ("failed when", line)));
    let instances = summary.per_instance.iter().map(|(address, n)| {
        let share = *n as f64 * 100.0 / summary.ok.max(1) as f64;
        let failed = summary.failed_per_instance.get(address).unwrap_or(&0);
        let attempts = summary.failed_attempts_per_instance.get(address).unwrap_or(&0);
        let failures = format!("{failed} failed  {attempts} attempts failed");
        ("instance", format!("{address}  {n}  {share:.1} %  {failures}"))
    });
    rows.extend(instances);
    let rows: Vec<Vec<String>> =
        rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    output::table(&[], &rows)
}
