//! srpc beside other RPC libraries and the socket itself, measured in one run.
//!
//! ```text
//! cargo run --release --manifest-path benches/peers/Cargo.toml -- --rounds 7 --json out.json
//! ```
//!
//! Servers and clients are processes of this program. Every round measures every peer once and the
//! limit three times; a ratio is taken within its round, and the table shows medians over rounds.
//! `-- scale` measures srpc alone, over more of everything.

mod idle;
mod measure;
mod peers;
mod process;
mod rounds;
mod scale;
mod syscalls;
mod table;

use std::error::Error;
use std::io::{Write, stdin, stdout};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::measure::{Order, Work};
use crate::peers::Peer;
use crate::rounds::Rounds;

#[derive(Parser)]
#[command(about = "Measures srpc beside other RPC libraries and the socket itself")]
struct Args {
    #[command(flatten)]
    table: Table,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(clap::Args)]
struct Table {
    /// How many rounds.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Where to write the table as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// How long each measurement takes, in milliseconds, after a fifth of that to warm up.
    #[arg(long, default_value_t = 900)]
    time: u64,
    /// Which peers; all by default. The limit is always measured.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// Which works; all by default.
    #[arg(long, value_delimiter = ',')]
    works: Vec<Work>,
    /// How many idle connections to weigh; 0: none.
    #[arg(long, default_value_t = 5000)]
    idle: usize,
}

/// What this program does as one of its own processes.
#[derive(Subcommand)]
enum Role {
    #[command(hide = true)]
    Serve { peer: Peer },
    #[command(hide = true)]
    Drive {
        peer: Peer,
        work: Work,
        in_flight: usize,
        time_ms: u64,
        /// The servers' processes.
        #[arg(long, value_delimiter = ',')]
        pids: Vec<u32>,
        servers: Vec<SocketAddr>,
    },
    /// Measures srpc alone over more connections and endpoints, and beside slow and large calls.
    Scale,
    #[command(hide = true)]
    ScaleServe { servers: usize },
    #[command(hide = true)]
    Hold { peer: Peer, connections: usize, server: SocketAddr },
}

fn main() -> Result<(), Box<dyn Error>> {
    let Args { table, role } = Args::parse();
    let Some(role) = role else { return compare(&table) };
    // What `#[tokio::main]` gives everybody.
    let runtime = tokio::runtime::Runtime::new()?;
    match role {
        Role::Serve { peer: Peer::GoNetRpc } => peers::go::serve()?,
        Role::Serve { peer } => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            say(&listener.local_addr()?.to_string())?;
            runtime.block_on(peer.serve(listener))?;
        }
        Role::Drive { peer, work, in_flight, time_ms, pids, servers } => {
            let time = Duration::from_millis(time_ms);
            let order = Order { work, in_flight, warm_up: time / 5, time, servers: pids };
            let report = runtime.block_on(peer.drive(&servers, order))?;
            say(&serde_json::to_string(&report)?)?;
            // Not waiting for what a peer leaves behind.
            std::process::exit(0);
        }
        Role::Scale => runtime.block_on(scale::run())?,
        Role::ScaleServe { servers } => runtime.block_on(scale::serve(servers))?,
        Role::Hold { peer, connections, server } => {
            let held = async {
                say("held").expect("somebody reads");
                let told = tokio::task::spawn_blocking(|| stdin().read_line(&mut String::new()));
                told.await.expect("nobody panics").expect("a pipe");
            };
            runtime.block_on(peer.hold(server, connections, held))?;
            std::process::exit(0);
        }
    }
    Ok(())
}

pub(crate) fn say(line: &str) -> std::io::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn compare(args: &Table) -> Result<(), Box<dyn Error>> {
    let mut rounds = Rounds::new(&args.peers, &args.works, Duration::from_millis(args.time))?;
    let idle = match args.idle {
        0 => Default::default(),
        connections => idle::weigh(&rounds.servers(), connections)?,
    };
    for round in 0..args.rounds {
        eprintln!("round {} of {}", round + 1, args.rounds);
        rounds.run(round)?;
    }
    let syscalls = syscalls::count(&rounds)?;
    let rows = table::rows(&rounds.measured, &idle);
    table::print(&rows, &syscalls);
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_vec_pretty(&table::json(&rows))?)?;
    }
    Ok(())
}
