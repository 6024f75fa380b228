//! What the scenarios share: logs over the model store, publishers and followers as threads, futures that are dropped halfway.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use shuttle::future::block_on;
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::thread::JoinHandle;
use tokio_stream::StreamExt as _;

use crate::event::{Event, EventId, Key, NewEvent};
use crate::log::{AppendError, Item, Items, Lane, Log, Options};
use crate::store::Store;
use crate::store::model::ModelStore;
use crate::topic::{Filter, Pattern, Topic};

/// A log in memory, whose reads stop after `scan_max` records.
pub fn log_with(events: u64, scan_max: usize) -> (Log, Arc<ModelStore>) {
    let store = Arc::new(ModelStore::with_short_scans(scan_max));
    let before: Vec<_> = (1..=events).map(|id| Event::new(id, id, keyed(id))).collect();
    if !before.is_empty() {
        store.append(&before).unwrap();
    }
    (Log::over(store.clone(), Options::new("/nowhere")).unwrap(), store)
}

pub fn event(data: impl ToString) -> NewEvent {
    NewEvent { topic: topic(), event: None, key: None, data: data.to_string() }
}

/// One under its key: one of two.
pub fn keyed(data: u64) -> NewEvent {
    NewEvent { key: Some(Key::parse(if data.is_multiple_of(2) { "even" } else { "odd" }).unwrap()), ..event(data) }
}

pub fn topic() -> Topic {
    Topic::parse("t").unwrap()
}

pub fn filter() -> Filter {
    Filter::new(vec![Pattern::parse("t").unwrap()], Vec::new())
}

pub fn go<T: 'static + Send>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    shuttle::thread::spawn(work)
}

pub fn all<T>(threads: impl IntoIterator<Item = JoinHandle<T>>) -> Vec<T> {
    threads.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// One of `0..n`, by chance.
pub fn any(n: u32) -> u32 {
    thread_rng().gen_range(0..n)
}

/// Appends `events`, each after the one before was answered, and checks that who holds an id can read it.
pub async fn publish(log: Log, events: Vec<NewEvent>) -> Result<Vec<EventId>, AppendError> {
    let mut ids = Vec::new();
    for event in events {
        let appended = log.append(vec![event]).await?;
        assert!(log.tail() >= appended.last, "who holds an id cannot read it");
        assert!(ids.last().is_none_or(|before| *before < appended.first), "ids went back");
        ids.push(appended.first);
    }
    Ok(ids)
}

/// What a lane's thread does: its publishers take turns with what commits, until they have ended.
pub fn on_lane<T>(lane: Lane, mut publishers: Vec<Pin<Box<dyn Future<Output = T> + Send>>>) -> Vec<T> {
    let mut commits = pin!(async {
        loop {
            lane.due().await;
            lane.commit();
        }
    });
    let mut ended = Vec::new();
    block_on(poll_fn(|cx| {
        publishers.retain_mut(|publisher| match publisher.as_mut().poll(cx) {
            Poll::Ready(done) => {
                ended.push(done);
                false
            }
            Poll::Pending => true,
        });
        if publishers.is_empty() {
            return Poll::Ready(());
        }
        let polled: Poll<()> = commits.as_mut().poll(cx);
        assert!(polled.is_pending(), "it commits for ever");
        Poll::Pending
    }));
    ended
}

/// Polls `future` at most `polls` times, and then drops it: at once, or, as chance will have it, when it is woken once more.
pub async fn drop_after<T>(polls: u32, future: impl Future<Output = T>) -> Option<T> {
    let mut future = Box::pin(future);
    let (mut left, lingers) = (polls, polls < u32::MAX && any(2) == 0);
    poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left > 0 || lingers => Poll::Pending,
            Poll::Pending => Poll::Ready(None),
        }
    })
    .await
}

/// What a follower has been given: every id once, ascending, and none missing but under a gap.
pub struct Seen {
    pub after: EventId,
    /// What may be missing.
    pub excused: EventId,
    /// What must not come, as it was gone before the follower began.
    pub gone: EventId,
    pub gaps: u32,
    pub closed: bool,
}

impl Seen {
    pub fn from(after: EventId) -> Self {
        Self { after, excused: 0, gone: 0, gaps: 0, closed: false }
    }

    /// Takes items until `upto` was reached, or the stream has ended.
    pub async fn follow(&mut self, items: &mut Items, upto: EventId) {
        while self.after < upto && !self.closed {
            match items.next().await {
                Some(Ok(item)) => self.take(item),
                Some(Err(error)) => panic!("a stream broke off at {}: {error}", self.after),
                None => panic!("a stream ended at {}", self.after),
            }
        }
    }

    pub fn take(&mut self, item: Item) {
        match item {
            Item::Event(event) => {
                assert!(event.id > self.after, "an event came twice");
                assert!(
                    event.id - 1 <= self.after.max(self.excused),
                    "an event between {} and {} is missing",
                    self.after,
                    event.id
                );
                assert!(event.id > self.gone, "what is gone was handed out");
                self.after = event.id;
            }
            Item::Live { tail } => {
                assert!(tail <= self.after.max(self.excused), "it is said to have caught up, and has not");
                self.after = self.after.max(tail);
            }
            Item::Gap(gap) => {
                self.excused = self.excused.max(gap.earliest - 1);
                self.gaps += 1;
            }
            Item::Closed { last } => {
                assert_eq!(last, self.after, "it is said to be closed before its end");
                self.closed = true;
            }
            Item::State(_) | Item::Snapshot { .. } => panic!("nobody asked for a bundle"),
        }
    }
}

/// Closes the log, and waits for its threads.
pub fn close(log: &Log) {
    block_on(log.close());
}

/// What the store holds, as ids and data; it may have been closed with its log.
pub fn stored(store: &ModelStore) -> Vec<(EventId, String)> {
    store.reopen().unwrap();
    let mut found = Vec::new();
    let upto = store.tail();
    let mut after = 0;
    while after < upto {
        let scan = crate::store::Scan { filter: &Filter::all(), after, upto };
        after = store
            .scan(scan, &mut |event| {
                found.push((event.id, event.data.to_string()));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
    }
    found
}
