//! From a filter to its topics: those that a wildcard pattern selects, the floor that concerns them, the newest event of any.
//!
//! What holds: 100,000 names are looked through once for each pattern, then only those that come later; and never under one hold of
//! the directory's lock, since appends wait for it. Must not know RocksDB.

use std::collections::HashMap;
use std::sync::Arc;

use super::RocksStore;
use crate::event::EventId;
use crate::record::TopicNumber;
use crate::sse::GapReason;
use crate::store::Floor;
use crate::topic::{Filter, Pattern, Topic};

/// Topics that are looked at under one hold of the directory's lock: at 0.1 µs each, appends wait for 0.1 ms.
const NUMBERS_PER_LOOK: TopicNumber = 1024;
const TOPICS_PER_LOOK: usize = NUMBERS_PER_LOOK as usize;

/// Most topic numbers that are remembered for wildcard patterns, all together: 16 MiB.
const RESOLVED_MAX: usize = 4 << 20;

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
pub struct Resolved(HashMap<Pattern, Known>);

impl Resolved {
    fn keep(&mut self, pattern: &Pattern, known: Known) {
        let others = |(p, known): (&Pattern, &Known)| if p == pattern { 0 } else { 64 + known.topics.len() };
        if 64 + known.topics.len() + self.0.iter().map(others).sum::<usize>() > RESOLVED_MAX {
            self.0.clear();
        }
        match self.0.get_mut(pattern) {
            Some(newer) if newer.upto > known.upto => {}
            Some(older) => *older = known,
            None => drop(self.0.insert(pattern.clone(), known)),
        }
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
        for some in known.topics.chunks(TOPICS_PER_LOOK) {
            let directory = self.directory.read();
            floor = some.iter().filter_map(|&t| directory.row(t)).map(|row| row.floor).fold(floor, EventId::max);
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
        let known = self.resolved.lock().0.get(pattern).cloned();
        let next = self.directory.read().next_topic();
        let known = match known {
            Some(known) if known.upto == next => return known,
            Some(mut known) => {
                let new = self.matching_numbers(pattern, known.upto, next);
                if !new.is_empty() {
                    Arc::make_mut(&mut known.topics).extend(new);
                }
                Known { upto: next, ..known }
            }
            None => Known { upto: next, topics: Arc::new(self.matching_names(pattern, next)), floor: None },
        };
        self.resolved.lock().keep(pattern, known.clone());
        known
    }

    /// The topics with numbers in `from..to` that match, ascending.
    fn matching_numbers(&self, pattern: &Pattern, from: TopicNumber, to: TopicNumber) -> Vec<TopicNumber> {
        let mut found = Vec::new();
        for first in (from..to).step_by(TOPICS_PER_LOOK) {
            let directory = self.directory.read();
            let some = first..to.min(first.saturating_add(NUMBERS_PER_LOOK));
            found.extend(some.filter(|&n| directory.row(n).is_some_and(|row| pattern.matches(row.topic.as_str()))));
        }
        found
    }

    /// The topics with numbers below `next` that match, ascending; found among the names that begin as the pattern does.
    fn matching_names(&self, pattern: &Pattern, next: TopicNumber) -> Vec<TopicNumber> {
        let mut found = Vec::new();
        let mut after: Option<Topic> = None;
        loop {
            let directory = self.directory.read();
            let mut looked = 0;
            let mut last = None;
            let rest = directory.in_order(pattern.literal_prefix(), after.as_ref().map(Topic::as_str));
            for (number, row) in rest.take(TOPICS_PER_LOOK) {
                looked += 1;
                last = Some(&row.topic);
                if number < next && pattern.matches(row.topic.as_str()) {
                    found.push(number);
                }
            }
            let last = last.cloned();
            if looked < TOPICS_PER_LOOK {
                break;
            }
            after = last;
        }
        found.sort_unstable();
        found
    }

    /// The newest event of any of these topics, trimmed or not.
    pub(super) fn newest_of(&self, topics: &Topics) -> EventId {
        let Topics::These(topics) = topics else { return EventId::MAX };
        let mut newest = 0;
        for some in topics.chunks(TOPICS_PER_LOOK) {
            let directory = self.directory.read();
            newest = some.iter().filter_map(|&t| directory.row(t)).map(|row| row.last).fold(newest, EventId::max);
        }
        newest
    }
}
