//! The write-ahead logs, looked at before RocksDB opens them: a torn last write is no harm, corruption is.
//!
//! RocksDB's default recovery stops at the first bad place and says OK, so that one flipped bit would silently take every
//! acknowledged batch after it; its stricter modes refuse the torn tail that each power cut may leave. The two can be told
//! apart because this program has every batch synced before it writes the next: **when a batch was begun, all before it was
//! durable**. So a bad place is
//!
//! - a **flipped bit** when turning back a single bit makes the record right, and no later file shows that a recovery has passed
//!   over it: corruption, be it in the very last batch. What a torn write leaves looks like that with a chance of one in 2^32 for each
//!   bit of the record: of 300 bytes once in 1.8 million torn writes, of a whole block once in 16,000. Beside chance, it does where all
//!   that was lost of it is one set bit: where a record reaches into a sector by one byte which is a power of two, so once in some
//!   16,000. The refusal names the bit; turning it on is right for both, as the batch is then whole.
//! - a **torn tail** when no later batch is seen, neither in its file nor in a later one. Nothing acknowledged can be
//!   missing but the last batch itself. (A batch may be torn anywhere: its pages reach the disk in any order. So fragments that may
//!   be its own prove nothing.)
//! - a torn tail too when the first batch of a later file has the very sequence number that was expected: an earlier
//!   recovery has cut the tail off and went on there. RocksDB marks this on purpose with an empty batch.
//! - **corruption** otherwise.
//!
//! Sequence numbers tell of missing batches and files. Each batch carries the number of its first operation and their
//! count, one writer writes them in order into one file at a time, whatever the column family, and nothing that this
//! program does takes a number without writing it there. So they are continuous over all files that are left. The oldest
//! files go first (RocksDB deletes in order of name), so a stop between two deletions leaves no hole, and the first number
//! found may be any. That the oldest files, or the newest, are missing cannot be seen here; the database's own record of its files
//! tells (`rocks::manifest`). What nothing tells: that the newest file was cut off right between two batches.
//!
//! Memory is one block, whatever the sizes. It must not know what is in a batch, nor open a database.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

mod file;
#[cfg(test)]
mod tests;

use file::{BATCH_HEAD, FIRST, FULL, LAST, Look, MIDDLE, PREDECESSOR, SEQUENCE_MAX, Wal};

/// What was found; nothing of it needs mending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WalReport {
    pub files: u64,
    /// Of all files together.
    pub bytes: u64,
    /// The batches that RocksDB will recover, or has already flushed.
    pub batches: u64,
    /// The sequence number that the next batch will have; `None` without any batch.
    pub next_sequence: Option<u64>,
    /// The newest torn tail. RocksDB drops it.
    pub torn: Option<Place>,
    /// Something lies in the last bytes of a block, which belong to no batch and are not read. It harms nothing.
    pub padding: Option<Place>,
}

/// Where a file stops making sense, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    /// In bytes from the beginning of the file.
    pub offset: u64,
    pub what: Bad,
}

/// What is bad about a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Bad {
    #[error("the checksum does not match")]
    Checksum,
    #[error("bit {} of byte {} is flipped, which is all that is wrong there: turning it back mends it", .bit % 8, .bit / 8)]
    Flipped {
        /// Counted from the beginning of the file, in each byte from the lowest.
        bit: u64,
    },
    #[error("the length does not fit into its block")]
    Length,
    #[error("the file ends within a batch")]
    Cut,
    #[error("there are zeros where a record should be")]
    Zeros,
    #[error("the fragments of two batches are mixed")]
    Order,
    #[error("the batch is too short, or its sequence number too large")]
    Batch,
    #[error("there should be zeros at the end of its block")]
    Padding,
    #[error("records of type {0} are not written by this program")]
    Type(u8),
}

/// Why the logs must not be opened.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    #[error("{} cannot be read: {source}", file.display())]
    Io { file: PathBuf, source: io::Error },
    #[error(
        "the write-ahead log {} is corrupt at byte {}: {}, and this is not the torn end of a last write; opening it would \
         silently lose acknowledged events: `verify` tells what can be read, and restoring a backup mends it",
        place.file.display(), place.offset, place.what
    )]
    Corrupt { place: Place },
    #[error(
        "the write-ahead log {} lacks batches before byte {offset}: sequence number {expected} was expected and {found} \
         found, so a file or a part of one is missing: bring it back; or `verify` tells what can be read, and restoring a \
         backup mends it",
        file.display()
    )]
    Missing { file: PathBuf, offset: u64, expected: u64, found: u64 },
}

/// Reads every write-ahead log in `dir` (files like `000012.log`). A directory that does not exist has none.
///
/// Takes as long as reading them: their sizes are bounded by the options of the database. No one may write them meanwhile.
///
/// # Errors
/// [`WalError`]: RocksDB must not open the directory, for it would drop acknowledged batches.
pub fn check(dir: &Path) -> Result<WalReport, WalError> {
    let mut check = Check::default();
    for path in files(dir).map_err(|source| WalError::Io { file: dir.to_path_buf(), source })? {
        let mut wal = Wal::open(path.clone()).map_err(|source| WalError::Io { file: path.clone(), source })?;
        check.report.files += 1;
        check.report.bytes += wal.len;
        check.file(&mut wal).map_err(|stop| stop.at(path))?;
    }
    match check.flipped {
        Some(place) => Err(WalError::Corrupt { place }),
        None => Ok(check.report),
    }
}

/// Where all that lies from `place` on is zero but for one bit: that bit, counted from the beginning of the file.
///
/// # Errors
/// When the file cannot be read.
pub fn stray_bit(place: &Place) -> io::Result<Option<u64>> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let mut file = fs::File::open(&place.file)?;
    file.seek(SeekFrom::Start(place.offset))?;
    let (mut at, mut found, mut bytes) = (place.offset, None, vec![0; file::BLOCK]);
    loop {
        let n = file.read(&mut bytes)?;
        if n == 0 {
            return Ok(found);
        }
        for (byte, of) in bytes[..n].iter().zip(at..).filter(|&(&byte, _)| byte != 0) {
            if found.is_some() || !byte.is_power_of_two() {
                return Ok(None);
            }
            found = Some(of * 8 + u64::from(byte.trailing_zeros()));
        }
        at += n as u64;
    }
}

/// What was read of a file of records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// Its length.
    pub bytes: u64,
    /// Where it stops making sense, and where the record begins that is not whole there.
    pub bad: Option<(Place, u64)>,
    /// Something lies in the last bytes of a block, which belong to no record and are not read.
    pub padding: Option<Place>,
}

/// Reads any file of records, and gives each, put together, with its offset, up to the first that is not whole; the MANIFEST is written
/// so. Whether what is bad there is a torn write is for the caller to find out. Memory is the largest record. No one may write it meanwhile.
///
/// # Errors
/// [`WalError`] when it cannot be read, or what is bad is no torn write for certain: a single flipped bit, or records that are whole
/// and make no sense.
pub fn records(path: &Path, each: &mut dyn FnMut(u64, &[u8])) -> Result<Records, WalError> {
    let io = |source| WalError::Io { file: path.to_path_buf(), source };
    let corrupt = |offset, what| WalError::Corrupt { place: Place { file: path.to_path_buf(), offset, what } };
    let mut wal = Wal::open(path.to_path_buf()).map_err(io)?;
    let mut report = Records { bytes: wal.len, ..Records::default() };
    let mut open: Option<(u64, Vec<u8>)> = None;
    let mut offset = 0;
    // Every turn moves on by at least a byte, or ends.
    let what = loop {
        match wal.look(offset).map_err(io)? {
            Look::Padding { next, is_zero } => {
                if !is_zero {
                    report.padding = Some(Place { file: path.to_path_buf(), offset, what: Bad::Padding });
                }
                offset = next;
            }
            Look::End if open.is_none() && offset >= report.bytes => return Ok(report),
            Look::End if offset < report.bytes => break Bad::Zeros,
            Look::End => break Bad::Cut,
            Look::Bad(what) => break what,
            Look::Record { kind, payload, next } => {
                let mut of = match (kind, open.take()) {
                    (FULL | FIRST, None) => (offset, Vec::new()),
                    (MIDDLE | LAST, Some(open)) => open,
                    (FULL..=LAST, _) => return Err(corrupt(offset, Bad::Order)),
                    _ => return Err(corrupt(offset, Bad::Type(kind))),
                };
                of.1.extend_from_slice(payload);
                if matches!(kind, FULL | LAST) {
                    each(of.0, &of.1);
                } else {
                    open = Some(of);
                }
                offset = next;
            }
        }
    };
    if let Some(bit) = wal.flipped_bit(offset).map_err(io)? {
        return Err(corrupt(offset, Bad::Flipped { bit }));
    }
    let since = open.map_or(offset, |(since, _)| since);
    report.bad = Some((Place { file: path.to_path_buf(), offset, what }, since));
    Ok(report)
}

/// The numbers of the write-ahead logs in `dir` in their order, each with the sequence number of its first batch; `None` where it has
/// no batch, or none that can be read.
///
/// # Errors
/// When the directory or a file cannot be read.
pub fn beginnings(dir: &Path) -> Result<Vec<(u64, Option<u64>)>, WalError> {
    let of = |(number, path): (u64, PathBuf)| {
        let first = first_sequence(&path).map_err(|source| WalError::Io { file: path, source })?;
        Ok((number, first))
    };
    let files = numbered(dir).map_err(|source| WalError::Io { file: dir.to_path_buf(), source })?;
    files.into_iter().map(of).collect()
}

/// A batch that is the first of its file has its head within the first fragment, as that has a block's room.
fn first_sequence(path: &Path) -> io::Result<Option<u64>> {
    let mut wal = Wal::open(path.to_path_buf())?;
    let mut offset = 0;
    // Every turn moves on by a record, or ends.
    loop {
        match wal.look(offset)? {
            Look::Record { kind: PREDECESSOR, next, .. } => offset = next,
            Look::Record { kind: FULL | FIRST, payload, .. } => {
                let mut batch = Batch::new(offset);
                batch.add(payload);
                return Ok(batch.read().map(|(sequence, _)| sequence));
            }
            _ => return Ok(None),
        }
    }
}

/// The bytes of every write-ahead log in `dir`: at most so much is put into files of the database when it is opened.
///
/// # Errors
/// When the directory cannot be read.
pub fn bytes(dir: &Path) -> io::Result<u64> {
    files(dir)?.iter().map(|path| fs::metadata(path).map(|file| file.len())).sum()
}

/// The newest write-ahead log in `dir`, when there is one.
///
/// # Errors
/// When the directory cannot be read.
pub fn newest(dir: &Path) -> io::Result<Option<PathBuf>> {
    Ok(files(dir)?.pop())
}

fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(numbered(dir)?.into_iter().map(|(_, path)| path).collect())
}

fn numbered(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files: Vec<(u64, PathBuf)> = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".log"));
        if let Some(number) = number.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            && let Ok(number) = number.parse()
        {
            files.push((number, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Why looking at a file ended, the file yet unnamed.
enum Stop {
    Io(io::Error),
    Corrupt(u64, Bad),
    /// An earlier file's tail is not torn: a later file goes on after it.
    CorruptBefore(Place),
    Missing {
        offset: u64,
        expected: u64,
        found: u64,
    },
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Stop {
    fn at(self, file: PathBuf) -> WalError {
        match self {
            Self::Io(source) => WalError::Io { file, source },
            Self::Corrupt(offset, what) => WalError::Corrupt { place: Place { file, offset, what } },
            Self::CorruptBefore(place) => WalError::Corrupt { place },
            Self::Missing { offset, expected, found } => WalError::Missing { file, offset, expected, found },
        }
    }
}

/// A batch of which not all fragments have been seen.
struct Batch {
    start: u64,
    head: [u8; BATCH_HEAD],
    have: usize,
}

impl Batch {
    fn new(start: u64) -> Self {
        Self { start, head: [0; BATCH_HEAD], have: 0 }
    }

    fn add(&mut self, payload: &[u8]) {
        let n = payload.len().min(BATCH_HEAD - self.have);
        self.head[self.have..self.have + n].copy_from_slice(&payload[..n]);
        self.have += n;
    }

    /// Sequence and count.
    fn read(&self) -> Option<(u64, u64)> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3] = self.head;
        let sequence = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let count = u64::from(u32::from_le_bytes([c0, c1, c2, c3]));
        (self.have == BATCH_HEAD && sequence <= SEQUENCE_MAX).then_some((sequence, count))
    }
}

/// The walk through all files in their order.
#[derive(Default)]
struct Check {
    report: WalReport,
    /// The tail that the next batch to be seen is to excuse.
    tail: Option<Place>,
    /// A tail that is not torn but for a flipped bit, unless the next batch to be seen excuses it.
    flipped: Option<Place>,
}

impl Check {
    fn file(&mut self, wal: &mut Wal) -> Result<(), Stop> {
        let mut batch: Option<Batch> = None;
        let mut offset = 0;
        // Every turn moves on by at least a byte, or ends.
        let what = loop {
            match wal.look(offset)? {
                Look::Padding { next, is_zero } => {
                    if !is_zero {
                        self.report.padding = Some(Place { file: wal.path.clone(), offset, what: Bad::Padding });
                    }
                    offset = next;
                }
                Look::Record { kind: PREDECESSOR, next, .. } => offset = next,
                Look::End if batch.is_none() => return Ok(()),
                Look::End => break Bad::Cut,
                Look::Bad(what) => break what,
                Look::Record { kind, payload, next } => {
                    // Records whose checksums match are not torn: if their order is bad, something between is gone.
                    let mut of = match (kind, batch.take()) {
                        (FULL | FIRST, None) => Batch::new(offset),
                        (MIDDLE | LAST, Some(open)) => open,
                        (FULL..=LAST, open) => {
                            return Err(Stop::Corrupt(open.map_or(offset, |open| open.start), Bad::Order));
                        }
                        _ => return Err(Stop::Corrupt(offset, Bad::Type(kind))),
                    };
                    of.add(payload);
                    if matches!(kind, FULL | LAST) {
                        self.batch(&of)?;
                    } else {
                        batch = Some(of);
                    }
                    offset = next;
                }
            }
        };
        let since = batch.as_ref().map_or(offset, |batch| batch.start);
        // When the batch with the bad place says that it ends there, later fragments are another one's.
        let ends = wal.kind_claimed(offset)? == Some(if batch.is_some() { LAST } else { FULL });
        let flipped = wal.flipped_bit(offset)?.map(|bit| Bad::Flipped { bit });
        if wal.later_batch(offset, since, ends, self.report.next_sequence)? {
            return Err(Stop::Corrupt(offset, flipped.unwrap_or(what)));
        }
        let place = Place { file: wal.path.clone(), offset, what };
        if let Some(what) = flipped {
            self.flipped.get_or_insert(Place { what, ..place.clone() });
        }
        self.tail.get_or_insert_with(|| place.clone());
        self.report.torn = Some(place);
        Ok(())
    }

    fn batch(&mut self, batch: &Batch) -> Result<(), Stop> {
        let Some((sequence, count)) = batch.read() else { return Err(Stop::Corrupt(batch.start, Bad::Batch)) };
        let expected = self.report.next_sequence;
        if let Some(tail) = self.tail.take() {
            // With no batch before the tail (recovery had deleted the file before it, but not yet the tail's own), only
            // the empty batch speaks for it.
            if !expected.map_or(count == 0, |expected| sequence == expected) {
                return Err(Stop::CorruptBefore(tail));
            }
            self.flipped = None;
        }
        if let Some(expected) = expected.filter(|&expected| sequence != expected) {
            return Err(Stop::Missing { offset: batch.start, expected, found: sequence });
        }
        self.report.batches += 1;
        self.report.next_sequence = Some(sequence + count);
        Ok(())
    }
}
