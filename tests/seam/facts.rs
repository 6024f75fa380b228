//! What the log truly holds: the judge's own record of what became durable and what was taken.

use std::collections::BTreeMap;
use std::ops::Bound;

use tidelog::event::{Event, EventId, EventType};
use tidelog::store::Trim;
use tidelog::topic::Filter;

/// An event that became durable.
pub struct Fact {
    pub event: Event,
    /// The step at which a floor was first raised above it.
    pub trimmed: Option<u64>,
    /// The step at which that floor was published: nobody who asks from then on finds it.
    pub gone: Option<u64>,
    /// The whole log's floor rose above it, not only its topic's.
    pub with_the_log: bool,
}

impl Fact {
    pub fn matches(&self, filter: &Filter) -> bool {
        filter.matches_topic(self.event.topic.as_str())
            && filter.matches_type(self.event.event.as_ref().map(EventType::as_str))
    }
}

#[derive(Default)]
pub struct Facts {
    pub events: BTreeMap<EventId, Fact>,
    /// Where holes end.
    pub holes: Vec<EventId>,
}

impl Facts {
    pub fn append(&mut self, events: &[Event]) {
        for event in events {
            let fact = Fact { event: event.clone(), trimmed: None, gone: None, with_the_log: false };
            assert!(self.events.insert(event.id, fact).is_none(), "id {} was given twice", event.id);
        }
    }

    pub fn raise(&mut self, rose: &[Trim], step: u64) {
        for Trim { topic, upto } in rose {
            for fact in self.events.range_mut(..=*upto).map(|(_, fact)| fact) {
                if topic.as_ref().is_none_or(|t| *t == fact.event.topic) {
                    fact.trimmed.get_or_insert(step);
                    fact.with_the_log |= topic.is_none();
                }
            }
        }
    }

    /// The floors that were raised are published.
    pub fn publish(&mut self, step: u64) {
        for fact in self.events.values_mut().filter(|fact| fact.trimmed.is_some()) {
            fact.gone.get_or_insert(step);
        }
    }

    /// The matching events with `after < id <= upto`.
    pub fn matching<'a>(
        &'a self,
        filter: &'a Filter,
        after: EventId,
        upto: EventId,
    ) -> impl DoubleEndedIterator<Item = &'a Fact> {
        let range = self.events.range((Bound::Excluded(after.min(upto)), Bound::Included(upto)));
        range.map(|(_, fact)| fact).filter(|fact| fact.matches(filter))
    }
}
