//! Topics one by one: the list, and what is remembered of a topic: its retention, that it was closed; and taking all of it away.

use rocksdb::WriteBatch;

use super::directory::Row;
use super::layout::{META, SNAPSHOT, STATE, TOPIC, TopicRow, meta, state_range};
use super::state::holds_keys;
use super::{Handle, RocksStore};
use crate::event::EventId;
use crate::record::TopicNumber;
use crate::store::{Limits, StoreError, TopicStats, Trim};
use crate::topic::{Filter, Pattern, Topic};

/// A topic whose row is to be changed.
pub struct Changing {
    pub row: TopicRow,
    /// Its newest event ever that is known: what the log has trimmed before a start is not.
    pub last: EventId,
    pub log_floor: EventId,
    /// What is written with the row.
    pub batch: WriteBatch,
}

impl RocksStore {
    /// Lets `change` change what is stored of a topic, known before or not, and writes it durably. Gives what was and what is now
    /// stored; where that is the same and nothing else is to be written, nothing is.
    pub(super) fn change(
        &self,
        db: &Handle<'_>,
        topic: &Topic,
        change: impl FnOnce(&mut Changing),
    ) -> Result<(TopicRow, TopicRow), StoreError> {
        let _no_forgetting = self.naming.lock();
        let (before, last, log_floor, is_new) = {
            let directory = self.directory.read();
            let log_floor = directory.log_floor;
            match directory.number(topic.as_str()).and_then(|n| Some((n, directory.row(n)?))) {
                Some((number, row)) => (row.stored(number), row.last, log_floor, false),
                None => (TopicRow::new(directory.next_topic()), 0, log_floor, true),
            }
        };
        let mut changing = Changing { row: before, last, log_floor, batch: WriteBatch::default() };
        change(&mut changing);
        let Changing { row, mut batch, .. } = changing;
        if row == before && batch.is_empty() {
            return Ok((before, row));
        }
        batch.put_cf(db.cf(TOPIC), topic.as_str(), row.encode());
        if is_new {
            batch.put_cf(db.cf(META), meta::NEXT_TOPIC, (row.number + 1).to_be_bytes());
        }
        self.write(db, batch, true)?;
        let mut directory = self.directory.write();
        if is_new {
            directory.insert(row.number, Row::new(topic.clone()));
        }
        directory.changed(&row);
        Ok((before, row))
    }

    pub(super) fn override_retention(&self, topic: &Topic, limits: Option<Limits>) -> Result<(), StoreError> {
        let db = self.db()?;
        let (_, row) = self.change(&db, topic, |changing| changing.row.marks.retention = limits)?;
        if limits.is_none() { self.forget_some(&db, &[row.number]) } else { Ok(()) }
    }

    pub(super) fn close_for_good(&self, topic: &Topic) -> Result<EventId, StoreError> {
        let (_, row) = self.change(&self.db()?, topic, |changing| {
            changing.row.marks.closed.get_or_insert(changing.last);
        })?;
        Ok(row.marks.closed.unwrap_or_default())
    }

    pub(super) fn take_away(&self, topic: &Topic) -> Result<Option<Trim>, StoreError> {
        let db = self.db()?;
        let (before, row) = self.change(&db, topic, |Changing { row, last, log_floor, batch }| {
            if *last > row.floor.max(*log_floor) {
                row.floor = *last;
            }
            if std::mem::take(&mut row.marks.keyed) {
                let (from, to) = state_range(row.number);
                batch.delete_range_cf(db.cf(STATE), &from[..], &to[..]);
            }
            if row.marks.snapshot_at.take().is_some() {
                batch.delete_cf(db.cf(SNAPSHOT), row.number.to_be_bytes());
            }
        })?;
        // Where the log's floor has taken all of its events before, nothing may be left of it now.
        self.forget_some(&db, &[row.number])?;
        Ok((row.floor > before.floor).then(|| Trim { topic: Some(topic.clone()), upto: row.floor }))
    }

    pub(super) fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<TopicStats>, StoreError> {
        let db = self.db()?;
        let mut list: Vec<TopicStats> = Vec::new();
        let mut after = after.map(str::to_owned);
        while list.len() < limit {
            let most = limit - list.len();
            let some = self.list_some(prefix, after.as_deref(), most);
            let is_last = some.len() < most;
            after = some.last().map(|(_, stats)| stats.topic.as_str().to_owned());
            for (doubtful, stats) in some {
                match doubtful {
                    Some(number) if !holds_keys(&db, number)? => {}
                    _ => list.push(stats),
                }
            }
            if is_last {
                break;
            }
        }
        for stats in &mut list {
            let filter = Filter::new(vec![Pattern::from(stats.topic.clone())], Vec::new());
            let floor = stats.earliest;
            stats.earliest = if stats.last == 0 { 0 } else { self.first_after(&db, &filter, floor)?.unwrap_or(0) };
        }
        Ok(list)
    }

    /// The next topics that may be shown, each with its floor as `earliest`; those that are shown only where they have a key, with
    /// their number.
    fn list_some(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<(Option<TopicNumber>, TopicStats)> {
        let directory = self.directory.read();
        let shown = directory.in_order(prefix, after).filter_map(|(number, row)| {
            let sure = directory.shows_without_keys(row);
            (sure || row.marks.keyed).then_some(((!sure).then_some(number), row))
        });
        let stats = |row: &Row| TopicStats {
            topic: row.topic.clone(),
            earliest: row.floor.max(directory.log_floor),
            last: directory.retained_last(row),
            events: row.live.events,
            bytes: row.live.bytes,
            retention: row.marks.retention,
            closed: row.marks.closed.is_some(),
        };
        shown.take(limit).map(|(doubtful, row)| (doubtful, stats(row))).collect()
    }
}
