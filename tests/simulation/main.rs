//! A whole cluster in one thread: what do partitions, crashes and restarts cost, by seed?
//!
//! A registry, three servers and two clients run on a simulated network, with simulated time. A
//! seed draws what is broken and when. After each run the ledger of all hosts is judged.
//!
//! `SRPC_SEED=7 cargo test --test simulation` runs seed 7 of every scenario alone. What a seed
//! repeats: the faults, their times, the load, and what the clients, registrars and resolvers are
//! seeded with. What it does not: pauses before a retry and a reconnect, and tokio's `select!`, are
//! drawn from generators that a thread owns, so that the order of single messages may differ.
#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

mod control;
mod everything;
mod judge;
mod ledger;
mod network;
mod plan;
mod registry;
mod repeats;
mod seeds;
mod servers;
mod transport;
mod world;
