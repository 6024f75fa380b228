//! How RocksDB is set up, and what its compactions may leave out.
//!
//! What holds: only what lies below a floor is left out. Must not know why floors rise, nor what was written.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use rocksdb::{BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactionDecision, DB, DBCompressionType, LogLevel};

use super::Options;
use super::layout::{self, IDEMPOTENCY, LOG, META, POSTINGS, SEGMENT, SNAPSHOT, STATE, TOPIC, last_id, log_id};
use super::open::corrupt;
use crate::event::EventId;
use crate::record::{Records, TopicNumber};
use crate::store::StoreError;

/// The floors, as the compaction filters see them: what lies at or below them may go.
#[derive(Default)]
pub struct Floors {
    log: AtomicU64,
    /// By topic number; 0 where nothing is trimmed.
    topics: RwLock<Vec<EventId>>,
    /// What was remembered of publishes up to this event is forgotten.
    keys: AtomicU64,
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

    pub fn forget_keys(&self, upto: EventId) {
        self.keys.fetch_max(upto, Ordering::AcqRel);
    }

    pub fn keys(&self) -> EventId {
        self.keys.load(Ordering::Acquire)
    }

    fn below(&self, topic: TopicNumber, id: EventId) -> bool {
        id <= self.log.load(Ordering::Acquire)
            || self.topics.read().get(topic as usize).is_some_and(|&floor| id <= floor)
    }

    /// Whether a record of the log is trimmed, or all of a pack. What cannot be read is kept: it is for a reader to report.
    fn drops_records(&self, key: &[u8], value: &[u8]) -> bool {
        match (log_id(key), Records::of(value)) {
            (Some(newest), Ok(records)) => self.below(records.topic(), newest),
            _ => false,
        }
    }

    fn drops_key(&self, key: &[u8]) -> bool {
        log_id(key).is_some_and(|first| first <= self.keys())
    }

    fn drops_postings(&self, key: &[u8]) -> bool {
        layout::postings_place(key).is_some_and(|(topic, segment)| self.below(topic, last_id(segment)))
    }
}

pub fn open_database(options: &Options, dir: &Path, floors: &Arc<Floors>) -> Result<DB, StoreError> {
    let (db, families) = settings(options, floors)?;
    opened(DB::open_cf_descriptors(&db, dir, families))
}

/// Opens what is there for reading alone, and writes nothing: with the end of the write-ahead log as the page cache has it, of which
/// nobody knows whether it is on the disk.
pub fn open_to_read(options: &Options, floors: &Arc<Floors>) -> Result<DB, StoreError> {
    let (mut db, families) = settings(options, floors)?;
    db.create_if_missing(false);
    opened(DB::open_cf_descriptors_read_only(&db, options.dir.join("db"), families, false))
}

pub fn opened(db: Result<DB, rocksdb::Error>) -> Result<DB, StoreError> {
    db.map_err(|e| match e.kind() {
        rocksdb::ErrorKind::Corruption => corrupt(&e),
        _ => StoreError::io("opening the database")(&e),
    })
}

type Settings = (rocksdb::Options, [ColumnFamilyDescriptor; 8]);

fn settings(options: &Options, floors: &Arc<Floors>) -> Result<Settings, StoreError> {
    // What RocksDB sets aside does not count as the file's length, so a synced write gains nothing by it: `ahead` does it.
    let mut db = rocksdb::Options::default()
        .get_options_from_string("allow_fallocate=false")
        .map_err(|e| StoreError::io("setting up the database")(&e))?;
    db.create_if_missing(true);
    db.create_missing_column_families(true);
    db.set_max_background_jobs(2);
    // One file is 32 MiB or more, so this covers 32 GiB without reopening any, and stays within common limits.
    db.set_max_open_files(1024);
    // A replay is many short reads one behind the other: the system sees that, where it is not told to expect none, and reads ahead.
    db.set_advise_random_on_open(false);
    // Old write-ahead logs hold small column families back; past this they are flushed, so that a start replays little.
    db.set_max_total_wal_size(2 * options.write_buffer_bytes as u64);
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
        cf.set_compaction_filter("trimmed records", move |_, key, value| decide(floors.drops_records(key, value)));
        cf
    };
    let postings = {
        let floors = floors.clone();
        let mut cf = family(options, &cache);
        cf.set_compaction_filter("trimmed postings", move |_, key, _| decide(floors.drops_postings(key)));
        cf
    };
    let remembered = {
        let floors = floors.clone();
        let mut cf = family(options, &cache);
        cf.set_compaction_filter("forgotten keys", move |_, key, _| decide(floors.drops_key(key)));
        cf
    };
    let families = [
        ColumnFamilyDescriptor::new(LOG, log),
        ColumnFamilyDescriptor::new(STATE, family(options, &cache)),
        ColumnFamilyDescriptor::new(SNAPSHOT, family(options, &cache)),
        ColumnFamilyDescriptor::new(IDEMPOTENCY, remembered),
        ColumnFamilyDescriptor::new(POSTINGS, postings),
        ColumnFamilyDescriptor::new(TOPIC, family(options, &cache)),
        ColumnFamilyDescriptor::new(SEGMENT, family(options, &cache)),
        ColumnFamilyDescriptor::new(META, family(options, &cache)),
    ];
    Ok((db, families))
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
