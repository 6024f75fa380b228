//! The sequencer of a log that gives its ids itself: it commits, delivers, then answers, on a thread of its own or, where
//! a thread has nothing better to do than to wait for the disk, on that one.
//!
//! What holds: there is one writer, and whoever works has it (`queue`). An event is handed to the hub after its batch is durable, and
//! answered after that, so whoever holds an id can read it; waking subscribers comes last and holds up no answer. After a failed
//! write everything is refused until the store was opened again.

mod queue;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub use self::queue::Requests;
use super::{Commit, Outcome, Sequencer, Terms};
use crate::event::{EventId, Millis, NewEvent};
use crate::hub::Hub;
use crate::hub::wake::{self, Wake};
use crate::metrics::Metrics;
use crate::sse::GapReason;
use crate::store::{Durability, Floor, Limits, Scan, Snapshot, Store, StoreError, Trim};
use crate::sync::thread::{Builder, JoinHandle};
use crate::sync::time::Instant;
use crate::sync::{Mutex, RwLock};
use crate::topic::{Filter, Topic};

/// How often room on the disk is looked at while nothing is published, a failed store is tried again, and, with
/// [`Durability::Interval`], the log is synced.
const TICK: Duration = Duration::from_secs(1);

/// What is asked of the writer.
pub enum Request {
    Append {
        events: Vec<NewEvent>,
        terms: Terms,
        ticket: Ticket<Outcome>,
    },
    Trim {
        trims: Vec<Trim>,
        ticket: Ticket<()>,
    },
    /// Removes a topic's events, keys and snapshot.
    Delete {
        topic: Topic,
        ticket: Ticket<()>,
    },
    /// Ends a topic.
    Close {
        topic: Topic,
        ticket: Ticket<()>,
    },
    /// Keeps a snapshot.
    Keep {
        topic: Topic,
        snapshot: Snapshot,
        ticket: Ticket<Kept>,
    },
    Retain {
        topic: Topic,
        limits: Option<Limits>,
        ticket: Ticket<()>,
    },
    /// Answers when all that came before is done, then ends the thread.
    Stop {
        answer: oneshot::Sender<()>,
    },
}

/// How a request is answered, and its share of what may wait, which is given back then. Requests wait on whether or not somebody still
/// waits for their answers, so it is this that bounds them.
pub struct Ticket<T> {
    answer: oneshot::Sender<Result<T, StoreError>>,
    share: Option<OwnedSemaphorePermit>,
}

impl<T> Ticket<T> {
    /// One without a share is for those who wait for their answer before they ask again.
    #[must_use]
    pub fn new(share: Option<OwnedSemaphorePermit>) -> (Self, oneshot::Receiver<Result<T, StoreError>>) {
        let (answer, answered) = oneshot::channel();
        (Self { answer, share }, answered)
    }

    /// An answer that nobody waits for any more is passed over: the work was done all the same.
    fn answer(self, done: Result<T, StoreError>) {
        drop(self.share);
        drop(self.answer.send(done));
    }
}

/// What became of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Yes,
    /// The one that is kept is true at this later id.
    Older {
        than: EventId,
    },
    /// It lies beyond the tail, which is this.
    Beyond {
        tail: EventId,
    },
}

/// Why writing is refused just now; `None` when it is not.
pub type Refusal = Arc<RwLock<Option<StoreError>>>;

/// What the thread needs.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub hub: Arc<Mutex<Hub<Wake>>>,
    pub durability: Durability,
    /// Milliseconds for which publishes are remembered under their idempotency keys.
    pub dedupe_window: Millis,
    /// Most keys that are remembered.
    pub dedupe_keys_max: u64,
    pub clock: fn() -> Millis,
    pub refusal: Refusal,
    pub metrics: Arc<Metrics>,
}

/// Starts the thread.
///
/// # Errors
/// When the system has no thread to give.
pub fn start(parts: Parts) -> std::io::Result<(Requests, JoinHandle<()>)> {
    let sequencer = Sequencer::new(parts.store.tail(), parts.store.last_time(), parts.dedupe_window);
    let refusal = parts.refusal.clone();
    let writer = Writer { parts, sequencer, last_tick: Instant::now(), unsynced: false };
    let requests = Requests::new(Box::new(writer), refusal);
    let worker = requests.clone();
    let thread = Builder::new().name("sequencer".into()).spawn(move || worker.work_until_stopped())?;
    Ok((requests, thread))
}

struct Writer {
    parts: Parts,
    sequencer: Sequencer<Ticket<Outcome>>,
    last_tick: Instant,
    unsynced: bool,
}

impl Writer {
    /// Does what was asked for, in order; appends that follow each other share their commits. Breaks when it is to end.
    fn work(&mut self, requests: &mut Vec<Request>) -> ControlFlow<()> {
        for request in requests.drain(..) {
            match request {
                Request::Append { events, terms, ticket } => self.sequencer.submit(ticket, events, terms),
                other => {
                    self.commit_all();
                    self.other(other)?;
                }
            }
        }
        self.commit_all();
        ControlFlow::Continue(())
    }

    /// When it wants to work though nothing is asked for.
    fn next_tick(&self) -> Instant {
        self.last_tick + TICK
    }

    fn tick_if_due(&mut self) {
        if self.last_tick.elapsed() >= TICK {
            self.tick();
            self.last_tick = Instant::now();
        }
    }

    fn other(&mut self, request: Request) -> ControlFlow<()> {
        match request {
            Request::Append { .. } => unreachable!("appends are submitted where they are taken"),
            Request::Trim { trims, ticket } => {
                let done = self.parts.store.raise_floors(&trims);
                ticket.answer(self.publish_floors(done));
            }
            Request::Delete { topic, ticket } => {
                let done = self.parts.store.delete_topic(&topic).map(|rose| rose.into_iter().collect());
                ticket.answer(self.publish_floors(done));
            }
            Request::Close { topic, ticket } => ticket.answer(self.close(&topic)),
            Request::Keep { topic, snapshot, ticket } => ticket.answer(self.keep(&topic, &snapshot)),
            Request::Retain { topic, limits, ticket } => {
                let done = self.parts.store.set_retention(&topic, limits);
                self.note(&done);
                ticket.answer(done);
            }
            Request::Stop { answer } => {
                let _ = answer.send(());
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    fn commit_all(&mut self) {
        if self.sequencer.is_idle() {
            return;
        }
        if let Err(error) = self.may_write() {
            self.refuse_all(&error);
            return;
        }
        let store = self.parts.store.clone();
        while let Some(Commit { events, remembered }) = self.sequencer.next((self.parts.clock)(), &*store) {
            if !events.is_empty() {
                let bytes = events.iter().map(|e| e.data.len() as u64).sum();
                let begun = Instant::now();
                if let Err(error) = store.room(bytes).and_then(|()| store.commit(&events, &remembered)) {
                    tracing::error!(%error, "a commit failed; publishes are refused until writing works again");
                    *self.parts.refusal.write() = Some(error.clone());
                    self.refuse_all(&error);
                    return;
                }
                self.parts.metrics.committed(events.len() as u64, bytes, begun.elapsed());
                self.unsynced = true;
            }
            let answers = self.sequencer.settled(&events);
            let wakes = self.parts.hub.lock().push(events);
            for (ticket, outcome) in answers {
                ticket.answer(outcome);
            }
            wake::all(wakes);
            if !remembered.is_empty() {
                self.forget_keys();
            }
        }
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

    fn tick(&mut self) {
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
            Some(_) => self.reopen(),
        }
    }

    fn note<T>(&self, done: &Result<T, StoreError>) {
        if let Err(error) = done {
            tracing::error!(%error, "publishes are refused until writing works again");
            *self.parts.refusal.write() = Some(error.clone());
        }
    }

    /// After a failed write: opens the store again, and delivers what of the failed batch is in the log after all.
    fn reopen(&mut self) {
        let done = self.parts.store.room(0).and_then(|()| self.parts.store.reopen());
        let done = done.and_then(|()| catch_up(&*self.parts.store, &self.parts.hub, wake::all));
        match done {
            Ok(()) => {
                // A floor whose write had failed may be there after all; now readers know of it.
                self.parts.store.floors_published();
                self.sequencer.resume(self.parts.store.tail(), self.parts.store.last_time());
                tracing::info!("the log was opened again; publishes are taken");
                *self.parts.refusal.write() = None;
            }
            Err(error) => tracing::warn!(%error, "the log cannot be written yet; trying again"),
        }
    }

    /// Readers are told of the floors that rose; then what lies below them may go.
    fn publish_floors(&mut self, rose: Result<Vec<Trim>, StoreError>) -> Result<(), StoreError> {
        let rose = rose.inspect_err(|error| self.note::<()>(&Err(error.clone())))?;
        tell_floors(&mut self.parts.hub.lock(), rose);
        self.parts.store.floors_published();
        Ok(())
    }

    fn close(&mut self, topic: &Topic) -> Result<(), StoreError> {
        let Parts { store, hub, .. } = &self.parts;
        self.may_take()?;
        let done = store.close_topic(topic);
        self.note(&done);
        done?;
        let wakes = hub.lock().close(topic.as_str(), |filter| store.closed(filter));
        wake::all(wakes);
        Ok(())
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

    /// While writing is refused, nothing that would add to the log is tried.
    fn may_take(&self) -> Result<(), StoreError> {
        self.parts.refusal.read().clone().map_or(Ok(()), Err)
    }
}

/// Tells the readers the floors that the store has raised; then they may be published.
pub fn tell_floors<W>(hub: &mut Hub<W>, rose: Vec<Trim>) {
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
}

/// Delivers what is in the log beyond the hub's tail, as after a commit that failed and was written all the same, and tells the
/// readers of ids that were skipped, and of topics whose closing had failed and was written all the same.
///
/// # Errors
/// When the log cannot be read.
pub fn catch_up<W>(store: &dyn Store, hub: &Mutex<Hub<W>>, wake: impl Fn(Vec<W>)) -> Result<(), StoreError> {
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
    wakes.extend(hub.close_any(|filter| store.closed(filter)));
    drop(hub);
    wake(wakes);
    Ok(())
}
