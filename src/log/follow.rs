//! Following a log from within a program: the stream of a subscription as events instead of bytes.
//!
//! What holds: whatever [`Log::subscribe`] promises of its frames holds of these items. Must not know HTTP.

use std::borrow::Cow;
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
        Ok(Items { lines: self.subscribe(&filter, start, options), begun: Vec::new(), ready: VecDeque::new() })
    }
}

/// The items of a subscription. Dropping it ends it.
pub struct Items {
    lines: Subscription,
    /// The beginning of a line whose end has not come: a bundle comes in pieces that are cut anywhere. Bounded by the longest entry of a
    /// state, or a snapshot.
    begun: Vec<u8>,
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
                Some(Ok(bytes)) => self.take(&bytes),
            }
        }
    }
}

impl Items {
    fn take(&mut self, bytes: &[u8]) {
        let cursor = self.lines.cursor();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let Some(end) = piece.strip_suffix(b"\n") else {
                self.begun.extend_from_slice(piece);
                continue;
            };
            let begun = std::mem::take(&mut self.begun);
            let line = if begun.is_empty() { Cow::Borrowed(end) } else { Cow::Owned([&begun, end].concat()) };
            // An empty line is a heartbeat.
            if !line.is_empty() {
                self.ready.push_back(item(&line, cursor));
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

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;
    use crate::event::NewEvent;
    use crate::log::{Options, Snapshot};

    #[tokio::test]
    async fn what_comes_in_several_pieces_is_one_item() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(Options::new(dir.path())).unwrap();
        let topic = Topic::parse("a").unwrap();
        let large = |letter: &str| letter.repeat(600_000);
        for (key, data) in [("one", large("x")), ("two", "small".into()), ("three", large("y"))] {
            let event = NewEvent { topic: topic.clone(), event: None, key: Some(Key::parse(key).unwrap()), data };
            log.append(vec![event]).await.unwrap();
        }
        let body = large("z");
        log.put_snapshot(&topic, Snapshot { at: 2, content_type: "text/plain".into(), body: body.clone() })
            .await
            .unwrap();
        let filter = || Filter::new(vec![topic.clone().into()], Vec::new());

        let mut items = log.follow(filter(), BundleKind::State).await.unwrap();
        for (id, data) in [(1, large("x")), (3, large("y")), (2, "small".into())] {
            let Some(Ok(Item::State(entry))) = items.next().await else { panic!("entry {id}") };
            assert!((entry.id, entry.data) == (id, data), "entry {id}");
        }
        assert!(matches!(items.next().await, Some(Ok(Item::Live { tail: 3 }))));

        let mut items = log.follow(filter(), BundleKind::Snapshot).await.unwrap();
        assert!(items.next().await.unwrap().unwrap() == Item::Snapshot { at: 2, body });
        let Some(Ok(Item::Event(event))) = items.next().await else { panic!("the event after the snapshot") };
        assert!((event.id, event.data) == (3, large("y")));
        drop(items);
        log.close().await;
    }
}
