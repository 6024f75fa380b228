//! What is read of a log: subscriptions, pages, states, snapshots, lists.
//!
//! What holds: a beginning is fixed before anything is read; what blocks on the disk runs on blocking threads, in bounded steps.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use super::{Begin, Bundle, BundleKind, Gap, Limits, Log, ReadError, Start, SubscribeOptions, Subscription};
use crate::event::{Event, EventId};
use crate::sse::Form;
use crate::store::{Scan, Store, StoreError};
use crate::subscription::bundle::{BUNDLES_BYTES_MAX, Dress};
use crate::subscription::{Known, LookUp, ReadingError, look_up};
use crate::topic::{Filter, Topic};

/// Most reads for one page: a million records looked at, about a second's work. A page that finds nothing in them is empty, and
/// its `next` says where to go on.
const PAGE_READS_MAX: usize = 64;

/// Most bytes of events in one page; a single event may be larger.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// One page of events.
#[derive(Debug, Clone)]
pub struct Page {
    /// The events as JSON objects, separated by commas.
    pub events: Vec<u8>,
    pub count: usize,
    /// Where the next page begins (`from=`).
    pub next: EventId,
    pub gap: Option<Gap>,
    /// Nothing more comes: all topics were closed, and the newest of their events, this one, lies before `next`.
    pub closed: Option<EventId>,
    pub earliest: EventId,
    pub tail: EventId,
}

/// The newest event of each topic and key, all of it true at one id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Subscribe after this id, and nothing is missed.
    pub as_of: EventId,
    pub entries: Vec<Event>,
}

/// One topic, as a list shows it.
#[derive(Debug, Clone)]
pub struct TopicInfo {
    pub topic: Topic,
    /// The id of its oldest retained event; 0 when there is none.
    pub earliest: EventId,
    /// The id of its newest retained event; 0 when there is none.
    pub last: EventId,
    pub events: u64,
    pub bytes: u64,
    pub subscribers: u64,
    pub closed: bool,
}

impl Log {
    /// Fixes where a subscription or a page begins.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn start(&self, filter: &Arc<Filter>, begin: Begin) -> Result<Start, ReadError> {
        let source = &self.inner.source;
        let known = Known::of(&*source.store, filter, source.hub.lock().trims());
        let tail = self.tail();
        let found = match begin {
            Begin::Last(_) | Begin::Time(_) => {
                let (mut begin, mut upto) = (begin, tail);
                // Step by step, so that looking far back keeps no permit from other readers.
                loop {
                    let filter = filter.clone();
                    match source.blocking(move |store| look_up(store, &filter, begin, upto)).await? {
                        LookUp::Found(cursor) => break cursor,
                        LookUp::Further(rest, from) => (begin, upto) = (rest, from),
                    }
                }
            }
            Begin::After(_) | Begin::At(_) | Begin::Earliest | Begin::Latest => tail,
        };
        Ok(Start::fix(begin, known, tail, found))
    }

    /// Fixes a beginning with a bundle, which is gathered now, written in this form.
    ///
    /// # Errors
    /// When the log cannot be read, or the bundle is too large.
    pub async fn start_with(&self, kind: BundleKind, filter: &Arc<Filter>, form: Form) -> Result<Start, ReadError> {
        let source = &self.inner.source;
        let known = Known::of(&*source.store, filter, source.hub.lock().trims());
        let bundle = source.bundle(kind, filter, Dress::Frames(form)).await?;
        Ok(Start::with(bundle, known, self.tail()))
    }

    /// Where all topics of a filter without wildcards were closed: the id of the newest of their events, or 0.
    #[must_use]
    pub fn closed(&self, filter: &Filter) -> Option<EventId> {
        self.inner.source.store.closed(filter)
    }

    /// Whether anything that matches lies after `start` up to its tail, or a gap is to be told.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn owes(&self, filter: &Arc<Filter>, start: &Start) -> Result<bool, ReadError> {
        let (mut after, tail) = (start.cursor, start.tail);
        if start.gap.is_some() {
            return Ok(true);
        }
        while after < tail {
            let filter = filter.clone();
            let (upto, found) =
                self.inner.source.blocking(move |store| first_match(store, &filter, after, tail)).await?;
            if found {
                return Ok(true);
            }
            after = upto;
        }
        Ok(false)
    }

    /// A stream of frames from `start` on. Nothing is read before it is polled.
    #[must_use]
    pub fn subscribe(&self, filter: &Arc<Filter>, start: Start, options: SubscribeOptions) -> Subscription {
        Subscription::new(&self.inner.source, filter, start, options)
    }

    /// At most `limit` events from `start` on; waits up to `wait` until there is one.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn page(
        &self,
        filter: &Arc<Filter>,
        start: Start,
        limit: usize,
        wait: Duration,
    ) -> Result<Page, ReadError> {
        let source = &self.inner.source;
        let attached = source.attach(filter, &start);
        let is_closed = || source.hub.lock().closed(attached.key());
        let (mut cursor, mut gap, mut told) = (start.cursor, start.gap, start.gap.map_or(0, |gap| gap.earliest - 1));
        let deadline = tokio::time::Instant::now() + wait;
        let mut found = Found::default();
        let mut reads = 0;
        loop {
            let upto = self.tail();
            while found.count == 0 && cursor < upto && reads < PAGE_READS_MAX {
                reads += 1;
                let filter = filter.clone();
                let (after, page) = (cursor, found);
                (cursor, found) =
                    source.blocking(move |store| gather(store, &filter, after, upto, limit, page)).await?;
                // Judged after the read: what a trim took meanwhile was either read, or is told.
                let floor = source.hub.lock().floor(attached.key());
                if floor.id > told && after < floor.id {
                    told = floor.id;
                    gap = gap.or(Gap::below(floor, after));
                }
            }
            let none_comes = is_closed().is_some() && cursor >= upto;
            if found.count > 0 || gap.is_some() || none_comes || wait.is_zero() || reads == PAGE_READS_MAX {
                break;
            }
            let woken = std::future::poll_fn(|cx| attached.poll_past(cursor, cx));
            match tokio::time::timeout_at(deadline, woken).await {
                Ok(true) => {}
                Ok(false) | Err(_) => break,
            }
        }
        Ok(Page {
            events: found.bytes,
            count: found.count,
            next: cursor + 1,
            gap,
            closed: is_closed().filter(|last| cursor >= *last),
            earliest: self.earliest(),
            tail: self.tail(),
        })
    }

    /// The newest event of each topic and key that matches, true at one id whatever is being appended. It costs by the keys, not by
    /// the log.
    ///
    /// # Errors
    /// When the log cannot be read, or the state is too large.
    pub async fn state(&self, filter: &Arc<Filter>) -> Result<State, ReadError> {
        let source = &self.inner.source;
        let filter = filter.clone();
        let (as_of, entries) = source.blocking_at(move |store| gather_state(store, &filter)).await?;
        let entries = entries.ok_or(ReadingError::TooLarge)?;
        Ok(State { as_of, entries })
    }

    /// The id of the newest retained event of `topic`, or 0; the tail has come there when this is given.
    pub async fn last_of(&self, topic: &Topic) -> EventId {
        let source = &self.inner.source;
        let last = source.store.last_of(topic.as_str());
        source.reached(last).await;
        last
    }

    /// A bundle as bytes, shared with all who are sent the same: a state as JSON objects, separated by commas, or the snapshot of the
    /// filter's one topic as it was put, true at `None` where there is none.
    ///
    /// # Errors
    /// When the log cannot be read, or the bundle is too large.
    pub async fn bundle(&self, kind: BundleKind, filter: &Arc<Filter>) -> Result<Arc<Bundle>, ReadError> {
        Ok(self.inner.source.bundle(kind, filter, Dress::Bare).await?)
    }

    /// At most `limit` topics that hold something, in order of name, after `after`, that begin with `prefix`.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn topics(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<TopicInfo>, ReadError> {
        let source = &self.inner.source;
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let list = source.blocking(move |store| store.topics(&prefix, after.as_deref(), limit)).await?;
        let mut hub = source.hub.lock();
        let infos = list.into_iter().map(|stats| TopicInfo {
            subscribers: hub.subscribers_of(stats.topic.as_str()) as u64,
            topic: stats.topic,
            earliest: stats.earliest,
            last: stats.last,
            events: stats.events,
            bytes: stats.bytes,
            closed: stats.closed,
        });
        Ok(infos.collect())
    }

    /// The topic's own retention, when it has one.
    #[must_use]
    pub fn retention(&self, topic: &Topic) -> Option<Limits> {
        self.inner.source.store.retention_of(topic.as_str())
    }
}

/// The entries of a state, unless they have too many bytes.
fn gather_state(store: &dyn Store, filter: &Filter) -> Result<(EventId, Option<Vec<Event>>), StoreError> {
    let (mut entries, mut bytes) = (Vec::new(), 0);
    let as_of = store.state(filter, &mut |event| {
        bytes += size_of::<Event>() + event.topic.len() + event.data.len();
        entries.extend(event.to_event());
        if bytes > BUNDLES_BYTES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok((as_of, Some(entries).filter(|_| bytes <= BUNDLES_BYTES_MAX)))
}

/// Whether anything matches within `after < id <= upto`, and how far was looked.
fn first_match(
    store: &dyn Store,
    filter: &Filter,
    after: EventId,
    upto: EventId,
) -> Result<(EventId, bool), StoreError> {
    let mut found = false;
    let upto = store.scan(Scan { filter, after, upto }, &mut |_| {
        found = true;
        ControlFlow::Break(())
    })?;
    Ok((upto, found))
}

/// What a page has so far.
#[derive(Default)]
struct Found {
    bytes: Vec<u8>,
    count: usize,
}

fn gather(
    store: &dyn Store,
    filter: &Filter,
    after: EventId,
    upto: EventId,
    limit: usize,
    mut found: Found,
) -> Result<(EventId, Found), StoreError> {
    let upto = store.scan(Scan { filter, after, upto }, &mut |event| {
        if found.count > 0 {
            found.bytes.push(b',');
        }
        Form::Lines.event(&mut found.bytes, event);
        // A line ends with LF, which an array has no need of.
        found.bytes.pop();
        found.count += 1;
        if found.count >= limit || found.bytes.len() >= PAGE_BYTES_MAX {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })?;
    Ok((upto, found))
}
