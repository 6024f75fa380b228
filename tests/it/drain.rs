//! Starting and stopping: what is in flight is answered, streams are ended so that their clients come back, and a start that
//! cannot be is refused with a sentence.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{ANY_PORT, BIN, Conn, End, TestServer, serve};

#[test]
fn what_is_in_flight_is_acked_and_streams_end_so_that_clients_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = TestServer::start_in(dir.path(), &["retry=1s"]);
    server.publish("a", "1");
    let mut stream = server.stream("/topics/a", &[]);
    stream.control("tidelog.live");
    let mut lines = server.stream("/topics/a", &[("Accept", "application/x-ndjson")]);
    lines.line();
    // A page that waits, an idle connection, and a publish whose body is half there.
    let mut page = server.connect();
    page.request("GET", "/topics/a?from=latest&wait=60s", &[("Accept", "application/json")], b"").unwrap();
    let mut idle = server.connect();
    assert_eq!(idle.ask("GET", "/healthz", &[], b"").unwrap().status, 200);
    let mut half = server.connect();
    half.send("POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    assert_eq!(half.head().unwrap().status, 100, "its head was taken");
    half.send("ha").unwrap();
    server.signal(Signal::TERM);

    let error = stream.control("tidelog.error");
    assert_eq!((error.id, &error.json()["code"]), (1, &"draining".into()));
    assert!((500..=1500).contains(&stream.decoder.retry().unwrap().as_millis()));
    assert_eq!((stream.next(), stream.end), (None, Some(End::Broken)));
    let error = lines.line();
    assert_eq!(
        (&error["event"], &error["after"], &error["data"]["code"]),
        (&"tidelog.error".into(), &1.into(), &"draining".into())
    );
    assert_eq!((lines.bytes(), lines.end), (None, Some(End::Broken)));
    assert!(Conn::connect(server.addr).is_err(), "nobody listens any more");
    let answer = page.answer(false).unwrap();
    assert_eq!((answer.status, &answer.json()["next"]), (200, &2.into()));
    assert!(idle.until_closed().is_empty());
    half.send("lf").unwrap();
    assert_eq!(half.answer(false).unwrap().json(), serde_json::json!({"id": 2}));
    let status = server.wait();
    assert_eq!(status.code(), Some(0), "{}", server.said());

    let server = TestServer::start_in(dir.path(), &[]);
    let mut resumed = server.stream("/topics/a", &[("Last-Event-ID", "1")]);
    assert_eq!(resumed.event().data, "half");
}

#[test]
fn publishers_under_load_know_what_was_taken() {
    for signal in [Signal::TERM, Signal::INT] {
        let dir = tempfile::tempdir().unwrap();
        let mut server = TestServer::start_in(dir.path(), &[]);
        let acked = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut conn = server.connect();
                    loop {
                        match conn.ask("POST", "/topics/a", &[], b"x") {
                            Ok(answer) if answer.status == 201 => drop(acked.fetch_add(1, Ordering::Relaxed)),
                            Ok(answer) => {
                                assert_eq!(answer.problem(), "draining");
                                return;
                            }
                            // Closed between two requests.
                            Err(_) => return,
                        }
                    }
                });
            }
            let mut stream = server.stream("/topics/a", &[]);
            for _ in 0..200 {
                stream.event();
            }
            server.signal(signal);
        });
        assert_eq!(server.wait().code(), Some(0));
        let server = TestServer::start_in(dir.path(), &[]);
        let (acked, tail) = (acked.load(Ordering::Relaxed), server.tail());
        assert!(acked <= tail && tail <= acked + 8, "{acked} acked, {tail} there: at most one each without its answer");
        assert_eq!(server.everything("/topics/a").len() as u64, tail);
    }
}

#[test]
fn a_client_that_does_not_end_is_not_waited_for_beyond_the_time() {
    let mut server = TestServer::start(&["drain_timeout=300ms"]);
    let mut conn = server.connect();
    conn.send("POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    assert_eq!(conn.head().unwrap().status, 100);
    let begun = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.wait().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
}

/// Why it does not start.
fn refusal(dir: &Path, program: &mut Command, sets: &[&str]) -> String {
    let output = serve(program, ANY_PORT, dir, sets).output().unwrap();
    assert!(!output.status.success(), "{sets:?}");
    assert!(output.stdout.is_empty(), "nothing listens");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    said
}

#[test]
fn a_log_is_served_by_one_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(dir.path(), &[]);
    server.publish("a", "x");
    let said = refusal(dir.path(), &mut Command::new(BIN), &[]);
    assert!(said.contains(&dir.path().display().to_string()) && said.contains("in use"), "{said}");
    assert_eq!(server.publish("a", "y"), 2, "the first is not disturbed");
    server.kill();
    assert_eq!(TestServer::start_in(dir.path(), &[]).tail(), 2);
}

#[test]
fn a_setting_that_is_wrong_stops_the_start_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for (set, named) in [
        ("heartbeet=1s", "heartbeet"),
        ("heartbeat=soon", "heartbeat"),
        ("limits.event_bytes_max=-1", "limits.event_bytes_max"),
        ("durability=maybe", "durability"),
        ("listen=nowhere", "listen"),
        ("heartbeat", "heartbeat"),
        ("limits.event_bytes_max=32MiB", "limits.event_bytes_max"),
        ("cors.allow_origins=example", "cors.allow_origins"),
    ] {
        // As a flag, as a variable, in a file.
        if set != "limits.event_bytes_max=32MiB" {
            let said = refusal(&data, &mut Command::new(BIN), &[set]);
            assert!(said.contains(named), "{set}: {said}");
        }
        let Some((name, value)) = set.split_once('=') else { continue };
        let file = dir.path().join("tidelog.toml");
        std::fs::write(&file, format!("{name} = \"{value}\"\n")).unwrap();
        if set == "limits.event_bytes_max=32MiB" || name == "listen" {
            continue;
        }
        let output =
            Command::new(BIN).args(["serve", "--config"]).arg(&file).arg("--data").arg(&data).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(named) && said.contains("tidelog.toml"), "{set}: {said}");
        let variable = format!("TIDELOG_{}", name.to_uppercase().replace('.', "__"));
        let output = Command::new(BIN).args(["serve", "--data"]).arg(&data).env(&variable, value).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(&variable), "{set}: {said}");
    }
    assert!(!data.exists(), "nothing was made");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let said = refusal(&file, &mut Command::new(BIN), &[]);
    assert!(said.contains("data directory"), "{said}");
    let taken = TestServer::start(&[]);
    let output =
        Command::new(BIN).args(["serve", "--listen", &taken.addr.to_string(), "--data"]).arg(&data).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains(&taken.addr.to_string()), "{said}");
}
