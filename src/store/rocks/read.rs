//! Reading the log: forward in id order, backward for the last few, by time.
//!
//! What holds: a topic's events are found by its postings, never by looking through other topics' events, unless those are so few
//! that looking is cheaper. No iterator and no lock outlives a call. Must not write.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use rocksdb::{DBPinnableSlice, DBRawIterator, ReadOptions};

use super::directory::within;
use super::layout::{
    LOG, POSTINGS, SEGMENT, SegmentNumber, Summary, decode_postings, first_id, last_id, log_id, log_key, postings_key,
    postings_place, segment_of,
};
use super::number::ByNumber;
use super::open::corrupt;
use super::{Handle, RocksStore};
use crate::event::{EventId, EventRef, Millis};
use crate::record::{Record, TopicNumber};
use crate::store::{SCAN_RECORDS_MAX, Scan, StoreError};
use crate::topic::{Filter, Pattern, Topic};

/// Up to so many topics are asked for their newest event before a search: some 10 µs.
const PRUNED_MAX: usize = 1024;

/// With at least one match in so many events of a segment, reading them all is cheaper than seeking each match: a seek costs
/// about 9 µs, a record passed over 0.4 µs and less.
const DENSE_ONE_IN: u64 = 64;

/// Up to so many topics are looked up in the postings one by one; for more of them the segment's summary is read first.
const FEW_TOPICS: usize = 16;

/// Postings of so many bytes are of a topic that is dense in its segment on the whole: an offset takes three at the most, and one in
/// [`DENSE_ONE_IN`] of 65,536 are 1,024.
const DENSE_POSTINGS_BYTES: usize = 3 * 1024;

/// How many ids of a segment in which a topic is dense on the whole are looked at before its postings are read after all: as much
/// work as reading them. Mostly the first few have a match.
const GLANCE_IDS: u64 = 1024;

/// Most wildcard patterns whose topics are remembered: a few bytes a topic and pattern.
const RESOLVED_MAX: usize = 256;

/// Most decoded summaries that are kept: at most 65,536 topics of 24 bytes each.
const SUMMARIES_MAX: usize = 8;

/// The topics that a filter selects.
#[derive(Clone)]
enum Topics {
    Every,
    /// Ascending and without repetition.
    These(Arc<Vec<TopicNumber>>),
}

impl Topics {
    fn is_empty(&self) -> bool {
        matches!(self, Self::These(these) if these.is_empty())
    }

    fn contains(&self, topic: TopicNumber) -> bool {
        match self {
            Self::Every => true,
            Self::These(these) => these.binary_search(&topic).is_ok(),
        }
    }
}

/// The topics of wildcard patterns, as of a number of topics; later topics are looked at when it is next asked for.
#[derive(Default)]
pub struct Resolved(HashMap<Pattern, (TopicNumber, Arc<Vec<TopicNumber>>)>);

/// The newest decoded summaries.
#[derive(Default)]
pub struct Summaries(VecDeque<(SegmentNumber, Arc<Summary>)>);

impl Summaries {
    pub fn forget(&mut self, segment: SegmentNumber) {
        self.0.retain(|(s, _)| *s != segment);
    }
}

/// How the matching events of one segment are found.
enum Plan {
    /// None are there.
    Nothing,
    /// Look at every record.
    Look,
    /// Look at the next [`GLANCE_IDS`]; if none of them matches, ask again for an exact plan.
    Glance,
    /// Get just these.
    Seek(Vec<EventId>),
}

/// What is remembered of a topic during one read.
struct Seen {
    name: Topic,
    floor: EventId,
    wanted: bool,
}

/// Turns records into events: knows the topics' names and floors, asking the directory once for each.
struct Reader<'a> {
    store: &'a RocksStore,
    filter: &'a Filter,
    topics: Topics,
    log_floor: EventId,
    seen: ByNumber<Seen>,
}

impl Reader<'_> {
    /// The event, when it matches and is not trimmed.
    fn event<'b>(&'b mut self, id: EventId, value: &'b [u8]) -> Result<Option<EventRef<'b>>, StoreError> {
        let unreadable = |e: &dyn std::fmt::Display| corrupt(&format!("event {id} cannot be read: {e}"));
        let (topic, _) = Record::head(value).map_err(|e| unreadable(&e))?;
        let seen = match self.seen.entry(topic) {
            Entry::Occupied(seen) => seen.into_mut(),
            Entry::Vacant(unseen) => {
                let directory = self.store.directory.read();
                // A forgotten topic has no name any more: all of its events lie below a floor.
                let Some(row) = directory.row(topic) else { return Ok(None) };
                let wanted = self.topics.contains(topic);
                unseen.insert(Seen { name: row.topic.clone(), floor: row.floor, wanted })
            }
        };
        if !seen.wanted || id <= seen.floor.max(self.log_floor) {
            return Ok(None);
        }
        let record = Record::decode(value).map_err(|e| unreadable(&e))?;
        if !self.filter.matches_type(record.event) {
            return Ok(None);
        }
        let Record { time, event, key, data, .. } = record;
        Ok(Some(EventRef { id, topic: seen.name.as_str(), event, key, time, data }))
    }
}

fn read_failed(e: &rocksdb::Error) -> StoreError {
    match e.kind() {
        rocksdb::ErrorKind::Corruption => corrupt(e),
        _ => StoreError::io("reading the log")(e),
    }
}

/// The ids of one topic in a sealed segment, within `after < id <= upto`.
pub fn sealed_ids(
    db: &Handle<'_>,
    topic: TopicNumber,
    segment: SegmentNumber,
    after: EventId,
    upto: EventId,
) -> Result<Vec<EventId>, StoreError> {
    match postings(db, topic, segment)? {
        None => Ok(Vec::new()),
        Some(postings) => ids_of(&postings, topic, segment, after, upto),
    }
}

fn postings<'a>(
    db: &'a Handle<'_>,
    topic: TopicNumber,
    segment: SegmentNumber,
) -> Result<Option<DBPinnableSlice<'a>>, StoreError> {
    db.get_pinned_cf(db.cf(POSTINGS), postings_key(topic, segment)).map_err(|e| read_failed(&e))
}

fn ids_of(
    postings: &[u8],
    topic: TopicNumber,
    segment: SegmentNumber,
    after: EventId,
    upto: EventId,
) -> Result<Vec<EventId>, StoreError> {
    let offsets = decode_postings(postings)
        .ok_or_else(|| corrupt(&format!("the postings of topic number {topic} in segment {segment} cannot be read")))?;
    Ok(within(segment, &offsets, after, upto))
}

/// Looks at the records with `after < id <= upto` in order until `each` breaks.
pub fn records(
    db: &Handle<'_>,
    after: EventId,
    upto: EventId,
    each: &mut dyn FnMut(EventId, &[u8]) -> Result<ControlFlow<()>, StoreError>,
) -> Result<(), StoreError> {
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(log_key(upto + 1));
    let mut it = db.raw_iterator_cf_opt(db.cf(LOG), options);
    it.seek(log_key(after + 1));
    while let Some((key, value)) = it.item() {
        let id = log_id(key).ok_or_else(|| corrupt(&"a record has no id"))?;
        if each(id, value)?.is_break() {
            return Ok(());
        }
        it.next();
    }
    it.status().map_err(|e| read_failed(&e))
}

impl RocksStore {
    fn reader<'a>(&'a self, filter: &'a Filter) -> Reader<'a> {
        let topics = self.topics_of(filter);
        let log_floor = self.directory.read().log_floor;
        Reader { store: self, filter, topics, log_floor, seen: ByNumber::default() }
    }

    fn topics_of(&self, filter: &Filter) -> Topics {
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
        let directory = self.directory.read();
        if pattern.is_literal() {
            return Arc::new(directory.number(pattern.as_str()).into_iter().collect());
        }
        let next = directory.next_topic();
        let mut resolved = self.resolved.lock();
        if resolved.0.len() >= RESOLVED_MAX && !resolved.0.contains_key(pattern) {
            resolved.0.clear();
        }
        if let Some((upto, topics)) = resolved.0.get_mut(pattern) {
            let new: Vec<_> = (*upto..next)
                .filter(|&n| directory.row(n).is_some_and(|row| pattern.matches(row.topic.as_str())))
                .collect();
            if !new.is_empty() {
                Arc::make_mut(topics).extend(new);
            }
            *upto = next;
            return topics.clone();
        }
        let mut topics = Vec::new();
        directory.matching(pattern, &mut |number, _| topics.push(number));
        topics.sort_unstable();
        let topics = Arc::new(topics);
        resolved.0.insert(pattern.clone(), (next, topics.clone()));
        topics
    }

    /// Those of `topics` that have an event after this id: a topic that has been quiet since need not be searched for. More topics
    /// than [`PRUNED_MAX`] are left as they are.
    fn with_events_after(&self, topics: &Topics, after: EventId) -> Topics {
        let Topics::These(all) = topics else { return Topics::Every };
        if all.len() > PRUNED_MAX {
            return Topics::These(all.clone());
        }
        let directory = self.directory.read();
        let is_newer = |&number: &TopicNumber| directory.row(number).is_some_and(|row| row.last > after);
        if all.iter().all(is_newer) {
            return Topics::These(all.clone());
        }
        Topics::These(Arc::new(all.iter().copied().filter(is_newer).collect()))
    }

    pub(super) fn summary(&self, db: &Handle<'_>, segment: SegmentNumber) -> Result<Option<Arc<Summary>>, StoreError> {
        if let Some((_, summary)) = self.summaries.lock().0.iter().find(|(s, _)| *s == segment) {
            return Ok(Some(summary.clone()));
        }
        let value = db.get_pinned_cf(db.cf(SEGMENT), segment.to_be_bytes()).map_err(|e| read_failed(&e))?;
        let Some(value) = value else { return Ok(None) };
        let summary = Summary::decode(&value)
            .ok_or_else(|| corrupt(&format!("the summary of segment {segment} cannot be read")))?;
        let summary = Arc::new(summary);
        let mut kept = self.summaries.lock();
        kept.0.push_front((segment, summary.clone()));
        kept.0.truncate(SUMMARIES_MAX);
        Ok(Some(summary))
    }

    /// How the events of `topics` within `after < id <= upto`, all in `segment`, are found. What is not `exact` costs no more where
    /// a topic is dense than where it is rare.
    fn plan(
        &self,
        db: &Handle<'_>,
        topics: &Topics,
        segment: SegmentNumber,
        (after, upto): (EventId, EventId),
        exact: bool,
    ) -> Result<Plan, StoreError> {
        let Topics::These(topics) = topics else { return Ok(Plan::Look) };
        if let Some(plan) = self.plan_open(topics, segment, after, upto) {
            return Ok(plan);
        }
        let mut present: Vec<TopicNumber> = Vec::new();
        if topics.len() > FEW_TOPICS {
            let Some(summary) = self.summary(db, segment)? else { return Ok(Plan::Nothing) };
            let shares = summary.shares.iter().filter(|s| topics.binary_search(&s.topic).is_ok());
            let mut events = 0;
            for share in shares {
                events += u64::from(share.events);
                present.push(share.topic);
            }
            if events * DENSE_ONE_IN >= summary.events() {
                return Ok(if events == 0 { Plan::Nothing } else { Plan::Look });
            }
        } else {
            present.extend_from_slice(topics);
        }
        let mut ids = Vec::new();
        for topic in present {
            let Some(postings) = postings(db, topic, segment)? else { continue };
            if !exact && postings.len() >= DENSE_POSTINGS_BYTES {
                return Ok(Plan::Glance);
            }
            ids.extend(ids_of(&postings, topic, segment, after, upto)?);
            if ids.len() as u64 * DENSE_ONE_IN >= upto - after {
                return Ok(Plan::Look);
            }
        }
        ids.sort_unstable();
        Ok(if ids.is_empty() { Plan::Nothing } else { Plan::Seek(ids) })
    }

    /// The plan for a segment whose index is still in memory.
    fn plan_open(&self, topics: &[TopicNumber], segment: SegmentNumber, after: EventId, upto: EventId) -> Option<Plan> {
        let directory = self.directory.read();
        let open = directory.open.get(&segment)?;
        let mut ids = Vec::new();
        let dense = |ids: &[EventId]| ids.len() as u64 * DENSE_ONE_IN >= upto - after;
        let mut add = |topic: TopicNumber| {
            open.newest_first(topic, |offset, _| {
                let id = first_id(segment) + u64::from(offset);
                if id <= after || dense(&ids) {
                    return ControlFlow::Break(());
                }
                if id <= upto {
                    ids.push(id);
                }
                ControlFlow::Continue(())
            });
        };
        if topics.len() <= open.topic_count() {
            topics.iter().copied().for_each(&mut add);
        } else {
            open.topics().filter(|t| topics.binary_search(t).is_ok()).for_each(&mut add);
        }
        if ids.is_empty() {
            return Some(Plan::Nothing);
        }
        if dense(&ids) {
            return Some(Plan::Look);
        }
        ids.sort_unstable();
        Some(Plan::Seek(ids))
    }

    /// The first segment from `segment` on that may hold one of few topics, so that the segments before it need no look.
    fn skip_to(&self, db: &Handle<'_>, topics: &Topics, segment: SegmentNumber) -> Result<SegmentNumber, StoreError> {
        let Topics::These(topics) = topics else { return Ok(segment) };
        let first_open = self.directory.read().open.keys().next().copied().unwrap_or(segment);
        if topics.len() > FEW_TOPICS || segment >= first_open {
            return Ok(segment);
        }
        let mut it: DBRawIterator<'_> = db.raw_iterator_cf(db.cf(POSTINGS));
        let mut nearest = first_open;
        for &topic in topics.iter() {
            it.seek(postings_key(topic, segment));
            match it.key().and_then(postings_place) {
                // It cannot come nearer.
                Some((t, s)) if t == topic && s == segment => return Ok(segment),
                Some((t, s)) if t == topic => nearest = nearest.min(s),
                _ => it.status().map_err(|e| read_failed(&e))?,
            }
        }
        Ok(nearest)
    }

    pub(super) fn read_forward(
        &self,
        scan: Scan<'_>,
        each: &mut dyn FnMut(&EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<EventId, StoreError> {
        let db = self.db()?;
        let mut reader = self.reader(scan.filter);
        let mut after = scan.after.max(reader.log_floor);
        let topics = self.with_events_after(&reader.topics, after);
        let (mut looked, mut exact) = (0, false);
        if topics.is_empty() {
            return Ok(after.max(scan.upto));
        }
        while after < scan.upto && looked < SCAN_RECORDS_MAX {
            let segment = self.skip_to(&db, &topics, segment_of(after + 1))?;
            after = after.max(first_id(segment).saturating_sub(1));
            if after >= scan.upto {
                return Ok(scan.upto);
            }
            let upto = last_id(segment).min(scan.upto);
            let plan = self.plan(&db, &topics, segment, (after, upto), exact)?;
            let glance = matches!(plan, Plan::Glance);
            let upto = if glance { upto.min(after + GLANCE_IDS) } else { upto };
            looked += 1;
            let (mut stopped_at, mut matched) = (None, false);
            let mut visit = |id: EventId, value: &[u8]| -> Result<ControlFlow<()>, StoreError> {
                looked += 1;
                let stop = match reader.event(id, value)? {
                    Some(event) => {
                        matched = true;
                        each(&event).is_break()
                    }
                    None => false,
                };
                if stop || looked >= SCAN_RECORDS_MAX {
                    stopped_at = Some(id);
                    return Ok(ControlFlow::Break(()));
                }
                Ok(ControlFlow::Continue(()))
            };
            match plan {
                Plan::Nothing => {}
                Plan::Look | Plan::Glance => records(&db, after, upto, &mut visit)?,
                Plan::Seek(ids) => {
                    for id in ids {
                        let value = db.get_pinned_cf(db.cf(LOG), log_key(id)).map_err(|e| read_failed(&e))?;
                        if let Some(value) = value
                            && visit(id, &value)?.is_break()
                        {
                            break;
                        }
                    }
                }
            }
            exact = glance && !matched;
            match stopped_at {
                Some(id) => return Ok(id),
                None => after = upto,
            }
        }
        Ok(after.max(scan.after))
    }

    pub(super) fn read_backward(&self, filter: &Filter, n: u64, upto: EventId) -> Result<EventId, StoreError> {
        let db = self.db()?;
        let mut reader = self.reader(filter);
        let topics = reader.topics.clone();
        let mut left = n;
        if left == 0 {
            return Ok(upto);
        }
        let floor = reader.log_floor;
        let segments = self.directory.read().segments_between(floor, upto);
        for segment in segments.into_iter().rev() {
            let (after, last) = (floor.max(first_id(segment).saturating_sub(1)), last_id(segment).min(upto));
            let ids = match self.plan(&db, &topics, segment, (after, last), true)? {
                Plan::Nothing => continue,
                Plan::Seek(ids) => Some(ids),
                Plan::Look | Plan::Glance => None,
            };
            let mut found = None;
            let mut visit = |id: EventId, value: &[u8]| -> Result<ControlFlow<()>, StoreError> {
                if reader.event(id, value)?.is_some() {
                    left -= 1;
                    if left == 0 {
                        found = Some(id - 1);
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Ok(ControlFlow::Continue(()))
            };
            match ids {
                Some(ids) => {
                    for id in ids.into_iter().rev() {
                        let value = db.get_pinned_cf(db.cf(LOG), log_key(id)).map_err(|e| read_failed(&e))?;
                        if let Some(value) = value
                            && visit(id, &value)?.is_break()
                        {
                            break;
                        }
                    }
                }
                None => records_backward(&db, after, last, &mut visit)?,
            }
            if let Some(cursor) = found {
                return Ok(cursor);
            }
        }
        Ok(floor)
    }

    /// The cursor before the first event that is at `time` or later: times never decrease, so segments, then ids are halved.
    pub(super) fn seek_time(&self, time: Millis) -> Result<EventId, StoreError> {
        let db = self.db()?;
        let (floor, tail, segment) = {
            let directory = self.directory.read();
            let segment = directory.segments.iter().find(|(_, s)| s.last_time >= time).map(|(&s, _)| s);
            (directory.log_floor, directory.tail, segment)
        };
        let Some(segment) = segment else { return Ok(tail) };
        // Everything up to `low` is earlier, everything from `high` on is not.
        let (mut low, mut high) = (floor.max(first_id(segment).saturating_sub(1)), last_id(segment).min(tail) + 1);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            let mut newest_looked = None;
            records(&db, middle - 1, high - 1, &mut |id, value| {
                let (_, at) = Record::head(value).map_err(|e| corrupt(&format!("event {id} cannot be read: {e}")))?;
                newest_looked = Some((id, at));
                Ok(ControlFlow::Break(()))
            })?;
            match newest_looked {
                Some((id, at)) if at < time => low = id,
                _ => high = middle,
            }
        }
        Ok(low)
    }
}

fn records_backward(
    db: &Handle<'_>,
    after: EventId,
    upto: EventId,
    each: &mut dyn FnMut(EventId, &[u8]) -> Result<ControlFlow<()>, StoreError>,
) -> Result<(), StoreError> {
    let mut it = db.raw_iterator_cf(db.cf(LOG));
    it.seek_for_prev(log_key(upto));
    while let Some((key, value)) = it.item() {
        let id = log_id(key).ok_or_else(|| corrupt(&"a record has no id"))?;
        if id <= after || each(id, value)?.is_break() {
            return Ok(());
        }
        it.prev();
    }
    it.status().map_err(|e| read_failed(&e))
}

#[cfg(test)]
mod tests;
