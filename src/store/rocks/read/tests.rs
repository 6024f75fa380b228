//! Every way of finding a topic's events, against looking at all of them.

use std::ops::ControlFlow;

use super::*;
use crate::event::{Event, EventType};
use crate::record::RECORD_HEAD;
use crate::store::rocks::Options;
use crate::store::{Durability, Store};
use crate::topic::{Pattern, Topic};

const EVENTS: EventId = 3 * 65_536 + 20_000;

/// Topics that are dense, rare, dense in places, quiet since early on, and many.
fn topic_of(id: EventId) -> String {
    match id {
        1..=100 => format!("old.{}", id % 20),
        101..=9_000 | 120_000..=131_000 => "places".into(),
        _ if id.is_multiple_of(9_999) => "rare".into(),
        _ if id % 3_000 == 1 => format!("few.{}", id / 3_000 % 10),
        _ if id.is_multiple_of(2) => "busy".into(),
        _ => format!("many.{}", id % 211),
    }
}

/// The topics of a log in which so many events one behind the other are of one.
#[derive(Clone, Copy)]
struct Runs(EventId);

impl Runs {
    fn topic_of(self, id: EventId) -> String {
        topic_of(id - id % self.0)
    }
}

fn options(dir: &tempfile::TempDir) -> Options {
    Options { durability: Durability::Os, ..Options::new(dir.path()) }
}

fn filled(dir: &tempfile::TempDir, runs: Runs) -> RocksStore {
    let store = RocksStore::open(options(dir)).unwrap();
    let event = |id| Event {
        id,
        topic: Topic::parse(&runs.topic_of(id)).unwrap(),
        event: None,
        key: None,
        time: id / 5_000,
        data: id.to_string(),
    };
    let all: Vec<Event> = (1..=EVENTS).map(event).collect();
    all.chunks(5_000).for_each(|batch| store.append(batch).unwrap());
    store
}

fn check(store: &RocksStore, runs: Runs) {
    let mut random = fastrand::Rng::with_seed(1);
    let patterns = ["busy", "rare", "places", "old.7", "old.*", "few.*", "few.3", "many.*", "many.5", "**", "none"];
    let filters = patterns.map(|p| vec![p]).into_iter().chain([vec!["rare", "places"], vec!["old.1", "busy"]]);
    for patterns in filters {
        let parsed = patterns.iter().map(|p| Pattern::parse(p).unwrap()).collect();
        let filter = Filter::new(parsed, Vec::new());
        let matching: Vec<EventId> = (1..=EVENTS).filter(|&id| filter.matches_topic(&runs.topic_of(id))).collect();
        for _ in 0..30 {
            let after = random.u64(0..EVENTS);
            let upto = if random.bool() { EVENTS } else { random.u64(after..=EVENTS) };
            let from = matching.partition_point(|&id| id <= after);
            let to = matching.partition_point(|&id| id <= upto);
            let (mut cursor, mut found) = (after, Vec::new());
            // A reader that stops after some, as subscribers do, and goes on from there.
            while cursor < upto && found.len() < 3_000 {
                let most = random.usize(1..2_000);
                let mut taken = 0;
                let came = store
                    .scan(Scan { filter: &filter, after: cursor, upto }, &mut |event| {
                        assert_eq!((event.topic, event.data), (&*runs.topic_of(event.id), &*event.id.to_string()));
                        found.push(event.id);
                        taken += 1;
                        if taken == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                    })
                    .unwrap();
                assert!(came > cursor && came <= upto, "{patterns:?} after {cursor} came to {came}");
                cursor = came;
            }
            let want = &matching[from..to];
            assert_eq!(found, want[..found.len().min(want.len())], "{patterns:?} after {after} up to {upto}");
            assert!(cursor < upto || found.len() == want.len(), "{patterns:?} after {after} up to {upto}");

            let n = random.usize(1..50).min(to).max(1);
            let before = store.before_last(&filter, n as u64, upto).unwrap();
            assert_eq!(matching[..to].iter().filter(|&&id| id > before).count(), n.min(to), "{patterns:?} last {n}");
            let before = store.before_last(&filter, EVENTS, upto).unwrap();
            assert!(before < matching.first().copied().unwrap_or(1), "{patterns:?}: everything is the last {EVENTS}");
        }
    }
}

#[test]
fn looking_far_back_is_done_in_steps() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir, Runs(1));
    store.tidy().unwrap();
    let nobody_has = EventType::parse("unheard").unwrap();
    for (filter, n, most) in [
        (Filter::new(Vec::new(), vec![nobody_has]), 5, 0),
        (Filter::all(), EVENTS - 7, EVENTS - 7),
        (Filter::new(vec![Pattern::parse("busy").unwrap()], Vec::new()), 60_000, 60_000),
    ] {
        let (mut cursor, mut left, mut steps) = (EVENTS, n, 0);
        while left > 0 {
            let back = store.look_back(&filter, left, cursor).unwrap();
            assert!(back.left == 0 || back.cursor < cursor && cursor - back.cursor <= 4 * SCAN_RECORDS_MAX as u64);
            (cursor, left, steps) = (back.cursor, back.left, steps + 1);
        }
        assert!(steps >= 4, "{steps} steps for {n}");
        let mut found = 0;
        while cursor < EVENTS {
            cursor = store
                .scan(Scan { filter: &filter, after: cursor, upto: EVENTS }, &mut |_| {
                    found += 1;
                    ControlFlow::Continue(())
                })
                .unwrap();
        }
        assert_eq!(found, most, "the last {n}");
    }
}

#[test]
fn every_way_finds_what_looking_at_all_of_it_finds() {
    for runs in [Runs(1), Runs(7)] {
        let dir = tempfile::tempdir().unwrap();
        let store = filled(&dir, runs);
        check(&store, runs);
        store.tidy().unwrap();
        assert_eq!(store.directory.read().open.len(), 1, "all but the newest segment are sealed");
        check(&store, runs);
        store.close().unwrap();
        drop(store);
        check(&RocksStore::open(options(&dir)).unwrap(), runs);
    }
}

/// A pack that says something else than it was made of would give events other ids: no way of reading gives any of it.
#[test]
fn nothing_is_read_out_of_a_damaged_pack() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::open(options(&dir)).unwrap();
    let topic = Topic::parse("a").unwrap();
    let event = |id: EventId| Event { id, topic: topic.clone(), event: None, key: None, time: 1, data: id.to_string() };
    store.append(&(11..=14).map(event).collect::<Vec<_>>()).unwrap();
    let db = store.db().unwrap();
    let pack = db.get_cf(db.cf(LOG), log_key(14)).unwrap().unwrap();
    let with = |at: usize, byte: u8| {
        let mut bytes = pack.clone();
        bytes[at] = byte;
        bytes
    };
    // Each event has a length of two bytes, flags and two digits.
    let second = RECORD_HEAD + 5;
    for (what, damaged) in [
        ("counts too few", with(1, 3)),
        ("counts too many", with(1, 5)),
        ("has a longer event", with(second + 1, 4)),
        ("has an event without flags", with(second + 1, 0)),
        ("has unknown flags", with(second + 2, 9)),
        ("is cut short", pack[..pack.len() - 1].to_vec()),
        ("goes on", [&pack[..], b"x"].concat()),
    ] {
        db.put_cf(db.cf(LOG), log_key(14), damaged).unwrap();
        let is_corrupt = |read: Result<(), StoreError>| matches!(read, Err(StoreError::Corrupt(_)));
        for id in 11..=14 {
            let by_itself = seek(&db, [id].into_iter(), &mut |id, _| panic!("{what}: {id} was read"));
            assert!(is_corrupt(by_itself), "{what}: {id}");
        }
        // Going on, what lies before the damage has been given by the time that it is met.
        assert!(is_corrupt(records(&db, 0, 14, &mut |_, _| Ok(ControlFlow::Continue(())))), "{what}");
        assert!(is_corrupt(records_backward(&db, 0, 14, &mut |id, _| panic!("{what}: {id} was read"))), "{what}");
    }
    db.put_cf(db.cf(LOG), log_key(2), &pack).unwrap();
    assert!(
        seek(&db, [1].into_iter(), &mut |_, _| Ok(ControlFlow::Continue(()))).is_err(),
        "it begins before the first"
    );
}

/// Every id of a log in which packs lie beside records, gaps and what was trimmed: by itself, from both sides, and by time.
#[test]
fn every_event_of_a_pack_is_found_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::open(options(&dir)).unwrap();
    let topic = |name| Topic::parse(name).unwrap();
    let event = |id, time, name| Event { id, topic: topic(name), event: None, key: None, time, data: id.to_string() };
    let batch = |ids: std::ops::RangeInclusive<EventId>, time, name| {
        store.append(&ids.map(|id| event(id, time, name)).collect::<Vec<_>>()).unwrap();
    };
    batch(1..=1, 1, "a");
    batch(2..=100, 2, "a");
    batch(110..=120, 3, "b");
    batch(121..=125, 4, "a");
    batch(130..=130, 4, "a");
    let there: Vec<EventId> = (1..=100).chain(110..=125).chain([130]).collect();
    let check = |floor: EventId, trimmed: std::ops::RangeInclusive<EventId>| {
        let db = store.db().unwrap();
        let there: Vec<_> = there.iter().copied().filter(|id| *id > floor && !trimmed.contains(id)).collect();
        let all = Filter::all();
        let tail = store.tail();
        for after in 0..=tail {
            for upto in after..=tail {
                let mut found = Vec::new();
                let scan = Scan { filter: &all, after, upto };
                let came = store.scan(scan, &mut |event| {
                    assert_eq!(event.data, event.id.to_string());
                    found.push(event.id);
                    ControlFlow::Continue(())
                });
                let between: Vec<_> = there.iter().copied().filter(|id| (after + 1..=upto).contains(id)).collect();
                assert_eq!((came.unwrap(), &found), (upto, &between), "{after}..={upto}");
                let mut back = Vec::new();
                records_backward(&db, after.max(floor), upto, &mut |id, _| {
                    back.push(id);
                    Ok(ControlFlow::Continue(()))
                })
                .unwrap();
                back.retain(|id| !trimmed.contains(id));
                assert!(back.iter().rev().eq(&between), "{upto} back to {after}");
            }
            // By itself, and with others before it, in any order.
            for ids in [vec![after], vec![5, after, 123], vec![123, after, 64, 3]] {
                let mut found = Vec::new();
                seek(&db, ids.iter().copied(), &mut |id, entry| {
                    assert_eq!(entry.record().unwrap().data, id.to_string());
                    found.push(id);
                    Ok(ControlFlow::Continue(()))
                })
                .unwrap();
                found.retain(|id| there.contains(id));
                let expected: Vec<_> = ids.into_iter().filter(|id| there.contains(id)).collect();
                assert_eq!(found, expected);
            }
        }
        let time_of = |id: EventId| match id {
            1 => 1,
            2..=100 => 2,
            110..=120 => 3,
            _ => 4,
        };
        for time in 1..=5 {
            let cursor = store.before_time(time).unwrap();
            assert!(there.iter().all(|&id| (id > cursor) == (time_of(id) >= time)), "{time} is after {cursor}");
        }
    };
    check(0, 0..=0);
    let trim = |topic, upto| {
        store.raise_floors(&[crate::store::Trim { topic, upto }]).unwrap();
        store.floors_published();
        store.tidy().unwrap();
    };
    trim(Some(topic("b")), 115);
    check(0, 110..=115);
    trim(None, 50);
    check(50, 110..=115);
    assert_eq!(store.earliest(), 51);
    // What is left is the same when RocksDB has written all of it anew: a pack goes whole, or not.
    let keys = || {
        let db = store.db().unwrap();
        db.compact_range_cf(db.cf(LOG), None::<&[u8]>, None::<&[u8]>);
        let rows = db.iterator_cf(db.cf(LOG), rocksdb::IteratorMode::Start);
        rows.map(|row| log_id(&row.unwrap().0).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(keys(), [65, 100, 120, 125, 130]);
    check(50, 110..=115);
    trim(Some(topic("b")), 120);
    trim(None, 65);
    assert_eq!(keys(), [100, 125, 130]);
    check(65, 110..=120);
}
