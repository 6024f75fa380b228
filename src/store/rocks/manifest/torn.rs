//! Whether a MANIFEST that is bad from some place on may be opened as what lies before: where that describes a whole log.
//!
//! RocksDB (11.8: `VersionSet::ProcessManifestWrites`) appends the records of one or more changes, syncs the file, and only then goes by
//! them: takes files away, counts on new ones, names a new MANIFEST in CURRENT. So a power cut can tear the last append alone, anywhere
//! in it, and then all is still there that the state before it needs: new tables are orphans, the write-ahead logs hold what is in them.
//! RocksDB itself tells it only from the file's length, and refuses it when the length is there and the data are not.
//!
//! Bytes that are bad do not say what has made them so. But it need not be known: **if the state before the bad place is whole, nothing
//! is lost by going back to it, whatever has happened there; if it was torn, it is whole.** So this is proved, or the log is refused.
//! (A place that a single flipped bit explains is refused before: turning it back is better.)
//!
//! The state before it is whole when
//!
//! 1. its first append is: with it the file says all that the one before it said, and what the recovery had put into tables. Its last
//!    record alone has a next file number beyond the MANIFEST's own, which is taken after the other records got theirs. And no group of
//!    records that belong together is begun and not ended.
//! 2. every table that it names is there, with its size. (One that a later record has removed is gone soon.)
//! 3. no write-ahead log that it needs is gone. Of those with a number from `min_wal` on, none held only what is in tables; the rest
//!    are not needed. Logs go in the order of their numbers, and only once a record with a higher `min_wal` is synced. So it is enough that
//!    the first of them is there, for `wal::check` finds holes after it. Which was the first? `min_wal` is
//!    - the name of that log, when a flush has set it; or
//!    - one more than the name of the last log that a recovery has read, when a start has set it. No log had that name, and the first is the one that
//!      this start has made: RocksDB gives it the number before the one of the MANIFEST (the log is made, then `LogAndApplyForRecovery`
//!      begins the MANIFEST). That a MANIFEST was begun so, and not in the midst of a run (it grew too large, or could not be
//!      written), shows in that no column family had that log for its own yet.
//! 4. the first batch there follows what is in tables: its sequence number is at most one more than the largest in them; where the first log
//!    is a start's, the largest then. With 3 that can fail only where a log lost its beginning.
//! 5. it names all column families, or there is nothing in the logs: RocksDB passes silently over what is of one that it does not know.
//!
//! What RocksDB does otherwise than this one day is a log that is refused, as before, not one that is shorter: each point asks for
//! something to be there.

use std::path::Path;

use super::super::layout::FAMILIES;
use super::{Manifest, ManifestError};
use crate::store::wal::{self, WalError};

impl Manifest {
    /// Where it is bad: that the log in `dir` is whole without what lies from there on. Gives where to cut it off: the first record that
    /// is not whole begins there. It changes nothing.
    ///
    /// # Errors
    /// [`ManifestError::Damaged`], or when the directory cannot be read.
    pub fn check_bad(&self, dir: &Path) -> Result<Option<u64>, ManifestError> {
        let Some(bad) = &self.bad else { return Ok(None) };
        let lacks = self.lacks_a_table(dir).map_or_else(|| self.lacks_a_log(dir), |why| Ok(Some(why)));
        match lacks {
            Ok(None) => Ok(Some(self.bad_since)),
            Ok(Some(why)) => Err(ManifestError::Damaged { place: bad.clone(), why }),
            Err(WalError::Io { file, source }) => Err(ManifestError::Io { file, source }),
            Err(error) => Err(ManifestError::Damaged { place: bad.clone(), why: error.to_string() }),
        }
    }

    /// Points 1 and 2.
    fn lacks_a_table(&self, dir: &Path) -> Option<String> {
        if self.begun.is_none() {
            return Some("it lies in what the file was begun with".into());
        }
        if self.in_group {
            return Some("the records before it are a part of a change".into());
        }
        self.tables.iter().find_map(|(number, table)| {
            let file = dir.join(format!("{number:06}.sst"));
            match file.metadata() {
                Ok(there) if there.len() == table.size => None,
                Ok(there) => Some(format!("{} has {} bytes and not {}", file.display(), there.len(), table.size)),
                Err(error) => Some(format!("what lies before it needs {} ({error})", file.display())),
            }
        })
    }

    /// Points 3 to 5.
    fn lacks_a_log(&self, dir: &Path) -> Result<Option<String>, WalError> {
        let logs = wal::beginnings(dir)?;
        let kept = &logs[logs.partition_point(|&(number, _)| number < self.min_wal)..];
        let begun = self.begun.filter(|begun| {
            let of_start = self.number().map_or(0, |number| number.saturating_sub(1));
            begun.log_number < of_start && kept.first().is_some_and(|&(first, _)| first == of_start)
        });
        let in_tables = match (kept.first(), begun) {
            (Some(&(first, _)), _) if first == self.min_wal => self.last_sequence,
            (Some(_), Some(begun)) => begun.last_sequence,
            _ => {
                return Ok(Some(format!(
                    "what lies before it needs the write-ahead logs from {:06}.log on, and the first of them is not there",
                    self.min_wal
                )));
            }
        };
        let next = wal::check(dir)?.next_sequence;
        let Some(first) = kept.iter().find_map(|&(_, first)| first) else { return Ok(None) };
        if first > in_tables + 1 {
            return Ok(Some(format!(
                "what lies before it needs write-ahead logs with batch {} and after, and they begin with {first}",
                in_tables + 1
            )));
        }
        let is_named = |name: &&str| self.families.values().any(|(named, _)| named == name);
        if let Some(name) = FAMILIES.iter().find(|name| !is_named(name)).filter(|_| next != Some(first)) {
            return Ok(Some(format!("what lies before it does not name the column family {name:?}")));
        }
        Ok(None)
    }
}
