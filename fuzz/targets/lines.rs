//! Bodies of publishes: a batch of JSON lines is taken or refused as serde_json and the contract say of each line, the error names the
//! first bad line, and the data means the same as what was sent; text and JSON are stored byte for byte.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use tidelog::event::{EventType, Key, NewEvent};
use tidelog::http::error::Error;
use tidelog::http::forms::{self, Form, Limits, Names};
use tidelog::topic::Topic;

use super::source::Source;

/// The members of an object as they stand there, also when one stands there twice.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Each)
    }
}

/// What a good line says.
#[derive(Debug)]
struct Said {
    topic: Option<String>,
    event: Option<String>,
    key: Option<String>,
    data: String,
}

/// Reads a line by the contract's words; `None`: it is to be refused.
fn line(text: &str, names_topic: bool, limits: &Limits) -> Option<Said> {
    let Members(members) = serde_json::from_str(text).ok()?;
    let known = |name: &str| matches!(name, "event" | "key" | "data") || names_topic && name == "topic";
    let mut said = [None, None, None, None];
    for (name, value) in &members {
        if !known(name) {
            return None;
        }
        let at = ["topic", "event", "key", "data"].iter().position(|n| n == name)?;
        if said[at].replace(value.get()).is_some() {
            return None;
        }
    }
    let [topic, event, key, data] = said;
    let topic = if names_topic { Some(serde_json::from_str::<String>(topic?).ok()?) } else { None };
    let text = |value: Option<&str>| value.map_or(Ok(None), serde_json::from_str::<Option<String>>).ok();
    let (event, key, data) = (text(event)?, text(key)?, data?);
    let data = if data.starts_with('"') { serde_json::from_str(data).ok()? } else { compact(data) };
    let is_name = |name: &str| name.len() <= 200 && !name.chars().any(char::is_control);
    let event = event.filter(|name| !name.is_empty() && name != "message");
    let is_type = |name: &String| is_name(name) && name != "open" && name != "error" && !name.starts_with("tidelog.");
    let good = topic.as_ref().is_none_or(|t| Topic::parse(t).is_ok())
        && event.as_ref().is_none_or(is_type)
        && key.as_ref().is_none_or(|k| !k.is_empty() && is_name(k))
        && data.len() as u64 <= limits.event_bytes_max;
    good.then_some(Said { topic, event, key, data })
}

/// JSON without the white space outside its strings, character by character.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let mut keep = |c: &char| {
        if in_string {
            (in_string, escaped) = (escaped || *c != '"', !escaped && *c == '\\');
            return true;
        }
        in_string = *c == '"';
        !matches!(c, ' ' | '\t' | '\n' | '\r')
    };
    json.chars().filter(|c| keep(c)).collect()
}

/// What the whole batch is to become, or the number of the first bad line; 0: it has none.
fn batch(body: &[u8], names_topic: bool, limits: &Limits) -> Result<Vec<Said>, usize> {
    let lines = || (1..).zip(body.split(|&b| b == b'\n'));
    if let Some((at, _)) = lines().find(|(_, line)| std::str::from_utf8(line).is_err()) {
        return Err(at);
    }
    let mut events = Vec::new();
    for (at, text) in lines() {
        let text = String::from_utf8_lossy(text);
        if text.trim_matches([' ', '\t', '\r']).is_empty() {
            continue;
        }
        if events.len() == limits.batch_events_max {
            return Err(at);
        }
        events.push(line(&text, names_topic, limits).ok_or(at)?);
    }
    if events.is_empty() { Err(0) } else { Ok(events) }
}

pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let names_topic = source.bit();
    let (event_bytes_max, batch_events_max) = (1 + u64::from(source.byte()), 1 + usize::from(source.byte() % 8));
    let limits = Limits { event_bytes_max, batch_events_max, batch_bytes_max: u64::MAX };
    let body = source.rest();
    let topic = Topic::parse("a").expect("it is a topic");

    let got = forms::lines(Some(&topic).filter(|_| !names_topic), &limits, body);
    match (got, batch(body, names_topic, &limits)) {
        (Ok(events), Ok(said)) => {
            assert_eq!(events.len(), said.len());
            for (event, said) in events.iter().zip(&said) {
                same(event, said, &topic);
            }
        }
        (Err(error), Err(line)) => refused(&error, line, body),
        (got, want) => panic!("{:?}: {got:?}, but {want:?}", String::from_utf8_lossy(body)),
    }
    single(body);
}

fn same(event: &NewEvent, said: &Said, topic: &Topic) {
    assert_eq!(event.topic.as_str(), said.topic.as_deref().unwrap_or(topic.as_str()));
    assert_eq!(event.event.as_ref().map(EventType::as_str), said.event.as_deref());
    assert_eq!(event.key.as_ref().map(Key::as_str), said.key.as_deref());
    assert_eq!(event.data, said.data);
}

fn refused(error: &Error, line: usize, body: &[u8]) {
    let text = error.to_string();
    let Error::Line { line: named, why } = error else {
        assert!(line == 0 && matches!(error, Error::Json(_)), "{text}");
        return;
    };
    assert_eq!(*named, line, "{text}");
    let line = body.split(|&b| b == b'\n').nth(line - 1).expect("the line is there");
    match &**why {
        Error::Utf8 { at } => {
            assert_eq!(std::str::from_utf8(line).expect_err("it is no UTF-8").valid_up_to(), *at, "{text}");
        }
        Error::Json(why) => {
            // A column is counted from 1, in bytes, and one past the line's end is where something is missing.
            if let Some((_, column)) = why.rsplit_once(" (column ") {
                let column: usize = column.trim_end_matches(')').parse().expect("it is a number");
                assert!(column <= line.len() + 1, "{text}: the line has {} bytes", line.len());
            }
            // "at line 1 column 9" says nothing of a line that was parsed alone; a member's own name may hold these words.
            let said = why.split(" (column ").next().unwrap_or_default();
            let place = said.rsplit_once(" at line ").and_then(|(_, place)| place.split_once(" column "));
            assert!(place.is_none_or(|(_, column)| column.parse::<usize>().is_err()), "{text}");
        }
        Error::Topic { .. } | Error::EventType(_) | Error::Key(_) => {}
        Error::TooLarge { .. } | Error::TooManyEvents { .. } => {}
        other => panic!("{other}"),
    }
}

/// The forms of one event.
fn single(body: &[u8]) {
    let names = || Names { topic: Topic::parse("a").expect("it is a topic"), event: None, key: None };
    let sent = std::str::from_utf8(body);
    match (forms::text(names(), body.to_vec()), sent) {
        (Ok(event), Ok(sent)) => assert_eq!(event.data, sent),
        (Err(Error::Utf8 { at }), Err(why)) => assert_eq!(at, why.valid_up_to()),
        (got, sent) => panic!("{got:?} of {sent:?}"),
    }
    match (forms::json(names(), body.to_vec()), sent) {
        (Ok(event), Ok(sent)) => {
            assert_eq!(event.data, sent);
            assert!(serde_json::from_str::<IgnoredAny>(sent).is_ok());
        }
        (Err(Error::Json(_)), Ok(sent)) => assert!(serde_json::from_str::<Value>(sent).is_err(), "{sent:?}"),
        (Err(Error::Utf8 { .. }), Err(_)) => {}
        (got, sent) => panic!("{got:?} of {sent:?}"),
    }
    // A content type is any text.
    let _ = Form::of(&String::from_utf8_lossy(body));
}
