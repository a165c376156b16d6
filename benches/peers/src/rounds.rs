//! One round after another: every peer once, the limit three times among them.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use clap::ValueEnum;

use crate::measure::{Report, Work};
use crate::peers::{Peer, go};
use crate::process::{Server, drive, report};

/// A column of the table: a work, and how many calls at a time.
pub type Cell = (Work, usize);

/// The columns of the table.
pub const CELLS: [Cell; 6] = [
    (Work::Seq, 1),
    (Work::Sum, 64),
    (Work::Sum, 512),
    (Work::Kilobyte, 64),
    (Work::Body, 64),
    (Work::Bytes, 64),
];

/// What is measured, and what was.
pub struct Rounds {
    peers: Vec<Peer>,
    cells: Vec<Cell>,
    time: Duration,
    /// One entry a round, with the reports of that round.
    pub measured: Vec<BTreeMap<(Cell, Peer), Vec<Report>>>,
}

impl Rounds {
    /// Of these peers and works; of all, where none is named.
    pub fn new(peers: &[Peer], works: &[Work], time: Duration) -> io::Result<Self> {
        let chosen = |peer: &Peer| {
            peers.is_empty()
                || peers.contains(peer)
                || [Peer::Raw, Peer::RawPingpong].contains(peer)
        };
        let mut peers: Vec<_> = Peer::value_variants().iter().copied().filter(chosen).collect();
        if peers.contains(&Peer::GoNetRpc) {
            if go::available() {
                go::build()?;
            } else {
                eprintln!("left out: go-net-rpc needs `go`");
                peers.retain(|peer| *peer != Peer::GoNetRpc);
            }
        }
        let cells = CELLS.into_iter().filter(|(work, _)| works.is_empty() || works.contains(work));
        Ok(Self { peers, cells: cells.collect(), time, measured: Vec::new() })
    }

    /// The servers that the peers call, each once.
    pub fn servers(&self) -> Vec<Peer> {
        let mut servers: Vec<_> = self.peers.iter().map(|peer| peer.server()).collect();
        servers.sort();
        servers.dedup();
        servers
    }

    /// Those of the peers that do this work, the limit first.
    pub fn peers_of(&self, work: Work) -> Vec<Peer> {
        let does = |peer: &&Peer| **peer != Peer::RawPingpong || work == Work::Seq;
        self.peers.iter().filter(does).copied().collect()
    }

    /// The works and numbers of calls at a time.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// Measures every peer once more. Each round starts with another peer.
    pub fn run(&mut self, round: usize) -> io::Result<()> {
        let mut servers = BTreeMap::new();
        for peer in &self.peers {
            let group: &mut Vec<Server> = servers.entry(peer.server()).or_default();
            while group.len() < peer.servers() {
                group.push(Server::start(*peer)?);
            }
        }
        let mut measured: BTreeMap<_, Vec<Report>> = BTreeMap::new();
        for cell in &self.cells {
            let (work, in_flight) = *cell;
            let mut turns = self.peers_of(work);
            turns.retain(|peer| *peer != Peer::Raw);
            let len = turns.len().max(1);
            turns.rotate_left(round % len);
            // The limit at the start, in the middle, and at the end.
            turns.insert(turns.len() / 2, Peer::Raw);
            turns.insert(0, Peer::Raw);
            turns.push(Peer::Raw);
            for peer in turns {
                let called: Vec<_> = servers[&peer.server()].iter().take(peer.servers()).collect();
                let mut client = drive(peer, work, in_flight, self.time, &called)?;
                let report = report(&mut client)
                    .map_err(|error| io::Error::other(format!("{}: {error}", peer.name())))?;
                measured.entry((*cell, peer)).or_default().push(report);
            }
        }
        self.measured.push(measured);
        Ok(())
    }
}
