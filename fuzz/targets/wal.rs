//! The reader of write-ahead logs: any bytes are judged without a panic, and in files that were written right and then harmed in a known
//! way, no batch goes missing in silence. A torn end costs the last batch at most; whatever else is gone is an error.

use std::cell::OnceCell;
use std::fs;
use std::ops::Range;
use std::path::Path;

use tempfile::TempDir;
use tidelog::store::wal::{self, WalError, WalReport};

use super::source::Source;

const BLOCK: usize = 32 * 1024;
const HEADER: usize = 7;
/// Most bytes of one batch, so that one has up to four fragments.
const BATCH_BYTES_MAX: usize = 3 * BLOCK;
/// Most bytes of all files, so that a run takes no longer than some milliseconds.
const BYTES_MAX: usize = 6 * BLOCK;

thread_local!(static DIR: OnceCell<TempDir> = const { OnceCell::new() });

/// A batch in one of the files.
#[derive(Debug, Clone)]
struct Batch {
    file: usize,
    bytes: Range<usize>,
    sequence: u64,
    count: u32,
}

#[derive(Debug, Clone, Default)]
struct Log {
    files: Vec<Vec<u8>>,
    batches: Vec<Batch>,
}

impl Log {
    /// Writes as RocksDB does: fragments that fill blocks of 32 KiB, a checksum before each.
    fn write(&mut self, sequence: u64, count: u32, payload: &[u8]) {
        let at = self.files.len() - 1;
        let file = &mut self.files[at];
        let batch = [&sequence.to_le_bytes()[..], &count.to_le_bytes(), payload].concat();
        let mut start = None;
        let mut rest = &batch[..];
        loop {
            let room = BLOCK - file.len() % BLOCK;
            if room < HEADER {
                file.resize(file.len() + room, 0);
                continue;
            }
            let (part, after) = rest.split_at(rest.len().min(room - HEADER));
            let kind = match (start.is_none(), after.is_empty()) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4,
            };
            start.get_or_insert(file.len());
            let crc = crc32c::crc32c_append(crc32c::crc32c(&[kind]), part);
            file.extend_from_slice(&crc.rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes());
            file.extend_from_slice(&u16::try_from(part.len()).expect("less than a block").to_le_bytes());
            file.push(kind);
            file.extend_from_slice(part);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        let bytes = start.expect("it has begun")..file.len();
        self.batches.push(Batch { file: at, bytes, sequence, count });
    }

    fn take(source: &mut Source<'_>) -> Self {
        let mut log = Self { files: vec![Vec::new()], batches: Vec::new() };
        let mut sequence = source.number() >> 9;
        for _ in 0..source.byte() % 24 {
            if source.byte() < 32 && log.files.len() < 4 {
                log.files.push(Vec::new());
            }
            let count = u32::from(source.byte() % 4) + 1;
            // Most are small; some reach just up to a block's end, or over several.
            let room = BLOCK - log.files[log.files.len() - 1].len() % BLOCK;
            let len = match source.byte() {
                0..200 => usize::from(source.byte()),
                200..240 => (room + usize::from(source.byte() % 32)).saturating_sub(HEADER + 12 + 16),
                _ => source.below(BATCH_BYTES_MAX),
            };
            // An operation takes at least a byte.
            let len = len.max(count as usize);
            if log.files.iter().map(Vec::len).sum::<usize>() + len > BYTES_MAX {
                break;
            }
            let payload: Vec<u8> = match source.byte() % 4 {
                0 => vec![0; len],
                1 => (0u8..251).cycle().take(len).collect(),
                // An earlier batch lies as text within this one.
                2 if !log.batches.is_empty() => {
                    let Batch { file, bytes, .. } = &log.batches[source.below(log.batches.len())];
                    log.files[*file][bytes.clone()].iter().copied().cycle().take(len).collect()
                }
                _ => {
                    let pattern = source.bytes();
                    if pattern.is_empty() { vec![1; len] } else { pattern.iter().copied().cycle().take(len).collect() }
                }
            };
            log.write(sequence, count, &payload);
            sequence += u64::from(count);
        }
        if source.bit() {
            // Space that was set aside.
            let zeros = source.below(BLOCK);
            log.files.last_mut().expect("there is one").extend(std::iter::repeat_n(0, zeros));
        }
        log
    }

    fn check(&self) -> Result<WalReport, WalError> {
        check(&self.files)
    }

    fn next_sequence(&self, batches: usize) -> Option<u64> {
        self.batches[..batches].last().map(|b| b.sequence + u64::from(b.count))
    }
}

fn check(files: &[Vec<u8>]) -> Result<WalReport, WalError> {
    DIR.with(|dir| {
        let dir = dir.get_or_init(super::scratch).path();
        let name = |at: usize| dir.join(format!("{:06}.log", at + 9));
        for (at, file) in files.iter().enumerate() {
            fs::write(name(at), file).expect("a file can be written");
        }
        for at in files.len()..8 {
            let _ = fs::remove_file(name(at));
        }
        let report = wal::check(dir);
        look_over(&report, files, dir);
        report
    })
}

/// What holds of every answer.
fn look_over(report: &Result<WalReport, WalError>, files: &[Vec<u8>], dir: &Path) {
    let len = |path: &Path| fs::metadata(path).expect("it names a file that is there").len();
    match report {
        Ok(report) => {
            assert_eq!(report.files, files.len() as u64);
            assert_eq!(report.bytes, files.iter().map(|f| f.len() as u64).sum::<u64>());
            assert_eq!(report.bytes, wal::bytes(dir).expect("the directory is there"));
            assert!(report.torn.as_ref().is_none_or(|torn| torn.offset <= len(&torn.file)));
            // A batch has a header and its own head.
            assert!(report.batches <= report.bytes / (HEADER as u64 + 12));
            assert_eq!(report.next_sequence.is_none(), report.batches == 0);
        }
        Err(WalError::Corrupt { place }) => assert!(place.offset <= len(&place.file)),
        Err(WalError::Missing { file, offset, expected, found }) => {
            assert!(*offset <= len(file) && expected != found);
        }
        Err(WalError::Io { source, .. }) => panic!("{source}"),
    }
}

pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    if source.byte() < 16 {
        // Any bytes at all.
        let mut files = Vec::new();
        for _ in 0..source.byte() % 3 {
            files.push(source.bytes().to_vec());
        }
        files.push(source.rest().to_vec());
        let _ = check(&files);
        return;
    }
    let log = Log::take(&mut source);
    let report = log.check().expect("it was written right");
    assert_eq!((report.batches, &report.torn), (log.batches.len() as u64, &None));
    assert_eq!(report.next_sequence, log.next_sequence(log.batches.len()));
    match source.byte() % 6 {
        0 => cut(&log, &mut source),
        1 => flipped(&log, &mut source),
        2 => lost(&log, &mut source),
        3 => garbage(&log, &mut source),
        4 => torn_batch(&log, &mut source),
        _ => recovered(&log, &mut source),
    }
}

/// A file ends early. Where batches come after it, they were written when all of it was there.
fn cut(log: &Log, source: &mut Source<'_>) {
    let at = source.below(log.files.len());
    let end = source.below(log.files[at].len() + 1);
    let mut harmed = log.clone();
    harmed.files[at].truncate(end);
    let gone = |b: &&Batch| b.file == at && b.bytes.end > end;
    let later = log.batches.iter().any(|b| b.file > at);
    let left = log.batches.iter().filter(|b| !gone(b)).count();
    match harmed.check() {
        Ok(report) if !later || left == log.batches.len() => {
            assert_eq!(report.batches, left as u64);
            assert_eq!(report.next_sequence, log.next_sequence(left));
        }
        Ok(report) if is_oldest_gone(log, at, end) => assert_eq!(report.batches, left as u64),
        Ok(report) => panic!("{at} cut at {end}: {report:?}, but later batches are there"),
        Err(_) if later && left < log.batches.len() => {}
        Err(error) => panic!("{at} cut at {end}: {error}, but it is a torn end"),
    }
}

/// Nothing is left of the first files, nor of this one: that they are missing cannot be seen.
fn is_oldest_gone(log: &Log, at: usize, end: usize) -> bool {
    !log.batches.iter().any(|b| b.file < at) && !log.batches.iter().any(|b| b.file == at && b.bytes.start < end)
}

/// A bit is not what was written.
fn flipped(log: &Log, source: &mut Source<'_>) {
    let mut log = log.clone();
    if source.bit() && !log.batches.is_empty() {
        // What comes after it may be a single batch, which begins in one block and goes on in the next.
        let sequence = log.next_sequence(log.batches.len()).expect("there is a batch");
        let end = log.files.len() - 1;
        log.files[end].truncate(log.batches.last().filter(|b| b.file == end).map_or(0, |b| b.bytes.end));
        log.write(sequence, 1, &vec![5; BLOCK]);
    }
    let at = source.below(log.files.len());
    if log.files[at].is_empty() {
        return;
    }
    // Headers are what matters most, and among them those that little comes after.
    let starts: Vec<_> = log.batches.iter().filter(|b| b.file == at).map(|b| b.bytes.start).collect();
    let offset = match source.byte() % 3 {
        0 if !starts.is_empty() => starts[source.below(starts.len())] + source.below(HEADER + 12),
        1 if !starts.is_empty() => starts[starts.len().saturating_sub(2)] + source.below(HEADER),
        _ => source.below(log.files[at].len()),
    };
    let mut harmed = log.clone();
    harmed.files[at][offset] ^= 1 << (source.byte() % 8);
    let hit = log.batches.iter().position(|b| b.file == at && b.bytes.contains(&offset));
    let all = log.batches.len() as u64;
    match (harmed.check(), hit) {
        (Ok(report), None) => assert_eq!(report.batches, all, "no batch is there"),
        (Ok(report), Some(_)) if is_padding(&log, at, offset) && report.batches == all => {}
        // In the very last it cannot be told from a torn write.
        (Ok(report), Some(hit)) if hit + 1 == log.batches.len() => assert_eq!(report.batches, all - 1),
        (Ok(report), Some(hit)) => panic!("a bit of batch {hit} of {all} at {at}:{offset}: {report:?}"),
        (Err(_), _) => {}
    }
}

/// Between two fragments of one batch a block may end in bytes that mean nothing.
fn is_padding(log: &Log, at: usize, offset: usize) -> bool {
    let block_end = (offset / BLOCK + 1) * BLOCK;
    block_end - offset < HEADER && log.batches.iter().any(|b| b.file == at && b.bytes.contains(&block_end))
}

/// A file is missing.
fn lost(log: &Log, source: &mut Source<'_>) {
    if log.files.len() < 2 {
        return;
    }
    let at = source.below(log.files.len());
    let mut files = log.files.clone();
    files.remove(at);
    let has = |range: Range<usize>| log.batches.iter().any(|b| range.contains(&b.file));
    let seen = has(0..at) && has(at..at + 1) && has(at + 1..log.files.len());
    assert_eq!(check(&files).is_err(), seen, "without file {at}");
}

/// The last file ends in something that was never written.
fn garbage(log: &Log, source: &mut Source<'_>) {
    let mut harmed = log.clone();
    let at = log.files.len() - 1;
    let end = source.below(log.files[at].len() + 1);
    let file = &mut harmed.files[at];
    file.truncate(end);
    file.extend_from_slice(source.clone().rest());
    let whole = log.batches.iter().filter(|b| b.file < at || b.bytes.end <= end).count() as u64;
    if let Ok(report) = harmed.check() {
        assert!(report.batches >= whole, "{report:?}, but {whole} were there");
    }
}

/// The pages of the last batch reached the disk in any order: some of them are zeros.
fn torn_batch(log: &Log, source: &mut Source<'_>) {
    const PAGE: usize = 512;
    let mut harmed = log.clone();
    let Some(last) = log.batches.last() else { return };
    let file = &mut harmed.files[last.file];
    let mut torn = false;
    let mut start = last.bytes.start;
    while start < last.bytes.end {
        let end = ((start / PAGE + 1) * PAGE).min(last.bytes.end);
        if source.bit() {
            torn |= file[start..end].iter().any(|&b| b != 0);
            file[start..end].fill(0);
        }
        start = end;
    }
    let report = harmed.check().expect("a torn last batch is no corruption");
    assert_eq!(report.batches, log.batches.len() as u64 - u64::from(torn));
}

/// An earlier recovery has dropped a torn end and gone on in a new file; that file is no proof against the end.
fn recovered(log: &Log, source: &mut Source<'_>) {
    let Some(last) = log.batches.last() else { return };
    if log.batches.len() < 2 {
        return;
    }
    let mut harmed = log.clone();
    harmed.files[last.file].truncate(last.bytes.start + source.below(last.bytes.len()));
    harmed.files.truncate(last.file + 1);
    harmed.files.push(Vec::new());
    harmed.batches.pop();
    for _ in 0..=source.byte() % 3 {
        let sequence = harmed.next_sequence(harmed.batches.len()).expect("there is a batch");
        harmed.write(sequence, 1, &[7; 40]);
    }
    let report = harmed.check().expect("a recovery went on after the torn end");
    assert_eq!(report.batches, harmed.batches.len() as u64);
}
