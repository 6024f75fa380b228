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
        let (key, rose) = self.hub.lock().attach(filter, (self.clock)(), start.trims);
        if rose {
            // After attaching, so that a trim in between is either told by the hub or already in the store's floor.
            let floor = self.store.floor(filter);
            self.hub.lock().raise_floor(key, floor);
        }
        Attached { source: self.clone(), key }
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

    /// What it draws from.
    #[must_use]
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// Ready, with `true`, when something that matches may lie beyond `cursor`; with `false` when nothing more comes.
    pub fn poll_past(&self, cursor: EventId, cx: &mut Context<'_>) -> Poll<bool> {
        let mut hub = self.source.hub.lock();
        match hub.place(self.key, cursor, 0, || Wake::Task(cx.waker().clone())) {
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

/// A stream of bytes in the chosen form, in whole frames.
pub struct Stream {
    machine: Subscription,
    attached: Attached,
    reading: Option<ReadFuture>,
    ended: bool,
}

impl Stream {
    /// A stream for `filter` that begins at `start`.
    #[must_use]
    pub fn new(source: &Arc<Source>, filter: &Arc<Filter>, start: Start, options: Options) -> Self {
        let attached = source.attach(filter, &start);
        // Equal filters are kept once.
        let filter = source.hub.lock().filter(attached.key).unwrap_or_else(|| filter.clone());
        let machine = Subscription::new(attached.key, filter, source.store.name(), start, options, (source.clock)());
        Self { machine, attached, reading: None, ended: false }
    }

    /// Everything that matches up to here was handed out.
    #[must_use]
    pub fn cursor(&self) -> EventId {
        self.machine.cursor()
    }

    /// The parts, for another driver: only before it was first polled, as what was begun for it is forgotten.
    #[must_use]
    pub fn into_parts(self) -> (Subscription, Attached) {
        (self.machine, self.attached)
    }

    fn emit(&self, bytes: Bytes) -> Poll<Option<Result<Bytes, StreamError>>> {
        self.attached.source.metrics.bytes_delivered.inc_by(bytes.len() as u64);
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
                    Poll::Ready(Ok(read)) => this.machine.was_read(read),
                    Poll::Ready(Err(source)) => {
                        let cursor = this.machine.cursor();
                        return this.fail(StreamError::Storage { cursor, source });
                    }
                }
                this.reading = None;
            }
            let source = &this.attached.source;
            let now = (source.clock)();
            match this.machine.next(&source.hub, now, || Wake::Task(cx.waker().clone())) {
                Want::Emit(bytes) => return this.emit(bytes),
                Want::Tell(reason, bytes) => {
                    source.metrics.gap_told(reason.as_str());
                    return this.emit(bytes);
                }
                Want::Wait => return Poll::Pending,
                Want::Read(reading) => {
                    let source = source.clone();
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
                    let cursor = this.machine.cursor();
                    return this.fail(StreamError::Draining { cursor });
                }
            }
        }
    }
}
