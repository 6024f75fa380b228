//! Reading blocks of frames out of the log: one, or as many on end as somebody keeps up with.
//!
//! What holds: a block has all that matches up to where it ends; what is read on in one scan counts as read when that scan began. Blocks on
//! the disk. Must not know who waits for them, nor threads.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::ReadingError;
use super::shared::{Cut, Lead};
use crate::event::{EventId, EventRef};
use crate::sse::Form;
use crate::store::{Scan, Store, StoreError};
use crate::topic::Filter;

/// After so many events, some 0.1 ms, a read asks whether it still is wanted; where they lie so far apart that each is sought, which takes 15 µs and
/// more, after each.
const ASK_EVERY: u32 = 256;
const SPARSE_IDS: u64 = 64;

/// A dense block spans no more ids than these, which takes less than a millisecond: a match in eight, where events have 256 B.
pub(super) const DENSE_IDS: u64 = 2 << 10;

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

impl WasRead {
    /// Whether it is a dense block that begins after `after`.
    pub(super) fn is_dense(&self, after: EventId) -> bool {
        self.upto.saturating_sub(after) <= DENSE_IDS
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::shared::{Asker, Done, Shared, Turn};
    use super::super::{Came, READ_BYTES};
    use super::*;
    use crate::event::Event;
    use crate::store::model::ModelStore;
    use crate::store::rocks::{self, RocksStore};
    use crate::store::{Durability, Trim};
    use crate::sync::Mutex;
    use crate::topic::{Pattern, Topic};

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
}
