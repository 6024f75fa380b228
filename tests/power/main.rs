//! Power cuts: the server lives on a disk whose every operation is recorded, under mixed load, with deaths in between; then hundreds
//! of disks are made as a power cut might have left it at some operation, and each is opened and judged by what had been promised by
//! then. With `sync` nothing that was acked or delivered is gone; without it the end may be, which is told, and no id is given
//! again.
//!
//! ```text
//! recorder.c   preloaded into the server: the journal of what it does to its disk
//! disk         what is assumed of a disk: which contents and names a cut may leave
//! life         the server's lives and deaths, and what its clients came to know, by the journal's length
//! judge        what must be found
//! ```
//!
//! `CUTS=n` is how many disks are made of each recording, `SEED=n` where the dice begin. How the threads of a life fall is not in the
//! seed, so a failure keeps its disk, and says where that is. What a file system is assumed to do is written at the top of `disk`.

// As in tests/it.
#![allow(
    clippy::needless_for_each,
    clippy::single_match_else,
    clippy::struct_field_names,
    clippy::similar_names,
    clippy::too_many_lines,
    clippy::field_reassign_with_default
)]

mod disk;
mod judge;
mod life;
#[path = "../it/crash/model.rs"]
mod model;
#[allow(dead_code, reason = "written for the tests of the whole program, which use the rest")]
#[path = "../it/support.rs"]
mod support;
#[allow(dead_code, reason = "the tests of kills use the rest")]
#[path = "../it/crash/worker.rs"]
mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Instant;

use fastrand::Rng;
use parking_lot::Mutex;
use tempfile::TempDir;
use tidelog::store::Durability;

use self::disk::{Data, Image, Names, records};
use self::judge::{Verdict, judge};
use self::life::{Plan, Recording, live};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// In memory where there is such a place: the disks are many, and what is on them was decided before.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

const WAYS: [(Data, Names); 9] = [
    (Data::Nothing, Names::Nothing),
    (Data::Nothing, Names::Everything),
    (Data::Everything, Names::Nothing),
    (Data::Everything, Names::Any),
    (Data::InOrder, Names::InOrder),
    (Data::Units(4096), Names::InOrder),
    (Data::Units(4096), Names::Any),
    (Data::Units(512), Names::Everything),
    (Data::Units(512), Names::Any),
];

/// One cut: a disk to be judged.
struct Cut {
    n: u64,
    moment: u64,
    how: String,
    image: Image,
}

/// Where to cut: some at the moment when somebody came to know something, some where for a while nobody did (starts, recoveries, what
/// goes on in the background), some anywhere; besides, some where RocksDB has written to its MANIFEST, and everywhere around the sealing
/// of a segment.
fn moments(recording: &Recording, cuts: u64, rng: &mut Rng) -> Vec<u64> {
    let ends: Vec<u64> = records(&recording.journal, 0).map(|record| record.end).collect();
    let known = &recording.known;
    let mut told: Vec<u64> = known.events.iter().map(|knew| knew.known).collect();
    told.extend(known.workers.iter().flat_map(|(_, facts)| facts.iter().map(|fact| fact.known)));
    told.sort_unstable();
    told.dedup();
    let is_quiet = |some: &&[u64]| {
        let next = told.partition_point(|when| *when < some[0]);
        told.get(next).is_none_or(|when| *when > some[3])
    };
    let quiet: Vec<u64> = ends.windows(4).filter(is_quiet).map(|some| some[0]).collect();
    let one = |rng: &mut Rng, of: &[u64]| of[rng.usize(..of.len())];
    let mut moments: Vec<u64> = (0..cuts)
        .map(|n| match n % 3 {
            0 => one(rng, &told),
            1 => one(rng, &quiet),
            _ => one(rng, &ends),
        })
        .collect();
    // While it is not synced; each such time is a blink of an eye.
    let manifest = disk::manifest_writes(&recording.journal);
    if !manifest.is_empty() {
        moments.extend((0..cuts / 5).map(|_| one(rng, &manifest)));
    }
    if let Some(full) = known.events.iter().filter(|knew| knew.id >> 16 > 0).map(|knew| knew.known).min() {
        moments.extend(quiet.iter().filter(|end| **end > full).take(60));
    }
    moments.sort_unstable();
    moments
}

/// What came of all cuts.
#[derive(Default, Debug)]
struct Sum {
    cuts: u64,
    torn: u64,
    manifest: u64,
    more: u64,
    lost: u64,
    refused: BTreeMap<String, u64>,
}

impl Sum {
    fn add(&mut self, verdict: Verdict) {
        self.cuts += 1;
        self.torn += u64::from(verdict.torn);
        self.manifest += u64::from(verdict.manifest);
        self.more += u64::from(verdict.more);
        self.lost += u64::from(verdict.lost);
        if let Some(why) = verdict.refused {
            // The files and places differ from disk to disk.
            let why: String = why
                .split(", ")
                .next()
                .unwrap_or_default()
                .split(" may be")
                .next()
                .unwrap_or_default()
                .chars()
                .filter(|c| !c.is_ascii_digit())
                .collect();
            let why = why.rsplit('/').next().unwrap_or_default().to_owned();
            *self.refused.entry(why).or_default() += 1;
        }
    }
}

fn kept(cut: &Cut) -> PathBuf {
    let dir = tempfile::tempdir().unwrap().keep();
    disk::write(&cut.image, &dir);
    dir
}

fn cut_and_judge(recording: &Recording, durability: Durability, seed: u64, cuts: u64) -> Sum {
    let mut rng = Rng::with_seed(seed);
    let moments = moments(recording, cuts, &mut rng);
    let sum = Mutex::new(Sum::default());
    let stop = AtomicBool::new(false);
    let failures = Mutex::new(Vec::new());
    let (give, take) = mpsc::sync_channel::<Cut>(2);
    let take = Mutex::new(take);
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Ok(cut) = take.lock().recv() else { return };
                    let dir = scratch();
                    disk::write(&cut.image, dir.path());
                    match judge(&dir.path().join("data"), durability, &recording.known, cut.moment) {
                        Ok(verdict) => sum.lock().add(verdict),
                        Err(wrong) => {
                            stop.store(true, Ordering::Relaxed);
                            failures.lock().push(format!(
                                "cut {} at {} ({}): {wrong}\n  the disk is kept in {}",
                                cut.n,
                                cut.moment,
                                cut.how,
                                kept(&cut).display()
                            ));
                        }
                    }
                    let done = sum.lock().cuts;
                    if done > 0 && done.is_multiple_of(100) {
                        eprintln!("  {done} of {cuts} cuts in {:.1?}", begun.elapsed());
                    }
                }
            });
        }
        let mut disk = recording.base.clone();
        let mut records = records(&recording.journal, 0);
        let mut at = 0;
        for (n, moment) in (0..).zip(moments) {
            while at < moment {
                let record = records.next().expect("moments lie within the journal");
                at = record.end;
                disk.happens(&record);
            }
            let (data, names) = WAYS[rng.usize(..WAYS.len())];
            let how = format!("{data:?}, names {names:?}, of what was not synced: {:?}", disk.unsynced());
            let image = disk.cut(&mut rng, data, names);
            if stop.load(Ordering::Relaxed) || give.send(Cut { n, moment, how, image }).is_err() {
                break;
            }
        }
        drop(give);
    });
    let failures = failures.into_inner();
    assert!(failures.is_empty(), "with SEED={seed}:\n{}", failures.join("\n"));
    sum.into_inner()
}

fn power_cuts(name: &'static str, durability: Durability, share: u64, plan: impl FnOnce(u64) -> Plan) -> Sum {
    let seed = number("SEED", 1);
    let cuts = number("CUTS", 150) * share / 100;
    let begun = Instant::now();
    let recording = live(&plan(seed));
    let sum = told(name, &recording, seed, begun, cuts, durability);
    if durability == Durability::Sync {
        again(name, &recording, seed, cuts);
    }
    sum
}

fn told(name: &str, recording: &Recording, seed: u64, begun: Instant, cuts: u64, durability: Durability) -> Sum {
    let syncs = records(&recording.journal, 0).filter(disk::Record::is_sync).count();
    let operations = records(&recording.journal, 0).count();
    eprintln!(
        "{name}: SEED={seed}, {operations} operations ({syncs} syncs, {} KiB), {} events known, recorded in {:.1?}",
        recording.journal.len() >> 10,
        recording.known.log.len(),
        begun.elapsed()
    );
    let sum = cut_and_judge(recording, durability, seed, cuts);
    eprintln!("{name}: {sum:?}, all in {:.1?}", begun.elapsed());
    sum
}

/// Cuts the power, starts the server on what that left, and cuts again: while it recovers, and after.
fn again(name: &str, recording: &Recording, seed: u64, cuts: u64) {
    let mut rng = Rng::with_seed(seed ^ 0xA6A1_4000);
    let (begun, mut sum, mut died) = (Instant::now(), Sum::default(), 0);
    let first = (cuts / 12).max(1);
    for moment in moments(recording, first, &mut rng).into_iter().take(2 * usize::try_from(first).unwrap()) {
        let mut disk = recording.base.clone();
        records(&recording.journal, 0)
            .take_while(|record| record.end <= moment)
            .for_each(|record| disk.happens(&record));
        let (data, names) = WAYS[rng.usize(..WAYS.len())];
        let image = disk.cut(&mut rng, data, names);
        // What the first start finds: what it finds once, it must find for ever.
        let dir = scratch();
        disk::write(&image, dir.path());
        let (_, found) = match judge::open(&dir.path().join("data"), Durability::Sync) {
            Ok(Ok(opened)) => opened,
            Ok(Err(wrong)) | Err(wrong) => panic!("with SEED={seed}, cut at {moment}, {data:?}, {names:?}: {wrong}"),
        };
        let kill_at = rng.bool().then(|| rng.u64(1..90));
        let second = life::restart(&image, kill_at, &mut rng);
        died += u64::from(second.served.is_none());
        let ends: Vec<u64> = records(&second.journal, 0).map(|record| record.end).collect();
        let mut cuts: Vec<u64> = (0..6).map(|_| ends[rng.usize(..ends.len())]).collect();
        cuts.sort_unstable();
        for at in cuts {
            let mut disk = second.base.clone();
            records(&second.journal, 0).take_while(|record| record.end <= at).for_each(|record| disk.happens(&record));
            let (data, names) = WAYS[rng.usize(..WAYS.len())];
            let image = disk.cut(&mut rng, data, names);
            let dir = scratch();
            disk::write(&image, dir.path());
            let data_dir = dir.path().join("data");
            let verdict = match second.served {
                Some(since) if at >= since => judge::judge_again(&data_dir, &found, &second, at),
                // Nobody was told anything by the second start.
                _ => judge(&data_dir, Durability::Sync, &recording.known, moment),
            };
            match verdict {
                Ok(verdict) => sum.add(verdict),
                Err(wrong) => {
                    let cut = Cut { n: 0, moment: at, how: String::new(), image };
                    panic!(
                        "with SEED={seed}, cut at {moment} and again at {at} ({data:?}, {names:?}): {wrong}\n  the disk is kept in {}",
                        kept(&cut).display()
                    )
                }
            }
        }
    }
    eprintln!("{name}, cut again: {sum:?}, of {died} servers that died while they started, in {:.1?}", begun.elapsed());
}

#[test]
fn nothing_acked_or_delivered_is_lost_with_sync() {
    let sum = power_cuts("sync", Durability::Sync, 100, |seed| Plan {
        seed,
        durability: "sync",
        deaths: 5,
        before: 0,
        operations: 300..2500,
        linger: false,
    });
    assert!(sum.torn * 50 > sum.cuts, "hardly any torn end was tried: {sum:?}");
    // One cut in a hundred or so makes one, as a MANIFEST is seldom written: some hundred cuts may have none.
    assert!(sum.manifest > 0 || sum.cuts < 1000, "no torn end of a MANIFEST was tried: {sum:?}");
}

#[test]
fn nor_while_segments_are_sealed() {
    power_cuts("sealing", Durability::Sync, 15, |seed| Plan {
        seed,
        durability: "sync",
        deaths: 0,
        before: 66_000,
        operations: 300..600,
        linger: true,
    });
}

#[test]
fn without_sync_the_end_is_lost_and_told_and_no_id_is_given_again() {
    for durability in [Durability::Interval, Durability::Os] {
        let name = if durability == Durability::Os { "os" } else { "interval" };
        let sum = power_cuts(name, durability, 60, |seed| Plan {
            seed,
            durability: name,
            deaths: 3,
            before: 0,
            operations: 1000..5000,
            linger: true,
        });
        // The disks that are made do lose what was not synced.
        assert!(sum.lost > 0, "{sum:?}");
    }
}
