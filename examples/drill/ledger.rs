//! What a process leaves behind about its calls, even if it is killed.
//!
//! A ledger is a text file to which lines are appended, each by one write: what was written before
//! a kill is with the kernel. Times are microseconds since the drill began.
//!
//! ```text
//! client   s N TIME                         call N starts
//!          e N TIME CLASS ATTEMPT SERVER    it has ended; ATTEMPT is 0 if it succeeded, SERVER - if none
//! server   x CLIENT N TIME                  a handler has started with call N of that client
//!          r TIME                           a call was refused before its handler
//! ```

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use srpc::Execution;

/// A file that is appended to, a line a write.
#[derive(Debug)]
pub(crate) struct Ledger(File);

impl Ledger {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self(OpenOptions::new().append(true).create_new(true).open(path)?))
    }

    /// Appends a line. A ledger that cannot be written proves nothing: its process ends.
    pub(crate) fn line(&self, line: fmt::Arguments<'_>) {
        let line = format!("{line}\n");
        match (&self.0).write(line.as_bytes()) {
            Ok(written) if written == line.len() => {}
            other => {
                eprintln!("the ledger cannot be written: {other:?}");
                std::process::exit(3);
            }
        }
    }
}

/// A call's name: unique in a drill, and the argument that travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CallId {
    pub(crate) client: usize,
    pub(crate) n: u64,
}

impl CallId {
    /// What the reply must carry: a reply to another call does not have it.
    pub(crate) fn answer(self) -> u64 {
        // The finalizer of splitmix64: one to one.
        let mut z = ((self.client as u64) << 48 | self.n).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// How a call ended, as its client sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Class {
    /// It has not ended.
    #[default]
    Unresolved,
    Ok,
    /// It succeeded with somebody else's reply.
    Wrong,
    NotSent,
    Rejected,
    Maybe,
    Executed,
}

impl Class {
    const LETTERS: [(Self, &str); 6] = [
        (Self::Ok, "o"),
        (Self::Wrong, "w"),
        (Self::NotSent, "n"),
        (Self::Rejected, "r"),
        (Self::Maybe, "m"),
        (Self::Executed, "x"),
    ];

    pub(crate) fn parse(letter: &str) -> Option<Self> {
        Self::LETTERS.iter().find(|(_, known)| *known == letter).map(|(class, _)| *class)
    }

    pub(crate) fn is_failure(self) -> bool {
        !matches!(self, Self::Unresolved | Self::Ok | Self::Wrong)
    }
}

impl From<Execution> for Class {
    fn from(execution: Execution) -> Self {
        match execution {
            Execution::NotSent => Self::NotSent,
            Execution::Rejected => Self::Rejected,
            Execution::MaybeExecuted => Self::Maybe,
            _ => Self::Executed,
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = Self::LETTERS.iter().find(|(class, _)| class == self);
        f.write_str(letter.map_or("?", |(_, letter)| letter))
    }
}
