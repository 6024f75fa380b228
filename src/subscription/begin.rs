//! Where a subscription or a page begins.
//!
//! What holds: a beginning is fixed once, before a head is sent, and nothing that is published later can change where it is; what is
//! trimmed while it is being fixed counts as not told yet. Must not know sockets, tokio, or the clock.

use std::sync::Arc;

use super::bundle::Bundle;
use crate::event::{EventId, Millis};
use crate::sse::GapReason;
use crate::store::{Back, Floor, Store, StoreError};
use crate::topic::Filter;

/// A gap to tell before the next event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The cursor that it was found at.
    pub requested: EventId,
    /// Nothing is missing from this id on.
    pub earliest: EventId,
    pub reason: GapReason,
}

impl Gap {
    /// The gap that a floor means for a cursor, if any.
    #[must_use]
    pub fn below(floor: Floor, cursor: EventId) -> Option<Self> {
        (cursor < floor.id).then(|| Self { requested: cursor, earliest: floor.id + 1, reason: floor.reason })
    }
}

/// A beginning, fixed: nothing that is published later can change where it is.
#[derive(Debug, Clone)]
pub struct Start {
    /// Everything that matches after this id is delivered.
    pub cursor: EventId,
    /// The tail when the beginning was fixed.
    pub tail: EventId,
    /// The smallest retained id when the beginning was fixed.
    pub earliest: EventId,
    /// What is owed before the first event.
    pub gap: Option<Gap>,
    /// [`Hub::trims`](crate::hub::Hub::trims) before it was fixed: what rises from then on is told.
    pub trims: u64,
    /// What is sent before the events.
    pub bundle: Option<Arc<Bundle>>,
}

/// Where a subscription or a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    /// After this id (`Last-Event-ID`); 0 is before every event.
    After(EventId),
    /// At this id, inclusive.
    At(EventId),
    /// At the smallest retained id.
    Earliest,
    /// After the tail: only what comes.
    Latest,
    /// At the last `n` matching events.
    Last(u64),
    /// At the first event that is not older than this.
    Time(Millis),
}

/// What the store says before a beginning is fixed.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    trims: u64,
    floor: Floor,
    log_floor: EventId,
    earliest: EventId,
}

impl Known {
    /// What `store` says for `filter`; `trims` is what [`Hub::trims`](crate::hub::Hub::trims) was before.
    #[must_use]
    pub fn of(store: &dyn Store, filter: &Filter, trims: u64) -> Self {
        Self { trims, floor: store.floor(filter), log_floor: store.log_floor(), earliest: store.earliest() }
    }
}

/// What [`look_up`] has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookUp {
    Found(EventId),
    /// Look on for this, up to there.
    Further(Begin, EventId),
}

/// Looks, in a bounded step, for the cursor of a beginning that must be searched for, up to `upto`, which is the tail at first; that
/// of any other is the tail. Blocks on the disk.
///
/// # Errors
/// When the log cannot be read.
pub fn look_up(store: &dyn Store, filter: &Filter, begin: Begin, upto: EventId) -> Result<LookUp, StoreError> {
    match begin {
        Begin::Last(n) => match store.look_back(filter, n, upto)? {
            Back { cursor, left: 0 } => Ok(LookUp::Found(cursor)),
            Back { cursor, left } => Ok(LookUp::Further(Begin::Last(left), cursor)),
        },
        Begin::Time(time) => Ok(LookUp::Found(store.before_time(time)?.min(upto))),
        Begin::After(_) | Begin::At(_) | Begin::Earliest | Begin::Latest => Ok(LookUp::Found(upto)),
    }
}

impl Start {
    /// Fixes a beginning. `known` is what the store said before `tail` was asked for, and `found` what [`look_up`] gave after: so
    /// whatever is trimmed in between counts as not told yet.
    #[must_use]
    pub fn fix(begin: Begin, known: Known, tail: EventId, found: EventId) -> Self {
        let Known { trims, floor, log_floor, earliest } = known;
        let at = |cursor| Self { cursor, tail, earliest, gap: None, trims, bundle: None };
        let after = |id: EventId| {
            if id > tail {
                let earliest = earliest.max(floor.id + 1);
                let gap = Gap { requested: id, earliest, reason: GapReason::Ahead };
                return Self { gap: Some(gap), ..at(log_floor) };
            }
            Self { gap: Gap::below(floor, id), ..at(id) }
        };
        match begin {
            Begin::After(id) => after(id),
            Begin::At(id) => after(id.saturating_sub(1)),
            Begin::Earliest => at(log_floor),
            Begin::Latest => at(tail),
            Begin::Last(_) | Begin::Time(_) => at(found),
        }
    }

    /// Fixes a beginning where `bundle` is true; where there is none, at the smallest retained id. `known` is what the store said
    /// before the bundle was asked for, `tail` what was asked for after it.
    #[must_use]
    pub fn with(bundle: Arc<Bundle>, known: Known, tail: EventId) -> Self {
        let Known { trims, log_floor, earliest, .. } = known;
        let cursor = bundle.at.unwrap_or(log_floor);
        let gap = bundle.at.and_then(|at| Gap::below(bundle.floor, at));
        Self { cursor, tail: tail.max(cursor), earliest, gap, trims, bundle: Some(bundle) }
    }
}
