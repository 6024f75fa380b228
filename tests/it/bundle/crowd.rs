//! A bundle far larger than sockets hold, and many who read it slowly: each has it whole, all share it, and nobody else is held up.

use std::thread;

use rustix::process::Signal;

use super::{SSE, State, WAYS, enter, entries, state};
use crate::support::{Conn, End, Stream, TestServer};

/// 3,000 keys of 4 KiB: together with its names and times, 12 MiB.
const KEYS: usize = 3000;
const DATA_BYTES: usize = 4 << 10;

/// In each of two forms. All bundles together may have 256 MiB, which two dozen of their own would not fit into.
const READERS: usize = 24;

fn fill(server: &TestServer) {
    let data = "x".repeat(DATA_BYTES - 5);
    let lines: String = (0..KEYS).map(|key| format!("{{\"key\":\"{key}\",\"data\":\"{key:05}{data}\"}}\n")).collect();
    server.publish_lines("/topics/large", &lines);
}

/// Reads the rest of what `conn` was answered.
fn read_state(conn: &mut Conn) -> State {
    let answer = conn.answer(false).unwrap();
    assert_eq!(answer.status, 200, "{}", &answer.body[..answer.body.len().min(300)]);
    let mut state = State::new();
    let serde_json::Value::Array(entries) = answer.json()["entries"].take() else { panic!("no entries") };
    entries.into_iter().for_each(|entry| enter(&mut state, entry));
    state
}

#[test]
fn many_who_read_a_large_state_slowly_share_it_and_hold_up_nobody() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        fill(&server);
        let whole = state(&server, "large").1;
        assert_eq!(whole.len(), KEYS);
        // All are answered, and none reads.
        let narrow = || Conn::connect_narrow(server.addr, 64 << 10).unwrap();
        let mut asked: Vec<Conn> = (0..READERS).map(|_| narrow()).collect();
        for conn in &mut asked {
            conn.request("GET", "/topics/large/state", &[], b"").unwrap();
        }
        asked.iter_mut().for_each(|conn| conn.peek().unwrap());
        let streams: Vec<Stream> =
            (0..READERS).map(|_| Stream::over(narrow(), "/topics/large?from=state", &[SSE]).unwrap()).collect();
        // Others publish, follow and ask as if they were not there.
        let mut other = server.stream("/topics/**", &[SSE]);
        other.control("tidelog.live");
        let mut conn = server.connect();
        for n in 1..=50 {
            assert_eq!(conn.ask("POST", "/topics/small?key=k", &[], n.to_string().as_bytes()).unwrap().status, 201);
            assert_eq!(other.event().data, n.to_string());
            assert_eq!(state(&server, "small").1.len(), 1);
        }
        thread::scope(|scope| {
            let whole = &whole;
            for mut conn in asked {
                scope.spawn(move || assert!(read_state(&mut conn) == *whole, "a state is not whole"));
            }
            for mut stream in streams {
                scope.spawn(move || {
                    let (got, next) = entries(&mut stream);
                    assert!(got == *whole, "a state is not whole");
                    // Events of others have come since.
                    assert!(next.event == "tidelog.live" && next.id > KEYS as u64, "{next:?}");
                });
            }
        });
        let peak = peak_memory(&server);
        // Two dozen times twice 12 MiB would be more than half a GiB.
        assert!(peak < 300 << 20, "the server has taken {peak} bytes");
    }
}

#[test]
fn a_drain_lets_a_state_that_is_being_sent_be_read_to_its_end() {
    for sets in WAYS {
        let mut server = TestServer::start(sets);
        fill(&server);
        let whole = state(&server, "large").1;
        let narrow = || Conn::connect_narrow(server.addr, 64 << 10).unwrap();
        let mut asked = narrow();
        asked.request("GET", "/topics/large/state", &[], b"").unwrap();
        asked.peek().unwrap();
        let mut stream = Stream::over(narrow(), "/topics/large?from=state", &[SSE]).unwrap();
        let mut small = server.stream("/topics/small?from=state", &[SSE]);
        small.control("tidelog.live");
        server.signal(Signal::TERM);
        // It has begun when others have been sent away.
        assert_eq!(small.control("tidelog.error").json()["code"], "draining");
        assert!(read_state(&mut asked) == whole, "a state is not whole");
        let (got, error) = entries(&mut stream);
        assert!(got == whole, "a state is not whole");
        // From where it is true its client goes on.
        assert_eq!((error.event.as_str(), error.id), ("tidelog.error", KEYS as u64));
        assert_eq!((stream.next(), stream.end), (None, Some(End::Broken)));
        drop((asked, stream, small));
        assert_eq!(server.wait().code(), Some(0));
    }
}

/// The most memory that the server has had, in bytes.
fn peak_memory(server: &TestServer) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}
