//! Why a request is refused or failed: every cause that this room knows.
//!
//! Display says what was wrong with what the client sent and how to mend it. Must not know statuses; `problem.rs` does.

use std::time::Duration;

use crate::event::{InvalidId, InvalidName};
use crate::log::{AppendError, ReadError, StreamError};
use crate::topic::InvalidTopic;

/// Most characters of a client's own text that an error repeats.
const QUOTED_MAX: usize = 120;

/// The causes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the topic {text:?} is not valid: {why}")]
    Topic { text: String, why: InvalidTopic },
    #[error("the topic in the path does not decode to UTF-8; percent-encode it as UTF-8")]
    TopicEncoding,
    #[error("the pattern {text:?} is not valid: {why}")]
    Pattern { text: String, why: InvalidTopic },
    #[error("the pattern in the path does not decode to UTF-8; percent-encode it as UTF-8")]
    PatternEncoding,
    #[error("{0}")]
    Query(String),
    #[error("the header {name}: {why}")]
    Header { name: &'static str, why: String },
    #[error("{name}: {why}")]
    Id { name: String, why: InvalidId },
    #[error("the header Last-Event-ID is given more than once")]
    IdTwice,
    #[error("a snapshot says in the header Last-Event-ID at which id it is true")]
    NoId,
    #[error("{0}")]
    Json(String),
    #[error("the body is not UTF-8: the byte at offset {at} begins no character")]
    Utf8 { at: usize },
    #[error("the event type is not valid: {0}")]
    EventType(InvalidName),
    #[error("the key is not valid: {0}")]
    Key(InvalidName),
    /// What is wrong with one line of a batch; lines are counted from 1.
    #[error("line {line}: {why}")]
    Line { line: usize, why: Box<Error> },
    #[error("{what} is larger than {max} bytes ({option})")]
    TooLarge { what: &'static str, max: u64, option: &'static str },
    #[error("the batch has more than {max} events (limits.batch_events_max); send it in several")]
    TooManyEvents { max: usize },
    #[error("there is no such resource; /openapi.json lists what there is")]
    NoResource,
    #[error("the topic has no retention of its own; the configured policy holds")]
    NoRetention,
    #[error("the topic has no snapshot; PUT one there")]
    NoSnapshot,
    #[error("{method} is not for this resource; it takes {allow}")]
    Method { method: String, allow: &'static str },
    #[error(
        "nothing that Accept names can be given; ask for text/event-stream, application/x-ndjson or application/json"
    )]
    NotAcceptable,
    #[error("the body did not arrive within {} s; send it faster, or in parts", .0.as_secs_f64())]
    Slow(Duration),
    #[error("{0}; try again soon")]
    Overloaded(&'static str),
    #[error("the server is draining; try again soon")]
    Draining,
    #[error("the log cannot be written: {reason}")]
    Refusing { reason: String },
    #[error("this server listens on a loopback address, so the Host must be localhost, 127.0.0.1 or [::1]; it is {0}")]
    Host(String),
    #[error("requests from {0} are not allowed; add the origin to cors.allow_origins to allow them")]
    Origin(String),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl Error {
    /// `text` is no topic.
    #[must_use]
    pub fn topic(text: &str, why: InvalidTopic) -> Self {
        Self::Topic { text: clip(text), why }
    }

    /// `text` is no pattern.
    #[must_use]
    pub fn pattern(text: &str, why: InvalidTopic) -> Self {
        Self::Pattern { text: clip(text), why }
    }

    /// The value of `name` is no event id.
    #[must_use]
    pub fn id(name: &str, why: InvalidId) -> Self {
        Self::Id { name: name.to_owned(), why }
    }

    /// This error, said of a line of a batch.
    #[must_use]
    pub fn at_line(self, line: usize) -> Self {
        Self::Line { line, why: Box::new(self) }
    }
}

/// `text`, short enough to be repeated in an answer.
#[must_use]
pub fn clip(text: &str) -> String {
    match text.char_indices().nth(QUOTED_MAX) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
