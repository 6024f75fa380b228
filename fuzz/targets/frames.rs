//! Whatever an event holds, its frame is one frame: a parser of the standard gives back what went in, and nothing else; so do a parser
//! of JSON for JSON lines and envelopes, and the client's own reader for its items.

use std::time::Duration;

use serde_json::Value;
use tidelog::client::{Item, Reading, read};
use tidelog::event::{EVENT_ID_MAX, EventRef, EventType, Key};
use tidelog::http::problem::{Code, Problem};
use tidelog::sse::decode::Decoder;
use tidelog::sse::{Control, Form, GapReason};
use tidelog::topic::Topic;

use super::source::Source;
use super::standard;

/// What a reader is to be told.
#[derive(Debug)]
struct Told {
    kind: String,
    /// `None`: it carries none, so that the one before stays.
    id: Option<u64>,
    data: Data,
}

#[derive(Debug)]
enum Data {
    /// Text that becomes lines on the wire.
    Text(String),
    /// JSON, and what it means.
    Json(Value),
}

struct Owned {
    id: u64,
    topic: Topic,
    event: Option<EventType>,
    key: Option<Key>,
    time: u64,
    data: String,
}

impl Owned {
    fn take(source: &mut Source<'_>) -> Self {
        Self {
            id: source.number() % EVENT_ID_MAX + 1,
            topic: Topic::parse(&source.text()).unwrap_or_else(|_| Topic::parse("orders.eu").expect("it is one")),
            event: EventType::parse(&source.text()).ok().flatten(),
            key: Key::parse(&source.text()).ok(),
            time: source.number(),
            data: source.text(),
        }
    }

    fn event(&self) -> EventRef<'_> {
        let Self { id, topic, event, key, time, data } = self;
        let (event, key) = (event.as_ref().map(EventType::as_str), key.as_ref().map(Key::as_str));
        EventRef { id: *id, topic: topic.as_str(), event, key, time: *time, data }
    }

    /// The object, but for its time, which is looked at as it comes.
    fn is(&self, object: &Value) {
        let e = self.event();
        let members = object.as_object().expect("an event is an object");
        let text = |name: &str| members.get(name).map(|v| v.as_str().expect("it is a string"));
        assert_eq!(members["id"].as_u64(), Some(e.id));
        assert_eq!((text("topic"), text("data")), (Some(e.topic), Some(e.data)));
        assert_eq!((text("event"), text("key")), (e.event, e.key));
        let time = humantime::parse_rfc3339(text("time").expect("it has a time")).expect("its time is RFC 3339");
        let millis = time.duration_since(std::time::UNIX_EPOCH).expect("it is after 1970").as_millis();
        // Years have four digits there.
        assert_eq!(millis, u128::from(e.time.min(253_402_300_799_999)));
        assert_eq!(members.len(), 4 + usize::from(e.event.is_some()) + usize::from(e.key.is_some()));
    }
}

pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let form = source.choose(&[Form::Sse, Form::SseEnvelope, Form::Lines]);
    let (mut out, mut told, mut events) = (Vec::new(), Vec::new(), Vec::new());
    while !source.is_empty() && told.len() < 64 {
        one(&mut source, form, &mut out, &mut told, &mut events);
    }
    match form {
        Form::Lines => check_lines(&out, &told, &events),
        Form::Sse | Form::SseEnvelope => check_sse(&out, &told, &events, form),
    }
}

/// Writes something, and notes what it is; a whole event is noted as `null` and lies in `events`.
fn one(source: &mut Source<'_>, form: Form, out: &mut Vec<u8>, told: &mut Vec<Told>, events: &mut Vec<Owned>) {
    let id = source.number() % (EVENT_ID_MAX + 1);
    let (kind, cursor, data) = match source.byte() % 9 {
        0 => {
            let log = source.text();
            let tail = source.number();
            form.control(out, id, &Control::Live { tail, log: &log });
            ("tidelog.live", Some(id), Data::Json(serde_json::json!({"tail": tail, "log": log})))
        }
        1 => {
            let reason = source.choose(&[GapReason::Trimmed, GapReason::Lost, GapReason::Ahead]);
            let (requested, earliest) = (source.number(), source.number());
            form.control(out, id, &Control::Gap { requested, earliest, reason });
            let json = serde_json::json!({"requested": requested, "earliest": earliest, "reason": reason.as_str()});
            ("tidelog.gap", Some(id), Data::Json(json))
        }
        2 => {
            form.control(out, id, &Control::Closed { last: id });
            ("tidelog.closed", Some(id), Data::Json(serde_json::json!({"last": id})))
        }
        3 => {
            let code = source.choose(Code::ALL);
            let problem = Problem { code, detail: source.text(), allow: None, last: source.bit().then_some(id) };
            let json = problem.json();
            let cursor = source.bit().then_some(id);
            form.control(out, cursor, &Control::Error { problem: &json });
            let value: Value = serde_json::from_str(&json).expect("problem details are JSON");
            assert_eq!(
                (value["detail"].as_str(), value["code"].as_str()),
                (Some(&*problem.detail), Some(code.as_str()))
            );
            ("tidelog.error", cursor, Data::Json(value))
        }
        4 => {
            let body = source.text();
            form.snapshot(out, id, &body);
            ("tidelog.snapshot", Some(id), Data::Text(body))
        }
        5 => {
            let event = Owned::take(source);
            form.state_entry(out, &event.event());
            events.push(event);
            ("tidelog.state", None, Data::Json(Value::Null))
        }
        6 => return form.heartbeat(out),
        7 => return form.retry(out, Duration::from_millis(id)),
        _ => {
            let event = Owned::take(source);
            form.event(out, &event.event());
            let kind = event.event.as_ref().map_or("", EventType::as_str).to_owned();
            let (id, text) = (event.id, event.data.clone());
            let data = if form == Form::Sse {
                Data::Text(text)
            } else {
                events.push(event);
                Data::Json(Value::Null)
            };
            told.push(Told { kind, id: Some(id), data });
            return;
        }
    };
    told.push(Told { kind: kind.to_owned(), id: cursor, data });
}

fn check_sse(out: &[u8], told: &[Told], events: &[Owned], form: Form) {
    let stream = standard::parse(out);
    assert_eq!(stream.events.len(), told.len(), "{:?}", String::from_utf8_lossy(out));
    let mut whole = events.iter();
    let mut id = String::new();
    for (event, told) in stream.events.iter().zip(told) {
        id = told.id.map_or(id, |id| id.to_string());
        assert_eq!((&event.kind, &event.last_event_id), (&told.kind, &id));
        match &told.data {
            // SSE has only LF.
            Data::Text(text) => assert_eq!(event.data, text.replace("\r\n", "\n").replace('\r', "\n")),
            Data::Json(Value::Null) => {
                let value: Value = serde_json::from_str(&event.data).expect("an envelope is JSON");
                whole.next().expect("it was written").is(&value);
            }
            Data::Json(value) => assert_eq!(&serde_json::from_str::<Value>(&event.data).expect("it is JSON"), value),
        }
    }
    check_items(out, told, form);
}

/// Our own client reads all of it.
fn check_items(out: &[u8], told: &[Told], form: Form) {
    let reading = if form == Form::SseEnvelope { Reading::Envelope } else { Reading::Plain(None) };
    let (mut decoder, mut rest, mut items) = (Decoder::default(), out, Vec::new());
    while let Some(message) = decoder.next(&mut rest).expect("the limits are far") {
        items.push(read(message, &reading).expect("what the server writes is what its client reads"));
    }
    assert_eq!(items.len(), told.len());
    for (item, told) in items.iter().zip(told) {
        let kind = match item {
            Item::Event(event) => {
                assert_eq!(Some(event.id), told.id);
                event.event.as_deref().unwrap_or("")
            }
            Item::Live { .. } => "tidelog.live",
            Item::Gap { .. } => "tidelog.gap",
            Item::Closed { .. } => "tidelog.closed",
            Item::Error(_) => "tidelog.error",
            Item::Snapshot { at, .. } => {
                assert_eq!(Some(*at), told.id);
                "tidelog.snapshot"
            }
            Item::State(_) => "tidelog.state",
            other => panic!("{other:?}"),
        };
        assert_eq!(kind, told.kind);
    }
}

fn check_lines(out: &[u8], told: &[Told], events: &[Owned]) {
    let text = std::str::from_utf8(out).expect("what is written is UTF-8");
    assert!(text.is_empty() || text.ends_with('\n'));
    let lines: Vec<Value> = text
        .split('\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).expect("a line is JSON"))
        .collect();
    assert_eq!(lines.len(), told.len());
    let mut whole = events.iter();
    for (line, told) in lines.iter().zip(told) {
        let control = told.kind.starts_with("tidelog.");
        if control {
            assert_eq!(line["event"].as_str(), Some(&*told.kind));
            assert_eq!(line["after"].as_u64(), told.id);
            assert!(line.get("id").is_none(), "a control line has no id");
        }
        match &told.data {
            Data::Json(Value::Null) => {
                whole.next().expect("it was written").is(if control { &line["data"] } else { line });
            }
            Data::Text(text) => assert_eq!(line["data"].as_str(), Some(&**text)),
            Data::Json(value) => assert_eq!(&line["data"], value),
        }
    }
}
