//! A lane: a thread that serves publishers and commits what they publish itself.
//!
//! While the disk is busy such a thread has nothing to do but to wait for it, so the writer's own thread would cost two switches
//! of threads for each commit, and win nothing. What holds: what was appended on a lane is committed when its tasks wait for
//! nothing else. Blocks: nothing that must go on without the disk may share its thread.

use std::sync::Arc;

use tokio::sync::Notify;

use super::Log;

/// Turns in which more may gather before a commit. Every publisher waits for its answer, so what gathers ends by itself; this bounds
/// what the first of very many waits for the last.
const TURNS_MAX: usize = 8;

/// What commits on a lane's thread.
#[derive(Clone)]
pub struct Lane {
    log: Log,
    asked: Arc<Notify>,
}

impl Log {
    /// A lane, and the log to append to on it.
    #[must_use]
    pub fn lane(&self) -> (Self, Lane) {
        let asked = Arc::new(Notify::new());
        let log = Self { inner: self.inner.clone(), lane: Some(asked.clone()) };
        (log, Lane { log: self.clone(), asked })
    }
}

impl Lane {
    /// Commits for ever, on the thread of a runtime that has only one. Blocks it while the disk is written.
    pub async fn commits(self) {
        let requests = &self.log.inner.requests;
        loop {
            self.asked.notified().await;
            let mut waiting = requests.waiting();
            // Publishers whose requests lie in their sockets are to share the commit: in one turn the sockets are looked at, in the
            // next one those that have something run. To wait any longer was measured to win nothing.
            for _ in 0..TURNS_MAX {
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
                let before = std::mem::replace(&mut waiting, requests.waiting());
                if waiting <= before {
                    break;
                }
            }
            // Also many: to let the writer's thread commit, and to read and answer meanwhile, was measured to win nothing either.
            requests.work();
        }
    }
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
                    let committing = tokio::spawn(lane.commits());
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
