//! What retention asks to be trimmed.
//!
//! What holds: no event goes that its limits allow; a limit is passed by a twentieth at the most before it is kept to again, so that
//! steady publishing trims in batches. Must not write.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::directory::Amount;
use super::index::sealed_postings;
use super::layout::{first_id, last_id, segment_of};
use super::{Handle, KEY_BYTES, RocksStore};
use crate::event::{EventId, EventRef, Millis};
use crate::record::{Record, TopicNumber};
use crate::store::{Back, Limits, Policy, Scan, StoreError, Trim};
use crate::topic::{Filter, Pattern, Topic};

/// A limit may be passed by a twentieth before it is kept to again, so that steady publishing trims in batches.
/// The promise is a tenth.
const SLACK: u64 = 20;

/// Topics that are looked at under one hold of the lock.
const NUMBERS_PER_LOOK: TopicNumber = 1024;

/// A topic's floor rises when its oldest event is older than its limit by a twentieth, at most by so much: then, with 100,000 topics
/// that all have an age, not every floor is written every second. The promise is ten seconds.
const AGE_SLACK_MAX: Millis = 5_000;

/// A topic that may be over its limits.
struct Limited {
    topic: Topic,
    limits: Limits,
    live: Amount,
    floor: EventId,
    /// Its events up to this id are to go, as its snapshot has them.
    covered: EventId,
}

/// The cursors of an age: what lies up to `old` is older than that; what lies up to `overdue` is older by more than the slack.
#[derive(Clone, Copy)]
struct Aged {
    old: EventId,
    overdue: EventId,
}

fn over(amount: u64, max: u64) -> u64 {
    if max > 0 && amount > max + max / SLACK { amount - max } else { 0 }
}

/// What an event counts towards `max_bytes`.
fn stored_bytes(event: &EventRef<'_>) -> u64 {
    let &EventRef { time, event, key, data, .. } = event;
    u64::from(KEY_BYTES) + Record { topic: 0, time, event, key, data }.encoded_len() as u64
}

impl RocksStore {
    pub(super) fn due(&self, policy: &Policy, now: Millis) -> Result<Vec<Trim>, StoreError> {
        let db = self.db()?;
        let mut trims = Vec::new();
        let mut aged = HashMap::new();
        let (live, floor) = {
            let directory = self.directory.read();
            (directory.live, directory.log_floor)
        };
        let all = Filter::all();
        let upto = self.cut(&db, &all, &policy.log, live, floor, now, &mut aged)?;
        if upto > floor {
            trims.push(Trim { topic: None, upto });
        }
        let mut number = 0;
        loop {
            let (some, next) = self.limited_topics(policy, number);
            for Limited { topic, limits, live, floor, covered } in some {
                let filter = Filter::new(vec![Pattern::from(topic.clone())], Vec::new());
                let upto = self.cut(&db, &filter, &limits, live, floor, now, &mut aged)?;
                let upto = upto.max(self.newest_covered(&db, &filter, floor, covered)?);
                if upto > floor {
                    trims.push(Trim { topic: Some(topic), upto });
                }
            }
            match next {
                Some(next) => number = next,
                None => return Ok(trims),
            }
        }
    }

    /// Some topics from `number` on that may be over their limits; and where to go on.
    fn limited_topics(&self, policy: &Policy, number: TopicNumber) -> (Vec<Limited>, Option<TopicNumber>) {
        let directory = self.directory.read();
        let end = directory.next_topic().min(number.saturating_add(NUMBERS_PER_LOOK));
        let next = (end < directory.next_topic()).then_some(end);
        let rows = (number..end).filter_map(|n| directory.row(n)).filter(|row| row.live.events > 0);
        let limited = rows.filter(|row| row.marks.retention.is_some() || !policy.topics.is_empty());
        let some: Vec<_> =
            limited.map(|row| (row.topic.clone(), row.marks, row.live, row.floor.max(directory.log_floor))).collect();
        drop(directory);
        // Patterns are matched without the lock.
        let some = some.into_iter().filter_map(|(topic, marks, live, floor)| {
            let limits = marks.retention.unwrap_or_else(|| policy.for_topic(topic.as_str()));
            let covered = marks.snapshot_at.filter(|_| limits.trim_to_snapshot).unwrap_or(0);
            (!limits.is_unlimited()).then_some(Limited { topic, limits, live, floor, covered })
        });
        (some.collect(), next)
    }

    /// The newest event above `floor` that a snapshot which is true at `covered` covers; `floor` where there is none. Asks for more
    /// than the topic's first event, which is remembered, only where there is one.
    fn newest_covered(
        &self,
        db: &Handle<'_>,
        filter: &Filter,
        floor: EventId,
        covered: EventId,
    ) -> Result<EventId, StoreError> {
        if covered <= floor || self.first_after(db, filter, floor)?.is_none_or(|first| first > covered) {
            return Ok(floor);
        }
        let mut back = Back { cursor: covered, left: 1 };
        while back.left > 0 {
            back = self.read_backward(db, filter, back.left, back.cursor)?;
        }
        // It stopped right before that event.
        Ok(covered.min(back.cursor + 1))
    }

    /// Up to which id `limits` ask the events of `filter` to be trimmed, of which `live` lie above `floor`.
    #[expect(clippy::too_many_arguments, reason = "two callers, right above")]
    fn cut(
        &self,
        db: &Handle<'_>,
        filter: &Filter,
        limits: &Limits,
        live: Amount,
        floor: EventId,
        now: Millis,
        aged: &mut HashMap<Millis, Aged>,
    ) -> Result<EventId, StoreError> {
        let mut upto = floor;
        if limits.max_age > 0 && live.events > 0 {
            let cursors = if let Some(&known) = aged.get(&limits.max_age) {
                known
            } else {
                let slack = (limits.max_age / SLACK).min(AGE_SLACK_MAX);
                let old = self.seek_time(db, now.saturating_sub(limits.max_age))?;
                let overdue = self.seek_time(db, now.saturating_sub(limits.max_age + slack))?;
                *aged.entry(limits.max_age).or_insert(Aged { old, overdue })
            };
            if cursors.overdue > floor
                && self.first_after(db, filter, floor)?.is_some_and(|first| first <= cursors.overdue)
            {
                upto = cursors.old;
            }
        }
        let (events, bytes) = (over(live.events, limits.max_events), over(live.bytes, limits.max_bytes));
        if events > 0 || bytes > 0 {
            let excess = Amount { events, bytes };
            let cut = match filter.single_topic() {
                Some(topic) => self.cut_topic(db, topic.as_str(), excess, floor)?,
                None => self.cut_log(db, excess, floor)?,
            };
            upto = upto.max(cut);
        }
        Ok(upto)
    }

    /// The id with which, counted from `floor`, the whole log reaches at least so many events and bytes.
    fn cut_log(&self, db: &Handle<'_>, excess: Amount, floor: EventId) -> Result<EventId, StoreError> {
        let mut sum = Amount::default();
        let (mut after, tail) = {
            let directory = self.directory.read();
            let mut after = floor;
            for (&segment, s) in directory.segments.range(segment_of(floor + 1)..) {
                let next = Amount { events: sum.events + s.live.events, bytes: sum.bytes + s.live.bytes };
                if next.events >= excess.events && next.bytes >= excess.bytes {
                    break;
                }
                sum = next;
                after = last_id(segment).min(directory.tail);
            }
            (after, directory.tail)
        };
        let mut cut = after;
        let filter = Filter::all();
        while (sum.events < excess.events || sum.bytes < excess.bytes) && after < tail {
            after = self.read_forward(db, Scan { filter: &filter, after, upto: tail }, &mut |event| {
                sum.add(Amount { events: 1, bytes: stored_bytes(event) });
                cut = event.id;
                let enough = sum.events >= excess.events && sum.bytes >= excess.bytes;
                if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
        }
        Ok(cut)
    }

    /// The id with which, counted from `floor`, a topic reaches at least so many events and bytes. Reads postings only.
    fn cut_topic(&self, db: &Handle<'_>, topic: &str, excess: Amount, floor: EventId) -> Result<EventId, StoreError> {
        let mut sum = Amount::default();
        let mut cut = floor;
        let mut take = |id: EventId, bytes: u32| {
            sum.add(Amount { events: 1, bytes: u64::from(bytes) });
            cut = id;
            sum.events >= excess.events && sum.bytes >= excess.bytes
        };
        let (number, tail, first_open) = {
            let directory = self.directory.read();
            let Some(number) = directory.number(topic) else { return Ok(floor) };
            (number, directory.tail, directory.first_open())
        };
        let mut enough = false;
        sealed_postings(db, number, floor, tail.min(first_id(first_open).saturating_sub(1)), &mut |_, postings| {
            enough = postings.iter().any(|&(id, bytes)| take(id, bytes));
            !enough
        })?;
        if !enough {
            let directory = self.directory.read();
            if directory.first_open() != first_open {
                // Sealed meanwhile, so not counted: the next round does it.
                return Ok(floor);
            }
            for (&segment, open) in directory.open.range(segment_of(floor + 1)..) {
                if open.events_of(segment, number, floor, tail).into_iter().any(|(id, bytes)| take(id, bytes)) {
                    break;
                }
            }
        }
        Ok(cut)
    }

    /// The first matching event after `after`.
    pub(super) fn first_after(
        &self,
        db: &Handle<'_>,
        filter: &Filter,
        after: EventId,
    ) -> Result<Option<EventId>, StoreError> {
        if let Some(topic) = filter.single_topic()
            && let Some(first) = self.directory.read().row_of(topic.as_str()).and_then(|row| row.first)
            && first > after
        {
            return Ok(Some(first));
        }
        let (mut at, tail) = (after, self.directory.read().tail);
        let mut first = None;
        while first.is_none() && at < tail {
            at = self.read_forward(db, Scan { filter, after: at, upto: tail }, &mut |event| {
                first = Some(event.id);
                ControlFlow::Break(())
            })?;
        }
        if let (Some(topic), Some(first)) = (filter.single_topic(), first) {
            let mut directory = self.directory.write();
            let log_floor = directory.log_floor;
            if let Some(number) = directory.number(topic.as_str())
                && let Some(row) = directory.row_mut(number)
                && row.floor.max(log_floor) <= after
            {
                row.first = Some(first);
            }
        }
        Ok(first)
    }
}
