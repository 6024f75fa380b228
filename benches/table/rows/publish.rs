//! Publishes that are acknowledged when they are on the disk: one event a request, and batches.

use std::time::Instant;

use crate::common::{self, Bare};
use crate::run::{Measure, Run};
use crate::servers::{Who, scratch};

const SIZE: &str = "256";

pub fn single(run: &mut Run) -> Result<(), String> {
    let all = run.contenders(&[Who::Tidelog], &[Who::Crate]);
    let pairs = run.pairs(3);
    // As many events as take some seconds.
    for (publishers, events, least) in [(1, 10_000, 1.0), (8, 40_000, 1.2), (64, 96_000, 1.3)] {
        let (n, events) = (publishers.to_string(), run.scaled(events, 500).to_string());
        let args = ["--publishers", &n, "--events", &events, "--size", SIZE];
        let what = if publishers == 1 { "1 publisher".to_owned() } else { format!("{n} publishers") };
        for pair in 0..pairs {
            let acks = run.turns(pair, &all, |run, who| {
                run.step(&format!("{what}, pair {} of {pairs}, {}", pair + 1, who.name()));
                run.load(who, "publish", &args)?.number("/acks_per_second")
            })?;
            if let [ours, theirs] = acks[..] {
                run.note(&Measure::ratio(&what, "acks/s", "the crate").at_least(least), ours, Some(theirs));
            }
        }
    }
    Ok(())
}

pub fn batches(run: &mut Run) -> Result<(), String> {
    const BATCH: usize = 500;
    let events = run.scaled(1_000_000, 10_000);
    let pairs = run.pairs(3);
    let measure = Measure::ratio("synced batches of 500", "events/s", "RocksDB").at_least(0.6);
    // Values for all of the loop: both read theirs from memory.
    let values: Vec<_> =
        common::events(0..events as u64, 256, |_| common::topic("t")).iter().map(common::record).collect();
    for pair in 0..pairs {
        let rates = run.turns(pair, &[true, false], |run, ours| {
            run.step(&format!("pair {} of {pairs}, {}", pair + 1, if ours { "tidelog" } else { "RocksDB" }));
            if ours {
                let events = events.to_string();
                let args = ["--publishers", "4", "--batch", "500", "--events", &events, "--size", SIZE];
                return run.load(Who::Tidelog, "publish", &args)?.number("/events_per_second");
            }
            let mut bare = Bare::within(scratch());
            let begun = Instant::now();
            values.chunks(BATCH).for_each(|batch| bare.write(batch));
            #[allow(clippy::cast_precision_loss)]
            Ok(events as f64 / begun.elapsed().as_secs_f64())
        })?;
        run.note(&measure, rates[0], Some(rates[1]));
    }
    Ok(())
}
