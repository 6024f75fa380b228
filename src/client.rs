//! The crate's own client: publishes over HTTP and follows a stream across broken connections.
//!
//! What holds: a publish is sent at most once; the only repetition is of a request of which nothing left this program. A
//! subscription resumes by the last complete event, so what it yields has no gap and no duplicate unless it says so. Every
//! wait has a timeout. Must know only words and frames ([`crate::event`], [`crate::topic`], [`crate::sse`]), never the
//! server's rooms: what it relies on is the HTTP contract.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tidelog::client::{Client, Item, SubscribeOptions};
//! use tidelog::topic::Pattern;
//! use tokio_stream::StreamExt as _;
//!
//! let client = Client::new("http://127.0.0.1:4242")?;
//! let mut orders = client.subscribe(&[Pattern::parse("orders.**")?], SubscribeOptions::default());
//! while let Some(item) = orders.next().await {
//!     if let Item::Event(event) = item? {
//!         println!("{} {}", event.id, event.data);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod connect;
mod items;
mod publish;
mod subscribe;
#[cfg(test)]
mod testing;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

pub use items::{Event, Item};
#[doc(hidden)]
pub use items::{Reading, read};
pub use publish::Ack;
pub use subscribe::{SubscribeOptions, Subscription, Wire};

use crate::sse::decode::TooLarge;
use connect::{Idle, Target};

/// How long a client waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection to be made.
    pub connect: Duration,
    /// For the whole answer to a publish. The default is as long as the server lets a socket stall.
    pub answer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), answer: Duration::from_secs(60) }
    }
}

/// A tidelog server, as a client sees it. Cheap to clone; clones share their idle connections.
#[derive(Debug, Clone)]
pub struct Client {
    target: Arc<Target>,
    timeouts: Timeouts,
    idle: Arc<Mutex<Vec<Idle>>>,
}

impl Client {
    /// A client of the server at `base_url`: `http://HOST[:PORT][/PREFIX]`. Connects only when there is something to send.
    ///
    /// # Errors
    /// [`Error::Url`] when it is no such URL.
    pub fn new(base_url: &str) -> Result<Self, Error> {
        let target = Arc::new(Target::parse(base_url)?);
        Ok(Self { target, timeouts: Timeouts::default(), idle: Arc::default() })
    }

    /// The same client with other timeouts.
    #[must_use]
    pub fn with_timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }
}

/// What a server answers instead of doing what it was asked (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail} ({status} {code})")]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The stable word for it, such as `bad_topic`; empty when whoever answered has none.
    pub code: String,
    /// What was wrong, and how to mend it.
    pub detail: String,
    /// How long the server asks to wait before another attempt.
    pub retry_after: Option<Duration>,
}

/// Why a call of the client failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the server's URL {url:?} {why}")]
    Url { url: String, why: &'static str },
    #[error("the idempotency key {0:?} cannot be sent in a header; use visible ASCII characters")]
    IdempotencyKey(String),
    #[error("cannot connect to {server}: {cause}")]
    Connect { server: String, cause: io::Error },
    /// The connection broke before anything was sent, twice.
    #[error("the server at {server} closed the connection before anything was sent: {cause}")]
    Unsent { server: String, cause: hyper::Error },
    /// The connection broke, or the time was over, after something was sent.
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the server refused: {0}")]
    Refused(Problem),
    #[error("the server answered what no tidelog server does: {0}")]
    NotTidelog(String),
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

impl Error {
    /// Whether a publish that failed so may have been appended all the same: whatever was sent and answered neither 2xx nor
    /// 4xx.
    #[must_use]
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Url { .. }
            | Self::IdempotencyKey(_)
            | Self::Connect { .. }
            | Self::Unsent { .. }
            | Self::TooLarge(_) => false,
            Self::Broken(_) | Self::NotTidelog(_) => true,
            Self::Refused(problem) => !(400..500).contains(&problem.status),
        }
    }

    /// Whether a subscription that failed so may fare better when it connects again.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Unsent { .. } | Self::Broken(_) => true,
            Self::Refused(problem) => matches!(problem.status, 408 | 429 | 500..),
            Self::Url { .. } | Self::IdempotencyKey(_) | Self::NotTidelog(_) | Self::TooLarge(_) => false,
        }
    }
}
