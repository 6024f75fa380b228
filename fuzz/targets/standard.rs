//! A parser of event streams, written from the standard and from nothing else
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>): on a whole stream, with no thought of
//! speed or memory. What the product writes and reads is held against it.

/// What the standard calls a message event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The event type buffer; empty means `message`.
    pub kind: String,
    pub data: String,
    pub last_event_id: String,
}

/// Everything that a stream says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stream {
    pub events: Vec<Event>,
    pub last_event_id: String,
    /// In milliseconds; more than 64 bits hold is the most that they do.
    pub reconnection_time: Option<u64>,
}

/// Parses a stream that ends with `bytes`.
pub fn parse(bytes: &[u8]) -> Stream {
    // "Streams must be decoded using the UTF-8 decode algorithm", which strips one byte order mark and replaces what is malformed.
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut stream = Stream::default();
    let (mut data, mut kind, mut id) = (String::new(), String::new(), String::new());
    for line in lines(text) {
        if line.is_empty() {
            // "Set the last event ID string of the event source to the value of the last event ID buffer."
            stream.last_event_id.clone_from(&id);
            let (data, kind) = (std::mem::take(&mut data), std::mem::take(&mut kind));
            if let Some(data) = data.strip_suffix('\n') {
                stream.events.push(Event { kind, data: data.to_owned(), last_event_id: id.clone() });
            }
            continue;
        }
        let (field, value) = match line.find(':') {
            Some(0) => continue,
            Some(colon) => {
                let value = &line[colon + 1..];
                (&line[..colon], value.strip_prefix(' ').unwrap_or(value))
            }
            None => (line, ""),
        };
        match field {
            "event" => value.clone_into(&mut kind),
            "data" => {
                data += value;
                data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut id),
            "retry" if !value.is_empty() && value.chars().all(|c| c.is_ascii_digit()) => {
                let digits = value.trim_start_matches('0');
                let most = u64::MAX.to_string();
                let fits = digits.len() < most.len() || digits.len() == most.len() && *digits <= *most;
                let number = |d: &str| d.bytes().fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
                stream.reconnection_time = Some(if fits { number(digits) } else { u64::MAX });
            }
            _ => {}
        }
    }
    stream
}

/// The lines that have an end: CR LF, LF or CR. What comes after the last end is discarded, as the standard says of a stream that ends.
fn lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(['\r', '\n']) {
        lines.push(&rest[..end]);
        let len = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[end + len..];
    }
    lines
}
