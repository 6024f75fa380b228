//! Zeros at the end of the write-ahead log, so that an fdatasync has only data to write.
//!
//! A write that makes its file longer, or lies where the file had no block yet, must have that on the disk too before it is
//! durable: a commit of the file system's journal for every fdatasync. On ext4 that was measured as up to a half of its time. RocksDB's own preallocation keeps the length as it is and its blocks unwritten, which saves nothing. So zeros are written
//! behind the newest log from here; RocksDB goes on where it left off, and takes zeros at the end, as `wal` does, for the end.
//!
//! What holds: no byte that was written, or is being written, is touched, as the owner holds its lock over this and every write of
//! a batch, and what RocksDB writes into a new log by itself fits into the gap that is left. Nothing depends on the zeros; where they cannot be written, an
//! fdatasync costs what it did. Must not know RocksDB's handle.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::store::wal;

/// How much is written ahead: at 300 bytes an event, once in some 800 of them. It goes to the disk with the next batch, which takes
/// some 0.3 ms longer for it. Also what a small disk does without.
pub const AHEAD_BYTES: u64 = 256 << 10;

/// Larger batches fill blocks of their own; for them the zeros would only be written twice.
const BATCH_BYTES_MAX: u64 = 16 << 10;

/// What RocksDB writes by itself into a new log takes some dozens of bytes; a page is the least that a file system deals in.
const GAP_BYTES: u64 = 4096;

/// The zeros behind the newest log.
#[derive(Debug)]
pub struct Ahead {
    dir: PathBuf,
    /// What may still be written before it is looked at again.
    left: u64,
}

impl Ahead {
    /// For the logs in `dir`.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, left: 0 }
    }

    /// A batch of so many bytes is about to be written.
    pub fn before_write(&mut self, bytes: u64) {
        if bytes > BATCH_BYTES_MAX || bytes < self.left {
            self.left = self.left.saturating_sub(bytes);
            return;
        }
        // A new log is noticed only now, too: for some batches it costs what it did.
        self.left = AHEAD_BYTES;
        if let Err(error) = write_zeros(&self.dir) {
            tracing::debug!(%error, "nothing was written ahead of the log");
        }
    }
}

fn write_zeros(dir: &Path) -> io::Result<()> {
    const ZEROS: &[u8] = &[0; 64 << 10];
    let Some(newest) = wal::newest(dir)? else { return Ok(()) };
    let file = File::options().write(true).open(newest)?;
    let begin = (file.metadata()?.len() + GAP_BYTES).next_multiple_of(GAP_BYTES);
    (begin..begin + AHEAD_BYTES).step_by(ZEROS.len()).try_for_each(|at| file.write_all_at(ZEROS, at))
}
