//! After a gap a stream whose URL asks for a bundle is sent it again, so that its client heals by itself.

use serde_json::{Value, json};

use super::{LINES, SSE, WAYS, delete, entries, keep, state};
use crate::support::{Conn, End, Event, Stream, TestServer};

/// Each an eighth of a MiB, and all of them more than sockets hold.
const BULK_BYTES: usize = 128 << 10;
const BULK_EVENTS: usize = 256;

/// A stream that is read slowly, on a connection that holds little.
fn narrow(server: &TestServer, target: &str, accept: (&str, &str)) -> Stream {
    Stream::over(Conn::connect_narrow(server.addr, 16 << 10).unwrap(), target, &[accept]).unwrap()
}

fn publish_bulk(server: &TestServer) -> u64 {
    let mut conn = server.connect();
    let data = "x".repeat(BULK_BYTES);
    let mut last = 0;
    for _ in 0..BULK_EVENTS {
        last = conn.ask("POST", "/topics/a?key=bulk", &[], data.as_bytes()).unwrap().json()["id"].as_u64().unwrap();
    }
    last
}

/// Reads events, which ascend from after `cursor`, up to what is none of them; gives it and where it came.
fn up_to_control(stream: &mut Stream, mut cursor: u64) -> (u64, Event) {
    loop {
        let event = stream.next().expect("the stream goes on");
        match event.event.as_str() {
            "" => assert_eq!(event.id, cursor + 1, "nothing is left out before it is told"),
            // It may have been at the edge between two publishes.
            "tidelog.live" => assert_eq!(event.id, cursor),
            _ => return (cursor, event),
        }
        cursor = event.id;
    }
}

fn is_gap(event: &Event, cursor: u64, earliest: u64) {
    assert_eq!((event.event.as_str(), event.id), ("tidelog.gap", cursor), "{event:?}");
    assert_eq!(event.json(), json!({"requested": cursor, "earliest": earliest, "reason": "trimmed"}));
}

#[test]
fn a_running_stream_that_a_trim_overtakes_is_told_and_given_the_state() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        server.publish("a?key=1", "one");
        server.publish("a?key=2", "two");
        let mut stream = narrow(&server, "/topics/a?from=state", SSE);
        let mut plain = narrow(&server, "/topics/a", SSE);
        let (begun, live) = entries(&mut stream);
        assert_eq!((begun.len(), live.id, plain.control("tidelog.live").id), (2, 2, 2));
        let last = publish_bulk(&server);
        server.publish("a?key=2", "");
        server.publish("a?key=3", "three");
        delete(&server, &format!("a?before={}", last + 2));

        let (cursor, gap) = up_to_control(&mut stream, 2);
        assert!(cursor < last, "the socket held all of it");
        is_gap(&gap, cursor, last + 2);
        let (healed, live) = entries(&mut stream);
        assert_eq!((last + 2, &healed), (state(&server, "a").0, &state(&server, "a").1));
        let keys: Vec<_> = healed.keys().map(|(_, key)| key.as_str()).collect();
        assert_eq!(keys, ["1", "3", "bulk"]);
        assert_eq!(
            (live.event.as_str(), live.id),
            ("tidelog.live", last + 2),
            "what the state holds does not come again"
        );
        let next = server.publish("a", "next");
        assert_eq!(stream.event(), Event { id: next, event: String::new(), data: "next".into() });
        // Who did not ask for it is told, and given what is left.
        let (cursor, gap) = up_to_control(&mut plain, 2);
        is_gap(&gap, cursor, last + 2);
        assert_eq!((plain.next().unwrap().id, plain.event().id), (last + 2, next));
    }
}

#[test]
fn a_running_stream_that_a_trim_overtakes_is_told_and_given_the_snapshot() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        server.publish("a", "one");
        assert_eq!(keep(&server, "a", 1, "at 1").status, 204);
        let mut stream = narrow(&server, "/topics/a?from=snapshot", LINES);
        assert_eq!(stream.line(), json!({"event": "tidelog.snapshot", "after": 1, "data": "at 1"}));
        assert_eq!(stream.line()["event"], "tidelog.live");
        let last = publish_bulk(&server);
        assert_eq!(keep(&server, "a", last, "at last").status, 204);
        for _ in 0..3 {
            server.publish("a", "after it");
        }
        delete(&server, &format!("a?before={}", last + 1));
        let mut cursor = 1;
        let gap = loop {
            let line = stream.line();
            match line.get("id").map(|id| id.as_u64().unwrap()) {
                Some(id) => assert_eq!(id, cursor + 1),
                None if line["event"] == "tidelog.live" => {}
                None => break line,
            }
            cursor = line["id"].as_u64().unwrap_or(cursor);
        };
        assert!(cursor < last, "the socket held all of it");
        let data = json!({"requested": cursor, "earliest": last + 1, "reason": "trimmed"});
        assert_eq!(gap, json!({"event": "tidelog.gap", "after": cursor, "data": data}));
        assert_eq!(stream.line(), json!({"event": "tidelog.snapshot", "after": last, "data": "at last"}));
        for id in last + 1..=last + 3 {
            assert_eq!(stream.line()["id"], id);
        }
        let live = stream.line();
        assert_eq!((&live["event"], &live["after"]), (&json!("tidelog.live"), &json!(last + 3)));
        let next = server.publish("a", "next");
        assert_eq!(stream.line()["id"], next);
    }
}

#[test]
fn a_client_that_comes_back_below_the_floor_is_told_and_given_the_bundle() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        for n in 1..=10 {
            server.publish(&format!("a?key={n}"), "x");
        }
        assert_eq!(keep(&server, "a", 8, "at 8").status, 204);
        delete(&server, "a?before=6");
        let whole = state(&server, "a").1;
        assert_eq!(whole.len(), 10);
        for (query, header, cursor) in
            [("", Some("3"), 3), ("&last_event_id=3", None, 3), ("&last_event_id=7", Some("0"), 0), ("", Some("4"), 4)]
        {
            let mut headers = vec![SSE];
            headers.extend(header.map(|id| ("Last-Event-ID", id)));
            let mut stream = server.stream(&format!("/topics/a?from=state{query}"), &headers);
            is_gap(&stream.next().unwrap(), cursor, 6);
            let (got, live) = entries(&mut stream);
            assert_eq!((&got, live.event.as_str(), live.id), (&whole, "tidelog.live", 10), "{query} {header:?}");
            let mut stream = server.stream(&format!("/topics/a?from=snapshot{query}"), &headers);
            is_gap(&stream.next().unwrap(), cursor, 6);
            let snapshot = stream.control("tidelog.snapshot");
            assert_eq!((snapshot.id, snapshot.data.as_str()), (8, "at 8"));
            assert_eq!((stream.next().unwrap().id, stream.next().unwrap().id), (9, 10));
            assert_eq!(stream.control("tidelog.live").id, 10);
            // Without a bundle in the URL: what is there.
            let mut stream = server.stream(&format!("/topics/a?{query}"), &headers);
            is_gap(&stream.next().unwrap(), cursor, 6);
            assert_eq!(stream.next().unwrap().id, 6);
        }
        // At the floor nothing is missing, so there is nothing to heal.
        for from in ["state", "snapshot"] {
            let mut stream = server.stream(&format!("/topics/a?from={from}"), &[SSE, ("Last-Event-ID", "5")]);
            assert_eq!(stream.next().unwrap().id, 6);
            // The id of another log.
            let mut stream = server.stream(&format!("/topics/a?from={from}"), &[SSE, ("Last-Event-ID", "999")]);
            let gap = stream.control("tidelog.gap");
            assert_eq!((gap.id, &gap.json()["reason"], &gap.json()["requested"]), (0, &json!("ahead"), &json!(999)));
            let bundle = stream.next().unwrap();
            assert_eq!(bundle.event, format!("tidelog.{from}"));
        }
        // With its end.
        let target = "/topics/a?from=state&follow=false";
        let mut once = server.stream(target, &[SSE, ("Last-Event-ID", "3")]);
        is_gap(&once.next().unwrap(), 3, 6);
        let (got, live) = entries(&mut once);
        assert_eq!((got, live.event.as_str(), live.id), (whole, "tidelog.live", 10));
        assert_eq!((once.next(), once.end), (None, Some(End::Proper)));
    }
}

#[test]
fn a_snapshot_that_is_true_below_the_floor_comes_after_its_gap() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        for _ in 1..=10 {
            server.publish("a", "x");
        }
        assert_eq!(keep(&server, "a", 3, "at 3").status, 204);
        delete(&server, "a?before=7");
        for header in [None, Some("1"), Some("5")] {
            let mut headers = vec![SSE];
            headers.extend(header.map(|id| ("Last-Event-ID", id)));
            let mut stream = server.stream("/topics/a?from=snapshot", &headers);
            is_gap(&stream.next().unwrap(), header.map_or(3, |id| id.parse().unwrap()), 7);
            let snapshot = stream.control("tidelog.snapshot");
            assert_eq!((snapshot.id, snapshot.data.as_str()), (3, "at 3"));
            for id in 7..=10 {
                assert_eq!(stream.next().unwrap().id, id, "{header:?}");
            }
            assert_eq!(stream.control("tidelog.live").id, 10);
        }
    }
}

#[test]
fn a_deleted_topic_leaves_no_bundle_to_heal_with() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        for n in 1..=5 {
            server.publish(&format!("a?key={n}"), "x");
        }
        assert_eq!(keep(&server, "a", 5, "at 5").status, 204);
        let mut running = server.stream("/topics/a?from=state", &[SSE]);
        assert_eq!(entries(&mut running).0.len(), 5);
        delete(&server, "a");
        for from in ["state", "snapshot"] {
            let mut stream = server.stream(&format!("/topics/a?from={from}"), &[SSE, ("Last-Event-ID", "2")]);
            is_gap(&stream.next().unwrap(), 2, 6);
            assert_eq!(stream.control("tidelog.live").id, 5, "from={from}");
            let mut stream = server.stream(&format!("/topics/a?from={from}"), &[SSE]);
            assert_eq!(stream.control("tidelog.live").id, 5, "from={from}");
        }
        let id = server.publish("a?key=1", "again");
        // It had all that was deleted: for it nothing is missing.
        let event: Event = running.event();
        assert_eq!((event.id, Value::from(event.data)), (id, json!("again")));
    }
}
