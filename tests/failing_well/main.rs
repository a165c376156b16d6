//! Peers that die, stop, refuse or dawdle: which calls does that cost? In memory, on a paused clock.

#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

mod budget;
mod deadlines;
mod drain;
mod ejection;
mod hedging;
mod reconnect;
mod shares;
mod world;
