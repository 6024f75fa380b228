//! Topics: listed, deleted from, and kept for as long as they are to be.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::SSE;
use crate::support::TestServer;

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
