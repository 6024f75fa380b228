//! Appending: one write batch carries the records, what they change in the state, what is to be remembered of them, and the new tail.
//!
//! What holds: what has no key and nothing to be remembered costs no look-up and no write beside its record's, and what follows one
//! another on a topic at one time shares a write, as a pack. Topics get their numbers, and become *keyed*, in the batch of the event that
//! makes them so.

use std::collections::{HashMap, HashSet};

use rocksdb::{ColumnFamily, WriteBatch};

use super::directory::{Committed, Directory, Row};
use super::layout::{
    IDEMPOTENCY, LOG, META, STATE, TOPIC, TopicRow, encode_remembered, log_key, meta, pair, segment_of, state_key,
};
use super::{Handle, KEY_BYTES, RocksStore};
use crate::event::{Event, EventId, EventType, Key, Millis};
use crate::record::{Packer, Record, TopicNumber};
use crate::store::{Remembered, StoreError};
use crate::topic::Topic;

/// What an append writes, and what the directory is told when that is done.
struct Prepared<'a> {
    /// The records, the topics that are new, and the new tail.
    batch: WriteBatch,
    created: Vec<(&'a Topic, TopicNumber)>,
    /// Topics that got their first key.
    keyed: HashSet<TopicNumber>,
    committed: Vec<Committed>,
}

/// What a record takes in a write batch beside its data: tags, lengths and its key.
const BATCH_ENTRY_BYTES: usize = 48;

impl RocksStore {
    pub(super) fn commit_all(&self, events: &[Event], remembered: &[Remembered]) -> Result<(), StoreError> {
        let Some(newest) = events.last() else { return Ok(()) };
        let db = self.db()?;
        self.reserve(&db, newest.id)?;
        let _no_forgetting = self.naming.lock();
        let Prepared { mut batch, created, keyed, committed } = self.prepare(&db, events, newest);
        for one in remembered {
            batch.put_cf(db.cf(IDEMPOTENCY), log_key(one.first), encode_remembered(one));
        }
        self.write(&db, batch, false)?;
        let mut directory = self.directory.write();
        for (topic, number) in created {
            directory.insert(number, Row::new(topic.clone()));
        }
        for number in keyed {
            if let Some(row) = directory.row_mut(number) {
                row.marks.keyed = true;
            }
        }
        directory.committed(committed);
        directory.tail = newest.id;
        directory.last_time = newest.time;
        drop(directory);
        if !remembered.is_empty() {
            self.keys.lock().remember(remembered);
        }
        Ok(())
    }

    fn prepare<'a>(&self, db: &Handle<'_>, events: &'a [Event], newest: &Event) -> Prepared<'a> {
        let (topics, metas) = (db.cf(TOPIC), db.cf(META));
        let bytes = |e: &Event| (e.data.len() + BATCH_ENTRY_BYTES) << usize::from(e.key.is_some());
        let mut batch = WriteBatch::with_capacity_bytes(events.iter().map(bytes).sum());
        let mut committed = Vec::with_capacity(events.len());
        let mut created: HashMap<&Topic, TopicNumber> = HashMap::new();
        let mut keyed = HashSet::new();
        let mut packs = Packs::new(db.cf(LOG));
        let mut row = Vec::new();
        let directory = self.directory.read();
        let mut next = directory.next_topic();
        let mut known: Option<(&Topic, TopicNumber)> = None;
        for event in events {
            let topic = match known {
                Some((topic, number)) if *topic == event.topic => number,
                _ => directory.number(event.topic.as_str()).unwrap_or_else(|| {
                    *created.entry(&event.topic).or_insert_with(|| {
                        let number = next;
                        next += 1;
                        batch.put_cf(topics, event.topic.as_str(), TopicRow::new(number).encode());
                        number
                    })
                }),
            };
            known = Some((&event.topic, topic));
            let record = record_of(event, topic);
            packs.put(&mut batch, event.id, &record);
            let bytes =
                u32::try_from(record.encoded_len()).expect("a record is smaller than a publish, which is bounded");
            committed.push(Committed { id: event.id, topic, bytes: KEY_BYTES + bytes, time: event.time });
            if let Some(key) = &event.key {
                row.clear();
                row.extend_from_slice(&event.id.to_be_bytes());
                record.encode(&mut row);
                keep(db, &directory, &mut batch, &mut keyed, (topic, event, key), &row);
            }
        }
        packs.end(&mut batch);
        if !created.is_empty() {
            batch.put_cf(metas, meta::NEXT_TOPIC, next.to_be_bytes());
        }
        batch.put_cf(metas, meta::TAIL, pair(newest.id, newest.time));
        // In the order of their numbers: what lists numbers only grows at its end.
        let mut created: Vec<_> = created.into_iter().collect();
        created.sort_unstable_by_key(|(_, number)| *number);
        Prepared { batch, created, keyed, committed }
    }
}

/// Puts records into a batch, in packs where they can be.
struct Packs<'a> {
    log: &'a ColumnFamily,
    packer: Packer,
    /// The newest that was put, its topic and its time.
    newest: (EventId, TopicNumber, Millis),
}

impl<'a> Packs<'a> {
    fn new(log: &'a ColumnFamily) -> Self {
        Self { log, packer: Packer::default(), newest: (0, 0, 0) }
    }

    fn put(&mut self, batch: &mut WriteBatch, id: EventId, record: &Record<'_>) {
        let (before, topic, time) = self.newest;
        // No pack lies in two segments: each is indexed, and goes, by itself.
        let goes_on = id == before + 1
            && (topic, time) == (record.topic, record.time)
            && segment_of(id) == segment_of(before)
            && self.packer.push(record);
        if !goes_on {
            self.end(batch);
            if !self.packer.push(record) {
                let mut value = Vec::with_capacity(record.encoded_len());
                record.encode(&mut value);
                batch.put_cf(self.log, log_key(id), value);
            }
        }
        self.newest = (id, record.topic, record.time);
    }

    fn end(&mut self, batch: &mut WriteBatch) {
        if !self.packer.is_empty() {
            batch.put_cf(self.log, log_key(self.newest.0), self.packer.take());
        }
    }
}

/// Keeps an event as the newest of its key, or takes the key away where it has no data. `row` is what the state says of it.
fn keep(
    db: &Handle<'_>,
    directory: &Directory,
    batch: &mut WriteBatch,
    keyed: &mut HashSet<TopicNumber>,
    (topic, event, key): (TopicNumber, &Event, &Key),
    row: &[u8],
) {
    let known = directory.row(topic);
    let is_keyed = known.is_some_and(|row| row.marks.keyed) || keyed.contains(&topic);
    if event.data.is_empty() {
        if is_keyed {
            batch.delete_cf(db.cf(STATE), state_key(topic, key.as_str()));
        }
        return;
    }
    if !is_keyed {
        let mut stored = known.map_or_else(|| TopicRow::new(topic), |row| row.stored(topic));
        stored.marks.keyed = true;
        batch.put_cf(db.cf(TOPIC), event.topic.as_str(), stored.encode());
        keyed.insert(topic);
    }
    batch.put_cf(db.cf(STATE), state_key(topic, key.as_str()), row);
}

fn record_of(event: &Event, topic: TopicNumber) -> Record<'_> {
    Record {
        topic,
        time: event.time,
        event: event.event.as_ref().map(EventType::as_str),
        key: event.key.as_ref().map(Key::as_str),
        data: &event.data,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::super::layout::log_id;
    use super::*;
    use crate::store::Store as _;

    /// The keys of the log, and how many events lie under each.
    fn packs(events: &[Event]) -> Vec<(EventId, u64)> {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStore::open(Options::new(dir.path())).unwrap();
        store.append(events).unwrap();
        let db = store.db().unwrap();
        let rows = db.iterator_cf(db.cf(LOG), rocksdb::IteratorMode::Start);
        let packs = rows.map(|row| {
            let (key, value) = row.unwrap();
            (log_id(&key).unwrap(), crate::record::Records::of(&value).unwrap().left())
        });
        packs.collect()
    }

    fn event(id: EventId, topic: &str, time: Millis, bytes: usize) -> Event {
        let topic = Topic::parse(topic).unwrap();
        Event { id, topic, event: None, key: None, time, data: "x".repeat(bytes) }
    }

    #[test]
    fn what_follows_one_another_on_a_topic_at_one_time_is_packed() {
        let of = |ids: std::ops::RangeInclusive<EventId>| ids.map(|id| event(id, "a", 7, 100)).collect::<Vec<_>>();
        assert_eq!(packs(&of(1..=1)), [(1, 1)]);
        assert_eq!(packs(&of(1..=5)), [(5, 5)]);
        // A pack of 4 KiB, and what is left of them.
        assert_eq!(packs(&of(1..=50)), [(39, 39), (50, 11)]);
        let mut events = of(1..=10);
        // Another topic, another time, a gap, one that is too large, and the end of a segment.
        events[3].topic = Topic::parse("b").unwrap();
        events[6..].iter_mut().for_each(|event| event.time = 8);
        events.extend([event(12, "a", 8, 100), event(13, "a", 8, 5000), event(14, "a", 8, 100)]);
        events.extend((65_533..65_539).map(|id| event(id, "a", 8, 0)));
        let all = [(3, 3), (4, 1), (6, 2), (10, 4), (12, 1), (13, 1), (14, 1), (65_535, 3), (65_538, 3)];
        assert_eq!(packs(&events), all);
        assert_eq!(packs(&[event(1, "a", 7, 4096), event(2, "a", 7, 4096)]), [(1, 1), (2, 1)]);
    }

    /// Segments are sealed on another thread than events are appended on. RocksDB refuses most of what is written after a failure by
    /// itself, but not where it takes the failure for one that passes.
    #[test]
    fn a_batch_that_waits_for_one_that_fails_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStore::open(Options::new(dir.path())).unwrap();
        let one_that_writes = store.ahead.as_ref().unwrap().lock();
        let counted = store.gauge.lock().written();
        std::thread::scope(|threads| {
            let waits = threads.spawn(|| {
                let db = store.db().unwrap();
                let mut batch = WriteBatch::default();
                batch.put_cf(db.cf(META), b"test", b"it was written");
                store.write(&db, batch, false)
            });
            // It counts its bytes when it has found that nothing failed so far.
            let mut turns = 0_u64;
            while store.gauge.lock().written() == counted {
                turns += 1;
                // Half a minute and more.
                assert!(turns < 100_000_000, "the other thread does not come to its write");
                std::thread::yield_now();
            }
            store.poison("writing", &"the disk is broken");
            drop(one_that_writes);
            assert!(waits.join().unwrap().is_err(), "it was answered as if it were written");
        });
        let db = store.db().unwrap();
        assert_eq!(db.get_cf(db.cf(META), b"test").unwrap(), None);
        drop(db);
        store.reopen().unwrap();
        assert!(store.writable().is_ok());
    }
}
