//! Go's net/rpc with gob, by a program of its own in `go/`.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, io};

use crate::measure::Order;

/// Whether there is a Go compiler.
pub fn available() -> bool {
    let version = Command::new("go").arg("version").stdout(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// Builds the program; where it is.
pub fn build() -> io::Result<PathBuf> {
    let program = program()?;
    let status = Command::new("go")
        // One file that needs the standard library alone: no module, nothing to fetch.
        .env("GO111MODULE", "off")
        .args(["build", "-o"])
        .arg(&program)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/go/main.go"))
        .status()?;
    if !status.success() {
        return Err(io::Error::other(format!("go build: {status}")));
    }
    Ok(program)
}

/// Becomes the server, which prints its address.
pub fn serve() -> io::Result<()> {
    Err(Command::new(program()?).arg("serve").exec())
}

/// Becomes a client that makes calls and prints its report.
pub fn drive(server: SocketAddr, order: &Order) -> io::Error {
    let pids: Vec<_> = order.servers.iter().map(u32::to_string).collect();
    become_client(&[
        "drive".to_owned(),
        server.to_string(),
        order.work.name(),
        order.in_flight.to_string(),
        order.warm_up.as_millis().to_string(),
        order.time.as_millis().to_string(),
        pids.join(","),
    ])
}

/// Becomes a client that holds connections open until its input ends.
pub fn hold(server: SocketAddr, connections: usize) -> io::Error {
    become_client(&["hold".to_owned(), server.to_string(), connections.to_string()])
}

fn become_client(args: &[String]) -> io::Error {
    match program() {
        Ok(program) => Command::new(program).args(args).exec(),
        Err(error) => error,
    }
}

/// Beside this program, so that every process of a run finds it.
fn program() -> io::Result<PathBuf> {
    Ok(env::current_exe()?.with_file_name("peers-go"))
}
