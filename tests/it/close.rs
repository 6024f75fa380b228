//! A topic that is closed: who follows it is given the rest and the end, who comes back is told that there is no more, and nothing is
//! published to it again.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::http2;
use crate::support::{End, Stream, TestServer, until};

/// Streams on their own threads, and streams as tasks.
const WAYS: [&[&str]; 2] = [&[], &["stream_threads=0"]];

const SSE: (&str, &str) = ("Accept", "text/event-stream");
const LINES: (&str, &str) = ("Accept", "application/x-ndjson");
const PAGE: (&str, &str) = ("Accept", "application/json");
const BATCH: (&str, &str) = ("Content-Type", "application/x-ndjson");

fn close(server: &TestServer, topic: &str) {
    let answer = server.ask("POST", &format!("/topics/{topic}/close"), &[], b"");
    assert_eq!((answer.status, answer.body.as_str()), (204, ""), "{answer:?}");
}

/// Its end comes next, after the cursor `id`.
fn ends(stream: &mut Stream, id: u64, last: u64) {
    let closed = stream.control("tidelog.closed");
    assert_eq!((closed.id, closed.json()), (id, json!({"last": last})));
    assert_eq!((stream.next(), stream.end), (None, Some(End::Proper)));
}

#[test]
fn followers_are_given_the_rest_and_the_end() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        for topic in ["a", "b", "a"] {
            server.publish(topic, "x");
        }
        let mut live = server.stream("/topics/a", &[SSE]);
        assert_eq!(live.control("tidelog.live").id, 3);
        let mut typed = server.stream("/topics/a?event=t", &[SSE]);
        typed.control("tidelog.live");
        let mut lines = server.stream("/topics/a", &[LINES]);
        assert_eq!(lines.line()["event"], "tidelog.live");
        let mut both = server.stream("/events?topic=a&topic=b", &[SSE]);
        both.control("tidelog.live");
        let mut wild: Vec<_> = ["/topics/*", "/topics/**", "/events", "/events?topic=a&topic=a.*"]
            .map(|target| server.stream(target, &[SSE]))
            .into_iter()
            .collect();
        wild.iter_mut().for_each(|stream| drop(stream.control("tidelog.live")));

        server.publish("a", "the last");
        close(&server, "a");
        assert_eq!(live.event().data, "the last");
        ends(&mut live, 4, 4);
        ends(&mut typed, 4, 4);
        assert_eq!(lines.line()["data"], "the last");
        assert_eq!(lines.line(), json!({"event": "tidelog.closed", "after": 4, "data": {"last": 4}}));
        assert_eq!((lines.bytes(), lines.end), (None, Some(End::Proper)));
        // One that comes too late is given all of it, and told that it has caught up.
        let mut late = server.stream("/topics/a?from=earliest", &[SSE]);
        assert_eq!((late.next().unwrap().id, late.next().unwrap().id, late.next().unwrap().id), (1, 3, 4));
        assert_eq!(late.control("tidelog.live").id, 4);
        ends(&mut late, 4, 4);
        let mut latest = server.stream("/topics/a", &[SSE]);
        assert_eq!(latest.control("tidelog.live").id, 4);
        ends(&mut latest, 4, 4);

        // One of two is not the end of both.
        assert_eq!(both.event().data, "the last");
        assert_eq!((server.publish("b", "y"), both.event().id), (5, 5));
        server.publish("other", "z");
        close(&server, "b");
        ends(&mut both, 6, 5);
        for stream in &mut wild {
            let id = stream.event().id;
            assert_eq!(id, 4, "wildcards go on");
        }
        server.publish("a.b", "new");
        server.publish("c", "new");
        assert_eq!((wild[1].event().id, wild[1].event().id, wild[1].event().id), (5, 6, 7));
        assert_eq!(wild[3].event().id, 7);
    }
}

#[test]
fn the_end_is_the_same_the_second_time_and_for_a_topic_that_never_was() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        server.publish("other", "x");
        let mut waits = server.stream("/topics/never", &[SSE]);
        waits.control("tidelog.live");
        close(&server, "never");
        ends(&mut waits, 1, 0);
        close(&server, "never");
        let mut stream = server.stream("/topics/never?from=earliest", &[SSE]);
        assert_eq!(stream.control("tidelog.live").id, 1);
        ends(&mut stream, 1, 0);
        let listed = server.get("/topics?prefix=never", &[]).json()["topics"][0].clone();
        for (name, value) in
            [("topic", json!("never")), ("closed", json!(true)), ("events", json!(0)), ("last", json!(0))]
        {
            assert_eq!(listed[name], value, "{listed}");
        }
        assert_eq!(server.ask("POST", "/topics/never", &[], b"x").problem(), "topic_closed");
        assert_eq!(server.get("/topics/never", &[SSE, ("Last-Event-ID", "0")]).status, 204);
    }
}

#[test]
fn a_connection_goes_on_after_the_end_of_its_stream() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        server.publish("a", "x");
        close(&server, "a");
        let mut stream = server.stream("/topics/a?from=earliest", &[SSE]);
        assert_eq!((stream.next().unwrap().id, stream.control("tidelog.live").id), (1, 1));
        ends(&mut stream, 1, 1);
        let mut conn = stream.conn;
        for _ in 0..2 {
            let nothing = conn.ask("GET", "/topics/a", &[SSE, ("Last-Event-ID", "1")], b"").unwrap();
            assert_eq!(
                (nothing.status, nothing.header("content-length"), nothing.header("transfer-encoding")),
                (204, None, None)
            );
            assert_eq!(conn.ask("POST", "/topics/a", &[], b"x").unwrap().problem(), "topic_closed");
            assert_eq!(conn.ask("POST", "/topics/b", &[], b"x").unwrap().status, 201);
            let closed = conn.ask("POST", "/topics/a/close", &[], b"").unwrap();
            assert_eq!((closed.status, closed.header("content-length")), (204, None));
        }
        // A stream, its end, and another one.
        let mut again = Stream::over(conn, "/topics/a?from=earliest", &[SSE]).unwrap();
        assert_eq!((again.next().unwrap().id, again.control("tidelog.live").id), (1, 3));
        ends(&mut again, 3, 1);
        assert_eq!(again.conn.ask("GET", "/healthz", &[], b"").unwrap().status, 200);
    }
}

#[test]
fn who_comes_back_at_the_end_is_told_that_there_is_no_more() {
    let server = TestServer::start(&[]);
    for topic in ["a", "b", "a", "b", "c"] {
        server.publish(topic, "x");
    }
    let ask = |target: &str, id: &str| server.ask("HEAD", target, &[SSE, ("Last-Event-ID", id)], b"").status;
    assert_eq!(ask("/topics/a", "5"), 200, "it goes on");
    close(&server, "a");
    for (target, id, status) in [
        ("/topics/a", "3", 204),
        ("/topics/a", "4", 204),
        ("/topics/a", "5", 204),
        ("/topics/a", "2", 200),
        ("/topics/a", "0", 200),
        ("/topics/a?event=t", "0", 204),
        ("/topics/a?from=earliest", "3", 204),
        ("/topics/a?from=state", "3", 204),
        ("/topics/a", "6", 200),
        ("/events?topic=a&topic=b", "5", 200),
        ("/topics/*", "5", 200),
        ("/events?topic=a&topic=b.*", "5", 200),
    ] {
        assert_eq!(ask(target, id), status, "{target} {id}");
    }
    for accept in [SSE, LINES] {
        let answer = server.get("/topics/a", &[accept, ("Last-Event-ID", "3")]);
        assert_eq!((answer.status, answer.body.as_str(), answer.header("tidelog-tail")), (204, "", Some("5")));
    }
    close(&server, "b");
    assert_eq!(ask("/events?topic=a&topic=b", "4"), 204);
    assert_eq!(ask("/events?topic=a&topic=b", "3"), 200);
    // Only a retry says so by its header; a first connect is told in the stream.
    for target in ["/topics/a?last_event_id=5", "/topics/a?from=6", "/topics/a"] {
        let mut stream = server.stream(target, &[SSE]);
        assert_eq!(stream.control("tidelog.live").id, 5, "{target}");
        ends(&mut stream, 5, 3);
    }
    let mut stream = server.stream("/topics/a", &[SSE, ("Last-Event-ID", "2")]);
    assert_eq!((stream.next().unwrap().id, stream.control("tidelog.live").id), (3, 5));
    ends(&mut stream, 5, 3);
    // What is gone is told before the end.
    assert_eq!(server.ask("DELETE", "/topics/a", &[], b"").status, 204);
    assert_eq!(ask("/topics/a", "5"), 204);
    let mut stream = server.stream("/topics/a", &[SSE, ("Last-Event-ID", "1")]);
    assert_eq!(stream.control("tidelog.gap").id, 1);
    assert_eq!(stream.control("tidelog.live").id, 5);
    ends(&mut stream, 5, 3);
    let mut once = server.stream("/topics/a?from=earliest&follow=false", &[SSE]);
    assert_eq!(once.control("tidelog.live").id, 5);
    ends(&mut once, 5, 3);
}

#[test]
fn pages_tell_the_end_and_do_not_wait_beyond_it() {
    let server = TestServer::start(&[]);
    for topic in ["a", "a", "b"] {
        server.publish(topic, "x");
    }
    let begun = Instant::now();
    let (waited, typed) = thread::scope(|scope| {
        let waits = |target: &'static str| scope.spawn(|| server.get(target, &[PAGE]).json());
        let pages = (waits("/topics/a?from=latest&wait=60s"), waits("/topics/a?event=t&wait=60s"));
        let listed = || server.get("/topics", &[]).json()["topics"][0]["subscribers"] == 2;
        until("the pages wait", || listed().then_some(()));
        close(&server, "a");
        (pages.0.join().unwrap(), pages.1.join().unwrap())
    });
    for page in [waited, typed] {
        assert_eq!((&page["events"], &page["next"], &page["closed"]), (&json!([]), &json!(4), &json!({"last": 2})));
    }
    for (target, events, closed) in [
        ("/topics/a?wait=60s", 2, true),
        ("/topics/a?limit=1&wait=60s", 1, false),
        ("/topics/a?from=2&limit=1&wait=60s", 1, true),
        ("/topics/a?from=3&wait=60s", 0, true),
        ("/topics/a?from=latest&wait=60s", 0, true),
        ("/topics/b", 1, false),
        ("/topics/*", 3, false),
        ("/events?topic=a&topic=b", 3, false),
    ] {
        let page = server.get(target, &[PAGE]).json();
        assert_eq!(page["events"].as_array().unwrap().len(), events, "{target}: {page}");
        assert_eq!(page.get("closed"), closed.then_some(&json!({"last": 2})), "{target}: {page}");
    }
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn nothing_is_published_to_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(dir.path(), &[]);
    server.publish("a", "x");
    server.publish("b", "x");
    close(&server, "a");
    let refused = |server: &TestServer| {
        let tail = server.tail();
        let across = "{\"topic\":\"b\",\"data\":1}\n{\"topic\":\"a\",\"data\":1}\n{\"topic\":\"c\",\"data\":1}";
        for (target, headers, body) in [
            ("/topics/a", &[][..], "x"),
            ("/topics/a?key=k", &[], ""),
            ("/topics/a", &[("Content-Type", "application/json")], "{}"),
            ("/topics/a", &[BATCH], "{\"data\":1}\n{\"data\":2}"),
            ("/topics/a", &[("If-Match", "\"9\"")], "x"),
            ("/topics/a", &[("Idempotency-Key", "k")], "x"),
            ("/topics", &[BATCH], across),
        ] {
            let answer = server.ask("POST", target, headers, body.as_bytes());
            assert_eq!((answer.status, answer.problem().as_str()), (409, "topic_closed"), "{target} {headers:?}");
            assert!(answer.detail().contains("topic a "), "{answer:?}");
        }
        assert_eq!((server.tail(), server.everything("/events").len()), (tail, 2));
        let listed = server.get("/topics", &[]).json();
        let closed: Vec<_> = listed["topics"].as_array().unwrap().iter().map(|topic| topic["closed"].clone()).collect();
        assert_eq!(closed, [json!(true), json!(false)], "{listed}");
    };
    refused(&server);
    server.kill();
    let server = TestServer::start_in(dir.path(), &[]);
    refused(&server);
    assert_eq!(server.get("/topics/a", &[SSE, ("Last-Event-ID", "1")]).status, 204);
    // Neither its events' end nor its own retention's opens it.
    assert_eq!(server.ask("DELETE", "/topics/a", &[], b"").status, 204);
    assert_eq!(server.ask("PUT", "/topics/a/retention", &[], b"{\"max_events\":1}").status, 204);
    assert_eq!(server.ask("DELETE", "/topics/a/retention", &[], b"").status, 204);
    assert!(server.stop().success());
    let server = TestServer::start_in(dir.path(), &[]);
    assert_eq!(server.ask("POST", "/topics/a", &[], b"x").problem(), "topic_closed");
    server.publish("b", "x");
    for (method, target, status, code) in [
        ("GET", "/topics/b/close", 405, "method_not_allowed"),
        ("POST", "/topics/b/close?x=1", 400, "bad_query"),
        ("POST", "/topics/b.*/close", 400, "bad_topic"),
        ("POST", "/topics/b/closed", 404, "not_found"),
    ] {
        let answer = server.ask(method, target, &[], b"");
        assert_eq!((answer.status, answer.problem().as_str()), (status, code), "{method} {target}");
    }
    let foreign = server.ask("POST", "/topics/b/close", &[("Origin", "https://evil.example")], b"");
    assert_eq!(foreign.problem(), "forbidden_origin");
    server.publish("b", "x");
}

#[tokio::test]
async fn over_http2_the_end_is_the_streams_own() {
    let server = TestServer::start(&[]);
    let mut sender = http2::connect(&server, 1 << 20).await;
    let mut other = http2::Stream::open(&mut sender, "/topics/other", &[SSE]).await;
    assert_eq!(other.next().await.unwrap().event, "tidelog.live");
    let mut stream = http2::Stream::open(&mut sender, "/topics/a", &[SSE]).await;
    assert_eq!(stream.next().await.unwrap().event, "tidelog.live");
    assert_eq!(http2::send(&mut sender, "POST", "/topics/a", &[], "x").await.status().as_u16(), 201);
    assert_eq!(http2::send(&mut sender, "POST", "/topics/a/close", &[], "").await.status().as_u16(), 204);
    assert_eq!(stream.event().await.data, "x");
    let closed = stream.next().await.unwrap();
    assert_eq!(
        (closed.event.as_str(), closed.id.as_str(), closed.data.as_str()),
        ("tidelog.closed", "1", "{\"last\":1}")
    );
    // Nothing more and no error: the proper end.
    while let Some(frame) = http2::in_time(stream.body.frame()).await {
        assert!(frame.unwrap().into_data().unwrap().is_empty());
    }
    let nothing = http2::send(&mut sender, "GET", "/topics/a", &[SSE, ("last-event-id", "1")], "").await;
    assert_eq!(nothing.status().as_u16(), 204);
    assert_eq!(http2::send(&mut sender, "POST", "/topics/a", &[], "x").await.status().as_u16(), 409);
    assert_eq!(http2::send(&mut sender, "POST", "/topics/other", &[], "y").await.status().as_u16(), 201);
    assert_eq!(other.event().await.data, "y");
}

/// How many events each topic of the race is given before it is closed.
const EVENTS: u64 = 12;
const FOLLOWERS: u64 = 6;

/// Follows to the end, dropping now and then; gives what came.
fn to_the_end(server: &TestServer, topic: &str, rng: &mut Rng) -> Vec<u64> {
    let (mut ids, mut cursor): (Vec<u64>, Option<u64>) = (Vec::new(), None);
    loop {
        let id = cursor.map(|id| id.to_string());
        let mut headers = vec![if rng.bool() { SSE } else { ("Accept", "*/*") }];
        headers.extend(id.as_deref().map(|id| ("Last-Event-ID", id)));
        let target = format!("/topics/{topic}?from=earliest");
        let Some(mut stream) = Stream::or_nothing(server.connect(), &target, &headers).unwrap() else { return ids };
        for _ in 0..rng.u64(1..6) {
            match stream.next() {
                None => {
                    assert_eq!(stream.end, Some(End::Proper));
                    return ids;
                }
                Some(event) => {
                    cursor = Some(event.id);
                    if !event.is_control() {
                        ids.push(event.id);
                    }
                }
            }
        }
    }
}

#[test]
fn whoever_comes_and_goes_while_it_is_closed_has_all_of_it() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        for round in 0..15 {
            let (topic, barrier) = (format!("r.{round}"), Barrier::new(usize::try_from(FOLLOWERS).unwrap() + 1));
            let (want, got) = thread::scope(|scope| {
                let followers: Vec<_> = (0..FOLLOWERS)
                    .map(|n| {
                        let (server, topic, barrier) = (&server, &topic, &barrier);
                        scope.spawn(move || {
                            let mut rng = Rng::with_seed(round * FOLLOWERS + n);
                            barrier.wait();
                            to_the_end(server, topic, &mut rng)
                        })
                    })
                    .collect();
                barrier.wait();
                let mut conn = server.connect();
                let mut want: Vec<u64> = Vec::new();
                for _ in 0..EVENTS - 1 {
                    want.push(
                        conn.ask("POST", &format!("/topics/{topic}"), &[], b"x").unwrap().json()["id"]
                            .as_u64()
                            .unwrap(),
                    );
                }
                // The last event and the close right behind it.
                conn.request("POST", &format!("/topics/{topic}"), &[], b"x").unwrap();
                conn.request("POST", &format!("/topics/{topic}/close"), &[], b"").unwrap();
                want.push(conn.answer(false).unwrap().json()["id"].as_u64().unwrap());
                assert_eq!(conn.answer(false).unwrap().status, 204);
                (want, followers.into_iter().map(|follower| follower.join().unwrap()).collect::<Vec<_>>())
            });
            for got in got {
                assert_eq!(got, want, "{topic}");
            }
        }
        let listed: Value = server.get("/topics?prefix=r.", &[]).json();
        assert!(listed["topics"].as_array().unwrap().iter().all(|topic| topic["closed"] == true));
    }
}
