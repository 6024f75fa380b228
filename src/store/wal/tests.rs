//! Against what RocksDB itself writes: a database is filled and copied while it is open, as a crash leaves it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use rocksdb::{ColumnFamilyDescriptor, DB, Options, WriteBatch, WriteOptions};
use tempfile::{TempDir, tempdir};

use super::file::{BLOCK, HEADER, masked};
use super::*;

const FAMILIES: [&str; 4] = ["default", "log", "state", "meta"];

fn open_with(dir: &Path, options: impl FnOnce(&mut Options)) -> Result<DB, rocksdb::Error> {
    let mut wanted = Options::default();
    wanted.create_if_missing(true);
    wanted.create_missing_column_families(true);
    options(&mut wanted);
    let families = FAMILIES.map(|name| ColumnFamilyDescriptor::new(name, wanted.clone()));
    DB::open_cf_descriptors(&wanted, dir, families)
}

fn open(dir: &Path) -> DB {
    open_with(dir, |_| {}).unwrap()
}

fn usize_of(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

/// One synced batch of two operations: number `id` in `log`, with `bytes` bytes, and in one of the others.
fn put(db: &DB, id: u64, bytes: usize) {
    let mut batch = WriteBatch::default();
    let value: Vec<u8> = (0u8..251).cycle().skip(usize_of(id % 251)).take(bytes).collect();
    batch.put_cf(db.cf_handle("log").unwrap(), id.to_be_bytes(), value);
    batch.put_cf(db.cf_handle(if id.is_multiple_of(3) { "state" } else { "meta" }).unwrap(), b"tail", id.to_be_bytes());
    let mut synced = WriteOptions::default();
    synced.set_sync(true);
    db.write_opt(batch, &synced).unwrap();
}

/// The numbers in `log`; it is checked that they begin at 1 and none is missing.
fn count(dir: &Path) -> u64 {
    let db = open(dir);
    let mut count: u64 = 0;
    for entry in db.iterator_cf(db.cf_handle("log").unwrap(), rocksdb::IteratorMode::Start) {
        count += 1;
        assert_eq!(*entry.unwrap().0, count.to_be_bytes());
    }
    count
}

fn copy(from: &Path) -> TempDir {
    let to = tempdir().unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
        }
    }
    to
}

/// What a crash leaves of a new database with a batch of each of these sizes.
fn crashed(sizes: &[usize]) -> TempDir {
    let dir = tempdir().unwrap();
    let db = open(dir.path());
    for (id, &size) in (1..).zip(sizes) {
        put(&db, id, size);
    }
    copy(dir.path())
}

fn only_log(dir: &TempDir) -> PathBuf {
    let files = files(dir.path()).unwrap();
    assert_eq!(files.len(), 1);
    files.into_iter().next().unwrap()
}

/// Where each batch begins, and after the last of them the end.
fn starts(path: &Path) -> Vec<usize> {
    let mut wal = Wal::open(path.to_path_buf()).unwrap();
    let mut starts = Vec::new();
    let mut offset = 0;
    loop {
        match wal.look(offset).unwrap() {
            Look::Record { kind, next, .. } => {
                if matches!(kind, FULL | FIRST) {
                    starts.push(usize_of(offset));
                }
                offset = next;
            }
            Look::Padding { next, .. } => offset = next,
            Look::End => break,
            Look::Bad(what) => panic!("{what} at {offset}"),
        }
    }
    starts.push(usize_of(offset));
    starts
}

#[track_caller]
fn torn(dir: &TempDir) -> WalReport {
    let report = check(dir.path()).unwrap();
    assert!(report.torn.is_some(), "{report:?}");
    report
}

#[track_caller]
fn corrupt(dir: &TempDir) -> Place {
    match check(dir.path()) {
        Err(WalError::Corrupt { place }) => place,
        other => panic!("{other:?}"),
    }
}

fn flip(bytes: &[u8], bit: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[bit / 8] ^= 1 << (bit % 8);
    bytes
}

const SMALL: [usize; 8] = [100, 10, 0, 300, 50, 20, 40, 10];
/// Batches of several blocks among small ones, and one that leaves little of a block.
const LARGE: [usize; 8] = [100, 70_000, 10, 32_000, 600, 100_000, 40_000, 33_000];

#[test]
fn what_was_written_is_clean() {
    for sizes in [&SMALL[..], &LARGE] {
        let dir = crashed(sizes);
        let report = check(dir.path()).unwrap();
        let next_sequence = Some(sizes.len() as u64 * 2 + 1);
        let bytes = fs::metadata(only_log(&dir)).unwrap().len();
        assert_eq!(report, WalReport { files: 1, bytes, batches: 8, next_sequence, torn: None, padding: None });
        assert_eq!(count(dir.path()), 8);
    }
    assert_eq!(check(Path::new("/does/not/exist")).unwrap(), WalReport::default());
}

#[test]
fn batches_of_every_size_around_the_end_of_a_block_are_clean() {
    let dir = tempdir().unwrap();
    let db = open(dir.path());
    for id in 1..=200 {
        put(&db, id, BLOCK - 200 + usize_of(id));
    }
    let report = check(copy(dir.path()).path()).unwrap();
    assert_eq!((report.batches, report.torn), (200, None));
}

#[test]
fn a_log_cut_anywhere_in_its_last_two_batches_is_torn_and_opens_with_what_is_before() {
    let dir = crashed(&SMALL);
    let path = only_log(&dir);
    let whole = fs::read(&path).unwrap();
    let starts = starts(&path);
    assert_eq!(starts.len(), 9);
    for len in starts[6]..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let report = check(dir.path()).unwrap();
        let batches = if len < starts[7] { 6 } else { 7 };
        assert_eq!(report.batches, batches);
        assert_eq!(report.torn.is_some(), !starts.contains(&len), "cut at {len}");
        assert_eq!(count(copy(dir.path()).path()), batches, "cut at {len}");
    }
}

#[test]
fn a_large_last_batch_may_be_torn_anywhere_and_in_any_order() {
    let dir = crashed(&LARGE);
    let path = only_log(&dir);
    let whole = fs::read(&path).unwrap();
    let start = starts(&path)[7];
    let near_a_block = |at: usize| (at + 10) % BLOCK < 20;
    for len in (start..whole.len()).filter(|&at| at < start + 30 || near_a_block(at) || at % 997 == 0) {
        fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(check(dir.path()).unwrap().batches, 7);
        if near_a_block(len) {
            assert_eq!(count(copy(dir.path()).path()), 7);
        }
    }
    // A page that did not reach the disk, though later ones did.
    for page in (start.next_multiple_of(4096)..whole.len()).step_by(4096) {
        let mut bytes = whole.clone();
        let end = (page + 4096).min(bytes.len());
        bytes[page..end].fill(0);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(torn(&dir).batches, 7);
        assert_eq!(count(copy(dir.path()).path()), 7);
    }
}

#[test]
fn a_bit_flipped_before_the_last_batch_is_corruption_and_rocksdb_would_open_it() {
    let dir = crashed(&SMALL);
    let path = only_log(&dir);
    let whole = fs::read(&path).unwrap();
    let starts = starts(&path);
    for bit in 0..starts[7] * 8 {
        fs::write(&path, flip(&whole, bit)).unwrap();
        let place = corrupt(&dir);
        let start = starts.iter().rev().find(|&&start| start * 8 <= bit).unwrap();
        assert_eq!((place.offset, &place.file), (*start as u64, &path), "bit {bit}");
        if bit % 1013 == 0 {
            assert!(count(copy(dir.path()).path()) < 7, "this is why it is refused");
        }
    }
    let message = check(dir.path()).unwrap_err().to_string();
    assert!(message.contains(".log is corrupt at byte") && message.contains("`verify`"), "{message}");
}

#[test]
fn a_bit_flipped_in_fragments_before_the_last_batch_is_corruption() {
    let dir = crashed(&LARGE);
    let path = only_log(&dir);
    let whole = fs::read(&path).unwrap();
    let starts = starts(&path);
    let headers = (0..starts[7]).filter(|at| at % BLOCK < HEADER || starts.contains(at));
    for byte in headers.chain((0..starts[7]).step_by(4999)) {
        for bit in [0, 3, 7] {
            fs::write(&path, flip(&whole, byte * 8 + bit)).unwrap();
            let end_of_block = byte.next_multiple_of(BLOCK);
            let in_padding = check(dir.path()).is_ok_and(|report| report.batches == 8) && end_of_block - byte < HEADER;
            assert!(!in_padding || check(dir.path()).unwrap().padding.is_some(), "byte {byte}");
            assert!(in_padding || matches!(check(dir.path()), Err(WalError::Corrupt { .. })), "byte {byte}");
        }
    }
}

/// Every bit of small records, some of large ones: the bit that is to be turned back is named.
#[test]
fn a_bit_flipped_in_the_last_batch_is_corruption_and_is_named() {
    for sizes in [&SMALL[..], &LARGE] {
        let dir = crashed(sizes);
        let path = only_log(&dir);
        let whole = fs::read(&path).unwrap();
        let start = starts(&path)[7];
        let in_header = |byte: usize| byte < start + HEADER || byte % BLOCK < HEADER;
        let sparse = if whole.len() > 10_000 { 1009 } else { 1 };
        for bit in (start * 8..whole.len() * 8).filter(|bit| bit % sparse == 0 || in_header(bit / 8)) {
            // The last bytes of a block are no record's.
            if whole.len() - bit / 8 > BLOCK && BLOCK - bit / 8 % BLOCK < HEADER {
                continue;
            }
            fs::write(&path, flip(&whole, bit)).unwrap();
            assert_eq!(corrupt(&dir).what, Bad::Flipped { bit: bit as u64 });
        }
        let message = check(dir.path()).unwrap_err().to_string();
        assert!(message.contains("turning it back mends it"), "{message}");
    }
}

/// Two flipped bits are no single one, and neither is what lost sectors leave: both stay torn.
#[test]
fn what_no_single_bit_mends_stays_torn() {
    let dir = crashed(&[100, 3000]);
    let path = only_log(&dir);
    let whole = fs::read(&path).unwrap();
    let start = starts(&path)[1];
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..2000 {
        let (a, b) = (random.usize(start * 8..whole.len() * 8), random.usize(start * 8..whole.len() * 8));
        if a != b {
            fs::write(&path, flip(&flip(&whole, a), b)).unwrap();
            assert_eq!(torn(&dir).batches, 1, "{a} {b}");
        }
    }
    for sectors in 1..1 << (whole.len() - start).div_ceil(512) {
        let mut bytes = whole.clone();
        for (n, sector) in bytes[start..].chunks_mut(512).enumerate() {
            if sectors >> n & 1 == 1 {
                sector.fill(0);
            }
        }
        fs::write(&path, bytes).unwrap();
        let report = check(dir.path()).unwrap();
        assert_eq!(report.batches, 1);
    }
}

/// What lies behind the last batch changes nothing: neither what is read here nor what RocksDB opens.
#[test]
fn a_bit_set_in_the_zeros_behind_the_last_batch_costs_nothing() {
    let dir = crashed(&SMALL);
    let path = only_log(&dir);
    let whole = fs::read(&path).unwrap();
    let with_zeros = [&whole[..], &vec![0; BLOCK + 300]].concat();
    let near = |bit: usize| bit / 8 < whole.len() + 30 || (bit / 8 + 10) % BLOCK < 20;
    for bit in (whole.len() * 8..with_zeros.len() * 8).filter(|&bit| near(bit) || bit % 4093 == 0) {
        fs::write(&path, flip(&with_zeros, bit)).unwrap();
        assert_eq!(check(dir.path()).unwrap().batches, 8, "bit {bit}");
        if bit % 17 == 0 {
            assert_eq!(count(copy(dir.path()).path()), 8, "bit {bit}");
        }
    }
}

#[test]
fn zeros_at_the_end_are_nothing_and_garbage_is_torn() {
    let dir = crashed(&SMALL);
    let path = only_log(&dir);
    let whole = fs::read(&path).unwrap();
    let with = |tail: &[u8]| fs::write(&path, [&whole, tail].concat()).unwrap();
    for zeros in [1, HEADER - 1, HEADER, 100, 3 * BLOCK] {
        with(&vec![0; zeros]);
        let report = check(dir.path()).unwrap();
        assert_eq!((report.batches, report.torn), (8, None), "{zeros} zeros");
        assert_eq!(count(copy(dir.path()).path()), 8);
    }
    for garbage in 1..HEADER {
        with(&vec![0xa5; garbage]);
        assert_eq!(torn(&dir).batches, 8);
        assert_eq!(count(copy(dir.path()).path()), 8);
    }
    let mut random = fastrand::Rng::with_seed(7);
    let mut megabytes = vec![0; 3 << 20];
    random.fill(&mut megabytes);
    with(&megabytes);
    assert_eq!(torn(&dir).batches, 8);
    // A copy of earlier batches is no later batch: its numbers are too small.
    with(&[&[1, 2, 3], &whole[..]].concat());
    assert_eq!(torn(&dir).batches, 8);
}

#[test]
fn a_zeroed_page_is_torn_at_the_end_and_corruption_before() {
    let dir = crashed(&[500; 60]);
    let path = only_log(&dir);
    let whole = fs::read(&path).unwrap();
    let last = (whole.len() - 1) / 4096 * 4096;
    for page in (0..whole.len()).step_by(4096) {
        let mut bytes = whole.clone();
        let end = (page + 4096).min(whole.len());
        bytes[page..end].fill(0);
        fs::write(&path, bytes).unwrap();
        if page == last {
            assert!(torn(&dir).batches < 60);
        } else {
            corrupt(&dir);
        }
    }
}

/// Several files, kept because a family that is never flushed has a write in the first of them.
fn several(files: u64) -> TempDir {
    let dir = tempdir().unwrap();
    let db = open(dir.path());
    let mut id = 0;
    for _ in 0..files {
        for _ in 0..3 {
            id += 1;
            put(&db, id, 200);
        }
        db.flush_cf(db.cf_handle("log").unwrap()).unwrap();
    }
    put(&db, id + 1, 200);
    copy(dir.path())
}

#[test]
fn numbers_go_on_from_file_to_file_and_a_file_that_is_missing_leaves_a_hole() {
    let dir = several(4);
    let paths = files(dir.path()).unwrap();
    assert!(paths.len() >= 4, "{paths:?}");
    assert_eq!(check(dir.path()).unwrap().batches, 13);
    for (index, path) in paths.iter().enumerate() {
        let without = copy(dir.path());
        fs::remove_file(without.path().join(path.file_name().unwrap())).unwrap();
        match check(without.path()) {
            Err(WalError::Missing { offset: 0, expected, found, .. }) => assert!(expected < found),
            // The oldest may have been deleted by RocksDB; that the newest ever was, nothing tells.
            Ok(_) => assert!(index == 0 || index == paths.len() - 1),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_tail_is_not_torn_when_a_later_file_goes_on_behind_it() {
    let dir = several(3);
    let paths = files(dir.path()).unwrap();
    for path in &paths[..paths.len() - 1] {
        let whole = fs::read(path).unwrap();
        for bytes in [flip(&whole, whole.len() * 8 - 1), whole[..whole.len() - 1].to_vec(), flip(&whole, 0)] {
            fs::write(path, bytes).unwrap();
            assert_eq!(corrupt(&dir).file, *path);
        }
        // Not a single batch left: nothing says which number comes next, but it is no empty batch that follows.
        fs::write(path, &whole[..10]).unwrap();
        assert_eq!(corrupt(&dir).file, *path);
        fs::write(path, &whole).unwrap();
    }
    // A file cut between two batches shows as a hole.
    let start = starts(&paths[0])[1];
    fs::write(&paths[0], &fs::read(&paths[0]).unwrap()[..start]).unwrap();
    assert!(matches!(check(dir.path()), Err(WalError::Missing { .. })));
}

#[test]
fn a_torn_tail_that_an_earlier_recovery_has_cut_off_may_still_lie_there() {
    for kept in [7, 1, 0] {
        let dir = crashed(&SMALL);
        let path = only_log(&dir);
        let name = path.file_name().unwrap();
        let whole = fs::read(&path).unwrap();
        let tail = &whole[..starts(&path)[kept] + 20];
        fs::write(&path, tail).unwrap();
        // As if the process had ended between RocksDB's first batch in the new file and the deletion of the old one.
        let db = open(dir.path());
        assert!(!path.exists());
        let recovered = copy(dir.path());
        fs::write(recovered.path().join(name), tail).unwrap();
        assert_eq!(torn(&recovered).files, 2);
        // And as if that deletion had come to nothing.
        put(&db, kept as u64 + 1, 10);
        let later = copy(dir.path());
        fs::write(later.path().join(name), tail).unwrap();
        if kept > 0 {
            assert_eq!(torn(&later).files, 2);
            assert_eq!(count(later.path()), kept as u64 + 1);
            // Two tails in a row: the next recovery was cut short as well.
            let second = only_log(&dir);
            let bytes = fs::read(&second).unwrap();
            fs::write(recovered.path().join(second.file_name().unwrap()), &bytes[..10]).unwrap();
            assert_eq!(torn(&recovered).files, 2);
        } else {
            // RocksDB leaves no empty batch when it found none, so nothing excuses that tail. It deletes before it lets
            // anyone write, so this does not happen.
            corrupt(&later);
        }
    }
}

#[test]
fn records_that_are_not_ours_are_refused() {
    let dir = crashed(&SMALL);
    let path = only_log(&dir);
    for kind in [0, 5, 9, 10, 11, 12, 129, 131, 255] {
        let mut record = vec![0, 0, 0, 0, 12, 0, kind];
        record.extend_from_slice(&[1; 16]);
        let size = if matches!(kind, 5 | 11 | 131) { 23 } else { 19 };
        let crc = masked(crc32c::crc32c(&record[6..size]));
        record[..4].copy_from_slice(&crc.to_le_bytes());
        fs::write(&path, &record).unwrap();
        assert_eq!(corrupt(&dir).what, Bad::Type(kind));
    }
}

/// A child that writes without end, killed again and again: at work, and while it recovers, flushes and deletes files.
#[test]
fn what_a_killed_process_leaves_is_never_corrupt() {
    const CHILD: &str = "TIDELOG_TEST_WAL_CHILD";
    if let Some(dir) = std::env::var_os(CHILD) {
        return write_until_killed(Path::new(&dir));
    }
    let dir = tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(11);
    let mut acknowledged = 0;
    for round in 0..40 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "store::wal::tests::what_a_killed_process_leaves_is_never_corrupt"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut ids = lines.filter_map(|line| line.unwrap().strip_prefix("id ").map(|id| id.parse::<u64>().unwrap()));
        // In every other round soon: while the files of the last round are being flushed and deleted.
        for _ in 0..if round % 2 == 0 { random.u32(0..3) } else { random.u32(100..600) } {
            acknowledged = ids.next().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged = ids.last().unwrap_or(acknowledged);
        check(dir.path()).unwrap();
    }
    assert!(count(dir.path()) >= acknowledged && acknowledged > 2000);
}

fn write_until_killed(dir: &Path) {
    let db = open_with(dir, |options| {
        // Many small files, several of them obsolete at once.
        options.set_write_buffer_size(64 << 10);
        options.set_max_total_wal_size(300 << 10);
    })
    .unwrap();
    let last = db.iterator_cf(db.cf_handle("log").unwrap(), rocksdb::IteratorMode::End).next();
    let mut id = last.map_or(0, |entry| u64::from_be_bytes((*entry.unwrap().0).try_into().unwrap()));
    loop {
        id += 1;
        put(&db, id, if id % 50 == 0 { 70_000 } else { 500 });
        let mut out = std::io::stdout().lock();
        // The parent is gone, or it has closed its end: nothing is left to do.
        if writeln!(out, "id {id}").and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}
