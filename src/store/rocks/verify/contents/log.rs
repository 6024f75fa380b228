//! The log: every record, and with each segment what its index says of it.
//!
//! What holds of a sealed segment: its row counts what was appended to it, whatever is trimmed since; each topic's postings say the same
//! one by one, unless they are gone with the topic's floor; each record has a posting, and each posting that lies above the floors a
//! record. The postings themselves are then counted, so that none is of a topic that has no share.

use std::collections::HashMap;

use super::super::super::KEY_BYTES;
use super::super::super::layout::{
    LOG, META, POSTINGS, SEGMENT, STATE, SegmentNumber, Share, Summary, decode_postings, first_id, last_id, log_id,
    log_key, meta, offset_of, postings_key, postings_place, segment_of, state_event, state_key,
};
use super::super::super::read::entry_of;
use super::super::Counted;
use super::{Log, Rows};
use crate::event::{EventId, EventType, Key, Millis};
use crate::record::{Entry, Malformed, Record, Records, TopicNumber};

/// Keys that were put and are not in the state, of which it is not yet known whether they are taken away later on: some 100 MB.
const PENDING_MAX: usize = 1 << 20;

/// The records of one segment above the log's floor.
#[derive(Default)]
struct Segment {
    /// By topic, offset and bytes of each, ascending.
    of: HashMap<TopicNumber, Vec<(u16, u32)>>,
    records: u64,
    times: Option<(Millis, Millis)>,
}

struct Walk<'a> {
    rows: &'a Rows,
    log: &'a mut Log,
    segment: SegmentNumber,
    records: Segment,
    newest: EventId,
    time: Millis,
    pending: HashMap<(TopicNumber, String), EventId>,
    is_pending_full: bool,
}

pub fn check(rows: &Rows, log: &mut Log, to: &mut Counted<'_>) {
    let mut walk = Walk {
        rows,
        log,
        segment: 0,
        records: Segment::default(),
        newest: 0,
        time: 0,
        pending: HashMap::new(),
        is_pending_full: false,
    };
    rows.all(LOG, to, &mut |key, value, to| walk.row(key, value, to));
    walk.end(to);
    check_postings(rows, log, to);
}

impl Walk<'_> {
    fn row(&mut self, key: &[u8], value: &[u8], to: &mut Counted<'_>) {
        let Some(newest) = log_id(key).filter(|&id| id > 0) else { return to.damage("log", "a record has no id") };
        let records = match Records::of(value) {
            Ok(records) => records,
            Err(error) => return to.damage(format!("log: id {newest}"), format!("it cannot be read: {error}")),
        };
        let Some(before) = newest.checked_sub(records.left()).filter(|&before| before >= self.newest) else {
            return to.damage(format!("log: id {newest}"), "its pack begins among the events before it");
        };
        if segment_of_any(before + 1) != segment_of_any(newest) {
            to.damage(format!("log: id {newest}"), "its pack lies in two segments");
        }
        for (id, entry) in (before + 1..=newest).zip(records) {
            self.event(id, entry, to);
        }
    }

    fn event(&mut self, id: EventId, entry: Result<Entry<'_>, Malformed>, to: &mut Counted<'_>) {
        let place = || format!("log: id {id}");
        if segment_of_any(id) != Some(self.segment) {
            self.leave(segment_of_any(id).unwrap_or(SegmentNumber::MAX), to);
        }
        self.newest = id;
        let log = &*self.log;
        if id > log.tail {
            to.damage(place(), format!("it lies past the tail {}", log.tail));
        }
        if log.hole.0 <= id && id <= log.hole.1 {
            to.damage(place(), format!("it lies in the hole {:?}, under which nothing was ever written", log.hole));
        }
        let record = match entry.and_then(Entry::record) {
            Ok(record) => record,
            Err(error) => return to.damage(place(), format!("it cannot be read: {error}")),
        };
        let Record { topic, time, event, key, .. } = record;
        if time < self.time {
            to.damage(place(), format!("its time {time} is before that of the event before it, {}", self.time));
        }
        if id == log.tail && time != log.last_time {
            to.damage(place(), format!("its time is {time}, and {} is noted for the newest event", log.last_time));
        }
        self.time = self.time.max(time);
        if event.is_some_and(|event| !matches!(EventType::parse(event), Ok(Some(_)))) {
            to.damage(place(), "its type is none that is taken");
        }
        if key.is_some_and(|key| Key::parse(key).is_err()) {
            to.damage(place(), "its key is none that is taken");
        }
        let bytes = KEY_BYTES.saturating_add(u32::try_from(record.encoded_len()).unwrap_or(u32::MAX));
        // What lies below the log's floor was not indexed by a start since, or is in an index that is gone.
        if id > log.floor {
            self.records.of.entry(topic).or_default().push((offset_of(id), bytes));
            self.records.records += 1;
            let (first, last) = self.records.times.unwrap_or((time, time));
            self.records.times = Some((first.min(time), last.max(time)));
        }
        match log.topics.get(&topic) {
            Some(known) => {
                if let Some(closed) = known.marks.closed.filter(|&closed| id > closed) {
                    to.damage(place(), format!("its topic {} was closed at {closed}", known.name.as_str()));
                }
                if id > known.floor.max(log.floor) {
                    to.summary.events += 1;
                    self.is_in_index(id, to);
                }
            }
            None if id > log.floor => to.damage(place(), format!("it is of topic number {topic}, which is not known")),
            None => {}
        }
        if let Some(key) = key {
            self.keyed(id, (key, &record), to);
        }
    }

    /// What is not found by the index is found by nobody: segments before the last that is sealed are not read at a start.
    fn is_in_index(&self, id: EventId, to: &mut Counted<'_>) {
        let last_sealed = self.log.sealed.last_key_value().map(|(&segment, _)| segment);
        if last_sealed.is_some_and(|last| self.segment < last) && !self.log.sealed.contains_key(&self.segment) {
            to.damage(format!("log: id {id}"), format!("its segment {} has no row, so it is not found", self.segment));
        }
    }

    /// Compares an event that has a key with what the state has under it.
    fn keyed(&mut self, id: EventId, (key, record): (&str, &Record<'_>), to: &mut Counted<'_>) {
        let Record { topic, data, .. } = *record;
        let damage = |to: &mut Counted<'_>, what: &str| {
            to.damage(format!("log: id {id}"), what.to_owned() + &format!(" (key {key:?})"));
        };
        let place = (topic, key.to_owned());
        if data.is_empty() {
            self.pending.remove(&place);
        }
        // Where it cannot be read, the state's own pass tells.
        let Ok(row) = self.rows.get(STATE, state_key(topic, key)) else { return };
        let row = row.as_deref().map(state_event);
        match row {
            Some(Some((newest, kept))) if newest == id => {
                if data.is_empty() {
                    damage(to, "the state has it, though it takes its key away");
                } else if Record::decode(kept).as_ref() != Ok(record) {
                    damage(to, "the state has another event under its id");
                }
            }
            Some(Some((newest, _))) if newest < id => damage(to, "it is newer than what the state has under its key"),
            Some(_) => {}
            // Deleting a topic takes its keys away, and trims all of it.
            None if data.is_empty() || id <= self.log.floor_of(topic) => {}
            None if self.pending.len() < PENDING_MAX => drop(self.pending.insert(place, id)),
            None => self.is_pending_full = true,
        }
    }

    /// Goes on to the segment `next`, past others that may be sealed and hold nothing any more.
    fn leave(&mut self, next: SegmentNumber, to: &mut Counted<'_>) {
        let records = std::mem::take(&mut self.records);
        let here = self.segment;
        self.segment = next;
        if self.log.sealed.contains_key(&here) {
            self.compare(here, &records, to);
        }
        let later = self.log.sealed.range(here..).map(|(&segment, _)| segment).filter(|&segment| segment > here);
        let between: Vec<SegmentNumber> = later.take_while(|&segment| segment < next).collect();
        for segment in between {
            self.compare(segment, &Segment::default(), to);
        }
    }

    fn end(&mut self, to: &mut Counted<'_>) {
        self.leave(SegmentNumber::MAX, to);
        let log = &*self.log;
        let is_gone = log.tail <= log.floor || log.highest >= log.tail;
        if self.newest < log.tail && !is_gone {
            to.damage("log", format!("the newest event is {}, but {} was written", self.newest, log.tail));
        }
        if let Ok(None) = self.rows.get(META, meta::TAIL)
            && self.newest > 0
        {
            to.damage("meta", "the tail is missing");
        }
        let mut pending: Vec<_> = self.pending.drain().map(|((_, key), id)| (id, key)).collect();
        pending.sort_unstable();
        for (id, key) in pending {
            to.damage(format!("log: id {id}"), format!("it is the newest of its key {key:?}, and the state has none"));
        }
        if self.is_pending_full {
            to.note("state", "so many keys were taken away that not all of them could be followed");
        }
    }

    /// Compares a sealed segment's row and its postings with its records.
    fn compare(&mut self, segment: SegmentNumber, records: &Segment, to: &mut Counted<'_>) {
        let place = format!("segment {segment}");
        let summary = match self.rows.get(SEGMENT, segment.to_be_bytes()) {
            Ok(row) => row.as_deref().and_then(Summary::decode),
            Err(error) => return to.damage(place, format!("its row cannot be read: {error}")),
        };
        // That it cannot be decoded was told.
        let Some(summary) = summary else { return };
        if let Some((first, last)) = records.times {
            let is_whole = records.records == summary.events();
            let (from, upto) = (summary.first_time, summary.last_time);
            if first < from || last > upto || is_whole && (first, last) != (from, upto) {
                to.damage(
                    &place,
                    format!("its events are of the times {first} to {last}, and it says {from} to {upto}"),
                );
            }
        }
        for share in &summary.shares {
            let of: &[(u16, u32)] = records.of.get(&share.topic).map_or(&[], Vec::as_slice);
            self.compare_share(segment, share, of, to);
        }
        for topic in records.of.keys() {
            if summary.shares.binary_search_by_key(topic, |share| share.topic).is_err() {
                to.damage(&place, format!("it holds events of topic number {topic}, and its row says nothing of them"));
            }
        }
    }

    fn compare_share(&mut self, segment: SegmentNumber, share: &Share, records: &[(u16, u32)], to: &mut Counted<'_>) {
        let place = format!("segment {segment}: topic number {}", share.topic);
        let floor = self.log.floor_of(share.topic);
        let row = match self.rows.get(POSTINGS, postings_key(share.topic, segment)) {
            Ok(row) => row,
            Err(error) => return to.damage(place, format!("its postings cannot be read: {error}")),
        };
        let Some(row) = row else {
            if floor < last_id(segment) {
                to.damage(place, "its postings are missing");
            }
            return;
        };
        *self.log.sealed.entry(segment).or_default() += 1;
        let Some(postings) = decode_postings(&row) else { return to.damage(place, "its postings cannot be read") };
        let bytes: u64 = postings.iter().map(|&(_, bytes)| u64::from(bytes)).sum();
        let last = postings.last().map(|&(offset, _)| offset);
        let said = (u64::from(share.events), share.bytes, Some(share.last));
        if (postings.len() as u64, bytes, last) != said {
            let events = postings.len();
            to.damage(&place, format!(
                "its postings count {events} events of {bytes} bytes, and the segment's row {} of {}, or they end at another",
                share.events, share.bytes
            ));
        }
        let mut records = records.iter().peekable();
        for posting in &postings {
            let id = first_id(segment) + u64::from(posting.0);
            while let Some(record) = records.next_if(|record| record.0 < posting.0) {
                not_in_postings(segment, record.0, to);
            }
            match records.next_if(|record| record.0 == posting.0) {
                Some(record) if record.1 == posting.1 => {}
                Some(record) => to.damage(
                    format!("log: id {id}"),
                    format!("it has {} bytes, and its posting says {}", record.1, posting.1),
                ),
                None if id > floor => {
                    to.damage(format!("log: id {id}"), "it is missing, though its topic's postings name it");
                }
                None => {}
            }
        }
        for record in records {
            not_in_postings(segment, record.0, to);
        }
    }
}

fn not_in_postings(segment: SegmentNumber, offset: u16, to: &mut Counted<'_>) {
    let id = first_id(segment) + u64::from(offset);
    to.damage(format!("log: id {id}"), "its topic's postings do not name it");
}

/// Of ids that no log has, none.
fn segment_of_any(id: EventId) -> Option<SegmentNumber> {
    (id >> 48 == 0).then(|| segment_of(id))
}

/// Each of the postings can be read, and belongs to a share.
fn check_postings(rows: &Rows, log: &mut Log, to: &mut Counted<'_>) {
    let mut found: HashMap<SegmentNumber, u64> = HashMap::new();
    rows.all(POSTINGS, to, &mut |key, value, to| {
        let Some((topic, segment)) = postings_place(key) else { return to.damage("postings", "a row has no segment") };
        if decode_postings(value).is_none() {
            to.damage(format!("segment {segment}: topic number {topic}"), "its postings cannot be read");
        }
        if topic >= log.next_topic {
            to.damage(format!("segment {segment}: topic number {topic}"), "the number was never given");
        }
        if log.sealed.contains_key(&segment) {
            *found.entry(segment).or_default() += 1;
        } else if last_id(segment) > log.floor && log.sealed.last_key_value().is_some_and(|(&last, _)| segment < last) {
            // Below the floor a segment's row goes first; what is behind the last sealed one, a stop has left of sealing it.
            to.damage(
                format!("segment {segment}: topic number {topic}"),
                "it has postings, though the segment is not sealed",
            );
        }
    });
    for (segment, asked) in &log.sealed {
        let found = found.get(segment).copied().unwrap_or(0);
        if found != *asked {
            to.damage(
                format!("segment {segment}"),
                format!("it has {found} rows of postings, and its row speaks of {asked}"),
            );
        }
    }
}

/// An event as a record alone, if it is there; what cannot be read is not there, and was told.
pub fn record_of(rows: &Rows, id: EventId) -> Result<Option<Vec<u8>>, rocksdb::Error> {
    let Some((key, value)) = rows.at_or_after(LOG, log_key(id))? else { return Ok(None) };
    let entry = log_id(&key).and_then(|newest| entry_of(id, newest, &value).ok()?);
    let record = entry.and_then(|entry| entry.record().ok());
    Ok(record.map(|record| {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        bytes
    }))
}
