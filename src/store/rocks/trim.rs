//! Trimming: floors first, then the counts, then the disk.
//!
//! A floor is raised durably and told to the readers; only then (`floors_published`) does anything below it go. *Settling* takes what
//! fell below a floor out of the counts; *reclaiming* gives its disk space back: whole files below the log's floor are dropped, and
//! segments that topics' floors have left mostly dead are rewritten without what is dead.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;

use rocksdb::{BottommostLevelCompaction, CompactOptions, WriteBatch};

use super::directory::{Amount, Directory};
use super::layout::{
    LOG, META, SEGMENT, SegmentNumber, TOPIC, TopicRow, first_id, last_id, log_key, meta, offset_of, segment_of,
};
use super::open::corrupt;
use super::read::{records, sealed_postings};
use super::{Handle, KEY_BYTES, RocksStore};
use crate::event::{EventId, EventRef, Millis};
use crate::record::{Record, TopicNumber};
use crate::store::{Limits, Policy, Scan, StoreError, Trim};
use crate::topic::{Filter, Pattern, Topic};

/// A limit may be passed by a twentieth before it is kept to again, so that steady publishing trims in batches.
/// The promise is a tenth.
const SLACK: u64 = 20;

/// Topics that are looked at under one hold of the lock.
const NUMBERS_PER_LOOK: TopicNumber = 1024;
const TOPICS_PER_LOOK: usize = NUMBERS_PER_LOOK as usize;

/// Below this many dead bytes nothing is rewritten: the write-ahead log and the memtables hold more than that anyway.
const DEAD_BYTES_MIN: u64 = 4 << 20;

/// A topic's floor rises when its oldest event is older than its limit by a twentieth, at most by so much: then, with 100,000 topics
/// that all have an age, not every floor is written every second. The promise is ten seconds.
const AGE_SLACK_MAX: Millis = 5_000;

/// The cursors of an age: what lies up to `old` is older than that; what lies up to `overdue` is older by more than the slack.
#[derive(Clone, Copy)]
struct Aged {
    old: EventId,
    overdue: EventId,
}

/// Most bytes of mostly dead segments that one round rewrites: at 100 MB/s and more, a stop waits some seconds for it at the most.
const REWRITE_BYTES_MAX: u64 = 256 << 20;

fn over(amount: u64, max: u64) -> u64 {
    if max > 0 && amount > max + max / SLACK { amount - max } else { 0 }
}

/// What an event counts towards `max_bytes`.
fn stored_bytes(event: &EventRef<'_>) -> u64 {
    let name = |n: Option<&str>| n.map_or(0, |n| 1 + n.len());
    u64::from(KEY_BYTES) + (14 + name(event.event) + name(event.key) + event.data.len()) as u64
}

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
    let amounts = open.map(|(&segment, open)| {
        let ids = open.ids_of(segment, topic, after, upto);
        let bytes = ids.iter().map(|&id| u64::from(open.bytes_at(offset_of(id)))).sum();
        (segment, Amount { events: ids.len() as u64, bytes })
    });
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
                let row = TopicRow { number, floor: upto, retention: row.retention };
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
            if let Some(row) = directory.row_mut(number) {
                row.floor = floor;
                row.first = None;
            }
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

    /// Forgets those of `topics` of which the log's floor has left nothing and about which nothing else is to be remembered.
    pub(super) fn forget_some(&self, db: &Handle<'_>, topics: &[TopicNumber]) -> Result<(), StoreError> {
        for some in topics.chunks(TOPICS_PER_LOOK) {
            let _no_append = self.naming.lock();
            let gone: Vec<(TopicNumber, Topic)> = {
                let directory = self.directory.read();
                let known = some.iter().filter_map(|&number| Some((number, directory.row(number)?)));
                let gone = known.filter(|(_, row)| directory.is_forgettable(row));
                gone.map(|(number, row)| (number, row.topic.clone())).collect()
            };
            if gone.is_empty() {
                continue;
            }
            let mut batch = WriteBatch::default();
            for (_, topic) in &gone {
                batch.delete_cf(db.cf(TOPIC), topic.as_str());
            }
            self.write(db, batch, false)?;
            let mut directory = self.directory.write();
            for (number, _) in gone {
                directory.forget(number);
            }
        }
        Ok(())
    }

    /// Finds the smallest retained id anew.
    pub(super) fn move_earliest(&self, db: &Handle<'_>) -> Result<(), StoreError> {
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
            after = self.read_forward(db, scan, &mut |event| {
                first = Some(event.id);
                ControlFlow::Break(())
            })?;
        }
        self.directory.write().earliest = first.unwrap_or(tail + 1);
        Ok(())
    }

    pub(super) fn due(&self, policy: &Policy, now: Millis) -> Result<Vec<Trim>, StoreError> {
        let db = self.db()?;
        let mut trims = Vec::new();
        let mut ages = HashMap::new();
        let (live, floor) = {
            let directory = self.directory.read();
            (directory.live, directory.log_floor)
        };
        let all = Filter::all();
        let upto = self.cut(&db, &all, &policy.log, live, floor, now, &mut ages)?;
        if upto > floor {
            trims.push(Trim { topic: None, upto });
        }
        let mut number = 0;
        loop {
            let (some, next) = self.limited_topics(policy, number);
            for (topic, limits, live, floor) in some {
                let filter = Filter::new(vec![Pattern::from(topic.clone())], Vec::new());
                let upto = self.cut(&db, &filter, &limits, live, floor, now, &mut ages)?;
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
        let end = directory.next_topic().min(number.saturating_add(NUMBERS_PER_LOOK));
        let next = (end < directory.next_topic()).then_some(end);
        let rows = (number..end).filter_map(|n| directory.row(n)).filter(|row| row.live.events > 0);
        let limited = rows.filter(|row| row.retention.is_some() || !policy.topics.is_empty());
        let some: Vec<_> = limited
            .map(|row| (row.topic.clone(), row.retention, row.live, row.floor.max(directory.log_floor)))
            .collect();
        drop(directory);
        // Patterns are matched without the lock.
        let some = some.into_iter().filter_map(|(topic, own, live, floor)| {
            let limits = own.unwrap_or_else(|| policy.for_topic(topic.as_str()));
            (!limits.is_unlimited()).then_some((topic, limits, live, floor))
        });
        (some.collect(), next)
    }

    /// Up to which id `limits` ask the events of `filter` to be trimmed, of which `live` lie above `floor`.
    #[expect(clippy::too_many_arguments, reason = "two callers, right above")]
    fn cut(
        &self,
        db: &Handle<'_>,
        filter: &Filter,
        limits: &Limits,
        live: Amount,
        floor: EventId,
        now: Millis,
        ages: &mut HashMap<Millis, Aged>,
    ) -> Result<EventId, StoreError> {
        let mut upto = floor;
        if limits.max_age > 0 && live.events > 0 {
            let cut = if let Some(&cut) = ages.get(&limits.max_age) {
                cut
            } else {
                let slack = (limits.max_age / SLACK).min(AGE_SLACK_MAX);
                let old = self.seek_time(db, now.saturating_sub(limits.max_age))?;
                let overdue = self.seek_time(db, now.saturating_sub(limits.max_age + slack))?;
                *ages.entry(limits.max_age).or_insert(Aged { old, overdue })
            };
            if cut.overdue > floor && self.first_after(db, filter, floor)?.is_some_and(|first| first <= cut.overdue) {
                upto = cut.old;
            }
        }
        let (events, bytes) = (over(live.events, limits.max_events), over(live.bytes, limits.max_bytes));
        if events > 0 || bytes > 0 {
            let excess = Amount { events, bytes };
            let cut = match filter.single_topic() {
                Some(topic) => self.cut_topic(db, topic.as_str(), excess, floor)?,
                None => self.cut_log(db, excess, floor)?,
            };
            upto = upto.max(cut);
        }
        Ok(upto)
    }

    /// The id with which, counted from `floor`, the whole log reaches at least so many events and bytes.
    fn cut_log(&self, db: &Handle<'_>, excess: Amount, floor: EventId) -> Result<EventId, StoreError> {
        let mut sum = Amount::default();
        let (mut after, tail) = {
            let directory = self.directory.read();
            let mut after = floor;
            for (&segment, s) in directory.segments.range(segment_of(floor + 1)..) {
                let next = Amount { events: sum.events + s.live.events, bytes: sum.bytes + s.live.bytes };
                if next.events >= excess.events && next.bytes >= excess.bytes {
                    break;
                }
                sum = next;
                after = last_id(segment).min(directory.tail);
            }
            (after, directory.tail)
        };
        let mut cut = after;
        let filter = Filter::all();
        while (sum.events < excess.events || sum.bytes < excess.bytes) && after < tail {
            after = self.read_forward(db, Scan { filter: &filter, after, upto: tail }, &mut |event| {
                sum.add(Amount { events: 1, bytes: stored_bytes(event) });
                cut = event.id;
                let enough = sum.events >= excess.events && sum.bytes >= excess.bytes;
                if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
        Ok(cut)
    }

    /// The id with which, counted from `floor`, a topic reaches at least so many events and bytes. Reads postings only.
    fn cut_topic(&self, db: &Handle<'_>, topic: &str, excess: Amount, floor: EventId) -> Result<EventId, StoreError> {
        let mut sum = Amount::default();
        let mut cut = floor;
        let mut take = |id: EventId, bytes: u32| {
            sum.add(Amount { events: 1, bytes: u64::from(bytes) });
            cut = id;
            sum.events >= excess.events && sum.bytes >= excess.bytes
        };
        let (number, tail, first_open) = {
            let directory = self.directory.read();
            let Some(number) = directory.number(topic) else { return Ok(floor) };
            (number, directory.tail, directory.first_open())
        };
        let mut enough = false;
        sealed_postings(db, number, floor, tail.min(first_id(first_open).saturating_sub(1)), &mut |_, postings| {
            enough = postings.iter().any(|&(id, bytes)| take(id, bytes));
            !enough
        })?;
        if !enough {
            let directory = self.directory.read();
            if directory.first_open() != first_open {
                // Sealed meanwhile, so not counted: the next round does it.
                return Ok(floor);
            }
            for (&segment, open) in directory.open.range(segment_of(floor + 1)..) {
                let ids = open.ids_of(segment, number, floor, tail);
                if ids.into_iter().any(|id| take(id, open.bytes_at(offset_of(id)))) {
                    break;
                }
            }
        }
        Ok(cut)
    }

    /// The first matching event after `after`.
    pub(super) fn first_after(
        &self,
        db: &Handle<'_>,
        filter: &Filter,
        after: EventId,
    ) -> Result<Option<EventId>, StoreError> {
        if let Some(topic) = filter.single_topic()
            && let Some(first) = self.directory.read().row_of(topic.as_str()).and_then(|row| row.first)
            && first > after
        {
            return Ok(Some(first));
        }
        let (mut at, tail) = (after, self.directory.read().tail);
        let mut first = None;
        while first.is_none() && at < tail {
            at = self.read_forward(db, Scan { filter, after: at, upto: tail }, &mut |event| {
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
            rewrite(&db, 0, floor);
            let mut directory = self.directory.write();
            directory.dead_bytes = directory.dead_bytes.saturating_sub(dead);
        }
        for (first, last) in self.mostly_dead() {
            rewrite(&db, first_id(first), last_id(last));
            let mut directory = self.directory.write();
            directory.segments.range_mut(first..=last).for_each(|(_, s)| s.stored = s.live.bytes);
        }
        Ok(())
    }

    /// Forgets the segments that lie wholly below the log's floor, and the topics that had nothing after them.
    fn drop_segments(&self, db: &Handle<'_>) -> Result<(), StoreError> {
        let gone: Vec<SegmentNumber> = {
            let directory = self.directory.read();
            let floor = directory.log_settled;
            directory.segments.keys().copied().take_while(|&s| last_id(s) <= floor).collect()
        };
        for segment in gone {
            let open = self.directory.read().open.get(&segment).cloned();
            let topics: Vec<TopicNumber> = match (open, self.summary(db, segment)?) {
                (Some(open), _) => open.postings.keys().copied().collect(),
                (None, Some(summary)) => summary.shares.iter().map(|s| s.topic).collect(),
                (None, None) => Vec::new(),
            };
            // Before the summary goes: what a stop in between leaves is forgotten at the next start.
            self.forget_some(db, &topics)?;
            let mut batch = WriteBatch::default();
            batch.delete_cf(db.cf(SEGMENT), segment.to_be_bytes());
            self.write(db, batch, false)?;
            let mut directory = self.directory.write();
            let open = (directory.segments.remove(&segment), directory.open.remove(&segment));
            drop(directory);
            drop(open);
            self.summaries.lock().forget(segment);
        }
        Ok(())
    }

    /// Runs of sealed segments of which more than half is dead, as many as are rewritten at once.
    fn mostly_dead(&self) -> Vec<(SegmentNumber, SegmentNumber)> {
        let directory = self.directory.read();
        let mut runs: Vec<(SegmentNumber, SegmentNumber, u64)> = Vec::new();
        let mut rewriting = 0;
        for (&segment, s) in &directory.segments {
            let dead = s.stored.saturating_sub(s.live.bytes);
            if directory.open.contains_key(&segment) || dead * 2 <= s.stored {
                continue;
            }
            if rewriting > 0 && rewriting + s.stored > REWRITE_BYTES_MAX {
                break;
            }
            rewriting += s.stored;
            match runs.last_mut() {
                Some((_, last, sum)) if *last + 1 == segment => (*last, *sum) = (segment, *sum + dead),
                _ => runs.push((segment, segment, dead)),
            }
        }
        runs.into_iter().filter(|(.., dead)| *dead >= DEAD_BYTES_MIN).map(|(first, last, _)| (first, last)).collect()
    }
}

/// Writes the files that overlap these ids again, without what is dead.
fn rewrite(db: &Handle<'_>, first: EventId, last: EventId) {
    let mut options = CompactOptions::default();
    options.set_exclusive_manual_compaction(false);
    options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
    db.compact_range_cf_opt(db.cf(LOG), Some(log_key(first)), Some(log_key(last)), &options);
}
