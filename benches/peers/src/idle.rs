//! What a server keeps for each connection that does nothing.

use std::collections::BTreeMap;
use std::io;
use std::thread::sleep;
use std::time::Duration;

use crate::peers::Peer;
use crate::process::{Server, hold};

/// The resident memory of each server for each of so many idle connections, in KiB: each has
/// carried one call.
pub fn weigh(servers: &[Peer], connections: usize) -> io::Result<BTreeMap<Peer, f64>> {
    let mut weights = BTreeMap::new();
    for peer in servers {
        eprintln!("{connections} idle connections: {}", peer.name());
        let server = Server::start(*peer)?;
        // A first connection, so that what comes once is there.
        hold(*peer, 1, &server)?.release()?;
        let before = resident_kib(server.process.pid())?;
        let mut client = hold(*peer, connections, &server)?;
        sleep(Duration::from_secs(1));
        let after = resident_kib(server.process.pid())?;
        client.release()?;
        weights.insert(*peer, (after - before) / connections as f64);
    }
    Ok(weights)
}

fn resident_kib(pid: u32) -> io::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok()
        })
        .ok_or_else(|| io::Error::other("no resident size"))
}
