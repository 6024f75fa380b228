//! Bytes: events and control events as they go out on a stream, and Server-Sent Events read back in.
//!
//! Frames are complete: any sequence of them is a valid stream. What holds: data never breaks its frame
//! (CR, LF and CRLF all start a new `data:` line), and ids are plain decimal. Must not know where events
//! come from, nor sockets or clocks.

pub mod decode;

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use crate::event::{EventId, EventRef, Millis};

/// How the events of a stream are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// `text/event-stream`: id, type and data.
    Sse,
    /// `text/event-stream` whose data is the whole event as one JSON object (`envelope=json`).
    SseEnvelope,
    /// `application/x-ndjson`: the whole event as one JSON object, a line each.
    Lines,
}

impl Form {
    /// The `Content-Type` of such a stream.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Sse | Self::SseEnvelope => "text/event-stream",
            Self::Lines => "application/x-ndjson",
        }
    }

    /// Appends `event` to `out`.
    pub fn event(self, out: &mut Vec<u8>, event: &EventRef<'_>) {
        match self {
            Self::Sse => {
                head(out, Some(event.id), event.event);
                data(out, event.data);
                out.push(b'\n');
            }
            Self::SseEnvelope => {
                head(out, Some(event.id), event.event);
                out.extend_from_slice(b"data: ");
                json_event(out, event);
                out.extend_from_slice(b"\n\n");
            }
            Self::Lines => {
                json_event(out, event);
                out.push(b'\n');
            }
        }
    }

    /// Appends a control event to `out`; `cursor` is the place in the log from which a reconnect loses nothing. Without one, the client
    /// keeps the place that it has.
    pub fn control(self, out: &mut Vec<u8>, cursor: impl Into<Option<EventId>>, control: &Control<'_>) {
        let cursor = cursor.into();
        match self {
            Self::Sse | Self::SseEnvelope => {
                head(out, cursor, Some(control.name()));
                out.extend_from_slice(b"data: ");
                control.json(out);
                out.extend_from_slice(b"\n\n");
            }
            Self::Lines => {
                out.extend_from_slice(b"{\"event\":\"");
                out.extend_from_slice(control.name().as_bytes());
                if let Some(cursor) = cursor {
                    out.extend_from_slice(b"\",\"after\":");
                    decimal(out, cursor);
                } else {
                    out.push(b'"');
                }
                out.extend_from_slice(b",\"data\":");
                control.json(out);
                out.extend_from_slice(b"}\n");
            }
        }
    }

    /// Appends one entry of a state: the newest event of its key. It has no id of its own, as a client that drops in the midst of a
    /// state cannot go on there.
    pub fn state_entry(self, out: &mut Vec<u8>, event: &EventRef<'_>) {
        match self {
            Self::Sse | Self::SseEnvelope => {
                head(out, None, Some("tidelog.state"));
                out.extend_from_slice(b"data: ");
                json_event(out, event);
                out.extend_from_slice(b"\n\n");
            }
            Self::Lines => {
                out.extend_from_slice(b"{\"event\":\"tidelog.state\",\"data\":");
                json_event(out, event);
                out.extend_from_slice(b"}\n");
            }
        }
    }

    /// Appends a topic's snapshot, which is true at `at`.
    pub fn snapshot(self, out: &mut Vec<u8>, at: EventId, body: &str) {
        match self {
            Self::Sse | Self::SseEnvelope => {
                head(out, Some(at), Some("tidelog.snapshot"));
                data(out, body);
                out.push(b'\n');
            }
            Self::Lines => {
                out.extend_from_slice(b"{\"event\":\"tidelog.snapshot\",\"after\":");
                decimal(out, at);
                out.extend_from_slice(b",\"data\":");
                json_string(out, body);
                out.extend_from_slice(b"}\n");
            }
        }
    }

    /// Appends what keeps an idle connection open and disturbs no parser.
    pub fn heartbeat(self, out: &mut Vec<u8>) {
        match self {
            // No blank line after it: some parsers take that for an event.
            Self::Sse | Self::SseEnvelope => out.extend_from_slice(b":\n"),
            Self::Lines => out.push(b'\n'),
        }
    }

    /// Appends how long a client should wait before it reconnects. JSON lines have no word for it.
    pub fn retry(self, out: &mut Vec<u8>, retry: Duration) {
        if self != Self::Lines {
            out.extend_from_slice(b"retry: ");
            decimal(out, u64::try_from(retry.as_millis()).unwrap_or(u64::MAX));
            out.push(b'\n');
        }
    }
}

/// What a stream says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control<'a> {
    /// `tidelog.live`: everything up to `tail` has been delivered.
    Live { tail: EventId, log: &'a str },
    /// `tidelog.gap`: something after `requested` is gone; nothing is missing from `earliest` on.
    Gap { requested: EventId, earliest: EventId, reason: GapReason },
    /// `tidelog.closed`: every topic was closed, the newest of their events is `last`, and all of it was delivered.
    Closed { last: EventId },
    /// `tidelog.error`: the stream cannot go on; `problem` is RFC 9457 JSON on one line.
    Error { problem: &'a str },
}

impl Control<'_> {
    /// The event type that it is sent under.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Live { .. } => "tidelog.live",
            Self::Gap { .. } => "tidelog.gap",
            Self::Closed { .. } => "tidelog.closed",
            Self::Error { .. } => "tidelog.error",
        }
    }

    /// Appends its data as one line of JSON.
    pub fn json(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Live { tail, log } => {
                out.extend_from_slice(b"{\"tail\":");
                decimal(out, tail);
                out.extend_from_slice(b",\"log\":");
                json_string(out, log);
                out.push(b'}');
            }
            Self::Gap { requested, earliest, reason } => {
                out.extend_from_slice(b"{\"requested\":");
                decimal(out, requested);
                out.extend_from_slice(b",\"earliest\":");
                decimal(out, earliest);
                out.extend_from_slice(b",\"reason\":\"");
                out.extend_from_slice(reason.as_str().as_bytes());
                out.extend_from_slice(b"\"}");
            }
            Self::Closed { last } => {
                out.extend_from_slice(b"{\"last\":");
                decimal(out, last);
                out.push(b'}');
            }
            Self::Error { problem } => out.extend_from_slice(problem.as_bytes()),
        }
    }
}

/// Why events that were asked for are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// Retention or a DELETE took them.
    Trimmed,
    /// Their ids were skipped after an unclean stop or a restore; something may have been delivered under them.
    Lost,
    /// The cursor lies beyond the tail, so it is another log's.
    Ahead,
}

impl GapReason {
    /// The word for it on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trimmed => "trimmed",
            Self::Lost => "lost",
            Self::Ahead => "ahead",
        }
    }
}

/// Up to where events may be missing. A cursor below it may have missed some of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    pub id: EventId,
    pub reason: GapReason,
}

impl Floor {
    /// Nothing is missing.
    pub const NONE: Self = Self { id: 0, reason: GapReason::Trimmed };

    /// The higher of the two; where both are equally high, `self`.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        if other.id > self.id { other } else { self }
    }
}

/// The end of the year 9999: RFC 3339 has no year after it, so later times, from a clock gone wrong, are told as this one.
const TIME_MAX: Millis = 253_402_300_799_999;

/// Appends the whole event as one JSON object.
pub fn json_event(out: &mut Vec<u8>, event: &EventRef<'_>) {
    out.extend_from_slice(b"{\"id\":");
    decimal(out, event.id);
    out.extend_from_slice(b",\"topic\":");
    json_string(out, event.topic);
    for (name, value) in [("event", event.event), ("key", event.key)] {
        if let Some(value) = value {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            json_string(out, value);
        }
    }
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(event.time.min(TIME_MAX));
    write!(out, ",\"time\":\"{}\",\"data\":", humantime::format_rfc3339_millis(time)).expect("a Vec takes every write");
    json_string(out, event.data);
    out.push(b'}');
}

/// Appends `text` as a JSON string.
pub fn json_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a Vec takes every write, and a str is always valid JSON");
}

fn head(out: &mut Vec<u8>, id: Option<EventId>, event: Option<&str>) {
    if let Some(id) = id {
        out.extend_from_slice(b"id: ");
        decimal(out, id);
        out.push(b'\n');
    }
    if let Some(event) = event {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(event.as_bytes());
        out.push(b'\n');
    }
}

/// One `data:` line per line of `text`; LF, CR and CRLF each end a line.
fn data(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    loop {
        out.extend_from_slice(b"data: ");
        match memchr::memchr2(b'\n', b'\r', rest) {
            None => {
                out.extend_from_slice(rest);
                out.push(b'\n');
                return;
            }
            Some(end) => {
                out.extend_from_slice(&rest[..end]);
                out.push(b'\n');
                let crlf = rest[end] == b'\r' && rest.get(end + 1) == Some(&b'\n');
                rest = &rest[end + 1 + usize::from(crlf)..];
            }
        }
    }
}

/// `00` to `99`.
const PAIRS: [[u8; 2]; 100] = {
    let mut pairs = [[b'0'; 2]; 100];
    let (mut tens, mut at) = (b'0', 0);
    while at < 100 {
        let mut ones = b'0';
        while ones <= b'9' {
            pairs[at] = [tens, ones];
            (ones, at) = (ones + 1, at + 1);
        }
        tens += 1;
    }
    pairs
};

/// Appends `n` in decimal digits.
pub fn decimal(out: &mut Vec<u8>, mut n: u64) {
    let pair = |n: u64| PAIRS[usize::try_from(n % 100).expect("a remainder of a hundred is small")];
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    while n >= 10 {
        at -= 2;
        digits[at..at + 2].copy_from_slice(&pair(n));
        n /= 100;
    }
    // What is left has one digit, or none where the last pair was the first.
    if n > 0 || at == digits.len() {
        at -= 1;
        digits[at] = pair(n)[1];
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event<'a>(event: Option<&'a str>, data: &'a str) -> EventRef<'a> {
        EventRef { id: 42, topic: "orders.eu", event, key: None, time: 1_795_341_600_123, data }
    }

    fn frame(form: Form, e: &EventRef<'_>) -> String {
        let mut out = Vec::new();
        form.event(&mut out, e);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_event_is_id_type_data_and_a_blank_line() {
        assert_eq!(
            frame(Form::Sse, &event(Some("created"), "{\"n\":1}")),
            "id: 42\nevent: created\ndata: {\"n\":1}\n\n"
        );
        assert_eq!(frame(Form::Sse, &event(None, "")), "id: 42\ndata: \n\n");
    }

    #[test]
    fn every_line_ending_starts_a_data_line() {
        assert_eq!(
            frame(Form::Sse, &event(None, "a\nb\rc\r\nd\n\n:e")),
            "id: 42\ndata: a\ndata: b\ndata: c\ndata: d\ndata: \ndata: :e\n\n"
        );
        assert_eq!(frame(Form::Sse, &event(None, "\r\r\n\n")), "id: 42\ndata: \ndata: \ndata: \ndata: \n\n");
    }

    #[test]
    fn a_json_line_gives_the_data_exactly() {
        let line = frame(Form::Lines, &EventRef { key: Some("7"), ..event(Some("created"), "a\r\n\"b\"") });
        assert_eq!(
            line,
            "{\"id\":42,\"topic\":\"orders.eu\",\"event\":\"created\",\"key\":\"7\",\
             \"time\":\"2026-11-22T10:00:00.123Z\",\"data\":\"a\\r\\n\\\"b\\\"\"}\n"
        );
    }

    #[test]
    fn a_time_that_rfc_3339_cannot_tell_is_the_last_that_it_can() {
        for time in [TIME_MAX, TIME_MAX + 1, u64::MAX] {
            let line = frame(Form::Lines, &EventRef { time, ..event(None, "x") });
            assert!(line.contains("\"time\":\"9999-12-31T23:59:59.999Z\""), "{line}");
        }
    }

    #[test]
    fn an_envelope_keeps_id_and_type_on_the_wire() {
        let f = frame(Form::SseEnvelope, &event(Some("t"), "x"));
        assert!(f.starts_with("id: 42\nevent: t\ndata: {\"id\":42,"), "{f}");
        assert!(f.ends_with("\"data\":\"x\"}\n\n"), "{f}");
    }

    #[test]
    fn control_events_carry_the_cursor() {
        let gap = Control::Gap { requested: 42, earliest: 1000, reason: GapReason::Trimmed };
        let mut sse = Vec::new();
        Form::Sse.control(&mut sse, 42, &gap);
        assert_eq!(
            String::from_utf8(sse).unwrap(),
            "id: 42\nevent: tidelog.gap\ndata: {\"requested\":42,\"earliest\":1000,\"reason\":\"trimmed\"}\n\n"
        );
        let mut lines = Vec::new();
        Form::Lines.control(&mut lines, 90, &Control::Live { tail: 90, log: "x" });
        assert_eq!(
            String::from_utf8(lines).unwrap(),
            "{\"event\":\"tidelog.live\",\"after\":90,\"data\":{\"tail\":90,\"log\":\"x\"}}\n"
        );
    }

    #[test]
    fn a_bundle_is_entries_without_ids_or_a_snapshot_with_its_own() {
        let written = |write: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            write(&mut out);
            String::from_utf8(out).unwrap()
        };
        let entry = EventRef { key: Some("7"), ..event(None, "x") };
        let sse = written(&|out| Form::Sse.state_entry(out, &entry));
        assert!(
            sse.starts_with("event: tidelog.state\ndata: {\"id\":42,") && sse.ends_with("\"data\":\"x\"}\n\n"),
            "{sse}"
        );
        assert_eq!(sse, written(&|out| Form::SseEnvelope.state_entry(out, &entry)));
        let line = written(&|out| Form::Lines.state_entry(out, &entry));
        assert!(
            line.starts_with("{\"event\":\"tidelog.state\",\"data\":{\"id\":42,") && line.ends_with("\"}}\n"),
            "{line}"
        );
        assert_eq!(
            written(&|out| Form::Sse.snapshot(out, 9, "a\nb")),
            "id: 9\nevent: tidelog.snapshot\ndata: a\ndata: b\n\n"
        );
        assert_eq!(
            written(&|out| Form::Lines.snapshot(out, 9, "a\nb")),
            "{\"event\":\"tidelog.snapshot\",\"after\":9,\"data\":\"a\\nb\"}\n"
        );
        assert_eq!(
            written(&|out| Form::Sse.control(out, 9, &Control::Closed { last: 7 })),
            "id: 9\nevent: tidelog.closed\ndata: {\"last\":7}\n\n"
        );
    }

    #[test]
    fn decimals_are_what_display_writes() {
        for n in (0..1_200).chain([9_999, 10_000, 10_001, 9_007_199_254_740_991, u64::MAX]) {
            let mut out = Vec::new();
            decimal(&mut out, n);
            assert_eq!(String::from_utf8(out).unwrap(), n.to_string());
        }
    }
}
