//! The queue before the writer (`sequencer/local/queue.rs`), the lanes that commit themselves (`log/lane.rs`), the way to both
//! (`log/write.rs`), and the end of them all.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::SystemTime;

use shuttle::future::block_on;
use tokio::sync::oneshot;

use crate::event::Millis;
use crate::hub::{self, Hub};
use crate::log::{AppendError, Log};
use crate::metrics::Metrics;
use crate::sequencer::local::{self, Parts, Refusal, Request, Requests, Ticket};
use crate::sequencer::{Outcome, Terms};
use crate::store::model::ModelStore;
use crate::store::{Durability, StoreError};
use crate::sync::thread::{Death, JoinHandle, survives};
use crate::sync::{Mutex, clock};
use crate::world::{all, any, close, event, go, log_with, on_lane, publish, stored};

std::thread_local! {
    /// So many times the writer asks for the time, and then it dies of it. 0: it lives.
    static LIVES: Cell<u32> = const { Cell::new(0) };
}

fn time() -> Millis {
    let left = LIVES.get();
    LIVES.set(left.saturating_sub(1));
    if left == 1 {
        // Without the hook, which would print it.
        std::panic::resume_unwind(Box::new(Death));
    }
    0
}

/// The writer's thread alone, and the way to it.
fn writer() -> (Requests, JoinHandle<()>, Arc<ModelStore>, Refusal) {
    let (store, refusal) = (Arc::new(ModelStore::default()), Refusal::default());
    let parts = Parts {
        store: store.clone(),
        hub: Arc::new(Mutex::new(Hub::new(hub::Options::default(), 0))),
        wake: hub::wake::all,
        durability: Durability::Interval,
        dedupe_window: 0,
        dedupe_keys_max: 0,
        clock: time,
        refusal: refusal.clone(),
        metrics: Arc::new(Metrics::new(SystemTime::UNIX_EPOCH)),
    };
    let (requests, thread) = local::start(parts).unwrap();
    (requests, thread, store, refusal)
}

type Answer = oneshot::Receiver<Result<Outcome, StoreError>>;

fn append(data: u32) -> (Request, Answer) {
    let (ticket, answer) = Ticket::new(None);
    (Request::Append { events: vec![event(data)], terms: Terms::default(), ticket }, answer)
}

fn id(answer: Answer) -> u64 {
    match block_on(answer) {
        Ok(Ok(Outcome::Appended(appended))) => appended.first,
        other => panic!("an append was not done: {other:?}"),
    }
}

fn stop(requests: &Requests, thread: JoinHandle<()>) {
    let (answer, stopped) = oneshot::channel();
    requests.send(Request::Stop { answer }).unwrap();
    block_on(stopped).expect("a stop is answered");
    thread.join().unwrap();
}

/// Sends two, and two more, and waits for all: they are answered once, in order.
fn sends(requests: &Requests, who: u32) -> Vec<u64> {
    let mut ids = Vec::new();
    for round in 0..2 {
        let pair = [0, 1].map(|n| {
            let (request, answer) = append(who * 10 + round * 2 + n);
            requests.send(request).unwrap();
            answer
        });
        ids.extend(pair.map(id));
    }
    assert!(ids.is_sorted(), "who asked first was served later: {ids:?}");
    ids
}

/// Leaves two and does them, or waits for whoever does.
fn leaves(requests: &Requests, who: u32) -> Vec<u64> {
    let mut ids = Vec::new();
    for round in 0..2 {
        let (request, answer) = append(who * 10 + round);
        requests.leave(request).unwrap();
        requests.work();
        ids.push(id(answer));
    }
    assert!(ids.is_sorted(), "who asked first was served later: {ids:?}");
    ids
}

fn each_once(mut ids: Vec<u64>, store: &ModelStore) {
    ids.sort_unstable();
    assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>(), "an append was answered twice, or not");
    assert_eq!(stored(store).len(), ids.len());
}

pub fn who_sends_is_answered() {
    clock::begin(any(3));
    let (requests, thread, store, _) = writer();
    let senders = [1, 2, 3].map(|who| {
        let requests = requests.clone();
        go(move || sends(&requests, who))
    });
    each_once(all(senders).concat(), &store);
    stop(&requests, thread);
}

/// Without any tick: whoever is not told waits for ever, which shuttle notices.
pub fn who_sends_and_who_works() {
    clock::begin(0);
    let (requests, thread, store, _) = writer();
    let workers = [1, 2, 3, 4].map(|who| {
        let requests = requests.clone();
        go(move || if who % 2 == 0 { sends(&requests, who) } else { leaves(&requests, who) })
    });
    each_once(all(workers).concat(), &store);
    stop(&requests, thread);
}

/// Ticks fall due while others have the writer.
pub fn ticks_fall_between() {
    clock::begin(4);
    let (requests, thread, store, _) = writer();
    let workers = [1, 2].map(|who| {
        let requests = requests.clone();
        go(move || if who == 2 { sends(&requests, who) } else { leaves(&requests, who) })
    });
    each_once(all(workers).concat(), &store);
    stop(&requests, thread);
}

/// What was left by one who never works is done at the next tick at the latest.
pub fn what_was_left_behind_is_done() {
    clock::begin(u32::MAX);
    let (requests, thread, store, _) = writer();
    let (request, left) = append(1);
    requests.leave(request).unwrap();
    let sender = {
        let requests = requests.clone();
        go(move || sends(&requests, 2))
    };
    let ids = [all([sender]).concat(), vec![id(left)]].concat();
    each_once(ids, &store);
    stop(&requests, thread);
}

/// Asked before the end: done and answered, or told that it is not. Asked after it: refused.
pub fn a_stop_ends_all() {
    clock::begin(any(2));
    let (requests, thread, store, _) = writer();
    let workers = [1, 2, 3].map(|who| {
        let requests = requests.clone();
        go(move || {
            let (mut done, mut ended) = (Vec::new(), false);
            for round in 0..2 {
                let (request, answer) = append(who * 10 + round);
                let asked = if who == 2 { requests.send(request) } else { requests.leave(request).map(|_| ()) };
                if who != 2 {
                    requests.work();
                }
                match asked {
                    Err(_) => ended = true,
                    Ok(()) => match block_on(answer) {
                        Ok(Ok(Outcome::Appended(appended))) => {
                            assert!(!ended, "something was done after the end");
                            done.push(appended.first);
                        }
                        Ok(other) => panic!("{other:?}"),
                        Err(_) => ended = true,
                    },
                }
            }
            done
        })
    });
    stop(&requests, thread);
    let (request, _) = append(99);
    assert!(requests.send(request).is_err(), "it takes more after its end");
    each_once(all(workers).concat(), &store);
    assert_eq!(requests.waiting(), 0);
}

/// Whoever has the writer dies: those who wait are told, and those who come later.
pub fn a_writer_that_dies_tells_everybody() {
    clock::begin(0);
    LIVES.set(1 + any(4));
    let (requests, thread, store, refusal) = writer();
    let workers = [1, 2, 3].map(|who| {
        let requests = requests.clone();
        go(move || {
            let mut answered = 0;
            for round in 0..2 {
                let (request, answer) = append(who * 10 + round);
                let asked = if who == 2 { requests.send(request) } else { requests.leave(request).map(|_| ()) };
                if asked.is_err() {
                    return answered;
                }
                if who != 2 {
                    // Also one who dies of it may have answered itself before.
                    survives(|| requests.work());
                }
                match block_on(answer) {
                    Ok(Ok(_)) => answered += 1,
                    Ok(Err(error)) => panic!("{error}"),
                    Err(_) => return answered,
                }
            }
            answered
        })
    });
    let answered: usize = all(workers).into_iter().sum();
    if LIVES.get() > 0 {
        // It was not asked often enough.
        LIVES.set(0);
        return stop(&requests, thread);
    }
    // Dead in its own thread, or told of it there.
    thread.join().unwrap();
    let (request, _) = append(99);
    assert!(requests.send(request).is_err(), "a dead writer takes more");
    assert!(refusal.read().is_some(), "nobody is told why");
    assert!(stored(&store).len() >= answered);
}

/// Two lanes with two publishers each, and one beside them, over a whole log.
pub fn lanes_and_a_publisher_beside_them() {
    clock::begin(0);
    let (log, store) = log_with(0, 0);
    let lanes = [1, 2].map(|who| {
        let (log, lane) = log.lane();
        go(move || {
            let publishers = (0..who).map(|n| {
                let events = (0..2).map(|m| event(who * 100 + n * 10 + m)).collect();
                Box::pin(publish(log.clone(), events)) as _
            });
            on_lane(lane, publishers.collect())
                .into_iter()
                .flat_map(|ids: Result<_, AppendError>| ids.unwrap())
                .collect()
        })
    });
    let beside = {
        let log = log.clone();
        go(move || block_on(publish(log, vec![event(1), event(2)])).unwrap())
    };
    let ids: Vec<Vec<u64>> = all(lanes.into_iter().chain([beside]));
    each_once(ids.concat(), &store);
    close(&log);
}

/// A lane whose publishers another thread drives, as one does while the lane's own is away with the disk; and a publisher beside it.
pub fn a_lane_whose_publishers_another_thread_drives() {
    clock::begin(0);
    let (log, store) = log_with(0, 0);
    let (publishing, lane) = log.lane();
    let (stop, mut stopped) = oneshot::channel::<()>();
    let own = go(move || {
        let mut is_due = || {
            block_on(async {
                let mut due = pin!(lane.due());
                poll_fn(|cx| match due.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(true),
                    // What is due goes before, so this is not asked again after its end.
                    Poll::Pending => Pin::new(&mut stopped).poll(cx).map(|_| false),
                })
                .await
            })
        };
        while is_due() {
            lane.commit();
        }
    });
    let others = [(publishing.clone(), 1), (publishing, 2), (log.clone(), 3)]
        .map(|(log, who)| go(move || block_on(publish(log, vec![event(who * 10), event(who * 10 + 1)])).unwrap()));
    let ids = all(others);
    drop(stop);
    own.join().unwrap();
    each_once(ids.concat(), &store);
    close(&log);
}

/// The log is closed while lanes and others publish: what was answered is there, the rest was told, and nobody waits.
pub fn a_log_that_closes_under_its_publishers() {
    clock::begin(0);
    let (log, store) = log_with(0, 0);
    let until_closed = |log: Log, who: u32| async move {
        let mut done = 0;
        for n in 0..3 {
            match log.append(vec![event(who * 10 + n)]).await {
                Ok(_) => done += 1,
                Err(AppendError::Closed) => break,
                Err(error) => panic!("{error}"),
            }
        }
        done
    };
    let lane = {
        let (log, lane) = log.lane();
        go(move || {
            on_lane(lane, vec![Box::pin(until_closed(log.clone(), 1)) as _, Box::pin(until_closed(log, 2))])
                .into_iter()
                .sum::<usize>()
        })
    };
    let beside = {
        let log = log.clone();
        go(move || block_on(until_closed(log, 3)))
    };
    close(&log);
    let answered: usize = all([lane, beside]).into_iter().sum();
    assert_eq!(stored(&store).len(), answered, "what was appended was answered, and what was answered is there");
}
