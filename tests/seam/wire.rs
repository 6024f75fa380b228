//! What comes over the wire, as a client reads it.

use serde_json::Value;
use tidelog::event::EventId;
use tidelog::sse::Form;
use tidelog::sse::decode::Decoder;

#[derive(Debug, Clone)]
pub enum Frame {
    Event {
        id: EventId,
        event: Option<String>,
        data: String,
    },
    Control {
        id: EventId,
        name: String,
        data: Value,
    },
    /// Of a state, without an id.
    Entry {
        json: Value,
    },
}

/// Reads a connection; pieces may end within a frame.
#[derive(Debug)]
pub struct Reader {
    form: Form,
    decoder: Decoder,
    rest: Vec<u8>,
}

impl Reader {
    pub fn new(form: Form) -> Self {
        Self { form, decoder: Decoder::default().keep_frames(), rest: Vec::new() }
    }

    /// The frames that are complete with these bytes.
    pub fn read(&mut self, mut bytes: &[u8]) -> Vec<Frame> {
        if self.form == Form::Lines {
            self.rest.extend_from_slice(bytes);
            let whole = self.rest.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            let lines: Vec<u8> = self.rest.drain(..whole).collect();
            return std::str::from_utf8(&lines).unwrap().lines().filter(|l| !l.is_empty()).map(line).collect();
        }
        let mut frames = Vec::new();
        while let Some(message) = self.decoder.next(&mut bytes).unwrap() {
            let has_id = message.frame.split(|b| *b == b'\n').any(|line| line.starts_with(b"id:"));
            let event = Some(message.event).filter(|e| !e.is_empty());
            if event.as_deref() == Some("tidelog.state") {
                assert!(!has_id, "a client that drops within a state cannot go on there");
                frames.push(Frame::Entry { json: serde_json::from_str(&message.data).unwrap() });
                continue;
            }
            assert!(has_id, "every frame but a state's has an id");
            let id = message.id.parse().unwrap();
            frames.push(match event {
                Some(name) if name == "tidelog.snapshot" => Frame::Control { id, name, data: message.data.into() },
                Some(name) if name.starts_with("tidelog.") => {
                    Frame::Control { id, name, data: serde_json::from_str(&message.data).unwrap() }
                }
                event if self.form == Form::SseEnvelope => {
                    let Frame::Event { id: inner, event: same, data } = line(&message.data) else {
                        panic!("an envelope holds an event")
                    };
                    assert!(inner == id && same == event, "an envelope says what its frame says");
                    Frame::Event { id, event, data }
                }
                event => Frame::Event { id, event, data: message.data },
            });
        }
        frames
    }
}

fn line(text: &str) -> Frame {
    let mut json: Value = serde_json::from_str(text).unwrap();
    let event = json["event"].as_str().map(str::to_owned);
    if let Some(id) = json["after"].as_u64() {
        return Frame::Control { id, name: event.unwrap(), data: json["data"].take() };
    }
    if event.as_deref() == Some("tidelog.state") && json["id"].is_null() {
        return Frame::Entry { json: json["data"].take() };
    }
    let id = json["id"].as_u64().unwrap();
    Frame::Event { id, event, data: json["data"].as_str().unwrap().to_owned() }
}
