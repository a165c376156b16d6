//! Starts two registries, five servers and four clients as processes, breaks them one fault at a time,
//! and says what became of every call.
//!
//! ```text
//! cargo run --release --example drill -- --seed 1 --seconds 60
//! ```
//!
//! Every process keeps a ledger of its calls. In the end the ledgers are joined: a row is printed
//! for each fault, what was promised and did not hold, and as the last line the total. It exits
//! with 0 if every promise held, else with 1; with 2 if it could not run.

mod args;
mod child;
mod clock;
mod cluster;
mod faults;
mod judge;
mod ledger;
mod netns;
mod plan;
mod promises;
mod report;
mod roles;

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use self::args::Args;
use self::cluster::Cluster;
use self::faults::{Kind, Window};
use self::netns::Network;

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [word, role, zero] = &words[..]
        && word == roles::WORD
    {
        return match roles::play(role, zero) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        };
    }
    if words.iter().any(|word| word == "--help" || word == "-h") {
        println!("{}", args::USAGE);
        return ExitCode::SUCCESS;
    }
    let held = Args::parse(words.into_iter()).map_err(Into::into).and_then(|args| run(&args));
    match held {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("drill: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether every promise held.
fn run(args: &Args) -> Fallible<bool> {
    let network = match args.namespaces {
        true => Network::make(&cluster::hosts(args.registries)),
        false => Err("by --no-namespaces".to_owned()),
    };
    let has_network = network.is_ok();
    let is_possible = |kind: &Kind| {
        (has_network || !kind.needs_network())
            && (args.registries > 1 || !kind.needs_two_registries())
    };
    let kinds: Vec<Kind> = args.faults.iter().copied().filter(is_possible).collect();
    report::announce(args, &kinds, network.as_ref().map(|_| ()).map_err(String::as_str));

    let dir = std::env::temp_dir().join(format!("srpc-drill-{}", std::process::id()));
    fs::create_dir(&dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let held = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        // Whichever ends first, the processes end and their network goes with the future.
        tokio::select! {
            acted = act(args, &kinds, &dir, network.ok()) => acted,
            _ = interrupt.recv() => Err("interrupted".into()),
            _ = terminate.recv() => Err("terminated".into()),
            _ = hangup.recv() => Err("hung up".into()),
        }
    });
    drop(runtime);
    let held = held.and_then(|(windows, accidents)| judged(args, &dir, &windows, &accidents));
    match args.keep || !matches!(held, Ok(true)) {
        true => eprintln!("ledgers and logs: {}", dir.display()),
        false => fs::remove_dir_all(&dir)?,
    }
    held
}

/// Runs the load and breaks things: what was broken when, and what ended without being told to.
async fn act(
    args: &Args,
    kinds: &[Kind],
    dir: &Path,
    network: Option<Network>,
) -> Fallible<(Vec<Window>, Vec<String>)> {
    let mut cluster =
        Cluster::start(dir, clock::unix_micros(), network, args.registries, args.blind_retry)
            .await?;
    cluster.start_load().await?;
    let windows = plan::run(&mut cluster, args.seed, kinds, args.length).await?;
    Ok((windows, cluster.stop().await?))
}

/// Joins the ledgers and prints what they say.
fn judged(args: &Args, dir: &Path, windows: &[Window], accidents: &[String]) -> Fallible<bool> {
    let story = judge::join(dir, windows)?;
    let broken = match args.blind_retry {
        true => promises::broken_in_control(&story),
        false => promises::broken(&story, windows, accidents),
    };
    report::table(&story, windows);
    report::broken(&broken);
    report::total(&story.total);
    Ok(broken.is_empty())
}
