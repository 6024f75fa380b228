//! Acked is on disk: seen from outside, by the system calls of the program.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::thread;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{BIN, TestServer};

const PUBLISHERS: usize = 16;
const PUBLISHES: usize = 20;

/// A system call: the lines of the trace at which it was entered and left. They are in the order in which things happened,
/// because a thread stops at both until the tracer has written its line.
#[derive(Debug)]
struct Call {
    name: String,
    /// What the tracer shows of its arguments, at its end; it begins with the file.
    text: String,
    entered: usize,
    left: usize,
}

fn calls(trace: &str) -> Vec<Call> {
    let mut open: HashMap<&str, (usize, String)> = HashMap::new();
    let mut calls = Vec::new();
    for (at, line) in trace.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(begun) = rest.strip_suffix("<unfinished ...>") {
            open.insert(thread, (at, begun.to_owned()));
            continue;
        }
        let (entered, whole) = match rest.strip_prefix("<... ").and_then(|rest| rest.split_once(" resumed>")) {
            Some((_, end)) => {
                let Some((entered, begun)) = open.remove(thread) else { continue };
                (entered, begun + end)
            }
            None => (at, rest.to_owned()),
        };
        if let Some((name, text)) = whole.split_once('(') {
            calls.push(Call { name: name.to_owned(), text: text.to_owned(), entered, left: at });
        }
    }
    calls
}

/// The server's own process: the tracer's child.
fn traced(tracer: Pid) -> Pid {
    let tracer = tracer.as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{tracer}/task/{tracer}/children")).unwrap();
    Pid::from_raw(children.trim().parse().unwrap()).unwrap()
}

fn trace(into: &Path, dir: &Path, load: impl FnOnce(&TestServer)) -> Vec<Call> {
    let mut strace = Command::new("strace");
    let found = Command::new("strace").arg("-V").output().is_ok_and(|output| output.status.success());
    assert!(found, "this test looks at the program's system calls: install strace (apt-get install strace)");
    strace.args([
        "-f",
        "-y",
        "-s",
        "256",
        "-e",
        "trace=fsync,fdatasync,recvfrom,read,write,writev,sendto,sendmsg",
        "-o",
    ]);
    strace.arg(into).arg(BIN);
    let mut server = TestServer::start_as(strace, dir, &[]);
    load(&server);
    kill_process(traced(server.pid()), Signal::TERM).unwrap();
    assert!(server.wait().success(), "{}", server.said());
    calls(&std::fs::read_to_string(into).unwrap())
}

/// The socket or file that a call is on, as the tracer writes it.
fn file(call: &Call) -> &str {
    call.text.split(['>', ',']).next().unwrap()
}

#[test]
fn every_ack_comes_after_an_fsync_that_began_after_its_request() {
    let dir = tempfile::tempdir().unwrap();
    let calls = trace(&dir.path().join("trace"), &dir.path().join("data"), |server| {
        thread::scope(|scope| {
            for publisher in 0..PUBLISHERS {
                scope.spawn(move || {
                    let mut conn = server.connect();
                    // What keeps a request off the short way: hyper serves every other one.
                    let headers: &[_] = if publisher % 2 == 0 { &[] } else { &[("Expect", "nothing")] };
                    for n in 0..PUBLISHES {
                        let answer =
                            conn.ask("POST", "/topics/a", headers, format!("mark-{publisher}-{n}").as_bytes()).unwrap();
                        assert_eq!(answer.status, 201);
                    }
                });
            }
        });
    });
    let is_wal = |call: &Call| file(call).contains("/data/db/") && call.text.contains(".log>");
    let synced: Vec<_> = calls
        .iter()
        .filter(|call| matches!(&*call.name, "fsync" | "fdatasync") && is_wal(call) && call.text.contains("= 0"))
        .collect();
    let mut acks = 0;
    // The request that each connection has sent last.
    let mut came: HashMap<&str, &Call> = HashMap::new();
    let mut in_order: Vec<_> = calls.iter().collect();
    in_order.sort_by_key(|call| if matches!(&*call.name, "recvfrom" | "read") { call.left } else { call.entered });
    for call in in_order {
        if matches!(&*call.name, "recvfrom" | "read") && call.text.contains("/topics/a HTTP/1.1") {
            came.insert(file(call), call);
        } else if call.text.contains("HTTP/1.1 201") {
            let request = came.remove(file(call)).unwrap_or_else(|| panic!("an ack without a request: {call:?}"));
            let before = synced.iter().any(|sync| request.left < sync.entered && sync.left < call.entered);
            assert!(before, "no fsync of the log between {request:?} and {call:?}");
            acks += 1;
        }
    }
    assert_eq!(acks, PUBLISHERS * PUBLISHES);
    assert!(came.is_empty(), "{came:?}");
    // How many share one depends on the disk and the tracer; that they do does not.
    assert!(synced.len() < acks * 9 / 10, "{} fsyncs for {acks} publishes by {PUBLISHERS} at a time", synced.len());
}

#[test]
fn without_sync_nothing_waits_for_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(dir.path(), &["durability=os"]);
    for id in 1..=50 {
        assert_eq!(server.publish("a", "x"), id);
    }
    // The ids are marked as given all the same: after a kill they are not given again.
    server.kill();
    let server = TestServer::start_in(dir.path(), &["durability=os"]);
    assert_eq!(server.everything("/events").len(), 50);
    assert!(server.publish("a", "y") > 50);
}
