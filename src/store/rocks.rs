//! The log on RocksDB: the only room that names it.
//!
//! ```text
//! DIR/lock   held while a process serves the log
//! DIR/ids    the ids reserved ahead, where durability is not `sync` (`mark`)
//! DIR/sums   checksums of the database's settings, for `verify` alone (`sums`)
//! DIR/db     RocksDB; its column families are described in `layout`
//! ```
//!
//! What holds: one write batch carries a publish with all that belongs to it; `directory` describes exactly what is committed;
//! after a failed write nothing more is written until the database was closed, opened and read anew.

mod ahead;
mod commit;
mod directory;
mod due;
mod ids;
mod index;
#[doc(hidden)]
pub mod layout;
mod manifest;
mod number;
mod open;
mod presence;
mod read;
mod reclaim;
mod recover;
mod remembered;
mod resolve;
mod seal;
mod search;
mod settings;
mod snapshots;
mod state;
mod sums;
#[doc(hidden)]
pub mod tokens;
mod topics;
mod trim;
mod unsealed;
pub mod verify;

use std::fs::File;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
use rocksdb::{ColumnFamily, DB, WriteBatch, WriteOptions};

use self::ahead::Ahead;
use self::directory::Directory;
use self::layout::{FAMILIES, IDS_NEEDED, META, meta};
use self::settings::Floors;
use super::mark::Mark;
use super::space::Gauge;
use super::{
    Back, Durability, Floor, Limits, Policy, Remembered, Scan, Snapshot, Store, StoreError, TopicStats, Trim, wal,
};
use crate::event::{Digest, Event, EventId, EventRef, Millis};
use crate::topic::{Filter, Topic};

/// How many ids are reserved at once where durability is not `sync`: an unclean stop skips at most so many, and 65,536 of
/// them make one fdatasync of the mark vanish among 65,536 appends.
const RESERVE_IDS: u64 = 65_536;

/// What a record costs beside its value: its key.
const KEY_BYTES: u32 = 8;

/// How the log is kept.
#[derive(Debug, Clone)]
pub struct Options {
    pub dir: PathBuf,
    pub durability: Durability,
    /// Bytes of RocksDB's block cache, which all reads share. 64 MiB hold what some thousand subscribers catch up on at once.
    pub cache_bytes: usize,
    /// Bytes appended before RocksDB sorts them into a file; also what a full disk must still have room for.
    pub write_buffer_bytes: usize,
}

impl Options {
    /// The defaults for a log in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), durability: Durability::Sync, cache_bytes: 64 << 20, write_buffer_bytes: 16 << 20 }
    }
}

/// The log in a directory.
pub struct RocksStore {
    options: Options,
    name: Arc<str>,
    /// `None` while it is closed, or could not be opened again.
    db: RwLock<Option<DB>>,
    directory: RwLock<Directory>,
    floors: Arc<Floors>,
    /// The idempotency keys that are remembered.
    keys: Mutex<remembered::Keys>,
    mark: Mutex<Mark>,
    /// The database says that the mark is needed.
    ids_noted: AtomicBool,
    gauge: Mutex<Gauge>,
    /// Where every write is synced.
    ahead: Option<Mutex<Ahead>>,
    /// A write has failed: nothing is written before `reopen`.
    poisoned: AtomicBool,
    /// Opening it again has failed, and what is open can only be read; what a failed write has left may show at its end.
    reading_only: AtomicBool,
    /// One at a time settles floors.
    settling: Mutex<()>,
    /// One at a time seals segments and gives back the disk.
    tidying: Mutex<()>,
    summaries: Mutex<index::Summaries>,
    resolved: Mutex<resolve::Resolved>,
    /// Held while topics get or lose their numbers, and while what is stored of them changes.
    naming: Mutex<()>,
    /// Held, not read: while it is, no other process serves this directory.
    _lock: File,
}

impl RocksStore {
    fn db(&self) -> Result<Handle<'_>, StoreError> {
        let guard = self.db.read();
        if guard.is_none() {
            return Err(StoreError::Closed);
        }
        Ok(Handle(guard))
    }

    /// The same, for what is read without a bound of ids: it must not show what is not durable.
    fn durable_db(&self) -> Result<Handle<'_>, StoreError> {
        let db = self.db()?;
        if self.reading_only.load(Ordering::Acquire) {
            let cause = "the log could not be opened again for writing, and its newest moment is not known".into();
            return Err(StoreError::Io { doing: "reading", cause });
        }
        Ok(db)
    }

    /// Writes `batch`; when that fails, nothing is written any more.
    ///
    /// With [`Durability::Sync`] every batch is synced, also one that could be made again: what tells a torn tail from corruption
    /// (`wal`) is that no batch is begun before all earlier ones are on the disk.
    fn write(&self, db: &Handle<'_>, batch: WriteBatch, sync: bool) -> Result<(), StoreError> {
        self.writable()?;
        let mut options = WriteOptions::default();
        options.set_sync(sync || self.options.durability == Durability::Sync);
        let bytes = batch.size_in_bytes() as u64;
        self.gauge.lock().wrote(bytes);
        // Held until the batch is written: see there.
        let mut ahead = self.ahead.as_ref().map(Mutex::lock);
        if let Some(ahead) = &mut ahead {
            ahead.before_write(bytes);
        }
        // Again: the batch that was waited for may have failed.
        self.writable()?;
        db.write_opt(batch, &options).map_err(|e| self.poison("writing", &e))
    }

    fn poison(&self, doing: &'static str, cause: &dyn std::fmt::Display) -> StoreError {
        self.poisoned.store(true, Ordering::Release);
        StoreError::io(doing)(cause)
    }

    /// Reserves ids up to `last` and some, so that none of them is given twice whatever the disk forgets.
    fn reserve(&self, db: &Handle<'_>, last: EventId) -> Result<(), StoreError> {
        if self.options.durability == Durability::Sync {
            return Ok(());
        }
        let mut mark = self.mark.lock();
        // The last that is reserved is never given: a hole ends with it, and who has seen what lies in a hole is told so by standing before
        // its end.
        if mark.reserved().is_some_and(|upto| upto > last) {
            return Ok(());
        }
        mark.reserve(last + RESERVE_IDS).map_err(|e| self.poison("reserving ids", &e))?;
        // Before any of them is given: should the mark vanish, that is not to pass for a log that never had one.
        if !self.ids_noted.load(Ordering::Acquire) {
            let mut batch = WriteBatch::default();
            batch.put_cf(db.cf(META), meta::IDS, IDS_NEEDED);
            self.write(db, batch, true)?;
            self.ids_noted.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn tidy_lock(&self) -> MutexGuard<'_, ()> {
        self.tidying.lock()
    }
}

/// The open database, for as long as it must not be closed.
struct Handle<'a>(RwLockReadGuard<'a, Option<DB>>);

impl std::ops::Deref for Handle<'_> {
    type Target = DB;
    fn deref(&self) -> &DB {
        self.0.as_ref().expect("RocksStore::db gives no handle to a closed database")
    }
}

impl Handle<'_> {
    fn cf(&self, name: &str) -> &ColumnFamily {
        self.cf_handle(name).expect("every column family is created when the database is opened")
    }
}

impl Store for RocksStore {
    fn name(&self) -> Arc<str> {
        self.name.clone()
    }

    fn tail(&self) -> EventId {
        self.directory.read().tail
    }

    fn last_time(&self) -> Millis {
        self.directory.read().last_time
    }

    fn commit(&self, events: &[Event], remembered: &[Remembered]) -> Result<(), StoreError> {
        self.commit_all(events, remembered)
    }

    fn remembered(&self, key: Digest) -> Result<Option<Remembered>, StoreError> {
        self.recall(key)
    }

    fn forget_keys(&self, before: Millis, most: u64) -> u64 {
        self.forget_oldest_keys(before, most)
    }

    fn keys_remembered(&self) -> u64 {
        self.keys.lock().len()
    }

    fn close_topic(&self, topic: &Topic) -> Result<EventId, StoreError> {
        self.close_for_good(topic)
    }

    fn closed_at(&self, topic: &str) -> Option<EventId> {
        self.directory.read().row_of(topic)?.marks.closed
    }

    fn delete_topic(&self, topic: &Topic) -> Result<Option<Trim>, StoreError> {
        self.take_away(topic)
    }

    fn state(
        &self,
        filter: &Filter,
        each: &mut dyn FnMut(&EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<EventId, StoreError> {
        self.read_state(filter, each)
    }

    fn put_snapshot(&self, topic: &Topic, snapshot: &Snapshot) -> Result<(), StoreError> {
        self.keep_snapshot(topic, snapshot)
    }

    fn snapshot(&self, topic: &str) -> Result<Option<Snapshot>, StoreError> {
        self.read_snapshot(topic)
    }

    fn snapshot_at(&self, topic: &str) -> Option<EventId> {
        self.at_of_snapshot(topic)
    }

    fn sync(&self) -> Result<(), StoreError> {
        self.writable()?;
        self.db()?.flush_wal(true).map_err(|e| self.poison("syncing", &e))
    }

    fn room(&self, bytes: u64) -> Result<(), StoreError> {
        // Where opening it again has failed it is closed, and what lies in its write-ahead logs is what the next attempt flushes.
        let db = self.db().ok();
        let held = || match &db {
            Some(db) => FAMILIES
                .iter()
                .filter_map(|cf| {
                    db.property_int_value_cf(db.cf(cf), rocksdb::properties::CUR_SIZE_ALL_MEM_TABLES).ok()?
                })
                .sum(),
            None => wal::bytes(&self.options.dir.join("db")).unwrap_or(0),
        };
        // An event with a key is written twice.
        self.gauge.lock().room(bytes.saturating_mul(2), held)
    }

    fn writable(&self) -> Result<(), StoreError> {
        if self.poisoned.load(Ordering::Acquire) {
            return Err(StoreError::Io { doing: "writing", cause: "an earlier write failed".into() });
        }
        Ok(())
    }

    fn reopen(&self) -> Result<(), StoreError> {
        let _one = self.tidy_lock();
        self.open_again()
    }

    fn raise_floors(&self, trims: &[Trim]) -> Result<Vec<Trim>, StoreError> {
        self.raise(trims)
    }

    fn floors_published(&self) {
        self.directory.write().floors_published();
    }

    fn floors_told(&self) -> u64 {
        self.directory.read().floors_told
    }

    fn set_retention(&self, topic: &Topic, limits: Option<Limits>) -> Result<(), StoreError> {
        self.override_retention(topic, limits)
    }

    fn due_trims(&self, policy: &Policy, now: Millis) -> Result<Vec<Trim>, StoreError> {
        self.due(policy, now)
    }

    fn settle(&self) -> Result<(), StoreError> {
        self.writable()?;
        let _one = self.settling.lock();
        self.settle_floors()
    }

    fn tidy(&self) -> Result<(), StoreError> {
        self.writable()?;
        let _one = self.tidy_lock();
        self.settle()?;
        self.seal_full_segments()?;
        self.reclaim()?;
        self.give_back_keys()
    }

    fn scan(
        &self,
        scan: Scan<'_>,
        each: &mut dyn FnMut(&EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<EventId, StoreError> {
        self.read_forward(&self.db()?, scan, each)
    }

    fn look_back(&self, filter: &Filter, n: u64, upto: EventId) -> Result<Back, StoreError> {
        self.read_backward(&self.db()?, filter, n, upto)
    }

    fn before_time(&self, time: Millis) -> Result<EventId, StoreError> {
        self.seek_time(&self.db()?, time)
    }

    fn log_floor(&self) -> EventId {
        self.directory.read().log_floor
    }

    fn floor(&self, filter: &Filter) -> Floor {
        self.floor_of(filter)
    }

    fn earliest(&self) -> EventId {
        self.directory.read().smallest_retained()
    }

    fn last_of(&self, topic: &str) -> EventId {
        let directory = self.directory.read();
        directory.row_of(topic).map_or(0, |row| directory.retained_last(row))
    }

    fn retention_of(&self, topic: &str) -> Option<Limits> {
        self.directory.read().row_of(topic)?.marks.retention
    }

    fn topic_count(&self) -> u64 {
        self.directory.read().topic_count()
    }

    fn has_topic(&self, topic: &str) -> bool {
        self.directory.read().number(topic).is_some()
    }

    fn topics(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<TopicStats>, StoreError> {
        self.list(prefix, after, limit)
    }

    fn close(&self) -> Result<(), StoreError> {
        let _one = self.tidy_lock();
        let mut db = self.db.write();
        let Some(open) = db.as_ref() else { return Ok(()) };
        if !self.poisoned.load(Ordering::Acquire) {
            open.flush_wal(true).map_err(|e| self.poison("syncing", &e))?;
            let tail = self.directory.read().tail;
            self.mark.lock().settle(tail).map_err(|e| self.poison("settling the reserved ids", &e))?;
            // All that was given is in the log, and synced: nothing rests on the mark while it is closed.
            if self.ids_noted.load(Ordering::Acquire) {
                let metas = open.cf_handle(META).expect("it was opened with all families");
                let mut options = WriteOptions::default();
                options.set_sync(true);
                open.delete_cf_opt(metas, meta::IDS, &options).map_err(|e| self.poison("writing", &e))?;
                self.ids_noted.store(false, Ordering::Release);
            }
        }
        *db = None;
        Ok(())
    }
}
