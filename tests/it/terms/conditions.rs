//! `If-Match` and `If-None-Match`: a publish that happens only where its topic holds what the publisher believes.

use std::sync::Barrier;
use std::thread;

use serde_json::json;

use crate::support::{Answer, TestServer, until};

const LINES: (&str, &str) = ("Content-Type", "application/x-ndjson");
const NONE: (&str, &str) = ("If-None-Match", "*");

fn ids(answer: &Answer) -> (u64, u64) {
    assert_eq!(answer.status, 201, "{answer:?}");
    let json = answer.json();
    let first = json.get("first").unwrap_or(&json["id"]).as_u64().unwrap();
    (first, json.get("last").unwrap_or(&json["id"]).as_u64().unwrap())
}

/// That it was refused, and the id that it was told of.
fn last(answer: &Answer) -> u64 {
    assert_eq!((answer.status, answer.problem().as_str()), (412, "precondition_failed"), "{answer:?}");
    answer.json()["last"].as_u64().unwrap_or_else(|| panic!("no last: {answer:?}"))
}

/// A publish to `topic` if its newest event is `newest`.
fn after(server: &TestServer, topic: &str, newest: u64) -> Answer {
    server.ask("POST", &format!("/topics/{topic}"), &[("If-Match", &format!("\"{newest}\""))], b"x")
}

#[test]
fn of_a_hundred_with_one_condition_one_wins_and_the_others_are_told_of_it() {
    const WRITERS: usize = 100;
    let server = TestServer::start(&[]);
    let mut newest = 0;
    let mut events = 0;
    for (round, (batch, none)) in [(false, true), (false, false), (true, false), (false, false)].into_iter().enumerate()
    {
        let barrier = Barrier::new(WRITERS);
        let quoted = format!("\"{newest}\"");
        let conns: Vec<_> = (0..WRITERS).map(|_| server.connect()).collect();
        let answers: Vec<Answer> = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .zip(conns)
                .map(|(writer, mut conn)| {
                    let (barrier, quoted) = (&barrier, &quoted);
                    scope.spawn(move || {
                        let mut headers = vec![if none { NONE } else { ("If-Match", quoted.as_str()) }];
                        let mut body = format!("{round}/{writer}");
                        if batch {
                            headers.push(LINES);
                            body = format!("{{\"data\":\"{body}\"}}\n").repeat(3);
                        }
                        barrier.wait();
                        conn.ask("POST", "/topics/a", &headers, body.as_bytes()).unwrap()
                    })
                })
                .collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 201);
        assert_eq!((won.len(), lost.len()), (1, WRITERS - 1), "{answers:?}");
        newest = ids(won[0]).1;
        assert!(lost.iter().all(|answer| last(answer) == newest), "{answers:?}");
        events += if batch { 3 } else { 1 };
        assert_eq!(server.everything("/topics/a").len(), events);
    }
}

#[test]
fn a_condition_is_about_the_newest_retained_event_of_its_topic() {
    let server = TestServer::start(&[]);
    let batch = |condition: (&str, &str)| {
        server.ask("POST", "/topics/a", &[condition, LINES], b"{\"data\":1}\n{\"data\":2}\n{\"data\":3}")
    };
    server.publish("b", "x");
    assert_eq!(last(&after(&server, "a", 1)), 0, "another topic's");
    assert_eq!(ids(&after(&server, "a", 0)), (2, 2));
    server.publish("b", "x");
    assert_eq!(last(&after(&server, "a", 0)), 2);
    assert_eq!(last(&after(&server, "a", 3)), 2, "the tail is not the topic's");
    assert_eq!(ids(&after(&server, "a", 2)), (4, 4));
    assert_eq!(last(&batch(("If-Match", "\"2\""))), 4);
    assert_eq!(ids(&batch(("If-Match", "\"4\""))), (5, 7));
    assert_eq!(last(&after(&server, "a", 5)), 7, "a batch's last");
    assert_eq!(last(&batch(NONE)), 7);
    // What is gone is not held.
    assert_eq!(server.ask("DELETE", "/topics/a?before=7", &[], b"").status, 204);
    assert_eq!(last(&batch(NONE)), 7);
    assert_eq!(server.ask("DELETE", "/topics/a?before=8", &[], b"").status, 204);
    assert_eq!(last(&after(&server, "a", 7)), 0);
    assert_eq!(ids(&batch(NONE)), (8, 10));
    assert_eq!(last(&after(&server, "a", 0)), 10);
    assert_eq!(server.ask("DELETE", "/topics/a", &[], b"").status, 204);
    assert_eq!(last(&after(&server, "a", 10)), 0);
    assert_eq!(ids(&after(&server, "a", 0)), (11, 11));
    let both = [NONE, ("If-Match", "\"0\"")];
    assert_eq!(ids(&server.ask("POST", "/topics/c", &both, b"x")), (12, 12));
    assert_eq!(server.tail(), 12);
}

#[test]
fn a_topic_that_retention_has_emptied_holds_none() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start_in(dir.path(), &["retention.max_events=1"]);
    assert_eq!(ids(&after(&server, "a", 0)), (1, 1));
    server.publish("b", "x");
    until("retention holds", || (server.everything("/events").len() == 1).then_some(()));
    assert_eq!(last(&after(&server, "a", 1)), 0);
    server.kill();
    let server = TestServer::start_in(dir.path(), &[]);
    assert_eq!(last(&after(&server, "a", 1)), 0);
    assert_eq!(last(&after(&server, "b", 0)), 2);
    let (first, _) = ids(&after(&server, "b", 2));
    assert_eq!(ids(&server.ask("POST", "/topics/a", &[NONE], b"x")), (first + 1, first + 1));
}

#[test]
fn conditions_that_are_none() {
    let server = TestServer::start(&[]);
    server.publish("a", "x");
    let refused = |target: &str, headers: &[(&str, &str)], body: &str, named: &str| {
        let answer = server.ask("POST", target, headers, body.as_bytes());
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad_header"), "{headers:?}: {answer:?}");
        assert!(answer.detail().contains(named), "{answer:?}");
    };
    for bad in
        ["1", "*", "W/\"1\"", "\"1\", \"2\"", "\"\"", "", "\"-1\"", "\"+1\"", "\"x\"", "\"9007199254740992\"", "'1'"]
    {
        refused("/topics/a", &[("If-Match", bad)], "x", "If-Match");
    }
    for bad in ["\"1\"", "", "**", "W/*", "\"*\""] {
        refused("/topics/a", &[("If-None-Match", bad)], "x", "If-None-Match");
    }
    refused("/topics/a", &[("If-Match", "\"1\""), ("If-Match", "\"1\"")], "x", "If-Match");
    refused("/topics/a", &[NONE, NONE], "x", "If-None-Match");
    refused("/topics/a", &[NONE, ("If-Match", "\"1\"")], "x", "If-");
    let line = json!({"topic": "a", "data": 1}).to_string();
    refused("/topics", &[LINES, ("If-Match", "\"1\"")], &line, "If-Match");
    refused("/topics", &[LINES, NONE], &line, "If-None-Match");
    assert_eq!(server.tail(), 1);
}
