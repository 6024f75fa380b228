//! The initial bundle: the state of a log's keys, or a publisher's own snapshot, true at an id from which a client goes on.

mod crowd;
mod heal;
mod race;
mod snapshot;
mod state;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{Answer, Stream, TestServer};

/// Streams on their own threads, and streams as tasks.
const WAYS: [&[&str]; 2] = [&[], &["stream_threads=0"]];

const SSE: (&str, &str) = ("Accept", "text/event-stream");
const LINES: (&str, &str) = ("Accept", "application/x-ndjson");
const PAGE: (&str, &str) = ("Accept", "application/json");
const BATCH: (&str, &str) = ("Content-Type", "application/x-ndjson");

/// The newest event of each topic and key.
pub type State = BTreeMap<(String, String), Value>;

fn text(value: &Value, member: &str) -> String {
    value[member].as_str().unwrap_or_else(|| panic!("no {member} in {value}")).to_owned()
}

/// Takes an entry in, which is the only one of its key.
fn enter(state: &mut State, entry: Value) {
    let before = state.insert((text(&entry, "topic"), text(&entry, "key")), entry);
    assert!(before.is_none(), "a key has two entries: {before:?}");
}

/// What `GET …/state` says, and at which id.
pub fn state(server: &TestServer, pattern: &str) -> (u64, State) {
    let answer = server.get(&format!("/topics/{pattern}/state"), &[]);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{answer:?}");
    let mut json = answer.json();
    let as_of = json["as_of"].as_u64().unwrap();
    assert_eq!(answer.header("last-event-id"), Some(as_of.to_string().as_str()));
    let mut state = State::new();
    let Value::Array(entries) = json["entries"].take() else { panic!("no entries: {answer:?}") };
    entries.into_iter().for_each(|entry| enter(&mut state, entry));
    (as_of, state)
}

/// The state that `events` up to `upto` make.
fn replayed<'a>(events: impl IntoIterator<Item = &'a Value>, upto: u64) -> State {
    let mut state = State::new();
    for event in events.into_iter().take_while(|event| event["id"].as_u64().unwrap() <= upto) {
        let Some(key) = event.get("key") else { continue };
        let place = (text(event, "topic"), key.as_str().unwrap().to_owned());
        if event["data"] == "" {
            state.remove(&place);
        } else {
            state.insert(place, event.clone());
        }
    }
    state
}

/// The entries that are next on a stream of events, and what follows them.
fn entries(stream: &mut Stream) -> (State, crate::support::Event) {
    let mut state = State::new();
    loop {
        let event = stream.next().expect("the stream goes on");
        if event.event != "tidelog.state" {
            return (state, event);
        }
        enter(&mut state, event.json());
    }
}

fn keep(server: &TestServer, topic: &str, at: u64, body: &str) -> Answer {
    server.ask("PUT", &format!("/topics/{topic}/snapshot"), &[("Last-Event-ID", &at.to_string())], body.as_bytes())
}

fn delete(server: &TestServer, target: &str) {
    assert_eq!(server.ask("DELETE", &format!("/topics/{target}"), &[], b"").status, 204);
}
