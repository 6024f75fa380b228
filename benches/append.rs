//! Synced appends, beside a bare RocksDB that writes the same batches synced into one column family.
//!
//! A round appends some segments' worth of events with the store's background work running as in the server, and waits for that work
//! at its end: sealing is paid for by the round that caused it.

mod common;

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{Bare, Ratios, dir, events, on_processor, record, time, topics};
use criterion::{
    BenchmarkGroup, Criterion, SamplingMode, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use tempfile::TempDir;
use tidelog::event::{EventId, NewEvent};
use tidelog::log::Log;
use tidelog::store::Store;
use tidelog::store::rocks::{Options, RocksStore};
use tidelog::topic::Topic;

const EVENT_BYTES: usize = 256;

/// How often the server's janitor tidies.
const TIDY_EVERY: Duration = Duration::from_secs(1);

/// A store that is appended to as the server does it.
struct Whole {
    store: Arc<RocksStore>,
    topics: Vec<Topic>,
    next: EventId,
    /// What the last round cost the thread that appends.
    work: Duration,
    _dir: TempDir,
}

impl Whole {
    fn open(topic_count: usize) -> Self {
        let dir = dir();
        let store = RocksStore::open(Options::new(dir.path())).expect("a new log");
        Self { store: Arc::new(store), topics: topics(topic_count), next: 1, work: Duration::ZERO, _dir: dir }
    }

    /// Appends `batches` of `size` events; what is timed begins when the events are there, and ends when they are tidied.
    fn append(&mut self, batches: usize, size: usize) -> Duration {
        let upto = self.next + (batches * size) as u64;
        // Neighbours differ in topic: 7,919 is prime.
        let n = self.topics.len() as u64;
        let all = events(self.next..upto, EVENT_BYTES, |id| {
            self.topics[usize::try_from(id * 7_919 % n).expect("a remainder of a usize")].clone()
        });
        self.next = upto;
        time(|| {
            let (stop, stopped) = mpsc::channel::<()>();
            let store = self.store.clone();
            let tidying = std::thread::spawn(move || {
                while stopped.recv_timeout(TIDY_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                    store.tidy().expect("tidying");
                }
                store.tidy().expect("tidying");
            });
            let before = on_processor();
            for batch in all.chunks(size) {
                self.store.append(batch).expect("an append");
            }
            self.work = on_processor().saturating_sub(before);
            drop(stop);
            tidying.join().expect("the thread that tidies");
        })
    }
}

fn group<'a>(c: &'a mut Criterion, name: &str, events: usize) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat).sample_size(10).warm_up_time(Duration::from_millis(500));
    group.measurement_time(Duration::from_secs(8)).throughput(Throughput::Elements(events as u64));
    group
}

fn beside_rocksdb(c: &mut Criterion) {
    // Small batches wait for the disk, so that some of them are enough; large ones fill two segments a round.
    for (size, batches, topic_count) in
        [(1, 2_000, 1_000), (8, 2_000, 1_000), (64, 2_048, 1_000), (512, 256, 1), (512, 256, 1_000), (512, 256, 10_000)]
    {
        let name = format!("{size} in a batch, {topic_count} topics");
        let (mut ratios, mut work) = (Ratios::default(), Ratios::default());
        let (mut whole, mut bare) = (Whole::open(topic_count), Bare::open());
        // As many as are appended, so that both read their data from memory.
        let values: Vec<_> =
            events(0..(batches * size) as u64, EVENT_BYTES, |_| common::topic("t")).iter().map(record).collect();
        group(c, "append", batches * size).bench_function(&name, |b| {
            b.iter_custom(|rounds| {
                let round = |_| {
                    let mut their_work = Duration::ZERO;
                    let theirs = || {
                        let before = on_processor();
                        let took = time(|| values.chunks(size).for_each(|batch| bare.write(batch)));
                        their_work = on_processor().saturating_sub(before);
                        took
                    };
                    let took = ratios.round(|| whole.append(batches, size), theirs);
                    work.note(whole.work, their_work);
                    took
                };
                (0..rounds).map(round).sum()
            });
        });
        ratios.print_throughput(&format!("append, {name}: of bare RocksDB's throughput"));
        work.print(&format!("append, {name}: processor time of the thread that appends, in times bare RocksDB's"));
    }
}

fn publishers(c: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    for publishers in [1, 8, 64] {
        let dir = dir();
        let log = Log::open(tidelog::log::Options::new(dir.path())).expect("a new log");
        let mut bare = Bare::open();
        let each = if publishers == 1 { 2_000 } else { 16_000 / publishers };
        let new = NewEvent { topic: common::topic("t"), event: None, key: None, data: common::text(EVENT_BYTES, 1) };
        let values: Vec<_> =
            events(0..publishers as u64, EVENT_BYTES, |_| common::topic("t")).iter().map(record).collect();
        let mut ratios = Ratios::default();
        group(c, "publish", each * publishers).bench_function(format!("{publishers} at once"), |b| {
            b.iter_custom(|rounds| {
                let round = |_| {
                    let ours = || runtime.block_on(publish(&log, publishers, each, &new));
                    ratios.round(ours, || time(|| (0..each).for_each(|_| bare.write(&values))))
                };
                (0..rounds).map(round).sum()
            });
        });
        ratios.print_throughput(&format!(
            "publish, {publishers} at once: of bare RocksDB's throughput in batches of {publishers}"
        ));
        runtime.block_on(log.close());
    }
}

async fn publish(log: &Log, publishers: usize, each: usize, new: &NewEvent) -> Duration {
    let begun = Instant::now();
    let all: Vec<_> = (0..publishers)
        .map(|_| {
            let (log, new) = (log.clone(), new.clone());
            tokio::spawn(async move {
                for _ in 0..each {
                    log.append(vec![new.clone()]).await.expect("an append");
                }
            })
        })
        .collect();
    for one in all {
        one.await.expect("a publisher");
    }
    begun.elapsed()
}

criterion_group!(benches, beside_rocksdb, publishers);
criterion_main!(benches);
