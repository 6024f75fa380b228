//! Reading the log: forward in id order, backward for the last few, by time.
//!
//! What holds: what lies below a floor is hidden from when readers were told the floor, not before; no iterator and no lock outlives a
//! call. Must not write.

use std::hash::BuildHasherDefault;
use std::ops::{ControlFlow, Range};

use rocksdb::{DBRawIterator, ReadOptions};

use super::index::{Plan, read_failed};
use super::layout::{LOG, first_id, last_id, log_id, log_key};
use super::number::ByNumber;
use super::open::corrupt;
use super::resolve::Topics;
use super::search::{Search, Step};
use super::{Handle, RocksStore};
use crate::event::{EventId, EventRef, Millis};
use crate::record::{Entry, PACK_EVENTS_MAX, PACK_VERSION, Record, Records, TopicNumber};
use crate::store::{Back, SCAN_RECORDS_MAX, Scan, StoreError};
use crate::topic::{Filter, Topic};

/// Up to so many topics have their events counted together: each costs 0.1 µs, and appends wait.
const COUNTED_MAX: usize = 1024;

/// Up to so many ids before the end of what is read, blocks are kept in the cache: records of 256 B come to a quarter of its 64 MiB.
const RECENT: EventId = 64 << 10;

/// What is done with an event: go on, or stop.
type Visit<'a> = dyn FnMut(EventId, Entry<'_>) -> Result<ControlFlow<()>, StoreError> + 'a;

/// Topics that one read meets without making room for more of them.
const SEEN: usize = 64;

/// What is remembered of a topic during one read: `None` where its events are not wanted.
type Seen = Option<(Topic, EventId)>;

/// Turns records into events: knows the topics' names and floors, asking the directory once for each.
struct Reader<'a> {
    store: &'a RocksStore,
    filter: &'a Filter,
    topics: Topics,
    /// As readers were told it; so are the topics' floors.
    log_floor: EventId,
    seen: Vec<Seen>,
    /// Where in `seen` a topic is.
    places: ByNumber<usize>,
    /// The topic of the event before, most often the next one's too, and its place.
    before: Option<(TopicNumber, usize)>,
    /// How many records were of these topics.
    wanted: u64,
}

impl Reader<'_> {
    /// The event, when it matches and is not trimmed.
    fn event<'b>(&'b mut self, id: EventId, entry: Entry<'b>) -> Result<Option<EventRef<'b>>, StoreError> {
        let place = match self.before {
            Some((topic, place)) if topic == entry.topic => place,
            _ => self.look_at(entry.topic),
        };
        let Some((name, floor)) = &self.seen[place] else { return Ok(None) };
        self.wanted += 1;
        if id <= (*floor).max(self.log_floor) {
            return Ok(None);
        }
        let record = entry.record().map_err(|e| unreadable(id, &e))?;
        if !self.filter.matches_type(record.event) {
            return Ok(None);
        }
        let Record { time, event, key, data, .. } = record;
        Ok(Some(EventRef { id, topic: name.as_str(), event, key, time, data }))
    }

    /// Where `topic` is in `seen`.
    fn look_at(&mut self, topic: TopicNumber) -> usize {
        let Self { store, topics, seen, places, .. } = self;
        let place = *places.entry(topic).or_insert_with(|| {
            // A forgotten topic has no name any more: all of its events lie below a floor.
            let known = || store.directory.read().row(topic).map(|row| (row.topic.clone(), row.published));
            seen.push(if topics.contains(topic) { known() } else { None });
            seen.len() - 1
        });
        self.before = Some((topic, place));
        place
    }
}

fn unreadable(id: EventId, cause: &dyn std::fmt::Display) -> StoreError {
    corrupt(&format!("event {id} cannot be read: {cause}"))
}

/// The events that lie under one key of the log, each with its id, in order.
pub(super) fn entries<'a>(
    key: &[u8],
    value: &'a [u8],
) -> Result<impl Iterator<Item = Result<(EventId, Entry<'a>), StoreError>>, StoreError> {
    let newest = log_id(key).ok_or_else(|| corrupt(&"a record has no id"))?;
    let records = Records::of(value).map_err(|e| unreadable(newest, &e))?;
    let before = newest.checked_sub(records.left()).ok_or_else(|| corrupt(&"a pack begins before the first event"))?;
    let placed = (before + 1..=newest).zip(records);
    Ok(placed.map(|(id, entry)| Ok((id, entry.map_err(|e| unreadable(id, &e))?))))
}

/// Looks at the events with `after < id <= upto` in order until `each` breaks.
pub(super) fn records(db: &Handle<'_>, after: EventId, upto: EventId, each: &mut Visit<'_>) -> Result<(), StoreError> {
    records_with(ReadOptions::default(), db, after, upto, each)
}

fn records_with(
    mut options: ReadOptions,
    db: &Handle<'_>,
    after: EventId,
    upto: EventId,
    each: &mut Visit<'_>,
) -> Result<(), StoreError> {
    // The last of them may lie in a pack with some behind it.
    options.set_iterate_upper_bound(log_key(upto + PACK_EVENTS_MAX as u64));
    let mut it = db.raw_iterator_cf_opt(db.cf(LOG), options);
    it.seek(log_key(after + 1));
    while let Some((key, value)) = it.item() {
        for entry in entries(key, value)? {
            let (id, entry) = entry?;
            if id > upto || id > after && each(id, entry)?.is_break() {
                return Ok(());
            }
            if id == upto {
                return Ok(());
            }
        }
        it.next();
    }
    it.status().map_err(|e| read_failed(&e))
}

impl RocksStore {
    fn reader<'a>(&'a self, filter: &'a Filter) -> Reader<'a> {
        let topics = self.topics_of(filter);
        let log_floor = self.directory.read().log_published;
        Reader {
            store: self,
            filter,
            topics,
            log_floor,
            seen: Vec::with_capacity(SEEN),
            places: ByNumber::with_capacity_and_hasher(SEEN, BuildHasherDefault::default()),
            before: None,
            wanted: 0,
        }
    }

    pub(super) fn read_forward(
        &self,
        db: &Handle<'_>,
        scan: Scan<'_>,
        each: &mut dyn FnMut(&EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<EventId, StoreError> {
        let mut reader = self.reader(scan.filter);
        let mut after = scan.after.max(reader.log_floor);
        let mut search = Search::new(self, &reader.topics, after);
        let mut looked = 0;
        while after < scan.upto && looked < SCAN_RECORDS_MAX {
            let Step { after: from, upto, plan } = search.next(db, after, scan.upto, &mut looked)?;
            after = from;
            let wanted = reader.wanted;
            let mut stopped_at = None;
            let mut visit = |id: EventId, entry: Entry<'_>| -> Result<ControlFlow<()>, StoreError> {
                looked += 1;
                let stop = match reader.event(id, entry)? {
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
                Plan::Look => {
                    let mut options = ReadOptions::default();
                    // What many come back to is what was missed last. Who reads on from farther away would only drive that out of the cache.
                    options.fill_cache(scan.upto - scan.after <= RECENT);
                    records_with(options, db, after, upto, &mut visit)?;
                }
                Plan::Seek(ids) => seek(db, ids.into_iter(), &mut visit)?,
            }
            if let Some(id) = stopped_at {
                return Ok(id);
            }
            search.was_looked_at(reader.wanted - wanted, upto - after);
            after = upto;
        }
        Ok(after.min(scan.upto).max(scan.after))
    }

    pub(super) fn read_backward(
        &self,
        db: &Handle<'_>,
        filter: &Filter,
        n: u64,
        upto: EventId,
    ) -> Result<Back, StoreError> {
        let mut reader = self.reader(filter);
        let topics = reader.topics.clone();
        let floor = reader.log_floor;
        if n == 0 || upto <= floor || n > self.retained_at_most(&topics) {
            return Ok(Back { cursor: if n == 0 { upto } else { floor.min(upto) }, left: 0 });
        }
        let (mut left, mut looked) = (n, 0);
        let newest = self.newest_of(&topics).min(upto);
        let segments = self.directory.read().segments_between(floor, newest);
        for segment in segments.into_iter().rev() {
            let (after, last) = (floor.max(first_id(segment).saturating_sub(1)), last_id(segment).min(newest));
            if looked >= SCAN_RECORDS_MAX {
                return Ok(Back { cursor: last, left });
            }
            looked += 1;
            let plan = self.plan(db, &topics, segment, (after, last), &mut looked)?;
            let mut stopped_at = None;
            let mut visit = |id: EventId, entry: Entry<'_>| -> Result<ControlFlow<()>, StoreError> {
                looked += 1;
                left -= u64::from(reader.event(id, entry)?.is_some());
                if left == 0 || looked >= SCAN_RECORDS_MAX {
                    stopped_at = Some(id - 1);
                    return Ok(ControlFlow::Break(()));
                }
                Ok(ControlFlow::Continue(()))
            };
            match plan {
                Plan::Nothing => {}
                Plan::Seek(ids) => seek(db, ids.into_iter().rev(), &mut visit)?,
                Plan::Look => records_backward(db, after, last, &mut visit)?,
            }
            if let Some(cursor) = stopped_at {
                return Ok(Back { cursor, left });
            }
        }
        Ok(Back { cursor: floor, left: 0 })
    }

    /// No more events than so many of these topics are retained; of many topics it is not asked.
    fn retained_at_most(&self, topics: &Topics) -> u64 {
        let directory = self.directory.read();
        match topics {
            Topics::These(topics) if topics.len() <= COUNTED_MAX => {
                topics.iter().filter_map(|&t| directory.row(t)).map(|row| row.live.events).sum()
            }
            _ => directory.live.events,
        }
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
            records(db, middle - 1, high - 1, &mut |id, entry| {
                newest_looked = Some((id, entry.time));
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

/// Gets the events with `ids`, those that are still there, until `each` breaks.
fn seek(db: &Handle<'_>, ids: impl Iterator<Item = EventId>, each: &mut Visit<'_>) -> Result<(), StoreError> {
    let mut events = Events { db, pack: None, nothing: 0..0, it: None };
    for id in ids {
        if events.look(id, each)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// Finds events one by one; what lies in one pack, and where there is nothing, in one look-up.
struct Events<'a> {
    db: &'a Handle<'a>,
    /// The last pack in which one was found, and its key.
    pack: Option<(EventId, Vec<u8>)>,
    /// Where the last one was looked for that was not found, nothing is.
    nothing: Range<EventId>,
    it: Option<DBRawIterator<'a>>,
}

impl Events<'_> {
    fn look(&mut self, id: EventId, each: &mut Visit<'_>) -> Result<ControlFlow<()>, StoreError> {
        let Self { db, pack, nothing, it } = self;
        if nothing.contains(&id) {
            return Ok(ControlFlow::Continue(()));
        }
        if let Some((newest, pack)) = pack
            && id <= *newest
            && let Some(entry) = entry_of(id, *newest, pack)?
        {
            return each(id, entry);
        }
        // Most rare events lie alone, and a look-up costs less than an iterator, which asks each of the tables that have not been merged.
        let alone = db.get_pinned_cf(db.cf(LOG), log_key(id)).map_err(|e| read_failed(&e))?;
        if let Some(value) = alone {
            let entry = entry_of(id, id, &value)?.ok_or_else(|| unreadable(id, &"it is not where it lies"))?;
            if value.first() == Some(&PACK_VERSION) {
                *pack = Some((id, value.to_vec()));
            }
            return each(id, entry);
        }
        let it = it.get_or_insert_with(|| db.raw_iterator_cf(db.cf(LOG)));
        it.seek(log_key(id));
        let mut behind = EventId::MAX;
        if let Some((key, value)) = it.item() {
            let newest = log_id(key).ok_or_else(|| corrupt(&"a record has no id"))?;
            if let Some(entry) = entry_of(id, newest, value)? {
                let found = each(id, entry)?;
                *pack = Some((newest, value.to_vec()));
                return Ok(found);
            }
            if let Some(first) = entries(key, value)?.next() {
                behind = first?.0;
            }
            it.prev();
        } else {
            it.status().map_err(|e| read_failed(&e))?;
            it.seek_to_last();
        }
        let before = it.key().map(|key| log_id(key).ok_or_else(|| corrupt(&"a record has no id"))).transpose()?;
        it.status().map_err(|e| read_failed(&e))?;
        *nothing = before.map_or(0, |newest| newest + 1)..behind;
        Ok(ControlFlow::Continue(()))
    }
}

/// The event `id`, if it lies in this record or pack, of which the newest is `newest`. All of a pack is looked at, since what is damaged
/// may give its events other ids.
pub(super) fn entry_of(id: EventId, newest: EventId, value: &[u8]) -> Result<Option<Entry<'_>>, StoreError> {
    let mut found = None;
    for entry in entries(&log_key(newest), value)? {
        let (at, entry) = entry?;
        if at == id {
            found = Some(entry);
        }
    }
    Ok(found)
}

fn records_backward(db: &Handle<'_>, after: EventId, upto: EventId, each: &mut Visit<'_>) -> Result<(), StoreError> {
    let mut it = db.raw_iterator_cf(db.cf(LOG));
    // What lies there may be a pack with some before it.
    it.seek(log_key(upto));
    if !it.valid() {
        it.status().map_err(|e| read_failed(&e))?;
        it.seek_to_last();
    }
    while let Some((key, value)) = it.item() {
        let all: Vec<_> = entries(key, value)?.collect::<Result<_, _>>()?;
        for (id, entry) in all.into_iter().rev() {
            if id <= after || id <= upto && each(id, entry)?.is_break() {
                return Ok(());
            }
        }
        it.prev();
    }
    it.status().map_err(|e| read_failed(&e))
}

#[cfg(test)]
mod tests;
