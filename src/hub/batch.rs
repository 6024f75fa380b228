//! A batch in the ring: durable events, and what was cut out of them for whom.
//!
//! What holds: each form of the whole batch is encoded at most once, and a filter's share of it is cut out once for all of its
//! subscribers. Frames are complete.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::event::{Event, EventId};
use crate::sse::Form;
use crate::topic::{Filter, Topic};

/// A batch is cut into pieces of about so many bytes of data, so that a subscriber holds no more than that while its socket stalls.
/// Only a single event may be larger. As much as a replay reads at once.
pub const PIECE_BYTES: usize = 64 << 10;

/// What an event costs in memory beside its texts.
const EVENT_OVERHEAD: usize = 160;

/// What a share costs in memory beside its bytes.
const SHARE_OVERHEAD: usize = 80;

/// One filter's share in one form: cut by the first who asks, while others wait for it and nobody else does.
type Share = Arc<OnceLock<Bytes>>;

/// Consecutive durable events.
#[derive(Debug)]
pub struct Batch {
    after: EventId,
    last: EventId,
    events: Box<[Event]>,
    /// Distinct topics of the events.
    topics: Box<[Topic]>,
    bytes: usize,
    whole: [OnceLock<Bytes>; 3],
    shares: Mutex<HashMap<(Arc<Filter>, Form), Share>>,
}

impl Batch {
    /// Cuts `events`, which follow on `after`, into batches of about `PIECE_BYTES`.
    pub fn cut(mut after: EventId, events: Vec<Event>) -> Vec<Self> {
        let mut batches = Vec::new();
        let mut piece: Vec<Event> = Vec::new();
        let mut bytes = 0;
        for event in events {
            if !piece.is_empty() && bytes + event.data.len() > PIECE_BYTES {
                let last = piece[piece.len() - 1].id;
                batches.push(Self::new(after, last, std::mem::take(&mut piece)));
                (after, bytes) = (last, 0);
            }
            bytes += event.data.len() + EVENT_OVERHEAD;
            piece.push(event);
        }
        if let Some(last) = piece.last().map(|e| e.id) {
            batches.push(Self::new(after, last, piece));
        }
        batches
    }

    fn new(after: EventId, last: EventId, events: Vec<Event>) -> Self {
        let mut topics: Vec<Topic> = Vec::new();
        if let Some(first) = events.first() {
            topics.push(first.topic.clone());
            if events.iter().any(|e| e.topic != first.topic) {
                topics = events.iter().map(|e| e.topic.clone()).collect();
                topics.sort_unstable();
                topics.dedup();
            }
        }
        let bytes = events.iter().map(|e| EVENT_OVERHEAD + e.data.len()).sum();
        Self {
            after,
            last,
            events: events.into(),
            topics: topics.into(),
            bytes,
            whole: Default::default(),
            shares: Mutex::default(),
        }
    }

    /// The same stretch of the log without some of its events.
    #[must_use]
    pub fn without(&self, gone: impl Fn(&Event) -> bool) -> Self {
        let left = self.events.iter().filter(|e| !gone(e)).cloned().collect();
        Self::new(self.after, self.last, left)
    }

    /// The id before its first.
    #[must_use]
    pub fn after(&self) -> EventId {
        self.after
    }

    /// The last id that it covers.
    #[must_use]
    pub fn last(&self) -> EventId {
        self.last
    }

    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    #[must_use]
    pub fn topics(&self) -> &[Topic] {
        &self.topics
    }

    /// What its events cost in memory; [`Batch::share`] says by how much it grows.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether any event matches.
    #[must_use]
    pub fn matches(&self, filter: &Filter) -> bool {
        if !self.topics.iter().any(|t| filter.matches_topic(t.as_str())) {
            return false;
        }
        filter.is_every_type() || self.events.iter().any(|e| selects(filter, e))
    }

    /// The id of the last event that matches; the batch's first where none does.
    #[must_use]
    pub fn last_match(&self, filter: &Filter) -> EventId {
        self.events.iter().rev().find(|e| selects(filter, e)).map_or(self.after, |e| e.id)
    }

    /// The frames of the matching events after `cursor`, and by how many bytes the batch has grown for it.
    #[must_use]
    pub fn share(&self, filter: &Arc<Filter>, form: Form, cursor: EventId) -> (Bytes, usize) {
        if cursor > self.after {
            return (encode(form, self.events.iter().filter(|e| e.id > cursor && selects(filter, e))), 0);
        }
        let every_topic = self.topics.iter().all(|t| filter.matches_topic(t.as_str()));
        if every_topic && (filter.is_every_type() || self.events.iter().all(|e| selects(filter, e))) {
            return self.whole(form);
        }
        let share = self.shares.lock().entry((filter.clone(), form)).or_default().clone();
        let mut grown = 0;
        let bytes = share.get_or_init(|| {
            let bytes = encode(form, self.events.iter().filter(|e| selects(filter, e)));
            grown = bytes.len() + SHARE_OVERHEAD;
            bytes
        });
        (bytes.clone(), grown)
    }

    fn whole(&self, form: Form) -> (Bytes, usize) {
        let slot = &self.whole[form as usize];
        let mut grown = 0;
        let bytes = slot.get_or_init(|| {
            let bytes = encode(form, self.events.iter());
            grown = bytes.len();
            bytes
        });
        (bytes.clone(), grown)
    }
}

fn selects(filter: &Filter, event: &Event) -> bool {
    filter.matches_type(event.event.as_ref().map(crate::event::EventType::as_str))
        && filter.matches_topic(event.topic.as_str())
}

fn encode<'a>(form: Form, events: impl Iterator<Item = &'a Event>) -> Bytes {
    let mut out = Vec::new();
    for event in events {
        form.event(&mut out, &event.as_ref());
    }
    out.into()
}
