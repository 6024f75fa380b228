//! The forward search: where, from a cursor on, the next events of a filter's topics are to be looked for.
//!
//! What holds: no event of these topics lies between the cursor and the place that is given next. It is found at the price of what is
//! found: a dense topic by looking on in the log, a rare one by its postings, one that has been quiet since not at all; of several rare ones only
//! the postings of those that the nearest segment has. Must not read records.

use std::ops::Range;
use std::sync::Arc;

use rocksdb::DBRawIterator;

use super::index::{
    CHAINED_MAX, DENSE_ONE_IN, FEW_TOPICS, IDS_PER_LOOK, Plan, plan_for, read_failed, sealed_ids, stored_postings,
};
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

/// So many segments are asked one by one which of few topics are there, half a microsecond each; then the topics' postings are sought, some 2 µs each.
const NEAR: SegmentNumber = 32;

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
        let segments = segment_of(after + 1)..first_open.min(segment_of(upto) + 1);
        let near = self.near(db, topics, (after, upto), segments.clone())?;
        let found = match near {
            Near::None(from) if from < segments.end => self.sought(db, topics, (after, upto), from..segments.end)?,
            near => near,
        };
        let (before, upto, ids) = match found {
            Near::Dense => return Ok(None),
            Near::In(segment, ids) => (first_id(segment).saturating_sub(1), upto.min(last_id(segment)), ids),
            Near::None(from) => (first_id(from).saturating_sub(1), upto, Vec::new()),
        };
        let before = after.max(before).min(upto);
        if ids.is_empty() {
            return Ok(Some(Step { after: before, upto: before, plan: Plan::Nothing }));
        }
        Ok(Some(Step { after: before, upto, plan: plan_for(ids, before, upto) }))
    }

    /// Looks for the topics in the nearest of `segments`, where it is known which of them are there.
    fn near(
        &self,
        db: &Handle<'_>,
        topics: &[TopicNumber],
        (after, upto): (EventId, EventId),
        segments: Range<SegmentNumber>,
    ) -> Result<Near, StoreError> {
        let from = segments.start;
        let end = segments.end.min(from.saturating_add(NEAR));
        for segment in from..end {
            let Some(there) = self.store.directory.read().presence.of(segment, topics) else {
                return Ok(Near::None(segment));
            };
            let mut ids = Vec::new();
            for topic in there {
                let Some(value) = stored_postings(db, topic, segment)? else { continue };
                if self.is_to_be_probed(segment == from, &value) {
                    return Ok(Near::Dense);
                }
                ids.extend(sealed_ids(&value, topic, segment, after, upto)?);
            }
            if !ids.is_empty() {
                ids.sort_unstable();
                return Ok(Near::In(segment, ids));
            }
        }
        Ok(Near::None(end))
    }

    /// Looks for the topics in all of `segments`: each is sought by its postings, which lie beside each other.
    fn sought(
        &self,
        db: &Handle<'_>,
        topics: &[TopicNumber],
        (after, upto): (EventId, EventId),
        segments: Range<SegmentNumber>,
    ) -> Result<Near, StoreError> {
        let mut it: DBRawIterator<'_> = db.raw_iterator_cf(db.cf(POSTINGS));
        let (mut nearest, mut ids) = (segments.end, Vec::new());
        for &topic in topics {
            it.seek(postings_key(topic, segments.start));
            while let Some((key, value)) = it.item() {
                let segment = match postings_place(key) {
                    Some((t, segment)) if t == topic && segment <= nearest && segment < segments.end => segment,
                    _ => break,
                };
                if self.is_to_be_probed(segment == segment_of(after + 1), value) {
                    return Ok(Near::Dense);
                }
                let mut its = sealed_ids(value, topic, segment, after, upto)?.peekable();
                if its.peek().is_none() {
                    // All of them lie before the cursor, or beyond the end; the topic's next segment is under the next key.
                    it.next();
                    continue;
                }
                if segment < nearest {
                    nearest = segment;
                    ids.clear();
                }
                ids.extend(its);
                break;
            }
            it.status().map_err(|e| read_failed(&e))?;
        }
        ids.sort_unstable();
        Ok(if ids.is_empty() { Near::None(segments.end) } else { Near::In(nearest, ids) })
    }

    /// Whether the log itself is to be looked at before these postings are decoded, which are of the segment of the cursor or not.
    fn is_to_be_probed(&self, is_here: bool, postings: &[u8]) -> bool {
        is_here && !self.probed && postings.len() >= DENSE_POSTINGS_BYTES
    }
}

/// Where the next events of few topics are.
enum Near {
    /// At these ids, ascending, all in one segment; there are some.
    In(SegmentNumber, Vec<EventId>),
    /// In no segment before this one.
    None(SegmentNumber),
    /// A topic is so dense in the segment of the cursor that looking is to be tried first.
    Dense,
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::super::Options;
    use super::super::presence::Presence;
    use super::*;
    use crate::event::Event;
    use crate::store::{Scan, Store as _, Trim};
    use crate::topic::{Filter, Pattern, Topic};

    /// An event in each of a hundred segments; one of "rare" in some.
    const WITH_RARE: [SegmentNumber; 4] = [0, 5, 20, 70];

    fn event(id: EventId, topic: &str) -> Event {
        Event { id, topic: Topic::parse(topic).unwrap(), event: None, key: None, time: 0, data: "x".into() }
    }

    /// The segment in which the next event of "rare" after `after` is found without seeking, or that from which on it is to be sought.
    fn near(store: &RocksStore, after: EventId) -> Result<SegmentNumber, SegmentNumber> {
        let filter = Filter::new(vec![Pattern::parse("rare").unwrap()], Vec::new());
        let Topics::These(topics) = store.topics_of(&filter) else { panic!("it is one topic") };
        let search = Search::new(store, &Topics::These(topics.clone()), after);
        let upto = store.tail();
        let segments = segment_of(after + 1)..segment_of(upto);
        match search.near(&store.db().unwrap(), &topics, (after, upto), segments).unwrap() {
            Near::In(segment, ids) => {
                assert_eq!(ids, [first_id(segment) + 7]);
                Ok(segment)
            }
            Near::None(from) => Err(from),
            Near::Dense => panic!("no topic is dense"),
        }
    }

    #[test]
    fn where_it_is_not_known_which_topics_are_there_they_are_sought() {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStore::open(Options::new(dir.path())).unwrap();
        let ids = |after: EventId| {
            let filter = Filter::new(vec![Pattern::parse("rare.*").unwrap()], Vec::new());
            let mut ids = Vec::new();
            let scan = Scan { filter: &filter, after, upto: store.tail() };
            let upto = store.scan(scan, &mut |event| {
                ids.push(event.id);
                ControlFlow::Continue(())
            });
            assert_eq!(upto.unwrap(), store.tail());
            ids
        };
        // The first segment has both, and so has the third; one topic each has the second and the fourth.
        let all = [3, 7, first_id(1) + 3, first_id(2) + 3, first_id(2) + 7, first_id(3) + 7, first_id(4) + 1];
        for (id, topic) in all.iter().zip(["rare.a", "rare.b", "rare.a", "rare.a", "rare.b", "rare.b", "rare.a"]) {
            store.append(&[event(*id, topic)]).unwrap();
        }
        store.tidy().unwrap();
        for known in [true, false] {
            if !known {
                store.directory.write().presence = Presence::default();
            }
            for after in all.iter().flat_map(|id| [id - 1, *id, id + 1]).filter(|after| *after <= store.tail()) {
                let wanted: Vec<_> = all.iter().copied().filter(|id| *id > after).collect();
                assert_eq!(ids(after), wanted, "after {after}, known: {known}");
            }
        }
    }

    #[test]
    fn which_topics_sealed_segments_have_is_known_from_memory() {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStore::open(Options::new(dir.path())).unwrap();
        for segment in 0..100 {
            let mut events = vec![event(first_id(segment) + 3, "filler")];
            events.extend(WITH_RARE.contains(&segment).then(|| event(first_id(segment) + 7, "rare")));
            store.append(&events).unwrap();
        }
        assert_eq!(near(&store, 0), Err(0), "nothing is sealed");
        store.tidy().unwrap();
        let is_known = |store: &RocksStore| {
            assert_eq!(near(store, first_id(4)), Ok(5));
            assert_eq!(near(store, first_id(5) + 6), Ok(5));
            assert_eq!(near(store, first_id(5) + 7), Ok(20), "the segment has none behind the cursor");
            assert_eq!(near(store, first_id(20) + 7), Err(20 + 32), "so many segments are asked");
            assert_eq!(near(store, first_id(70) + 7), Err(99), "all that are sealed");
        };
        is_known(&store);
        drop(store);
        let store = RocksStore::open(Options::new(dir.path())).unwrap();
        is_known(&store);
        store.reopen().unwrap();
        is_known(&store);
        store.raise_floors(&[Trim { topic: None, upto: last_id(2) }]).unwrap();
        store.floors_published();
        store.settle().unwrap();
        store.tidy().unwrap();
        assert_eq!(near(&store, first_id(2)), Err(2), "it is gone");
        is_known(&store);
    }
}
