//! The judge of one connection. It knows what was asked, what the log truly holds, and what came over the wire; nothing of how.

use std::sync::Arc;

use serde_json::Value;
use tidelog::event::EventId;
use tidelog::sse::Form;
use tidelog::sse::decode::Decoder;
use tidelog::subscription::Begin;
use tidelog::topic::Filter;

use crate::facts::{Fact, Facts};

/// A frame as a client reads it.
#[derive(Debug, Clone)]
pub enum Frame {
    Event { id: EventId, event: Option<String>, data: String },
    Control { id: EventId, name: String, data: Value },
}

/// Reads the frames of whole chunks.
pub fn frames(form: Form, mut bytes: &[u8]) -> Vec<Frame> {
    if form == Form::Lines {
        let lines = std::str::from_utf8(bytes).unwrap().lines().filter(|line| !line.is_empty());
        return lines.map(line).collect();
    }
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    while let Some(message) = decoder.next(&mut bytes).unwrap() {
        let id = message.id.parse().expect("every frame has an id");
        let event = Some(message.event).filter(|e| !e.is_empty());
        frames.push(match event {
            Some(name) if name.starts_with("tidelog.") => {
                Frame::Control { id, name, data: serde_json::from_str(&message.data).unwrap() }
            }
            event if form == Form::SseEnvelope => {
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

fn line(text: &str) -> Frame {
    let mut json: Value = serde_json::from_str(text).unwrap();
    let event = json["event"].as_str().map(str::to_owned);
    if let Some(id) = json["after"].as_u64() {
        return Frame::Control { id, name: event.unwrap(), data: json["data"].take() };
    }
    let id = json["id"].as_u64().unwrap();
    Frame::Event { id, event, data: json["data"].as_str().unwrap().to_owned() }
}

pub struct Watch {
    filter: Arc<Filter>,
    /// Everything that was owed up to here has come, or its loss was told.
    at: EventId,
    /// Nothing between `at` and here is owed.
    looked: EventId,
    /// Losses up to here were told.
    told: EventId,
    /// What was trimmed before this step was not asked for.
    excused: Option<u64>,
    /// The beginning lies beyond the tail, which is to be told first.
    ahead: Option<EventId>,
    /// Where a stream that does not follow ends.
    until: Option<EventId>,
    /// The step at which it began.
    begun: u64,
    /// The last id that the client saw.
    pub id: Option<EventId>,
}

impl Watch {
    /// `known` is the step at which the server asked the store where its log begins, `now` the one at which a beginning that must be
    /// searched for is found, and `tail` the tail that it fixed.
    pub fn new(
        filter: Arc<Filter>,
        begin: Begin,
        follow: bool,
        facts: &Facts,
        tail: EventId,
        (mut known, now): (u64, u64),
    ) -> Self {
        if matches!(begin, Begin::Last(_) | Begin::Time(_)) {
            known = now;
        }
        let from = |at, excused: bool| (at, excused.then_some(known), None);
        let after = |id| if id > tail { (0, Some(known), Some(id)) } else { from(id, false) };
        let (at, excused, ahead) = match begin {
            Begin::After(id) => after(id),
            Begin::At(id) => after(id - 1),
            Begin::Latest => from(tail, false),
            Begin::Earliest => from(0, true),
            Begin::Last(n) => {
                let mut there = facts.matching(&filter, 0, tail).rev().filter(|fact| fact.gone.is_none());
                let first = there.nth(usize::try_from(n).unwrap() - 1);
                from(first.map_or(0, |fact| fact.event.id - 1), true)
            }
            Begin::Time(time) => {
                let older = facts.events.values().rev().find(|fact| fact.event.time < time);
                from(older.map_or(0, |fact| fact.event.id).min(tail), true)
            }
        };
        let until = (!follow).then_some(tail);
        Self { filter, at, looked: at, told: 0, excused, ahead, until, begun: now, id: None }
    }

    fn excuses(&self, fact: &Fact) -> bool {
        fact.trimmed.is_some_and(|step| fact.event.id <= self.told || self.excused.is_some_and(|known| step < known))
    }

    /// Everything owed up to here must have come by now, or been told.
    fn settle(&mut self, facts: &Facts, upto: EventId) -> Result<(), String> {
        for fact in facts.matching(&self.filter, self.at, upto) {
            if !self.excuses(fact) {
                let why = if fact.trimmed.is_some() { "was trimmed, untold" } else { "is there, but did not come" };
                return Err(format!("event {} {why}", fact.event.id));
            }
        }
        self.at = self.at.max(upto);
        Ok(())
    }

    /// Whether something is owed of what subscribers may see. Never goes from no to yes but by a larger tail.
    pub fn is_owed(&mut self, facts: &Facts, tail: EventId) -> Option<EventId> {
        let upto = self.until.map_or(tail, |until| until.min(tail));
        let from = self.at.max(self.looked);
        let owed = facts.matching(&self.filter, from, upto).find(|fact| !self.excuses(fact));
        if owed.is_none() {
            self.looked = upto;
        }
        owed.map(|fact| fact.event.id)
    }

    pub fn frame(&mut self, facts: &Facts, tail: EventId, frame: &Frame) -> Result<(), String> {
        let judged = match frame {
            Frame::Event { id, event, data } => self.event(facts, tail, *id, event.as_deref(), data),
            Frame::Control { id, name, data } if name == "tidelog.live" => self.live(facts, tail, *id, data),
            Frame::Control { id, name, data } if name == "tidelog.gap" => self.gap(facts, *id, data),
            Frame::Control { name, .. } => Err(format!("{name} has no business here")),
        };
        judged.map_err(|why| format!("{why}; at {frame:?}"))
    }

    fn moves_to(&mut self, id: EventId) -> Result<(), String> {
        if self.id.is_some_and(|before| before > id) {
            return Err(format!("the id goes back from {:?}", self.id));
        }
        self.id = Some(id);
        Ok(())
    }

    fn event(&mut self, facts: &Facts, tail: EventId, id: EventId, ty: Option<&str>, data: &str) -> Result<(), String> {
        if self.ahead.is_some() {
            return Err("that the id is ahead was not told first".into());
        }
        let Some(fact) = facts.events.get(&id) else { return Err("no such event is durable".into()) };
        let event = fact.event.as_ref();
        if id > tail || self.until.is_some_and(|until| id > until) {
            return Err(format!("it lies beyond the end, {tail} or {:?}", self.until));
        }
        if !fact.matches(&self.filter) || event.event != ty || event.data != data {
            return Err(format!("the event is {event:?}"));
        }
        if fact.gone.is_some_and(|gone| gone < self.begun) {
            return Err("it was gone before this one began".into());
        }
        if id <= self.at {
            return Err(format!("everything up to {} had come", self.at));
        }
        self.settle(facts, id - 1)?;
        self.at = id;
        self.moves_to(id)
    }

    fn live(&mut self, facts: &Facts, tail: EventId, id: EventId, data: &Value) -> Result<(), String> {
        if self.ahead.is_some() || id > tail || data["tail"].as_u64() != Some(id) {
            return Err(format!("the tail is {tail}"));
        }
        self.settle(facts, id)?;
        self.moves_to(id)
    }

    fn gap(&mut self, facts: &Facts, id: EventId, data: &Value) -> Result<(), String> {
        let number = |name: &str| data[name].as_u64().ok_or("a number is missing");
        let (requested, earliest) = (number("requested")?, number("earliest")?);
        let reason = data["reason"].as_str().unwrap_or_default();
        if reason == "ahead" {
            if self.ahead.take() != Some(requested) || id != 0 {
                return Err("it is not ahead".into());
            }
            self.told = earliest - 1;
            return self.moves_to(0);
        }
        if self.ahead.is_some() || id != requested || earliest <= requested {
            return Err("its numbers are wrong".into());
        }
        let taken = facts.events.range(requested + 1..earliest).any(|(_, fact)| {
            let asked = self.filter.matches_topic(fact.event.topic.as_str());
            fact.trimmed.is_some() && (asked || fact.with_the_log)
        });
        let truly = match reason {
            "trimmed" => taken,
            "lost" => facts.holes.iter().any(|end| (requested + 1..earliest).contains(end)),
            _ => false,
        };
        if !truly {
            return Err("nothing that was asked for is gone".into());
        }
        self.settle(facts, id)?;
        self.told = self.told.max(earliest - 1);
        self.moves_to(id)
    }

    /// The stream came to its proper end.
    pub fn end(&mut self, facts: &Facts) -> Result<(), String> {
        let Some(until) = self.until else { return Err("it ended though it was to follow".into()) };
        self.settle(facts, until)
    }
}
