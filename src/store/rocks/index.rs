//! The index of the log by topic: which segments and which ids, from memory while a segment is open, from disk once it is sealed.
//!
//! What holds: a topic's events are found by its postings, never by looking through other topics' events, unless those are so few
//! that looking is cheaper. Must not read records.

use std::collections::VecDeque;
use std::sync::Arc;

use rocksdb::{DBPinnableSlice, ReadOptions};

use super::directory::range_within;
use super::layout::{
    POSTINGS, Posting, SEGMENT, SegmentNumber, Share, Summary, decode_postings, first_id, postings_key, postings_place,
    segment_of,
};
use super::open::corrupt;
use super::resolve::Topics;
use super::unsealed::OpenSegment;
use super::{Handle, RocksStore};
use crate::event::EventId;
use crate::record::TopicNumber;
use crate::store::StoreError;

/// With at least one match in so many events of a segment, reading them all is cheaper than seeking each match: a seek costs
/// about 9 µs, a record passed over 0.4 µs and less.
pub const DENSE_ONE_IN: u64 = 64;

/// Up to so many topics are looked up in the postings one by one; for more of them the segment's summary is read first, which takes
/// as long.
pub const FEW_TOPICS: usize = 32;

/// Ids of an open segment that are looked at under one hold of the directory's lock: appends wait for it.
pub const IDS_PER_LOOK: u64 = 4096;

/// Up to so many topics are followed through an open segment each by its chain, and asked for in what is known of a sealed one, which
/// takes some 20 ns each; for more of them all of its entries are looked at, or its summary is read.
pub const CHAINED_MAX: usize = 1024;

/// What counts as one record looked at, when the shares of a summary are gone through.
const SHARES_PER_LOOK: usize = 32;

/// Most decoded summaries that are kept: at most 65,536 topics of 24 bytes each.
const SUMMARIES_MAX: usize = 8;

/// The newest decoded summaries.
#[derive(Default)]
pub struct Summaries(VecDeque<(SegmentNumber, Arc<Summary>)>);

impl Summaries {
    pub fn forget(&mut self, segment: SegmentNumber) {
        self.0.retain(|(s, _)| *s != segment);
    }
}

/// How the matching events of one segment are found.
pub enum Plan {
    /// None are there.
    Nothing,
    /// Look at every record.
    Look,
    /// Get just these.
    Seek(Vec<EventId>),
}

/// Events of one topic: each id with its bytes.
pub type Postings = Vec<(EventId, u32)>;

/// Is given the postings of a segment; answers whether to go on.
type EachSegment<'a> = dyn FnMut(SegmentNumber, &[(EventId, u32)]) -> bool + 'a;

pub fn read_failed(e: &rocksdb::Error) -> StoreError {
    match e.kind() {
        rocksdb::ErrorKind::Corruption => corrupt(e),
        _ => StoreError::io("reading the log")(e),
    }
}

fn decoded(value: &[u8], topic: TopicNumber, segment: SegmentNumber) -> Result<Vec<Posting>, StoreError> {
    decode_postings(value)
        .ok_or_else(|| corrupt(&format!("the postings of topic number {topic} in segment {segment} cannot be read")))
}

/// The ids that `value`, the postings of a topic in a sealed segment, gives within `after < id <= upto`.
pub fn sealed_ids(
    value: &[u8],
    topic: TopicNumber,
    segment: SegmentNumber,
    after: EventId,
    upto: EventId,
) -> Result<impl Iterator<Item = EventId> + use<>, StoreError> {
    Ok(placed(segment, &decoded(value, topic, segment)?, after, upto).into_iter().map(|(id, _)| id))
}

/// What is stored of one topic's events in a sealed segment.
pub fn stored_postings<'a>(
    db: &'a Handle<'_>,
    topic: TopicNumber,
    segment: SegmentNumber,
) -> Result<Option<DBPinnableSlice<'a>>, StoreError> {
    db.get_pinned_cf(db.cf(POSTINGS), postings_key(topic, segment)).map_err(|e| read_failed(&e))
}

/// The ids of one topic in a sealed segment, within `after < id <= upto`, each with its bytes.
pub fn sealed_in(
    db: &Handle<'_>,
    topic: TopicNumber,
    segment: SegmentNumber,
    after: EventId,
    upto: EventId,
) -> Result<Postings, StoreError> {
    let Some(value) = stored_postings(db, topic, segment)? else { return Ok(Vec::new()) };
    Ok(placed(segment, &decoded(&value, topic, segment)?, after, upto))
}

/// Gives the ids of one topic within `after < id <= upto`, each with its bytes, segment by segment, until `each` answers no.
/// `upto` must lie in a sealed segment: what a stop has left of a sealing is no index.
pub fn sealed_postings(
    db: &Handle<'_>,
    topic: TopicNumber,
    after: EventId,
    upto: EventId,
    each: &mut EachSegment<'_>,
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

fn placed(segment: SegmentNumber, postings: &[Posting], after: EventId, upto: EventId) -> Postings {
    let within = range_within(segment, postings, |p| p.0, after, upto);
    within.iter().map(|&(offset, bytes)| (first_id(segment) + u64::from(offset), bytes)).collect()
}

impl RocksStore {
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
    pub(super) fn plan(
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
        let known = if topics.len() > CHAINED_MAX { None } else { self.directory.read().presence.of(segment, topics) };
        let present: Vec<TopicNumber>;
        let present = if let Some(few) = known.filter(|there| there.len() <= FEW_TOPICS) {
            present = few;
            &present
        } else if topics.len() > FEW_TOPICS {
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
        if topics.len() <= CHAINED_MAX {
            let mut ids: Vec<EventId> = Vec::new();
            for some in topics.chunks(FEW_TOPICS) {
                let directory = self.directory.read();
                let open = directory.open.get(&segment)?;
                ids.extend(some.iter().flat_map(|&t| open.events_of(segment, t, after, upto)).map(|(id, _)| id));
            }
            ids.sort_unstable();
            return Some(ids);
        }
        let mut ids = Vec::new();
        let mut from = after;
        while from < upto {
            let to = upto.min(from + IDS_PER_LOOK);
            let directory = self.directory.read();
            let open: &OpenSegment = directory.open.get(&segment)?;
            let some = range_within(segment, open.entries(), |entry| entry.offset, from, to).iter();
            let some = some.filter(|entry| topics.binary_search(&entry.topic).is_ok());
            ids.extend(some.map(|entry| first_id(segment) + u64::from(entry.offset)));
            from = to;
        }
        Some(ids)
    }
}

pub fn plan_for(ids: Vec<EventId>, after: EventId, upto: EventId) -> Plan {
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
