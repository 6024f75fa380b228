//! Giving the disk back: whole files below the log's floor are dropped, segments that topics' floors have left mostly dead are
//! rewritten without what is dead, but for what shares a pack with a live event, and what is left without an event is forgotten.
//!
//! What holds: only what was settled goes, so readers were told its floor before.

use rocksdb::{BottommostLevelCompaction, CompactOptions, WriteBatch};

use super::layout::{LOG, SEGMENT, SegmentNumber, Share, TOPIC, first_id, last_id, log_key};
use super::state::holds_keys;
use super::trim::TOPICS_PER_LOOK;
use super::{Handle, KEY_BYTES, RocksStore};
use crate::event::EventId;
use crate::record::{PACK_BYTES_MAX, PACK_EVENTS_MAX, RECORD_HEAD, TopicNumber};
use crate::store::StoreError;
use crate::topic::Topic;

/// Dead bytes are let lie up to this share of what is retained: a twentieth.
const LET_LIE: u64 = 20;

/// Below this many dead bytes nothing is rewritten: the write-ahead log and the memtables hold more than that anyway.
const DEAD_BYTES_MIN: u64 = 4 << 20;

/// Most bytes of mostly dead segments that one round rewrites: at 100 MB/s and more, a stop waits some seconds for it at the most.
const REWRITE_BYTES_MAX: u64 = 256 << 20;

/// Most bytes that the events of a pack count.
const PACK_COUNTS_MAX: u64 = (PACK_BYTES_MAX + PACK_EVENTS_MAX * (RECORD_HEAD + KEY_BYTES as usize)) as u64;

/// Segments that are rewritten together.
struct Run {
    first: SegmentNumber,
    last: SegmentNumber,
    /// Bytes that they occupy, and how many of these are dead.
    stored: u64,
    dead: u64,
}

impl RocksStore {
    /// Gives back the disk below the floors.
    pub(super) fn reclaim(&self) -> Result<(), StoreError> {
        let db = self.db()?;
        self.drop_segments(&db)?;
        let (floor, dead, live) = {
            let directory = self.directory.read();
            (directory.log_settled, directory.dead_bytes, directory.live.bytes)
        };
        if dead >= DEAD_BYTES_MIN.max(live / LET_LIE) {
            db.delete_file_in_range_cf(db.cf(LOG), log_key(0), log_key(floor))
                .map_err(|e| StoreError::io("dropping files below the floor")(&e))?;
            rewrite(&db, 0, floor);
            let mut directory = self.directory.write();
            directory.dead_bytes = directory.dead_bytes.saturating_sub(dead);
        }
        for (first, last) in self.mostly_dead() {
            rewrite(&db, first_id(first), last_id(last));
            for segment in first..=last {
                let kept = self.kept_in_packs(&db, segment)?;
                if let Some(s) = self.directory.write().segments.get_mut(&segment) {
                    s.rewritten = s.live.bytes;
                    s.stored = s.stored.min(s.live.bytes + kept);
                }
            }
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
                (Some(open), _) => open.topics().collect(),
                (None, Some(summary)) => summary.shares.iter().map(|s| s.topic).collect(),
                (None, None) => Vec::new(),
            };
            // Before the summary goes: what a stop in between leaves is forgotten at the next start.
            self.forget_some(db, &topics)?;
            let mut batch = WriteBatch::default();
            batch.delete_cf(db.cf(SEGMENT), segment.to_be_bytes());
            self.write(db, batch, false)?;
            let mut directory = self.directory.write();
            directory.presence.forget(segment);
            let open = (directory.segments.remove(&segment), directory.open.remove(&segment));
            drop(directory);
            drop(open);
            self.summaries.lock().forget(segment);
        }
        Ok(())
    }

    /// How much of a sealed segment is dead and yet not gone when it has been rewritten, at the most: of each topic, the rest of the pack in
    /// which its floor lies.
    fn kept_in_packs(&self, db: &Handle<'_>, segment: SegmentNumber) -> Result<u64, StoreError> {
        let Some(summary) = self.summary(db, segment)? else { return Ok(0) };
        let mut packs = 0;
        for some in summary.shares.chunks(TOPICS_PER_LOOK) {
            let directory = self.directory.read();
            let lies_within = |share: &&Share| {
                let floor = directory.row(share.topic).map_or(0, |row| row.settled);
                first_id(segment) <= floor && floor < first_id(segment) + u64::from(share.last)
            };
            packs += some.iter().filter(lies_within).count() as u64;
        }
        Ok(packs * PACK_COUNTS_MAX)
    }

    /// Runs of sealed segments of which more than half has died since they were last rewritten, as many as are rewritten in one round.
    fn mostly_dead(&self) -> Vec<(SegmentNumber, SegmentNumber)> {
        let directory = self.directory.read();
        let mut runs: Vec<Run> = Vec::new();
        for (&segment, s) in &directory.segments {
            let dead = s.stored.saturating_sub(s.live.bytes);
            if directory.open.contains_key(&segment) || s.live.bytes * 2 >= s.rewritten {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.last + 1 == segment && run.stored + s.stored <= REWRITE_BYTES_MAX => {
                    (run.last, run.stored, run.dead) = (segment, run.stored + s.stored, run.dead + dead);
                }
                _ => runs.push(Run { first: segment, last: segment, stored: s.stored, dead }),
            }
        }
        let mut sum = 0;
        let worth_it = runs.into_iter().filter(|run| run.dead >= DEAD_BYTES_MIN).take_while(|run| {
            let is_first = sum == 0;
            sum += run.stored;
            is_first || sum <= REWRITE_BYTES_MAX
        });
        worth_it.map(|run| (run.first, run.last)).collect()
    }

    /// Forgets those of `topics` of which the log's floor has left nothing and about which nothing else is to be remembered.
    pub(super) fn forget_some(&self, db: &Handle<'_>, topics: &[TopicNumber]) -> Result<(), StoreError> {
        for some in topics.chunks(TOPICS_PER_LOOK) {
            let without_keys = self.without_keys(db, some)?;
            if without_keys.is_empty() {
                continue;
            }
            let _no_append = self.naming.lock();
            let gone: Vec<(TopicNumber, Topic)> = {
                let directory = self.directory.read();
                let known =
                    without_keys.iter().filter_map(|&(number, last)| Some((number, last, directory.row(number)?)));
                // It has got no key since it was looked for, if it has got no event.
                let gone =
                    known.filter(|(_, last, row)| row.last == *last && directory.is_forgettable_but_for_keys(row));
                gone.map(|(number, _, row)| (number, row.topic.clone())).collect()
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

    /// Those of `topics` that may be forgotten, each with its newest event: the state, where they may have keys, is looked into here,
    /// before appends have to wait.
    fn without_keys(&self, db: &Handle<'_>, topics: &[TopicNumber]) -> Result<Vec<(TopicNumber, EventId)>, StoreError> {
        let candidates: Vec<_> = {
            let directory = self.directory.read();
            let known = topics.iter().filter_map(|&number| Some((number, directory.row(number)?)));
            let candidates = known.filter(|(_, row)| directory.is_forgettable_but_for_keys(row));
            candidates.map(|(number, row)| (number, row.last, row.marks.keyed)).collect()
        };
        let mut found = Vec::with_capacity(candidates.len());
        for (number, last, keyed) in candidates {
            if !(keyed && holds_keys(db, number)?) {
                found.push((number, last));
            }
        }
        Ok(found)
    }
}

/// Writes the files that overlap these ids again, without what is dead.
fn rewrite(db: &Handle<'_>, first: EventId, last: EventId) {
    let mut options = CompactOptions::default();
    options.set_exclusive_manual_compaction(false);
    options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
    db.compact_range_cf_opt(db.cf(LOG), Some(log_key(first)), Some(log_key(last)), &options);
}
