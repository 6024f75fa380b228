//! What connections leave behind that end in the midst of anything: nothing.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use socket2::SockRef;

use crate::support::{TestServer, until};
use crate::{connections_of, number};

const THREADS: u64 = 4;
const EACH: u64 = 400;

/// Resident memory in KiB.
fn memory_of(server: &TestServer) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

const REQUESTS: [&str; 8] = [
    "GET /topics/a HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n",
    "GET /topics/a?from=earliest HTTP/1.1\r\nHost: localhost\r\nExpect: nothing\r\n\r\n",
    "GET /topics/*?from=state HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: 1\r\nAccept: application/x-ndjson\r\n\r\n",
    "GET /topics/a?wait=10s&from=latest HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n",
    "POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
    "POST /topics/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    "GET /topics/a?from=earliest HTTP/1.0\r\n\r\n",
];

fn come_and_go(server: &TestServer, seed: u64, whole_posts: &AtomicU64) {
    let mut rng = Rng::with_seed(seed);
    for _ in 0..EACH {
        let request = REQUESTS[rng.usize(..REQUESTS.len())].as_bytes();
        let mut socket = TcpStream::connect(server.addr).unwrap();
        let n = if rng.bool() { request.len() } else { rng.usize(..=request.len()) };
        // The server may have ended it: a head that is late, for one.
        let _ = socket.write_all(&request[..n]);
        if n == request.len() && request.starts_with(b"POST") {
            whole_posts.fetch_add(1, Ordering::Relaxed);
        }
        if rng.bool() {
            let mut some = [0; 100];
            socket.set_read_timeout(Some(Duration::from_millis(rng.u64(1..10)))).unwrap();
            let _ = std::io::Read::read(&mut socket, &mut some);
        }
        if rng.u8(..3) > 0 {
            SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
}

#[test]
fn connections_that_break_anywhere_leave_nothing_behind() {
    for sets in [&["request_timeout=500ms"][..], &["request_timeout=500ms", "stream_threads=0", "publish_threads=0"]] {
        let server = TestServer::start(sets);
        let whole_posts = AtomicU64::new(0);
        let mut memory = Vec::new();
        for round in 0..3 {
            thread::scope(|scope| {
                for n in 0..THREADS {
                    let (server, whole_posts) = (&server, &whole_posts);
                    scope.spawn(move || come_and_go(server, number("SEED", 7) + round * THREADS + n, whole_posts));
                }
            });
            until("all subscribers are gone", || (server.metric("tidelog_subscribers") == 0).then_some(()));
            until("all sockets are closed", || (connections_of(&server) == 0).then_some(()));
            // Only the one that asks.
            until("nobody has a seat", || (server.metric("tidelog_connections") == 1).then_some(()));
            memory.push(memory_of(&server));
        }
        println!("{sets:?}: {} connections, KiB after each third: {memory:?}", 3 * THREADS * EACH);
        let tail = server.tail();
        assert!(tail <= whole_posts.load(Ordering::Relaxed), "a part of a publish was taken");
        assert!(tail > 100);
        for event in server.everything("/topics/a") {
            assert_eq!(event["data"], "hello");
        }
        assert!(memory[2] < memory[0] + (16 << 10), "it grows: {memory:?} KiB");
        assert!(!server.said().contains("panicked"), "{}", server.said());
        assert!(server.stop().success());
    }
}
