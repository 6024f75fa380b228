//! `Idempotency-Key`: a publish that is repeated under its key is answered as the first was, and happens once.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::http2;
use crate::support::{Answer, Conn, TestServer, until};

const LINES: (&str, &str) = ("Content-Type", "application/x-ndjson");

/// Beyond this a body is not read with its head, and on another way.
const LARGE: usize = 100 << 10;

/// A publish, but for its key.
struct Form {
    target: &'static str,
    content_type: Option<&'static str>,
    body: String,
}

impl Form {
    fn headers<'a>(&self, key: &'a str) -> Vec<(&'a str, &'a str)> {
        let mut headers = vec![("Idempotency-Key", key)];
        headers.extend(self.content_type.map(|value| ("Content-Type", value)));
        headers
    }

    fn publish(&self, conn: &mut Conn, key: &str) -> Answer {
        conn.ask("POST", self.target, &self.headers(key), self.body.as_bytes()).unwrap()
    }
}

/// Every form that there is, with so many bytes of data at least.
fn forms(bytes: usize) -> Vec<Form> {
    let data = "x".repeat(bytes);
    let form = |target, content_type, body| Form { target, content_type, body };
    vec![
        form("/topics/a?event=t&key=k", None, data.clone()),
        form("/topics/a", Some("application/json"), json!([data]).to_string()),
        form("/topics/a", Some(LINES.1), format!("{{\"data\":\"{data}\"}}\n{{\"key\":\"k\",\"data\":2}}\n")),
        form(
            "/topics",
            Some(LINES.1),
            format!(
                "{{\"topic\":\"a\",\"data\":\"{data}\"}}\n{{\"topic\":\"b\",\"data\":2}}\n{{\"topic\":\"c\",\"data\":3}}"
            ),
        ),
    ]
}

fn keyed(server: &TestServer, target: &str, key: &str, body: &str) -> Answer {
    server.ask("POST", target, &[("Idempotency-Key", key)], body.as_bytes())
}

fn id(answer: &Answer, status: u16) -> u64 {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("idempotency-replayed"), (status == 200).then_some("true"), "{answer:?}");
    answer.json()["id"].as_u64().unwrap()
}

fn is_replay_of(first: &Answer, again: &Answer) {
    assert_eq!((again.status, again.header("idempotency-replayed")), (200, Some("true")), "{again:?}");
    assert_eq!(again.body, first.body);
    for name in ["content-type", "tidelog-log"] {
        assert_eq!(again.header(name), first.header(name));
    }
}

#[test]
fn every_form_is_repeated_with_the_first_answer() {
    let server = TestServer::start(&[]);
    let mut kept = server.connect();
    for (n, form) in forms(1).iter().chain(&forms(LARGE)).enumerate() {
        // The key says nothing of what it is for.
        let key = format!("key {n}");
        let first = form.publish(&mut kept, &key);
        assert_eq!((first.status, first.header("idempotency-replayed")), (201, None), "{first:?}");
        let tail = server.tail();
        is_replay_of(&first, &form.publish(&mut server.connect(), &key));
        is_replay_of(&first, &form.publish(&mut kept, &key));
        // In chunks the body is the same.
        let mut conn = server.connect();
        let headers: String = form.headers(&key).iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        conn.send(format!(
            "POST {} HTTP/1.1\r\nHost: localhost\r\n{headers}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n",
            form.target,
            form.body.len(),
            form.body
        ))
        .unwrap();
        is_replay_of(&first, &conn.answer(false).unwrap());
        assert_eq!(server.tail(), tail);
        assert_eq!(form.publish(&mut kept, &format!("other {n}")).status, 201);
        assert!(server.tail() > tail);
    }
}

#[tokio::test]
async fn every_form_is_repeated_over_http2_and_from_one_protocol_to_the_other() {
    let server = TestServer::start(&[]);
    let mut sender = http2::connect(&server, 1 << 20).await;
    for (n, form) in forms(1).iter().chain(&forms(LARGE)).enumerate() {
        let key = format!("{n}");
        let mut first = String::new();
        for status in [201, 200] {
            let answer = http2::send(&mut sender, "POST", form.target, &form.headers(&key), &form.body).await;
            assert_eq!(answer.status().as_u16(), status);
            assert_eq!(answer.headers().contains_key("idempotency-replayed"), status == 200);
            let body = http2::in_time(answer.into_body().collect()).await.unwrap().to_bytes();
            let body = String::from_utf8(body.to_vec()).unwrap();
            assert!(status == 201 || body == first, "{body} after {first}");
            first = body;
        }
        let again = form.publish(&mut server.connect(), &key);
        assert_eq!((again.status, &again.body), (200, &first));
    }
    let refused = [("Idempotency-Key", "0")];
    let refused = http2::send(&mut sender, "POST", "/topics/a", &refused, "other").await;
    assert_eq!(refused.status().as_u16(), 422);
}

#[test]
fn a_key_that_names_anything_else_is_refused() {
    let server = TestServer::start(&[]);
    let post = |target: &str, content_type: &str, body: &str| {
        let headers = [("Idempotency-Key", "k"), ("Content-Type", content_type)];
        server.ask("POST", target, &headers, body.as_bytes())
    };
    let first = post("/topics/a?key=1", "application/json", "{\"data\":1}");
    assert_eq!(id(&first, 201), 1);
    for (target, content_type, body) in [
        ("/topics/a?key=1", "application/json", "{\"data\":2}"),
        ("/topics/a?key=1", "application/json", "{\"data\":1} "),
        ("/topics/a?key=1", "text/plain", "{\"data\":1}"),
        ("/topics/a?key=1", "application/json; charset=utf-8", "{\"data\":1}"),
        ("/topics/a", LINES.1, "{\"data\":1}"),
        ("/topics/a", "application/json", "{\"data\":1}"),
        ("/topics/a?key=2", "application/json", "{\"data\":1}"),
        ("/topics/a?key=1&event=t", "application/json", "{\"data\":1}"),
        ("/topics/b?key=1", "application/json", "{\"data\":1}"),
        ("/topics", LINES.1, "{\"topic\":\"a\",\"data\":1}"),
    ] {
        let refused = post(target, content_type, body);
        let what = (refused.status, refused.problem());
        assert_eq!(what, (422, "idempotency_conflict".into()), "{target} {content_type} {body}");
        assert_eq!(refused.header("idempotency-replayed"), None);
    }
    assert_eq!(server.tail(), 1);
    is_replay_of(&first, &post("/topics/a?key=1", "application/json", "{\"data\":1}"));
    // Without a key, or under another one, the same is a new one.
    assert_eq!(server.publish("a?key=1", "{\"data\":1}"), 2);
    assert_eq!(id(&keyed(&server, "/topics/a", "K", "x"), 201), 3);
}

#[test]
fn what_was_refused_is_not_remembered() {
    let server = TestServer::start(&["limits.topics_max=3", "limits.event_bytes_max=1000"]);
    server.publish("a", "x");
    server.publish("closed", "x");
    assert_eq!(server.ask("POST", "/topics/closed/close", &[], b"").status, 204);
    let key = ("Idempotency-Key", "k");
    let unmet = |last: &str| server.ask("POST", "/topics/a", &[key, ("If-Match", last)], b"y");
    let long = "x".repeat(1001);
    for (status, target, headers, body) in [
        (400, "/topics/a", &[key, ("Content-Type", "application/json")][..], "{"),
        (400, "/topics/a", &[key, LINES], "{\"data\":1}\nx"),
        (400, "/topics/a?evnt=t", &[key], "x"),
        (400, "/topics/a", &[key, ("If-Match", "1")], "y"),
        (409, "/topics/closed", &[key], "x"),
        (409, "/topics", &[key, LINES], "{\"topic\":\"a\",\"data\":1}\n{\"topic\":\"closed\",\"data\":1}"),
        (412, "/topics/a", &[key, ("If-Match", "\"7\"")], "y"),
        (412, "/topics/a", &[key, ("If-None-Match", "*")], "y"),
        (413, "/topics/a", &[key], &long),
        (429, "/topics", &[key, LINES], "{\"topic\":\"n1\",\"data\":1}\n{\"topic\":\"n2\",\"data\":1}"),
    ] {
        let refused = server.ask("POST", target, headers, body.as_bytes());
        assert_eq!(refused.status, status, "{refused:?}");
        refused.problem();
    }
    assert_eq!(server.tail(), 2);
    // The very request that a condition refused.
    assert_eq!(id(&unmet("\"1\""), 201), 3);
    assert_eq!(id(&unmet("\"1\""), 200), 3);
}

#[test]
fn a_key_is_looked_up_before_conditions_and_before_closing() {
    let server = TestServer::start(&[]);
    let post = |key: &str, more: &[(&str, &str)], body: &str| {
        let mut headers = vec![("Idempotency-Key", key)];
        headers.extend_from_slice(more);
        server.ask("POST", "/topics/a", &headers, body.as_bytes())
    };
    let none = [("If-None-Match", "*")];
    assert_eq!(id(&post("1", &none, "x"), 201), 1);
    assert_eq!(id(&post("1", &none, "x"), 200), 1);
    assert_eq!(id(&post("1", &[("If-Match", "\"9\"")], "x"), 200), 1, "a condition is no part of the request");
    assert_eq!(post("1", &none, "y").status, 422);
    assert_eq!(post("2", &none, "x").status, 412);
    assert_eq!(server.ask("POST", "/topics/a/close", &[], b"").status, 204);
    assert_eq!(id(&post("1", &none, "x"), 200), 1);
    assert_eq!(post("1", &[], "y").status, 422);
    assert_eq!(post("2", &none, "x").problem(), "topic_closed");
    assert_eq!(server.tail(), 1);
}

#[test]
fn of_many_that_race_under_one_key_one_is_first_and_all_have_its_id() {
    const RACERS: usize = 40;
    let server = TestServer::start(&[]);
    for round in 1..=6 {
        let (key, barrier) = (format!("round {round}"), Barrier::new(RACERS));
        // Every other one has published before, and is served elsewhere by now.
        let mut conns: Vec<_> = (0..RACERS).map(|_| server.connect()).collect();
        for conn in conns.iter_mut().step_by(2) {
            for _ in 0..2 {
                assert_eq!(conn.ask("POST", "/topics/warm", &[], b"x").unwrap().status, 201);
            }
        }
        let mut answers: Vec<Answer> = thread::scope(|scope| {
            let racers: Vec<_> = conns
                .iter_mut()
                .map(|conn| {
                    let (key, barrier) = (&key, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        conn.ask("POST", "/topics/race", &[("Idempotency-Key", key)], b"x").unwrap()
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).collect()
        });
        answers.sort_by_key(|answer| std::cmp::Reverse(answer.status));
        let first = id(&answers[0], 201);
        assert!(answers[1..].iter().all(|answer| id(answer, 200) == first), "{answers:?}");
        let raced = server.everything("/topics/race");
        assert_eq!((raced.len(), raced.last().unwrap()["id"].as_u64()), (round, Some(first)));
    }
}

#[test]
fn a_key_is_forgotten_when_its_window_is_over_and_not_before() {
    let server = TestServer::start(&["dedupe_window=400ms"]);
    let begun = Instant::now();
    assert_eq!(id(&keyed(&server, "/topics/a", "k", "x"), 201), 1);
    let again = until("the window is over", || {
        let answer = keyed(&server, "/topics/a", "k", "x");
        // A repetition does not make it longer.
        (answer.status == 201 || id(&answer, 200) != 1).then_some(answer)
    });
    assert_eq!(id(&again, 201), 2);
    assert!(begun.elapsed() >= Duration::from_millis(399), "{:?}", begun.elapsed());
    assert_eq!(id(&keyed(&server, "/topics/a", "k", "x"), 200), 2);
    until("what is forgotten takes no room", || (server.metric("tidelog_dedupe_keys") == 0).then_some(()));
    assert_eq!(server.metric("tidelog_dedupe_keys_forgotten_early_total"), 0);
}

#[test]
fn beyond_the_most_the_oldest_keys_are_forgotten_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let sets = ["dedupe_keys_max=10"];
    let server = TestServer::start_in(dir.path(), &sets);
    let publish = |server: &TestServer, n: u64| keyed(server, "/topics/a", &n.to_string(), &n.to_string());
    for n in 1..=25 {
        assert_eq!(id(&publish(&server, n), 201), n);
    }
    for n in 16..=25 {
        assert_eq!(id(&publish(&server, n), 200), n);
    }
    let early = |server: &TestServer| server.metric("tidelog_dedupe_keys_forgotten_early_total");
    until("15 are counted", || (early(&server) == 15).then_some(()));
    assert_eq!(server.metric("tidelog_dedupe_keys"), 10);
    assert_eq!(id(&publish(&server, 15), 201), 26);
    assert_eq!(id(&publish(&server, 16), 201), 27, "the newer one has taken its place");
    until("17 are counted", || (early(&server) == 17).then_some(()));
    server.kill();
    let server = TestServer::start_in(dir.path(), &sets);
    for (n, first) in [(18, 18), (25, 25), (15, 26), (16, 27)] {
        assert_eq!(id(&publish(&server, n), 200), first);
    }
}

#[test]
fn a_key_outlives_a_kill_and_its_event() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(dir.path(), &[]);
    let all = forms(1);
    let first: Vec<_> =
        all.iter().zip(["0", "1", "2", "3"]).map(|(form, key)| form.publish(&mut server.connect(), key)).collect();
    assert!(first.iter().all(|answer| answer.status == 201), "{first:?}");
    let tail = server.tail();
    server.kill();
    let again = |server: &TestServer| {
        for (n, (form, first)) in all.iter().zip(&first).enumerate() {
            is_replay_of(first, &form.publish(&mut server.connect(), &n.to_string()));
            let mut other = form.headers("0");
            other[0].1 = ["1", "2", "3", "0"][n];
            assert_eq!(server.ask("POST", form.target, &other, form.body.as_bytes()).status, 422);
        }
    };
    let server = TestServer::start_in(dir.path(), &["retention.max_events=1"]);
    again(&server);
    assert!(server.tail() >= tail);
    assert_eq!(server.ask("DELETE", "/topics/a", &[], b"").status, 204);
    let last = server.publish("z", "x");
    until("retention holds", || (server.everything("/events").len() == 1).then_some(()));
    again(&server);
    server.kill();
    let server = TestServer::start_in(dir.path(), &[]);
    again(&server);
    let left: Vec<Value> = server.everything("/events");
    assert_eq!((left.len(), left[0]["id"].as_u64()), (1, Some(last)));
}

#[test]
fn keys_that_are_none() {
    let server = TestServer::start(&[]);
    let (most, more) = ("k".repeat(128), "k".repeat(129));
    for headers in [
        &[("Idempotency-Key", "")][..],
        &[("Idempotency-Key", &more)],
        &[("Idempotency-Key", "é")],
        &[("Idempotency-Key", "a\tb")],
        &[("Idempotency-Key", "a"), ("Idempotency-Key", "a")],
        &[("Idempotency-Key", "a"), ("idempotency-key", "b")],
    ] {
        for (target, body) in [("/topics/a", "{\"data\":1}"), ("/topics", "{\"topic\":\"a\",\"data\":1}")] {
            let mut headers = headers.to_vec();
            headers.push(LINES);
            for padding in [0, LARGE] {
                let body = body.to_owned() + &" ".repeat(padding);
                let refused = server.ask("POST", target, &headers, body.as_bytes());
                assert_eq!((refused.status, refused.problem().as_str()), (400, "bad_header"), "{refused:?}");
                assert!(refused.detail().contains("Idempotency-Key"), "{refused:?}");
            }
        }
    }
    assert_eq!(server.tail(), 0);
    assert_eq!(id(&keyed(&server, "/topics/a", &most, "x"), 201), 1);
    assert_eq!(id(&keyed(&server, "/topics/a", &most, "x"), 200), 1);
    assert_eq!(id(&keyed(&server, "/topics/a", &most[..127], "x"), 201), 2);
}
