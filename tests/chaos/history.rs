//! What was published, and what each subscriber must have seen of it: the judge.
//!
//! What holds: it knows the contract and nothing of the program; frames are read by a parser of its own, patterns matched by a
//! matcher of its own. Of bytes it keeps 64 bits of hash, so that ten minutes of history fit.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    pub topic: String,
    /// Empty: none.
    pub event: String,
    pub key: Option<String>,
    pub data: String,
}

/// What is kept of an event.
#[derive(Debug, Clone)]
pub struct Kept {
    pub topic: String,
    event: String,
    key: Option<String>,
    is_empty: bool,
    /// Of type and data: what a plain frame shows.
    plain: u64,
    /// Of everything.
    whole: u64,
}

pub type Log = BTreeMap<u64, Kept>;

pub fn hash_plain(event: &str, data: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (event, data).hash(&mut hasher);
    hasher.finish()
}

pub fn hash_whole(topic: &str, event: &str, key: Option<&str>, data: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (topic, event, key, data).hash(&mut hasher);
    hasher.finish()
}

/// The hash of an event object.
pub fn hash_object(object: &Value) -> u64 {
    let member = |name: &str| object.get(name).map(|text| text.as_str().expect("members are strings"));
    assert!(member("time").is_some(), "{object}");
    hash_whole(
        member("topic").expect("it has a topic"),
        member("event").unwrap_or(""),
        member("key"),
        member("data").expect("it has data"),
    )
}

impl Kept {
    pub fn of(published: &Published) -> Self {
        let Published { topic, event, key, data } = published;
        Self {
            topic: topic.clone(),
            event: event.clone(),
            key: key.clone(),
            is_empty: data.is_empty(),
            plain: hash_plain(event, data),
            whole: hash_whole(topic, event, key.as_deref(), data),
        }
    }

    pub fn whole(&self) -> u64 {
        self.whole
    }
}

/// What a subscriber wants.
#[derive(Debug, Clone)]
pub struct Wish {
    pub patterns: Vec<String>,
    /// Empty: of every type.
    pub types: Vec<String>,
}

impl Wish {
    fn matches(&self, event: &Kept) -> bool {
        let topic = self.patterns.iter().any(|pattern| matches(pattern, &event.topic));
        topic && (self.types.is_empty() || self.types.contains(&event.event))
    }
}

fn matches(pattern: &str, topic: &str) -> bool {
    let (mut topic, mut pattern) = (topic.split('.'), pattern.split('.'));
    loop {
        match (pattern.next(), topic.next()) {
            (None, None) => return true,
            (Some("**"), Some(_)) => return true,
            (Some("*"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

/// Where a subscriber began.
#[derive(Debug, Clone)]
pub enum Began {
    After(u64),
    /// With the newest event of each key: ids, and hashes of everything.
    State {
        as_of: u64,
        entries: BTreeMap<u64, u64>,
    },
}

/// What one subscriber has seen, over as many connections as it took.
#[derive(Debug, Clone)]
pub struct Life {
    pub wish: Wish,
    pub began: Option<Began>,
    /// Everything up to here was to be seen.
    pub cursor: u64,
    /// By hash of everything, or as plain frames show it.
    pub whole: bool,
    pub seen: Vec<(u64, u64)>,
}

impl Life {
    pub fn new(wish: Wish, whole: bool) -> Self {
        Self { wish, began: None, cursor: 0, whole, seen: Vec::new() }
    }

    pub fn take(&mut self, id: u64, hash: u64) {
        assert!(self.began.is_some(), "event {id} before it was said where the stream begins");
        assert!(id > self.cursor, "event {id} after {}: {:?}", self.cursor, self.wish);
        self.cursor = id;
        self.seen.push((id, hash));
    }

    /// The stream says that it has come so far.
    pub fn advance(&mut self, cursor: u64) {
        assert!(cursor >= self.cursor, "back from {} to {cursor}: {:?}", self.cursor, self.wish);
        self.cursor = cursor;
    }

    /// How many events it has seen, each of which is the log's next one for it.
    pub fn check(&self, log: &Log) -> usize {
        let Some(began) = &self.began else {
            assert!(self.seen.is_empty());
            return 0;
        };
        let after = match began {
            Began::After(id) => *id,
            Began::State { as_of, entries } => {
                assert_eq!(entries, &self.state(log, *as_of), "the state at {as_of} of {:?}", self.wish);
                *as_of
            }
        };
        // What was seen beyond the log is no more there.
        let known = log.last_key_value().map_or(0, |(id, _)| *id);
        assert!(self.cursor <= known, "it came to {}, the log ends at {known}", self.cursor);
        let want: Vec<_> = log
            .range(after..=self.cursor.max(after))
            .skip_while(|(id, _)| **id <= after)
            .filter(|(_, event)| self.wish.matches(event))
            .map(|(id, event)| (*id, if self.whole { event.whole } else { event.plain }))
            .collect();
        let differs = self.seen.iter().zip(&want).find(|(seen, want)| seen != want);
        assert!(
            differs.is_none() && self.seen.len() == want.len(),
            "{:?} from {after} to {}: {} seen, {} are there; the first that differ (seen, there): {differs:?}",
            self.wish,
            self.cursor,
            self.seen.len(),
            want.len(),
        );
        want.len()
    }

    /// The newest event of each key at `as_of`.
    fn state(&self, log: &Log, as_of: u64) -> BTreeMap<u64, u64> {
        let mut newest = BTreeMap::new();
        for (id, event) in log.range(..=as_of) {
            let Some(key) = &event.key else { continue };
            if event.is_empty {
                newest.remove(&(&event.topic, key));
            } else {
                newest.insert((&event.topic, key), (*id, event));
            }
        }
        let entries = newest.into_values().filter(|(_, event)| self.wish.matches(event));
        entries.map(|(id, event)| (id, event.whole)).collect()
    }
}

/// A frame of Server-Sent Events.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Frame {
    pub id: Option<u64>,
    pub event: String,
    pub data: String,
}

/// A parser that takes only what this server may send: LF, one space after the colon, no other fields.
#[derive(Debug, Default)]
pub struct Frames {
    rest: Vec<u8>,
    frame: Frame,
    lines: usize,
    pub retry: Option<u64>,
}

impl Frames {
    pub fn feed(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// Whether a frame has begun that is not complete.
    pub fn is_amid(&self) -> bool {
        !self.rest.is_empty() || self.frame != Frame::default()
    }

    pub fn next(&mut self) -> Option<Frame> {
        let mut at = 0;
        let mut done = None;
        while let Some(len) = self.rest[at..].iter().position(|&byte| byte == b'\n') {
            let line = std::str::from_utf8(&self.rest[at..at + len]).expect("lines are UTF-8");
            at += len + 1;
            if line.is_empty() {
                self.lines = 0;
                let frame = std::mem::take(&mut self.frame);
                // Only `retry:` was in it.
                if frame != Frame::default() {
                    done = Some(frame);
                    break;
                }
            } else if let Some(id) = line.strip_prefix("id: ") {
                self.frame.id = Some(id.parse().expect("ids are numbers"));
            } else if let Some(event) = line.strip_prefix("event: ") {
                event.clone_into(&mut self.frame.event);
            } else if let Some(data) = line.strip_prefix("data: ").or_else(|| line.strip_prefix("data:")) {
                if self.lines > 0 {
                    self.frame.data.push('\n');
                }
                self.frame.data.push_str(data);
                self.lines += 1;
            } else if let Some(retry) = line.strip_prefix("retry: ") {
                self.retry = Some(retry.parse().expect("milliseconds"));
            } else {
                assert_eq!(line, ":", "no such line is ever sent");
            }
        }
        self.rest.drain(..at);
        done
    }
}

#[test]
fn the_judge_finds_each_kind_of_fault() {
    let event = |topic: &str, key: Option<&str>, data: &str| {
        let (topic, key, data) = (topic.to_owned(), key.map(str::to_owned), data.to_owned());
        Kept::of(&Published { topic, event: String::new(), key, data })
    };
    let events =
        [event("a.b", None, "1"), event("a.c", Some("k"), "2"), event("b", None, "3"), event("a.b", Some("k"), "4")];
    let log: Log = (1..).zip(events).collect();
    let hash = |id: u64| hash_plain("", &id.to_string());
    let life = |cursor, seen: &[u64]| {
        let mut life = Life::new(Wish { patterns: vec!["a.*".into()], types: vec![] }, false);
        (life.began, life.cursor) = (Some(Began::After(0)), cursor);
        life.seen = seen.iter().map(|id| (*id, hash(*id))).collect();
        life
    };
    let fails = |life: Life| std::panic::catch_unwind(|| life.check(&log)).is_err();
    assert_eq!((life(4, &[1, 2, 4]).check(&log), life(3, &[1, 2]).check(&log)), (3, 2));
    assert!(fails(life(4, &[1, 4])), "a gap");
    assert!(fails(life(4, &[1, 2])), "the last is missing");
    assert!(fails(life(4, &[1, 2, 3, 4])), "one that does not match");
    assert!(fails(life(5, &[1, 2, 4])), "a cursor beyond the log");
    let mut other = life(4, &[1, 2, 4]);
    other.seen[1].1 = hash(7);
    assert!(fails(other), "other data");
    let twice = |mut life: Life| std::panic::catch_unwind(move || life.take(4, hash(4))).is_err();
    assert!(twice(life(4, &[1, 2, 4])), "one twice");
    let state = |as_of, ids: &[u64]| {
        let entries = ids.iter().map(|id| (*id, log[id].whole)).collect();
        let mut life = life(4, &[]);
        (life.began, life.cursor) = (Some(Began::State { as_of, entries }), as_of);
        life
    };
    assert_eq!(state(4, &[2, 4]).check(&log), 0);
    assert!(fails(state(4, &[2])) && fails(state(3, &[2, 4])));
    let mut frames = Frames::default();
    frames.feed(b"retry: 20\n\nid: 1\nevent: x\ndata: a\ndata: b\n:\n\nid: 2\ndata: c\n");
    assert_eq!(frames.next(), Some(Frame { id: Some(1), event: "x".into(), data: "a\nb".into() }));
    assert_eq!((frames.next(), frames.retry, frames.is_amid()), (None, Some(20), true));
}
