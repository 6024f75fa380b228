//! What is written to a log: events, trims, closes, snapshots, retention. All of it passes through the sequencer.
//!
//! What holds: what waits is bounded in bytes and in time; an answer comes when what it rests on is durable.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::{AppendError, Appended, Limits, Log, Snapshot, Terms, lane};
use crate::event::{EventId, NewEvent};
use crate::sequencer::Outcome;
use crate::sequencer::local::{Kept, Request, Ticket};
use crate::store::{Store, StoreError, Trim};
use crate::sync::time::timeout;
use crate::topic::Topic;

/// Bytes of what may wait for the writer; beyond, who asks waits, then is refused. A second and more of the fastest appends that were
/// measured.
pub(super) const WAITING_BYTES_MAX: usize = 64 << 20;

/// The unit in which what waits is counted, and what the smallest counts: it costs memory beside its bytes.
pub(super) const WAITING_UNIT: usize = 1 << 10;

/// How long a publisher waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// What became of an append with [`Terms`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub appended: Appended,
    /// It had been appended before, under the same key.
    pub replayed: bool,
}

impl Log {
    /// Appends all of `events` under consecutive ids, or none. Answers when they are durable.
    ///
    /// # Errors
    /// [`AppendError`] says whether it may have happened all the same.
    pub async fn append(&self, events: Vec<NewEvent>) -> Result<Appended, AppendError> {
        Ok(self.append_on(events, Terms::default()).await?.appended)
    }

    /// The same, where `terms` are met; a repetition under the same key is answered as the first was. Answers, and refuses, when all
    /// that this rests on is durable.
    ///
    /// # Errors
    /// As [`Log::append`]; among others [`AppendError::ConditionFailed`] and [`AppendError::IdempotencyConflict`].
    pub async fn append_on(&self, events: Vec<NewEvent>, terms: Terms) -> Result<Answer, AppendError> {
        if events.is_empty() {
            let tail = self.tail();
            return Ok(Answer { appended: Appended { first: tail + 1, last: tail }, replayed: false });
        }
        self.not_closed()?;
        self.room_for_topics(events.iter().map(|e| &e.topic))?;
        if let Some(error) = &*self.inner.refusal.read()
            && !matches!(error, StoreError::Full { .. })
        {
            return Err(error.clone().into());
        }
        let bytes = events.iter().map(|e| WAITING_UNIT / 4 + e.data.len()).sum();
        match self.ask(bytes, |ticket| Request::Append { events, terms, ticket }).await? {
            Outcome::Appended(appended) => Ok(Answer { appended, replayed: false }),
            Outcome::Replayed(appended) => Ok(Answer { appended, replayed: true }),
            Outcome::Conflict => Err(AppendError::IdempotencyConflict),
            Outcome::Closed(topic) => Err(AppendError::TopicClosed { topic }),
            Outcome::Unmet { last } => Err(AppendError::ConditionFailed { last }),
        }
    }

    /// A share of what may wait.
    async fn turn(&self, bytes: usize) -> Result<OwnedSemaphorePermit, AppendError> {
        let units = bytes.div_ceil(WAITING_UNIT).clamp(1, WAITING_BYTES_MAX / WAITING_UNIT);
        let cost = u32::try_from(units).unwrap_or(u32::MAX);
        // Most often there is room, and then no timer is wound up.
        if let Ok(permit) = self.inner.waiting.clone().try_acquire_many_owned(cost) {
            return Ok(permit);
        }
        let turn = timeout(TURN_TIMEOUT, self.inner.waiting.clone().acquire_many_owned(cost)).await;
        turn.ok().and_then(Result::ok).ok_or(AppendError::Overloaded)
    }

    fn room_for_topics<'a>(&self, topics: impl Iterator<Item = &'a Topic>) -> Result<(), AppendError> {
        let (max, store) = (self.inner.topics_max, &self.inner.source.store);
        if max == 0 {
            return Ok(());
        }
        let mut new: Vec<_> = topics.filter(|t| !store.has_topic(t.as_str())).collect();
        new.sort_unstable();
        new.dedup();
        if !new.is_empty() && store.topic_count() + new.len() as u64 > max {
            return Err(AppendError::TooManyTopics { max });
        }
        Ok(())
    }

    async fn ask<T>(&self, bytes: usize, request: impl FnOnce(Ticket<T>) -> Request) -> Result<T, AppendError> {
        let share = self.turn(bytes).await?;
        let (ticket, answered) = Ticket::new(Some(share));
        let request = request(ticket);
        match &self.lane {
            None => self.inner.requests.send(request).map_err(|_| AppendError::Closed)?,
            Some(lane) => {
                if self.inner.requests.leave(request).map_err(|_| AppendError::Closed)? == 1 {
                    lane.ask();
                }
            }
        }
        let most = self.inner.commit_timeout;
        let answered = match &self.lane {
            None => timeout(most, answered).await,
            Some(lane) => timeout(most, lane::answered(lane.clone(), answered)).await,
        };
        match answered {
            Ok(Ok(done)) => Ok(done?),
            Ok(Err(_)) => Err(AppendError::Closed),
            Err(_) => Err(AppendError::OutcomeUnknown),
        }
    }

    /// Ends a topic: nothing is appended to it any more, and who follows it is told so at its end. Answers when that is durable; also
    /// the second time.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn close_topic(&self, topic: &Topic) -> Result<(), AppendError> {
        self.not_closed()?;
        self.room_for_topics(std::iter::once(topic))?;
        let topic = topic.clone();
        self.ask(0, |ticket| Request::Close { topic, ticket }).await
    }

    /// Keeps a topic's snapshot, text, in place of the one before. Answers when it is durable.
    ///
    /// # Errors
    /// When it lies beyond the tail, a newer one is kept, or it cannot be written.
    pub async fn put_snapshot(&self, topic: &Topic, snapshot: Snapshot) -> Result<(), AppendError> {
        self.not_closed()?;
        self.room_for_topics(std::iter::once(topic))?;
        let (topic, at, bytes) = (topic.clone(), snapshot.at, snapshot.body.len());
        match self.ask(bytes, |ticket| Request::Keep { topic, snapshot, ticket }).await? {
            Kept::Yes => Ok(()),
            Kept::Older { than } => Err(AppendError::SnapshotOlder { kept: than }),
            Kept::Beyond { tail } => Err(AppendError::BeyondTail { at, tail }),
        }
    }

    /// Trims the whole log: removes every event up to and including `upto`. Who was still to read some of them is told. The state
    /// keeps what it has.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn trim(&self, upto: EventId) -> Result<(), AppendError> {
        self.not_closed()?;
        self.remove(|ticket| Request::Trim { trims: vec![Trim { topic: None, upto }], ticket }).await
    }

    /// Removes the topic's events, its keys from the state, and its snapshot; with `before` only the events with a smaller id.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn delete(&self, topic: &Topic, before: Option<EventId>) -> Result<(), AppendError> {
        self.not_closed()?;
        let topic = topic.clone();
        self.remove(|ticket| match before {
            None => Request::Delete { topic, ticket },
            Some(before) => {
                let trims = vec![Trim { topic: Some(topic), upto: before.saturating_sub(1) }];
                Request::Trim { trims, ticket }
            }
        })
        .await
    }

    /// Answers when what was removed counts nowhere any more.
    async fn remove(&self, request: impl FnOnce(Ticket<()>) -> Request) -> Result<(), AppendError> {
        self.ask(0, request).await?;
        Ok(self.inner.source.blocking(Store::settle).await?)
    }

    /// Sets (`Some`) or forgets (`None`) the topic's own retention.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn set_retention(&self, topic: &Topic, limits: Option<Limits>) -> Result<(), AppendError> {
        self.not_closed()?;
        let topic = topic.clone();
        self.ask(0, |ticket| Request::Retain { topic, limits, ticket }).await
    }
}
