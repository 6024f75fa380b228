//! The client's parser of event streams, on any bytes in any pieces: it says what the standard says, however they are cut, within its
//! limits; and what it gives can be read as items without a panic.

use std::time::Duration;

use tidelog::client::{Reading, read};
use tidelog::sse::decode::{Decoder, Limits, Message, TooLarge};

use super::source::Source;
use super::standard;

struct Decoded {
    messages: Vec<Message>,
    last_event_id: String,
    retry: Option<Duration>,
    too_large: Option<TooLarge>,
}

/// Decodes `stream` in pieces as long as `cuts` say, in turn; none: in one.
fn decode(stream: &[u8], cuts: &[u8], limits: Limits, keep_frames: bool) -> Decoded {
    let mut decoder = Decoder::new(limits);
    if keep_frames {
        decoder = decoder.keep_frames();
    }
    let mut messages = Vec::new();
    let mut too_large = None;
    let mut rest = stream;
    let mut lengths = cuts.iter().map(|&cut| usize::from(cut).max(1)).cycle();
    'pieces: while !rest.is_empty() {
        let (mut piece, after) = rest.split_at(lengths.next().unwrap_or(rest.len()).min(rest.len()));
        rest = after;
        loop {
            match decoder.next(&mut piece) {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => {
                    too_large = Some(error);
                    break 'pieces;
                }
            }
        }
        assert!(piece.is_empty(), "what is read is taken");
    }
    Decoded { messages, last_event_id: decoder.last_event_id().to_owned(), retry: decoder.retry(), too_large }
}

pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let keep_frames = source.bit();
    let cuts = source.bytes();
    let small = Limits { line_bytes_max: usize::from(source.byte()), event_bytes_max: usize::from(source.byte()) };
    let stream = source.rest();

    let whole = decode(stream, &[], Limits::default(), keep_frames);
    assert_eq!(whole.too_large, None, "the limits are far");
    let said = standard::parse(stream);
    assert_eq!(whole.messages.len(), said.events.len());
    for (message, event) in whole.messages.iter().zip(&said.events) {
        assert_eq!((&message.event, &message.data), (&event.kind, &event.data));
        assert_eq!(message.id, event.last_event_id);
        if keep_frames {
            // A frame is an event of its own, but for an id that came earlier. It stands in the midst of a stream, where a byte order
            // mark means nothing.
            let again = standard::parse(&[b":\n", &message.frame[..]].concat()).events;
            assert_eq!(again.len(), 1, "{:?}", String::from_utf8_lossy(&message.frame));
            assert_eq!((&again[0].kind, &again[0].data), (&event.kind, &event.data));
        } else {
            assert!(message.frame.is_empty());
        }
        for reading in [Reading::Envelope, Reading::Plain(None), Reading::Plain(Some("t"))] {
            // Whatever it is, it is an item or an error.
            let _ = read(message.clone(), &reading);
        }
    }
    assert_eq!(whole.last_event_id, said.last_event_id);
    assert_eq!(whole.retry, said.reconnection_time.map(Duration::from_millis));

    for limits in [Limits::default(), small] {
        let whole = decode(stream, &[], limits, keep_frames);
        for cuts in [cuts, &[1]] {
            let cut = decode(stream, cuts, limits, keep_frames);
            assert_eq!(cut.messages, whole.messages, "cut as {cuts:?}, {limits:?}");
            assert_eq!((&cut.last_event_id, cut.retry), (&whole.last_event_id, whole.retry), "cut as {cuts:?}");
            assert_eq!(cut.too_large, whole.too_large, "cut as {cuts:?}, {limits:?}");
        }
        for message in whole.messages {
            assert!(message.data.len() <= limits.event_bytes_max && message.frame.len() <= limits.event_bytes_max);
        }
    }
}
