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
mod nearest;
mod output;
mod registry;
mod serve;
mod signals;
mod target;
mod tls;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};
use crate::exit::Exit;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
    match start(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            output::failed(cli.shared.output, &exit);
            ExitCode::from(exit.code())
        }
    }
}

/// Prints help and version, which are no failures, or what is wrong with the command line.
fn not_understood(error: &clap::Error) -> ExitCode {
    // There is nobody left to tell that it cannot be printed.
    let _ = error.print();
    if !error.use_stderr() {
        return ExitCode::SUCCESS;
    }
    let args = || std::env::args_os().map(|arg| arg.to_string_lossy().into_owned());
    let hint = nearest::command_line(error, &Cli::command(), args());
    let text = error.render().to_string();
    let reason = text.split("\n\nUsage:").next().unwrap_or_default();
    let reason = reason.strip_prefix("error: ").unwrap_or(reason);
    let reason: Vec<&str> = reason.split_whitespace().collect();
    let exit = Exit::usage(format!("{}{hint}", reason.join(" ")));
    output::print_failed(output::format_in(args()), &exit);
    if !hint.is_empty() {
        output::note(hint.trim_start_matches([';', ' ']));
    }
    ExitCode::from(exit.code())
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
