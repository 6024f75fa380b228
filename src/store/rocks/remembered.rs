//! The answers to publishes, under their idempotency keys.
//!
//! Memory holds of each key the first 8 bytes of its digest and the id that its row lies under: 24 bytes in a block and 19 to 39 in
//! the map, so that 10 million keys take 525 MB. What holds: keys are forgotten in the order in which they came, so what is forgotten is all up to one id; forgetting does not
//! touch the disk. Two keys whose digests begin alike are told apart by the row; the older of them is forgotten.

use std::collections::{HashMap, VecDeque};

use rocksdb::{BottommostLevelCompaction, CompactOptions};

use super::index::read_failed;
use super::layout::{IDEMPOTENCY, decode_remembered, log_id, log_key};
use super::open::corrupt;
use super::{Handle, RocksStore};
use crate::event::{Digest, EventId, Millis};
use crate::store::{Remembered, StoreError};

/// Keys are kept in blocks of so many: one long queue would double its room to grow.
const BLOCK_KEYS: usize = 1024;

/// The disk is given back when so many rows, some 4 MiB, and a twentieth of all are forgotten: it writes a file of up to 32 MiB anew.
const GIVE_BACK_ROWS: u64 = 65_536;
const LET_LIE: u64 = 20;

/// What memory knows of one key.
#[derive(Debug, Clone, Copy)]
struct Entry {
    first: EventId,
    short: u64,
    time: Millis,
}

/// The keys that are remembered.
#[derive(Debug, Default)]
pub struct Keys {
    /// By the beginning of its digest, the first id of the newest key.
    firsts: HashMap<u64, EventId>,
    /// In the order in which they came, each block with room for [`BLOCK_KEYS`]; none is empty.
    blocks: VecDeque<VecDeque<Entry>>,
    len: u64,
    /// How many rows of forgotten keys may lie on the disk.
    rows_dead: u64,
}

fn short(key: Digest) -> u64 {
    u64::from_be_bytes(*key.0.first_chunk().expect("a digest has 16 bytes"))
}

impl Keys {
    /// What the database remembers of publishes after `after`, none of which lies beyond `tail`.
    pub fn recover(db: &Handle<'_>, after: EventId, tail: EventId) -> Result<Self, StoreError> {
        let mut keys = Self::default();
        let mut rows = db.raw_iterator_cf(db.cf(IDEMPOTENCY));
        rows.seek(log_key(after + 1));
        while let Some((place, value)) = rows.item() {
            let remembered = log_id(place).and_then(|first| decode_remembered(first, value));
            let Some(remembered) = remembered.filter(|r| r.last <= tail) else {
                return Err(corrupt(&"what it remembers of a publish cannot be read"));
            };
            keys.remember(&[remembered]);
            rows.next();
        }
        rows.status().map_err(|e| read_failed(&e))?;
        Ok(keys)
    }

    /// They were recovered again, without those that are forgotten, whose rows still lie on the disk.
    pub fn replace(&mut self, recovered: Self) {
        *self = Self { rows_dead: self.rows_dead, ..recovered };
    }

    /// Takes in what is remembered, ascending.
    pub fn remember(&mut self, remembered: &[Remembered]) {
        for one in remembered {
            let entry = Entry { first: one.first, short: short(one.key), time: one.time };
            match self.blocks.back_mut() {
                Some(block) if block.len() < BLOCK_KEYS => block.push_back(entry),
                _ => {
                    let mut block = VecDeque::with_capacity(BLOCK_KEYS);
                    block.push_back(entry);
                    self.blocks.push_back(block);
                }
            }
            self.firsts.insert(entry.short, entry.first);
            self.len += 1;
        }
    }

    fn oldest(&self) -> Option<Entry> {
        self.blocks.front()?.front().copied()
    }

    fn forget_oldest(&mut self) -> Option<EventId> {
        let block = self.blocks.front_mut()?;
        let Entry { first, short, .. } = block.pop_front()?;
        if block.is_empty() {
            self.blocks.pop_front();
        }
        // A newer key may have taken its place.
        if self.firsts.get(&short) == Some(&first) {
            self.firsts.remove(&short);
        }
        (self.len, self.rows_dead) = (self.len - 1, self.rows_dead + 1);
        Some(first)
    }

    /// Forgets what is older than `before`, and the oldest beyond `most`; gives the newest id that was forgotten, and how many of the
    /// latter there were.
    fn forget(&mut self, before: Millis, most: u64) -> (Option<EventId>, u64) {
        let mut newest = None;
        while self.oldest().is_some_and(|oldest| oldest.time < before) {
            newest = self.forget_oldest();
        }
        let beyond = self.len.saturating_sub(most);
        for _ in 0..beyond {
            newest = self.forget_oldest();
        }
        // A map that was much larger once gives back what it has taken.
        if self.firsts.capacity() / 8 > self.firsts.len().max(BLOCK_KEYS) {
            self.firsts.shrink_to(2 * self.firsts.len());
        }
        (newest, beyond)
    }

    fn is_worth_giving_back(&self) -> bool {
        self.rows_dead >= GIVE_BACK_ROWS.max(self.len / LET_LIE)
    }

    pub fn len(&self) -> u64 {
        self.len
    }
}

impl RocksStore {
    pub(super) fn recall(&self, key: Digest) -> Result<Option<Remembered>, StoreError> {
        let first = || self.keys.lock().firsts.get(&short(key)).copied();
        if first().is_none() {
            return Ok(None);
        }
        let db = self.db()?;
        // Again: the database may have been opened anew meanwhile.
        let Some(first) = first() else { return Ok(None) };
        let row = db.get_pinned_cf(db.cf(IDEMPOTENCY), log_key(first)).map_err(|e| read_failed(&e))?;
        let Some(row) = row else {
            // Forgotten and gone since it was looked up.
            let is_forgotten = first <= self.floors.keys();
            let missing = || corrupt(&format!("what it remembers of the publish with event {first} is missing"));
            return if is_forgotten { Ok(None) } else { Err(missing()) };
        };
        let remembered = decode_remembered(first, &row);
        let remembered = remembered
            .ok_or_else(|| corrupt(&format!("what it remembers of the publish with event {first} cannot be read")))?;
        Ok((remembered.key == key).then_some(remembered))
    }

    pub(super) fn forget_oldest_keys(&self, before: Millis, most: u64) -> u64 {
        let mut keys = self.keys.lock();
        let (newest, beyond) = keys.forget(before, most);
        if let Some(newest) = newest {
            self.floors.forget_keys(newest);
        }
        beyond
    }

    /// Gives back the disk under forgotten keys, when it is worth it. Rows are written in the order in which they are forgotten, so
    /// most of it is whole files.
    pub(super) fn give_back_keys(&self) -> Result<(), StoreError> {
        let (upto, rows) = {
            let keys = self.keys.lock();
            if !keys.is_worth_giving_back() {
                return Ok(());
            }
            (self.floors.keys(), keys.rows_dead)
        };
        let db = self.db()?;
        let (from, to) = (log_key(0), log_key(upto));
        db.delete_file_in_range_cf(db.cf(IDEMPOTENCY), from, to)
            .map_err(|e| StoreError::io("dropping files of forgotten keys")(&e))?;
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        db.compact_range_cf_opt(db.cf(IDEMPOTENCY), Some(from), Some(to), &options);
        let mut keys = self.keys.lock();
        keys.rows_dead = keys.rows_dead.saturating_sub(rows);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remembered(key: u64, more: u8, first: EventId) -> Remembered {
        let mut digest = [more; 16];
        digest[..8].copy_from_slice(&key.to_be_bytes());
        Remembered { key: Digest(digest), request: Digest([0; 16]), first, last: first, time: first }
    }

    #[test]
    fn keys_are_forgotten_in_order_by_time_and_by_number() {
        let mut keys = Keys::default();
        let all: Vec<_> = (1..=20_000).map(|n| remembered(n * 7, 0, n)).collect();
        keys.remember(&all);
        assert_eq!((keys.len(), keys.blocks.len()), (20_000, 20));
        assert_eq!(keys.forget(101, 30_000), (Some(100), 0));
        assert_eq!(keys.forget(101, 30_000), (None, 0));
        assert_eq!(keys.forget(201, 19_000), (Some(1_000), 800));
        assert_eq!((keys.len(), keys.firsts.len(), keys.rows_dead), (19_000, 19_000, 1_000));
        assert_eq!(keys.firsts.get(&(1_000 * 7)), None);
        assert_eq!(keys.firsts.get(&(1_001 * 7)), Some(&1_001));
        assert_eq!(keys.forget(0, 0), (Some(20_000), 19_000));
        assert!(keys.blocks.is_empty() && keys.firsts.is_empty());
        assert!(keys.firsts.capacity() < 1_000, "room is given back: {}", keys.firsts.capacity());
        keys.remember(&[remembered(1, 0, 30_000)]);
        assert_eq!(keys.oldest().map(|e| e.first), Some(30_000));
    }

    #[test]
    fn of_two_that_begin_alike_the_newer_is_known() {
        let mut keys = Keys::default();
        keys.remember(&[remembered(9, 1, 1), remembered(9, 2, 2)]);
        assert_eq!(keys.firsts.get(&9), Some(&2));
        assert_eq!(keys.forget(2, 10), (Some(1), 0));
        assert_eq!(keys.firsts.get(&9), Some(&2), "what is forgotten is not what took its place");
    }
}
