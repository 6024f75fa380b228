//! The ring itself: the newest batches, one after the other, what they count, and where each topic's lie.
//!
//! What holds: the batches follow each other without a hole, and cover every event after [`Ring::after`]. Each has a number, one more than
//! the one before it, for as long as it is here; what is left of a trimmed one keeps its number. What is listed by topic is here. Must not
//! know subscribers.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::Batch;
use super::listed::{BatchNumber, ByTopic};
use super::search;
use crate::event::{Event, EventId};
use crate::sse::Floor;
use crate::topic::{Filter, Topic};

/// What a batch costs in memory beside its events, also one of which a trim left nothing: else as many as are trimmed would stay.
pub const BATCH_BYTES: usize = size_of::<Batch>() + 32;

/// A batch, and what it counts of the ring's bytes.
struct Held {
    batch: Arc<Batch>,
    bytes: usize,
}

impl From<Batch> for Held {
    fn from(batch: Batch) -> Self {
        Self { bytes: BATCH_BYTES + batch.bytes(), batch: Arc::new(batch) }
    }
}

/// The newest batches.
pub struct Ring {
    held: VecDeque<Held>,
    /// The number of the first of them.
    begin: BatchNumber,
    after: EventId,
    bytes: usize,
    bytes_max: usize,
    by_topic: Option<ByTopic>,
}

impl Ring {
    pub fn new(after: EventId, bytes_max: usize) -> Self {
        Self { held: VecDeque::new(), begin: 0, after, bytes: 0, bytes_max, by_topic: None }
    }

    /// It holds every event after this id.
    pub fn after(&self) -> EventId {
        self.after
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The number of the first batch; that of the next one that comes, where there is none.
    pub fn begin(&self) -> BatchNumber {
        self.begin
    }

    /// The number of the next batch that comes.
    pub fn end(&self) -> BatchNumber {
        self.begin + self.held.len() as u64
    }

    /// The batch of this number, if it is here.
    pub fn get(&self, number: BatchNumber) -> Option<&Arc<Batch>> {
        let at = number.checked_sub(self.begin).and_then(|at| usize::try_from(at).ok())?;
        self.held.get(at).map(|held| &held.batch)
    }

    /// The number of the first batch that has something beyond `cursor`; [`Ring::end`] where none has.
    pub fn beyond(&self, cursor: EventId) -> BatchNumber {
        self.begin + search::first(self.held.len(), |at| self.held[at].batch.last() > cursor) as u64
    }

    /// Takes in the next batch. What is too much goes with [`Ring::evict`].
    pub fn push(&mut self, batch: Batch) {
        let number = self.end();
        let held = Held::from(batch);
        self.bytes += held.bytes;
        if let Some(by_topic) = &mut self.by_topic {
            by_topic.push(number, &held.batch);
        }
        self.held.push_back(held);
        while let Some(first) = self.by_topic.as_ref().filter(|list| list.is_full()).map(ByTopic::begin) {
            self.unlist(first);
        }
    }

    /// What has something for a filter, from a number on; `None` where that is not listed, or the filter is not for some topics as a whole.
    pub fn listed(&self, filter: &Filter, begin: BatchNumber) -> Option<impl Iterator<Item = BatchNumber>> {
        let by_topic = self.by_topic.as_ref().filter(|list| list.begin() <= begin && is_by_topic(filter))?;
        Some(by_topic.numbers(filter, begin))
    }

    /// Lists batches by their topics: going back from the newest or from where the list begins, no farther than to `begin`, and about so many
    /// topics of batches. False where there is no room for any.
    pub fn list(&mut self, begin: BatchNumber, most: usize) -> bool {
        let end = self.end();
        let mut by_topic = self.by_topic.take().unwrap_or_else(|| ByTopic::new(end));
        let (was, mut left) = (by_topic.begin(), most);
        while left > 0 && by_topic.begin() > begin && !by_topic.is_full() {
            let Some(batch) = self.get(by_topic.begin() - 1) else { break };
            by_topic.looked_back(batch);
            left = left.saturating_sub(batch.topics().len().max(1));
        }
        let is_longer = by_topic.begin() < was;
        self.by_topic = Some(by_topic);
        is_longer
    }

    /// Takes the batch of this number from the list, if it is the first there.
    fn unlist(&mut self, number: BatchNumber) {
        let Some(mut by_topic) = self.by_topic.take_if(|list| list.begin() == number) else { return };
        if let Some(batch) = self.get(number) {
            by_topic.forget_first(batch);
        }
        self.by_topic = Some(by_topic);
    }

    /// Lets the oldest batches go until the bytes are what they may be.
    pub fn evict(&mut self) {
        while self.bytes > self.bytes_max && self.pop().is_some() {}
    }

    fn pop(&mut self) -> Option<Arc<Batch>> {
        self.unlist(self.begin);
        let oldest = self.held.pop_front()?;
        self.begin += 1;
        self.after = oldest.batch.last();
        self.bytes -= oldest.bytes;
        Some(oldest.batch)
    }

    /// Counts bytes that a batch has grown by, as it was encoded in another form; one that has left the ring meanwhile, or was
    /// replaced in it by what a trim left, counts no more.
    pub fn grown(&mut self, batch: &Batch, bytes: usize) {
        let at = self.held.partition_point(|held| held.batch.after() < batch.after());
        if let Some(held) = self.held.get_mut(at)
            && std::ptr::eq(&raw const *held.batch, batch)
        {
            held.bytes += bytes;
            self.bytes += bytes;
            self.evict();
        }
    }

    /// Forgets all that it holds; it goes on after `tail`.
    pub fn forget(&mut self, tail: EventId) {
        self.begin = self.end();
        self.held.clear();
        self.by_topic = None;
        self.bytes = 0;
        self.after = tail;
    }

    /// Forgets what lies up to `floor`.
    pub fn trim(&mut self, floor: EventId) {
        while self.held.front().is_some_and(|held| held.batch.after() < floor)
            && let Some(oldest) = self.pop()
        {
            if self.after > floor {
                let left = oldest.without(|event| event.id <= floor);
                self.begin -= 1;
                self.after = left.after();
                let left = Held::from(left);
                self.bytes += left.bytes;
                self.held.push_front(left);
                return;
            }
        }
    }

    /// Forgets what lies of these topics up to their floors.
    pub fn trim_topics(&mut self, floors: &HashMap<Topic, Floor>) {
        let highest = floors.values().map(|f| f.id).max().unwrap_or(0);
        let gone = |event: &Event| floors.get(&event.topic).is_some_and(|floor| event.id <= floor.id);
        for (number, held) in (self.begin..).zip(&mut self.held) {
            if held.batch.after() >= highest {
                break;
            }
            let concerned = |t: &Topic| floors.get(t).is_some_and(|floor| held.batch.after() < floor.id);
            if held.batch.topics().iter().any(concerned) && held.batch.events().iter().any(gone) {
                let left = Held::from(held.batch.without(gone));
                if let Some(by_topic) = self.by_topic.as_mut().filter(|list| list.begin() <= number) {
                    let is_left = |topic: &&Topic| left.batch.topics().binary_search(topic).is_ok();
                    held.batch
                        .topics()
                        .iter()
                        .filter(|topic| !is_left(topic))
                        .for_each(|topic| by_topic.remove(topic, number));
                }
                self.bytes = self.bytes - held.bytes + left.bytes;
                *held = left;
            }
        }
    }

    #[cfg(test)]
    pub fn by_topic(&self) -> Option<&ByTopic> {
        self.by_topic.as_ref()
    }
}

/// Whether the batches of its topics are those that a filter matches.
pub fn is_by_topic(filter: &Filter) -> bool {
    filter.is_literal() && filter.is_every_type()
}
