//! A disk that fails: fsyncs, writes, opens and reads that do not succeed, or take long, or never come to an end. Each is said in a clear
//! answer, nothing is acked that could not be kept, who reads reads on, and what can go on goes on by itself when the cause is gone.
//!
//! The faults are made by `faults.c`, which the test compiles (`cc`) and loads before the C library into the built program; a file steers it.
//! A failed fsync really loses what it was to write: at once, or when the power is cut after the test killed the server. So an ack that
//! rests on the page cache's word would be found out.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use tempfile::TempDir;

use crate::support::{Answer, BIN, Conn, OnDrop, Stream, TestServer, until};

mod hang;
mod start;

/// The words of the control file; the errno's place, and behind it how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Sync = 0,
    Write = 2,
    Open = 4,
    Read = 6,
}

const SYNC_MS: u64 = 8;
const READ_MS: u64 = 9;
const DROP: u64 = 10;
const STRUCK: u64 = 11;
const WORDS: u64 = 12;

const FOR_EVER: i64 = -1;

/// A directory on a disk that can be told to fail.
pub struct FaultyDisk {
    home: PathBuf,
    control: File,
    _own: Option<TempDir>,
}

/// `faults.c`, compiled once for all tests of this process.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = LIBRARY.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("faults.so");
        let source = "tests/it/faults.c";
        let status =
            Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).arg(&path).args([source, "-ldl"]).status();
        assert!(status.expect("this test needs a C compiler, cc").success());
        (dir, path)
    });
    path
}

impl FaultyDisk {
    pub fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let control =
            File::options().create_new(true).read(true).write(true).open(home.path().join("control")).unwrap();
        control.set_len(WORDS * 8).unwrap();
        Self { home: home.path().to_owned(), control, _own: Some(home) }
    }

    /// The one that this process itself meets.
    fn of_environment() -> Self {
        let control = PathBuf::from(std::env::var_os("FAULTS_CONTROL").expect("it is not run by itself"));
        let home = control.parent().unwrap().to_owned();
        Self { home, control: File::options().read(true).write(true).open(control).unwrap(), _own: None }
    }

    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Has `program` meet the faults.
    pub fn under<'a>(&self, program: &'a mut Command) -> &'a mut Command {
        let home = &self.home;
        program.env("LD_PRELOAD", library()).env("FAULTS_DIR", self.data());
        program.env("FAULTS_CONTROL", home.join("control")).env("FAULTS_LOST", home.join("lost"))
    }

    fn serve(&self, sets: &[&str]) -> TestServer {
        let mut program = Command::new(BIN);
        self.under(&mut program);
        TestServer::start_as(program, &self.data(), sets)
    }

    fn set(&self, word: u64, value: i64) {
        self.control.write_all_at(&value.to_ne_bytes(), word * 8).unwrap();
    }

    fn get(&self, word: u64) -> i64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, word * 8).unwrap();
        i64::from_ne_bytes(bytes)
    }

    pub fn fail(&self, fault: Fault, errno: Errno, times: i64) {
        self.set(fault as u64, errno.raw_os_error().into());
        self.set(fault as u64 + 1, times);
    }

    pub fn mend(&self) {
        for word in [Fault::Sync, Fault::Write, Fault::Open, Fault::Read] {
            self.set(word as u64 + 1, 0);
        }
        self.set(SYNC_MS, 0);
        self.set(READ_MS, 0);
    }

    pub fn sync_takes(&self, time: Duration) {
        self.set(SYNC_MS, time.as_millis().try_into().unwrap());
    }

    pub fn read_takes(&self, time: Duration) {
        self.set(READ_MS, time.as_millis().try_into().unwrap());
    }

    /// How many calls have failed.
    pub fn struck(&self) -> i64 {
        self.get(STRUCK)
    }

    /// Takes out of the files what failed fsyncs were to write: it never came to the disk. Gives how many bytes that were.
    fn cut_power(&self) -> u64 {
        let list = self.home.join("lost");
        let mut ranges: Vec<(u64, u64, PathBuf)> = Vec::new();
        for line in fs::read_to_string(&list).unwrap_or_default().lines() {
            let mut parts = line.splitn(3, ' ');
            let mut number = || parts.next().unwrap().parse().unwrap();
            let (low, high) = (number(), number());
            let path = PathBuf::from(parts.next().unwrap());
            if high == 0 {
                ranges.retain(|(_, _, other)| *other != path);
            } else {
                ranges.push((low, high, path));
            }
        }
        let mut bytes = 0;
        for (low, high, path) in ranges {
            // It may have been removed since, with all that it held written elsewhere.
            let Ok(file) = File::options().write(true).open(path) else { continue };
            let high = high.min(file.metadata().unwrap().len());
            if low < high {
                file.write_all_at(&vec![0; usize::try_from(high - low).unwrap()], low).unwrap();
                bytes += high - low;
            }
        }
        let _ = fs::remove_file(list);
        bytes
    }
}

/// Data by id.
type Known = BTreeMap<u64, String>;

/// Publishes under keys until the server is gone; a refused one is repeated until it is taken.
fn publish(server: &TestServer, number: &AtomicU64, acked: &Mutex<Known>, refused: &AtomicU64) {
    let Ok(mut conn) = Conn::connect(server.addr) else { return };
    loop {
        let data = format!("n{}", number.fetch_add(1, Ordering::Relaxed));
        loop {
            let Ok(answer) = conn.ask("POST", "/topics/a", &[("Idempotency-Key", &data)], data.as_bytes()) else {
                return;
            };
            if answer.status == 503 {
                assert_eq!(answer.problem(), "storage_failed", "{answer:?}");
                refused.fetch_add(1, Ordering::Relaxed);
                // Nobody is to be asked as fast as can be; a second is what it takes.
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            assert!(matches!(answer.status, 200 | 201), "{answer:?}");
            let id = answer.json()["id"].as_u64().unwrap();
            assert_eq!(acked.lock().unwrap().insert(id, data), None, "the id {id} was given twice");
            break;
        }
    }
}

fn follow(server: &TestServer, after: u64) -> Known {
    let Ok(mut stream) = Stream::open(server.addr, "/topics/a", &[("Last-Event-ID", &after.to_string())]) else {
        return Known::new();
    };
    let (mut seen, mut last) = (Known::new(), after);
    while let Some(event) = stream.next() {
        // It is told why, should the store be closed just when it wants to read.
        assert!(!event.is_control() || ["tidelog.live", "tidelog.error"].contains(&event.event.as_str()), "{event:?}");
        if !event.is_control() {
            assert!(event.id > last);
            last = event.id;
            seen.insert(event.id, event.data);
        }
    }
    seen
}

fn everything(server: &TestServer) -> Known {
    // Another filter each time: what was read for one is kept a while, and would not be asked of the disk.
    static TIMES: AtomicU64 = AtomicU64::new(0);
    let times = TIMES.fetch_add(1, Ordering::Relaxed);
    let all = server.everything(&format!("/events?topic=a&topic=nothing.{times}"));
    let known: Known =
        all.iter().map(|event| (event["id"].as_u64().unwrap(), event["data"].as_str().unwrap().to_owned())).collect();
    assert_eq!(known.len(), all.len());
    assert_eq!(known.values().collect::<HashSet<_>>().len(), all.len(), "a publish is there twice");
    known
}

fn contains(log: &Known, part: &Known, what: &str) {
    for (id, data) in part {
        assert_eq!(log.get(id), Some(data), "event {id} was {what}");
    }
}

const ROUNDS: u64 = 4;

/// `dropped`: what is lost is lost at once, so that it is not found any more by whoever reads; else when the power is cut.
fn fail_fsyncs(dropped: bool) {
    let disk = FaultyDisk::new();
    disk.set(DROP, dropped.into());
    let (number, refused) = (AtomicU64::new(1), AtomicU64::new(0));
    let (acked, mut seen, mut lost) = (Mutex::new(Known::new()), Known::new(), 0);
    for round in 0..ROUNDS {
        let server = disk.serve(&[]);
        let after = server.tail();
        thread::scope(|scope| {
            // Where the test has failed, nobody goes on either.
            let kill = || {
                let _ = rustix::process::kill_process(server.pid(), rustix::process::Signal::KILL);
            };
            let _ends = OnDrop(kill);
            for _ in 0..4 {
                scope.spawn(|| publish(&server, &number, &acked, &refused));
            }
            let follower = scope.spawn(|| follow(&server, after));
            let acks = || acked.lock().unwrap().len();
            let more = |most: usize| until("publishes are acked", || (acks() > most).then(thread::yield_now));
            more(acks() + 30);
            let struck = disk.struck();
            // The last round's third failure is one while the log is opened again.
            disk.fail(Fault::Sync, Errno::IO, if round == ROUNDS - 1 { 3 } else { 1 });
            until("an fsync failed", || (disk.struck() > struck).then_some(()));
            let failed = Instant::now();
            until("it is said", || (server.get("/readyz", &[]).status == 503).then_some(()));
            let at = acks();
            until("it is ready again", || (server.get("/readyz", &[]).status == 200).then_some(()));
            println!("ready {:?} after an fsync failed", failed.elapsed());
            more(at + 30);
            kill();
            seen.extend(follower.join().unwrap());
        });
        drop(server);
        lost += disk.cut_power();
        let server = disk.serve(&[]);
        let log = everything(&server);
        contains(&log, &acked.lock().unwrap(), "acked");
        contains(&log, &seen, "seen");
        assert!(server.stop().success());
    }
    assert!(refused.into_inner() > 0, "nothing was refused");
    assert!(seen.len() > 100, "{} were seen", seen.len());
    println!("dropped {dropped}: {} acked, {lost} bytes lost with the power", acked.into_inner().unwrap().len());
}

#[test]
fn after_a_failed_fsync_nothing_rests_on_the_page_cache() {
    fail_fsyncs(false);
}

#[test]
fn after_a_failed_fsync_that_dropped_its_pages_nothing_that_was_acked_is_lost() {
    fail_fsyncs(true);
}

fn refused(answer: &Answer) -> bool {
    if answer.status == 201 {
        return false;
    }
    assert_eq!((answer.status, answer.problem().as_str()), (503, "storage_failed"), "{answer:?}");
    true
}

/// What cannot be written is refused and said; who reads reads on; and when the cause is gone it goes on by itself.
#[test]
fn a_disk_that_cannot_be_written_is_said_and_got_over() {
    for (fault, errno, word) in [
        (Fault::Sync, Errno::IO, "Input/output error"),
        (Fault::Write, Errno::NOSPC, "No space left on device"),
        (Fault::Write, Errno::IO, "Input/output error"),
        (Fault::Write, Errno::ROFS, "Read-only file system"),
        (Fault::Open, Errno::MFILE, "Too many open files"),
        (Fault::Open, Errno::ACCESS, "Permission denied"),
    ] {
        let disk = FaultyDisk::new();
        let mut acked = Known::new();
        {
            let server = disk.serve(&[]);
            for n in 1..=20 {
                let data = format!("{n} before");
                acked.insert(server.publish("a", &data), data);
            }
            assert!(server.stop().success());
        }
        // Of what was before, nothing is in its memory.
        let server = disk.serve(&["heartbeat=100ms"]);
        let mut conn = server.connect();
        // A new file is opened only now and then.
        let bytes = if fault == Fault::Open { 300_000 } else { 100 };
        let mut n = 20;
        let mut publish = |acked: &mut Known| {
            n += 1;
            let mut data = format!("{n} ");
            data.extend(std::iter::repeat_with(fastrand::alphanumeric).take(bytes));
            let answer = conn.ask("POST", "/topics/a", &[], data.as_bytes()).unwrap();
            if !refused(&answer) {
                acked.insert(answer.json()["id"].as_u64().unwrap(), data);
            }
            answer
        };
        let mut live = server.stream("/topics/other", &[]);
        live.control("tidelog.live");
        disk.fail(fault, errno, FOR_EVER);
        let answer = until("a publish is refused", || Some(publish(&mut acked)).filter(|answer| answer.status == 503));
        assert!(!answer.detail().is_empty());
        // Through some attempts to open the log again.
        let begun = Instant::now();
        let mut reads = 0;
        while begun.elapsed() < Duration::from_millis(2_500) {
            assert_eq!(server.get("/healthz", &[]).status, 200);
            assert_eq!(server.get("/readyz", &[]).problem(), "storage_failed");
            assert!(server.get("/metrics", &[]).body.contains("tidelog_log_writable 0"));
            assert!(refused(&publish(&mut acked)), "{fault:?} {errno:?}: nothing is taken");
            // Of the log as it is on the disk nothing more is known than was acked.
            let state = server.get("/topics/a/state", &[]);
            match state.status {
                200 => assert_eq!(state.json()["as_of"], acked.len()),
                status => assert_eq!((status, state.problem().as_str()), (503, "storage_failed")),
            }
            // Where no file can be opened, the log cannot be opened for reading either.
            if fault != Fault::Open {
                assert_eq!(everything(&server), acked);
                let event = server.stream("/topics/a", &[("Last-Event-ID", "3")]).event();
                assert_eq!(Some(&event.data), acked.get(&4));
            }
            reads += 1;
        }
        disk.mend();
        let mended = Instant::now();
        until("it is ready", || (server.get("/readyz", &[]).status == 200).then_some(()));
        let took = mended.elapsed();
        println!(
            "{fault:?} {errno:?}: {reads} rounds of reads meanwhile, ready {took:?} after it was mended: {}",
            answer.detail()
        );
        assert!(server.said().contains(word), "{word}: {}", server.said());
        assert_eq!(publish(&mut acked).status, 201);
        server.publish("other", "x");
        assert_eq!(live.event().data, "x", "who waited was not cut off");
        contains(&everything(&server), &acked, "acked");
        server.kill();
        disk.cut_power();
        let server = disk.serve(&[]);
        contains(&everything(&server), &acked, "acked");
        assert!(!server.said().contains("panicked"));
    }
}

/// More than the cache of blocks holds, so that reading it needs the disk.
const BIG: usize = 1 << 20;
const BIGS: u64 = 90;

#[test]
fn a_table_that_cannot_be_read_is_said_to_who_reads_it_and_to_nobody_else() {
    let disk = FaultyDisk::new();
    let server = disk.serve(&["durability=os"]);
    let mut conn = server.connect();
    for _ in 0..BIGS {
        let data: String = std::iter::repeat_with(fastrand::alphanumeric).take(BIG - 10).collect();
        assert_eq!(conn.ask("POST", "/topics/a", &[], data.as_bytes()).unwrap().status, 201);
    }
    assert!(server.stop().success());
    // What the log's end held is in tables now.
    let server = disk.serve(&["heartbeat=100ms"]);
    assert_eq!(server.tail(), BIGS);
    let mut live = server.stream("/topics/**", &[]);
    live.control("tidelog.live");
    disk.fail(Fault::Read, Errno::IO, FOR_EVER);
    let page = |from| server.get(&format!("/topics/a?limit=1&from={from}"), &[("Accept", "application/json")]);
    let failed = (1..=BIGS).map(page).find(|answer| answer.status != 200).expect("some of it lies on the disk alone");
    assert_eq!((failed.status, failed.problem().as_str()), (503, "storage_failed"));
    let mut stream = server.stream("/topics/a?from=earliest", &[("Accept", "text/event-stream")]);
    let mut last = 0;
    let error = loop {
        let event = stream.next().expect("it is told why it ends");
        if event.event == "tidelog.error" {
            break event;
        }
        assert_eq!(event.id, last + 1, "nothing is passed over");
        last = event.id;
    };
    assert_eq!((error.id, &error.json()["code"]), (last, &"storage_failed".into()));
    assert_eq!(stream.next(), None);
    // Publishing, and following what comes, need no table.
    for n in 1..=5 {
        assert_eq!(server.publish("b", "x"), BIGS + n);
        assert_eq!(live.event().id, BIGS + n);
    }
    assert_eq!(server.get("/readyz", &[]).status, 200);
    disk.mend();
    let mut resumed = server.stream("/topics/a", &[("Last-Event-ID", &last.to_string())]);
    for id in last + 1..=BIGS {
        assert_eq!((resumed.event().id), id);
    }
    println!("{last} of {BIGS} were read before the first that could not be");
}

#[test]
fn heartbeats_come_in_time_while_the_disk_is_slow() {
    // Between them lies what a busy machine may take.
    const HEARTBEAT: Duration = Duration::from_millis(100);
    const SYNC: Duration = Duration::from_secs(2);
    for sets in [&["heartbeat=100ms"][..], &["heartbeat=100ms", "stream_threads=0", "publish_threads=0"]] {
        let disk = FaultyDisk::new();
        let server = disk.serve(sets);
        server.publish("a", "first");
        let mut idle: Vec<_> = (0..2).map(|_| server.stream("/topics/idle", &[])).collect();
        let mut follower = server.stream("/topics/a", &[]);
        disk.sync_takes(SYNC);
        disk.read_takes(Duration::from_millis(50));
        let begun = Instant::now();
        let (acks, longest) = thread::scope(|scope| {
            let publishers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let (mut conn, mut acks) = (server.connect(), 0);
                        while begun.elapsed() < 2 * SYNC {
                            assert_eq!(conn.ask("POST", "/topics/a", &[], b"x").unwrap().status, 201);
                            acks += 1;
                        }
                        acks
                    })
                })
                .collect();
            let waits: Vec<_> = idle
                .iter_mut()
                .map(|stream| {
                    scope.spawn(move || {
                        let mut longest = Duration::ZERO;
                        while begun.elapsed() < 2 * SYNC {
                            let since = Instant::now();
                            stream.bytes().expect("it goes on");
                            longest = longest.max(since.elapsed());
                        }
                        longest
                    })
                })
                .collect();
            let acks: u32 = publishers.into_iter().map(|publisher| publisher.join().unwrap()).sum();
            (acks, waits.into_iter().map(|wait| wait.join().unwrap()).max().unwrap())
        });
        println!("{sets:?}: {acks} acks; no heartbeat came later than {longest:?} after the one before");
        assert!(
            (4..=12).contains(&acks),
            "{acks} acks, four at a time, while two fsyncs or three begun before the end took {SYNC:?} each"
        );
        assert!(longest + 5 * HEARTBEAT < SYNC, "{longest:?}");
        for id in 2..=u64::from(acks) + 1 {
            assert_eq!(follower.event().id, id);
        }
    }
}
