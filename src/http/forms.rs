//! The three forms of a publish: text, JSON, and JSON lines. Bytes in, events out.
//!
//! What holds: data is stored as it was sent, but that JSON in a line loses the white space outside its strings. Nothing
//! is half taken: the first thing wrong refuses the whole body. Must not know requests or the log.

use std::fmt::Display;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::error::Error;
use crate::event::{EventType, Key, NewEvent};
use crate::topic::Topic;

/// What one event, and one batch, may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub event_bytes_max: u64,
    pub batch_events_max: usize,
    pub batch_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { event_bytes_max: 1 << 20, batch_events_max: 10_000, batch_bytes_max: 16 << 20 }
    }
}

/// The form of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Text,
    Json,
    Lines,
}

impl Form {
    /// The form that a content type stands for; its parameters say nothing here.
    #[must_use]
    pub fn of(content_type: &str) -> Self {
        let essence = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/json" => Self::Json,
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Self::Lines,
            _ => Self::Text,
        }
    }
}

/// What the query of a single form says beside the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub topic: Topic,
    pub event: Option<EventType>,
    pub key: Option<Key>,
}

/// A body as text.
///
/// # Errors
/// When it is not UTF-8.
pub fn utf8(body: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(body).map_err(|e| Error::Utf8 { at: e.utf8_error().valid_up_to() })
}

/// One event whose data is the body, byte for byte.
///
/// # Errors
/// When the body is not UTF-8.
pub fn text(names: Names, body: Vec<u8>) -> Result<NewEvent, Error> {
    let data = utf8(body)?;
    let Names { topic, event, key } = names;
    Ok(NewEvent { topic, event, key, data })
}

/// One event whose data is the body, byte for byte, which is JSON.
///
/// # Errors
/// When the body is not.
pub fn json(names: Names, body: Vec<u8>) -> Result<NewEvent, Error> {
    let event = text(names, body)?;
    serde_json::from_str::<IgnoredAny>(&event.data)
        .map_err(|e| Error::Json(format!("the body is not JSON: {e}; send text under another content type")))?;
    Ok(event)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    event: Option<String>,
    key: Option<String>,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LineWithTopic<'a> {
    topic: String,
    event: Option<String>,
    key: Option<String>,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// A batch: one event a line, to `topic`, or each to the topic it names when there is none.
///
/// # Errors
/// Naming the first line that is wrong, counted from 1.
pub fn lines(topic: Option<&Topic>, limits: &Limits, body: &[u8]) -> Result<Vec<NewEvent>, Error> {
    let body = std::str::from_utf8(body).map_err(|e| {
        let at = e.valid_up_to();
        let line = 1 + memchr::memchr_iter(b'\n', &body[..at]).count();
        let start = memchr::memrchr(b'\n', &body[..at]).map_or(0, |newline| newline + 1);
        Error::Utf8 { at: at - start }.at_line(line)
    })?;
    let mut events = Vec::new();
    for (at, line) in body.split('\n').enumerate() {
        if line.bytes().all(|b| matches!(b, b' ' | b'\t' | b'\r')) {
            continue;
        }
        if events.len() == limits.batch_events_max {
            return Err(Error::TooManyEvents { max: limits.batch_events_max }.at_line(at + 1));
        }
        events.push(event(topic, limits, line).map_err(|why| why.at_line(at + 1))?);
    }
    if events.is_empty() {
        return Err(Error::Json(
            "the body has no line; a batch is one JSON object a line, such as {\"data\":\"x\"}".to_owned(),
        ));
    }
    Ok(events)
}

fn event(topic: Option<&Topic>, limits: &Limits, line: &str) -> Result<NewEvent, Error> {
    // serde would take an array for the members in their order.
    if !line.trim_start_matches([' ', '\t', '\r']).starts_with('{') {
        return Err(Error::Json("a line is one JSON object, such as {\"data\":\"x\"}".to_owned()));
    }
    let (topic, event, key, data) = if let Some(topic) = topic {
        let Line { event, key, data } = serde_json::from_str(line).map_err(|e| not_a_line(&e))?;
        (topic.clone(), event, key, data)
    } else {
        let LineWithTopic { topic, event, key, data } = serde_json::from_str(line).map_err(|e| not_a_line(&e))?;
        (Topic::parse(&topic).map_err(|why| Error::topic(&topic, why))?, event, key, data)
    };
    let event = event.as_deref().map_or(Ok(None), EventType::parse).map_err(Error::EventType)?;
    let key = key.as_deref().map(Key::parse).transpose().map_err(Error::Key)?;
    let data = data_of(data)?;
    if data.len() as u64 > limits.event_bytes_max {
        let (max, option) = (limits.event_bytes_max, "limits.event_bytes_max");
        return Err(Error::TooLarge { what: "its data", max, option });
    }
    Ok(NewEvent { topic, event, key, data })
}

/// A string is taken as it is; any other JSON is written compact.
fn data_of(raw: &RawValue) -> Result<String, Error> {
    let raw = raw.get();
    if raw.starts_with('"') {
        return serde_json::from_str(raw).map_err(|e| not_a_line(&e));
    }
    Ok(compact(raw))
}

/// Every line is parsed alone, so serde's "at line 1" says nothing.
fn not_a_line(error: &serde_json::Error) -> Error {
    let text = error.to_string();
    let what: &dyn Display = match text.rsplit_once(" at line ") {
        Some((what, _)) => &what.to_owned(),
        None => &text,
    };
    Error::Json(format!("{what} (column {})", error.column()))
}

/// `json`, which is valid, without the white space outside its strings; numbers and the order of members stay as written.
fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    // Outside strings everything is ASCII, so cutting at ASCII bytes cuts between characters.
    while let Some(at) = rest.bytes().position(|b| matches!(b, b' ' | b'\t' | b'\n' | b'\r' | b'"')) {
        out.push_str(&rest[..at]);
        let end = if rest.as_bytes()[at] == b'"' { string_end(rest, at) } else { at };
        if end > at {
            out.push_str(&rest[at..end]);
            rest = &rest[end..];
        } else {
            rest = &rest[at + 1..];
        }
    }
    out.push_str(rest);
    out
}

/// Where the string that begins at `start` ends: one past its closing quote.
fn string_end(json: &str, start: usize) -> usize {
    let bytes = json.as_bytes();
    let mut at = start + 1;
    while let Some(next) = memchr::memchr2(b'"', b'\\', bytes.get(at..).unwrap_or_default()) {
        at += next + 1;
        if bytes[at - 1] == b'"' {
            return at;
        }
        // The byte after a backslash never ends the string.
        at += 1;
    }
    json.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { event_bytes_max: 20, batch_events_max: 3, batch_bytes_max: 1000 };

    fn names() -> Names {
        Names { topic: topic(), event: None, key: None }
    }

    fn topic() -> Topic {
        Topic::parse("a").unwrap()
    }

    fn batch(body: &str) -> Result<Vec<NewEvent>, Error> {
        lines(Some(&topic()), &LIMITS, body.as_bytes())
    }

    #[test]
    fn a_content_type_is_its_essence() {
        assert_eq!(Form::of("application/json"), Form::Json);
        assert_eq!(Form::of("Application/JSON ; charset=latin1"), Form::Json);
        assert_eq!(Form::of("application/x-ndjson"), Form::Lines);
        assert_eq!(Form::of("application/ndjson"), Form::Lines);
        assert_eq!(Form::of("application/jsonl"), Form::Lines);
        for other in ["", "text/plain", "application/x-www-form-urlencoded", "application/problem+json", "json"] {
            assert_eq!(Form::of(other), Form::Text, "{other}");
        }
    }

    #[test]
    fn text_and_json_are_stored_byte_for_byte() {
        let with_mark = "\u{feff}a\r\nb\0";
        assert_eq!(text(names(), with_mark.into()).unwrap().data, with_mark);
        assert!(matches!(text(names(), b"ab\xff".to_vec()), Err(Error::Utf8 { at: 2 })));
        let spaced = " { \"b\" : 1.0e400, \"b\": [ ] }\n";
        assert_eq!(json(names(), spaced.into()).unwrap().data, spaced);
        for bad in ["", "{", "{} {}", "nul", "\u{feff}{}", "01", "'a'", "\"a"] {
            assert!(matches!(json(names(), bad.into()), Err(Error::Json(_))), "{bad}");
        }
        // As deep as it likes: nothing here recurses.
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        assert!(json(names(), deep.into()).is_ok());
    }

    #[test]
    fn a_line_is_type_key_and_data() {
        let events = batch(
            "{\"data\":\"a\\nb\"}\r\n\n \t\n{\"event\":\"t\",\"key\":\"k\",\"data\":{ \"x\" : [1.50, \" \\\" \"] }}",
        )
        .unwrap();
        assert_eq!(events.len(), 2);
        assert_eq!(events[0].data, "a\nb");
        assert_eq!(events[1].data, "{\"x\":[1.50,\" \\\" \"]}");
        assert_eq!(events[1].event.as_ref().unwrap().as_str(), "t");
        assert_eq!(events[1].key.as_ref().unwrap().as_str(), "k");
        // What may stand around an object stands before it too.
        assert_eq!(batch(" \r\t{\"data\":1}\r").unwrap()[0].data, "1");
        let untyped = batch("{\"event\":\"message\",\"key\":null,\"data\":null}").unwrap();
        assert_eq!(
            (untyped[0].event.is_none(), untyped[0].key.is_none(), untyped[0].data.as_str()),
            (true, true, "null")
        );
    }

    #[test]
    fn across_topics_each_line_names_its_own() {
        let events = lines(None, &LIMITS, b"{\"topic\":\"x.y\",\"data\":1}\n{\"topic\":\"z\",\"data\":2}").unwrap();
        assert_eq!(events.iter().map(|e| e.topic.as_str()).collect::<Vec<_>>(), ["x.y", "z"]);
        let error = lines(None, &LIMITS, b"{\"data\":1}").unwrap_err();
        assert!(error.to_string().contains("topic"), "{error}");
        assert!(matches!(lines(None, &LIMITS, b"{\"topic\":\"*\",\"data\":1}"), Err(Error::Line { line: 1, .. })));
    }

    #[test]
    fn what_is_wrong_names_its_line() {
        let wrong = |body: &str| match batch(body).unwrap_err() {
            Error::Line { line, why } => (line, why.to_string()),
            other => panic!("{other}"),
        };
        let good = "{\"data\":1}\n";
        for (bad, says) in [
            ("{\"dat\":1}", "unknown field `dat`"),
            ("{\"topic\":\"a\",\"data\":1}", "unknown field `topic`"),
            ("{\"event\":\"x\"}", "missing field `data`"),
            ("{\"data\":1,\"data\":2}", "duplicate field `data`"),
            ("{\"data\":1} x", "trailing characters"),
            ("{\"data\":\"\\ud800\"}", "hex escape"),
            ("{\"data\":1", "column"),
            ("[null,null,1]", "object"),
            ("x", "object"),
            ("{\"event\":\"open\",\"data\":1}", "EventSource"),
            ("{\"key\":\"\",\"data\":1}", "key"),
            ("{\"data\":\"123456789012345678901\"}", "20 bytes"),
        ] {
            let (line, why) = wrong(&format!("{good}\n{bad}\n"));
            assert!(line == 3 && why.contains(says) && !why.contains("at line"), "{bad}: line {line}: {why}");
        }
        assert!(matches!(batch(&good.repeat(4)), Err(Error::Line { line: 4, .. })));
        for empty in ["", "\n\r\n  \n"] {
            assert!(matches!(batch(empty), Err(Error::Json(_))));
        }
        let not_utf8 = lines(Some(&topic()), &LIMITS, b"{\"data\":1}\n{\"data\":\"\xff\"}").unwrap_err();
        assert!(
            matches!(&not_utf8, Error::Line { line: 2, why } if matches!(**why, Error::Utf8 { at: 9 })),
            "{not_utf8}"
        );
    }

    proptest! {
        #[test]
        fn compact_json_means_the_same(value in arbitrary_json()) {
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(compact(&pretty), serde_json::to_string(&value).unwrap());
        }

        #[test]
        fn no_body_makes_it_panic(body: Vec<u8>) {
            let _ = lines(Some(&topic()), &LIMITS, &body);
            let _ = json(names(), body);
        }
    }

    fn arbitrary_json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[ \"\\\\\n\tüa]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[ \"\\\\a]{0,4}", inner), 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }
}
