//! Replay: a million events from the disk as frames, beside iterating over the same records in a bare RocksDB.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Bare, Pages, Ratios, dir, filled, filter, time, topic};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use tidelog::event::EventId;
use tidelog::sse::Form;
use tidelog::store::rocks::RocksStore;
use tidelog::store::{Scan, Store};
use tidelog::subscription::{READ_BYTES, Stretch, read};
use tidelog::topic::Filter;

const EVENTS: EventId = 1_000_000;
const EVENT_BYTES: usize = 256;

/// Reads all that matches as a subscriber would, piece by piece.
fn replay(store: &RocksStore, filter: &Arc<Filter>, form: Form) -> usize {
    let (mut after, upto, mut bytes) = (0, store.tail(), 0);
    while after < upto {
        let was = read(store, &Stretch { filter: filter.clone(), form, after, upto, bytes_max: READ_BYTES }, || true)
            .expect("a read");
        (after, bytes) = (was.upto, bytes + was.bytes.len());
    }
    bytes
}

fn scan(store: &RocksStore, filter: &Filter) -> usize {
    let (mut after, upto, mut bytes) = (0, store.tail(), 0);
    while after < upto {
        after = store
            .scan(Scan { filter, after, upto }, &mut |event| {
                bytes += event.data.len();
                std::ops::ControlFlow::Continue(())
            })
            .expect("a read");
    }
    bytes
}

fn beside_rocksdb(c: &mut Criterion) {
    let dir = dir();
    // Half of the events are on one topic, a hundredth on another.
    let (half, some) = (topic("half"), topic("some"));
    let others = common::topics(100);
    let store = filled(&dir, EVENTS, EVENT_BYTES, |id| match id % 100 {
        n if n % 2 == 0 => half.clone(),
        1 => some.clone(),
        n => others[usize::try_from(n).unwrap_or(0)].clone(),
    });
    let bare = Bare::filled(EVENTS, EVENT_BYTES);
    let mut group = c.benchmark_group("replay");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(12));
    let pages = [Pages::of(&dir.path().join("db")), bare.pages()];
    let ways: [(&str, &str, EventId, Option<Form>); 6] = [
        ("everything, not encoded", "**", EVENTS, None),
        ("everything, SSE", "**", EVENTS, Some(Form::Sse)),
        ("everything, envelopes", "**", EVENTS, Some(Form::SseEnvelope)),
        ("everything, JSON lines", "**", EVENTS, Some(Form::Lines)),
        ("a topic with half of the events, SSE", "half", EVENTS / 2, Some(Form::Sse)),
        ("a topic with a hundredth, SSE", "some", EVENTS / 100, Some(Form::Sse)),
    ];
    for (name, pattern, matching, form) in ways {
        let filter = Arc::new(filter(pattern));
        let mut ratios = Ratios::default();
        group.throughput(Throughput::Elements(matching)).bench_function(name, |b| {
            b.iter_custom(|rounds| {
                let ours = || match form {
                    Some(form) => drop(std::hint::black_box(replay(&store, &filter, form))),
                    None => drop(std::hint::black_box(scan(&store, &filter))),
                };
                let theirs = || assert_eq!(std::hint::black_box(bare.iterate()).0, EVENTS);
                (0..rounds).map(|_| ratios.round(|| time(ours), || time(theirs))).sum()
            });
        });
        ratios.print(&format!("replay, {name}: time, in times that of iterating over all records in bare RocksDB"));
        if form != Some(Form::Sse) {
            continue;
        }
        let mut ratios = Ratios::default();
        group.bench_function(format!("{name}, from the disk"), |b| {
            b.iter_custom(|rounds| {
                let cold = |work: &dyn Fn()| {
                    pages.iter().for_each(Pages::forget);
                    time(work)
                };
                let ours = || _ = std::hint::black_box(replay(&store, &filter, Form::Sse));
                let theirs = || assert_eq!(std::hint::black_box(bare.iterate()).0, EVENTS);
                (0..rounds).map(|_| ratios.round(|| cold(&ours), || cold(&theirs))).sum()
            });
        });
        ratios.print(&format!(
            "replay, {name}, from the disk: time, in times that of iterating over all records in bare RocksDB"
        ));
    }
}

/// Where nothing is between them, events lie in packs.
fn of_one_topic(c: &mut Criterion) {
    let dir = dir();
    let store = filled(&dir, EVENTS, EVENT_BYTES, |_| topic("only"));
    let bare = Bare::filled(EVENTS, EVENT_BYTES);
    let mut group = c.benchmark_group("replay");
    group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(12));
    let filter = Arc::new(filter("only"));
    let mut ratios = Ratios::default();
    group.throughput(Throughput::Elements(EVENTS)).bench_function("one topic alone, SSE", |b| {
        b.iter_custom(|rounds| {
            let ours = || _ = std::hint::black_box(replay(&store, &filter, Form::Sse));
            let theirs = || assert_eq!(std::hint::black_box(bare.iterate()).0, EVENTS);
            (0..rounds).map(|_| ratios.round(|| time(ours), || time(theirs))).sum()
        });
    });
    ratios.print("replay, one topic alone, SSE: time, in times that of iterating over all records in bare RocksDB");
}

criterion_group!(benches, beside_rocksdb, of_one_topic);
criterion_main!(benches);
