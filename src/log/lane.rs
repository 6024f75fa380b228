//! A lane: a thread that serves publishers and commits what they publish itself.
//!
//! While the disk is busy such a thread has nothing to do but to wait for it, so the writer's own thread would cost two switches
//! of threads for each commit, and win nothing. What holds: what was appended on a lane is committed when its tasks wait for
//! nothing else. Blocks: nothing that must go on without the disk may share its thread.
//!
//! The thread commits beside its runtime, not within it, so that another thread can drive the runtime should the disk hang. To be woken
//! from beside a runtime costs a system call for each task; so whom the thread answers meanwhile it notes, and wakes when it is back within.
//!
//! Publishers that wait for each answer come back a moment after it, one by one. Who slept until the first of them came would commit it alone,
//! and let the others wait for two commits; so where they come back that soon, the thread stays awake for as many as it has answered.

use std::future::poll_fn;
use std::mem::take;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use tokio::sync::Notify;

use super::Log;
use crate::sync::time::Instant;
use crate::sync::{Mutex, thread};

/// Turns in which more may gather before a commit. Every publisher waits for its answer, so what gathers ends by itself; this bounds
/// what the first of very many waits for the last.
const TURNS_MAX: usize = 8;

/// So long a lane's thread stays awake for those whom it has answered: a lone publisher on the same machine was seen back after 60 to 90 µs at
/// the median, and 20 to 40 µs later where it found the thread asleep; eight after 40. It is less than a commit takes.
const AWAKE: Duration = Duration::from_micros(100);

/// As many turns at the most, should time stand still: one takes 0.6 µs where it is empty, so time is over first.
const AWAKE_TURNS_MAX: usize = 200;

/// A turn in which nobody comes takes 0.6 µs. One that takes longer than this has let another thread have the core: then it is for that one
/// to have. (Else a publisher that feeds a thousand busy streams took 6 to 9% of their pace.)
const EMPTY_TURN_MAX: Duration = Duration::from_micros(20);

/// When the first comes back after a time that is shorter than this, in which the thread may have had to wake, it was worth staying awake.
const SOON: Duration = Duration::from_micros(150);

/// What commits on a lane's thread.
#[derive(Clone)]
pub struct Lane {
    log: Log,
    shared: Arc<Shared>,
}

/// What a lane's thread and its publishers share.
#[derive(Default)]
pub(super) struct Shared {
    asked: Notify,
    answered: Mutex<Answered>,
    returns: Mutex<Returns>,
}

/// Whether those who were answered come back soon.
#[derive(Default, Clone, Copy)]
struct Returns {
    /// How many the last commit had.
    answered: usize,
    /// The first came back soon, the last time, and nobody else wanted the core.
    soon: bool,
}

impl Returns {
    /// Whether to stay awake, now that so many wait and so long after the answers.
    fn awaits(self, waiting: usize, since: Duration) -> bool {
        self.soon && waiting < self.answered && since < AWAKE
    }

    /// The first of the next ones came, so long after the answers.
    fn came(&mut self, since: Duration, undisturbed: bool) {
        self.soon = undisturbed && since < SOON;
    }
}

/// Whose answers are there.
#[derive(Default)]
struct Answered {
    /// The thread that commits just now: whom it answers is woken later.
    committing: Option<thread::ThreadId>,
    /// Bounded by the requests that are answered in one turn with the writer.
    to_wake: Vec<Waker>,
}

impl Log {
    /// A lane, and the log to append to on it.
    #[must_use]
    pub fn lane(&self) -> (Self, Lane) {
        let shared = Arc::new(Shared::default());
        let log = Self { inner: self.inner.clone(), lane: Some(shared.clone()) };
        (log, Lane { log: self.clone(), shared })
    }
}

impl Lane {
    /// Ready when there is something to commit, and as much of it as comes at once has gathered. To be waited for within the
    /// lane's runtime, until it is ready.
    pub async fn due(&self) {
        self.shared.wake_answered();
        let requests = &self.log.inner.requests;
        // Whoever was answered runs in the first of these turns; in the second one the sockets are looked at.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        let answered = Instant::now();
        let undisturbed = self.stay_awake(answered).await;
        let mut waiting = 0;
        while waiting == 0 {
            // It may have been told of those whom the last commit had.
            self.shared.asked.notified().await;
            waiting = requests.waiting();
        }
        self.shared.returns.lock().came(answered.elapsed(), undisturbed);
        // Publishers whose requests lie in their sockets are to share the commit: in one turn the sockets are looked at, in the
        // next one those that have something run.
        for _ in 0..TURNS_MAX {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            let before = std::mem::replace(&mut waiting, requests.waiting());
            if waiting <= before {
                break;
            }
        }
        self.shared.returns.lock().answered = waiting;
        // Also many: to let the writer's thread commit, and to read and answer meanwhile, was measured to win a tenth with 64 publishers at the
        // best, for a quarter more of the processors' time for each publish.
    }

    /// Stays awake for those who were `answered` then, where that seems worth it; `false` when another thread wants the core.
    async fn stay_awake(&self, answered: Instant) -> bool {
        let (requests, returns) = (&self.log.inner.requests, *self.shared.returns.lock());
        let (mut waiting, mut since) = (requests.waiting(), Duration::ZERO);
        for _ in 0..AWAKE_TURNS_MAX {
            if !returns.awaits(waiting, since) {
                break;
            }
            tokio::task::yield_now().await;
            let (before, begun) = (std::mem::replace(&mut waiting, requests.waiting()), since);
            since = answered.elapsed();
            if waiting <= before && since.saturating_sub(begun) > EMPTY_TURN_MAX {
                return false;
            }
        }
        true
    }

    /// Commits what waits. Blocks while the disk is written. Whom it answers on this lane is woken by the next [`Lane::due`].
    pub fn commit(&self) {
        self.shared.answered.lock().committing = Some(thread::current().id());
        let _ends = Ends(&self.shared);
        self.log.inner.requests.work();
    }
}

/// Ends a commit, also by a panic.
struct Ends<'a>(&'a Shared);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.answered.lock().committing = None;
        if thread::panicking() {
            // The thread does not come back.
            self.0.wake_answered();
        }
    }
}

impl Shared {
    /// Something is to be committed.
    pub(super) fn ask(&self) {
        self.asked.notify_one();
    }

    fn wake_answered(&self) {
        let to_wake = take(&mut self.answered.lock().to_wake);
        to_wake.into_iter().for_each(Waker::wake);
    }
}

/// Wakes a publisher: later, where the lane's own thread does it while it commits.
struct Publisher {
    waker: Waker,
    lane: Arc<Shared>,
}

impl Wake for Publisher {
    fn wake(self: Arc<Self>) {
        let mut answered = self.lane.answered.lock();
        if answered.committing == Some(thread::current().id()) {
            answered.to_wake.push(self.waker.clone());
        } else {
            drop(answered);
            self.waker.wake_by_ref();
        }
    }
}

/// Waits for an answer on a lane.
pub(super) async fn answered<T>(lane: Arc<Shared>, answer: impl Future<Output = T>) -> T {
    let mut answer = pin!(answer);
    let mut known: Option<(Waker, Waker)> = None;
    poll_fn(|cx| {
        // Made once: a task is most often polled with one and the same waker.
        drop(known.take_if(|(own, _)| !own.will_wake(cx.waker())));
        let (_, through) = known.get_or_insert_with(|| {
            let publisher = Publisher { waker: cx.waker().clone(), lane: lane.clone() };
            (cx.waker().clone(), Waker::from(Arc::new(publisher)))
        });
        answer.as_mut().poll(&mut Context::from_waker(through))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::NewEvent;
    use crate::log::Options;
    use crate::topic::Topic;

    const PUBLISHERS: u64 = 40;
    const EACH: u64 = 25;

    async fn publish(log: Log) -> Vec<u64> {
        let mut ids = Vec::new();
        for _ in 0..EACH {
            let event = NewEvent { topic: Topic::parse("t").unwrap(), event: None, key: None, data: "x".into() };
            let appended = log.append(vec![event]).await.unwrap();
            assert!(log.tail() >= appended.last, "who holds an id can read it");
            ids.push(appended.first);
        }
        ids
    }

    #[test]
    fn a_lane_stays_awake_only_for_those_who_come_back_soon() {
        let (at_once, late, much_later) = (Duration::ZERO, AWAKE, Duration::from_millis(5));
        let mut returns = Returns::default();
        returns.came(much_later, true);
        returns.answered = 3;
        assert!(!returns.awaits(0, at_once), "they took long the last time");
        returns.came(AWAKE + Duration::from_micros(10), true);
        assert!(returns.awaits(0, at_once) && returns.awaits(2, at_once), "who sleeps sees them a little later");
        assert!(!returns.awaits(3, at_once), "all are there");
        assert!(!returns.awaits(0, late), "nobody is waited for without end");
        // Two of three have gone: this is the last time that they are waited for.
        returns.came(late, true);
        returns.answered = 1;
        assert!(returns.awaits(0, at_once) && !returns.awaits(1, at_once));
        returns.came(much_later, true);
        assert!(!returns.awaits(0, at_once), "one that comes now and then costs nothing");
        returns.came(late, false);
        assert!(!returns.awaits(0, at_once), "others want the core");
    }

    /// Lanes that want the writer at the same time, with few publishers and with many, and others beside them, who send.
    #[test]
    fn on_lanes_and_beside_them_every_append_is_answered_once() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(Options::new(dir.path())).unwrap();
        let on_lane = |publishers: u64| {
            let (on_lane, lane) = log.lane();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let all: Vec<_> = (0..publishers).map(|_| tokio::spawn(publish(on_lane.clone()))).collect();
                    let committing = tokio::spawn(async move {
                        loop {
                            lane.due().await;
                            lane.commit();
                        }
                    });
                    let mut ids = Vec::new();
                    for one in all {
                        ids.extend(one.await.unwrap());
                    }
                    committing.abort();
                    ids
                })
            }
        };
        let beside = {
            let log = log.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(publish(log))
            }
        };
        let threads =
            [std::thread::spawn(on_lane(2)), std::thread::spawn(on_lane(PUBLISHERS - 3)), std::thread::spawn(beside)];
        let mut ids: Vec<u64> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids, (1..=PUBLISHERS * EACH).collect::<Vec<_>>());
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(log.close());
    }
}
