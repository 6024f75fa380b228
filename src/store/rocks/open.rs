//! Opening the log: the checks before RocksDB may touch it, and what a stop has left undone.
//!
//! What holds: a log whose write-ahead log lost something in the middle is refused, not opened shorter. Must not serve reads.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use rocksdb::{DB, DEFAULT_COLUMN_FAMILY_NAME, Range, WriteBatch, WriteOptions};

use super::ahead::{AHEAD_BYTES, Ahead};
use super::directory::Directory;
use super::ids::{find_mark, note_ids, skip_reserved};
use super::layout::{FAMILIES, FORMAT_VERSION, FORMATS, LOG, META, log_key, meta};
use super::manifest::{Manifest, ManifestError};
use super::recover::recover;
use super::remembered::Keys;
use super::settings::{Floors, open_database, open_to_read};
use super::{Handle, Options, RocksStore, index, resolve, sums};
use crate::event::EventId;
use crate::store::mark::{LOST_IDS, Mark};
use crate::store::space::Gauge;
use crate::store::wal::WalError;
use crate::store::{Durability, StoreError, wal};

impl RocksStore {
    /// Opens the log in `options.dir`, or makes a new one there.
    ///
    /// # Errors
    /// When another process serves it, the disk refuses, or the log is corrupt: then nothing was changed.
    pub fn open(options: Options) -> Result<Self, StoreError> {
        make(&options.dir).map_err(|e| StoreError::io("creating the data directory")(&e))?;
        let lock = lock(&options.dir)?;
        let floors = Arc::new(Floors::default());
        let opened = Opened::open(&options, &floors, None)?;
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
        let published = self.directory.read().log_published;
        let opened = match Opened::open(&self.options, &self.floors, Some(published)) {
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
    fn open(options: &Options, floors: &Arc<Floors>, published: Option<EventId>) -> Result<Self, StoreError> {
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
            let (name, format) = identify(&db)?;
            let mut directory = recover(&db, published)?;
            let (mark, reserved) = match found {
                Some((mark, reserved)) => (Some(mark), reserved.unwrap_or(0)),
                None => (None, directory.tail.max(directory.hole.1) + LOST_IDS),
            };
            skip_reserved(&db, &mut directory, reserved)?;
            let anew = || Mark::begin_anew(&options.dir, reserved).map_err(|e| StoreError::io("reserving ids")(&e));
            let mark = mark.map_or_else(anew, Ok)?;
            let ids_noted = note_ids(&db, &mark, options.durability)?;
            let keys = Keys::recover(&db, floors.keys(), directory.tail)?;
            if format != FORMAT_VERSION {
                // Before anything is written that an older program would not understand, and when all of it has been read.
                let mut batch = WriteBatch::default();
                batch.put_cf(db.cf(META), meta::FORMAT, FORMAT_VERSION.to_be_bytes());
                write_synced(&db, batch)?;
                tracing::info!(
                    from = format,
                    to = FORMAT_VERSION,
                    "the log is written on in a newer format, which older programs refuse"
                );
            }
            (directory, keys, name, mark, ids_noted)
        };
        let db = holder.into_inner().expect("it was put there above");
        if let Err(error) = sums::write(&options.dir) {
            tracing::debug!(%error, "the sums of the settings were not noted");
        }
        Ok(Self { db, directory, keys, mark, ids_noted, name })
    }
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

/// Checks the format, and gives it and the log's name; a new log is given both.
fn identify(db: &Handle<'_>) -> Result<(Arc<str>, u32), StoreError> {
    let metas = db.cf(META);
    let get = |key| db.get_pinned_cf(metas, key).map_err(|e| index::read_failed(&e));
    match (get(meta::FORMAT)?, get(meta::NAME)?) {
        (None, None) => {
            let name: String = std::iter::repeat_with(fastrand::alphanumeric).take(16).collect();
            let mut batch = WriteBatch::default();
            batch.put_cf(metas, meta::FORMAT, FORMAT_VERSION.to_be_bytes());
            batch.put_cf(metas, meta::NAME, &name);
            write_synced(db, batch)?;
            Ok((name.into(), FORMAT_VERSION))
        }
        (Some(format), Some(name)) => {
            let theirs = <[u8; 4]>::try_from(&*format).map_or(0, u32::from_be_bytes);
            if !FORMATS.contains(&theirs) {
                let (first, last) = (FORMATS.start(), FORMATS.end());
                let what = format!("it has format {theirs}, this program knows {first} to {last}");
                return Err(StoreError::Version(what.into()));
            }
            let name = std::str::from_utf8(&name).map_err(|e| corrupt(&format!("its name is not text ({e})")))?;
            Ok((name.into(), theirs))
        }
        _ => Err(corrupt(&"it has a name without a format, or a format without a name")),
    }
}

pub(super) fn write_synced(db: &Handle<'_>, batch: WriteBatch) -> Result<(), StoreError> {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.write_opt(batch, &options).map_err(|e| StoreError::io("writing to the log")(&e))
}
