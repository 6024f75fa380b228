//! Publishers that send one and the same head again and again: each is answered as somebody who sends it for the first time.

use std::collections::BTreeSet;

use crate::support::{Answer, Conn, TestServer};

const JSON: (&str, &str) = ("Content-Type", "application/json");
const LINES: (&str, &str) = ("Content-Type", "application/x-ndjson");

type Headers<'a> = &'a [(&'a str, &'a str)];

/// Two logs to which the same is done: over one connection to the first, on a new one for each request to the second.
struct Both {
    one: TestServer,
    many: TestServer,
    conn: Conn,
}

impl Both {
    fn start(sets: &[&str]) -> Self {
        let (one, many) = (TestServer::start(sets), TestServer::start(sets));
        let mut conn = one.connect();
        // The first request of a connection is not repeated yet, wherever it is served.
        conn.ask("POST", "/topics/before", &[], b"x").unwrap();
        many.publish("before", "x");
        Self { one, many, conn }
    }

    fn publish(&mut self, target: &str, headers: Headers<'_>, body: &[u8]) -> Answer {
        let answer = self.conn.ask("POST", target, headers, body).unwrap();
        let first = self.many.ask("POST", target, headers, body);
        assert_eq!((answer.status, &answer.body, headers_of(&answer)), (first.status, &first.body, headers_of(&first)));
        answer
    }

    fn statuses<const N: usize>(&mut self, target: &str, headers: Headers<'_>, bodies: [&[u8]; N]) -> [u16; N] {
        bodies.map(|body| self.publish(target, headers, body).status)
    }

    fn close(&self, topic: &str) {
        for server in [&self.one, &self.many] {
            assert_eq!(server.ask("POST", &format!("/topics/{topic}/close"), &[], b"").status, 204);
        }
    }

    /// Both logs hold the same, but for the times.
    fn end(self) {
        let [one, many] = [&self.one, &self.many].map(|server| {
            let mut events = server.everything("/events");
            events.iter_mut().for_each(|event| drop(event.as_object_mut().unwrap().remove("time")));
            events
        });
        assert_eq!(one, many);
        let [one, many] = [&self.one, &self.many].map(|server| {
            let metrics = server.get("/metrics", &[]).body;
            let refused = metrics.lines().filter(|line| line.starts_with("tidelog_publish_refused_total{"));
            refused.map(str::to_owned).collect::<BTreeSet<_>>()
        });
        assert_eq!(one, many);
    }
}

/// All but what may differ: the log's own name, and the time.
fn headers_of(answer: &Answer) -> Vec<(String, String)> {
    let mut headers = answer.head.headers.clone();
    headers.retain(|(name, _)| name != "date");
    headers.iter_mut().filter(|(name, _)| name == "tidelog-log").for_each(|(_, value)| value.clear());
    headers
}

#[test]
fn with_bodies_of_all_lengths_good_and_bad() {
    let mut both = Both::start(&["limits.event_bytes_max=100"]);
    let long = [b'x'; 101];
    for (target, headers) in [("/topics/a", &[][..]), ("/topics/a?event=e&key=k", &[("X-Y", "5")])] {
        let statuses = both.statuses(target, headers, [b"5", b"five", b"", b"0123456789ab", b"\xff", &long, b"x"]);
        assert_eq!(statuses, [201, 201, 201, 201, 400, 413, 201]);
    }
    assert_eq!(both.statuses("/topics/a", &[JSON], [b"1", b"{\"a\":2}", b"{", b"", b"[3]"]), [201, 201, 400, 400, 201]);
    let lines: [&[u8]; 4] = [b"{\"data\":1}\n{\"data\":2}", b"", b"{\"data\":}", b"{\"data\":3}"];
    assert_eq!(both.statuses("/topics/a", &[LINES], lines), [201, 400, 400, 201]);
    let lines: [&[u8]; 2] = [b"{\"topic\":\"b\",\"data\":1}", b"{\"data\":2}"];
    assert_eq!(both.statuses("/topics", &[LINES], lines), [201, 400]);
    both.end();
}

#[test]
fn whose_head_is_refused_each_time() {
    let mut both = Both::start(&[]);
    let refused = [
        ("/topics/a..b", &[][..], 400),
        ("/topics/a?colour=red", &[], 400),
        ("/topics", &[], 400),
        ("/nowhere", &[], 404),
        ("/events", &[], 405),
        ("/topics/a", &[("Content-Encoding", "gzip")], 400),
        ("/topics/a", &[("If-Match", "x")], 400),
        ("/topics/a", &[("Origin", "http://elsewhere.example")], 403),
    ];
    for (target, headers, status) in refused {
        assert_eq!(both.statuses(target, headers, [b"x", b"x", b"yy"]), [status; 3], "{target} {headers:?}");
        assert_eq!(both.publish("/topics/a", &[], b"between").status, 201);
    }
    both.end();
}

#[test]
fn while_what_they_depend_on_changes() {
    let mut both = Both::start(&[]);
    assert_eq!(both.statuses("/topics/a", &[("If-None-Match", "*")], [b"x", b"x", b"y"]), [201, 412, 412]);
    let key = [("Idempotency-Key", "k")];
    assert_eq!(both.statuses("/topics/b", &key, [b"x", b"x", b"y", b"x"]), [201, 200, 422, 200]);
    assert_eq!(both.publish("/topics/b", &key, b"x").header("idempotency-replayed"), Some("true"));
    assert_eq!(both.statuses("/topics/c", &[], [b"x", b"y"]), [201, 201]);
    both.close("c");
    assert_eq!(both.statuses("/topics/c", &[], [b"x", b"y"]), [409, 409]);
    both.end();
}

#[test]
fn from_an_origin_that_is_allowed() {
    let mut both = Both::start(&["cors.allow_origins=https://app.example"]);
    for body in [&b"x"[..], b"yy", b"\xff", b"z"] {
        let answer = both.publish("/topics/a", &[("Origin", "https://app.example")], body);
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"), "{answer:?}");
    }
    for body in [&b"x"[..], b"yy"] {
        let answer = both.publish("/topics/a", &[], body);
        assert_eq!((answer.header("vary"), answer.header("access-control-allow-origin")), (Some("Origin"), None));
    }
    both.end();
}

/// What its head declares is refused while the body is still coming.
#[test]
fn with_one_that_is_too_large() {
    let server = TestServer::start(&[]);
    for _ in 0..10 {
        let mut conn = server.connect();
        for _ in 0..3 {
            assert_eq!(conn.ask("POST", "/topics/a", &[], b"x").unwrap().status, 201);
        }
        conn.send("POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\nthe beginning")
            .unwrap();
        let answer = conn.answer(false).unwrap();
        assert_eq!((answer.status, answer.problem().as_str()), (413, "too_large"));
    }
    assert_eq!(server.tail(), 30);
}

/// Requests that come in one piece, or in many.
#[test]
fn however_they_are_cut() {
    let server = TestServer::start(&[]);
    let mut conn = server.connect();
    let request = |body: &str| {
        format!("POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let bodies = ["one", "two", "a third one", "", "five"];
    let all: String = bodies.iter().map(|body| request(body)).collect();
    for _ in 0..3 {
        conn.send(&all).unwrap();
        bodies.iter().for_each(|_| assert_eq!(conn.answer(false).unwrap().status, 201));
    }
    for step in [1, 7, 64] {
        for part in all.as_bytes().chunks(step) {
            conn.send(part).unwrap();
        }
        bodies.iter().for_each(|_| assert_eq!(conn.answer(false).unwrap().status, 201));
    }
    let got: Vec<_> =
        server.everything("/events").iter().map(|event| event["data"].as_str().unwrap().to_owned()).collect();
    assert_eq!(got, bodies.repeat(6));
}
