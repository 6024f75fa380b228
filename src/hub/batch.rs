//! A batch in the ring: durable events, and what was cut out of them for whom.
//!
//! What holds: each form of the whole batch is encoded at most once, and so is each selection of its events, whoever asks for it.
//! Frames are complete.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::event::{Event, EventId};
use crate::sse::Form;
use crate::sync::Mutex;
use crate::topic::{Filter, Topic};

/// A batch is cut into pieces of about so many bytes of data, so that a subscriber holds no more than that while its socket stalls.
/// Only a single event may be larger. As much as a replay reads at once.
pub const PIECE_BYTES: usize = 64 << 10;

/// What an event costs in memory beside its texts.
const EVENT_OVERHEAD: usize = 160;

/// Filters whose share a batch remembers. Many subscribers with few filters find theirs by one look-up; where filters are many, each
/// has few subscribers, and remembering them all would cost more than the frames.
const FILTERS_REMEMBERED_MAX: usize = 64;

/// What was cut out of a batch.
#[derive(Debug, Default)]
struct Shares {
    by_filter: HashMap<(Arc<Filter>, Form), Bytes>,
    /// By the places of the events: filters that differ elsewhere share what they both select.
    by_selection: HashMap<(Form, Box<[u32]>), Bytes>,
}

/// Consecutive durable events.
#[derive(Debug)]
pub struct Batch {
    after: EventId,
    last: EventId,
    events: Box<[Event]>,
    /// Distinct topics of the events, sorted.
    topics: Box<[Topic]>,
    bytes: usize,
    whole: [OnceLock<Bytes>; 3],
    shares: Mutex<Shares>,
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
        let key = (filter.clone(), form);
        if let Some(share) = self.shares.lock().by_filter.get(&key) {
            return (share.clone(), 0);
        }
        let places = self.events.iter().zip(0..).filter(|(e, _)| selects(filter, e)).map(|(_, place)| place);
        let selection: Box<[u32]> = places.collect();
        let mut grown = 0;
        let mut shares = self.shares.lock();
        let share = shares.by_selection.entry((form, selection)).or_insert_with_key(|(_, selection)| {
            let share = encode(form, selection.iter().map(|&place| &self.events[place as usize]));
            grown = share.len() + 4 * selection.len();
            share
        });
        let share = share.clone();
        if shares.by_filter.len() < FILTERS_REMEMBERED_MAX {
            shares.by_filter.insert(key, share.clone());
        }
        (share, grown)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::Pattern;

    fn filter(patterns: &[&str]) -> Arc<Filter> {
        Arc::new(Filter::new(patterns.iter().map(|p| Pattern::parse(p).unwrap()).collect(), Vec::new()))
    }

    #[test]
    fn filters_that_select_the_same_share_one_buffer() {
        let topics = ["news", "user.1", "user.2", "news"].map(|t| Topic::parse(t).unwrap());
        let event = |(id, topic): (EventId, &Topic)| Event {
            id,
            topic: topic.clone(),
            event: None,
            key: None,
            time: 0,
            data: "x".into(),
        };
        let batch = Batch::cut(0, (1..).zip(&topics).map(event).collect()).remove(0);
        let (news, grown) = batch.share(&filter(&["news"]), Form::Sse, 0);
        assert_eq!(news, "id: 1\ndata: x\n\nid: 4\ndata: x\n\n");
        // Its bytes, and the places of two events.
        assert_eq!(grown, news.len() + 8);
        // More filters than are remembered.
        for user in 3..200 {
            let (share, grown) = batch.share(&filter(&["news", &format!("user.{user}")]), Form::Sse, 0);
            assert_eq!((share.as_ptr(), grown), (news.as_ptr(), 0));
        }
        let (other, _) = batch.share(&filter(&["news", "user.2"]), Form::Sse, 0);
        assert_eq!(other, "id: 1\ndata: x\n\nid: 3\ndata: x\n\nid: 4\ndata: x\n\n");
        assert_eq!(batch.share(&filter(&["news"]), Form::Lines, 0).0[0], b'{');
        assert_eq!(batch.share(&filter(&["news"]), Form::Sse, 2).0, "id: 4\ndata: x\n\n");
    }
}
