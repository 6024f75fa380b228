//! The index of a segment that is not sealed yet: which of its ids are of which topic.
//!
//! Every event is an entry that names its topic's entry before it. So taking one in costs a push and one look-up and allocates
//! nothing of its own, however many topics there are, and a topic's entries are walked from the newest back. Plain memory; must not
//! know RocksDB.

use super::layout::{Offset, SegmentNumber, first_id};
use super::number::ByNumber;
use crate::event::EventId;
use crate::record::TopicNumber;

/// One event.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    pub offset: Offset,
    pub topic: TopicNumber,
    pub bytes: u32,
    /// The place of the topic's entry before this one; its own where there is none.
    before: u32,
}

/// The index of a segment that is not sealed yet.
#[derive(Debug, Clone, Default)]
pub struct OpenSegment {
    /// Ascending by offset.
    entries: Vec<Entry>,
    /// By topic, the place of its newest entry.
    newest: ByNumber<u32>,
}

impl OpenSegment {
    /// Takes in an event, whose offset is larger than all before.
    pub fn push(&mut self, offset: Offset, topic: TopicNumber, bytes: u32) {
        let at = u32::try_from(self.entries.len()).expect("a segment has 65,536 offsets, each of which comes once");
        let before = self.newest.insert(topic, at).unwrap_or(at);
        self.entries.push(Entry { offset, topic, bytes, before });
    }

    /// All events, ascending by offset.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The topics that have events here, in no order.
    pub fn topics(&self) -> impl ExactSizeIterator<Item = TopicNumber> {
        self.newest.keys().copied()
    }

    /// The events of one topic within `after < id <= upto`, ascending, each with its bytes; this is the index of `segment`.
    #[must_use]
    pub fn events_of(
        &self,
        segment: SegmentNumber,
        topic: TopicNumber,
        after: EventId,
        upto: EventId,
    ) -> Vec<(EventId, u32)> {
        let mut events = Vec::new();
        let Some(&newest) = self.newest.get(&topic) else { return events };
        let mut at = newest;
        loop {
            let entry = self.entries[at as usize];
            let id = first_id(segment) + u64::from(entry.offset);
            if id <= after {
                break;
            }
            if id <= upto {
                events.push((id, entry.bytes));
            }
            if entry.before == at {
                break;
            }
            at = entry.before;
        }
        events.reverse();
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_topic_is_given_back_what_it_was_given(
            events in prop::collection::vec((0..5u32, any::<u16>()), 0..200),
            after in 0..700u64,
            upto in 0..700u64,
        ) {
            let mut open = OpenSegment::default();
            for (offset, &(topic, bytes)) in (0..).step_by(3).zip(&events) {
                open.push(offset, topic, bytes.into());
            }
            for topic in 0..6 {
                let mine: Vec<(EventId, u32)> = (first_id(1)..).step_by(3).zip(&events).filter(|(_, e)| e.0 == topic)
                    .map(|(id, e)| (id, e.1.into())).collect();
                prop_assert_eq!(open.topics().any(|t| t == topic), !mine.is_empty());
                let (after, upto) = (first_id(1) + after - 1, first_id(1) + upto);
                let within: Vec<_> = mine.into_iter().filter(|(id, _)| *id > after && *id <= upto).collect();
                prop_assert_eq!(open.events_of(1, topic, after, upto), within);
            }
        }
    }
}
