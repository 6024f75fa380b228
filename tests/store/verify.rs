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

mod flips;
mod full;
mod rows;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;
use tidelog::event::{Digest, Event, EventId};
use tidelog::store::rocks::verify::{Kind, Summary, VerifyError, verify, verify_file};
use tidelog::store::rocks::{Options, RocksStore};
use tidelog::store::{Durability, Limits, Remembered, Scan, Snapshot, Store, StoreError};
use tidelog::topic::Filter;

use crate::support::{
    FAMILIES, Found, copied, crash_copy, event, filter, keyed, log_trim, number, owned, put, raw, state, topic,
    topic_trim, trim,
};

use self::flips::{flip, opens_whole_or_refuses};
use self::full::{Seen, TOPICS, full, options, publish, see};

const SEGMENT: u64 = 1 << 16;

/// Where a run of random choices begins; printed, so that it can be repeated.
fn seeded(what: &str) -> fastrand::Rng {
    let seed = number("SEED", 0x7469_6465);
    println!("{what}: SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

/// All files by their path within, but for RocksDB's text logs.
fn names(dir: &Path) -> Vec<String> {
    crate::support::listing(dir).into_iter().map(|(name, _)| name).collect()
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

/// A change to the rows of a database, past everything that guards it.
type Change = (&'static str, &'static str, Vec<u8>, Option<Vec<u8>>);

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
