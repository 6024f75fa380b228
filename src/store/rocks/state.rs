//! The state: the newest event of each topic and key, read at one moment.
//!
//! What holds: what is read and the id that it is said to be true at come from one snapshot of the database, so whatever is committed
//! meanwhile, the state is what the log up to that id makes it. It costs what its keys cost, and reads nothing of the log. A name
//! comes from the directory or, where that has moved on, from the same snapshot. Must not write.

use std::collections::HashMap;
use std::ops::ControlFlow;

use rocksdb::ReadOptions;

use super::index::read_failed;
use super::layout::{META, STATE, TOPIC, TopicRow, meta, read_pair, state_event, state_place, state_range};
use super::open::corrupt;
use super::resolve::NUMBERS_PER_LOOK;
use super::{Handle, RocksStore};
use crate::event::{EventId, EventRef};
use crate::record::{Record, TopicNumber};
use crate::store::StoreError;
use crate::topic::{Filter, Pattern, Topic};

type Each<'a> = dyn FnMut(&EventRef<'_>) -> ControlFlow<()> + 'a;

/// The database as it was at some moment.
struct Moment<'a> {
    db: &'a Handle<'a>,
    snapshot: rocksdb::Snapshot<'a>,
    /// The newest id that was appended or skipped then.
    tail: EventId,
    /// [`super::directory::Directory::losses`] then: as long as it is the same, every topic that had keys is known, and known as one
    /// that has.
    losses: u64,
}

impl<'a> Moment<'a> {
    fn now(store: &RocksStore, db: &'a Handle<'a>) -> Result<Self, StoreError> {
        let (snapshot, losses) = {
            // Held while a batch is written and taken into the directory: so the directory knows every topic of the snapshot.
            let _nothing_is_committed = store.naming.lock();
            // It shows nothing that could be lost again: RocksDB makes a batch visible after its write-ahead log was synced
            // (`DBImpl::WriteImpl`: `WriteGroupToWAL`, which syncs, then `InsertInto` the memtable, then `SetLastSequence`, and
            // only where the former succeeded). That is so without pipelined, unordered or two-queue writes, none of which is set.
            (db.snapshot(), store.directory.read().losses)
        };
        let pair = |key: &[u8]| match snapshot.get_pinned_cf(db.cf(META), key).map_err(|e| read_failed(&e))? {
            Some(value) => read_pair(&value).ok_or_else(|| corrupt(&"its tail cannot be read")),
            None => Ok((0, 0)),
        };
        let tail = pair(meta::TAIL)?.0.max(pair(meta::HOLE)?.1);
        Ok(Self { db, snapshot, tail, losses })
    }

    /// Calls `each` with the rows from `from` up to before `to`, those of a type that `filter` wants.
    fn rows(
        &self,
        filter: &Filter,
        (from, to): (&[u8], Option<&[u8]>),
        mut name: impl FnMut(TopicNumber) -> Result<Topic, StoreError>,
        each: &mut Each<'_>,
    ) -> Result<ControlFlow<()>, StoreError> {
        let mut options = ReadOptions::default();
        if let Some(to) = to {
            options.set_iterate_upper_bound(to);
        }
        let mut known: Option<(TopicNumber, Topic)> = None;
        let mut rows = self.snapshot.raw_iterator_cf_opt(self.db.cf(STATE), options);
        rows.seek(from);
        while let Some((place, value)) = rows.item() {
            let (number, key) = state_place(place).ok_or_else(|| corrupt(&"a row of the state has no topic"))?;
            let unreadable = |e: &dyn std::fmt::Display| {
                corrupt(&format!("key {key:?} of topic number {number} cannot be read: {e}"))
            };
            let (id, record) = state_event(value).ok_or_else(|| unreadable(&"it ends too early"))?;
            let Record { topic, time, event, key: named, data } = Record::decode(record).map_err(|e| unreadable(&e))?;
            if topic != number || named != Some(key) || id > self.tail {
                return Err(unreadable(&"another event lies there"));
            }
            if filter.matches_type(event) {
                let topic = match &mut known {
                    Some((of, topic)) if *of == number => topic,
                    known => &mut known.insert((number, name(number)?)).1,
                };
                if each(&EventRef { id, topic: topic.as_str(), event, key: named, time, data }).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            rows.next();
        }
        rows.status().map_err(|e| read_failed(&e))?;
        Ok(ControlFlow::Continue(()))
    }

    /// The topics of `filter` that had keys, out of the rows that they had.
    fn keyed_topics(&self, filter: &Filter) -> Result<Vec<(TopicNumber, Topic)>, StoreError> {
        let mut keyed = Vec::new();
        let mut rows = self.snapshot.raw_iterator_cf(self.db.cf(TOPIC));
        rows.seek_to_first();
        while let Some((name, value)) = rows.item() {
            let (topic, row) = topic_row(name, value)?;
            if row.marks.keyed && filter.matches_topic(topic.as_str()) {
                keyed.push((row.number, topic));
            }
            rows.next();
        }
        rows.status().map_err(|e| read_failed(&e))?;
        Ok(keyed)
    }

    /// The same for a filter without wildcards.
    fn keyed_among(&self, filter: &Filter) -> Result<Vec<(TopicNumber, Topic)>, StoreError> {
        let mut keyed = Vec::new();
        for name in filter.patterns().iter().map(Pattern::as_str) {
            let value = self.snapshot.get_pinned_cf(self.db.cf(TOPIC), name).map_err(|e| read_failed(&e))?;
            if let Some(value) = value {
                let (topic, row) = topic_row(name.as_bytes(), &value)?;
                keyed.extend(row.marks.keyed.then_some((row.number, topic)));
            }
        }
        Ok(keyed)
    }
}

fn topic_row(name: &[u8], value: &[u8]) -> Result<(Topic, TopicRow), StoreError> {
    let topic = std::str::from_utf8(name).ok().and_then(|name| Topic::parse(name).ok());
    match (topic, TopicRow::decode(value)) {
        (Some(topic), Some(row)) => Ok((topic, row)),
        _ => Err(corrupt(&format!("the row of topic {:?} cannot be read", String::from_utf8_lossy(name)))),
    }
}

impl RocksStore {
    pub(super) fn read_state(&self, filter: &Filter, each: &mut Each<'_>) -> Result<EventId, StoreError> {
        let db = self.durable_db()?;
        let moment = Moment::now(self, &db)?;
        self.read_state_at(&moment, filter, each)?;
        Ok(moment.tail)
    }

    fn read_state_at(&self, moment: &Moment<'_>, filter: &Filter, each: &mut Each<'_>) -> Result<(), StoreError> {
        if filter.is_every_topic() {
            let mut earlier = None;
            let name = |number| self.name_then(moment, number, &mut earlier);
            let _all_or_enough = moment.rows(filter, (&[], None), name, each)?;
            return Ok(());
        }
        for (number, topic) in self.keyed_then(moment, filter)? {
            let (from, to) = state_range(number);
            if moment.rows(filter, (&from, Some(&to)), |_| Ok(topic.clone()), each)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The topics of `filter` that had keys at that moment; some may have had none.
    fn keyed_then(&self, moment: &Moment<'_>, filter: &Filter) -> Result<Vec<(TopicNumber, Topic)>, StoreError> {
        if filter.is_literal() {
            return moment.keyed_among(filter);
        }
        let super::resolve::Topics::These(topics) = self.topics_of(filter) else { return moment.keyed_topics(filter) };
        let mut keyed = Vec::new();
        for some in topics.chunks(NUMBERS_PER_LOOK) {
            let directory = self.directory.read();
            let rows = some.iter().filter_map(|&number| Some((number, directory.row(number)?)));
            keyed.extend(rows.filter(|(_, row)| row.marks.keyed).map(|(number, row)| (number, row.topic.clone())));
        }
        // Looked at last: had one been lost before it was come to, it shows here.
        if self.directory.read().losses == moment.losses { Ok(keyed) } else { moment.keyed_topics(filter) }
    }

    /// The name that a topic had at that moment: it may be forgotten by now. `earlier` is filled in when it is needed.
    fn name_then(
        &self,
        moment: &Moment<'_>,
        number: TopicNumber,
        earlier: &mut Option<HashMap<TopicNumber, Topic>>,
    ) -> Result<Topic, StoreError> {
        if let Some(row) = self.directory.read().row(number) {
            return Ok(row.topic.clone());
        }
        let earlier = match earlier {
            Some(earlier) => earlier,
            None => earlier.insert(moment.keyed_topics(&Filter::all())?.into_iter().collect()),
        };
        let unknown = || corrupt(&format!("a key belongs to topic number {number}, which is not known"));
        earlier.get(&number).cloned().ok_or_else(unknown)
    }
}

/// Whether a topic has a key in the state as it is now.
pub fn holds_keys(db: &Handle<'_>, number: TopicNumber) -> Result<bool, StoreError> {
    let (from, to) = state_range(number);
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(to);
    let mut rows = db.raw_iterator_cf_opt(db.cf(STATE), options);
    rows.seek(from);
    rows.status().map_err(|e| read_failed(&e))?;
    Ok(rows.valid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Key};
    use crate::store::rocks::Options;
    use crate::store::{Store, Trim};

    /// What it reads at a moment stays what it was, whatever topics lose their keys, their events, their numbers since.
    #[test]
    fn a_moment_has_the_topics_that_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStore::open(Options::new(dir.path())).unwrap();
        let put = |id: EventId, name: &str, key: &str| {
            let (topic, key) = (Topic::parse(name).unwrap(), Key::parse(key).ok());
            store.append(&[Event { id, topic, event: None, key, time: id, data: "x".into() }]).unwrap();
        };
        let names = ["a.keeps", "a.loses", "a.goes", "b.loses", "a.never"];
        for (name, id) in names.into_iter().zip(1..) {
            put(id, name, if name == "a.never" { "" } else { "k" });
        }
        let filters = [vec![], vec!["a.*"], vec!["a.goes"], vec!["a.loses", "*.keeps"], vec!["b.loses", "a.goes"]]
            .map(|patterns| Filter::new(patterns.iter().map(|p| Pattern::parse(p).unwrap()).collect(), Vec::new()));
        let db = store.db().unwrap();
        let moment = Moment::now(&store, &db).unwrap();
        let read = |moment: &Moment<'_>, filter: &Filter| {
            let mut found = Vec::new();
            store
                .read_state_at(moment, filter, &mut |event| {
                    found.push((event.topic.to_owned(), event.id));
                    ControlFlow::Continue(())
                })
                .unwrap();
            found.sort();
            found
        };
        let before = filters.each_ref().map(|filter| read(&moment, filter));
        assert_eq!(before.each_ref().map(Vec::len), [4, 3, 1, 2, 2]);

        for name in ["a.loses", "b.loses", "a.goes"] {
            store.delete_topic(&Topic::parse(name).unwrap()).unwrap();
        }
        put(1 << 16, "a.new", "k");
        let end = 1 << 16;
        store.raise_floors(&[Trim { topic: None, upto: end - 1 }]).unwrap();
        store.floors_published();
        store.tidy().unwrap();
        assert!(!store.has_topic("a.goes") && !store.has_topic("a.never") && store.has_topic("a.keeps"));
        assert_eq!(filters.each_ref().map(|filter| read(&moment, filter)), before);
        assert_eq!(moment.tail, 5);

        let now = Moment::now(&store, &db).unwrap();
        let expected = [("a.keeps".to_owned(), 1), ("a.new".to_owned(), end)];
        assert_eq!(read(&now, &filters[0]), expected);
        assert_eq!(read(&now, &filters[1]), expected);
        assert_eq!(now.tail, end);
    }
}
