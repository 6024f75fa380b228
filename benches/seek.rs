//! Resume: how long it takes from an id to the first event after it that matches, by how long the log is.
//!
//! Beside what criterion prints: the 50th and the 99th of a hundred resumes, at the store, warm and with nothing of the log in memory,
//! and the latter in times that of the shortest log.
//!
//! `TIDELOG_BENCH_EVENTS=10000000` adds a log of so many events (10 million take some 2 GB of disk while it runs).

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use common::{Pages, dir, filled, filter, time, topic};
use criterion::{Criterion, criterion_group, criterion_main};
use tidelog::event::EventId;
use tidelog::store::rocks::{Options, RocksStore};
use tidelog::store::{Scan, Store};
use tidelog::topic::{Filter, Topic};

const EVENT_BYTES: usize = 96;

/// One event in so many is on a rare topic.
const RARE: EventId = 10_000;

/// As far back as a client that was away for a while resumes.
const RECENT: EventId = 9_000;

/// So many more topics are there.
const OTHERS: usize = 100_000;

struct Topics {
    busy: Topic,
    rare: Topic,
    alarms: Vec<Topic>,
    quiet: Vec<Topic>,
    others: Vec<Topic>,
}

impl Topics {
    fn new() -> Self {
        let named = |prefix: &str| (0..20).map(|i| topic(&format!("{prefix}.{i}"))).collect();
        Self {
            busy: topic("busy"),
            rare: topic("rare"),
            alarms: (0..20).map(|n| topic(&format!("dev.{n}.alarm"))).collect(),
            quiet: named("quiet"),
            others: (0..OTHERS).map(|n| topic(&format!("dev.{n}.temp"))).collect(),
        }
    }

    /// Half of the events are on one topic, the other half on a hundred thousand; here and there a rare one, and twenty topics that have been
    /// quiet since the beginning.
    fn of(&self, id: EventId) -> Topic {
        let among = |topics: &[Topic], n: EventId| topics[usize::try_from(n).unwrap_or(0) % topics.len()].clone();
        match id {
            1..=200 => among(&self.quiet, id),
            _ if id % RARE == RARE - 1 => self.rare.clone(),
            _ if id % RARE == RARE - 2 => among(&self.alarms, id / RARE),
            _ if id.is_multiple_of(2) => self.busy.clone(),
            _ => among(&self.others, id / 2 * 7_919),
        }
    }
}

/// Searches as a subscriber does, in bounded steps, until the first match or the tail.
fn first_after(store: &RocksStore, filter: &Filter, cursor: EventId) -> Option<EventId> {
    let (mut after, upto, mut found) = (cursor, store.tail(), None);
    while after < upto && found.is_none() {
        after = store
            .scan(Scan { filter, after, upto }, &mut |event| {
                found = Some(event.id);
                ControlFlow::Break(())
            })
            .expect("a read");
    }
    found
}

const WAYS: [(&str, &str); 6] = [
    ("everything", "**"),
    ("a busy topic", "busy"),
    ("a topic with one event in 10,000", "rare"),
    ("20 topics of 100,000 by wildcard, together one event in 10,000", "dev.*.alarm"),
    ("a topic quiet since the beginning", "quiet.7"),
    ("20 topics by wildcard, quiet since the beginning", "quiet.*"),
];

/// How long each of `rounds` resumes takes, ascending.
fn resumes(
    store: &RocksStore,
    rounds: usize,
    oldest: EventId,
    filter: impl Fn(usize) -> Filter,
    before: impl Fn(),
) -> Vec<Duration> {
    let mut random = fastrand::Rng::with_seed(7);
    let tail = store.tail();
    let mut times: Vec<_> = (0..rounds)
        .map(|round| {
            let (filter, cursor) = (filter(round), random.u64(oldest..tail));
            before();
            time(|| _ = std::hint::black_box((store.floor(&filter), first_after(store, &filter, cursor))))
        })
        .collect();
    times.sort_unstable();
    times
}

/// The 50th and the 99th of a hundred, in microseconds.
fn quantiles(times: &[Duration]) -> (f64, f64) {
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1e6;
    (at(50), at(99))
}

/// What a round asks for, by its number.
type Ask = Box<dyn Fn(usize) -> Filter>;

fn percentiles(dir: &Path, store: &RocksStore, base: &mut Vec<[f64; 2]>) {
    let pages = Pages::of(&dir.join("db"));
    let mut ways: Vec<(&str, Ask)> =
        WAYS.iter().map(|&(name, pattern)| (name, Box::new(move |_| filter(pattern)) as _)).collect();
    // Each pattern is new to the store.
    ways.push(("100,000 topics and a new pattern each time", Box::new(|round| filter(&format!("*.{round}.alarm")))));
    for pattern in ["dev.*.temp", "dev.**", "*.*.temp", "*.*.alarm"] {
        let filter = filter(pattern);
        let took = time(|| _ = std::hint::black_box(store.floor(&filter)));
        println!("RESOLVE {pattern} for the first time, {} topics: {took:.0?}", store.topic_count());
    }
    let first = base.is_empty();
    // All that is warm first: the other leaves the files' pages behind on the disk.
    let warm: Vec<_> = ways.iter().map(|(_, filter)| quantiles(&resumes(store, 2_000, 200, filter, || {}))).collect();
    for (at, (name, filter)) in ways.iter().enumerate() {
        let warm = warm[at];
        let cold = quantiles(&resumes(store, 200, 200, |round| filter(round + 2_000), || pages.forget()));
        if first {
            base.push([warm.1, cold.1]);
        }
        println!(
            "RESUME {} events, {name}: warm p50 {:.0} p99 {:.0} us ({:.1} x), cold p50 {:.0} p99 {:.0} us ({:.1} x)",
            store.tail(),
            warm.0,
            warm.1,
            warm.1 / base[at][0],
            cold.0,
            cold.1,
            cold.1 / base[at][1],
        );
    }
}

fn resume(c: &mut Criterion) {
    let mut sizes: Vec<EventId> = vec![10_000, 1_000_000];
    sizes.extend(std::env::var("TIDELOG_BENCH_EVENTS").ok().and_then(|n| n.parse::<EventId>().ok()));
    let topics = Topics::new();
    let mut base = Vec::new();
    for size in sizes {
        let dir = dir();
        let store = filled(&dir, size, EVENT_BYTES, |id| topics.of(id));
        let mut group = c.benchmark_group(format!("resume in {size} events"));
        group.sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
        for (name, pattern) in WAYS {
            let filter = filter(pattern);
            let mut random = fastrand::Rng::with_seed(7);
            group.bench_function(format!("{name}, recent"), |b| {
                b.iter(|| first_after(&store, &filter, size - random.u64(1..=RECENT)));
            });
            group.bench_function(format!("{name}, anywhere"), |b| {
                b.iter(|| first_after(&store, &filter, random.u64(200..size)));
            });
        }
        group.finish();
        store.close().expect("closing");
        drop(store);
        // A cache that holds little of it, so that what is cold is cold.
        let options = Options { cache_bytes: 1 << 20, ..Options::new(dir.path()) };
        let store = RocksStore::open(options).expect("the log again");
        percentiles(dir.path(), &store, &mut base);
    }
}

criterion_group!(benches, resume);
criterion_main!(benches);
