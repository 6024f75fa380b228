//! The one writer: gives ids and times, gathers what waits into one batch, and answers when it is durable.
//!
//! [`Sequencer`] is a state machine without I/O; `local` drives it over a store on a thread of its own. What holds: ids are
//! consecutive and begin past the tail; times never decrease; a publish is wholly in one batch; nothing is answered before it was
//! settled. Must not know HTTP, or who subscribes.

pub mod local;

use std::collections::VecDeque;

use crate::event::{EVENT_ID_MAX, Event, EventId, Millis, NewEvent};

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

/// The state of the writer. `T` is how a publish is answered.
#[derive(Debug)]
pub struct Sequencer<T> {
    tail: EventId,
    last_time: Millis,
    queue: VecDeque<(T, Vec<NewEvent>)>,
    in_flight: Vec<(T, Appended)>,
    /// Events in the queue.
    waiting: usize,
}

impl<T> Sequencer<T> {
    /// A writer for a log that ends at `tail`, whose newest event is of `last_time`.
    #[must_use]
    pub fn new(tail: EventId, last_time: Millis) -> Self {
        Self { tail, last_time, queue: VecDeque::new(), in_flight: Vec::new(), waiting: 0 }
    }

    /// Takes in a publish. One without events is answered with the tail and writes nothing.
    pub fn submit(&mut self, ticket: T, events: Vec<NewEvent>) {
        self.waiting += events.len();
        self.queue.push_back((ticket, events));
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
    /// settled before the next one is asked for.
    pub fn next(&mut self, now: Millis) -> Option<Vec<Event>> {
        debug_assert!(self.in_flight.is_empty(), "one batch at a time");
        self.queue.front()?;
        let time = self.last_time.max(now);
        let mut batch = Vec::new();
        let (mut bytes, mut id) = (0, self.tail);
        while let Some((_, events)) = self.queue.front() {
            let more: usize = events.iter().map(|e| e.data.len()).sum();
            let full = batch.len() + events.len() > COMMIT_EVENTS_MAX || bytes + more > COMMIT_BYTES_MAX;
            if full && !batch.is_empty() {
                break;
            }
            let Some((ticket, events)) = self.queue.pop_front() else { break };
            bytes += more;
            self.waiting -= events.len();
            let first = id + 1;
            for event in events {
                id += 1;
                assert!(id <= EVENT_ID_MAX, "2^53 ids last for 285 years at a million a second");
                batch.push(Event::new(id, time, event));
            }
            self.in_flight.push((ticket, Appended { first, last: id }));
        }
        Some(batch)
    }

    /// The batch is durable: the tail moves. Gives the answers.
    pub fn settled(&mut self, batch: &[Event]) -> Vec<(T, Appended)> {
        if let Some(newest) = batch.last() {
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
        in_flight.chain(std::mem::take(&mut self.queue).into_iter().map(|(ticket, _)| ticket)).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::Topic;

    fn event(data: &str) -> NewEvent {
        NewEvent { topic: Topic::parse("t").unwrap(), event: None, key: None, data: data.into() }
    }

    #[test]
    fn what_waits_gathers_into_one_batch_of_consecutive_ids() {
        let mut s = Sequencer::new(7, 100);
        s.submit("a", vec![event("1"), event("2")]);
        s.submit("b", vec![event("3")]);
        let batch = s.next(50).unwrap();
        assert_eq!(batch.iter().map(|e| e.id).collect::<Vec<_>>(), [8, 9, 10]);
        assert!(batch.iter().all(|e| e.time == 100), "time never decreases");
        assert_eq!(s.tail(), 7, "nothing counts before it is durable");
        let answers = s.settled(&batch);
        assert_eq!(answers, [("a", Appended { first: 8, last: 9 }), ("b", Appended { first: 10, last: 10 })]);
        assert!(s.next(200).is_none());
    }

    #[test]
    fn a_batch_is_bounded_but_a_publish_is_never_split() {
        let mut s = Sequencer::new(0, 0);
        s.submit(1, vec![event("x"); COMMIT_EVENTS_MAX + 5]);
        s.submit(2, vec![event("x")]);
        let batch = s.next(0).unwrap();
        assert_eq!(batch.len(), COMMIT_EVENTS_MAX + 5);
        s.settled(&batch);
        let batch = s.next(0).unwrap();
        assert_eq!(batch.len(), 1);
        assert_eq!(s.settled(&batch)[0].1.first, COMMIT_EVENTS_MAX as u64 + 6);
    }

    #[test]
    fn a_failure_is_told_to_all_that_wait() {
        let mut s = Sequencer::new(3, 0);
        s.submit(1, vec![event("x")]);
        let _ = s.next(0);
        s.submit(2, vec![event("y")]);
        assert_eq!(s.failed(), [1, 2]);
        assert!(s.is_idle());
        s.resume(4, 9);
        s.submit(3, vec![event("z")]);
        let batch = s.next(0).unwrap();
        assert_eq!((batch[0].id, batch[0].time), (5, 9));
    }
}
