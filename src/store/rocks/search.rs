//! The forward search: where, from a cursor on, the next events of a filter's topics are to be looked for.
//!
//! What holds: no event of these topics lies between the cursor and the place that is given next. It is found at the price of what is
//! found: a dense topic by looking on in the log, a rare one by its postings, one that has been quiet since not at all. Must not read
//! records.

use std::sync::Arc;

use rocksdb::DBRawIterator;

use super::index::{CHAINED_MAX, DENSE_ONE_IN, FEW_TOPICS, IDS_PER_LOOK, Plan, plan_for, read_failed, sealed_ids};
use super::layout::{POSTINGS, SegmentNumber, first_id, last_id, postings_key, postings_place, segment_of};
use super::resolve::Topics;
use super::{Handle, RocksStore};
use crate::event::EventId;
use crate::record::TopicNumber;
use crate::store::StoreError;

/// Ids that are looked at before the index is asked, where some of them may well match: asking it costs as much.
const PROBE: u64 = 512;

/// Up to so many topics are asked at once for their newest event: a microsecond or two. More are asked where a probe found little.
const PRUNED_AT_ONCE: usize = 1024;

/// Postings of so many bytes are of a topic that is dense in its segment on the whole, as one takes three bytes and more; decoding
/// them takes longer than a probe.
const DENSE_POSTINGS_BYTES: usize = 3 * 1024;

/// As many records as are looked at in the time in which [`IDS_PER_LOOK`] entries of an open segment's index are.
const LOOK_COST: usize = 512;

/// Where to look next.
pub struct Step {
    /// Nothing is to be found up to here.
    pub after: EventId,
    /// The plan is for ids up to here.
    pub upto: EventId,
    pub plan: Plan,
}

/// A search that goes on from step to step.
pub struct Search<'a> {
    store: &'a RocksStore,
    topics: Topics,
    /// Topics that had nothing after the cursor are left out of `topics`.
    pruned: bool,
    /// How many ids to look at without asking the index; 0: ask it.
    probe: u64,
    /// The last step was such a look.
    probing: bool,
    /// There was one.
    probed: bool,
}

impl<'a> Search<'a> {
    /// A search for the events of `topics` after `after`.
    pub fn new(store: &'a RocksStore, topics: &Topics, after: EventId) -> Self {
        let mut search = Self { store, topics: topics.clone(), pruned: false, probe: 0, probing: false, probed: false };
        if let Topics::These(these) = topics {
            if these.len() <= PRUNED_AT_ONCE {
                search.prune(after);
            }
            if search.looks_dense() {
                search.probe = PROBE;
            }
        }
        search
    }

    fn prune(&mut self, after: EventId) {
        self.topics = self.store.with_events_after(&self.topics, after);
        self.pruned = true;
    }

    /// Whether one event in [`DENSE_ONE_IN`] is of these topics, over the whole log; many topics are tried.
    fn looks_dense(&self) -> bool {
        let Topics::These(topics) = &self.topics else { return false };
        if topics.len() > FEW_TOPICS {
            return true;
        }
        let directory = self.store.directory.read();
        let events: u64 = topics.iter().filter_map(|&t| directory.row(t)).map(|row| row.live.events).sum();
        events > 0 && events * DENSE_ONE_IN >= directory.live.events
    }

    /// What to do from `after` on, at the most up to `upto`, which lies beyond it. Adds to `looked` what finding it costs.
    pub fn next(
        &mut self,
        db: &Handle<'_>,
        after: EventId,
        upto: EventId,
        looked: &mut usize,
    ) -> Result<Step, StoreError> {
        *looked += 1;
        self.probing = self.probe > 0;
        if self.probing {
            self.probed = true;
            return Ok(Step { after, upto: upto.min(after + self.probe), plan: Plan::Look });
        }
        if !self.pruned {
            self.prune(after);
        }
        let Topics::These(topics) = &self.topics else { return Ok(Step { after, upto, plan: Plan::Look }) };
        let topics = topics.clone();
        if topics.is_empty() {
            return Ok(Step { after: upto, upto, plan: Plan::Nothing });
        }
        let segment = segment_of(after + 1);
        let first_open = self.store.directory.read().first_open();
        if segment < first_open && topics.len() <= FEW_TOPICS {
            *looked += topics.len();
            let step = self.few_sealed(db, &topics, (after, upto), first_open)?;
            // Where there is more than the index is worth, the log itself is looked at first.
            return step.map_or_else(|| self.probe_then(db, after, upto, looked), Ok);
        }
        let mut upto = upto.min(last_id(segment));
        if segment >= first_open && topics.len() > CHAINED_MAX {
            upto = upto.min(after + IDS_PER_LOOK);
            *looked += LOOK_COST;
        }
        Ok(Step { after, upto, plan: self.store.plan(db, &self.topics, segment, (after, upto), looked)? })
    }

    fn probe_then(
        &mut self,
        db: &Handle<'_>,
        after: EventId,
        upto: EventId,
        looked: &mut usize,
    ) -> Result<Step, StoreError> {
        self.probe = PROBE;
        self.next(db, after, upto, looked)
    }

    /// Hears that `wanted` of the `ids` of the last step were of these topics.
    pub fn was_looked_at(&mut self, wanted: u64, ids: u64) {
        if self.probing {
            let dense = wanted * DENSE_ONE_IN >= ids;
            self.probe = if dense { (self.probe * 4).min(IDS_PER_LOOK) } else { 0 };
        }
    }

    /// The step to the nearest sealed segment that has any of few topics, or to the open ones; `None` where a topic is so dense in it
    /// that looking is to be tried first, and was not yet.
    fn few_sealed(
        &self,
        db: &Handle<'_>,
        topics: &Arc<Vec<TopicNumber>>,
        (after, upto): (EventId, EventId),
        first_open: SegmentNumber,
    ) -> Result<Option<Step>, StoreError> {
        let from = segment_of(after + 1);
        let mut it: DBRawIterator<'_> = db.raw_iterator_cf(db.cf(POSTINGS));
        let (mut nearest, mut ids) = (first_open, Vec::new());
        for &topic in topics.iter() {
            it.seek(postings_key(topic, from));
            let Some((key, value)) = it.item() else {
                it.status().map_err(|e| read_failed(&e))?;
                continue;
            };
            let segment = match postings_place(key) {
                Some((t, segment)) if t == topic && segment <= nearest && segment < first_open => segment,
                _ => continue,
            };
            if segment == from && !self.probed && value.len() >= DENSE_POSTINGS_BYTES {
                return Ok(None);
            }
            if segment < nearest {
                nearest = segment;
                ids.clear();
            }
            ids.extend(sealed_ids(value, topic, segment, after, upto)?);
        }
        let before = after.max(first_id(nearest).saturating_sub(1));
        if nearest == first_open || before >= upto {
            let after = before.min(upto);
            return Ok(Some(Step { after, upto: after, plan: Plan::Nothing }));
        }
        let upto = upto.min(last_id(nearest));
        ids.sort_unstable();
        Ok(Some(Step { after: before, upto, plan: plan_for(ids, before, upto) }))
    }
}
