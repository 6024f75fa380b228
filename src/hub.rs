//! The present: the broadcast channel. A ring of the newest durable batches, and who waits for what.
//!
//! [`Hub`] is plain state without I/O: what happened goes in, and whom to wake comes out. Its owner keeps it behind one lock that
//! is held for no longer than one call. What holds: batches lie in the ring in order and without a hole between them; a subscriber
//! that waits is woken by the first batch that matches, so one that was not woken has missed nothing up to the tail. Must not know
//! sockets, tokio, the disk or the clock: `W` is whatever wakes a subscriber, and time is an argument.

mod batch;
mod listed;
#[doc(hidden)]
pub mod matcher;
pub mod pages;
mod ring;
mod rises;
mod search;
pub mod wake;
mod walk;
mod wheel;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use slab::Slab;

pub use self::batch::Batch;
use self::listed::{BatchNumber, LISTED_MAX, Listed};
use self::matcher::Matcher;
use self::pages::Pages;
use self::ring::Ring;
use self::rises::Rises;
use self::walk::Walked;
use self::wheel::Wheel;
use crate::event::{Event, EventId, Millis};
use crate::sse::Floor;
use crate::topic::{Filter, Topic};

/// A subscriber of this hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscriberKey {
    at: u32,
    /// Tells subscribers apart that were given the same place one after the other.
    serial: u32,
}

/// Where a cursor stands.
#[derive(Debug, Clone)]
pub enum Place {
    /// Before the ring: the store has what comes next, up to this id.
    Disk { upto: EventId },
    /// In the ring: these batches are the next that have something for the filter, at least one.
    Ring(Vec<Arc<Batch>>),
    /// Nothing newer; the cursor is now the tail. Whoever asked is woken by the first batch that matches.
    Edge { tail: EventId },
    /// Nothing up to here, but more batches are to be looked at: ask again.
    Walking { cursor: EventId },
    /// Nothing newer, and nothing more comes: all topics of the filter were closed, the newest of their events was this.
    Closed { last: EventId, tail: EventId },
    /// The hub is draining: nothing more comes.
    Drained,
}

/// One subscriber's wait.
struct Subscriber<W> {
    serial: u32,
    filter: u32,
    /// What rose after the trim of this number concerns it.
    trims: u64,
    /// What rose before, but after its beginning was fixed. Boxed, as few have one.
    floor: Option<Box<Floor>>,
    wake: Option<W>,
    /// Where it is in its filter's list; [`NOWHERE`] while it does not wait.
    waiting: u32,
    /// Nothing that matches lies between where it waited and here.
    jump: EventId,
    /// When it last sent something, as [`short_time`]: its heartbeat is due a heartbeat later.
    sent: u32,
}

/// What all subscribers with the same filter share.
struct LiveFilter {
    filter: Arc<Filter>,
    subscribers: usize,
    /// Places of subscribers: one that goes takes itself out of it.
    waiting: Vec<u32>,
    /// Nothing after this id matches, in the ring or later.
    last_match: EventId,
    /// All its topics were closed; the newest of their events.
    closed: Option<EventId>,
    rises: Rises,
    /// The batch for which it was last found.
    found_for: u64,
    /// Where few batches match, and they are not listed by topic. Boxed, as few filters have one.
    listed: Option<Box<Listed>>,
}

/// The place of one that does not wait. No list is as long.
const NOWHERE: u32 = u32::MAX;

/// A place among the subscribers or the filters, in the four bytes that it is kept in: an idle subscriber is to cost little.
fn short(at: usize) -> u32 {
    u32::try_from(at).expect("four billion subscribers do not fit into memory")
}

fn long(at: u32) -> usize {
    at as usize
}

/// The low four bytes of a time, for the same reason. They tell it as long as it is less than 24 days away, and a heartbeat is a day at the most.
fn short_time(time: Millis) -> u32 {
    u32::try_from(time & u64::from(u32::MAX)).expect("it was masked to 32 bits")
}

/// The time near `now` whose low four bytes these are.
fn long_time(time: u32, now: Millis) -> Millis {
    now.saturating_add_signed(i64::from(time.wrapping_sub(short_time(now)).cast_signed()))
}

/// The broadcast channel.
pub struct Hub<W> {
    ring: Ring,
    /// How many numbers of batches the lists of all filters have.
    listed_numbers: usize,
    /// Where the ring began when those lists were last swept.
    swept: BatchNumber,
    tail: EventId,
    /// How often floors were raised.
    trims: u64,
    /// Who waits for the tail to be there, for as long as it takes from a write to here: requests for a head, and those who gather a state.
    awaits: Vec<(EventId, W)>,
    drained: bool,
    filters: Slab<LiveFilter>,
    by_filter: HashMap<Arc<Filter>, usize>,
    matcher: Matcher,
    subscribers: Pages<Subscriber<W>>,
    serial: u64,
    wheel: Wheel,
}

/// How a hub is set up.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Bytes of frames and events that the ring keeps; what is pushed out is read from the store.
    pub ring_bytes_max: usize,
    /// A subscriber that has sent nothing for so long is woken.
    pub heartbeat: Duration,
}

impl Default for Options {
    /// 64 MiB: half a second at the fastest that one publisher's batches were measured, minutes at ordinary rates.
    fn default() -> Self {
        Self { ring_bytes_max: 64 << 20, heartbeat: Duration::from_secs(15) }
    }
}

impl<W> Hub<W> {
    /// A hub whose log ends at `tail`.
    #[must_use]
    pub fn new(options: Options, tail: EventId) -> Self {
        Self {
            ring: Ring::new(tail, options.ring_bytes_max),
            listed_numbers: 0,
            swept: 0,
            tail,
            trims: 0,
            awaits: Vec::new(),
            drained: false,
            filters: Slab::new(),
            by_filter: HashMap::new(),
            matcher: Matcher::default(),
            subscribers: Pages::default(),
            serial: 0,
            wheel: Wheel::new(options.heartbeat),
        }
    }

    /// The largest id that is durable and readable.
    #[must_use]
    pub fn tail(&self) -> EventId {
        self.tail
    }

    /// Bytes that the ring holds.
    #[must_use]
    pub fn ring_bytes(&self) -> usize {
        self.ring.bytes()
    }

    /// How many subscribers there are.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.subscribers.len()
    }

    /// How many subscribers want events of `topic`.
    #[must_use]
    pub fn subscribers_of(&mut self, topic: &str) -> usize {
        self.serial += 1;
        let (serial, filters) = (self.serial, &mut self.filters);
        let mut sum = 0;
        self.matcher.each(topic, &mut |at| {
            if let Some(live) = filters.get_mut(at)
                && live.found_for != serial
            {
                live.found_for = serial;
                sum += live.subscribers;
            }
        });
        sum
    }

    /// How often floors were raised so far. Whoever fixes a beginning asks for it before all else.
    #[must_use]
    pub fn trims(&self) -> u64 {
        self.trims
    }

    /// Takes in a subscriber for `filter` whose beginning was fixed when [`Hub::trims`] was `trims`. With `true`, floors were raised
    /// since, and which ones is not known here: raise its own with [`Hub::raise_floor`] by what the store says after this call.
    pub fn attach(&mut self, filter: &Arc<Filter>, now: Millis, trims: u64) -> (SubscriberKey, bool) {
        let at = if let Some(&at) = self.by_filter.get(filter) {
            at
        } else {
            let live = LiveFilter {
                filter: filter.clone(),
                subscribers: 0,
                waiting: Vec::new(),
                last_match: self.tail,
                closed: None,
                rises: Rises::default(),
                found_for: 0,
                listed: None,
            };
            let at = self.filters.insert(live);
            self.by_filter.insert(filter.clone(), at);
            self.matcher.insert(filter, at);
            at
        };
        self.filters[at].subscribers += 1;
        self.serial += 1;
        // Wraps after four billion, which no key outlives.
        let serial = u32::try_from(self.serial & u64::from(u32::MAX)).unwrap_or(0);
        let subscriber = Subscriber {
            serial,
            filter: short(at),
            trims: self.trims,
            floor: None,
            wake: None,
            waiting: NOWHERE,
            jump: 0,
            sent: short_time(now),
        };
        let key = SubscriberKey { at: short(self.subscribers.insert(subscriber)), serial };
        self.wheel.insert(key, now);
        (key, trims != self.trims)
    }

    /// Lets a subscriber go; one that is gone already is passed over.
    pub fn detach(&mut self, key: SubscriberKey) {
        if self.get(key).is_none() {
            return;
        }
        self.stop_waiting(key);
        let Some(gone) = self.subscribers.remove(long(key.at)) else { return };
        let filter = long(gone.filter);
        let live = &mut self.filters[filter];
        live.subscribers -= 1;
        if live.subscribers == 0 {
            let live = self.filters.remove(filter);
            self.listed_numbers -= live.listed.map_or(0, |listed| listed.len());
            self.by_filter.remove(&live.filter);
            self.matcher.remove(&live.filter, filter);
        }
    }

    fn get(&self, key: SubscriberKey) -> Option<&Subscriber<W>> {
        self.subscribers.get(long(key.at)).filter(|s| s.serial == key.serial)
    }

    fn get_mut(&mut self, key: SubscriberKey) -> Option<&mut Subscriber<W>> {
        self.subscribers.get_mut(long(key.at)).filter(|s| s.serial == key.serial)
    }

    fn stop_waiting(&mut self, key: SubscriberKey) {
        let Some(subscriber) = self.get_mut(key) else { return };
        let (place, filter) = (std::mem::replace(&mut subscriber.waiting, NOWHERE), long(subscriber.filter));
        if place == NOWHERE {
            return;
        }
        let waiting = &mut self.filters[filter].waiting;
        waiting.swap_remove(long(place));
        if let Some(&moved) = waiting.get(long(place))
            && let Some(moved) = self.subscribers.get_mut(long(moved))
        {
            moved.waiting = place;
        }
    }

    /// Up to where nothing is left to hand out to this subscriber, as far as the hub knows: one that waits and was not woken has
    /// seen everything.
    #[must_use]
    pub fn passed(&self, key: SubscriberKey) -> EventId {
        self.get(key).map_or(0, |s| if s.waiting == NOWHERE { s.jump } else { self.tail })
    }

    /// It begins again, maybe at a smaller id: nothing counts as seen any more.
    pub fn begin_again(&mut self, key: SubscriberKey) {
        self.stop_waiting(key);
        if let Some(subscriber) = self.get_mut(key) {
            subscriber.jump = 0;
        }
    }

    /// The filter that it shares with all that have an equal one.
    #[must_use]
    pub fn filter(&self, key: SubscriberKey) -> Option<Arc<Filter>> {
        self.get(key).map(|s| self.filters[long(s.filter)].filter.clone())
    }

    /// Up to where events that this subscriber asked for may have gone since its beginning was fixed. Floors of before do not count:
    /// one that is higher must not hide one that is raised now.
    #[must_use]
    pub fn floor(&self, key: SubscriberKey) -> Floor {
        self.get(key).map_or(Floor::NONE, |s| {
            let own = s.floor.as_deref().copied().unwrap_or(Floor::NONE);
            self.filters[long(s.filter)].rises.since(s.trims).max(own)
        })
    }

    /// Raises the floor of one subscriber.
    pub fn raise_floor(&mut self, key: SubscriberKey, floor: Floor) {
        if let Some(subscriber) = self.get_mut(key) {
            let own = subscriber.floor.as_deref().copied().unwrap_or(Floor::NONE);
            subscriber.floor = Some(Box::new(own.max(floor)));
        }
    }

    /// Where `cursor` stands. Of the ring it is given about `bytes_max` bytes of events, and one batch at least. At the edge, `wake` is
    /// kept and used once: by the first batch that matches, the heartbeat, or the drain. `sent` is when the subscriber last sent something.
    pub fn place(
        &mut self,
        key: SubscriberKey,
        cursor: EventId,
        sent: Millis,
        bytes_max: usize,
        wake: impl FnOnce() -> W,
    ) -> Place {
        if self.drained {
            return Place::Drained;
        }
        let Some(subscriber) = self.get_mut(key) else { return Place::Drained };
        subscriber.sent = short_time(sent);
        let cursor = cursor.max(subscriber.jump);
        let filter = long(subscriber.filter);
        let live = &self.filters[filter];
        if cursor >= self.tail.min(live.last_match) {
            return self.edge(key, filter, wake);
        }
        self.stop_waiting(key);
        if cursor < self.ring.after() {
            return Place::Disk { upto: self.tail };
        }
        match self.walk(filter, cursor, bytes_max) {
            Walked::Found(batches) => return Place::Ring(batches),
            Walked::On { cursor } => return Place::Walking { cursor },
            Walked::End => {}
        }
        self.filters[filter].last_match = cursor;
        self.edge(key, filter, wake)
    }

    /// Whether nothing matches beyond `upto`, so that one who is given everything up to there waits from now on, as in [`Hub::place`];
    /// `sent` is when it is given that. Where its end is to be told, or the hub drains, it does not wait.
    pub fn waits_beyond(&mut self, key: SubscriberKey, upto: EventId, sent: Millis, wake: impl FnOnce() -> W) -> bool {
        let Some(filter) = self.get(key).map(|s| long(s.filter)) else { return false };
        let live = &self.filters[filter];
        if self.drained || live.closed.is_some() || upto < self.tail.min(live.last_match) {
            return false;
        }
        if let Some(subscriber) = self.get_mut(key) {
            subscriber.sent = short_time(sent);
        }
        self.wait(key, wake());
        true
    }

    fn edge(&mut self, key: SubscriberKey, filter: usize, wake: impl FnOnce() -> W) -> Place {
        if let Some(last) = self.filters[filter].closed {
            return Place::Closed { last, tail: self.tail };
        }
        self.wait(key, wake());
        Place::Edge { tail: self.tail }
    }

    fn wait(&mut self, key: SubscriberKey, wake: W) {
        let tail = self.tail;
        let Some(subscriber) = self.get_mut(key) else { return };
        subscriber.jump = tail;
        subscriber.wake = Some(wake);
        if subscriber.waiting == NOWHERE {
            let filter = long(subscriber.filter);
            let place = short(self.filters[filter].waiting.len());
            self.filters[filter].waiting.push(key.at);
            if let Some(subscriber) = self.get_mut(key) {
                subscriber.waiting = place;
            }
        }
    }

    /// Takes in events that are now durable, ascending and beyond the tail, and gives whom to wake.
    pub fn push(&mut self, events: Vec<Event>) -> Vec<W> {
        let mut wakes = Vec::new();
        for batch in Batch::cut(self.tail, events) {
            self.serial += 1;
            self.tail = batch.last();
            self.find(&batch, &mut wakes);
            self.ring.push(batch);
        }
        self.ring.evict();
        wakes.extend(self.reached());
        wakes
    }

    fn find(&mut self, batch: &Batch, wakes: &mut Vec<W>) {
        let (serial, filters, subscribers) = (self.serial, &mut self.filters, &mut self.subscribers);
        let (number, begin, all_listed) = (self.ring.end(), self.ring.begin(), &mut self.listed_numbers);
        for topic in batch.topics() {
            self.matcher.each(topic.as_str(), &mut |at| {
                let Some(live) = filters.get_mut(at) else { return };
                if live.found_for == serial || !(live.filter.is_every_type() || batch.matches(&live.filter)) {
                    return;
                }
                live.found_for = serial;
                live.last_match = batch.last();
                if let Some(mut listed) = live.listed.take() {
                    *all_listed -= listed.len();
                    listed.forget_before(begin);
                    // Else it is listed again by the first who needs it, from the newest batch on.
                    if *all_listed + listed.len() < LISTED_MAX {
                        listed.push(number);
                        *all_listed += listed.len();
                        live.listed = Some(listed);
                    }
                }
                for at in live.waiting.drain(..) {
                    if let Some(subscriber) = subscribers.get_mut(long(at)) {
                        subscriber.waiting = NOWHERE;
                        subscriber.jump = batch.after();
                        wakes.extend(subscriber.wake.take());
                    }
                }
            });
        }
    }

    /// Counts bytes that a batch has grown by, as it was encoded in another form; one that has left the ring meanwhile, or was
    /// replaced in it by what a trim left, counts no more.
    pub fn grown(&mut self, batch: &Batch, bytes: usize) {
        self.ring.grown(batch, bytes);
    }

    /// Moves the tail over ids that stay without an event, and gives whom to wake.
    pub fn skip_to(&mut self, tail: EventId) -> Vec<W> {
        if tail > self.tail {
            self.tail = tail;
            self.forget();
        }
        self.reached().collect()
    }

    /// Forgets what the ring holds: the store has all of it, but for what it may hide by now.
    pub fn forget(&mut self) {
        self.ring.forget(self.tail);
        self.filters.iter_mut().for_each(|(_, live)| live.listed = None);
        self.listed_numbers = 0;
    }

    /// The whole log was trimmed up to `floor`: readers below it are told, and the ring forgets what it holds of it.
    pub fn trim_log(&mut self, floor: Floor) {
        self.raise_floors(|_| floor);
        self.ring.trim(floor.id);
    }

    /// Raises the floor of every filter to what `floor` says of it. What the ring holds stays.
    pub fn raise_floors(&mut self, floor: impl Fn(&Filter) -> Floor) {
        self.trims += 1;
        for (_, live) in &mut self.filters {
            live.rises.raise(self.trims, floor(&live.filter));
        }
    }

    /// Topics were trimmed, each up to its floor: readers below are told, and the ring forgets what it holds of them.
    pub fn trim_topics(&mut self, floors: &HashMap<Topic, Floor>) {
        self.trims += 1;
        for (topic, floor) in floors {
            let (trims, filters) = (self.trims, &mut self.filters);
            self.matcher.each(topic.as_str(), &mut |at| {
                if let Some(live) = filters.get_mut(at) {
                    live.rises.raise(trims, *floor);
                }
            });
        }
        self.ring.trim_topics(floors);
    }

    /// A topic was closed, after all its events were pushed. `closed` tells of a filter whether all its topics are now, and the newest of
    /// their events. Gives whom to wake.
    pub fn close(&mut self, topic: &str, closed: impl Fn(&Filter) -> Option<EventId>) -> Vec<W> {
        let mut concerned = Vec::new();
        self.matcher.each(topic, &mut |at| concerned.push(at));
        self.close_each(concerned, closed)
    }

    /// The same where any topic may have been closed.
    pub fn close_any(&mut self, closed: impl Fn(&Filter) -> Option<EventId>) -> Vec<W> {
        let all = self.filters.iter().map(|(at, _)| at).collect();
        self.close_each(all, closed)
    }

    fn close_each(&mut self, concerned: Vec<usize>, closed: impl Fn(&Filter) -> Option<EventId>) -> Vec<W> {
        let mut wakes = Vec::new();
        for at in concerned {
            let Some(live) = self.filters.get_mut(at).filter(|live| live.filter.is_literal()) else { continue };
            live.closed = closed(&live.filter);
            if live.closed.is_none() {
                continue;
            }
            for at in live.waiting.drain(..) {
                if let Some(subscriber) = self.subscribers.get_mut(long(at)) {
                    subscriber.waiting = NOWHERE;
                    subscriber.jump = self.tail;
                    wakes.extend(subscriber.wake.take());
                }
            }
        }
        wakes
    }

    /// Where all topics of this subscriber's filter were closed: the newest of their events.
    #[must_use]
    pub fn closed(&self, key: SubscriberKey) -> Option<EventId> {
        self.get(key).and_then(|s| self.filters[long(s.filter)].closed)
    }

    /// All topics of this subscriber's filter are closed already; `last` is the newest of their events.
    pub fn mark_closed(&mut self, key: SubscriberKey, last: EventId) {
        if let Some(filter) = self.get(key).map(|s| long(s.filter)) {
            self.filters[filter].closed = Some(last);
        }
    }

    /// Whether the tail is at `id`, or nothing more comes; otherwise `wake` is kept until it is.
    pub fn has_reached(&mut self, id: EventId, wake: impl FnOnce() -> W) -> bool {
        if self.tail >= id || self.drained {
            return true;
        }
        self.awaits.push((id, wake()));
        false
    }

    fn reached(&mut self) -> impl Iterator<Item = W> {
        let tail = self.tail;
        self.awaits.extract_if(.., move |(id, _)| *id <= tail).map(|(_, wake)| wake)
    }

    /// Gives whom to wake at `now` for a heartbeat.
    pub fn beat(&mut self, now: Millis) -> Vec<W> {
        let subscribers = &mut self.subscribers;
        let mut wakes = Vec::new();
        self.wheel.turn(now, &mut |key, heartbeat| {
            let subscriber = subscribers.get_mut(long(key.at)).filter(|s| s.serial == key.serial)?;
            let due = long_time(subscriber.sent, now) + heartbeat;
            if due > now {
                return Some(due);
            }
            wakes.extend(subscriber.wake.take());
            Some(now + heartbeat)
        });
        wakes
    }

    /// Ends it: every subscriber is told that nothing more comes. Gives whom to wake.
    pub fn drain(&mut self) -> Vec<W> {
        self.drained = true;
        let awaits = std::mem::take(&mut self.awaits).into_iter().map(|(_, wake)| wake);
        self.subscribers.iter_mut().filter_map(|s| s.wake.take()).chain(awaits).collect()
    }
}

#[cfg(test)]
mod tests;
