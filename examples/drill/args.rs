//! What the drill was asked to do.

use std::time::Duration;

use crate::faults::Kind;

pub(crate) const USAGE: &str = "\
usage: drill [--seed N] [--seconds S] [--faults NAME,...] [--registries N] [--blind-retry]
             [--no-namespaces] [--keep]

  --seed N          decides which fault hits what, and in which order (default: random, printed)
  --seconds S       how long the load runs (default: 60, which is enough for every fault once)
  --faults NAME,... only these faults, over and over, such as `--faults drain` (default: all)
  --registries N    how many registries servers and clients know, 1 or 2 (default: 2). What is done to the
                    registry is done to all, but by one-registry
  --blind-retry     the control: two clients send every failed call again, whatever its class, and
                    calls that run twice must be found
  --no-namespaces   leaves out the faults of the network
  --keep            keeps ledgers and logs also if every promise held";

/// What the drill was asked to do.
#[derive(Clone, Debug)]
pub(crate) struct Args {
    pub(crate) seed: u64,
    pub(crate) length: Duration,
    /// What to inject; all kinds unless some were named.
    pub(crate) faults: Vec<Kind>,
    pub(crate) registries: usize,
    pub(crate) blind_retry: bool,
    pub(crate) namespaces: bool,
    pub(crate) keep: bool,
}

impl Args {
    /// Reads the command line. An error is what to tell the user.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            seed: rand::random_range(0..1_000_000),
            length: Duration::from_secs(60),
            faults: Kind::ALL.to_vec(),
            registries: 2,
            blind_retry: false,
            namespaces: true,
            keep: false,
        };
        while let Some(word) = words.next() {
            match word.as_str() {
                "--seed" => args.seed = number(&word, words.next())?,
                "--seconds" => {
                    let seconds = number(&word, words.next())?;
                    if !(1..=86_400).contains(&seconds) {
                        return Err("--seconds takes 1 to 86400".to_owned());
                    }
                    args.length = Duration::from_secs(seconds);
                }
                "--faults" => args.faults = kinds(&words.next().unwrap_or_default())?,
                "--registries" => {
                    args.registries = match number(&word, words.next())? {
                        1 => 1,
                        2 => 2,
                        _ => return Err("--registries takes 1 or 2".to_owned()),
                    }
                }
                "--blind-retry" => args.blind_retry = true,
                "--no-namespaces" => args.namespaces = false,
                "--keep" => args.keep = true,
                other => return Err(format!("unknown argument {other:?}\n{USAGE}")),
            }
        }
        Ok(args)
    }
}

fn number(flag: &str, word: Option<String>) -> Result<u64, String> {
    let word = word.unwrap_or_default();
    word.parse().map_err(|_| format!("{flag} takes a number, not {word:?}\n{USAGE}"))
}

fn kinds(names: &str) -> Result<Vec<Kind>, String> {
    let all: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    names
        .split(',')
        .map(|name| {
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
            kind.ok_or_else(|| format!("--faults takes names of: {}", all.join(", ")))
        })
        .collect()
}
