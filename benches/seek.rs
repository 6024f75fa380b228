//! Resume: how long it takes from an id to the first event after it that matches, by how long the log is.
//!
//! `TIDELOG_BENCH_EVENTS=10000000` adds a log of so many events (10 million take some 2 GB of disk while it runs).

mod common;

use std::ops::ControlFlow;
use std::time::Duration;

use common::{dir, filled, filter, topic};
use criterion::{Criterion, criterion_group, criterion_main};
use tidelog::event::EventId;
use tidelog::store::rocks::RocksStore;
use tidelog::store::{Scan, Store};
use tidelog::topic::{Filter, Topic};

const EVENT_BYTES: usize = 96;

/// One event in so many is on a rare topic.
const RARE: EventId = 10_000;

/// As far back as a client that was away for a while resumes.
const RECENT: EventId = 9_000;

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
            alarms: named("alarm"),
            quiet: named("quiet"),
            others: common::topics(1_000),
        }
    }

    /// Half of the events are on one topic, the other half on a thousand; here and there a rare one, and twenty topics that have been
    /// quiet since the beginning.
    fn of(&self, id: EventId) -> Topic {
        let among = |topics: &[Topic], n: EventId| topics[usize::try_from(n).unwrap_or(0) % topics.len()].clone();
        match id {
            1..=200 => among(&self.quiet, id),
            _ if id % RARE == RARE - 1 => self.rare.clone(),
            _ if id % RARE == RARE - 2 => among(&self.alarms, id / RARE),
            _ if id.is_multiple_of(2) => self.busy.clone(),
            _ => among(&self.others, id * 7_919),
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

fn resume(c: &mut Criterion) {
    let mut sizes: Vec<EventId> = vec![10_000, 1_000_000];
    sizes.extend(std::env::var("TIDELOG_BENCH_EVENTS").ok().and_then(|n| n.parse::<EventId>().ok()));
    let topics = Topics::new();
    for size in sizes {
        let dir = dir();
        let store = filled(&dir, size, EVENT_BYTES, |id| topics.of(id));
        let mut group = c.benchmark_group(format!("resume in {size} events"));
        group.sample_size(20).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
        for (name, pattern) in [
            ("everything", "**"),
            ("a busy topic", "busy"),
            ("a topic with one event in 10,000", "rare"),
            ("20 topics by wildcard, together one event in 10,000", "alarm.*"),
            ("a topic quiet since the beginning", "quiet.7"),
            ("20 topics by wildcard, quiet since the beginning", "quiet.*"),
        ] {
            let filter = filter(pattern);
            let mut random = fastrand::Rng::with_seed(7);
            group.bench_function(format!("{name}, recent"), |b| {
                b.iter(|| first_after(&store, &filter, size - random.u64(1..=RECENT)));
            });
            group.bench_function(format!("{name}, anywhere"), |b| {
                b.iter(|| first_after(&store, &filter, random.u64(200..size)));
            });
        }
    }
}

criterion_group!(benches, resume);
criterion_main!(benches);
