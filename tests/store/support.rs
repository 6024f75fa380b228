//! What the tests of the store share: events, filters, directories as a crash leaves them.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tidelog::event::{Event, EventId, EventRef, EventType, Key, Millis, NewEvent};
use tidelog::store::rocks::verify::{Finding, Watch};
use tidelog::store::rocks::{Options, RocksStore};
use tidelog::store::{Durability, Scan, Store, Trim};
use tidelog::topic::{Filter, Pattern, Topic};

/// All column families.
pub const FAMILIES: [&str; 8] = ["log", "state", "topic", "snapshot", "idempotency", "postings", "segment", "meta"];

pub fn topic(name: &str) -> Topic {
    Topic::parse(name).unwrap()
}

/// A filter from patterns and types; the type `""` stands for none.
pub fn filter(patterns: &[&str], types: &[&str]) -> Filter {
    let patterns = patterns.iter().map(|p| Pattern::parse(p).unwrap()).collect();
    Filter::new(patterns, types.iter().map(|t| EventType::parse(t).unwrap()).collect())
}

pub fn event(id: EventId, time: Millis, topic_name: &str, data: impl Into<String>) -> Event {
    Event::new(id, time, NewEvent { topic: topic(topic_name), event: None, key: None, data: data.into() })
}

/// An event with a key; without data it takes the key away.
pub fn keyed(id: EventId, topic_name: &str, key: &str, data: impl Into<String>) -> Event {
    Event { key: Some(Key::parse(key).unwrap()), ..event(id, id, topic_name, data) }
}

/// The id at which the state of a filter is true, and its entries by topic and key.
pub fn state(store: &dyn Store, filter: &Filter) -> (EventId, Vec<Event>) {
    let mut entries = Vec::new();
    let as_of = store.state(filter, &mut |event| {
        entries.push(owned(event));
        ControlFlow::Continue(())
    });
    entries.sort_by(|a, b| (&a.topic, &a.key).cmp(&(&b.topic, &b.key)));
    (as_of.unwrap(), entries)
}

pub fn owned(event: &EventRef<'_>) -> Event {
    let new = NewEvent {
        topic: topic(event.topic),
        event: event.event.and_then(|t| EventType::parse(t).unwrap()),
        key: event.key.map(|k| Key::parse(k).unwrap()),
        data: event.data.into(),
    };
    Event::new(event.id, event.time, new)
}

/// Every matching event with `after < id <= upto`, in as many scans as it takes.
pub fn read(store: &dyn Store, filter: &Filter, after: EventId, upto: EventId) -> Vec<Event> {
    let (mut found, mut at) = (Vec::new(), after);
    while at < upto {
        let came = store
            .scan(Scan { filter, after: at, upto }, &mut |event| {
                found.push(owned(event));
                ControlFlow::Continue(())
            })
            .unwrap();
        assert!(at < came && came <= upto, "a scan moves on, and no further than it was asked: {at} {came} {upto}");
        at = came;
    }
    found
}

pub fn ids(store: &dyn Store, patterns: &[&str]) -> Vec<EventId> {
    read(store, &filter(patterns, &[]), 0, store.tail()).iter().map(|e| e.id).collect()
}

pub fn open(dir: &Path, durability: Durability) -> RocksStore {
    RocksStore::open(Options { durability, ..Options::new(dir) }).unwrap()
}

/// Trims as the sequencer does: the floors, whom they concern, what they hid.
pub fn trim(store: &dyn Store, trims: &[Trim]) {
    store.raise_floors(trims).unwrap();
    store.floors_published();
    store.settle().unwrap();
}

pub fn log_trim(upto: EventId) -> Trim {
    Trim { topic: None, upto }
}

pub fn topic_trim(name: &str, upto: EventId) -> Trim {
    Trim { topic: Some(topic(name)), upto }
}

/// The files under `dir` and their sizes, but for RocksDB's own text log.
pub fn listing(dir: &Path) -> Vec<(String, u64)> {
    let mut list = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
        if path.is_dir() {
            list.extend(listing(&path).into_iter().map(|(inner, size)| (format!("{name}/{inner}"), size)));
        } else if !name.starts_with("LOG") {
            // A file may go between the listing and here; then it is no part of it.
            list.extend(fs::metadata(&path).map(|m| (name, m.len())));
        }
    }
    list.sort();
    list
}

/// What a disk would hold if the power went now and every write so far had reached it: a copy, made while the store is open.
pub fn crash_copy(dir: &Path) -> TempDir {
    // What runs in the background ends by itself, as nothing is written meanwhile.
    for _ in 0..1000 {
        let copy = scratch();
        let before = listing(dir);
        let copied = before.iter().all(|(name, _)| {
            let to = copy.path().join(name);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(dir.join(name), to).is_ok()
        });
        if copied && listing(dir) == before && listing(copy.path()) == before {
            return copy;
        }
    }
    panic!("the directory never came to rest");
}

/// Bytes of all files under `dir`, as the file system counts them.
pub fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.metadata() {
            Ok(meta) if meta.is_dir() => sum += disk_bytes(&entry.path()),
            Ok(meta) => sum += meta.blocks() * 512,
            Err(_) => {}
        }
    }
    sum
}

/// The newest write-ahead log.
pub fn wal(dir: &Path) -> PathBuf {
    let logs = listing(dir)
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| Path::new(name).extension().is_some_and(|e| e == "log"));
    dir.join(logs.max().unwrap())
}

/// The database itself, past everything that guards it.
pub fn raw(dir: &Path, families: &[&str], work: impl Fn(&rocksdb::DB)) {
    let mut options = rocksdb::Options::default();
    options.create_missing_column_families(true);
    let db = rocksdb::DB::open_cf(&options, dir.join("db"), families).unwrap();
    work(&db);
}

pub fn put(dir: &Path, family: &str, key: &[u8], value: Option<&[u8]>) {
    raw(dir, &FAMILIES, |db| {
        let family = db.cf_handle(family).unwrap();
        match value {
            Some(value) => db.put_cf(family, key, value).unwrap(),
            None => db.delete_cf(family, key).unwrap(),
        }
    });
}

/// How many rows a column family has; nobody has the directory open.
pub fn rows(dir: &Path, family: &str) -> usize {
    let count = std::cell::Cell::new(0);
    raw(dir, &FAMILIES, |db| {
        count.set(db.iterator_cf(db.cf_handle(family).unwrap(), rocksdb::IteratorMode::Start).count());
    });
    count.get()
}

/// A directory in memory where there is such a place: file systems on disks are slow to make names whose like were taken away just now, and
/// the copies that tests look at are thousands.
pub fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// A copy of a log that nobody has open, without RocksDB's text logs.
pub fn copied(dir: &Path) -> TempDir {
    let to = scratch();
    fs::create_dir(to.path().join("db")).unwrap();
    for (name, _) in listing(dir) {
        fs::copy(dir.join(&name), to.path().join(name)).unwrap();
    }
    to
}

/// What verifying has found.
#[derive(Default)]
pub struct Found(pub Vec<Finding>);

impl Watch for Found {
    fn found(&mut self, finding: Finding) {
        self.0.push(finding);
    }
    fn begin(&mut self, _: &'static str, _: u64) {}
    fn advance(&mut self, _: u64) {}
}

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}
