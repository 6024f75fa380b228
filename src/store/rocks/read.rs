//! Reading the log: forward in id order, backward for the last few, by time.
//!
//! What holds: a topic's events are found by its postings, never by looking through other topics' events, unless those are so few
//! that looking is cheaper. No iterator and no lock outlives a call. Must not write.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use rocksdb::{DBRawIterator, ReadOptions};

use super::directory::{OpenSegment, range_within};
use super::layout::{
    LOG, POSTINGS, Posting, SEGMENT, SegmentNumber, Share, Summary, decode_postings, first_id, last_id, log_id,
    log_key, postings_key, postings_place, segment_of,
};
use super::open::corrupt;
use super::{Handle, RocksStore};
use crate::event::{EventId, EventRef, Millis};
use crate::record::{Record, TopicNumber};
use crate::sse::GapReason;
use crate::store::{Floor, SCAN_RECORDS_MAX, Scan, StoreError};
use crate::topic::{Filter, Pattern, Topic};

/// With at least one match in so many events of a segment, reading them all is cheaper than seeking each match: a seek costs
/// about 9 µs, a record passed over 0.4 µs and less.
const DENSE_ONE_IN: u64 = 64;

/// Up to so many topics are looked up in the postings one by one; for more of them the segment's summary is read first.
const FEW_TOPICS: usize = 16;

/// Topics that are looked at under one hold of the directory's lock: at 0.1 µs each, appends wait for 0.1 ms.
const NUMBERS_PER_LOOK: TopicNumber = 1024;
const TOPICS_PER_LOOK: usize = NUMBERS_PER_LOOK as usize;

/// Ids of an open segment that are looked at under one hold of the directory's lock, for the same reason.
const IDS_PER_LOOK: u64 = 4096;

/// Records that are looked at in a sealed segment before its index is asked for many topics: where some of them match, looking on
/// is cheaper than finding every match of the segment for each 64 KiB that a reader takes.
const PROBE: u64 = 512;

/// What counts as one record looked at, when the shares of a summary are gone through.
const SHARES_PER_LOOK: usize = 32;

/// Most topic numbers that are remembered for wildcard patterns, all together: 16 MiB.
const RESOLVED_MAX: usize = 4 << 20;

/// Most decoded summaries that are kept: at most 65,536 topics of 24 bytes each.
const SUMMARIES_MAX: usize = 8;

/// Is shown records, by id, until it breaks.
type Visit<'a> = &'a mut dyn FnMut(EventId, &[u8]) -> Result<ControlFlow<()>, StoreError>;

/// Is shown a topic's ids and bytes, segment by segment, while it wants more.
type Gathered<'a> = &'a mut dyn FnMut(SegmentNumber, &[(EventId, u32)]) -> bool;

/// The topics that a filter selects.
#[derive(Clone)]
enum Topics {
    Every,
    /// Ascending and without repetition.
    These(Arc<Vec<TopicNumber>>),
}

impl Topics {
    fn contains(&self, topic: TopicNumber) -> bool {
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
    /// Get just these.
    Seek(Vec<EventId>),
}

/// What is remembered of a topic during one read: `None` where its events are not wanted.
type Seen = Option<(Topic, EventId)>;

/// Turns records into events: knows the topics' names and floors, asking the directory once for each.
struct Reader<'a> {
    store: &'a RocksStore,
    filter: &'a Filter,
    topics: Topics,
    /// As readers were told it; so are the topics' floors.
    log_floor: EventId,
    seen: HashMap<TopicNumber, Seen>,
    /// How many records were of these topics.
    wanted: u64,
}

impl Reader<'_> {
    /// The event, when it matches and is not trimmed.
    fn event<'b>(&'b mut self, id: EventId, value: &'b [u8]) -> Result<Option<EventRef<'b>>, StoreError> {
        let unreadable = |e: &dyn std::fmt::Display| corrupt(&format!("event {id} cannot be read: {e}"));
        let (topic, _) = Record::head(value).map_err(|e| unreadable(&e))?;
        let store = self.store;
        let seen = self.seen.entry(topic).or_insert_with(|| {
            if !self.topics.contains(topic) {
                return None;
            }
            // A forgotten topic has no name any more: all of its events lie below a floor.
            store.directory.read().row(topic).map(|row| (row.topic.clone(), row.published))
        });
        let Some((name, floor)) = seen else { return Ok(None) };
        self.wanted += 1;
        if id <= (*floor).max(self.log_floor) {
            return Ok(None);
        }
        let record = Record::decode(value).map_err(|e| unreadable(&e))?;
        if !self.filter.matches_type(record.event) {
            return Ok(None);
        }
        let Record { time, event, key, data, .. } = record;
        Ok(Some(EventRef { id, topic: name.as_str(), event, key, time, data }))
    }
}

fn read_failed(e: &rocksdb::Error) -> StoreError {
    match e.kind() {
        rocksdb::ErrorKind::Corruption => corrupt(e),
        _ => StoreError::io("reading the log")(e),
    }
}

fn decoded(value: &[u8], topic: TopicNumber, segment: SegmentNumber) -> Result<Vec<Posting>, StoreError> {
    decode_postings(value)
        .ok_or_else(|| corrupt(&format!("the postings of topic number {topic} in segment {segment} cannot be read")))
}

/// The ids of one topic in a sealed segment, within `after < id <= upto`, each with its bytes.
pub fn sealed_in(
    db: &Handle<'_>,
    topic: TopicNumber,
    segment: SegmentNumber,
    after: EventId,
    upto: EventId,
) -> Result<Vec<(EventId, u32)>, StoreError> {
    let value = db.get_pinned_cf(db.cf(POSTINGS), postings_key(topic, segment)).map_err(|e| read_failed(&e))?;
    let Some(value) = value else { return Ok(Vec::new()) };
    Ok(placed(segment, &decoded(&value, topic, segment)?, after, upto))
}

/// Gives the ids of one topic within `after < id <= upto`, each with its bytes, segment by segment, until `each` answers no.
/// `upto` must lie in a sealed segment: what a stop has left of a sealing is no index.
pub fn sealed_postings(
    db: &Handle<'_>,
    topic: TopicNumber,
    after: EventId,
    upto: EventId,
    each: Gathered<'_>,
) -> Result<(), StoreError> {
    if after >= upto {
        return Ok(());
    }
    let mut options = ReadOptions::default();
    // One past the largest segment is the next topic's first.
    let end = u64::from_be_bytes(postings_key(topic, segment_of(upto))) + 1;
    options.set_iterate_upper_bound(end.to_be_bytes());
    let mut it = db.raw_iterator_cf_opt(db.cf(POSTINGS), options);
    it.seek(postings_key(topic, segment_of(after + 1)));
    while let Some((key, value)) = it.item() {
        let (_, segment) = postings_place(key).ok_or_else(|| corrupt(&"postings have no segment"))?;
        let postings = placed(segment, &decoded(value, topic, segment)?, after, upto);
        if !each(segment, &postings) {
            return Ok(());
        }
        it.next();
    }
    it.status().map_err(|e| read_failed(&e))
}

fn placed(segment: SegmentNumber, postings: &[Posting], after: EventId, upto: EventId) -> Vec<(EventId, u32)> {
    let within = range_within(segment, postings, |p| p.0, after, upto);
    within.iter().map(|&(offset, bytes)| (first_id(segment) + u64::from(offset), bytes)).collect()
}

/// Looks at the records with `after < id <= upto` in order until `each` breaks.
pub fn records(db: &Handle<'_>, after: EventId, upto: EventId, each: Visit<'_>) -> Result<(), StoreError> {
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
        let log_floor = self.directory.read().log_published;
        Reader { store: self, filter, topics, log_floor, seen: HashMap::new(), wanted: 0 }
    }

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

    /// How the events of `topics` within `after < id <= upto`, all in `segment`, are found. Adds to `looked` what finding it costs.
    fn plan(
        &self,
        db: &Handle<'_>,
        topics: &Topics,
        segment: SegmentNumber,
        (after, upto): (EventId, EventId),
        looked: &mut usize,
    ) -> Result<Plan, StoreError> {
        let Topics::These(topics) = topics else { return Ok(Plan::Look) };
        if let Some(ids) = self.open_matches(topics, segment, after, upto) {
            return Ok(plan_for(ids, after, upto));
        }
        let present: Vec<TopicNumber>;
        let present = if topics.len() > FEW_TOPICS {
            let Some(summary) = self.summary(db, segment)? else { return Ok(Plan::Nothing) };
            *looked += (summary.shares.len() + topics.len()) / SHARES_PER_LOOK;
            let (topics, events) = shared(topics, &summary.shares);
            if events * DENSE_ONE_IN >= summary.events() {
                return Ok(if events == 0 { Plan::Nothing } else { Plan::Look });
            }
            present = topics;
            &present
        } else {
            &**topics
        };
        let mut ids = Vec::new();
        for &topic in present {
            ids.extend(sealed_in(db, topic, segment, after, upto)?.into_iter().map(|(id, _)| id));
            if ids.len() as u64 * DENSE_ONE_IN >= upto - after {
                return Ok(Plan::Look);
            }
        }
        *looked += present.len();
        ids.sort_unstable();
        Ok(plan_for(ids, after, upto))
    }

    /// The ids of `topics` within `after < id <= upto` in a segment whose index is still in memory; `None` when it is not.
    fn open_matches(
        &self,
        topics: &[TopicNumber],
        segment: SegmentNumber,
        after: EventId,
        upto: EventId,
    ) -> Option<Vec<EventId>> {
        if topics.len() <= FEW_TOPICS {
            let directory = self.directory.read();
            let open = directory.open.get(&segment)?;
            let mut ids: Vec<_> = topics.iter().flat_map(|&t| open.ids_of(segment, t, after, upto)).collect();
            ids.sort_unstable();
            return Some(ids);
        }
        let mut ids = Vec::new();
        let mut from = after;
        while from < upto {
            let to = upto.min(from + IDS_PER_LOOK);
            let directory = self.directory.read();
            let open: &OpenSegment = directory.open.get(&segment)?;
            let some = range_within(segment, &open.entries, |entry| entry.0, from, to).iter();
            let some = some.filter(|(_, topic, _)| topics.binary_search(topic).is_ok());
            ids.extend(some.map(|(offset, ..)| first_id(segment) + u64::from(*offset)));
            from = to;
        }
        Some(ids)
    }

    /// The first segment from `segment` on that may hold one of few topics, so that the segments before it need no look.
    fn skip_to(&self, db: &Handle<'_>, topics: &Topics, segment: SegmentNumber) -> Result<SegmentNumber, StoreError> {
        let Topics::These(topics) = topics else { return Ok(segment) };
        let first_open = self.directory.read().first_open();
        if topics.len() > FEW_TOPICS || segment >= first_open {
            return Ok(segment);
        }
        let mut it: DBRawIterator<'_> = db.raw_iterator_cf(db.cf(POSTINGS));
        let mut nearest = first_open;
        for &topic in topics.iter() {
            it.seek(postings_key(topic, segment));
            match it.key().and_then(postings_place) {
                Some((t, s)) if t == topic => nearest = nearest.min(s),
                _ => it.status().map_err(|e| read_failed(&e))?,
            }
        }
        Ok(nearest)
    }

    pub(super) fn read_forward(
        &self,
        db: &Handle<'_>,
        scan: Scan<'_>,
        each: &mut dyn FnMut(&EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<EventId, StoreError> {
        let mut reader = self.reader(scan.filter);
        let topics = reader.topics.clone();
        let mut after = scan.after.max(reader.log_floor);
        let mut looked = 0;
        let mut probe = PROBE;
        while after < scan.upto && looked < SCAN_RECORDS_MAX {
            let segment = self.skip_to(db, &topics, segment_of(after + 1))?;
            after = after.max(first_id(segment).saturating_sub(1));
            if after >= scan.upto {
                break;
            }
            looked += 1;
            let mut upto = last_id(segment).min(scan.upto);
            let plan = match &topics {
                // With many topics the index of a whole segment costs milliseconds: it is asked only where looking finds little.
                Topics::These(topics) if topics.len() > FEW_TOPICS && self.directory.read().first_open() <= segment => {
                    upto = upto.min(after + IDS_PER_LOOK);
                    None
                }
                Topics::These(topics) if topics.len() > FEW_TOPICS && probe > 0 => {
                    upto = upto.min(after + probe);
                    Some(Plan::Look)
                }
                _ => None,
            };
            let probing = plan.is_some();
            let plan = match plan {
                Some(plan) => plan,
                None => self.plan(db, &topics, segment, (after, upto), &mut looked)?,
            };
            let wanted = reader.wanted;
            let mut stopped_at = None;
            let mut visit = |id: EventId, value: &[u8]| -> Result<ControlFlow<()>, StoreError> {
                looked += 1;
                let stop = match reader.event(id, value)? {
                    Some(event) => each(&event).is_break(),
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
                Plan::Look => records(db, after, upto, &mut visit)?,
                Plan::Seek(ids) => seek(db, ids.into_iter(), &mut visit)?,
            }
            if let Some(id) = stopped_at {
                return Ok(id);
            }
            if probing {
                let dense = (reader.wanted - wanted) * DENSE_ONE_IN >= upto - after;
                probe = if dense { (probe * 4).min(IDS_PER_LOOK) } else { 0 };
            }
            after = upto;
        }
        Ok(after.min(scan.upto).max(scan.after))
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
        let newest = self.newest_of(&topics).min(upto);
        let segments = self.directory.read().segments_between(floor, newest);
        for segment in segments.into_iter().rev() {
            let (after, last) = (floor.max(first_id(segment).saturating_sub(1)), last_id(segment).min(newest));
            let plan = self.plan(&db, &topics, segment, (after, last), &mut 0)?;
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
            match plan {
                Plan::Nothing => {}
                Plan::Seek(ids) => seek(&db, ids.into_iter().rev(), &mut visit)?,
                Plan::Look => records_backward(&db, after, last, &mut visit)?,
            }
            if let Some(cursor) = found {
                return Ok(cursor);
            }
        }
        Ok(floor)
    }

    /// The newest event of any of these topics, trimmed or not.
    fn newest_of(&self, topics: &Topics) -> EventId {
        let Topics::These(topics) = topics else { return EventId::MAX };
        let mut newest = 0;
        for some in topics.chunks(TOPICS_PER_LOOK) {
            let directory = self.directory.read();
            newest = some.iter().filter_map(|&t| directory.row(t)).map(|row| row.last).fold(newest, EventId::max);
        }
        newest
    }

    /// The cursor before the first event that is at `time` or later: times never decrease, so segments, then ids are halved.
    pub(super) fn seek_time(&self, db: &Handle<'_>, time: Millis) -> Result<EventId, StoreError> {
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
            records(db, middle - 1, high - 1, &mut |id, value| {
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

fn plan_for(ids: Vec<EventId>, after: EventId, upto: EventId) -> Plan {
    match ids.len() as u64 {
        0 => Plan::Nothing,
        n if n * DENSE_ONE_IN >= upto - after => Plan::Look,
        _ => Plan::Seek(ids),
    }
}

/// Which of `topics` have a share, and how many events these are. Both are ascending.
fn shared(topics: &[TopicNumber], shares: &[Share]) -> (Vec<TopicNumber>, u64) {
    let mut found = Vec::new();
    let mut events = 0;
    let mut take = |share: &Share| {
        found.push(share.topic);
        events += u64::from(share.events);
    };
    if topics.len() < shares.len() / 16 {
        for topic in topics {
            if let Ok(at) = shares.binary_search_by_key(topic, |s| s.topic) {
                take(&shares[at]);
            }
        }
    } else {
        let mut topics = topics.iter().peekable();
        for share in shares {
            while topics.next_if(|&&topic| topic < share.topic).is_some() {}
            if topics.next_if(|&&topic| topic == share.topic).is_some() {
                take(share);
            }
        }
    }
    (found, events)
}

/// Gets the records under `ids`, those that are still there, until `each` breaks.
fn seek(db: &Handle<'_>, ids: impl Iterator<Item = EventId>, each: Visit<'_>) -> Result<(), StoreError> {
    for id in ids {
        let value = db.get_pinned_cf(db.cf(LOG), log_key(id)).map_err(|e| read_failed(&e))?;
        if let Some(value) = value
            && each(id, &value)?.is_break()
        {
            break;
        }
    }
    Ok(())
}

fn records_backward(db: &Handle<'_>, after: EventId, upto: EventId, each: Visit<'_>) -> Result<(), StoreError> {
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
