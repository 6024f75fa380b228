//! Following a log from within a program: the stream of a subscription as events instead of bytes.
//!
//! What holds: whatever [`Log::subscribe`] promises of its frames holds of these items. Must not know HTTP.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use serde::Deserialize;

use super::{Begin, BundleKind, Log, ReadError, StreamError, SubscribeOptions, Subscription};
use crate::event::{Event, EventId, EventType, Key, Millis};
use crate::sse::{Form, GapReason};
use crate::store::StoreError;
use crate::subscription::Gap;
use crate::topic::{Filter, Topic};

/// What happens on a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Item {
    /// The next event.
    Event(Event),
    /// Everything that matches up to this tail was delivered.
    Live { tail: EventId },
    /// Something that was asked for is gone.
    Gap(Gap),
    /// One entry of the state: the newest event of its topic and key. The state ends with the first item of another kind.
    State(Event),
    /// The topic's snapshot, true at this id.
    Snapshot { at: EventId, body: String },
    /// Every topic was closed, and all of it was delivered: the stream ends.
    Closed { last: EventId },
}

/// Where following begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    At(Begin),
    /// With the state or the snapshot, which comes again after a gap.
    Bundle(BundleKind),
}

impl From<Begin> for Beginning {
    fn from(begin: Begin) -> Self {
        Self::At(begin)
    }
}

impl From<BundleKind> for Beginning {
    fn from(kind: BundleKind) -> Self {
        Self::Bundle(kind)
    }
}

impl Log {
    /// Follows what matches `filter`, with the bundle or from the id that `from` says, in order and without end, unless all topics of
    /// a filter without wildcards are closed. The beginning is fixed when this returns.
    ///
    /// Holds a read of at most 64 KiB or one event, however slowly it is polled; who falls behind what is in memory is given it from
    /// the disk.
    ///
    /// # Errors
    /// When the log cannot be read, or the bundle is too large.
    pub async fn follow(&self, filter: Filter, from: impl Into<Beginning>) -> Result<Items, ReadError> {
        let filter = Arc::new(filter);
        let (start, bundle) = match from.into() {
            Beginning::At(begin) => (self.start(&filter, begin).await?, None),
            Beginning::Bundle(kind) => (self.start_with(kind, &filter, Form::Lines).await?, Some(kind)),
        };
        let options = SubscribeOptions { form: Form::Lines, heartbeat: self.inner.heartbeat, follow: true, bundle };
        Ok(Items { lines: self.subscribe(&filter, start, options), ready: VecDeque::new() })
    }
}

/// The items of a subscription. Dropping it ends it.
pub struct Items {
    lines: Subscription,
    /// Of the frames that came together, those that were not taken yet.
    ready: VecDeque<Result<Item, StreamError>>,
}

impl Stream for Items {
    type Item = Result<Item, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Poll::Ready(Some(item));
            }
            match ready!(Pin::new(&mut self.lines).poll_next(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(bytes)) => {
                    let cursor = self.lines.cursor();
                    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
                    self.ready.extend(lines.map(|line| item(line, cursor)));
                }
            }
        }
    }
}

/// A line of the stream.
#[derive(Deserialize)]
struct Line {
    id: Option<EventId>,
    after: Option<EventId>,
    topic: Option<String>,
    event: Option<String>,
    key: Option<String>,
    time: Option<String>,
    data: serde_json::Value,
}

fn item(line: &[u8], cursor: EventId) -> Result<Item, StreamError> {
    let unreadable = |why: &dyn std::fmt::Display| {
        let source = StoreError::Corrupt(format!("a line of the stream cannot be read: {why}").into()).into();
        StreamError::Reading { cursor, source }
    };
    let line: Line = serde_json::from_slice(line).map_err(|error| unreadable(&error))?;
    if line.id.is_some() {
        return event(line).map(Item::Event).ok_or_else(|| unreadable(&"an event is malformed"));
    }
    control(line).ok_or_else(|| unreadable(&"a control event is malformed"))
}

fn control(line: Line) -> Option<Item> {
    let number = |name: &str| line.data.get(name)?.as_u64();
    Some(match line.event.as_deref()? {
        "tidelog.live" => Item::Live { tail: number("tail")? },
        "tidelog.gap" => {
            let reason = line.data.get("reason")?.as_str()?;
            let reasons = [GapReason::Trimmed, GapReason::Lost, GapReason::Ahead];
            let reason = reasons.into_iter().find(|r| r.as_str() == reason)?;
            Item::Gap(Gap { requested: number("requested")?, earliest: number("earliest")?, reason })
        }
        "tidelog.state" => Item::State(event(serde_json::from_value(line.data).ok()?)?),
        "tidelog.snapshot" => Item::Snapshot { at: line.after?, body: line.data.as_str()?.to_owned() },
        "tidelog.closed" => Item::Closed { last: number("last")? },
        _ => return None,
    })
}

fn event(line: Line) -> Option<Event> {
    let time = humantime::parse_rfc3339(&line.time?).ok()?.duration_since(std::time::SystemTime::UNIX_EPOCH).ok()?;
    let serde_json::Value::String(data) = line.data else { return None };
    Some(Event {
        id: line.id?,
        topic: Topic::parse(&line.topic?).ok()?,
        event: line.event.and_then(|name| EventType::parse(&name).ok().flatten()),
        key: line.key.and_then(|key| Key::parse(&key).ok()),
        time: Millis::try_from(time.as_millis()).ok()?,
        data,
    })
}
