//! The simulation: the writer, the hub, the readers and bundles, all real, over a disk that fails and a process that dies, for as many
//! seeds as is asked for.
//!
//! `SEEDS=n` runs so many, `FIRST=n` from this one on, `STEPS=n` with so many steps each; `SEED=n` runs just the one, with its trace.
//! Seeds run on all processors; what comes of them does not depend on how many there are. A seed that fails is run again with fewer
//! steps, to find the fewest that fail.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::random::Run;

const SEEDS: u64 = 10_000;
const STEPS: usize = 400;

/// So many lines of a trace are shown.
const TRACE_LINES: usize = 60;

/// From so many seeds on, each of [`KINDS`] must have happened.
const SEEDS_FOR_ALL: u64 = 1_000;

/// What the simulation is to meet.
const KINDS: [&str; 46] = [
    "actors starved",
    "bundles gathered",
    "bundles shared",
    "bursts of one actor",
    "clients that came with any id",
    "clocks set back",
    "closed to publishes",
    "closes",
    "commits",
    "commits found after a crash",
    "conditions unmet",
    "conflicts",
    "crashes",
    "crashes that took unsynced writes",
    "crashes within a commit",
    "crashes within a step",
    "deletes",
    "disks full, or freed",
    "events",
    "frames seen",
    "gaps told: ahead",
    "gaps told: lost",
    "gaps told: trimmed",
    "holes",
    "publishes acked",
    "publishes in doubt",
    "publishes repeated when in doubt",
    "publishes written",
    "reads failed",
    "reads of the log",
    "reads shared",
    "reopenings made to fail",
    "repeats answered",
    "restarts",
    "resumes",
    "retentions set",
    "snapshots kept",
    "streams cut",
    "streams ended",
    "streams ended by an error",
    "trims",
    "trims by retention",
    "undecided writes found",
    "visitors",
    "writes lost",
    "seeds",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().filter(|text| !text.is_empty()).map(|text| text.parse().expect("a number"))
}

fn steps() -> usize {
    number("STEPS").map_or(STEPS, |steps| usize::try_from(steps).unwrap())
}

/// What came of a seed.
#[derive(PartialEq, Eq)]
struct Came {
    failed: Option<String>,
    digest: u64,
    happened: BTreeMap<&'static str, u64>,
    taken: usize,
    trace: Vec<String>,
}

fn seeded(seed: u64, steps: usize, traced: bool) -> Came {
    let mut run = Run::new(seed);
    run.world.trace = traced.then(Vec::new);
    let judged = catch_unwind(AssertUnwindSafe(|| run.go(steps)));
    let failed = match judged {
        Ok(judged) => judged.err(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            Some(text.or(panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or("a panic".into()))
        }
    };
    let Run { world, taken, .. } = run;
    let trace = world.trace.unwrap_or_default();
    Came { failed, digest: world.digest, happened: world.happened, taken, trace }
}

/// What is wrong with a seed that fails, by the fewest steps that show it.
fn report(seed: u64, all: usize, whole: bool) -> String {
    let came = seeded(seed, all, false);
    // A run that ends early is brought to rest, which may show it as well.
    let fewest = (0..came.taken).find(|steps| seeded(seed, *steps, false).failed.is_some()).unwrap_or(came.taken);
    let Came { failed, trace, .. } = seeded(seed, fewest, true);
    let from = if whole { 0 } else { trace.len().saturating_sub(TRACE_LINES) };
    let why = failed.unwrap_or_else(|| "it did not fail again: it is no function of its seed".into());
    format!("{}\nseed {seed}, after {fewest} steps: {why}\nmake sim SEED={seed}  replays it", trace[from..].join("\n"))
}

/// Runs the seeds on all processors; gives what came of them, in their order, up to the first that failed.
fn run(first: u64, seeds: u64, steps: usize) -> Result<Vec<Came>, u64> {
    let (next, done) = (AtomicU64::new(first), AtomicU64::new(0));
    let (end, failed) = (first + seeds, AtomicU64::new(u64::MAX));
    let all: Mutex<BTreeMap<u64, Came>> = Mutex::default();
    let begun = Instant::now();
    let told = Mutex::new(begun);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end || seed > failed.load(Ordering::Relaxed) {
                        return;
                    }
                    let came = seeded(seed, steps, false);
                    if came.failed.is_some() {
                        failed.fetch_min(seed, Ordering::Relaxed);
                    }
                    all.lock().insert(seed, came);
                    let n = done.fetch_add(1, Ordering::Relaxed) + 1;
                    let mut told = told.lock();
                    if told.elapsed() > Duration::from_secs(5) {
                        *told = Instant::now();
                        eprintln!("simulation: {n} of {seeds} seeds in {:.0?}", begun.elapsed());
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        u64::MAX => Ok(all.into_inner().into_values().collect()),
        seed => Err(seed),
    }
}

#[test]
fn simulation() {
    let steps = steps();
    if let Some(seed) = number("SEED") {
        let came = seeded(seed, steps, true);
        match came.failed {
            Some(_) => panic!("{}", report(seed, steps, true)),
            None => println!("seed {seed}: {} steps, digest {:016x}", came.taken, came.digest),
        }
        return;
    }
    let (first, seeds) = (number("FIRST").unwrap_or(0), number("SEEDS").unwrap_or(SEEDS));
    let begun = Instant::now();
    let all = run(first, seeds, steps).unwrap_or_else(|seed| panic!("{}", report(seed, steps, false)));
    let mut happened = BTreeMap::from([("seeds", seeds)]);
    let mut digest = 0u64;
    for came in &all {
        digest = (digest ^ came.digest).wrapping_mul(0x0100_0000_01b3);
        for (what, times) in &came.happened {
            *happened.entry(what).or_default() += times;
        }
    }
    let taken: usize = all.iter().map(|came| came.taken).sum();
    println!("{seeds} seeds, {taken} steps, {:.1?}, digest {digest:016x}", begun.elapsed());
    for (what, times) in &happened {
        println!("{times:>12}  {what}");
    }
    let never: Vec<_> = KINDS.iter().filter(|what| !happened.contains_key(**what)).collect();
    assert!(seeds < SEEDS_FOR_ALL || never.is_empty(), "these never happened: {never:?}");
}

#[test]
fn a_seed_run_twice_is_the_same_to_the_byte() {
    for seed in 0..50 {
        let (first, second) = (seeded(seed, STEPS, true), seeded(seed, STEPS, true));
        assert!(first.trace.len() > STEPS / 4, "seed {seed} is traced");
        assert!(first == second, "seed {seed}");
    }
}
