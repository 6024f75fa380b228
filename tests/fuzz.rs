//! Every fuzz target (`fuzz/targets`, where each says what it proves) over its corpus, over every fault that was ever found
//! (`fuzz/regressions`), and over seeded mutations of both: without a nightly toolchain, in seconds.
//!
//! A failure names the target, prints `SEED=n` and the round, and leaves the input in a file. `SEED=n ROUNDS=n cargo test --release
//! --test fuzz TARGET` runs it again, the same to the byte; ROUNDS is how many mutations there are for each target. The search that is
//! guided by coverage is `make fuzz`.

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Most bytes of a mutated input.
const BYTES_MAX: usize = 4096;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn fuzz_dir() -> PathBuf {
    PathBuf::from("fuzz")
}

/// The files of a directory, sorted by name; none when it is not there.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// An input like some of those that are there.
fn mutated(rng: &mut fastrand::Rng, inputs: &[Vec<u8>]) -> Vec<u8> {
    let any = |rng: &mut fastrand::Rng| &inputs[rng.usize(..inputs.len())];
    let mut input = any(rng).clone();
    for _ in 0..=rng.usize(..6) {
        let at = rng.usize(..=input.len());
        let end = (at + rng.usize(..16)).min(input.len());
        match rng.u8(..8) {
            0 if at < input.len() => input[at] ^= 1 << rng.u8(..8),
            1 if at < input.len() => input[at] = rng.u8(..),
            2 => {
                let some: Vec<u8> = (0..rng.usize(..8)).map(|_| rng.u8(..)).collect();
                drop(input.splice(at..at, some));
            }
            3 => drop(input.drain(at..end)),
            4 => {
                let again = input[at..end].to_vec();
                drop(input.splice(end..end, again));
            }
            5 => {
                // A piece of another: for texts, that is a word.
                let other = any(rng);
                let from = rng.usize(..=other.len());
                let piece = other[from..(from + rng.usize(..24)).min(other.len())].to_vec();
                drop(input.splice(at..end, piece));
            }
            6 => {
                let piece = [
                    &b"\r"[..],
                    b"\n",
                    b"\r\n",
                    b"\0",
                    b":",
                    b"\xef\xbb\xbf",
                    b"\xff",
                    b"%",
                    b"\"",
                    b"\\",
                    b"18446744073709551615",
                    b"9007199254740992",
                ];
                input.splice(at..at, rng.choice(piece).unwrap().iter().copied());
            }
            _ => {
                let other = any(rng);
                input.truncate(at);
                input.extend_from_slice(&other[rng.usize(..=other.len())..]);
            }
        }
    }
    input.truncate(BYTES_MAX);
    input
}

/// Runs one input; when it fails, says which, and keeps it.
fn run(target: targets::Target, input: &[u8], which: &str) {
    let (name, run) = target;
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(input))) {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}"));
        fs::write(&kept, input).unwrap();
        eprintln!("the fuzz target {name} fails on {which}: {}, kept in {}", input.escape_ascii(), kept.display());
        std::panic::resume_unwind(panic);
    }
}

/// `share`: how many mutations are run for a hundred of the others, so that slow targets take no longer.
fn all_of(name: &str, share: u64) {
    let target = *targets::ALL.iter().find(|target| target.0 == name).unwrap();
    let mut inputs = Vec::new();
    let corpus = files(&fuzz_dir().join("corpus").join(name));
    assert!(!corpus.is_empty(), "fuzz/corpus/{name} is empty: there is nothing to begin with");
    for (path, input) in corpus.into_iter().chain(files(&fuzz_dir().join("regressions").join(name))) {
        run(target, &input, &path.display().to_string());
        inputs.push(input);
    }
    run(target, b"", "nothing");
    let (seed, rounds) = (number("SEED", 1), number("ROUNDS", 20_000) * share / 100);
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..rounds {
        let input = mutated(&mut rng, &inputs);
        run(target, &input, &format!("SEED={seed}, round {round}"));
    }
}

macro_rules! targets {
    ($($name:ident $share:literal)+) => {
        $(#[test]
        fn $name() {
            all_of(stringify!($name), $share);
        })+

        #[test]
        fn every_target_is_run_here_and_by_cargo_fuzz() {
            let here: BTreeSet<_> = [$(stringify!($name)),+].into();
            let all: BTreeSet<_> = targets::ALL.iter().map(|target| target.0).collect();
            assert_eq!(here, all);
            let manifest = fs::read_to_string(fuzz_dir().join("Cargo.toml")).unwrap();
            for name in all {
                assert!(fuzz_dir().join(format!("fuzz_targets/{name}.rs")).is_file(), "{name}");
                assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            }
        }
    };
}

targets! {
    api 10
    codecs 100
    config 50
    decode 100
    frames 100
    head 100
    lines 100
    request 100
    topics 100
    wal 50
}
