//! A file of sorted rows, read as bytes: every one of them is covered by a checksum that matches.
//!
//! ```text
//! file      data blocks, then others (index, properties, deletions of ranges), then the metaindex; they lie close together
//! footer    53 bytes: kind of checksum, "3e 00 7a 00", its own checksum, the base of all others, the metaindex's size, 24 zeros,
//!           format version, magic
//! block     bytes | how they are compressed u8 | checksum u32 of both
//! checksum  the lower half of XXH3, the byte behind mixed in; to it is added what tells this place from others
//! index     for each data block a key and where it lies
//! ```
//!
//! Why not by RocksDB: it stops at the first bad block of a file, needs a database opened for it, and reads no block twice that it has
//! cached. Why all bytes are covered: the blocks must lie close together from 0 to the footer. Memory is the largest block, and what the
//! index says. It must not know what the rows mean.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use twox_hash::XxHash3_64;

use super::super::layout::read_varint;

const FOOTER: usize = 53;
const TRAILER: u64 = 5;
const MAGIC: u64 = 0x88e2_41b7_85f4_cff7;
const EXTENDED_MAGIC: [u8; 4] = [0x3e, 0x00, 0x7a, 0x00];
const XXH3: u8 = 4;
const FORMAT: u32 = 6;
const PLAIN: u8 = 0;
const LZ4: u8 = 4;

/// Blocks larger than this are not this program's: one holds an event, or some, of a batch that is bounded by `limits`.
const BLOCK_BYTES_MAX: u64 = 1 << 30;

/// Data blocks are read so many bytes at a time, or one by one where they are larger.
const READ_BYTES: u64 = 1 << 20;

/// What is wrong where, in bytes from the beginning.
pub type Bad = (u64, String);

/// Where a block lies, without its trailer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    offset: u64,
    size: u64,
}

impl Block {
    fn end(self) -> u64 {
        self.offset.saturating_add(self.size).saturating_add(TRAILER)
    }
}

/// Calls `bad` for everything that is wrong with the table at `path`, and `advance` for bytes that were read.
///
/// # Errors
/// When the file cannot be read.
pub fn check(path: &Path, bad: &mut dyn FnMut(Bad), advance: &mut dyn FnMut(u64)) -> io::Result<()> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let table = Table { file, len, base: 0 };
    match table.walk(bad, advance) {
        Ok(()) => Ok(()),
        Err(Stop::Bad(what)) => {
            bad(what);
            Ok(())
        }
        Err(Stop::Io(error)) => Err(error),
    }
}

/// Why reading ended.
enum Stop {
    Bad(Bad),
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn stop<T>(at: u64, what: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Bad((at, what.into())))
}

struct Table {
    file: File,
    len: u64,
    base: u32,
}

impl Table {
    fn walk(mut self, bad: &mut dyn FnMut(Bad), advance: &mut dyn FnMut(u64)) -> Result<(), Stop> {
        let metaindex = self.footer()?;
        let footer = metaindex.end();
        let rows = entries(&self.block(metaindex)?, false);
        let Some(rows) = rows else { return stop(metaindex.offset, "the list of its other blocks cannot be read") };
        let mut blocks = vec![metaindex];
        let mut index = None;
        for (name, handle) in &rows {
            let Some(block) = handle_of(handle) else {
                return stop(metaindex.offset, "the list of its other blocks cannot be read");
            };
            // Of the others, whatever they are, only the checksums are looked at.
            if name.as_slice() == b"rocksdb.index" {
                index = Some(block);
            }
            blocks.push(block);
        }
        let Some(index) = index else { return stop(metaindex.offset, "it has no index") };
        let mut data = self.index(index)?;
        // They were read above.
        let read = |block: &Block| *block == metaindex || *block == index;
        advance(metaindex.size + index.size + 2 * TRAILER + FOOTER as u64);
        let others = blocks.iter().filter(|block| !read(block)).copied();
        data.extend(others);
        let mut all = data.clone();
        all.extend([metaindex, index]);
        all.sort_unstable();
        let mut end = 0;
        for block in &all {
            if block.offset != end {
                return stop(end, "no block of its index begins where the one before ends");
            }
            end = block.end();
        }
        if end != footer {
            return stop(end, "its blocks do not reach up to its footer");
        }
        data.sort_unstable();
        self.data(&data, bad, advance)
    }

    /// Reads the footer; gives where the metaindex lies.
    fn footer(&mut self) -> Result<Block, Stop> {
        let Some(at) = self.len.checked_sub(FOOTER as u64) else { return stop(0, "it is too short to be such a file") };
        let mut footer = [0; FOOTER];
        self.file.read_exact_at(&mut footer, at)?;
        let u32_at = |at: usize| u32::from_le_bytes([footer[at], footer[at + 1], footer[at + 2], footer[at + 3]]);
        let magic = u64::from(u32_at(45)) | u64::from(u32_at(49)) << 32;
        if magic != MAGIC || footer[1..5] != EXTENDED_MAGIC || footer[0] != XXH3 || u32_at(41) != FORMAT {
            return stop(at, "its footer is none of a file that this program writes");
        }
        let (stored, base, size) = (u32_at(5), u32_at(9), u64::from(u32_at(13)));
        self.base = base;
        let mut without = footer;
        without[5..9].fill(0);
        let (last, rest) = (without[FOOTER - 1], &without[..FOOTER - 1]);
        if base == 0 || checksum(rest, last).wrapping_add(self.modifier(at)) != stored {
            return stop(at, "the checksum of its footer does not match");
        }
        match at.checked_sub(size + TRAILER) {
            Some(offset) => Ok(Block { offset, size }),
            None => stop(at, "its footer names a block that does not fit into it"),
        }
    }

    /// What tells checksums at `offset` from those elsewhere.
    fn modifier(&self, offset: u64) -> u32 {
        let low = u32::try_from(offset & u64::from(u32::MAX)).expect("it was masked to 32 bits");
        let high = u32::try_from(offset >> 32).expect("32 bits are left");
        self.base ^ low.wrapping_add(high)
    }

    /// Whether the checksum behind a block that lies at `offset` matches; `bytes` are it and its trailer.
    fn matches(&self, bytes: &[u8], offset: u64) -> bool {
        let Some((rest, stored)) = bytes.split_last_chunk::<4>() else { return false };
        let Some((&kind, block)) = rest.split_last() else { return false };
        checksum(block, kind).wrapping_add(self.modifier(offset)) == u32::from_le_bytes(*stored)
    }

    /// The contents of a block that is not data.
    fn block(&self, block: Block) -> Result<Vec<u8>, Stop> {
        if block.end() > self.len || block.size > BLOCK_BYTES_MAX {
            return stop(block.offset.min(self.len), "a block does not fit into the file");
        }
        let mut bytes = vec![0; usize::try_from(block.size + TRAILER).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, block.offset)?;
        if !self.matches(&bytes, block.offset) {
            return stop(block.offset, "the checksum of a block does not match");
        }
        let size = bytes.len() - 5;
        let kind = bytes[size];
        bytes.truncate(size);
        let plain = match kind {
            PLAIN => Some(bytes),
            LZ4 => unpack(&bytes),
            _ => None,
        };
        plain.map_or_else(|| stop(block.offset, "a block is compressed in a way that is not known"), Ok)
    }

    fn index(&self, index: Block) -> Result<Vec<Block>, Stop> {
        let rows = entries(&self.block(index)?, true);
        let blocks = rows.map(|rows| rows.iter().map(|(_, handle)| handle_of(handle)).collect::<Option<Vec<_>>>());
        match blocks.flatten() {
            Some(blocks) => Ok(blocks),
            None => stop(index.offset, "its index cannot be read"),
        }
    }

    /// Checks blocks, ascending and close together, a chunk of them at a time.
    fn data(&self, blocks: &[Block], bad: &mut dyn FnMut(Bad), advance: &mut dyn FnMut(u64)) -> Result<(), Stop> {
        let mut buffer = Vec::new();
        let mut rest = blocks;
        while let Some(first) = rest.first() {
            let mut taken = 1;
            while rest
                .get(taken)
                .is_some_and(|block| block.offset == rest[taken - 1].end() && block.end() - first.offset <= READ_BYTES)
            {
                taken += 1;
            }
            let (now, later) = rest.split_at(taken);
            rest = later;
            let bytes = now[taken - 1].end() - first.offset;
            if bytes > BLOCK_BYTES_MAX {
                return stop(first.offset, "a block is too large");
            }
            buffer.resize(usize::try_from(bytes).unwrap_or(usize::MAX), 0);
            self.file.read_exact_at(&mut buffer, first.offset)?;
            for block in now {
                let from = usize::try_from(block.offset - first.offset).unwrap_or(usize::MAX);
                let to = usize::try_from(block.end() - first.offset).unwrap_or(usize::MAX);
                if !self.matches(&buffer[from..to], block.offset) {
                    bad((block.offset, format!("the checksum of a block of {} bytes does not match", block.size)));
                }
            }
            advance(bytes);
        }
        Ok(())
    }
}

fn checksum(block: &[u8], last: u8) -> u32 {
    let low = XxHash3_64::oneshot(block) & u64::from(u32::MAX);
    u32::try_from(low).expect("it was masked to 32 bits") ^ u32::from(last).wrapping_mul(0x6b90_83d9)
}

fn handle_of(mut bytes: &[u8]) -> Option<Block> {
    Some(Block { offset: read_varint(&mut bytes)?, size: read_varint(&mut bytes)? })
}

type Entries = Vec<(Vec<u8>, Vec<u8>)>;

/// The keys and values of a plain block: each key by what it shares with the one before. An index has no lengths of its values, which
/// are handles, and each is told by what it is larger than the one before where its key shares something.
fn entries(block: &[u8], is_index: bool) -> Option<Entries> {
    const RESTARTS_MAX: u32 = (1 << 28) - 1;
    let (rest, packed) = block.split_last_chunk::<4>()?;
    let packed = u32::from_le_bytes(*packed);
    // Whether its keys are spread evenly is a hint for searches.
    let restarts = packed & !(1 << 29);
    if restarts > RESTARTS_MAX {
        return None;
    }
    let end = rest.len().checked_sub(usize::try_from(restarts).ok()?.checked_mul(4)?)?;
    let mut rest = &rest[..end];
    let mut rows: Entries = Vec::new();
    let mut before: Option<Block> = None;
    let mut key = Vec::new();
    while !rest.is_empty() {
        let shared = usize::try_from(read_varint(&mut rest)?).ok()?;
        let own = usize::try_from(read_varint(&mut rest)?).ok()?;
        let len = if is_index { None } else { Some(usize::try_from(read_varint(&mut rest)?).ok()?) };
        key.get(shared..)?;
        key.truncate(shared);
        let (name, behind) = rest.split_at_checked(own)?;
        key.extend_from_slice(name);
        rest = behind;
        let value = if let Some(len) = len {
            let (value, behind) = rest.split_at_checked(len)?;
            rest = behind;
            value.to_vec()
        } else {
            let block = match before {
                Some(before) if shared > 0 => {
                    let n = read_varint(&mut rest)?;
                    let half = i64::try_from(n >> 1).ok()?;
                    let delta = if n & 1 == 1 { !half } else { half };
                    Block { offset: before.end(), size: before.size.checked_add_signed(delta)? }
                }
                _ => Block { offset: read_varint(&mut rest)?, size: read_varint(&mut rest)? },
            };
            before = Some(block);
            let mut value = Vec::new();
            super::super::layout::varint(&mut value, block.offset);
            super::super::layout::varint(&mut value, block.size);
            value
        };
        // The metaindex has a dozen rows; an index's keys are not needed.
        rows.push((if is_index { Vec::new() } else { key.clone() }, value));
    }
    Some(rows)
}

/// What LZ4 has packed: the size as varint, then a block of LZ4's.
fn unpack(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let size = usize::try_from(read_varint(&mut bytes)?).ok()?;
    // A byte stands for 255 at the most: what claims more is not made room for.
    let plain = (size <= bytes.len().saturating_mul(256)).then(|| lz4_flex::block::decompress(bytes, size).ok());
    plain.flatten().filter(|plain| plain.len() == size)
}
