//! One suite, two stores: whatever is done to `RocksStore` is done to the model store, and every answer is compared.

mod power_cuts;

use std::ops::ControlFlow;

use proptest::prelude::*;
use proptest::sample::Index;
use tempfile::TempDir;
use tidelog::event::{Digest, Event, EventId, EventType, Key, Millis, NewEvent};
use tidelog::store::model::ModelStore;
use tidelog::store::rocks::{Options, RocksStore};
use tidelog::store::{Durability, Limits, Policy, Remembered, Scan, Snapshot, Store, Trim};
use tidelog::topic::{Filter, Pattern};

use crate::support::{crash_copy, filter, read, state, topic};

/// A segment of the index: what is sealed together.
const SEGMENT: u64 = 65_536;

const TOPICS: [&str; 7] = ["a", "a.b", "a.b.c", "a.c", "b", "b.x.c", "many.0"];
const TYPES: [&str; 3] = ["", "created", "gone"];
const KEYS: [&str; 3] = ["", "7", "Zürich"];

/// What is asked of both stores: literal, wildcard, several, typed, and such that match nothing.
fn filters() -> Vec<Filter> {
    let mut all: Vec<_> = TOPICS.iter().map(|name| filter(&[name], &[])).collect();
    let patterns: [&[&str]; 10] = [
        &[],
        &["*"],
        &["a.*"],
        &["a.**"],
        &["*.*.c"],
        &["*.b", "b"],
        &["many.*"],
        &["many.**", "a"],
        &["nowhere"],
        &["*.nowhere"],
    ];
    for patterns in patterns {
        all.push(filter(patterns, &[]));
        all.push(filter(patterns, &["created"]));
        all.push(filter(patterns, &["", "gone"]));
    }
    all
}

/// What is published.
#[derive(Debug, Clone)]
struct Draft {
    topic: u8,
    kind: u8,
    key: u8,
    bytes: usize,
    /// So many times, one behind the other.
    times: u8,
    /// The next one is so much later.
    later: Millis,
}

#[derive(Debug, Clone)]
enum Op {
    /// After so many ids that are skipped; remembered under some key.
    Append(u64, Vec<Draft>, Option<u8>),
    /// To so many ids before or after the end of the tail's segment.
    NearBoundary(i8),
    /// A long run of small events, of which one in so many is not in the first topic.
    Run(u32, u8),
    /// Of the log or of a topic, up to some id; published and settled at once, or not.
    Trim(Vec<(Option<u8>, Index)>, bool),
    Publish,
    Settle,
    Tidy,
    Retain(u8, Option<Limits>),
    Reopen,
    Crash,
    Enforce(Limits, Limits),
    Close(u8),
    /// Published and settled at once, or not.
    Delete(u8, bool),
    /// True at some id, with so many bytes.
    Snapshot(u8, Index, u8),
    /// What is older than so much, and what is beyond so many.
    Forget(Millis, u64),
    /// Without closing it first, as after a failed write.
    OpenAgain,
}

fn limits() -> impl Strategy<Value = Limits> {
    let max = |m: u64| prop_oneof![2 => Just(0), 1 => 1..m];
    (max(200), max(3_000), max(60_000), prop::bool::weighted(0.3)).prop_map(
        |(max_events, max_age, max_bytes, trim_to_snapshot)| Limits {
            max_events,
            max_age,
            max_bytes,
            trim_to_snapshot,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let topic = || 0..TOPICS.len() as u8;
    let bytes = prop_oneof![3 => Just(0usize), 10 => 1..40usize, 1 => Just(70_000usize)];
    let times = prop_oneof![3 => Just(1u8), 2 => 2..9u8, 1 => Just(70u8)];
    let later = prop_oneof![4 => Just(0), 1 => 1..40u64];
    let draft = (topic(), 0..3u8, 0..3u8, bytes, times, later).prop_map(|(topic, kind, key, bytes, times, later)| {
        // What is large comes once.
        Draft { topic, kind, key, bytes, times: if bytes > 1000 { 1 } else { times }, later }
    });
    let skip = prop_oneof![5 => Just(0), 2 => 0..50u64, 1 => 0..3 * SEGMENT];
    let trims = prop::collection::vec((prop::option::weighted(0.8, topic()), any::<Index>()), 1..5);
    prop_oneof![
        8 => (skip, prop::collection::vec(draft, 1..40), prop::option::of(0..9u8))
            .prop_map(|(skip, events, key)| Op::Append(skip, events, key)),
        2 => (-20..20i8).prop_map(Op::NearBoundary),
        1 => (200..3000u32, 1..200u8).prop_map(|(n, one_in)| Op::Run(n, one_in)),
        4 => (trims, any::<bool>()).prop_map(|(trims, done)| Op::Trim(trims, done)),
        1 => Just(Op::Publish),
        1 => Just(Op::Settle),
        3 => Just(Op::Tidy),
        1 => (topic(), prop::option::of(limits())).prop_map(|(topic, limits)| Op::Retain(topic, limits)),
        1 => Just(Op::Reopen),
        1 => Just(Op::Crash),
        2 => (limits(), limits()).prop_map(|(log, topics)| Op::Enforce(log, topics)),
        1 => prop::option::weighted(0.4, topic()).prop_map(|topic| topic.map_or(Op::OpenAgain, Op::Close)),
        2 => (topic(), any::<bool>()).prop_map(|(topic, done)| Op::Delete(topic, done)),
        2 => (topic(), any::<Index>(), any::<u8>()).prop_map(|(topic, at, bytes)| Op::Snapshot(topic, at, bytes)),
        1 => (0..2_000u64, 0..9u64).prop_map(|(age, most)| Op::Forget(age, most)),
    ]
}

/// Both stores and what is to come.
struct Pair {
    dir: TempDir,
    rocks: RocksStore,
    model: ModelStore,
    next: EventId,
    time: Millis,
}

impl Pair {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rocks = open(&dir);
        Self { dir, rocks, model: ModelStore::default(), next: 1, time: 1000 }
    }

    fn append(&mut self, drafts: impl IntoIterator<Item = Draft>) {
        self.append_remembered(drafts, None);
    }

    /// Remembered under `key` is all but the first event, which is a publish of its own.
    fn append_remembered(&mut self, drafts: impl IntoIterator<Item = Draft>, key: Option<u8>) {
        let mut events: Vec<Event> = Vec::new();
        let closed: Vec<bool> = TOPICS.iter().map(|name| self.model.closed_at(name).is_some()).collect();
        let open = drafts.into_iter().filter(|draft| !closed[usize::from(draft.topic)]);
        for (draft, is_last) in open.flat_map(|draft| (1..=draft.times).map(move |n| (draft.clone(), n == draft.times)))
        {
            let new = NewEvent {
                topic: topic(TOPICS[usize::from(draft.topic)]),
                event: EventType::parse(TYPES[usize::from(draft.kind)]).unwrap(),
                key: Key::parse(KEYS[usize::from(draft.key)]).ok(),
                data: "é".repeat(draft.bytes / 2),
            };
            events.push(Event::new(self.next, self.time, new));
            self.next += 1;
            self.time += if is_last { draft.later } else { 0 };
        }
        let remembered = key.zip(events.get(1)).map(|(key, second)| Remembered {
            key: digest(key),
            request: Digest([self.next.to_be_bytes(), self.time.to_be_bytes()].concat().try_into().unwrap()),
            first: second.id,
            last: self.next - 1,
            time: second.time,
        });
        self.rocks.commit(&events, remembered.as_slice()).unwrap();
        self.model.commit(&events, remembered.as_slice()).unwrap();
    }

    fn raise(&self, trims: &[Trim]) {
        let rose = self.rocks.raise_floors(trims).unwrap();
        assert_eq!(rose, self.model.raise_floors(trims).unwrap(), "{trims:?}");
    }

    fn settle(&self) {
        self.rocks.floors_published();
        self.model.floors_published();
        self.rocks.settle().unwrap();
    }

    fn reopen(&mut self) {
        self.rocks.close().unwrap();
        let options = options(&self.dir);
        // The lock goes with the store.
        self.rocks = RocksStore::open(Options { dir: tempfile::tempdir().unwrap().path().into(), ..options }).unwrap();
        self.rocks = open(&self.dir);
        self.opened();
    }

    /// After a start: floors that were not published are known to all, and keys that were forgotten may be back.
    fn opened(&mut self) {
        self.model.floors_published();
        let left = self.model.keys_remembered();
        assert!(self.rocks.keys_remembered() >= left);
        self.rocks.forget_keys(0, left);
    }

    fn crash(&mut self) {
        self.dir = crash_copy(self.dir.path());
        self.rocks = open(&self.dir);
        self.opened();
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Append(skip, drafts, key) => {
                self.next += skip;
                self.append_remembered(drafts.clone(), *key);
            }
            Op::NearBoundary(by) => {
                let end = self.next.next_multiple_of(SEGMENT);
                self.next = self.next.max(end.saturating_add_signed(i64::from(*by)));
            }
            Op::Run(n, one_in) => {
                let draft = |n: u32| Draft {
                    topic: if n.is_multiple_of(u32::from(*one_in)) { (n % 7) as u8 } else { 0 },
                    kind: (n % 3) as u8,
                    key: 0,
                    bytes: 2,
                    times: 1,
                    later: if n.is_multiple_of(200) { 10 } else { 0 },
                };
                self.append((0..*n).map(draft));
            }
            Op::Trim(trims, done) => {
                let upto = |at: &Index| at.index(usize::try_from(self.next + 5).unwrap()) as EventId;
                let name = |t: &u8| topic(TOPICS[usize::from(*t)]);
                let trims: Vec<_> =
                    trims.iter().map(|(t, at)| Trim { topic: t.as_ref().map(name), upto: upto(at) }).collect();
                self.raise(&trims);
                if *done {
                    self.settle();
                }
            }
            Op::Publish => {
                self.rocks.floors_published();
                self.model.floors_published();
            }
            Op::Settle => self.rocks.settle().unwrap(),
            Op::Tidy => self.rocks.tidy().unwrap(),
            Op::Retain(t, limits) => {
                let topic = topic(TOPICS[usize::from(*t)]);
                self.rocks.set_retention(&topic, *limits).unwrap();
                self.model.set_retention(&topic, *limits).unwrap();
            }
            Op::Reopen => self.reopen(),
            Op::Crash => self.crash(),
            Op::Enforce(log, topics) => self.enforce(*log, *topics),
            Op::Close(t) => {
                let name = topic(TOPICS[usize::from(*t)]);
                let (mine, theirs) = (self.rocks.close_topic(&name).unwrap(), self.model.close_topic(&name).unwrap());
                self.compare_last(Some(mine), Some(theirs));
            }
            Op::Delete(t, done) => {
                let name = topic(TOPICS[usize::from(*t)]);
                let told = self.rocks.floors_told();
                assert_eq!(self.rocks.delete_topic(&name).unwrap(), self.model.delete_topic(&name).unwrap());
                if *done {
                    self.settle();
                    assert!(self.rocks.floors_told() > told, "what was read before is not given to who asks after");
                }
            }
            Op::Snapshot(t, at, bytes) => {
                let name = topic(TOPICS[usize::from(*t)]);
                let snapshot = Snapshot {
                    at: at.index(usize::try_from(self.model.tail() + 1).unwrap()) as EventId,
                    content_type: TYPES[usize::from(bytes % 3)].into(),
                    body: char::from(*bytes).to_string().repeat(usize::from(*bytes) * 300),
                };
                self.rocks.put_snapshot(&name, &snapshot).unwrap();
                self.model.put_snapshot(&name, &snapshot).unwrap();
            }
            Op::Forget(age, most) => {
                let before = self.time.saturating_sub(*age);
                assert_eq!(self.rocks.forget_keys(before, *most), self.model.forget_keys(before, *most));
            }
            Op::OpenAgain => {
                self.rocks.reopen().unwrap();
                self.model.reopen().unwrap();
                // Floors that nobody was told of are still to be published; the counts leave out already what lies below them.
                self.settle();
            }
        }
    }

    /// Of events that the log's floor has reached, nothing may be known any more after a start.
    fn compare_last(&self, mine: Option<EventId>, theirs: Option<EventId>) {
        if mine != theirs {
            let (mine, theirs) = mine.zip(theirs).expect("both are closed, or neither");
            assert!(mine < theirs && theirs <= self.model.log_floor(), "closed at {mine}, it was at {theirs}");
        }
    }

    /// Compares what is kept beside the log.
    fn compare_kept(&self, filters: &[Filter]) {
        let (rocks, model): (&dyn Store, &dyn Store) = (&self.rocks, &self.model);
        for filter in filters {
            assert_eq!(state(rocks, filter), state(model, filter), "state of {filter:?}");
            let mut left = 2;
            let as_of = rocks.state(filter, &mut |_| {
                left -= 1;
                if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            assert_eq!(as_of.unwrap(), model.tail());
        }
        for name in TOPICS {
            self.compare_last(rocks.closed_at(name), model.closed_at(name));
            assert_eq!(rocks.snapshot_at(name), model.snapshot_at(name), "{name}");
            assert_eq!(rocks.snapshot(name).unwrap(), model.snapshot(name).unwrap(), "{name}");
        }
        assert_eq!(rocks.keys_remembered(), model.keys_remembered());
        for key in 0..10 {
            assert_eq!(rocks.remembered(digest(key)).unwrap(), model.remembered(digest(key)).unwrap(), "{key}");
        }
    }

    /// What the real store trims is what the model does, but for the slack: it begins to trim at a twentieth over a limit.
    fn enforce(&self, log: Limits, topics: Limits) {
        self.settle();
        let policy = Policy { log, topics: vec![(Pattern::parse("a.**").unwrap(), topics)] };
        let (due, exact) =
            (self.rocks.due_trims(&policy, self.time).unwrap(), self.model.due_trims(&policy, self.time).unwrap());
        for name in [None].into_iter().chain(TOPICS.iter().map(|t| Some(topic(t)))) {
            let upto = |trims: &[Trim]| trims.iter().find(|t| t.topic == name).map_or(0, |t| t.upto);
            let (due, exact) = (upto(&due), upto(&exact));
            let filter = name.as_ref().map_or_else(Filter::all, |t| filter(&[t.as_str()], &[]));
            let all = read(&self.model, &filter, 0, self.model.tail());
            let too_many = all.iter().find(|e| exact < e.id && e.id <= due);
            assert_eq!(too_many, None, "{name:?}: {due} is trimmed, {exact} is owed");
            let limits = match &name {
                None => policy.log,
                Some(t) => self.model.retention_of(t.as_str()).unwrap_or_else(|| policy.for_topic(t.as_str())),
            };
            let left: Vec<_> = all.iter().filter(|e| e.id > due).collect();
            let over = |n: u64, max: u64| max > 0 && n > max + max / 20;
            let bytes = left.iter().map(|e| stored(e)).sum();
            let limit_of_age = limits.max_age + limits.max_age / 20;
            let oldest = left.first().map_or(Millis::MAX, |e| e.time);
            assert!(!over(left.len() as u64, limits.max_events), "{name:?}: {} events for {limits:?}", left.len());
            assert!(!over(bytes, limits.max_bytes), "{name:?}: {bytes} bytes for {limits:?}");
            let covered =
                name.as_ref().filter(|_| limits.trim_to_snapshot).and_then(|t| self.model.snapshot_at(t.as_str()));
            let first = left.first().map_or(EventId::MAX, |e| e.id);
            assert!(first > covered.unwrap_or(0), "{name:?}: {first} is there though a snapshot has it: {covered:?}");
            assert!(
                limits.max_age == 0 || oldest >= self.time.saturating_sub(limit_of_age),
                "{name:?}: {oldest} for {limits:?}"
            );
        }
        self.raise(&due);
        self.settle();
    }

    /// Compares what some of `all` give, from and up to these places.
    fn compare<const N: usize>(&mut self, all: &[Filter], places: &[Index; 3], chosen: &[Index; N]) {
        let mut at = places.map(|p| p.index(usize::try_from(self.model.tail() + 1).unwrap()) as EventId);
        at.sort_unstable();
        let chosen = chosen.map(|c| all[c.index(all.len())].clone());
        self.compare_reads(&chosen, at);
        self.compare_kept(&chosen);
    }

    /// Compares what holds at any time.
    fn compare_reads(&self, filters: &[Filter], at: [EventId; 3]) {
        let (rocks, model): (&dyn Store, &dyn Store) = (&self.rocks, &self.model);
        assert_eq!(rocks.tail(), model.tail());
        assert_eq!(rocks.last_time(), model.last_time());
        assert_eq!(rocks.log_floor(), model.log_floor());
        let tail = model.tail();
        let [low, middle, high] = at;
        for filter in filters {
            let floor = rocks.floor(filter);
            assert_eq!(floor, model.floor(filter), "floor of {filter:?}");
            let all = read(model, filter, 0, tail);
            let within =
                |after, upto| all.iter().filter(move |e| after < e.id && e.id <= upto).cloned().collect::<Vec<_>>();
            assert_eq!(read(rocks, filter, 0, tail), all, "{filter:?}");
            for (after, upto) in
                [(low, high), (low, middle), (middle, high), (middle, (middle + 100).min(tail)), (high, tail)]
            {
                assert_eq!(read(rocks, filter, after, upto), within(after, upto), "{filter:?} within {after}..={upto}");
            }
            self.compare_break(filter, &all, low, tail);
            for n in [0, 1, 2, 7, 1000] {
                for upto in [high, tail] {
                    let (mine, theirs) =
                        (rocks.before_last(filter, n, upto).unwrap(), model.before_last(filter, n, upto).unwrap());
                    assert_eq!(mine, theirs, "the last {n} up to {upto} of {filter:?}");
                }
            }
        }
    }

    /// A reader that breaks after `n` events is told where it stands, and goes on from there.
    fn compare_break(&self, filter: &Filter, all: &[Event], after: EventId, tail: EventId) {
        let rest: Vec<_> = all.iter().filter(|e| e.id > after).cloned().collect();
        let n = rest.len() / 2;
        let (mut seen, mut at) = (0, after);
        while seen < n {
            at = self
                .rocks
                .scan(Scan { filter, after: at, upto: tail }, &mut |event| {
                    assert_eq!(event.id, rest[seen].id);
                    seen += 1;
                    if seen == n { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })
                .unwrap();
        }
        assert!(n == 0 || at == rest[n - 1].id, "it broke at event {}, and is said to be at {at}", rest[n - 1].id);
        assert_eq!(read(&self.rocks, filter, at, tail), rest[n..], "{filter:?} after a break at {at}");
    }

    /// Compares what holds when floors are published and settled.
    fn compare_settled(&self) {
        let (rocks, model): (&dyn Store, &dyn Store) = (&self.rocks, &self.model);
        assert_eq!(rocks.earliest(), model.earliest());
        for name in TOPICS {
            assert_eq!(rocks.last_of(name), model.last_of(name), "{name}");
            assert_eq!(rocks.retention_of(name), model.retention_of(name), "{name}");
            assert!(rocks.last_of(name) == 0 || rocks.has_topic(name), "{name}");
        }
        let all = model.topics("", None, usize::MAX).unwrap();
        assert_eq!(rocks.topics("", None, usize::MAX).unwrap(), all);
        assert!(rocks.topic_count() >= all.len() as u64);
        for (prefix, after, limit) in
            [("a", None, 2), ("a.", Some("a.b"), 9), ("", Some("a.b"), 2), ("b", Some("a"), 9), ("z", None, 9)]
        {
            assert_eq!(
                rocks.topics(prefix, after, limit).unwrap(),
                model.topics(prefix, after, limit).unwrap(),
                "{prefix:?} after {after:?}, {limit}"
            );
        }
        let events = read(model, &Filter::all(), 0, model.tail());
        for time in [0, 1000, self.time / 2, self.time - 10, self.time, self.time + 1] {
            let cursor = rocks.before_time(time).unwrap();
            assert!(rocks.log_floor() <= cursor && cursor <= rocks.tail());
            let wrong = events.iter().find(|e| (e.id > cursor) != (e.time >= time));
            assert_eq!(wrong, None, "{cursor} is not where {time} begins");
        }
    }
}

fn digest(key: u8) -> Digest {
    Digest([key; 16])
}

/// What an event counts.
fn stored(event: &Event) -> u64 {
    let name = |n: Option<&str>| n.map_or(0, |n| 1 + n.len());
    (22 + name(event.event.as_ref().map(EventType::as_str))
        + name(event.key.as_ref().map(Key::as_str))
        + event.data.len()) as u64
}

fn options(dir: &TempDir) -> Options {
    // Small, so that flushes and compactions run all the time.
    Options {
        durability: Durability::Sync,
        write_buffer_bytes: 64 << 10,
        cache_bytes: 1 << 20,
        ..Options::new(dir.path())
    }
}

fn open(dir: &TempDir) -> RocksStore {
    RocksStore::open(options(dir)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_is_the_models(
        ops in prop::collection::vec((op(), any::<[Index; 3]>()), 1..40),
        chosen in any::<[Index; 4]>(),
    ) {
        let all = filters();
        let mut pair = Pair::new();
        for (op, places) in &ops {
            pair.run(op);
            pair.compare(&all, places, &chosen);
        }
        pair.settle();
        pair.rocks.tidy().unwrap();
        let third = pair.model.tail() / 3;
        pair.compare_reads(&all, [third, 2 * third, pair.model.tail()]);
        pair.compare_settled();
        pair.compare_kept(&all);
        pair.reopen();
        pair.compare_reads(&all, [third, 2 * third, pair.model.tail()]);
        pair.compare_settled();
        pair.compare_kept(&all);
    }
}

/// Whole segments, full to the last id: dense topics are looked through, rare ones sought, trims take a part or all of a segment,
/// which is rewritten, and everything is the same after a restart.
#[test]
fn full_segments_are_sealed_trimmed_and_rewritten() {
    let mut pair = Pair::new();
    // Some of each kind: all of them over 140,000 events would take a minute.
    let all: Vec<_> = filters().into_iter().step_by(4).collect();
    let fill = |pair: &mut Pair, bytes: usize| {
        for _ in 0..14 {
            // One in 500 is in a topic that is not the first; one in 3500 in each of the others.
            pair.append((0..10_000u32).map(|n| Draft {
                topic: if n % 500 == 7 { (n / 500 % 7) as u8 } else { (n % 2) as u8 },
                kind: u8::from(n % 97 == 0),
                key: 0,
                bytes,
                times: 1,
                later: u64::from(n % 1000 == 0),
            }));
        }
    };
    let places = |pair: &Pair| [SEGMENT - 30, SEGMENT + 30, pair.model.tail() - 40];
    fill(&mut pair, 60);
    for (step, trims) in [
        vec![],
        vec![Trim { topic: Some(topic("a")), upto: SEGMENT / 2 }],
        vec![Trim { topic: Some(topic("a")), upto: 2 * SEGMENT + 10 }],
        vec![Trim { topic: Some(topic("a.b")), upto: SEGMENT + 5 }, Trim { topic: None, upto: 1000 }],
        vec![Trim { topic: None, upto: SEGMENT - 1 }],
        vec![Trim { topic: None, upto: SEGMENT + SEGMENT / 2 }],
        vec![Trim { topic: None, upto: EventId::MAX }],
    ]
    .into_iter()
    .enumerate()
    {
        pair.raise(&trims);
        pair.settle();
        pair.rocks.tidy().unwrap();
        pair.compare_reads(&all, places(&pair));
        pair.compare_settled();
        if step % 2 == 0 {
            pair.reopen();
        } else {
            pair.crash();
        }
        pair.compare_reads(&all, places(&pair));
        pair.compare_settled();
    }
    fill(&mut pair, 2);
    pair.rocks.tidy().unwrap();
    pair.compare_reads(&all, [2 * SEGMENT, 3 * SEGMENT, 4 * SEGMENT]);
    pair.compare_settled();
}

/// Wildcards over more topics than are looked up one by one, in open and in sealed segments, dense and rare.
#[test]
fn wildcards_over_many_topics() {
    let dir = tempfile::tempdir().unwrap();
    let (rocks, model) = (open(&dir), ModelStore::default());
    let name = |id: u64| match id % 400 {
        0 => format!("rare.{}.x", id / 400 % 40),
        n if n % 2 == 1 => format!("some.{}.y", n % 90),
        _ => "dense".into(),
    };
    let both = |first: u64, n: u64| {
        let events: Vec<_> = (first..first + n).map(|id| crate::support::event(id, id, &name(id), "x")).collect();
        rocks.append(&events).unwrap();
        model.append(&events).unwrap();
    };
    for first in (1..150_000).step_by(10_000) {
        both(first, 10_000);
    }
    let patterns = ["rare.**", "*.*.x", "*.*.y", "some.*.*", "*.3.*", "*.**", "none.**"];
    let compare = |what: &str| {
        for pattern in patterns {
            let filter = filter(&[pattern], &[]);
            assert_eq!(rocks.floor(&filter), model.floor(&filter), "{what}: {pattern}");
            let all = read(&model, &filter, 0, model.tail());
            assert_eq!(read(&rocks, &filter, 0, rocks.tail()), all, "{what}: {pattern}");
            for n in [1, 100, 20_000] {
                let (mine, theirs) = (rocks.before_last(&filter, n, 140_000), model.before_last(&filter, n, 140_000));
                assert_eq!(mine.unwrap(), theirs.unwrap(), "{what}: {pattern}, last {n}");
            }
        }
    };
    compare("open");
    rocks.tidy().unwrap();
    compare("sealed");
    for store in [&rocks as &dyn Store, &model] {
        crate::support::trim(
            store,
            &[crate::support::topic_trim("rare.3.x", 70_000), crate::support::topic_trim("some.3.y", 90_000)],
        );
    }
    compare("trimmed");
    both(160_001, 3);
    let news = [
        crate::support::event(160_010, 160_010, "rare.new.x", "x"),
        crate::support::event(160_011, 160_010, "new.3.z", "x"),
    ];
    rocks.append(&news).unwrap();
    model.append(&news).unwrap();
    compare("with new topics");
}
