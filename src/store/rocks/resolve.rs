//! From a filter to its topics: those that a wildcard pattern selects, the floor that concerns them, the newest event of any.
//!
//! What holds: no name is looked through that does not match, but where a pattern has literals far to the right; what was found for a
//! pattern is remembered, and only topics that come later are looked at again. Nothing takes long under the directory's lock, since
//! appends wait for it. Must not know RocksDB.

use std::collections::HashMap;
use std::sync::Arc;

use super::RocksStore;
use crate::event::EventId;
use crate::record::TopicNumber;
use crate::sse::GapReason;
use crate::store::Floor;
use crate::topic::{Filter, Pattern};

/// Numbers that are looked up under one hold of the directory's lock: at some nanoseconds each, appends wait for 0.02 ms.
pub const NUMBERS_PER_LOOK: usize = 4096;

/// Names that are looked at under one hold of the directory's lock: at 0.1 µs each, appends wait for 0.1 ms.
const NAMES_PER_LOOK: usize = 1024;

/// Most topic numbers that are remembered for wildcard patterns, all together: 16 MiB. A pattern counts as [`PATTERN_COST`] more.
const RESOLVED_MAX: usize = 4 << 20;
const PATTERN_COST: usize = 64;

/// The topics that a filter selects.
#[derive(Clone)]
pub enum Topics {
    Every,
    /// Ascending and without repetition.
    These(Arc<Vec<TopicNumber>>),
}

impl Topics {
    pub fn contains(&self, topic: TopicNumber) -> bool {
        match self {
            Self::Every => true,
            Self::These(these) => these.binary_search(&topic).is_ok(),
        }
    }
}

/// What is known of one wildcard pattern.
#[derive(Clone, Default)]
struct Known {
    /// Topics with smaller numbers were looked at.
    upto: TopicNumber,
    topics: Arc<Vec<TopicNumber>>,
    /// The version of the floors and the highest floor of `topics` then. It stays true as topics are added, which have none.
    floor: Option<(u64, EventId)>,
}

/// The topics of wildcard patterns; topics that came later are looked at when it is next asked for.
#[derive(Default)]
pub struct Resolved {
    patterns: HashMap<Pattern, Known>,
    /// What they count, all together.
    cost: usize,
}

impl Known {
    fn cost(&self) -> usize {
        PATTERN_COST + self.topics.len()
    }
}

impl Resolved {
    fn keep(&mut self, pattern: &Pattern, known: Known) {
        let older = self.patterns.get(pattern);
        if older.is_some_and(|older| older.upto > known.upto) {
            return;
        }
        self.cost = self.cost + known.cost() - older.map_or(0, Known::cost);
        if self.cost > RESOLVED_MAX {
            self.patterns.clear();
            self.cost = known.cost();
        }
        self.patterns.insert(pattern.clone(), known);
    }
}

impl RocksStore {
    /// The highest floor that concerns `filter`.
    pub(super) fn floor_of(&self, filter: &Filter) -> Floor {
        let trimmed = |id| Floor { id, reason: GapReason::Trimmed };
        let (log_floor, hole) = {
            let directory = self.directory.read();
            (directory.log_floor, directory.hole.1)
        };
        let floor = trimmed(log_floor).max(Floor { id: hole, reason: GapReason::Lost });
        filter.patterns().iter().fold(floor, |floor, pattern| floor.max(trimmed(self.floor_of_pattern(pattern))))
    }

    fn floor_of_pattern(&self, pattern: &Pattern) -> EventId {
        if pattern.is_literal() {
            return self.directory.read().row_of(pattern.as_str()).map_or(0, |row| row.floor);
        }
        // Floors only rise, and a topic that comes later has none: what is found from here on is no lower than at this version.
        let version = self.directory.read().floors_version;
        let known = self.known(pattern);
        if let Some((at, floor)) = known.floor
            && at == version
        {
            return floor;
        }
        let mut floor = 0;
        for some in known.topics.chunks(NUMBERS_PER_LOOK) {
            let directory = self.directory.read();
            floor = some.iter().map(|&t| directory.heights(t).floor).fold(floor, EventId::max);
        }
        self.resolved.lock().keep(pattern, Known { floor: Some((version, floor)), ..known });
        floor
    }

    pub(super) fn topics_of(&self, filter: &Filter) -> Topics {
        if filter.is_every_topic() {
            return Topics::Every;
        }
        if let [pattern] = filter.patterns() {
            return Topics::These(self.topics_of_pattern(pattern));
        }
        let mut all: Vec<_> = filter.patterns().iter().flat_map(|p| self.topics_of_pattern(p).to_vec()).collect();
        all.sort_unstable();
        all.dedup();
        Topics::These(Arc::new(all))
    }

    fn topics_of_pattern(&self, pattern: &Pattern) -> Arc<Vec<TopicNumber>> {
        if pattern.is_literal() {
            return Arc::new(self.directory.read().number(pattern.as_str()).into_iter().collect());
        }
        self.known(pattern).topics
    }

    /// What is known of a wildcard pattern, with all topics that there are now.
    fn known(&self, pattern: &Pattern) -> Known {
        let known = self.resolved.lock().patterns.get(pattern).cloned();
        let next = self.directory.read().next_topic();
        let mut known = match known {
            Some(known) if known.upto == next => return known,
            known => known.unwrap_or_default(),
        };
        let new = self.matching(pattern, known.upto, next);
        if !new.is_empty() {
            Arc::make_mut(&mut known.topics).extend(new);
        }
        known.upto = next;
        self.resolved.lock().keep(pattern, known.clone());
        known
    }

    /// The topics with numbers in `from..to` that match, ascending.
    fn matching(&self, pattern: &Pattern, from: TopicNumber, to: TopicNumber) -> Vec<TopicNumber> {
        let Some(wanted) = self.directory.read().tokens().wanted(pattern) else { return Vec::new() };
        let mut found = Vec::new();
        for some in wanted.common(from, to).chunks(NUMBERS_PER_LOOK) {
            let directory = self.directory.read();
            found.extend(some.iter().copied().filter(|&n| wanted.length(directory.tokens().length(n))));
        }
        if wanted.is_exact() {
            return found;
        }
        let mut exact = Vec::new();
        for some in found.chunks(NAMES_PER_LOOK) {
            let directory = self.directory.read();
            let matches = |n: &TopicNumber| directory.row(*n).is_some_and(|row| pattern.matches(row.topic.as_str()));
            exact.extend(some.iter().copied().filter(matches));
        }
        exact
    }

    /// Those of `topics` that have an event after `after`: one that has been quiet since need not be searched for.
    pub(super) fn with_events_after(&self, topics: &Topics, after: EventId) -> Topics {
        let Topics::These(all) = topics else { return Topics::Every };
        let mut newer = Vec::new();
        for some in all.chunks(NUMBERS_PER_LOOK) {
            let directory = self.directory.read();
            newer.extend(some.iter().copied().filter(|&n| directory.heights(n).last > after));
        }
        if newer.len() == all.len() { topics.clone() } else { Topics::These(Arc::new(newer)) }
    }

    /// The newest event of any of these topics, trimmed or not.
    pub(super) fn newest_of(&self, topics: &Topics) -> EventId {
        let Topics::These(topics) = topics else { return EventId::MAX };
        let mut newest = 0;
        for some in topics.chunks(NUMBERS_PER_LOOK) {
            let directory = self.directory.read();
            newest = some.iter().map(|&t| directory.heights(t).last).fold(newest, EventId::max);
        }
        newest
    }
}
