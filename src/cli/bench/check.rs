//! Whether every subscriber got every event, once, in order.
//!
//! What holds: each frame's id is larger than the one before it, and the marks of each publisher come complete and in order;
//! whatever is otherwise is counted as what it is. Must not know sockets or framings.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;

use super::mark::Mark;

/// Stretches of missing events that are remembered, to tell what comes late from what comes twice. A server that goes so wrong
/// has failed anyway.
const MISSING_MAX: usize = 100_000;

/// What came, and what was wrong with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Events that should have come.
    pub expected: u64,
    /// Events that came, those that came twice too.
    pub deliveries: u64,
    pub lost: u64,
    pub doubled: u64,
    /// Later than one that follows it, or under an id that is not above the one before.
    pub disordered: u64,
    /// To a subscriber that did not ask for its topic.
    pub strayed: u64,
    /// Of somebody else; no fault.
    pub foreign: u64,
}

impl Tally {
    /// What was wrong, as a sentence; `None` when nothing was.
    pub fn wrong(&self) -> Option<String> {
        let Self { expected, lost, doubled, disordered, strayed, .. } = self;
        if lost + doubled + disordered + strayed == 0 {
            return None;
        }
        let strayed = if *strayed > 0 { format!(", {strayed} of a topic not asked for") } else { String::new() };
        Some(format!(
            "of {expected} deliveries {lost} were lost, {doubled} came twice, {disordered} out of order{strayed}"
        ))
    }
}

/// Which events a subscriber of topic `topic` must get, when every publisher's n-th event goes to topic n mod `topics`.
#[derive(Debug, Clone)]
pub struct Expectation {
    /// The run whose marks count; `None`: that of the first mark that comes.
    pub run: Option<u32>,
    /// Events of each publisher.
    pub lanes: Vec<u32>,
    /// Topics that they go to in turn.
    pub topics: u32,
}

/// Judges what comes.
#[derive(Debug)]
pub struct Check {
    expects: Expectation,
    has_ids: bool,
    /// The largest id that each subscriber has seen.
    ids: Vec<u64>,
    /// The next sequence number, of each subscriber and publisher.
    next: Vec<u32>,
    /// Different events that came, to each subscriber.
    distinct: Vec<u64>,
    all_distinct: u64,
    /// What was passed over, by subscriber and publisher.
    missing: HashMap<(usize, u16), Vec<Range<u32>>>,
    missing_count: usize,
    tally: Tally,
}

impl Check {
    /// Of `subscribers`, of which the i-th follows topic i mod topics. With `has_ids`, frames without one are out of order.
    pub fn new(expects: Expectation, subscribers: usize, has_ids: bool) -> Self {
        let topics = expects.topics as usize;
        let next = (0..subscribers).flat_map(|s| expects.lanes.iter().map(move |_| topic_of(s, topics))).collect();
        let mut check = Self {
            has_ids,
            ids: vec![0; subscribers],
            next,
            distinct: vec![0; subscribers],
            all_distinct: 0,
            missing: HashMap::new(),
            missing_count: 0,
            tally: Tally::default(),
            expects,
        };
        check.tally.expected = (0..subscribers).map(|s| check.expected(s)).sum();
        check
    }

    /// How many events `subscriber` must get.
    pub fn expected(&self, subscriber: usize) -> u64 {
        let topics = self.expects.topics;
        let topic = topic_of(subscriber, topics as usize);
        self.expects.lanes.iter().map(|&events| u64::from(events.saturating_sub(topic).div_ceil(topics))).sum()
    }

    /// Takes an event in. Gives its mark when it is one of those that are expected.
    pub fn take(&mut self, subscriber: usize, id: Option<u64>, mark: Option<Mark>) -> Option<Mark> {
        let before = self.ids[subscriber];
        self.advance(subscriber, id.unwrap_or(0));
        let ascends = id.map_or(!self.has_ids, |id| id > before);
        let Some(mark) = mark.filter(|mark| self.is_own(mark)) else {
            self.tally.foreign += 1;
            self.tally.disordered += u64::from(!ascends);
            return None;
        };
        self.tally.deliveries += 1;
        let topics = self.expects.topics;
        if topics > 1 && mark.sequence % topics != topic_of(subscriber, topics as usize) {
            self.tally.strayed += 1;
            return Some(mark);
        }
        let next = &mut self.next[subscriber * self.expects.lanes.len() + usize::from(mark.publisher)];
        match mark.sequence.cmp(next) {
            Ordering::Less => {
                self.late(subscriber, mark);
                return Some(mark);
            }
            Ordering::Equal => {}
            Ordering::Greater => {
                if self.missing_count < MISSING_MAX {
                    self.missing_count += 1;
                    self.missing.entry((subscriber, mark.publisher)).or_default().push(*next..mark.sequence);
                }
            }
        }
        *next = mark.sequence.saturating_add(topics);
        self.tally.disordered += u64::from(!ascends);
        self.distinct[subscriber] += 1;
        self.all_distinct += 1;
        Some(mark)
    }

    /// An event before one that came already: is it late, or here again?
    fn late(&mut self, subscriber: usize, mark: Mark) {
        let missing = self.missing.get_mut(&(subscriber, mark.publisher));
        let gap = missing.and_then(|gaps| {
            let at = gaps.iter().position(|gap| gap.contains(&mark.sequence))?;
            Some((gaps.swap_remove(at), gaps))
        });
        let Some((gap, gaps)) = gap else {
            self.tally.doubled += 1;
            return;
        };
        gaps.extend([gap.start..mark.sequence, mark.sequence + 1..gap.end].into_iter().filter(|gap| !gap.is_empty()));
        self.tally.disordered += 1;
        self.distinct[subscriber] += 1;
        self.all_distinct += 1;
    }

    fn is_own(&mut self, mark: &Mark) -> bool {
        let events = self.expects.lanes.get(usize::from(mark.publisher));
        events.is_some_and(|&events| mark.sequence < events) && *self.expects.run.get_or_insert(mark.run) == mark.run
    }

    /// A cursor that the stream told without an event.
    pub fn advance(&mut self, subscriber: usize, id: u64) {
        self.ids[subscriber] = self.ids[subscriber].max(id);
    }

    /// The largest id that `subscriber` has seen.
    pub fn last_id(&self, subscriber: usize) -> u64 {
        self.ids[subscriber]
    }

    /// Whether `subscriber` has everything.
    pub fn is_complete_for(&self, subscriber: usize) -> bool {
        self.distinct[subscriber] >= self.expected(subscriber)
    }

    /// Whether everybody has everything.
    pub fn is_complete(&self) -> bool {
        self.all_distinct >= self.tally.expected
    }

    /// Different events that came, to all.
    pub fn distinct(&self) -> u64 {
        self.all_distinct
    }

    /// What there is to say now, when nothing more is to come.
    pub fn tally(&self) -> Tally {
        Tally { lost: self.tally.expected - self.all_distinct.min(self.tally.expected), ..self.tally }
    }

    /// The same where nobody waited for the end: only what was passed over is lost.
    pub fn tally_so_far(&self) -> Tally {
        let topics = self.expects.topics as usize;
        let passed = |range: &Range<u32>| (range.end - range.start) as usize / topics;
        let lost: usize = self.missing.values().flatten().map(|range| passed(range).max(1)).sum();
        Tally { lost: lost as u64, expected: self.all_distinct + lost as u64, ..self.tally }
    }
}

#[allow(clippy::cast_possible_truncation)] // topics are a u32
fn topic_of(subscriber: usize, topics: usize) -> u32 {
    (subscriber % topics) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lanes: &[u32], topics: u32, subscribers: usize) -> Check {
        Check::new(Expectation { run: Some(9), lanes: lanes.to_vec(), topics }, subscribers, true)
    }

    fn mark(publisher: u16, sequence: u32) -> Mark {
        Mark { run: 9, publisher, sequence, time: 0 }
    }

    /// One subscriber and one publisher of six events: (id, sequence) as they come.
    fn judged(came: &[(u64, u32)]) -> (u64, u64, u64) {
        let mut check = check(&[6], 1, 1);
        for &(id, sequence) in came {
            check.take(0, Some(id), Some(mark(0, sequence)));
        }
        let Tally { lost, doubled, disordered, .. } = check.tally();
        (lost, doubled, disordered)
    }

    #[test]
    fn lost_doubled_and_disordered_are_told_apart() {
        let good = [(10, 0), (11, 1), (15, 2), (16, 3), (17, 4), (18, 5)];
        assert_eq!(judged(&good), (0, 0, 0));
        assert_eq!(judged(&good[..5]), (1, 0, 0), "the end is lost");
        assert_eq!(judged(&good[2..]), (2, 0, 0), "the beginning is lost");
        assert_eq!(judged(&[&good[..2], &good[4..]].concat()), (2, 0, 0), "the middle is lost");
        assert_eq!(judged(&[&good[..], &good[5..]].concat()), (0, 1, 0), "the last came twice");
        assert_eq!(judged(&[&good[..], &good[..]].concat()), (0, 6, 0), "all came twice");
        let swapped = [good[0], good[2], good[1], good[3], good[4], good[5]];
        assert_eq!(judged(&swapped), (0, 0, 1));
        assert_eq!(judged(&[&swapped[..], &[good[1]]].concat()), (0, 1, 1), "late, and once more");
        let reversed: Vec<_> = good.iter().rev().copied().collect();
        assert_eq!(judged(&reversed), (0, 0, 5));
    }

    #[test]
    fn ids_must_ascend_even_where_marks_do() {
        assert_eq!(judged(&[(10, 0), (10, 1), (11, 2), (9, 3), (12, 4), (13, 5)]), (0, 0, 2));
        let mut check = check(&[1], 1, 1);
        check.take(0, None, Some(mark(0, 0)));
        assert_eq!(check.tally().disordered, 1, "a frame without an id");
        let mut peer = Check::new(Expectation { run: Some(9), lanes: vec![1], topics: 1 }, 1, false);
        peer.take(0, None, Some(mark(0, 0)));
        assert_eq!(peer.tally().wrong(), None);
    }

    #[test]
    fn each_publisher_and_each_subscriber_counts_by_itself() {
        let mut check = check(&[2, 1], 1, 2);
        assert_eq!(check.tally().lost, 6);
        for (subscriber, id, event) in [(0, 1, mark(1, 0)), (1, 1, mark(1, 0)), (0, 2, mark(0, 0)), (0, 3, mark(0, 1))]
        {
            assert!(check.take(subscriber, Some(id), Some(event)).is_some());
        }
        assert!(check.is_complete_for(0) && !check.is_complete_for(1) && !check.is_complete());
        assert_eq!((check.tally().lost, check.distinct()), (2, 4));
        assert!(check.tally().wrong().is_some_and(|text| text.starts_with("of 6 deliveries 2 were lost")));
    }

    #[test]
    fn topics_go_round() {
        let mut check = check(&[5, 2], 3, 4);
        assert_eq!([0, 1, 2, 3].map(|s| check.expected(s)), [3, 3, 1, 3]);
        check.take(1, Some(1), Some(mark(0, 1)));
        check.take(1, Some(2), Some(mark(0, 4)));
        check.take(1, Some(3), Some(mark(1, 1)));
        assert!(check.is_complete_for(1));
        check.take(2, Some(4), Some(mark(0, 1)));
        assert_eq!((check.tally().strayed, check.tally_so_far().lost), (1, 0));
        check.take(3, Some(5), Some(mark(0, 3)));
        assert_eq!(check.tally_so_far().lost, 1);
    }

    #[test]
    fn what_others_publish_is_no_fault() {
        let mut check = check(&[1], 1, 1);
        check.take(0, Some(1), None);
        check.take(0, Some(2), Some(Mark { run: 8, publisher: 0, sequence: 0, time: 0 }));
        check.take(0, Some(3), Some(mark(1, 0)));
        check.take(0, Some(4), Some(mark(0, 0)));
        assert_eq!((check.tally().foreign, check.tally().wrong()), (3, None));
        let mut any = Check::new(Expectation { run: None, lanes: vec![1], topics: 1 }, 1, true);
        any.take(0, Some(1), Some(mark(0, 0)));
        assert!(any.is_complete(), "the first mark says whose run it is");
    }
}
