//! `verify`, and what a damaged log opens as.
//!
//! Proved on a directory that is small and holds some of everything (`full`): files of each column family, sealed segments, trims, a hole,
//! state, snapshots, closed and deleted topics, remembered publishes, reserved ids, a write-ahead log with zeros ahead of it:
//!
//! - every flipped bit of every file is found (a bit of each byte by seed; `FLIPS=all`: all of them);
//! - a log with a flipped bit, or a file cut short or taken away, is refused with an error that tells where, or opens with all events,
//!   state and snapshots as they were; or, where rows are damaged, a read that meets them fails. It never shows less or anything else
//!   (as many at random as `FLIPPED_OPENS` says);
//! - every row that is not what the log says is found: rows are changed through RocksDB, so that all checksums match;
//! - verifying changes no byte.
//!
//! `SEED=n` repeats a run.

#![allow(
    clippy::case_sensitive_file_extension_comparisons,
    reason = "the files are RocksDB's, which writes small letters"
)]
#![allow(clippy::too_many_lines, reason = "a table of changes to rows is long")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;
use tidelog::event::{Digest, Event, EventId};
use tidelog::store::rocks::verify::{Finding, Kind, Summary, VerifyError, Watch, verify, verify_file};
use tidelog::store::rocks::{Options, RocksStore};
use tidelog::store::{Durability, Limits, Remembered, Scan, Snapshot, Store, StoreError};
use tidelog::topic::Filter;

use crate::support::{
    FAMILIES, crash_copy, event, filter, keyed, log_trim, owned, put, raw, state, topic, topic_trim, trim,
};

const SEGMENT: u64 = 1 << 16;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// Where a run of random choices begins; printed, so that it can be repeated.
fn seeded(what: &str) -> fastrand::Rng {
    let seed = number("SEED", 0x7469_6465);
    println!("{what}: SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

fn options(dir: &Path, durability: Durability) -> Options {
    Options { durability, write_buffer_bytes: 64 << 10, ..Options::new(dir) }
}

fn digest(n: u64) -> Digest {
    let mut bytes = [3; 16];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    Digest(bytes)
}

/// Some of everything from `first` on, and a batch a time; gives the id after the last.
fn publish(store: &dyn Store, first: EventId, batches: u64) -> EventId {
    let mut id = first;
    for batch in 0..batches {
        let n = batch % 7;
        let data = |id: u64| {
            if id % 11 == 5 { String::new() } else { format!("event {id} {}", "some data ".repeat(id as usize % 5)) }
        };
        let key = format!("k{}", (id * 7) % 13);
        let events = [
            keyed(id, &format!("t.{}", n % 4), &key, data(id)),
            event(id + 1, id, "plain", data(id + 1)),
            keyed(id + 2, "t.gone", "x", data(id + 2)),
        ];
        // Times never go back within the batch either.
        let events = events.map(|e| Event { time: id, ..e });
        let remembered = Remembered { key: digest(id), request: digest(id + 1), first: id, last: id + 2, time: id };
        store.commit(&events, &[remembered]).unwrap();
        id += 3;
    }
    id
}

/// What the log was made to hold, as a reader sees it.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    tail: EventId,
    events: Vec<Event>,
    state: (EventId, Vec<Event>),
    snapshots: Vec<Option<Snapshot>>,
    closed: Vec<Option<EventId>>,
    topics: u64,
    remembered: Vec<Option<Remembered>>,
}

const TOPICS: [&str; 8] = ["t.0", "t.1", "t.2", "t.3", "plain", "t.gone", "closed", "only"];

/// Everything, in the ways in which it is read; an error of any of them.
fn see(store: &RocksStore, remembered: &[EventId]) -> Result<Seen, StoreError> {
    let scan = |filter: &Filter| {
        let (mut events, mut at, tail) = (Vec::new(), 0, store.tail());
        while at < tail {
            at = store.scan(Scan { filter, after: at, upto: tail }, &mut |event| {
                events.push(owned(event));
                ControlFlow::Continue(())
            })?;
        }
        Ok::<_, StoreError>(events)
    };
    let events = scan(&Filter::all())?;
    for name in TOPICS {
        let one = filter(&[name], &[]);
        let of: Vec<_> = events.iter().filter(|e| e.topic.as_str() == name).cloned().collect();
        assert_eq!(scan(&one)?, of, "{name}: by its index as by looking through all");
        let back = store.before_last(&one, 3, store.tail())?;
        let expected = of.iter().rev().nth(2).map(|third| third.id);
        assert!(expected.is_none_or(|third| back < third && of.iter().filter(|e| e.id > back).count() == 3), "{name}");
    }
    store.before_time(events.last().map_or(0, |e| e.time))?;
    store.topics("", None, 100)?;
    let mut entries = Vec::new();
    let as_of = store.state(&Filter::all(), &mut |event| {
        entries.push(owned(event));
        ControlFlow::Continue(())
    })?;
    entries.sort_by(|a, b| (&a.topic, &a.key).cmp(&(&b.topic, &b.key)));
    Ok(Seen {
        tail: store.tail(),
        events,
        state: (as_of, entries),
        snapshots: TOPICS.iter().map(|name| store.snapshot(name)).collect::<Result<_, _>>()?,
        closed: TOPICS.iter().map(|name| store.closed_at(name)).collect(),
        topics: store.topic_count(),
        remembered: remembered.iter().map(|&id| store.remembered(digest(id))).collect::<Result<_, _>>()?,
    })
}

/// A log as a crash leaves it, and what it holds.
struct Full {
    dir: TempDir,
    seen: Seen,
    remembered: Vec<EventId>,
}

fn full() -> &'static Full {
    static FULL: OnceLock<Full> = OnceLock::new();
    FULL.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        // Each opening sorts what the one before has written into files of its own.
        let store = RocksStore::open(options(dir.path(), Durability::Sync)).unwrap();
        let next = publish(&store, 1, 30);
        store
            .put_snapshot(
                &topic("t.1"),
                &Snapshot { at: 7, content_type: "text/plain".into(), body: "bundle ".repeat(40) },
            )
            .unwrap();
        store.append(&[event(next, next, "closed", "the last")]).unwrap();
        store.close_topic(&topic("closed")).unwrap();
        store.close_topic(&topic("never")).unwrap();
        store.delete_topic(&topic("t.gone")).unwrap();
        store.close().unwrap();
        drop(store);
        // Ids that are reserved ahead, and a hole of an unclean stop.
        let store = RocksStore::open(options(dir.path(), Durability::Os)).unwrap();
        let next = publish(&store, next + 1, 20);
        let copy = crash_copy(dir.path());
        drop(store);
        let store = RocksStore::open(options(copy.path(), Durability::Os)).unwrap();
        assert!(store.tail() > next, "there is a hole");
        let first = store.tail().max(SEGMENT) + 1;
        let next = publish(&store, first, 20);
        store.tidy().unwrap();
        store.close().unwrap();
        drop(store);
        let store = RocksStore::open(options(copy.path(), Durability::Sync)).unwrap();
        // Two segments more, the first of which is sealed with trims in it.
        let next = publish(&store, next.next_multiple_of(SEGMENT) + 5, 30);
        let next = publish(&store, next.next_multiple_of(SEGMENT) + 9, 10);
        store.tidy().unwrap();
        trim(&store, &[topic_trim("plain", first + 4), log_trim(20)]);
        store.set_retention(&topic("t.2"), Some(Limits { max_events: 1000, ..Limits::default() })).unwrap();
        store.set_retention(&topic("only"), Some(Limits { max_age: 1000, ..Limits::default() })).unwrap();
        store.close().unwrap();
        drop(store);
        let store = RocksStore::open(options(copy.path(), Durability::Sync)).unwrap();
        store
            .put_snapshot(&topic("t.2"), &Snapshot { at: next - 2, content_type: "x".into(), body: "b".repeat(100) })
            .unwrap();
        let last = publish(&store, next, 12);
        let remembered: Vec<EventId> = (next..last).step_by(3).chain([1, 4]).collect();
        let seen = see(&store, &remembered).unwrap();
        assert!(
            seen.events.len() > 250 && seen.state.1.len() > 20 && seen.snapshots.iter().flatten().count() == 2,
            "{seen:?}"
        );
        let dir = crash_copy(copy.path());
        // A file that a compaction has just replaced may still lie there; nothing in it counts.
        for finding in verified(dir.path()).1.0.iter().filter(|finding| finding.what.contains("nothing names it")) {
            fs::remove_file(dir.path().join(&finding.place)).unwrap();
        }
        let tables = names(dir.path()).iter().filter(|name| name.ends_with(".sst")).count();
        assert!(tables >= 12, "{tables} tables");
        Full { dir, seen, remembered }
    })
}

/// All files by their path within, but for RocksDB's text logs.
fn names(dir: &Path) -> Vec<String> {
    crate::support::listing(dir).into_iter().map(|(name, _)| name).collect()
}

fn copied(dir: &Path) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    fs::create_dir(to.path().join("db")).unwrap();
    for name in names(dir) {
        fs::copy(dir.join(&name), to.path().join(name)).unwrap();
    }
    to
}

#[derive(Default)]
struct Found(Vec<Finding>);

impl Watch for Found {
    fn found(&mut self, finding: Finding) {
        self.0.push(finding);
    }
    fn begin(&mut self, _: &'static str, _: u64) {}
    fn advance(&mut self, _: u64) {}
}

impl Found {
    fn damage(&self) -> Vec<String> {
        self.0.iter().filter(|finding| finding.kind == Kind::Damage).map(ToString::to_string).collect()
    }
}

fn verified(dir: &Path) -> (Summary, Found) {
    let mut found = Found::default();
    let summary = verify(dir, &mut found).unwrap();
    assert_eq!(summary.damage, found.damage().len() as u64);
    (summary, found)
}

fn everything(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for at in [dir.to_path_buf(), dir.join("db")] {
        for entry in fs::read_dir(at).unwrap().flatten().filter(|entry| entry.path().is_file()) {
            files.insert(entry.path(), fs::read(entry.path()).unwrap());
        }
    }
    files
}

#[test]
fn a_sound_log_is_sound_and_no_byte_of_it_is_changed() {
    let full = full();
    let dir = copied(full.dir.path());
    let before = everything(dir.path());
    let (summary, found) = verified(dir.path());
    assert_eq!(found.damage(), [""; 0]);
    assert_eq!(summary.events, full.seen.events.len() as u64);
    assert_eq!(summary.topics, full.seen.topics);
    assert_eq!((summary.files, summary.bytes), (before.len() as u64, before.values().map(|b| b.len() as u64).sum()));
    assert!(everything(dir.path()) == before, "and nothing came to it");
    // As it is after a start, a clean stop, and with nothing in it.
    for _ in 0..2 {
        let store = RocksStore::open(options(dir.path(), Durability::Sync)).unwrap();
        assert!(
            matches!(verify(dir.path(), &mut Found::default()), Err(VerifyError::Locked { .. })),
            "a server has it"
        );
        store.tidy().unwrap();
        store.close().unwrap();
        drop(store);
        assert_eq!(verified(dir.path()).1.0, []);
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(verify(empty.path(), &mut Found::default()), Err(VerifyError::NoLog { .. })));
    drop(RocksStore::open(options(empty.path(), Durability::Sync)).unwrap());
    assert_eq!(verified(empty.path()).1.0, []);
}

/// What the tests of the whole store leave behind is what verify must take for sound: random work, stops in its midst.
#[test]
fn what_random_work_and_crashes_leave_is_sound() {
    let mut random = seeded("random work");
    for round in 0..number("VERIFY_ROUNDS", 6) {
        let mut dir = tempfile::tempdir().unwrap();
        let mut next = 1;
        for session in 0..4 {
            let durability = if random.bool() { Durability::Sync } else { Durability::Os };
            let store = RocksStore::open(options(dir.path(), durability)).unwrap();
            next = next.max(store.tail() + 1);
            for _ in 0..random.u8(3..12) {
                match random.u8(0..12) {
                    0 => trim(&store, &[log_trim(random.u64(0..next))]),
                    1 => trim(
                        &store,
                        &[topic_trim("t.1", random.u64(0..next)), topic_trim("plain", random.u64(0..next))],
                    ),
                    2 => drop(store.delete_topic(&topic(TOPICS[random.usize(..6)])).unwrap()),
                    3 => store.tidy().unwrap(),
                    4 => next = next.next_multiple_of(SEGMENT) + random.u64(0..100),
                    5 => {
                        let at = store.tail();
                        store
                            .put_snapshot(&topic("t.0"), &Snapshot { at, content_type: "x".into(), body: "y".into() })
                            .unwrap();
                    }
                    6 => drop(store.forget_keys(random.u64(0..next), 1000)),
                    7 => {
                        store.reopen().unwrap();
                        // Without `sync` it leaves a hole.
                        next = next.max(store.tail() + 1);
                    }
                    _ => next = publish(&store, next, random.u64(1..40)),
                }
            }
            let crashed = random.bool();
            let copy = crash_copy(dir.path());
            store.close().unwrap();
            drop(store);
            if crashed {
                dir = copy;
            }
            let (_, found) = verified(dir.path());
            assert_eq!(found.damage(), [""; 0], "round {round}, session {session}");
        }
    }
}

fn flip(path: &Path, bit: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).unwrap();
}

#[test]
fn every_flipped_bit_is_found() {
    let dir = copied(full().dir.path());
    let mut random = seeded("flips");
    let all = std::env::var("FLIPS").is_ok_and(|flips| flips == "all");
    let mut flips = 0;
    for name in names(dir.path()) {
        let path = dir.path().join(&name);
        let before = fs::read(&path).unwrap();
        let written = before.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 100);
        for byte in 0..before.len() {
            // The zeros ahead of the log are many and alike.
            if !all && byte > written && byte % 97 > 0 && (byte + 8) % (32 << 10) > 16 {
                continue;
            }
            let bits = if all {
                0..8
            } else {
                let bit = random.u64(0..8);
                bit..bit + 1
            };
            for bit in bits {
                let bit = byte as u64 * 8 + bit;
                flip(&path, bit);
                let mut found = Found::default();
                verify_file(dir.path(), &name, &mut found).unwrap();
                assert!(
                    !found.damage().is_empty(),
                    "{name}: bit {} of byte {byte} is not found: {:?}",
                    bit % 8,
                    found.0
                );
                let file = name.trim_start_matches("db/");
                // One that hides the newest log's name from the others is about a file that is not there.
                assert!(
                    found.damage().iter().any(|line| line.contains(file)) || file == "CURRENT",
                    "{name}: {:?}",
                    found.0
                );
                flip(&path, bit);
                flips += 1;
            }
        }
        assert!(fs::read(&path).unwrap() == before);
        let mut found = Found::default();
        verify_file(dir.path(), &name, &mut found).unwrap();
        assert_eq!(found.damage(), [""; 0], "{name}");
    }
    println!("{flips} flips found");
}

/// Opens it; `true` where all was there, `false` where it said that it is not. It must not be shorter, or anything else.
fn opens_whole_or_refuses(dir: &Path, what: &str) -> bool {
    let full = full();
    let told = |error: &StoreError| {
        let text = error.to_string();
        let names_it = [".sst", ".log", "MANIFEST", "CURRENT", "ids", "verify", "IDENTITY", "OPTIONS", "column famil"];
        assert!(names_it.iter().any(|name| text.contains(name)), "{what}: {text}");
        false
    };
    let store = match RocksStore::open(options(dir, Durability::Sync)) {
        Ok(store) => store,
        Err(error) => return told(&error),
    };
    // Twice: once as it was found, and once after the work in the background has gone over it.
    for _ in 0..2 {
        match see(&store, &full.remembered) {
            Ok(seen) => assert!(seen == full.seen, "{what}: {}", difference(&seen, &full.seen)),
            Err(error) => return told(&error),
        }
        if let Err(error) = store.tidy() {
            return told(&error);
        }
    }
    true
}

fn difference(now: &Seen, before: &Seen) -> String {
    let (a, b) = (now.events.len(), before.events.len());
    if now.events != before.events {
        return format!("{a} events of {b}");
    }
    format!("{now:?}\nwas\n{before:?}")
}

#[test]
fn a_log_with_a_flipped_bit_opens_whole_or_not_at_all() {
    let mut random = seeded("opened with a flipped bit");
    let (mut whole, mut refused) = (0, 0);
    let from = full().dir.path();
    let files: Vec<(String, u64)> = crate::support::listing(from).into_iter().filter(|(_, size)| *size > 0).collect();
    for n in 0..number("FLIPPED_OPENS", 250) {
        let dir = copied(from);
        // The files that tell of others, and the log, in every other turn.
        let (name, size) = loop {
            let (name, size) = &files[random.usize(..files.len())];
            if n % 2 == 0 || name.contains("MANIFEST") || name.contains("CURRENT") || name.ends_with(".log") {
                break (name, *size);
            }
        };
        let bytes = fs::read(dir.path().join(name)).unwrap();
        let written = bytes.iter().rposition(|&byte| byte != 0).map_or(size, |at| at as u64 + 20).min(size);
        let bit = random.u64(0..written * 8);
        flip(&dir.path().join(name), bit);
        if opens_whole_or_refuses(dir.path(), &format!("{name}, bit {} of byte {}", bit % 8, bit / 8)) {
            whole += 1;
        } else {
            refused += 1;
        }
    }
    println!("{whole} opened whole, {refused} refused");
    assert!(refused > 0);
}

/// RocksDB takes a length that does not fit into what is left of the file for a torn last write, and passes over all records behind it.
#[test]
fn no_flipped_bit_of_the_manifest_opens_a_shorter_log() {
    let mut random = seeded("manifest");
    let from = full().dir.path();
    let name = names(from).into_iter().find(|name| name.contains("MANIFEST")).unwrap();
    let bytes = fs::read(from.join(&name)).unwrap();
    let dir = copied(from);
    let path = dir.path().join(&name);
    let refused = |bits: &[u64]| {
        for &bit in bits {
            flip(&path, bit);
        }
        let Err(error) = RocksStore::open(options(dir.path(), Durability::Sync)) else { panic!("bits {bits:?}") };
        fs::write(&path, &bytes).unwrap();
        let text = error.to_string();
        assert!(text.contains("MANIFEST") && text.contains("would silently lose"), "{text}");
        text
    };
    let (mut records, mut at) = (0, 0);
    while at + 7 < bytes.len() {
        let next = at + 7 + usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
        let (first, length) = (at as u64 * 8, (at as u64 + 5) * 8 + random.u64(0..8));
        assert!(refused(&[length]).contains(&format!("bit {} of byte {} is flipped", length % 8, length / 8)));
        // What is wrong with more than a bit is no torn write either, if a record follows.
        if next < bytes.len() {
            refused(&[first + 40 + 5, first + 40 + 6, first + 40 + 7]);
        }
        (at, records) = (next, records + 1);
    }
    println!("{records} records");
    assert!(records > 10);
    // A bit of each byte, or all: it is the damage of one bit, wherever, and nothing is cut off.
    let bits = bytes.len() as u64 * 8;
    let all = std::env::var("FLIPS").is_ok_and(|flips| flips == "all");
    let some: Vec<u64> =
        (0..bits).filter(|bit| all || bit % 8 == 0).map(|bit| if all { bit } else { bit + random.u64(0..8) }).collect();
    for bit in some {
        flip(&path, bit);
        let flipped = fs::read(&path).unwrap();
        let Err(error) = RocksStore::open(options(dir.path(), Durability::Sync)) else { panic!("bit {bit}") };
        let text = error.to_string();
        assert!(text.contains(&format!("bit {} of byte {} is flipped", bit % 8, bit / 8)), "bit {bit}: {text}");
        assert!(fs::read(&path).unwrap() == flipped, "bit {bit}: something was cut off");
        flip(&path, bit);
    }
    assert!(fs::read(&path).unwrap() == bytes);
    // What is left of a last write that was torn is cut off; `torn` tears more.
    fs::write(&path, [&bytes[..], &[7, 7, 7, 7, 90, 0, 1, 2, 2]].concat()).unwrap();
    assert_eq!(verified(dir.path()).1.damage(), [""; 0]);
    fs::write(&path, &bytes).unwrap();
    assert!(opens_whole_or_refuses(dir.path(), "as it was"));
}

#[test]
fn a_file_that_is_missing_or_cut_short_is_found_and_never_a_shorter_log() {
    let mut random = seeded("cut");
    let from = full().dir.path();
    for (name, size) in crate::support::listing(from) {
        let dir = copied(from);
        let path = dir.path().join(&name);
        fs::remove_file(&path).unwrap();
        let (_, found) = verified(dir.path());
        // Nothing is lost by their going: the first two are empty, the third is made anew, and this log has gone on with durability sync, which
        // needs no ids reserved.
        let harmless = ["lock", "db/LOCK", "sums", "ids"].contains(&name.as_str());
        assert!(harmless || !found.damage().is_empty(), "{name} is missing: {:?}", found.0);
        opens_whole_or_refuses(dir.path(), &format!("{name} is missing"));

        let bytes = fs::read(from.join(&name)).unwrap();
        let written = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |at| at as u64 + 1);
        let is_wal = name.ends_with(".log");
        for _ in 0..number("CUTS", 3) {
            let len = if size == 0 { continue } else { random.u64(0..size) };
            let dir = copied(from);
            let path = dir.path().join(&name);
            fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
            let (_, found) = verified(dir.path());
            // Of the newest write-ahead log it is known where it should end only where that is within a batch.
            assert!(is_wal || !found.damage().is_empty(), "{name} cut at {len} of {size}: {:?}", found.0);
            if !is_wal || len >= written {
                opens_whole_or_refuses(dir.path(), &format!("{name} cut at {len} of {size}"));
            }
        }
    }
}

#[test]
fn a_bit_in_the_last_batch_and_the_newest_log_that_is_missing_are_refused() {
    let from = full().dir.path();
    let wal = crate::support::wal(from);
    let bytes = fs::read(&wal).unwrap();
    let written = bytes.iter().rposition(|&byte| byte != 0).unwrap() as u64;
    let name = wal.strip_prefix(from).unwrap().to_owned();
    for bit in (written - 40) * 8..(written + 1) * 8 {
        let dir = copied(from);
        flip(&dir.path().join(&name), bit);
        let Err(error) = RocksStore::open(options(dir.path(), Durability::Sync)) else { panic!("bit {bit}") };
        let text = error.to_string();
        assert!(text.contains(&format!("bit {} of byte {} is flipped", bit % 8, bit / 8)), "{text}");
        flip(&dir.path().join(&name), bit);
    }
    let dir = copied(from);
    fs::remove_file(dir.path().join(&name)).unwrap();
    let Err(error) = RocksStore::open(options(dir.path(), Durability::Sync)) else { panic!("it was opened") };
    assert!(error.to_string().contains("newest write-ahead log"), "{error}");
}

/// A change to the rows of a database, past everything that guards it.
type Change = (&'static str, &'static str, Vec<u8>, Option<Vec<u8>>);

#[test]
fn every_row_that_is_not_what_the_log_says_is_found() {
    let full = full();
    let from = copied(full.dir.path());
    // Into files, so that what is changed comes behind.
    drop(RocksStore::open(options(from.path(), Durability::Sync)).unwrap());
    let rows = |family: &str| {
        let found = std::cell::RefCell::new(Vec::new());
        let copy = copied(from.path());
        raw(copy.path(), &FAMILIES, |db| {
            for row in db.iterator_cf(db.cf_handle(family).unwrap(), rocksdb::IteratorMode::Start) {
                let (key, value) = row.unwrap();
                found.borrow_mut().push((key.to_vec(), value.to_vec()));
            }
        });
        found.into_inner()
    };
    let mut changes: Vec<Change> = Vec::new();
    for family in FAMILIES {
        let mut rows = rows(family);
        assert!(!rows.is_empty(), "{family} has no rows");
        // Those of the log that lie below its floor may be anything that can be read.
        if ["log", "idempotency"].contains(&family) {
            rows.retain(|(key, _)| key[..] > 20u64.to_be_bytes()[..]);
        }
        let some = [0, rows.len() / 2, rows.len() - 1];
        for (key, value) in some.into_iter().map(|n| rows[n].clone()) {
            // The body of a snapshot is any text.
            if !value.is_empty() && family != "snapshot" {
                changes.push(("is cut short", family, key.clone(), Some(value[..value.len() - 1].to_vec())));
            }
            changes.push(("has a key that is none", family, [&key[..], &[0xff, 0xfe]].concat(), Some(value.clone())));
        }
    }
    let log = rows("log");
    let newest = log.last().unwrap().clone();
    let in_sealed = log.iter().find(|(key, _)| key[..] > (2 * SEGMENT).to_be_bytes()[..]).unwrap().clone();
    let with = |value: &[u8], at: usize, bytes: &[u8]| {
        let mut value = value.to_vec();
        value[at..at + bytes.len()].copy_from_slice(bytes);
        Some(value)
    };
    let id = |key: &[u8]| u64::from_be_bytes(key.try_into().unwrap());
    let past = (id(&newest.0) + 1).to_be_bytes().to_vec();
    changes.extend([
        ("is missing", "log", in_sealed.0.clone(), None),
        ("is missing", "log", newest.0.clone(), None),
        ("lies past the tail", "log", past, Some(newest.1.clone())),
        ("goes back in time", "log", newest.0.clone(), with(&newest.1, 6, &1u64.to_be_bytes())),
        ("is of an unknown topic", "log", newest.0.clone(), with(&newest.1, 2, &900u32.to_be_bytes())),
        ("is of another topic", "log", in_sealed.0.clone(), with(&in_sealed.1, 2, &1u32.to_be_bytes())),
        ("is longer", "log", in_sealed.0.clone(), Some([&in_sealed.1[..], b"!"].concat())),
        ("lies where none was", "log", (id(&in_sealed.0) + 20_000).to_be_bytes().to_vec(), Some(in_sealed.1.clone())),
    ]);
    for (key, value) in rows("state").into_iter().step_by(5) {
        let older = id(&value[..8]) - 1;
        changes.push(("is missing", "state", key.clone(), None));
        changes.push(("is older", "state", key.clone(), with(&value, 0, &older.to_be_bytes())));
        changes.push(("says something else", "state", key, Some([&value[..], b"!"].concat())));
    }
    for (key, value) in rows("topic") {
        changes.push((
            "has a floor beyond the tail",
            "topic",
            key.clone(),
            with(&value, 4, &(1u64 << 40).to_be_bytes()),
        ));
        changes.push(("has a number never given", "topic", key, with(&value, 0, &900u32.to_be_bytes())));
    }
    // Number, floor, flags, and what these speak of: 4 that it is closed, 8 that it may have keys.
    let (key, value) = rows("topic").into_iter().find(|(key, _)| key == b"t.0").unwrap();
    assert_eq!(value[12], 8);
    let closed = [&value[..12], &[12], &5u64.to_be_bytes()].concat();
    changes.push(("was closed before its events", "topic", key.clone(), Some(closed)));
    changes.push(("has keys and says not", "topic", key.clone(), with(&value, 12, &[0])));
    changes.push(("has another's number", "topic", b"plain".to_vec(), Some(value)));
    changes.push(("is missing", "topic", key, None));
    for (key, value) in rows("snapshot") {
        changes.push(("is missing", "snapshot", key.clone(), None));
        changes.push(("is of another id", "snapshot", key, with(&value, 0, &1u64.to_be_bytes())));
    }
    let closed_number = rows("topic").into_iter().find(|(key, _)| key == b"closed").unwrap().1[3];
    // The last of a segment is behind everything trimmed. (Of segments, the last without a row is one that is not sealed yet.)
    changes.push(("is missing", "postings", rows("postings").last().unwrap().0.clone(), None));
    changes.push(("is missing", "segment", 1u32.to_be_bytes().to_vec(), None));
    let unshared = [3u32.to_be_bytes(), 900u32.to_be_bytes()].concat();
    changes.push((
        "is of a segment to come",
        "segment",
        900u32.to_be_bytes().to_vec(),
        Some(rows("segment")[0].1.clone()),
    ));
    changes.push((
        "is of no share",
        "postings",
        [&b"\0\0\0"[..], &[closed_number], &2u32.to_be_bytes()].concat(),
        Some(vec![1, 30]),
    ));
    changes.push((
        "is of a number never given",
        "postings",
        unshared.iter().rev().copied().collect(),
        Some(vec![1, 30]),
    ));
    let (key, value) = rows("segment").last().unwrap().clone();
    let last = value.len() - 1;
    changes.push(("counts otherwise", "segment", key.clone(), with(&value, last, &[value[last] ^ 1])));
    changes.push(("has other times", "segment", key, with(&value, 0, &1u64.to_be_bytes())));
    let (key, value) = rows("postings").last().unwrap().clone();
    changes.push(("has other bytes", "postings", key, with(&value, value.len() - 1, &[value[value.len() - 1] ^ 1])));
    let (key, value) = rows("idempotency").last().unwrap().clone();
    changes.push((
        "names what was never given",
        "idempotency",
        (1u64 << 41).to_be_bytes().to_vec(),
        Some(value.clone()),
    ));
    changes.push(("speaks of too many events", "idempotency", key.clone(), with(&value, value.len() - 1, &[9])));
    let first = rows("idempotency").into_iter().rev().nth(4).unwrap();
    changes.push(("speaks of another's events", "idempotency", first.0, with(&first.1, first.1.len() - 1, &[4])));
    changes.push(("has another time", "idempotency", key, with(&value, 33, &1u64.to_be_bytes())));
    let within = [in_sealed.0.clone(), (id(&in_sealed.0) + 1).to_be_bytes().to_vec()].concat();
    changes.push(("is where events are", "meta", b"hole".to_vec(), Some(within)));
    for name in [&b"format"[..], b"name", b"tail", b"next_topic"] {
        changes.push(("is missing", "meta", name.to_vec(), None));
    }
    for (name, value) in
        [(&b"floor"[..], &(1u64 << 40).to_be_bytes()[..]), (b"tail", &[0; 16]), (b"hole", &[9; 16]), (b"strange", b"x")]
    {
        changes.push(("is something else", "meta", name.to_vec(), Some(value.to_vec())));
    }
    let (total, mut missed, mut told) = (changes.len(), Vec::new(), std::collections::BTreeSet::new());
    for (what, family, key, value) in changes {
        let dir = copied(from.path());
        put(dir.path(), family, &key, value.as_deref());
        let (_, found) = verified(dir.path());
        if found.damage().is_empty() {
            missed.push(format!("{family}: a row {what} ({key:?}): {:?}", found.0));
        }
        told.extend(found.damage());
    }
    assert_eq!(missed, [""; 0]);
    println!("{total} changes found");
    // No check is there that none of them needs.
    for line in told {
        println!("told: {line}");
    }
}

/// Several flipped bits: each damaged block of a file is told, and the events that can be read are read.
#[test]
fn it_goes_on_behind_what_is_damaged() {
    let dir = copied(full().dir.path());
    let mut flipped = 0;
    for name in names(dir.path()).iter().filter(|name| name.ends_with(".sst")) {
        flip(&dir.path().join(name), 3);
        flipped += 1;
    }
    let (_, found) = verified(dir.path());
    let told = found.damage().iter().filter(|line| line.contains(".sst: byte 0: the checksum")).count();
    assert_eq!(told, flipped);
}

/// Many blocks to a file, so that its index is compressed, and a segment's worth of events.
#[test]
fn a_large_file_is_read_block_by_block() {
    let mut random = seeded("large");
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::open(Options::new(dir.path())).unwrap();
    for first in (1..70_000).step_by(5_000) {
        let noise = |id: u64| {
            format!("{id} {:x}{:x}", id.wrapping_mul(0x9e37_79b9_7f4a_7c15), id.wrapping_mul(0xc2b2_ae3d_27d4_eb4f))
        };
        let batch: Vec<_> =
            (first..first + 5_000).map(|id| event(id, id, &format!("t.{}", id % 50), noise(id))).collect();
        store.append(&batch).unwrap();
    }
    store.tidy().unwrap();
    store.close().unwrap();
    drop(store);
    drop(RocksStore::open(Options::new(dir.path())).unwrap());
    let (summary, found) = verified(dir.path());
    assert_eq!((found.damage(), summary.events), (vec![], 70_000));
    let files = crate::support::listing(dir.path());
    let (name, size) = files.iter().filter(|(name, _)| name.ends_with(".sst")).max_by_key(|(_, size)| *size).unwrap();
    assert!(*size > 1 << 20);
    for n in 0..400 {
        // Its index and what else is not data lie at its end.
        let bit = if n % 2 == 0 { random.u64(0..size * 8) } else { random.u64((size - 3000) * 8..size * 8) };
        flip(&dir.path().join(name), bit);
        let mut found = Found::default();
        verify_file(dir.path(), name, &mut found).unwrap();
        assert!(!found.damage().is_empty(), "bit {bit}");
        flip(&dir.path().join(name), bit);
    }
}

#[test]
fn the_command_tells_what_is_wrong_and_its_status_says_so() {
    let run = |dir: &Path| {
        let out = Command::new(env!("CARGO_BIN_EXE_tidelog")).arg("verify").arg(dir).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (out.status.code(), text(out.stdout), text(out.stderr))
    };
    let dir = copied(full().dir.path());
    let (status, out, err) = run(dir.path());
    assert_eq!((status, out.as_str()), (Some(0), ""), "{err}");
    assert!(err.contains("is sound") && err.contains("events") && err.contains("MB/s"), "{err}");

    let table = names(dir.path()).into_iter().find(|name| name.ends_with(".sst")).unwrap();
    flip(&dir.path().join(&table), 100);
    let (status, out, err) = run(dir.path());
    assert_eq!(status, Some(1), "{err}");
    assert!(out.contains(&format!("{table}: byte 0: the checksum")), "{out}");
    assert!(err.contains("DAMAGED") && err.contains("restore a backup"), "{err}");

    let nothing = tempfile::tempdir().unwrap();
    let (status, out, err) = run(nothing.path());
    assert_eq!((status, out.as_str()), (Some(2), ""));
    assert!(err.contains("holds no log"), "{err}");
    flip(&dir.path().join(&table), 100);
    let _server = RocksStore::open(options(dir.path(), Durability::Sync)).unwrap();
    let (status, _, err) = run(dir.path());
    assert_eq!(status, Some(2));
    assert!(err.contains("in use by a server"), "{err}");
}

/// So that the checks above are of what is there.
#[test]
fn the_full_log_holds_some_of_everything() {
    let full = full();
    let dir = copied(full.dir.path());
    let store = RocksStore::open(options(dir.path(), Durability::Sync)).unwrap();
    assert_eq!(state(&store, &Filter::all()), full.seen.state);
    assert!(full.seen.closed.iter().any(Option::is_some) && full.seen.remembered.iter().any(Option::is_some));
}
