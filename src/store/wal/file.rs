//! One write-ahead log as bytes: what record lies at an offset, and whether a batch is to be found in a heap of bytes.
//!
//! ```text
//! file      blocks of 32 KiB; a tail of less than 7 bytes in a block is padding
//! record    crc32c masked u32 | length u16 | type u8 | payload      all little endian; the crc is of type and payload
//! batch     a FULL record, or FIRST, MIDDLE…, LAST; joined: sequence u64 | count u32 | operations
//! ```
//!
//! One block is kept in memory. It must not know of other files, nor judge what it finds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::Bad;

pub(super) const BLOCK: usize = 32 * 1024;
const BLOCK_BYTES: u64 = BLOCK as u64;
pub(super) const HEADER: usize = 7;
/// The header of the types that carry the number of their file.
const RECYCLABLE_HEADER: usize = HEADER + 4;
/// Sequence and count.
pub(super) const BATCH_HEAD: usize = 12;
/// RocksDB keeps the upper eight bits of a sequence number for the kind of an operation.
pub(super) const SEQUENCE_MAX: u64 = (1 << 56) - 1;

pub(super) const FULL: u8 = 1;
pub(super) const FIRST: u8 = 2;
pub(super) const MIDDLE: u8 = 3;
pub(super) const LAST: u8 = 4;
/// Tells of the file before (`track_and_verify_wals`); no part of any batch.
pub(super) const PREDECESSOR: u8 = 130;

/// What lies at an offset.
pub(super) enum Look<'a> {
    Record {
        kind: u8,
        payload: &'a [u8],
        next: u64,
    },
    /// The rest of a block that is too short for a header.
    Padding {
        next: u64,
        /// As RocksDB writes it.
        is_zero: bool,
    },
    /// The end of the file, or only zeros up to it (space that was set aside).
    End,
    Bad(Bad),
}

/// One file, read block by block.
pub(super) struct Wal {
    pub(super) path: PathBuf,
    file: File,
    pub(super) len: u64,
    block: Vec<u8>,
    /// The block that `block` holds.
    index: Option<u64>,
}

impl Wal {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let file = File::open(&path)?;
        let len = file.metadata()?.len();
        Ok(Self { path, file, len, block: Vec::new(), index: None })
    }

    /// From `offset` to the end of its block, or of the file.
    fn rest_of_block(&mut self, offset: u64) -> io::Result<&[u8]> {
        let index = offset / BLOCK_BYTES;
        if self.index != Some(index) {
            let start = index * BLOCK_BYTES;
            let len = usize::try_from(self.len.saturating_sub(start)).unwrap_or(BLOCK).min(BLOCK);
            self.index = None;
            self.block.resize(len, 0);
            self.file.read_exact_at(&mut self.block, start)?;
            self.index = Some(index);
        }
        Ok(self.block.get(within(offset)..).unwrap_or_default())
    }

    pub(super) fn look(&mut self, offset: u64) -> io::Result<Look<'_>> {
        let room = BLOCK - within(offset);
        if room < HEADER {
            let is_zero = self.rest_of_block(offset)?.iter().all(|&byte| byte == 0);
            return Ok(Look::Padding { next: offset + room as u64, is_zero });
        }
        let rest = self.rest_of_block(offset)?;
        if rest.get(..HEADER).unwrap_or(rest).iter().all(|&byte| byte == 0) {
            return Ok(if self.zeros_from(offset)? { Look::End } else { Look::Bad(Bad::Zeros) });
        }
        // Borrowed anew, for the branch above has borrowed it for itself.
        let rest = self.rest_of_block(offset)?;
        Ok(match record(rest) {
            Ok((kind, payload, size)) => Look::Record { kind, payload, next: offset + size as u64 },
            // Nothing can follow in a block that the file does not fill.
            Err(Bad::Length) if rest.len() < room => Look::Bad(Bad::Cut),
            Err(what) => Look::Bad(what),
        })
    }

    fn zeros_from(&mut self, mut offset: u64) -> io::Result<bool> {
        while offset < self.len {
            let rest = self.rest_of_block(offset)?;
            if rest.iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
            offset += rest.len() as u64;
        }
        Ok(true)
    }

    /// The type in the header at `offset`, be its checksum right or wrong, if its length fits into its block.
    pub(super) fn kind_claimed(&mut self, offset: u64) -> io::Result<Option<u8>> {
        let rest = self.rest_of_block(offset)?;
        let header = rest.first_chunk::<HEADER>();
        let fits = |l0, l1| HEADER + usize::from(u16::from_le_bytes([l0, l1])) <= rest.len();
        Ok(header.and_then(|&[.., l0, l1, kind]| fits(l0, l1).then_some(kind)))
    }

    /// The single bit, counted from the beginning of the file, that is all that is wrong with the record at `offset`.
    pub(super) fn flipped_bit(&mut self, offset: u64) -> io::Result<Option<u64>> {
        Ok(flipped_bit(self.rest_of_block(offset)?).map(|bit| offset * 8 + bit))
    }

    /// Whether anything after the bad place at `offset` shows that a later batch was written: its beginning, or, with
    /// `fragments`, any piece of it. `since` is where the batch with the bad place began. Every byte is tried, since the
    /// bad record's length may be what is bad.
    ///
    /// Chance would have to match 32 bits of checksum, the type and the length, and for a beginning also the sequence
    /// number where it is in reach: it is known what number was `expected` at `since`, and an operation takes at least a
    /// byte. That makes it less than 2^-70 for each byte (2^-46 where no number is expected), and no more than 2^-40 for
    /// each block on account of fragments. So garbage of any size is not taken for a batch; neither is a batch that lies
    /// as text within another one, unless its numbers were guessed.
    pub(super) fn later_batch(
        &mut self,
        offset: u64,
        since: u64,
        fragments: bool,
        expected: Option<u64>,
    ) -> io::Result<bool> {
        let mut at = offset + 1;
        while at < self.len {
            let rest = self.rest_of_block(at)?;
            // A batch goes on only at the beginning of a block.
            if fragments && within(at) == 0 && matches!(record(rest), Ok((MIDDLE | LAST, ..))) {
                return Ok(true);
            }
            // Only a block that is full can hold a FIRST: it reaches up to the block's end.
            let full = within(at) + rest.len() == BLOCK;
            for skip in 0..rest.len().saturating_sub(HEADER - 1) {
                let distance = at + skip as u64 - since;
                if begins(&rest[skip..], full, expected.map(|expected| (expected, expected.saturating_add(distance)))) {
                    return Ok(true);
                }
            }
            at += rest.len() as u64;
        }
        Ok(false)
    }
}

/// Whether `bytes`, which go on to the end of their block, begin with the first record of a batch whose sequence number
/// lies in `range`. What is cheap is asked first: this is asked for every byte of a tail.
fn begins(bytes: &[u8], full_block: bool, range: Option<(u64, u64)>) -> bool {
    let length = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
    let fits = match bytes[6] {
        FULL => length >= BATCH_HEAD && HEADER + length <= bytes.len(),
        FIRST => full_block && HEADER + length == bytes.len(),
        _ => false,
    };
    if !fits {
        return false;
    }
    let (low, high) = range.unwrap_or((0, SEQUENCE_MAX));
    let in_range = bytes[HEADER..].first_chunk().filter(|_| length >= 8).is_none_or(|sequence| {
        let sequence = u64::from_le_bytes(*sequence);
        low <= sequence && sequence <= high
    });
    in_range && record(bytes).is_ok()
}

/// Type, payload and whole size of the record that `bytes` begin with; they go on to the end of its block.
fn record(bytes: &[u8]) -> Result<(u8, &[u8], usize), Bad> {
    let Some(&[c0, c1, c2, c3, l0, l1, kind]) = bytes.first_chunk::<HEADER>() else { return Err(Bad::Cut) };
    let header = if matches!(kind, 5..=8 | 11 | 131) { RECYCLABLE_HEADER } else { HEADER };
    let size = header + usize::from(u16::from_le_bytes([l0, l1]));
    let Some(checked) = bytes.get(HEADER - 1..size) else { return Err(Bad::Length) };
    if masked(crc32c::crc32c(checked)) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(Bad::Checksum);
    }
    Ok((kind, &bytes[header..size], size))
}

/// RocksDB stores checksums masked, since a checksum of bytes that hold their own checksum is a poor one.
pub(super) fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The bit of `bytes`, a record and what follows it in its block, that is to be turned back for its checksum to match; counted from
/// its beginning. `None`: no single one does that.
///
/// A flipped bit in the header is found by trying: it may change how much the checksum is of. One behind it is found by the checksum's
/// being linear: how it is off, seen as a polynomial, is the power of x that is the distance of the bit from the end. No two bits of a
/// record are off alike, as x has a period of 2^31 - 1 bits.
pub(super) fn flipped_bit(bytes: &[u8]) -> Option<u64> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < HEADER {
        return None;
    }
    for bit in 0..HEADER * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        if matches!(record(&bytes), Ok((FULL..=LAST | PREDECESSOR, ..))) {
            return Some(bit as u64);
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    let &[c0, c1, c2, c3, l0, l1, kind] = bytes.first_chunk::<HEADER>()?;
    if !matches!(kind, FULL..=LAST | PREDECESSOR) {
        return None;
    }
    let checked = bytes.get(HEADER - 1..HEADER + usize::from(u16::from_le_bytes([l0, l1])))?;
    let off = crc32c::crc32c(checked) ^ unmasked(u32::from_le_bytes([c0, c1, c2, c3]));
    let mut one = POLYNOMIAL;
    for distance in 0..checked.len() * 8 {
        if one == off {
            return Some(((HEADER - 1 + checked.len()) * 8 - 1 - distance) as u64);
        }
        one = (one >> 1) ^ if one & 1 == 1 { POLYNOMIAL } else { 0 };
    }
    None
}

/// CRC-32C's, its bits in reverse: also what a checksum is off by where the last bit is flipped.
const POLYNOMIAL: u32 = 0x82f6_3b78;

fn unmasked(masked: u32) -> u32 {
    masked.wrapping_sub(0xa282_ead8).rotate_left(15)
}

/// The place within its block.
fn within(offset: u64) -> usize {
    usize::try_from(offset % BLOCK_BYTES).expect("less than a block")
}
