//! The corpora of the fuzz targets, file by file: what a fuzzer has found stays found.

#![cfg(feature = "http")]
#![allow(clippy::unwrap_used, reason = "the whole file is tests")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Runs a target over its corpus, in one thread with the stack that a server's threads have.
fn replay(name: &str) {
    let (_, target) = fuzz::TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let corpus = folder("corpus").join(name);
    let files = names(&corpus);
    assert!(files.len() >= 10, "{} files are no corpus: {}", files.len(), corpus.display());
    let failed: Vec<_> = files
        .iter()
        .filter(|file| {
            let input = fs::read(corpus.join(file)).unwrap();
            catch_unwind(|| target(&input)).is_err()
        })
        .collect();
    assert!(failed.is_empty(), "{name} fails for {failed:?}");
}

#[test]
fn every_target_has_a_program_and_a_corpus_and_is_replayed_here() {
    let targets: BTreeSet<String> =
        fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names(&folder("corpus")), targets);
    let programs = names(&folder("fuzz_targets"));
    let programs = programs.iter().map(|file| file.strip_suffix(".rs").unwrap().to_owned());
    assert_eq!(programs.collect::<BTreeSet<_>>(), targets);
    let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
    let tests = include_str!("corpus.rs");
    for name in targets {
        assert!(manifest.contains(&format!("\nname = \"{name}\"\n")), "no program {name}");
        assert!(tests.contains(&format!("\n    replay(\"{name}\");\n")), "{name} is not replayed");
    }
}

#[test]
fn addresses() {
    replay("address");
}

#[test]
fn calls() {
    replay("call");
}

#[test]
fn clients() {
    replay("client");
}

#[test]
fn frames() {
    replay("frame");
}

#[test]
fn handshakes() {
    replay("handshake");
}

#[test]
fn registries() {
    replay("registry");
}

#[test]
fn replies() {
    replay("reply");
}

#[test]
fn servers() {
    replay("server");
}
