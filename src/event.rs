//! Words: what an event is, and which ids, types and keys are valid.
//!
//! Holds only plain values and their rules. Must not know bytes on a wire or a disk, a clock, or any I/O.

use crate::topic::Topic;

/// The id of an event: from 1 to [`EVENT_ID_MAX`], one sequence for the whole log, strictly increasing.
///
/// As a *cursor* it means "everything up to and including this id is behind me"; 0 is before every event.
pub type EventId = u64;

/// The largest id: 2^53 − 1, the largest integer that JavaScript's numbers hold exactly.
pub const EVENT_ID_MAX: EventId = (1 << 53) - 1;

/// Most bytes of an event type or a key.
pub const NAME_BYTES_MAX: usize = 200;

/// Milliseconds since 1970-01-01T00:00:00Z.
pub type Millis = u64;

/// An event's type, as `EventSource` dispatches it: 1 to 200 bytes, no control characters, no reserved name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventType(Box<str>);

impl EventType {
    /// Checks `name`. The empty name and `message` mean "no type", as they do to `EventSource`: `Ok(None)`.
    ///
    /// # Errors
    /// [`InvalidName`] when it is too long, has a control character, or is a name that the protocol keeps for itself.
    pub fn parse(name: &str) -> Result<Option<Self>, InvalidName> {
        if name.is_empty() || name == "message" {
            return Ok(None);
        }
        check_name(name)?;
        if name == "open" || name == "error" {
            return Err(InvalidName::EventSourceOwn(name.into()));
        }
        if name.starts_with("tidelog.") {
            return Err(InvalidName::Reserved(name.into()));
        }
        Ok(Some(Self(name.into())))
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The key under which an event is kept as state: 1 to 200 bytes, no control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Box<str>);

impl Key {
    /// Checks `key`.
    ///
    /// # Errors
    /// [`InvalidName`] when it is empty, too long, or has a control character.
    pub fn parse(key: &str) -> Result<Self, InvalidName> {
        if key.is_empty() {
            return Err(InvalidName::Empty);
        }
        check_name(key)?;
        Ok(Self(key.into()))
    }

    /// The key itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_name(name: &str) -> Result<(), InvalidName> {
    if name.len() > NAME_BYTES_MAX {
        return Err(InvalidName::TooLong(name.len()));
    }
    if name.chars().any(char::is_control) {
        return Err(InvalidName::ControlCharacter);
    }
    Ok(())
}

/// Why an event type or a key is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("it is empty")]
    Empty,
    #[error("it has {0} bytes; at most {NAME_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("it contains a control character")]
    ControlCharacter,
    #[error("{0:?} is an event of EventSource's own; choose another name")]
    EventSourceOwn(String),
    #[error("{0:?} begins with \"tidelog.\", which is kept for control events")]
    Reserved(String),
}

/// What is left of a text that only has to be told from others: the first half of its SHA-256. Two that differ have the same one with
/// a chance of one in 2^64 after four billion of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 16]);

/// An event as a publisher hands it in: it has no id and no time yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    pub topic: Topic,
    pub event: Option<EventType>,
    pub key: Option<Key>,
    pub data: String,
}

/// An event of the log, borrowed from wherever its bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventRef<'a> {
    pub id: EventId,
    pub topic: &'a str,
    pub event: Option<&'a str>,
    pub key: Option<&'a str>,
    pub time: Millis,
    pub data: &'a str,
}

impl EventRef<'_> {
    /// An owned copy. `None` where its names are not valid, which is checked where events come in.
    #[must_use]
    pub fn to_event(&self) -> Option<Event> {
        Some(Event {
            id: self.id,
            topic: Topic::parse(self.topic).ok()?,
            event: self.event.and_then(|t| EventType::parse(t).ok().flatten()),
            key: self.key.and_then(|k| Key::parse(k).ok()),
            time: self.time,
            data: self.data.into(),
        })
    }
}

/// An event of the log, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub id: EventId,
    pub topic: Topic,
    pub event: Option<EventType>,
    pub key: Option<Key>,
    pub time: Millis,
    pub data: String,
}

impl Event {
    /// Gives `new` its place in the log.
    #[must_use]
    pub fn new(id: EventId, time: Millis, new: NewEvent) -> Self {
        let NewEvent { topic, event, key, data } = new;
        Self { id, topic, event, key, time, data }
    }

    /// The same event, borrowed.
    #[must_use]
    pub fn as_ref(&self) -> EventRef<'_> {
        EventRef {
            id: self.id,
            topic: self.topic.as_str(),
            event: self.event.as_ref().map(EventType::as_str),
            key: self.key.as_ref().map(Key::as_str),
            time: self.time,
            data: &self.data,
        }
    }
}

/// Reads an event id or a cursor: decimal digits only, 0 to [`EVENT_ID_MAX`].
///
/// # Errors
/// [`InvalidId`] when it has another character, or is too large.
pub fn parse_id(text: &str) -> Result<EventId, InvalidId> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidId::NotDecimal);
    }
    match text.parse::<u64>() {
        Ok(id) if id <= EVENT_ID_MAX => Ok(id),
        _ => Err(InvalidId::TooLarge),
    }
}

/// Why a text is no event id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    #[error("an id is a number in decimal digits")]
    NotDecimal,
    #[error("the largest id is {EVENT_ID_MAX} (2^53 - 1)")]
    TooLarge,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_that_eventsource_could_not_tell_apart_are_none() {
        assert_eq!(EventType::parse(""), Ok(None));
        assert_eq!(EventType::parse("message"), Ok(None));
        assert_eq!(EventType::parse("created").unwrap().unwrap().as_str(), "created");
    }

    #[test]
    fn reserved_and_malformed_types_are_refused() {
        for bad in ["open", "error", "tidelog.live", "tidelog.", "a\nb", "a\0", "\u{85}"] {
            assert!(EventType::parse(bad).is_err(), "{bad:?}");
        }
        assert!(EventType::parse(&"x".repeat(NAME_BYTES_MAX)).is_ok());
        assert!(EventType::parse(&"x".repeat(NAME_BYTES_MAX + 1)).is_err());
        assert!(EventType::parse("tidelog").is_ok());
    }

    #[test]
    fn keys_are_refused_when_empty_or_malformed() {
        assert_eq!(Key::parse(""), Err(InvalidName::Empty));
        assert!(Key::parse("a\rb").is_err());
        assert!(Key::parse("Zürich 7").is_ok());
    }

    #[test]
    fn ids_are_plain_decimal_up_to_2_53() {
        assert_eq!(parse_id("0"), Ok(0));
        assert_eq!(parse_id("9007199254740991"), Ok(EVENT_ID_MAX));
        assert_eq!(parse_id("9007199254740992"), Err(InvalidId::TooLarge));
        assert_eq!(parse_id("99999999999999999999999"), Err(InvalidId::TooLarge));
        for bad in ["", "-1", "+1", "1.0", " 1", "0x1", "one", "١"] {
            assert_eq!(parse_id(bad), Err(InvalidId::NotDecimal), "{bad:?}");
        }
    }
}
