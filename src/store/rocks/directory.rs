//! What the store knows without asking the disk: its topics, its floors, its segments, and the index of what is not yet sealed.
//!
//! Plain memory behind one lock, held for no longer than a look-up. What holds: it describes exactly what is committed;
//! `live` counts leave out what was settled below a floor. Must not know RocksDB.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use crate::event::{EventId, Millis};
use crate::record::TopicNumber;
use crate::topic::Topic;

use super::layout::{Marks, Offset, SegmentNumber, TopicRow, first_id, offset_of, segment_of};
use super::presence::Presence;
use super::tokens::Tokens;
use super::unsealed::OpenSegment;

/// A count of events and of their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Amount {
    pub events: u64,
    pub bytes: u64,
}

impl Amount {
    pub fn add(&mut self, other: Self) {
        self.events += other.events;
        self.bytes += other.bytes;
    }

    /// The sum of some events, each with its bytes.
    #[must_use]
    pub fn of(events: &[(EventId, u32)]) -> Self {
        Self { events: events.len() as u64, bytes: events.iter().map(|&(_, bytes)| u64::from(bytes)).sum() }
    }

    /// Takes `other` away; what would fall below zero stays at zero.
    pub fn take(&mut self, other: Self) {
        self.events = self.events.saturating_sub(other.events);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

/// One topic.
#[derive(Debug, Clone)]
pub struct Row {
    pub topic: Topic,
    /// Its events up to this id are trimmed.
    pub floor: EventId,
    /// Its floor as readers were told it: up to here its events are no longer shown.
    pub published: EventId,
    /// Its events up to this id are no longer in `live`; catches up with `floor` when floors are settled.
    pub settled: EventId,
    pub marks: Marks,
    /// The newest event ever appended, retained or not.
    pub last: EventId,
    /// The oldest retained event, where it is known.
    pub first: Option<EventId>,
    pub live: Amount,
}

impl Row {
    #[must_use]
    pub fn new(topic: Topic) -> Self {
        Self {
            topic,
            floor: 0,
            published: 0,
            settled: 0,
            marks: Marks::default(),
            last: 0,
            first: None,
            live: Amount::default(),
        }
    }

    /// What the database says of it; whoever writes a row begins with this, so that nothing else of it is lost.
    #[must_use]
    pub fn stored(&self, number: TopicNumber) -> TopicRow {
        TopicRow { number, floor: self.floor, marks: self.marks }
    }
}

/// Of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heights {
    /// The newest event ever appended, retained or not.
    pub last: EventId,
    /// Its events up to this id are trimmed.
    pub floor: EventId,
}

/// A run of 65,536 ids.
#[derive(Debug, Clone, Copy, Default)]
pub struct Segment {
    pub first_time: Millis,
    pub last_time: Millis,
    /// All that was appended to it.
    pub total: Amount,
    /// What of it is not trimmed.
    pub live: Amount,
    /// It occupies about so much of the disk, at the most; all in bytes as events count.
    pub stored: u64,
    /// What of it was live when it was last rewritten; all of it, where it was not.
    pub rewritten: u64,
}

/// One committed event, as the directory takes it in.
#[derive(Debug, Clone, Copy)]
pub struct Committed {
    pub id: EventId,
    pub topic: TopicNumber,
    pub bytes: u32,
    pub time: Millis,
}

/// All of it.
#[derive(Debug, Default)]
pub struct Directory {
    names: BTreeMap<Topic, TopicNumber>,
    /// The same again, as every event of every append is looked up here.
    numbers: HashMap<Topic, TopicNumber>,
    /// By number. Numbers are never given again, so a forgotten topic leaves a pointer's width behind.
    rows: Vec<Option<Box<Row>>>,
    /// By number, what the rows say of the newest event and of the floor: a hundred thousand of them are looked through in a tenth of
    /// a millisecond, which the rows themselves, each somewhere else in memory, are not. 0 where a topic is forgotten.
    heights: Vec<Heights>,
    tokens: Tokens,
    pub tail: EventId,
    pub last_time: Millis,
    pub log_floor: EventId,
    /// Grows whenever a floor rises.
    pub floors_version: u64,
    /// Grows whenever a topic is forgotten or loses its keys: those of an earlier moment may be more than are known now.
    pub losses: u64,
    /// Grows whenever floors are published: what a read hides changes with it.
    pub floors_told: u64,
    /// The log's floor as readers were told it: up to here nothing is shown any more.
    pub log_published: EventId,
    /// Up to here the log's floor is settled.
    pub log_settled: EventId,
    /// Topics whose floor was raised, but not yet published.
    pub raised: Vec<TopicNumber>,
    /// Topics whose floor was published, but not yet settled.
    pub published: Vec<(TopicNumber, EventId)>,
    /// Bytes below the log's floor that may still lie on the disk.
    pub dead_bytes: u64,
    /// The newest hole, lowest and highest id; (0, 0) when there is none.
    pub hole: (EventId, EventId),
    pub segments: BTreeMap<SegmentNumber, Segment>,
    /// Shared, so that a full one can be sealed and let go without the lock.
    pub open: BTreeMap<SegmentNumber, Arc<OpenSegment>>,
    /// Of those that are sealed.
    pub presence: Presence,
    /// Of all topics.
    pub live: Amount,
    /// The smallest retained id, as of the floors that were settled.
    pub earliest: EventId,
}

impl Directory {
    /// The number that the next new topic gets.
    #[must_use]
    pub fn next_topic(&self) -> TopicNumber {
        TopicNumber::try_from(self.rows.len()).expect("topic numbers have 32 bits; memory ends long before")
    }

    /// Keeps the numbers below `next` out of use, known or not.
    pub fn reserve_topics(&mut self, next: TopicNumber) {
        let next = next as usize;
        if self.rows.len() < next {
            self.rows.resize_with(next, || None);
            self.heights.resize(next, Heights::default());
        }
    }

    #[must_use]
    pub fn number(&self, topic: &str) -> Option<TopicNumber> {
        self.numbers.get(topic).copied()
    }

    #[must_use]
    pub fn row(&self, number: TopicNumber) -> Option<&Row> {
        self.rows.get(number as usize)?.as_deref()
    }

    pub fn row_mut(&mut self, number: TopicNumber) -> Option<&mut Row> {
        self.rows.get_mut(number as usize)?.as_deref_mut()
    }

    #[must_use]
    pub fn row_of(&self, topic: &str) -> Option<&Row> {
        self.row(self.number(topic)?)
    }

    /// All rows, ascending by number.
    pub fn rows(&self) -> impl Iterator<Item = (TopicNumber, &Row)> {
        self.rows.iter().zip(0..).filter_map(|(row, number)| Some((number, row.as_deref()?)))
    }

    pub fn insert(&mut self, number: TopicNumber, row: Row) {
        self.reserve_topics(number + 1);
        self.names.insert(row.topic.clone(), number);
        self.numbers.insert(row.topic.clone(), number);
        self.tokens.insert(number, row.topic.as_str());
        self.heights[number as usize] = Heights { last: row.last, floor: row.floor };
        self.rows[number as usize] = Some(Box::new(row));
    }

    /// Forgets a topic of which nothing is left; its number is not given again.
    pub fn forget(&mut self, number: TopicNumber) {
        if let Some(row) = self.rows.get_mut(number as usize).and_then(Option::take) {
            self.losses += 1;
            self.names.remove(&row.topic);
            self.numbers.remove(&row.topic);
            self.heights[number as usize] = Heights::default();
            let rows = &self.rows;
            self.tokens.forget(number, row.topic.as_str(), |n| rows.get(n as usize).is_some_and(Option::is_some));
        }
    }

    /// What is known of the newest event and the floor of a topic: 0 for one that is forgotten.
    #[must_use]
    pub fn heights(&self, number: TopicNumber) -> Heights {
        self.heights.get(number as usize).copied().unwrap_or_default()
    }

    /// What patterns are resolved by.
    #[must_use]
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// An event of this topic was appended some time.
    pub fn saw(&mut self, number: TopicNumber, id: EventId) {
        if let (Some(row), Some(heights)) = (self.rows.get_mut(number as usize), self.heights.get_mut(number as usize))
            && let Some(row) = row
        {
            row.last = row.last.max(id);
            heights.last = row.last;
        }
    }

    /// The topic is trimmed up to `floor`.
    pub fn raise_floor(&mut self, number: TopicNumber, floor: EventId) {
        if let Some(Some(row)) = self.rows.get_mut(number as usize) {
            row.floor = floor;
            row.first = None;
            self.heights[number as usize].floor = floor;
        }
    }

    /// The topic is stored like this from now on; its floor may have risen.
    pub fn changed(&mut self, stored: &TopicRow) {
        let number = stored.number;
        let Some(row) = self.row_mut(number) else { return };
        let (lost, rose) = (row.marks.keyed && !stored.marks.keyed, stored.floor > row.floor);
        row.marks = stored.marks;
        self.losses += u64::from(lost);
        if rose {
            self.floors_version += 1;
            self.raise_floor(number, stored.floor);
            self.raised.push(number);
        }
    }

    /// Takes in committed events, ascending, of topics that have rows.
    pub fn committed(&mut self, events: impl IntoIterator<Item = Committed>) {
        let mut events = events.into_iter().peekable();
        while let Some(&Committed { id, time, .. }) = events.peek() {
            let number = segment_of(id);
            let segment =
                self.segments.entry(number).or_insert_with(|| Segment { first_time: time, ..Segment::default() });
            // Nobody else holds a segment that is still appended to, so nothing is copied.
            let open = Arc::make_mut(self.open.entry(number).or_default());
            while let Some(event) = events.next_if(|e| segment_of(e.id) == number) {
                let amount = Amount { events: 1, bytes: u64::from(event.bytes) };
                segment.last_time = event.time;
                segment.total.add(amount);
                segment.stored += amount.bytes;
                segment.rewritten += amount.bytes;
                open.push(offset_of(event.id), event.topic, event.bytes);
                let mut row = self.rows.get_mut(event.topic as usize).and_then(Option::as_mut);
                let floor = self.log_floor.max(row.as_ref().map_or(0, |row| row.floor));
                if event.id > floor {
                    segment.live.add(amount);
                    if self.live.events == 0 {
                        self.earliest = self.earliest.max(event.id);
                    }
                    self.live.add(amount);
                    if let Some(row) = &mut row {
                        if row.live.events == 0 || row.last <= floor {
                            row.first = Some(event.id);
                        }
                        row.live.add(amount);
                    }
                }
                if let Some(row) = row {
                    row.last = row.last.max(event.id);
                    self.heights[event.topic as usize].last = row.last;
                }
            }
        }
    }

    /// The log's floor is `floor`, and readers know it, and nothing below is counted: as a directory begins.
    pub fn begin_above(&mut self, floor: EventId) {
        (self.log_floor, self.log_published, self.log_settled) = (floor, floor, floor);
        self.earliest = floor + 1;
    }

    /// Takes back as unpublished what of topics was not published `before`: see `open_again`.
    pub fn not_yet_published(&mut self, before: &Self) {
        // Counting has passed over what these floors take.
        self.earliest = self.log_published + 1;
        for (number, row) in self.rows.iter_mut().zip(0..).filter_map(|(row, n)| Some((n, row.as_mut()?))) {
            row.published = before.row(number).map_or(0, |old| old.published).min(row.floor);
            if row.published < row.floor {
                self.raised.push(number);
            }
        }
    }

    /// Readers know the floors as they are: what lies below them may be settled.
    pub fn floors_published(&mut self) {
        self.floors_told += 1;
        self.log_published = self.log_floor;
        for number in std::mem::take(&mut self.raised) {
            if let Some(row) = self.row_mut(number) {
                row.published = row.floor;
                let floor = row.floor;
                self.published.push((number, floor));
            }
        }
    }

    /// The smallest retained id, as of the floors that were published; one past the tail when nothing is retained.
    #[must_use]
    pub fn smallest_retained(&self) -> EventId {
        // After reopening, what is counted leaves out what topics' floors take that were not published yet.
        let is_empty = self.live.events == 0 && self.raised.is_empty();
        if is_empty { self.tail + 1 } else { self.earliest.max(self.log_published + 1) }
    }

    /// How many topics are known, also those of which only a floor or a mark is left.
    #[must_use]
    pub fn topic_count(&self) -> u64 {
        self.names.len() as u64
    }

    /// Counts events of one topic in one segment as gone.
    pub fn removed(&mut self, segment: SegmentNumber, number: TopicNumber, amount: Amount) {
        if let Some(s) = self.segments.get_mut(&segment) {
            s.live.take(amount);
        }
        self.live.take(amount);
        if let Some(row) = self.row_mut(number) {
            row.live.take(amount);
        }
    }

    /// The id of the newest retained event of a row, or 0.
    #[must_use]
    pub fn retained_last(&self, row: &Row) -> EventId {
        if row.last > row.floor.max(self.log_floor) { row.last } else { 0 }
    }

    /// Whether nothing is left of a topic, and nothing about it that is to be remembered, but for the keys that it may have.
    #[must_use]
    pub fn is_forgettable_but_for_keys(&self, row: &Row) -> bool {
        row.last.max(row.floor) <= self.log_settled && row.marks.is_empty_but_for_keys()
    }

    /// Whether there is anything that a list of topics should show, whatever keys it may have.
    #[must_use]
    pub fn shows_without_keys(&self, row: &Row) -> bool {
        self.retained_last(row) > 0 || !row.marks.is_empty_but_for_keys()
    }

    /// The topics that begin with `prefix`, in order of name, those after `after`.
    pub fn in_order<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (TopicNumber, &'a Row)> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.names
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(move |(name, _)| name.as_str().starts_with(prefix))
            .filter_map(|(_, &number)| Some((number, self.row(number)?)))
    }

    /// The first segment that is not sealed, or the one after the last.
    #[must_use]
    pub fn first_open(&self) -> SegmentNumber {
        self.open.keys().next().copied().unwrap_or_else(|| segment_of(self.tail) + 1)
    }

    /// The segments that hold ids from `after + 1` up to `upto`.
    #[must_use]
    pub fn segments_between(&self, after: EventId, upto: EventId) -> Vec<SegmentNumber> {
        if after >= upto {
            return Vec::new();
        }
        self.segments.range(segment_of(after + 1)..=segment_of(upto)).map(|(&s, _)| s).collect()
    }
}

/// Those of `events` in `segment`, ascending by their `offset`, that lie within `after < id <= upto`.
#[must_use]
pub fn range_within<T>(
    segment: SegmentNumber,
    events: &[T],
    offset: impl Fn(&T) -> Offset,
    after: EventId,
    upto: EventId,
) -> &[T] {
    let id = |event: &T| first_id(segment) + u64::from(offset(event));
    let from = events.partition_point(|event| id(event) <= after);
    let to = events.partition_point(|event| id(event) <= upto);
    &events[from..to.max(from)]
}
