//! Bundles: what a subscriber is given before its events, so that it need not have been there from the beginning: the state of its
//! filter, or a topic's snapshot.
//!
//! What holds: a bundle is true at one id, which the tail has reached when it is handed out; those who ask for the same at the same time
//! share one, and nobody is given one that was begun before something that it could know of already. Must not know sockets.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::shared::Asker;
use super::{Came, ReadingError};
use crate::event::{EventId, EventRef};
use crate::sse::{Floor, Form, json_event};
use crate::store::{Snapshot, Store, StoreError};
use crate::sync::Mutex;
use crate::topic::Filter;

/// Bytes of all bundles that are being sent: a quarter of a small machine, as for the bodies of publishes. What everybody shares counts
/// once; a bundle goes when its last reader has it, or lets go of it.
pub const BUNDLES_BYTES_MAX: usize = 256 << 20;

/// The unit in which they are counted, and the least that one counts.
const UNIT: usize = 1 << 10;

/// Bytes of a piece: as much as a read of the log gives.
const PIECE_BYTES: usize = 64 << 10;

/// Which bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The newest event of each topic and key.
    State,
    /// What the publisher has put there for the filter's one topic.
    Snapshot,
}

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dress {
    Frames(Form),
    /// A state's entries as JSON objects, separated by commas; a snapshot as it was put.
    Bare,
}

/// A bundle to gather.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    pub kind: Kind,
    pub filter: Arc<Filter>,
    pub dress: Dress,
}

/// A bundle, shared by all who are sent it.
#[derive(Debug)]
pub struct Bundle {
    /// The id at which it is true. `None` where there is no snapshot.
    pub at: Option<EventId>,
    /// What a snapshot was put as; empty for a state.
    pub content_type: String,
    /// Up to where events of the filter were gone when it was gathered.
    pub floor: Floor,
    pieces: Vec<Bytes>,
    _share: Vec<OwnedSemaphorePermit>,
}

impl Bundle {
    /// The pieces that it is sent in, which are cut anywhere: only all of them in order make sense.
    #[must_use]
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }
}

/// What was known of that changes bundles without an event. A bundle that was begun when as much was known is as good as a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heard {
    /// [`Hub::trims`](crate::hub::Hub::trims): who was told of a gap has heard of it before floors are published.
    trims: u64,
    /// [`Store::floors_told`].
    floors: u64,
}

impl Heard {
    /// What is heard by now; `trims` is [`Hub::trims`](crate::hub::Hub::trims).
    #[must_use]
    pub fn of(store: &dyn Store, trims: u64) -> Self {
        Self { trims, floors: store.floors_told() }
    }
}

/// Gathers the pieces of a bundle, within what all of them may take.
struct Gathering {
    room: Arc<Semaphore>,
    share: Vec<OwnedSemaphorePermit>,
    pieces: Vec<Bytes>,
    piece: Vec<u8>,
    units: usize,
}

impl Gathering {
    fn new(room: Arc<Semaphore>) -> Self {
        Self { room, share: Vec::new(), pieces: Vec::new(), piece: Vec::new(), units: 0 }
    }

    fn cut(&mut self) -> Result<(), ReadingError> {
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        let units = piece.len().div_ceil(UNIT);
        self.units += units;
        let share = self.room.clone().try_acquire_many_owned(u32::try_from(units).unwrap_or(u32::MAX));
        let Ok(share) = share else {
            let alone = self.units > BUNDLES_BYTES_MAX / UNIT;
            return Err(if alone { ReadingError::TooLarge } else { ReadingError::Busy });
        };
        self.share.push(share);
        // One that is far larger is sent in slices of it.
        let mut rest = piece;
        while rest.len() > 2 * PIECE_BYTES {
            self.pieces.push(rest.split_to(PIECE_BYTES));
        }
        self.pieces.push(rest);
        Ok(())
    }

    fn done(mut self, at: Option<EventId>, content_type: String, floor: Floor) -> Result<Bundle, ReadingError> {
        if !self.piece.is_empty() {
            self.cut()?;
        }
        Ok(Bundle { at, content_type, floor, pieces: self.pieces, _share: self.share })
    }
}

/// Gathers a bundle. Blocks on the disk.
fn gather(store: &dyn Store, wanted: &Wanted, room: Arc<Semaphore>) -> Result<Bundle, ReadingError> {
    match wanted.kind {
        Kind::State => gather_state(store, wanted, room),
        Kind::Snapshot => gather_snapshot(store, wanted, room),
    }
}

fn gather_state(store: &dyn Store, wanted: &Wanted, room: Arc<Semaphore>) -> Result<Bundle, ReadingError> {
    let mut all = Gathering::new(room);
    let mut failed = None;
    let mut is_first = true;
    let at = store.state(&wanted.filter, &mut |event: &EventRef<'_>| {
        match wanted.dress {
            Dress::Frames(form) => form.state_entry(&mut all.piece, event),
            Dress::Bare => {
                if !std::mem::take(&mut is_first) {
                    all.piece.push(b',');
                }
                json_event(&mut all.piece, event);
            }
        }
        if all.piece.len() >= PIECE_BYTES {
            failed = all.cut().err();
        }
        if failed.is_some() { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    })?;
    match failed {
        Some(error) => Err(error),
        // Whatever floor there is, its events are in the state or have been replaced there.
        None => all.done(Some(at), String::new(), Floor::NONE),
    }
}

fn gather_snapshot(store: &dyn Store, wanted: &Wanted, room: Arc<Semaphore>) -> Result<Bundle, ReadingError> {
    let mut all = Gathering::new(room);
    let topic = wanted.filter.single_topic();
    let snapshot = match &topic {
        Some(topic) => store.snapshot(topic.as_str())?,
        None => None,
    };
    // After the snapshot was read: a floor that rises from now on is told by the hub.
    let floor = store.floor(&wanted.filter);
    let Some(Snapshot { at, content_type, body }) = snapshot else {
        return all.done(None, String::new(), Floor::NONE);
    };
    match wanted.dress {
        Dress::Frames(form) => form.snapshot(&mut all.piece, at, &body),
        Dress::Bare => all.piece = body.into_bytes(),
    }
    all.done(Some(at), content_type, floor)
}

/// Who gathers what, and who waits for it.
#[derive(Default)]
struct Flight {
    /// Who comes while it is gathered gets the next one: this one may have been begun before what they know of.
    next: Vec<Box<dyn Asker>>,
    is_running: bool,
    kept: Weak<Bundle>,
    /// What had been heard of before `kept` was gathered.
    heard: Heard,
}

/// The bundles that are being gathered or sent.
pub struct Bundles {
    flights: Mutex<HashMap<Wanted, Flight>>,
    room: Arc<Semaphore>,
}

impl Default for Bundles {
    fn default() -> Self {
        let room = Arc::new(Semaphore::new(BUNDLES_BYTES_MAX / UNIT));
        Self { flights: Mutex::default(), room }
    }
}

/// How one gets a bundle.
pub enum Turn {
    /// It is there.
    Known(Arc<Bundle>),
    /// Somebody sees to it, and answers the asker.
    Wait,
    /// Call [`Bundles::gather`], then [`Bundles::done`], until that says that nobody waits.
    Lead(Vec<Box<dyn Asker>>),
}

impl Bundles {
    /// `tail` and `heard` are what the asker could know of.
    #[must_use]
    pub fn turn(&self, wanted: &Wanted, tail: EventId, heard: Heard, asker: Box<dyn Asker>) -> Turn {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get_mut(wanted) {
            if let Some(kept) = flight.kept.upgrade()
                && flight.heard == heard
                && (wanted.kind == Kind::Snapshot || kept.at.is_some_and(|at| at >= tail))
            {
                return Turn::Known(kept);
            }
            if flight.is_running {
                flight.next.push(asker);
                return Turn::Wait;
            }
        }
        flights.retain(|_, flight| flight.is_running || flight.kept.strong_count() > 0);
        flights.insert(wanted.clone(), Flight { is_running: true, ..Flight::default() });
        Turn::Lead(vec![asker])
    }

    /// Gathers it; blocks on the disk. `trims` is as in [`Heard::of`]. Also gives what had been heard of before.
    pub fn gather(&self, store: &dyn Store, wanted: &Wanted, trims: u64) -> (Heard, Result<Arc<Bundle>, ReadingError>) {
        let heard = Heard::of(store, trims);
        (heard, gather(store, wanted, self.room.clone()).map(Arc::new))
    }

    /// Hands it to `waiting`, and gives those who have come meanwhile and still wait, for whom another one is to be gathered.
    #[must_use]
    pub fn done(
        &self,
        wanted: &Wanted,
        heard: Heard,
        done: &Result<Arc<Bundle>, ReadingError>,
        waiting: Vec<Box<dyn Asker>>,
    ) -> Option<Vec<Box<dyn Asker>>> {
        for asker in waiting {
            asker.answer(done.clone().map(Came::Bundle));
        }
        let mut flights = self.flights.lock();
        let flight = flights.get_mut(wanted)?;
        flight.heard = heard;
        flight.kept = done.as_ref().map_or_else(|_| Weak::new(), Arc::downgrade);
        let next: Vec<_> = std::mem::take(&mut flight.next).into_iter().filter(|asker| asker.waits()).collect();
        flight.is_running = !next.is_empty();
        flight.is_running.then_some(next)
    }

    /// It is not gathered after all: tells `waiting`, and those who have come meanwhile, that the log is closed.
    pub fn give_up(&self, wanted: &Wanted, mut waiting: Vec<Box<dyn Asker>>) {
        if let Some(flight) = self.flights.lock().get_mut(wanted) {
            waiting.append(&mut flight.next);
            flight.is_running = false;
        }
        for asker in waiting {
            asker.answer(Err(StoreError::Closed.into()));
        }
    }
}
