//! Which batches of the ring have something for whom, so that a reader whose events lie far apart need not look at all of others' in between.
//! Nothing is listed before a reader would have needed it, and then what it looked at is there for those that come after it.
//!
//! What holds: from some number on, every batch that matches is listed; what lies before was not looked at. Must not know the ring.

use std::collections::{HashMap, VecDeque};

use super::Batch;
use crate::topic::{Filter, Topic};

/// Numbers of batches that the lists of all filters may have together, of 8 bytes each (their rooms up to twice that): an eighth of a ring of
/// 64 MiB.
pub const LISTED_MAX: usize = 1 << 20;

/// What the list by topic may have of memory: half of a ring of 64 MiB. It suffices for 200,000 topics with an event each.
const BY_TOPIC_BYTES_MAX: usize = 32 << 20;

/// What a topic costs there, its first numbers included, and each number.
const TOPIC_BYTES: usize = 128;
const NUMBER_BYTES: usize = 8;

/// The batches that one filter matches.
pub struct Listed {
    from: u64,
    /// Ascending. What is listed may have been trimmed since, or have left the ring.
    numbers: VecDeque<u64>,
}

impl Listed {
    /// Of the batches from `end` on, of which there is none yet.
    pub fn from(end: u64) -> Self {
        Self { from: end, numbers: VecDeque::new() }
    }

    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// The number from which on all are listed.
    pub fn begin(&self) -> u64 {
        self.from
    }

    /// The batch before the first was looked at.
    pub fn looked_back(&mut self, matches: bool) {
        self.from -= 1;
        if matches {
            self.numbers.push_front(self.from);
        }
    }

    /// A new batch matches.
    pub fn push(&mut self, number: u64) {
        self.numbers.push_back(number);
    }

    /// Batches before this one have left the ring.
    pub fn forget_before(&mut self, begin: u64) {
        while self.numbers.front().is_some_and(|&number| number < begin) {
            self.numbers.pop_front();
        }
    }

    /// The numbers from this one on.
    pub fn numbers(&self, from: u64) -> impl Iterator<Item = u64> {
        beyond(&self.numbers, from)
    }
}

/// The batches that each topic has something in.
pub struct ByTopic {
    from: u64,
    /// Ascending, and never empty.
    topics: HashMap<Topic, VecDeque<u64>>,
    numbers: usize,
}

impl ByTopic {
    /// Of the batches from `end` on, of which there is none yet.
    pub fn from(end: u64) -> Self {
        Self { from: end, topics: HashMap::new(), numbers: 0 }
    }

    /// The number from which on all are listed.
    pub fn begin(&self) -> u64 {
        self.from
    }

    pub fn is_full(&self) -> bool {
        self.topics.len() * TOPIC_BYTES + self.numbers * NUMBER_BYTES >= BY_TOPIC_BYTES_MAX
    }

    /// The batch before the first was looked at.
    pub fn looked_back(&mut self, batch: &Batch) {
        self.from -= 1;
        for topic in batch.topics() {
            self.topics.entry(topic.clone()).or_default().push_front(self.from);
        }
        self.numbers += batch.topics().len();
    }

    /// A new batch has come.
    pub fn push(&mut self, number: u64, batch: &Batch) {
        for topic in batch.topics() {
            self.topics.entry(topic.clone()).or_default().push_back(number);
        }
        self.numbers += batch.topics().len();
    }

    /// The first batch is listed no more.
    pub fn forget_first(&mut self, batch: &Batch) {
        for topic in batch.topics() {
            self.remove(topic, self.from);
        }
        self.from += 1;
    }

    /// The batch of this number has nothing of a topic any more.
    pub fn remove(&mut self, topic: &Topic, number: u64) {
        let Some(numbers) = self.topics.get_mut(topic) else { return };
        let Ok(at) = numbers.binary_search(&number) else { return };
        numbers.remove(at);
        self.numbers -= 1;
        if numbers.is_empty() {
            self.topics.remove(topic);
        }
    }

    /// The numbers, from this one on, of what has something of the topics of a filter without wildcards.
    pub fn numbers(&self, filter: &Filter, from: u64) -> impl Iterator<Item = u64> {
        let topics = filter.patterns().iter().filter_map(|topic| self.topics.get(topic.as_str()));
        let mut lists: Vec<_> = topics.map(|numbers| beyond(numbers, from).peekable()).collect();
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
        self.numbers == self.topics.values().map(VecDeque::len).sum::<usize>()
            && self.topics.values().all(|list| !list.is_empty())
    }
}

fn beyond(numbers: &VecDeque<u64>, from: u64) -> impl Iterator<Item = u64> {
    numbers.range(numbers.partition_point(|&number| number < from)..).copied()
}
