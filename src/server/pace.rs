//! HTTP/2: each stream's own write timeout. A connection's socket may flow while one of its streams is stalled, by a window
//! that its client does not open; that stream alone is reset.
//!
//! hyper spawns a task for each stream through the executor that it is given, and takes a chunk from a body only when it
//! has handed on the one before. So a chunk after which a body is not asked again tells a stall, and dropping the task
//! resets its stream. Must not know what is streamed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use tokio_util::task::TaskTracker;

use crate::sync::time::sleep;

tokio::task_local! {
    static PACE: Arc<Pace>;
}

/// Counts a stream's steps: odd while a chunk is waiting to be handed on. Nothing else is learnt from it, and the stream's task alone writes
/// and reads it: relaxed is enough.
#[derive(Debug, Default)]
struct Pace(AtomicU64);

impl Pace {
    /// Ready when a chunk has waited for at least `timeout`, and at most half as long again.
    async fn stalled(&self, timeout: Duration) {
        let mut before = [0; 2];
        loop {
            sleep(timeout / 2).await;
            let now = self.0.load(Ordering::Relaxed);
            if now % 2 == 1 && before == [now; 2] {
                return;
            }
            before = [before[1], now];
        }
    }
}

/// Spawns the tasks of a connection's streams, and ends those that stall.
#[derive(Clone)]
pub struct Streams {
    pub tasks: TaskTracker,
    pub write_timeout: Duration,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        // With the connection's own record of it, what an idle stream costs.
        const { assert!(size_of::<F>() <= 1024, "a stream's task is to stay small: box what only its beginning needs") };
        let write_timeout = self.write_timeout;
        self.tasks.spawn(async move {
            let pace = Arc::new(Pace::default());
            tokio::select! {
                () = PACE.scope(Arc::clone(&pace), stream) => {}
                () = pace.stalled(write_timeout) => tracing::debug!("a stream's client took nothing for write_timeout"),
            }
        });
    }
}

/// A body that tells its pace.
pub struct Paced<B> {
    body: B,
    pace: Option<Arc<Pace>>,
}

impl<B> Paced<B> {
    /// `body`, on the stream whose task this is called in.
    pub fn new(body: B) -> Self {
        Self { body, pace: PACE.try_with(Arc::clone).ok() }
    }
}

impl<B: Body + Unpin> Body for Paced<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        // Only this task writes it.
        let step = |odd| {
            if let Some(pace) = &this.pace {
                let now = pace.0.load(Ordering::Relaxed);
                pace.0.store(now + u64::from(now % 2 != odd), Ordering::Relaxed);
            }
        };
        step(0);
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if frame.is_some() {
            step(1);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
