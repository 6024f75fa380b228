//! What the log truly holds: the judge's own record of what became durable and what was taken.

use std::collections::BTreeMap;
use std::ops::Bound;

use tidelog::event::{Event, EventId, EventType, Key};
use tidelog::store::Trim;
use tidelog::topic::{Filter, Topic};

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

/// A topic's events up to an id were deleted, and with them its keys.
struct Deletion {
    topic: Topic,
    upto: EventId,
    step: u64,
    /// The step at which readers were told of it.
    told: Option<u64>,
}

/// What a topic's snapshot was from a step on.
struct Kept {
    topic: Topic,
    /// `None`: there was none.
    snapshot: Option<(EventId, String)>,
    /// The step at which that was answered.
    told: Option<u64>,
}

/// The newest event of each topic and key.
pub type Picture = BTreeMap<(Topic, Key), EventId>;

#[derive(Default)]
pub struct Facts {
    pub events: BTreeMap<EventId, Fact>,
    /// Where holes end.
    pub holes: Vec<EventId>,
    /// The events of each topic and key, ascending.
    keyed: BTreeMap<(Topic, Key), Vec<EventId>>,
    newest: BTreeMap<Topic, EventId>,
    deletions: Vec<Deletion>,
    snapshots: Vec<Kept>,
    /// The topics that were closed, each with its newest event, and whether those who follow were told.
    closed: BTreeMap<Topic, (EventId, bool)>,
}

impl Facts {
    pub fn append(&mut self, events: &[Event]) -> Result<(), String> {
        for event in events {
            if self.closed.contains_key(&event.topic) {
                return Err(format!("event {} was appended to a topic that was closed", event.id));
            }
            if let Some(key) = &event.key {
                self.keyed.entry((event.topic.clone(), key.clone())).or_default().push(event.id);
            }
            self.newest.insert(event.topic.clone(), event.id);
            let fact = Fact { event: event.clone(), trimmed: None, gone: None, with_the_log: false };
            assert!(self.events.insert(event.id, fact).is_none(), "id {} was given twice", event.id);
        }
        Ok(())
    }

    /// What the trims ask for is taken, whether its floor stood there already or not.
    pub fn raise(&mut self, trims: &[Trim], step: u64) {
        for Trim { topic, upto } in trims {
            for fact in self.events.range_mut(..=*upto).map(|(_, fact)| fact) {
                if topic.as_ref().is_none_or(|t| *t == fact.event.topic) {
                    fact.trimmed.get_or_insert(step);
                    fact.with_the_log |= topic.is_none();
                }
            }
        }
    }

    /// The floors that were raised are known to readers.
    pub fn tell(&mut self, step: u64) {
        for deletion in self.deletions.iter_mut().rev().take_while(|deletion| deletion.told.is_none()) {
            deletion.told = Some(step);
        }
    }

    /// The floors that were raised are published.
    pub fn publish(&mut self, step: u64) {
        for fact in self.events.values_mut().filter(|fact| fact.trimmed.is_some()) {
            fact.gone.get_or_insert(step);
        }
        self.answered(step);
    }

    pub fn delete(&mut self, topic: &Topic, step: u64) {
        let upto = self.newest.get(topic).copied().unwrap_or(0);
        self.raise(&[Trim { topic: Some(topic.clone()), upto }], step);
        self.deletions.push(Deletion { topic: topic.clone(), upto, step, told: None });
        self.snapshots.push(Kept { topic: topic.clone(), snapshot: None, told: None });
    }

    /// The newest event of a topic that no floor has reached; 0 where there is none.
    pub fn newest_retained(&self, topic: &Topic) -> EventId {
        let retained = self.events.values().rev().find(|fact| fact.event.topic == *topic && fact.trimmed.is_none());
        retained.map_or(0, |fact| fact.event.id)
    }

    // ---- closing

    /// A topic was closed, for good; gives its newest event.
    pub fn close(&mut self, topic: &Topic) -> EventId {
        let newest = self.newest.get(topic).copied().unwrap_or(0);
        self.closed.entry(topic.clone()).or_insert((newest, false)).0
    }

    /// Those who follow were told of all that was closed.
    pub fn tell_closed(&mut self) {
        self.closed.values_mut().for_each(|(_, told)| *told = true);
    }

    pub fn is_closed(&self, topic: &Topic) -> bool {
        self.closed.contains_key(topic)
    }

    /// Where nothing more comes for `filter`: the newest of its topics' events, and whether those who follow were told.
    pub fn closed(&self, filter: &Filter) -> Option<(EventId, bool)> {
        let topics = filter.patterns().iter().map(|pattern| self.closed.get(&pattern.as_topic()?).copied());
        topics.reduce(|all, one| all.zip(one).map(|((a, told), (b, too))| (a.max(b), told && too))).flatten()
    }

    // ---- bundles

    /// The newest event of each topic and key, at an id and with what had been deleted by a step.
    pub fn picture(&self, filter: &Filter, at: EventId, step: u64) -> Picture {
        let mut picture = Picture::new();
        for ((topic, key), ids) in &self.keyed {
            let Some(newest) = ids.partition_point(|id| *id <= at).checked_sub(1).map(|place| ids[place]) else {
                continue;
            };
            let fact = &self.events[&newest];
            let deleted = |d: &Deletion| d.topic == *topic && d.upto >= newest && d.step <= step;
            if !fact.event.data.is_empty() && fact.matches(filter) && !self.deletions.iter().any(deleted) {
                picture.insert((topic.clone(), key.clone()), newest);
            }
        }
        picture
    }

    /// The steps at which the pictures differ that may be given to one who asked at `asked`, and is given it at `now`.
    pub fn picture_steps(&self, asked: u64, now: u64) -> impl Iterator<Item = u64> {
        let known =
            self.deletions.iter().rev().find(|d| d.told.is_some_and(|told| told <= asked)).map_or(0, |d| d.step);
        let later = self.deletions.iter().map(|d| d.step).filter(move |step| *step > known && *step <= now);
        std::iter::once(known).chain(later)
    }

    pub fn keep(&mut self, topic: &Topic, snapshot: (EventId, String)) {
        self.snapshots.push(Kept { topic: topic.clone(), snapshot: Some(snapshot), told: None });
    }

    /// What was kept is answered.
    pub fn answered(&mut self, step: u64) {
        for kept in self.snapshots.iter_mut().rev().take_while(|kept| kept.told.is_none()) {
            kept.told = Some(step);
        }
    }

    /// What the snapshots of a filter's one topic were that may be given to one who asked at `asked`.
    pub fn snapshots(&self, filter: &Filter, asked: u64) -> Vec<Option<&(EventId, String)>> {
        let of_topic: Vec<_> = self.snapshots.iter().filter(|kept| filter.matches_topic(kept.topic.as_str())).collect();
        let known = of_topic.iter().rposition(|kept| kept.told.is_some_and(|told| told <= asked));
        // Another one that is true at the same id says the same.
        let at = |place: usize| of_topic[place].snapshot.as_ref().map(|(at, _)| *at);
        let known =
            known.map(|known| (0..=known).rev().take_while(|place| at(*place) == at(known)).last().unwrap_or(known));
        let none = known.is_none().then_some(None);
        none.into_iter().chain(of_topic[known.unwrap_or(0)..].iter().map(|kept| kept.snapshot.as_ref())).collect()
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
