//! Reads that subscribers share: those at the same place in the log, for the same filter and form, have it read once.
//!
//! What holds: what is handed out is what reading now would give, so a read from before a trim was published is handed to nobody who
//! asks after; and no more than [`SHARED_BYTES_MAX`] are kept. Cursors that began apart fall into step, as blocks end at round ids
//! ([`Cut`]). Who reads for one that goes on reads on a little, since changing threads costs as much as half a block. Must not know the
//! store, nor threads.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::{Came, FIRST_READ_BYTES, READ_BYTES, ReadingError, Stretch, WasRead};
use crate::event::EventId;
use crate::sse::Form;
use crate::store::StoreError;
use crate::sync::Mutex;
use crate::topic::Filter;

/// Bytes of frames that are kept for readers that come by later. Replays that began together drift apart by what their sockets
/// hold, some megabytes; one that is farther behind than this reads for itself, and for those behind it.
pub const SHARED_BYTES_MAX: usize = 8 << 20;

/// What a read counts beside its bytes, so that empty ones are bounded too.
const ENTRY_BYTES: usize = 512;

/// Who waits for dense blocks one behind the other is answered with so many at once: waking a thread costs a tenth of what such a block takes
/// to read, and there is nothing to gain by one that is sooner.
const ANSWERED_AT_ONCE: u32 = 8;

/// Blocks that are read ahead of whoever asks next, at the most. While one that has come back takes those that came at once, as many more
/// are read, if they are dense and half of the room is left; others may have left, or read slowly.
const AHEAD_MAX: u32 = 3;
const AHEAD_OF_QUICK_MAX: u32 = 2 * ANSWERED_AT_ONCE - 1;

/// Blocks that one thread reads on end while somebody waits for each, then other readers have their turn, if any waits for one: of dense
/// ones for some six milliseconds, as long as one scan may take; of others, which may take two each, fewer.
const RUN_MAX: u32 = 64;
const SPARSE_RUN_MAX: u32 = 16;

/// When a block that was read ahead goes unread, as where many slow readers share the room, none is read ahead for so many reads.
const PAUSE: u32 = 256;

/// A reader's first block ends with the first match beyond so many ids: where matches are that rare each is sought, and a reader that
/// comes back is to have its first event before others are looked for.
const FIRST_IDS: u64 = 1 << 10;
/// The next one may span so many times as many: readers that only want to see whether there is anything have left by then.
const FIRST_READS_GROW: u64 = 64;

/// Where a block may end. A block is as long as it takes, but where it can, it ends at the first match from a multiple of a power of
/// two on, the same for all that come by: so the next one begins at the same id for them all, wherever they began.
#[derive(Debug)]
pub struct Cut {
    after: EventId,
    bytes_max: usize,
    /// Ends with the first match from this id on at the latest.
    latest: EventId,
    /// Ends with the first match from this id on, once it is known.
    end: Option<EventId>,
}

impl Cut {
    /// Of a block of at most about `bytes_max` that begins after `after`.
    pub fn new(after: EventId, bytes_max: usize) -> Self {
        let ids_max = match bytes_max / FIRST_READ_BYTES {
            0..=1 => FIRST_IDS,
            _ if bytes_max < READ_BYTES => FIRST_IDS * FIRST_READS_GROW,
            _ => EventId::MAX,
        };
        Self { after, bytes_max, latest: after.saturating_add(ids_max), end: None }
    }

    /// Whether the block ends with the match `id`, which makes it `bytes` long.
    pub fn is_here(&mut self, id: EventId, bytes: usize) -> bool {
        if id >= self.latest {
            return true;
        }
        if let Some(end) = self.end {
            return id >= end || bytes >= self.bytes_max;
        }
        if bytes >= self.bytes_max / 8 {
            // From one round id to the next there are four to eight times as many ids: that makes half a block at least.
            let step = (id.saturating_sub(self.after).max(1) * 4).next_power_of_two();
            self.end = Some((id / step + 1) * step);
        }
        bytes >= self.bytes_max
    }
}

/// A place to read from, and how.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    filter: Arc<Filter>,
    form: Form,
    after: EventId,
}

impl Place {
    fn of(stretch: &Stretch) -> Self {
        Self { filter: stretch.filter.clone(), form: stretch.form, after: stretch.after }
    }
}

/// What comes of a [`Reading`](super::Reading).
pub type Done = Result<Came, ReadingError>;

/// What comes of a stretch of the log.
pub type LogDone = Result<WasRead, ReadingError>;

/// Somebody who waits for a reading.
pub trait Asker: Send {
    /// Whether it still does.
    fn waits(&self) -> bool;

    /// Hands it over; must not block, nor ask the store, as it may be called in the midst of a scan.
    fn answer(self: Box<Self>, done: Done);
}

/// Who waits for a read: known to the one who reads, also when the place has been given to a newer read meanwhile.
type Waiting = Arc<Mutex<Vec<Box<dyn Asker>>>>;

enum State {
    /// Somebody reads, at the most up to `upto`.
    Running { upto: EventId, waiting: Waiting },
    /// It was read, and whether anybody had it.
    Done { read: WasRead, had: bool },
}

struct Entry {
    /// Tells entries apart that have the same place one after the other.
    serial: u64,
    /// How often floors had been published before the read began.
    told: u64,
    state: State,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<Place, Entry>,
    /// Those that are done, the oldest first; also some that have been replaced since.
    done: VecDeque<(Place, u64)>,
    bytes: usize,
    /// Blocks that are done and that nobody has had.
    unread: usize,
    serial: u64,
    /// For so many reads none is read ahead.
    pause: u32,
}

/// The reads of a log that are under way, and the last that were done.
#[derive(Default)]
pub struct Shared(Mutex<Inner>);

/// How one gets at what is to be read.
pub enum Turn {
    /// It was read already; the asker is not asked for.
    Known(WasRead),
    /// Somebody reads it, and answers the asker.
    Wait,
    /// Read it, and hand it in: that answers the asker.
    Lead(Lead),
}

/// The duty to read for all that come by. Dropped, it tells whoever waits that the log is closed.
pub struct Lead {
    shared: Arc<Shared>,
    /// `None`: what is read is for nobody else.
    place: Option<(Place, u64)>,
    waiting: Waiting,
    /// Blocks that were read on end before this one while others waited for a turn, and those for which nobody waited, since the last.
    run: u32,
    ahead: u32,
    /// Somebody has come back for one of them.
    is_quick: bool,
    /// Those who waited for that last one, if they are told of it together with the next ones.
    held: Option<(Vec<Box<dyn Asker>>, WasRead)>,
}

impl Shared {
    /// How to get at `stretch` for `asker`. `told` is how often the store's floors have been published by now.
    pub fn turn(self: &Arc<Self>, stretch: &Stretch, told: u64, asker: Box<dyn Asker>) -> Turn {
        let place = Place::of(stretch);
        let mut inner = self.0.lock();
        let entry = inner.entries.get_mut(&place).filter(|entry| entry.told == told);
        let taken = entry.is_some();
        match entry.map(|entry| &mut entry.state) {
            // What reaches farther than was asked for is not for this one.
            Some(State::Done { read, had }) if read.upto <= stretch.upto => {
                let (read, is_first) = (read.clone(), !std::mem::replace(had, true));
                inner.unread -= usize::from(is_first);
                return Turn::Known(read);
            }
            Some(State::Running { upto, waiting }) if *upto <= stretch.upto => {
                waiting.lock().push(asker);
                return Turn::Wait;
            }
            _ => {}
        }
        inner.pause = inner.pause.saturating_sub(1);
        let waiting = Waiting::new(Mutex::new(vec![asker]));
        let place = (!taken).then(|| inner.begin(place, told, stretch.upto, &waiting));
        Turn::Lead(Lead { shared: self.clone(), place, waiting, run: 0, ahead: 0, is_quick: false, held: None })
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.0.lock().bytes
    }
}

fn cost(read: &WasRead) -> usize {
    ENTRY_BYTES + read.bytes.len()
}

impl Inner {
    fn begin(&mut self, place: Place, told: u64, upto: EventId, waiting: &Waiting) -> (Place, u64) {
        self.remove(&place);
        self.serial += 1;
        let state = State::Running { upto, waiting: waiting.clone() };
        self.entries.insert(place.clone(), Entry { serial: self.serial, told, state });
        (place, self.serial)
    }

    fn remove(&mut self, place: &Place) -> Option<Entry> {
        let entry = self.entries.remove(place)?;
        if let State::Done { read, had } = &entry.state {
            self.bytes -= cost(read);
            self.unread -= usize::from(!had);
        }
        Some(entry)
    }

    /// The entry, unless it was replaced by another one.
    fn get_mut(&mut self, place: &Place, serial: u64) -> Option<&mut Entry> {
        self.entries.get_mut(place).filter(|entry| entry.serial == serial)
    }

    /// Keeps what was read in the place where it was running.
    fn keep(&mut self, place: Place, serial: u64, read: &WasRead, had: bool) {
        let Some(entry) = self.get_mut(&place, serial) else { return };
        entry.state = State::Done { read: read.clone(), had };
        self.bytes += cost(read);
        self.unread += usize::from(!had);
        self.done.push_back((place, serial));
        while self.bytes > SHARED_BYTES_MAX
            && let Some((oldest, serial)) = self.done.pop_front()
        {
            if self.get_mut(&oldest, serial).is_none() {
                continue;
            }
            if let Some(Entry { state: State::Done { had: false, .. }, .. }) = self.remove(&oldest) {
                self.pause = PAUSE;
            }
        }
    }
}

impl Lead {
    /// Gives it back where anybody is there to have it, or it is read ahead of them. Else it is given up, in one step: nobody can come
    /// to wait for it in between, and be told that the log is closed.
    #[must_use]
    pub fn wanted(mut self) -> Option<Self> {
        let mut inner = self.shared.0.lock();
        if self.is_waited_for() {
            drop(inner);
            return Some(self);
        }
        if let Some((place, serial)) = self.place.take()
            && inner.get_mut(&place, serial).is_some()
        {
            drop(inner.remove(&place));
        }
        drop(inner);
        None
    }

    /// Whether to go on reading: whoever asked still waits, or nobody has asked yet for what is read ahead.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        let waiting = self.waiting.lock();
        let mut askers = waiting.iter().chain(self.held.iter().flat_map(|(askers, _)| askers)).peekable();
        askers.peek().is_none() || askers.any(|asker| asker.waits())
    }

    /// Where no other read waits for a turn, this one may go on. (When it ends, whoever wants more has to write what it was given and ask first.)
    pub fn take_another_turn(&mut self) {
        self.run = self.run.min(1);
    }

    /// Hands in what came of `stretch`, which answers all who wait for it; those who keep up a little later, together with the next ones.
    /// Where they will want more, gives what is to be read next; `told` is how often the store's floors had been published before the
    /// reading of that one began, which may be in the midst of a scan.
    pub fn done(mut self, mut stretch: Stretch, told: u64, done: &LogDone) -> Option<(Self, Stretch)> {
        // Who has gone meanwhile does not keep up.
        let keeps_up = self.is_waited_for();
        let is_dense = done.as_ref().is_ok_and(|read| read.is_dense(stretch.after));
        let place = self.place.take();
        let mut next = None;
        let waiting = {
            let mut inner = self.shared.0.lock();
            // No one can come to wait any more once it is done, or gone.
            let waiting = std::mem::take(&mut *self.waiting.lock());
            match (place, done) {
                (Some((place, serial)), Ok(read)) => {
                    inner.keep(place, serial, read, !waiting.is_empty());
                    self.ahead = if waiting.is_empty() { self.ahead + 1 } else { 0 };
                    self.is_quick |= self.run > 0 && !waiting.is_empty();
                    if keeps_up && self.goes_on(&inner, read, &stretch) {
                        stretch.after = read.upto;
                        next = self.begin_next(&mut inner, &stretch, told);
                    }
                }
                (Some((place, serial)), Err(_)) if inner.get_mut(&place, serial).is_some() => {
                    drop(inner.remove(&place));
                }
                _ => {}
            }
            waiting
        };
        match (&mut next, done) {
            // Where matches are rare, the next block may take long.
            (Some(next), Ok(_)) if is_dense && waiting.is_empty() && self.ahead + 1 < ANSWERED_AT_ONCE => {
                next.held = self.held.take();
            }
            // The first block is handed out at once: he may have begun just now.
            (Some(next), Ok(read)) if is_dense && !waiting.is_empty() && self.is_quick => {
                next.held = Some((waiting, read.clone()));
            }
            _ => {
                self.answer_held();
                for asker in waiting {
                    asker.answer(done.clone().map(Came::Log));
                }
            }
        }
        self.answer_held();
        next.map(|next| (next, stretch))
    }

    /// Answers those who were to be answered together with the next ones.
    pub fn answer_held(&mut self) {
        if let Some((askers, read)) = self.held.take() {
            for asker in askers {
                asker.answer(Ok(Came::Log(read.clone())));
            }
        }
    }

    /// Whether to read on behind `read`: there is more, it comes in whole blocks, as for one that has read for a while, and somebody
    /// keeps up with it.
    fn goes_on(&self, inner: &Inner, read: &WasRead, stretch: &Stretch) -> bool {
        let is_block = stretch.bytes_max >= READ_BYTES && read.bytes.len() >= READ_BYTES / 8;
        let more = read.upto < stretch.upto && is_block;
        let is_dense = read.is_dense(stretch.after);
        let has_room = inner.unread * READ_BYTES < SHARED_BYTES_MAX / 2;
        let ahead_max = if self.is_quick && is_dense && has_room { AHEAD_OF_QUICK_MAX } else { AHEAD_MAX };
        let run_max = if is_dense { RUN_MAX } else { SPARSE_RUN_MAX };
        more && inner.pause == 0 && self.run + 1 < run_max && self.ahead < ahead_max
    }

    fn begin_next(&self, inner: &mut Inner, stretch: &Stretch, told: u64) -> Option<Self> {
        let place = Place::of(stretch);
        // Also one that was begun later than the scan, which is worth more.
        if inner.entries.get(&place).is_some_and(|entry| entry.told >= told) {
            return None;
        }
        let waiting = Waiting::default();
        let place = Some(inner.begin(place, told, stretch.upto, &waiting));
        let &Self { run, ahead, is_quick, .. } = self;
        Some(Self { shared: self.shared.clone(), place, waiting, run: run + 1, ahead, is_quick, held: None })
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let waiting = {
            let mut inner = self.shared.0.lock();
            if let Some((place, serial)) = self.place.take()
                && inner.get_mut(&place, serial).is_some()
            {
                drop(inner.remove(&place));
            }
            std::mem::take(&mut *self.waiting.lock())
        };
        self.answer_held();
        for asker in waiting {
            asker.answer(Err(StoreError::Closed.into()));
        }
    }
}

#[cfg(test)]
mod tests;
