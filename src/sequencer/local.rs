//! The sequencer of a log that gives its ids itself: it commits, delivers, then answers, on a thread of its own or, where
//! a thread has nothing better to do than to wait for the disk, on that one.
//!
//! What holds: there is one writer, and whoever works has it (`queue`). An event is handed to the hub after its batch is durable, and
//! answered after that, so whoever holds an id can read it; waking subscribers comes last and holds up no answer. After a failed
//! write everything is refused until the store was opened again.

mod queue;
mod writer;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};

pub use self::queue::Requests;
pub use self::writer::{Went, Writer};
use super::{Outcome, Terms};
use crate::event::{EventId, Millis, NewEvent};
use crate::hub::Hub;
use crate::hub::wake::Wake;
use crate::metrics::Metrics;
use crate::store::{Durability, Limits, Snapshot, Store, StoreError, Trim};
use crate::sync::thread::{Builder, JoinHandle};
use crate::sync::time::Instant;
use crate::sync::{Mutex, RwLock};
use crate::topic::Topic;

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

/// What the writer needs. `W` is what wakes a subscriber.
pub struct Parts<W> {
    pub store: Arc<dyn Store>,
    pub hub: Arc<Mutex<Hub<W>>>,
    pub wake: fn(Vec<W>),
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
pub fn start(parts: Parts<Wake>) -> std::io::Result<(Requests, JoinHandle<()>)> {
    let refusal = parts.refusal.clone();
    let under_way = Arc::new(UnderWay::new());
    let worker = Worker { writer: Writer::new(parts), last_tick: Instant::now(), under_way: under_way.clone() };
    let requests = Requests::new(Box::new(worker), refusal, under_way);
    let worker = requests.clone();
    let thread = Builder::new().name("sequencer".into()).spawn(move || worker.work_until_stopped())?;
    Ok((requests, thread))
}

/// The writer, driven by whichever thread has it.
struct Worker {
    writer: Writer<Wake>,
    last_tick: Instant,
    under_way: Arc<UnderWay>,
}

/// How long the writer has been at what it does now: a commit, or another write. Seen from outside, while a thread hangs in it.
struct UnderWay {
    begun: Instant,
    /// Microseconds since then, and one; 0 while it does nothing. Nothing else is known by it, so its order does not matter.
    since: AtomicU64,
}

impl UnderWay {
    fn new() -> Self {
        Self { begun: Instant::now(), since: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX - 1) + 1
    }

    fn begins(&self) {
        self.since.store(self.now(), Ordering::Relaxed);
    }

    fn ends(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    fn time(&self) -> Duration {
        match self.since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => Duration::from_micros(self.now().saturating_sub(since)),
        }
    }
}

impl Worker {
    /// Does what was asked for, in order; appends that follow each other share their commits. Breaks when it is to end.
    fn work(&mut self, requests: &mut Vec<Request>) -> ControlFlow<()> {
        self.writer.ask(requests.drain(..));
        self.finish()
    }

    fn finish(&mut self) -> ControlFlow<()> {
        let goes_on = loop {
            // Step by step: many that are quick are none that takes long.
            self.under_way.begins();
            match self.writer.step() {
                Went::On => {}
                Went::Idle => break ControlFlow::Continue(()),
                Went::Ended => break ControlFlow::Break(()),
            }
        };
        self.under_way.ends();
        goes_on
    }

    /// When it wants to work though nothing is asked for.
    fn next_tick(&self) -> Instant {
        self.last_tick + TICK
    }

    fn tick_if_due(&mut self) {
        if self.last_tick.elapsed() >= TICK {
            self.writer.tick();
            // Nothing is asked for here, so it cannot end.
            let _goes_on = self.finish();
            self.last_tick = Instant::now();
        }
    }
}
