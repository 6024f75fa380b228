//! The ids that were reserved and may have been given, when the log is opened: the file `ids`, and what `meta` knows of it.
//!
//! What holds: ids that may have been given are never given again; where nothing can tell which, the log is refused. Must not give ids.

use std::path::Path;

use rocksdb::{DB, WriteBatch};

use super::directory::Directory;
use super::layout::{IDS_NEEDED, META, meta, pair};
use super::open::{corrupt, write_synced};
use super::settings::opened;
use super::{Handle, Options, index};
use crate::event::EventId;
use crate::store::mark::{Mark, MarkError};
use crate::store::{Durability, StoreError};

/// The mark, and what is reserved; nothing where it was given up. Refuses a log whose mark is needed and is not there; changes nothing.
pub fn find_mark(options: &Options, dir: &Path) -> Result<Option<(Mark, Option<EventId>)>, StoreError> {
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
pub fn note_ids(db: &Handle<'_>, mark: &Mark, durability: Durability) -> Result<bool, StoreError> {
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

/// Notes as a hole the ids that were reserved and may have been given, though nothing is there under them.
pub fn skip_reserved(db: &Handle<'_>, directory: &mut Directory, reserved: EventId) -> Result<(), StoreError> {
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
