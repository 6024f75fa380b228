//! What the log truly holds: the judge's own record of what was written, what was taken, and what a crash has made undone.

use std::collections::BTreeMap;
use std::ops::Bound;

use tidelog::event::{Event, EventId, EventType, Key, Millis};
use tidelog::store::Trim;
use tidelog::store::model::Write;
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
    /// All that was written, and is still there, each with its step.
    history: Vec<(u64, Write)>,
    pub events: BTreeMap<EventId, Fact>,
    /// Events that were there, until a crash.
    pub lost: BTreeMap<EventId, Fact>,
    /// The ids before which, and with which, holes end.
    pub holes: Vec<(EventId, EventId)>,
    /// The largest id that was given to an event or skipped, and the time of the newest event.
    pub tail: EventId,
    pub last_time: Millis,
    /// The events of each topic and key, ascending.
    keyed: BTreeMap<(Topic, Key), Vec<EventId>>,
    newest: BTreeMap<Topic, EventId>,
    deletions: Vec<Deletion>,
    snapshots: Vec<Kept>,
    /// The topics that were closed, each with its newest event, and whether those who follow were told.
    closed: BTreeMap<Topic, (EventId, bool)>,
}

impl Facts {
    /// Something was written.
    pub fn learn(&mut self, write: Write, step: u64) -> Result<(), String> {
        match &write {
            Write::Commit(events, _) => self.append(events)?,
            Write::Floors(rose) => self.raise(rose, step),
            Write::Delete(topic, _) => self.delete(topic, step),
            Write::Close(topic, last) => {
                if self.close(topic) != *last {
                    return Err(format!("{topic} is said to be closed at {last}"));
                }
            }
            Write::Keep(topic, snapshot) => {
                let kept = self.snapshot_of(topic).map_or(0, |(at, _)| *at);
                if snapshot.at < kept || snapshot.at > self.tail {
                    return Err(format!("{snapshot:?} is kept in place of one at {kept}; the tail is {}", self.tail));
                }
                self.keep(topic, (snapshot.at, snapshot.body.clone()));
            }
            Write::Retain(..) => {}
            Write::Skip(after, upto) => {
                self.holes.push((*after, *upto));
                self.tail = *upto;
            }
        }
        self.history.push((step, write));
        Ok(())
    }

    /// The process died, and `lost` of the last writes with it. Whoever comes from now on is told of all that is there.
    pub fn crash(&mut self, lost: usize, step: u64) -> Result<(), String> {
        if lost > 0 {
            let mut history = std::mem::take(&mut self.history);
            let gone = history.split_off(history.len() - lost);
            let mut before = std::mem::take(self);
            self.lost = std::mem::take(&mut before.lost);
            for (_, write) in gone {
                let Write::Commit(events, _) = write else { return Err(format!("a crash took {write:?}")) };
                for event in events {
                    let fact = before.events.remove(&event.id).ok_or("it was never there")?;
                    self.lost.insert(event.id, fact);
                }
            }
            for (step, write) in history {
                self.learn(write, step)?;
            }
        }
        self.tell(step);
        self.publish(step);
        self.tell_closed();
        Ok(())
    }

    fn append(&mut self, events: &[Event]) -> Result<(), String> {
        for event in events {
            if event.id <= self.tail || self.lost.contains_key(&event.id) {
                return Err(format!("id {} is given again", event.id));
            }
            if event.time < self.last_time {
                return Err(format!("the time of event {} lies before that of the one before it", event.id));
            }
            (self.tail, self.last_time) = (event.id, event.time);
            if self.closed.contains_key(&event.topic) {
                return Err(format!("event {} was appended to a topic that was closed", event.id));
            }
            if let Some(key) = &event.key {
                self.keyed.entry((event.topic.clone(), key.clone())).or_default().push(event.id);
            }
            self.newest.insert(event.topic.clone(), event.id);
            let fact = Fact { event: event.clone(), trimmed: None, gone: None, with_the_log: false };
            self.events.insert(event.id, fact);
        }
        Ok(())
    }

    /// What the trims ask for is taken, whether its floor stood there already or not.
    fn raise(&mut self, trims: &[Trim], step: u64) {
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

    fn delete(&mut self, topic: &Topic, step: u64) {
        let upto = self.newest.get(topic).copied().unwrap_or(0);
        self.raise(&[Trim { topic: Some(topic.clone()), upto }], step);
        self.deletions.push(Deletion { topic: topic.clone(), upto, step, told: None });
        self.snapshots.push(Kept { topic: topic.clone(), snapshot: None, told: None });
    }

    /// The newest event of a topic up to an id that no floor has reached; 0 where there is none.
    pub fn newest_retained(&self, topic: &Topic, upto: EventId) -> EventId {
        let mut upto = self.events.range(..=upto).map(|(_, fact)| fact);
        let retained = upto.rfind(|fact| fact.event.topic == *topic && fact.trimmed.is_none());
        retained.map_or(0, |fact| fact.event.id)
    }

    /// Whether all that a trim asks for is gone.
    pub fn is_gone(&self, trim: &Trim) -> bool {
        let mut upto = self.events.range(..=trim.upto).map(|(_, fact)| fact);
        upto.all(|fact| fact.gone.is_some() || trim.topic.as_ref().is_some_and(|topic| fact.event.topic != *topic))
    }

    /// The newest snapshot of a topic.
    pub fn snapshot_of(&self, topic: &Topic) -> Option<&(EventId, String)> {
        self.snapshots.iter().rfind(|kept| kept.topic == *topic)?.snapshot.as_ref()
    }

    /// Where `id` lies within a hole, of which something may have been shown.
    pub fn is_within_a_hole(&self, id: EventId) -> bool {
        let before_its_end = |upto: EventId| id < upto || self.lost.contains_key(&id);
        self.holes.iter().any(|(after, upto)| *after < id && before_its_end(*upto))
    }

    // ---- closing

    /// A topic was closed, for good; gives its newest event.
    fn close(&mut self, topic: &Topic) -> EventId {
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

    fn keep(&mut self, topic: &Topic, snapshot: (EventId, String)) {
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
