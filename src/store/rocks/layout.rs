//! The column families, and every key and value in them, but for the log's records ([`crate::record`]).
//!
//! | column family | key | value |
//! | --- | --- | --- |
//! | `log` | id u64 BE | a record; or a pack of some, of which it is the last |
//! | `state` | topic number u32 BE, the event's key | id u64, its record, never a pack: the newest of each topic and key |
//! | `topic` | name | number u32, floor u64, flags u8, \[max_events u64, max_age u64, max_bytes u64\], \[closed at u64\], \[snapshot at u64\] |
//! | `snapshot` | topic number u32 BE | the id at which it is true u64, length of the content type as varint, content type, body |
//! | `idempotency` | first id u64 BE | version u8 = 1, key's digest \[u8; 16\], request's digest \[u8; 16\], time u64, last − first id as varint |
//! | `postings` | topic number u32 BE, segment u32 BE | for each event its offset in the segment (the first, then deltas) and its bytes, as varints |
//! | `segment` | segment u32 BE | first time u64, last time u64, then per topic by number: number delta, events, bytes, last offset, as varints |
//! | `meta` | name | see [`meta`] |
//!
//! Integers in values are big endian unless they are varints (LEB128).

mod kept;

use crate::event::{EventId, Millis};
use crate::record::TopicNumber;

pub use self::kept::{
    Marks, TopicRow, decode_remembered, decode_snapshot, encode_remembered, encode_snapshot, state_event, state_key,
    state_place, state_range,
};

pub const LOG: &str = "log";
pub const STATE: &str = "state";
pub const TOPIC: &str = "topic";
pub const SNAPSHOT: &str = "snapshot";
pub const IDEMPOTENCY: &str = "idempotency";
pub const POSTINGS: &str = "postings";
pub const SEGMENT: &str = "segment";
pub const META: &str = "meta";

/// All of them.
pub const FAMILIES: [&str; 8] = [LOG, STATE, TOPIC, SNAPSHOT, IDEMPOTENCY, POSTINGS, SEGMENT, META];

/// The keys of the `meta` column family.
pub mod meta {
    /// u32: the version of this layout.
    pub const FORMAT: &[u8] = b"format";
    /// The random name of the log, text.
    pub const NAME: &[u8] = b"name";
    /// tail u64, time of the newest event u64: written with every batch.
    pub const TAIL: &[u8] = b"tail";
    /// u64: every id up to it was trimmed.
    pub const FLOOR: &[u8] = b"floor";
    /// lo u64, hi u64 of the newest hole: ids lo..=hi were skipped.
    pub const HOLE: &[u8] = b"hole";
    /// u32: one more than the largest topic number ever given.
    pub const NEXT_TOPIC: &[u8] = b"next_topic";
    /// 1: ids may have been given that the log does not hold, so the file `ids` is needed. Written when the file first is there, and taken
    /// away by a clean stop, and by a start with durability `sync`.
    pub const IDS: &[u8] = b"ids";
}

/// What [`meta::IDS`] holds.
pub const IDS_NEEDED: [u8; 1] = [1];

/// The version of the layout that this program writes.
pub const FORMAT_VERSION: u32 = 3;

/// Those that it reads. Of version 2 nothing has changed but that it had no packs.
pub const FORMATS: std::ops::RangeInclusive<u32> = 2..=FORMAT_VERSION;

/// A segment is a run of 65,536 ids: what the indexes are sealed by.
pub type SegmentNumber = u32;

/// An id's place in its segment.
pub type Offset = u16;

const SEGMENT_BITS: u32 = 16;

/// The segment that `id` lies in.
#[must_use]
pub fn segment_of(id: EventId) -> SegmentNumber {
    // Ids have 53 bits, so 37 would be left; 32 of them last for 2.8 · 10^14 events.
    u32::try_from(id >> SEGMENT_BITS).expect("the log has fewer than 2^48 events")
}

/// The smallest id of `segment`.
#[must_use]
pub fn first_id(segment: SegmentNumber) -> EventId {
    u64::from(segment) << SEGMENT_BITS
}

/// The largest id of `segment`.
#[must_use]
pub fn last_id(segment: SegmentNumber) -> EventId {
    first_id(segment) | u64::from(Offset::MAX)
}

/// Where `id` lies in its segment.
#[must_use]
pub fn offset_of(id: EventId) -> Offset {
    Offset::try_from(id & u64::from(Offset::MAX)).expect("it was masked to 16 bits")
}

/// The key of the `log` and the `idempotency` column family.
#[must_use]
pub fn log_key(id: EventId) -> [u8; 8] {
    id.to_be_bytes()
}

/// The id that a key of the `log` or the `idempotency` column family stands for.
#[must_use]
pub fn log_id(key: &[u8]) -> Option<EventId> {
    key.try_into().ok().map(u64::from_be_bytes)
}

#[must_use]
pub fn postings_key(topic: TopicNumber, segment: SegmentNumber) -> [u8; 8] {
    (u64::from(topic) << 32 | u64::from(segment)).to_be_bytes()
}

/// The topic and the segment of a key of the `postings` column family.
#[must_use]
pub fn postings_place(key: &[u8]) -> Option<(TopicNumber, SegmentNumber)> {
    let both = u64::from_be_bytes(key.try_into().ok()?);
    Some((u32::try_from(both >> 32).ok()?, u32::try_from(both & u64::from(u32::MAX)).ok()?))
}

/// Two big-endian integers: the value of [`meta::TAIL`] and [`meta::HOLE`].
#[must_use]
pub fn pair(a: u64, b: u64) -> [u8; 16] {
    (u128::from(a) << 64 | u128::from(b)).to_be_bytes()
}

#[must_use]
pub fn read_pair(mut bytes: &[u8]) -> Option<(u64, u64)> {
    let pair = (u64::from_be_bytes(take(&mut bytes)?), u64::from_be_bytes(take(&mut bytes)?));
    bytes.is_empty().then_some(pair)
}

/// One event of a topic in a segment: where it lies, and how many bytes it has. With the bytes here, counting what a trim takes
/// reads no records.
pub type Posting = (Offset, u32);

/// Ascending offsets as varints, the first, then what each is beyond the one before; each followed by the bytes.
#[must_use]
pub fn encode_postings(postings: impl ExactSizeIterator<Item = Posting>) -> Vec<u8> {
    let mut out = Vec::with_capacity(postings.len() * 3 + 2);
    let mut before = 0;
    for (offset, bytes) in postings {
        varint(&mut out, u64::from(offset - before));
        varint(&mut out, u64::from(bytes));
        before = offset;
    }
    out
}

#[must_use]
pub fn decode_postings(mut bytes: &[u8]) -> Option<Vec<Posting>> {
    let mut out = Vec::with_capacity(bytes.len() / 2);
    let mut at: u64 = 0;
    while !bytes.is_empty() {
        let delta = read_varint(&mut bytes)?;
        if delta == 0 && !out.is_empty() {
            return None;
        }
        at = at.checked_add(delta)?;
        out.push((Offset::try_from(at).ok()?, u32::try_from(read_varint(&mut bytes)?).ok()?));
    }
    Some(out)
}

/// What a sealed segment holds of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    pub topic: TopicNumber,
    pub events: u32,
    pub bytes: u64,
    /// Where its newest event lies.
    pub last: Offset,
}

/// What the `segment` column family says of a sealed segment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    pub first_time: Millis,
    pub last_time: Millis,
    /// Ascending by topic number.
    pub shares: Vec<Share>,
}

impl Summary {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.shares.len() * 8);
        out.extend_from_slice(&pair(self.first_time, self.last_time));
        let mut before = 0;
        for share in &self.shares {
            varint(&mut out, u64::from(share.topic - before));
            varint(&mut out, u64::from(share.events));
            varint(&mut out, share.bytes);
            varint(&mut out, u64::from(share.last));
            before = share.topic;
        }
        out
    }

    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let (first_time, last_time) = read_pair(bytes.get(..16)?)?;
        bytes = &bytes[16..];
        let mut shares = Vec::with_capacity(bytes.len() / 5);
        let (mut topic, mut all_bytes) = (0u64, 0u64);
        while !bytes.is_empty() {
            let delta = read_varint(&mut bytes)?;
            if delta == 0 && !shares.is_empty() {
                return None;
            }
            topic = topic.checked_add(delta)?;
            let share = Share {
                topic: TopicNumber::try_from(topic).ok()?,
                events: u32::try_from(read_varint(&mut bytes)?).ok()?,
                bytes: read_varint(&mut bytes)?,
                last: Offset::try_from(read_varint(&mut bytes)?).ok()?,
            };
            // They are summed up, so a sum that is no number is no summary.
            all_bytes = all_bytes.checked_add(share.bytes)?;
            shares.push(share);
        }
        Some(Self { first_time, last_time, shares })
    }

    /// Bytes of all topics.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shares.iter().map(|s| s.bytes).sum()
    }

    /// Events of all topics.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.shares.iter().map(|s| u64::from(s.events)).sum()
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

/// Appends `n` as LEB128.
pub fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(u8::try_from(n & 0x7f).expect("it was masked to 7 bits") | 0x80);
        n >>= 7;
    }
    out.push(u8::try_from(n).expect("it is less than 128"));
}

/// The LEB128 integer that `bytes` begin with, which it is taken from.
pub fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let low = u64::from(byte & 0x7f);
        if shift == 63 && low > 1 {
            return None;
        }
        n |= low << shift;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_round_trip(n: u64) {
            let mut out = Vec::new();
            varint(&mut out, n);
            let mut rest = &out[..];
            prop_assert_eq!(read_varint(&mut rest), Some(n));
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn postings_round_trip(postings in btree_map(any::<u16>(), any::<u32>(), 0..300)) {
            let postings: Vec<_> = postings.into_iter().collect();
            prop_assert_eq!(decode_postings(&encode_postings(postings.iter().copied())), Some(postings));
        }

        #[test]
        fn summaries_round_trip(
            first_time: u64, last_time: u64,
            shares in btree_map(any::<u32>(), (any::<u32>(), 0..u64::MAX / 50, any::<u16>()), 0..50),
        ) {
            let shares = shares.into_iter().map(|(topic, (events, bytes, last))| Share { topic, events, bytes, last }).collect();
            let summary = Summary { first_time, last_time, shares };
            prop_assert_eq!(Summary::decode(&summary.encode()), Some(summary));
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(bytes: Vec<u8>) {
            let _ = (decode_postings(&bytes), Summary::decode(&bytes), read_pair(&bytes));
        }

        #[test]
        fn an_id_is_its_segment_and_its_offset(id in 0u64..1 << 48) {
            let segment = segment_of(id);
            prop_assert_eq!(first_id(segment) + u64::from(offset_of(id)), id);
            prop_assert!(first_id(segment) <= id && id <= last_id(segment));
        }
    }

    #[test]
    fn a_summary_whose_bytes_cannot_be_summed_up_is_none() {
        let share = |topic, bytes| Share { topic, events: 1, bytes, last: 0 };
        let summary = |more| Summary { shares: vec![share(1, u64::MAX - 7), share(2, more)], ..Summary::default() };
        assert_eq!(Summary::decode(&summary(7).encode()).map(|s| s.bytes()), Some(u64::MAX));
        assert_eq!(Summary::decode(&summary(8).encode()), None);
    }

    #[test]
    fn postings_sort_by_topic_then_segment() {
        assert!(postings_key(1, u32::MAX) < postings_key(2, 0));
        assert_eq!(postings_place(&postings_key(7, 9)), Some((7, 9)));
    }
}
