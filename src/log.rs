//! The face: one log to append to, read from and subscribe to. What HTTP and an embedding program see.
//!
//! Everything here is safe to call from async code: what blocks runs on threads of its own. Must not know HTTP.

mod error;
mod follow;
mod janitor;
mod lane;
mod read;
mod write;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{Semaphore, oneshot};

use crate::event::{EventId, Millis};
use crate::hub::{self, Hub, wake};
use crate::metrics::Metrics;
use crate::sequencer::local::{self, Refusal, Request, Requests};
use crate::store::Store;
use crate::store::rocks::{self, RocksStore};
use crate::sync::thread::JoinHandle;
use crate::sync::{Mutex, task};

pub use self::error::{AppendError, OpenError, ReadError};
pub use self::follow::{Beginning, Item, Items};
pub use self::lane::Lane;
pub use self::read::{Page, State, TopicInfo};
pub use self::write::Answer;
use self::write::{WAITING_BYTES_MAX, WAITING_UNIT};
pub use crate::sequencer::{Appended, IdempotencyKey, Terms};
pub use crate::store::{Durability, Limits, Policy, Snapshot};
pub use crate::subscription::bundle::{Bundle, Kind as BundleKind};
pub use crate::subscription::stream::{Stream as Subscription, StreamError};
pub use crate::subscription::{Begin, Gap, Options as SubscribeOptions, ReadingError, Start};

use crate::subscription::stream::Source;

/// Reads that run at once. They are bounded by the disk and two or more processors, and each costs a thread.
const READS_MAX: usize = 16;

/// Slower than this, a disk counts as one that hangs: it is past every queue that is still useful.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);

/// After this fraction of its timeout a commit is said to hang: well before publishers begin to be told that the outcome is not known, so
/// that whoever asks whether the server is ready can send them elsewhere in time.
const HANGS_FRACTION: u32 = 3;

/// How a log is kept and served.
#[derive(Debug, Clone)]
pub struct Options {
    pub dir: PathBuf,
    pub durability: Durability,
    pub retention: Policy,
    /// 0: no limit.
    pub topics_max: u64,
    /// For so long a publish is remembered under its idempotency key,
    pub dedupe_window: Duration,
    /// unless so many newer keys have come. Each takes some 50 bytes of memory.
    pub dedupe_keys_max: u64,
    /// After so long without a byte, a subscriber is sent a heartbeat.
    pub heartbeat: Duration,
    /// So long a publisher waits for the disk, before it is told that the outcome is not known ([`AppendError::OutcomeUnknown`]).
    /// On a [`Lane`] another thread has to drive its runtime meanwhile, as its own waits for the disk.
    pub commit_timeout: Duration,
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
            dedupe_window: Duration::from_secs(600),
            dedupe_keys_max: 10_000_000,
            heartbeat: Duration::from_secs(15),
            commit_timeout: COMMIT_TIMEOUT,
            metrics: Arc::new(Metrics::new(SystemTime::now())),
        }
    }
}

/// Whether the log can be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Writable,
    /// Publishes are refused; reads go on. Tried again by itself.
    Refusing {
        reason: Arc<str>,
    },
    /// A write has been under way for so long, a third of [`Options::commit_timeout`] or more. Publishes wait for it; reads go on.
    Hanging {
        time: Duration,
    },
}

/// A log. Cheap to clone; all clones are the same log.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
    /// Told of what is appended, where the thread that appends commits.
    lane: Option<Arc<lane::Shared>>,
}

struct Inner {
    source: Arc<Source>,
    name: Arc<str>,
    requests: Requests,
    waiting: Arc<Semaphore>,
    refusal: Refusal,
    topics_max: u64,
    heartbeat: Duration,
    commit_timeout: Duration,
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
            wake: wake::all,
            durability: options.durability,
            dedupe_window: Millis::try_from(options.dedupe_window.as_millis()).unwrap_or(Millis::MAX),
            dedupe_keys_max: options.dedupe_keys_max,
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
                bundles: Arc::default(),
                clock: uptime,
                metrics,
            }),
            requests,
            waiting: Arc::new(Semaphore::new(WAITING_BYTES_MAX / WAITING_UNIT)),
            refusal,
            topics_max: options.topics_max,
            heartbeat: options.heartbeat,
            commit_timeout: options.commit_timeout,
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

    /// Whether it can be written.
    #[must_use]
    pub fn health(&self) -> Health {
        match &*self.inner.refusal.read() {
            None => match self.inner.requests.under_way() {
                time if time >= self.inner.commit_timeout / HANGS_FRACTION => Health::Hanging { time },
                _ => Health::Writable,
            },
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
        metrics.write_under_way.set(self.inner.requests.under_way().as_secs_f64());
        metrics
    }

    /// Counts a publish that was refused with the error `code`.
    pub fn count_refused(&self, code: &'static str) {
        self.inner.source.metrics.refused(code);
    }

    fn not_closed(&self) -> Result<(), AppendError> {
        if self.inner.closed.load(Ordering::Acquire) { Err(AppendError::Closed) } else { Ok(()) }
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
        let closed = task::spawn_blocking(move || {
            janitor.stop();
            let (answer, stopped) = oneshot::channel();
            if requests.send(Request::Stop { answer }).is_ok() {
                drop(task::wait(stopped));
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
