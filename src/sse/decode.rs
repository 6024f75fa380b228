//! Bytes: Server-Sent Events read back in, for our own client.
//!
//! A parser by the WHATWG standard that takes bytes in any split: LF, CR and CRLF end lines, one byte order mark at the
//! very start is passed over, bytes that are no UTF-8 become U+FFFD. What holds: how the bytes were cut never changes what
//! comes out, a message comes out as soon as its blank line's first byte is in, and memory is bounded by [`Limits`].
//! Must not know sockets, clocks, or what tidelog's own events mean.

use std::time::Duration;

/// Most bytes of a line and of an event, unless told otherwise: an event of 10 MiB (ten times the server's default limit)
/// whose every byte is written as a JSON escape of six.
pub const BYTES_MAX: usize = 64 << 20;

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// The bounds of what is kept in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes of one line, its ending not counted.
    pub line_bytes_max: usize,
    /// Most bytes of one event's data, with a line feed for each of its lines; and of its frame, where frames are kept.
    pub event_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { line_bytes_max: BYTES_MAX, event_bytes_max: BYTES_MAX }
    }
}

/// An event as the stream dispatches it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// The type; empty when the stream gave none (`EventSource` says `message` then).
    pub event: String,
    /// The data, its lines joined by LF.
    pub data: String,
    /// The stream's last event id; empty when it has given none yet. It may come from an earlier event.
    pub id: String,
    /// The frame's lines as they came, comments left out; empty unless [`Decoder::keep_frames`] was asked.
    pub frame: Vec<u8>,
}

/// The parser. One decoder reads one connection's stream.
#[derive(Debug, Default)]
pub struct Decoder {
    limits: Limits,
    keep_frames: bool,
    /// The line that is not complete yet.
    line: Vec<u8>,
    /// Whether the first line has been read, so that a byte order mark means nothing any more.
    begun: bool,
    /// Whether the last line ended in CR, so that an LF right after it belongs to that ending.
    after_cr: bool,
    event: String,
    data: String,
    /// The last `id:` read; it counts once its event's blank line has come.
    id: String,
    last_event_id: String,
    retry: Option<Duration>,
    frame: Vec<u8>,
}

impl Decoder {
    /// A parser at the beginning of a stream.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Gives each message the frame that it came in.
    #[must_use]
    pub fn keep_frames(mut self) -> Self {
        self.keep_frames = true;
        self
    }

    /// The id to resume after: that of the last complete event, also of one without data, which is not dispatched.
    /// Empty when there was none.
    #[must_use]
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    /// How long the server wants a client to wait before it reconnects, once it has said so.
    #[must_use]
    pub fn retry(&self) -> Option<Duration> {
        self.retry
    }

    /// Reads on in `bytes`, up to the end of the next message; `bytes` is cut to what has not been read. `None`: all of it
    /// has been read, and no further message is complete.
    ///
    /// # Errors
    /// [`TooLarge`] when a line or an event exceeds its limit. The rest of the stream cannot be read then.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Result<Option<Message>, TooLarge> {
        loop {
            if self.after_cr && !bytes.is_empty() {
                self.after_cr = false;
                if let Some(rest) = bytes.strip_prefix(b"\n") {
                    *bytes = rest;
                }
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) else {
                self.check_line(bytes.len())?;
                self.line.extend_from_slice(bytes);
                *bytes = &[];
                return Ok(None);
            };
            self.check_line(end)?;
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            self.after_cr = bytes[end] == b'\r';
            *bytes = rest;
            let message = if self.line.is_empty() {
                self.read_line(line)?
            } else {
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                let message = self.read_line(&whole)?;
                whole.clear();
                self.line = whole;
                message
            };
            if message.is_some() {
                return Ok(message);
            }
        }
    }

    fn check_line(&self, more: usize) -> Result<(), TooLarge> {
        if self.line.len() + more > self.limits.line_bytes_max {
            return Err(TooLarge::Line(self.limits.line_bytes_max));
        }
        Ok(())
    }

    fn read_line(&mut self, mut line: &[u8]) -> Result<Option<Message>, TooLarge> {
        if !self.begun {
            self.begun = true;
            line = line.strip_prefix(BOM).unwrap_or(line);
        }
        if line.is_empty() {
            return Ok(self.dispatch());
        }
        let (name, value) = match memchr::memchr(b':', line) {
            Some(0) => return Ok(None),
            Some(colon) => {
                let value = &line[colon + 1..];
                (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &[][..]),
        };
        if self.keep_frames {
            if self.frame.len() + line.len() + 2 > self.limits.event_bytes_max {
                return Err(TooLarge::Event(self.limits.event_bytes_max));
            }
            self.frame.extend_from_slice(line);
            self.frame.push(b'\n');
        }
        self.read_field(name, value)?;
        Ok(None)
    }

    fn read_field(&mut self, name: &[u8], value: &[u8]) -> Result<(), TooLarge> {
        match name {
            b"data" => {
                let value = String::from_utf8_lossy(value);
                if self.data.len() + value.len() + 1 > self.limits.event_bytes_max {
                    return Err(TooLarge::Event(self.limits.event_bytes_max));
                }
                self.data.push_str(&value);
                self.data.push('\n');
            }
            b"event" => self.event = String::from_utf8_lossy(value).into_owned(),
            b"id" if !value.contains(&0) => self.id = String::from_utf8_lossy(value).into_owned(),
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                // A number too large to be read is no shorter a wait than the longest that can be.
                let text = std::str::from_utf8(value).unwrap_or_default();
                self.retry = Some(Duration::from_millis(text.parse().unwrap_or(u64::MAX)));
            }
            _ => {}
        }
        Ok(())
    }

    /// A blank line: the event is complete. Without any `data` field it is none, but its id counts.
    fn dispatch(&mut self) -> Option<Message> {
        self.last_event_id.clone_from(&self.id);
        let event = std::mem::take(&mut self.event);
        let mut frame = std::mem::take(&mut self.frame);
        if self.data.is_empty() {
            return None;
        }
        let mut data = std::mem::take(&mut self.data);
        data.pop();
        if self.keep_frames {
            frame.push(b'\n');
        }
        Some(Message { event, data, id: self.id.clone(), frame })
    }
}

/// The stream has something larger than this client is set to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooLarge {
    #[error("the stream has a line of more than {0} bytes")]
    Line(usize),
    #[error("the stream has an event of more than {0} bytes")]
    Event(usize),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::EventRef;
    use crate::sse::Form;

    fn drain(decoder: &mut Decoder, mut bytes: &[u8]) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = decoder.next(&mut bytes).unwrap() {
            messages.push(message);
        }
        assert!(bytes.is_empty(), "what is read is taken");
        messages
    }

    fn decode(bytes: &[u8]) -> Vec<Message> {
        drain(&mut Decoder::default(), bytes)
    }

    fn message(event: &str, data: &str, id: &str) -> Message {
        Message { event: event.into(), data: data.into(), id: id.into(), frame: Vec::new() }
    }

    #[test]
    fn the_examples_of_the_standard() {
        assert_eq!(decode(b"data: YHOO\ndata: +2\ndata: 10\n\n"), [message("", "YHOO\n+2\n10", "")]);
        assert_eq!(
            decode(b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"),
            [message("", "first event", "1"), message("", "second event", ""), message("", " third event", "")]
        );
        // The last block has no blank line after it.
        assert_eq!(decode(b"data\n\ndata\ndata\n\ndata:"), [message("", "", ""), message("", "\n", "")]);
        assert_eq!(decode(b"data:test\n\ndata: test\n\n"), [message("", "test", ""), message("", "test", "")]);
    }

    #[test]
    fn lf_cr_and_crlf_end_lines() {
        let want = [message("t", "a\nb", "7")];
        assert_eq!(decode(b"id:7\nevent:t\ndata:a\ndata:b\n\n"), want);
        assert_eq!(decode(b"id:7\revent:t\rdata:a\rdata:b\r\r"), want);
        assert_eq!(decode(b"id:7\r\nevent:t\r\ndata:a\r\ndata:b\r\n\r\n"), want);
        assert_eq!(decode(b"id:7\nevent:t\rdata:a\r\ndata:b\n\r"), want);
    }

    #[test]
    fn a_message_is_out_before_the_lf_of_its_last_crlf() {
        let mut decoder = Decoder::default();
        assert_eq!(drain(&mut decoder, b"data:a\r\n\r"), [message("", "a", "")]);
        assert_eq!(drain(&mut decoder, b"\ndata:b\n\n"), [message("", "b", "")]);
    }

    #[test]
    fn a_byte_order_mark_counts_only_at_the_start() {
        assert_eq!(decode(b"\xEF\xBB\xBFdata:a\n\n"), [message("", "a", "")]);
        assert_eq!(decode(b"\xEF\xBB\xBF\xEF\xBB\xBFdata:a\n\n"), []);
        assert_eq!(decode(b"\n\xEF\xBB\xBFdata:a\n\n"), []);
        assert_eq!(decode(b"data:\xEF\xBB\xBFa\n\n"), [message("", "\u{feff}a", "")]);
        let mut decoder = Decoder::default();
        for part in [&b"\xEF"[..], b"\xBB", b"\xBFdata:a\n"] {
            assert_eq!(drain(&mut decoder, part), []);
        }
        assert_eq!(drain(&mut decoder, b"\n"), [message("", "a", "")]);
    }

    #[test]
    fn an_id_with_nul_is_ignored_and_ids_last() {
        assert_eq!(
            decode(b"id:1\ndata:a\n\nid:2\0\ndata:b\n\ndata:c\n\n"),
            [message("", "a", "1"), message("", "b", "1"), message("", "c", "1")]
        );
    }

    #[test]
    fn an_event_without_data_is_not_dispatched_but_moves_the_cursor() {
        let mut decoder = Decoder::default();
        assert_eq!(drain(&mut decoder, b"id:9\nevent:t\n"), []);
        assert_eq!(decoder.last_event_id(), "", "its blank line has not come");
        assert_eq!(drain(&mut decoder, b"\ndata:a\n\n"), [message("", "a", "9")]);
        assert_eq!(decoder.last_event_id(), "9");
    }

    #[test]
    fn a_torn_event_leaves_the_cursor() {
        let mut decoder = Decoder::default();
        drain(&mut decoder, b"id:1\ndata:a\n\nid:2\ndata:b\n");
        assert_eq!(decoder.last_event_id(), "1");
    }

    #[test]
    fn retry_takes_digits_only_and_at_once() {
        let mut decoder = Decoder::default();
        for bad in [&b"retry:\n"[..], b"retry: 1s\n", b"retry: -1\n", b"retry: 1.5\n", b"retry:  1\n"] {
            drain(&mut decoder, bad);
            assert_eq!(decoder.retry(), None, "{bad:?}");
        }
        drain(&mut decoder, b"retry: 1500\n");
        assert_eq!(decoder.retry(), Some(Duration::from_millis(1500)));
        drain(&mut decoder, b"retry: 99999999999999999999999\n");
        assert_eq!(decoder.retry(), Some(Duration::from_millis(u64::MAX)));
    }

    #[test]
    fn unknown_fields_and_comments_are_passed_over() {
        assert_eq!(decode(b": a\n:\nfoo: b\nDATA: c\n data: d\ndata : e\ndata: f\n\n"), [message("", "f", "")]);
    }

    #[test]
    fn bytes_that_are_no_utf8_are_replaced() {
        assert_eq!(decode(b"data: \xff\xe2\x82\ndata: \xe2\x82\xac\n\n"), [message("", "\u{fffd}\u{fffd}\n€", "")]);
    }

    #[test]
    fn frames_are_kept_without_comments() {
        let mut decoder = Decoder::default().keep_frames();
        let messages = drain(&mut decoder, b"retry: 5\n:\nid: 4\nevent: t\r\ndata: a\n\n:\ndata:b\n\n");
        assert_eq!(messages[0].frame, b"retry: 5\nid: 4\nevent: t\ndata: a\n\n");
        assert_eq!(messages[1].frame, b"data:b\n\n");
    }

    #[test]
    fn lines_and_events_are_bounded() {
        let limits = Limits { line_bytes_max: 10, event_bytes_max: 12 };
        let all = |mut bytes: &[u8]| {
            let mut decoder = Decoder::new(limits);
            std::iter::from_fn(|| decoder.next(&mut bytes).transpose()).collect::<Result<Vec<_>, _>>()
        };
        assert_eq!(all(b"data:12345\n\n").unwrap().len(), 1);
        assert_eq!(all(b"data:123456\n\n"), Err(TooLarge::Line(10)));
        assert_eq!(all(b":1234567890"), Err(TooLarge::Line(10)), "also before the line is complete");
        assert_eq!(all(b"data:12345\ndata:12345\n\n").unwrap().len(), 1);
        assert_eq!(all(b"data:12345\ndata:12345\ndata\n\n"), Err(TooLarge::Event(12)));
    }

    /// Feeds `bytes` in parts as long as `cuts` say, in turn.
    fn in_parts(bytes: &[u8], cuts: &[usize]) -> (Vec<Message>, String, Option<Duration>) {
        let mut decoder = Decoder::default().keep_frames();
        let mut messages = Vec::new();
        let mut rest = bytes;
        for cut in cuts.iter().copied().cycle() {
            let (part, after) = rest.split_at(cut.clamp(1, rest.len().max(1)).min(rest.len()));
            messages.extend(drain(&mut decoder, part));
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        (messages, decoder.last_event_id().to_owned(), decoder.retry())
    }

    /// Texts of which most are line endings, colons and the like.
    fn crooked() -> impl Strategy<Value = String> {
        proptest::collection::vec(
            prop_oneof![
                Just("\n".to_owned()),
                Just("\r".to_owned()),
                Just("\r\n".to_owned()),
                Just(":".to_owned()),
                Just(" ".to_owned()),
                Just("\u{feff}".to_owned()),
                Just("data".to_owned()),
                Just("id: 5".to_owned()),
                "\\PC{0,4}",
            ],
            0..12,
        )
        .prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_however_it_is_cut(
            events in proptest::collection::vec((1u64..1 << 53, proptest::option::of("[a-z.é]{1,9}"), crooked()), 1..5),
            cuts in proptest::collection::vec(1usize..40, 1..20),
        ) {
            let mut bytes = Vec::new();
            for (id, event, data) in &events {
                let event = EventRef { id: *id, topic: "t", event: event.as_deref(), key: None, time: 0, data };
                Form::Sse.event(&mut bytes, &event);
                Form::Sse.heartbeat(&mut bytes);
            }
            let (messages, _, _) = in_parts(&bytes, &cuts);
            prop_assert_eq!(messages.len(), events.len());
            for (message, (id, event, data)) in messages.iter().zip(&events) {
                prop_assert_eq!(&message.id, &id.to_string());
                prop_assert_eq!(&message.event, event.as_deref().unwrap_or(""));
                prop_assert_eq!(&message.data, &data.replace("\r\n", "\n").replace('\r', "\n"));
            }
        }

        #[test]
        fn byte_by_byte_equals_whole(text in proptest::collection::vec(prop_oneof![
            crooked().prop_map(String::into_bytes), proptest::collection::vec(any::<u8>(), 0..8),
            Just(b"\ndata:x\n\n".to_vec()), Just(b"\rretry:7\r\n".to_vec()), Just(b"\xEF\xBB\xBF".to_vec()),
        ], 0..8)) {
            let bytes = text.concat();
            prop_assert_eq!(in_parts(&bytes, &[1]), in_parts(&bytes, &[bytes.len().max(1)]));
        }
    }
}
