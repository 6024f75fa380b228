//! One who asks for this and that, one thing at a time, and knows what must have come of it.
//!
//! What it had no answer to when the server died may have happened or not, as a whole; it is settled at the next start. Where it is
//! given a journal of the disk, it notes how long that was when it came to know of each change: who cuts the power any later must
//! find the change there.

use std::fs;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use parking_lot::{Condvar, Mutex};

use super::model::{Change, Line, Model, json_lines};
use crate::support::{Answer, Conn, TOO_LONG, TestServer};

/// Most topics of a worker that are closed.
const CLOSED_MAX: usize = 5;

/// How many requests were answered, for who waits to kill.
#[derive(Default)]
pub struct Acks(Mutex<u64>, Condvar);

impl Acks {
    pub fn count(&self) {
        *self.0.lock() += 1;
        self.1.notify_all();
    }

    /// Whether so many came.
    pub fn wait_for(&self, least: u64) -> bool {
        let mut count = self.0.lock();
        !self.1.wait_while_for(&mut count, |count| *count < least, TOO_LONG).timed_out()
    }
}

#[derive(Debug, Clone)]
struct Request {
    method: &'static str,
    target: String,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl Request {
    fn send(&self, conn: &mut Conn) -> std::io::Result<Answer> {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        conn.ask(self.method, &self.target, &headers, self.body.as_bytes())
    }

    fn has_key(&self) -> bool {
        self.headers.iter().any(|(name, _)| *name == "Idempotency-Key")
    }
}

/// What must come of a request.
#[derive(Debug, Clone)]
enum Due {
    Done(Change),
    /// What was answered before.
    Again(String),
    Refused(u16),
}

/// A change that happened.
#[derive(Debug, Clone)]
pub struct Fact {
    pub change: Change,
    /// The first id of what was published.
    pub first: u64,
    /// The `Idempotency-Key` that it was published under.
    pub key: Option<String>,
    /// How long the journal of the disk was when this was known.
    pub known: u64,
}

pub struct Worker {
    pub name: String,
    journal: Option<PathBuf>,
    /// All that happened, in order; only where there is a journal.
    pub facts: Vec<Fact>,
    rng: Rng,
    model: Model,
    /// All topics that it ever used; the last three are open.
    topics: Vec<String>,
    /// The largest id that it was told.
    newest: u64,
    number: u64,
    /// What it had no answer to.
    pending: Option<(Request, Due)>,
    /// Publishes under keys, and their answers.
    keyed: Vec<(Request, String)>,
    pub settled_late: usize,
    pub settled_never: usize,
}

fn first_id(answer: &Answer) -> u64 {
    let json = answer.json();
    json.get("first").unwrap_or(&json["id"]).as_u64().unwrap()
}

impl Worker {
    pub fn new(n: u64, seed: u64) -> Self {
        let name = format!("w{n}");
        let topics = (0..3).map(|t| format!("{name}.{t}")).collect();
        Self {
            name,
            journal: None,
            facts: Vec::new(),
            rng: Rng::with_seed(seed * 1000 + n),
            model: Model::default(),
            topics,
            newest: 0,
            number: 0,
            pending: None,
            keyed: Vec::new(),
            settled_late: 0,
            settled_never: 0,
        }
    }

    /// From here on it notes what happens, and how long this file was then.
    pub fn note_beside(&mut self, journal: &Path) {
        self.journal = Some(journal.to_path_buf());
    }

    pub fn closed(&self) -> usize {
        self.model.closed().count()
    }

    pub fn kept_keys(&self) -> usize {
        self.keyed.len()
    }

    /// Asks until the server is gone, but no more than `most` times.
    pub fn work(&mut self, server: &TestServer, acks: &Acks, most: u64) {
        let Ok(mut conn) = Conn::connect(server.addr) else { return };
        for _ in 0..most {
            let (request, due) = self.wish();
            let Ok(answer) = request.send(&mut conn) else {
                self.pending = Some((request, due));
                return;
            };
            self.answered(&request, due, &answer);
            acks.count();
        }
    }

    fn answered(&mut self, request: &Request, due: Due, answer: &Answer) {
        match due {
            Due::Done(change @ Change::Publish(_)) => {
                assert_eq!(
                    (answer.status, answer.header("idempotency-replayed")),
                    (201, None),
                    "{request:?}: {answer:?}"
                );
                assert!(first_id(answer) > self.newest, "{answer:?} after {}", self.newest);
                self.published(request, &change, answer);
            }
            Due::Done(change) => {
                assert_eq!(answer.status, 204, "{request:?}: {answer:?}");
                self.changed(&change, 0, None);
            }
            Due::Again(first) => {
                assert_eq!((answer.status, &answer.body), (200, &first), "{request:?}: {answer:?}");
            }
            Due::Refused(status) => assert_eq!(answer.status, status, "{request:?}: {answer:?}"),
        }
    }

    fn published(&mut self, request: &Request, change: &Change, answer: &Answer) {
        let key = request.headers.iter().find(|(name, _)| *name == "Idempotency-Key").map(|(_, key)| key.clone());
        self.changed(change, first_id(answer), key);
        if request.has_key() {
            self.keyed.push((request.clone(), answer.body.clone()));
        }
    }

    fn changed(&mut self, change: &Change, first: u64, key: Option<String>) {
        self.model.apply(change, first);
        if let Some(journal) = &self.journal {
            let known = fs::metadata(journal).unwrap().len();
            self.facts.push(Fact { change: change.clone(), first, key, known });
        }
        match change {
            Change::Publish(lines) => self.newest = self.newest.max(first + lines.len() as u64 - 1),
            Change::Close(closed) => {
                self.topics.retain(|topic| topic != closed);
                self.topics.insert(0, closed.clone());
                self.number += 1;
                self.topics.push(format!("{}.n{}", self.name, self.number));
            }
            Change::Keep(..) | Change::Before(..) | Change::Delete(_) => {}
        }
    }

    /// After a kill: finds out what became of what it had no answer to, and that all else is as it must be.
    pub fn settle_and_check(&mut self, server: &TestServer) {
        let found = Model::of(server, &self.name, &self.topics);
        let mut conn = server.connect();
        match self.pending.take() {
            Some((request, Due::Done(change))) => self.settle(&found, &request, &change, &mut conn),
            Some((request, Due::Again(first))) => {
                self.answered(&request, Due::Again(first), &request.send(&mut conn).unwrap());
            }
            Some((_, Due::Refused(_))) | None => {}
        }
        assert_eq!(Model::of(server, &self.name, &self.topics), self.model);
        let closed: Vec<_> = self.model.closed().cloned().collect();
        for topic in closed {
            let refused = conn.ask("POST", &format!("/topics/{topic}"), &[], b"x").unwrap();
            assert_eq!(refused.problem(), "topic_closed");
        }
        for _ in 0..self.keyed.len().min(8) {
            let (request, due) = self.again();
            self.answered(&request, due, &request.send(&mut conn).unwrap());
        }
        if let Some((request, first)) = self.keyed.last().cloned() {
            self.answered(&request, Due::Again(first), &request.send(&mut conn).unwrap());
        }
    }

    fn settle(&mut self, found: &Model, request: &Request, change: &Change, conn: &mut Conn) {
        let new = found.0.values().flat_map(|topic| topic.events.keys()).filter(|id| **id > self.newest).min();
        let mut done = self.model.clone();
        done.apply(change, new.copied().unwrap_or(0));
        let happened = match change {
            Change::Publish(_) => new.is_some(),
            // Done twice it is the same, so it may have changed nothing.
            _ => *found != self.model,
        };
        assert_eq!(found, if happened { &done } else { &self.model }, "{change:?} was done in part");
        if happened {
            self.settled_late += 1;
        } else {
            self.settled_never += 1;
        }
        if request.has_key() {
            let answer = request.send(conn).unwrap();
            let status = if happened { 200 } else { 201 };
            assert_eq!(answer.status, status, "{request:?}: {answer:?}");
            assert!(new.is_none_or(|new| first_id(&answer) == *new), "{answer:?}: {new:?}");
            self.published(request, change, &answer);
        } else if happened {
            self.changed(change, new.copied().unwrap_or(0), None);
        }
    }

    /// Something to ask for, and what must come of it.
    fn wish(&mut self) -> (Request, Due) {
        let topic = self.open_topic();
        match self.rng.u8(..100) {
            0..4 if !self.keyed.is_empty() => self.again(),
            4..9 => self.keep(topic),
            9..14 => {
                let upto = self.rng.u64(..=self.newest + 1);
                (request("DELETE", format!("/topics/{topic}?before={upto}")), Due::Done(Change::Before(topic, upto)))
            }
            14..16 => (request("DELETE", format!("/topics/{topic}")), Due::Done(Change::Delete(topic))),
            16..18 if self.closed() < CLOSED_MAX => {
                (request("POST", format!("/topics/{topic}/close")), Due::Done(Change::Close(topic)))
            }
            18..21 if self.closed() > 0 => {
                let closed = self.model.closed().next().unwrap_or(&topic).clone();
                let lines = vec![self.line(topic), self.line(closed)];
                (Self::batch("/topics".to_owned(), &lines, true), Due::Refused(409))
            }
            21..26 => {
                let (mut refused, _) = self.publish(&topic);
                refused.headers.retain(|(name, _)| *name != "If-Match" && *name != "If-None-Match");
                refused.headers.push(("If-Match", format!("\"{}\"", self.newest + 1)));
                let across = refused.target == "/topics";
                (refused, Due::Refused(if across { 400 } else { 412 }))
            }
            _ => self.publish(&topic),
        }
    }

    fn open_topic(&mut self) -> String {
        let at = self.topics.len() - 1 - self.rng.usize(..3);
        self.topics[at].clone()
    }

    fn again(&mut self) -> (Request, Due) {
        let (request, first) = self.keyed[self.rng.usize(..self.keyed.len())].clone();
        (request, Due::Again(first))
    }

    fn keep(&mut self, topic: String) -> (Request, Due) {
        let kept = self.model.0.get(&topic).and_then(|topic| Some(topic.snapshot.as_ref()?.0));
        self.number += 1;
        let put = |at: u64| Request {
            headers: vec![("Last-Event-ID", at.to_string())],
            body: format!("snapshot {}", self.number),
            ..request("PUT", format!("/topics/{topic}/snapshot"))
        };
        if let Some(kept) = kept.filter(|kept| *kept > 0 && self.number.is_multiple_of(4)) {
            return (put(kept - 1), Due::Refused(412));
        }
        let at = self.rng.u64(kept.unwrap_or(0)..=self.newest);
        let put = put(at);
        let change = Change::Keep(topic, at, put.body.clone());
        (put, Due::Done(change))
    }

    fn line(&mut self, topic: String) -> Line {
        self.number += 1;
        let key = if self.rng.u8(..6) == 0 { String::new() } else { format!("k{}", self.rng.u8(..7)) };
        let removes = self.rng.u8(..5) == 0;
        Line { topic, key, data: if removes { String::new() } else { format!("{} {}", self.name, self.number) } }
    }

    fn batch(target: String, lines: &[Line], across: bool) -> Request {
        let body = json_lines(
            lines
                .iter()
                .map(|Line { topic, key, data }| (across.then_some(topic.as_str()), key.as_str(), data.as_str())),
        );
        let headers = vec![("Content-Type", "application/x-ndjson".to_owned())];
        Request { headers, body, ..request("POST", target) }
    }

    fn publish(&mut self, topic: &str) -> (Request, Due) {
        let form = self.rng.u8(..10);
        let count = if form < 6 { 1 } else { self.rng.usize(1..8) };
        let mut lines = Vec::new();
        for _ in 0..count {
            let topic = if form == 9 { self.open_topic() } else { topic.to_owned() };
            lines.push(self.line(topic));
        }
        let mut publish = match form {
            9 => Self::batch("/topics".to_owned(), &lines, true),
            6..9 => Self::batch(format!("/topics/{topic}"), &lines, false),
            _ => {
                let query = if lines[0].key.is_empty() { String::new() } else { format!("?key={}", lines[0].key) };
                Request { body: lines[0].data.clone(), ..request("POST", format!("/topics/{topic}{query}")) }
            }
        };
        if form != 9 && self.rng.u8(..3) == 0 {
            let last = self.model.last(topic);
            let condition = match last {
                0 if self.rng.bool() => ("If-None-Match", "*".to_owned()),
                last => ("If-Match", format!("\"{last}\"")),
            };
            publish.headers.push(condition);
        }
        if self.rng.bool() {
            publish.headers.push(("Idempotency-Key", format!("{} {}", self.name, self.number)));
        }
        (publish, Due::Done(Change::Publish(lines)))
    }
}

fn request(method: &'static str, target: String) -> Request {
    Request { method, target, headers: Vec::new(), body: String::new() }
}
