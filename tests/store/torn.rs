//! The MANIFEST with an end that makes no sense: the log opens with all that was there, or it is refused.
//!
//! - What a power cut may leave of an append to it is cut off: the append torn at every sector, each sector there or not, the other
//!   files as before it, or with the tables that it names beside them. (Appends of several records are torn in `tests/power`.) So is a
//!   record that reaches over blocks, from where it begins.
//! - Where a table or a write-ahead log is gone that what lies before the bad end needs, the log is refused, and nothing is cut off.
//! - Wherever a MANIFEST stops making sense, be it long ago and its logs and tables gone since, the log is never shorter than it was.
//!   This tries every record of the MANIFEST at many moments of a log's life, with and without `sync`.
//! - A single flipped bit is never taken for a torn end, at none of these moments (every bit of one MANIFEST: `verify`).
//!
//! `SEED=n` repeats a run (but for how the threads of RocksDB fall), `TORN_ROUNDS=n` makes it longer.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tidelog::event::{Event, EventId};
use tidelog::store::rocks::verify::{Kind, verify};
use tidelog::store::rocks::{Options, RocksStore};
use tidelog::store::{Durability, Store, StoreError};
use tidelog::topic::Filter;

use crate::support::{Found, copied, crash_copy, event, keyed, listing, log_trim, number, read, scratch, state, trim};

const SECTOR: usize = 512;

fn seeded(seed: u64) -> fastrand::Rng {
    let seed = number("SEED", seed);
    println!("SEED={seed}");
    fastrand::Rng::with_seed(seed)
}

fn open(dir: &Path, durability: Durability) -> Result<RocksStore, StoreError> {
    RocksStore::open(Options { durability, write_buffer_bytes: 64 << 10, ..Options::new(dir) })
}

fn publish(store: &RocksStore, random: &mut fastrand::Rng) {
    let first = store.tail() + 1;
    let events: Vec<Event> = (first..first + random.u64(1..50))
        .map(|id| {
            let data: String = (0..random.usize(1..1000)).map(|_| random.alphanumeric()).collect();
            if id % 3 == 0 { keyed(id, "keyed", &format!("k{}", id % 7), data) } else { event(id, id, "plain", data) }
        })
        .collect();
    store.append(&events).unwrap();
}

fn one_step(store: &RocksStore, random: &mut fastrand::Rng) {
    match random.u8(0..12) {
        0 => store.tidy().unwrap(),
        1 => trim(store, &[log_trim(random.u64(0..=store.tail() / 2))]),
        _ => publish(store, random),
    }
}

type Seen = (Vec<Event>, (EventId, Vec<Event>));

fn see(store: &RocksStore) -> Seen {
    let (_, entries) = state(store, &Filter::all());
    (read(store, &Filter::all(), 0, store.tail()), (0, entries))
}

fn manifest(dir: &Path) -> PathBuf {
    dir.join("db").join(fs::read_to_string(dir.join("db/CURRENT")).unwrap().trim_end())
}

/// What is said of the MANIFEST: damage, and notes.
fn verified(dir: &Path) -> (Vec<String>, Vec<String>) {
    let before = fs::read(manifest(dir)).unwrap();
    let mut found = Found::default();
    verify(dir, &mut found).unwrap();
    assert!(fs::read(manifest(dir)).unwrap() == before, "verify changed it");
    let of =
        |kind| found.0.iter().filter(move |f| f.kind == kind && f.place.contains("MANIFEST")).map(ToString::to_string);
    (of(Kind::Damage).collect(), of(Kind::Note).collect())
}

/// Where each record of a MANIFEST that fits into one block begins, and its end.
fn beginnings(bytes: &[u8]) -> Vec<usize> {
    assert!(bytes.len() < 32 << 10);
    let mut all = vec![0];
    while let Some(&at) = all.last().filter(|&&at| at + 7 <= bytes.len()) {
        all.push(at + 7 + usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]])));
    }
    all
}

/// A record of a MANIFEST at `offset`, in fragments where it reaches over blocks.
fn record(mut offset: usize, mut payload: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 32 << 10;
    let (mut bytes, mut is_first) = (Vec::new(), true);
    loop {
        let room = BLOCK - offset % BLOCK;
        assert!(room > 7, "a record that begins behind padding is not needed here");
        let (here, rest) = payload.split_at(payload.len().min(room - 7));
        let kind = match (is_first, rest.is_empty()) {
            (true, true) => 1,
            (true, false) => 2,
            (false, false) => 3,
            (false, true) => 4,
        };
        let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind]), here).rotate_right(15).wrapping_add(0xa282_ead8);
        let length = u16::try_from(here.len()).unwrap();
        bytes.extend(crc.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.push(kind);
        bytes.extend(here);
        if rest.is_empty() {
            return bytes;
        }
        (offset, payload, is_first) = (offset + 7 + here.len(), rest, false);
    }
}

/// An append to a MANIFEST of one record: the log before it, and after.
struct Append {
    before: TempDir,
    seen: Seen,
    after: TempDir,
}

fn appends(random: &mut fastrand::Rng, wanted: usize) -> Vec<Append> {
    let dir = scratch();
    let mut all = Vec::new();
    // A step in some five makes one.
    for n in 0..wanted * 20 {
        let store = open(dir.path(), Durability::Sync).unwrap();
        let mut before = crash_copy(dir.path());
        for _ in 0..10 {
            let seen = see(&store);
            one_step(&store, random);
            let after = crash_copy(dir.path());
            let [old, new] = [&before, &after].map(|dir| fs::read(manifest(dir.path())).unwrap());
            let is_same = manifest(before.path()).file_name() == manifest(after.path()).file_name();
            // Of several records it is not known whether they were one append; what the first names may be gone after the last.
            if is_same && beginnings(&new).len() == beginnings(&old).len() + 1 {
                assert!(new.starts_with(&old));
                let kept = copied(after.path());
                all.push(Append { before, seen, after: kept });
                if all.len() >= wanted {
                    return all;
                }
            }
            before = after;
        }
        if n % 2 == 0 {
            store.close().unwrap();
        }
    }
    panic!("only {} appends", all.len());
}

#[test]
fn a_torn_append_is_cut_off_and_nothing_is_lost() {
    let mut random = seeded(0x746f_726e);
    let (mut torn, mut like_a_flip) = (0, 0);
    let rounds = number("TORN_ROUNDS", 6);
    for append in appends(&mut random, usize::try_from(rounds).unwrap()) {
        let [old, new] = [&append.before, &append.after].map(|dir| fs::read(manifest(dir.path())).unwrap());
        let (first, last) = (old.len() / SECTOR, (new.len() - 1) / SECTOR);
        let sectors = u32::try_from(last - first + 1).unwrap();
        // Each sector there or not, as its size is; all of them, where they are few.
        let patterns: BTreeSet<u64> = match sectors {
            1..=3 => (0..(1 << sectors) - 1).collect(),
            _ => (0..8).map(|_| random.u64(0..(1 << sectors) - 1)).collect(),
        };
        let zeroed = |there: &dyn Fn(usize) -> bool| {
            let mut bytes = new.clone();
            (old.len()..new.len()).filter(|&at| !there(at)).for_each(|at| bytes[at] = 0);
            bytes
        };
        let mut ends: Vec<Vec<u8>> =
            patterns.into_iter().map(|pattern| zeroed(&|at| pattern >> (at / SECTOR - first) & 1 == 1)).collect();
        // And half of it, whatever a disk's unit is; or bytes that were there before.
        let middle = usize::midpoint(old.len(), new.len());
        ends.extend([zeroed(&|at| at < middle), zeroed(&|at| at >= middle), new[..middle].to_vec()]);
        ends.push([&old[..], &(0..200).map(|_| random.u8(..)).collect::<Vec<_>>()].concat());
        for (n, end) in ends.into_iter().enumerate() {
            let dir = copied(append.before.path());
            let path = manifest(dir.path());
            for (name, _) in listing(append.after.path()) {
                if dir.path().join(&name).exists() {
                    continue;
                }
                // A log is made before a record speaks of it. The tables that were begun are there, or not.
                match Path::new(&name).extension().and_then(|e| e.to_str()) {
                    Some("log") => fs::write(dir.path().join(&name), "").unwrap(),
                    Some("sst") if n % 2 == 1 => {
                        let _ = fs::copy(append.after.path().join(&name), dir.path().join(&name)).unwrap();
                    }
                    _ => {}
                }
            }
            fs::write(&path, &end).unwrap();
            let (damage, notes) = verified(dir.path());
            // Where all that is lost of a record is one set bit, it is taken for a flipped one: see `store::wal`.
            if damage.iter().any(|line| line.contains("is flipped, which is all")) {
                assert!(open(dir.path(), Durability::Sync).is_err());
                like_a_flip += 1;
                continue;
            }
            assert_eq!(damage, [""; 0], "end {n}");
            torn += u64::from(!notes.is_empty());
            let store = open(dir.path(), Durability::Sync).unwrap_or_else(|error| panic!("end {n}: {error}"));
            assert!(see(&store) == append.seen, "end {n}");
            store.tidy().unwrap();
            assert!(see(&store) == append.seen, "end {n}, tidied");
            drop(store);
            assert_eq!(verified(dir.path()), (vec![], vec![]), "end {n}");
        }
    }
    println!("{torn} torn ends, {like_a_flip} like a flipped bit");
    assert!(like_a_flip * 20 < torn, "{like_a_flip}");
    assert!(torn > rounds * 2, "{torn}");
}

#[test]
fn a_torn_append_of_a_log_that_lacks_a_file_is_refused() {
    let mut random = seeded(3);
    let (mut logs, mut tables) = (0, 0);
    // How many tables there are at an append is as far as the flushes in the background have come: some four have six in most runs.
    for _ in 0..40 {
        if logs > 3 && tables > 6 {
            return;
        }
        let append = appends(&mut random, 1).remove(0);
        let old = fs::read(manifest(append.before.path())).unwrap();
        let files = listing(append.before.path());
        let is_log = |name: &&String| Path::new(name).extension().is_some_and(|e| e == "log");
        let is_table = |name: &&String| Path::new(name).extension().is_some_and(|e| e == "sst");
        let names = || files.iter().map(|(name, _)| name);
        let mut found = Found::default();
        verify(append.before.path(), &mut found).unwrap();
        let is_named =
            |name: &&String| !found.0.iter().any(|f| f.place == **name && f.what.contains("nothing names it"));
        let mut gone: Vec<&String> = names().filter(is_table).filter(is_named).collect();
        tables += gone.len();
        let newest = names().filter(is_log).max().unwrap();
        gone.push(newest);
        logs += 1;
        for name in gone {
            let dir = copied(append.before.path());
            fs::write(manifest(dir.path()), [&old[..], &[0x5a; 100]].concat()).unwrap();
            // Gone, or cut short.
            let file = dir.path().join(name);
            if is_table(&name) && random.bool() {
                fs::File::options().write(true).open(&file).unwrap().set_len(100).unwrap();
            } else {
                fs::remove_file(&file).unwrap();
            }
            let Err(error) = open(dir.path(), Durability::Sync) else { panic!("it was opened without {name}") };
            let text = error.to_string();
            assert!(text.contains("would silently") && text.contains("backup"), "{text}");
            assert!(fs::read(manifest(dir.path())).unwrap().len() == old.len() + 100, "and nothing was cut off");
        }
    }
    panic!("{logs} logs and {tables} tables");
}

/// No part of a change that is made as a whole or not at all. (RocksDB makes such where it flushes families together, which logs are not.)
#[test]
fn a_change_that_is_torn_between_its_records_is_refused() {
    const LEFT_OF_GROUP: [u8; 2] = [0xac, 0x02];
    let mut random = seeded(5);
    let append = appends(&mut random, 1).remove(0);
    let old = fs::read(manifest(append.before.path())).unwrap();
    for left in [0, 1] {
        let dir = copied(append.before.path());
        let part = record(old.len(), &[LEFT_OF_GROUP[0], LEFT_OF_GROUP[1], left]);
        fs::write(manifest(dir.path()), [&old[..], &part, &[0x5a; 100]].concat()).unwrap();
        let opened = open(dir.path(), Durability::Sync);
        assert_eq!(opened.is_ok(), left == 0, "{:?}", opened.err());
        assert!(opened.is_ok() || !verified(dir.path()).0.is_empty());
    }
}

/// RocksDB passes over fields of a kind that it does not know, if that kind says so: a large one makes a record of several fragments.
#[test]
fn a_torn_record_of_many_blocks_is_cut_off_where_it_begins() {
    const UNKNOWN: [u8; 2] = [0xe4, 0x47];
    let mut random = seeded(4);
    let append = appends(&mut random, 1).remove(0);
    let old = fs::read(manifest(append.before.path())).unwrap();
    let text = vec![7; 100_000];
    let field = [&UNKNOWN[..], &[0xa0, 0x8d, 0x06], &text].concat();
    let large = record(old.len(), &field);
    assert!(large.len() > field.len() + 21, "there are four fragments or more");
    let write = |bytes: &[u8]| {
        let dir = copied(append.before.path());
        fs::write(manifest(dir.path()), [&old[..], bytes].concat()).unwrap();
        dir
    };
    let dir = write(&large);
    assert_eq!(verified(dir.path()), (vec![], vec![]), "whole, it is a record like any");
    assert!(see(&open(dir.path(), Durability::Sync).unwrap()) == append.seen);
    for n in 0..20 {
        let mut torn = large.clone();
        let at = random.usize(10..large.len() - 10);
        match n % 4 {
            0 => torn.truncate(at),
            1 => torn[at..].fill(0),
            2 => torn[..at].fill(0),
            _ => torn[at - 9..at + 9].fill(0),
        }
        let dir = write(&torn);
        let path = manifest(dir.path());
        let (damage, notes) = verified(dir.path());
        assert_eq!(damage, [""; 0], "{n} at {at}");
        assert!(
            notes.iter().any(|note| note.contains(&format!("cuts the file off at byte {}", old.len()))),
            "{notes:?}"
        );
        // RocksDB goes on in a MANIFEST of its own, and takes this one away; another name for it shows what was left.
        let kept = dir.path().join("kept");
        fs::hard_link(&path, &kept).unwrap();
        assert!(see(&open(dir.path(), Durability::Sync).unwrap()) == append.seen, "{n} at {at}");
        assert!(fs::read(&kept).unwrap() == old, "{n} at {at}");
    }
}

/// Damage that no power cut leaves: any record, however long ago it was relied on, and all behind it.
#[test]
fn wherever_it_stops_making_sense_the_log_is_not_shorter() {
    let mut random = seeded(0x6f6c_6465);
    let (mut whole, mut refused, mut flips) = (0, 0, 0);
    let rounds = number("TORN_ROUNDS", 6);
    for round in 0..rounds {
        let durability = if round % 2 == 0 { Durability::Sync } else { Durability::Os };
        let dir = scratch();
        // The first MANIFEST is written family by family.
        for _ in 0..random.u8(0..3) {
            let store = open(dir.path(), durability).unwrap();
            (0..random.u8(0..20)).for_each(|_| one_step(&store, &mut random));
        }
        let store = open(dir.path(), durability).unwrap();
        (0..random.u8(0..30)).for_each(|_| one_step(&store, &mut random));
        let (copy, seen) = (crash_copy(dir.path()), see(&store));
        drop(store);
        let bytes = fs::read(manifest(copy.path())).unwrap();
        let records = beginnings(&bytes);
        for pair in records.windows(2) {
            let &[at, next] = pair else { unreachable!() };
            let mut bad = bytes.clone();
            match random.u8(..3) {
                0 => bad[at..next].fill(0),
                1 => bad[at..].fill_with(|| random.u8(..)),
                _ => bad[at + 7..next].fill_with(|| random.u8(..)),
            }
            let dir = copied(copy.path());
            fs::write(manifest(dir.path()), &bad).unwrap();
            let (damage, _) = verified(dir.path());
            match open(dir.path(), durability) {
                Ok(store) => {
                    assert!(see(&store) == seen, "round {round}, byte {at} of {}", bytes.len());
                    assert_eq!(damage, [""; 0]);
                    whole += 1;
                }
                Err(error) => {
                    assert!(error.to_string().contains("MANIFEST"), "{error}");
                    assert!(!damage.is_empty(), "{error}");
                    refused += 1;
                }
            }
            let path = manifest(copy.path());
            for bit in
                [random.usize(at * 8..(at + 7) * 8), random.usize(at * 8..next * 8), random.usize(at * 8..next * 8)]
            {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                fs::write(&path, &bad).unwrap();
                let Err(error) = open(copy.path(), durability) else { panic!("round {round}, bit {bit} is flipped") };
                let told = format!("bit {} of byte {} is flipped", bit % 8, bit / 8);
                assert!(error.to_string().contains(&told), "round {round}, {told}: {error}");
                assert!(fs::read(&path).unwrap() == bad, "round {round}, {told}, and something was cut off");
                flips += 1;
            }
            fs::write(&path, &bytes).unwrap();
        }
    }
    println!("{whole} whole, {refused} refused; {flips} flipped bits refused");
    // How many are whole depends on what RocksDB did meanwhile; hardly ever none.
    assert!(whole > 0 && refused > rounds * 5, "{whole} whole, {refused} refused");
}
