//! What a subscriber asks for: the form, the beginning, the topics and types, the envelope.

use std::sync::mpsc::{self, TryRecvError};
use std::thread;

use serde_json::json;

use super::{LINES, PAGE, SSE, ids};
use crate::support::{End, TestServer};

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
