//! What a worker's topics hold, as it believes, and as a server says, or a store that no server has open.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::TestServer;

/// An event to publish; one without a key has an empty one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub topic: String,
    pub key: String,
    pub data: String,
}

/// JSON lines, each with its topic where there is one; keys that are empty are none.
pub fn json_lines<'a>(lines: impl IntoIterator<Item = (Option<&'a str>, &'a str, &'a str)>) -> String {
    let mut body = String::new();
    for (topic, key, data) in lines {
        let mut line = json!({"data": data});
        if !key.is_empty() {
            line["key"] = json!(key);
        }
        if let Some(topic) = topic {
            line["topic"] = json!(topic);
        }
        body.push_str(&line.to_string());
        body.push('\n');
    }
    body
}

/// Something that changes what topics hold.
#[derive(Debug, Clone)]
pub enum Change {
    Publish(Vec<Line>),
    Close(String),
    /// A snapshot, true at this id.
    Keep(String, u64, String),
    /// Removes the events with a smaller id.
    Before(String, u64),
    Delete(String),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topic {
    /// Keys and data of those that are retained.
    pub events: BTreeMap<u64, (String, String)>,
    pub state: BTreeMap<String, (u64, String)>,
    pub closed: bool,
    pub snapshot: Option<(u64, String)>,
}

/// Topics that hold something, or of which something is remembered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Model(pub BTreeMap<String, Topic>);

impl Model {
    pub fn topic(&mut self, name: &str) -> &mut Topic {
        self.0.entry(name.to_owned()).or_default()
    }

    /// Makes a change; what is published begins with the id `first`.
    pub fn apply(&mut self, change: &Change, first: u64) {
        match change {
            Change::Publish(lines) => {
                for (id, Line { topic, key, data }) in (first..).zip(lines) {
                    let topic = self.topic(topic);
                    topic.events.insert(id, (key.clone(), data.clone()));
                    if data.is_empty() {
                        topic.state.remove(key);
                    } else if !key.is_empty() {
                        topic.state.insert(key.clone(), (id, data.clone()));
                    }
                }
            }
            Change::Close(topic) => self.topic(topic).closed = true,
            Change::Keep(topic, at, body) => self.topic(topic).snapshot = Some((*at, body.clone())),
            Change::Before(topic, id) => self.topic(topic).events.retain(|before, _| before >= id),
            Change::Delete(topic) => {
                let closed = self.topic(topic).closed;
                *self.topic(topic) = Topic { closed, ..Topic::default() };
            }
        }
        self.tidy();
    }

    /// The newest retained event of a topic, or 0.
    pub fn last(&self, topic: &str) -> u64 {
        self.0.get(topic).and_then(|topic| topic.events.keys().next_back()).map_or(0, |id| *id)
    }

    /// The topics that are closed.
    pub fn closed(&self) -> impl Iterator<Item = &String> {
        self.0.iter().filter(|(_, topic)| topic.closed).map(|(name, _)| name)
    }

    /// What the server says of `names`, all the topics that begin with `prefix` and a dot.
    pub fn of(server: &TestServer, prefix: &str, names: &[String]) -> Self {
        let mut model = Self::default();
        let text = |event: &Value, member: &str| event.get(member).map_or("", |v| v.as_str().unwrap()).to_owned();
        let id = |event: &Value| event["id"].as_u64().unwrap();
        for event in server.everything(&format!("/topics/{prefix}.**")) {
            let held = (text(&event, "key"), text(&event, "data"));
            assert!(
                model.topic(&text(&event, "topic")).events.insert(id(&event), held).is_none(),
                "{event} is there twice"
            );
        }
        let state = server.get(&format!("/topics/{prefix}.**/state"), &[]);
        assert_eq!(state.status, 200, "{state:?}");
        for event in state.json()["entries"].as_array().unwrap() {
            let state = &mut model.topic(&text(event, "topic")).state;
            let before = state.insert(text(event, "key"), (id(event), text(event, "data")));
            assert!(before.is_none(), "a key has two entries: {event}");
        }
        for topic in
            server.get(&format!("/topics?prefix={prefix}.&limit=1000"), &[]).json()["topics"].as_array().unwrap()
        {
            let name = text(topic, "topic");
            model.topic(&name).closed = topic["closed"] == true;
            assert_eq!(topic["last"], model.last(&name), "{topic}");
            assert_eq!(topic["events"], model.topic(&name).events.len(), "{topic}");
        }
        for name in names {
            let answer = server.get(&format!("/topics/{name}/snapshot"), &[]);
            if answer.status == 200 {
                let at = answer.header("last-event-id").unwrap().parse().unwrap();
                model.topic(name).snapshot = Some((at, answer.body));
            } else {
                assert_eq!(answer.problem(), "not_found");
            }
        }
        model.tidy();
        model
    }

    /// Leaves out topics that hold nothing and of which nothing is remembered.
    pub fn tidy(&mut self) {
        self.0.retain(|_, topic| *topic != Topic::default());
    }
}
