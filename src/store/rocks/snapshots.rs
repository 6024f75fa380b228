//! Snapshots: a publisher's own bundle of a topic, and the id at which it is true.

use super::index::read_failed;
use super::layout::{SNAPSHOT, decode_snapshot, encode_snapshot};
use super::open::corrupt;
use super::{Handle, RocksStore};
use crate::event::EventId;
use crate::record::TopicNumber;
use crate::store::{Snapshot, StoreError};
use crate::topic::Topic;

impl RocksStore {
    pub(super) fn keep_snapshot(&self, topic: &Topic, snapshot: &Snapshot) -> Result<(), StoreError> {
        let db = self.db()?;
        self.change(&db, topic, |changing| {
            changing.row.marks.snapshot_at = Some(snapshot.at);
            changing.batch.put_cf(db.cf(SNAPSHOT), changing.row.number.to_be_bytes(), encode_snapshot(snapshot));
        })?;
        self.directory.write().floors_told += 1;
        Ok(())
    }

    pub(super) fn read_snapshot(&self, topic: &str) -> Result<Option<Snapshot>, StoreError> {
        let db = self.durable_db()?;
        let Some(number) = self.has_snapshot(topic) else { return Ok(None) };
        if let Some(snapshot) = get(&db, number)? {
            return Ok(Some(snapshot));
        }
        // Taken away since it was looked up, and perhaps there again; while this is held, neither.
        let _nothing_changes = self.naming.lock();
        let Some(number) = self.has_snapshot(topic) else { return Ok(None) };
        let missing = || corrupt(&format!("the snapshot of topic {topic} is missing"));
        get(&db, number)?.ok_or_else(missing).map(Some)
    }

    fn has_snapshot(&self, topic: &str) -> Option<TopicNumber> {
        let directory = self.directory.read();
        let number = directory.number(topic)?;
        directory.row(number)?.marks.snapshot_at.map(|_| number)
    }

    pub(super) fn at_of_snapshot(&self, topic: &str) -> Option<EventId> {
        self.directory.read().row_of(topic)?.marks.snapshot_at
    }
}

fn get(db: &Handle<'_>, number: TopicNumber) -> Result<Option<Snapshot>, StoreError> {
    let value = db.get_pinned_cf(db.cf(SNAPSHOT), number.to_be_bytes()).map_err(|e| read_failed(&e))?;
    let Some(value) = value else { return Ok(None) };
    let unreadable = || corrupt(&format!("the snapshot of topic number {number} cannot be read"));
    decode_snapshot(&value).ok_or_else(unreadable).map(Some)
}
