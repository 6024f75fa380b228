//! The contract, row by row: what is answered to what is asked rightly.

use std::sync::mpsc::{self, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{End, Stream, TestServer};

const SSE: (&str, &str) = ("Accept", "text/event-stream");
const LINES: (&str, &str) = ("Accept", "application/x-ndjson");
const PAGE: (&str, &str) = ("Accept", "application/json");

fn ids(page: &Value) -> Vec<u64> {
    page["events"].as_array().unwrap().iter().map(|event| event["id"].as_u64().unwrap()).collect()
}

#[test]
fn every_form_of_a_publish_is_answered_with_its_ids() {
    let server = TestServer::start(&[]);
    let post = |target: &str, content_type: Option<&str>, body: &str| {
        let headers: Vec<_> = content_type.map(|value| ("Content-Type", value)).into_iter().collect();
        let answer = server.ask("POST", target, &headers, body.as_bytes());
        assert_eq!((answer.status, answer.header("content-type")), (201, Some("application/json")), "{answer:?}");
        answer.json()
    };
    let text = "a\r\n\tb\0 é\u{1F30A}\n";
    assert_eq!(post("/topics/a", None, text), json!({"id": 1}));
    assert_eq!(post("/topics/a", Some("application/x-www-form-urlencoded"), "{\"not\" json"), json!({"id": 2}));
    assert_eq!(post("/topics/a?event=created&key=k%207", Some("text/plain"), ""), json!({"id": 3}));
    let spaced = " {\"n\" : 1.50e3 } ";
    assert_eq!(post("/topics/a", Some("Application/JSON; charset=utf-8"), spaced), json!({"id": 4}));
    let batch = "\n{\"data\":\"one\"}\r\n  \n{\"event\":\"t\",\"key\":\"k\",\"data\":{\"b\" : [1.0 , 2e400,\"x  y\"]}}\n{\"data\":null}";
    for (first, name) in ["application/x-ndjson", "application/ndjson", "application/jsonl"].into_iter().enumerate() {
        let first = 5 + 3 * first as u64;
        assert_eq!(post("/topics/b.c", Some(name), batch), json!({"first": first, "last": first + 2, "count": 3}));
    }
    assert_eq!(
        post("/topics/b", Some("application/x-ndjson"), "{\"data\":\"\"}"),
        json!({"first": 14, "last": 14, "count": 1})
    );
    let across = "{\"topic\":\"x.y\",\"data\":\"1\"}\n{\"data\":\"2\",\"topic\":\"z\",\"event\":\"message\"}\n";
    assert_eq!(post("/topics", Some("application/x-ndjson"), across), json!({"first": 15, "last": 16, "count": 2}));

    let got = server.everything("/events");
    assert_eq!(got.len(), 16);
    let without_time = |at: usize| {
        let mut event = got[at].clone();
        let time = event.as_object_mut().unwrap().remove("time").unwrap();
        let time = time.as_str().unwrap().to_owned();
        assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        event
    };
    assert_eq!(without_time(0), json!({"id": 1, "topic": "a", "data": text}));
    assert_eq!(without_time(2), json!({"id": 3, "topic": "a", "event": "created", "key": "k 7", "data": ""}));
    assert_eq!(without_time(3), json!({"id": 4, "topic": "a", "data": spaced}));
    assert_eq!(without_time(4), json!({"id": 5, "topic": "b.c", "data": "one"}));
    let compact = "{\"b\":[1.0,2e400,\"x  y\"]}";
    assert_eq!(without_time(5), json!({"id": 6, "topic": "b.c", "event": "t", "key": "k", "data": compact}));
    assert_eq!(without_time(6)["data"], "null");
    assert_eq!(without_time(14), json!({"id": 15, "topic": "x.y", "data": "1"}));
    assert_eq!(without_time(15), json!({"id": 16, "topic": "z", "data": "2"}));
    let times: Vec<_> = got.iter().map(|event| event["time"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn a_publish_over_one_connection_after_another() {
    let server = TestServer::start(&[]);
    let mut conn = server.connect();
    for id in 1..=20 {
        let answer = conn.ask("POST", "/topics/a", &[], b"x").unwrap();
        assert_eq!(answer.json(), json!({"id": id}));
    }
    // Two at once, and a body in chunks.
    conn.request("POST", "/topics/a", &[], b"x").unwrap();
    conn.request("POST", "/topics/a", &[], b"y").unwrap();
    assert_eq!(conn.answer(false).unwrap().json(), json!({"id": 21}));
    assert_eq!(conn.answer(false).unwrap().json(), json!({"id": 22}));
    conn.send(
        "POST /topics/a HTTP/1.1\r\nHost: [::1]:9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
    )
    .unwrap();
    assert_eq!(conn.answer(false).unwrap().json(), json!({"id": 23}));
    // What curl does before it sends a large body.
    conn.send("POST /topics/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    assert_eq!(conn.head().unwrap().status, 100);
    conn.send("de").unwrap();
    assert_eq!(conn.answer(false).unwrap().json(), json!({"id": 24}));
    let data: Vec<_> = server.everything("/topics/a").into_iter().map(|event| event["data"].clone()).collect();
    assert_eq!(data[22..], [json!("abc"), json!("de")]);
}

#[test]
fn a_stream_has_its_head_its_frames_and_its_ids() {
    let server = TestServer::start(&[]);
    server.publish("a?event=t", "one\ntwo\r\nthree\rfour\n");
    let mut stream = server.stream("/topics/a?from=earliest", &[SSE]).keep();
    let head = &stream.head;
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    assert_eq!(head.header("cache-control"), Some("no-store, no-transform"));
    assert_eq!(head.header("x-accel-buffering"), Some("no"));
    for (name, value) in [("tidelog-earliest", "1"), ("tidelog-tail", "1"), ("tidelog-last", "1")] {
        assert_eq!(head.header(name), Some(value), "{name}");
    }
    let log = head.header("tidelog-log").unwrap().to_owned();
    assert!(!log.is_empty());
    assert_eq!(stream.event().data, "one\ntwo\nthree\nfour\n");
    let live = stream.control("tidelog.live");
    assert_eq!((live.id, live.json()), (1, json!({"tail": 1, "log": log})));
    server.publish("a", "");
    server.publish("b", "not this one");
    server.publish("a?event=message", "x");
    let (second, third) = (stream.event(), stream.event());
    assert_eq!((second.id, second.event.as_str(), second.data.as_str()), (2, "", ""));
    assert_eq!((third.id, third.event.as_str(), third.data.as_str()), (4, "", "x"));
    let raw = String::from_utf8(stream.raw.clone().unwrap()).unwrap();
    let (retry, frames) = raw.split_once('\n').unwrap();
    let retry: u64 = retry.strip_prefix("retry: ").unwrap().parse().unwrap();
    assert!((1000..=3000).contains(&retry), "{retry}");
    let first = "id: 1\nevent: t\ndata: one\ndata: two\ndata: three\ndata: four\ndata: \n\n";
    let live = format!("id: 1\nevent: tidelog.live\ndata: {{\"tail\":1,\"log\":\"{log}\"}}\n\n");
    assert_eq!(frames, format!("{first}{live}id: 2\ndata: \n\nid: 4\ndata: x\n\n"));
}

#[test]
fn json_lines_say_the_same_as_a_stream() {
    let server = TestServer::start(&["heartbeat=100ms"]);
    server.publish("a?event=t&key=k", "x\r\ny");
    let mut stream = server.stream("/topics/a?from=earliest", &[LINES]).keep();
    assert_eq!(stream.head.header("content-type"), Some("application/x-ndjson"));
    let mut event = stream.line();
    assert!(event.as_object_mut().unwrap().remove("time").is_some());
    assert_eq!(event, json!({"id": 1, "topic": "a", "event": "t", "key": "k", "data": "x\r\ny"}));
    let live = stream.line();
    let log = stream.head.header("tidelog-log").unwrap();
    assert_eq!(live, json!({"event": "tidelog.live", "after": 1, "data": {"tail": 1, "log": log}}));
    while !stream.raw.as_deref().unwrap().ends_with(b"\n\n") {
        stream.bytes().unwrap();
    }
    server.publish("b", "not this one");
    let live = stream.line();
    assert_eq!((&live["event"], &live["after"], live.get("id")), (&json!("tidelog.live"), &json!(2), None));
    let raw = String::from_utf8(stream.raw.unwrap()).unwrap();
    assert!(!raw.contains("retry"), "{raw}");
}

#[test]
fn accept_chooses_the_form() {
    let server = TestServer::start(&[]);
    let (sse, lines, page) = ("text/event-stream", "application/x-ndjson", "application/json");
    for (accept, form) in [
        (None, sse),
        (Some(""), sse),
        (Some("*/*"), sse),
        (Some("text/*"), sse),
        (Some("application/*"), lines),
        (Some("application/json"), page),
        (Some("text/event-stream;q=0.5, application/json"), page),
        (Some("application/json, text/event-stream"), sse),
        (Some("*/*, application/json"), page),
        (Some("*/*;q=0.9, application/x-ndjson;q=0.1"), sse),
        (Some("text/event-stream;q=0, */*"), lines),
        (Some("text/html, APPLICATION/JSON;Q=0.3"), page),
    ] {
        let headers: Vec<_> = accept.map(|value| ("Accept", value)).into_iter().collect();
        let answer = server.ask("HEAD", "/topics/a", &headers, b"");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some(form)), "{accept:?}");
    }
}

#[test]
fn a_beginning_is_said_in_every_way_and_the_first_wins() {
    let server = TestServer::start(&[]);
    for n in 1..=10 {
        server.publish(if n % 2 == 0 { "even" } else { "odd" }, &n.to_string());
    }
    let first = |target: &str, header: Option<&str>| {
        let mut headers = vec![SSE];
        headers.extend(header.map(|id| ("Last-Event-ID", id)));
        let mut stream = server.stream(target, &headers);
        let event = stream.next().unwrap();
        (event.id, event.event)
    };
    let event = |id: u64| (id, String::new());
    let live = (10, "tidelog.live".to_owned());
    let time = server.everything("/topics/odd")[0]["time"].as_str().unwrap().to_owned();
    for (query, header, want) in [
        ("", None, live.clone()),
        ("", Some(""), live.clone()),
        ("", Some("7"), event(8)),
        ("?last_event_id=3&from=2", Some("7"), event(8)),
        ("?last_event_id=3&from=2", Some(""), event(4)),
        ("?lastEventId=3&from=2", None, event(4)),
        ("?last_event_id=&lastEventId=&from=2", None, event(2)),
        ("?last_event_id=&from=", None, live.clone()),
        ("?from=earliest", None, event(1)),
        ("?from=latest", None, live.clone()),
        ("?from=10", None, event(10)),
        ("?from=11", None, live.clone()),
        ("?last_event_id=0", None, event(1)),
        ("", Some("0"), event(1)),
        ("", Some("10"), live.clone()),
        ("?from=-3", None, event(8)),
        ("?from=-0", None, live.clone()),
        ("?from=-1000", None, event(1)),
        ("?from=15m", None, event(1)),
        ("?from=0s", None, live.clone()),
        ("?from=2000-01-01T00:00:00Z", None, event(1)),
        ("?from=2000-01-01T00:00:00+01:00", None, event(1)),
        ("?from=2000-01-01T00:00:00%2B01:00", None, event(1)),
        ("?from=2999-01-01T00:00:00Z", None, live.clone()),
        (&format!("?from={time}"), None, event(1)),
    ] {
        assert_eq!(first(&format!("/events{query}"), header), want, "{query} {header:?}");
    }
    assert_eq!(first("/topics/odd?from=-2", None), event(7));
    assert_eq!(first("/events?topic=odd&topic=even&from=-2", None), event(9));
    assert_eq!(first("/events?topic=*&from=4", None), event(4));
    assert_eq!(first("/topics/od%64?from=8", None), event(9));
}

#[test]
fn patterns_and_types_choose_what_comes() {
    let server = TestServer::start(&[]);
    let batch = ["a", "a.b", "a.b.c", "x.b", "x"].map(|topic| {
        format!("{{\"topic\":\"{topic}\",\"data\":\"\"}}\n{{\"topic\":\"{topic}\",\"event\":\"t\",\"data\":\"\"}}")
    });
    server.publish_lines("/topics", &batch.join("\n"));
    for (target, want) in [
        ("/events", (1..=10).collect::<Vec<_>>()),
        ("/topics/**", (1..=10).collect()),
        ("/topics/*", vec![1, 2, 9, 10]),
        ("/topics/a.*", vec![3, 4]),
        ("/topics/a.**", vec![3, 4, 5, 6]),
        ("/topics/*.b", vec![3, 4, 7, 8]),
        ("/topics/%2A.b", vec![3, 4, 7, 8]),
        ("/events?topic=a&topic=x.*", vec![1, 2, 7, 8]),
        ("/events?topic=a&topic=*", vec![1, 2, 9, 10]),
        ("/events?event=t", vec![2, 4, 6, 8, 10]),
        ("/topics/a?event=message", vec![1]),
        ("/topics/a?event=t&event=message", vec![1, 2]),
        ("/topics/a?event=other", vec![]),
    ] {
        let got: Vec<_> = server.everything(target).iter().map(|event| event["id"].as_u64().unwrap()).collect();
        assert_eq!(got, want, "{target}");
        let mut page = server.get(target, &[PAGE]).json();
        assert_eq!(ids(&page), want, "{target}");
        assert_eq!(page["next"].take(), json!(11), "{target}");
    }
}

#[test]
fn an_envelope_has_the_whole_event() {
    let server = TestServer::start(&[]);
    server.publish("a.b?event=t&key=k", "x\ny");
    let mut stream = server.stream("/topics/**?from=earliest&envelope=json", &[SSE]);
    let event = stream.next().unwrap();
    assert_eq!((event.id, event.event.as_str()), (1, "t"));
    let mut object = event.json();
    assert!(object.as_object_mut().unwrap().remove("time").is_some());
    assert_eq!(object, json!({"id": 1, "topic": "a.b", "event": "t", "key": "k", "data": "x\ny"}));
    assert_eq!(stream.control("tidelog.live").json()["tail"], 1);
}

#[test]
fn pages_lead_from_one_to_the_next() {
    let server = TestServer::start(&[]);
    let lines: String = (1..=250).map(|n| format!("{{\"topic\":\"{}\",\"data\":{n}}}\n", ["a", "b"][n % 2])).collect();
    server.publish_lines("/topics", &lines);
    let (mut from, mut got) = (1, Vec::new());
    loop {
        let answer = server.get(&format!("/topics/a?from={from}&limit=30"), &[PAGE]);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        for (name, value) in [("tidelog-earliest", "1"), ("tidelog-tail", "250"), ("tidelog-last", "250")] {
            assert_eq!(answer.header(name), Some(value), "{name}");
        }
        let page = answer.json();
        assert_eq!((&page["earliest"], &page["tail"]), (&json!(1), &json!(250)));
        assert_eq!(page["log"], answer.header("tidelog-log").unwrap());
        assert!(page.get("gap").is_none() && page.get("closed").is_none(), "{page}");
        let found = ids(&page);
        from = page["next"].as_u64().unwrap();
        if found.is_empty() {
            break;
        }
        assert!(found.len() <= 30);
        got.extend(found);
    }
    assert_eq!(from, 251);
    assert_eq!(got, (1..=250).filter(|n| n % 2 == 0).collect::<Vec<_>>());
    assert_eq!(ids(&server.get("/events", &[PAGE]).json()).len(), 100, "the default");
    assert_eq!(ids(&server.get("/events?limit=1000", &[PAGE]).json()).len(), 250);
    assert_eq!(ids(&server.get("/events?from=latest", &[PAGE]).json()), [0; 0]);
    assert_eq!(ids(&server.get("/events?from=-2", &[PAGE]).json()), [249, 250]);
    assert_eq!(ids(&server.get("/events?limit=2", &[PAGE, ("Last-Event-ID", "7")]).json()), [8, 9]);
}

#[test]
fn a_page_waits_for_an_event_or_for_its_time() {
    let server = TestServer::start(&[]);
    server.publish("a", "1");
    let page = server.get("/topics/a?from=2&wait=0s", &[PAGE]).json();
    assert_eq!((ids(&page), &page["next"]), (vec![], &json!(2)));
    let begun = Instant::now();
    let page = server.get("/topics/a?from=2&wait=300ms", &[PAGE]).json();
    assert_eq!((ids(&page), &page["next"]), (vec![], &json!(2)));
    assert!((Duration::from_millis(290)..Duration::from_secs(10)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    // One that is there is not waited for.
    let begun = Instant::now();
    assert_eq!(ids(&server.get("/topics/a?wait=60s", &[PAGE]).json()), [1]);
    let page = thread::scope(|scope| {
        let waits = scope.spawn(|| server.get("/topics/a?from=latest&wait=60s", &[PAGE]).json());
        // Not that one's topic; and it is there when the list of topics knows of it.
        let listed = || server.get("/topics", &[]).json()["topics"][0]["subscribers"] == 1;
        crate::support::until("the page waits", || listed().then_some(()));
        server.publish("b", "2");
        server.publish("a", "3");
        waits.join().unwrap()
    });
    assert_eq!((ids(&page), &page["next"], &page["tail"]), (vec![3], &json!(4), &json!(3)));
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn follow_false_ends_at_the_tail_and_says_204_when_nothing_is_owed() {
    let server = TestServer::start(&[]);
    for topic in ["a", "a", "b"] {
        server.publish(topic, "x");
    }
    let text = server.stream("/topics/a?from=earliest&follow=false", &[SSE]).rest().expect("a proper end");
    assert!(text.contains("id: 1\ndata: x\n\nid: 2\ndata: x\n\n"), "{text}");
    assert!(text.contains("event: tidelog.live\ndata: {\"tail\":3,"), "{text}");
    let asked = |target: &str, id: Option<&str>| {
        let mut headers = vec![SSE];
        headers.extend(id.map(|id| ("Last-Event-ID", id)));
        server.get(target, &headers)
    };
    assert_eq!(asked("/topics/a?follow=false", Some("1")).status, 200);
    for id in ["2", "3"] {
        let answer = asked("/topics/a?follow=false", Some(id));
        assert_eq!((answer.status, answer.body.as_str()), (204, ""), "{id}");
        assert_eq!(answer.header("tidelog-tail"), Some("3"));
    }
    assert_eq!(server.get("/topics/a?follow=false", &[LINES, ("Last-Event-ID", "3")]).status, 204);
    assert_eq!(asked("/topics/a?follow=false&event=t", Some("0")).status, 204, "none of that type");
    assert_eq!(asked("/topics/a?follow=false&last_event_id=3", None).status, 200, "only a header comes from a retry");
    assert_eq!(asked("/topics/a?follow=false", Some("9")).status, 200, "a gap is owed");
    let mut stream = server.stream("/topics/a?follow=true", &[SSE, ("Last-Event-ID", "3")]);
    assert_eq!(stream.control("tidelog.live").id, 3);
}

#[test]
fn head_says_what_get_would() {
    let server = TestServer::start(&[]);
    for topic in ["a", "b", "b"] {
        server.publish(topic, "x");
    }
    for (target, accept) in
        [("/topics/a", SSE), ("/topics/a", LINES), ("/events", SSE), ("/events?topic=a", SSE), ("/topics/*", SSE)]
    {
        let head = server.ask("HEAD", target, &[accept], b"");
        let get = server.stream(target, &[accept]).head;
        assert_eq!(head.status, 200);
        let names = [
            "content-type",
            "cache-control",
            "x-accel-buffering",
            "tidelog-earliest",
            "tidelog-tail",
            "tidelog-log",
            "tidelog-last",
        ];
        for name in names {
            assert_eq!(head.header(name), get.header(name), "{target} {name}");
        }
        let single = target != "/events" && target != "/topics/*";
        assert_eq!(get.header("tidelog-last"), single.then_some("1"), "{target}");
    }
    assert_eq!(server.ask("HEAD", "/topics/none", &[], b"").header("tidelog-last"), Some("0"));
    for target in ["/healthz", "/readyz", "/metrics", "/openapi.json", "/", "/topics"] {
        let (head, get) = (server.ask("HEAD", target, &[], b""), server.get(target, &[]));
        assert_eq!((head.status, get.status, head.body.as_str()), (200, 200, ""), "{target}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{target}");
    }
    // A HEAD has no body on the wire: the next answer follows at once.
    let mut conn = server.connect();
    assert_eq!(conn.ask("HEAD", "/events", &[PAGE], b"").unwrap().status, 200);
    assert_eq!(conn.ask("GET", "/healthz", &[], b"").unwrap().status, 200);
}

#[test]
fn quiet_streams_are_sent_heartbeats_and_where_they_are() {
    let server = TestServer::start(&["heartbeat=100ms", "retry=1s"]);
    let mut stream = server.stream("/topics/a", &[SSE]).keep();
    assert_eq!(stream.control("tidelog.live").id, 0);
    let beats = |stream: &mut Stream, n: usize| {
        let from = stream.raw.as_ref().unwrap().len();
        while stream.raw.as_ref().unwrap().len() < from + 2 * n {
            stream.bytes().expect("the stream goes on");
        }
        String::from_utf8(stream.raw.as_ref().unwrap()[from..].to_vec()).unwrap()
    };
    let begun = Instant::now();
    assert_eq!(beats(&mut stream, 3), ":\n:\n:\n");
    assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
    server.publish("b", "x");
    let live = stream.control("tidelog.live");
    assert_eq!((live.id, &live.json()["tail"]), (1, &json!(1)));
    assert_eq!(beats(&mut stream, 2), ":\n:\n", "once is enough");
    // What was learnt so is where it resumes.
    assert_eq!(stream.decoder.last_event_id(), "1");
    server.publish("a", "y");
    assert_eq!(stream.event().id, 2);
}

#[test]
fn the_retry_is_jittered_by_half() {
    let server = TestServer::start(&["retry=1s"]);
    let mut values: Vec<u64> = (0..40)
        .map(|_| {
            let mut stream = server.stream("/topics/a", &[SSE]);
            stream.control("tidelog.live");
            u64::try_from(stream.decoder.retry().unwrap().as_millis()).unwrap()
        })
        .collect();
    assert!(values.iter().all(|retry| (500..=1500).contains(retry)), "{values:?}");
    values.sort_unstable();
    values.dedup();
    assert!(values.len() > 20 && values.last().unwrap() - values[0] > 300, "{values:?}");
}

#[test]
fn a_gap_is_told_before_the_next_event() {
    let server = TestServer::start(&[]);
    for n in 1..=10 {
        server.publish(if n <= 8 { "a" } else { "b" }, "x");
    }
    let mut running = server.stream("/topics/a?from=2", &[SSE]);
    assert_eq!(running.event().id, 2);
    assert_eq!(server.ask("DELETE", "/topics/a?before=6", &[], b"").status, 204);
    let open = |target: &str, id: Option<&str>| {
        let mut headers = vec![SSE];
        headers.extend(id.map(|id| ("Last-Event-ID", id)));
        server.stream(target, &headers)
    };
    for (query, id, requested) in
        [("", Some("2"), 2), ("?last_event_id=2", None, 2), ("?from=3", None, 2), ("", Some("0"), 0)]
    {
        let mut stream = open(&format!("/topics/a{query}"), id);
        let gap = stream.control("tidelog.gap");
        assert_eq!(gap.id, requested, "{query} {id:?}: a drop right after it is told again");
        assert_eq!(gap.json(), json!({"requested": requested, "earliest": 6, "reason": "trimmed"}));
        assert_eq!(stream.next().unwrap().id, 6);
    }
    for (query, id, first) in
        [("", Some("5"), 6), ("?from=6", None, 6), ("?from=earliest", None, 6), ("?from=-8", None, 6)]
    {
        let mut stream = open(&format!("/topics/a{query}"), id);
        assert_eq!(stream.next().unwrap(), stream_event(first), "{query} {id:?}");
    }
    // Other topics are as they were.
    assert_eq!(open("/topics/b", Some("2")).next().unwrap().id, 9);
    // An id of another log.
    let mut ahead = open("/topics/a", Some("999"));
    let gap = ahead.control("tidelog.gap");
    assert_eq!((gap.id, &gap.json()["requested"], &gap.json()["reason"]), (0, &json!(999), &json!("ahead")));
    assert_eq!(ahead.next().unwrap().id, 6, "as from the earliest");
    let page = server.get("/topics/a", &[PAGE, ("Last-Event-ID", "2")]).json();
    assert_eq!(page["gap"], json!({"requested": 2, "earliest": 6, "reason": "trimmed"}));
    assert_eq!(ids(&page), [6, 7, 8]);
    let page = server.get("/events?from=998", &[PAGE]).json();
    assert_eq!((&page["gap"]["reason"], &page["gap"]["requested"]), (&json!("ahead"), &json!(997)));
    assert_eq!(ids(&page), [6, 7, 8, 9, 10]);
    let mut lines = server.stream("/topics/a", &[LINES, ("Last-Event-ID", "2")]);
    let want =
        json!({"event": "tidelog.gap", "after": 2, "data": {"requested": 2, "earliest": 6, "reason": "trimmed"}});
    assert_eq!(lines.line(), want);
    // Everything gone, and the one that was running when it went.
    assert_eq!(server.ask("DELETE", "/topics/a", &[], b"").status, 204);
    let mut emptied = open("/topics/a", Some("7"));
    assert_eq!(emptied.control("tidelog.gap").json()["requested"], 7);
    assert_eq!(emptied.control("tidelog.live").id, 10);
    while let Some(event) = running.next() {
        if event.id == 10 {
            break;
        }
    }
    assert_eq!(server.ask("HEAD", "/topics/a", &[], b"").header("tidelog-last"), Some("0"));
    assert_eq!(server.publish("a", "y"), 11);
    assert_eq!(running.event().id, 11);
}

fn stream_event(id: u64) -> crate::support::Event {
    crate::support::Event { id, event: String::new(), data: "x".into() }
}

#[test]
fn topics_are_listed_in_order_and_page_by_page() {
    let server = TestServer::start(&[]);
    for topic in ["b", "a.1", "a.2", "a.1", "c", "a.3"] {
        server.publish(topic, "xy");
    }
    let mut watching = server.stream("/topics/a.*", &[SSE]);
    watching.control("tidelog.live");
    let list = server.get("/topics", &[]).json();
    let names = |list: &Value| -> Vec<String> {
        list["topics"].as_array().unwrap().iter().map(|topic| topic["topic"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&list), ["a.1", "a.2", "a.3", "b", "c"]);
    assert!(list["next"].is_null());
    let first = &list["topics"][0];
    for (name, value) in [
        ("earliest", json!(2)),
        ("last", json!(4)),
        ("events", json!(2)),
        ("subscribers", json!(1)),
        ("closed", json!(false)),
    ] {
        assert_eq!(first[name], value, "{name}");
    }
    assert!(first["bytes"].as_u64().unwrap() >= 4);
    assert_eq!(list["topics"][3]["subscribers"], 0);
    let page = server.get("/topics?prefix=a.&limit=2", &[]).json();
    assert_eq!((names(&page), &page["next"]), (vec!["a.1".into(), "a.2".into()], &json!("a.2")));
    let page = server.get("/topics?prefix=a.&limit=2&after=a.2", &[]).json();
    assert_eq!((names(&page), &page["next"]), (vec!["a.3".into()], &Value::Null));
    assert_eq!(names(&server.get("/topics?after=a.9&limit=1", &[]).json()), ["b"]);
    assert_eq!(names(&server.get("/topics?prefix=zzz", &[]).json()), [""; 0]);
}

#[test]
fn events_are_deleted_all_or_before_an_id() {
    let server = TestServer::start(&[]);
    for topic in ["a", "b", "a", "a"] {
        server.publish(topic, "x");
    }
    let got = |target: &str| server.everything(target).iter().map(|e| e["id"].as_u64().unwrap()).collect::<Vec<_>>();
    let delete = |target: &str| server.ask("DELETE", target, &[], b"").status;
    assert_eq!(delete("/topics/a?before=3"), 204);
    assert_eq!(got("/events"), [2, 3, 4]);
    assert_eq!(delete("/topics/a?before=1"), 204, "a floor does not sink");
    assert_eq!(got("/topics/a"), [3, 4]);
    let listed = server.get("/topics?prefix=a", &[]).json()["topics"][0].clone();
    assert_eq!((&listed["earliest"], &listed["last"], &listed["events"]), (&json!(3), &json!(4), &json!(2)));
    assert_eq!(delete("/topics/a"), 204);
    assert_eq!(got("/events"), [2]);
    assert_eq!(delete("/topics/never"), 204);
    assert_eq!(delete("/topics/b?before=9007199254740991"), 204);
    assert_eq!(got("/events"), [0; 0]);
    let head = server.ask("HEAD", "/events", &[], b"");
    assert_eq!((head.header("tidelog-earliest"), head.header("tidelog-tail")), (Some("5"), Some("4")));
    assert_eq!(server.publish("a", "y"), 5, "ids go on");
    assert_eq!(got("/events"), [5]);
}

#[test]
fn a_topic_has_a_retention_of_its_own() {
    let server = TestServer::start(&[]);
    let ask = |method: &str, body: &str| server.ask(method, "/topics/a/retention", &[], body.as_bytes());
    assert_eq!((ask("GET", "").status, ask("GET", "").problem().as_str()), (404, "not_found"));
    assert_eq!(ask("PUT", "{\"max_events\":3,\"max_age\":\"7d\",\"max_bytes\":\"1MiB\"}").status, 204);
    assert_eq!(ask("GET", "").json(), json!({"max_events": 3, "max_age": "7d", "max_bytes": 1_048_576}));
    for _ in 0..10 {
        server.publish("a", "x");
        server.publish("b", "x");
    }
    let begun = Instant::now();
    crate::support::until("retention holds", || (server.everything("/topics/a").len() <= 3).then_some(()));
    assert!(begun.elapsed() < Duration::from_secs(10));
    let left: Vec<_> = server.everything("/topics/a").iter().map(|e| e["id"].as_u64().unwrap()).collect();
    assert_eq!(left, [15, 17, 19]);
    assert_eq!(server.everything("/topics/b").len(), 10);
    assert_eq!(ask("DELETE", "").status, 204);
    assert_eq!(ask("DELETE", "").status, 204);
    assert_eq!(ask("GET", "").status, 404);
}

#[test]
fn the_logs_retention_is_told_to_who_was_overtaken() {
    let server = TestServer::start(&["retention.max_events=5"]);
    let lines = "{\"data\":\"x\"}\n".repeat(50);
    server.publish_lines("/topics/a", &lines);
    crate::support::until("retention holds", || {
        let head = server.ask("HEAD", "/events", &[], b"");
        (head.header("tidelog-earliest").unwrap().parse::<u64>().unwrap() >= 46).then_some(())
    });
    let mut stream = server.stream("/topics/a", &[SSE, ("Last-Event-ID", "10")]);
    let gap = stream.control("tidelog.gap");
    assert_eq!((gap.id, gap.json()), (10, json!({"requested": 10, "earliest": 46, "reason": "trimmed"})));
    assert_eq!(stream.event().id, 46);
}

#[test]
fn origins_are_judged_and_preflights_answered() {
    let server = TestServer::start(&["cors.allow_origins=https://app.example"]);
    let port = server.addr.port();
    let own = format!("localhost:{port}");
    for origin in [format!("http://{own}"), format!("https://{own}")] {
        let answer = server.ask("POST", "/topics/a", &[("Host", &own), ("Origin", &origin)], b"x");
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (201, None), "{origin}");
    }
    let allowed = ("Origin", "https://app.example");
    let answer = server.ask("POST", "/topics/a", &[allowed], b"x");
    assert_eq!(answer.status, 201);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(answer.header("vary"), Some("Origin"));
    let exposed = answer.header("access-control-expose-headers").unwrap();
    for name in
        ["Tidelog-Earliest", "Tidelog-Tail", "Tidelog-Log", "Tidelog-Last", "Last-Event-ID", "Idempotency-Replayed"]
    {
        assert!(exposed.contains(name), "{exposed}");
    }
    assert_eq!(
        server.stream("/topics/a", &[allowed]).head.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    let problem = server.get("/topics/a..b", &[allowed]);
    assert_eq!((problem.status, problem.header("access-control-allow-origin")), (400, Some("https://app.example")));
    let preflight = |origin: &str| {
        let headers = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "DELETE"),
            ("Access-Control-Request-Headers", "content-type, last-event-id"),
        ];
        server.ask("OPTIONS", "/topics/a", &headers, b"")
    };
    let answer = preflight("https://app.example");
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    let methods = answer.header("access-control-allow-methods").unwrap();
    assert!(["GET", "POST", "DELETE"].iter().all(|method| methods.contains(method)), "{methods}");
    let headers = answer.header("access-control-allow-headers").unwrap().to_ascii_lowercase();
    for name in ["content-type", "last-event-id", "idempotency-key", "if-match", "if-none-match", "cache-control"] {
        assert!(headers.contains(name), "{headers}");
    }
    assert_eq!(preflight("https://evil.example").status, 403);
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:8080"] {
        assert_eq!(server.get("/healthz", &[("Host", host)]).status, 200, "{host}");
    }
    let options = server.ask("OPTIONS", "/topics/a/retention", &[], b"");
    assert_eq!((options.status, options.header("allow")), (204, Some("GET, HEAD, PUT, DELETE, OPTIONS")));
}

#[test]
fn operators_see_health_counts_and_the_description() {
    let server = TestServer::start(&[]);
    server.publish("a", "four");
    let watching = server.stream("/topics/a", &[SSE]);
    assert_eq!(server.get("/healthz", &[]).status, 200);
    assert_eq!(server.get("/readyz", &[]).status, 200);
    let metrics = server.get("/metrics", &[]).body;
    for line in [
        "tidelog_events_appended_total 1",
        "tidelog_bytes_appended_total 4",
        "tidelog_tail 1",
        "tidelog_subscribers 1",
        "tidelog_log_writable 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    drop(watching);
    let answer = server.get("/openapi.json", &[]);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.json()["openapi"].is_string() && answer.json()["paths"]["/topics/{topic}"].is_object());
    assert_eq!(server.get("/", &[]).header("content-type"), Some("text/html; charset=utf-8"));
    assert!(server.said().is_empty() || !server.said().contains("panicked"));
}

#[test]
fn latest_is_the_tail_of_the_head() {
    let server = TestServer::start(&[]);
    thread::scope(|scope| {
        let (stop, stopped) = mpsc::channel::<()>();
        let publishes = scope.spawn({
            let server = &server;
            move || {
                let mut conn = server.connect();
                while stopped.try_recv() == Err(TryRecvError::Empty) {
                    conn.ask("POST", "/topics/a", &[], b"x").unwrap();
                }
            }
        });
        for _ in 0..30 {
            let mut stream = server.stream("/topics/a", &[SSE]);
            let tail: u64 = stream.head.header("tidelog-tail").unwrap().parse().unwrap();
            let last: u64 = stream.head.header("tidelog-last").unwrap().parse().unwrap();
            assert!(last <= tail);
            for id in tail + 1..tail + 4 {
                assert_eq!(stream.event().id, id);
            }
            stream.shutdown();
            assert!(stream.end != Some(End::Proper));
        }
        // What the sequencer has just written is in the store a moment before it is the tail.
        for _ in 0..5_000 {
            let head = server.ask("HEAD", "/topics/a", &[SSE], b"");
            let number = |name: &str| head.header(name).unwrap().parse::<u64>().unwrap();
            let (last, tail) = (number("tidelog-last"), number("tidelog-tail"));
            assert!(last <= tail, "the newest event {last} lies beyond the tail {tail}");
        }
        drop(stop);
        publishes.join().unwrap();
    });
}
