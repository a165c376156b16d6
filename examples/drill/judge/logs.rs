//! What the processes wrote into their logs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use crate::Fallible;

/// What the processes wrote into their logs.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    /// How often each event was logged.
    pub(crate) events: BTreeMap<String, u64>,
    /// Lines that tell of a panic.
    pub(crate) panics: Vec<String>,
}

impl Logs {
    /// Adds a log; `at` is told the time of each event.
    pub(super) fn read(&mut self, log: &Path, mut at: impl FnMut(u64)) -> Fallible<()> {
        for line in BufReader::new(File::open(log)?).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            if line.contains("panicked at") {
                self.panics.push(format!("{}: {line}", log.display()));
            }
            // `TIME LEVEL module: message field=value`
            let mut words = line.split_whitespace();
            let time = words.next().and_then(|time| time.parse().ok());
            let (Some(time), Some(_level), Some(_module)) = (time, words.next(), words.next())
            else {
                continue;
            };
            at(time);
            let message: Vec<_> = words.take_while(|word| !word.contains('=')).collect();
            *self.events.entry(message.join(" ")).or_default() += 1;
        }
        Ok(())
    }
}
