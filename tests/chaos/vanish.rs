//! Half-open connections: how long the server keeps a place for a client that is not there any more.
//!
//! What is promised: a peer that takes no byte while some wait for it is left after `write_timeout`; one whose host has vanished, so that nothing
//! is even acknowledged, after ten times that, while heartbeats go to it; a request that does not come to its end, after
//! `request_timeout`. The network is taken away in a network namespace, by its loopback device, so that no FIN and no RST gets through.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::connections_of;
use crate::support::{Conn, Stream, TOO_LONG, TestServer, until};

/// Milliseconds.
const WRITE_TIMEOUT: u64 = 300;
const SETS: [&str; 3] = ["write_timeout=300ms", "heartbeat=100ms", "request_timeout=1s"];
const VANISHED: Duration = Duration::from_millis(10 * WRITE_TIMEOUT);
/// For the kernel's timers, which back off, and a busy machine.
const SLACK: Duration = Duration::from_secs(4);

const WAYS: [&[&str]; 2] = [&[], &["stream_threads=0", "publish_threads=0"]];

fn start(more: &[&str]) -> TestServer {
    TestServer::start(&[&SETS[..], more].concat())
}

/// How long it takes until the server holds no connection.
fn until_alone(server: &TestServer) -> Duration {
    let begun = Instant::now();
    while connections_of(server) > 0 {
        assert!(begun.elapsed() < TOO_LONG, "{} connections are open still", connections_of(server));
        thread::sleep(Duration::from_millis(5));
    }
    begun.elapsed()
}

/// Runs `test` in a network of its own: the test `name`, which called this, once more in another process.
fn apart(name: &str, test: fn()) {
    if std::env::var(OUTSIDE).is_ok() {
        return test();
    }
    let flags = if fs::metadata("/proc/self").unwrap().uid() == 0 { "-n" } else { "-rn" };
    let mut again = Command::new("unshare");
    again.arg(flags).arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
    let status = again.env(OUTSIDE, namespace()).status();
    let needs = "this test takes a network away, so it needs one of its own: run it as root or where user namespaces are \
         allowed, with util-linux and iproute2";
    assert!(status.unwrap_or_else(|error| panic!("{needs}: {error}")).success(), "see above; {needs}");
}

/// The network that is not to be touched.
const OUTSIDE: &str = "CHAOS_OUTSIDE";

fn namespace() -> String {
    fs::read_link("/proc/self/ns/net").unwrap().to_string_lossy().into_owned()
}

/// Brings up the network of its own.
fn begin() {
    let outside = std::env::var(OUTSIDE).expect("it is not run by itself");
    assert_ne!(outside, namespace(), "only in a network of its own");
    network("up");
}

#[test]
fn a_client_whose_network_is_gone_is_noticed() {
    apart("vanish::a_client_whose_network_is_gone_is_noticed", without_a_network);
}

#[test]
fn a_network_that_comes_back_in_time_breaks_nothing() {
    apart("vanish::a_network_that_comes_back_in_time_breaks_nothing", without_a_network_for_a_moment);
}

fn network(state: &str) {
    let status = Command::new("ip").args(["link", "set", "lo", state]).status().expect("iproute2 is there");
    assert!(status.success(), "ip link set lo {state}");
}

fn without_a_network() {
    begin();
    for way in WAYS {
        let server = start(way);
        let unusual = ("Expect", "nothing");
        let streams: Vec<Stream> = (0..8)
            .map(|n| {
                let headers: &[_] = if n % 2 == 0 { &[] } else { &[unusual] };
                let mut stream = server.stream("/topics/a", headers);
                stream.control("tidelog.live");
                stream
            })
            .collect();
        let lines = server.stream("/topics/a", &[("Accept", "application/x-ndjson")]);
        // One who waits for a page, one between requests, and one amid a publish.
        let mut page = server.connect();
        let wait = "/topics/a?from=latest&wait=1s";
        page.request("GET", wait, &[("Accept", "application/json")], b"").unwrap();
        let mut idle = server.connect();
        assert_eq!(idle.ask("GET", "/healthz", &[], b"").unwrap().status, 200);
        let mut half = server.connect();
        half.send("POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 400\r\n\r\nhalf").unwrap();
        until("all are there", || (server.metric("tidelog_subscribers") >= 9).then_some(()));
        assert!(connections_of(&server) >= 12);
        network("down");
        let took = until_alone(&server);
        println!("{way:?}: {} connections without a network were given back after {took:?}", 12);
        assert!(took > VANISHED / 2, "{took:?}: a network that is away for a moment is no reason to go");
        assert!(took < VANISHED + SLACK, "{took:?}");
        drop((streams, lines, page, idle, half));
        network("up");
        until("nobody follows", || (server.metric("tidelog_subscribers") == 0).then_some(()));
        until("nobody has a seat", || (server.metric("tidelog_connections") == 1).then_some(()));
        server.publish("a", "x");
        assert_eq!(server.stream("/topics/a", &[("Last-Event-ID", "0")]).event().data, "x");
        assert!(!server.said().contains("panicked"), "{}", server.said());
        assert!(server.stop().success());
    }
}

fn without_a_network_for_a_moment() {
    begin();
    let server = start(&[]);
    let mut stream = server.stream("/topics/a", &[]);
    stream.control("tidelog.live");
    let mut publisher = server.connect();
    for round in 1..=3 {
        network("down");
        // Heartbeats are lost meanwhile, and the publish too.
        publisher.request("POST", "/topics/a", &[], b"x").unwrap();
        thread::sleep(Duration::from_millis(WRITE_TIMEOUT));
        network("up");
        assert_eq!(publisher.answer(false).unwrap().json()["id"], round);
        assert_eq!(stream.event().id, round);
    }
}

#[test]
fn a_client_that_reads_no_more_is_left_after_the_write_timeout() {
    for way in WAYS {
        let server = start(way);
        let stalled: Vec<_> = (0..4)
            .map(|n| {
                let mut conn = Conn::connect_narrow(server.addr, 16 << 10).unwrap();
                let headers: &[_] = if n % 2 == 0 { &[] } else { &[("Expect", "nothing")] };
                conn.request("GET", "/topics/a?from=latest", headers, b"").unwrap();
                conn.peek().unwrap();
                conn
            })
            .collect();
        until("all are there", || (server.metric("tidelog_subscribers") == 4).then_some(()));
        // More than the buffers of both ends take.
        let mut publisher = server.connect();
        for _ in 0..16 {
            let answer = publisher.ask("POST", "/topics/a", &[], "x".repeat(1_000_000).as_bytes()).unwrap();
            assert_eq!(answer.status, 201);
        }
        drop(publisher);
        let took = until_alone(&server);
        println!("{way:?}: four who read no more were left after {took:?}");
        assert!(took < Duration::from_millis(WRITE_TIMEOUT) + SLACK / 2, "{took:?}");
        assert_eq!(server.metric("tidelog_subscribers"), 0);
        drop(stalled);
    }
}

#[test]
fn a_request_that_comes_to_no_end_is_given_up_after_the_request_timeout() {
    for way in WAYS {
        let server = start(way);
        let beginnings = [
            "",
            "P",
            "PRI * HT",
            "GET /topics/a HT",
            "POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Le",
            "POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 400\r\n\r\nhalf",
            "POST /topics/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nhalf",
        ];
        let conns: Vec<_> = beginnings
            .iter()
            .map(|beginning| {
                let mut conn = server.connect();
                conn.send(beginning).unwrap();
                conn
            })
            .collect();
        // They are taken by then.
        assert_eq!(server.get("/healthz", &[]).status, 200);
        let took = until_alone(&server);
        println!("{way:?}: {} requests without an end were given up after {took:?}", conns.len());
        // A second for it, and what is listened to when it has been answered.
        assert!((Duration::from_millis(500)..Duration::from_secs(1) + SLACK).contains(&took), "{took:?}");
        assert_eq!((server.tail(), server.metric("tidelog_subscribers")), (0, 0), "a part of a publish is none");
    }
}
