//! What the benches share: events to append, a bare RocksDB to compare with, and ratios taken in turn.
//!
//! A figure in events a second is the machine's; a ratio to the limit beside it, measured in turn in one run, is the program's.

// Every bench is a program of its own, and none uses all of this.
#![allow(dead_code)]
// Ratios and rates are printed with three digits.
#![allow(clippy::cast_precision_loss)]

use std::fs::File;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::time::{Duration, Instant};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, WaitForCompactOptions, WriteBatch,
    WriteOptions,
};
use tempfile::TempDir;
use tidelog::event::{Event, EventId, EventRef};
use tidelog::record::Record;
use tidelog::store::rocks::{Options, RocksStore};
use tidelog::store::{Durability, Scan, Store};
use tidelog::topic::{Filter, Pattern, Topic};

/// Events that are copied in one write.
const COPIED_AT_ONCE: usize = 500;

/// A directory on the disk that `TMPDIR` names; gone when dropped.
pub fn dir() -> TempDir {
    tempfile::tempdir().expect("a directory for the bench")
}

/// A directory in `parent`; gone when dropped.
pub fn dir_in(parent: &Path) -> TempDir {
    tempfile::tempdir_in(parent).expect("a directory for the bench")
}

pub fn topic(name: &str) -> Topic {
    Topic::parse(name).expect("the benches name valid topics")
}

pub fn filter(pattern: &str) -> Filter {
    Filter::new(vec![Pattern::parse(pattern).expect("the benches name valid patterns")], Vec::new())
}

/// `t0`, `t1` and so on.
pub fn topics(n: usize) -> Vec<Topic> {
    (0..n).map(|i| topic(&format!("t{i}"))).collect()
}

/// Text that LZ4 shortens about as far as it does JSON: half of it repeats.
pub fn text(bytes: usize, seed: u64) -> String {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut text = String::with_capacity(bytes + 32);
    while text.len() < bytes {
        text.push_str("\"some_member\": ");
        text.extend(std::iter::repeat_with(|| random.alphanumeric()).take(15));
    }
    text.truncate(bytes);
    text
}

/// Events of `bytes` each with these ids, on topics that `topic` chooses. The data is one of 64 texts, so that making it costs little.
pub fn events(ids: Range<EventId>, bytes: usize, topic: impl Fn(EventId) -> Topic) -> Vec<Event> {
    let texts: Vec<String> = (0..64).map(|seed| text(bytes, seed)).collect();
    let event = |id: EventId| Event {
        id,
        topic: topic(id),
        event: None,
        key: None,
        time: 1_795_341_600_000 + id / 100,
        data: texts[usize::try_from(id % 64).unwrap_or(0)].clone(),
    };
    ids.map(event).collect()
}

/// The record of `event` as the log would hold it.
pub fn record(event: &Event) -> Vec<u8> {
    let mut out = Vec::new();
    Record { topic: 1, time: event.time, event: None, key: None, data: &event.data }.encode(&mut out);
    out
}

/// A log that holds `count` events, opened anew so that all of it was read back from the disk's files.
pub fn filled(dir: &TempDir, count: EventId, bytes: usize, topic: impl Fn(EventId) -> Topic) -> RocksStore {
    let options = Options { durability: Durability::Os, ..Options::new(dir.path()) };
    let store = RocksStore::open(options).expect("a new log");
    let mut first = 1;
    while first <= count {
        let next = (first + 8192).min(count + 1);
        store.append(&events(first..next, bytes, &topic)).expect("an append");
        first = next;
        store.tidy().expect("sealing");
    }
    store.close().expect("closing");
    drop(store);
    RocksStore::open(Options::new(dir.path())).expect("the log again")
}

/// Forgets what the system holds in memory of a database's files.
pub struct Pages(Vec<File>);

impl Pages {
    pub fn of(dir: &Path) -> Self {
        let files = std::fs::read_dir(dir).expect("a log").map(|entry| entry.expect("a file").path());
        let files: Vec<_> = files.map(|path| File::open(path).expect("a file of the log")).collect();
        for file in &files {
            file.sync_all().expect("what is written is on the disk");
        }
        Self(files)
    }

    pub fn forget(&self) {
        for file in &self.0 {
            rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).expect("advice is taken");
        }
    }
}

/// Bare RocksDB with one column family set up like the log's: the limit.
pub struct Bare {
    db: DB,
    sync: WriteOptions,
    next: u64,
    dir: TempDir,
}

impl Bare {
    pub fn open() -> Self {
        Self::of(dir())
    }

    /// On the disk that `parent` is on.
    pub fn within(parent: &Path) -> Self {
        Self::of(dir_in(parent))
    }

    fn of(dir: TempDir) -> Self {
        let db = Self::open_in(&dir);
        let mut sync = WriteOptions::default();
        sync.set_sync(true);
        Self { db, sync, next: 1, dir }
    }

    fn open_in(dir: &TempDir) -> DB {
        let (options, log) = options(dir.path());
        DB::open_cf_descriptors(&options, dir.path(), [log]).expect("a new database")
    }

    /// The same with `count` records, opened anew.
    pub fn filled(count: u64, bytes: usize) -> Self {
        let mut bare = Self::open();
        bare.sync.set_sync(false);
        while bare.next <= count {
            let values: Vec<_> = events(bare.next..(bare.next + 8192).min(count + 1), bytes, |_| topic("t"))
                .iter()
                .map(record)
                .collect();
            bare.write(&values);
        }
        let Self { db, sync, next, dir } = bare;
        drop(db);
        Self { db: Self::open_in(&dir), sync, next, dir }
    }

    /// Writes one batch, synced.
    pub fn write(&mut self, values: &[Vec<u8>]) {
        let log = self.db.cf_handle("log").expect("it was made when the database was opened");
        let mut batch = WriteBatch::default();
        for value in values {
            batch.put_cf(log, self.next.to_be_bytes(), value);
            self.next += 1;
        }
        self.db.write_opt(batch, &self.sync).expect("a write");
    }

    /// Its files as they are now.
    pub fn pages(&self) -> Pages {
        Pages::of(self.dir.path())
    }

    /// Reads every record in order; gives how many there were, and their bytes.
    pub fn iterate(&self) -> (u64, u64) {
        iterate(&self.db)
    }
}

/// Options as the log's, for a database in `dir` and for its one column family.
fn options(dir: &Path) -> (rocksdb::Options, ColumnFamilyDescriptor) {
    let ours = Options::new(dir);
    let mut options = rocksdb::Options::default()
        .get_options_from_string("allow_fallocate=false")
        .expect("an option that RocksDB has");
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_max_background_jobs(2);
    options.set_max_total_wal_size(4 * ours.write_buffer_bytes as u64);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(ours.cache_bytes));
    table.set_block_size(16 << 10);
    table.set_format_version(6);
    let mut log = rocksdb::Options::default();
    log.set_write_buffer_size(ours.write_buffer_bytes);
    log.set_target_file_size_base(32 << 20);
    log.set_compression_type(DBCompressionType::Lz4);
    log.set_level_zero_file_num_compaction_trigger(2);
    log.set_block_based_table_factory(&table);
    (options, ColumnFamilyDescriptor::new("log", log))
}

fn iterate(db: &DB) -> (u64, u64) {
    let log = db.cf_handle("log").expect("every database here has one");
    let mut it = db.raw_iterator_cf(log);
    it.seek_to_first();
    let (mut count, mut bytes) = (0, 0);
    while let Some((_, value)) = it.item() {
        count += 1;
        bytes += value.len() as u64;
        it.next();
    }
    (count, bytes)
}

/// The events of a log in a bare RocksDB, each as a record under its id: what iterating over them costs without anything of ours, neither
/// how the log lays them out.
pub struct Iterated {
    db: DB,
    dir: TempDir,
}

impl Iterated {
    /// Copies the events of the log in `data`, which no server has open, to the disk that `parent` is on; opened anew when RocksDB has
    /// nothing more to merge.
    pub fn copy_of(data: &Path, parent: &Path) -> Self {
        let mut bare = Bare::within(parent);
        bare.sync.set_sync(false);
        let log = RocksStore::open(Options::new(data)).expect("the log that a server left");
        let (all, tail) = (Filter::all(), log.tail());
        let mut after = 0;
        while after < tail {
            let mut values = Vec::new();
            let scan = Scan { filter: &all, after, upto: tail };
            after = log
                .scan(scan, &mut |event| {
                    let mut value = Vec::new();
                    let &EventRef { event, key, time, data, .. } = event;
                    Record { topic: 1, time, event, key, data }.encode(&mut value);
                    values.push(value);
                    if values.len() < COPIED_AT_ONCE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })
                .expect("a read");
            bare.write(&values);
        }
        let mut merged = WaitForCompactOptions::default();
        merged.set_flush(true);
        bare.db.wait_for_compact(&merged).expect("what is written is merged");
        let Bare { db, dir, .. } = bare;
        drop(db);
        let (options, log) = options(dir.path());
        let db = DB::open_cf_descriptors_read_only(&options, dir.path(), [log], false).expect("what was just written");
        Self { db, dir }
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Reads every record in order; gives how many there were, and their bytes.
    pub fn iterate(&self) -> (u64, u64) {
        iterate(&self.db)
    }
}

/// How long `work` takes.
pub fn time(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// How long this thread has been on a processor since it began: what its work costs, whatever else the machine does and however
/// long the disk takes. Only its quotients are used.
pub fn on_processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells what a thread has used");
    let nanos = stat.split(' ').next().and_then(|n| n.parse().ok()).expect("it begins with nanoseconds");
    Duration::from_nanos(nanos)
}

/// Quotients of times that were taken in turn, so that what else the machine does falls on both.
#[derive(Default)]
pub struct Ratios {
    quotients: Vec<f64>,
    theirs_first: bool,
}

impl Ratios {
    /// Takes both times, the other one first every second time; gives that of `ours`.
    pub fn round(&mut self, ours: impl FnOnce() -> Duration, theirs: impl FnOnce() -> Duration) -> Duration {
        let (ours, theirs) = if self.theirs_first {
            let theirs = theirs();
            (ours(), theirs)
        } else {
            let ours = ours();
            (ours, theirs())
        };
        self.theirs_first = !self.theirs_first;
        self.note(ours, theirs);
        ours
    }

    /// Notes what was taken elsewhere.
    pub fn note(&mut self, ours: Duration, theirs: Duration) {
        self.quotients.push(ours.as_secs_f64() / theirs.as_secs_f64());
    }

    /// Prints the median, and between which values half and nine tenths of the quotients lie.
    pub fn print(mut self, what: &str) {
        self.quotients.sort_unstable_by(f64::total_cmp);
        let n = self.quotients.len();
        if n == 0 {
            return;
        }
        let at = |percent: usize| self.quotients[(n - 1) * percent / 100];
        println!(
            "RATIO  {what}: {:.2} (half within {:.2}–{:.2}, nine tenths within {:.2}–{:.2}; {n} rounds)",
            at(50),
            at(25),
            at(75),
            at(5),
            at(95),
        );
    }

    /// The same of throughputs: how much of theirs ours is.
    pub fn print_throughput(mut self, what: &str) {
        self.quotients.iter_mut().for_each(|q| *q = 1.0 / *q);
        self.print(what);
    }
}
