//! The async driver of a [`Subscription`]: a `Stream` of frames.
//!
//! What holds: reads run on blocking threads, a bounded number at a time, and none is begun before the frames of the last one were
//! taken; the lock of the hub is never held across an await; a stream that is dropped lets its place in the hub go.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{Options, Reading, Start, Subscription, Want, WasRead, read};
use crate::event::{EventId, Millis};
use crate::hub::wake::Wake;
use crate::hub::{Hub, Place, SubscriberKey};
use crate::metrics::Metrics;
use crate::store::{Store, StoreError};
use crate::topic::Filter;

/// What every stream of a log draws from.
pub struct Source {
    /// The log's name.
    pub log: Arc<str>,
    pub store: Arc<dyn Store>,
    pub hub: Arc<Mutex<Hub<Wake>>>,
    /// How many reads may run at once.
    pub reads: Arc<Semaphore>,
    /// Never goes back; when it began does not matter.
    pub clock: fn() -> Millis,
    pub metrics: Arc<Metrics>,
}

impl Source {
    /// Does `reading` on a blocking thread when a permit is free.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn read(&self, reading: Reading) -> Result<WasRead, StoreError> {
        self.metrics.catchup_reads.inc();
        self.blocking(move |store| read(store, &reading)).await
    }

    /// Runs `work` on a blocking thread when a permit is free.
    ///
    /// # Errors
    /// Those of `work`; [`StoreError::Closed`] when the runtime is shutting down.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let permit = self.reads.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let store = self.store.clone();
        let work = tokio::task::spawn_blocking(move || {
            let done = work(&*store);
            drop(permit);
            done
        });
        work.await.unwrap_or(Err(StoreError::Closed))
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
        (key, filter)
    }
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
        match hub.place(self.key, cursor, 0, || Wake::Task(Box::new(cx.waker().clone()))) {
            Place::Edge { .. } => Poll::Pending,
            Place::Drained => Poll::Ready(false),
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
    Storage { cursor: EventId, source: StoreError },
}

type ReadFuture = Pin<Box<dyn Future<Output = Result<WasRead, StoreError>> + Send>>;

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

    /// What is next; see [`Subscription::next`].
    pub fn next(&mut self, wake: impl FnOnce() -> Wake) -> Want {
        let Source { hub, log, clock, .. } = &*self.source;
        self.machine.next(hub, log, clock(), wake)
    }

    /// Hands in what a [`Want::Read`] gave.
    pub fn was_read(&mut self, read: WasRead) {
        self.machine.was_read(read);
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.source.hub.lock().detach(self.machine.key());
    }
}

/// A stream of bytes in the chosen form, in whole frames.
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
                    Poll::Ready(Ok(read)) => this.following.was_read(read),
                    Poll::Ready(Err(source)) => {
                        let cursor = this.following.cursor();
                        return this.fail(StreamError::Storage { cursor, source });
                    }
                }
                this.reading = None;
            }
            match this.following.next(|| Wake::Task(Box::new(cx.waker().clone()))) {
                Want::Emit(bytes) => return this.emit(bytes),
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
