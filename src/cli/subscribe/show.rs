//! How events look on stdout, and what is told on stderr.
//!
//! What holds: in the forms for people and for JSON, everything is one line, and no data can move the terminal's cursor. Must
//! not know where the items come from.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use tidelog::client::{Event, Item};
use tidelog::event::EventId;
use tidelog::sse::json_string;

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// A line for people: id, time, topic, type, data; line breaks in the data as \n
    Text,
    /// The event object, a line each
    Json,
    /// The SSE frames as they came, control events too
    Raw,
}

/// Appends what goes to stdout for `item`; `frame` are its bytes on the plain wire.
pub fn show(out: &mut Vec<u8>, output: Output, item: &Item, frame: &[u8]) {
    match (output, item) {
        (Output::Raw, _) => out.extend_from_slice(frame),
        (Output::Text, Item::Event(event)) => text(out, event, event.event.as_deref()),
        (Output::Text, Item::State(event)) => text(out, event, Some("tidelog.state")),
        (Output::Text, Item::Snapshot { at, body }) => {
            let snapshot =
                Event { id: *at, topic: None, event: None, key: None, time: None, data: body.clone(), object: None };
            text(out, &snapshot, Some("tidelog.snapshot"));
        }
        (Output::Json, Item::Event(event)) => {
            object(out, event);
            out.push(b'\n');
        }
        (Output::Json, Item::State(event)) => {
            out.extend_from_slice(b"{\"event\":\"tidelog.state\",\"data\":");
            object(out, event);
            out.extend_from_slice(b"}\n");
        }
        (Output::Json, Item::Snapshot { at, body }) => {
            write!(out, "{{\"event\":\"tidelog.snapshot\",\"after\":{at},\"data\":").expect("a Vec takes every write");
            json_string(out, body);
            out.extend_from_slice(b"}\n");
        }
        _ => {}
    }
}

fn object(out: &mut Vec<u8>, event: &Event) {
    // Between the tokens of JSON, a line feed is a space.
    let object = event.object.as_deref().unwrap_or_default();
    out.extend(object.bytes().map(|byte| if byte == b'\n' { b' ' } else { byte }));
}

fn text(out: &mut Vec<u8>, event: &Event, name: Option<&str>) {
    let mut line = format!("{}  ", event.id);
    let time = event.time.and_then(|time| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(time)));
    match time {
        Some(time) => write!(line, "{}", humantime::format_rfc3339_millis(time)).expect("a String takes every write"),
        None => line.push('-'),
    }
    for part in [event.topic.as_deref(), name] {
        line.push_str("  ");
        visible(&mut line, part.unwrap_or("-"));
    }
    line.push_str("  ");
    visible(&mut line, &event.data);
    line.push('\n');
    out.extend_from_slice(line.as_bytes());
}

/// Control characters as escapes.
fn visible(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

/// What is told of `item`; `live` is whether the stream was live already.
pub fn told(item: &Item, cursor: Option<EventId>, live: bool) -> Option<String> {
    Some(match item {
        Item::Live { tail, log } if !live => format!("live at {tail} of log {log}"),
        Item::Gap { requested, earliest, reason } => {
            let why = match reason.as_str() {
                "trimmed" => "were removed by retention or by hand",
                "lost" => "may have been lost in an unclean stop or a restore",
                "ahead" => "are another log's: this one does not reach that far",
                _ => "are not there",
            };
            format!("GAP: events after {requested} {why} ({reason}); nothing is missing from {earliest} on")
        }
        Item::Closed { last } => format!("closed; the last event is {last}"),
        Item::Error(problem) => format!("the server ends the stream: {problem}"),
        Item::LogChanged { was, now } => {
            format!("ANOTHER LOG: the server had {was} and now has {now}; going on from its beginning")
        }
        Item::Disconnected { why, retry_in } => {
            let after = cursor.map_or_else(String::new, |id| format!(" after id {id}"));
            format!("{why}; connecting again{after} in {:.1} s", retry_in.as_secs_f64())
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(data: &str) -> Event {
        Event {
            id: 42,
            topic: Some("orders.eu".into()),
            event: Some("created".into()),
            key: None,
            time: Some(1_795_341_600_123),
            data: data.into(),
            object: Some("{\"id\":42,\n\"x\":1}".into()),
        }
    }

    fn shown(output: Output, item: &Item) -> String {
        let mut out = Vec::new();
        show(&mut out, output, item, b"id: 42\ndata: x\n\n");
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_is_one_harmless_line() {
        assert_eq!(
            shown(Output::Text, &Item::Event(event("a\r\n\u{1b}[2Jü\t\\"))),
            "42  2026-11-22T10:00:00.123Z  orders.eu  created  a\\r\\n\\u{1b}[2Jü\\t\\\n"
        );
        let bare = Event { topic: None, event: None, time: None, ..event("") };
        assert_eq!(shown(Output::Text, &Item::Event(bare)), "42  -  -  -  \n");
        let snapshot = Item::Snapshot { at: 7, body: "b".into() };
        assert_eq!(shown(Output::Text, &snapshot), "7  -  -  tidelog.snapshot  b\n");
    }

    #[test]
    fn json_is_the_object_on_one_line() {
        assert_eq!(shown(Output::Json, &Item::Event(event(""))), "{\"id\":42, \"x\":1}\n");
        assert_eq!(
            shown(Output::Json, &Item::State(event(""))),
            "{\"event\":\"tidelog.state\",\"data\":{\"id\":42, \"x\":1}}\n"
        );
        assert_eq!(
            shown(Output::Json, &Item::Snapshot { at: 7, body: "b\n".into() }),
            "{\"event\":\"tidelog.snapshot\",\"after\":7,\"data\":\"b\\n\"}\n"
        );
        assert_eq!(shown(Output::Json, &Item::Live { tail: 1, log: "l".into() }), "");
    }

    #[test]
    fn raw_is_the_frame() {
        assert_eq!(shown(Output::Raw, &Item::Event(event(""))), "id: 42\ndata: x\n\n");
    }

    #[test]
    fn heartbeats_are_not_told_and_gaps_are() {
        let live = Item::Live { tail: 9, log: "l".into() };
        assert_eq!(told(&live, Some(9), false).unwrap(), "live at 9 of log l");
        assert_eq!(told(&live, Some(9), true), None);
        let gap = Item::Gap { requested: 4, earliest: 10, reason: "trimmed".into() };
        assert!(told(&gap, Some(4), true).unwrap().starts_with("GAP: events after 4 were removed"));
    }
}
