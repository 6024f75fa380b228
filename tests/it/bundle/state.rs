//! The state: the newest event of each topic and key, asked for and as the beginning of a stream.

use serde_json::{Value, json};

use super::{BATCH, LINES, PAGE, SSE, State, WAYS, delete, entries, state};
use crate::support::{End, TestServer, until};

fn names(state: &State) -> Vec<String> {
    state.iter().map(|((topic, key), event)| format!("{topic}/{key}={}", event["data"].as_str().unwrap())).collect()
}

#[test]
fn it_is_the_newest_event_of_each_topic_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(dir.path(), &[]);
    let empty = server.get("/topics/**/state", &[]);
    assert_eq!((empty.json(), empty.header("last-event-id")), (json!({"as_of": 0, "entries": []}), Some("0")));
    server.publish("a.x?key=1&event=t", "one\r\n\u{1F30A}");
    server.publish("a.x?key=2", "two");
    server.publish("a.y?key=1", "other");
    server.publish("a.x", "without a key");
    server.publish("a.x?key=2", "newer");
    server.publish_lines(
        "/topics",
        "{\"topic\":\"b\",\"key\":\"1\",\"data\":{\"n\": 1}}\n{\"topic\":\"b\",\"key\":\"1\",\"data\":{\"n\": 2}}",
    );
    let all = ["a.x/1=one\r\n\u{1F30A}", "a.x/2=newer", "a.y/1=other", "b/1={\"n\":2}"];
    for (pattern, want) in [
        ("**", &all[..]),
        ("*", &all[3..]),
        ("a.*", &all[..3]),
        ("a.**", &all[..3]),
        ("*.y", &all[2..3]),
        ("a.x", &all[..2]),
        ("a%2Ex", &all[..2]),
        ("none", &[]),
    ] {
        let (as_of, state) = state(&server, pattern);
        assert_eq!((as_of, names(&state)), (7, want.iter().map(ToString::to_string).collect()), "{pattern}");
    }
    let (_, before) = state(&server, "**");
    let events = server.everything("/events");
    assert!(before.values().all(|entry| events.contains(entry)), "an entry is its event: {before:?}");
    // What it costs to ask is told by HEAD, without a body.
    let mut conn = server.connect();
    let get = conn.ask("GET", "/topics/a.*/state", &[], b"").unwrap();
    let head = conn.ask("HEAD", "/topics/a.*/state", &[], b"").unwrap();
    for name in ["content-type", "content-length", "cache-control", "last-event-id", "tidelog-log"] {
        assert!(get.header(name).is_some(), "no {name}: {get:?}");
        assert_eq!(head.header(name), get.header(name), "{name}");
    }
    server.kill();
    assert_eq!(state(&TestServer::start_in(dir.path(), &[]), "**").1, before);
}

#[test]
fn a_key_goes_by_an_empty_event_or_with_its_topic_and_not_by_retention() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(dir.path(), &[]);
    for key in 1..=4 {
        server.publish(&format!("a?key={key}"), "x");
        server.publish(&format!("b?key={key}"), "x");
    }
    let got = |server: &TestServer| names(&state(server, "**").1);
    server.publish("a?key=1", "");
    server.publish("a?key=9", "");
    server.publish_lines("/topics/a", "{\"key\":\"5\",\"data\":\"x\"}\n{\"key\":\"5\",\"data\":\"\"}\n{\"key\":\"2\",\"data\":\"\"}\n{\"key\":\"2\",\"data\":\"y\"}");
    let want = ["a/2=y", "a/3=x", "a/4=x", "b/1=x", "b/2=x", "b/3=x", "b/4=x"];
    assert_eq!(got(&server), want);
    delete(&server, "a?before=9007199254740991");
    assert_eq!((server.everything("/topics/a").len(), got(&server)), (0, want.map(String::from).to_vec()));
    assert_eq!(server.ask("PUT", "/topics/b/retention", &[], b"{\"max_events\":1}").status, 204);
    until("retention holds", || (server.everything("/topics/b").len() == 1).then_some(()));
    assert_eq!(got(&server), want);
    server.kill();
    // The whole log's.
    let server = TestServer::start_in(dir.path(), &["retention.max_events=1"]);
    let last = server.publish("c", "without a key");
    until("retention holds", || (server.everything("/events").len() == 1).then_some(()));
    assert_eq!((state(&server, "**").0, got(&server)), (last, want.map(String::from).to_vec()));
    delete(&server, "b");
    assert_eq!(got(&server), want[..3]);
    server.publish("b?key=1", "again");
    server.kill();
    let server = TestServer::start_in(dir.path(), &[]);
    assert_eq!(got(&server), ["a/2=y", "a/3=x", "a/4=x", "b/1=again"]);
}

#[test]
fn a_stream_begins_with_it_in_every_form() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        server.publish("a?key=1&event=t", "one\ntwo");
        server.publish("b?key=1", "x");
        server.publish("a?key=2", "gone");
        server.publish("a?key=2", "");
        server.publish("c", "without a key");
        for envelope in ["", "&envelope=json"] {
            let mut stream = server.stream(&format!("/events?topic=a&topic=b&from=state{envelope}"), &[SSE]).keep();
            let (got, live) = entries(&mut stream);
            let (as_of, whole) = state(&server, "*");
            assert_eq!((&got, got.len()), (&whole, 2));
            assert_eq!((live.event.as_str(), live.id, &live.json()["tail"]), ("tidelog.live", as_of, &json!(as_of)));
            let raw = String::from_utf8(stream.raw.clone().unwrap()).unwrap();
            let (_, frames) = raw.split_once('\n').unwrap();
            assert!(frames.starts_with("event: tidelog.state\ndata: {"), "an entry has no id: {raw:?}");
            let id = server.publish("b?key=1", "newer");
            let event = stream.event();
            assert_eq!(event.id, id);
            let data = if envelope.is_empty() { Value::from(event.data) } else { event.json()["data"].clone() };
            assert_eq!(data, "newer");
        }
        let whole = state(&server, "*").1;
        let mut lines = server.stream("/topics/*?from=state", &[LINES]);
        let mut got = State::new();
        for _ in 0..2 {
            let line = lines.line();
            assert_eq!(line, json!({"event": "tidelog.state", "data": line["data"]}), "an entry has no id");
            super::enter(&mut got, line["data"].clone());
        }
        assert_eq!(got, whole);
        let live = lines.line();
        assert_eq!((&live["event"], &live["after"]), (&json!("tidelog.live"), &json!(7)));
        server.publish("c", "y");
        assert_eq!(lines.line()["id"], 8);
    }
}

#[test]
fn a_stream_of_some_types_begins_with_entries_of_those() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        server.publish("a?key=1&event=t", "x");
        server.publish("a?key=2&event=u", "x");
        server.publish("a?key=3", "x");
        server.publish("a?key=4&event=t", "x");
        server.publish("a?key=4&event=u", "another type now");
        let keys = |query: &str| {
            let mut stream = server.stream(&format!("/topics/a?from=state{query}"), &[SSE]);
            let (got, live) = entries(&mut stream);
            assert_eq!(live.id, 5);
            got.into_keys().map(|(_, key)| key).collect::<Vec<_>>()
        };
        assert_eq!(keys("&event=t"), ["1"]);
        assert_eq!(keys("&event=u"), ["2", "4"]);
        assert_eq!(keys("&event=message&event=t"), ["1", "3"]);
        assert_eq!(keys("&event=none"), [""; 0]);
        let mut stream = server.stream("/topics/a?from=state&event=t", &[SSE]);
        assert_eq!(entries(&mut stream).0.len(), 1);
        server.publish("a?key=2&event=u", "y");
        let id = server.publish("a?key=2&event=t", "z");
        assert_eq!(stream.event().id, id);
    }
}

#[test]
fn an_id_wins_over_it_and_it_can_be_all_there_is() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        for n in 1..=6 {
            server.publish(&format!("a?key={n}"), "x");
        }
        for (target, header) in [
            ("/topics/a?from=state", Some("4")),
            ("/topics/a?from=state&last_event_id=2", Some("4")),
            ("/topics/a?from=state&last_event_id=4", None),
            ("/topics/a?from=state&lastEventId=4", Some("")),
        ] {
            let mut headers = vec![SSE];
            headers.extend(header.map(|id| ("Last-Event-ID", id)));
            let mut stream = server.stream(target, &headers);
            assert_eq!(stream.next().unwrap().id, 5, "{target}");
            assert_eq!((stream.event().id, stream.control("tidelog.live").id), (6, 6));
        }
        let mut once = server.stream("/topics/a?from=state&follow=false", &[SSE]);
        let (got, live) = entries(&mut once);
        assert_eq!((got.len(), live.event.as_str(), live.id), (6, "tidelog.live", 6));
        assert_eq!((once.next(), once.end), (None, Some(End::Proper)));
        // What comes after the state and before the stream's own tail is part of it.
        let answer = server.get("/topics/a?from=state&follow=false", &[SSE, ("Last-Event-ID", "6")]);
        assert_eq!(answer.status, 204);
        let head = server.ask("HEAD", "/topics/a?from=state", &[SSE], b"");
        assert_eq!(
            (head.status, head.header("tidelog-tail"), head.header("tidelog-last")),
            (200, Some("6"), Some("6"))
        );
        for from in ["state", "snapshot"] {
            let refused = server.get(&format!("/topics/a?from={from}"), &[PAGE]);
            assert_eq!((refused.status, refused.problem().as_str()), (400, "bad_query"));
        }
    }
}

#[test]
fn a_state_is_asked_for_as_it_should_be() {
    let server = TestServer::start(&["cors.allow_origins=https://app.example"]);
    server.publish("a?key=1", "x");
    for (method, target, status, code) in [
        ("GET", "/topics/a/state?from=1", 400, "bad_query"),
        ("GET", "/topics/a/state?event=t", 400, "bad_query"),
        ("GET", "/topics/a..b/state", 400, "bad_pattern"),
        ("GET", "/topics/**.a/state", 400, "bad_pattern"),
        ("GET", "/topics/%FF/state", 400, "bad_pattern"),
        ("PUT", "/topics/a/state", 405, "method_not_allowed"),
        ("POST", "/topics/a/state", 405, "method_not_allowed"),
        ("DELETE", "/topics/a/state", 405, "method_not_allowed"),
        ("GET", "/topics/a/states", 404, "not_found"),
        ("GET", "/topics/a/state/", 404, "not_found"),
    ] {
        let refused = server.ask(method, target, &[BATCH], b"");
        assert_eq!((refused.status, refused.problem().as_str()), (status, code), "{method} {target}");
        assert!(status != 405 || refused.header("allow") == Some("GET, HEAD, OPTIONS"), "{refused:?}");
    }
    let foreign = server.get("/topics/a/state", &[("Origin", "https://evil.example")]);
    assert_eq!((foreign.status, foreign.problem().as_str()), (403, "forbidden_origin"));
    let allowed = server.get("/topics/a/state", &[("Origin", "https://app.example")]);
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (200, Some("https://app.example")));
    assert!(allowed.header("access-control-expose-headers").unwrap().contains("Last-Event-ID"));
    // Whatever it is asked for as.
    assert_eq!(server.get("/topics/a/state", &[SSE]).json()["as_of"], 1);
    // A client that speaks HTTP/1.0 is given a length.
    let mut conn = server.connect();
    conn.send("GET /topics/a/state HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let answer = String::from_utf8(conn.until_closed()).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.to_ascii_lowercase().contains(&format!("content-length: {}", body.len())), "{answer}");
    assert_eq!(serde_json::from_str::<Value>(body).unwrap()["entries"].as_array().unwrap().len(), 1);
}
