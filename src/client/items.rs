//! What a subscription yields, and how a message of the stream is read as that.
//!
//! Must not know connections or clocks.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::{Error, Problem};
use crate::event::{EventId, Millis, parse_id};
use crate::sse::decode::Message;

/// An event as a subscriber sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub id: EventId,
    /// `None` only on the plain wire ([`super::Wire::Plain`]) under a subscription that could mean several topics.
    pub topic: Option<String>,
    /// The type.
    pub event: Option<String>,
    /// Never known on the plain wire.
    pub key: Option<String>,
    /// Never known on the plain wire.
    pub time: Option<Millis>,
    /// Exactly what was published; on the plain wire CR and CRLF have become LF.
    pub data: String,
    /// The event object as the server wrote it, on one line, with members that this program does not know.
    /// `None` on the plain wire.
    pub object: Option<String>,
}

/// What happens on a subscription. More kinds may come.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Item {
    /// The next event.
    Event(Event),
    /// The stream has caught up with the log at `tail`; sent again as a heartbeat when only other events have come.
    Live { tail: EventId, log: String },
    /// Something after `requested` is gone; nothing is missing from `earliest` on. `reason` is `trimmed`, `lost` or `ahead`.
    Gap { requested: EventId, earliest: EventId, reason: String },
    /// One entry of the state that was asked for (`from=state`); the state ends with the first item of another kind.
    State(Event),
    /// The snapshot that was asked for (`from=snapshot`), true at this id.
    Snapshot { at: EventId, body: String },
    /// Every topic of the subscription was closed, and all of it is delivered; the stream ends.
    Closed { last: EventId },
    /// The server cannot go on; the connection ends, and the subscription connects again.
    Error(Problem),
    /// The server has another log than before. The subscription goes on with the new one from its beginning.
    LogChanged { was: String, now: String },
    /// The connection broke or was refused for now; the next attempt is made after `retry_in`.
    Disconnected { why: String, retry_in: Duration },
    /// A control event of a later version of the protocol.
    Unknown { name: String, data: String },
}

/// How events' data is to be read.
pub enum Reading<'a> {
    /// Every data is the whole event.
    Envelope,
    /// Data is data; the topic may be known from what was asked for.
    Plain(Option<&'a str>),
}

/// Reads a message.
///
/// # Errors
/// When it is not what the contract says.
pub fn read(message: Message, reading: &Reading<'_>) -> Result<Item, Error> {
    match message.event.as_str() {
        "tidelog.live" => {
            #[derive(Deserialize)]
            struct Live {
                tail: EventId,
                log: String,
            }
            let Live { tail, log } = json(&message)?;
            Ok(Item::Live { tail, log })
        }
        "tidelog.gap" => {
            #[derive(Deserialize)]
            struct Gap {
                requested: EventId,
                earliest: EventId,
                reason: String,
            }
            let Gap { requested, earliest, reason } = json(&message)?;
            Ok(Item::Gap { requested, earliest, reason })
        }
        "tidelog.closed" => {
            #[derive(Deserialize)]
            struct Closed {
                last: EventId,
            }
            let Closed { last } = json(&message)?;
            Ok(Item::Closed { last })
        }
        "tidelog.error" => {
            #[derive(Deserialize)]
            struct Members {
                #[serde(default)]
                status: u16,
                #[serde(default)]
                code: String,
                #[serde(default)]
                detail: String,
            }
            let Members { status, code, detail } = json(&message)?;
            Ok(Item::Error(Problem { status, code, detail, retry_after: None }))
        }
        "tidelog.state" => Ok(Item::State(enveloped(message)?)),
        "tidelog.snapshot" => Ok(Item::Snapshot { at: id(&message)?, body: message.data }),
        name if name.starts_with("tidelog.") => Ok(Item::Unknown { name: message.event, data: message.data }),
        _ => Ok(Item::Event(match reading {
            Reading::Envelope => enveloped(message)?,
            Reading::Plain(topic) => Event {
                id: id(&message)?,
                topic: topic.map(str::to_owned),
                event: Some(message.event).filter(|name| !name.is_empty()),
                key: None,
                time: None,
                data: message.data,
                object: None,
            },
        })),
    }
}

/// Reads an event object.
fn enveloped(message: Message) -> Result<Event, Error> {
    #[derive(Deserialize)]
    struct Object {
        id: EventId,
        topic: String,
        event: Option<String>,
        key: Option<String>,
        time: String,
        data: String,
    }
    let Object { id, topic, event, key, time, data } = json(&message)?;
    let time = humantime::parse_rfc3339(&time).ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let time = time.and_then(|since| Millis::try_from(since.as_millis()).ok());
    Ok(Event { id, topic: Some(topic), event, key, time, data, object: Some(message.data) })
}

fn json<'a, T: Deserialize<'a>>(message: &'a Message) -> Result<T, Error> {
    serde_json::from_str(&message.data).map_err(|error| unreadable(message, &error))
}

fn id(message: &Message) -> Result<EventId, Error> {
    parse_id(&message.id).map_err(|error| unreadable(message, &error))
}

fn unreadable(message: &Message, why: &dyn std::fmt::Display) -> Error {
    let name = if message.event.is_empty() { "message" } else { &message.event };
    Error::NotTidelog(format!("its event {name:?} with the id {:?} cannot be read: {why}", message.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventRef;
    use crate::sse::decode::Decoder;
    use crate::sse::{Control, Form, GapReason};

    fn items(form: Form, write: impl Fn(&mut Vec<u8>)) -> Vec<Item> {
        let mut bytes = Vec::new();
        write(&mut bytes);
        let reading = if form == Form::SseEnvelope { Reading::Envelope } else { Reading::Plain(Some("t")) };
        let (mut decoder, mut rest) = (Decoder::default(), &bytes[..]);
        let mut items = Vec::new();
        while let Some(message) = decoder.next(&mut rest).unwrap() {
            items.push(read(message, &reading).unwrap());
        }
        items
    }

    const EVENT: EventRef<'_> = EventRef {
        id: 42,
        topic: "t",
        event: Some("created"),
        key: Some("7"),
        time: 1_795_341_600_123,
        data: "a\r\nb",
    };

    #[test]
    fn an_envelope_gives_the_whole_event() {
        let got = items(Form::SseEnvelope, |out| Form::SseEnvelope.event(out, &EVENT));
        let [Item::Event(event)] = &got[..] else { panic!("{got:?}") };
        assert_eq!((event.id, event.topic.as_deref(), event.event.as_deref()), (42, Some("t"), Some("created")));
        assert_eq!((event.key.as_deref(), event.time, event.data.as_str()), (Some("7"), Some(EVENT.time), "a\r\nb"));
        let mut object = Vec::new();
        crate::sse::json_event(&mut object, &EVENT);
        assert_eq!(event.object.as_deref().map(str::as_bytes), Some(&object[..]));
    }

    #[test]
    fn the_plain_wire_gives_id_type_and_data() {
        let got = items(Form::Sse, |out| Form::Sse.event(out, &EVENT));
        let [Item::Event(event)] = &got[..] else { panic!("{got:?}") };
        assert_eq!((event.id, event.topic.as_deref(), event.event.as_deref()), (42, Some("t"), Some("created")));
        assert_eq!((event.key.as_deref(), event.time, event.data.as_str()), (None, None, "a\nb"));
    }

    #[test]
    fn control_events_are_read_back() {
        let got = items(Form::Sse, |out| {
            Form::Sse.control(out, 90, &Control::Live { tail: 90, log: "x" });
            Form::Sse.control(out, 4, &Control::Gap { requested: 4, earliest: 9, reason: GapReason::Lost });
            Form::Sse.control(out, 4, &Control::Error { problem: r#"{"status":503,"code":"draining","detail":"d"}"# });
            out.extend_from_slice(b"id: 5\nevent: tidelog.closed\ndata: {\"last\":5,\"new\":1}\n\n");
            out.extend_from_slice(b"id: 5\nevent: tidelog.snapshot\ndata: a\ndata: b\n\n");
            out.extend_from_slice(b"event: tidelog.later\ndata: x\n\n");
        });
        let problem = Problem { status: 503, code: "draining".into(), detail: "d".into(), retry_after: None };
        assert_eq!(
            got,
            [
                Item::Live { tail: 90, log: "x".into() },
                Item::Gap { requested: 4, earliest: 9, reason: "lost".into() },
                Item::Error(problem),
                Item::Closed { last: 5 },
                Item::Snapshot { at: 5, body: "a\nb".into() },
                Item::Unknown { name: "tidelog.later".into(), data: "x".into() },
            ]
        );
    }

    #[test]
    fn what_cannot_be_read_is_an_error_that_says_where() {
        let message = Message { data: "{}".into(), id: "7".into(), ..Message::default() };
        let error = read(message, &Reading::Envelope).unwrap_err().to_string();
        assert!(error.contains("\"7\"") && error.contains("missing field"), "{error}");
        let message = Message { data: "x".into(), ..Message::default() };
        assert!(read(message, &Reading::Plain(None)).is_err(), "an event has an id");
    }
}
