//! `tidelog publish` and `tidelog subscribe` against a server.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{BIN, TOO_LONG, TestServer};

/// Ends it when it does not end by itself.
fn bounded(child: Child) -> Output {
    let pid = Pid::from_child(&child);
    let (done, ended) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        if ended.recv_timeout(TOO_LONG).is_err() {
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    let output = child.wait_with_output().unwrap();
    let _ = done.send(());
    watch.join().unwrap();
    output
}

fn start(server: &str, args: &[&str]) -> Child {
    let mut command = Command::new(BIN);
    command.args(args).args(["--server", server]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs it with `input`; gives the exit status, stdout, stderr.
fn run(server: &str, args: &[&str], input: &[u8]) -> (Option<i32>, String, String) {
    let mut child = start(server, args);
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // It may end before it has read everything.
    let feeds = thread::spawn(move || drop(stdin.write_all(&input)));
    let output = bounded(child);
    feeds.join().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn data_of(lines: &str) -> Vec<(u64, String)> {
    let objects = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    objects.map(|event| (event["id"].as_u64().unwrap(), event["data"].as_str().unwrap().to_owned())).collect()
}

#[test]
fn publish_takes_arguments_lines_and_json_lines() {
    let server = TestServer::start(&[]);
    let url = server.url();
    let publish = |args: &[&str], input: &str| run(&url, &[&["publish"], args].concat(), input.as_bytes());
    assert_eq!(
        publish(&["a.b", "one é", "--event", "t", "--key", "k"], ""),
        (Some(0), "{\"id\":1}\n".into(), String::new())
    );
    assert_eq!(publish(&["a", "-5"], "").1, "{\"id\":2}\n");
    assert_eq!(publish(&["a", "--whole"], "x\ny\n").1, "{\"id\":3}\n");
    assert_eq!(
        publish(&["a"], "l1\nl2\r\n\nlast"),
        (Some(0), "{\"first\":4,\"last\":7,\"count\":4}\n".into(), String::new())
    );
    let lines = "{\"data\":{\"n\" : 1}}\n\n{\"key\":\"k\",\"data\":\"x\"}\n";
    assert_eq!(publish(&["a", "--json-lines"], lines).1, "{\"first\":8,\"last\":9,\"count\":2}\n");
    let named = "{\"topic\":\"p\",\"data\":1}\n{\"topic\":\"q\",\"data\":2}\n";
    assert_eq!(publish(&["-", "--json-lines", "--quiet"], named), (Some(0), String::new(), String::new()));
    let events = server.everything("/events");
    let data: Vec<_> = events.iter().map(|event| event["data"].as_str().unwrap()).collect();
    assert_eq!(data, ["one é", "-5", "x\ny\n", "l1", "l2", "", "last", "{\"n\":1}", "x", "1", "2"]);
    assert_eq!(
        (&events[0]["topic"], &events[0]["event"], &events[0]["key"]),
        (&json!("a.b"), &json!("t"), &json!("k"))
    );
    assert_eq!((&events[9]["topic"], &events[10]["topic"]), (&json!("p"), &json!("q")));

    let many: String = (0..1200).map(|n| format!("{n}\n")).collect();
    let (status, out, _) = publish(&["many"], &many);
    let counts = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["count"].as_u64().unwrap());
    assert_eq!((status, counts.sum::<u64>()), (Some(0), 1200));
    assert_eq!(server.everything("/topics/many").len(), 1200);

    let (status, out, said) = publish(&["bad", "--json-lines"], "{\"data\":1}\n{\"dta\":2}\n");
    assert_eq!((status, out.as_str()), (Some(1), ""));
    assert!(said.contains("line 2") && said.contains("bad_json") && said.contains("go on from line 1"), "{said}");
    assert!(server.everything("/topics/bad").is_empty());
    assert_eq!(publish(&["a..b", "x"], "").0, Some(2));
    server.kill();
    let (status, _, said) = publish(&["a", "x"], "");
    assert_eq!(status, Some(1));
    assert!(said.starts_with("tidelog: cannot connect to ") && said.lines().count() == 1, "{said}");
}

#[test]
fn subscribe_shows_what_it_is_asked_for() {
    let server = TestServer::start(&[]);
    let url = server.url();
    for (topic, data) in [("a", "1"), ("b?event=t", "2\n3"), ("a.c", "4")] {
        server.publish(topic, data);
    }
    let subscribe = |args: &[&str]| run(&url, &[&["subscribe", "--no-follow"], args].concat(), b"");
    let (status, out, _) = subscribe(&["**", "--output", "json"]);
    assert_eq!(status, Some(0));
    assert_eq!(data_of(&out), [(1, "1".into()), (2, "2\n3".into()), (3, "4".into())]);
    let (_, out, _) = subscribe(&["b"]);
    assert!(out.starts_with("2  20") && out.ends_with("  b  t  2\\n3\n"), "{out}");
    let (_, out, _) = subscribe(&["**", "--event", "t", "--output", "raw"]);
    assert!(out.contains("id: 2\nevent: t\ndata: 2\ndata: 3\n\n") && !out.contains("id: 1\n"), "{out}");
    assert_eq!(data_of(&subscribe(&["a", "a.*", "--from", "-1", "-o", "json"]).1), [(3, "4".into())]);
    assert_eq!(data_of(&subscribe(&["**", "--from", "2", "--count", "1", "-o", "json"]).1), [(2, "2\n3".into())]);
    let (status, _, said) = subscribe(&["a", "--from", "soon"]);
    assert_eq!(status, Some(1));
    assert!(said.contains("bad_query"), "{said}");
}

/// `tidelog subscribe --output json` that keeps its place, running.
struct Follower {
    child: Option<Child>,
    lines: mpsc::Receiver<(u64, String)>,
}

impl Follower {
    fn start(url: &str, cursor: &Path) -> Self {
        let args =
            ["subscribe", "jobs", "--from", "earliest", "--output", "json", "--cursor", cursor.to_str().unwrap()];
        let mut child = start(url, &args);
        let (line, lines) = mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for text in out.lines().map_while(Result::ok) {
                data_of(&text).into_iter().for_each(|event| drop(line.send(event)));
            }
        });
        let mut err = child.stderr.take().unwrap();
        thread::spawn(move || drop(err.read_to_end(&mut Vec::new())));
        Self { child: Some(child), lines }
    }

    fn next(&self) -> (u64, String) {
        self.lines.recv_timeout(TOO_LONG).expect("it shows the next event")
    }

    fn stop(mut self, signal: Signal) -> Option<i32> {
        let child = self.child.take().unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        bounded(child).status.code()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn subscribe_goes_on_across_runs_and_across_a_servers_death() {
    let dir = tempfile::tempdir().unwrap();
    let (log, cursor) = (dir.path().join("log"), dir.path().join("jobs.cursor"));
    let server = TestServer::start_in(&log, &["retry=100ms"]);
    let addr = server.addr;
    let again = || TestServer::start_at(addr, &log, &["retry=100ms"]);
    server.publish("jobs", "1");
    let first = Follower::start(&server.url(), &cursor);
    assert_eq!(first.next(), (1, "1".into()));
    server.publish("jobs", "2");
    assert_eq!(first.next(), (2, "2".into()));
    assert_eq!(first.stop(Signal::TERM), Some(0));
    let kept: Value = serde_json::from_slice(&std::fs::read(&cursor).unwrap()).unwrap();
    assert_eq!(kept["id"], 2);

    // Meanwhile two more; then the server dies while it follows, and once more while it does not.
    server.publish("jobs", "3");
    let second = Follower::start(&server.url(), &cursor);
    assert_eq!(second.next(), (3, "3".into()));
    server.kill();
    let server = again();
    server.publish("jobs", "4");
    assert_eq!(second.next(), (4, "4".into()));
    assert_eq!(second.stop(Signal::INT), Some(0));
    server.publish("jobs", "5");
    server.kill();
    let server = again();
    let third = Follower::start(&server.url(), &cursor);
    assert_eq!(third.next(), (5, "5".into()));
    assert!(server.stop().success());
    let server = again();
    server.publish("jobs", "6");
    assert_eq!(third.next(), (6, "6".into()), "after a drain too");
}
