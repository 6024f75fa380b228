//! Who drives a lane's runtime: its own thread, and another one that stands in while the first is away with the disk.
//!
//! A lane's thread writes the log itself, so while a disk hangs it can tell nobody anything, not even that the outcome is not known. Then
//! another thread goes on where it stopped: with the same tasks, sockets and timers, so whoever waits is told by the code that tells it
//! everywhere else, once and in one piece, new requests are read, and connections end when the server does. Nothing is written to a
//! socket behind a task's back, which may have half an answer out.
//!
//! What holds: one thread at a time runs a lane's tasks (the runtime's core is handed from one to the other); its own thread is away only
//! beside the runtime, never within it. Must not know sockets or requests.

use std::io::Result;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::super::Commits;

/// How often it is looked whether the lane's thread is away for long. Waking a thread twice a second costs nothing that could be measured.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// So long its own thread may be away: longer than disks take that answer at all, and little beside the time after which a publisher is to be told
/// that the outcome is not known. Whoever asks meanwhile is read so much later, at the most by this and `LOOK_EVERY`.
const STAND_IN_AFTER: Duration = Duration::from_millis(500);

/// A lane's runtime and those who drive it.
struct Driver<C> {
    runtime: Runtime,
    commits: C,
    stop: CancellationToken,
    begun: Instant,
    /// Since when the lane's thread has been away: milliseconds since `begun`, and one; 0 while it is not.
    away_since: AtomicU64,
    /// Told each time it comes back.
    back: Notify,
}

/// Starts the two threads of lane `number`, which end when `stop` is cancelled. The second is to be unparked then.
///
/// # Errors
/// When the system has no more threads to give.
pub fn start<C: Commits>(
    number: usize,
    runtime: Runtime,
    commits: C,
    stop: CancellationToken,
) -> Result<[JoinHandle<()>; 2]> {
    let (begun, away_since, back) = (Instant::now(), AtomicU64::new(0), Notify::new());
    let driver = Arc::new(Driver { runtime, commits, stop, begun, away_since, back });
    let own = thread::Builder::new().name(format!("lane-{number}"));
    let other = thread::Builder::new().name(format!("lane-{number}-aside"));
    // The one that needs no company first: should there be no second thread, it ends with the token, which its owner drops.
    let own = own.spawn({
        let driver = driver.clone();
        move || driver.drive()
    })?;
    Ok([own, other.spawn(move || driver.stand_by())?])
}

impl<C: Commits> Driver<C> {
    /// What the lane's own thread does.
    fn drive(&self) {
        let mut stopped = pin!(self.stop.cancelled());
        let mut is_due = || {
            // Where the other one has the runtime, this waits for it all the same, and is not held up by it.
            self.runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = self.commits.due() => true,
                    () = stopped.as_mut() => false,
                }
            })
        };
        while is_due() {
            self.away_since.store(self.now(), Ordering::SeqCst);
            self.commits.commit();
            self.away_since.store(0, Ordering::SeqCst);
            self.back.notify_waiters();
        }
    }

    /// What the other one does.
    fn stand_by(&self) {
        while !self.stop.is_cancelled() {
            thread::park_timeout(LOOK_EVERY);
            if !self.is_long_away() {
                continue;
            }
            tracing::warn!("a commit takes long; another thread answers its lane's publishers meanwhile");
            self.runtime.block_on(async {
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    () = self.is_back() => {}
                }
            });
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }

    fn is_long_away(&self) -> bool {
        let since = self.away_since.load(Ordering::SeqCst);
        since > 0 && u128::from(self.now().saturating_sub(since)) >= STAND_IN_AFTER.as_millis()
    }

    /// Ready when the lane's thread is there, or was in between: it is for that one to drive then.
    async fn is_back(&self) {
        let mut told = pin!(self.back.notified());
        told.as_mut().enable();
        if self.away_since.load(Ordering::SeqCst) > 0 {
            told.await;
        }
    }
}
