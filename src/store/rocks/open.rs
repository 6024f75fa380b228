//! Opening the log: the checks before RocksDB may touch it, its settings, and what a stop has left undone.
//!
//! What holds: a log whose write-ahead log lost something in the middle is refused, not opened shorter; ids that may have been
//! given are never given again. Must not serve reads.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactionDecision, DB, DBCompressionType,
    DEFAULT_COLUMN_FAMILY_NAME, LogLevel, Range, WriteBatch, WriteOptions,
};

use super::ahead::{AHEAD_BYTES, Ahead};
use super::directory::Directory;
use super::layout::{
    self, FAMILIES, FORMAT_VERSION, IDEMPOTENCY, IDS_NEEDED, LOG, META, POSTINGS, SEGMENT, SNAPSHOT, STATE, TOPIC,
    last_id, log_id, log_key, meta, pair,
};
use super::manifest::{Manifest, ManifestError};
use super::recover::recover;
use super::remembered::Keys;
use super::{Handle, Options, RocksStore, index, resolve, sums};
use crate::event::EventId;
use crate::record::{Record, TopicNumber};
use crate::store::mark::{LOST_IDS, Mark, MarkError};
use crate::store::space::Gauge;
use crate::store::wal::WalError;
use crate::store::{Durability, StoreError, wal};

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

    /// Whether a record of the log is trimmed. What cannot be read is kept: it is for a reader to report.
    fn drops_record(&self, key: &[u8], value: &[u8]) -> bool {
        match (log_id(key), Record::head(value)) {
            (Some(id), Ok((topic, _))) => self.below(topic, id),
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

impl RocksStore {
    /// Opens the log in `options.dir`, or makes a new one there.
    ///
    /// # Errors
    /// When another process serves it, the disk refuses, or the log is corrupt: then nothing was changed.
    pub fn open(options: Options) -> Result<Self, StoreError> {
        make(&options.dir).map_err(|e| StoreError::io("creating the data directory")(&e))?;
        let lock = lock(&options.dir)?;
        let floors = Arc::new(Floors::default());
        let opened = Opened::open(&options, &floors)?;
        opened.directory.rows().for_each(|(number, row)| floors.raise_topic(number, row.floor));
        floors.raise_log(opened.directory.log_floor);
        let store = Self {
            gauge: Mutex::new(Gauge::new(options.dir.clone(), AHEAD_BYTES)),
            ahead: (options.durability == Durability::Sync).then(|| Mutex::new(Ahead::new(options.dir.join("db")))),
            name: opened.name,
            db: RwLock::new(Some(opened.db)),
            directory: RwLock::new(opened.directory),
            keys: Mutex::new(opened.keys),
            mark: Mutex::new(opened.mark),
            ids_noted: AtomicBool::new(opened.ids_noted),
            floors,
            poisoned: AtomicBool::new(false),
            reading_only: AtomicBool::new(false),
            settling: Mutex::new(()),
            tidying: Mutex::new(()),
            naming: Mutex::new(()),
            summaries: Mutex::default(),
            resolved: Mutex::default(),
            options,
            _lock: lock,
        };
        store.begin()?;
        Ok(store)
    }

    /// What a stop between two steps has left undone, and what is not written down.
    fn begin(&self) -> Result<(), StoreError> {
        let db = self.db()?;
        let gone: Vec<_> = {
            let directory = self.directory.read();
            directory
                .rows()
                .filter(|(_, row)| directory.is_forgettable_but_for_keys(row))
                .map(|(number, _)| number)
                .collect()
        };
        self.forget_some(&db, &gone)?;
        let floor = self.directory.read().log_floor;
        if floor > 0 {
            let dead = db.get_approximate_sizes_cf(db.cf(LOG), &[Range::new(&log_key(0), &log_key(floor))]);
            self.directory.write().dead_bytes = dead.into_iter().sum();
        }
        self.move_earliest(&db)
    }

    /// Closes the database and opens it again; where that fails it is opened for reading alone, or stays closed if that fails as well.
    ///
    /// A floor whose write had failed may be there after all. Readers have not been told of it, so it counts as raised and not yet
    /// as published.
    pub(super) fn open_again(&self) -> Result<(), StoreError> {
        let mut db = self.db.write();
        *db = None;
        self.poisoned.store(true, Ordering::Release);
        let opened = match Opened::open(&self.options, &self.floors) {
            Ok(opened) => opened,
            Err(error) => {
                // The directory stays as it was: nobody reads beyond what it describes.
                self.reading_only.store(true, Ordering::Release);
                match open_to_read(&self.options, &self.floors) {
                    Ok(readable) => *db = Some(readable),
                    Err(error) => tracing::warn!(%error, "the log cannot be read either"),
                }
                return Err(error);
            }
        };
        let mut directory = opened.directory;
        {
            let mut before = self.directory.write();
            directory.not_yet_published(&before);
            directory.floors_version = before.floors_version + 1;
            directory.floors_told = before.floors_told + 1;
            *before = directory;
        }
        self.keys.lock().replace(opened.keys);
        *self.mark.lock() = opened.mark;
        self.ids_noted.store(opened.ids_noted, Ordering::Release);
        *self.resolved.lock() = resolve::Resolved::default();
        *self.summaries.lock() = index::Summaries::default();
        *db = Some(opened.db);
        self.reading_only.store(false, Ordering::Release);
        drop(db);
        self.poisoned.store(false, Ordering::Release);
        // As after a start; what else `begin` does would go by floors that readers do not know yet.
        self.move_earliest(&self.db()?)
    }
}

/// Makes the directories of a new log, and has their names on the disk before anything is promised of what lies in them: RocksDB syncs
/// its own directory, but not the one that names it.
fn make(dir: &Path) -> io::Result<()> {
    let db = dir.join("db");
    if db.join("CURRENT").exists() {
        return Ok(());
    }
    let made: Vec<&Path> = dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    fs::create_dir_all(&db)?;
    File::open(dir)?.sync_all()?;
    // Also the first that was there already: a start that died may have made it.
    for dir in dir.ancestors().take(made.len().max(1)) {
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match File::open(parent).and_then(|parent| parent.sync_all()) {
            // One that was made for us, in a place that we may not read.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && made.is_empty() => {}
            synced => synced?,
        }
    }
    Ok(())
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
    keys: Keys,
    mark: Mark,
    /// [`meta::IDS`] is there.
    ids_noted: bool,
    name: Arc<str>,
}

impl Opened {
    fn open(options: &Options, floors: &Arc<Floors>) -> Result<Self, StoreError> {
        let dir = options.dir.join("db");
        if dir.exists() {
            check_manifest(&dir)?;
            check_families(&dir)?;
            wal::check(&dir).map_err(|e| match e {
                WalError::Io { .. } => StoreError::io("checking the write-ahead log")(&e),
                WalError::Corrupt { .. } | WalError::Missing { .. } => corrupt(&e),
            })?;
        }
        let found = find_mark(options, &dir)?;
        let db = open_database(options, &dir, floors)?;
        let holder = RwLock::new(Some(db));
        let (directory, keys, name, mark, ids_noted) = {
            let db = Handle(holder.read());
            let name = identify(&db)?;
            let mut directory = recover(&db)?;
            let (mark, reserved) = match found {
                Some((mark, reserved)) => (Some(mark), reserved.unwrap_or(0)),
                None => (None, directory.tail.max(directory.hole.1) + LOST_IDS),
            };
            skip_reserved(&db, &mut directory, reserved)?;
            let anew = || Mark::begin_anew(&options.dir, reserved).map_err(|e| StoreError::io("reserving ids")(&e));
            let mark = mark.map_or_else(anew, Ok)?;
            let ids_noted = note_ids(&db, &mark, options.durability)?;
            let keys = Keys::recover(&db, floors.keys(), directory.tail)?;
            (directory, keys, name, mark, ids_noted)
        };
        let db = holder.into_inner().expect("it was put there above");
        if let Err(error) = sums::write(&options.dir) {
            tracing::debug!(%error, "the sums of the settings were not noted");
        }
        Ok(Self { db, directory, keys, mark, ids_noted, name })
    }
}

/// The mark, and what is reserved; nothing where it was given up. Refuses a log whose mark is needed and is not there; changes nothing.
fn find_mark(options: &Options, dir: &Path) -> Result<Option<(Mark, Option<EventId>)>, StoreError> {
    if Mark::is_given_up(&options.dir).map_err(|e| StoreError::io("reading the data directory")(&e))? {
        return Ok(None);
    }
    let found = Mark::open(&options.dir).map_err(|e| match e {
        MarkError::Io { .. } => StoreError::io("reading the reserved ids")(&e),
        MarkError::Version { .. } => StoreError::Version(e.to_string().into()),
        MarkError::Corrupt { .. } | MarkError::Missing { .. } => corrupt(&e),
    })?;
    if found.1.is_none() && are_ids_noted(dir)? {
        return Err(corrupt(&Mark::missing(&options.dir)));
    }
    Ok(Some(found))
}

/// Whether the database in `dir`, which nobody has open, notes that the mark is needed. Only a log that has no mark is asked.
fn are_ids_noted(dir: &Path) -> Result<bool, StoreError> {
    if !dir.join("CURRENT").exists() {
        return Ok(false);
    }
    let mut options = rocksdb::Options::default();
    options.set_track_and_verify_wals_in_manifest(true);
    let families = DB::list_cf(&options, dir).map_err(|e| corrupt(&e))?;
    // A log whose making was interrupted has not come so far.
    if !families.iter().any(|name| name == META) {
        return Ok(false);
    }
    // With all families, though one is asked: RocksDB dies of a null pointer where others have rows in the write-ahead logs.
    let db = opened(DB::open_cf_for_read_only(&options, dir, families, false))?;
    let metas = db.cf_handle(META).expect("it was opened with this family");
    Ok(db.get_pinned_cf(metas, meta::IDS).map_err(|e| index::read_failed(&e))?.is_some())
}

/// Notes that the mark is needed, or that it is not any more; answers which. With [`Durability::Sync`] nothing rests on it from here on:
/// what it covered is a hole that was written down.
fn note_ids(db: &Handle<'_>, mark: &Mark, durability: Durability) -> Result<bool, StoreError> {
    let is_noted = db.get_pinned_cf(db.cf(META), meta::IDS).map_err(|e| index::read_failed(&e))?.is_some();
    let is_needed = mark.reserved().is_some() && durability != Durability::Sync;
    let mut batch = WriteBatch::default();
    match (is_noted, is_needed) {
        (false, true) => batch.put_cf(db.cf(META), meta::IDS, IDS_NEEDED),
        (true, false) => batch.delete_cf(db.cf(META), meta::IDS),
        _ => return Ok(is_needed),
    }
    write_synced(db, batch)?;
    Ok(is_needed)
}

pub(super) fn corrupt(cause: &dyn std::fmt::Display) -> StoreError {
    let cause = cause.to_string();
    // RocksDB does not always say which file it was.
    let ask = if cause.contains("`verify`") { "" } else { "; `verify` tells what is wrong where" };
    StoreError::Corrupt(format!("{cause}{ask}").into())
}

/// Refuses a database whose record of its own files is damaged, or tells of a write-ahead log that is not there. Mends one whose last
/// append was torn.
fn check_manifest(dir: &Path) -> Result<(), StoreError> {
    if !dir.join("CURRENT").exists() {
        return Ok(());
    }
    let checked = Manifest::read(dir).and_then(|manifest| {
        manifest.check_newest_wal(dir)?;
        let upto = manifest.check_bad(dir)?;
        Ok((manifest, upto))
    });
    let (manifest, upto) = checked.map_err(|e| match e {
        ManifestError::Io { .. } => StoreError::io("checking the database's record of its files")(&e),
        _ => corrupt(&e),
    })?;
    upto.map_or(Ok(()), |upto| cut_off(&manifest, upto))
}

/// Cuts off what a power cut has left of the last append to the MANIFEST. A cut while that is done leaves it or does not.
fn cut_off(manifest: &Manifest, upto: u64) -> Result<(), StoreError> {
    let io = StoreError::io("cutting off the torn end of the database's record of its files");
    let file = File::options().write(true).open(&manifest.file).map_err(|e| io(&e))?;
    file.set_len(upto).and_then(|()| file.sync_all()).map_err(|e| io(&e))?;
    let what = manifest.bad.as_ref().map(|bad| bad.what.to_string());
    tracing::warn!(
        file = %manifest.file.display(), at = upto, bytes = manifest.bytes - upto, what,
        "the torn end of a last write to the database's record of its files is cut off; nothing is lost by it"
    );
    Ok(())
}

/// Refuses a log with column families that are not known here, before anything in it is changed.
fn check_families(dir: &Path) -> Result<(), StoreError> {
    if !dir.join("CURRENT").exists() {
        // RocksDB would make a new, empty log beside what is there.
        if holds_data(dir).map_err(|e| StoreError::io("reading the data directory")(&e))? {
            let lost = dir.join("CURRENT");
            return Err(corrupt(&format!(
                "{} is missing, though there are data files beside it: put it back, or restore a backup",
                lost.display()
            )));
        }
        return Ok(());
    }
    let names = DB::list_cf(&rocksdb::Options::default(), dir).map_err(|e| corrupt(&e))?;
    match names.iter().find(|name| !FAMILIES.contains(&name.as_str()) && *name != DEFAULT_COLUMN_FAMILY_NAME) {
        None => Ok(()),
        Some(name) => Err(StoreError::Version(format!("it has a column family {name:?}, which is not known").into())),
    }
}

/// Whether there is a table, or a write-ahead log with something in it. A log whose making was interrupted has neither.
fn holds_data(dir: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_data = [".sst", ".log"].iter().any(|end| name.to_string_lossy().ends_with(end));
        if is_data && entry.metadata()?.len() > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

fn open_database(options: &Options, dir: &Path, floors: &Arc<Floors>) -> Result<DB, StoreError> {
    let (db, families) = settings(options, floors)?;
    opened(DB::open_cf_descriptors(&db, dir, families))
}

/// Opens what is there for reading alone, and writes nothing: with the end of the write-ahead log as the page cache has it, of which
/// nobody knows whether it is on the disk.
fn open_to_read(options: &Options, floors: &Arc<Floors>) -> Result<DB, StoreError> {
    let (mut db, families) = settings(options, floors)?;
    db.create_if_missing(false);
    opened(DB::open_cf_descriptors_read_only(&db, options.dir.join("db"), families, false))
}

fn opened(db: Result<DB, rocksdb::Error>) -> Result<DB, StoreError> {
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
        cf.set_compaction_filter("trimmed records", move |_, key, value| decide(floors.drops_record(key, value)));
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

/// Checks the format and gives the log's name; a new log is given both.
fn identify(db: &Handle<'_>) -> Result<Arc<str>, StoreError> {
    let metas = db.cf(META);
    let get = |key| db.get_pinned_cf(metas, key).map_err(|e| index::read_failed(&e));
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
