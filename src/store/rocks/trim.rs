//! Trimming: floors first, then the counts, then the disk.
//!
//! A floor is raised durably and told to the readers; only then (`floors_published`) does anything below it go. *Settling* takes what
//! fell below a floor out of the counts; *reclaiming* gives its disk space back: whole files below the log's floor are dropped, and
//! segments that topics' floors have left mostly dead are rewritten without what is dead.

use std::collections::HashMap;
use std::ops::ControlFlow;

use rocksdb::{BottommostLevelCompaction, CompactOptions, WriteBatch};

use super::directory::Amount;
use super::layout::{LOG, META, SEGMENT, SegmentNumber, TOPIC, TopicRow, first_id, last_id, log_key, meta, segment_of};
use super::open::corrupt;
use super::read::{records, sealed_ids};
use super::unsealed::OpenSegment;
use super::{Handle, KEY_BYTES, RocksStore};
use crate::event::{EventId, EventRef, Millis};
use crate::record::{Record, TopicNumber};
use crate::store::{Limits, Policy, Scan, StoreError, Trim};
use crate::topic::{Filter, Pattern, Topic};

/// A limit may be passed by a twentieth before it is kept to again, so that steady publishing trims in batches.
/// The promise is a tenth.
const SLACK: u64 = 20;

/// Topics that are looked at under one hold of the lock.
const TOPICS_PER_LOOK: usize = 1024;

/// Below this many dead bytes nothing is rewritten: the write-ahead log and the memtables hold more than that anyway.
const DEAD_BYTES_MIN: u64 = 4 << 20;

fn over(amount: u64, max: u64) -> u64 {
    if max > 0 && amount > max + max / SLACK { amount - max } else { 0 }
}

/// What an event counts towards `max_bytes`.
fn stored_bytes(event: &EventRef<'_>) -> u64 {
    let name = |n: Option<&str>| n.map_or(0, |n| 1 + n.len());
    u64::from(KEY_BYTES) + (14 + name(event.event) + name(event.key) + event.data.len()) as u64
}

impl RocksStore {
    pub(super) fn raise(&self, trims: &[Trim]) -> Result<Vec<Trim>, StoreError> {
        let db = self.db()?;
        let mut batch = WriteBatch::default();
        let mut log_floor = None;
        let mut topics: Vec<(TopicNumber, Topic, EventId)> = Vec::new();
        {
            let directory = self.directory.read();
            for trim in trims {
                let upto = trim.upto.min(directory.tail);
                match &trim.topic {
                    None if upto > directory.log_floor.max(log_floor.unwrap_or(0)) => log_floor = Some(upto),
                    None => {}
                    Some(topic) => {
                        let Some(number) = directory.number(topic.as_str()) else { continue };
                        let Some(row) = directory.row(number) else { continue };
                        let upto = upto.min(row.last);
                        if upto <= row.floor.max(directory.log_floor) {
                            continue;
                        }
                        let row = TopicRow { number, floor: upto, retention: row.retention };
                        batch.put_cf(db.cf(TOPIC), topic.as_str(), row.encode());
                        topics.push((number, topic.clone(), upto));
                    }
                }
            }
        }
        if let Some(floor) = log_floor {
            batch.put_cf(db.cf(META), meta::FLOOR, floor.to_be_bytes());
        }
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.write(&db, batch, true)?;
        let mut directory = self.directory.write();
        let mut rose = Vec::new();
        if let Some(floor) = log_floor {
            directory.log_floor = floor;
            rose.push(Trim { topic: None, upto: floor });
        }
        for (number, topic, floor) in topics {
            if let Some(row) = directory.row_mut(number) {
                row.floor = floor;
                row.first = None;
            }
            directory.raised.push(number);
            rose.push(Trim { topic: Some(topic), upto: floor });
        }
        Ok(rose)
    }

    /// Takes what lies below published floors out of the counts.
    pub(super) fn settle_floors(&self) -> Result<(), StoreError> {
        let db = self.db()?;
        let (from, to, topics) = {
            let mut directory = self.directory.write();
            let topics = std::mem::take(&mut directory.published);
            (directory.log_settled, directory.log_published, topics)
        };
        if to > from {
            self.settle_log(&db, from, to)?;
        }
        for (topic, floor) in &topics {
            self.settle_topic(&db, *topic, *floor)?;
        }
        if to > from || !topics.is_empty() {
            self.move_earliest()?;
        }
        Ok(())
    }

    fn settle_log(&self, db: &Handle<'_>, from: EventId, to: EventId) -> Result<(), StoreError> {
        let segments = self.directory.read().segments_between(from, to);
        for segment in segments {
            let gone = self.gone_from_segment(db, segment, from, to)?;
            let mut directory = self.directory.write();
            for (topic, amount) in gone {
                directory.removed(segment, topic, amount);
                directory.dead_bytes += amount.bytes;
            }
            directory.log_settled = last_id(segment).min(to);
        }
        self.directory.write().log_settled = to;
        self.floors.raise_log(to);
        self.forget_topics(db)
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
        records(db, after, upto, &mut |id, value| {
            let (topic, _) = Record::head(value).map_err(|e| corrupt(&format!("event {id} cannot be read: {e}")))?;
            let settled = *settled
                .entry(topic)
                .or_insert_with(|| self.directory.read().row(topic).map_or(EventId::MAX, |row| row.settled));
            if id > settled {
                gone.entry(topic)
                    .or_default()
                    .add(Amount { events: 1, bytes: u64::from(KEY_BYTES) + value.len() as u64 });
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(gone)
    }

    fn settle_topic(&self, db: &Handle<'_>, topic: TopicNumber, floor: EventId) -> Result<(), StoreError> {
        let (after, segments) = {
            let directory = self.directory.read();
            let Some(row) = directory.row(topic) else { return Ok(()) };
            let after = row.settled.max(directory.log_settled);
            (after, directory.segments_between(after, floor.min(directory.tail)))
        };
        for segment in segments {
            let amount = self.amount_of(db, topic, segment, after, floor)?;
            self.directory.write().removed(segment, topic, amount);
        }
        if let Some(row) = self.directory.write().row_mut(topic) {
            row.settled = row.settled.max(floor);
        }
        self.floors.raise_topic(topic, floor);
        Ok(())
    }

    /// What of `topic` lies in `segment` within `after < id <= upto`.
    fn amount_of(
        &self,
        db: &Handle<'_>,
        topic: TopicNumber,
        segment: SegmentNumber,
        after: EventId,
        upto: EventId,
    ) -> Result<Amount, StoreError> {
        {
            let directory = self.directory.read();
            if let Some(open) = directory.open.get(&segment) {
                return Ok(amount_in(open, first_id(segment), topic, after, upto));
            }
        }
        let ids = sealed_ids(db, topic, segment, after, upto)?;
        let events = ids.len() as u64;
        if let Some(summary) = self.summary(db, segment)?
            && let Ok(at) = summary.shares.binary_search_by_key(&topic, |s| s.topic)
            && u64::from(summary.shares[at].events) == events
        {
            return Ok(Amount { events, bytes: summary.shares[at].bytes });
        }
        let mut amount = Amount::default();
        for id in ids {
            let value = db.get_pinned_cf(db.cf(LOG), log_key(id)).map_err(|e| StoreError::io("reading the log")(&e))?;
            if let Some(value) = value {
                amount.add(Amount { events: 1, bytes: u64::from(KEY_BYTES) + value.len() as u64 });
            }
        }
        Ok(amount)
    }

    /// Forgets the topics of which the log's floor has left nothing and about which nothing else is to be remembered.
    fn forget_topics(&self, db: &Handle<'_>) -> Result<(), StoreError> {
        let _no_append = self.naming.lock();
        let gone: Vec<(TopicNumber, Topic)> = {
            let directory = self.directory.read();
            let floor = directory.log_settled;
            let gone = directory.rows().filter(|(_, row)| row.last > 0 && row.last <= floor && row.retention.is_none());
            gone.map(|(number, row)| (number, row.topic.clone())).collect()
        };
        if gone.is_empty() {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        for (_, topic) in &gone {
            batch.delete_cf(db.cf(TOPIC), topic.as_str());
        }
        self.write(db, batch, false)?;
        let mut directory = self.directory.write();
        gone.into_iter().for_each(|(number, _)| directory.forget(number));
        Ok(())
    }

    /// Finds the smallest retained id anew.
    fn move_earliest(&self) -> Result<(), StoreError> {
        let (mut after, tail) = {
            let directory = self.directory.read();
            let from = directory.earliest.max(directory.log_floor + 1);
            let live = directory.segments.range(segment_of(from)..).find(|(_, s)| s.live.events > 0);
            let Some((&segment, _)) = live else { return Ok(()) };
            ((from - 1).max(first_id(segment).saturating_sub(1)), directory.tail)
        };
        let all = Filter::all();
        let mut first = None;
        while first.is_none() && after < tail {
            let scan = Scan { filter: &all, after, upto: tail };
            after = self.read_forward(scan, &mut |event| {
                first = Some(event.id);
                ControlFlow::Break(())
            })?;
        }
        self.directory.write().earliest = first.unwrap_or(tail + 1);
        Ok(())
    }

    pub(super) fn due(&self, policy: &Policy, now: Millis) -> Result<Vec<Trim>, StoreError> {
        let mut trims = Vec::new();
        let mut ages = HashMap::new();
        let (live, floor) = {
            let directory = self.directory.read();
            (directory.live, directory.log_floor)
        };
        let all = Filter::all();
        let upto = self.cut(&all, &policy.log, live, floor, now, &mut ages)?;
        if upto > floor {
            trims.push(Trim { topic: None, upto });
        }
        let mut number = 0;
        loop {
            let (some, next) = self.limited_topics(policy, number);
            for (topic, limits, live, floor) in some {
                let filter = Filter::new(vec![Pattern::from(topic.clone())], Vec::new());
                let upto = self.cut(&filter, &limits, live, floor, now, &mut ages)?;
                if upto > floor {
                    trims.push(Trim { topic: Some(topic), upto });
                }
            }
            match next {
                Some(next) => number = next,
                None => return Ok(trims),
            }
        }
    }

    /// Some topics from `number` on that may be over their limits; and where to go on.
    #[expect(clippy::type_complexity, reason = "one caller, which takes it apart at once")]
    fn limited_topics(
        &self,
        policy: &Policy,
        number: TopicNumber,
    ) -> (Vec<(Topic, Limits, Amount, EventId)>, Option<TopicNumber>) {
        let directory = self.directory.read();
        let end = directory.next_topic().min(number.saturating_add(TOPICS_PER_LOOK as TopicNumber));
        let some = (number..end).filter_map(|n| directory.row(n)).filter(|row| row.live.events > 0).filter_map(|row| {
            let limits = row.retention.unwrap_or_else(|| policy.for_topic(row.topic.as_str()));
            let floor = row.floor.max(directory.log_floor);
            (!limits.is_unlimited()).then(|| (row.topic.clone(), limits, row.live, floor))
        });
        (some.collect(), (end < directory.next_topic()).then_some(end))
    }

    /// Up to which id `limits` ask the events of `filter` to be trimmed, of which `live` lie above `floor`.
    fn cut(
        &self,
        filter: &Filter,
        limits: &Limits,
        live: Amount,
        floor: EventId,
        now: Millis,
        ages: &mut HashMap<Millis, EventId>,
    ) -> Result<EventId, StoreError> {
        let mut upto = floor;
        if limits.max_age > 0 && live.events > 0 {
            let cut = match ages.get(&limits.max_age) {
                Some(&cut) => cut,
                None => self.seek_time(now.saturating_sub(limits.max_age))?,
            };
            ages.insert(limits.max_age, cut);
            // Where nothing lies between the floor and the cut, the floor stays: it would be written every second.
            if cut > floor && self.first_after(filter, floor)?.is_some_and(|first| first <= cut) {
                upto = cut;
            }
        }
        let (events, bytes) = (over(live.events, limits.max_events), over(live.bytes, limits.max_bytes));
        if events > 0 || bytes > 0 {
            upto = upto.max(self.cut_by_amount(filter, Amount { events, bytes }, floor)?);
        }
        Ok(upto)
    }

    /// The id with which, counted from `floor`, at least so many events and bytes are reached.
    fn cut_by_amount(&self, filter: &Filter, excess: Amount, floor: EventId) -> Result<EventId, StoreError> {
        let mut sum = Amount::default();
        let (mut after, tail) = (floor, self.directory.read().tail);
        if filter.is_everything() {
            let directory = self.directory.read();
            for (&segment, s) in directory.segments.range(segment_of(floor + 1)..) {
                let next = Amount { events: sum.events + s.live.events, bytes: sum.bytes + s.live.bytes };
                if next.events >= excess.events && next.bytes >= excess.bytes {
                    break;
                }
                sum = next;
                after = last_id(segment);
            }
        }
        let mut cut = after;
        while (sum.events < excess.events || sum.bytes < excess.bytes) && after < tail {
            after = self.read_forward(Scan { filter, after, upto: tail }, &mut |event| {
                sum.add(Amount { events: 1, bytes: stored_bytes(event) });
                cut = event.id;
                let enough = sum.events >= excess.events && sum.bytes >= excess.bytes;
                if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
        Ok(cut)
    }

    /// The first matching event after `after`.
    pub(super) fn first_after(&self, filter: &Filter, after: EventId) -> Result<Option<EventId>, StoreError> {
        if let Some(topic) = filter.single_topic()
            && let Some(first) = self.directory.read().row_of(topic.as_str()).and_then(|row| row.first)
            && first > after
        {
            return Ok(Some(first));
        }
        let (mut at, tail) = (after, self.directory.read().tail);
        let mut first = None;
        while first.is_none() && at < tail {
            at = self.read_forward(Scan { filter, after: at, upto: tail }, &mut |event| {
                first = Some(event.id);
                ControlFlow::Break(())
            })?;
        }
        if let (Some(topic), Some(first)) = (filter.single_topic(), first) {
            let mut directory = self.directory.write();
            let log_floor = directory.log_floor;
            if let Some(number) = directory.number(topic.as_str())
                && let Some(row) = directory.row_mut(number)
                && row.floor.max(log_floor) <= after
            {
                row.first = Some(first);
            }
        }
        Ok(first)
    }

    /// Gives back the disk below the floors.
    pub(super) fn reclaim(&self) -> Result<(), StoreError> {
        let db = self.db()?;
        self.drop_segments(&db)?;
        let (floor, dead, live) = {
            let directory = self.directory.read();
            (directory.log_settled, directory.dead_bytes, directory.live.bytes)
        };
        if dead >= DEAD_BYTES_MIN.max(live / SLACK) {
            db.delete_file_in_range_cf(db.cf(LOG), log_key(0), log_key(floor))
                .map_err(|e| StoreError::io("dropping files below the floor")(&e))?;
            self.rewrite(&db, 0, floor);
            self.directory.write().dead_bytes = 0;
        }
        for (first, last) in self.mostly_dead() {
            self.rewrite(&db, first_id(first), last_id(last));
            let mut directory = self.directory.write();
            directory.segments.range_mut(first..=last).for_each(|(_, s)| s.stored = s.live.bytes);
        }
        Ok(())
    }

    /// Forgets the segments that lie wholly below the log's floor.
    fn drop_segments(&self, db: &Handle<'_>) -> Result<(), StoreError> {
        let gone: Vec<SegmentNumber> = {
            let directory = self.directory.read();
            let floor = directory.log_settled;
            directory.segments.keys().copied().take_while(|&s| last_id(s) <= floor).collect()
        };
        if gone.is_empty() {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        gone.iter().for_each(|s| batch.delete_cf(db.cf(SEGMENT), s.to_be_bytes()));
        self.write(db, batch, false)?;
        let mut directory = self.directory.write();
        for segment in gone {
            directory.segments.remove(&segment);
            directory.open.remove(&segment);
            self.summaries.lock().forget(segment);
        }
        Ok(())
    }

    /// Runs of sealed segments of which more than half is dead.
    fn mostly_dead(&self) -> Vec<(SegmentNumber, SegmentNumber)> {
        let directory = self.directory.read();
        let mut runs: Vec<(SegmentNumber, SegmentNumber, u64)> = Vec::new();
        for (&segment, s) in &directory.segments {
            let dead = s.stored.saturating_sub(s.live.bytes);
            if directory.open.contains_key(&segment) || dead * 2 <= s.stored {
                continue;
            }
            match runs.last_mut() {
                Some((_, last, sum)) if *last + 1 == segment => (*last, *sum) = (segment, *sum + dead),
                _ => runs.push((segment, segment, dead)),
            }
        }
        runs.into_iter().filter(|(.., dead)| *dead >= DEAD_BYTES_MIN).map(|(first, last, _)| (first, last)).collect()
    }

    /// Writes the files that overlap these ids again, without what is dead.
    fn rewrite(&self, db: &Handle<'_>, first: EventId, last: EventId) {
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        db.compact_range_cf_opt(db.cf(LOG), Some(log_key(first)), Some(log_key(last)), &options);
    }
}

/// What of `topic` lies in an open segment, whose first id is `base`, within `after < id <= upto`.
fn amount_in(open: &OpenSegment, base: EventId, topic: TopicNumber, after: EventId, upto: EventId) -> Amount {
    let mut amount = Amount::default();
    open.newest_first(topic, |offset, bytes| {
        let id = base + u64::from(offset);
        if id <= after {
            return ControlFlow::Break(());
        }
        if id <= upto {
            amount.add(Amount { events: 1, bytes: u64::from(bytes) });
        }
        ControlFlow::Continue(())
    });
    amount
}
