//! Subscribers that live across the server's deaths, each by its own rule: what comes next is what must come next.

use std::collections::BTreeMap;
use std::io;

use super::bulk::{State, Told, enter, told};
use super::count::COUNTED;
use crate::support::{Conn, Event, Stream, TestServer};

/// A stream at a cursor, if there is one; nothing where the server is gone or nothing is owed.
fn open(server: &TestServer, target: &str, cursor: Option<u64>) -> Option<Stream> {
    let id = cursor.map(|cursor| cursor.to_string());
    let headers: Vec<_> = id.iter().map(|id| ("Last-Event-ID", id.as_str())).collect();
    let conn = Conn::connect(server.addr).ok()?;
    match Stream::or_nothing(conn, target, &headers) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => panic!("{error}"),
        Err(_) => None,
    }
}

/// What is lost may be told where ids were skipped; it is told for nothing, as only processes die here.
fn may_be_gap(event: &Event, may_lose: bool, may_trim: bool) {
    let reason = event.json()["reason"].clone();
    assert!(may_lose && reason == "lost" || may_trim && reason == "trimmed", "{event:?}");
}

/// Every event of the bulk, from the first on.
pub struct FromLog {
    may_lose: bool,
    cursor: u64,
    pub seen: BTreeMap<u64, Told>,
    new: Vec<(u64, Told)>,
}

impl FromLog {
    pub fn new(may_lose: bool) -> Self {
        Self { may_lose, cursor: 0, seen: BTreeMap::new(), new: Vec::new() }
    }

    pub fn take_new(&mut self) -> Vec<(u64, Told)> {
        std::mem::take(&mut self.new)
    }

    pub fn follow(&mut self, server: &TestServer) {
        self.read(server, "/topics/c.**?envelope=json");
    }

    pub fn finish(&mut self, server: &TestServer) {
        self.read(server, "/topics/c.**?envelope=json&follow=false");
    }

    fn read(&mut self, server: &TestServer, target: &str) {
        let Some(mut stream) = open(server, target, Some(self.cursor)) else { return };
        while let Some(event) = stream.next() {
            match event.event.as_str() {
                "" => {
                    assert!(event.id > self.cursor, "{} after {}", event.id, self.cursor);
                    let told = told(&event.json());
                    assert!(self.seen.insert(event.id, told.clone()).is_none());
                    self.new.push((event.id, told));
                }
                "tidelog.live" => {}
                "tidelog.gap" => may_be_gap(&event, self.may_lose, false),
                _ => panic!("{event:?}"),
            }
            self.cursor = event.id.max(self.cursor);
        }
    }
}

/// The bulk's state, and from there on its events.
pub struct FromState {
    may_lose: bool,
    cursor: Option<u64>,
    pub state: State,
    pub bundles: u64,
}

impl FromState {
    pub fn new(may_lose: bool) -> Self {
        Self { may_lose, cursor: None, state: State::new(), bundles: 0 }
    }

    pub fn follow(&mut self, server: &TestServer) {
        self.read(server, "/topics/c.**?from=state&envelope=json");
    }

    pub fn finish(&mut self, server: &TestServer) {
        self.read(server, "/topics/c.**?from=state&envelope=json&follow=false");
    }

    fn read(&mut self, server: &TestServer, target: &str) {
        let Some(mut stream) = open(server, target, self.cursor) else { return };
        // A bundle that is coming: it counts when it has come whole.
        let mut bundle = self.cursor.is_none().then(State::new);
        while let Some(event) = stream.next() {
            match event.event.as_str() {
                "tidelog.state" => {
                    let json = event.json();
                    let bundle = bundle.as_mut().unwrap_or_else(|| panic!("nobody asked for {event:?}"));
                    enter(bundle, json["id"].as_u64().unwrap(), &told(&json));
                    continue;
                }
                "tidelog.gap" => {
                    may_be_gap(&event, self.may_lose, false);
                    bundle = Some(State::new());
                    continue;
                }
                _ => {}
            }
            if let Some(bundle) = bundle.take() {
                assert!(bundle.values().all(|(id, _)| *id <= event.id), "an entry is newer than {event:?}");
                (self.state, self.bundles) = (bundle, self.bundles + 1);
            }
            match event.event.as_str() {
                "" => {
                    assert!(self.cursor.is_none_or(|cursor| event.id > cursor), "{event:?} after {:?}", self.cursor);
                    enter(&mut self.state, event.id, &told(&event.json()));
                }
                "tidelog.live" => {}
                _ => panic!("{event:?}"),
            }
            self.cursor = Some(event.id.max(self.cursor.unwrap_or(0)));
        }
    }
}

/// A snapshot of the count, and from there on one more each time.
pub struct FromSnapshot {
    may_lose: bool,
    cursor: Option<u64>,
    pub value: Option<u64>,
    pub bundles: u64,
}

impl FromSnapshot {
    pub fn new(may_lose: bool) -> Self {
        Self { may_lose, cursor: None, value: None, bundles: 0 }
    }

    pub fn follow(&mut self, server: &TestServer) {
        self.read(server, &format!("/topics/{COUNTED}?from=snapshot"));
    }

    pub fn finish(&mut self, server: &TestServer) {
        self.read(server, &format!("/topics/{COUNTED}?from=snapshot&follow=false"));
    }

    fn read(&mut self, server: &TestServer, target: &str) {
        let Some(mut stream) = open(server, target, self.cursor) else { return };
        while let Some(event) = stream.next() {
            match event.event.as_str() {
                "tidelog.snapshot" => {
                    (self.value, self.bundles) = (Some(event.data.parse().unwrap()), self.bundles + 1);
                    // It may be older than what a gap took.
                    self.cursor = Some(event.id);
                }
                "tidelog.gap" => {
                    may_be_gap(&event, self.may_lose, true);
                    continue;
                }
                "tidelog.live" => {}
                "" => {
                    assert!(self.cursor.is_none_or(|cursor| event.id > cursor), "{event:?} after {:?}", self.cursor);
                    let next = self.value.unwrap_or(0) + 1;
                    assert_eq!(event.data, next.to_string(), "the count goes on");
                    self.value = Some(next);
                }
                _ => panic!("{event:?}"),
            }
            self.cursor = Some(event.id.max(self.cursor.unwrap_or(0)));
        }
    }
}
