//! `verify`: reads a whole log that nobody has open, and tells what is wrong where.
//!
//! First the files, each by itself and against what the others say of it (`files`, `table`); then what they hold, each row against
//! the log (`contents`). What holds: no byte of the directory is changed; nothing that is found ends the search, but for what cannot
//! be read at all; every bit of every file is covered by a checksum or compared with what it must be, but for RocksDB's own text
//! logs (`LOG`), which are no data. Memory: the topics as a server has them, the index of one segment, 256 tables' indexes, the
//! write-ahead log (which RocksDB puts in order in memory), one block, and some 100 MB at most for keys that are taken away later.
//!
//! While it reads it holds the directory's lock, so no server starts meanwhile.

mod contents;
mod files;
mod table;

use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// What was found at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A file, or `log` or what else the rows are of; and where there.
    pub place: String,
    pub what: String,
    pub kind: Kind,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is not as it was written.
    Damage,
    /// Worth knowing: what a stop may leave, or what could not be looked at.
    Note,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Who is told, as it goes on.
pub trait Watch {
    fn found(&mut self, finding: Finding);

    /// A part of the work begins, of so many steps: bytes, or rows where they are estimated.
    fn begin(&mut self, part: &'static str, steps: u64);

    fn advance(&mut self, steps: u64);
}

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    pub files: u64,
    /// Of these files.
    pub bytes: u64,
    /// That are retained.
    pub events: u64,
    /// That are known.
    pub topics: u64,
    pub damage: u64,
    pub notes: u64,
}

/// Why nothing could be looked at.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("{} holds no log: there is no directory {}", dir.display(), dir.join("db").display())]
    NoLog { dir: PathBuf },
    #[error("{} is in use by a server: stop it first, or verify a copy", dir.display())]
    Locked { dir: PathBuf },
    #[error("{} cannot be read: {source}", file.display())]
    Io { file: PathBuf, source: io::Error },
}

/// Counts what is found on its way.
struct Counted<'a> {
    watch: &'a mut dyn Watch,
    summary: Summary,
}

impl Counted<'_> {
    fn damage(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.summary.damage += 1;
        self.watch.found(Finding { place: place.into(), what: what.into(), kind: Kind::Damage });
    }

    fn note(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.summary.notes += 1;
        self.watch.found(Finding { place: place.into(), what: what.into(), kind: Kind::Note });
    }
}

/// Reads all of the log in `dir`.
///
/// # Errors
/// [`VerifyError`] when it cannot be looked at; what is wrong with it is told to `watch`.
pub fn verify(dir: &Path, watch: &mut dyn Watch) -> Result<Summary, VerifyError> {
    let mut to = Counted { watch, summary: Summary::default() };
    if !dir.join("db").is_dir() {
        return Err(VerifyError::NoLog { dir: dir.to_path_buf() });
    }
    let _lock = lock(dir, &mut to)?;
    let can_be_opened = files::check_all(dir, &mut to)?;
    if can_be_opened {
        contents::check(dir, &mut to);
    } else {
        to.note("log", "the events were not looked at, as the database cannot be opened as it is");
    }
    Ok(to.summary)
}

/// Looks at one file of the log in `dir`, given by its path within, as [`verify`] does before it looks at what the files hold. What
/// other files say of it is believed.
///
/// # Errors
/// As [`verify`].
pub fn verify_file(dir: &Path, name: &str, watch: &mut dyn Watch) -> Result<Summary, VerifyError> {
    let mut to = Counted { watch, summary: Summary::default() };
    files::check_one(dir, name, &mut to)?;
    Ok(to.summary)
}

/// Takes the directory's lock without writing.
fn lock(dir: &Path, to: &mut Counted<'_>) -> Result<Option<File>, VerifyError> {
    let path = dir.join("lock");
    let io = |source| VerifyError::Io { file: path.clone(), source };
    match File::open(&path) {
        Ok(file) => match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Err(VerifyError::Locked { dir: dir.to_path_buf() }),
            Err(TryLockError::Error(source)) => Err(io(source)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            to.note("lock", "it is missing, so a server may have started meanwhile; the next start makes it");
            Ok(None)
        }
        Err(source) => Err(io(source)),
    }
}
