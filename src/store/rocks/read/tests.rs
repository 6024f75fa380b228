//! Every way of finding a topic's events, against looking at all of them.

use std::ops::ControlFlow;

use super::*;
use crate::event::{Event, EventType};
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

fn options(dir: &tempfile::TempDir) -> Options {
    Options { durability: Durability::Os, ..Options::new(dir.path()) }
}

fn filled(dir: &tempfile::TempDir) -> RocksStore {
    let store = RocksStore::open(options(dir)).unwrap();
    let event = |id| Event {
        id,
        topic: Topic::parse(&topic_of(id)).unwrap(),
        event: None,
        key: None,
        time: id,
        data: id.to_string(),
    };
    let all: Vec<Event> = (1..=EVENTS).map(event).collect();
    all.chunks(5_000).for_each(|batch| store.append(batch).unwrap());
    store
}

fn check(store: &RocksStore) {
    let mut random = fastrand::Rng::with_seed(1);
    let patterns = ["busy", "rare", "places", "old.7", "old.*", "few.*", "few.3", "many.*", "many.5", "**", "none"];
    let filters = patterns.map(|p| vec![p]).into_iter().chain([vec!["rare", "places"], vec!["old.1", "busy"]]);
    for patterns in filters {
        let parsed = patterns.iter().map(|p| Pattern::parse(p).unwrap()).collect();
        let filter = Filter::new(parsed, Vec::new());
        let matching: Vec<EventId> = (1..=EVENTS).filter(|&id| filter.matches_topic(&topic_of(id))).collect();
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
                        assert_eq!((event.topic, event.data), (&*topic_of(event.id), &*event.id.to_string()));
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
    let store = filled(&dir);
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
    let dir = tempfile::tempdir().unwrap();
    let store = filled(&dir);
    check(&store);
    store.tidy().unwrap();
    assert_eq!(store.directory.read().open.len(), 1, "all but the newest segment are sealed");
    check(&store);
    store.close().unwrap();
    drop(store);
    check(&RocksStore::open(options(&dir)).unwrap());
}
