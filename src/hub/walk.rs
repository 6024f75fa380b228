//! The way through the ring: from a cursor to the next batches that have something for a filter.
//!
//! What holds: one step looks at no more than [`WALK_BATCHES_MAX`] batches, and the next one goes on from there. What was looked at in vain is
//! listed (`listed`), for those that come after. Must not know subscribers.

use std::sync::Arc;

use super::listed::{BatchNumber, LISTED_MAX, Listed};
use super::ring::{Ring, is_by_topic};
use super::{Batch, Hub};
use crate::event::EventId;
use crate::topic::Filter;

/// How many batches one call looks at before it lets others have the lock: 50 ns each, so some 50 µs; some 0.4 ms where they are listed by topic
/// (measured with 150,000 batches of 10,000 topics).
pub const WALK_BATCHES_MAX: usize = 1024;

/// So many in a row without a match, and those that match are listed, so that the next reader of this filter need not look at all the others
/// again. A reader of a topic with something in most batches needs no list.
pub const BARREN_BATCHES: usize = 64;

/// What came of a step.
pub enum Walked {
    /// These are next, at least one.
    Found(Vec<Arc<Batch>>),
    /// Nothing up to here, but there are more to be looked at.
    On { cursor: EventId },
    /// Nothing up to the end of the ring.
    End,
}

/// Batches that are handed out together.
struct Gathered {
    batches: Vec<Arc<Batch>>,
    bytes: usize,
    bytes_max: usize,
}

impl Gathered {
    /// Takes of these what matches, as long as it is not enough, and looks at so many at most. Gives up to where it has looked where that was
    /// the reason to end.
    fn take(
        &mut self,
        ring: &Ring,
        filter: &Filter,
        numbers: impl Iterator<Item = BatchNumber>,
        most: usize,
    ) -> Option<EventId> {
        for (looked, batch) in numbers.filter_map(|number| ring.get(number)).enumerate() {
            if looked == most {
                return Some(batch.after());
            }
            if !self.wants_more(batch, filter) {
                return None;
            }
        }
        None
    }

    /// Takes this one, too, where it matches; false when that is enough.
    fn wants_more(&mut self, batch: &Arc<Batch>, filter: &Filter) -> bool {
        if !batch.matches(filter) {
            return true;
        }
        self.bytes += batch.bytes();
        if self.bytes > self.bytes_max && !self.batches.is_empty() {
            return false;
        }
        self.batches.push(batch.clone());
        self.bytes < self.bytes_max
    }
}

impl<W> Hub<W> {
    /// Walks from `cursor` to what comes next for a filter.
    pub(super) fn walk(&mut self, filter: usize, cursor: EventId, bytes_max: usize) -> Walked {
        let mut gathered = Gathered { batches: Vec::new(), bytes: 0, bytes_max };
        let looked = self.gather(filter, cursor, &mut gathered);
        match looked {
            _ if !gathered.batches.is_empty() => Walked::Found(gathered.batches),
            Some(cursor) => Walked::On { cursor },
            None => Walked::End,
        }
    }

    /// Gathers what matches after `cursor`. Gives up to where it has looked where that is not yet the end.
    fn gather(&mut self, filter: usize, cursor: EventId, gathered: &mut Gathered) -> Option<EventId> {
        let (live, ring) = (&self.filters[filter], &self.ring);
        let from = ring.beyond(cursor);
        // The last batch that matches is the one with `last_match`, or one before it.
        let upto = ring.end().min(ring.beyond(live.last_match.saturating_sub(1)) + 1);
        let near = from + BARREN_BATCHES as u64;
        if near < upto {
            if let Some(listed) = ring.listed(&live.filter, from) {
                return gathered.take(ring, &live.filter, listed.take_while(|number| *number < upto), WALK_BATCHES_MAX);
            }
            if let Some(listed) = live.listed.as_ref().filter(|listed| listed.begin() <= from) {
                let numbers = listed.numbers(from).take_while(|number| *number < upto);
                return gathered.take(ring, &live.filter, numbers, WALK_BATCHES_MAX);
            }
        }
        let looked = gathered.take(ring, &live.filter, from..upto, BARREN_BATCHES)?;
        if gathered.batches.is_empty() && self.list(filter, from) {
            return Some(looked);
        }
        gathered.take(&self.ring, &self.filters[filter].filter, near..upto, WALK_BATCHES_MAX - BARREN_BATCHES)
    }

    /// Lists what matches, going back from the newest batch or from where the list begins, and no farther than to the batch `from`. False where
    /// there is no room for any.
    fn list(&mut self, filter: usize, from: BatchNumber) -> bool {
        const MOST: usize = WALK_BATCHES_MAX - BARREN_BATCHES;
        if is_by_topic(&self.filters[filter].filter) {
            return self.ring.list(from, MOST);
        }
        if self.listed_numbers >= LISTED_MAX {
            self.sweep();
        }
        if self.listed_numbers >= LISTED_MAX {
            return false;
        }
        let (live, ring) = (&mut self.filters[filter], &self.ring);
        let listed = live.listed.get_or_insert_with(|| Box::new(Listed::new(ring.end())));
        for _ in 0..MOST {
            let before = listed.begin().checked_sub(1).filter(|before| *before >= from);
            let Some(batch) = before.and_then(|before| ring.get(before)) else { break };
            let matches = batch.matches(&live.filter);
            listed.looked_back(matches);
            self.listed_numbers += usize::from(matches);
        }
        true
    }

    /// Takes out of the filters' lists what has left the ring; not for less than what one call looks at.
    fn sweep(&mut self) {
        let begin = self.ring.begin();
        if begin - self.swept < WALK_BATCHES_MAX as u64 {
            return;
        }
        self.swept = begin;
        for (_, live) in &mut self.filters {
            if let Some(listed) = &mut live.listed {
                self.listed_numbers -= listed.len();
                listed.forget_before(begin);
                self.listed_numbers += listed.len();
            }
        }
    }
}
