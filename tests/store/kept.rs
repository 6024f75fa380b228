//! What is kept beside the log: state, snapshots, closing and remembered publishes, across crashes, trims and other threads.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use tidelog::event::{Digest, Event, EventId};
use tidelog::store::rocks::{Options, RocksStore};
use tidelog::store::{Durability, Limits, Remembered, Snapshot, Store, StoreError};
use tidelog::topic::Filter;

use crate::support::{
    crash_copy, disk_bytes, event, filter, keyed, log_trim, open, put, read, rows, state, topic, topic_trim, trim, wal,
};

const SEGMENT: u64 = 1 << 16;

/// What the events of a log make the state.
fn replay<'a>(events: impl IntoIterator<Item = &'a Event>) -> Vec<Event> {
    let mut newest = BTreeMap::new();
    for event in events.into_iter().filter(|e| e.key.is_some()) {
        let place = (event.topic.clone(), event.key.clone());
        if event.data.is_empty() {
            newest.remove(&place);
        } else {
            newest.insert(place, event.clone());
        }
    }
    newest.into_values().collect()
}

fn digest(n: u64) -> Digest {
    let mut bytes = [7; 16];
    // The publish's number stands first, so that no two begin alike.
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    Digest(bytes)
}

fn remembered(key: Digest, first: EventId, last: EventId) -> Remembered {
    Remembered { key, request: digest(first + 1_000_000), first, last, time: first }
}

fn snapshot(at: EventId, body: &str) -> Snapshot {
    Snapshot { at, content_type: "text/plain; charset=utf-8".into(), body: body.to_owned() }
}

/// Batches of three with keys that come and go, each remembered under the digest of its first id.
fn publish(store: &dyn Store, batches: std::ops::Range<u64>) {
    for batch in batches {
        let first = batch * 3 + 1;
        let one = |id: u64| {
            let data = if fastrand::u8(0..4) == 0 { "" } else { "some data" };
            keyed(id, &format!("t.{}", fastrand::u8(0..5)), &format!("k{}", fastrand::u8(0..9)), data)
        };
        let events = [one(first), one(first + 1), event(first + 2, first + 2, "unkeyed", "x")];
        store.commit(&events, &[remembered(digest(first), first, first + 2)]).unwrap();
    }
}

/// What is beside the log is what the log says, and a publish is remembered exactly where its events are there.
fn check_against_log(store: &RocksStore, batches: u64) {
    let events = read(store, &Filter::all(), 0, store.tail());
    assert!(events.iter().zip(1..).all(|(e, id)| e.id == id), "what is left is a beginning");
    assert_eq!(events.len() % 3, 0, "of whole batches");
    assert_eq!(state(store, &Filter::all()), (store.tail(), replay(&events)));
    let one = filter(&["t.3"], &[]);
    assert_eq!(state(store, &one).1, replay(events.iter().filter(|e| e.topic.as_str() == "t.3")));
    assert_eq!(store.keys_remembered(), events.len() as u64 / 3);
    for first in (0..batches).map(|batch| batch * 3 + 1) {
        let there = (first <= events.len() as u64).then(|| remembered(digest(first), first, first + 2));
        assert_eq!(store.remembered(digest(first)).unwrap(), there, "{first}");
    }
}

#[test]
fn after_a_crash_all_of_it_is_what_the_log_says() {
    // With little room for what is not sorted yet, and with much: in files, and in the write-ahead log.
    for write_buffer_bytes in [64 << 10, 16 << 20] {
        let dir = tempfile::tempdir().unwrap();
        let options = |dir: &Path| Options { durability: Durability::Os, write_buffer_bytes, ..Options::new(dir) };
        let store = RocksStore::open(options(dir.path())).unwrap();
        publish(&store, 0..600);
        let full = fs::metadata(wal(dir.path())).unwrap().len();
        for cut in [0, 1, full / 3, full / 2, full - 200, full - 1, full] {
            let copy = crash_copy(dir.path());
            fs::File::options().write(true).open(wal(copy.path())).unwrap().set_len(cut).unwrap();
            check_against_log(&RocksStore::open(options(copy.path())).unwrap(), 600);
        }
    }
}

#[test]
fn a_crash_at_any_time_leaves_whole_batches() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Sync);
    for round in 0..10 {
        publish(&store, round * 20..(round + 1) * 20);
        if round % 3 == 1 {
            store.tidy().unwrap();
        }
        let copy = crash_copy(dir.path());
        let again = open(copy.path(), Durability::Sync);
        assert_eq!(again.tail(), store.tail());
        check_against_log(&again, (round + 1) * 20);
    }
    store.reopen().unwrap();
    check_against_log(&store, 200);
}

#[test]
fn what_is_said_of_a_topic_is_there_after_a_crash_and_each_change_leaves_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Sync);
    let name = topic("t");
    let limits = Limits { max_events: 9, trim_to_snapshot: true, ..Limits::default() };
    for step in 0..6 {
        match step {
            0 => store.append(&[keyed(1, "t", "k", "1"), keyed(2, "t", "l", "2"), event(3, 3, "t", "3")]).unwrap(),
            1 => store.set_retention(&name, Some(limits)).unwrap(),
            2 => store.put_snapshot(&name, &snapshot(2, "two")).unwrap(),
            3 => trim(&store, &[topic_trim("t", 1)]),
            4 => assert_eq!(store.close_topic(&name).unwrap(), 3),
            _ => store.put_snapshot(&name, &snapshot(3, "three")).unwrap(),
        }
        let copy = crash_copy(dir.path());
        for store in [&store, &open(copy.path(), Durability::Sync)] {
            assert_eq!(store.retention_of("t"), (step >= 1).then_some(limits), "{step}");
            let at = [None, None, Some(2), Some(2), Some(2), Some(3)][step];
            let there = at.map(|at| snapshot(at, if at == 2 { "two" } else { "three" }));
            assert_eq!((store.snapshot_at("t"), store.snapshot("t").unwrap()), (at, there), "{step}");
            assert_eq!(store.floor(&filter(&["t"], &[])).id, u64::from(step >= 3), "{step}");
            assert_eq!(store.closed_at("t"), (step >= 4).then_some(3), "{step}");
            assert_eq!(store.closed(&filter(&["t"], &[])), (step >= 4).then_some(3), "{step}");
            assert_eq!(store.closed(&filter(&["t", "u"], &[])), None);
            assert_eq!(store.topics("", None, 9).unwrap()[0].closed, step >= 4, "{step}");
            assert_eq!(state(store, &filter(&["*"], &[])).1.len(), 2, "{step}");
        }
    }
    // Topics of which nothing is known but this.
    assert_eq!(store.close_topic(&topic("ended")).unwrap(), 0);
    store.put_snapshot(&topic("bundle"), &snapshot(3, "all of it")).unwrap();
    let copy = crash_copy(dir.path());
    let again = open(copy.path(), Durability::Sync);
    assert_eq!((again.closed_at("ended"), again.snapshot_at("bundle")), (Some(0), Some(3)));
    let names: Vec<_> = again.topics("", None, 9).unwrap().iter().map(|t| t.topic.to_string()).collect();
    assert_eq!(names, ["bundle", "ended", "t"]);
}

#[test]
fn nothing_is_left_of_a_deleted_topic_but_its_floor() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Sync);
    let all: Vec<_> = (1..=40).map(|id| keyed(id, &format!("t.{}", id % 4), &format!("k{id}"), "x")).collect();
    store.append(&all).unwrap();
    for name in ["t.0", "t.1"] {
        store.put_snapshot(&topic(name), &snapshot(7, "seven")).unwrap();
    }
    let rose = store.delete_topic(&topic("t.1")).unwrap();
    assert_eq!(rose, Some(topic_trim("t.1", 37)));
    assert_eq!(read(&store, &filter(&["t.1"], &[]), 0, 40).len(), 10, "readers do not know of it yet");
    store.floors_published();
    assert!(read(&store, &filter(&["t.1"], &[]), 0, 40).is_empty());
    assert_eq!(store.snapshot("t.1").unwrap(), None);
    assert_eq!(state(&store, &filter(&["t.*"], &[])).1.len(), 30);

    // Also one of which the events are gone already.
    trim(&store, &[topic_trim("t.2", 40)]);
    assert_eq!(state(&store, &filter(&["t.2"], &[])).1.len(), 10, "retention leaves the state alone");
    let told = store.floors_told();
    assert_eq!(store.delete_topic(&topic("t.2")).unwrap(), None);
    store.floors_published();
    assert!(store.floors_told() > told);
    assert!(state(&store, &filter(&["t.2"], &[])).1.is_empty());
    assert_eq!(store.delete_topic(&topic("unheard")).unwrap(), None);
    assert!(!store.has_topic("unheard"));

    // What comes after it counts anew.
    store.append(&[keyed(41, "t.1", "new", "x"), keyed(42, "t.2", "k2", "")]).unwrap();
    for store in [&store, &open(crash_copy(dir.path()).path(), Durability::Sync)] {
        let (as_of, entries) = state(store, &filter(&["t.1", "t.2"], &[]));
        assert_eq!((as_of, entries.iter().map(|e| e.id).collect::<Vec<_>>()), (42, vec![41]));
        assert_eq!(store.floor(&filter(&["t.1"], &[])).id, 37);
    }
    store.close().unwrap();
    assert_eq!((rows(dir.path(), "state"), rows(dir.path(), "snapshot")), (21, 1));
}

#[test]
fn a_topic_with_keys_outlives_its_events_and_one_without_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), Durability::Sync);
    store.append(&[keyed(1, "lives", "k", "x"), keyed(2, "dead", "k", "x"), keyed(3, "deleted", "k", "x")]).unwrap();
    store.append(&[keyed(4, "dead", "k", ""), event(SEGMENT, SEGMENT, "other", "x")]).unwrap();
    let names = |store: &RocksStore| {
        let list = store.topics("", None, 9).unwrap();
        assert_eq!(
            store.topics("d", None, 1).unwrap().len(),
            list.iter().filter(|t| t.topic.as_str() < "e").count().min(1)
        );
        list.iter().map(|t| (t.topic.to_string(), t.events)).collect::<Vec<_>>()
    };
    let shown = |all: &[(&str, u64)]| all.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect::<Vec<_>>();
    trim(&store, &[log_trim(SEGMENT - 1)]);
    assert_eq!(names(&store), shown(&[("deleted", 0), ("lives", 0), ("other", 1)]), "its last key is gone");
    assert!(store.has_topic("dead"));
    store.tidy().unwrap();
    assert!(!store.has_topic("dead"));
    store.delete_topic(&topic("deleted")).unwrap();
    assert!(!store.has_topic("deleted"), "at once, since its events went before");
    for _ in 0..2 {
        assert_eq!(names(&store), shown(&[("lives", 0), ("other", 1)]));
        assert_eq!(store.topic_count(), 2);
        assert_eq!(state(&store, &Filter::all()), (SEGMENT, vec![keyed(1, "lives", "k", "x")]));
        store.close().unwrap();
        drop(store);
        store = open(dir.path(), Durability::Sync);
    }
    // It gets a new number, and nothing of what it was.
    store.append(&[keyed(SEGMENT + 1, "deleted", "other", "y")]).unwrap();
    assert_eq!(state(&store, &filter(&["deleted"], &[])).1, [keyed(SEGMENT + 1, "deleted", "other", "y")]);
}

#[test]
fn forgotten_keys_give_the_disk_back_and_stay_forgotten() {
    const KEYS: u64 = 150_000;
    const LEFT: u64 = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let options = || Options { durability: Durability::Os, write_buffer_bytes: 1 << 20, ..Options::new(dir.path()) };
    let store = RocksStore::open(options()).unwrap();
    let commit = |ids: std::ops::RangeInclusive<u64>| {
        let events: Vec<_> = ids.clone().map(|id| event(id, id, "t", "")).collect();
        let all: Vec<_> = ids.map(|id| remembered(digest(id * 11), id, id)).collect();
        store.commit(&events, &all).unwrap();
    };
    (0..KEYS / 1000).for_each(|n| commit(n * 1000 + 1..=(n + 1) * 1000));
    // The log goes; what is remembered of it does not.
    trim(&store, &[log_trim(KEYS)]);
    store.tidy().unwrap();
    assert_eq!(store.keys_remembered(), KEYS);
    assert_eq!(store.remembered(digest(11)).unwrap(), Some(remembered(digest(11), 1, 1)));
    // By age, then by number.
    assert_eq!(store.forget_keys(100_001, KEYS), 0);
    assert_eq!(store.forget_keys(100_001, LEFT), 40_000);
    let check = |store: &RocksStore| {
        assert_eq!(store.keys_remembered(), LEFT);
        for id in [1, 50_000, 100_000, 140_000, 140_001, KEYS] {
            let there = (id > KEYS - LEFT).then(|| remembered(digest(id * 11), id, id));
            assert_eq!(store.remembered(digest(id * 11)).unwrap(), there, "{id}");
        }
    };
    check(&store);
    store.reopen().unwrap();
    check(&store);
    store.tidy().unwrap();
    check(&store);
    store.close().unwrap();
    drop(store);
    assert_eq!(rows(dir.path(), "idempotency") as u64, LEFT);
    let store = RocksStore::open(options()).unwrap();
    check(&store);
    // A few are not worth it: they are back after a start, until they are forgotten again.
    assert_eq!(store.forget_keys(0, 10), LEFT - 10);
    store.tidy().unwrap();
    store.close().unwrap();
    drop(store);
    let store = RocksStore::open(options()).unwrap();
    assert!(store.keys_remembered() > 10);
    store.forget_keys(0, 10);
    assert_eq!(store.keys_remembered(), 10);
    assert_eq!(store.remembered(digest(KEYS * 11)).unwrap(), Some(remembered(digest(KEYS * 11), KEYS, KEYS)));
    assert!(disk_bytes(dir.path()) < 32 << 20);
}

#[test]
fn keys_whose_digests_begin_alike_are_not_taken_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Sync);
    let mut other = digest(1);
    other.0[15] ^= 1;
    store.commit(&[event(1, 1, "t", "")], &[remembered(digest(1), 1, 1)]).unwrap();
    assert_eq!(store.remembered(other).unwrap(), None);
    store.commit(&[event(2, 2, "t", "")], &[remembered(other, 2, 2)]).unwrap();
    for store in [&store, &open(crash_copy(dir.path()).path(), Durability::Sync)] {
        assert_eq!(store.remembered(other).unwrap(), Some(remembered(other, 2, 2)));
        assert_eq!(store.remembered(digest(1)).unwrap(), None, "the older of them is forgotten");
        assert_eq!(store.keys_remembered(), 2);
    }
}

#[test]
fn what_cannot_be_beside_the_log_is_corruption() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Sync);
    store.commit(&[keyed(1, "t", "k", "x"), event(2, 2, "u", "")], &[remembered(digest(1), 1, 1)]).unwrap();
    store.put_snapshot(&topic("t"), &snapshot(1, "one")).unwrap();
    store.close().unwrap();
    drop(store);
    let corrupt = |error: Result<(), StoreError>, what: &str| {
        assert!(matches!(error, Err(StoreError::Corrupt(_))), "{what}: {error:?}");
    };
    let refused = |dir: &Path| RocksStore::open(Options::new(dir)).map(drop);
    let with = |family: &str, key: &[u8], value: Option<&[u8]>| {
        let copy = crash_copy(dir.path());
        put(copy.path(), family, key, value);
        copy
    };
    let foreign = [&9u64.to_be_bytes()[..], &[7; 30]].concat();
    let copy = with("idempotency", &1u64.to_be_bytes(), Some(&foreign));
    corrupt(refused(copy.path()), "what is remembered of a publish");
    let first_key = [&[0; 4][..], b"k"].concat();
    let stranger = [&[0, 0, 0, 9][..], b"k"].concat();
    let good = [&1u64.to_be_bytes()[..], &[1, 2], &[0, 0, 0, 9], &1u64.to_be_bytes(), &[1], b"kx"].concat();
    for (key, value, filters) in [
        (&first_key, &foreign[..], [Filter::all(), filter(&["t"], &[]), filter(&["*"], &[])]),
        (&first_key, &good, [Filter::all(), filter(&["t"], &[]), filter(&["*"], &[])]),
        (&stranger, &good, [Filter::all(), Filter::all(), Filter::all()]),
    ] {
        let copy = with("state", key, Some(value));
        let store = open(copy.path(), Durability::Sync);
        for filter in filters {
            let read = store.state(&filter, &mut |_| std::ops::ControlFlow::Continue(())).map(drop);
            corrupt(read, "the state");
        }
    }
    for value in [None, Some(&b"short"[..])] {
        let copy = with("snapshot", &[0; 4], value);
        let store = open(copy.path(), Durability::Sync);
        corrupt(store.snapshot("t").map(drop), "a snapshot");
    }
    let copy = with("meta", b"format", Some(&1u32.to_be_bytes()));
    let error = refused(copy.path());
    assert!(matches!(error, Err(StoreError::Version(_))), "{error:?}");
}

/// Reading the state reads no record of the log: here none of those that are sealed can be read.
#[test]
fn the_state_of_a_hundred_keys_does_not_read_the_log() {
    const EVENTS: u64 = 200_000;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Os);
    let name = |id: u64| format!("t.{}", id % 5);
    let one = |id: u64| match id % 1000 {
        0 => keyed(id, &name(id / 1000), &format!("k{}", id / 1000 % 100), "x".repeat(100)),
        _ => event(id, id, &name(id), "x".repeat(100)),
    };
    for first in (1..EVENTS).step_by(5_000) {
        store.append(&(first..first + 5_000).map(one).collect::<Vec<_>>()).unwrap();
    }
    store.tidy().unwrap();
    let timed = |work: &dyn Fn() -> usize, what: usize| {
        let took = (0..5).map(|_| {
            let begun = Instant::now();
            assert_eq!(work(), what);
            begun.elapsed()
        });
        took.min().unwrap()
    };
    let reads = timed(&|| read(&store, &Filter::all(), 0, EVENTS).len(), 200_000);
    for (patterns, keys) in [(&["**"][..], 100), (&["t.*"], 100), (&["t.3"], 20)] {
        let took = timed(&|| state(&store, &filter(patterns, &[])).1.len(), keys);
        assert!(took < reads / 10, "{patterns:?}: {took:?}, the whole log {reads:?}");
    }
    store.close().unwrap();
    drop(store);
    crate::support::raw(dir.path(), &crate::support::FAMILIES, |db| {
        let log = db.cf_handle("log").unwrap();
        (1000..3 * SEGMENT).for_each(|id| db.put_cf(log, id.to_be_bytes(), b"nonsense").unwrap());
    });
    let store = open(dir.path(), Durability::Os);
    assert!(
        store
            .scan(tidelog::store::Scan { filter: &Filter::all(), after: 990, upto: 1009 }, &mut |_| {
                std::ops::ControlFlow::Continue(())
            })
            .is_err()
    );
    assert_eq!(
        state(&store, &Filter::all()),
        (EVENTS, {
            let mut newest = replay(&(1..=EVENTS).filter(|id| id % 1000 == 0).map(one).collect::<Vec<_>>());
            newest.sort_by(|a, b| (&a.topic, &a.key).cmp(&(&b.topic, &b.key)));
            newest
        })
    );
}

/// Ends the others when its thread ends, also where that has failed.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What the writer does, and how far the log went before it.
enum Done {
    Events(Vec<Event>),
    Deleted(String),
}

/// Whatever is committed, deleted, trimmed and forgotten meanwhile, a state is what the log up to its id says.
#[test]
fn every_state_is_the_replay_of_the_log_up_to_its_id() {
    const ROUNDS: u64 = 600;
    let dir = tempfile::tempdir().unwrap();
    let options = Options { durability: Durability::Os, write_buffer_bytes: 256 << 10, ..Options::new(dir.path()) };
    let store = RocksStore::open(options).unwrap();
    // Noted before it is done.
    let done: Mutex<Vec<(EventId, Done)>> = Mutex::default();
    let over = AtomicBool::new(false);
    let states = AtomicU64::new(0);
    let all_patterns = [&["**"][..], &["a.*"], &["a.1"], &["a.2", "b.*.x"], &["b.**"], &["new.*"]];
    std::thread::scope(|scope| {
        let (store, done, over, states) = (&store, &done, &over, &states);
        scope.spawn(move || {
            let _over = Over(over);
            let mut next = 1;
            for round in 0..ROUNDS {
                let tail = next - 1;
                if fastrand::u8(0..6) == 0 {
                    let name = ["a.1", "a.2", "b.3.x", "new.1"][fastrand::usize(0..4)].to_owned();
                    done.lock().push((tail, Done::Deleted(name.clone())));
                    store.delete_topic(&topic(&name)).unwrap();
                    store.floors_published();
                }
                if fastrand::u8(0..20) == 0 && tail > 0 {
                    // Forgets those that lost all of their keys.
                    store.raise_floors(&[log_trim(tail)]).unwrap();
                    store.floors_published();
                    next += fastrand::u64(0..SEGMENT);
                }
                let events: Vec<_> = (next..next + fastrand::u64(1..30))
                    .map(|id| {
                        let name = match fastrand::u8(0..9) {
                            0..4 => format!("a.{}", fastrand::u8(0..4)),
                            4..7 => format!("b.{}.x", fastrand::u8(0..4)),
                            _ => format!("new.{}", round / 10),
                        };
                        let data = if fastrand::u8(0..3) == 0 { "" } else { "x" };
                        keyed(id, &name, &format!("k{}", fastrand::u8(0..6)), data)
                    })
                    .collect();
                next = events.last().unwrap().id + 1;
                done.lock().push((tail, Done::Events(events.clone())));
                store.append(&events).unwrap();
                // Some states are read in between, if readers are at work at all.
                let before = states.load(Ordering::Acquire);
                (0..1000)
                    .take_while(|_| states.load(Ordering::Acquire) < before + 2)
                    .for_each(|_| std::thread::yield_now());
            }
        });
        scope.spawn(move || {
            let _over = Over(over);
            while !over.load(Ordering::Acquire) {
                store.tidy().unwrap();
            }
        });
        for patterns in all_patterns {
            scope.spawn(move || {
                let _over = Over(over);
                let filter = filter(patterns, &[]);
                while !over.load(Ordering::Acquire) {
                    let (as_of, entries) = state(store, &filter);
                    states.fetch_add(1, Ordering::AcqRel);
                    // What was noted while it was being read is beyond it, but for a topic's end at its very id.
                    let mut wanted: BTreeMap<_, Event> = BTreeMap::new();
                    let mut allowed = Vec::new();
                    let sorted = |state: &BTreeMap<(String, _), Event>| state.values().cloned().collect::<Vec<_>>();
                    for (tail, what) in done.lock().iter() {
                        if *tail == as_of {
                            allowed.push(sorted(&wanted));
                        }
                        match what {
                            Done::Events(events) if events[0].id <= as_of => {
                                for event in events.iter().filter(|e| filter.matches_topic(e.topic.as_str())) {
                                    assert!(event.id <= as_of, "a batch is there as a whole");
                                    let place = (event.topic.to_string(), event.key.clone());
                                    if event.data.is_empty() {
                                        wanted.remove(&place);
                                    } else {
                                        wanted.insert(place, event.clone());
                                    }
                                }
                            }
                            Done::Events(_) => break,
                            Done::Deleted(name) if *tail <= as_of => wanted.retain(|(topic, _), _| topic != name),
                            Done::Deleted(_) => break,
                        }
                    }
                    allowed.push(sorted(&wanted));
                    assert!(allowed.contains(&entries), "{patterns:?} at {as_of}: {entries:?}, not {allowed:?}");
                }
            });
        }
    });
    assert!(states.load(Ordering::Acquire) > ROUNDS / 2);
}
