//! Reading the directory back when the log is opened: topics, what was sealed, and the index of what was not.
//!
//! What holds: counts are exact, as postings know the bytes of each event; nothing lies past the tail. Must not write.

use super::directory::{Amount, Committed, Directory, Row, Segment};
use super::layout::{
    LOG, META, SEGMENT, SegmentNumber, Summary, TOPIC, TopicRow, first_id, last_id, log_key, meta, read_pair,
    segment_of,
};
use super::open::corrupt;
use super::read::entries;
use super::{Handle, KEY_BYTES, index};
use crate::event::EventId;
use crate::store::StoreError;
use crate::topic::Topic;

/// Everything that is committed, as the database says. Where the log was open before, `published` is its floor as readers were told it: what
/// lies above is found and counted until they are told of another one, also where the log's floor has risen.
pub fn recover(db: &Handle<'_>, published: Option<EventId>) -> Result<Directory, StoreError> {
    let mut directory = Directory::default();
    recover_meta(db, &mut directory)?;
    let log_floor = directory.log_floor;
    directory.begin_above(published.map_or(log_floor, |id| id.min(log_floor)));
    recover_topics(db, &mut directory)?;
    let sealed = recover_sealed(db, &mut directory)?;
    recover_open(db, &mut directory, sealed.map_or(0, |s| s + 1))?;
    directory.log_floor = log_floor;
    Ok(directory)
}

fn recover_meta(db: &Handle<'_>, directory: &mut Directory) -> Result<(), StoreError> {
    let metas = db.cf(META);
    let get = |key| db.get_cf(metas, key).map_err(|e| index::read_failed(&e));
    let bad = |what: &str| corrupt(&format!("its {what} cannot be read"));
    if let Some(bytes) = get(meta::TAIL)? {
        (directory.tail, directory.last_time) = read_pair(&bytes).ok_or_else(|| bad("tail"))?;
    }
    if let Some(bytes) = get(meta::FLOOR)? {
        directory.log_floor = <[u8; 8]>::try_from(&bytes[..]).map(u64::from_be_bytes).map_err(|_| bad("floor"))?;
    }
    if let Some(bytes) = get(meta::HOLE)? {
        directory.hole = read_pair(&bytes).ok_or_else(|| bad("hole"))?;
    }
    if let Some(bytes) = get(meta::NEXT_TOPIC)? {
        let next = <[u8; 4]>::try_from(&bytes[..]).map(u32::from_be_bytes).map_err(|_| bad("count of topics"))?;
        directory.reserve_topics(next);
    }
    Ok(())
}

fn recover_topics(db: &Handle<'_>, directory: &mut Directory) -> Result<(), StoreError> {
    let mut topics = Vec::new();
    let mut rows = db.raw_iterator_cf(db.cf(TOPIC));
    rows.seek_to_first();
    while let Some((name, value)) = rows.item() {
        let topic = std::str::from_utf8(name).ok().and_then(|name| Topic::parse(name).ok());
        let (Some(topic), Some(row)) = (topic, TopicRow::decode(value)) else {
            return Err(corrupt(&format!("the row of topic {:?} cannot be read", String::from_utf8_lossy(name))));
        };
        if row.number >= directory.next_topic() {
            return Err(corrupt(&format!("topic {topic} has number {}, which was never given", row.number)));
        }
        let TopicRow { number, floor, marks } = row;
        // Whatever the log has trimmed meanwhile: so far it came.
        let last = floor.max(marks.closed.unwrap_or(0));
        topics.push((number, Row { floor, published: floor, settled: floor, marks, last, ..Row::new(topic) }));
        rows.next();
    }
    rows.status().map_err(|e| index::read_failed(&e))?;
    // In the order in which they were given their numbers: what lists numbers only grows at its end.
    topics.sort_unstable_by_key(|(number, _)| *number);
    for (number, row) in topics {
        directory.insert(number, row);
    }
    Ok(())
}

/// Reads the summaries of the sealed segments; returns the last of them.
fn recover_sealed(db: &Handle<'_>, directory: &mut Directory) -> Result<Option<SegmentNumber>, StoreError> {
    let mut last = None;
    let mut rows = db.raw_iterator_cf(db.cf(SEGMENT));
    rows.seek_to_first();
    while let Some((key, value)) = rows.item() {
        let segment = <[u8; 4]>::try_from(key).map(u32::from_be_bytes);
        let (Ok(segment), Some(summary)) = (segment, Summary::decode(value)) else {
            return Err(corrupt(&"the summary of a segment cannot be read"));
        };
        let total = Amount { events: summary.events(), bytes: summary.bytes() };
        let mut known = Segment {
            first_time: summary.first_time,
            last_time: summary.last_time,
            total,
            live: Amount::default(),
            stored: total.bytes,
            rewritten: total.bytes,
        };
        for share in &summary.shares {
            let Some(row) = directory.row(share.topic) else { continue };
            let (base, newest) = (first_id(segment), first_id(segment) + u64::from(share.last));
            let floor = row.floor.max(directory.log_floor);
            let live = if floor < base || floor == 0 {
                Amount { events: share.events.into(), bytes: share.bytes }
            } else if floor >= newest {
                Amount::default()
            } else {
                Amount::of(&index::sealed_in(db, share.topic, segment, floor, last_id(segment))?)
            };
            known.live.add(live);
            directory.live.add(live);
            directory.saw(share.topic, newest);
            if let Some(row) = directory.row_mut(share.topic) {
                row.live.add(live);
            }
        }
        directory.segments.insert(segment, known);
        directory.presence.insert(segment, summary.shares.iter().map(|share| share.topic).collect());
        last = Some(segment);
        rows.next();
    }
    rows.status().map_err(|e| index::read_failed(&e))?;
    Ok(last)
}

/// Reads what is not sealed, builds its index again, and checks that nothing lies past the tail.
fn recover_open(db: &Handle<'_>, directory: &mut Directory, from: SegmentNumber) -> Result<(), StoreError> {
    let (tail, last_time) = (directory.tail, directory.last_time);
    let mut newest = 0;
    let mut records = db.raw_iterator_cf(db.cf(LOG));
    records.seek(log_key(first_id(from).max(directory.log_floor + 1)));
    while let Some((key, value)) = records.item() {
        for entry in entries(key, value)? {
            let (id, entry) = entry?;
            // Part of a pack may be trimmed.
            if id <= directory.log_floor {
                continue;
            }
            if id <= newest || segment_of(id) < from {
                return Err(corrupt(&format!("the pack of event {id} reaches into what lies before it")));
            }
            if id > tail {
                return Err(corrupt(&format!("event {id} lies past the tail {tail}")));
            }
            let topic = entry.topic;
            if directory.row(topic).is_none() {
                return Err(corrupt(&format!("event {id} belongs to topic number {topic}, which is not known")));
            }
            let bytes = u32::try_from(entry.encoded_len()).map_err(|_| corrupt(&format!("event {id} is too large")))?;
            directory.committed([Committed { id, topic, bytes: KEY_BYTES + bytes, time: entry.time }]);
            newest = id;
        }
        records.next();
    }
    records.status().map_err(|e| index::read_failed(&e))?;
    directory.last_time = last_time;
    let gone = tail <= directory.log_floor || directory.rows().any(|(_, row)| row.floor >= tail);
    let sealed = segment_of(tail) < from;
    if newest < tail && !gone && !sealed {
        return Err(corrupt(&format!("the newest event is {newest}, but {tail} was written")));
    }
    for (&segment, s) in directory.segments.range(from..) {
        debug_assert!(s.total.events > 0, "segment {segment} was made for an event");
    }
    Ok(())
}
