//! Trimming: floors first, then the counts, then the disk (`reclaim`).
//!
//! A floor is raised durably and told to the readers; only then (`floors_published`) is anything below it hidden, and goes. *Settling*
//! takes what fell below a floor out of the counts.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use rocksdb::WriteBatch;

use super::directory::{Amount, Directory};
use super::index::sealed_postings;
use super::layout::{META, SegmentNumber, TOPIC, TopicRow, first_id, last_id, meta, segment_of};
use super::read::records;
use super::{Handle, KEY_BYTES, RocksStore};
use crate::event::EventId;
use crate::record::TopicNumber;
use crate::store::{Scan, StoreError, Trim};
use crate::topic::{Filter, Topic};

/// Topics that are looked at under one hold of the lock.
pub const TOPICS_PER_LOOK: usize = 1024;

/// What of `topic` lies in the segments that are not sealed, within `after < id <= upto`.
fn open_amounts(
    directory: &Directory,
    topic: TopicNumber,
    after: EventId,
    upto: EventId,
) -> Vec<(SegmentNumber, Amount)> {
    if after >= upto {
        return Vec::new();
    }
    let open = directory.open.range(segment_of(after + 1)..=segment_of(upto));
    let amounts = open.map(|(&segment, open)| (segment, Amount::of(&open.events_of(segment, topic, after, upto))));
    amounts.collect()
}

/// The same for the segments that are sealed.
fn sealed_amounts(
    db: &Handle<'_>,
    topic: TopicNumber,
    after: EventId,
    upto: EventId,
) -> Result<Vec<(SegmentNumber, Amount)>, StoreError> {
    let mut amounts = Vec::new();
    sealed_postings(db, topic, after, upto, &mut |segment, postings| {
        amounts.push((segment, Amount::of(postings)));
        true
    })?;
    Ok(amounts)
}

impl RocksStore {
    pub(super) fn raise(&self, trims: &[Trim]) -> Result<Vec<Trim>, StoreError> {
        let db = self.db()?;
        // What else is remembered of these topics must not change, nor may they be forgotten, before their rows are written.
        let _no_forgetting = self.naming.lock();
        let mut log_floor = self.directory.read().log_floor;
        let mut topics: BTreeMap<TopicNumber, (Topic, EventId)> = BTreeMap::new();
        // In the order in which they rose: a floor may be named twice, and a topic's that the log's has overtaken is none.
        let mut rose: Vec<Trim> = Vec::new();
        let mut batch = WriteBatch::default();
        for some in trims.chunks(TOPICS_PER_LOOK) {
            let directory = self.directory.read();
            for trim in some {
                let upto = trim.upto.min(directory.tail);
                let Some(topic) = &trim.topic else {
                    if upto > log_floor {
                        log_floor = upto;
                        rose.push(Trim { topic: None, upto });
                    }
                    continue;
                };
                let Some(number) = directory.number(topic.as_str()) else { continue };
                let Some(row) = directory.row(number) else { continue };
                let floor = topics.get(&number).map_or(row.floor, |(_, floor)| *floor);
                let upto = upto.min(row.last);
                if upto <= floor.max(log_floor) {
                    continue;
                }
                let row = TopicRow { floor: upto, ..row.stored(number) };
                batch.put_cf(db.cf(TOPIC), topic.as_str(), row.encode());
                topics.insert(number, (topic.clone(), upto));
                rose.push(Trim { topic: Some(topic.clone()), upto });
            }
        }
        if rose.is_empty() {
            return Ok(rose);
        }
        if rose.iter().any(|trim| trim.topic.is_none()) {
            batch.put_cf(db.cf(META), meta::FLOOR, log_floor.to_be_bytes());
        }
        self.write(&db, batch, true)?;
        let mut directory = self.directory.write();
        directory.floors_version += 1;
        directory.log_floor = log_floor;
        for (number, (_, floor)) in topics {
            directory.raise_floor(number, floor);
            directory.raised.push(number);
        }
        Ok(rose)
    }

    /// Takes what lies below published floors out of the counts.
    pub(super) fn settle_floors(&self) -> Result<(), StoreError> {
        let db = self.db()?;
        let (from, to) = {
            let directory = self.directory.read();
            (directory.log_settled, directory.log_published)
        };
        if to > from {
            self.settle_log(&db, from, to)?;
        }
        let topics = std::mem::take(&mut self.directory.write().published);
        self.floors.raise_log(to);
        let mut left = topics.iter().copied();
        while let Some((topic, floor)) = left.next() {
            if let Err(error) = self.settle_topic(&db, topic, floor) {
                self.directory.write().published.extend([(topic, floor)].into_iter().chain(left));
                return Err(error);
            }
        }
        if to > from || !topics.is_empty() {
            self.move_earliest(&db)?;
        }
        Ok(())
    }

    fn settle_log(&self, db: &Handle<'_>, from: EventId, to: EventId) -> Result<(), StoreError> {
        let segments = self.directory.read().segments_between(from, to);
        for segment in segments {
            let gone = self.gone_from_segment(db, segment, from, to)?;
            let gone: Vec<_> = gone.into_iter().collect();
            for some in gone.chunks(TOPICS_PER_LOOK) {
                let mut directory = self.directory.write();
                for &(topic, amount) in some {
                    directory.removed(segment, topic, amount);
                    directory.dead_bytes += amount.bytes;
                }
            }
            self.directory.write().log_settled = last_id(segment).min(to);
        }
        self.directory.write().log_settled = to;
        Ok(())
    }

    /// By topic, what of `segment` lies within `from < id <= to` and is still counted.
    fn gone_from_segment(
        &self,
        db: &Handle<'_>,
        segment: SegmentNumber,
        from: EventId,
        to: EventId,
    ) -> Result<HashMap<TopicNumber, Amount>, StoreError> {
        let mut gone: HashMap<TopicNumber, Amount> = HashMap::new();
        let whole = from < first_id(segment) && to >= last_id(segment);
        if whole && let Some(summary) = self.summary(db, segment)? {
            let directory = self.directory.read();
            let settled = |topic| directory.row(topic).map_or(EventId::MAX, |row| row.settled);
            if summary.shares.iter().all(|s| settled(s.topic) < first_id(segment)) {
                let amount = |events: u32, bytes| Amount { events: events.into(), bytes };
                return Ok(summary.shares.iter().map(|s| (s.topic, amount(s.events, s.bytes))).collect());
            }
        }
        let (after, upto) = (from.max(first_id(segment).saturating_sub(1)), to.min(last_id(segment)));
        let mut settled: HashMap<TopicNumber, EventId> = HashMap::new();
        records(db, after, upto, &mut |id, entry| {
            let topic = entry.topic;
            let settled = *settled
                .entry(topic)
                .or_insert_with(|| self.directory.read().row(topic).map_or(EventId::MAX, |row| row.settled));
            if id > settled {
                gone.entry(topic)
                    .or_default()
                    .add(Amount { events: 1, bytes: u64::from(KEY_BYTES) + entry.encoded_len() as u64 });
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(gone)
    }

    fn settle_topic(&self, db: &Handle<'_>, topic: TopicNumber, floor: EventId) -> Result<(), StoreError> {
        let (after, mut gone, first_open) = {
            let directory = self.directory.read();
            let Some(row) = directory.row(topic) else { return Ok(()) };
            let after = row.settled.max(directory.log_settled);
            (after, open_amounts(&directory, topic, after, floor), directory.first_open())
        };
        // What was open then is counted; what is sealed since is not counted again.
        gone.extend(sealed_amounts(db, topic, after, floor.min(first_id(first_open).saturating_sub(1)))?);
        let mut directory = self.directory.write();
        for (segment, amount) in gone {
            directory.removed(segment, topic, amount);
        }
        if let Some(row) = directory.row_mut(topic) {
            row.settled = row.settled.max(floor);
        }
        drop(directory);
        self.floors.raise_topic(topic, floor);
        Ok(())
    }

    /// Finds the smallest retained id anew.
    pub(super) fn move_earliest(&self, db: &Handle<'_>) -> Result<(), StoreError> {
        let (mut after, tail) = {
            let directory = self.directory.read();
            let from = directory.earliest.max(directory.log_published + 1);
            let live = directory.segments.range(segment_of(from)..).find(|(_, s)| s.live.events > 0);
            let Some((&segment, _)) = live else { return Ok(()) };
            ((from - 1).max(first_id(segment).saturating_sub(1)), directory.tail)
        };
        let all = Filter::all();
        let mut first = None;
        while first.is_none() && after < tail {
            let scan = Scan { filter: &all, after, upto: tail };
            after = self.read_forward(db, scan, &mut |event| {
                first = Some(event.id);
                ControlFlow::Break(())
            })?;
        }
        self.directory.write().earliest = first.unwrap_or(tail + 1);
        Ok(())
    }
}
