//! Limits are kept to, and the disk is given back; a reader meanwhile misses nothing without being able to know.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tidelog::event::{Event, EventId, Millis};
use tidelog::store::rocks::{Options, RocksStore};
use tidelog::store::{Durability, Limits, Policy, Scan, Store, Trim};
use tidelog::topic::Pattern;

use crate::support::{disk_bytes, event, filter, ids, log_trim, open, rows, topic, topic_trim, trim};

/// What the janitor does once a second.
fn round(store: &dyn Store, policy: &Policy, now: Millis) {
    let trims = store.due_trims(policy, now).unwrap();
    if !trims.is_empty() {
        store.raise_floors(&trims).unwrap();
        store.floors_published();
    }
    store.tidy().unwrap();
}

fn limits(max_events: u64, max_age: Millis, max_bytes: u64) -> Limits {
    Limits { max_events, max_age, max_bytes, ..Limits::default() }
}

fn policy(log: Limits, topics: &[(&str, Limits)]) -> Policy {
    let topics = topics.iter().map(|(pattern, limits)| (Pattern::parse(pattern).unwrap(), *limits)).collect();
    Policy { log, topics }
}

/// Appends 1 KB events under the ids `first..first + n`, in the topic that `name` gives, a thousand at one time.
fn fill(store: &dyn Store, first: EventId, n: u64, name: impl Fn(EventId) -> String) {
    // As little as possible to compress.
    let mut data: Vec<u8> = (0..950).map(|_| fastrand::u8(b' '..b'~')).collect();
    let mut at = first;
    while at < first + n {
        let batch: Vec<Event> = (at..(at + 1000).min(first + n))
            .map(|id| {
                fastrand::shuffle(&mut data);
                event(id, at, &name(id), String::from_utf8(data.clone()).unwrap())
            })
            .collect();
        store.append(&batch).unwrap();
        at += 1000;
    }
}

/// What lies on the disk beside retained events, at most:
/// - dead bytes that are not worth a rewrite: 4 MiB below the log's floor; a segment may be half dead before it is rewritten;
/// - the write-ahead logs: 32 MiB, and one buffer of 16 MiB that grows before the oldest is let go;
/// - of each topic that is trimmed the rest of one pack, of 4 KiB;
/// - the file that holds the newest dead and the oldest live record, of 32 MiB at the most, and the indexes.
const BESIDE: u64 = (4 + 32 + 16 + 32 + 2) << 20;

fn assert_gives_back(dir: &Path, live: u64, what: &str) {
    let (disk, bound) = (disk_bytes(dir), live * 21 / 20 + BESIDE);
    println!("{what}: {} MiB on the disk, bound {} MiB", disk >> 20, bound >> 20);
    assert!(disk < bound, "{what}: {disk} bytes on the disk, more than {bound}");
}

#[test]
fn a_log_limited_in_bytes_gives_the_disk_back() {
    const MAX: u64 = 20 << 20;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Os);
    let policy = policy(limits(0, 0, MAX), &[]);
    let mut most = 0;
    for first in (1..300_000).step_by(5_000) {
        fill(&store, first, 5_000, |_| "t".into());
        round(&store, &policy, first);
        let bytes: u64 = store.topics("", None, 10).unwrap().iter().map(|t| t.bytes).sum();
        assert!(bytes <= MAX + MAX / 10, "{bytes}");
        most = most.max(disk_bytes(dir.path()));
    }
    println!("most on the disk: {} MiB", most >> 20);
    assert!(most < MAX * 21 / 20 + BESIDE, "{most} bytes on the disk");
    let held = ids(&store, &["t"]);
    assert!(held.len() as u64 * 970 > MAX - MAX / 10, "no more than needed is trimmed: {} events are left", held.len());
    assert_eq!(held.last(), Some(&300_000));
    assert_eq!(store.earliest(), held[0]);
    store.close().unwrap();
    assert_gives_back(dir.path(), MAX, "closed");
}

#[test]
fn of_two_topics_one_is_limited_and_gives_its_disk_back() {
    const MAX: u64 = 2 << 20;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Os);
    let policy = policy(Limits::default(), &[("*", limits(0, 0, MAX))]);
    store.set_retention(&topic("kept"), Some(Limits::default())).unwrap();
    let name = |id: EventId| if id.is_multiple_of(10) { "kept".to_string() } else { "cut".into() };
    for first in (1..300_000).step_by(10_000) {
        fill(&store, first, 10_000, name);
        round(&store, &policy, first);
    }
    round(&store, &policy, 300_000);
    let list = store.topics("", None, 10).unwrap();
    assert_eq!(list.iter().map(|t| t.topic.as_str()).collect::<Vec<_>>(), ["cut", "kept"]);
    assert!(list[0].bytes <= MAX + MAX / 10 && list[0].bytes >= MAX - MAX / 10, "{list:?}");
    assert_eq!(list[1].events, 30_000, "the other one loses nothing");
    assert_eq!(ids(&store, &["kept"]).len(), 30_000);
    let live: u64 = list.iter().map(|t| t.bytes).sum();
    // The open segment, of 65,536 events, is not rewritten, and any other may be half dead.
    assert_gives_back(dir.path(), 2 * live + 65_536 * 1000, "one topic of two");
    store.close().unwrap();
}

/// A pack goes when its last event does; until then its segment is not written anew again and again for the rest of it.
#[test]
fn what_shares_a_pack_with_what_is_kept_goes_after_it() {
    const BURST: EventId = 16;
    const SEGMENT: EventId = 65_536;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Os);
    let name = |id: EventId| format!("t.{}", id / BURST);
    let data = |id: EventId| format!("{id} {}", "x".repeat(200));
    for first in (0..2 * SEGMENT).step_by(4096) {
        let batch: Vec<_> = (first.max(1)..first + 4096).map(|id| event(id, first, &name(id), data(id))).collect();
        store.append(&batch).unwrap();
    }
    store.append(&[event(2 * SEGMENT, 2 * SEGMENT, "other", "in the open segment")]).unwrap();
    store.tidy().unwrap();
    let newest = policy(Limits::default(), &[("t.*", limits(1, 0, 0))]);
    round(&store, &newest, 2 * SEGMENT);
    let bursts = 2 * SEGMENT / BURST;
    assert_eq!(ids(&store, &["t.*"]).len() as u64, bursts);
    round(&store, &newest, 2 * SEGMENT);
    // All of them, but for those of one topic.
    let gone: Vec<_> =
        (0..bursts).filter(|n| *n != 7).map(|n| topic_trim(&format!("t.{n}"), (n + 1) * BURST)).collect();
    trim(&store, &gone);
    store.tidy().unwrap();
    assert_eq!(ids(&store, &["**"]), [8 * BURST - 1, 2 * SEGMENT]);
    store.close().unwrap();
    drop(store);
    assert_eq!(rows(dir.path(), "log"), 2, "dead events are still there");
}

#[test]
fn counts_and_ages_of_topics_are_kept_and_overridden() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), Durability::Sync);
    let policy = policy(
        limits(10_000, 0, 0),
        &[("few.*", limits(100, 0, 0)), ("few.young", limits(0, 1_000, 0)), ("old.**", limits(0, 4_000, 0))],
    );
    let names = ["few.a", "few.young", "old.a.b", "free", "own"];
    let name = |id: EventId| names[(id % 5) as usize].to_string();
    store.set_retention(&topic("own"), Some(limits(7, 0, 0))).unwrap();
    let append = |store: &RocksStore, first: u64, n: u64| {
        let batch: Vec<_> = (first..first + n).map(|id| event(id, id, &name(id), "x")).collect();
        store.append(&batch).unwrap();
    };
    let count = |store: &RocksStore, name: &str| ids(store, &[name]).len() as u64;
    for first in (1..20_000).step_by(1000) {
        append(&store, first, 1000);
        round(&store, &policy, first + 999);
        let now = first + 999;
        assert!(count(&store, "few.a") <= 110);
        assert!(count(&store, "own") <= 7);
        let oldest = |name: &str| ids(&store, &[name])[0];
        assert!(oldest("few.young") >= now.saturating_sub(1_100), "the last pattern that matches wins");
        assert!(oldest("old.a.b") >= now.saturating_sub(4_400));
        // A restart in between changes nothing.
        if first % 3000 == 1 {
            store.close().unwrap();
            drop(store);
            store = open(dir.path(), Durability::Sync);
        }
    }
    assert!((100..=110).contains(&count(&store, "few.a")));
    assert_eq!(count(&store, "own"), 7);
    store.set_retention(&topic("own"), None).unwrap();
    append(&store, 20_001, 1000);
    round(&store, &policy, 21_000);
    assert_eq!(count(&store, "own"), 207, "without its own limits it has none");
    let all = ids(&store, &["**"]).len() as u64;
    assert!(all <= 11_000, "{all}");
    round(&store, &policy, 1_000_000);
    assert_eq!((count(&store, "few.young"), count(&store, "old.a.b")), (0, 0), "age counts without a publish too");
    assert_eq!(store.last_of("few.young"), 0);
}

/// Trims, compactions, sealing and appends go on while readers read. What a reader does not find under an id that was there lies
/// at or below a floor that everyone was told *before* the read ended: told as the hub tells it, between raising and publishing.
#[test]
fn readers_never_miss_an_event_without_a_floor_that_says_so() {
    const NAMES: [&str; 3] = ["a", "b.c", "b.d"];
    const END: EventId = 400_000;
    let dir = tempfile::tempdir().unwrap();
    let options = Options { durability: Durability::Os, write_buffer_bytes: 256 << 10, ..Options::new(dir.path()) };
    let store = RocksStore::open(options).unwrap();
    let at = |id: EventId| (id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 60) as usize % NAMES.len();
    let told: [AtomicU64; 4] = Default::default();
    let tail = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let scans = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let (store, told, tail, over, scans) = (&store, &told, &tail, &over, &scans);
        // The sequencer.
        scope.spawn(move || {
            let data = "x".repeat(60);
            for first in (1..END).step_by(500) {
                let batch: Vec<_> =
                    (first..first + 500).map(|id| event(id, first, NAMES[at(id)], data.as_str())).collect();
                store.append(&batch).unwrap();
                tail.store(first + 499, Ordering::Release);
                let which = fastrand::usize(0..12);
                let upto = fastrand::u64(first / 2..first + 500);
                let trim: Trim = match which {
                    0 => log_trim(upto / 2),
                    1..=3 => topic_trim(NAMES[which - 1], upto),
                    _ => continue,
                };
                for rose in store.raise_floors(&[trim]).unwrap() {
                    // Some scans begin and end in between, if readers are at work at all.
                    let before = scans.load(Ordering::Acquire);
                    (0..10_000)
                        .take_while(|_| scans.load(Ordering::Acquire) < before + 8)
                        .for_each(|_| std::thread::yield_now());
                    told[which].fetch_max(rose.upto, Ordering::AcqRel);
                }
                store.floors_published();
            }
            over.store(true, Ordering::Release);
        });
        // The janitor.
        scope.spawn(move || {
            while !over.load(Ordering::Acquire) {
                store.tidy().unwrap();
            }
        });
        for (patterns, topics) in [(&["**"][..], &[0, 1, 2][..]), (&["b.*"], &[1, 2]), (&["a"], &[0]), (&["b.d"], &[2])]
        {
            scope.spawn(move || {
                let filter = filter(patterns, &[]);
                let mut rounds = 0;
                while !over.load(Ordering::Acquire) || rounds == 0 {
                    let upto = tail.load(Ordering::Acquire);
                    let mut after = fastrand::u64(0..=upto);
                    while after < upto {
                        let mut found = Vec::new();
                        let came = store
                            .scan(Scan { filter: &filter, after, upto }, &mut |event| {
                                assert_eq!(event.topic, NAMES[at(event.id)]);
                                found.push(event.id);
                                if found.len() == 700 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                            })
                            .unwrap();
                        scans.fetch_add(1, Ordering::AcqRel);
                        let told = |n: usize| told[n].load(Ordering::Acquire);
                        let mut found = found.into_iter().peekable();
                        for id in (after + 1..=came).filter(|&id| topics.contains(&at(id))) {
                            if found.next_if_eq(&id).is_none() {
                                let floor = told(0).max(told(1 + at(id)));
                                assert!(id <= floor, "{patterns:?}: {id} is missing, but the floor is {floor}");
                            }
                        }
                        assert_eq!(found.next(), None, "each once, in order, and nothing else");
                        after = came;
                    }
                    rounds += 1;
                }
            });
        }
    });
    store.settle().unwrap();
    assert_eq!(
        store.topics("", None, 9).unwrap().iter().map(|t| t.events).sum::<u64>(),
        ids(&store, &["**"]).len() as u64
    );
}
