//! Publishers side by side of events that nobody trims; what must be in the log is all that was acked or delivered.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;
use serde_json::Value;

use super::model::json_lines;
use super::worker::Acks;
use crate::support::{Conn, TestServer};

/// Topic, key (empty: none), data. The data names its publisher, its place among all that was published, its place in its batch,
/// and how many that has.
pub type Told = (String, String, String);

/// The newest of each topic and key: its id and data.
pub type State = BTreeMap<(String, String), (u64, String)>;

pub fn told(event: &Value) -> Told {
    let text = |member: &str| event.get(member).map_or("", |value| value.as_str().unwrap()).to_owned();
    (text("topic"), text("key"), text("data"))
}

/// Takes an event into a state.
pub fn enter(state: &mut State, id: u64, (topic, key, data): &Told) {
    if !key.is_empty() {
        state.insert((topic.clone(), key.clone()), (id, data.clone()));
    }
}

#[derive(Default)]
pub struct Bulk {
    pub number: u64,
    /// All that was found in the log; once there it stays.
    pub log: BTreeMap<u64, Told>,
    /// What a replay of it gives.
    pub state: State,
    pub batches: u64,
    /// Acked or delivered, and not yet looked for.
    told: BTreeMap<u64, Told>,
    /// By publisher, the number of its newest publish.
    newest: BTreeMap<String, u64>,
}

impl Bulk {
    pub fn tell(&mut self, told: impl IntoIterator<Item = (u64, Told)>) {
        for (id, told) in told {
            let before = self.log.get(&id).or_else(|| self.told.get(&id));
            assert!(before.is_none_or(|before| *before == told), "id {id} names two events: {before:?} and {told:?}");
            self.told.insert(id, told);
        }
    }

    /// The log holds what was told, in order, each batch as a whole; and what it held before.
    pub fn check(&mut self, server: &TestServer, whole: bool) {
        let last = self.log.last_key_value().map_or(0, |(id, _)| *id);
        let from = if whole { 1 } else { last + 1 };
        let events = events_from(server, "c.**", from);
        assert!(events.is_sorted_by(|(a, _), (b, _)| a < b), "ids ascend");
        let known = events.partition_point(|(id, _)| *id <= last);
        if whole {
            assert!(
                events[..known].iter().map(|(id, told)| (id, told)).eq(self.log.iter()),
                "what was in the log is not"
            );
        }
        self.extend(&events[known..]);
        for (id, told) in std::mem::take(&mut self.told) {
            assert_eq!(self.log.get(&id), Some(&told), "event {id} was acked or delivered");
        }
        if whole {
            self.check_topics(server);
        }
        let answer = server.get("/topics/c.**/state", &[]);
        let json = answer.json();
        let mut state = State::new();
        for event in json["entries"].as_array().unwrap() {
            enter(&mut state, event["id"].as_u64().unwrap(), &told(event));
        }
        assert_eq!(state, self.state, "the state is not what a replay gives");
        assert!(server.tail() >= self.log.last_key_value().map_or(0, |(id, _)| *id));
    }

    /// By topic: the counts, and what the index finds.
    fn check_topics(&self, server: &TestServer) {
        let mut by_topic: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (id, (topic, ..)) in &self.log {
            by_topic.entry(topic).or_default().push(*id);
        }
        let listed = server.get("/topics?prefix=c.&limit=1000", &[]).json();
        let listed = listed["topics"].as_array().unwrap();
        assert_eq!(listed.len(), by_topic.len());
        for (topic, (name, ids)) in listed.iter().zip(&by_topic) {
            assert_eq!(
                (topic["topic"].as_str(), topic["events"].as_u64(), topic["last"].as_u64()),
                (Some(*name), Some(ids.len() as u64), ids.last().copied()),
                "{topic}"
            );
            let found = events_from(server, name, 1);
            assert!(found.iter().map(|(id, _)| id).eq(ids), "{name} read alone is not what the log holds of it");
        }
    }

    fn extend(&mut self, events: &[(u64, Told)]) {
        let mut open: Option<(&str, u64, u64)> = None;
        for (id, told) in events {
            let data = &told.2;
            let parts: Vec<_> = data.split('/').collect();
            let (at, count): (u64, u64) = (parts[2].parse().unwrap(), parts[3].parse().unwrap());
            let head = &data[..parts[0].len() + 1 + parts[1].len()];
            match open {
                Some((batch, before, place)) => {
                    assert_eq!((batch, before + 1, place + 1), (head, *id, at), "a batch is torn");
                }
                None => {
                    assert_eq!(at, 0, "a batch has lost its beginning at {id}");
                    let n = parts[1].parse().unwrap();
                    let before = self.newest.insert(parts[0].to_owned(), n);
                    assert!(before.is_none_or(|before| before < n), "publish {n} came after {before:?}");
                    self.batches += 1;
                }
            }
            open = (at + 1 < count).then_some((head, *id, at));
            enter(&mut self.state, *id, told);
            self.log.insert(*id, told.clone());
        }
        assert!(open.is_none(), "the last batch is torn: {open:?}");
    }
}

fn events_from(server: &TestServer, pattern: &str, from: u64) -> Vec<(u64, Told)> {
    let target = format!("/topics/{pattern}?from={from}&follow=false");
    let text = server.stream(&target, &[("Accept", "application/x-ndjson")]).rest().expect("it ends properly");
    let lines = text.lines().filter(|line| !line.is_empty());
    let values = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    values.filter_map(|value| Some((value.get("id")?.as_u64()?, told(&value)))).collect()
}

/// Publishes until the server is gone; gives what was acked.
pub fn publish(server: &TestServer, publisher: u64, number: &AtomicU64, seed: u64, acks: &Acks) -> Vec<(u64, Told)> {
    let mut acked = Vec::new();
    let Ok(mut conn) = Conn::connect(server.addr) else { return acked };
    let mut rng = Rng::with_seed(seed);
    loop {
        let n = number.fetch_add(1, Ordering::Relaxed);
        // Small events in large batches fill segments; one at a time is the short way through the server.
        let count = match (publisher % 2, rng.u8(..50)) {
            (0, _) => 1,
            (_, 0) if rng.u8(..3) == 0 => rng.usize(1000..3000),
            _ => rng.usize(1..40),
        };
        let padding = if count > 100 { String::new() } else { "x".repeat(rng.usize(..300)) };
        let batch: Vec<Told> = (0..count)
            .map(|at| {
                let key = if rng.bool() { String::new() } else { format!("k{}", rng.u8(..9)) };
                (format!("c.{}", n % 7), key, format!("{publisher}/{n}/{at}/{count}/{padding}"))
            })
            .collect();
        let sent = if count == 1 {
            let (topic, key, data) = &batch[0];
            let query = if key.is_empty() { String::new() } else { format!("?key={key}") };
            conn.ask("POST", &format!("/topics/{topic}{query}"), &[], data.as_bytes())
        } else {
            conn.ask("POST", "/topics", &[("Content-Type", "application/x-ndjson")], lines(&batch).as_bytes())
        };
        let Ok(answer) = sent else { return acked };
        assert_eq!(answer.status, 201, "{answer:?}");
        let json = answer.json();
        let first = json.get("first").unwrap_or(&json["id"]).as_u64().unwrap();
        acked.extend((first..).zip(batch));
        acks.count();
    }
}

fn lines(batch: &[Told]) -> String {
    json_lines(batch.iter().map(|(topic, key, data)| (Some(topic.as_str()), key.as_str(), data.as_str())))
}
