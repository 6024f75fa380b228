//! Sealing: a full segment's index goes from memory into the `postings` and `segment` column families.
//!
//! What holds: the summary is written last, so a segment without one is simply read and indexed again at the next start;
//! the index in memory goes only after the one on disk is there. Appends go on meanwhile.

use rocksdb::WriteBatch;

use super::RocksStore;
use super::layout::{POSTINGS, SEGMENT, SegmentNumber, Share, Summary, encode_postings, last_id, postings_key};
use super::unsealed::{Entry, OpenSegment};
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
        // Nothing is appended to a full segment any more, so what is made of it here stays true.
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
        let topics = summary.shares.iter().map(|share| share.topic).collect();
        let mut directory = self.directory.write();
        directory.presence.insert(segment, topics);
        let sealed = directory.open.remove(&segment);
        // Before what was sealed is dropped: it may be some 65,536 small allocations.
        drop(directory);
        drop(sealed);
        tracing::debug!(segment, topics = postings.len(), "segment sealed");
        Ok(())
    }
}

fn sealed_form(open: &OpenSegment, first_time: Millis, last_time: Millis) -> (Vec<(TopicNumber, Vec<u8>)>, Summary) {
    let mut entries = open.entries().to_vec();
    // Stable, so that each topic's offsets stay ascending.
    entries.sort_by_key(|entry| entry.topic);
    let mut postings = Vec::with_capacity(open.topics().len());
    let mut shares = Vec::with_capacity(open.topics().len());
    for of_topic in entries.chunk_by(|a, b| a.topic == b.topic) {
        let Entry { offset: last, topic, .. } = of_topic[of_topic.len() - 1];
        postings.push((topic, encode_postings(of_topic.iter().map(|entry| (entry.offset, entry.bytes)))));
        shares.push(Share {
            topic,
            events: u32::try_from(of_topic.len()).expect("a segment has 65,536 events at most"),
            bytes: of_topic.iter().map(|entry| u64::from(entry.bytes)).sum(),
            last,
        });
    }
    (postings, Summary { first_time, last_time, shares })
}
