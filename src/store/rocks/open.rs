//! Opening the log: the checks before RocksDB may touch it, its settings, and reading the directory back.
//!
//! What holds: a log whose write-ahead log lost something in the middle is refused, not opened shorter; ids that may have been
//! given are never given again; nothing lies past the tail. Must not serve reads.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactionDecision, DB, DBCompressionType, LogLevel, WriteBatch,
    WriteOptions,
};

use super::directory::{Amount, Committed, Directory, Row, Segment};
use super::layout::{
    self, FORMAT_VERSION, LOG, META, POSTINGS, SEGMENT, SegmentNumber, Summary, TOPIC, TopicRow, first_id, last_id,
    log_id, log_key, meta, pair, read_pair, segment_of,
};
use super::{Handle, KEY_BYTES, Options, RocksStore, read};
use crate::event::EventId;
use crate::record::{Record, TopicNumber};
use crate::store::mark::Mark;
use crate::store::space::Gauge;
use crate::store::{StoreError, wal};
use crate::topic::Topic;

/// The floors, as the compaction filters see them: what lies at or below them may go.
#[derive(Default)]
pub struct Floors {
    log: AtomicU64,
    /// By topic number; 0 where nothing is trimmed.
    topics: RwLock<Vec<EventId>>,
}

impl Floors {
    pub fn raise_log(&self, floor: EventId) {
        self.log.fetch_max(floor, Ordering::AcqRel);
    }

    pub fn raise_topic(&self, topic: TopicNumber, floor: EventId) {
        let mut topics = self.topics.write();
        let at = topic as usize;
        if topics.len() <= at {
            topics.resize(at + 1, 0);
        }
        topics[at] = topics[at].max(floor);
    }

    fn below(&self, topic: TopicNumber, id: EventId) -> bool {
        id <= self.log.load(Ordering::Acquire)
            || self.topics.read().get(topic as usize).is_some_and(|&floor| id <= floor)
    }

    /// Whether a record of the log is trimmed. What cannot be read is kept: it is for a reader to report.
    fn drops_record(&self, key: &[u8], value: &[u8]) -> bool {
        match (log_id(key), Record::head(value)) {
            (Some(id), Ok((topic, _))) => self.below(topic, id),
            _ => false,
        }
    }

    fn drops_postings(&self, key: &[u8]) -> bool {
        layout::postings_place(key).is_some_and(|(topic, segment)| self.below(topic, last_id(segment)))
    }
}

impl RocksStore {
    /// Opens the log in `options.dir`, or makes a new one there.
    ///
    /// # Errors
    /// When another process serves it, the disk refuses, or the log is corrupt: then nothing was changed.
    pub fn open(options: Options) -> Result<Self, StoreError> {
        fs::create_dir_all(&options.dir).map_err(|e| StoreError::io("creating the data directory")(&e))?;
        let lock = lock(&options.dir)?;
        let floors = Arc::new(Floors::default());
        let opened = Opened::open(&options, &floors)?;
        Ok(Self {
            gauge: Mutex::new(Gauge::new(options.dir.clone(), 0)),
            name: opened.name,
            db: RwLock::new(Some(opened.db)),
            directory: RwLock::new(opened.directory),
            mark: Mutex::new(opened.mark),
            floors,
            poisoned: AtomicBool::new(false),
            settling: Mutex::new(()),
            tidying: Mutex::new(()),
            naming: Mutex::new(()),
            summaries: Mutex::default(),
            resolved: Mutex::default(),
            options,
            _lock: lock,
        })
    }

    /// Closes the database and opens it again; where that fails it stays closed.
    pub(super) fn open_again(&self) -> Result<(), StoreError> {
        let mut db = self.db.write();
        *db = None;
        let opened = Opened::open(&self.options, &self.floors)?;
        *self.directory.write() = opened.directory;
        *self.mark.lock() = opened.mark;
        *self.resolved.lock() = read::Resolved::default();
        *self.summaries.lock() = read::Summaries::default();
        *db = Some(opened.db);
        self.poisoned.store(false, Ordering::Release);
        Ok(())
    }
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let file = File::options().create(true).truncate(false).write(true).open(dir.join("lock"));
    let file = file.map_err(|e| StoreError::io("opening the lock file in the data directory")(&e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(dir.display().to_string().into())),
        Err(TryLockError::Error(e)) => Err(StoreError::io("locking the data directory")(&e)),
    }
}

/// A database that was opened, and what was read from it.
struct Opened {
    db: DB,
    directory: Directory,
    mark: Mark,
    name: Arc<str>,
}

impl Opened {
    fn open(options: &Options, floors: &Arc<Floors>) -> Result<Self, StoreError> {
        let dir = options.dir.join("db");
        if dir.exists() {
            wal::check(&dir).map_err(|e| corrupt(&e))?;
        }
        let (mark, reserved) = Mark::open(&options.dir).map_err(|e| corrupt(&e))?;
        let db = open_database(options, &dir, floors)?;
        let holder = RwLock::new(Some(db));
        let (directory, name) = {
            let db = Handle(holder.read());
            let name = identify(&db)?;
            let mut directory = recover(&db, floors)?;
            skip_reserved(&db, &mut directory, reserved.unwrap_or(0))?;
            (directory, name)
        };
        let db = holder.into_inner().expect("it was put there above");
        Ok(Self { db, directory, mark, name })
    }
}

pub(super) fn corrupt(cause: &dyn std::fmt::Display) -> StoreError {
    StoreError::Corrupt(cause.to_string().into())
}

fn open_database(options: &Options, dir: &Path, floors: &Arc<Floors>) -> Result<DB, StoreError> {
    // Preallocated files would take room from a small disk for nothing: synced appends were measured no slower without.
    let mut db = rocksdb::Options::default()
        .get_options_from_string("allow_fallocate=false")
        .map_err(|e| StoreError::io("setting up the database")(&e))?;
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    db.set_max_background_jobs(2);
    // One file is 32 MiB or more, so this covers 32 GiB without reopening any, and stays within common limits.
    db.set_max_open_files(1024);
    // Old write-ahead logs hold small column families back; past this they are flushed, so that a start replays little.
    db.set_max_total_wal_size(4 * options.write_buffer_bytes as u64);
    // RocksDB then notices a write-ahead log file that is missing, which it would otherwise read as a shorter log.
    db.set_track_and_verify_wals_in_manifest(true);
    db.set_keep_log_file_num(2);
    db.set_log_level(LogLevel::Warn);
    let cache = Cache::new_lru_cache(options.cache_bytes);
    let log = {
        let floors = floors.clone();
        let mut cf = family(options, &cache);
        // Sequential reads gain from large blocks; a point read of a rare topic's event pays some microseconds for them.
        cf.set_block_based_table_factory(&table(&cache, 16 << 10));
        cf.set_level_zero_file_num_compaction_trigger(2);
        cf.set_compaction_filter("trimmed records", move |_, key, value| decide(floors.drops_record(key, value)));
        cf
    };
    let postings = {
        let floors = floors.clone();
        let mut cf = family(options, &cache);
        cf.set_compaction_filter("trimmed postings", move |_, key, _| decide(floors.drops_postings(key)));
        cf
    };
    let families = [
        ColumnFamilyDescriptor::new(LOG, log),
        ColumnFamilyDescriptor::new(POSTINGS, postings),
        ColumnFamilyDescriptor::new(TOPIC, family(options, &cache)),
        ColumnFamilyDescriptor::new(SEGMENT, family(options, &cache)),
        ColumnFamilyDescriptor::new(META, family(options, &cache)),
    ];
    DB::open_cf_descriptors(&db, dir, families).map_err(|e| match e.kind() {
        rocksdb::ErrorKind::Corruption => corrupt(&e),
        _ => StoreError::io("opening the database")(&e),
    })
}

fn family(options: &Options, cache: &Cache) -> rocksdb::Options {
    let mut cf = rocksdb::Options::default();
    cf.set_write_buffer_size(options.write_buffer_bytes);
    cf.set_target_file_size_base(32 << 20);
    // One compression on every level: a difference would rewrite files that could just be moved down.
    cf.set_compression_type(DBCompressionType::Lz4);
    cf.set_bottommost_compression_type(DBCompressionType::Lz4);
    cf.set_block_based_table_factory(&table(cache, 4 << 10));
    cf
}

fn table(cache: &Cache, block: usize) -> BlockBasedOptions {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(block);
    table.set_format_version(6);
    table
}

fn decide(drop: bool) -> CompactionDecision {
    if drop { CompactionDecision::Remove } else { CompactionDecision::Keep }
}

/// Checks the format and gives the log's name; a new log is given both.
fn identify(db: &Handle<'_>) -> Result<Arc<str>, StoreError> {
    let metas = db.cf(META);
    let get = |key| db.get_pinned_cf(metas, key).map_err(|e| StoreError::io("reading the log's name")(&e));
    match (get(meta::FORMAT)?, get(meta::NAME)?) {
        (None, None) => {
            let name: String = std::iter::repeat_with(fastrand::alphanumeric).take(16).collect();
            let mut batch = WriteBatch::default();
            batch.put_cf(metas, meta::FORMAT, FORMAT_VERSION.to_be_bytes());
            batch.put_cf(metas, meta::NAME, &name);
            write_synced(db, batch)?;
            Ok(name.into())
        }
        (Some(format), Some(name)) if *format == FORMAT_VERSION.to_be_bytes() => {
            let name = std::str::from_utf8(&name).map_err(|e| corrupt(&format!("its name is not text ({e})")))?;
            Ok(name.into())
        }
        (Some(format), Some(_)) => {
            let theirs = <[u8; 4]>::try_from(&*format).map(u32::from_be_bytes);
            Err(StoreError::Version(format!("it has format {theirs:?}, this program knows {FORMAT_VERSION}").into()))
        }
        _ => Err(corrupt(&"it has a name without a format, or a format without a name")),
    }
}

fn write_synced(db: &Handle<'_>, batch: WriteBatch) -> Result<(), StoreError> {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.write_opt(batch, &options).map_err(|e| StoreError::io("writing to the log")(&e))
}

/// Notes as a hole the ids that were reserved and may have been given, though nothing is there under them.
fn skip_reserved(db: &Handle<'_>, directory: &mut Directory, reserved: EventId) -> Result<(), StoreError> {
    let tail = directory.tail.max(directory.hole.1);
    if reserved <= tail {
        directory.tail = tail;
        return Ok(());
    }
    tracing::warn!(from = tail + 1, to = reserved, "ids skipped after an unclean stop");
    let mut batch = WriteBatch::default();
    batch.put_cf(db.cf(META), meta::HOLE, pair(tail + 1, reserved));
    write_synced(db, batch)?;
    directory.hole = (tail + 1, reserved);
    directory.tail = reserved;
    Ok(())
}

fn recover(db: &Handle<'_>, floors: &Floors) -> Result<Directory, StoreError> {
    let mut directory = Directory::default();
    recover_meta(db, &mut directory)?;
    recover_topics(db, &mut directory, floors)?;
    floors.raise_log(directory.log_floor);
    let sealed = recover_sealed(db, &mut directory)?;
    recover_open(db, &mut directory, sealed.map_or(0, |s| s + 1))?;
    Ok(directory)
}

fn recover_meta(db: &Handle<'_>, directory: &mut Directory) -> Result<(), StoreError> {
    let metas = db.cf(META);
    let get = |key| db.get_cf(metas, key).map_err(|e| StoreError::io("reading the log's tail")(&e));
    let bad = |what: &str| corrupt(&format!("its {what} cannot be read"));
    if let Some(bytes) = get(meta::TAIL)? {
        (directory.tail, directory.last_time) = read_pair(&bytes).ok_or_else(|| bad("tail"))?;
    }
    if let Some(bytes) = get(meta::FLOOR)? {
        directory.log_floor = <[u8; 8]>::try_from(&bytes[..]).map(u64::from_be_bytes).map_err(|_| bad("floor"))?;
        directory.log_settled = directory.log_floor;
        directory.log_published = directory.log_floor;
    }
    if let Some(bytes) = get(meta::HOLE)? {
        directory.hole = read_pair(&bytes).ok_or_else(|| bad("hole"))?;
    }
    if let Some(bytes) = get(meta::NEXT_TOPIC)? {
        let next = <[u8; 4]>::try_from(&bytes[..]).map(u32::from_be_bytes).map_err(|_| bad("count of topics"))?;
        directory.reserve_topics(next);
    }
    directory.earliest = directory.log_floor + 1;
    Ok(())
}

fn recover_topics(db: &Handle<'_>, directory: &mut Directory, floors: &Floors) -> Result<(), StoreError> {
    let mut rows = db.raw_iterator_cf(db.cf(TOPIC));
    rows.seek_to_first();
    while let Some((name, value)) = rows.item() {
        let topic = std::str::from_utf8(name).ok().and_then(|name| Topic::parse(name).ok());
        let (Some(topic), Some(row)) = (topic, TopicRow::decode(value)) else {
            return Err(corrupt(&format!("the row of topic {:?} cannot be read", String::from_utf8_lossy(name))));
        };
        if row.number >= directory.next_topic() {
            return Err(corrupt(&format!("topic {topic} has number {}, which was never given", row.number)));
        }
        floors.raise_topic(row.number, row.floor);
        let known = Row { floor: row.floor, settled: row.floor, retention: row.retention, ..Row::new(topic) };
        directory.insert(row.number, known);
        rows.next();
    }
    rows.status().map_err(|e| StoreError::io("reading the topics")(&e))
}

/// Reads the summaries of the sealed segments; returns the last of them.
fn recover_sealed(db: &Handle<'_>, directory: &mut Directory) -> Result<Option<SegmentNumber>, StoreError> {
    let mut last = None;
    let mut rows = db.raw_iterator_cf(db.cf(SEGMENT));
    rows.seek_to_first();
    while let Some((key, value)) = rows.item() {
        let segment = <[u8; 4]>::try_from(key).map(u32::from_be_bytes);
        let (Ok(segment), Some(summary)) = (segment, Summary::decode(value)) else {
            return Err(corrupt(&"the summary of a segment cannot be read"));
        };
        let total = Amount { events: summary.events(), bytes: summary.bytes() };
        let mut known = Segment {
            first_time: summary.first_time,
            last_time: summary.last_time,
            total,
            live: Amount::default(),
            stored: total.bytes,
        };
        for share in &summary.shares {
            let Some(row) = directory.row(share.topic) else { continue };
            let (base, newest) = (first_id(segment), first_id(segment) + u64::from(share.last));
            let floor = row.floor.max(directory.log_floor);
            let live = if floor < base {
                Amount { events: share.events.into(), bytes: share.bytes }
            } else if floor >= newest {
                Amount::default()
            } else {
                // Trimmed within: the events are counted, their bytes estimated by their number.
                let left = read::sealed_ids(db, share.topic, segment, floor, last_id(segment))?.len() as u64;
                Amount { events: left, bytes: share.bytes * left / u64::from(share.events).max(1) }
            };
            known.live.add(live);
            directory.live.add(live);
            if let Some(row) = directory.row_mut(share.topic) {
                row.last = newest;
                row.live.add(live);
            }
        }
        directory.segments.insert(segment, known);
        last = Some(segment);
        rows.next();
    }
    rows.status().map_err(|e| StoreError::io("reading the segments")(&e))?;
    Ok(last)
}

/// Reads what is not sealed, builds its index again, and checks that nothing lies past the tail.
fn recover_open(db: &Handle<'_>, directory: &mut Directory, from: SegmentNumber) -> Result<(), StoreError> {
    let (tail, last_time) = (directory.tail, directory.last_time);
    let mut newest = 0;
    let mut records = db.raw_iterator_cf(db.cf(LOG));
    records.seek(log_key(first_id(from).max(directory.log_floor + 1)));
    while let Some((key, value)) = records.item() {
        let id = log_id(key).ok_or_else(|| corrupt(&"a record has no id"))?;
        if id > tail {
            return Err(corrupt(&format!("event {id} lies past the tail {tail}")));
        }
        let (topic, time) = Record::head(value).map_err(|e| corrupt(&format!("event {id} cannot be read: {e}")))?;
        if directory.row(topic).is_none() {
            return Err(corrupt(&format!("event {id} belongs to topic number {topic}, which is not known")));
        }
        let bytes = KEY_BYTES + u32::try_from(value.len()).map_err(|_| corrupt(&format!("event {id} is too large")))?;
        directory.committed([Committed { id, topic, bytes, time }]);
        newest = id;
        records.next();
    }
    records.status().map_err(|e| StoreError::io("reading the log")(&e))?;
    directory.last_time = last_time;
    let gone = tail <= directory.log_floor || directory.rows().any(|(_, row)| row.floor >= tail);
    let sealed = segment_of(tail) < from;
    if newest < tail && !gone && !sealed {
        return Err(corrupt(&format!("the newest event is {newest}, but {tail} was written")));
    }
    for (&segment, s) in directory.segments.range(from..) {
        debug_assert!(s.total.events > 0, "segment {segment} was made for an event");
    }
    Ok(())
}
