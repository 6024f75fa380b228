//! The sequencer of a log that gives its ids itself: a thread that commits, delivers, then answers.
//!
//! What holds: an event is handed to the hub after its batch is durable, and answered after that, so whoever holds an id can read it;
//! waking subscribers comes last and holds up no answer. After a failed write everything is refused until the store was opened again.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::task::Waker;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Appended, Sequencer};
use crate::event::{Event, EventRef, EventType, Key, Millis, NewEvent};
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::sse::GapReason;
use crate::store::{Durability, Floor, Limits, Scan, Store, StoreError, Trim};
use crate::topic::{Filter, Topic};

/// How often room on the disk is looked at while nothing is published, a failed store is tried again, and, with
/// [`Durability::Interval`], the log is synced.
const TICK: Duration = Duration::from_secs(1);

/// What is asked of the writer. What waits is bounded by the permits that come with it.
pub enum Request {
    Append {
        events: Vec<NewEvent>,
        answer: oneshot::Sender<Result<Appended, StoreError>>,
        permit: OwnedSemaphorePermit,
    },
    Trim {
        trims: Vec<Trim>,
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
    Retain {
        topic: Topic,
        limits: Option<Limits>,
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
    /// Answers when all that came before is done, then ends the thread.
    Stop {
        answer: oneshot::Sender<()>,
    },
}

/// Why writing is refused just now; `None` when it is not.
pub type Refusal = Arc<RwLock<Option<StoreError>>>;

/// What the thread needs.
pub struct Parts {
    pub store: Arc<dyn Store>,
    pub hub: Arc<Mutex<Hub<Waker>>>,
    pub durability: Durability,
    pub clock: fn() -> Millis,
    pub refusal: Refusal,
    pub metrics: Arc<Metrics>,
}

/// Starts the thread.
///
/// # Errors
/// When the system has no thread to give.
pub fn start(parts: Parts) -> std::io::Result<(Sender<Request>, JoinHandle<()>)> {
    let (sender, receiver) = mpsc::channel();
    let sequencer = Sequencer::new(parts.store.tail(), parts.store.last_time());
    let writer = Writer { parts, sequencer, last_tick: Instant::now(), unsynced: false };
    let thread = std::thread::Builder::new().name("sequencer".into()).spawn(move || writer.run(&receiver))?;
    Ok((sender, thread))
}

type Ticket = (oneshot::Sender<Result<Appended, StoreError>>, OwnedSemaphorePermit);

struct Writer {
    parts: Parts,
    sequencer: Sequencer<Ticket>,
    last_tick: Instant,
    unsynced: bool,
}

impl Writer {
    fn run(mut self, requests: &Receiver<Request>) {
        loop {
            let wait = TICK.saturating_sub(self.last_tick.elapsed());
            match requests.recv_timeout(wait) {
                Ok(request) => {
                    if self.take(request, requests).is_break() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.last_tick.elapsed() >= TICK {
                self.tick();
                self.last_tick = Instant::now();
            }
        }
    }

    /// Takes `first` and all that has gathered behind it; appends that follow each other share their commits.
    fn take(&mut self, first: Request, requests: &Receiver<Request>) -> ControlFlow<()> {
        let mut next = Some(first);
        while let Some(request) = next {
            match request {
                Request::Append { events, answer, permit } => self.sequencer.submit((answer, permit), events),
                other => {
                    self.commit_all();
                    self.other(other)?;
                }
            }
            next = requests.try_recv().ok();
            if self.sequencer.waiting() >= super::COMMIT_EVENTS_MAX {
                self.commit_all();
            }
        }
        self.commit_all();
        ControlFlow::Continue(())
    }

    /// An answer that nobody waits for any more is passed over: the work was done all the same.
    fn other(&mut self, request: Request) -> ControlFlow<()> {
        match request {
            Request::Append { .. } => unreachable!("appends are submitted where they are taken"),
            Request::Trim { trims, answer } => drop(answer.send(self.trim(&trims))),
            Request::Retain { topic, limits, answer } => {
                let done = self.parts.store.set_retention(&topic, limits);
                self.note(&done);
                drop(answer.send(done));
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
        while let Some(batch) = self.sequencer.next((self.parts.clock)()) {
            let bytes = batch.iter().map(|e| e.data.len() as u64).sum();
            let begun = Instant::now();
            let done = self.parts.store.room(bytes).and_then(|()| self.parts.store.append(&batch));
            if let Err(error) = done {
                tracing::error!(%error, "a commit failed; publishes are refused until writing works again");
                *self.parts.refusal.write() = Some(error.clone());
                self.refuse_all(&error);
                return;
            }
            self.parts.metrics.committed(batch.len() as u64, bytes, begun.elapsed());
            self.unsynced = true;
            let answers = self.sequencer.settled(&batch);
            let wakes = self.parts.hub.lock().push(batch);
            for ((answer, permit), appended) in answers {
                drop(permit);
                drop(answer.send(Ok(appended)));
            }
            wakes.into_iter().for_each(Waker::wake);
        }
    }

    fn refuse_all(&mut self, error: &StoreError) {
        for (answer, permit) in self.sequencer.failed() {
            drop(permit);
            drop(answer.send(Err(error.clone())));
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
        if self.unsynced && self.parts.durability == Durability::Interval {
            self.unsynced = false;
            let done = self.parts.store.sync();
            self.note(&done);
        }
        let refused = self.parts.refusal.read().clone();
        match refused {
            None => {
                let room = self.parts.store.room(0);
                self.note(&room);
            }
            Some(StoreError::Full { .. }) => drop(self.may_write()),
            Some(_) => self.reopen(),
        }
    }

    fn note(&self, done: &Result<(), StoreError>) {
        if let Err(error) = done {
            tracing::error!(%error, "publishes are refused until writing works again");
            *self.parts.refusal.write() = Some(error.clone());
        }
    }

    /// After a failed write: opens the store again, and delivers what of the failed batch is in the log after all.
    fn reopen(&mut self) {
        let done = self.parts.store.room(0).and_then(|()| self.parts.store.reopen());
        let done = done.and_then(|()| self.catch_up());
        match done {
            Ok(()) => {
                tracing::info!("the log was opened again; publishes are taken");
                *self.parts.refusal.write() = None;
            }
            Err(error) => tracing::warn!(%error, "the log cannot be written yet; trying again"),
        }
    }

    fn catch_up(&mut self) -> Result<(), StoreError> {
        let store = self.parts.store.clone();
        let (mut after, tail) = (self.parts.hub.lock().tail(), store.tail());
        let all = Filter::all();
        while after < tail {
            let mut found = Vec::new();
            after = store.scan(Scan { filter: &all, after, upto: tail }, &mut |event| {
                found.extend(owned(event));
                ControlFlow::Continue(())
            })?;
            let wakes = self.parts.hub.lock().push(found);
            wakes.into_iter().for_each(Waker::wake);
        }
        let mut hub = self.parts.hub.lock();
        hub.skip_to(tail);
        hub.trim_log(store.floor(&all));
        drop(hub);
        // A floor whose write had failed may be there after all; now readers know of it.
        store.floors_published();
        self.sequencer.resume(tail, store.last_time());
        Ok(())
    }

    fn trim(&mut self, trims: &[Trim]) -> Result<(), StoreError> {
        let done = self.parts.store.raise_floors(trims);
        let rose = match done {
            Ok(rose) => rose,
            Err(error) => {
                self.note(&Err(error.clone()));
                return Err(error);
            }
        };
        let mut log = None;
        let mut topics: HashMap<Topic, Floor> = HashMap::new();
        for Trim { topic, upto } in rose {
            let floor = Floor { id: upto, reason: GapReason::Trimmed };
            match topic {
                None => log = Some(floor),
                Some(topic) => drop(topics.insert(topic, floor)),
            }
        }
        let mut hub = self.parts.hub.lock();
        if let Some(floor) = log {
            hub.trim_log(floor);
        }
        if !topics.is_empty() {
            hub.trim_topics(&topics);
        }
        drop(hub);
        self.parts.store.floors_published();
        Ok(())
    }
}

/// An owned copy of an event that the store gave; `None` where its names are not valid, which the store has checked.
fn owned(event: &EventRef<'_>) -> Option<Event> {
    Some(Event {
        id: event.id,
        topic: Topic::parse(event.topic).ok()?,
        event: event.event.and_then(|t| EventType::parse(t).ok().flatten()),
        key: event.key.and_then(|k| Key::parse(k).ok()),
        time: event.time,
        data: event.data.into(),
    })
}
