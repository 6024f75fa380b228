//! The async driver of a [`Subscription`]: a `Stream` of frames.
//!
//! What holds: reads run on blocking threads, a bounded number at a time, and none is begun before the frames of the last one were
//! taken; the lock of the hub is never held across an await; a stream that is dropped lets its place in the hub go.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::bundle::{self, Bundle, Bundles, Dress, Heard, Kind, Wanted};
use super::run::Runs;
use super::shared::{Asker, Done, Shared, Turn};
use super::{Came, Meanwhile, Options, Reading, ReadingError, Start, Stretch, Subscription, Want, read_on};
use crate::event::{EventId, Millis};
use crate::hub::wake::Wake;
use crate::hub::{Hub, Place, SubscriberKey};
use crate::metrics::Metrics;
use crate::sse::Form;
use crate::store::{Store, StoreError};
use crate::sync::{Mutex, task};
use crate::topic::Filter;

/// What every stream of a log draws from.
pub struct Source {
    /// The log's name.
    pub log: Arc<str>,
    pub store: Arc<dyn Store>,
    pub hub: Arc<Mutex<Hub<Wake>>>,
    /// How many reads may run at once.
    pub reads: Arc<Semaphore>,
    /// What they have read and are reading.
    pub shared: Arc<Shared>,
    /// The states and snapshots that are being gathered and sent.
    pub bundles: Arc<Bundles>,
    /// Never goes back; when it began does not matter.
    pub clock: fn() -> Millis,
    pub metrics: Arc<Metrics>,
}

impl Source {
    /// Does `reading` on a blocking thread when a permit is free, or takes it from whoever does the same now or has just done it.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn read(&self, reading: Reading) -> Result<Came, ReadingError> {
        let (asker, answer) = oneshot::channel();
        match self.ask(reading, Box::new(asker)) {
            Some(came) => Ok(came),
            None => answer.await.unwrap_or(Err(StoreError::Closed.into())),
        }
    }

    /// A bundle for `filter`.
    ///
    /// # Errors
    /// When the log cannot be read, or the bundle is too large.
    pub async fn bundle(&self, kind: Kind, filter: &Arc<Filter>, dress: Dress) -> Result<Arc<Bundle>, ReadingError> {
        match self.read(Reading::Bundle(Wanted { kind, filter: filter.clone(), dress })).await? {
            Came::Bundle(bundle) => Ok(bundle),
            Came::Log(_) => Err(StoreError::Closed.into()),
        }
    }

    /// The same for one who does not wait in a task: gives what is known at once, and has `asker` answered otherwise. To be called
    /// within a tokio runtime. The reading is done even if the asker leaves, unless nobody wants it when its turn comes.
    #[must_use]
    pub fn ask(&self, reading: Reading, asker: Box<dyn Asker>) -> Option<Came> {
        match reading {
            Reading::Log(stretch) => self.ask_log(stretch, asker),
            Reading::Bundle(wanted) => self.ask_bundle(wanted, asker),
        }
    }

    fn ask_log(&self, stretch: Stretch, asker: Box<dyn Asker>) -> Option<Came> {
        let lead = match self.shared.turn(&stretch, self.store.floors_told(), asker) {
            Turn::Known(read) => return Some(Came::Log(read)),
            Turn::Wait => return None,
            Turn::Lead(lead) => lead,
        };
        let (store, metrics, reads) = (self.store.clone(), self.metrics.clone(), self.reads.clone());
        let permits = reads.clone();
        let work = move |permit: OwnedSemaphorePermit| {
            let meanwhile = Meanwhile {
                // A read that finds all in memory enters the kernel nowhere else, and Linux (6.13 and later) lets one that wakes wait for that,
                // or for the next tick of 4 ms: at the p99 resumes in rare topics took that long, though another core was free.
                offer: std::thread::yield_now,
                count: || _ = metrics.catchup_reads.inc(),
                is_alone: || permits.available_permits() > 0,
            };
            read_on(&*store, lead, stretch, &meanwhile);
            drop(permit);
        };
        if let Ok(permit) = reads.clone().try_acquire_owned() {
            drop(task::spawn_blocking(move || work(permit)));
        } else {
            drop(task::spawn(async move {
                // Where it is closed, dropping the work says so.
                if let Ok(permit) = reads.acquire_owned().await {
                    drop(task::spawn_blocking(move || work(permit)));
                }
            }));
        }
        None
    }

    fn ask_bundle(&self, wanted: Wanted, asker: Box<dyn Asker>) -> Option<Came> {
        let (tail, trims) = {
            let hub = self.hub.lock();
            (hub.tail(), hub.trims())
        };
        let heard = Heard::of(&*self.store, trims);
        match self.bundles.turn(&wanted, tail, heard, asker) {
            bundle::Turn::Known(bundle) => return Some(Came::Bundle(bundle)),
            bundle::Turn::Wait => {}
            bundle::Turn::Lead(waiting) => {
                let Self { store, hub, reads, bundles, .. } = self;
                let gathering = Gathering {
                    store: store.clone(),
                    hub: hub.clone(),
                    reads: reads.clone(),
                    bundles: bundles.clone(),
                    wanted: Arc::new(wanted),
                    waiting,
                    is_running: true,
                };
                drop(task::spawn(gathering.run()));
            }
        }
        None
    }

    /// Runs `work` on a blocking thread when a permit is free.
    ///
    /// # Errors
    /// Those of `work`; [`StoreError::Closed`] when the runtime is shutting down.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.permitted(work).await?.0
    }

    /// The same for `work` that gives the tail at which it is true; comes back when readers know of that.
    ///
    /// # Errors
    /// As [`Source::blocking`].
    pub async fn blocking_at<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Store) -> Result<(EventId, T), StoreError> + Send + 'static,
    ) -> Result<(EventId, T), StoreError> {
        let (done, permit) = self.permitted(work).await?;
        let (at, done) = done?;
        self.reached(at).await;
        drop(permit);
        Ok((at, done))
    }

    /// Does `work` where it may block, under a read permit, which is kept for as long as it takes, whoever still waits for it.
    async fn permitted<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Store) -> T + Send + 'static,
    ) -> Result<(T, OwnedSemaphorePermit), StoreError> {
        let permit = self.reads.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let store = self.store.clone();
        task::spawn_blocking(move || (work(&*store), permit)).await.map_err(|_| StoreError::Closed)
    }

    /// Waits for readers to know of a tail that the store has.
    pub async fn reached(&self, at: EventId) {
        reached(&self.hub, at).await;
    }

    /// Attaches a subscriber that begins at `start`.
    #[must_use]
    pub fn attach(self: &Arc<Self>, filter: &Arc<Filter>, start: &Start) -> Attached {
        Attached { key: self.place(filter, start).0, source: self.clone() }
    }

    /// Gives a subscriber that begins at `start` its place in the hub, and the filter that it shares with all that have an equal one.
    fn place(&self, filter: &Arc<Filter>, start: &Start) -> (SubscriberKey, Arc<Filter>) {
        let mut hub = self.hub.lock();
        let (key, rose) = hub.attach(filter, (self.clock)(), start.trims);
        let filter = hub.filter(key).unwrap_or_else(|| filter.clone());
        drop(hub);
        if rose {
            // After attaching, so that a trim in between is either told by the hub or already in the store's floor.
            let floor = self.store.floor(&filter);
            self.hub.lock().raise_floor(key, floor);
        }
        // After attaching as well: what is closed from now on is told by the hub.
        if let Some(last) = self.store.closed(&filter) {
            self.hub.lock().mark_closed(key, last);
        }
        (key, filter)
    }
}

impl Asker for oneshot::Sender<Done> {
    fn waits(&self) -> bool {
        !self.is_closed()
    }

    fn answer(self: Box<Self>, done: Done) {
        // Who does not wait any more is passed over.
        drop(self.send(done));
    }
}

/// Gathers a bundle, and the next one as long as somebody has come meanwhile. Dropped in its midst, as with its runtime, it tells
/// whoever waits that the log is closed.
struct Gathering {
    store: Arc<dyn Store>,
    hub: Arc<Mutex<Hub<Wake>>>,
    reads: Arc<Semaphore>,
    bundles: Arc<Bundles>,
    wanted: Arc<Wanted>,
    waiting: Vec<Box<dyn Asker>>,
    is_running: bool,
}

impl Gathering {
    async fn run(mut self) {
        while self.is_running {
            let Ok(permit) = self.reads.clone().acquire_owned().await else { return };
            let (store, bundles, wanted) = (self.store.clone(), self.bundles.clone(), self.wanted.clone());
            let trims = self.hub.lock().trims();
            let gathered = task::spawn_blocking(move || bundles.gather(&*store, &wanted, trims));
            // It does not panic; should it all the same, nobody is to wait for ever.
            let failed = |_| (Heard::default(), Err(StoreError::Closed.into()));
            let (heard, done) = gathered.await.unwrap_or_else(failed);
            if let Ok(Some(at)) = done.as_ref().map(|bundle| bundle.at) {
                reached(&self.hub, at).await;
            }
            drop(permit);
            let waiting = std::mem::take(&mut self.waiting);
            match self.bundles.done(&self.wanted, heard, &done, waiting) {
                Some(next) => self.waiting = next,
                None => self.is_running = false,
            }
        }
    }
}

impl Drop for Gathering {
    fn drop(&mut self) {
        if self.is_running {
            self.bundles.give_up(&self.wanted, std::mem::take(&mut self.waiting));
        }
    }
}

/// Waits for readers to know of a tail that the store has: that is as long as it takes from a write to the hub.
async fn reached(hub: &Mutex<Hub<Wake>>, at: EventId) {
    std::future::poll_fn(|cx| {
        let reached = hub.lock().has_reached(at, || Wake::Task(Box::new(cx.waker().clone())));
        if reached { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// A place in the hub; let go when dropped.
pub struct Attached {
    source: Arc<Source>,
    key: SubscriberKey,
}

impl Attached {
    /// Its place.
    #[must_use]
    pub fn key(&self) -> SubscriberKey {
        self.key
    }

    /// Ready, with `true`, when something that matches may lie beyond `cursor`; with `false` when nothing more comes.
    pub fn poll_past(&self, cursor: EventId, cx: &mut Context<'_>) -> Poll<bool> {
        let mut hub = self.source.hub.lock();
        match hub.place(self.key, cursor, 0, 0, || Wake::Task(Box::new(cx.waker().clone()))) {
            Place::Edge { .. } => Poll::Pending,
            Place::Drained | Place::Closed { .. } => Poll::Ready(false),
            Place::Disk { .. } | Place::Ring(_) | Place::Walking { .. } => Poll::Ready(true),
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.source.hub.lock().detach(self.key);
    }
}

/// Why a stream ended though there is more to come. One that reaches its proper end just ends.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StreamError {
    #[error("the server is draining")]
    Draining { cursor: EventId },
    #[error("{source}")]
    Reading { cursor: EventId, source: ReadingError },
}

type ReadFuture = Pin<Box<dyn Future<Output = Result<Came, ReadingError>> + Send>>;

/// A subscription with its place in the hub, which is let go when this is dropped. Kept small, as idle ones are many.
pub struct Following {
    source: Arc<Source>,
    machine: Subscription,
}

impl Following {
    /// What it draws from.
    #[must_use]
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// Everything that matches up to here was handed out.
    #[must_use]
    pub fn cursor(&self) -> EventId {
        self.machine.cursor()
    }

    /// How it is written.
    #[must_use]
    pub fn form(&self) -> Form {
        self.machine.form()
    }

    /// What is next; see [`Subscription::next`].
    pub fn next(&mut self, runs: &mut Runs, wake: impl Fn() -> Wake) -> Want {
        let Source { hub, log, clock, .. } = &*self.source;
        self.machine.next(hub, runs, log, clock(), wake)
    }

    /// Hands in what a [`Want::Read`] gave.
    pub fn was_read(&mut self, came: Came) {
        self.machine.was_read(came);
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.source.hub.lock().detach(self.machine.key());
    }
}

/// A stream of bytes in the chosen form: whole frames, or pieces of a bundle, which are cut anywhere.
pub struct Stream {
    following: Following,
    reading: Option<ReadFuture>,
    ended: bool,
}

impl Stream {
    /// A stream for `filter` that begins at `start`.
    #[must_use]
    pub fn new(source: &Arc<Source>, filter: &Arc<Filter>, start: Start, options: Options) -> Self {
        let (key, filter) = source.place(filter, &start);
        let machine = Subscription::new(key, filter, start, options, (source.clock)());
        Self { following: Following { source: source.clone(), machine }, reading: None, ended: false }
    }

    /// Everything that matches up to here was handed out.
    #[must_use]
    pub fn cursor(&self) -> EventId {
        self.following.cursor()
    }

    /// What it drives, for another driver: only before it was first polled, as what was begun for it is forgotten.
    #[must_use]
    pub fn into_following(self) -> Following {
        self.following
    }

    fn emit(&self, bytes: Bytes) -> Poll<Option<Result<Bytes, StreamError>>> {
        self.following.source.metrics.bytes_delivered.inc_by(bytes.len() as u64);
        Poll::Ready(Some(Ok(bytes)))
    }

    fn fail(&mut self, error: StreamError) -> Poll<Option<Result<Bytes, StreamError>>> {
        self.ended = true;
        Poll::Ready(Some(Err(error)))
    }
}

impl futures_core::Stream for Stream {
    type Item = Result<Bytes, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        loop {
            if let Some(reading) = &mut this.reading {
                match reading.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(came)) => this.following.was_read(came),
                    Poll::Ready(Err(source)) => {
                        let cursor = this.following.cursor();
                        return this.fail(StreamError::Reading { cursor, source });
                    }
                }
                this.reading = None;
            }
            match this.following.next(&mut Runs::of_one(), || Wake::Task(Box::new(cx.waker().clone()))) {
                // Asked again, it waits again.
                Want::Emit(bytes) | Want::EmitAndWait(bytes) => return this.emit(bytes),
                Want::Tell(reason, bytes) => {
                    this.following.source.metrics.gap_told(reason.as_str());
                    return this.emit(bytes);
                }
                Want::Wait => return Poll::Pending,
                Want::Read(reading) => {
                    let source = this.following.source.clone();
                    this.reading = Some(Box::pin(async move { source.read(reading).await }));
                }
                Want::Yield => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Want::End => {
                    this.ended = true;
                    return Poll::Ready(None);
                }
                Want::Drained => {
                    let cursor = this.following.cursor();
                    return this.fail(StreamError::Draining { cursor });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::sync::mpsc;

    use super::*;
    use crate::event::Event;
    use crate::hub;
    use crate::store::model::ModelStore;
    use crate::store::rocks::{self, RocksStore};
    use crate::store::{Durability, Trim};
    use crate::topic::Topic;

    fn source(store: Arc<dyn Store>) -> Source {
        let event = |id| Event {
            id,
            topic: Topic::parse(if id % 2 == 0 { "even" } else { "odd" }).unwrap(),
            event: None,
            key: None,
            time: id,
            data: format!("<{id}>"),
        };
        store.append(&(1..=9).map(event).collect::<Vec<_>>()).unwrap();
        Source {
            log: store.name(),
            hub: Arc::new(Mutex::new(Hub::new(hub::Options::default(), 9))),
            store,
            reads: Arc::new(Semaphore::new(2)),
            shared: Arc::default(),
            bundles: Arc::default(),
            clock: || 0,
            metrics: Arc::new(Metrics::new(SystemTime::UNIX_EPOCH)),
        }
    }

    async fn all(source: &Source) -> String {
        let filter = Arc::new(Filter::all());
        let stretch = Stretch { filter, form: Form::Sse, after: 0, upto: 9, bytes_max: 64 << 10 };
        let Came::Log(read) = source.read(Reading::Log(stretch)).await.unwrap() else { panic!("it is no bundle") };
        assert_eq!(read.upto, 9);
        String::from_utf8(read.bytes.to_vec()).unwrap()
    }

    async fn nothing_trimmed_is_handed_out(store: Arc<dyn Store>) {
        let source = source(store);
        let store = source.store.clone();
        let reads = || source.metrics.catchup_reads.get();
        assert!(all(&source).await.contains("<4>"));
        assert!(all(&source).await.contains("<4>"));
        assert_eq!(reads(), 1, "the second was given what the first had read");
        store.raise_floors(&[Trim { topic: Some(Topic::parse("even").unwrap()), upto: 4 }]).unwrap();
        // What is there is still read, as the floor is not published.
        assert!(all(&source).await.contains("<4>"));
        store.floors_published();
        let left = all(&source).await;
        assert!(!left.contains("<4>") && left.contains("<3>") && left.contains("<6>"), "{left}");
        let before = reads();
        assert_eq!((all(&source).await, reads()), (left, before), "and that is shared again");
        store.raise_floors(&[Trim { topic: None, upto: 6 }]).unwrap();
        store.floors_published();
        assert!(!all(&source).await.contains("<6>"));
        let before = reads();
        store.reopen().unwrap();
        assert!(all(&source).await.contains("<7>"));
        assert_eq!(reads(), before + 1, "a store that was opened again is read again");
    }

    #[tokio::test]
    async fn what_was_trimmed_does_not_come_out_of_what_is_shared() {
        nothing_trimmed_is_handed_out(Arc::new(ModelStore::default())).await;
        let dir = tempfile::tempdir().unwrap();
        let options = rocks::Options { durability: Durability::Os, ..rocks::Options::new(dir.path()) };
        nothing_trimmed_is_handed_out(Arc::new(RocksStore::open(options).unwrap())).await;
    }

    #[tokio::test]
    async fn many_at_one_place_read_once_also_when_the_first_leaves() {
        let source = Arc::new(source(Arc::new(ModelStore::default())));
        let all_permits = source.reads.clone().acquire_many_owned(2).await.unwrap();
        let read = |source: Arc<Source>| tokio::spawn(async move { all(&source).await });
        let first = read(source.clone());
        let mut others = Vec::new();
        for _ in 0..50 {
            others.push(read(source.clone()));
        }
        tokio::task::yield_now().await;
        first.abort();
        drop(all_permits);
        for other in others {
            let told = tokio::time::timeout(std::time::Duration::from_secs(30), other).await.unwrap().unwrap();
            assert!(told.contains("<9>"));
        }
        assert!(source.metrics.catchup_reads.get() <= 2);
    }

    /// One who asks for the next block within the answer, and tells how far it came when nobody reads on for it.
    #[derive(Clone)]
    struct Quick {
        shared: Arc<Shared>,
        stretch: Stretch,
        ended: mpsc::UnboundedSender<EventId>,
    }

    impl Asker for Quick {
        fn waits(&self) -> bool {
            true
        }

        fn answer(mut self: Box<Self>, done: Done) {
            let mut came = done.ok();
            while let Some(Came::Log(read)) = came {
                self.stretch.after = read.upto;
                if read.upto == self.stretch.upto {
                    break;
                }
                match self.shared.turn(&self.stretch, 0, self.clone()) {
                    Turn::Known(read) => came = Some(Came::Log(read)),
                    // A lead is given up, which answers who asked.
                    Turn::Wait | Turn::Lead(_) => return,
                }
            }
            self.ended.send(self.stretch.after).unwrap();
        }
    }

    #[tokio::test]
    async fn who_keeps_up_is_read_for_to_the_end_unless_others_wait_for_a_turn() {
        const LAST: EventId = 12_000;
        for held in [0, 1] {
            let source = source(Arc::new(ModelStore::default()));
            let topic = Topic::parse("odd").unwrap();
            let event =
                |id| Event { id, topic: topic.clone(), event: None, key: None, time: id, data: "x".repeat(1000) };
            source.store.append(&(10..=LAST).map(event).collect::<Vec<_>>()).unwrap();
            // The other one is what it reads with.
            let _held = source.reads.clone().acquire_many_owned(held).await.unwrap();
            let filter = Arc::new(Filter::all());
            let stretch = Stretch { filter, form: Form::Sse, after: 0, upto: LAST, bytes_max: 64 << 10 };
            let (ended, mut told) = mpsc::unbounded_channel();
            let quick = Quick { shared: source.shared.clone(), stretch: stretch.clone(), ended };
            assert!(source.ask(Reading::Log(stretch), Box::new(quick)).is_none());
            let came = tokio::time::timeout(std::time::Duration::from_secs(30), told.recv()).await.unwrap().unwrap();
            assert!(if held == 0 { came == LAST } else { (3_000..6_000).contains(&came) }, "{held} held: {came}");
        }
    }
}
