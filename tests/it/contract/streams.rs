//! Streams: their heads and frames, heartbeats, ends and gaps.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{LINES, PAGE, SSE, ids};
use crate::support::{Stream, TestServer};

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
