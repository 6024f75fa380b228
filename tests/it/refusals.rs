//! The contract's errors: what is refused says why, and leaves nothing behind.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use crate::support::{Answer, Conn, End, Stream, TestServer};

const LINES: (&str, &str) = ("Content-Type", "application/x-ndjson");
const SSE: (&str, &str) = ("Accept", "text/event-stream");

/// A server whose log holds one event, and stays so.
struct Unmoved(TestServer);

impl Unmoved {
    fn start(sets: &[&str]) -> Self {
        let server = TestServer::start(sets);
        server.publish("before", "x");
        Self(server)
    }

    fn refuses(&self, status: u16, code: &str, answer: &Answer) {
        assert_eq!((answer.status, answer.problem().as_str()), (status, code), "{answer:?}");
        assert_eq!(self.0.tail(), 1, "{answer:?}");
    }

    fn refuses_post(&self, status: u16, code: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let answer = self.0.ask("POST", target, headers, body);
        self.refuses(status, code, &answer);
        answer
    }

    fn refuses_get(&self, status: u16, code: &str, target: &str, headers: &[(&str, &str)]) -> Answer {
        let answer = self.0.get(target, headers);
        self.refuses(status, code, &answer);
        answer
    }
}

impl Drop for Unmoved {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.0.everything("/events").len(), 1);
        }
    }
}

#[test]
fn names_that_are_none() {
    let log = Unmoved::start(&[]);
    let long = "a".repeat(201);
    for topic in ["a..b", ".a", "a.", "*", "a.*", "**", "%20", "a%2Fb", "%C3%A9", "a+b", "%FF", "a%", "%00", &long] {
        log.refuses_post(400, "bad_topic", &format!("/topics/{topic}"), &[], b"x");
        assert_eq!(log.0.ask("DELETE", &format!("/topics/{topic}"), &[], b"").problem(), "bad_topic", "{topic}");
        assert_eq!(log.0.get(&format!("/topics/{topic}/retention"), &[]).problem(), "bad_topic", "{topic}");
    }
    log.refuses_post(400, "bad_topic", "/topics/", &[], b"x");
    for pattern in ["a..b", "**.a", "a*", "a.***", "%20", "%FF", &long] {
        log.refuses_get(400, "bad_pattern", &format!("/topics/{pattern}"), &[]);
        if pattern != "%FF" {
            log.refuses_get(400, "bad_pattern", &format!("/events?topic={pattern}"), &[]);
        }
    }
    log.refuses_get(400, "bad_pattern", "/events?topic=", &[]);
    log.refuses_get(400, "bad_query", "/events?topic=%FF", &[]);
    let line = |members: &str| format!("{{\"data\":\"x\",{members}}}");
    let two_hundred_and_one = "k".repeat(201);
    for (name, value) in [
        ("open", "open"),
        ("error", "error"),
        ("tidelog.x", "tidelog.x"),
        ("a%0Ab", "a\\nb"),
        (&two_hundred_and_one, &two_hundred_and_one),
    ] {
        log.refuses_post(400, "bad_event_type", &format!("/topics/a?event={name}"), &[], b"x");
        let answer = log.refuses_post(
            400,
            "bad_event_type",
            "/topics/a",
            &[LINES],
            line(&format!("\"event\":\"{value}\"")).as_bytes(),
        );
        assert!(answer.detail().starts_with("line 1: "), "{answer:?}");
        log.refuses_get(400, "bad_event_type", &format!("/events?event={name}"), &[]);
    }
    for (name, value) in [("", ""), ("a%00", "a\\u0000"), (&two_hundred_and_one, &two_hundred_and_one)] {
        log.refuses_post(400, "bad_key", &format!("/topics/a?key={name}"), &[], b"x");
        log.refuses_post(400, "bad_key", "/topics/a", &[LINES], line(&format!("\"key\":\"{value}\"")).as_bytes());
    }
    log.refuses_post(400, "bad_topic", "/topics", &[LINES], line("\"topic\":\"a b\"").as_bytes());
}

#[test]
fn ids_that_are_none() {
    let log = Unmoved::start(&[]);
    for id in ["x", "-1", "+1", "1.0", "0x1", "9007199254740992", "99999999999999999999999", "1 2", "1,2"] {
        log.refuses_get(400, "bad_id", "/events", &[("Last-Event-ID", id)]);
        let encoded = id.replace('+', "%2B").replace(' ', "%20");
        log.refuses_get(400, "bad_id", &format!("/events?last_event_id={encoded}"), &[]);
        log.refuses_get(400, "bad_id", &format!("/events?lastEventId={encoded}"), &[]);
        assert_eq!(
            log.0.ask("DELETE", &format!("/topics/before?before={encoded}"), &[], b"").problem(),
            "bad_id",
            "{id}"
        );
    }
    log.refuses_get(400, "bad_id", "/events", &[("Last-Event-ID", "1"), ("Last-Event-ID", "1")]);
    assert_eq!(log.0.ask("DELETE", "/topics/before?before=", &[], b"").problem(), "bad_id");
    log.refuses_get(400, "bad_id", "/events?from=9007199254740992", &[]);
    for from in ["soon", "1x", "-", "2026-13-01T00:00:00Z", "states", "snapshot"] {
        log.refuses_get(400, "bad_query", &format!("/events?from={from}"), &[]);
    }
    // The largest id is one, though it lies ahead.
    let mut stream = log.0.stream("/events", &[SSE, ("Last-Event-ID", "9007199254740991")]);
    assert_eq!(stream.control("tidelog.gap").json()["reason"], "ahead");
}

#[test]
fn bodies_that_are_none() {
    let log = Unmoved::start(&[]);
    log.refuses_post(400, "bad_utf8", "/topics/a", &[], b"ab\xff");
    log.refuses_post(400, "bad_utf8", "/topics/a", &[("Content-Type", "application/json")], b"\"\xc3\"");
    for body in ["", "{", "1 2", "nul", "{\"a\":1,}", "'x'"] {
        log.refuses_post(400, "bad_json", "/topics/a", &[("Content-Type", "application/json")], body.as_bytes());
    }
    for body in ["", "\n \r\n"] {
        log.refuses_post(400, "bad_json", "/topics/a", &[LINES], body.as_bytes());
        log.refuses_post(400, "bad_json", "/topics", &[LINES], body.as_bytes());
    }
    let good = "{\"data\":\"x\"}";
    for bad in [
        "nothing",
        "{\"data\":\"x\"} {}",
        "{}",
        "{\"event\":\"t\"}",
        "{\"data\":\"x\",\"topic\":\"b\"}",
        "{\"data\":\"x\",\"dta\":1}",
        "{\"data\":\"x\",\"data\":\"y\"}",
        "{\"data\":\"x\",\"key\":7}",
        "[\"a\",\"b\",\"c\"]",
        "\"x\"",
        "{\"data\":\"\\ud800\"}",
    ] {
        let answer =
            log.refuses_post(400, "bad_json", "/topics/a", &[LINES], format!("{good}\n\n{bad}\n{good}").as_bytes());
        assert!(answer.detail().starts_with("line 3: "), "{bad}: {answer:?}");
    }
    let answer = log.refuses_post(400, "bad_utf8", "/topics/a", &[LINES], b"{\"data\":\"x\"}\n{\"data\":\"\xff\"}\n");
    assert!(answer.detail().starts_with("line 2: "), "{answer:?}");
    let good = "{\"topic\":\"a\",\"data\":\"x\"}";
    let answer =
        log.refuses_post(400, "bad_json", "/topics", &[LINES], format!("{good}\n{{\"data\":\"x\"}}").as_bytes());
    assert!(answer.detail().starts_with("line 2: "), "{answer:?}");
    let retention = |body: &str| log.0.ask("PUT", "/topics/before/retention", &[], body.as_bytes());
    for body in ["", "[]", "{\"max_evnts\":1}", "{\"max_events\":-1}", "{\"max_age\":\"soon\"}"] {
        assert_eq!((retention(body).status, retention(body).problem().as_str()), (400, "bad_json"), "{body}");
    }
    assert_eq!(retention(&format!("{{{}}}", " ".repeat(5000))).problem(), "too_large");
}

#[test]
fn bodies_that_are_too_large() {
    let log =
        Unmoved::start(&["limits.event_bytes_max=1000", "limits.batch_bytes_max=4000", "limits.batch_events_max=5"]);
    let chunked = |target: &str, headers: &str, body: &[u8]| {
        let mut conn = log.0.connect();
        conn.send(format!("POST {target} HTTP/1.1\r\nHost: localhost\r\n{headers}Transfer-Encoding: chunked\r\n\r\n"))
            .unwrap();
        for chunk in body.chunks(512) {
            // The answer may come before the body's end.
            if conn.send([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()).is_err() {
                break;
            }
        }
        let _ = conn.send("0\r\n\r\n");
        let answer = conn.answer(false).unwrap();
        log.refuses(413, "too_large", &answer);
    };
    let event = "x".repeat(1001);
    let answer = log.refuses_post(413, "too_large", "/topics/a", &[], event.as_bytes());
    assert!(answer.detail().contains("1000") && answer.detail().contains("event_bytes_max"), "{answer:?}");
    chunked("/topics/a", "", event.as_bytes());
    let batch = format!("{{\"data\":\"{}\"}}\n", "x".repeat(900)).repeat(5);
    log.refuses_post(413, "too_large", "/topics/a", &[LINES], batch.as_bytes());
    chunked("/topics/a", "Content-Type: application/jsonl\r\n", batch.as_bytes());
    let answer = log.refuses_post(413, "too_large", "/topics/a", &[LINES], "{\"data\":1}\n".repeat(6).as_bytes());
    assert!(answer.detail().contains("batch_events_max"), "{answer:?}");
    let line = format!("{{\"data\":1}}\n{{\"data\":\"{event}\"}}\n");
    let answer = log.refuses_post(413, "too_large", "/topics/a", &[LINES], line.as_bytes());
    assert!(answer.detail().starts_with("line 2: "), "{answer:?}");
    // Declared, and never sent: it is not waited for.
    let begun = Instant::now();
    let mut conn = log.0.connect();
    conn.send("POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n").unwrap();
    log.refuses(413, "too_large", &conn.answer(false).unwrap());
    assert!(begun.elapsed() < Duration::from_secs(10));
    // Sent to its end all the same: the answer is not lost to a reset.
    let mut conn = log.0.connect();
    conn.send("POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n").unwrap();
    let _ = conn.send(vec![b'x'; 1_000_000]);
    log.refuses(413, "too_large", &conn.answer(false).unwrap());
}

#[test]
fn a_largest_event_is_taken() {
    let server = TestServer::start(&[]);
    let newlines = "\n".repeat(1 << 20);
    assert_eq!(server.publish("a", &newlines), 1);
    let mut stream = server.stream("/topics/a?from=earliest", &[SSE]);
    assert_eq!(stream.event().data, newlines);
    let lines = "{\"data\":\"\"}\n".repeat(10_000);
    assert_eq!(server.publish_lines("/topics/a", &lines), (2, 10_001));
    assert_eq!(
        server.ask("POST", "/topics/a", &[LINES], "{\"data\":\"\"}\n".repeat(10_001).as_bytes()).problem(),
        "too_large"
    );
}

#[test]
fn parameters_that_are_unknown_unused_or_doubled() {
    let log = Unmoved::start(&[]);
    for target in [
        "/topics/a?evnt=t",
        "/topics/a?topic=b",
        "/topics/a?event=t&event=u",
        "/topics/a?from=1",
        "/topics/a?event=%FF",
    ] {
        log.refuses_post(400, "bad_query", target, &[], b"x");
    }
    for target in ["/topics/a?event=t", "/topics/a?key=k", "/topics?event=t"] {
        let body: &[u8] =
            if target.starts_with("/topics?") { b"{\"topic\":\"a\",\"data\":1}" } else { b"{\"data\":1}" };
        log.refuses_post(400, "bad_query", target, &[LINES], body);
    }
    let page = ("Accept", "application/json");
    let lines = ("Accept", "application/x-ndjson");
    for (accept, query) in [
        (SSE, "form=earliest"),
        (SSE, "limit=1"),
        (SSE, "wait=1s"),
        (SSE, "topic=a"),
        (SSE, "envelope=xml"),
        (SSE, "follow=no"),
        (SSE, "from=1&from=2"),
        (SSE, "from"),
        (lines, "envelope=json"),
        (lines, "limit=1"),
        (page, "envelope=json"),
        (page, "follow=false"),
        (page, "limit=0"),
        (page, "limit=1001"),
        (page, "wait=61s"),
        (page, "wait=5"),
        (page, "from=state"),
        (page, "from=snapshot"),
    ] {
        if query == "from" {
            // Empty counts as absent.
            assert_eq!(log.0.ask("HEAD", "/topics/a?from", &[accept], b"").status, 200);
            continue;
        }
        log.refuses_get(400, "bad_query", &format!("/topics/a?{query}"), &[accept]);
    }
    for target in [
        "/topics?x=1",
        "/topics?limit=0",
        "/topics?limit=1001",
        "/topics?prefix=a&prefix=b",
        "/healthz?x",
        "/readyz?x=1",
        "/metrics?x=1",
        "/openapi.json?x=1",
    ] {
        log.refuses_get(400, "bad_query", target, &[]);
    }
    for (method, target) in [
        ("DELETE", "/topics/before?befor=1"),
        ("DELETE", "/topics/before?before=1&before=2"),
        ("PUT", "/topics/before/retention?x=1"),
        ("DELETE", "/topics/before/retention?x=1"),
        ("GET", "/topics/before/retention?x=1"),
    ] {
        assert_eq!(log.0.ask(method, target, &[], b"").problem(), "bad_query", "{method} {target}");
    }
}

#[test]
fn methods_types_and_places_that_do_not_fit() {
    let log = Unmoved::start(&[]);
    for (method, target, allow) in [
        ("PUT", "/topics/a", "GET, HEAD, POST, DELETE, OPTIONS"),
        ("PATCH", "/topics/a", "GET, HEAD, POST, DELETE, OPTIONS"),
        ("POST", "/events", "GET, HEAD, OPTIONS"),
        ("DELETE", "/topics", "GET, HEAD, POST, OPTIONS"),
        ("POST", "/healthz", "GET, HEAD, OPTIONS"),
        ("POST", "/topics/a/retention", "GET, HEAD, PUT, DELETE, OPTIONS"),
        ("PUT", "/topics/a/state", "GET, HEAD, OPTIONS"),
        ("DELETE", "/topics/a/snapshot", "GET, HEAD, PUT, OPTIONS"),
        ("GET", "/topics/a/close", "POST, OPTIONS"),
        ("BREW", "/", "GET, HEAD, OPTIONS"),
    ] {
        let answer = log.0.ask(method, target, &[], b"");
        log.refuses(405, "method_not_allowed", &answer);
        assert_eq!(answer.header("allow"), Some(allow), "{method} {target}");
    }
    for target in ["/topic/a", "/events/", "/topics/a/b", "/nothing", "//", "/topics/a/"] {
        log.refuses_get(404, "not_found", target, &[]);
        log.refuses_post(404, "not_found", target, &[], b"x");
    }
    for accept in ["image/png", "text/html", "application/json;q=0", "nonsense"] {
        log.refuses_get(406, "not_acceptable", "/topics/a", &[("Accept", accept)]);
    }
    for content_type in [None, Some("text/plain"), Some("application/json")] {
        let headers: Vec<_> = content_type.map(|value| ("Content-Type", value)).into_iter().collect();
        log.refuses_post(400, "bad_header", "/topics", &headers, b"{\"topic\":\"a\",\"data\":1}");
    }
    log.refuses_post(400, "bad_header", "/topics/a", &[("Content-Encoding", "gzip")], b"x");
}

#[test]
fn origins_and_hosts_that_are_foreign() {
    let log = Unmoved::start(&[]);
    for origin in
        ["https://evil.example", "null", "http://localhost.evil.example", "http://localhost:1", "nonsense", ""]
    {
        let answer = log.refuses_post(403, "forbidden_origin", "/topics/a", &[("Origin", origin)], b"x");
        assert!(answer.header("access-control-allow-origin").is_none());
        log.refuses_get(403, "forbidden_origin", "/topics/a", &[("Origin", origin), SSE]);
        assert_eq!(log.0.ask("DELETE", "/topics/before", &[("Origin", origin)], b"").status, 403);
    }
    log.refuses_post(
        403,
        "forbidden_origin",
        "/topics/a",
        &[("Origin", "http://localhost"), ("Origin", "http://localhost")],
        b"x",
    );
    for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.0.1", "", "localhost:x"] {
        log.refuses_post(403, "forbidden", "/topics/a", &[("Host", host)], b"x");
        log.refuses_get(403, "forbidden", "/events", &[("Host", host)]);
    }
    // The host that a rebound name would send, with an origin that agrees with it.
    log.refuses_post(
        403,
        "forbidden",
        "/topics/a",
        &[("Host", "evil.example"), ("Origin", "http://evil.example")],
        b"x",
    );
}

#[test]
fn what_is_not_http_is_answered_by_the_http_layer() {
    let log = Unmoved::start(&[]);
    let answered = |bytes: &[u8]| {
        let mut conn = log.0.connect();
        conn.send(bytes).unwrap();
        String::from_utf8(conn.until_closed()).unwrap()
    };
    for bytes in [
        "nonsense\r\n\r\n",
        "GET /\x01 HTTP/1.1\r\n\r\n",
        "POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\nx",
    ] {
        let answer = answered(bytes.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("\r\n\r\n"), "{bytes:?}: {answer:?}");
    }
    let large = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(70_000));
    assert!(answered(large.as_bytes()).starts_with("HTTP/1.1 431 "), "a head that is too large");
    let many = format!("GET / HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "x: y\r\n".repeat(1000));
    assert!(answered(many.as_bytes()).starts_with("HTTP/1.1 431 "), "too many headers");
    // Both lengths: what a smuggler sends. One request or none.
    let answer = answered(b"POST /topics/a..b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
    assert_eq!(log.0.tail(), 1);
    // A body that breaks off appends nothing.
    for bytes in [
        "POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nab",
        "POST /topics/a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
    ] {
        let mut conn = log.0.connect();
        conn.send(bytes).unwrap();
        conn.socket.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = conn.until_closed();
    }
}

#[test]
fn requests_that_trickle_in_have_a_time() {
    let log = Unmoved::start(&["request_timeout=300ms"]);
    let in_time = |begun: Instant| assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let begun = Instant::now();
    let mut conn = log.0.connect();
    conn.send("POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nab").unwrap();
    log.refuses(408, "timeout", &conn.answer(false).unwrap());
    in_time(begun);
    for begins in ["", "G", "POST /topics/a HTTP/1.1\r\nHost: loc"] {
        let begun = Instant::now();
        let mut conn = log.0.connect();
        conn.send(begins).unwrap();
        let _ = conn.until_closed();
        in_time(begun);
    }
    // A byte now and then does not make it longer: the other end closes though it is sent to.
    let begun = Instant::now();
    let mut conn = log.0.connect();
    conn.socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    conn.send("GET / HTTP/1.1\r\nX: ").unwrap();
    let mut byte = [0];
    while conn.send("x").is_ok() {
        match conn.socket.read(&mut byte) {
            Ok(0) => break,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Ok(_) => {}
            Err(_) => break,
        }
        in_time(begun);
    }
    // A stream is no request that is late.
    let mut stream = log.0.stream("/topics/before?from=earliest", &[SSE]);
    assert_eq!(stream.event().id, 1);
}

#[test]
fn connections_beyond_the_most_are_told_to_come_back() {
    let server = TestServer::start(&["limits.connections_max=2", "retry=1s"]);
    let mut first = server.stream("/topics/a", &[SSE]);
    let second = server.stream("/topics/a", &[SSE]);
    let refused = server.ask("POST", "/topics/a", &[], b"x");
    assert_eq!((refused.status, refused.problem().as_str()), (503, "overloaded"));
    assert_eq!(server.get("/healthz", &[]).status, 200, "operators see in");
    assert!(server.get("/metrics", &[]).body.contains("tidelog_tail 0"));
    // EventSource never retries after a 503.
    let mut stream = server.stream("/topics/a", &[SSE, ("Last-Event-ID", "0")]);
    let error = stream.control("tidelog.error");
    assert_eq!((error.id, &error.json()["code"]), (0, &"overloaded".into()));
    assert!((500..=1500).contains(&stream.decoder.retry().unwrap().as_millis()));
    assert_eq!((stream.next(), stream.end), (None, Some(End::Broken)));
    first.control("tidelog.live");
    drop((first, second));
    // A place is free when the server has noticed.
    let id = crate::support::until("a place is free", || {
        let answer = server.ask("POST", "/topics/a", &[], b"x");
        (answer.status == 201).then(|| answer.json()["id"].as_u64().unwrap())
    });
    assert_eq!(id, 1);
}

#[test]
fn topics_have_a_most() {
    let server = TestServer::start(&["limits.topics_max=2"]);
    server.publish("a", "x");
    server.publish("b", "x");
    let refused = server.ask("POST", "/topics/c", &[], b"x");
    assert_eq!((refused.status, refused.problem().as_str()), (429, "too_many_requests"));
    let batch = "{\"topic\":\"a\",\"data\":1}\n{\"topic\":\"d\",\"data\":1}";
    assert_eq!(server.ask("POST", "/topics", &[LINES], batch.as_bytes()).status, 429);
    assert_eq!((server.tail(), server.publish("a", "y")), (2, 3));
}

#[test]
fn a_client_that_leaves_takes_nothing_with_it() {
    let server = TestServer::start(&[]);
    for _ in 0..50 {
        let mut conn = Conn::connect(server.addr).unwrap();
        conn.request("GET", "/events?from=earliest", &[SSE], b"").unwrap();
        drop(conn);
        let mut conn = Conn::connect(server.addr).unwrap();
        conn.socket.write_all(b"POST /topics/a HTTP/1.1\r\n").unwrap();
        drop(conn);
    }
    let mut stream = Stream::open(server.addr, "/topics/a", &[SSE]).unwrap();
    stream.control("tidelog.live");
    assert_eq!(server.publish("a", "x"), 1);
    assert_eq!(stream.event().id, 1);
    crate::support::until("they are let go", || {
        server.get("/metrics", &[]).body.lines().any(|line| line == "tidelog_subscribers 1").then_some(())
    });
}
