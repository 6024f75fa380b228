//! What `torn` goes by, against what RocksDB does: every state that a log passes through must be found whole, or a torn write to it
//! would be refused. That nothing else is found whole is proved in `tests/store/torn.rs`.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::event::{Event, NewEvent};
use crate::store::rocks::{Options, RocksStore};
use crate::store::wal::Bad;
use crate::store::{Durability, Scan, Store};
use crate::topic::{Filter, Topic};

fn open(dir: &Path, durability: Durability) -> RocksStore {
    RocksStore::open(Options { durability, write_buffer_bytes: 64 << 10, ..Options::new(dir) }).unwrap()
}

fn publish(store: &RocksStore, events: u64, bytes: usize) {
    let first = store.tail() + 1;
    let batch: Vec<Event> = (first..first + events)
        .map(|id| {
            let topic = Topic::parse(["a", "b", "c"][usize::try_from(id % 3).unwrap()]).unwrap();
            // What does not compress.
            let data =
                (0..bytes / 8).map(|n| format!("{:08x}", id.wrapping_mul(0x9e37_79b9).rotate_left(n as u32) as u32));
            Event::new(id, id, NewEvent { topic, event: None, key: None, data: data.collect() })
        })
        .collect();
    store.append(&batch).unwrap();
}

/// A copy while the store is open, once nothing moves in the background.
fn at_rest(dir: &Path) -> TempDir {
    let list = |dir: &Path| {
        let entries = fs::read_dir(dir)
            .unwrap()
            .flatten()
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with("LOG"));
        let mut all: Vec<_> =
            entries.filter_map(|entry| Some((entry.file_name(), entry.metadata().ok()?.len()))).collect();
        all.sort();
        all
    };
    for _ in 0..1000 {
        let (copy, before) = (tempfile::tempdir().unwrap(), list(&dir.join("db")));
        let copied = before.iter().all(|(name, _)| fs::copy(dir.join("db").join(name), copy.path().join(name)).is_ok());
        if copied && list(&dir.join("db")) == before && list(copy.path()) == before {
            return copy;
        }
    }
    panic!("it never came to rest");
}

/// As if something bad lay behind its end.
fn check(dir: &Path) -> Manifest {
    let copy = at_rest(dir);
    let mut manifest = Manifest::read(copy.path()).unwrap();
    assert_eq!(manifest.bad, None);
    assert_eq!(manifest.check_bad(copy.path()).unwrap(), None);
    let place = Place { file: manifest.file.clone(), offset: manifest.bytes, what: Bad::Checksum };
    (manifest.bad, manifest.bad_since) = (Some(place), manifest.bytes);
    match manifest.check_bad(copy.path()) {
        Ok(upto) => assert_eq!(upto, Some(manifest.bytes)),
        Err(error) => panic!("{error}\n{manifest:?}\n{:?}", wal::beginnings(copy.path())),
    }
    manifest
}

#[test]
fn every_state_that_a_log_passes_through_is_whole() {
    let mut random = fastrand::Rng::with_seed(7);
    for durability in [Durability::Sync, Durability::Os] {
        let dir = tempfile::tempdir().unwrap();
        let (mut by_name, mut by_start) = (0, 0);
        for session in 0..12 {
            let store = open(dir.path(), durability);
            let manifest = check(dir.path());
            // The log of a start has the number before its MANIFEST's, and no column family has it for its own.
            let of_start = manifest.number().unwrap() - 1;
            assert!(dir.path().join(format!("db/{of_start:06}.log")).exists());
            assert!(manifest.begun.unwrap().log_number < of_start, "{manifest:?}");
            for _ in 0..random.u64(0..12) {
                match random.u8(0..8) {
                    0 => store.tidy().unwrap(),
                    1 => store.reopen().unwrap(),
                    2 => publish(&store, 1, 8),
                    // Some of them fill a write buffer, and two of those the write-ahead log.
                    _ => publish(&store, random.u64(1..200), 1000),
                }
                let manifest = check(dir.path());
                if dir.path().join(format!("db/{:06}.log", manifest.min_wal)).exists() {
                    by_name += 1;
                } else {
                    by_start += 1;
                }
            }
            if session % 2 == 0 {
                store.close().unwrap();
            }
            let (mut events, tail, mut at) = (0, store.tail(), 0);
            while session % 2 > 0 && at < tail {
                at = store
                    .scan(Scan { filter: &Filter::all(), after: at, upto: tail }, &mut |_| {
                        events += 1;
                        ControlFlow::Continue(())
                    })
                    .unwrap();
            }
        }
        assert!(by_name > 5 && by_start > 5, "{durability:?}: {by_name} by name, {by_start} by start");
    }
}
