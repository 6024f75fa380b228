//! Reading the log: forward in id order, backward for the last few, by time.
//!
//! What holds: what lies below a floor is hidden from when readers were told the floor, not before; no iterator and no lock outlives a
//! call. Must not write.

use std::collections::HashMap;
use std::ops::ControlFlow;

use rocksdb::ReadOptions;

use super::index::{DENSE_ONE_IN, FEW_TOPICS, IDS_PER_LOOK, Plan, read_failed};
use super::layout::{LOG, first_id, last_id, log_id, log_key, segment_of};
use super::open::corrupt;
use super::resolve::Topics;
use super::{Handle, RocksStore};
use crate::event::{EventId, EventRef, Millis};
use crate::record::{Record, TopicNumber};
use crate::store::{SCAN_RECORDS_MAX, Scan, StoreError};
use crate::topic::{Filter, Topic};

/// Records that are looked at in a sealed segment before its index is asked for many topics: where some of them match, looking on
/// is cheaper than finding every match of the segment for each 64 KiB that a reader takes.
const PROBE: u64 = 512;

/// What is done with a record: go on, or stop.
type Visit<'a> = dyn FnMut(EventId, &[u8]) -> Result<ControlFlow<()>, StoreError> + 'a;

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

/// Looks at the records with `after < id <= upto` in order until `each` breaks.
pub(super) fn records(db: &Handle<'_>, after: EventId, upto: EventId, each: &mut Visit<'_>) -> Result<(), StoreError> {
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

/// Gets the records under `ids`, those that are still there, until `each` breaks.
fn seek(db: &Handle<'_>, ids: impl Iterator<Item = EventId>, each: &mut Visit<'_>) -> Result<(), StoreError> {
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

fn records_backward(db: &Handle<'_>, after: EventId, upto: EventId, each: &mut Visit<'_>) -> Result<(), StoreError> {
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
