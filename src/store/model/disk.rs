//! The disk of the model: what it holds, what of that is synced, and what ails it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::{Durability, Limits, Remembered, Snapshot, StoreError, Trim};
use crate::event::{Event, EventId, Key, Millis};
use crate::topic::Topic;

/// How writes fail. One that has failed stops all that come after it, until the log was opened again.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Failing {
    /// They do not.
    #[default]
    No,
    /// Nothing is written.
    Unwritten,
    /// All is written, and yet the answer is an error; nobody finds it before the log is opened again.
    Written,
}

/// What is written at once: all of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Commit(Vec<Event>, Vec<Remembered>),
    /// Floors, each where it now is.
    Floors(Vec<Trim>),
    /// With the floor that rose, if one did.
    Delete(Topic, Option<Trim>),
    /// With the id of the topic's newest event.
    Close(Topic, EventId),
    Keep(Topic, Snapshot),
    Retain(Topic, Option<Limits>),
    /// Ids after the one up to the other were skipped.
    Skip(EventId, EventId),
}

#[derive(Debug, Default, Clone)]
pub(super) struct State {
    pub(super) events: BTreeMap<EventId, Event>,
    pub(super) tail: EventId,
    pub(super) last_time: Millis,
    pub(super) log_floor: EventId,
    /// The log's floor as readers were told it; what lies below published floors is no longer in `events`.
    pub(super) log_published: EventId,
    pub(super) floors: BTreeMap<Topic, EventId>,
    /// The end of the newest hole.
    pub(super) hole: EventId,
    pub(super) lasts: BTreeMap<Topic, EventId>,
    pub(super) retention: BTreeMap<Topic, Limits>,
    /// The newest event of each topic and key.
    pub(super) keyed: BTreeMap<(Topic, Key), Event>,
    pub(super) snapshots: BTreeMap<Topic, Snapshot>,
    pub(super) closed: BTreeMap<Topic, EventId>,
    /// In the order in which they were remembered.
    pub(super) remembered: VecDeque<Remembered>,
}

impl State {
    pub(super) fn apply(&mut self, write: &Write) {
        match write {
            Write::Commit(events, remembered) => {
                for event in events {
                    assert!(event.id > self.tail && event.time >= self.last_time, "ids rise and times do not fall");
                    assert!(!self.closed.contains_key(&event.topic), "nothing is appended to a closed topic");
                    (self.tail, self.last_time) = (event.id, event.time);
                    self.lasts.insert(event.topic.clone(), event.id);
                    self.keep(event);
                    self.events.insert(event.id, event.clone());
                }
                self.remembered.extend(remembered);
            }
            Write::Floors(rose) => {
                for trim in rose {
                    self.raise(trim);
                }
            }
            Write::Delete(topic, rose) => {
                self.keyed.retain(|(t, _), _| t != topic);
                self.snapshots.remove(topic);
                if let Some(trim) = rose {
                    self.raise(trim);
                }
            }
            Write::Close(topic, last) => {
                self.closed.entry(topic.clone()).or_insert(*last);
            }
            Write::Keep(topic, snapshot) => {
                self.snapshots.insert(topic.clone(), snapshot.clone());
            }
            Write::Retain(topic, Some(limits)) => {
                self.retention.insert(topic.clone(), *limits);
            }
            Write::Retain(topic, None) => {
                self.retention.remove(topic);
            }
            Write::Skip(_, upto) => (self.tail, self.hole) = (*upto, *upto),
        }
    }

    pub(super) fn raise(&mut self, trim: &Trim) {
        match &trim.topic {
            None => self.log_floor = trim.upto,
            Some(topic) => drop(self.floors.insert(topic.clone(), trim.upto)),
        }
    }

    /// What lies below the floors goes.
    pub(super) fn publish(&mut self) {
        self.log_published = self.log_floor;
        let Self { events, log_floor, floors, .. } = self;
        events.retain(|id, e| *id > *log_floor && *id > floors.get(&e.topic).copied().unwrap_or(0));
    }

    /// The topics of which something is remembered.
    pub(super) fn known(&self) -> BTreeSet<&Topic> {
        let keyed = self.keyed.keys().map(|(topic, _)| topic);
        let marked = self.retention.keys().chain(self.snapshots.keys()).chain(self.closed.keys());
        self.lasts.keys().chain(marked).chain(keyed).collect()
    }

    /// A topic's floor where it would rise to `upto`, if it would.
    pub(super) fn would_raise(&self, topic: &Topic, upto: EventId) -> Option<Trim> {
        let upto = upto.min(self.lasts.get(topic).copied().unwrap_or(0));
        let floor = self.floors.get(topic).copied().unwrap_or(0);
        (upto > floor.max(self.log_floor)).then(|| Trim { topic: Some(topic.clone()), upto })
    }

    /// Keeps the newest event of each key.
    pub(super) fn keep(&mut self, event: &Event) {
        let Some(key) = &event.key else { return };
        let place = (event.topic.clone(), key.clone());
        if event.data.is_empty() {
            self.keyed.remove(&place);
        } else {
            self.keyed.insert(place, event.clone());
        }
    }

    /// What no floor has reached, be it published or not.
    pub(super) fn retained(&self) -> impl DoubleEndedIterator<Item = &Event> {
        let floor = |topic| self.floors.get(topic).copied().unwrap_or(0);
        self.events.values().filter(move |e| e.id > self.log_floor && e.id > floor(&e.topic))
    }
}

pub(super) fn failed(doing: &'static str) -> StoreError {
    StoreError::Io { doing, cause: "the model was told to fail".into() }
}

/// The disk, and what the process knows beside it.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is something else that ails a disk")]
pub(super) struct Disk {
    /// What readers find.
    pub(super) now: State,
    /// With another durability than `sync`: what survives whatever happens, and what was written since.
    pub(super) synced: State,
    pub(super) unsynced: Vec<Write>,
    /// Ids up to here may have been given out; kept in a file of its own, which is always synced.
    pub(super) reserved: EventId,
    /// A write that failed, and is found when the log is opened again.
    pub(super) undecided: Option<Write>,
    /// A write has failed: no other is tried.
    pub(super) poisoned: bool,
    /// The log could not be opened again, and is not open.
    pub(super) shut: bool,
    pub(super) failing: Failing,
    /// So many reopenings fail.
    pub(super) failing_reopens: u32,
    pub(super) unreadable: bool,
    pub(super) full: bool,
    /// How many ids the next reopening skips.
    pub(super) skip: EventId,
    /// How often floors were published, a snapshot was kept, or the log was opened again.
    pub(super) floors_told: u64,
    pub(super) published: u64,
    /// All that was written, where somebody wants to know.
    pub(super) written: Option<Vec<Write>>,
}

impl Disk {
    pub(super) fn readable(&self) -> Result<(), StoreError> {
        match (self.shut, self.unreadable) {
            (true, _) => Err(StoreError::Closed),
            (_, true) => Err(failed("reading")),
            _ => Ok(()),
        }
    }

    pub(super) fn writable(&self) -> Result<(), StoreError> {
        match (self.shut, self.poisoned) {
            (true, _) => Err(StoreError::Closed),
            (_, true) => Err(failed("writing")),
            _ => Ok(()),
        }
    }

    pub(super) fn fails(&mut self) -> Result<(), StoreError> {
        if self.failing == Failing::No {
            return Ok(());
        }
        self.poisoned = true;
        Err(failed("writing"))
    }

    /// Writes, as durably as `durability` says, or `synced`, and with it all that came before.
    pub(super) fn write(&mut self, write: Write, durability: Durability, synced: bool) -> Result<(), StoreError> {
        self.writable()?;
        if let Err(error) = self.fails() {
            self.undecided = Some(write).filter(|_| self.failing == Failing::Written);
            return Err(error);
        }
        self.put(write, durability);
        if synced {
            self.sync();
        }
        Ok(())
    }

    pub(super) fn put(&mut self, write: Write, durability: Durability) {
        self.now.apply(&write);
        if let Some(written) = &mut self.written {
            written.push(write.clone());
        }
        if durability != Durability::Sync {
            self.unsynced.push(write);
        }
    }

    pub(super) fn sync(&mut self) {
        let Self { synced, unsynced, .. } = self;
        unsynced.drain(..).for_each(|write| synced.apply(&write));
    }

    /// What was reserved and may have been given out is skipped.
    pub(super) fn skip_reserved(&mut self, durability: Durability) {
        if self.reserved > self.now.tail {
            self.put(Write::Skip(self.now.tail, self.reserved), durability);
            self.sync();
        }
    }
}
