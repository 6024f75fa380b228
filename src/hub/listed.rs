//! Which batches of the ring have something for whom, so that a reader whose events lie far apart need not look at all of others' in between.
//! Nothing is listed before a reader would have needed it, and then what it looked at is there for those that come after it.
//!
//! What holds: from some number on, every batch that matches is listed; what lies before was not looked at. Must not know the ring.

use std::collections::{HashMap, VecDeque};

use super::Batch;
use crate::topic::{Filter, Topic};

/// Tells one batch of the ring from another.
pub type BatchNumber = u64;

/// About how many batches the lists of all filters may have together, of 8 bytes each (their rooms up to four times that): half of a ring
/// of 64 MiB at the worst.
pub const LISTED_MAX: usize = 1 << 20;

/// About what the list by topic may have of memory: half of a ring of 64 MiB. It suffices for 200,000 topics with an event each.
const BY_TOPIC_BYTES_MAX: usize = 32 << 20;

/// What a topic costs there by its types' sizes, its first numbers included, and each number.
const TOPIC_BYTES: usize = 128;
const NUMBER_BYTES: usize = 8;

/// Numbers of batches, ascending. Their room follows them when they become fewer.
#[derive(Default)]
struct Numbers(VecDeque<BatchNumber>);

impl Numbers {
    fn remove(&mut self, at: usize) {
        self.0.remove(at);
        if self.0.capacity() > 4 * self.0.len() + 16 {
            self.0.shrink_to(2 * self.0.len());
        }
    }

    fn beyond(&self, begin: BatchNumber) -> impl Iterator<Item = BatchNumber> {
        self.0.range(self.0.partition_point(|&number| number < begin)..).copied()
    }
}

/// The batches that one filter matches.
pub struct Listed {
    begin: BatchNumber,
    /// What is listed may have been trimmed since, or have left the ring.
    numbers: Numbers,
}

impl Listed {
    /// Of the batches from `end` on, of which there is none yet.
    pub fn new(end: BatchNumber) -> Self {
        Self { begin: end, numbers: Numbers::default() }
    }

    pub fn len(&self) -> usize {
        self.numbers.0.len()
    }

    /// The number from which on all are listed.
    pub fn begin(&self) -> BatchNumber {
        self.begin
    }

    /// The batch before the first was looked at.
    pub fn looked_back(&mut self, matches: bool) {
        self.begin -= 1;
        if matches {
            self.numbers.0.push_front(self.begin);
        }
    }

    /// A new batch matches.
    pub fn push(&mut self, number: BatchNumber) {
        self.numbers.0.push_back(number);
    }

    /// Batches before this one have left the ring.
    pub fn forget_before(&mut self, begin: BatchNumber) {
        while self.numbers.0.front().is_some_and(|&number| number < begin) {
            self.numbers.remove(0);
        }
    }

    /// The numbers from this one on.
    pub fn numbers(&self, begin: BatchNumber) -> impl Iterator<Item = BatchNumber> {
        self.numbers.beyond(begin)
    }
}

/// The batches that each topic has something in.
pub struct ByTopic {
    begin: BatchNumber,
    /// None is empty.
    topics: HashMap<Topic, Numbers>,
    numbers: usize,
}

impl ByTopic {
    /// Of the batches from `end` on, of which there is none yet.
    pub fn new(end: BatchNumber) -> Self {
        Self { begin: end, topics: HashMap::new(), numbers: 0 }
    }

    /// The number from which on all are listed.
    pub fn begin(&self) -> BatchNumber {
        self.begin
    }

    pub fn is_full(&self) -> bool {
        self.topics.len() * TOPIC_BYTES + self.numbers * NUMBER_BYTES >= BY_TOPIC_BYTES_MAX
    }

    /// The batch before the first was looked at.
    pub fn looked_back(&mut self, batch: &Batch) {
        self.begin -= 1;
        for topic in batch.topics() {
            self.topics.entry(topic.clone()).or_default().0.push_front(self.begin);
        }
        self.numbers += batch.topics().len();
    }

    /// A new batch has come.
    pub fn push(&mut self, number: BatchNumber, batch: &Batch) {
        for topic in batch.topics() {
            self.topics.entry(topic.clone()).or_default().0.push_back(number);
        }
        self.numbers += batch.topics().len();
    }

    /// The first batch is listed no more.
    pub fn forget_first(&mut self, batch: &Batch) {
        for topic in batch.topics() {
            self.remove(topic, self.begin);
        }
        self.begin += 1;
    }

    /// The batch of this number has nothing of a topic any more.
    pub fn remove(&mut self, topic: &Topic, number: BatchNumber) {
        let Some(numbers) = self.topics.get_mut(topic) else { return };
        let Ok(at) = numbers.0.binary_search(&number) else { return };
        numbers.remove(at);
        self.numbers -= 1;
        if numbers.0.is_empty() {
            self.topics.remove(topic);
        }
    }

    /// The numbers, from this one on, of what has something of the topics of a filter without wildcards.
    pub fn numbers(&self, filter: &Filter, begin: BatchNumber) -> impl Iterator<Item = BatchNumber> {
        let topics = filter.patterns().iter().filter_map(|topic| self.topics.get(topic.as_str()));
        let mut lists: Vec<_> = topics.map(|numbers| numbers.beyond(begin).peekable()).collect();
        std::iter::from_fn(move || {
            let next = lists.iter_mut().filter_map(|list| list.peek().copied()).min()?;
            for list in &mut lists {
                list.next_if_eq(&next);
            }
            Some(next)
        })
    }

    #[cfg(test)]
    pub fn is_counted(&self) -> bool {
        self.numbers == self.topics.values().map(|numbers| numbers.0.len()).sum::<usize>()
            && self.topics.values().all(|numbers| !numbers.0.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_follows_the_numbers() {
        let mut list = Listed::new(0);
        (0..100_000).for_each(|number| list.push(number));
        list.forget_before(99_990);
        assert_eq!(list.numbers(99_995).collect::<Vec<_>>(), (99_995..100_000).collect::<Vec<_>>());
        assert!((10..100).contains(&list.numbers.0.capacity()), "{}", list.numbers.0.capacity());
    }
}
