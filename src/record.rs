//! Bytes: an event as it lies in the log.
//!
//! ```text
//! version u8 = 1 | flags u8 | topic number u32 BE | time ms u64 BE | [type: len u8, bytes] | [key: len u8, bytes] | data…
//! ```
//!
//! The id is the record's key, and the topic's name lies with its number, so neither is repeated here. What holds:
//! decoding what was encoded gives it back, and no other bytes are taken for a record. Must not know where they lie.

use crate::event::Millis;

/// The layout above.
pub const VERSION: u8 = 1;

const HAS_TYPE: u8 = 1;
const HAS_KEY: u8 = 2;
const FLAGS: u8 = HAS_TYPE | HAS_KEY;
const HEAD: usize = 14;

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
        let flags = if self.event.is_some() { HAS_TYPE } else { 0 } | if self.key.is_some() { HAS_KEY } else { 0 };
        out.push(VERSION);
        out.push(flags);
        out.extend_from_slice(&self.topic.to_be_bytes());
        out.extend_from_slice(&self.time.to_be_bytes());
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
        Self::behind(Self::head(bytes)?, bytes)
    }

    /// Reads the rest of a record of which [`Record::head`] is known; it has been read from the same bytes.
    ///
    /// # Errors
    /// [`Malformed`] names what is wrong with the bytes.
    pub fn behind((topic, time): (TopicNumber, Millis), bytes: &'a [u8]) -> Result<Self, Malformed> {
        let flags = bytes[1];
        let mut rest = &bytes[HEAD..];
        let event = if flags & HAS_TYPE != 0 { Some(name(&mut rest)?) } else { None };
        let key = if flags & HAS_KEY != 0 { Some(name(&mut rest)?) } else { None };
        let data = simdutf8::basic::from_utf8(rest).map_err(|_| Malformed::NotUtf8)?;
        Ok(Self { topic, time, event, key, data })
    }

    /// Reads only the topic's number and the time: enough to pass over a record, or to search by time.
    ///
    /// # Errors
    /// [`Malformed`] names what is wrong with the first bytes.
    pub fn head(bytes: &[u8]) -> Result<(TopicNumber, Millis), Malformed> {
        let Some((head, _)) = bytes.split_first_chunk::<HEAD>() else {
            return Err(Malformed::Short);
        };
        if head[0] != VERSION {
            return Err(Malformed::Version(head[0]));
        }
        if head[1] & !FLAGS != 0 {
            return Err(Malformed::Flags(head[1]));
        }
        let topic = u32::from_be_bytes([head[2], head[3], head[4], head[5]]);
        let time = u64::from_be_bytes([head[6], head[7], head[8], head[9], head[10], head[11], head[12], head[13]]);
        Ok((topic, time))
    }
}

fn name<'a>(rest: &mut &'a [u8]) -> Result<&'a str, Malformed> {
    let (&len, after) = rest.split_first().ok_or(Malformed::Short)?;
    let (name, after) = after.split_at_checked(usize::from(len)).ok_or(Malformed::Short)?;
    *rest = after;
    std::str::from_utf8(name).map_err(|_| Malformed::NotUtf8)
}

/// Why bytes are no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("it ends too early")]
    Short,
    #[error("its version is {0}; this program knows {VERSION}")]
    Version(u8),
    #[error("it has unknown flags {0:#04x}")]
    Flags(u8),
    #[error("its text is not UTF-8")]
    NotUtf8,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            prop_assert_eq!(Record::head(&bytes), Ok((topic, time)));
        }

        #[test]
        fn no_bytes_make_it_panic_and_what_it_takes_is_canonical(bytes: Vec<u8>) {
            if let Ok(record) = Record::decode(&bytes) {
                let mut again = Vec::new();
                record.encode(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }

    #[test]
    fn short_and_foreign_bytes_are_refused() {
        assert_eq!(Record::decode(b""), Err(Malformed::Short));
        let mut bytes = Vec::new();
        Record { topic: 1, time: 2, event: Some("created"), key: None, data: "" }.encode(&mut bytes);
        assert_eq!(Record::decode(&bytes[..18]), Err(Malformed::Short));
        bytes[0] = 9;
        assert_eq!(Record::decode(&bytes), Err(Malformed::Version(9)));
        bytes[0] = VERSION;
        bytes[1] = 0x80;
        assert_eq!(Record::decode(&bytes), Err(Malformed::Flags(0x80)));
    }
}
