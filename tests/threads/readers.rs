//! Readers beside writers, over whole logs: the seam between disk and ring, reads and bundles that are shared, floors, closing, the
//! drain, and readers that vanish at any await.

use std::sync::Arc;

use shuttle::future::block_on;
use shuttle::thread::JoinHandle;
use tokio_stream::StreamExt as _;

use crate::event::EventId;
use crate::log::{Begin, Bundle, BundleKind, Item, Log, StreamError};
use crate::sync::{clock, task};
use crate::world::{Seen, all, any, close, drop_after, event, filter, go, keyed, log_with, publish, stored, topic};

fn publisher(log: &Log, events: u64) -> JoinHandle<()> {
    let log = log.clone();
    go(move || {
        let ids = block_on(publish(log, (0..events).map(keyed).collect())).unwrap();
        assert_eq!(ids.len() as u64, events);
    })
}

/// Follows from `after` until `upto` was seen.
fn follower(log: &Log, after: EventId, upto: EventId) -> JoinHandle<Seen> {
    let log = log.clone();
    go(move || {
        block_on(async {
            let mut items = log.follow(filter(), Begin::After(after)).await.unwrap();
            let mut seen = Seen::from(after);
            seen.follow(&mut items, upto).await;
            seen
        })
    })
}

/// One who follows from the beginning, and is gone in its midst.
fn vanishing(log: &Log) -> JoinHandle<()> {
    let log = log.clone();
    go(move || {
        block_on(async {
            for _ in 0..2 {
                let mut seen = Seen::from(0);
                let follows = async {
                    let mut items = log.follow(filter(), Begin::After(0)).await.unwrap();
                    while let Some(Ok(item)) = items.next().await {
                        seen.take(item);
                    }
                };
                let _: Option<()> = drop_after(any(5), follows).await;
            }
        });
    })
}

/// From the disk, through the ring, to the edge and on, with a publisher all the while.
pub fn at_the_seam_nothing_is_missed() {
    clock::begin(0);
    let (log, _) = log_with(4, 2);
    let publishers = [publisher(&log, 2), publisher(&log, 1)];
    let followers = [follower(&log, 0, 7), follower(&log, 3, 7), follower(&log, 4, 7)];
    assert!(all(followers).iter().all(|seen| seen.gaps == 0));
    all(publishers);
    close(&log);
}

/// Readers at the same place share reads; some of them vanish, also those for whom others are read.
pub fn shared_reads_are_answered_though_readers_vanish() {
    clock::begin(0);
    let (log, _) = log_with(5, 2);
    let vanishing = [vanishing(&log), vanishing(&log)];
    let publisher = publisher(&log, 1);
    let followers = [follower(&log, 0, 6), follower(&log, 0, 6)];
    assert!(all(followers).iter().all(|seen| seen.gaps == 0));
    // Those that have not vanished yet wait at the edge.
    log.drain();
    all(vanishing.into_iter().chain([publisher]));
    close(&log);
}

/// What is trimmed meanwhile is told as a gap; nothing that is there is passed over. What is asked for after the trim was answered is not
/// of before.
pub fn a_trim_is_told_to_all_who_miss_something() {
    clock::begin(0);
    let (log, _) = log_with(5, 2);
    let publisher = publisher(&log, 2);
    let followers = [follower(&log, 0, 7), follower(&log, 0, 7), follower(&log, 2, 7)];
    let trimmed = {
        let log = log.clone();
        go(move || {
            block_on(async {
                log.trim(2).await.unwrap();
                log.delete(&topic(), Some(5)).await.unwrap();
                let mut items = log.follow(filter(), Begin::After(0)).await.unwrap();
                let mut seen = Seen { gone: 4, ..Seen::from(0) };
                seen.follow(&mut items, 5).await;
                assert!(seen.gaps > 0);
            });
        })
    };
    all(followers);
    all([publisher, trimmed]);
    close(&log);
}

/// Who attaches while a topic is closed is told so, in its turn.
pub fn a_close_is_told_to_all() {
    clock::begin(0);
    let (log, _) = log_with(2, 0);
    let followers = [0, 1, 2].map(|after| follower(&log, after, EventId::MAX));
    let closer = {
        let log = log.clone();
        go(move || {
            block_on(async {
                log.append(vec![event(0)]).await.unwrap();
                log.close_topic(&topic()).await.unwrap();
            });
        })
    };
    for seen in all(followers) {
        assert!(seen.closed);
        assert_eq!(seen.after, 3);
    }
    all([closer]);
    close(&log);
}

/// Who attaches or waits while the log drains is told so.
pub fn a_drain_is_told_to_all() {
    clock::begin(0);
    let (log, _) = log_with(1, 0);
    let followers = [0, 1].map(|after| {
        let log = log.clone();
        go(move || {
            block_on(async {
                let mut items = log.follow(filter(), Begin::After(after)).await.unwrap();
                let mut seen = Seen::from(after);
                loop {
                    match items.next().await {
                        Some(Ok(item)) => seen.take(item),
                        Some(Err(StreamError::Draining { cursor })) => return assert_eq!(cursor, seen.after),
                        other => panic!("{other:?}"),
                    }
                }
            });
        })
    });
    let publisher = publisher(&log, 1);
    log.drain();
    all(followers.into_iter().chain([publisher]));
    close(&log);
}

/// The newest event of each key of the first `upto` events.
fn state_of(upto: EventId, stored: &[(EventId, String)]) -> Vec<(EventId, String)> {
    let key = |data: &str| data.parse::<u64>().unwrap() % 2;
    let until = || stored.iter().filter(|(id, _)| *id <= upto);
    let newest = |odd| until().rfind(|(_, data)| key(data) == odd).cloned();
    let mut state: Vec<_> = [0, 1].into_iter().filter_map(newest).collect();
    state.sort_unstable();
    state
}

fn entries(bundle: &Bundle) -> Vec<(EventId, String)> {
    #[derive(serde::Deserialize)]
    struct Entry {
        id: EventId,
        data: String,
    }
    let json = [b"[", bundle.pieces().concat().as_slice(), b"]"].concat();
    let entries: Vec<Entry> = serde_json::from_slice(&json).unwrap();
    let mut entries: Vec<_> = entries.into_iter().map(|Entry { id, data }| (id, data)).collect();
    entries.sort_unstable();
    entries
}

/// States that are asked for at the same time are shared, and none is older than what its asker knew of.
pub fn states_are_shared_and_never_stale() {
    clock::begin(0);
    let (log, store) = log_with(2, 0);
    let publishers = [publisher(&log, 2), publisher(&log, 1)];
    let askers = [0, 1, 2].map(|who| {
        let log = log.clone();
        go(move || {
            block_on(async {
                let filter = Arc::new(filter());
                let mut known = Vec::new();
                for _ in 0..2 {
                    let tail = log.tail();
                    let asked = async { log.bundle(BundleKind::State, &filter).await.unwrap() };
                    let bundle = if who == 0 { drop_after(any(5), asked).await } else { Some(asked.await) };
                    let Some(bundle) = bundle else { continue };
                    let as_of = bundle.at.unwrap();
                    assert!(as_of >= tail, "a state that is older than what was known");
                    assert!(log.tail() >= as_of, "a state of what nobody can read yet");
                    known.push((as_of, entries(&bundle)));
                }
                known
            })
        })
    });
    let states = all(askers).concat();
    all(publishers);
    close(&log);
    let stored = stored(&store);
    for (as_of, entries) in states {
        assert_eq!(entries, state_of(as_of, &stored), "the state at {as_of}");
    }
}

/// A state, and then every event after it; two come for it at once, a third comes and goes.
pub fn from_a_state_on_nothing_is_missed() {
    clock::begin(0);
    let (log, store) = log_with(2, 0);
    let publisher = publisher(&log, 3);
    let followers = [0, 1].map(|_| {
        let log = log.clone();
        go(move || {
            block_on(async {
                let mut items = log.follow(filter(), BundleKind::State).await.unwrap();
                let (mut state, mut seen) = (Vec::new(), None::<Seen>);
                while seen.as_ref().is_none_or(|seen| seen.after < 5) {
                    match (items.next().await.unwrap().unwrap(), &mut seen) {
                        (Item::State(event), None) => state.push((event.id, event.data)),
                        (Item::Live { tail }, None) => seen = Some(Seen::from(tail)),
                        (Item::Event(event), None) => seen = Some(Seen::from(event.id)),
                        (item, Some(seen)) => seen.take(item),
                        (item, None) => panic!("{item:?}"),
                    }
                }
                state.sort_unstable();
                state
            })
        })
    });
    let vanishing = {
        let log = log.clone();
        go(move || {
            block_on(async {
                let follows = async {
                    let mut items = log.follow(filter(), BundleKind::State).await.unwrap();
                    while let Some(Ok(_)) = items.next().await {}
                };
                let _: Option<()> = drop_after(any(6), follows).await;
            });
        })
    };
    let states = all(followers);
    log.drain();
    all([publisher, vanishing]);
    close(&log);
    let stored = stored(&store);
    for state in states {
        assert!((2..=5).any(|at| state == state_of(at, &stored)), "a state that there never was: {state:?}");
    }
}

/// A state may be gathered of what is written and not delivered yet: it is handed out when it is, at once.
pub fn a_state_waits_for_its_tail_and_no_longer() {
    clock::begin(0);
    let (log, _) = log_with(1, 0);
    let publisher = publisher(&log, 1);
    // The moment between a write and its delivery is short: many try to hit it.
    let askers = [0, 1, 2, 3, 4].map(|who| {
        let log = log.clone();
        go(move || {
            block_on(async {
                let as_of = if who == 0 {
                    log.state(&Arc::new(filter())).await.unwrap().as_of
                } else {
                    log.last_of(&topic()).await
                };
                assert!(log.tail() >= as_of, "a state of what nobody can read yet");
            });
        })
    });
    all(askers.into_iter().chain([publisher]));
    close(&log);
}

/// Who asks for a state after a topic was emptied is not given one of before, though others are still being sent that.
pub fn a_state_of_before_a_delete_is_for_nobody_who_asks_after() {
    clock::begin(0);
    let (log, _) = log_with(2, 0);
    let state = |log: Log| async move { log.bundle(BundleKind::State, &Arc::new(filter())).await.unwrap() };
    let holders = [0, 1].map(|_| {
        let log = log.clone();
        // Given back, so that it is kept.
        go(move || block_on(state(log)))
    });
    let emptied = {
        let log = log.clone();
        go(move || {
            block_on(async {
                log.delete(&topic(), None).await.unwrap();
                state(log).await
            })
        })
    };
    let held = all(holders);
    let emptied = all([emptied]);
    assert!(entries(&emptied[0]).is_empty(), "a state of before the delete");
    let after = block_on(state(log.clone()));
    assert!(entries(&after).is_empty(), "a state of before the delete");
    drop(held);
    close(&log);
}

/// Who gathers a state for others may be dropped with its runtime at any await: they are told, and who asks later is not kept waiting.
pub fn who_waits_is_told_when_the_one_who_gathers_is_gone() {
    clock::begin(0);
    let (log, _) = log_with(2, 0);
    task::are_mortal(true);
    let state = |log: Log| async move { log.bundle(BundleKind::State, &Arc::new(filter())).await };
    let publisher = publisher(&log, 1);
    let askers = [0, 1, 2].map(|_| {
        let log = log.clone();
        go(move || drop(block_on(state(log))))
    });
    all(askers.into_iter().chain([publisher]));
    task::are_mortal(false);
    // One that is mortal may gather for this one as well, and be the last.
    let answered = (0..10).any(|_| block_on(state(log.clone())).is_ok());
    assert!(answered, "nobody gathers any more");
    close(&log);
}
