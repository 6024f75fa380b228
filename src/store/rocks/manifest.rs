//! RocksDB's own record of its files, the MANIFEST: read before RocksDB reads it, and for `verify`.
//!
//! Why: RocksDB takes a record whose length does not fit into what is left of the file for a torn last write, and says OK. So one
//! flipped bit would take away every change after it: files that hold events would be unknown, and be deleted. And of a newest
//! write-ahead log that is missing it knows nothing, while the MANIFEST does:
//!
//! - a column family's log number is that of a log that was there, or one more than that of the last one that a recovery has read,
//!   and a new log is made before it is written. So some log has that number or a larger one.
//! - of a log that is closed its size is noted when the first batch of the next one is synced. So there is a newer one.
//!
//! A bad place may be what a power cut has left of the last append, or damage: `torn` tells which. It must not know what the files
//! hold, nor write.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::store::wal::{self, Place, WalError};

#[cfg(test)]
mod tests;
mod torn;

/// A file of sorted rows that the MANIFEST names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Table {
    pub family: u32,
    /// In bytes.
    pub size: u64,
}

/// What the MANIFEST says when all of it is read.
#[derive(Debug, Default)]
pub struct Manifest {
    pub file: PathBuf,
    /// Its length, in bytes.
    pub bytes: u64,
    /// The database's random id, also in the file IDENTITY.
    pub id: Option<String>,
    /// Column families by number: the name and the log number.
    pub families: BTreeMap<u32, (String, u64)>,
    /// By the number that is their name.
    pub tables: BTreeMap<u64, Table>,
    /// The number of the newest write-ahead log that is noted as closed, 0 without any.
    pub closed_wal: u64,
    /// Write-ahead logs with smaller numbers are no longer needed.
    pub min_wal: u64,
    /// The largest sequence number in any table that there ever was.
    pub last_sequence: u64,
    /// What was so when the first append, which the file was begun with, was whole; `None` where it is not.
    pub begun: Option<Begun>,
    /// More records are to come of a change that is made as a whole or not at all.
    pub in_group: bool,
    /// Where it stops making sense; all above is of what lies before. `torn` tells whether that is enough.
    pub bad: Option<Place>,
    /// Where the record begins that is not whole there.
    pub bad_since: u64,
    /// Something lies where nothing is read.
    pub padding: Option<Place>,
}

/// What a MANIFEST says at the end of its first append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    pub last_sequence: u64,
    /// The largest log number of any column family.
    pub log_number: u64,
}

/// Why the MANIFEST is not to be trusted.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{} cannot be read: {source}", file.display())]
    Io { file: PathBuf, source: io::Error },
    #[error("{} is corrupt: it does not hold the name of a MANIFEST and the end of a line; the MANIFEST beside it is named so", file.display())]
    Current { file: PathBuf },
    #[error("{} is missing, though CURRENT names it: bring it back, or restore a backup", file.display())]
    Missing { file: PathBuf },
    #[error(
        "{} is corrupt at byte {}: {}; opening it would silently lose files of events: restoring a backup mends it",
        place.file.display(), place.offset, place.what
    )]
    Corrupt { place: Place },
    #[error(
        "{} is corrupt at byte {}: {}, and this is not the torn end of a last write, as {why}; opening it would silently lose \
         files of events: bring back what is missing, or restore a backup",
        place.file.display(), place.offset, place.what
    )]
    Damaged { place: Place, why: String },
    #[error("{} cannot be understood: the record at byte {offset} {what}", file.display())]
    Record { file: PathBuf, offset: u64, what: &'static str },
    #[error(
        "the newest write-ahead log in {} is missing: {} tells of one with number {at_least} or more: bring it back, or \
         restore a backup; without it acknowledged events would silently be lost",
        dir.display(), manifest.display()
    )]
    NoWal { dir: PathBuf, manifest: PathBuf, at_least: u64 },
}

impl Manifest {
    /// Reads the MANIFEST that CURRENT names in `dir`, up to its end or where it is `bad`.
    ///
    /// # Errors
    /// [`ManifestError`]: RocksDB must not open the directory, as it would do so without what cannot be read. That holds for one that is
    /// `bad` too, unless [`Manifest::check_bad`] allows it.
    pub fn read(dir: &Path) -> Result<Self, ManifestError> {
        let mut manifest = Self { file: current(dir)?, ..Self::default() };
        let file = manifest.file.clone();
        if !file.exists() {
            return Err(ManifestError::Missing { file });
        }
        let mut bad = None;
        let read = wal::records(&file, &mut |offset, edit| {
            if bad.is_none()
                && let Err(what) = manifest.apply(edit)
            {
                bad = Some((offset, what));
            }
        });
        let read = read.map_err(|e| match e {
            WalError::Io { file, source } => ManifestError::Io { file, source },
            WalError::Corrupt { place } => ManifestError::Corrupt { place },
            WalError::Missing { file, offset, .. } => ManifestError::Record { file, offset, what: "is out of order" },
        })?;
        if let Some((offset, what)) = bad {
            return Err(ManifestError::Record { file, offset, what });
        }
        (manifest.bytes, manifest.padding) = (read.bytes, read.padding);
        if let Some((place, since)) = read.bad {
            (manifest.bad, manifest.bad_since) = (Some(place), since);
        }
        if manifest.families.is_empty() && manifest.bad.is_none() {
            return Err(ManifestError::Record { file, offset: 0, what: "and all after it name no column family" });
        }
        Ok(manifest)
    }

    /// That the newest of the write-ahead logs in `dir` is there.
    ///
    /// # Errors
    /// [`ManifestError::NoWal`], or when the directory cannot be read.
    pub fn check_newest_wal(&self, dir: &Path) -> Result<(), ManifestError> {
        let newest = wal::newest(dir).map_err(|source| ManifestError::Io { file: dir.to_path_buf(), source })?;
        let newest = newest.and_then(|path| path.file_stem()?.to_str()?.parse::<u64>().ok()).unwrap_or(0);
        let log_number = self.families.values().map(|&(_, log)| log).max().unwrap_or(0);
        let at_least = log_number.max(if self.closed_wal > 0 { self.closed_wal + 1 } else { 0 });
        if newest >= at_least {
            return Ok(());
        }
        Err(ManifestError::NoWal { dir: dir.to_path_buf(), manifest: self.file.clone(), at_least })
    }

    /// Takes in one record: fields that each begin with a tag (`db/version_edit.h`).
    fn apply(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        let mut fields = Fields(bytes);
        let (mut family, mut log, mut name, mut dropped) = (0, None, None, false);
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        let (mut next_file, mut left_of_group) = (0, 0);
        while !fields.0.is_empty() {
            match fields.number()? {
                LOG_NUMBER => log = Some(fields.number()?),
                NEXT_FILE => next_file = fields.number()?,
                LAST_SEQUENCE => self.last_sequence = self.last_sequence.max(fields.number()?),
                ATOMIC_GROUP => left_of_group = fields.number()?,
                PREVIOUS_LOG | MAX_FAMILY => drop(fields.number()?),
                MIN_LOG => self.min_wal = fields.number()?,
                COMPARATOR => drop(fields.slice()?),
                COMPACT_CURSOR => drop((fields.number()?, fields.slice()?)),
                DELETED_FILE => removed.push((fields.number()?, fields.number()?).1),
                NEW_FILE => added.push(fields.table()?),
                FAMILY => family = u32::try_from(fields.number()?).map_err(|_| "names no column family")?,
                FAMILY_ADD => name = Some(fields.text()?),
                FAMILY_DROP => dropped = true,
                DB_ID => self.id = Some(fields.text()?),
                WAL_ADDED => {
                    let number = Fields(fields.slice()?).number()?;
                    self.closed_wal = self.closed_wal.max(number);
                }
                tag if tag & IGNORABLE != 0 => drop(fields.slice()?),
                _ => return Err("has a field that is not known here"),
            }
        }
        self.in_group = left_of_group > 0;
        if dropped {
            self.families.remove(&family);
            self.tables.retain(|_, table| table.family != family);
            return Ok(());
        }
        match name {
            Some(name) => drop(self.families.insert(family, (name, 0))),
            // The default one is there without having been added.
            None if family == 0 => drop(self.families.entry(0).or_insert_with(|| ("default".into(), 0))),
            None => {}
        }
        let known = self.families.get_mut(&family).ok_or("is of a column family that was not added")?;
        known.1 = known.1.max(log.unwrap_or(0));
        for number in removed {
            self.tables.remove(&number).ok_or("removes a file that was not added")?;
        }
        for (number, size) in added {
            self.tables.insert(number, Table { family, size });
        }
        if self.begun.is_none() && self.number().is_some_and(|number| next_file > number) {
            let log_number = self.families.values().map(|&(_, log)| log).max().unwrap_or(0);
            self.begun = Some(Begun { last_sequence: self.last_sequence, log_number });
        }
        Ok(())
    }

    /// The number in its name.
    fn number(&self) -> Option<u64> {
        self.file.file_name()?.to_str()?.strip_prefix("MANIFEST-")?.parse().ok()
    }
}

const COMPARATOR: u64 = 1;
const LOG_NUMBER: u64 = 2;
const NEXT_FILE: u64 = 3;
const LAST_SEQUENCE: u64 = 4;
const COMPACT_CURSOR: u64 = 5;
const DELETED_FILE: u64 = 6;
const PREVIOUS_LOG: u64 = 9;
const MIN_LOG: u64 = 10;
const NEW_FILE: u64 = 103;
const FAMILY: u64 = 200;
const FAMILY_ADD: u64 = 201;
const FAMILY_DROP: u64 = 202;
const MAX_FAMILY: u64 = 203;
const ATOMIC_GROUP: u64 = 300;
const IGNORABLE: u64 = 1 << 13;
const DB_ID: u64 = IGNORABLE + 1;
const WAL_ADDED: u64 = IGNORABLE + 7;

/// The file that CURRENT names.
pub fn current(dir: &Path) -> Result<PathBuf, ManifestError> {
    let file = dir.join("CURRENT");
    let bytes = fs::read(&file).map_err(|source| ManifestError::Io { file: file.clone(), source })?;
    let name = std::str::from_utf8(&bytes).ok().and_then(|text| text.strip_suffix('\n'));
    let is_number = |name: &&str| {
        name.strip_prefix("MANIFEST-").is_some_and(|n| n.len() >= 6 && n.bytes().all(|byte| byte.is_ascii_digit()))
    };
    name.filter(is_number).map(|name| dir.join(name)).ok_or(ManifestError::Current { file })
}

/// What is left of a record.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn number(&mut self) -> Result<u64, &'static str> {
        super::layout::read_varint(&mut self.0).ok_or("ends within a number")
    }

    fn slice(&mut self) -> Result<&'a [u8], &'static str> {
        let len = self.number()?;
        let split = usize::try_from(len).ok().and_then(|len| self.0.split_at_checked(len));
        let (slice, rest) = split.ok_or("ends within a text")?;
        self.0 = rest;
        Ok(slice)
    }

    fn text(&mut self) -> Result<String, &'static str> {
        std::str::from_utf8(self.slice()?).map(str::to_owned).map_err(|_| "holds a name that is no text")
    }

    /// A new file's number and size.
    fn table(&mut self) -> Result<(u64, u64), &'static str> {
        const END: u64 = 1;
        let (_level, number, size) = (self.number()?, self.number()?, self.number()?);
        let _keys_and_sequence_numbers = (self.slice()?, self.slice()?, self.number()?, self.number()?);
        while self.number()? != END {
            self.slice()?;
        }
        Ok((number, size))
    }
}
