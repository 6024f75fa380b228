//! Room on the disk: how much is free, and whether it is enough to take one more batch.
//!
//! A full disk must not be the end: once RocksDB has met ENOSPC its handle takes no write again, and opening it anew
//! flushes what its write-ahead logs hold, which needs room as well. So publishes are refused while there is still room
//! for all that RocksDB itself must write. The judgement is pure; it must not know RocksDB nor who asks.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::StoreError;

const MIB: u64 = 1024 * 1024;

/// What is kept free beside the flush itself: the manifest (4 MiB of blocks are set aside for it as it grows), the
/// next table's index, filter and footer while it is written, RocksDB's text log, and the `ids` file.
pub const OVERHEAD: u64 = 8 * MIB;

/// How much more must be free before batches are taken again, so that the answer does not flap with each flush.
pub const HYSTERESIS: u64 = 4 * MIB;

/// The bytes that this process may still write to the file system that holds `dir` (what is kept for root is not
/// counted, unless the process is root's).
///
/// # Errors
/// What `statvfs` says, for example that `dir` does not exist.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether there is room for a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Enough,
    /// Both in bytes; a batch like this is taken again when `free` reaches `needed`.
    Refuse {
        free: u64,
        needed: u64,
    },
}

/// Decides, and remembers that it refused.
#[derive(Debug)]
pub struct Reserve {
    preallocated: u64,
    refusing: bool,
}

impl Reserve {
    /// `preallocated`: the bytes that RocksDB sets aside for a write-ahead log at the first write into it, thus right after
    /// a memtable was full, while the flush that needs the room may still be at work: 1.1 times the largest
    /// `write_buffer_size` of all column families, at most `max_total_wal_size` and `db_write_buffer_size` where these
    /// are set; 0 with `allow_fallocate` off.
    pub fn new(preallocated: u64) -> Self {
        Self { preallocated, refusing: false }
    }

    /// Whether a batch of `incoming` bytes may be written while `free` bytes are free and all memtables (active and
    /// waiting for their flush, of all column families) hold `memtables` bytes.
    ///
    /// The batch is written now to the write-ahead log and lies from then on in a memtable too. A flush writes at most
    /// what memtables hold, and a tenth more stands for what a table adds to its keys and values when nothing compresses.
    pub fn judge(&mut self, free: u64, memtables: u64, incoming: u64) -> Room {
        let flush = memtables.saturating_add(incoming);
        let enough = [flush / 10, incoming, self.preallocated, OVERHEAD].into_iter().fold(flush, u64::saturating_add);
        let enough_again = enough.saturating_add(HYSTERESIS);
        self.refusing = free < if self.refusing { enough_again } else { enough };
        if self.refusing { Room::Refuse { free, needed: enough_again } } else { Room::Enough }
    }
}

/// With so much more free than needed, the disk is not asked again before [`CALM_BYTES`] were written or [`CALM`] has passed.
const CALM_MARGIN: u64 = 256 * MIB;
const CALM_BYTES: u64 = 16 * MIB;
const CALM: Duration = Duration::from_secs(1);

/// Asks the disk, but not for every commit.
#[derive(Debug)]
pub struct Gauge {
    dir: PathBuf,
    reserve: Reserve,
    calm_since: Option<Instant>,
    written: u64,
}

impl Gauge {
    /// For the file system that holds `dir`.
    #[must_use]
    pub fn new(dir: PathBuf, preallocated: u64) -> Self {
        Self { dir, reserve: Reserve::new(preallocated), calm_since: None, written: 0 }
    }

    /// Counts what was written since the disk was last asked.
    pub fn wrote(&mut self, bytes: u64) {
        self.written = self.written.saturating_add(bytes);
    }

    #[cfg(test)]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Whether `incoming` bytes may be written; `memtables` tells what [`Reserve::judge`] wants to know.
    ///
    /// # Errors
    /// [`StoreError::Full`] when they may not, or that the disk does not answer.
    pub fn room(&mut self, incoming: u64, memtables: impl FnOnce() -> u64) -> Result<(), StoreError> {
        let calm = self.calm_since.is_some_and(|since| since.elapsed() < CALM);
        if calm && self.written.saturating_add(incoming) < CALM_BYTES {
            return Ok(());
        }
        self.calm_since = None;
        let free = free_bytes(&self.dir).map_err(|e| StoreError::io("asking how much room the disk has")(&e))?;
        let memtables = memtables();
        match self.reserve.judge(free, memtables, incoming) {
            Room::Refuse { free, needed } => Err(StoreError::Full { free, needed }),
            Room::Enough => {
                if free > memtables.saturating_mul(2).saturating_add(incoming).saturating_add(CALM_MARGIN) {
                    (self.calm_since, self.written) = (Some(Instant::now()), 0);
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 64 * MIB;
    /// (64 + 1) × 1.1 + 1 + 8 MiB.
    const BAR: u64 = 65 * MIB + 65 * MIB / 10 + 9 * MIB;

    #[test]
    fn refuses_below_the_bar_and_takes_again_only_well_above_it() {
        let mut reserve = Reserve::new(0);
        let refused = |free| Room::Refuse { free, needed: BAR + HYSTERESIS };
        assert_eq!(reserve.judge(BAR, M, MIB), Room::Enough);
        assert_eq!(reserve.judge(BAR - 1, M, MIB), refused(BAR - 1));
        assert_eq!(reserve.judge(BAR, M, MIB), refused(BAR));
        assert_eq!(reserve.judge(BAR + HYSTERESIS - 1, M, MIB), refused(BAR + HYSTERESIS - 1));
        assert_eq!(reserve.judge(BAR + HYSTERESIS, M, MIB), Room::Enough);
        assert_eq!(reserve.judge(BAR, M, MIB), Room::Enough);
    }

    #[test]
    fn a_flush_that_empties_the_memtables_makes_room() {
        let mut reserve = Reserve::new(0);
        assert_ne!(reserve.judge(M, M, MIB), Room::Enough);
        assert_eq!(reserve.judge(M, 0, MIB), Room::Enough);
    }

    #[test]
    fn the_next_write_ahead_log_is_counted() {
        let mut reserve = Reserve::new(70 * MIB);
        assert_ne!(reserve.judge(BAR + 70 * MIB - 1, M, MIB), Room::Enough);
        let mut reserve = Reserve::new(70 * MIB);
        assert_eq!(reserve.judge(BAR + 70 * MIB, M, MIB), Room::Enough);
    }

    #[test]
    fn what_was_judged_enough_is_enough_for_the_batch_and_the_flush_after_it() {
        for memtables in [0, 1, MIB, 10 * M] {
            for incoming in [0, 1, MIB, M] {
                let mut reserve = Reserve::new(0);
                let Room::Refuse { needed, .. } = reserve.judge(0, memtables, incoming) else {
                    panic!("nothing is free")
                };
                let free = needed - HYSTERESIS - incoming;
                assert!(free >= (memtables + incoming) / 10 * 11 + OVERHEAD);
            }
        }
    }

    #[test]
    fn absurd_numbers_are_refused_not_wrapped() {
        assert_ne!(Reserve::new(u64::MAX).judge(u64::MAX - 1, u64::MAX, u64::MAX), Room::Enough);
    }

    #[test]
    fn the_file_system_answers() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free_bytes(dir.path()).unwrap() > 0);
        assert_eq!(free_bytes(&dir.path().join("absent")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
