//! The `srpc` command: runs a registry and a demo service, lists instances, calls and measures.

mod access;
mod args;
mod bench;
mod call;
mod caps;
mod credentials;
mod demo;
mod exit;
mod list;
mod output;
mod registry;
mod serve;
mod signals;
mod target;
mod tls;

use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};
use crate::exit::Exit;

fn main() -> ExitCode {
    // Ends the process itself on help, and with 2 on a usage error.
    let cli = Cli::parse();
    match start(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            if !exit.message().is_empty() {
                output::note(exit.message());
            }
            ExitCode::from(exit.code())
        }
    }
}

fn start(cli: &Cli) -> Result<(), Exit> {
    log_to_stderr(cli)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Exit::failed(format!("cannot start: {error}")))?;
    let ended = runtime.block_on(run(cli));
    // Not waited for: a name that is being resolved cannot be interrupted.
    runtime.shutdown_background();
    ended
}

async fn run(cli: &Cli) -> Result<(), Exit> {
    match &cli.command {
        Command::Registry(args) => registry::run(&cli.shared, args).await,
        Command::Serve(args) => serve::run(&cli.shared, args).await,
        Command::List(args) => list::run(&cli.shared, args).await,
        Command::Call(args) => call::run(&cli.shared, args).await,
        Command::Bench(args) => bench::run(&cli.shared, args).await,
    }
}

fn log_to_stderr(cli: &Cli) -> Result<(), Exit> {
    // A server's warnings are seen by nobody else; what the others do ends in an exit code.
    let default = match cli.command {
        Command::Registry(_) | Command::Serve(_) => "warn",
        Command::List(_) | Command::Call(_) | Command::Bench(_) => "off",
    };
    let filter = cli.shared.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Exit::usage(format!("--log {filter:?}: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| output::LogWriter)
        .with_ansi(false)
        .try_init()
        .map_err(|error| Exit::failed(format!("cannot log: {error}")))
}
