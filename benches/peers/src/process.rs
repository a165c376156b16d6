//! The processes of a run, each ended with its owner.

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use crate::measure::{Report, Work};
use crate::peers::Peer;

/// A process of this program. Dropped, it is killed.
pub struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(args: &[String]) -> io::Result<Self> {
        // 5,000 connections are more files than a process may open by default.
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -n 20000 2>/dev/null; exec \"$0\" \"$@\""])
            .arg(std::env::current_exe()?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(io::Error::other("no pipes"));
        };
        Ok(Self { child, stdin, stdout: BufReader::new(stdout) })
    }

    /// A process with so many of srpc's servers, and their addresses.
    pub fn many_servers(servers: usize) -> io::Result<(Self, Vec<SocketAddr>)> {
        let mut process = Self::start(&["scale-serve".to_owned(), servers.to_string()])?;
        let line = process.line()?;
        let addresses = line.split(',').map(str::parse).collect::<Result<_, _>>();
        Ok((process, addresses.map_err(io::Error::other)?))
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            return Err(io::Error::other("a process ended before it had said anything"));
        }
        Ok(line.trim().to_owned())
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets one go that waits for a line.
    pub fn release(&mut self) -> io::Result<()> {
        self.stdin.write_all(b"\n")?;
        self.child.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A peer's server.
pub struct Server {
    pub process: Process,
    pub address: SocketAddr,
}

impl Server {
    /// Starts the server that a peer calls.
    pub fn start(peer: Peer) -> io::Result<Self> {
        let mut process = Process::start(&["serve".to_owned(), peer.server().name()])?;
        let address = process.line()?.parse().map_err(io::Error::other)?;
        // Its address is known before it accepts.
        for _ in 0..100 {
            if std::net::TcpStream::connect(address).is_ok() {
                return Ok(Self { process, address });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(io::Error::other(format!("the server of {} does not accept", peer.name())))
    }
}

/// Starts a client that makes calls and prints its report.
pub fn drive(
    peer: Peer,
    work: Work,
    in_flight: usize,
    time: Duration,
    servers: &[&Server],
) -> io::Result<Process> {
    let pids: Vec<_> = servers.iter().map(|server| server.process.pid().to_string()).collect();
    let mut args = vec![
        "drive".to_owned(),
        peer.name(),
        work.name(),
        in_flight.to_string(),
        time.as_millis().to_string(),
        format!("--pids={}", pids.join(",")),
    ];
    args.extend(servers.iter().map(|server| server.address.to_string()));
    Process::start(&args)
}

/// The report of a client.
pub fn report(client: &mut Process) -> io::Result<Report> {
    serde_json::from_str(&client.line()?).map_err(io::Error::other)
}

/// Starts a client that holds connections open, and waits until it does.
pub fn hold(peer: Peer, connections: usize, server: &Server) -> io::Result<Process> {
    let (connections, address) = (connections.to_string(), server.address.to_string());
    let mut client = Process::start(&["hold".to_owned(), peer.name(), connections, address])?;
    client.line()?;
    Ok(client)
}
