//! Bytes: events as they lie in the log.
//!
//! ```text
//! record  version u8 = 1 | flags u8  | topic number u32 BE | time ms u64 BE | names | data…
//! pack    version u8 = 2 | events u8 | topic number u32 BE | time ms u64 BE | for each event: len u16 BE of the rest, flags u8 | names | data
//! names   [type: len u8, bytes] | [key: len u8, bytes], as the flags say
//! ```
//!
//! A record is one event. A *pack* is a few that were appended together and lie one behind the other, of one topic and one time: read one
//! by one, events of some hundred bytes cost more for what RocksDB does about each key than for their bytes.
//!
//! The newest id is the key, and the topic's name lies with its number, so neither is repeated here. What holds:
//! decoding what was encoded gives it back, and no other bytes are taken for a record or a pack. Must not know where they lie.

use crate::event::Millis;

/// The layout of a record above.
pub const VERSION: u8 = 1;

/// That of a pack.
pub const PACK_VERSION: u8 = 2;

/// Most events of a pack: reading one of them looks at all of them.
pub const PACK_EVENTS_MAX: usize = 64;

/// Most bytes of a pack: a quarter of a block of the log, so that what is read for one event of it is what would be read anyway, and so
/// little that is trimmed stays with what is not. Twice or four times as much would be read no quicker.
pub const PACK_BYTES_MAX: usize = 4096;

const HAS_TYPE: u8 = 1;
const HAS_KEY: u8 = 2;
const FLAGS: u8 = HAS_TYPE | HAS_KEY;

/// What lies before a record's names and data.
pub const RECORD_HEAD: usize = 14;

/// What lies before an event of a pack: its length, and its flags.
const ENTRY_HEAD: usize = 3;

/// A topic as records name it; given once, never reused.
pub type TopicNumber = u32;

/// What a log record says, borrowed from its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    pub topic: TopicNumber,
    pub time: Millis,
    pub event: Option<&'a str>,
    pub key: Option<&'a str>,
    pub data: &'a str,
}

impl<'a> Record<'a> {
    /// Appends the record's bytes to `out`.
    ///
    /// # Panics
    /// When the type or the key is longer than 255 bytes; [`crate::event`] allows 200.
    pub fn encode(&self, out: &mut Vec<u8>) {
        encode_head(out, VERSION, self.flags(), self.topic, self.time);
        self.encode_rest(out);
    }

    /// How many bytes it has encoded, alone: what it counts for wherever events' bytes are counted, in a pack too.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let names = [self.event, self.key].into_iter().flatten().map(|name| 1 + name.len());
        RECORD_HEAD + names.sum::<usize>() + self.data.len()
    }

    fn flags(&self) -> u8 {
        (if self.event.is_some() { HAS_TYPE } else { 0 }) | (if self.key.is_some() { HAS_KEY } else { 0 })
    }

    fn encode_rest(&self, out: &mut Vec<u8>) {
        for name in [self.event, self.key].into_iter().flatten() {
            out.push(u8::try_from(name.len()).expect("event types and keys are at most 200 bytes"));
            out.extend_from_slice(name.as_bytes());
        }
        out.extend_from_slice(self.data.as_bytes());
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`Malformed`] names what is wrong with the bytes.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Malformed> {
        match bytes.first() {
            Some(&PACK_VERSION) => Err(Malformed::Pack),
            _ => Records::of(bytes)?.next().ok_or(Malformed::Short)??.record(),
        }
    }
}

fn encode_head(out: &mut Vec<u8>, version: u8, second: u8, topic: TopicNumber, time: Millis) {
    out.extend_from_slice(&[version, second]);
    out.extend_from_slice(&topic.to_be_bytes());
    out.extend_from_slice(&time.to_be_bytes());
}

/// Gathers the events of a pack, in the order of their ids.
#[derive(Debug, Default)]
pub struct Packer {
    /// The pack, its count still to be written.
    pack: Vec<u8>,
    events: u8,
}

impl Packer {
    /// Takes in an event of the same topic and time as those before; `false` where there is no room for it, or it is too large for any
    /// pack, and nothing was done.
    pub fn push(&mut self, record: &Record<'_>) -> bool {
        let len = record.encoded_len() - RECORD_HEAD + ENTRY_HEAD;
        let begun = if self.events == 0 { RECORD_HEAD } else { self.pack.len() };
        if usize::from(self.events) == PACK_EVENTS_MAX || begun + len > PACK_BYTES_MAX {
            return false;
        }
        if self.events == 0 {
            self.pack.clear();
            encode_head(&mut self.pack, PACK_VERSION, 0, record.topic, record.time);
        }
        let behind = u16::try_from(len - size_of::<u16>()).expect("a pack is smaller than 64 KiB");
        self.pack.extend_from_slice(&behind.to_be_bytes());
        self.pack.push(record.flags());
        record.encode_rest(&mut self.pack);
        self.events += 1;
        true
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events == 0
    }

    /// The bytes of what it holds, which is a record where that is one event; and begins anew.
    pub fn take(&mut self) -> &[u8] {
        let events = std::mem::take(&mut self.events);
        if events == 1 {
            // The same without its length, and with its flags in place of the count.
            let flags = self.pack[RECORD_HEAD + 2];
            self.pack.drain(RECORD_HEAD..RECORD_HEAD + ENTRY_HEAD);
            self.pack[..2].copy_from_slice(&[VERSION, flags]);
        } else {
            self.pack[1] = events;
        }
        &self.pack
    }
}

/// What lies under one key of the log: the events of a record or of a pack, in the order of their ids, of which the last is the key.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    topic: TopicNumber,
    time: Millis,
    left: Left,
    rest: &'a [u8],
}

#[derive(Debug, Clone, Copy)]
enum Left {
    /// A record, with these flags.
    One(u8),
    /// So many of a pack, or none of anything.
    Packed(u8),
}

impl<'a> Records<'a> {
    /// Reads the head of a record or a pack: enough to pass over it, or to search by time.
    ///
    /// # Errors
    /// [`Malformed`] names what is wrong with the first bytes.
    pub fn of(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let Some((head, rest)) = bytes.split_first_chunk::<RECORD_HEAD>() else {
            return Err(Malformed::Short);
        };
        let left = match head[0] {
            VERSION if head[1] & !FLAGS == 0 => Left::One(head[1]),
            VERSION => return Err(Malformed::Flags(head[1])),
            PACK_VERSION if (2..=PACK_EVENTS_MAX).contains(&usize::from(head[1])) => Left::Packed(head[1]),
            PACK_VERSION => return Err(Malformed::Count(head[1])),
            other => return Err(Malformed::Version(other)),
        };
        let topic = u32::from_be_bytes([head[2], head[3], head[4], head[5]]);
        let time = u64::from_be_bytes([head[6], head[7], head[8], head[9], head[10], head[11], head[12], head[13]]);
        Ok(Self { topic, time, left, rest })
    }

    /// The topic of all of them.
    #[must_use]
    pub fn topic(&self) -> TopicNumber {
        self.topic
    }

    /// The time of all of them.
    #[must_use]
    pub fn time(&self) -> Millis {
        self.time
    }

    /// How many are still to come.
    #[must_use]
    pub fn left(&self) -> u64 {
        match self.left {
            Left::One(_) => 1,
            Left::Packed(left) => left.into(),
        }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Entry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let Self { topic, time, .. } = *self;
        match self.left {
            Left::Packed(0) => None,
            Left::One(flags) => {
                self.left = Left::Packed(0);
                Some(Ok(Entry { topic, time, flags, rest: self.rest }))
            }
            Left::Packed(left) => {
                let entry = packed(&mut self.rest).and_then(|(flags, rest)| match (left, self.rest) {
                    (1, [_, ..]) => Err(Malformed::Long),
                    _ => Ok(Entry { topic, time, flags, rest }),
                });
                // Nothing is to be found behind what cannot be read.
                self.left = Left::Packed(if entry.is_ok() { left - 1 } else { 0 });
                Some(entry)
            }
        }
    }
}

/// The flags of the first event of these, and its names and data.
fn packed<'a>(rest: &mut &'a [u8]) -> Result<(u8, &'a [u8]), Malformed> {
    let (len, after) = rest.split_first_chunk::<2>().ok_or(Malformed::Short)?;
    let (entry, after) = after.split_at_checked(u16::from_be_bytes(*len).into()).ok_or(Malformed::Short)?;
    let (&flags, names_and_data) = entry.split_first().ok_or(Malformed::Short)?;
    if flags & !FLAGS != 0 {
        return Err(Malformed::Flags(flags));
    }
    *rest = after;
    Ok((flags, names_and_data))
}

/// An event of which no more than its topic and its time was read.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    pub topic: TopicNumber,
    pub time: Millis,
    flags: u8,
    rest: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads the rest of it.
    ///
    /// # Errors
    /// [`Malformed`] names what is wrong with the bytes.
    pub fn record(self) -> Result<Record<'a>, Malformed> {
        let Self { topic, time, flags, mut rest } = self;
        let event = if flags & HAS_TYPE != 0 { Some(name(&mut rest)?) } else { None };
        let key = if flags & HAS_KEY != 0 { Some(name(&mut rest)?) } else { None };
        let data = simdutf8::basic::from_utf8(rest).map_err(|_| Malformed::NotUtf8)?;
        Ok(Record { topic, time, event, key, data })
    }

    /// As [`Record::encoded_len`].
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        RECORD_HEAD + self.rest.len()
    }
}

fn name<'a>(rest: &mut &'a [u8]) -> Result<&'a str, Malformed> {
    let (&len, after) = rest.split_first().ok_or(Malformed::Short)?;
    let (name, after) = after.split_at_checked(usize::from(len)).ok_or(Malformed::Short)?;
    *rest = after;
    std::str::from_utf8(name).map_err(|_| Malformed::NotUtf8)
}

/// Why bytes are no record and no pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("it ends too early")]
    Short,
    #[error("bytes lie behind it")]
    Long,
    #[error("its version is {0}; this program knows {VERSION} and {PACK_VERSION}")]
    Version(u8),
    #[error("it has unknown flags {0:#04x}")]
    Flags(u8),
    #[error("it is a pack, where a record alone should be")]
    Pack,
    #[error("it is a pack of {0} events; that is 2 to {PACK_EVENTS_MAX}")]
    Count(u8),
    #[error("its text is not UTF-8")]
    NotUtf8,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(bytes: &[u8]) -> Result<Vec<Record<'_>>, Malformed> {
        Records::of(bytes)?.map(|entry| entry?.record()).collect()
    }

    fn encoded(records: &[Record<'_>]) -> Vec<u8> {
        let mut packer = Packer::default();
        assert!(records.iter().all(|record| packer.push(record)), "there is no room for all of them");
        packer.take().to_vec()
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            topic: u32, time: u64,
            event in proptest::option::of("\\PC{0,50}"), key in proptest::option::of("\\PC{0,50}"), data: String,
        ) {
            let record = Record { topic, time, event: event.as_deref(), key: key.as_deref(), data: &data };
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            prop_assert_eq!(Record::decode(&bytes), Ok(record));
            prop_assert_eq!(bytes.len(), record.encoded_len());
            prop_assert_eq!(decoded(&bytes), Ok(vec![record]));
            // A pack of one is a record.
            prop_assert_eq!(encoded(&[record]), bytes);
        }

        #[test]
        fn what_was_packed_is_unpacked(
            topic: u32, time: u64,
            events in prop::collection::vec(
                (proptest::option::of("\\PC{0,9}"), proptest::option::of("\\PC{0,9}"), "\\PC{0,9}"), 2..=20,
            ),
        ) {
            let records: Vec<_> = events.iter().map(|(event, key, data)| {
                Record { topic, time, event: event.as_deref(), key: key.as_deref(), data }
            }).collect();
            let bytes = encoded(&records);
            prop_assert!(bytes.len() <= PACK_BYTES_MAX);
            let entries = Records::of(&bytes).unwrap();
            prop_assert_eq!((entries.topic(), entries.time(), entries.left()), (topic, time, records.len() as u64));
            let lens: Vec<_> = entries.map(|entry| entry.unwrap().encoded_len()).collect();
            prop_assert_eq!(lens, records.iter().map(Record::encoded_len).collect::<Vec<_>>());
            prop_assert_eq!(decoded(&bytes), Ok(records));
            // None of its beginnings, and nothing longer, passes for a pack, and no pack for a record.
            for len in 0..bytes.len() {
                prop_assert!(decoded(&bytes[..len]).is_err());
            }
            let longer = [&bytes[..], b"x"].concat();
            prop_assert_eq!(decoded(&longer), Err(Malformed::Long));
            prop_assert_eq!(Record::decode(&bytes), Err(Malformed::Pack));
        }

        #[test]
        fn no_bytes_make_it_panic_and_what_it_takes_is_canonical(version in 0..4u8, count in 0..6u8, mut bytes: Vec<u8>) {
            let head: Vec<u8> = [version, count].into_iter().chain(*b"topictime123").collect();
            bytes.splice(0..0, head);
            if let Ok(records) = decoded(&bytes) {
                prop_assert_eq!(encoded(&records), bytes);
            }
        }
    }

    #[test]
    fn a_pack_is_full_at_its_bounds_and_begins_anew_when_it_is_taken() {
        let of = |data| Record { topic: 1, time: 2, event: None, key: None, data };
        let mut packer = Packer::default();
        let pushed = std::iter::repeat_with(|| packer.push(&of("x"))).take_while(|&pushed| pushed).count();
        assert_eq!(pushed, PACK_EVENTS_MAX);
        assert_eq!(decoded(packer.take()).unwrap().len(), PACK_EVENTS_MAX);
        assert!(packer.is_empty());

        let (fits, large) =
            ("x".repeat(PACK_BYTES_MAX - RECORD_HEAD - ENTRY_HEAD), "x".repeat(PACK_BYTES_MAX - RECORD_HEAD - 2));
        assert!(!packer.push(&of(&large)) && packer.is_empty());
        assert!(packer.push(&of(&fits)) && !packer.push(&of("")));
        assert_eq!(decoded(packer.take()), Ok(vec![of(&fits)]));
    }

    #[test]
    fn short_and_foreign_bytes_are_refused() {
        assert_eq!(Record::decode(b""), Err(Malformed::Short));
        let mut bytes = Vec::new();
        let record = Record { topic: 1, time: 2, event: Some("created"), key: None, data: "" };
        record.encode(&mut bytes);
        assert_eq!(Record::decode(&bytes[..18]), Err(Malformed::Short));
        bytes[0] = 9;
        assert_eq!(Record::decode(&bytes), Err(Malformed::Version(9)));
        bytes[0] = VERSION;
        bytes[1] = 0x80;
        assert_eq!(Record::decode(&bytes), Err(Malformed::Flags(0x80)));

        let pack = encoded(&[record, record]);
        let with = |at: usize, byte: u8| {
            let mut bytes = pack.clone();
            bytes[at] = byte;
            decoded(&bytes).map(|records| records.len())
        };
        assert_eq!(with(1, 0), Err(Malformed::Count(0)));
        assert_eq!(with(1, 1), Err(Malformed::Count(1)));
        assert_eq!(with(1, 65), Err(Malformed::Count(65)));
        assert_eq!(with(1, 3), Err(Malformed::Short));
        assert_eq!(with(RECORD_HEAD + 1, 0), Err(Malformed::Short));
        assert_eq!(with(RECORD_HEAD + 2, 4), Err(Malformed::Flags(4)));
    }
}
