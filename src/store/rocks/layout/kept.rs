//! Rows of what is kept beside the log: what is remembered of a topic, the newest event of each key, snapshots, and the answers
//! to publishes.

use crate::event::{Digest, EventId};
use crate::record::TopicNumber;
use crate::store::{Limits, Remembered, Snapshot};

use super::{read_varint, take, varint};

/// What is remembered of a topic beside its number and its floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    pub retention: Option<Limits>,
    /// Where it was closed: its newest event ever.
    pub closed: Option<EventId>,
    /// It may have keys in the state: an event put one there since the topic was last deleted.
    pub keyed: bool,
    /// The id at which its snapshot is true.
    pub snapshot_at: Option<EventId>,
}

impl Marks {
    /// Whether there is anything to remember; that it may have keys is for the caller to look into.
    #[must_use]
    pub fn is_empty_but_for_keys(&self) -> bool {
        Self { keyed: false, ..*self } == Self::default()
    }
}

/// What the `topic` column family says of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicRow {
    pub number: TopicNumber,
    pub floor: EventId,
    pub marks: Marks,
}

const HAS_RETENTION: u8 = 1;
const TRIM_TO_SNAPSHOT: u8 = 2;
const CLOSED: u8 = 4;
const KEYED: u8 = 8;
const HAS_SNAPSHOT: u8 = 16;
const FLAGS: u8 = HAS_RETENTION | TRIM_TO_SNAPSHOT | CLOSED | KEYED | HAS_SNAPSHOT;

impl TopicRow {
    /// A topic of which nothing is remembered.
    #[must_use]
    pub fn new(number: TopicNumber) -> Self {
        Self { number, floor: 0, marks: Marks::default() }
    }

    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let Marks { retention, closed, keyed, snapshot_at } = self.marks;
        let flag = |is: bool, flag| if is { flag } else { 0 };
        let flags = flag(retention.is_some(), HAS_RETENTION)
            | flag(retention.is_some_and(|l| l.trim_to_snapshot), TRIM_TO_SNAPSHOT)
            | flag(closed.is_some(), CLOSED)
            | flag(keyed, KEYED)
            | flag(snapshot_at.is_some(), HAS_SNAPSHOT);
        let mut out = Vec::with_capacity(53);
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.floor.to_be_bytes());
        out.push(flags);
        let limits = retention.map(|l| [l.max_events, l.max_age, l.max_bytes]);
        for n in limits.into_iter().flatten().chain(closed).chain(snapshot_at) {
            out.extend_from_slice(&n.to_be_bytes());
        }
        out
    }

    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let number = u32::from_be_bytes(take(&mut bytes)?);
        let floor = u64::from_be_bytes(take(&mut bytes)?);
        let [flags] = take(&mut bytes)?;
        let has = |flag| flags & flag != 0;
        if has(!FLAGS) || has(TRIM_TO_SNAPSHOT) && !has(HAS_RETENTION) {
            return None;
        }
        let mut next = || take(&mut bytes).map(u64::from_be_bytes);
        let retention = if has(HAS_RETENTION) {
            let (max_events, max_age, max_bytes) = (next()?, next()?, next()?);
            Some(Limits { max_events, max_age, max_bytes, trim_to_snapshot: has(TRIM_TO_SNAPSHOT) })
        } else {
            None
        };
        let closed = if has(CLOSED) { Some(next()?) } else { None };
        let snapshot_at = if has(HAS_SNAPSHOT) { Some(next()?) } else { None };
        let marks = Marks { retention, closed, keyed: has(KEYED), snapshot_at };
        bytes.is_empty().then_some(Self { number, floor, marks })
    }
}

#[must_use]
pub fn state_key(topic: TopicNumber, key: &str) -> Vec<u8> {
    [&topic.to_be_bytes(), key.as_bytes()].concat()
}

/// Where a topic's keys in the `state` column family begin, and what lies behind them all: no key has a byte 0xff, being UTF-8.
#[must_use]
pub fn state_range(topic: TopicNumber) -> ([u8; 4], [u8; 5]) {
    let from = topic.to_be_bytes();
    let [a, b, c, d] = from;
    (from, [a, b, c, d, 0xff])
}

/// The topic and the key of a row of the `state` column family.
#[must_use]
pub fn state_place(key: &[u8]) -> Option<(TopicNumber, &str)> {
    let (topic, key) = key.split_first_chunk()?;
    Some((u32::from_be_bytes(*topic), std::str::from_utf8(key).ok()?))
}

/// The id and the record of a row of the `state` column family.
#[must_use]
pub fn state_event(value: &[u8]) -> Option<(EventId, &[u8])> {
    let (id, record) = value.split_first_chunk()?;
    Some((u64::from_be_bytes(*id), record))
}

#[must_use]
pub fn encode_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    let content_type = snapshot.content_type.as_bytes();
    let mut out = Vec::with_capacity(18 + content_type.len() + snapshot.body.len());
    out.extend_from_slice(&snapshot.at.to_be_bytes());
    varint(&mut out, content_type.len() as u64);
    out.extend_from_slice(content_type);
    out.extend_from_slice(snapshot.body.as_bytes());
    out
}

#[must_use]
pub fn decode_snapshot(mut bytes: &[u8]) -> Option<Snapshot> {
    let at = u64::from_be_bytes(take(&mut bytes)?);
    let len = usize::try_from(read_varint(&mut bytes)?).ok()?;
    let (content_type, body) = bytes.split_at_checked(len)?;
    let text = |bytes| std::str::from_utf8(bytes).map(str::to_owned).ok();
    Some(Snapshot { at, content_type: text(content_type)?, body: text(body)? })
}

/// The version of the rows of the `idempotency` column family.
const REMEMBERED_VERSION: u8 = 1;

/// All but the first id, which is the row's key.
#[must_use]
pub fn encode_remembered(remembered: &Remembered) -> Vec<u8> {
    let mut out = Vec::with_capacity(44);
    out.push(REMEMBERED_VERSION);
    out.extend_from_slice(&remembered.key.0);
    out.extend_from_slice(&remembered.request.0);
    out.extend_from_slice(&remembered.time.to_be_bytes());
    varint(&mut out, remembered.last - remembered.first);
    out
}

#[must_use]
pub fn decode_remembered(first: EventId, mut bytes: &[u8]) -> Option<Remembered> {
    let [version] = take(&mut bytes)?;
    let (key, request) = (Digest(take(&mut bytes)?), Digest(take(&mut bytes)?));
    let time = u64::from_be_bytes(take(&mut bytes)?);
    let last = first.checked_add(read_varint(&mut bytes)?)?;
    let whole = version == REMEMBERED_VERSION && bytes.is_empty();
    whole.then_some(Remembered { key, request, first, last, time })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn topic_rows_round_trip(
            number: u32, floor: u64, limits: Option<(u64, u64, u64, bool)>,
            closed: Option<u64>, keyed: bool, snapshot_at: Option<u64>,
        ) {
            let retention = limits.map(|(max_events, max_age, max_bytes, trim_to_snapshot)|
                Limits { max_events, max_age, max_bytes, trim_to_snapshot });
            let row = TopicRow { number, floor, marks: Marks { retention, closed, keyed, snapshot_at } };
            prop_assert_eq!(TopicRow::decode(&row.encode()), Some(row));
        }

        #[test]
        fn snapshots_round_trip(at: u64, content_type: String, body: String) {
            let snapshot = Snapshot { at, content_type, body };
            prop_assert_eq!(decode_snapshot(&encode_snapshot(&snapshot)), Some(snapshot));
        }

        #[test]
        fn what_is_remembered_round_trips(key: [u8; 16], request: [u8; 16], first in 0u64..1 << 53, more in 0u64..1 << 53, time: u64) {
            let remembered = Remembered { key: Digest(key), request: Digest(request), first, last: first + more, time };
            prop_assert_eq!(decode_remembered(first, &encode_remembered(&remembered)), Some(remembered));
        }

        #[test]
        fn keys_lie_within_the_range_of_their_topic(topic: u32, key: String, other: u32) {
            let place = state_key(topic, &key);
            prop_assert_eq!(state_place(&place), Some((topic, &*key)));
            let within = |t| { let (from, to) = state_range(t); from[..] <= place[..] && place[..] < to[..] };
            prop_assert!(within(topic));
            prop_assert_eq!(within(other), other == topic);
        }

        #[test]
        fn no_bytes_make_a_decoder_panic_and_what_it_takes_is_canonical(bytes: Vec<u8>, first: u64) {
            if let Some(row) = TopicRow::decode(&bytes) {
                prop_assert_eq!(row.encode(), &bytes[..]);
            }
            let _ = (decode_snapshot(&bytes), decode_remembered(first, &bytes), state_place(&bytes), state_event(&bytes));
        }
    }

    #[test]
    fn foreign_rows_are_refused() {
        let row = TopicRow::new(7).encode();
        for flags in [TRIM_TO_SNAPSHOT, 0x80] {
            let mut foreign = row.clone();
            foreign[12] = flags;
            assert_eq!(TopicRow::decode(&foreign), None, "{flags}");
        }
        let nil = Digest([0; 16]);
        let mut foreign = encode_remembered(&Remembered { key: nil, request: nil, first: 1, last: 1, time: 1 });
        foreign[0] = 2;
        assert_eq!(decode_remembered(1, &foreign), None);
    }
}
