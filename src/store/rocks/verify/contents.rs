//! What the files hold, every row of it: against the log, and the log against what is said of it.
//!
//! The database is opened for reading only: that writes no byte, not even RocksDB's text log. The rows are gone through in order, family by
//! family; the log once, segment by segment (`log`), and with it what the index says of each segment. What retention does lazily is
//! allowed: rows of what lies below a floor may be there still, or be gone.

mod kept;
mod log;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DEFAULT_COLUMN_FAMILY_NAME, ReadOptions,
};

use super::super::layout::{
    FAMILIES, FORMATS, IDS_NEEDED, META, Marks, SEGMENT, SegmentNumber, Summary, TOPIC, TopicRow, last_id, meta,
    read_pair,
};
use super::Counted;
use crate::event::{EVENT_ID_MAX, EventId, Millis};
use crate::record::TopicNumber;
use crate::store::mark::{self, Mark};
use crate::topic::Topic;

/// Blocks are read once; few are worth keeping.
const CACHE_BYTES: usize = 8 << 20;

/// Files that are open at once, each with its index in memory.
const OPEN_FILES: i32 = 256;

/// What is said of a topic.
struct Known {
    name: Topic,
    floor: EventId,
    marks: Marks,
}

/// What holds for all rows.
#[derive(Default)]
struct Log {
    tail: EventId,
    last_time: Millis,
    floor: EventId,
    hole: (EventId, EventId),
    needs_ids: bool,
    next_topic: TopicNumber,
    topics: HashMap<TopicNumber, Known>,
    /// The highest floor of any topic.
    highest: EventId,
    /// The sealed segments, each with how many of its postings the log has asked for and found.
    sealed: BTreeMap<SegmentNumber, u64>,
}

impl Log {
    /// The largest id that was ever given or skipped.
    fn end(&self) -> EventId {
        self.tail.max(self.hole.1)
    }

    /// Up to where events of a topic are trimmed; everything, of one that is forgotten.
    fn floor_of(&self, topic: TopicNumber) -> EventId {
        self.topics.get(&topic).map_or(EventId::MAX, |known| known.floor.max(self.floor))
    }
}

/// Is given a row, its key and its value, and whom to tell.
type Each<'a> = dyn FnMut(&[u8], &[u8], &mut Counted<'_>) + 'a;

/// A key and its value.
type Row = (Box<[u8]>, Box<[u8]>);

/// The database, open for reading.
struct Rows {
    db: DB,
}

impl Rows {
    fn open(dir: &Path) -> Result<Self, rocksdb::Error> {
        let mut options = rocksdb::Options::default();
        options.set_max_open_files(OPEN_FILES);
        options.set_track_and_verify_wals_in_manifest(true);
        let cache = Cache::new_lru_cache(CACHE_BYTES);
        let family = |name: &str| {
            let mut table = BlockBasedOptions::default();
            table.set_block_cache(&cache);
            let mut cf = rocksdb::Options::default();
            cf.set_block_based_table_factory(&table);
            ColumnFamilyDescriptor::new(name, cf)
        };
        let families = FAMILIES.iter().copied().chain([DEFAULT_COLUMN_FAMILY_NAME]).map(family);
        Ok(Self { db: DB::open_cf_descriptors_read_only(&options, dir, families, false)? })
    }

    fn cf(&self, name: &str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("all families were named when it was opened")
    }

    fn get(&self, family: &str, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, rocksdb::Error> {
        self.db.get_cf(self.cf(family), key)
    }

    /// The first row of a family at `key` or behind it.
    fn at_or_after(&self, family: &str, key: impl AsRef<[u8]>) -> Result<Option<Row>, rocksdb::Error> {
        let mut rows = self.db.raw_iterator_cf(self.cf(family));
        rows.seek(key);
        let found = rows.item().map(|(key, value)| (key.into(), value.into()));
        rows.status().map(|()| found)
    }

    /// About how many rows a family has.
    fn estimate(&self, family: &str) -> u64 {
        let name = rocksdb::properties::ESTIMATE_NUM_KEYS;
        self.db.property_int_value_cf(self.cf(family), name).ok().flatten().unwrap_or(0)
    }

    /// Calls `each` with every row of a family in order. What cannot be read ends it, and is told.
    fn all(&self, family: &'static str, to: &mut Counted<'_>, each: &mut Each<'_>) {
        to.watch.begin(family, self.estimate(family));
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let mut rows = self.db.raw_iterator_cf_opt(self.cf(family), options);
        rows.seek_to_first();
        while let Some((key, value)) = rows.item() {
            each(key, value, to);
            to.watch.advance(1);
            rows.next();
        }
        if let Err(error) = rows.status() {
            to.damage(family, format!("it cannot be read any further: {error}"));
        }
    }
}

/// Looks at all rows of the log in `dir`.
pub fn check(dir: &Path, to: &mut Counted<'_>) {
    let rows = match Rows::open(&dir.join("db")) {
        Ok(rows) => rows,
        Err(error) => return to.damage("db", format!("it cannot be opened: {error}")),
    };
    let mut log = Log::default();
    check_meta(&rows, &mut log, to);
    let is_gone = || dir.join(mark::NAME).try_exists().is_ok_and(|exists| !exists);
    if log.needs_ids && is_gone() && !Mark::is_given_up(dir).unwrap_or(false) {
        to.damage(mark::NAME, Mark::missing(dir).to_string());
    }
    check_topics(&rows, &mut log, to);
    check_segments(&rows, &mut log, to);
    log::check(&rows, &mut log, to);
    kept::check(&rows, &log, to);
    rows.all(DEFAULT_COLUMN_FAMILY_NAME, to, &mut |_, _, to| {
        to.damage("default", "a row is in a family that should be empty");
    });
    to.summary.topics = log.topics.len() as u64;
}

fn check_meta(rows: &Rows, log: &mut Log, to: &mut Counted<'_>) {
    let (mut has_format, mut has_name) = (false, false);
    rows.all(META, to, &mut |key, value, to| {
        let u64_of = |value: &[u8]| value.try_into().ok().map(u64::from_be_bytes);
        let u32_of = |value: &[u8]| value.try_into().ok().map(u32::from_be_bytes);
        let is_good = match key {
            meta::FORMAT => {
                has_format = true;
                u32_of(value).is_some_and(|format| FORMATS.contains(&format))
            }
            meta::NAME => {
                has_name = true;
                value.len() == 16 && value.iter().all(u8::is_ascii_alphanumeric)
            }
            meta::TAIL => read_pair(value).map(|tail| (log.tail, log.last_time) = tail).is_some(),
            meta::FLOOR => u64_of(value).map(|floor| log.floor = floor).is_some(),
            meta::HOLE => {
                read_pair(value).map(|hole| log.hole = hole).is_some() && 0 < log.hole.0 && log.hole.0 <= log.hole.1
            }
            meta::IDS => {
                log.needs_ids = true;
                value == IDS_NEEDED
            }
            meta::NEXT_TOPIC => u32_of(value).map(|next| log.next_topic = next).is_some(),
            _ => false,
        };
        if !is_good {
            to.damage("meta", format!("what it says of {:?} cannot be", String::from_utf8_lossy(key)));
        }
    });
    if !has_format || !has_name {
        to.damage("meta", "the format or the name of the log is missing");
    }
    if log.end() > EVENT_ID_MAX || log.hole.1 > log.tail && log.hole.0 <= log.tail {
        to.damage("meta", format!("the tail {} and the hole {:?} cannot both be", log.tail, log.hole));
    }
    if log.floor > log.end() {
        to.damage("meta", format!("the log is trimmed up to {}, but ends at {}", log.floor, log.end()));
    }
}

fn check_topics(rows: &Rows, log: &mut Log, to: &mut Counted<'_>) {
    let (end, next) = (log.end(), log.next_topic);
    rows.all(TOPIC, to, &mut |key, value, to| {
        let name = std::str::from_utf8(key).ok().and_then(|name| Topic::parse(name).ok());
        let (Some(name), Some(row)) = (name, TopicRow::decode(value)) else {
            return to.damage(format!("topic {}", String::from_utf8_lossy(key)), "its row cannot be read");
        };
        let place = format!("topic {}", name.as_str());
        let TopicRow { number, floor, marks } = row;
        for (what, id) in [
            ("is trimmed up to", Some(floor)),
            ("was closed at", marks.closed),
            ("has a snapshot of", marks.snapshot_at),
        ] {
            if let Some(id) = id.filter(|&id| id > end) {
                to.damage(&place, format!("it {what} {id}, but the log ends at {end}"));
            }
        }
        if number >= next {
            to.damage(&place, format!("it has number {number}, which was never given"));
        }
        log.highest = log.highest.max(floor);
        if let Some(other) = log.topics.insert(number, Known { name, floor, marks }) {
            to.damage(place, format!("it has number {number}, as {} has", other.name.as_str()));
        }
    });
}

fn check_segments(rows: &Rows, log: &mut Log, to: &mut Counted<'_>) {
    let end = log.end();
    rows.all(SEGMENT, to, &mut |key, value, to| {
        let Some(segment) = key.try_into().ok().map(u32::from_be_bytes) else {
            return to.damage("segment", "a row has no segment");
        };
        let place = format!("segment {segment}");
        let Some(summary) = Summary::decode(value) else { return to.damage(place, "its row cannot be read") };
        log.sealed.insert(segment, 0);
        if last_id(segment) > end {
            to.damage(&place, format!("it is sealed, but the log ends at {end}"));
        }
        if summary.first_time > summary.last_time {
            to.damage(&place, "it ends before it begins");
        }
        if let Some(share) = summary.shares.iter().find(|share| share.topic >= log.next_topic) {
            to.damage(place, format!("it has events of topic number {}, which was never given", share.topic));
        }
    });
}
