//! The model store: the same face in memory, plain enough to be right by reading it. Tests judge the real store by it, and drive
//! the real state machines over it.
//!
//! Everything that a disk would hold is changed by a [`Write`], so what a disk may forget is a list of them: those that were not
//! synced. [`ModelStore::crash`] keeps as many of them as it is told to, from the first on. Whoever tests decides what fails, and when.

mod disk;

use std::ops::ControlFlow;
use std::sync::Arc;

use disk::{Disk, State, failed};
pub use disk::{Failing, Write};

use super::{
    Back, Durability, Floor, Limits, Policy, Remembered, SCAN_RECORDS_MAX, Scan, Snapshot, Store, StoreError,
    TopicStats, Trim,
};
use crate::event::{Digest, Event, EventId, EventRef, EventType, Key, Millis};
use crate::sse::GapReason;
use crate::sync::Mutex;
use crate::topic::{Filter, Topic};

fn matches(filter: &Filter, event: &Event) -> bool {
    filter.matches_topic(event.topic.as_str()) && filter.matches_type(event.event.as_ref().map(EventType::as_str))
}

/// A log in memory.
#[derive(Debug, Default)]
pub struct ModelStore {
    disk: Mutex<Disk>,
    durability: Durability,
    /// Ids that are reserved ahead where the durability is not `sync`.
    reserve: EventId,
    /// Most records that a scan looks at; 0: [`SCAN_RECORDS_MAX`]. Small numbers make readers stop in many places.
    scan_max: usize,
}

impl ModelStore {
    /// A store whose scans stop after `scan_max` records.
    #[must_use]
    pub fn with_short_scans(scan_max: usize) -> Self {
        Self { scan_max, ..Self::default() }
    }

    /// The same whose writes are as durable as that says; with another durability than `sync`, so many ids are reserved ahead.
    #[must_use]
    pub fn with_durability(self, durability: Durability, reserve: EventId) -> Self {
        Self { durability, reserve, ..self }
    }

    /// The same, which notes all that is written for [`ModelStore::take_written`].
    #[must_use]
    pub fn noting(self) -> Self {
        self.disk.lock().written = Some(Vec::new());
        self
    }

    /// What was written since this was last asked for.
    #[must_use]
    pub fn take_written(&self) -> Vec<Write> {
        self.disk.lock().written.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Makes writes fail, or succeed again.
    pub fn set_failing(&self, failing: Failing) {
        self.disk.lock().failing = failing;
    }

    /// Makes the next so many attempts to open it again fail; until one succeeds, nothing can be read either.
    pub fn fail_reopens(&self, times: u32) {
        self.disk.lock().failing_reopens = times;
    }

    /// Makes the next [`Store::reopen`] leave a hole of so many ids.
    pub fn skip_ids(&self, ids: u64) {
        self.disk.lock().skip = ids;
    }

    /// Makes reads fail, or succeed again.
    pub fn set_unreadable(&self, unreadable: bool) {
        self.disk.lock().unreadable = unreadable;
    }

    /// Makes the disk full, or not.
    pub fn set_full(&self, full: bool) {
        self.disk.lock().full = full;
    }

    /// How many writes a power cut may take.
    #[must_use]
    pub fn unsynced(&self) -> usize {
        self.disk.lock().unsynced.len()
    }

    /// How often floors were published.
    #[must_use]
    pub fn times_published(&self) -> u64 {
        self.disk.lock().published
    }

    /// Whoever used it has died, and it is opened again: of what was not synced the first `kept` writes are still there, and a write
    /// that was being tried only where all of them are. Gives how many of the last writes are gone.
    pub fn crash(&self, kept: usize) -> usize {
        let mut disk = self.disk.lock();
        let kept = kept.min(disk.unsynced.len());
        let lost = disk.unsynced.split_off(kept).len();
        let undecided = disk.undecided.take().filter(|_| lost == 0);
        if lost > 0 {
            disk.sync();
            disk.now = disk.synced.clone();
        }
        if let Some(write) = undecided {
            disk.put(write, self.durability);
        }
        disk.sync();
        disk.skip_reserved(self.durability);
        disk.now.publish();
        let Disk { now, synced, reserved, written, floors_told, .. } = std::mem::take(&mut *disk);
        *disk = Disk { now, synced, reserved, written, floors_told: floors_told + 1, ..Disk::default() };
        lost
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
        self.disk.lock().now.tail
    }

    fn last_time(&self) -> Millis {
        self.disk.lock().now.last_time
    }

    fn commit(&self, events: &[Event], remembered: &[Remembered]) -> Result<(), StoreError> {
        let mut disk = self.disk.lock();
        if let Some(newest) = events.last()
            && self.durability != Durability::Sync
            && newest.id >= disk.reserved
        {
            disk.writable()?;
            disk.fails()?;
            // The last that is reserved is never given: see the real store.
            disk.reserved = newest.id + self.reserve.max(1);
        }
        disk.write(Write::Commit(events.to_vec(), remembered.to_vec()), self.durability, false)
    }

    fn remembered(&self, key: Digest) -> Result<Option<Remembered>, StoreError> {
        let disk = self.disk.lock();
        disk.readable()?;
        Ok(disk.now.remembered.iter().rfind(|r| r.key == key).copied())
    }

    fn forget_keys(&self, before: Millis, most: u64) -> u64 {
        let mut disk = self.disk.lock();
        let kept = &mut disk.now.remembered;
        let all = kept.len();
        while kept.front().is_some_and(|oldest| oldest.time < before) {
            kept.pop_front();
        }
        let beyond = (kept.len() as u64).saturating_sub(most);
        for _ in 0..beyond {
            kept.pop_front();
        }
        let gone = all - kept.len();
        // What has been forgotten stays so, though the real store may remember some of it after a start.
        let Disk { synced, unsynced, .. } = &mut *disk;
        let later = unsynced.iter_mut().filter_map(|write| match write {
            Write::Commit(_, remembered) => Some(remembered),
            _ => None,
        });
        let mut left = gone;
        while left > 0 && synced.remembered.pop_front().is_some() {
            left -= 1;
        }
        for remembered in later {
            let some = left.min(remembered.len());
            remembered.drain(..some);
            left -= some;
        }
        beyond
    }

    fn keys_remembered(&self) -> u64 {
        self.disk.lock().now.remembered.len() as u64
    }

    fn close_topic(&self, topic: &Topic) -> Result<EventId, StoreError> {
        let mut disk = self.disk.lock();
        let last = disk.now.lasts.get(topic).copied().unwrap_or(0);
        let last = disk.now.closed.get(topic).copied().unwrap_or(last);
        disk.write(Write::Close(topic.clone(), last), self.durability, true)?;
        Ok(last)
    }

    fn closed_at(&self, topic: &str) -> Option<EventId> {
        let state = &self.disk.lock().now;
        state.closed.iter().find(|(t, _)| t.as_str() == topic).map(|(_, &last)| last)
    }

    fn delete_topic(&self, topic: &Topic) -> Result<Option<Trim>, StoreError> {
        let mut disk = self.disk.lock();
        let rose = disk.now.would_raise(topic, EventId::MAX);
        disk.write(Write::Delete(topic.clone(), rose.clone()), self.durability, true)?;
        Ok(rose)
    }

    fn state(
        &self,
        filter: &Filter,
        each: &mut dyn FnMut(&EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<EventId, StoreError> {
        let disk = self.disk.lock();
        disk.readable()?;
        let state = &disk.now;
        for event in state.keyed.values().filter(|event| matches(filter, event)) {
            if each(&event.as_ref()).is_break() {
                break;
            }
        }
        Ok(state.tail)
    }

    fn put_snapshot(&self, topic: &Topic, snapshot: &Snapshot) -> Result<(), StoreError> {
        let mut disk = self.disk.lock();
        disk.write(Write::Keep(topic.clone(), snapshot.clone()), self.durability, true)?;
        disk.floors_told += 1;
        Ok(())
    }

    fn snapshot(&self, topic: &str) -> Result<Option<Snapshot>, StoreError> {
        let disk = self.disk.lock();
        disk.readable()?;
        Ok(disk.now.snapshots.iter().find(|(t, _)| t.as_str() == topic).map(|(_, snapshot)| snapshot.clone()))
    }

    fn snapshot_at(&self, topic: &str) -> Option<EventId> {
        let state = &self.disk.lock().now;
        state.snapshots.iter().find(|(t, _)| t.as_str() == topic).map(|(_, snapshot)| snapshot.at)
    }

    fn sync(&self) -> Result<(), StoreError> {
        let mut disk = self.disk.lock();
        disk.writable()?;
        disk.fails()?;
        disk.sync();
        Ok(())
    }

    fn room(&self, _bytes: u64) -> Result<(), StoreError> {
        if self.disk.lock().full { Err(StoreError::Full { free: 0, needed: 1 }) } else { Ok(()) }
    }

    fn writable(&self) -> Result<(), StoreError> {
        self.disk.lock().writable()
    }

    fn reopen(&self) -> Result<(), StoreError> {
        let mut disk = self.disk.lock();
        if disk.failing_reopens > 0 {
            disk.failing_reopens -= 1;
            disk.shut = true;
            return Err(failed("opening"));
        }
        (disk.poisoned, disk.shut) = (false, false);
        disk.floors_told += 1;
        if let Some(write) = disk.undecided.take() {
            disk.put(write, self.durability);
        }
        let skip = std::mem::take(&mut disk.skip);
        if skip > 0 {
            disk.reserved = disk.reserved.max(disk.now.tail + skip);
        }
        disk.sync();
        disk.skip_reserved(self.durability);
        Ok(())
    }

    fn raise_floors(&self, trims: &[Trim]) -> Result<Vec<Trim>, StoreError> {
        let mut disk = self.disk.lock();
        let mut rose = Vec::new();
        // Judged one after the other: a floor may be named twice, and a topic's that the log's has overtaken is none.
        let mut floors = State { floors: disk.now.floors.clone(), ..State::default() };
        (floors.lasts, floors.log_floor) = (disk.now.lasts.clone(), disk.now.log_floor);
        for trim in trims {
            let would = match &trim.topic {
                None => {
                    let upto = trim.upto.min(disk.now.tail);
                    (upto > floors.log_floor).then_some(Trim { topic: None, upto })
                }
                Some(topic) => floors.would_raise(topic, trim.upto),
            };
            if let Some(trim) = &would {
                floors.raise(trim);
            }
            rose.extend(would);
        }
        disk.writable()?;
        if !rose.is_empty() {
            disk.write(Write::Floors(rose.clone()), self.durability, true)?;
        }
        Ok(rose)
    }

    fn floors_published(&self) {
        let mut disk = self.disk.lock();
        disk.floors_told += 1;
        disk.published += 1;
        disk.now.publish();
    }

    fn floors_told(&self) -> u64 {
        self.disk.lock().floors_told
    }

    fn set_retention(&self, topic: &Topic, limits: Option<Limits>) -> Result<(), StoreError> {
        self.disk.lock().write(Write::Retain(topic.clone(), limits), self.durability, true)
    }

    fn due_trims(&self, policy: &Policy, now: Millis) -> Result<Vec<Trim>, StoreError> {
        let disk = self.disk.lock();
        disk.readable()?;
        let state = &disk.now;
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
        let disk = self.disk.lock();
        disk.readable()?;
        let state = &disk.now;
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
        let disk = self.disk.lock();
        disk.readable()?;
        let state = &disk.now;
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
        let disk = self.disk.lock();
        disk.readable()?;
        let state = &disk.now;
        let earlier = state.events.values().rev().find(|e| e.time < time);
        Ok(earlier.map_or(0, |e| e.id).max(state.log_published))
    }

    fn log_floor(&self) -> EventId {
        self.disk.lock().now.log_floor
    }

    fn floor(&self, filter: &Filter) -> Floor {
        let state = &self.disk.lock().now;
        let topics = state.floors.iter().filter(|(t, _)| filter.matches_topic(t.as_str())).map(|(_, &floor)| floor);
        let trimmed = Floor { id: topics.max().unwrap_or(0).max(state.log_floor), reason: GapReason::Trimmed };
        trimmed.max(Floor { id: state.hole, reason: GapReason::Lost })
    }

    fn earliest(&self) -> EventId {
        let state = &self.disk.lock().now;
        state.events.keys().next().map_or(state.tail + 1, |id| *id)
    }

    fn last_of(&self, topic: &str) -> EventId {
        let state = &self.disk.lock().now;
        state.retained().rfind(|e| e.topic.as_str() == topic).map_or(0, |e| e.id)
    }

    fn retention_of(&self, topic: &str) -> Option<Limits> {
        self.disk.lock().now.retention.get(topic).copied()
    }

    fn topic_count(&self) -> u64 {
        self.disk.lock().now.known().len() as u64
    }

    fn has_topic(&self, topic: &str) -> bool {
        self.disk.lock().now.known().iter().any(|t| t.as_str() == topic)
    }

    fn topics(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<TopicStats>, StoreError> {
        let state = &self.disk.lock().now;
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
        let mut disk = self.disk.lock();
        if disk.writable().is_ok() {
            disk.fails()?;
            disk.sync();
            disk.reserved = disk.now.tail;
        }
        disk.shut = true;
        Ok(())
    }
}
