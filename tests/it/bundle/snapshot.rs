//! A publisher's own bundle: kept and given back byte for byte, with the id at which it is true.

use std::process::Command;

use serde_json::json;

use super::{LINES, PAGE, SSE, WAYS, delete, keep};
use crate::support::{Answer, BIN, Conn, Stream, TestServer, until};

fn get(server: &TestServer) -> Answer {
    server.get("/topics/a/snapshot", &[])
}

fn is_kept(answer: &Answer, at: &str, body: &str, content_type: &str) {
    let got = (answer.status, answer.header("last-event-id"), answer.body.as_str(), answer.header("content-type"));
    assert_eq!(got, (200, Some(at), body, Some(content_type)), "{answer:?}");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[test]
fn it_is_given_back_as_it_was_put() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(dir.path(), &[]);
    assert_eq!((get(&server).status, get(&server).problem().as_str()), (404, "not_found"));
    for _ in 0..5 {
        server.publish("a", "x");
    }
    let put = |at: &str, content_type: Option<&str>, body: &str| {
        let mut headers = vec![("Last-Event-ID", at)];
        headers.extend(content_type.map(|value| ("Content-Type", value)));
        server.ask("PUT", "/topics/a/snapshot", &headers, body.as_bytes())
    };
    let odd = "a\r\n\tb\0 é\u{1F30A}\n";
    assert_eq!(put("2", None, odd).status, 204);
    is_kept(&get(&server), "2", odd, "text/plain; charset=utf-8");
    for (at, content_type, body) in [
        ("3", "application/vnd.app+json; v=1", "{\"n\" : 1}"),
        ("3", "application/json", "the same id again"),
        ("4", "text/html", ""),
        ("5", "application/x-ndjson", &"x".repeat(3 << 20)),
    ] {
        let answer = put(at, Some(content_type), body);
        assert_eq!((answer.status, answer.body.as_str()), (204, ""), "{answer:?}");
        is_kept(&get(&server), at, body, content_type);
    }
    let head = server.ask("HEAD", "/topics/a/snapshot", &[], b"");
    assert_eq!((head.status, head.header("content-length")), (200, Some((3 << 20).to_string().as_str())));
    assert_eq!((head.header("last-event-id"), head.header("content-type")), (Some("5"), Some("application/x-ndjson")));
    let older = put("4", None, "older");
    assert_eq!((older.status, older.problem().as_str()), (412, "precondition_failed"));
    assert_eq!(put("5", Some("text/plain"), "the last").status, 204);
    // It is no event, and no event takes it away but a DELETE of all of them.
    assert_eq!((server.tail(), server.everything("/topics/a").len()), (5, 5));
    delete(&server, "a?before=9007199254740991");
    server.kill();
    let server = TestServer::start_in(dir.path(), &[]);
    is_kept(&get(&server), "5", "the last", "text/plain");
    delete(&server, "a");
    assert_eq!(get(&server).status, 404);
    assert_eq!(keep(&server, "a", 1, "older than what was there").status, 204);
    // Of a topic that never held anything.
    assert_eq!(keep(&server, "never", 0, "nothing yet").status, 204);
    server.kill();
    let server = TestServer::start_in(dir.path(), &[]);
    is_kept(&get(&server), "1", "older than what was there", "text/plain; charset=utf-8");
    assert_eq!(server.get("/topics/never/snapshot", &[]).header("last-event-id"), Some("0"));
}

#[test]
fn a_snapshot_that_is_none_is_refused() {
    let server = TestServer::start(&["limits.batch_bytes_max=4000", "limits.event_bytes_max=1000"]);
    server.publish("a", "x");
    let put = |target: &str, headers: &[(&str, &str)], body: &[u8]| server.ask("PUT", target, headers, body);
    let at = ("Last-Event-ID", "1");
    let (most, more) = ([b'x'; 4000], [b'x'; 4001]);
    assert_eq!(put("/topics/a/snapshot", &[at], &most).status, 204);
    for (status, code, target, headers, body) in [
        (400, "bad_id", "/topics/a/snapshot", &[][..], &b"x"[..]),
        (400, "bad_id", "/topics/a/snapshot", &[("Last-Event-ID", "")], b"x"),
        (400, "bad_id", "/topics/a/snapshot", &[("Last-Event-ID", "x")], b"x"),
        (400, "bad_id", "/topics/a/snapshot", &[("Last-Event-ID", "-1")], b"x"),
        (400, "bad_id", "/topics/a/snapshot", &[at, at], b"x"),
        (400, "bad_id", "/topics/a/snapshot", &[("Last-Event-ID", "2")], b"x"),
        (400, "bad_id", "/topics/a/snapshot", &[("Last-Event-ID", "9007199254740991")], b"x"),
        (400, "bad_utf8", "/topics/a/snapshot", &[at], b"ab\xff"),
        (400, "bad_query", "/topics/a/snapshot?at=1", &[at], b"x"),
        (400, "bad_header", "/topics/a/snapshot", &[at, ("Content-Encoding", "gzip")], b"x"),
        (400, "bad_topic", "/topics/a.*/snapshot", &[at], b"x"),
        (400, "bad_topic", "/topics/%FF/snapshot", &[at], b"x"),
        (413, "too_large", "/topics/a/snapshot", &[at], &more),
    ] {
        let refused = put(target, headers, body);
        assert_eq!((refused.status, refused.problem().as_str()), (status, code), "{target} {headers:?}");
    }
    for (method, target, status, code) in [
        ("GET", "/topics/a.*/snapshot", 400, "bad_topic"),
        ("GET", "/topics/a/snapshot?x=1", 400, "bad_query"),
        ("GET", "/topics/b/snapshot", 404, "not_found"),
        ("POST", "/topics/a/snapshot", 405, "method_not_allowed"),
        ("DELETE", "/topics/a/snapshot", 405, "method_not_allowed"),
    ] {
        let refused = server.ask(method, target, &[], b"");
        assert_eq!((refused.status, refused.problem().as_str()), (status, code), "{method} {target}");
    }
    let foreign = put("/topics/a/snapshot", &[at, ("Origin", "https://evil.example")], b"x");
    assert_eq!((foreign.status, foreign.problem().as_str()), (403, "forbidden_origin"));
    assert_eq!(get(&server).body.as_bytes(), most);
}

#[test]
fn a_stream_begins_with_it_and_goes_on_from_its_id() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        for n in 1..=6 {
            server.publish(if n % 2 == 0 { "a" } else { "b" }, &n.to_string());
        }
        // Without one, as the earliest.
        let mut stream = server.stream("/topics/a?from=snapshot", &[SSE]);
        assert_eq!((stream.next().unwrap().id, stream.event().id, stream.event().id), (2, 4, 6));
        assert_eq!(keep(&server, "a", 3, "one\r\ntwo\rthree\n").status, 204);
        for target in
            ["/topics/a?from=snapshot", "/events?topic=a&from=snapshot", "/topics/a?from=snapshot&envelope=json"]
        {
            let mut stream = server.stream(target, &[SSE]);
            let snapshot = stream.control("tidelog.snapshot");
            assert_eq!((snapshot.id, snapshot.data.as_str()), (3, "one\ntwo\nthree\n"), "{target}");
            assert_eq!((stream.next().unwrap().id, stream.next().unwrap().id), (4, 6));
            assert_eq!(stream.control("tidelog.live").id, 6);
        }
        let mut lines = server.stream("/topics/a?from=snapshot", &[LINES]);
        let first = json!({"event": "tidelog.snapshot", "after": 3, "data": "one\r\ntwo\rthree\n"});
        assert_eq!(lines.line(), first);
        assert_eq!((&lines.line()["id"], &lines.line()["id"]), (&json!(4), &json!(6)));
        let mut resumed = server.stream("/topics/a?from=snapshot", &[SSE, ("Last-Event-ID", "4")]);
        assert_eq!(resumed.next().unwrap().id, 6, "an id wins");
        for target in ["/topics/*?from=snapshot", "/events?from=snapshot", "/events?topic=a&topic=b&from=snapshot"] {
            let refused = server.get(target, &[SSE]);
            assert_eq!((refused.status, refused.problem().as_str()), (400, "bad_query"), "{target}");
        }
        assert_eq!(server.get("/topics/a?from=snapshot", &[PAGE]).problem(), "bad_query");
    }
}

#[test]
fn what_was_put_is_what_the_next_is_given_though_an_older_one_is_still_being_sent() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        server.publish("a", "x");
        server.publish("a", "y");
        let old = "o".repeat(12 << 20);
        assert_eq!(keep(&server, "a", 1, &old).status, 204);
        let slow = Conn::connect_narrow(server.addr, 16 << 10).unwrap();
        let mut slow = Stream::over(slow, "/topics/a?from=snapshot", &[SSE]).unwrap();
        for at in [1, 2, 2] {
            let body = format!("new at {at}");
            assert_eq!(keep(&server, "a", at, &body).status, 204);
            let mut next = server.stream("/topics/a?from=snapshot", &[SSE]).control("tidelog.snapshot");
            assert_eq!((next.id, std::mem::take(&mut next.data)), (at, body));
        }
        let snapshot = slow.control("tidelog.snapshot");
        assert!(snapshot.id == 1 && snapshot.data == old, "what was begun is whole");
        assert_eq!(slow.next().unwrap().id, 2);
    }
}

#[test]
fn what_a_snapshot_covers_is_let_go_where_the_topics_retention_says_so() {
    let server = TestServer::start(&[]);
    let ask = |method: &str, body: &str| server.ask(method, "/topics/a/retention", &[], body.as_bytes());
    assert_eq!(ask("PUT", "{\"trim_to_snapshot\":1}").problem(), "bad_json");
    assert_eq!(ask("PUT", "{\"trim_to_snapshot\":true}").status, 204);
    let rule = json!({"max_events": 0, "max_age": "0s", "max_bytes": 0, "trim_to_snapshot": true});
    assert_eq!(ask("GET", "").json(), rule);
    lets_go(&server, true);
    // And no more when the rule has gone.
    assert_eq!(ask("DELETE", "").status, 204);
    assert_eq!(keep(&server, "a", 10, "at 10").status, 204);
    a_round_is_made(&server);
    assert_eq!(server.everything("/topics/a").len(), 3);
}

#[test]
fn what_a_snapshot_covers_is_let_go_where_the_configuration_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tidelog.toml");
    std::fs::write(&file, "[[retention.topics]]\npattern = \"a\"\ntrim_to_snapshot = true\n").unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" --config \"$CONFIG\"", BIN]).env("CONFIG", &file);
    let server = TestServer::start_as(shell, &dir.path().join("data"), &[]);
    lets_go(&server, false);
}

/// Of ten events of `a` and ten of `other`, whose snapshots are true at 7, those of `a` go up to there.
fn lets_go(server: &TestServer, once: bool) {
    for _ in 1..=10 {
        server.publish("a", "x");
    }
    let (first, _) = server.publish_lines("/topics/other", &"{\"data\":1}\n".repeat(10));
    assert_eq!(keep(server, "other", first + 5, "other").status, 204);
    assert_eq!(server.everything("/topics/a").len(), 10);
    assert_eq!(keep(server, "a", 7, "at 7").status, 204);
    until("it is let go", || (server.everything("/topics/a").len() == 3).then_some(()));
    assert_eq!(server.everything("/topics/other").len(), 10);
    let mut stream = server.stream("/topics/a?from=snapshot", &[SSE]);
    assert_eq!((stream.control("tidelog.snapshot").id, stream.next().unwrap().id), (7, 8), "nothing is missing");
    let mut behind = server.stream("/topics/a?from=snapshot", &[SSE, ("Last-Event-ID", "2")]);
    assert_eq!((behind.control("tidelog.gap").id, behind.control("tidelog.snapshot").id), (2, 7));
    assert_eq!(behind.next().unwrap().id, 8);
    if !once {
        assert_eq!(keep(server, "a", 9, "at 9").status, 204);
        until("it is let go", || (server.everything("/topics/a").len() == 1).then_some(()));
    }
}

/// Waits for a round of retention, as a topic shows of which all but one event is to go.
fn a_round_is_made(server: &TestServer) {
    assert_eq!(server.ask("PUT", "/topics/round/retention", &[], b"{\"max_events\":1}").status, 204);
    server.publish_lines("/topics/round", "{\"data\":1}\n{\"data\":1}\n");
    until("retention holds", || (server.everything("/topics/round").len() == 1).then_some(()));
}
