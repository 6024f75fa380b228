//! The reader: one cursor that stands on disk, in the ring or at the edge, and moves.
//!
//! [`Subscription`] is a state machine without I/O: [`Subscription::next`] says what it wants, and it is told what came of it. First
//! connect, reconnect, slow client and restart are all this one loop, so there is no seam between replay and live. What holds: the
//! cursor never moves over a matching event that was not handed out, nor back but to where a bundle is true; a floor above the cursor
//! is told as a gap before the next event. Must not know sockets, tokio, or the clock.

pub mod begin;
pub mod bundle;
pub mod run;
pub mod shared;
pub mod stream;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use self::begin::{Begin, Gap, Known, LookUp, Start, look_up};
use self::bundle::{Bundle, Dress, Wanted};
use self::run::{Run, Runs};
use self::shared::{Cut, Lead};
use crate::event::{EventId, EventRef, Millis};
use crate::hub::{Hub, Place, SubscriberKey};
use crate::sse::{Control, Form, GapReason};
use crate::store::{Floor, Scan, Store, StoreError};
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

/// After so many events, some 0.1 ms, a read asks whether it still is wanted; where they lie so far apart that each is sought, which takes 15 µs and
/// more, after each.
const ASK_EVERY: u32 = 256;
const SPARSE_IDS: u64 = 64;

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

/// A stretch of the log to read.
#[derive(Debug, Clone)]
pub struct Stretch {
    pub filter: Arc<Filter>,
    pub form: Form,
    pub after: EventId,
    pub upto: EventId,
    /// About how many bytes of frames it may give.
    pub bytes_max: usize,
}

/// What came of a [`Stretch`].
#[derive(Debug, Clone)]
pub struct WasRead {
    /// Whole frames.
    pub bytes: Bytes,
    /// Everything that matches up to here is in `bytes`.
    pub upto: EventId,
    /// The id of the last frame in `bytes`; 0 when it is empty.
    pub last: EventId,
}

/// A block of frames that is being gathered.
struct Block {
    form: Form,
    frames: Vec<u8>,
    bytes_max: usize,
    /// The last that is in it; before, where it begins.
    last: EventId,
    events: u32,
    cut: Cut,
}

impl Block {
    fn begin(stretch: &Stretch) -> Self {
        let &Stretch { form, after, bytes_max, .. } = stretch;
        Self { form, frames: Vec::new(), bytes_max, last: after, events: 0, cut: Cut::new(after, bytes_max) }
    }

    /// Whether it ends with this event: where others would stop too ([`shared`]), or when it `is_wanted` no longer, which is asked now
    /// and then.
    fn ends_with(&mut self, event: &EventRef<'_>, is_wanted: impl FnOnce() -> bool) -> bool {
        if self.events == 0 {
            self.frames.reserve(self.bytes_max + self.bytes_max / 16);
        }
        self.form.event(&mut self.frames, event);
        self.events += 1;
        let asks = self.events.is_multiple_of(ASK_EVERY) || event.id > self.last + SPARSE_IDS;
        self.last = event.id;
        self.cut.is_here(event.id, self.frames.len()) || asks && !is_wanted()
    }

    fn end(mut self, upto: EventId) -> WasRead {
        if self.frames.len() < self.frames.capacity() / 4 * 3 {
            // It may be kept a while.
            self.frames.shrink_to_fit();
        }
        WasRead { last: if self.events == 0 { 0 } else { self.last }, bytes: self.frames.into(), upto }
    }
}

/// Reads one block. Blocks on the disk.
///
/// # Errors
/// When the log cannot be read.
pub fn read(store: &dyn Store, stretch: &Stretch, is_wanted: impl Fn() -> bool) -> Result<WasRead, StoreError> {
    let mut block = Block::begin(stretch);
    let scan = Scan { filter: &stretch.filter, after: stretch.after, upto: stretch.upto };
    let upto = store.scan(scan, &mut |event| {
        if block.ends_with(event, &is_wanted) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(block.end(upto))
}

/// What the thread that reads asks and tells, in the midst of a scan.
pub struct Meanwhile<O, C, A> {
    /// Called now and then: others may have the core.
    pub offer: O,
    /// Called with each block.
    pub count: C,
    /// Whether no other read waits for a turn.
    pub is_alone: A,
}

/// Reads for all who wait, and on as long as somebody keeps up. Blocks on the disk.
pub fn read_on(
    store: &dyn Store,
    lead: Lead,
    stretch: Stretch,
    meanwhile: &Meanwhile<impl Fn(), impl Fn(), impl Fn() -> bool>,
) {
    let mut next = Some((lead, stretch));
    while let Some((lead, stretch)) = next {
        let Some(mut lead) = lead.wanted() else { return };
        // The next scan may have to wait for the store.
        lead.answer_held();
        next = scan_on(store, lead, stretch, meanwhile);
    }
}

/// As many blocks as one scan gives; what is to be read next.
fn scan_on(
    store: &dyn Store,
    lead: Lead,
    stretch: Stretch,
    Meanwhile { offer, count, is_alone }: &Meanwhile<impl Fn(), impl Fn(), impl Fn() -> bool>,
) -> Option<(Lead, Stretch)> {
    // Of the time before the scan, also where blocks are begun in its midst.
    let told = store.floors_told();
    let filter = stretch.filter.clone();
    let scan = Scan { filter: &filter, after: stretch.after, upto: stretch.upto };
    let mut block = Block::begin(&stretch);
    let mut next = Some((lead, stretch));
    let scanned = store.scan(scan, &mut |event| {
        let Some((lead, _)) = &next else { return ControlFlow::Break(()) };
        let is_wanted = || {
            offer();
            lead.is_waited_for()
        };
        if !block.ends_with(event, is_wanted) {
            return ControlFlow::Continue(());
        }
        let Some((mut lead, stretch)) = next.take() else { return ControlFlow::Break(()) };
        count();
        if is_alone() {
            lead.take_another_turn();
        }
        let begun = Block::begin(&Stretch { after: event.id, ..stretch.clone() });
        let read = std::mem::replace(&mut block, begun).end(event.id);
        // Where each match is sought, there is no more to gain from one scan than from several, which let others have the store in between.
        let is_dense = read.is_dense(stretch.after);
        next = lead.done(stretch, told, &Ok(read));
        if next.is_some() && is_dense { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let (lead, stretch) = next?;
    match scanned {
        // It ended with a block, and more is wanted: with nothing in it, a block would say that there is nothing.
        Ok(upto) if upto == stretch.after && upto < stretch.upto => Some((lead, stretch)),
        scanned => {
            count();
            lead.done(stretch, told, &scanned.map(|upto| block.end(upto)).map_err(ReadingError::from))
        }
    }
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
    use proptest::prelude::*;

    use super::shared::{Asker, Done, Shared, Turn};
    use super::*;
    use crate::event::Event;
    use crate::hub;
    use crate::store::model::ModelStore;
    use crate::store::rocks::{self, RocksStore};
    use crate::store::{Durability, Trim};
    use crate::topic::{Pattern, Topic};

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
    fn a_read_that_nobody_wants_any_more_ends_soon() {
        let store = ModelStore::default();
        let topic = |id: EventId| Topic::parse(if id.is_multiple_of(500) { "rare" } else { "dense" }).unwrap();
        let event = |id| Event { id, topic: topic(id), event: None, key: None, time: 0, data: "x".into() };
        store.append(&(1..=1000).map(event).collect::<Vec<_>>()).unwrap();
        let last = |topic, is_wanted: &dyn Fn() -> bool| {
            let filter = Arc::new(Filter::new(vec![Pattern::parse(topic).unwrap()], Vec::new()));
            let stretch = Stretch { filter, form: Form::Sse, after: 0, upto: 1000, bytes_max: READ_BYTES };
            let read = read(&store, &stretch, is_wanted).unwrap();
            assert!(read.last == read.upto || read.upto == 1000);
            read.last
        };
        assert_eq!((last("dense", &|| true), last("rare", &|| true)), (999, 1000));
        assert_eq!(last("dense", &|| false), u64::from(ASK_EVERY));
        assert_eq!(last("rare", &|| false), 500, "what lies far apart costs more");
    }

    /// One who asks for the next block as soon as it has one, within the answer; leads that fall to it are left for later.
    struct Quick {
        shared: Arc<Shared>,
        stretch: Stretch,
        got: Mutex<(Vec<u8>, EventId)>,
        /// It leaves when it has got so far.
        leaves: EventId,
        leads: Arc<Mutex<Vec<(Lead, Stretch)>>>,
    }

    struct Waiter(Arc<Quick>);

    impl Asker for Waiter {
        fn waits(&self) -> bool {
            self.0.got.lock().1 < self.0.leaves
        }

        fn answer(self: Box<Self>, done: Done) {
            let Ok(Came::Log(read)) = done else { panic!("the log was read") };
            self.0.take(read);
            ask(&self.0);
        }
    }

    struct Nobody;

    impl Asker for Nobody {
        fn waits(&self) -> bool {
            false
        }

        fn answer(self: Box<Self>, _: Done) {}
    }

    impl Quick {
        fn take(&self, read: WasRead) {
            let mut got = self.got.lock();
            assert!(read.upto > got.1 && read.upto <= self.stretch.upto, "it moves on");
            got.0.extend(read.bytes);
            got.1 = read.upto;
        }
    }

    fn ask(reader: &Arc<Quick>) {
        loop {
            let after = reader.got.lock().1;
            if after >= reader.leaves.min(reader.stretch.upto) {
                return;
            }
            let stretch = Stretch { after, ..reader.stretch.clone() };
            match reader.shared.turn(&stretch, 0, Box::new(Waiter(reader.clone()))) {
                Turn::Known(read) => reader.take(read),
                Turn::Wait => return,
                Turn::Lead(lead) => return reader.leads.lock().push((lead, stretch)),
            }
        }
    }

    proptest! {
        #[test]
        fn reading_on_gives_every_event_to_all_who_come_by(
            sizes in prop::collection::vec(prop_oneof![1usize..300, 1usize..40_000], 1..600),
            scan_max in prop_oneof![Just(0usize), 1usize..100],
            begin in prop::collection::vec((0usize..600, 0usize..900), 1..5), alone: bool,
        ) {
            let store = ModelStore::with_short_scans(scan_max);
            let topic = |id: EventId| Topic::parse(if id.is_multiple_of(3) { "other" } else { "wanted" }).unwrap();
            let event = |(id, size)| Event { id, topic: topic(id), event: None, key: None, time: 0, data: "x".repeat(size) };
            let events: Vec<_> = (1..).zip(sizes).map(event).collect();
            let upto = events.len() as EventId;
            store.append(&events).unwrap();
            let filter = Arc::new(Filter::new(vec![Pattern::parse("wanted").unwrap()], Vec::new()));
            let (shared, leads) = (Arc::new(Shared::default()), Arc::default());
            let mut readers = Vec::new();
            for (after, leaves) in begin {
                let (after, leaves) = ((after as EventId).min(upto), leaves as EventId);
                let stretch = Stretch { filter: filter.clone(), form: Form::Sse, after, upto, bytes_max: READ_BYTES };
                let (shared, leads) = (Arc::clone(&shared), Arc::clone(&leads));
                let reader = Arc::new(Quick { shared, stretch, got: Mutex::new((Vec::new(), after)), leaves, leads });
                ask(&reader);
                readers.push(reader);
            }
            let blocks = std::cell::Cell::new(0);
            loop {
                let Some((lead, stretch)) = leads.lock().pop() else { break };
                let count = || blocks.set(blocks.get() + 1);
                read_on(&store, lead, stretch, &Meanwhile { offer: || (), count, is_alone: || alone });
            }
            for reader in &readers {
                let (got, at) = &*reader.got.lock();
                prop_assert!(*at >= reader.leaves.min(upto), "{} of {}", at, upto);
                let mut expected = Vec::new();
                let between = events.iter().filter(|e| e.id > reader.stretch.after && e.id <= *at && e.id % 3 != 0);
                between.for_each(|event| Form::Sse.event(&mut expected, &event.as_ref()));
                prop_assert!(*got == expected, "after {} up to {}", reader.stretch.after, at);
            }
        }
    }

    #[test]
    fn one_that_keeps_up_is_answered_with_several_blocks_at_once() {
        let store = ModelStore::default();
        let topic = Topic::parse("a").unwrap();
        let event = |id| Event { id, topic: topic.clone(), event: None, key: None, time: 0, data: "x".repeat(1000) };
        let events: Vec<_> = (1..=6000).map(event).collect();
        store.append(&events).unwrap();
        let stretch =
            Stretch { filter: Arc::new(Filter::all()), form: Form::Sse, after: 0, upto: 6000, bytes_max: READ_BYTES };
        let read_all = |alone: bool| {
            let (shared, leads) = (Arc::new(Shared::default()), Arc::<Mutex<Vec<_>>>::default());
            let (stretch, got) = (stretch.clone(), Mutex::new((Vec::new(), 0)));
            let reader = Arc::new(Quick { shared, stretch, got, leaves: EventId::MAX, leads: leads.clone() });
            ask(&reader);
            let (blocks, told) = (std::cell::Cell::new(0), std::cell::RefCell::new(vec![0]));
            let mut runs = 0;
            loop {
                let Some((lead, stretch)) = leads.lock().pop() else { break };
                runs += 1;
                let count = || {
                    blocks.set(blocks.get() + 1);
                    let at = reader.got.lock().1;
                    if told.borrow().last() != Some(&at) {
                        told.borrow_mut().push(at);
                    }
                };
                read_on(&store, lead, stretch, &Meanwhile { offer: || (), count, is_alone: || alone });
            }
            assert_eq!(reader.got.lock().1, 6000);
            let (blocks, told) = (blocks.get(), told.borrow().len());
            assert!(blocks > 90 && told <= blocks / 4, "{blocks} blocks, told {told} times");
            runs
        };
        assert_eq!(read_all(true), 1, "nobody waits for a turn");
        let runs = read_all(false);
        assert!((2..5).contains(&runs), "others had {runs} turns in between");
    }

    #[test]
    fn floors_that_are_published_amid_a_scan_are_heeded_by_who_asks_after() {
        let dir = tempfile::tempdir().unwrap();
        let options = rocks::Options { durability: Durability::Os, ..rocks::Options::new(dir.path()) };
        let store = RocksStore::open(options).unwrap();
        let topic = Topic::parse("a").unwrap();
        let event = |id| Event { id, topic: topic.clone(), event: None, key: None, time: 0, data: "x".repeat(1000) };
        store.append(&(1..=2000).map(event).collect::<Vec<_>>()).unwrap();
        let (shared, leads) = (Arc::new(Shared::default()), Arc::<Mutex<Vec<_>>>::default());
        let stretch =
            Stretch { filter: Arc::new(Filter::all()), form: Form::Sse, after: 0, upto: 2000, bytes_max: READ_BYTES };
        let at = |after| Stretch { after, ..stretch.clone() };
        let got = Mutex::new((Vec::new(), 0));
        let reader = Quick { shared, stretch: stretch.clone(), got, leaves: EventId::MAX, leads: leads.clone() };
        let reader = Arc::new(reader);
        ask(&reader);
        let asks = |after, told| reader.shared.turn(&at(after), told, Box::new(Nobody));
        let (first, begun) = leads.lock().pop().unwrap();
        assert_eq!((begun.after, store.floors_told()), (0, 0));
        let blocks = std::cell::Cell::new(0);
        let count = || {
            blocks.set(blocks.get() + 1);
            if blocks.get() == 2 {
                store.raise_floors(&[Trim { topic: None, upto: 500 }]).unwrap();
                store.floors_published();
            }
            if blocks.get() == 3 {
                let second = reader.got.lock().1;
                let Turn::Known(read) = asks(second, 0) else { panic!("the second block was read") };
                assert!(read.upto < 500, "what is asked for next lies below the floor");
                assert!(matches!(asks(read.upto, store.floors_told()), Turn::Lead(_)), "it is read anew");
            }
        };
        read_on(&store, first, begun, &Meanwhile { offer: || (), count, is_alone: || false });
        assert!(blocks.get() > 3 && store.floors_told() == 1);
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
