//! The reader: one cursor that stands on disk, in the ring or at the edge, and moves.
//!
//! [`Subscription`] is a state machine without I/O: [`Subscription::next`] says what it wants, and it is told what came of it. First
//! connect, reconnect, slow client and restart are all this one loop, so there is no seam between replay and live. What holds: the
//! cursor never moves over a matching event that was not handed out, nor back but to where a bundle is true; a floor above the cursor
//! is told as a gap before the next event. Must not know sockets, tokio, or the clock.

pub mod begin;
pub mod block;
pub mod bundle;
pub mod run;
pub mod shared;
pub mod stream;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use self::begin::{Begin, Gap, Known, LookUp, Start, look_up};
pub use self::block::{Meanwhile, Stretch, WasRead, read, read_on};
use self::bundle::{Bundle, Dress, Wanted};
use self::run::{Run, Runs};
use crate::event::{EventId, Millis};
use crate::hub::{Hub, Place, SubscriberKey};
use crate::sse::{Control, Form, GapReason};
use crate::store::{Floor, StoreError};
use crate::sync::Mutex;
use crate::topic::Filter;

/// Bytes of frames that one read hands out: enough to make a blocking read worth its price, little enough that ten thousand
/// subscribers that catch up hold 640 MiB at the most. A single event may be larger.
pub const READ_BYTES: usize = 64 << 10;

/// Bytes of frames in a subscriber's first read: one that resumes has most often missed little, and is to have it soon. The next reads
/// are four times as large each, up to [`READ_BYTES`].
const FIRST_READ_BYTES: usize = 4 << 10;

/// Reads until they are as large as they may be.
const READS_GROW: u8 = 2;

/// How a subscription is written, and when it ends.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub form: Form,
    /// After so long without a byte, a heartbeat.
    pub heartbeat: Duration,
    /// False: it ends at the tail of its [`Start`].
    pub follow: bool,
    /// What is sent again after a gap.
    pub bundle: Option<bundle::Kind>,
}

/// What the machine wants.
#[derive(Debug)]
pub enum Want {
    /// These bytes are next for the subscriber: whole frames, or a piece of a bundle.
    Emit(Bytes),
    /// The same, and nothing comes after them for now: the waker that was given is used when there is something.
    EmitAndWait(Bytes),
    /// The same as the first, and they tell a gap.
    Tell(GapReason, Bytes),
    /// Read this, and hand what came of it to [`Subscription::was_read`].
    Read(Reading),
    /// Nothing: the waker that was given is used when there is something.
    Wait,
    /// Let others run, then ask again.
    Yield,
    /// Everything that was asked for has been delivered.
    End,
    /// The server drains; there is more to come, elsewhere or later.
    Drained,
}

/// What the machine wants read.
#[derive(Debug, Clone)]
pub enum Reading {
    /// With [`read_on`], for all who want it, or [`read`].
    Log(Stretch),
    Bundle(Wanted),
}

/// What came of a [`Reading`].
#[derive(Debug, Clone)]
pub enum Came {
    Log(WasRead),
    Bundle(Arc<Bundle>),
}

/// Why nothing came of it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadingError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("it has more than {} MiB, the most that all together may have; ask for fewer topics", bundle::BUNDLES_BYTES_MAX >> 20)]
    TooLarge,
    #[error("too many states and snapshots are being sent")]
    Busy,
}

/// One subscriber's cursor. Kept small, as idle subscribers are many.
#[derive(Debug)]
pub struct Subscription {
    key: SubscriberKey,
    filter: Arc<Filter>,
    form: Form,
    /// Milliseconds; 49 days at the most.
    heartbeat: u32,
    cursor: EventId,
    /// The last `id:` that went out.
    sent_id: EventId,
    /// When something last went out.
    sent: Millis,
    /// Up to where losses were told.
    told: EventId,
    stage: Stage,
    /// What is sent again after a gap.
    bundle: Option<bundle::Kind>,
    /// How often it has read, up to [`READS_GROW`].
    reads: u8,
    owed: Option<Box<Owed>>,
}

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It begins at the tail, and is told so whatever has come since.
    AtTail,
    /// It has not been at the edge since it began, or since it last read from disk.
    Behind,
    Live,
    /// It was told that nothing more comes.
    Closed,
}

/// What lies ahead of a cursor. With `true` its subscriber waits for what comes after it already.
enum Ahead {
    /// Others were given the same.
    Known(Run, bool),
    /// How often floors were raised so far stands beside it.
    Unknown(Place, u64, bool),
}

/// A bundle that is owed.
#[derive(Debug)]
enum Bundling {
    Wanted,
    /// So many pieces of it were handed out.
    Sending(Arc<Bundle>, usize),
}

/// What few have, and none of those that wait and follow. Boxed for their sake.
#[derive(Debug, Default)]
struct Owed {
    /// Told before the bundle.
    gap: Option<Gap>,
    bundle: Option<Bundling>,
    read: Option<WasRead>,
    /// With `follow: false`, where it ends.
    until: Option<EventId>,
}

impl Owed {
    fn is_nothing(&self) -> bool {
        !self.comes_first() && self.until.is_none()
    }

    /// Whether anything is owed before the log goes on.
    fn comes_first(&self) -> bool {
        self.gap.is_some() || self.bundle.is_some() || self.read.is_some()
    }
}

impl Subscription {
    /// Begins at `start`. `key` is the subscriber's in the hub, attached for the same filter and this start.
    #[must_use]
    pub fn new(key: SubscriberKey, filter: Arc<Filter>, start: Start, options: Options, now: Millis) -> Self {
        let at_tail = start.cursor >= start.tail && start.gap.is_none() && start.bundle.is_none();
        let bundle = start.bundle.map(|bundle| Bundling::Sending(bundle, 0));
        let owed = Owed { gap: start.gap, bundle, read: None, until: (!options.follow).then_some(start.tail) };
        Self {
            key,
            filter,
            cursor: start.cursor,
            sent_id: start.cursor,
            sent: now,
            told: 0,
            stage: if at_tail { Stage::AtTail } else { Stage::Behind },
            bundle: options.bundle,
            reads: 0,
            owed: Some(Box::new(owed)).filter(|owed| !owed.is_nothing()),
            form: options.form,
            heartbeat: u32::try_from(options.heartbeat.as_millis()).unwrap_or(u32::MAX),
        }
    }

    /// Everything that matches up to here was handed out.
    #[must_use]
    pub fn cursor(&self) -> EventId {
        self.cursor
    }

    /// How it is written.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// Its place in the hub.
    #[must_use]
    pub fn key(&self) -> SubscriberKey {
        self.key
    }

    /// What is next. `runs` are those of whoever drives it, `log` is the log's name; `wake` is asked for when the answer is to wait.
    pub fn next<W>(
        &mut self,
        hub: &Mutex<Hub<W>>,
        runs: &mut Runs,
        log: &str,
        now: Millis,
        wake: impl Fn() -> W,
    ) -> Want {
        if self.stage == Stage::Closed {
            // Not even a gap that is found now.
            return Want::End;
        }
        let until = self.owed.as_ref().and_then(|owed| owed.until);
        // Nothing comes between the pieces of a bundle.
        let is_sending = self.owed.as_ref().is_some_and(|owed| matches!(owed.bundle, Some(Bundling::Sending(..))));
        let (floor, closed, ahead) = {
            let mut hub = hub.lock();
            let floor = if is_sending {
                // A snapshot may be true at an id that lies before what was seen.
                hub.begin_again(self.key);
                Floor::NONE
            } else {
                self.cursor = self.cursor.max(hub.passed(self.key));
                hub.floor(self.key)
            };
            let owes = self.stage == Stage::AtTail
                || self.owed.as_ref().is_some_and(|owed| owed.comes_first())
                || floor.id > self.told && self.cursor < floor.id;
            // Where something else comes first, or a reader that ends needs no ring, the place is not asked for.
            let ahead = (!owes && until.is_none()).then(|| self.look_ahead(&mut hub, runs, now, wake));
            (floor, until.and_then(|_| hub.closed(self.key)), ahead)
        };
        let gap = self.owed.as_mut().and_then(|owed| owed.gap.take());
        if let Some(gap) = gap.or_else(|| self.gap_below(floor)) {
            return self.tell(gap, now);
        }
        if let Some(want) = self.bundled(now) {
            return want;
        }
        if self.stage == Stage::AtTail {
            return self.live(log, now);
        }
        let read = self.owed.as_mut().and_then(|owed| owed.read.take());
        self.owed = self.owed.take().filter(|owed| !owed.is_nothing());
        if let Some(read) = read {
            return self.hand_out(read, now);
        }
        match (ahead, until) {
            (None, None) => Want::Yield,
            (None, Some(until)) if self.cursor < until => self.read_on(until),
            (None, Some(until)) => self.finish(until, closed, log, now),
            (Some(Ahead::Known(run, waits)), _) => self.take_run(run, waits, now),
            (Some(Ahead::Unknown(Place::Ring(batches), trims, waits)), _) => {
                let place = (&self.filter, self.form, self.cursor, trims);
                let run = runs.cut(place, &batches, |batch, by| hub.lock().grown(batch, by));
                self.take_run(run, waits, now)
            }
            (Some(Ahead::Unknown(Place::Disk { upto }, ..)), _) => {
                self.stage = Stage::Behind;
                self.read_on(upto)
            }
            (Some(Ahead::Unknown(Place::Walking { cursor }, ..)), _) => {
                self.cursor = self.cursor.max(cursor);
                Want::Yield
            }
            (Some(Ahead::Unknown(Place::Edge { tail }, ..)), _) => self.at_edge(tail, log, now),
            (Some(Ahead::Unknown(Place::Closed { last, tail }, ..)), _) => {
                self.cursor = self.cursor.max(tail);
                self.at_end(last, log, now)
            }
            (Some(Ahead::Unknown(Place::Drained, ..)), _) => Want::Drained,
        }
    }

    /// Hands in what a [`Want::Read`] gave.
    pub fn was_read(&mut self, came: Came) {
        match came {
            Came::Log(read) => {
                self.reads = READS_GROW.min(self.reads + 1);
                self.owed.get_or_insert_default().read = Some(read);
            }
            Came::Bundle(bundle) => self.begin_again(bundle),
        }
    }

    /// Goes on from where the bundle is true; where there is none, from where it is.
    fn begin_again(&mut self, bundle: Arc<Bundle>) {
        let owed = self.owed.get_or_insert_default();
        owed.bundle = None;
        let Some(at) = bundle.at else { return };
        if bundle.floor.id > self.told {
            owed.gap = Gap::below(bundle.floor, at);
        }
        owed.bundle = Some(Bundling::Sending(bundle, 0));
        self.cursor = at;
        self.stage = Stage::Behind;
    }

    /// Looks from the cursor on. One that is live already waits at once where nothing follows on what it is given.
    fn look_ahead<W>(&self, hub: &mut Hub<W>, runs: &Runs, now: Millis, wake: impl Fn() -> W) -> Ahead {
        let trims = hub.trims();
        if let Some(run) = runs.find(&self.filter, self.form, self.cursor, trims) {
            let waits = self.stage == Stage::Live && hub.waits_beyond(self.key, run.upto, now, wake);
            return Ahead::Known(run.clone(), waits);
        }
        let place = hub.place(self.key, self.cursor, self.sent, runs.bytes_max(), &wake);
        let waits = match &place {
            Place::Ring(batches) if self.stage == Stage::Live => {
                batches.last().is_some_and(|last| hub.waits_beyond(self.key, last.last(), now, wake))
            }
            _ => false,
        };
        Ahead::Unknown(place, trims, waits)
    }

    /// What the bundle that is owed asks for, or its next piece.
    fn bundled(&mut self, now: Millis) -> Option<Want> {
        let (filter, form, kind) = (&self.filter, self.form, self.bundle);
        let owed = self.owed.as_mut()?;
        match (owed.bundle.as_mut()?, kind) {
            (Bundling::Wanted, Some(kind)) => {
                let wanted = Wanted { kind, filter: filter.clone(), dress: Dress::Frames(form) };
                return Some(Want::Read(Reading::Bundle(wanted)));
            }
            (Bundling::Sending(bundle, sent), _) => {
                if let Some(piece) = bundle.pieces().get(*sent).cloned() {
                    *sent += 1;
                    // The entries of a state have no id: it is the snapshot's that was sent.
                    if kind == Some(bundle::Kind::Snapshot) {
                        self.sent_id = self.cursor;
                    }
                    return Some(self.emit(piece, now));
                }
            }
            (Bundling::Wanted, None) => {}
        }
        owed.bundle = None;
        None
    }

    fn gap_below(&mut self, floor: Floor) -> Option<Gap> {
        if floor.id <= self.told {
            return None;
        }
        let gap = Gap::below(floor, self.cursor);
        // At or beyond the floor nothing below it can be missed any more.
        self.told = floor.id;
        gap
    }

    fn tell(&mut self, gap: Gap, now: Millis) -> Want {
        self.told = self.told.max(gap.earliest - 1);
        self.stage = Stage::Behind;
        if self.bundle.is_some() {
            // What was read of the log for the time before is not owed any more: the bundle stands for it.
            let owed = self.owed.get_or_insert_default();
            owed.read = None;
            owed.bundle.get_or_insert(Bundling::Wanted);
        }
        let id = if gap.reason == GapReason::Ahead { 0 } else { self.cursor };
        let Gap { requested, earliest, reason } = gap;
        let bytes = self.control(id, &Control::Gap { requested, earliest, reason }, now);
        Want::Tell(reason, bytes)
    }

    fn hand_out(&mut self, read: WasRead, now: Millis) -> Want {
        self.cursor = self.cursor.max(read.upto);
        if read.bytes.is_empty() {
            return if self.is_quiet(now) { self.heartbeat(now) } else { Want::Yield };
        }
        self.sent_id = read.last;
        self.emit(read.bytes, now)
    }

    fn take_run(&mut self, run: Run, waits: bool, now: Millis) -> Want {
        self.cursor = run.upto;
        if run.bytes.is_empty() {
            return if waits { Want::Wait } else { Want::Yield };
        }
        self.sent_id = run.last;
        self.sent = now;
        if waits { Want::EmitAndWait(run.bytes) } else { Want::Emit(run.bytes) }
    }

    fn at_edge(&mut self, tail: EventId, log: &str, now: Millis) -> Want {
        self.cursor = self.cursor.max(tail);
        if self.stage == Stage::Behind {
            return self.live(log, now);
        }
        if !self.is_quiet(now) {
            return Want::Wait;
        }
        if self.cursor > self.sent_id { self.live(log, now) } else { self.heartbeat(now) }
    }

    /// Nothing more comes, as all topics were closed.
    fn at_end(&mut self, last: EventId, log: &str, now: Millis) -> Want {
        match self.stage {
            Stage::AtTail | Stage::Behind => self.live(log, now),
            Stage::Live | Stage::Closed => {
                self.stage = Stage::Closed;
                Want::Emit(self.control(self.cursor, &Control::Closed { last }, now))
            }
        }
    }

    fn finish(&mut self, until: EventId, closed: Option<EventId>, log: &str, now: Millis) -> Want {
        self.cursor = self.cursor.max(until);
        // Events may have come after `until` and before the end.
        if let Some(last) = closed.filter(|last| self.cursor >= *last) {
            return self.at_end(last, log, now);
        }
        if self.stage == Stage::Behind { self.live(log, now) } else { Want::End }
    }

    fn read_on(&self, upto: EventId) -> Want {
        let bytes_max = READ_BYTES.min(FIRST_READ_BYTES << (2 * self.reads));
        let (filter, form, after) = (self.filter.clone(), self.form, self.cursor);
        Want::Read(Reading::Log(Stretch { filter, form, after, upto, bytes_max }))
    }

    fn is_quiet(&self, now: Millis) -> bool {
        now.saturating_sub(self.sent) >= u64::from(self.heartbeat)
    }

    fn live(&mut self, log: &str, now: Millis) -> Want {
        self.stage = Stage::Live;
        Want::Emit(self.control(self.cursor, &Control::Live { tail: self.cursor, log }, now))
    }

    fn heartbeat(&mut self, now: Millis) -> Want {
        let mut out = Vec::new();
        self.form.heartbeat(&mut out);
        self.emit(out.into(), now)
    }

    fn control(&mut self, id: EventId, control: &Control<'_>, now: Millis) -> Bytes {
        let mut out = Vec::new();
        self.form.control(&mut out, id, control);
        self.sent_id = id;
        self.sent = now;
        out.into()
    }

    fn emit(&mut self, bytes: Bytes, now: Millis) -> Want {
        self.sent = now;
        Want::Emit(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::hub;

    #[test]
    fn the_first_read_is_small_and_the_next_ones_grow_to_a_whole_block() {
        let hub: Mutex<Hub<()>> = Mutex::new(Hub::new(hub::Options::default(), 1000));
        let filter = Arc::new(Filter::all());
        let (key, _) = hub.lock().attach(&filter, 0, 0);
        let start = Start { cursor: 0, tail: 1000, earliest: 1, gap: None, trims: 0, bundle: None };
        let options = Options { form: Form::Sse, heartbeat: Duration::from_secs(15), follow: true, bundle: None };
        let mut machine = Subscription::new(key, filter, start, options, 0);
        let mut runs = Runs::default();
        let mut sizes = Vec::new();
        while sizes.len() < 4 {
            match machine.next(&hub, &mut runs, "log", 0, || ()) {
                Want::Read(Reading::Log(stretch)) => {
                    sizes.push(stretch.bytes_max);
                    let upto = stretch.after + 1;
                    machine.was_read(Came::Log(WasRead { bytes: Bytes::from_static(b"x"), upto, last: upto }));
                }
                Want::Emit(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(sizes, [4 << 10, 16 << 10, READ_BYTES, READ_BYTES]);
    }

    #[test]
    fn who_begins_at_the_tail_is_told_so_whatever_has_come_since() {
        let hub: Mutex<Hub<()>> = Mutex::new(Hub::new(hub::Options::default(), 7));
        let filter = Arc::new(Filter::all());
        let (key, _) = hub.lock().attach(&filter, 0, 0);
        let start = Start { cursor: 7, tail: 7, earliest: 1, gap: None, trims: 0, bundle: None };
        let options = Options { form: Form::Sse, heartbeat: Duration::from_secs(15), follow: true, bundle: None };
        let mut machine = Subscription::new(key, filter, start, options, 0);
        let mut runs = Runs::default();
        let topic = crate::topic::Topic::parse("a").unwrap();
        hub.lock().push(vec![Event { id: 8, topic, event: None, key: None, time: 0, data: "x".into() }]);
        let Want::Emit(bytes) = machine.next(&hub, &mut runs, "log", 0, || ()) else { panic!("it is told") };
        assert!(bytes.starts_with(b"id: 7\nevent: tidelog.live\n"), "{bytes:?}");
        // What is the last for now leaves it waiting, for others that stand there too.
        let Want::EmitAndWait(bytes) = machine.next(&hub, &mut runs, "log", 0, || ()) else {
            panic!("it is handed out")
        };
        assert_eq!(bytes, "id: 8\ndata: x\n\n");
        assert_eq!(hub.lock().passed(key), 8);
        assert!(matches!(machine.next(&hub, &mut runs, "log", 0, || ()), Want::Wait));
    }
}
