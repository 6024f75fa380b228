//! The model store: the same face in memory, plain enough to be right by reading it. Tests judge the real store by it, and drive
//! the real state machines over it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::{
    Back, Floor, Limits, Policy, Remembered, SCAN_RECORDS_MAX, Scan, Snapshot, Store, StoreError, TopicStats, Trim,
};
use crate::event::{Digest, Event, EventId, EventRef, EventType, Key, Millis};
use crate::sse::GapReason;
use crate::sync::Mutex;
use crate::topic::{Filter, Topic};

/// How writes fail.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Failing {
    /// They do not.
    #[default]
    No,
    /// Nothing is written.
    Unwritten,
    /// All is written, and yet the answer is an error.
    Written,
}

#[derive(Debug, Default, Clone)]
struct State {
    events: BTreeMap<EventId, Event>,
    tail: EventId,
    last_time: Millis,
    log_floor: EventId,
    /// The log's floor as readers were told it; what lies below published floors is no longer in `events`.
    log_published: EventId,
    floors_told: u64,
    floors: BTreeMap<Topic, EventId>,
    /// The end of the newest hole.
    hole: EventId,
    lasts: BTreeMap<Topic, EventId>,
    retention: BTreeMap<Topic, Limits>,
    /// The newest event of each topic and key.
    keyed: BTreeMap<(Topic, Key), Event>,
    snapshots: BTreeMap<Topic, Snapshot>,
    closed: BTreeMap<Topic, EventId>,
    /// In the order in which they were remembered.
    remembered: VecDeque<Remembered>,
    failing: Failing,
    unreadable: bool,
    /// How many ids the next reopening skips.
    skip: u64,
}

impl State {
    /// An error where nothing is to be written.
    fn write_begins(&self) -> Result<(), StoreError> {
        if self.failing == Failing::Unwritten { Err(failed_write()) } else { Ok(()) }
    }

    /// An error though `done` was written, where that is how writes fail.
    fn write_ends<T>(&self, done: T) -> Result<T, StoreError> {
        if self.failing == Failing::Written { Err(failed_write()) } else { Ok(done) }
    }

    /// The topics of which something is remembered.
    fn known(&self) -> BTreeSet<&Topic> {
        let keyed = self.keyed.keys().map(|(topic, _)| topic);
        let marked = self.retention.keys().chain(self.snapshots.keys()).chain(self.closed.keys());
        self.lasts.keys().chain(marked).chain(keyed).collect()
    }

    /// Raises a topic's floor, and gives it where it rose.
    fn raise(&mut self, topic: &Topic, upto: EventId) -> Option<Trim> {
        let upto = upto.min(self.lasts.get(topic).copied().unwrap_or(0));
        let floor = self.floors.get(topic).copied().unwrap_or(0);
        if upto <= floor.max(self.log_floor) {
            return None;
        }
        self.floors.insert(topic.clone(), upto);
        Some(Trim { topic: Some(topic.clone()), upto })
    }

    /// Keeps the newest event of each key.
    fn keep(&mut self, event: &Event) {
        let Some(key) = &event.key else { return };
        let place = (event.topic.clone(), key.clone());
        if event.data.is_empty() {
            self.keyed.remove(&place);
        } else {
            self.keyed.insert(place, event.clone());
        }
    }

    /// What no floor has reached, be it published or not.
    fn retained(&self) -> impl DoubleEndedIterator<Item = &Event> {
        let floor = |topic| self.floors.get(topic).copied().unwrap_or(0);
        self.events.values().filter(move |e| e.id > self.log_floor && e.id > floor(&e.topic))
    }
}

fn failed_write() -> StoreError {
    StoreError::Io { doing: "writing", cause: "the model was told to fail".into() }
}

fn matches(filter: &Filter, event: &Event) -> bool {
    filter.matches_topic(event.topic.as_str()) && filter.matches_type(event.event.as_ref().map(EventType::as_str))
}

/// A log in memory.
#[derive(Debug, Default)]
pub struct ModelStore {
    state: Mutex<State>,
    /// Most records that a scan looks at; 0: [`SCAN_RECORDS_MAX`]. Small numbers make readers stop in many places.
    scan_max: usize,
}

impl ModelStore {
    /// A store whose scans stop after `scan_max` records.
    #[must_use]
    pub fn with_short_scans(scan_max: usize) -> Self {
        Self { scan_max, ..Self::default() }
    }

    /// Makes writes fail, or succeed again.
    pub fn set_failing(&self, failing: Failing) {
        self.state.lock().failing = failing;
    }

    /// How writes fail now.
    #[must_use]
    pub fn failing(&self) -> Failing {
        self.state.lock().failing
    }

    /// Makes the next [`Store::reopen`] leave a hole of so many ids.
    pub fn skip_ids(&self, ids: u64) {
        self.state.lock().skip = ids;
    }

    /// Makes scans fail, or succeed again.
    pub fn set_unreadable(&self, unreadable: bool) {
        self.state.lock().unreadable = unreadable;
    }
}

fn bytes_of(event: &Event) -> u64 {
    let name = |n: Option<&str>| n.map_or(0, |n| 1 + n.len());
    let names = name(event.event.as_ref().map(EventType::as_str)) + name(event.key.as_ref().map(Key::as_str));
    (8 + 14 + names + event.data.len()) as u64
}

/// The newest of `events` that is over a limit.
fn over<'a>(events: impl DoubleEndedIterator<Item = &'a Event>, limits: &Limits, now: Millis) -> EventId {
    let (mut count, mut bytes) = (0, 0);
    for event in events.rev() {
        count += 1;
        bytes += bytes_of(event);
        let old = limits.max_age > 0 && event.time < now.saturating_sub(limits.max_age);
        let many = limits.max_events > 0 && count > limits.max_events;
        if old || many || limits.max_bytes > 0 && bytes > limits.max_bytes {
            return event.id;
        }
    }
    0
}

impl Store for ModelStore {
    fn name(&self) -> Arc<str> {
        "model".into()
    }

    fn tail(&self) -> EventId {
        self.state.lock().tail
    }

    fn last_time(&self) -> Millis {
        self.state.lock().last_time
    }

    fn commit(&self, events: &[Event], remembered: &[Remembered]) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        state.write_begins()?;
        for event in events {
            assert!(event.id > state.tail && event.time >= state.last_time, "ids rise and times do not fall");
            (state.tail, state.last_time) = (event.id, event.time);
            assert!(!state.closed.contains_key(&event.topic), "nothing is appended to a topic that was closed");
            state.lasts.insert(event.topic.clone(), event.id);
            state.keep(event);
            state.events.insert(event.id, event.clone());
        }
        state.remembered.extend(remembered);
        state.write_ends(())
    }

    fn remembered(&self, key: Digest) -> Result<Option<Remembered>, StoreError> {
        Ok(self.state.lock().remembered.iter().rfind(|r| r.key == key).copied())
    }

    fn forget_keys(&self, before: Millis, most: u64) -> u64 {
        let mut state = self.state.lock();
        while state.remembered.front().is_some_and(|oldest| oldest.time < before) {
            state.remembered.pop_front();
        }
        let beyond = (state.remembered.len() as u64).saturating_sub(most);
        for _ in 0..beyond {
            state.remembered.pop_front();
        }
        beyond
    }

    fn keys_remembered(&self) -> u64 {
        self.state.lock().remembered.len() as u64
    }

    fn close_topic(&self, topic: &Topic) -> Result<EventId, StoreError> {
        let mut state = self.state.lock();
        state.write_begins()?;
        let last = state.lasts.get(topic).copied().unwrap_or(0);
        let last = *state.closed.entry(topic.clone()).or_insert(last);
        state.write_ends(last)
    }

    fn closed_at(&self, topic: &str) -> Option<EventId> {
        let state = self.state.lock();
        state.closed.iter().find(|(t, _)| t.as_str() == topic).map(|(_, &last)| last)
    }

    fn delete_topic(&self, topic: &Topic) -> Result<Option<Trim>, StoreError> {
        let mut state = self.state.lock();
        state.write_begins()?;
        state.keyed.retain(|(t, _), _| t != topic);
        state.snapshots.remove(topic);
        let rose = state.raise(topic, EventId::MAX);
        state.write_ends(rose)
    }

    fn state(
        &self,
        filter: &Filter,
        each: &mut dyn FnMut(&EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<EventId, StoreError> {
        let state = self.state.lock();
        if state.unreadable {
            return Err(StoreError::Io { doing: "reading", cause: "the model was told to fail".into() });
        }
        for event in state.keyed.values().filter(|event| matches(filter, event)) {
            if each(&event.as_ref()).is_break() {
                break;
            }
        }
        Ok(state.tail)
    }

    fn put_snapshot(&self, topic: &Topic, snapshot: &Snapshot) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        state.write_begins()?;
        state.snapshots.insert(topic.clone(), snapshot.clone());
        state.floors_told += 1;
        state.write_ends(())
    }

    fn snapshot(&self, topic: &str) -> Result<Option<Snapshot>, StoreError> {
        let state = self.state.lock();
        Ok(state.snapshots.iter().find(|(t, _)| t.as_str() == topic).map(|(_, snapshot)| snapshot.clone()))
    }

    fn snapshot_at(&self, topic: &str) -> Option<EventId> {
        let state = self.state.lock();
        state.snapshots.iter().find(|(t, _)| t.as_str() == topic).map(|(_, snapshot)| snapshot.at)
    }

    fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn room(&self, _bytes: u64) -> Result<(), StoreError> {
        Ok(())
    }

    fn writable(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn reopen(&self) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        state.floors_told += 1;
        if state.skip > 0 {
            state.tail += std::mem::take(&mut state.skip);
            state.hole = state.tail;
        }
        Ok(())
    }

    fn raise_floors(&self, trims: &[Trim]) -> Result<Vec<Trim>, StoreError> {
        let mut state = self.state.lock();
        state.write_begins()?;
        let mut rose = Vec::new();
        for trim in trims {
            match &trim.topic {
                None => {
                    let upto = trim.upto.min(state.tail);
                    if upto > state.log_floor {
                        state.log_floor = upto;
                        rose.push(Trim { topic: None, upto });
                    }
                }
                Some(topic) => rose.extend(state.raise(topic, trim.upto)),
            }
        }
        state.write_ends(rose)
    }

    fn floors_published(&self) {
        let mut state = self.state.lock();
        state.floors_told += 1;
        state.log_published = state.log_floor;
        let State { events, log_floor, floors, .. } = &mut *state;
        events.retain(|id, e| *id > *log_floor && *id > floors.get(&e.topic).copied().unwrap_or(0));
    }

    fn floors_told(&self) -> u64 {
        self.state.lock().floors_told
    }

    fn set_retention(&self, topic: &Topic, limits: Option<Limits>) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        state.write_begins()?;
        match limits {
            Some(limits) => state.retention.insert(topic.clone(), limits),
            None => state.retention.remove(topic),
        };
        state.write_ends(())
    }

    fn due_trims(&self, policy: &Policy, now: Millis) -> Result<Vec<Trim>, StoreError> {
        let state = self.state.lock();
        let mut trims = vec![Trim { topic: None, upto: over(state.retained(), &policy.log, now) }];
        for topic in state.lasts.keys() {
            let limits = state.retention.get(topic).copied().unwrap_or_else(|| policy.for_topic(topic.as_str()));
            let upto = over(state.retained().filter(|e| e.topic == *topic), &limits, now);
            let covered = state.snapshots.get(topic).filter(|_| limits.trim_to_snapshot).map_or(0, |s| s.at);
            let newest = state.retained().rfind(|e| e.topic == *topic && e.id <= covered).map_or(0, |e| e.id);
            let upto = upto.max(newest);
            trims.push(Trim { topic: Some(topic.clone()), upto });
        }
        trims.retain(|trim| trim.upto > 0);
        Ok(trims)
    }

    fn settle(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn tidy(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn scan(
        &self,
        scan: Scan<'_>,
        each: &mut dyn FnMut(&EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<EventId, StoreError> {
        let state = self.state.lock();
        if state.unreadable {
            return Err(StoreError::Io { doing: "reading", cause: "the model was told to fail".into() });
        }
        let max = if self.scan_max == 0 { SCAN_RECORDS_MAX } else { self.scan_max };
        if scan.after >= scan.upto {
            return Ok(scan.after);
        }
        for (looked, (&id, event)) in state.events.range(scan.after + 1..=scan.upto).enumerate() {
            if matches(scan.filter, event) && each(&event.as_ref()).is_break() || looked + 1 == max {
                return Ok(id);
            }
        }
        Ok(scan.upto)
    }

    fn look_back(&self, filter: &Filter, n: u64, upto: EventId) -> Result<Back, StoreError> {
        let state = self.state.lock();
        let mut left = n;
        let mut cursor = upto;
        let max = if self.scan_max == 0 { SCAN_RECORDS_MAX } else { self.scan_max };
        for (looked, (&id, event)) in state.events.range(..=upto).rev().enumerate() {
            if left == 0 || looked == max {
                return Ok(Back { cursor, left });
            }
            left -= u64::from(matches(filter, event));
            cursor = id - 1;
        }
        Ok(Back { cursor: if left == 0 { cursor } else { state.log_published.min(upto) }, left: 0 })
    }

    fn before_time(&self, time: Millis) -> Result<EventId, StoreError> {
        let state = self.state.lock();
        let earlier = state.events.values().rev().find(|e| e.time < time);
        Ok(earlier.map_or(0, |e| e.id).max(state.log_published))
    }

    fn log_floor(&self) -> EventId {
        self.state.lock().log_floor
    }

    fn floor(&self, filter: &Filter) -> Floor {
        let state = self.state.lock();
        let topics = state.floors.iter().filter(|(t, _)| filter.matches_topic(t.as_str())).map(|(_, &floor)| floor);
        let trimmed = Floor { id: topics.max().unwrap_or(0).max(state.log_floor), reason: GapReason::Trimmed };
        trimmed.max(Floor { id: state.hole, reason: GapReason::Lost })
    }

    fn earliest(&self) -> EventId {
        let state = self.state.lock();
        state.retained().next().map_or(state.tail + 1, |e| e.id)
    }

    fn last_of(&self, topic: &str) -> EventId {
        let state = self.state.lock();
        state.retained().rfind(|e| e.topic.as_str() == topic).map_or(0, |e| e.id)
    }

    fn retention_of(&self, topic: &str) -> Option<Limits> {
        self.state.lock().retention.get(topic).copied()
    }

    fn topic_count(&self) -> u64 {
        self.state.lock().known().len() as u64
    }

    fn has_topic(&self, topic: &str) -> bool {
        self.state.lock().known().iter().any(|t| t.as_str() == topic)
    }

    fn topics(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<TopicStats>, StoreError> {
        let state = self.state.lock();
        let names = state.known().into_iter();
        let names = names.filter(|t| t.as_str().starts_with(prefix) && after.is_none_or(|a| t.as_str() > a));
        let topics = names.map(|topic| {
            let events: Vec<_> = state.retained().filter(|e| e.topic == *topic).collect();
            TopicStats {
                topic: topic.clone(),
                earliest: events.first().map_or(0, |e| e.id),
                last: events.last().map_or(0, |e| e.id),
                events: events.len() as u64,
                bytes: events.iter().map(|e| bytes_of(e)).sum(),
                retention: state.retention.get(topic).copied(),
                closed: state.closed.contains_key(topic),
            }
        });
        let holds = |s: &TopicStats| {
            let marked = state.snapshots.contains_key(&s.topic) || state.keyed.keys().any(|(t, _)| *t == s.topic);
            s.events > 0 || s.retention.is_some() || s.closed || marked
        };
        Ok(topics.filter(holds).take(limit).collect())
    }

    fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
