//! The writer itself: what is done for each request, and what each second asks for, one step at a time.
//!
//! What holds: what a step does is done under one lock, or touches nothing that others see in between; so whoever drives it may let
//! others run between any two, as threads do. A batch is handed to the hub after it is durable, and answered after that; waking comes
//! last. A floor is written, then told to the readers and published in one hold of their lock. Must not know threads.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;

use super::super::{Answers, Commit, Outcome, Sequencer};
use super::{Kept, Parts, Request, Ticket};
use crate::event::Event;
use crate::hub::Hub;
use crate::sse::GapReason;
use crate::store::{Durability, Floor, Scan, Snapshot, Store, StoreError, Trim};
use crate::sync::Mutex;
use crate::sync::time::Instant;
use crate::topic::{Filter, Topic};

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Went {
    /// There may be more to do.
    On,
    Idle,
    /// It was told to stop.
    Ended,
}

/// What is to be done next.
enum At<W> {
    /// Whatever is asked for.
    Ready,
    /// To write this batch.
    Begun(Commit),
    /// To deliver it.
    Durable(Vec<Event>, bool),
    /// To answer it.
    Delivered(Answers<Ticket<Outcome>>, Vec<W>, bool),
    /// To wake those whom it concerns; and then to forget keys, where there are new ones.
    Waking(Vec<W>, bool),
    /// To tell the readers of floors that rose, and to publish them.
    Raised(Vec<Trim>, Ticket<()>),
    /// To tell the readers that a topic was closed.
    Closed(Topic, Ticket<()>),
    /// The store was opened again: to deliver what was written all the same.
    Opened,
    /// To go on.
    CaughtUp,
}

/// The writer.
pub struct Writer<W> {
    parts: Parts<W>,
    sequencer: Sequencer<Ticket<Outcome>>,
    /// Asked for, and not begun. Bounded by the shares that requests hold.
    asked: VecDeque<Request>,
    at: At<W>,
    ticks: bool,
    unsynced: bool,
}

impl<W> Writer<W> {
    /// The writer of `parts`' log, whose hub ends where the store does.
    #[must_use]
    pub fn new(parts: Parts<W>) -> Self {
        let sequencer = Sequencer::new(parts.store.tail(), parts.store.last_time(), parts.dedupe_window);
        Self { parts, sequencer, asked: VecDeque::new(), at: At::Ready, ticks: false, unsynced: false }
    }

    /// Asks for more, to be done in order.
    pub fn ask(&mut self, requests: impl IntoIterator<Item = Request>) {
        self.asked.extend(requests);
    }

    /// A second has passed: what that asks for is done after all that was asked for before.
    pub fn tick(&mut self) {
        self.ticks = true;
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.at, At::Ready) && self.asked.is_empty() && self.sequencer.is_idle() && !self.ticks
    }

    /// Whether it has told the hub something, and not woken yet whom that concerns.
    #[must_use]
    pub fn owes_wakes(&self) -> bool {
        matches!(self.at, At::Delivered(..) | At::Waking(..))
    }

    /// Whether the next step writes a batch.
    #[must_use]
    pub fn is_about_to_commit(&self) -> bool {
        matches!(self.at, At::Begun(_))
    }

    /// Does what is next.
    pub fn step(&mut self) -> Went {
        match std::mem::replace(&mut self.at, At::Ready) {
            At::Ready => return self.begin(),
            At::Begun(commit) => self.commit(commit),
            At::Durable(events, remembers) => {
                let answers = self.sequencer.settled(&events);
                let wakes = self.parts.hub.lock().push(events);
                self.at = At::Delivered(answers, wakes, remembers);
            }
            At::Delivered(answers, wakes, remembers) => {
                for (ticket, outcome) in answers {
                    ticket.answer(outcome);
                }
                if remembers || !wakes.is_empty() {
                    self.at = At::Waking(wakes, remembers);
                }
            }
            At::Waking(wakes, remembers) => {
                (self.parts.wake)(wakes);
                if remembers {
                    self.forget_keys();
                }
            }
            At::Raised(rose, ticket) => {
                publish_floors(&*self.parts.store, &mut self.parts.hub.lock(), rose);
                ticket.answer(Ok(()));
            }
            At::Closed(topic, ticket) => {
                let store = &self.parts.store;
                let wakes = self.parts.hub.lock().close(topic.as_str(), |filter| store.closed(filter));
                ticket.answer(Ok(()));
                self.at = At::Waking(wakes, false);
            }
            At::Opened => match catch_up(&*self.parts.store, &self.parts.hub, self.parts.wake) {
                Ok(()) => self.at = At::CaughtUp,
                Err(error) => not_yet(&error),
            },
            At::CaughtUp => {
                self.sequencer.resume(self.parts.store.tail(), self.parts.store.last_time());
                tracing::info!("the log was opened again; publishes are taken");
                *self.parts.refusal.write() = None;
            }
        }
        Went::On
    }

    fn begin(&mut self) -> Went {
        while let Some(Request::Append { .. }) = self.asked.front() {
            let Some(Request::Append { events, terms, ticket }) = self.asked.pop_front() else { break };
            self.sequencer.submit(ticket, events, terms);
        }
        if !self.sequencer.is_idle() {
            if let Err(error) = self.may_write() {
                self.refuse_all(&error);
            } else if let Some(commit) = self.sequencer.next((self.parts.clock)(), &*self.parts.store) {
                self.at = At::Begun(commit);
            }
            return Went::On;
        }
        if let Some(request) = self.asked.pop_front() {
            return self.other(request);
        }
        if std::mem::take(&mut self.ticks) {
            self.look_around();
            return Went::On;
        }
        Went::Idle
    }

    fn other(&mut self, request: Request) -> Went {
        match request {
            Request::Append { .. } => unreachable!("appends are submitted where they are taken"),
            Request::Trim { trims, ticket } => {
                let done = self.may_trim().and_then(|()| self.parts.store.raise_floors(&trims));
                self.raised(done, ticket);
            }
            Request::Delete { topic, ticket } => {
                let done = self.may_trim().and_then(|()| self.parts.store.delete_topic(&topic));
                let done = done.map(|rose| rose.into_iter().collect());
                self.raised(done, ticket);
            }
            Request::Close { topic, ticket } => {
                let done = self.may_take().and_then(|()| {
                    let done = self.parts.store.close_topic(&topic);
                    self.note(&done);
                    done
                });
                match done {
                    Ok(_) => self.at = At::Closed(topic, ticket),
                    Err(error) => ticket.answer(Err(error)),
                }
            }
            Request::Keep { topic, snapshot, ticket } => ticket.answer(self.keep(&topic, &snapshot)),
            Request::Retain { topic, limits, ticket } => {
                let done = self.parts.store.set_retention(&topic, limits);
                self.note(&done);
                ticket.answer(done);
            }
            Request::Stop { answer } => {
                let _ = answer.send(());
                // Those who wait for an answer see that none comes.
                self.asked.clear();
                return Went::Ended;
            }
        }
        Went::On
    }

    fn raised(&mut self, rose: Result<Vec<Trim>, StoreError>, ticket: Ticket<()>) {
        self.note(&rose);
        match rose {
            Ok(rose) => self.at = At::Raised(rose, ticket),
            Err(error) => ticket.answer(Err(error)),
        }
    }

    fn commit(&mut self, Commit { events, remembered }: Commit) {
        let Parts { store, metrics, refusal, .. } = &self.parts;
        if !events.is_empty() {
            let bytes = events.iter().map(|e| e.data.len() as u64).sum();
            let begun = Instant::now();
            if let Err(error) = store.room(bytes).and_then(|()| store.commit(&events, &remembered)) {
                tracing::error!(%error, "a commit failed; publishes are refused until writing works again");
                *refusal.write() = Some(error.clone());
                self.refuse_all(&error);
                return;
            }
            metrics.committed(events.len() as u64, bytes, begun.elapsed());
            self.unsynced = true;
        }
        self.at = At::Durable(events, !remembered.is_empty());
    }

    /// Forgets the idempotency keys that are older than the window, and the oldest where there are too many.
    fn forget_keys(&self) {
        let Parts { store, metrics, clock, dedupe_window, dedupe_keys_max, .. } = &self.parts;
        let early = store.forget_keys(clock().saturating_sub(*dedupe_window), *dedupe_keys_max);
        metrics.keys_forgotten_early.inc_by(early);
        metrics.keys_remembered.set(store.keys_remembered());
    }

    fn refuse_all(&mut self, error: &StoreError) {
        for ticket in self.sequencer.failed() {
            ticket.answer(Err(error.clone()));
        }
    }

    /// While writing is refused, whether it works again.
    fn may_write(&mut self) -> Result<(), StoreError> {
        let Some(refused) = self.parts.refusal.read().clone() else { return Ok(()) };
        self.parts.store.room(0)?;
        if matches!(refused, StoreError::Full { .. }) {
            tracing::info!("there is room on the disk again; publishes are taken");
            *self.parts.refusal.write() = None;
            return Ok(());
        }
        Err(refused)
    }

    /// What each second asks for.
    fn look_around(&mut self) {
        self.forget_keys();
        if self.unsynced && self.parts.durability == Durability::Interval {
            self.unsynced = false;
            let done = self.parts.store.sync();
            self.note(&done);
        }
        let refused = self.parts.refusal.read().clone();
        match refused {
            None => {
                let may = self.parts.store.writable().and_then(|()| self.parts.store.room(0));
                self.note(&may);
            }
            Some(StoreError::Full { .. }) => drop(self.may_write()),
            // After a failed write: opens the store again, and delivers what of the failed batch is in the log after all.
            Some(_) => match self.parts.store.room(0).and_then(|()| self.parts.store.reopen()) {
                Ok(()) => self.at = At::Opened,
                Err(error) => not_yet(&error),
            },
        }
    }

    fn note<T>(&self, done: &Result<T, StoreError>) {
        if let Err(error) = done {
            tracing::error!(%error, "publishes are refused until writing works again");
            *self.parts.refusal.write() = Some(error.clone());
        }
    }

    fn keep(&mut self, topic: &Topic, snapshot: &Snapshot) -> Result<Kept, StoreError> {
        let store = &self.parts.store;
        let tail = self.parts.hub.lock().tail();
        if snapshot.at > tail {
            return Ok(Kept::Beyond { tail });
        }
        if let Some(kept) = store.snapshot_at(topic.as_str()).filter(|kept| *kept > snapshot.at) {
            return Ok(Kept::Older { than: kept });
        }
        self.may_take()?;
        let done = store.room(snapshot.body.len() as u64).and_then(|()| store.put_snapshot(topic, snapshot));
        self.note(&done);
        done.map(|()| Kept::Yes)
    }

    /// A full disk is no reason not to trim. But where a failed write was found to be there and is not delivered yet, what a trim takes
    /// of it the readers would pass over: they could not know of it, as they wait where the hub ends.
    fn may_trim(&self) -> Result<(), StoreError> {
        match &*self.parts.refusal.read() {
            None | Some(StoreError::Full { .. }) => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    /// While writing is refused, nothing that would add to the log is tried.
    fn may_take(&self) -> Result<(), StoreError> {
        self.parts.refusal.read().clone().map_or(Ok(()), Err)
    }
}

fn not_yet(error: &StoreError) {
    tracing::warn!(%error, "the log cannot be written yet; trying again");
}

/// Tells the readers the floors that the store has raised, and publishes them, while nobody can come in between: whoever began there would
/// count as told, and be given what lies below them only in part.
fn publish_floors<W>(store: &dyn Store, hub: &mut Hub<W>, rose: Vec<Trim>) {
    let mut log = None;
    let mut topics: HashMap<Topic, Floor> = HashMap::new();
    for Trim { topic, upto } in rose {
        let floor = Floor { id: upto, reason: GapReason::Trimmed };
        match topic {
            None => log = Some(floor),
            Some(topic) => drop(topics.insert(topic, floor)),
        }
    }
    if let Some(floor) = log {
        hub.trim_log(floor);
    }
    if !topics.is_empty() {
        hub.trim_topics(&topics);
    }
    store.floors_published();
}

/// Delivers what is in the log beyond the hub's tail, as after a commit that failed and was written all the same, and tells the
/// readers of ids that were skipped, and of topics whose closing had failed and was written all the same.
///
/// # Errors
/// When the log cannot be read.
fn catch_up<W>(store: &dyn Store, hub: &Mutex<Hub<W>>, wake: impl Fn(Vec<W>)) -> Result<(), StoreError> {
    let (mut after, tail) = (hub.lock().tail(), store.tail());
    let all = Filter::all();
    while after < tail {
        let mut found = Vec::new();
        after = store.scan(Scan { filter: &all, after, upto: tail }, &mut |event| {
            found.extend(event.to_event());
            ControlFlow::Continue(())
        })?;
        let wakes = hub.lock().push(found);
        wake(wakes);
    }
    // In one hold of the lock: who reads over the skipped ids must know of them by then. And filter by filter: one topic's floor is
    // no reason to tell the others' readers of a gap.
    let mut hub = hub.lock();
    let mut wakes = hub.skip_to(tail);
    // A trim or a DELETE that failed may have been written all the same: the ring would go on handing out what it took, also when it
    // is repeated, as no floor rises then.
    hub.forget();
    hub.raise_floors(|filter| store.floor(filter));
    store.floors_published();
    wakes.extend(hub.close_any(|filter| store.closed(filter)));
    drop(hub);
    wake(wakes);
    Ok(())
}
