//! How long calls take on a log of 2 million events and 100,000 topics. Prints; judges nothing. Run with
//! `cargo test --release --test store -- --ignored --nocapture measure`; `TIDELOG_MEASURE_DIR` keeps the log for the next run.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tidelog::event::{Event, EventId};
use tidelog::store::rocks::{Options, RocksStore};
use tidelog::store::{Durability, Limits, Policy, SCAN_RECORDS_MAX, Scan, Store};
use tidelog::topic::{Filter, Pattern};

use crate::support::{event, filter, topic_trim};

const EVENTS: u64 = 2_000_000;
const TOPICS: u64 = 1_000;

/// Which topic the event `id` is in: half of them in one, one in 10,000 in another, some in a topic of their own, the others in
/// one of a thousand.
fn topic_name(id: EventId) -> String {
    if id == EVENTS / 2 + 7 {
        "single".into()
    } else if id % 10_000 == 77 {
        "rare".into()
    } else if id % 20 == 3 {
        let user = id / 20;
        if user % 5_000 == 11 { format!("user.{user}.rare") } else { format!("user.{user}.updated") }
    } else if id.is_multiple_of(2) {
        "dense".into()
    } else {
        format!("t.{}", (id.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) % TOPICS)
    }
}

fn build(dir: &Path) -> RocksStore {
    let store = RocksStore::open(Options { durability: Durability::Os, ..Options::new(dir) }).unwrap();
    if store.tail() >= EVENTS {
        return store;
    }
    let data = "x".repeat(200);
    let begun = Instant::now();
    let (mut slowest, mut tidying) = (Duration::ZERO, Duration::ZERO);
    for first in (1..=EVENTS).step_by(1000) {
        let batch: Vec<Event> = (first..first + 1000).map(|id| event(id, id, &topic_name(id), data.as_str())).collect();
        let at = Instant::now();
        store.append(&batch).unwrap();
        slowest = slowest.max(at.elapsed());
        if first % 10_000 == 1 {
            let at = Instant::now();
            store.tidy().unwrap();
            tidying += at.elapsed();
        }
    }
    println!(
        "append: {:.0} events/s, slowest batch of 1000 {slowest:?}; tidy {tidying:?} of {:?}",
        EVENTS as f64 / begun.elapsed().as_secs_f64(),
        begun.elapsed()
    );
    store
}

fn rss() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn timed<T>(what: &str, mut work: impl FnMut() -> T) -> T {
    let at = Instant::now();
    let mut out = work();
    let cold = at.elapsed();
    let mut warm = Duration::MAX;
    for _ in 0..5 {
        let at = Instant::now();
        out = work();
        warm = warm.min(at.elapsed());
    }
    println!("{what:<58} cold {cold:>12.1?}  warm {warm:>12.1?}");
    out
}

/// The first match after `after`, and how many scans it took.
fn first(store: &dyn Store, filter: &Filter, after: EventId) -> (Option<EventId>, u32) {
    let (mut at, mut found, mut scans) = (after, None, 0);
    while found.is_none() && at < store.tail() {
        scans += 1;
        at = store
            .scan(Scan { filter, after: at, upto: store.tail() }, &mut |e| {
                found = Some(e.id);
                ControlFlow::Break(())
            })
            .unwrap();
    }
    (found, scans)
}

/// 64 KiB of data, as a subscriber that catches up reads it.
fn chunk(store: &dyn Store, filter: &Filter, after: EventId) -> usize {
    let (mut bytes, mut count) = (0, 0);
    store
        .scan(Scan { filter, after, upto: store.tail() }, &mut |e| {
            bytes += e.data.len() + 60;
            count += 1;
            if bytes > 64 << 10 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    count
}

#[test]
#[ignore = "it measures; it does not judge"]
fn measure() {
    let kept = std::env::var_os("TIDELOG_MEASURE_DIR").map(PathBuf::from);
    let temp = tempfile::tempdir().unwrap();
    let dir = kept.as_deref().unwrap_or(temp.path());
    println!("record bound of a scan: {SCAN_RECORDS_MAX}");
    build(dir).close().unwrap();
    let before = rss();
    let begun = Instant::now();
    let store = RocksStore::open(Options { durability: Durability::Os, ..Options::new(dir) }).unwrap();
    println!("open: {:?}, {} topics, {} bytes of memory more", begun.elapsed(), store.topic_count(), rss() - before);

    for (name, patterns) in [
        ("dense", &["dense"][..]),
        ("one of a thousand", &["t.7"]),
        ("rare (1 in 10,000)", &["rare"]),
        ("single", &["single"]),
        ("unknown", &["nowhere"]),
        ("rare wildcard user.*.rare (20 of 100,000)", &["user.*.rare"]),
        ("rare wildcard *.*.rare", &["*.*.rare"]),
        ("one user user.5011.*", &["user.5011.*"]),
        ("broad wildcard user.**", &["user.**"]),
        ("t.*", &["t.*"]),
    ] {
        let f = filter(patterns, &[]);
        timed(&format!("{name}: floor"), || store.floor(&f));
        let (found, scans) = timed(&format!("{name}: first from 0"), || first(&store, &f, 0));
        println!("    -> {found:?} in {scans} scans");
        timed(&format!("{name}: first from the middle"), || first(&store, &f, EVENTS / 2 + 1000));
        timed(&format!("{name}: first near the tail"), || first(&store, &f, EVENTS - 5000));
        let n = timed(&format!("{name}: 64 KiB from 0"), || chunk(&store, &f, 0));
        let m = timed(&format!("{name}: 64 KiB in the open segment"), || chunk(&store, &f, EVENTS - 30_000));
        println!("    -> {n}, {m} events");
        for n in [1, 100, 10_000] {
            timed(&format!("{name}: from=-{n}"), || store.before_last(&f, n, EVENTS).unwrap());
        }
    }
    for time in [1, 10, EVENTS / 2, EVENTS - 10, EVENTS + 10] {
        timed(&format!("before_time {time}"), || store.before_time(time).unwrap());
    }
    timed("200 cold patterns", || {
        let begun = Instant::now();
        for n in 0..200 {
            store.floor(&filter(&[&format!("*.{n}.*")], &[]));
        }
        begun.elapsed()
    });
    timed("topics: 1000", || store.topics("", None, 1000).unwrap().len());
    timed("due, no limits", || store.due_trims(&Policy::default(), EVENTS).unwrap().len());
    let of = |pattern: &str, max_events, max_age| Policy {
        log: Limits::default(),
        topics: vec![(Pattern::parse(pattern).unwrap(), Limits { max_events, max_age, max_bytes: 0 })],
    };
    timed("due, age of every topic, nothing due", || store.due_trims(&of("**", 0, EVENTS * 2), EVENTS).unwrap().len());
    timed("due, events of t.*", || store.due_trims(&of("t.*", 500, 0), EVENTS).unwrap().len());
    let trims = timed("due, age of every topic", || store.due_trims(&of("**", 0, EVENTS / 2), EVENTS).unwrap());
    println!("    -> {} trims", trims.len());
    let once = |what: &str, work: &mut dyn FnMut()| {
        let at = Instant::now();
        work();
        println!("{what:<58} {:?}", at.elapsed());
    };
    let some: Vec<_> = trims.iter().take(1024).cloned().collect();
    once("raise 1024 floors", &mut || drop(store.raise_floors(&some).unwrap()));
    store.floors_published();
    once("settle them", &mut || store.settle().unwrap());
    once("raise all floors", &mut || drop(store.raise_floors(&trims).unwrap()));
    store.floors_published();
    once("settle them", &mut || store.settle().unwrap());
    once("tidy", &mut || store.tidy().unwrap());
    timed("floor of *.*.rare with 100,000 floors", || store.floor(&filter(&["*.*.rare"], &[])));
    once("raise one", &mut || drop(store.raise_floors(&[topic_trim("dense", EVENTS - 10)]).unwrap()));
    timed("floor of *.*.rare after one more", || store.floor(&filter(&["*.*.rare"], &[])));
    store.close().unwrap();
}
