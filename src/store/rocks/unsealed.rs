//! The index of a segment that is not sealed yet: which of its ids are of which topic.
//!
//! Every event is an entry that names its topic's entry before it. So taking one in costs a push and one look-up and allocates
//! nothing of its own, however many topics there are, and a topic's entries are walked from the newest back. Plain memory; must not
//! know RocksDB.

use std::ops::ControlFlow;

use super::directory::Amount;
use super::layout::Offset;
use super::number::ByNumber;
use crate::record::TopicNumber;

/// One event.
#[derive(Debug, Clone, Copy)]
struct Entry {
    bytes: u32,
    /// The place of the topic's entry before this one; its own where there is none.
    before: u32,
    offset: Offset,
}

/// The entries of one topic.
#[derive(Debug, Clone, Copy)]
struct Chain {
    newest: u32,
    events: u32,
}

/// The index of a segment that is not sealed yet.
#[derive(Debug, Clone, Default)]
pub struct OpenSegment {
    /// Ascending by offset.
    entries: Vec<Entry>,
    chains: ByNumber<Chain>,
}

impl OpenSegment {
    /// Takes in an event, whose offset is larger than all before.
    pub fn push(&mut self, offset: Offset, topic: TopicNumber, bytes: u32) {
        let at = u32::try_from(self.entries.len()).expect("a segment has 65,536 offsets, each of which comes once");
        let chain = self.chains.entry(topic).or_insert(Chain { newest: at, events: 0 });
        self.entries.push(Entry { bytes, before: chain.newest, offset });
        *chain = Chain { newest: at, events: chain.events + 1 };
    }

    /// How many topics have events here.
    #[must_use]
    pub fn topic_count(&self) -> usize {
        self.chains.len()
    }

    /// The topics that have events here, in no order.
    pub fn topics(&self) -> impl Iterator<Item = TopicNumber> {
        self.chains.keys().copied()
    }

    /// How many events of `topic` are here.
    #[must_use]
    pub fn events_of(&self, topic: TopicNumber) -> u32 {
        self.chains.get(&topic).map_or(0, |chain| chain.events)
    }

    /// Calls `each` with the offsets and bytes of `topic`'s events, from the newest back, until it breaks.
    pub fn newest_first(&self, topic: TopicNumber, mut each: impl FnMut(Offset, u32) -> ControlFlow<()>) {
        let Some(chain) = self.chains.get(&topic) else { return };
        let mut at = chain.newest;
        loop {
            let entry = self.entries[at as usize];
            if each(entry.offset, entry.bytes).is_break() || entry.before == at {
                return;
            }
            at = entry.before;
        }
    }

    /// The offsets of `topic`'s events, ascending, and what they amount to.
    #[must_use]
    pub fn offsets_of(&self, topic: TopicNumber) -> (Vec<Offset>, Amount) {
        let mut offsets = Vec::with_capacity(self.events_of(topic) as usize);
        let mut amount = Amount::default();
        self.newest_first(topic, |offset, bytes| {
            offsets.push(offset);
            amount.add(Amount { events: 1, bytes: u64::from(bytes) });
            ControlFlow::Continue(())
        });
        offsets.reverse();
        (offsets, amount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_topic_is_given_back_what_it_was_given(events in prop::collection::vec((0..5u32, any::<u16>()), 0..200)) {
            let mut open = OpenSegment::default();
            for (offset, &(topic, bytes)) in (0..).step_by(3).zip(&events) {
                open.push(offset, topic, bytes.into());
            }
            for topic in 0..6 {
                let mine: Vec<(u16, u64)> = (0..).step_by(3).zip(&events).filter(|(_, e)| e.0 == topic)
                    .map(|(offset, e)| (offset, e.1.into())).collect();
                let (offsets, amount) = open.offsets_of(topic);
                prop_assert_eq!(offsets, mine.iter().map(|m| m.0).collect::<Vec<_>>());
                let bytes = mine.iter().map(|m| m.1).sum();
                prop_assert_eq!(amount, Amount { events: mine.len() as u64, bytes });
                prop_assert_eq!(u64::from(open.events_of(topic)), amount.events);
                prop_assert_eq!(open.topics().any(|t| t == topic), amount.events > 0);
            }
        }
    }
}
