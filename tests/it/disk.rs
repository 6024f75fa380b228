//! A full disk is not the end: publishes are refused while there is still room for the store itself, readers read on, and when
//! there is room again writing goes on by itself. Nothing that was acked is lost.
//!
//! The disk is a tmpfs in a mount namespace of its own, which a process holds open; the test reaches it through `/proc`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tempfile::TempDir;
use tidelog::event::{Event, NewEvent};
use tidelog::store::Store as _;
use tidelog::store::rocks::{self, RocksStore};
use tidelog::topic::Topic;

use crate::support::{ANY_PORT, Answer, BIN, Conn, OnDrop, TestServer, serve, until};

const MIB: u64 = 1 << 20;

/// A small disk.
struct Disk {
    /// Holds the namespace while its stdin is open.
    holder: Child,
    /// Where it is mounted, in that namespace.
    inside: PathBuf,
    _point: TempDir,
}

impl Disk {
    fn new(mib: u64) -> Self {
        let point = tempfile::tempdir().unwrap();
        let inside = point.path().to_owned();
        let script = "mount -t tmpfs -o size=$1 tmpfs \"$2\" && echo mounted && exec cat";
        // Root needs no user namespace, and some systems allow none.
        let flags = if fs::metadata("/proc/self").unwrap().uid() == 0 { "-m" } else { "-rm" };
        let mut unshare = Command::new("unshare");
        unshare.args([flags, "sh", "-c", script, "sh", &format!("{mib}m")]).arg(&inside);
        let mut holder = unshare
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| no_disk(&error.to_string()));
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if line != "mounted\n" {
            no_disk(&format!("unshare {flags} … mount -t tmpfs … {}", holder.wait().unwrap()));
        }
        Self { holder, inside, _point: point }
    }

    /// A path on it, as the test sees it.
    fn path(&self, name: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.holder.id())).join(self.inside.strip_prefix("/").unwrap()).join(name)
    }

    fn free(&self) -> u64 {
        let stat = statvfs(self.path("")).unwrap();
        stat.f_bavail * stat.f_frsize
    }

    /// Takes so many bytes of it.
    fn ballast(&self, name: &str, bytes: u64) {
        let file = File::create(self.path(name)).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, bytes).unwrap();
    }

    /// Takes all that is left of it, to the last page.
    fn fill(&self, name: &str) {
        let file = File::create(self.path(name)).unwrap();
        let (mut at, mut step) = (0, 64 * MIB);
        while step > 0 {
            match fallocate(&file, FallocateFlags::empty(), at, step) {
                Ok(()) => at += step,
                Err(_) => step /= 2,
            }
        }
    }

    /// What runs there begins so.
    fn within(&self) -> Command {
        let mut nsenter = Command::new("nsenter");
        let holder = self.holder.id().to_string();
        nsenter.args(["-t", &holder, "-m"]);
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            nsenter.args(["-U", "--preserve-credentials"]);
        }
        nsenter
    }

    fn serve(&self, sets: &[&str]) -> TestServer {
        let mut program = self.within();
        program.arg(BIN);
        TestServer::start_as(program, &self.inside.join("data"), sets)
    }

    /// Why the log on it is not served.
    fn refusal(&self) -> String {
        let mut program = self.within();
        program.args(["timeout", "20", BIN]);
        let output = serve(&mut program, ANY_PORT, &self.inside.join("data"), &[]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code().is_some_and(|code| code != 0 && code != 124), "{} {said}", output.status);
        assert!(output.stdout.is_empty() && !said.contains("panicked"), "{said}");
        said
    }

    fn remount(&self, how: &str) {
        let status = self.within().args(["mount", "-o", how]).arg(&self.inside).status().unwrap();
        assert!(status.success(), "mount -o {how}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

fn no_disk(why: &str) -> ! {
    panic!(
        "this test needs a small disk to fill, so a mount namespace: run it as root or where user namespaces are allowed \
         (sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), with util-linux: {why}"
    )
}

/// Data that does not compress, and can be told again from its number.
fn data(n: u64, bytes: usize) -> String {
    let mut rng = fastrand::Rng::with_seed(n);
    let mut data = format!("{n} ");
    data.extend(std::iter::repeat_with(|| rng.alphanumeric()).take(bytes));
    data
}

type Acked = BTreeMap<u64, u64>;

/// Publishes number `n`; acked events are kept by id.
fn publish(conn: &mut Conn, n: u64, bytes: usize, acked: &mut Acked) -> Answer {
    let answer = conn.ask("POST", "/topics/full", &[], data(n, bytes).as_bytes()).unwrap();
    if answer.status == 201 {
        let before = acked.insert(answer.json()["id"].as_u64().unwrap(), n);
        assert_eq!(before, None, "an id was given twice");
    } else {
        assert_eq!((answer.status, answer.problem().as_str()), (503, "storage_failed"), "{answer:?}");
    }
    answer
}

/// Everything that was acked is there under its id, and nothing is there twice.
fn check(server: &TestServer, acked: &Acked, bytes: usize) {
    let mut found = BTreeMap::new();
    for event in server.everything("/topics/full") {
        let text = event["data"].as_str().unwrap();
        let n: u64 = text.split(' ').next().unwrap().parse().unwrap();
        assert!(text == data(n, bytes), "event {}", event["id"]);
        assert!(found.insert(event["id"].as_u64().unwrap(), n).is_none());
    }
    for (id, n) in acked {
        assert_eq!(found.get(id), Some(n), "event {id} was acked");
    }
    let mut numbers: Vec<_> = found.values().collect();
    numbers.sort_unstable();
    let all = numbers.len();
    numbers.dedup();
    assert_eq!(numbers.len(), all, "a publish is there twice");
}

fn tail(conn: &mut Conn) -> u64 {
    conn.ask("HEAD", "/events", &[], b"").unwrap().header("tidelog-tail").unwrap().parse().unwrap()
}

fn is_ready(server: &TestServer) -> bool {
    let answer = server.get("/readyz", &[]);
    assert!(answer.status == 200 || answer.problem() == "storage_failed", "{answer:?}");
    answer.status == 200
}

#[test]
fn publishes_are_refused_before_the_store_has_no_room_and_go_on_when_there_is() {
    const BYTES: usize = 200_000;
    let disk = Disk::new(64);
    disk.ballast("ballast", 24 * MIB);
    let server = disk.serve(&[]);
    let mut watching = server.stream("/topics/full", &[]);
    watching.control("tidelog.live");
    let (mut conn, mut acked, mut n) = (server.connect(), Acked::new(), 0);
    let refused = loop {
        n += 1;
        let answer = publish(&mut conn, n, BYTES, &mut acked);
        if answer.status != 201 {
            break answer;
        }
        assert!(n < 1000, "a disk of 64 MiB takes no 200 MB");
        assert_eq!(watching.event().data, data(n, BYTES));
    };
    assert!(refused.detail().contains("full"), "{refused:?}");
    assert!(acked.len() > 10, "only {} events were taken", acked.len());
    assert!(disk.free() > 2 * MIB, "{} bytes are free: the store needs some itself", disk.free());
    assert!(!is_ready(&server));
    assert_eq!(server.get("/healthz", &[]).status, 200);
    assert!(server.get("/metrics", &[]).body.contains("tidelog_log_writable 0"));
    // Small ones are refused too, and deleting needs as little as it gives back.
    assert_eq!(server.ask("POST", "/topics/small", &[], b"x").problem(), "storage_failed");
    check(&server, &acked, BYTES);
    let mut resumed = server.stream("/topics/full", &[("Last-Event-ID", "3")]);
    assert_eq!((resumed.event().id, resumed.event().id), (4, 5));

    // Killed and started again on the disk as it is: it opens, reads, and refuses.
    server.kill();
    let server = disk.serve(&[]);
    check(&server, &acked, BYTES);
    let mut watching = server.stream("/topics/full", &[("Last-Event-ID", &server.tail().to_string())]);
    watching.control("tidelog.live");
    fs::remove_file(disk.path("ballast")).unwrap();
    let freed = Instant::now();
    let mut conn = server.connect();
    until("publishes are taken again", || {
        n += 1;
        (publish(&mut conn, n, BYTES, &mut acked).status == 201).then_some(())
    });
    assert!(freed.elapsed() < Duration::from_secs(10), "{:?}", freed.elapsed());
    assert_eq!(watching.event().data, data(n, BYTES));
    until("it is ready", || is_ready(&server).then_some(()));
    check(&server, &acked, BYTES);
    assert!(server.stop().success());
    check(&disk.serve(&[]), &acked, BYTES);
}

#[test]
fn a_disk_that_others_fill_to_the_last_byte_loses_nothing_that_was_acked() {
    // Little enough that the server looks at a disk with so much room once in a second.
    const BYTES: usize = 2_000;
    const PUBLISHERS: u64 = 4;
    const MET: &str = "No space left on device";
    let disk = Disk::new(640);
    let server = disk.serve(&[]);
    let mut watching = server.stream("/topics/other", &[]);
    watching.control("tidelog.live");
    let (refused, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut acked = Acked::new();
    thread::scope(|scope| {
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let (server, refused, stop) = (&server, &refused, &stop);
                scope.spawn(move || {
                    let (mut conn, mut acked, mut n) = (server.connect(), Acked::new(), publisher);
                    // What is refused is not sent again: whether it was appended is not known.
                    while !stop.load(Ordering::Relaxed) {
                        if publish(&mut conn, n, BYTES, &mut acked).status != 201 {
                            refused.store(true, Ordering::Relaxed);
                        }
                        n += PUBLISHERS;
                    }
                    acked
                })
            })
            .collect();
        let stops = OnDrop(|| stop.store(true, Ordering::Relaxed));
        let mut conn = server.connect();
        until("they are publishing", || (tail(&mut conn) > 200).then_some(()));
        // Filled between two looks of the server, it is the store that meets its end; a look in between is bad luck, so once more.
        for _ in 0..8 {
            refused.store(false, Ordering::Relaxed);
            disk.fill("ballast");
            until("publishes are refused", || (!is_ready(&server) && refused.load(Ordering::Relaxed)).then_some(()));
            let before = tail(&mut conn);
            // Who reads does not notice.
            assert_eq!(server.stream("/topics/full", &[("Last-Event-ID", "0")]).event().id, 1);
            fs::remove_file(disk.path("ballast")).unwrap();
            let freed = Instant::now();
            until("publishes are taken again", || (tail(&mut conn) > before + 50).then_some(()));
            assert!(freed.elapsed() < Duration::from_secs(15), "{:?}", freed.elapsed());
            if server.said().contains(MET) {
                break;
            }
        }
        assert!(server.said().contains(MET), "the store never met the end of the disk");
        drop(stops);
        for publisher in publishers {
            for (id, n) in publisher.join().unwrap() {
                assert_eq!(acked.insert(id, n), None, "an id was given twice");
            }
        }
    });
    until("it is ready", || is_ready(&server).then_some(()));
    server.publish("other", "x");
    assert_eq!(watching.event().data, "x", "who waited was not cut off");
    check(&server, &acked, BYTES);
    server.kill();
    check(&disk.serve(&[]), &acked, BYTES);
}

#[test]
fn a_disk_that_is_read_only_or_full_at_the_start_is_said() {
    const BYTES: usize = 10_000;
    let disk = Disk::new(64);
    let mut acked = Acked::new();
    let server = disk.serve(&[]);
    let mut conn = server.connect();
    for n in 0..50 {
        assert_eq!(publish(&mut conn, n, BYTES, &mut acked).status, 201);
    }
    assert!(server.stop().success());
    disk.remount("remount,ro");
    let said = disk.refusal();
    assert!(said.contains("Read-only file system"), "{said}");
    disk.remount("remount,rw");
    disk.fill("ballast");
    let said = disk.refusal();
    assert!(said.contains("No space left on device") && !said.contains("corrupt"), "{said}");
    fs::remove_file(disk.path("ballast")).unwrap();
    let server = disk.serve(&[]);
    check(&server, &acked, BYTES);
    assert_eq!(publish(&mut server.connect(), 50, BYTES, &mut acked).status, 201);
}

#[test]
fn a_store_that_could_not_be_opened_again_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::open(rocks::Options::new(dir.path())).unwrap();
    let event = |id| {
        let (topic, data) = (Topic::parse("a").unwrap(), "x".to_owned());
        Event::new(id, 0, NewEvent { topic, event: None, key: None, data })
    };
    store.append(&[event(1)]).unwrap();
    // What stands where a file of the log should be lets no attempt succeed.
    fs::create_dir(dir.path().join("ids")).unwrap();
    for _ in 0..2 {
        assert!(store.reopen().is_err());
        assert!(store.append(&[event(2)]).is_err());
        store.room(0).expect("there is room, so opening it is worth an attempt");
    }
    fs::remove_dir(dir.path().join("ids")).unwrap();
    store.reopen().unwrap();
    store.append(&[event(2)]).unwrap();
    assert_eq!(store.tail(), 2);
}
