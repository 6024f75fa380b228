//! The hub: what a push costs by who subscribes, and what a delivery costs up to the bytes for a socket.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Ratios, filter, text, topic};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use parking_lot::Mutex;
use tidelog::event::{Event, EventId};
use tidelog::hub::{Hub, Options};
use tidelog::sse::Form;
use tidelog::subscription::run::Runs;
use tidelog::subscription::{Options as SubscribeOptions, Start, Subscription, Want};
use tidelog::topic::{Filter, Pattern, Topic};

/// A hub with subscribers that all wait.
struct Crowd {
    hub: Mutex<Hub<usize>>,
    runs: Runs,
    subscribers: Vec<Subscription>,
    next: EventId,
    data: String,
}

impl Crowd {
    fn new() -> Self {
        let hub = Mutex::new(Hub::new(Options::default(), 0));
        Self { hub, runs: Runs::default(), subscribers: Vec::new(), next: 1, data: text(128, 1) }
    }

    fn with(filters: impl IntoIterator<Item = Filter>) -> Self {
        let mut crowd = Self::new();
        for filter in filters {
            // An Arc of its own for each, as every request brings one.
            let filter = Arc::new(filter);
            let (key, filter) = {
                let mut hub = crowd.hub.lock();
                let (key, _) = hub.attach(&filter, 0, 0);
                (key, hub.filter(key).unwrap())
            };
            let start = Start { cursor: 0, tail: 0, earliest: 1, gap: None, trims: 0, bundle: None };
            let options =
                SubscribeOptions { form: Form::Sse, heartbeat: Duration::from_secs(15), follow: true, bundle: None };
            crowd.subscribers.push(Subscription::new(key, filter, start, options, 0));
            crowd.take(crowd.subscribers.len() - 1);
        }
        crowd
    }

    /// Takes all that there is for one subscriber, until it waits; gives how many times there was something.
    fn take(&mut self, at: usize) -> usize {
        let mut taken = 0;
        loop {
            match self.subscribers[at].next(&self.hub, &mut self.runs, "log", 0, || at) {
                Want::Emit(bytes) => taken += usize::from(!std::hint::black_box::<Bytes>(bytes).is_empty()),
                Want::EmitAndWait(bytes) => {
                    return taken + usize::from(!std::hint::black_box::<Bytes>(bytes).is_empty());
                }
                Want::Wait => return taken,
                Want::Yield => {}
                other => unreachable!("these subscribers live at the edge, and this one wants {other:?}"),
            }
        }
    }

    /// A batch of one event on each of `topics`.
    fn batch(&mut self, topics: &[Topic]) -> Vec<Event> {
        let first = self.next;
        self.next += topics.len() as u64;
        let event = |(id, topic): (EventId, &Topic)| Event {
            id,
            topic: topic.clone(),
            event: None,
            key: None,
            time: 1_795_341_600_000,
            data: self.data.clone(),
        };
        (first..).zip(topics).map(event).collect()
    }

    /// Pushes one batch; gives how long that took, and how long the deliveries took that came of it.
    fn push(&mut self, topics: &[Topic]) -> (Duration, Duration, usize) {
        let batch = self.batch(topics);
        let begun = Instant::now();
        let wakes = self.hub.lock().push(batch);
        let pushed = begun.elapsed();
        let begun = Instant::now();
        let delivered = wakes.into_iter().map(|at| self.take(at)).sum();
        (pushed, begun.elapsed(), delivered)
    }
}

fn literal(n: usize) -> impl Iterator<Item = Filter> {
    std::iter::repeat_with(|| filter("news")).take(n)
}

/// Each follows the same topic and one of its own.
fn distinct(n: usize) -> impl Iterator<Item = Filter> {
    let pattern = |text: &str| Pattern::parse(text).expect("the benches name valid patterns");
    (0..n).map(move |i| Filter::new(vec![pattern("news"), pattern(&format!("user.{i}"))], Vec::new()))
}

fn fanout(c: &mut Criterion) {
    let news = [topic("news")];
    let mixed = [topic("news"), topic("elsewhere")];
    let crowds: [(&str, usize, Crowd, &[Topic]); 5] = [
        ("1 subscriber", 1, Crowd::with(literal(1)), &news),
        ("1,000 subscribers of one filter", 1_000, Crowd::with(literal(1_000)), &news),
        ("10,000 subscribers of one filter", 10_000, Crowd::with(literal(10_000)), &news),
        ("10,000 filters that all match", 10_000, Crowd::with(distinct(10_000)), &news),
        ("10,000 filters that match a part of the batch", 10_000, Crowd::with(distinct(10_000)), &mixed),
    ];
    for (name, subscribers, mut crowd, topics) in crowds {
        let mut group = c.benchmark_group(format!("fan-out to {name}"));
        group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(2));
        group.bench_function("push", |b| b.iter_custom(|n| (0..n).map(|_| crowd.push(topics).0).sum()));
        group.throughput(Throughput::Elements(subscribers as u64)).bench_function("deliveries", |b| {
            b.iter_custom(|n| {
                let mut sum = Duration::ZERO;
                for _ in 0..n {
                    let (_, took, delivered) = crowd.push(topics);
                    assert_eq!(delivered, subscribers);
                    sum += took;
                }
                sum
            });
        });
    }
}

/// What subscribers of other topics cost a push: nothing, or nearly so.
fn bystanders(c: &mut Criterion) {
    let others = |n: usize| (0..n).map(|i| filter(&format!("other.{i}")));
    let wild = |n: usize| (0..n).map(|i| filter(&format!("other.{i}.*")));
    let crowd = |filters: Vec<Filter>, mine: bool| Crowd::with(filters.into_iter().chain(literal(usize::from(mine))));
    let news = [topic("news")];
    for (name, few, many) in [
        ("nobody on its own topic", crowd(others(10).collect(), false), crowd(others(10_000).collect(), false)),
        ("one subscriber on its own", crowd(others(10).collect(), true), crowd(others(10_000).collect(), true)),
        ("wildcards, one on its own", crowd(wild(10).collect(), true), crowd(wild(10_000).collect(), true)),
    ] {
        let (mut few, mut many) = (few, many);
        let mut ratios = Ratios::default();
        let mut group = c.benchmark_group("push beside 10,000 subscribers of other topics");
        group.sampling_mode(SamplingMode::Flat).sample_size(10).measurement_time(Duration::from_secs(3));
        group.throughput(Throughput::Elements(1_000)).bench_function(name, |b| {
            b.iter_custom(|n| {
                let thousand = |crowd: &mut Crowd| (0..1_000).map(|_| crowd.push(&news).0).sum();
                (0..n).map(|_| ratios.round(|| thousand(&mut many), || thousand(&mut few))).sum()
            });
        });
        ratios.print(&format!("push beside 10,000 subscribers of other topics, in times that beside 10; {name}"));
    }
}

criterion_group!(benches, fanout, bystanders);
criterion_main!(benches);
