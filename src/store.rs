//! The past: the durable log behind one face, [`Store`].
//!
//! What holds: events lie under their ids in order; a read never shows more than it was asked for up to, and what a read no longer
//! finds lies at or below a floor that was published before it went. RocksDB is named in `rocks` and nowhere else; `model` has the
//! same face in memory, for tests. Must not know subscribers, HTTP, tokio or the clock: time is an argument.

pub mod mark;
pub mod model;
pub mod rocks;
pub mod space;
pub mod wal;

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::event::{Digest, Event, EventId, EventRef, Millis};
use crate::topic::{Filter, Topic};

pub use crate::sse::Floor;

/// When a write counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// After fdatasync: it survives a power cut.
    #[default]
    Sync,
    /// After write(2), with an fdatasync every second: it survives the death of the process.
    Interval,
    /// After write(2); the kernel writes it back when it likes: it survives the death of the process.
    Os,
}

/// What a log, or a topic, is limited to. 0: no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    pub max_events: u64,
    /// Milliseconds.
    pub max_age: Millis,
    /// Before compression, and as each lies by itself: its record with its key and its topic's number. What shares a pack takes less.
    pub max_bytes: u64,
    /// A topic's events up to the id at which its snapshot is true are let go. It says nothing of the whole log.
    pub trim_to_snapshot: bool,
}

impl Limits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// What to read: matching events with `after < id <= upto`.
#[derive(Debug, Clone, Copy)]
pub struct Scan<'a> {
    pub filter: &'a Filter,
    pub after: EventId,
    pub upto: EventId,
}

/// Most records that one scan looks at before it returns with what it has: 16,384 at 2–3 million a second keep a blocking
/// thread for some 8 ms, so that a search for something rare never starves other readers.
pub const SCAN_RECORDS_MAX: usize = 16_384;

/// How far was looked back for the last `n` events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Back {
    /// All but `left` of them lie after this.
    pub cursor: EventId,
    /// So many more are to be looked for up to `cursor`; 0: it is done, and where fewer than `n` are retained, `cursor` lies before
    /// them all.
    pub left: u64,
}

/// What to trim: the events of the log, or of one topic, up to and including `upto`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trim {
    /// `None`: the whole log.
    pub topic: Option<Topic>,
    pub upto: EventId,
}

/// The answer to a publish, kept with its events under its idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    pub key: Digest,
    /// What was published, and where: the same key with anything else is no repetition.
    pub request: Digest,
    pub first: EventId,
    pub last: EventId,
    /// The events' time.
    pub time: Millis,
}

/// A publisher's own bundle of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The id at which it is true.
    pub at: EventId,
    pub content_type: String,
    pub body: String,
}

/// What is known of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicStats {
    pub topic: Topic,
    /// The id of its oldest retained event, or 0.
    pub earliest: EventId,
    /// The id of its newest retained event, or 0.
    pub last: EventId,
    pub events: u64,
    pub bytes: u64,
    pub retention: Option<Limits>,
    pub closed: bool,
}

/// The retention that the operator configured: for the whole log, and for topics by pattern (the last that matches wins).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    pub log: Limits,
    pub topics: Vec<(crate::topic::Pattern, Limits)>,
}

impl Policy {
    /// What `topic` is limited to, unless it has limits of its own.
    #[must_use]
    pub fn for_topic(&self, topic: &str) -> Limits {
        self.topics.iter().rev().find(|(pattern, _)| pattern.matches(topic)).map_or_else(Limits::default, |(_, l)| *l)
    }
}

/// The durable log. Every call may block on a disk.
///
/// One thread at a time appends and trims (the sequencer's); reads come from any number of threads.
pub trait Store: Send + Sync + 'static {
    /// The random name of this log.
    fn name(&self) -> Arc<str>;

    /// The largest id that was appended or skipped, as recovered or since appended.
    fn tail(&self) -> EventId;

    /// The time of the newest event ever appended; 0 when there was none.
    fn last_time(&self) -> Millis;

    /// Appends `events`, which lie beyond the tail in ascending order, and what is to be remembered of them, ascending; all or none.
    /// Durable when it returns `Ok`. An event with a key becomes the newest of its topic and key in the state; where its data is empty,
    /// the key is removed from it.
    ///
    /// # Errors
    /// After an error the outcome is unknown, and nothing is written any more until [`Store::reopen`] has succeeded.
    fn commit(&self, events: &[Event], remembered: &[Remembered]) -> Result<(), StoreError>;

    /// Appends events of which nothing is to be remembered.
    ///
    /// # Errors
    /// As [`Store::commit`].
    fn append(&self, events: &[Event]) -> Result<(), StoreError> {
        self.commit(events, &[])
    }

    /// What is remembered under an idempotency key, unless it was forgotten. Reads the disk only where there is something.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn remembered(&self, key: Digest) -> Result<Option<Remembered>, StoreError>;

    /// Forgets the keys of events that are older than `before`, and the oldest beyond `most`; gives how many of the latter there were.
    /// Does not block: the disk is given back when the store is tidied, so a start may remember some of them until they are forgotten
    /// again.
    fn forget_keys(&self, before: Millis, most: u64) -> u64;

    /// How many idempotency keys are remembered. Does not block.
    fn keys_remembered(&self) -> u64;

    /// Ends a topic, known before or not: durable when it returns `Ok`. Gives the id of its newest event ever, or 0; the same again
    /// for one that is closed already. That no event is appended to it from then on is for the caller to see to.
    ///
    /// # Errors
    /// As [`Store::commit`].
    fn close_topic(&self, topic: &Topic) -> Result<EventId, StoreError>;

    /// Where a topic was closed: the id of its newest event ever, or 0. `None` for one that goes on. Does not block.
    fn closed_at(&self, topic: &str) -> Option<EventId>;

    /// Where all topics of a filter without wildcards were closed: the largest id of their newest events. `None` where any goes on.
    fn closed(&self, filter: &Filter) -> Option<EventId> {
        if !filter.is_literal() {
            return None;
        }
        filter.patterns().iter().try_fold(0, |last, topic| Some(self.closed_at(topic.as_str())?.max(last)))
    }

    /// Removes all events of a topic as [`Store::raise_floors`] does, and in the same write its keys from the state, and its snapshot.
    /// Whether it is closed stays. Gives the floor that rose, if one did.
    ///
    /// # Errors
    /// As [`Store::commit`].
    fn delete_topic(&self, topic: &Topic) -> Result<Option<Trim>, StoreError>;

    /// Calls `each` with the newest event of each topic and key whose topic matches, and whose type does, until it breaks. All of it is
    /// true at one id, the tail at some moment of the call, which it gives; topics come in no order that means anything, the keys of
    /// each in ascending order. Readers may not know of that tail yet. Floors take nothing out of it.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn state(
        &self,
        filter: &Filter,
        each: &mut dyn FnMut(&EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<EventId, StoreError>;

    /// Keeps a topic's snapshot in place of the one before, durably. That it is not older, and not beyond the tail, is for the caller
    /// to see to.
    ///
    /// # Errors
    /// As [`Store::commit`].
    fn put_snapshot(&self, topic: &Topic, snapshot: &Snapshot) -> Result<(), StoreError>;

    /// A topic's snapshot.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn snapshot(&self, topic: &str) -> Result<Option<Snapshot>, StoreError>;

    /// The id at which a topic's snapshot is true. Does not block.
    fn snapshot_at(&self, topic: &str) -> Option<EventId>;

    /// Makes durable what was appended under [`Durability::Interval`].
    ///
    /// # Errors
    /// As [`Store::append`].
    fn sync(&self) -> Result<(), StoreError>;

    /// Whether there is room on the disk for `bytes` more of events and for what the store itself must write; also where a
    /// [`Store::reopen`] has failed, so that it can be tried again when there is.
    ///
    /// # Errors
    /// [`StoreError::Full`] says how much is there and how much is needed.
    fn room(&self, bytes: u64) -> Result<(), StoreError>;

    /// Whether writes are tried at all: not after one has failed, in the background too, until [`Store::reopen`].
    ///
    /// # Errors
    /// What is in the way.
    fn writable(&self) -> Result<(), StoreError>;

    /// Closes and opens the store again after a failed write; the tail may have moved.
    ///
    /// # Errors
    /// When the cause has not gone.
    fn reopen(&self) -> Result<(), StoreError>;

    /// Raises floors, durably, and gives those that rose, each with where it now is. [`Store::floor`] tells them at once, but reads
    /// show what lies below them, and nothing of it goes, before [`Store::floors_published`]: else a reader whom nobody has told of
    /// a floor yet would pass over what the floor hides, and not know.
    ///
    /// # Errors
    /// As [`Store::append`].
    fn raise_floors(&self, trims: &[Trim]) -> Result<Vec<Trim>, StoreError>;

    /// Readers know the floors that were raised: what lies below them is no longer found, and may go. Does not block; to be called in the
    /// same hold of the readers' lock in which they are told, so that nobody begins in between who counts as told and still finds it.
    fn floors_published(&self);

    /// How often floors were published, a snapshot was kept, or the store was opened again: what is read of ids that are durable, up to
    /// the same id, and a snapshot, are the same as long as this does not change. Does not block.
    fn floors_told(&self) -> u64;

    /// Sets or forgets a topic's own retention.
    ///
    /// # Errors
    /// As [`Store::append`].
    fn set_retention(&self, topic: &Topic, limits: Option<Limits>) -> Result<(), StoreError>;

    /// What the limits ask to be trimmed at `now`, [`Limits::trim_to_snapshot`] included.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn due_trims(&self, policy: &Policy, now: Millis) -> Result<Vec<Trim>, StoreError>;

    /// Takes what lies below published floors out of the counts.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn settle(&self) -> Result<(), StoreError>;

    /// Work in the background: settles, builds indexes for what was appended, gives back the disk below the floors.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    fn tidy(&self) -> Result<(), StoreError>;

    /// Calls `each` with the matching events in order until it breaks, [`SCAN_RECORDS_MAX`] records were looked at, or `upto` is
    /// reached. Returns how far it came: everything that matches up to there was given to `each`.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn scan(
        &self,
        scan: Scan<'_>,
        each: &mut dyn FnMut(&EventRef<'_>) -> ControlFlow<()>,
    ) -> Result<EventId, StoreError>;

    /// Looks back from `upto` for the last `n` matching events, at no more than [`SCAN_RECORDS_MAX`] records.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn look_back(&self, filter: &Filter, n: u64, upto: EventId) -> Result<Back, StoreError>;

    /// The cursor after which the last `n` matching events up to `upto` lie. May take as long as reading the whole log.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn before_last(&self, filter: &Filter, n: u64, upto: EventId) -> Result<EventId, StoreError> {
        let mut back = self.look_back(filter, n, upto)?;
        while back.left > 0 {
            back = self.look_back(filter, back.left, back.cursor)?;
        }
        Ok(back.cursor)
    }

    /// The cursor after which every event is at `time` or later.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn before_time(&self, time: Millis) -> Result<EventId, StoreError>;

    /// The floor of the whole log: every id up to it was trimmed.
    fn log_floor(&self) -> EventId;

    /// The highest floor that concerns `filter`: the log's, a matching topic's, or the end of a hole.
    fn floor(&self, filter: &Filter) -> Floor;

    /// The smallest retained id, as of the floors that were published: a reader that begins after this was asked is given nothing below;
    /// one past the tail when nothing is retained.
    fn earliest(&self) -> EventId;

    /// The id of the newest retained event of `topic`, or 0. Does not block.
    fn last_of(&self, topic: &str) -> EventId;

    /// The retention that `topic` has of its own.
    fn retention_of(&self, topic: &str) -> Option<Limits>;

    /// How many topics are known: those that hold something, and those of which a floor, a retention, keys, a snapshot or that they are
    /// closed is remembered. Does not block.
    fn topic_count(&self) -> u64;

    /// Whether `topic` is known. Does not block.
    fn has_topic(&self, topic: &str) -> bool;

    /// At most `limit` topics that hold something or of which more than a floor is remembered, in order of name, after `after`, that begin with `prefix`.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn topics(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<TopicStats>, StoreError>;

    /// Closes it cleanly: what was appended is durable, no id is skipped at the next start. Reads and writes fail from then on.
    ///
    /// # Errors
    /// When the last write fails.
    fn close(&self) -> Result<(), StoreError>;
}

/// Why the store could not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("{0} is in use by another process; a log is served by one at a time")]
    Locked(Arc<str>),
    #[error("the log is corrupt: {0}")]
    Corrupt(Arc<str>),
    #[error("the data directory was written by another version: {0}")]
    Version(Arc<str>),
    #[error(
        "the disk is full: {free} bytes are free, {needed} are needed; writing goes on by itself when there is room"
    )]
    Full { free: u64, needed: u64 },
    #[error("{doing}: {cause}")]
    Io { doing: &'static str, cause: Arc<str> },
    #[error("the log is closed")]
    Closed,
}

impl StoreError {
    /// An error of the disk or of RocksDB while doing something.
    pub fn io(doing: &'static str) -> impl Fn(&dyn std::fmt::Display) -> Self {
        move |cause| Self::Io { doing, cause: cause.to_string().into() }
    }
}
