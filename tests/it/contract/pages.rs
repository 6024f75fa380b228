//! Pages, and waiting for them.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{PAGE, ids};
use crate::support::TestServer;

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
