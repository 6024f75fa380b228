//! A small log that has some of everything, and what is seen of it.

use super::*;

pub fn options(dir: &Path, durability: Durability) -> Options {
    Options { durability, write_buffer_bytes: 64 << 10, ..Options::new(dir) }
}

pub fn digest(n: u64) -> Digest {
    let mut bytes = [3; 16];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    Digest(bytes)
}

/// How many events a batch has.
pub const EACH: u64 = 6;

/// Some of everything from `first` on, and a batch a time; gives the id after the last.
pub fn publish(store: &dyn Store, first: EventId, batches: u64) -> EventId {
    let mut id = first;
    for batch in 0..batches {
        let n = batch % 7;
        let data = |id: u64| {
            if id % 11 == 5 { String::new() } else { format!("event {id} {}", "some data ".repeat(id as usize % 5)) }
        };
        let key = |id: u64| format!("k{}", (id * 7) % 13);
        let name = format!("t.{}", n % 4);
        // The first and the last three of them in a pack.
        let events = [
            keyed(id, &name, &key(id), data(id)),
            keyed(id + 1, &name, &key(id + 1), data(id + 1)),
            keyed(id + 2, "t.gone", "x", data(id + 2)),
            event(id + 3, id, "plain", data(id + 3)),
            event(id + 4, id, "plain", data(id + 4)),
            event(id + 5, id, "plain", data(id + 5)),
        ];
        // Times never go back within the batch either.
        let events = events.map(|e| Event { time: id, ..e });
        let last = id + EACH - 1;
        let remembered = Remembered { key: digest(id), request: digest(id + 1), first: id, last, time: id };
        store.commit(&events, &[remembered]).unwrap();
        id += EACH;
    }
    id
}

/// What the log was made to hold, as a reader sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    pub tail: EventId,
    pub events: Vec<Event>,
    pub state: (EventId, Vec<Event>),
    pub snapshots: Vec<Option<Snapshot>>,
    pub closed: Vec<Option<EventId>>,
    pub topics: u64,
    pub remembered: Vec<Option<Remembered>>,
}

pub const TOPICS: [&str; 8] = ["t.0", "t.1", "t.2", "t.3", "plain", "t.gone", "closed", "only"];

/// Everything, in the ways in which it is read; an error of any of them.
pub fn see(store: &RocksStore, remembered: &[EventId]) -> Result<Seen, StoreError> {
    let scan = |filter: &Filter| {
        let (mut events, mut at, tail) = (Vec::new(), 0, store.tail());
        while at < tail {
            at = store.scan(Scan { filter, after: at, upto: tail }, &mut |event| {
                events.push(owned(event));
                ControlFlow::Continue(())
            })?;
        }
        Ok::<_, StoreError>(events)
    };
    let events = scan(&Filter::all())?;
    for name in TOPICS {
        let one = filter(&[name], &[]);
        let of: Vec<_> = events.iter().filter(|e| e.topic.as_str() == name).cloned().collect();
        assert_eq!(scan(&one)?, of, "{name}: by its index as by looking through all");
        let back = store.before_last(&one, 3, store.tail())?;
        let expected = of.iter().rev().nth(2).map(|third| third.id);
        assert!(expected.is_none_or(|third| back < third && of.iter().filter(|e| e.id > back).count() == 3), "{name}");
    }
    store.before_time(events.last().map_or(0, |e| e.time))?;
    store.topics("", None, 100)?;
    let mut entries = Vec::new();
    let as_of = store.state(&Filter::all(), &mut |event| {
        entries.push(owned(event));
        ControlFlow::Continue(())
    })?;
    entries.sort_by(|a, b| (&a.topic, &a.key).cmp(&(&b.topic, &b.key)));
    Ok(Seen {
        tail: store.tail(),
        events,
        state: (as_of, entries),
        snapshots: TOPICS.iter().map(|name| store.snapshot(name)).collect::<Result<_, _>>()?,
        closed: TOPICS.iter().map(|name| store.closed_at(name)).collect(),
        topics: store.topic_count(),
        remembered: remembered.iter().map(|&id| store.remembered(digest(id))).collect::<Result<_, _>>()?,
    })
}

/// A log as a crash leaves it, and what it holds.
pub struct Full {
    pub dir: TempDir,
    pub seen: Seen,
    pub remembered: Vec<EventId>,
}

pub fn full() -> &'static Full {
    static FULL: OnceLock<Full> = OnceLock::new();
    FULL.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        // Each opening sorts what the one before has written into files of its own.
        let store = RocksStore::open(options(dir.path(), Durability::Sync)).unwrap();
        let next = publish(&store, 1, 30);
        store
            .put_snapshot(
                &topic("t.1"),
                &Snapshot { at: 7, content_type: "text/plain".into(), body: "bundle ".repeat(40) },
            )
            .unwrap();
        store.append(&[event(next, next, "closed", "the last")]).unwrap();
        store.close_topic(&topic("closed")).unwrap();
        store.close_topic(&topic("never")).unwrap();
        store.delete_topic(&topic("t.gone")).unwrap();
        store.close().unwrap();
        drop(store);
        // Ids that are reserved ahead, and a hole of an unclean stop.
        let store = RocksStore::open(options(dir.path(), Durability::Os)).unwrap();
        let next = publish(&store, next + 1, 20);
        let copy = crash_copy(dir.path());
        drop(store);
        let store = RocksStore::open(options(copy.path(), Durability::Os)).unwrap();
        assert!(store.tail() > next, "there is a hole");
        let first = store.tail().max(SEGMENT) + 1;
        let next = publish(&store, first, 20);
        store.tidy().unwrap();
        store.close().unwrap();
        drop(store);
        let store = RocksStore::open(options(copy.path(), Durability::Sync)).unwrap();
        // Two segments more, the first of which is sealed with trims in it.
        let next = publish(&store, next.next_multiple_of(SEGMENT) + 5, 30);
        let next = publish(&store, next.next_multiple_of(SEGMENT) + 9, 10);
        store.tidy().unwrap();
        trim(&store, &[topic_trim("plain", first + EACH + 4), log_trim(23)]);
        store.set_retention(&topic("t.2"), Some(Limits { max_events: 1000, ..Limits::default() })).unwrap();
        store.set_retention(&topic("only"), Some(Limits { max_age: 1000, ..Limits::default() })).unwrap();
        store.close().unwrap();
        drop(store);
        let store = RocksStore::open(options(copy.path(), Durability::Sync)).unwrap();
        store
            .put_snapshot(&topic("t.2"), &Snapshot { at: next - 2, content_type: "x".into(), body: "b".repeat(100) })
            .unwrap();
        let last = publish(&store, next, 12);
        let remembered: Vec<EventId> = (next..last).step_by(EACH as usize).chain([1, 1 + EACH]).collect();
        let seen = see(&store, &remembered).unwrap();
        assert!(
            seen.events.len() > 250 && seen.state.1.len() > 20 && seen.snapshots.iter().flatten().count() == 2,
            "{seen:?}"
        );
        let dir = crash_copy(copy.path());
        // A file that a compaction has just replaced may still lie there; nothing in it counts.
        for finding in verified(dir.path()).1.0.iter().filter(|finding| finding.what.contains("nothing names it")) {
            fs::remove_file(dir.path().join(&finding.place)).unwrap();
        }
        let tables = names(dir.path()).iter().filter(|name| name.ends_with(".sst")).count();
        assert!(tables >= 12, "{tables} tables");
        Full { dir, seen, remembered }
    })
}

/// So that the checks above are of what is there.
#[test]
fn the_full_log_holds_some_of_everything() {
    let full = full();
    let dir = copied(full.dir.path());
    let store = RocksStore::open(options(dir.path(), Durability::Sync)).unwrap();
    assert_eq!(state(&store, &Filter::all()), full.seen.state);
    assert!(full.seen.closed.iter().any(Option::is_some) && full.seen.remembered.iter().any(Option::is_some));
}
