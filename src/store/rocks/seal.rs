//! Sealing: a full segment's index goes from memory into the `postings` and `segment` column families.
//!
//! What holds: the summary is written last, so a segment without one is simply read and indexed again at the next start;
//! the index in memory goes only after the one on disk is there. Appends go on meanwhile.

use rocksdb::WriteBatch;

use super::RocksStore;
use super::layout::{POSTINGS, SEGMENT, SegmentNumber, Share, Summary, encode_postings, last_id, postings_key};
use super::unsealed::OpenSegment;
use crate::event::Millis;
use crate::record::TopicNumber;
use crate::store::StoreError;

/// Topics to a write batch: RocksDB admits one batch at a time, so that a larger one would hold up publishers for milliseconds.
const TOPICS_PER_BATCH: usize = 1024;

impl RocksStore {
    /// Seals every segment that is full.
    pub(super) fn seal_full_segments(&self) -> Result<(), StoreError> {
        loop {
            let full = {
                let directory = self.directory.read();
                let oldest = directory.open.keys().next().copied();
                oldest.filter(|&segment| last_id(segment) <= directory.tail)
            };
            let Some(segment) = full else { return Ok(()) };
            self.seal(segment)?;
        }
    }

    fn seal(&self, segment: SegmentNumber) -> Result<(), StoreError> {
        let (open, first_time, last_time) = {
            let directory = self.directory.read();
            let (Some(open), Some(known)) = (directory.open.get(&segment), directory.segments.get(&segment)) else {
                return Ok(());
            };
            (open.clone(), known.first_time, known.last_time)
        };
        // Nothing is appended to a full segment any more, so this stays true, and holds up no append.
        let (postings, summary) = sealed_form(&open, first_time, last_time);
        let db = self.db()?;
        for some in postings.chunks(TOPICS_PER_BATCH) {
            let mut batch = WriteBatch::default();
            for (topic, value) in some {
                batch.put_cf(db.cf(POSTINGS), postings_key(*topic, segment), value);
            }
            self.write(&db, batch, false)?;
        }
        let mut batch = WriteBatch::default();
        batch.put_cf(db.cf(SEGMENT), segment.to_be_bytes(), summary.encode());
        self.write(&db, batch, false)?;
        self.directory.write().open.remove(&segment);
        tracing::debug!(segment, topics = postings.len(), "segment sealed");
        Ok(())
    }
}

fn sealed_form(open: &OpenSegment, first_time: Millis, last_time: Millis) -> (Vec<(TopicNumber, Vec<u8>)>, Summary) {
    let mut topics: Vec<TopicNumber> = open.topics().collect();
    topics.sort_unstable();
    let mut postings = Vec::with_capacity(topics.len());
    let mut shares = Vec::with_capacity(topics.len());
    for topic in topics {
        let (offsets, amount) = open.offsets_of(topic);
        let Some(&last) = offsets.last() else { continue };
        postings.push((topic, encode_postings(&offsets)));
        shares.push(Share { topic, events: open.events_of(topic), bytes: amount.bytes, last });
    }
    (postings, Summary { first_time, last_time, shares })
}
