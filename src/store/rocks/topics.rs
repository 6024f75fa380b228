//! Topics as people see them: the list, and the retention that a topic has of its own.

use rocksdb::WriteBatch;

use super::RocksStore;
use super::directory::Row;
use super::layout::{META, TOPIC, TopicRow, meta};
use crate::store::{Limits, StoreError, TopicStats};
use crate::topic::{Filter, Pattern, Topic};

impl RocksStore {
    pub(super) fn override_retention(&self, topic: &Topic, limits: Option<Limits>) -> Result<(), StoreError> {
        let db = self.db()?;
        let no_forgetting = self.naming.lock();
        let (number, row, is_new) = {
            let directory = self.directory.read();
            match directory.number(topic.as_str()).and_then(|n| Some((n, directory.row(n)?.clone()))) {
                Some((number, row)) => (number, row, false),
                None if limits.is_none() => return Ok(()),
                None => (directory.next_topic(), Row::new(topic.clone()), true),
            }
        };
        let mut batch = WriteBatch::default();
        let value = TopicRow { number, floor: row.floor, retention: limits };
        batch.put_cf(db.cf(TOPIC), topic.as_str(), value.encode());
        if is_new {
            batch.put_cf(db.cf(META), meta::NEXT_TOPIC, (number + 1).to_be_bytes());
        }
        self.write(&db, batch, true)?;
        let mut directory = self.directory.write();
        if is_new {
            directory.insert(number, row);
        }
        if let Some(row) = directory.row_mut(number) {
            row.retention = limits;
        }
        drop(directory);
        drop(no_forgetting);
        if limits.is_none() { self.forget_some(&db, &[number]) } else { Ok(()) }
    }

    pub(super) fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<TopicStats>, StoreError> {
        let mut list: Vec<TopicStats> = {
            let directory = self.directory.read();
            let shown = directory.in_order(prefix, after).filter(|(_, row)| directory.shows(row)).take(limit);
            shown
                .map(|(_, row)| TopicStats {
                    topic: row.topic.clone(),
                    earliest: row.floor.max(directory.log_floor),
                    last: directory.retained_last(row),
                    events: row.live.events,
                    bytes: row.live.bytes,
                    retention: row.retention,
                })
                .collect()
        };
        let db = self.db()?;
        for stats in &mut list {
            let filter = Filter::new(vec![Pattern::from(stats.topic.clone())], Vec::new());
            let floor = stats.earliest;
            stats.earliest = if stats.last == 0 { 0 } else { self.first_after(&db, &filter, floor)?.unwrap_or(0) };
        }
        Ok(list)
    }
}
