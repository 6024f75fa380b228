//! The reservation of ids: the file `ids`, which says up to where ids may have been given out.
//!
//! Ids are never reused, so none is given out before the range that holds it is reserved here and synced; after an
//! unclean stop the log goes on above the reservation. The write-ahead log could not hold this mark: it would vanish with
//! the ids it is to guard.
//!
//! ```text
//! two slots, at 0 and at 4096, 64 bytes each, little endian:
//! magic [8] = "TIDEids\n" | version u32 = 1 | 0 u32 | sequence u64 | reserved up to u64 | 0 [28] | crc32 u32 of the 60 bytes
//! ```
//!
//! What holds: the slots are written in turn, so a torn write leaves the other one, which still covers every id that was
//! given out, since its successor had not been acknowledged. The larger sequence counts. Must not know RocksDB, nor
//! what an id is for.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The file's name.
pub const NAME: &str = "ids";
/// A file of this name says that what was reserved is lost for good, and that the ids are to be skipped that may have been given out.
pub const SKIP: &str = "ids.skip";
/// So many may have been given out at the most beyond those that the log holds. What RocksDB has not synced of its write-ahead logs is
/// three write buffers of 16 MiB or so, as a buffer is on the disk before its log goes, and a record takes 30 bytes there: this is ten times that.
pub const LOST_IDS: u64 = 1 << 24;
const MAGIC: &[u8; 8] = b"TIDEids\n";
const VERSION: u32 = 1;
const SLOT: usize = 64;
/// Slots lie in pages of their own, so that no write of one can harm the other.
const PAGE: usize = 4096;
const CRC_AT: usize = SLOT - 4;

/// Why the mark cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    #[error("{} cannot be read: {source}", file.display())]
    Io { file: PathBuf, source: io::Error },
    #[error(
        "{} is corrupt: neither of its two slots is valid, so it is unknown which ids were given out; {}",
        file.display(), mend(file)
    )]
    Corrupt { file: PathBuf },
    #[error(
        "{} is missing, though ids may have been given out that the log does not hold, as it was not stopped cleanly; put it back, or {}",
        file.display(), mend(file)
    )]
    Missing { file: PathBuf },
    #[error("{} has version {found}; this program knows {VERSION}: use the newer program", file.display())]
    Version { file: PathBuf, found: u32 },
}

/// What can be done about a file that is of no use.
fn mend(file: &Path) -> String {
    let word = file.with_file_name(SKIP);
    format!("restore a backup, or make an empty file {}: then the next {LOST_IDS} ids are skipped", word.display())
}

/// One valid slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    sequence: u64,
    up_to: u64,
}

impl Slot {
    fn encode(self) -> [u8; SLOT] {
        let mut bytes = [0; SLOT];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.up_to.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None`: no slot, or a torn one. `Err`: a slot of that other version.
    fn decode(bytes: &[u8; SLOT]) -> Result<Option<Self>, u32> {
        let (body, crc) = bytes.split_at(CRC_AT);
        if crc != crc32fast::hash(body).to_le_bytes() || !body.starts_with(MAGIC) {
            return Ok(None);
        }
        let version = u32::from_le_bytes([body[8], body[9], body[10], body[11]]);
        if version != VERSION {
            return Err(version);
        }
        let number = |at: usize| {
            u64::from_le_bytes(body[at..at + 8].try_into().expect("eight bytes of a slice that is sixty bytes long"))
        };
        Ok(Some(Self { sequence: number(16), up_to: number(24) }))
    }
}

/// Where the next slot goes and what the current one says.
#[derive(Debug)]
struct Current {
    file: File,
    slot: Slot,
    page: usize,
}

/// The open file. One process has it, as one process has the log; it takes no lock of its own.
#[derive(Debug)]
pub struct Mark {
    dir: PathBuf,
    current: Option<Current>,
    failed: bool,
}

impl Mark {
    /// Reads the mark of the log in `dir`, and what is reserved: every id up to and including that number may have been
    /// given out. `None` when there is no mark yet; the first [`reserve`](Self::reserve) makes it.
    ///
    /// # Errors
    /// [`MarkError`] when the file is there and cannot be read as a mark.
    pub fn open(dir: &Path) -> Result<(Self, Option<u64>), MarkError> {
        let path = dir.join(NAME);
        let current = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Some(read(file, path)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(MarkError::Io { file: path, source }),
        };
        let up_to = current.as_ref().map(|current| current.slot.up_to);
        Ok((Self { dir: dir.to_path_buf(), current, failed: false }, up_to))
    }

    /// The error of a mark in `dir` that is not there and should be.
    #[must_use]
    pub fn missing(dir: &Path) -> MarkError {
        MarkError::Missing { file: dir.join(NAME) }
    }

    /// Whether somebody said that what was reserved in `dir` is lost for good.
    ///
    /// # Errors
    /// When that cannot be looked up.
    pub fn is_given_up(dir: &Path) -> io::Result<bool> {
        dir.join(SKIP).try_exists()
    }

    /// Begins anew in place of one that was given up, with every id up to `up_to` reserved.
    ///
    /// # Errors
    /// When a file cannot be written; it is given up still, then.
    pub fn begin_anew(dir: &Path, up_to: u64) -> io::Result<Self> {
        let current = Some(create(dir, up_to)?);
        fs::remove_file(dir.join(SKIP))?;
        File::open(dir)?.sync_all()?;
        Ok(Self { dir: dir.to_path_buf(), current, failed: false })
    }

    /// What is reserved, as [`open`](Self::open) answers it.
    pub fn reserved(&self) -> Option<u64> {
        self.current.as_ref().map(|current| current.slot.up_to)
    }

    /// Reserves every id up to and including `up_to`. It is on the disk when this returns; what is reserved already costs
    /// nothing, and nothing is ever given back.
    ///
    /// # Errors
    /// When the file cannot be written or synced. After that every call fails until the mark is opened anew: a second
    /// sync may answer that all is well though the first has lost what was to be synced.
    pub fn reserve(&mut self, up_to: u64) -> io::Result<()> {
        if self.reserved().is_some_and(|reserved| up_to <= reserved) && !self.failed {
            return Ok(());
        }
        self.write(up_to)
    }

    /// Gives back what was reserved above `tail`, so that the next start goes on there without a hole. Only for a clean
    /// stop: when the log is closed, synced, and `tail` is the largest id that was ever given out.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve); the reservation then stands as it was, which costs a hole and nothing else.
    pub fn settle(&mut self, tail: u64) -> io::Result<()> {
        if self.reserved() == Some(tail) && !self.failed {
            return Ok(());
        }
        self.write(tail)
    }

    fn write(&mut self, up_to: u64) -> io::Result<()> {
        if self.failed {
            return Err(io::Error::other("the file of reserved ids could not be written before"));
        }
        let written = match &mut self.current {
            Some(current) => turn(current, up_to),
            None => create(&self.dir, up_to).map(|current| self.current = Some(current)),
        };
        self.failed = written.is_err();
        written
    }
}

/// What is wrong with the bytes of such a file, and where: for `verify`. Either slot is enough to go on.
#[must_use]
pub fn damage(bytes: &[u8]) -> Vec<(usize, &'static str)> {
    if bytes.len() != 2 * PAGE {
        return vec![(bytes.len().min(2 * PAGE), "it should have 8192 bytes")];
    }
    let mut found = Vec::new();
    let mut sequences = [None; 2];
    for (page, sequence) in sequences.iter_mut().enumerate() {
        let at = page * PAGE;
        let (slot, rest) = bytes[at..at + PAGE].split_at(SLOT);
        let slot: &[u8; SLOT] = slot.try_into().expect("it was split there");
        match Slot::decode(slot) {
            // Padding has a checksum too, but says nothing, so it is compared with what it must be.
            Ok(Some(decoded)) if decoded.encode() == *slot => *sequence = Some(decoded.sequence),
            // The second slot is written when ids are reserved for the second time.
            Ok(None) if slot.iter().all(|&byte| byte == 0) && page == 1 => {}
            Err(_) => found.push((at, "a slot is of another version")),
            Ok(_) => found.push((at, "the checksum of a slot does not match; the other one is used where it does")),
        }
        if let Some(byte) = rest.iter().position(|&byte| byte != 0) {
            found.push((at + SLOT + byte, "there should be zeros around its slots"));
        }
    }
    match sequences {
        [Some(a), Some(b)] if a.abs_diff(b) != 1 => found.push((0, "its slots were not written one after the other")),
        // A slot that vanished without a trace.
        [Some(a), None] if a > 1 && found.is_empty() => found.push((PAGE, "a slot is missing; the other one is used")),
        _ => {}
    }
    found
}

fn read(file: File, path: PathBuf) -> Result<Current, MarkError> {
    let mut newest: Option<(Slot, usize)> = None;
    for page in 0..2 {
        let bytes = match slot_bytes(&file, page) {
            Ok(bytes) => bytes,
            Err(source) => return Err(MarkError::Io { file: path, source }),
        };
        match Slot::decode(&bytes) {
            Ok(Some(slot)) if newest.is_none_or(|(other, _)| slot.sequence > other.sequence) => {
                newest = Some((slot, page));
            }
            Ok(_) => {}
            Err(found) => return Err(MarkError::Version { file: path, found }),
        }
    }
    match newest {
        Some((slot, page)) => Ok(Current { file, slot, page }),
        None => Err(MarkError::Corrupt { file: path }),
    }
}

/// What lies where the slot is; zeros where the file ends before.
fn slot_bytes(file: &File, page: usize) -> io::Result<[u8; SLOT]> {
    let mut bytes = [0; SLOT];
    let mut have = 0;
    // Each turn reads at least one byte, so there are at most 64.
    while have < SLOT {
        match file.read_at(&mut bytes[have..], (page * PAGE + have) as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bytes)
}

/// Writes the slot whose turn it is.
fn turn(current: &mut Current, up_to: u64) -> io::Result<()> {
    let slot = Slot { sequence: current.slot.sequence + 1, up_to };
    let page = 1 - current.page;
    current.file.write_all_at(&slot.encode(), (page * PAGE) as u64)?;
    current.file.sync_data()?;
    current.slot = slot;
    current.page = page;
    Ok(())
}

/// Makes the file under another name first: half a file would read as a corrupt one. Both pages are written, so that no
/// later write needs room on the disk.
fn create(dir: &Path, up_to: u64) -> io::Result<Current> {
    let slot = Slot { sequence: 1, up_to };
    let mut bytes = vec![0; 2 * PAGE];
    bytes[..SLOT].copy_from_slice(&slot.encode());
    let unfinished = dir.join("ids.new");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&unfinished)?;
    file.write_all_at(&bytes, 0)?;
    file.sync_all()?;
    fs::rename(&unfinished, dir.join(NAME))?;
    File::open(dir)?.sync_all()?;
    Ok(Current { file, slot, page: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::{TempDir, tempdir};

    fn written(values: &[u64]) -> (TempDir, Vec<u8>) {
        let dir = tempdir().unwrap();
        let (mut mark, before) = Mark::open(dir.path()).unwrap();
        assert_eq!(before, None);
        for &value in values {
            mark.reserve(value).unwrap();
        }
        let bytes = bytes(&dir);
        (dir, bytes)
    }

    fn bytes(dir: &TempDir) -> Vec<u8> {
        fs::read(dir.path().join(NAME)).unwrap()
    }

    fn reopened(dir: &TempDir, bytes: &[u8]) -> Result<Option<u64>, MarkError> {
        fs::write(dir.path().join(NAME), bytes).unwrap();
        Mark::open(dir.path()).map(|(_, up_to)| up_to)
    }

    #[test]
    fn what_was_reserved_is_read_again() {
        let dir = tempdir().unwrap();
        for round in 1..=5 {
            let (mut mark, before) = Mark::open(dir.path()).unwrap();
            assert_eq!(before, (round > 1).then(|| (round - 1) * 1000));
            mark.reserve(round * 1000 - 500).unwrap();
            mark.reserve(round * 1000).unwrap();
            assert_eq!(mark.reserved(), Some(round * 1000));
        }
        assert_eq!(bytes(&dir).len(), 2 * PAGE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_that_is_given_up_begins_anew() {
        let (dir, good) = written(&[10, 20]);
        reopened(&dir, b"nothing of use").unwrap_err();
        assert!(!Mark::is_given_up(dir.path()).unwrap());
        fs::write(dir.path().join(SKIP), b"").unwrap();
        assert!(Mark::is_given_up(dir.path()).unwrap());
        let mut mark = Mark::begin_anew(dir.path(), 1000).unwrap();
        assert!(!Mark::is_given_up(dir.path()).unwrap());
        assert_eq!(Mark::open(dir.path()).unwrap().1, Some(1000));
        mark.reserve(2000).unwrap();
        assert_eq!(Mark::open(dir.path()).unwrap().1, Some(2000));
        assert_eq!(bytes(&dir).len(), good.len());
    }

    #[test]
    fn only_settling_lowers_it() {
        let (dir, before) = written(&[1000]);
        let (mut mark, _) = Mark::open(dir.path()).unwrap();
        mark.reserve(999).unwrap();
        mark.reserve(1000).unwrap();
        assert_eq!(bytes(&dir), before, "what is reserved already is not written again");
        mark.settle(7).unwrap();
        assert_eq!(Mark::open(dir.path()).unwrap().1, Some(7));
        mark.reserve(8).unwrap();
        assert_eq!(Mark::open(dir.path()).unwrap().1, Some(8));
    }

    #[test]
    fn every_torn_write_of_a_slot_leaves_the_old_value_or_the_new() {
        for values in [&[10, 20][..], &[10, 20, 30], &[10, 20, 30, 40]] {
            let (_old_dir, old) = written(&values[..values.len() - 1]);
            let (dir, new) = written(values);
            let at = old.iter().zip(&new).position(|(a, b)| a != b).unwrap() / PAGE * PAGE;
            let (before, after) = (values[values.len() - 2], values[values.len() - 1]);
            for torn in 0..=SLOT {
                let mut forwards = old.clone();
                forwards[at..at + torn].copy_from_slice(&new[at..at + torn]);
                let mut backwards = new.clone();
                backwards[at..at + torn].copy_from_slice(&old[at..at + torn]);
                for bytes in [forwards, backwards] {
                    let expected = if bytes == new { after } else { before };
                    assert_eq!(reopened(&dir, &bytes).unwrap(), Some(expected), "{values:?}, {torn} bytes");
                }
            }
        }
    }

    #[test]
    fn after_a_torn_write_the_torn_slot_is_the_next_to_be_written() {
        let (dir, mut bytes) = written(&[10, 20]);
        bytes[PAGE + 20] ^= 1;
        assert_eq!(reopened(&dir, &bytes).unwrap(), Some(10));
        let (mut mark, _) = Mark::open(dir.path()).unwrap();
        mark.reserve(30).unwrap();
        let after = super::tests::bytes(&dir);
        assert_eq!(after[..PAGE], bytes[..PAGE], "the good slot is untouched");
        assert_eq!(reopened(&dir, &after).unwrap(), Some(30));
    }

    #[test]
    fn a_flipped_bit_in_one_slot_leaves_the_other_and_in_both_is_corruption() {
        let (dir, good) = written(&[10, 20]);
        for bit in 0..SLOT * 8 {
            let flipped = |pages: &[usize]| {
                let mut bytes = good.clone();
                for page in pages {
                    bytes[page * PAGE + bit / 8] ^= 1 << (bit % 8);
                }
                bytes
            };
            assert_eq!(reopened(&dir, &flipped(&[0])).unwrap(), Some(20));
            assert_eq!(reopened(&dir, &flipped(&[1])).unwrap(), Some(10));
            let error = reopened(&dir, &flipped(&[0, 1])).unwrap_err();
            assert!(matches!(error, MarkError::Corrupt { .. }));
            assert!(error.to_string().contains("ids is corrupt"), "{error}");
        }
    }

    #[test]
    fn empty_short_and_newer_files_are_refused() {
        let (dir, good) = written(&[10, 20]);
        assert!(matches!(reopened(&dir, b""), Err(MarkError::Corrupt { .. })));
        assert!(matches!(reopened(&dir, &good[..SLOT - 1]), Err(MarkError::Corrupt { .. })));
        assert_eq!(reopened(&dir, &good[..SLOT]).unwrap(), Some(10));
        let mut newer = good;
        newer[8] = 2;
        let crc = crc32fast::hash(&newer[..CRC_AT]);
        newer[CRC_AT..SLOT].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(reopened(&dir, &newer), Err(MarkError::Version { found: 2, .. })));
    }

    #[test]
    fn a_creation_that_was_cut_short_is_no_mark() {
        let dir = tempdir().unwrap();
        fs::write(dir.path().join("ids.new"), b"half").unwrap();
        let (mut mark, before) = Mark::open(dir.path()).unwrap();
        assert_eq!(before, None);
        mark.reserve(5).unwrap();
        assert_eq!(Mark::open(dir.path()).unwrap().1, Some(5));
    }

    #[test]
    fn after_a_failed_write_nothing_is_reserved_until_it_is_opened_anew() {
        let (dir, _) = written(&[10]);
        let (mut mark, _) = Mark::open(dir.path()).unwrap();
        let current = mark.current.as_mut().unwrap();
        // A file open for reading only, so that the write fails.
        let file = std::mem::replace(&mut current.file, File::open(dir.path().join(NAME)).unwrap());
        assert!(mark.reserve(20).is_err());
        mark.current.as_mut().unwrap().file = file;
        assert!(mark.reserve(20).is_err());
        assert!(mark.reserve(5).is_err());
        assert!(mark.settle(5).is_err());
        assert_eq!(Mark::open(dir.path()).unwrap().1, Some(10));
    }
}
