//! Which topics have events in which of the sealed segments, from memory: few topics are then looked up only where they are.
//!
//! What holds: whatever topic has postings in a segment that is known here is told; one that has lost them since may be told as well. Must
//! not know RocksDB.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use super::layout::SegmentNumber;
use crate::record::TopicNumber;

/// How much is kept, of the newest segments. One takes 16 KiB with a third of a hundred thousand topics in it, and hardly anything with a few of
/// them; some 5 MiB where each of its events had a topic of its own and their numbers lay as far apart as they can.
const BYTES_MAX: usize = 16 << 20;

/// What a segment counts beside its topics, and each set of those whose numbers have their upper half in common beside its own.
const SEGMENT_BYTES: usize = 128;
const SET_BYTES: usize = 64;

/// The topics of the newest sealed segments.
#[derive(Debug, Default)]
pub struct Presence {
    segments: BTreeMap<SegmentNumber, RoaringBitmap>,
    bytes: usize,
}

fn cost(topics: &RoaringBitmap) -> usize {
    let sets = topics.statistics();
    let bytes = sets.n_bytes_array_containers + sets.n_bytes_bitset_containers + sets.n_bytes_run_containers;
    SEGMENT_BYTES + SET_BYTES * sets.n_containers as usize + usize::try_from(bytes).expect("it lies in memory")
}

impl Presence {
    /// `segment` is sealed, and has events of `topics`.
    pub fn insert(&mut self, segment: SegmentNumber, topics: RoaringBitmap) {
        self.forget(segment);
        self.bytes += cost(&topics);
        self.segments.insert(segment, topics);
        while self.bytes > BYTES_MAX
            && let Some((_, oldest)) = self.segments.pop_first()
        {
            self.bytes -= cost(&oldest);
        }
    }

    /// `segment` is gone.
    pub fn forget(&mut self, segment: SegmentNumber) {
        if let Some(topics) = self.segments.remove(&segment) {
            self.bytes -= cost(&topics);
        }
    }

    /// Those of `topics` that `segment` has events of; `None` where that is not known.
    #[must_use]
    pub fn of(&self, segment: SegmentNumber, topics: &[TopicNumber]) -> Option<Vec<TopicNumber>> {
        let there = self.segments.get(&segment)?;
        Some(topics.iter().copied().filter(|&topic| there.contains(topic)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topics_of_a_segment_are_told_until_it_is_gone() {
        let mut presence = Presence::default();
        presence.insert(7, [1, 5, 70_000].into_iter().collect());
        presence.insert(8, [2].into_iter().collect());
        assert_eq!(presence.of(7, &[0, 1, 2, 70_000, 70_001]), Some(vec![1, 70_000]));
        assert_eq!(presence.of(8, &[1, 5]), Some(vec![]));
        assert_eq!(presence.of(9, &[1]), None);
        presence.insert(7, [3].into_iter().collect());
        assert_eq!(presence.of(7, &[1, 3]), Some(vec![3]), "sealed once more");
        presence.forget(7);
        presence.forget(7);
        assert_eq!(presence.of(7, &[3]), None);
        presence.forget(8);
        assert_eq!(presence.bytes, 0);
    }

    #[test]
    fn of_more_than_is_kept_the_oldest_are_forgotten() {
        let mut presence = Presence::default();
        // As far apart as numbers can be, so that each takes the most.
        let topics: RoaringBitmap = (0..=u32::from(u16::MAX)).map(|n| n << 16).collect();
        let each = cost(&topics);
        let kept = u32::try_from(BYTES_MAX / each).unwrap();
        for segment in 0..kept + 3 {
            presence.insert(segment, topics.clone());
            assert!(presence.bytes <= BYTES_MAX);
        }
        assert_eq!(presence.of(2, &[0]), None);
        assert_eq!(presence.of(3, &[0, 1]), Some(vec![0]));
        assert_eq!(presence.bytes, presence.segments.values().map(cost).sum::<usize>());
    }
}
