//! The one writer: gives ids and times, gathers what waits into one batch, and answers when it is durable.
//!
//! [`Sequencer`] is a state machine without I/O; `local` drives it over a store on a thread of its own. What holds: ids are
//! consecutive and begin past the tail; times never decrease; a publish is wholly in one batch; what a publish depends on is judged
//! in the order of the log, and nothing is answered, not even a refusal, before all that it rests on was settled. Must not know HTTP,
//! or who subscribes.

pub mod local;

use std::collections::{HashMap, VecDeque};

use crate::event::{Digest, EVENT_ID_MAX, Event, EventId, Millis, NewEvent};
use crate::store::{Remembered, Store, StoreError};
use crate::topic::Topic;

/// Most events that gather into one commit, beyond those of a single publish: at some 2 µs each a commit stays below 20 ms.
pub const COMMIT_EVENTS_MAX: usize = 8192;

/// Most bytes of data that gather into one commit, beyond those of a single publish.
pub const COMMIT_BYTES_MAX: usize = 4 << 20;

/// The ids that a publish was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub first: EventId,
    pub last: EventId,
}

/// Makes a publish safe to repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The key, as the publisher named it.
    pub key: Digest,
    /// All else that makes two requests the same.
    pub request: Digest,
}

/// What a publish depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Terms {
    /// Only where the newest retained event of its topic has this id; 0: where it holds none. The topic is that of its first event.
    pub last: Option<EventId>,
    pub key: Option<IdempotencyKey>,
}

/// What became of a publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Appended(Appended),
    /// It had been appended before, under these ids.
    Replayed(Appended),
    /// Something else was published under its key.
    Conflict,
    /// This topic was closed.
    Closed(Topic),
    /// The newest retained event of its topic has this id.
    Unmet {
        last: EventId,
    },
}

/// What is committed at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Commit {
    /// None, where all that gathered was refused or had been appended before.
    pub events: Vec<Event>,
    pub remembered: Vec<Remembered>,
}

#[derive(Debug)]
struct Publish<T> {
    ticket: T,
    events: Vec<NewEvent>,
    terms: Terms,
}

/// The answers of a batch, each with the ticket that it is for.
type Answers<T> = Vec<(T, Result<Outcome, StoreError>)>;

/// The state of the writer. `T` is how a publish is answered.
#[derive(Debug)]
pub struct Sequencer<T> {
    tail: EventId,
    last_time: Millis,
    /// Milliseconds for which a publish is remembered under its key.
    window: Millis,
    queue: VecDeque<Publish<T>>,
    in_flight: Answers<T>,
    /// Events in the queue.
    waiting: usize,
}

impl<T> Sequencer<T> {
    /// A writer for a log that ends at `tail`, whose newest event is of `last_time`. Publishes are remembered under their keys for
    /// `window` milliseconds.
    #[must_use]
    pub fn new(tail: EventId, last_time: Millis, window: Millis) -> Self {
        Self { tail, last_time, window, queue: VecDeque::new(), in_flight: Vec::new(), waiting: 0 }
    }

    /// Takes in a publish. One without events is answered with the tail and writes nothing.
    pub fn submit(&mut self, ticket: T, events: Vec<NewEvent>, terms: Terms) {
        self.waiting += events.len();
        self.queue.push_back(Publish { ticket, events, terms });
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// How many events wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The next batch to commit: as much as gathers within the bounds, under the next ids. `None` when nothing waits. It must be
    /// settled before the next one is asked for. `store` is asked what publishes depend on; it holds all that was settled.
    pub fn next(&mut self, now: Millis, store: &dyn Store) -> Option<Commit> {
        debug_assert!(self.in_flight.is_empty(), "one batch at a time");
        self.queue.front()?;
        let time = self.last_time.max(now);
        let mut batch = Batch::default();
        let (mut bytes, mut id) = (0, self.tail);
        while let Some(Publish { events, .. }) = self.queue.front() {
            let more: usize = events.iter().map(|e| e.data.len()).sum();
            let full = batch.events.len() + events.len() > COMMIT_EVENTS_MAX || bytes + more > COMMIT_BYTES_MAX;
            if full && !batch.events.is_empty() {
                break;
            }
            let Some(Publish { ticket, events, terms }) = self.queue.pop_front() else { break };
            self.waiting -= events.len();
            match batch.refuses(&events, terms, store, now.saturating_sub(self.window)) {
                Ok(None) => {}
                Ok(Some(outcome)) => {
                    self.in_flight.push((ticket, Ok(outcome)));
                    continue;
                }
                Err(error) => {
                    self.in_flight.push((ticket, Err(error)));
                    continue;
                }
            }
            bytes += more;
            let first = id + 1;
            for event in events {
                id += 1;
                assert!(id <= EVENT_ID_MAX, "2^53 ids last for 285 years at a million a second");
                batch.events.push(Event::new(id, time, event));
            }
            if let Some(IdempotencyKey { key, request }) = terms.key.filter(|_| id >= first) {
                batch.keys.insert(key, Remembered { key, request, first, last: id, time });
                batch.order.push(key);
            }
            self.in_flight.push((ticket, Ok(Outcome::Appended(Appended { first, last: id }))));
        }
        Some(batch.into_commit())
    }

    /// The batch is durable: the tail moves. Gives the answers.
    pub fn settled(&mut self, events: &[Event]) -> Answers<T> {
        if let Some(newest) = events.last() {
            self.tail = newest.id;
            self.last_time = newest.time;
        }
        std::mem::take(&mut self.in_flight)
    }

    /// The batch failed, and so does all that waits. Gives whom to tell; those of the batch first. Ask [`Sequencer::resume`] before
    /// the next one: what of the batch is in the log after all is not known.
    pub fn failed(&mut self) -> Vec<T> {
        self.waiting = 0;
        let in_flight = std::mem::take(&mut self.in_flight).into_iter().map(|(ticket, _)| ticket);
        in_flight.chain(std::mem::take(&mut self.queue).into_iter().map(|publish| publish.ticket)).collect()
    }

    /// Goes on where the log was found to end.
    pub fn resume(&mut self, tail: EventId, last_time: Millis) {
        self.tail = self.tail.max(tail);
        self.last_time = self.last_time.max(last_time);
    }

    /// The largest id given to a durable event.
    #[must_use]
    pub fn tail(&self) -> EventId {
        self.tail
    }
}

/// What gathers.
#[derive(Default)]
struct Batch {
    events: Vec<Event>,
    keys: HashMap<Digest, Remembered>,
    /// The keys, in the order of their publishes.
    order: Vec<Digest>,
}

impl Batch {
    /// Why `events` are not appended after what is in the store and in this batch, if they are not. Publishes of before `forgotten`
    /// are remembered no more.
    fn refuses(
        &self,
        events: &[NewEvent],
        terms: Terms,
        store: &dyn Store,
        forgotten: Millis,
    ) -> Result<Option<Outcome>, StoreError> {
        if let Some(IdempotencyKey { key, request }) = terms.key {
            let before = match self.keys.get(&key) {
                Some(before) => Some(*before),
                None => store.remembered(key)?.filter(|before| before.time >= forgotten),
            };
            if let Some(Remembered { request: before, first, last, .. }) = before {
                let replayed = Outcome::Replayed(Appended { first, last });
                return Ok(Some(if before == request { replayed } else { Outcome::Conflict }));
            }
        }
        let mut judged: Option<&Topic> = None;
        for NewEvent { topic, .. } in events {
            // Most batches are to one topic, and the next event's is the same.
            if judged != Some(topic) && store.closed_at(topic.as_str()).is_some() {
                return Ok(Some(Outcome::Closed(topic.clone())));
            }
            judged = Some(topic);
        }
        let Some((wanted, first)) = terms.last.zip(events.first()) else { return Ok(None) };
        let newest = self.events.iter().rev().find(|e| e.topic == first.topic).map(|e| e.id);
        let last = newest.unwrap_or_else(|| store.last_of(first.topic.as_str()));
        Ok((last != wanted).then_some(Outcome::Unmet { last }))
    }

    fn into_commit(self) -> Commit {
        let Self { events, keys, order, .. } = self;
        let remembered = order.iter().filter_map(|key| keys.get(key).copied()).collect();
        Commit { events, remembered }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventType;
    use crate::store::model::ModelStore;

    fn event(data: &str) -> NewEvent {
        on("t", data)
    }

    fn on(topic: &str, data: &str) -> NewEvent {
        NewEvent {
            topic: Topic::parse(topic).unwrap(),
            event: EventType::parse("").unwrap(),
            key: None,
            data: data.into(),
        }
    }

    fn key(key: u8, request: u8) -> Terms {
        let key = IdempotencyKey { key: Digest([key; 16]), request: Digest([request; 16]) };
        Terms { key: Some(key), ..Terms::default() }
    }

    fn after(last: EventId) -> Terms {
        Terms { last: Some(last), ..Terms::default() }
    }

    fn appended(first: EventId, last: EventId) -> Outcome {
        Outcome::Appended(Appended { first, last })
    }

    /// Commits what waits, batch by batch, and gives the answers.
    fn commit_all<T>(s: &mut Sequencer<T>, store: &ModelStore, now: Millis) -> Vec<(T, Outcome)> {
        let mut answers = Vec::new();
        while let Some(Commit { events, remembered }) = s.next(now, store) {
            store.commit(&events, &remembered).unwrap();
            answers.extend(s.settled(&events).into_iter().map(|(ticket, outcome)| (ticket, outcome.unwrap())));
        }
        answers
    }

    #[test]
    fn what_waits_gathers_into_one_batch_of_consecutive_ids() {
        let store = ModelStore::default();
        let mut s = Sequencer::new(7, 100, 0);
        s.submit("a", vec![event("1"), event("2")], Terms::default());
        s.submit("b", vec![event("3")], Terms::default());
        let batch = s.next(50, &store).unwrap().events;
        assert_eq!(batch.iter().map(|e| e.id).collect::<Vec<_>>(), [8, 9, 10]);
        assert!(batch.iter().all(|e| e.time == 100), "time never decreases");
        assert_eq!(s.tail(), 7, "nothing counts before it is durable");
        let answers: Vec<_> = s.settled(&batch).into_iter().map(|(t, o)| (t, o.unwrap())).collect();
        assert_eq!(answers, [("a", appended(8, 9)), ("b", appended(10, 10))]);
        assert!(s.next(200, &store).is_none());
    }

    #[test]
    fn a_batch_is_bounded_but_a_publish_is_never_split() {
        let store = ModelStore::default();
        let mut s = Sequencer::new(0, 0, 0);
        s.submit(1, vec![event("x"); COMMIT_EVENTS_MAX + 5], Terms::default());
        s.submit(2, vec![event("x")], Terms::default());
        let batch = s.next(0, &store).unwrap().events;
        assert_eq!(batch.len(), COMMIT_EVENTS_MAX + 5);
        s.settled(&batch);
        let batch = s.next(0, &store).unwrap().events;
        assert_eq!(batch.len(), 1);
        let last = COMMIT_EVENTS_MAX as u64 + 6;
        assert_eq!(s.settled(&batch).remove(0).1.unwrap(), appended(last, last));
    }

    #[test]
    fn a_failure_is_told_to_all_that_wait() {
        let store = ModelStore::default();
        let mut s = Sequencer::new(3, 0, 0);
        s.submit(1, vec![event("x")], key(1, 1));
        let _ = s.next(0, &store);
        s.submit(2, vec![event("y")], Terms::default());
        assert_eq!(s.failed(), [1, 2]);
        assert!(s.is_idle());
        s.resume(4, 9);
        s.submit(3, vec![event("z")], key(1, 1));
        let batch = s.next(0, &store).unwrap();
        assert_eq!((batch.events[0].id, batch.events[0].time), (5, 9), "what failed is not remembered");
    }

    #[test]
    fn a_repetition_is_given_the_first_answer_be_it_in_one_batch_or_later() {
        let store = ModelStore::default();
        let mut s = Sequencer::new(0, 0, 1000);
        s.submit("first", vec![event("1"), event("2")], key(1, 1));
        s.submit("races", vec![event("1"), event("2")], key(1, 1));
        s.submit("other", vec![event("3")], key(1, 2));
        s.submit("plain", vec![event("4")], Terms::default());
        let replayed = || Outcome::Replayed(Appended { first: 1, last: 2 });
        let answers = commit_all(&mut s, &store, 10);
        let told =
            [("first", appended(1, 2)), ("races", replayed()), ("other", Outcome::Conflict), ("plain", appended(3, 3))];
        assert_eq!(answers, told);
        s.submit("later", vec![event("1"), event("2")], key(1, 1));
        s.submit("other", vec![event("1")], key(1, 3));
        assert_eq!(commit_all(&mut s, &store, 1010), [("later", replayed()), ("other", Outcome::Conflict)]);
        s.submit("too late", vec![event("1"), event("2")], key(1, 1));
        assert_eq!(commit_all(&mut s, &store, 1011), [("too late", appended(4, 5))]);
        s.submit("again", vec![event("1"), event("2")], key(1, 1));
        assert_eq!(commit_all(&mut s, &store, 1012), [("again", Outcome::Replayed(Appended { first: 4, last: 5 }))]);
    }

    #[test]
    fn of_many_with_the_same_condition_one_wins() {
        let store = ModelStore::default();
        let mut s = Sequencer::new(0, 0, 0);
        for n in 0..100 {
            s.submit(n, vec![on("a", "x"), on("a", "y")], after(0));
        }
        s.submit(100, vec![on("b", "x")], after(0));
        s.submit(101, vec![on("a", "z")], after(2));
        let answers = commit_all(&mut s, &store, 0);
        assert_eq!(answers[0], (0, appended(1, 2)));
        assert!(answers[1..100].iter().all(|(_, o)| *o == Outcome::Unmet { last: 2 }), "{answers:?}");
        assert_eq!(answers[100..], [(100, appended(3, 3)), (101, appended(4, 4))]);
        s.submit(0, vec![on("a", "x")], after(2));
        assert_eq!(commit_all(&mut s, &store, 0), [(0, Outcome::Unmet { last: 4 })]);
    }

    #[test]
    fn what_rests_on_a_batch_is_answered_with_it() {
        let store = ModelStore::default();
        let mut s = Sequencer::new(0, 0, 1000);
        s.submit("a", vec![event("1")], key(1, 1));
        s.submit("again", vec![event("1")], key(1, 1));
        s.submit("unmet", vec![event("2")], after(0));
        let batch = s.next(0, &store).unwrap();
        assert_eq!((batch.events.len(), batch.remembered.len()), (1, 1));
        assert_eq!(s.failed(), ["a", "again", "unmet"], "nobody is told of what a batch may not have done");
    }

    #[test]
    fn a_closed_topic_takes_nothing_but_the_repetition_of_what_it_took() {
        let store = ModelStore::default();
        let mut s = Sequencer::new(0, 0, 1000);
        s.submit("before", vec![on("a", "1")], key(1, 1));
        commit_all(&mut s, &store, 0);
        store.close_topic(&Topic::parse("a").unwrap()).unwrap();
        s.submit("again", vec![on("a", "1")], Terms { last: Some(7), ..key(1, 1) });
        s.submit("new", vec![on("b", "1"), on("a", "2")], after(9));
        let closed = Outcome::Closed(Topic::parse("a").unwrap());
        let replayed = Outcome::Replayed(Appended { first: 1, last: 1 });
        assert_eq!(commit_all(&mut s, &store, 0), [("again", replayed), ("new", closed)]);
        assert_eq!(s.tail(), 1);
    }
}
