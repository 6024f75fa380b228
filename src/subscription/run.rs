//! Frames out of the ring that all get who stand at one place: what one cursor was given is remembered for those that come after it.
//!
//! What holds: a run is what its batches give, in their order, to the filter and in the form that it was gathered for, from its cursor on;
//! after a trim none of before is handed out. Must not know the subscriber.

use std::sync::Arc;

use bytes::Bytes;

use crate::event::EventId;
use crate::hub::Batch;
use crate::sse::Form;
use crate::topic::Filter;

/// Batches are gathered up to about so many bytes of events (a single batch may have more). A crowd's cursors stand closely together:
/// longer runs would be gathered anew as often, and cost more.
const RUN_BYTES: usize = 32 << 10;

/// Runs that are remembered: those who drive cursors take them in turn, so that those at one place come one after the other. Three more
/// for other filters and forms. Until they are replaced they keep their memory: some 128 KiB, or four batches as large as they come.
const KNOWN: usize = 4;

/// What lies in the ring behind a cursor.
#[derive(Debug, Clone)]
pub struct Run {
    /// Whole frames; none where the batches have nothing behind the cursor.
    pub bytes: Bytes,
    /// Everything that matches up to here is in `bytes`.
    pub upto: EventId,
    /// The id of the last frame.
    pub last: EventId,
}

/// For whom a run is.
#[derive(Debug)]
struct Spot {
    cursor: EventId,
    /// How often floors were raised before.
    trims: u64,
    form: Form,
    filter: Arc<Filter>,
}

impl Spot {
    fn is(&self, filter: &Arc<Filter>, form: Form, cursor: EventId, trims: u64) -> bool {
        self.cursor == cursor && self.trims == trims && self.form == form && Arc::ptr_eq(&self.filter, filter)
    }
}

/// The newest runs of one who drives cursors. By default it drives many.
#[derive(Debug)]
pub struct Runs {
    known: Box<[Option<(Spot, Run)>]>,
    /// The one that the next run takes the place of.
    oldest: usize,
}

impl Default for Runs {
    fn default() -> Self {
        Self { known: (0..KNOWN).map(|_| None).collect(), oldest: 0 }
    }
}

impl Runs {
    /// Of one who drives a single cursor: none is remembered, and what a batch has cut already is not copied.
    #[must_use]
    pub fn of_one() -> Self {
        Self { known: Box::default(), oldest: 0 }
    }

    /// About how many bytes of events a run is to have.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        if self.known.is_empty() { 0 } else { RUN_BYTES }
    }

    /// What all get who stand at this place. `trims` is how often floors were raised so far.
    #[must_use]
    pub fn find(&self, filter: &Arc<Filter>, form: Form, cursor: EventId, trims: u64) -> Option<&Run> {
        let known = self.known.iter().flatten();
        known.into_iter().find(|(spot, _)| spot.is(filter, form, cursor, trims)).map(|(_, run)| run)
    }

    /// Cuts the frames for this place out of `batches`, which follow each other and begin behind the cursor or around it, and remembers
    /// them. `grown` is told by how much a batch has grown for it.
    pub fn cut(
        &mut self,
        (filter, form, cursor, trims): (&Arc<Filter>, Form, EventId, u64),
        batches: &[Arc<Batch>],
        mut grown: impl FnMut(&Batch, usize),
    ) -> Run {
        let mut share = |batch: &Batch| {
            let (share, by) = batch.share(filter, form, cursor);
            if by > 0 {
                grown(batch, by);
            }
            share
        };
        let bytes = match batches {
            [one] if self.known.is_empty() || one.bytes() > RUN_BYTES => share(one),
            // Copied even where it is one: what a thread has for itself is counted without asking the others.
            _ => {
                let shares: Vec<Bytes> = batches.iter().map(|batch| share(batch)).collect();
                shares.concat().into()
            }
        };
        let upto = batches.last().map_or(cursor, |batch| batch.last());
        let last = batches.last().map_or(cursor, |batch| batch.last_match(filter));
        let run = Run { bytes, upto, last };
        if !self.known.is_empty() {
            // What was trimmed is let go.
            for known in &mut self.known {
                *known = known.take().filter(|(spot, _)| spot.trims == trims);
            }
            let spot = Spot { cursor, trims, form, filter: Arc::clone(filter) };
            self.known[self.oldest] = Some((spot, run.clone()));
            self.oldest = (self.oldest + 1) % self.known.len();
        }
        run
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::topic::{Pattern, Topic};

    fn filter(pattern: &str) -> Arc<Filter> {
        Arc::new(Filter::new(vec![Pattern::parse(pattern).unwrap()], Vec::new()))
    }

    fn batch(after: EventId, topics: &[&str]) -> Arc<Batch> {
        let event = |(id, topic): (EventId, &&str)| Event {
            id,
            topic: Topic::parse(topic).unwrap(),
            event: None,
            key: None,
            time: 0,
            data: "x".into(),
        };
        Arc::new(Batch::cut(after, (after + 1..).zip(topics).map(event).collect()).remove(0))
    }

    #[test]
    fn a_run_has_the_frames_of_all_its_batches_behind_the_cursor() {
        let mut runs = Runs::default();
        let (a, batches) = (filter("a"), [batch(0, &["a", "a"]), batch(2, &["b", "a"]), batch(4, &["a", "b"])]);
        let mut grown = Vec::new();
        let run = runs.cut((&a, Form::Sse, 1, 0), &batches, |batch, by| grown.push((batch.after(), by)));
        assert_eq!(run.bytes, "id: 2\ndata: x\n\nid: 4\ndata: x\n\nid: 5\ndata: x\n\n");
        assert_eq!((run.upto, run.last), (6, 5));
        // A frame and its place in each; the first was cut for this cursor alone.
        assert_eq!(grown, [(2, 19), (4, 19)]);
    }

    #[test]
    fn it_is_found_for_the_same_place_only_and_the_oldest_is_forgotten() {
        let mut runs = Runs::default();
        let (a, batches) = (filter("a"), [batch(0, &["a", "a"])]);
        let cut = |runs: &mut Runs, form, cursor, trims| runs.cut((&a, form, cursor, trims), &batches, |_, _| {});
        let run = cut(&mut runs, Form::Sse, 0, 7);
        assert_eq!(runs.find(&a, Form::Sse, 0, 7).unwrap().bytes.as_ptr(), run.bytes.as_ptr());
        assert!(runs.find(&a, Form::Sse, 1, 7).is_none(), "another cursor");
        assert!(runs.find(&a, Form::Sse, 0, 8).is_none(), "floors were raised");
        assert!(runs.find(&a, Form::Lines, 0, 7).is_none(), "another form");
        assert!(runs.find(&filter("a"), Form::Sse, 0, 7).is_none(), "another filter, though it is equal");
        for cursor in 2..6 {
            assert!(runs.find(&a, Form::Sse, 0, 7).is_some());
            cut(&mut runs, Form::Sse, cursor, 7);
        }
        assert!(runs.find(&a, Form::Sse, 0, 7).is_none());
        cut(&mut runs, Form::Sse, 0, 8);
        assert!(runs.find(&a, Form::Sse, 5, 7).is_none(), "of before a trim nothing is kept");
    }

    #[test]
    fn one_alone_gets_what_the_batch_has_and_remembers_nothing() {
        let mut runs = Runs::of_one();
        let (a, batches) = (filter("a"), [batch(0, &["a", "b"])]);
        let run = runs.cut((&a, Form::Sse, 0, 0), &batches, |_, _| {});
        assert_eq!(run.bytes.as_ptr(), batches[0].share(&a, Form::Sse, 0).0.as_ptr());
        assert!(runs.find(&a, Form::Sse, 0, 0).is_none());
        assert_eq!(runs.bytes_max(), 0);
    }
}
