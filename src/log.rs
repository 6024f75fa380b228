//! The face: one log to append to, read from and subscribe to. What HTTP and an embedding program see.
//!
//! Everything here is safe to call from async code: what blocks runs on threads of its own. Must not know HTTP.

mod janitor;
mod lane;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::event::{EventId, Millis, NewEvent};
use crate::hub::{self, Hub, wake};
use crate::metrics::Metrics;
use crate::sequencer::local::{self, Refusal, Request, Requests};
use crate::sse::Form;
use crate::store::rocks::{self, RocksStore};
use crate::store::{Scan, Store, StoreError, Trim};
use crate::topic::{Filter, Topic};

pub use self::lane::Lane;
pub use crate::sequencer::Appended;
pub use crate::store::{Durability, Limits, Policy};
pub use crate::subscription::stream::{Stream as Subscription, StreamError};
pub use crate::subscription::{Begin, Gap, Options as SubscribeOptions, Start};

use crate::subscription::stream::Source;
use crate::subscription::{Known, LookUp, look_up};

/// Bytes of publishes that may wait for their commit; beyond, a publisher waits, then is refused. A second and more of the
/// fastest appends that were measured.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// The unit in which waiting publishes are counted, and what the smallest of them counts: its events cost memory too.
const WAITING_UNIT: usize = 1 << 10;

/// How long a publisher waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a publisher waits for the disk, before it is told that the outcome is not known.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads that run at once. They are bounded by the disk and two or more processors, and each costs a thread.
const READS_MAX: usize = 16;

/// Most reads for one page: a million records looked at, about a second's work. A page that finds nothing in them is empty, and
/// its `next` says where to go on.
const PAGE_READS_MAX: usize = 64;

/// Most bytes of events in one page; a single event may be larger.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// How a log is kept and served.
#[derive(Debug, Clone)]
pub struct Options {
    pub dir: PathBuf,
    pub durability: Durability,
    pub retention: Policy,
    /// 0: no limit.
    pub topics_max: u64,
    /// After so long without a byte, a subscriber is sent a heartbeat.
    pub heartbeat: Duration,
    /// What is counted as it happens.
    pub metrics: Arc<Metrics>,
}

impl Options {
    /// The defaults for a log in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            durability: Durability::Sync,
            retention: Policy::default(),
            topics_max: 0,
            heartbeat: Duration::from_secs(15),
            metrics: Arc::new(Metrics::new(SystemTime::now())),
        }
    }
}

/// One page of events.
#[derive(Debug, Clone)]
pub struct Page {
    /// The events as JSON objects, separated by commas.
    pub events: Vec<u8>,
    pub count: usize,
    /// Where the next page begins (`from=`).
    pub next: EventId,
    pub gap: Option<Gap>,
    pub earliest: EventId,
    pub tail: EventId,
}

/// Why nothing was appended; [`OutcomeUnknown`](AppendError::OutcomeUnknown) and [`Storage`](AppendError::Storage) are those where it
/// may have been after all.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    #[error("too many publishes are waiting for the disk")]
    Overloaded,
    #[error("the log holds {max} topics, the most it may (limits.topics_max)")]
    TooManyTopics { max: u64 },
    #[error("{reason}")]
    Storage { reason: Arc<str> },
    #[error("no answer came from the disk in time; the events may or may not have been appended")]
    OutcomeUnknown,
    #[error("the log is closed")]
    Closed,
}

impl From<StoreError> for AppendError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Closed => Self::Closed,
            other => Self::Storage { reason: other.to_string().into() },
        }
    }
}

/// Why nothing was read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    #[error("{reason}")]
    Storage { reason: Arc<str> },
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        Self::Storage { reason: error.to_string().into() }
    }
}

/// Why a log was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}

/// One topic, as a list shows it.
#[derive(Debug, Clone)]
pub struct TopicInfo {
    pub topic: Topic,
    /// The id of its oldest retained event; 0 when there is none.
    pub earliest: EventId,
    /// The id of its newest retained event; 0 when there is none.
    pub last: EventId,
    pub events: u64,
    pub bytes: u64,
    pub subscribers: u64,
    pub closed: bool,
}

/// Whether the log can be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Writable,
    /// Publishes are refused; reads go on. Tried again by itself.
    Refusing {
        reason: Arc<str>,
    },
}

/// A log. Cheap to clone; all clones are the same log.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
    /// Told of what is appended, where the thread that appends commits.
    lane: Option<Arc<Notify>>,
}

struct Inner {
    source: Arc<Source>,
    name: Arc<str>,
    requests: Requests,
    waiting: Arc<Semaphore>,
    refusal: Refusal,
    topics_max: u64,
    closed: AtomicBool,
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    sequencer: JoinHandle<()>,
    janitor: janitor::Janitor,
}

fn now() -> Millis {
    // A clock before 1970 counts as 1970; the sequencer lets time never decrease anyway.
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}

/// Milliseconds since the first call: heartbeats go on when somebody sets the clock.
fn uptime() -> Millis {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    Millis::try_from(FIRST.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(Millis::MAX)
}

impl Log {
    /// Opens the log in `options.dir`, or makes a new one. Blocks: what was not indexed yet is read.
    ///
    /// # Errors
    /// When another process serves it, it is corrupt, or the disk refuses; nothing was changed then.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let store_options = rocks::Options { durability: options.durability, ..rocks::Options::new(&options.dir) };
        Self::over(Arc::new(RocksStore::open(store_options)?), options)
    }

    /// The same over any store.
    ///
    /// # Errors
    /// When the system has no threads to give.
    pub fn over(store: Arc<dyn Store>, options: Options) -> Result<Self, OpenError> {
        let hub_options = hub::Options { heartbeat: options.heartbeat, ..hub::Options::default() };
        let hub = Arc::new(Mutex::new(Hub::new(hub_options, store.tail())));
        let refusal = Refusal::default();
        let metrics = options.metrics;
        let parts = local::Parts {
            store: store.clone(),
            hub: hub.clone(),
            durability: options.durability,
            clock: now,
            refusal: refusal.clone(),
            metrics: metrics.clone(),
        };
        let (requests, sequencer) = local::start(parts).map_err(OpenError::Thread)?;
        let janitor = janitor::Janitor::start(
            store.clone(),
            requests.clone(),
            (options.retention, now),
            hub.clone(),
            (options.heartbeat, uptime),
        )
        .map_err(OpenError::Thread)?;
        let inner = Inner {
            name: store.name(),
            source: Arc::new(Source {
                log: store.name(),
                store,
                hub,
                reads: Arc::new(Semaphore::new(READS_MAX)),
                shared: Arc::default(),
                clock: uptime,
                metrics,
            }),
            requests,
            waiting: Arc::new(Semaphore::new(WAITING_BYTES_MAX / WAITING_UNIT)),
            refusal,
            topics_max: options.topics_max,
            closed: AtomicBool::new(false),
            threads: Mutex::new(Some(Threads { sequencer, janitor })),
        };
        Ok(Self { inner: Arc::new(inner), lane: None })
    }

    /// The random name of this log.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The largest id that is durable and readable; 0 when there is none.
    #[must_use]
    pub fn tail(&self) -> EventId {
        self.inner.source.hub.lock().tail()
    }

    /// The smallest retained id; one past the tail when nothing is retained.
    #[must_use]
    pub fn earliest(&self) -> EventId {
        self.inner.source.store.earliest()
    }

    /// The id of the newest retained event of `topic`, or 0.
    #[must_use]
    pub fn last_of(&self, topic: &Topic) -> EventId {
        self.inner.source.store.last_of(topic.as_str())
    }

    /// Whether it can be written.
    #[must_use]
    pub fn health(&self) -> Health {
        match &*self.inner.refusal.read() {
            None => Health::Writable,
            Some(error) => Health::Refusing { reason: error.to_string().into() },
        }
    }

    /// What is counted, with what is a state rather than an event as it is now.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        let metrics = &self.inner.source.metrics;
        let (subscribers, ring_bytes, tail) = {
            let hub = self.inner.source.hub.lock();
            (hub.subscribers(), hub.ring_bytes(), hub.tail())
        };
        metrics.subscribers.set(i64::try_from(subscribers).unwrap_or(i64::MAX));
        metrics.ring_bytes.set(ring_bytes as u64);
        metrics.tail.set(tail);
        metrics.earliest.set(self.earliest());
        metrics.set_writable(self.health() == Health::Writable);
        metrics
    }

    /// Counts a publish that was refused with the error `code`.
    pub fn count_refused(&self, code: &'static str) {
        self.inner.source.metrics.refused(code);
    }

    /// Appends all of `events` under consecutive ids, or none. Answers when they are durable.
    ///
    /// # Errors
    /// [`AppendError`] says whether it may have happened all the same.
    pub async fn append(&self, events: Vec<NewEvent>) -> Result<Appended, AppendError> {
        if events.is_empty() {
            let tail = self.tail();
            return Ok(Appended { first: tail + 1, last: tail });
        }
        self.not_closed()?;
        self.room_for_topics(&events)?;
        if let Some(error) = &*self.inner.refusal.read()
            && !matches!(error, StoreError::Full { .. })
        {
            return Err(error.clone().into());
        }
        let cost = events.iter().map(|e| WAITING_UNIT / 4 + e.data.len()).sum::<usize>().div_ceil(WAITING_UNIT);
        let cost = u32::try_from(cost.min(WAITING_BYTES_MAX / WAITING_UNIT)).unwrap_or(u32::MAX);
        let permit = self.turn(cost).await?;
        self.ask(|answer| Request::Append { events, answer, permit }).await
    }

    async fn turn(&self, cost: u32) -> Result<OwnedSemaphorePermit, AppendError> {
        // Most often there is room, and then no timer is wound up.
        if let Ok(permit) = self.inner.waiting.clone().try_acquire_many_owned(cost) {
            return Ok(permit);
        }
        let turn = tokio::time::timeout(TURN_TIMEOUT, self.inner.waiting.clone().acquire_many_owned(cost)).await;
        turn.ok().and_then(Result::ok).ok_or(AppendError::Overloaded)
    }

    fn not_closed(&self) -> Result<(), AppendError> {
        if self.inner.closed.load(Ordering::Acquire) { Err(AppendError::Closed) } else { Ok(()) }
    }

    fn room_for_topics(&self, events: &[NewEvent]) -> Result<(), AppendError> {
        let (max, store) = (self.inner.topics_max, &self.inner.source.store);
        if max == 0 {
            return Ok(());
        }
        let mut new: Vec<_> = events.iter().map(|e| &e.topic).filter(|t| !store.has_topic(t.as_str())).collect();
        new.sort_unstable();
        new.dedup();
        if !new.is_empty() && store.topic_count() + new.len() as u64 > max {
            return Err(AppendError::TooManyTopics { max });
        }
        Ok(())
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, AppendError> {
        let (answer, answered) = oneshot::channel();
        let request = request(answer);
        match &self.lane {
            None => self.inner.requests.send(request).map_err(|_| AppendError::Closed)?,
            Some(lane) => {
                if self.inner.requests.leave(request).map_err(|_| AppendError::Closed)? == 1 {
                    lane.notify_one();
                }
            }
        }
        match tokio::time::timeout(COMMIT_TIMEOUT, answered).await {
            Ok(Ok(done)) => Ok(done?),
            Ok(Err(_)) => Err(AppendError::Closed),
            Err(_) => Err(AppendError::OutcomeUnknown),
        }
    }

    /// Fixes where a subscription or a page begins.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn start(&self, filter: &Arc<Filter>, begin: Begin) -> Result<Start, ReadError> {
        let source = &self.inner.source;
        let known = Known::of(&*source.store, filter, source.hub.lock().trims());
        let tail = self.tail();
        let found = match begin {
            Begin::Last(_) | Begin::Time(_) => {
                let (mut begin, mut upto) = (begin, tail);
                // Step by step, so that looking far back keeps no permit from other readers.
                loop {
                    let filter = filter.clone();
                    match source.blocking(move |store| look_up(store, &filter, begin, upto)).await? {
                        LookUp::Found(cursor) => break cursor,
                        LookUp::Further(rest, from) => (begin, upto) = (rest, from),
                    }
                }
            }
            Begin::After(_) | Begin::At(_) | Begin::Earliest | Begin::Latest => tail,
        };
        Ok(Start::fix(begin, known, tail, found))
    }

    /// Whether anything that matches lies after `start` up to its tail, or a gap is to be told.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn owes(&self, filter: &Arc<Filter>, start: &Start) -> Result<bool, ReadError> {
        let (mut after, tail) = (start.cursor, start.tail);
        if start.gap.is_some() {
            return Ok(true);
        }
        while after < tail {
            let filter = filter.clone();
            let (upto, found) =
                self.inner.source.blocking(move |store| first_match(store, &filter, after, tail)).await?;
            if found {
                return Ok(true);
            }
            after = upto;
        }
        Ok(false)
    }

    /// A stream of frames from `start` on. Nothing is read before it is polled.
    #[must_use]
    pub fn subscribe(&self, filter: &Arc<Filter>, start: Start, options: SubscribeOptions) -> Subscription {
        Subscription::new(&self.inner.source, filter, start, options)
    }

    /// At most `limit` events from `start` on; waits up to `wait` until there is one.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn page(
        &self,
        filter: &Arc<Filter>,
        start: Start,
        limit: usize,
        wait: Duration,
    ) -> Result<Page, ReadError> {
        let source = &self.inner.source;
        let attached = source.attach(filter, &start);
        let (mut cursor, mut gap, mut told) = (start.cursor, start.gap, start.gap.map_or(0, |gap| gap.earliest - 1));
        let deadline = tokio::time::Instant::now() + wait;
        let mut found = Found::default();
        let mut reads = 0;
        loop {
            let upto = self.tail();
            while found.count == 0 && cursor < upto && reads < PAGE_READS_MAX {
                reads += 1;
                let filter = filter.clone();
                let (after, page) = (cursor, found);
                (cursor, found) =
                    source.blocking(move |store| gather(store, &filter, after, upto, limit, page)).await?;
                // Judged after the read: what a trim took meanwhile was either read, or is told.
                let floor = source.hub.lock().floor(attached.key());
                if floor.id > told && after < floor.id {
                    told = floor.id;
                    gap = gap.or(Gap::below(floor, after));
                }
            }
            if found.count > 0 || gap.is_some() || wait.is_zero() || reads == PAGE_READS_MAX {
                break;
            }
            let woken = std::future::poll_fn(|cx| attached.poll_past(cursor, cx));
            match tokio::time::timeout_at(deadline, woken).await {
                Ok(true) => {}
                Ok(false) | Err(_) => break,
            }
        }
        Ok(Page {
            events: found.bytes,
            count: found.count,
            next: cursor + 1,
            gap,
            earliest: self.earliest(),
            tail: self.tail(),
        })
    }

    /// At most `limit` topics that hold something, in order of name, after `after`, that begin with `prefix`.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn topics(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<TopicInfo>, ReadError> {
        let source = &self.inner.source;
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let list = source.blocking(move |store| store.topics(&prefix, after.as_deref(), limit)).await?;
        let mut hub = source.hub.lock();
        let infos = list.into_iter().map(|stats| TopicInfo {
            subscribers: hub.subscribers_of(stats.topic.as_str()) as u64,
            topic: stats.topic,
            earliest: stats.earliest,
            last: stats.last,
            events: stats.events,
            bytes: stats.bytes,
            closed: false,
        });
        Ok(infos.collect())
    }

    /// Removes the topic's events; with `before` only those with a smaller id.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn delete(&self, topic: &Topic, before: Option<EventId>) -> Result<(), AppendError> {
        self.not_closed()?;
        let upto = before.map_or_else(|| self.tail(), |before| before.saturating_sub(1));
        let trims = vec![Trim { topic: Some(topic.clone()), upto }];
        self.ask(|answer| Request::Trim { trims, answer }).await?;
        Ok(self.inner.source.blocking(Store::settle).await?)
    }

    /// The topic's own retention, when it has one.
    #[must_use]
    pub fn retention(&self, topic: &Topic) -> Option<Limits> {
        self.inner.source.store.retention_of(topic.as_str())
    }

    /// Sets (`Some`) or forgets (`None`) the topic's own retention.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn set_retention(&self, topic: &Topic, limits: Option<Limits>) -> Result<(), AppendError> {
        self.not_closed()?;
        let topic = topic.clone();
        self.ask(|answer| Request::Retain { topic, limits, answer }).await
    }

    /// Ends every subscription with [`StreamError::Draining`], and every page that waits with what it has.
    pub fn drain(&self) {
        let wakes = self.inner.source.hub.lock().drain();
        wake::all(wakes);
    }

    /// Waits for what is being appended, then closes the store. Later appends are answered [`AppendError::Closed`].
    pub async fn close(&self) {
        self.inner.closed.store(true, Ordering::Release);
        let threads = self.inner.threads.lock().take();
        let Some(Threads { sequencer, janitor }) = threads else { return };
        let (requests, store) = (self.inner.requests.clone(), self.inner.source.store.clone());
        let closed = tokio::task::spawn_blocking(move || {
            janitor.stop();
            let (answer, stopped) = oneshot::channel();
            if requests.send(Request::Stop { answer }).is_ok() {
                drop(stopped.blocking_recv());
            }
            drop(sequencer.join());
            store.close()
        });
        match closed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the log was not closed cleanly; nothing that was acked is lost"),
            Err(error) => tracing::error!(%error, "closing the log failed"),
        }
    }
}

/// Whether anything matches within `after < id <= upto`, and how far was looked.
fn first_match(
    store: &dyn Store,
    filter: &Filter,
    after: EventId,
    upto: EventId,
) -> Result<(EventId, bool), StoreError> {
    let mut found = false;
    let upto = store.scan(Scan { filter, after, upto }, &mut |_| {
        found = true;
        std::ops::ControlFlow::Break(())
    })?;
    Ok((upto, found))
}

/// What a page has so far.
#[derive(Default)]
struct Found {
    bytes: Vec<u8>,
    count: usize,
}

fn gather(
    store: &dyn Store,
    filter: &Filter,
    after: EventId,
    upto: EventId,
    limit: usize,
    mut found: Found,
) -> Result<(EventId, Found), StoreError> {
    let upto = store.scan(Scan { filter, after, upto }, &mut |event| {
        if found.count > 0 {
            found.bytes.push(b',');
        }
        Form::Lines.event(&mut found.bytes, event);
        // A line ends with LF, which an array has no need of.
        found.bytes.pop();
        found.count += 1;
        if found.count >= limit || found.bytes.len() >= PAGE_BYTES_MAX {
            std::ops::ControlFlow::Break(())
        } else {
            std::ops::ControlFlow::Continue(())
        }
    })?;
    Ok((upto, found))
}
