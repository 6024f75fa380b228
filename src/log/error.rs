//! Why a log did not do what it was asked.

use std::io;
use std::sync::Arc;

use crate::event::EventId;
use crate::store::StoreError;
use crate::subscription::ReadingError;
use crate::topic::Topic;

/// Why nothing was appended; [`OutcomeUnknown`](AppendError::OutcomeUnknown) and [`Storage`](AppendError::Storage) are those where it
/// may have been after all.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    #[error("too many publishes are waiting for the disk")]
    Overloaded,
    #[error("the log holds {max} topics, the most it may (limits.topics_max)")]
    TooManyTopics { max: u64 },
    #[error("{reason}")]
    Storage { reason: Arc<str> },
    #[error("no answer came from the disk in time; the events may or may not have been appended")]
    OutcomeUnknown,
    #[error("the log is closed")]
    Closed,
    #[error("the topic {topic} was closed; nothing is published to it any more")]
    TopicClosed { topic: Topic },
    #[error("the topic's newest retained event has the id {last} (0: it holds none)")]
    ConditionFailed { last: EventId },
    #[error("something else was published under this idempotency key; take a new key for each publish")]
    IdempotencyConflict,
    #[error("the id {at} lies beyond the tail, which is {tail}")]
    BeyondTail { at: EventId, tail: EventId },
    #[error("the snapshot that is kept is newer: it is true at {kept}")]
    SnapshotOlder { kept: EventId },
}

impl From<StoreError> for AppendError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Closed => Self::Closed,
            other => Self::Storage { reason: other.to_string().into() },
        }
    }
}

/// Why nothing was read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    #[error("{reason}")]
    Storage { reason: Arc<str> },
    #[error("{reason}")]
    TooLarge { reason: Arc<str> },
    #[error("{reason}")]
    Overloaded { reason: Arc<str> },
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        Self::Storage { reason: error.to_string().into() }
    }
}

impl From<ReadingError> for ReadError {
    fn from(error: ReadingError) -> Self {
        let reason = error.to_string().into();
        match error {
            ReadingError::Store(_) => Self::Storage { reason },
            ReadingError::TooLarge => Self::TooLarge { reason },
            ReadingError::Busy => Self::Overloaded { reason },
        }
    }
}

/// Why a log was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}
