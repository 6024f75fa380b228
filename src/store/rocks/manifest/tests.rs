//! What `torn` goes by, against what RocksDB does.
//!
//! - Every state that a log passes through is found whole, or a torn write to it would be refused.
//! - Nothing is found whole that is not: a database of its own, as any order of writes, flushes of single families, compactions and openings
//!   leaves it, and with a MANIFEST that is begun anew all the time, is given a MANIFEST that ends at each record that it has; where that
//!   is found whole, all is there that was written. (`tests/store/torn.rs` does the same to logs.)
//!
//! `SEED=n` repeats a run.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use rocksdb::{DB, IteratorMode, WriteBatch, WriteOptions};
use tempfile::TempDir;

use super::*;
use crate::event::{Event, NewEvent};
use crate::store::rocks::layout::FAMILIES;
use crate::store::rocks::{Options, RocksStore};
use crate::store::wal::Bad;
use crate::store::{Durability, Scan, Store};
use crate::topic::{Filter, Topic};

fn open(dir: &Path, durability: Durability) -> RocksStore {
    RocksStore::open(Options { durability, write_buffer_bytes: 64 << 10, ..Options::new(dir) }).unwrap()
}

#[allow(clippy::cast_possible_truncation)] // any bits will do
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

/// In memory where there is such a place.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// A copy of a database while it is open, once nothing moves in the background.
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
        let (copy, before) = (scratch(), list(dir));
        let copied = before.iter().all(|(name, _)| fs::copy(dir.join(name), copy.path().join(name)).is_ok());
        if copied && list(dir) == before && list(copy.path()) == before {
            return copy;
        }
    }
    panic!("it never came to rest");
}

/// As if something bad lay behind its end.
fn check(dir: &Path) -> Manifest {
    let copy = at_rest(&dir.join("db"));
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
        let dir = scratch();
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

/// What is in a database, by family and key.
type Rows = BTreeMap<(usize, Vec<u8>), Vec<u8>>;

/// The families of a log, and a MANIFEST that is begun anew when it has so many bytes.
fn open_raw(dir: &Path, manifest_bytes: usize) -> DB {
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_max_manifest_file_size(manifest_bytes);
    options.set_disable_auto_compactions(true);
    DB::open_cf(&options, dir, FAMILIES).unwrap()
}

fn rows(db: &DB) -> Rows {
    let mut rows = Rows::new();
    for (n, name) in FAMILIES.iter().enumerate() {
        for row in db.iterator_cf(db.cf_handle(name).unwrap(), IteratorMode::Start) {
            let (key, value) = row.unwrap();
            rows.insert((n, key.into()), value.into());
        }
    }
    rows
}

fn do_something(db: &DB, rows: &mut Rows, random: &mut fastrand::Rng) {
    let mut synced = WriteOptions::default();
    synced.set_sync(true);
    let family = random.usize(..FAMILIES.len());
    let handle = db.cf_handle(FAMILIES[family]).unwrap();
    match random.u8(..20) {
        0..6 => db.flush_cf(handle).unwrap(),
        6 => FAMILIES.iter().for_each(|name| db.flush_cf(db.cf_handle(name).unwrap()).unwrap()),
        7 => db.compact_range_cf(handle, None::<&[u8]>, None::<&[u8]>),
        _ => {
            let mut batch = WriteBatch::default();
            // Few families, so that the others do not hold the logs back for ever.
            for family in [family % 3, random.usize(..FAMILIES.len())].into_iter().take(random.usize(1..=2)) {
                let (key, value) = (vec![random.u8(..40)], random.u64(..).to_be_bytes().to_vec());
                batch.put_cf(db.cf_handle(FAMILIES[family]).unwrap(), &key, &value);
                rows.insert((family, key), value);
            }
            db.write_opt(batch, &synced).unwrap();
        }
    }
}

#[test]
fn what_is_found_whole_is_whole() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(2);
    println!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut whole, mut older, mut refused, mut of_ends) = (0, 0, 0, 0);
    for round in 0..24 {
        let (dir, mut written) = (scratch(), Rows::new());
        let manifest_bytes = [1 << 30, 2500, 1200, 600][round % 4];
        for _ in 0..random.u8(1..5) {
            let db = open_raw(dir.path(), manifest_bytes);
            for _ in 0..random.u8(0..24) {
                do_something(&db, &mut written, &mut random);
            }
            let copy = at_rest(dir.path());
            let file = current(copy.path()).unwrap();
            let bytes = fs::read(&file).unwrap();
            let mut ends = vec![bytes.len()];
            wal::records(&file, &mut |at, _| ends.push(usize::try_from(at).unwrap())).unwrap();
            for end in ends {
                let garbage: Vec<u8> = (0..50).map(|_| random.u8(1..)).collect();
                fs::write(&file, [&bytes[..end], &garbage].concat()).unwrap();
                let upto = match Manifest::read(copy.path()).unwrap().check_bad(copy.path()) {
                    Ok(upto) => upto.unwrap(),
                    Err(error) => {
                        assert!(end < bytes.len() || manifest_bytes < 1 << 30, "round {round}: {error}");
                        of_ends += u64::from(end == bytes.len());
                        refused += 1;
                        continue;
                    }
                };
                assert_eq!(upto, end as u64);
                let opened = at_rest(copy.path());
                let shorter = opened.path().join(file.file_name().unwrap());
                fs::File::options().write(true).open(shorter).unwrap().set_len(upto).unwrap();
                assert!(rows(&open_raw(opened.path(), 1 << 30)) == written, "round {round}, {upto} of {}", bytes.len());
                whole += 1;
                older += u64::from(end < bytes.len());
            }
        }
    }
    println!("{whole} whole, {older} of them without some records that are; {refused} refused, {of_ends} without any");
    assert!(older > 10 && refused > 100, "{whole} whole, {older} older, {refused} refused");
}
