//! The judge of one connection. It knows what was asked, what the log truly holds, and what came over the wire; nothing of how.

use std::sync::Arc;

use serde_json::Value;
use tidelog::event::EventId;
use tidelog::sse::json_event;
use tidelog::subscription::Begin;
use tidelog::subscription::bundle::Kind;
use tidelog::topic::Filter;

use crate::facts::{Fact, Facts, Picture};
use crate::wire::Frame;

/// What a client with a state makes of it, and takes along to its next connection.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// The newest event of each topic and key, and what had been deleted by this step; `None` while it does not know.
    picture: Option<(Picture, u64)>,
    /// It was told of a gap, and has not had its bundle since.
    heals: bool,
}

/// What of a bundle is to come next.
#[derive(Debug, PartialEq)]
enum Coming {
    Nothing,
    /// Entries that are true at this id, for one who asked at this step and was given it at that one.
    State {
        at: EventId,
        asked: u64,
        given: u64,
        entries: Picture,
    },
    /// One of these bodies, for one who asked at this step.
    Snapshot {
        at: EventId,
        asked: u64,
        bodies: Vec<String>,
    },
}

/// A bundle as it is given to a client.
#[derive(Debug, Clone, Copy)]
pub struct Given {
    /// The id at which it is said to be true.
    pub at: Option<EventId>,
    /// What the tail was when it was asked for,
    pub tail_before: EventId,
    /// at this step.
    pub asked: u64,
    /// What the tail is now,
    pub tail: EventId,
    /// at this step.
    pub now: u64,
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
    /// It was given some of that, as it was not gone yet: what else of it goes is to be told.
    saw_trimmed: bool,
    /// It begins at an id that lies within a hole: what it has seen may be gone, which is to be told before anything else.
    in_hole: Option<EventId>,
    /// The beginning lies beyond the tail, which is to be told first.
    ahead: Option<EventId>,
    /// Where a stream that does not follow ends.
    until: Option<EventId>,
    /// The step at which it began.
    begun: u64,
    /// The smallest retained id, as it was told in the head.
    earliest: EventId,
    /// What it is sent after a gap.
    kind: Option<Kind>,
    /// A bundle is to be given before anything else.
    owed: bool,
    coming: Coming,
    /// The id may go back to here, once.
    back: Option<EventId>,
    closed: bool,
    pub shown: Shown,
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
        let in_hole = match begin {
            Begin::After(id) => Some(id),
            Begin::At(id) => Some(id - 1),
            _ => None,
        };
        let in_hole = in_hole.filter(|id| *id <= tail && facts.is_within_a_hole(*id));
        Self {
            filter,
            at,
            looked: at,
            told: 0,
            excused,
            saw_trimmed: false,
            in_hole,
            ahead,
            until,
            begun: now,
            earliest: 0,
            kind: None,
            owed: false,
            coming: Coming::Nothing,
            back: None,
            closed: false,
            shown: Shown::default(),
            id: None,
        }
    }

    /// The same with a bundle: given at the beginning, or after a gap to one that comes back with `id` and shows `shown`.
    pub fn with_bundle(mut self, facts: &Facts, kind: Option<Kind>, id: Option<EventId>, shown: Shown) -> Self {
        // A deletion of which readers were not told yet takes nothing from those who begin now.
        let told = facts.picture_steps(self.begun, self.begun).next().unwrap_or(0);
        self.kind = kind;
        self.shown = match id {
            Some(_) if kind.is_none() => Shown::default(),
            None => Shown::default(),
            // Nothing of before counts.
            Some(0) => {
                Shown { picture: Some((Picture::new(), told)).filter(|_| kind == Some(Kind::State)), heals: false }
            }
            Some(_) => shown,
        };
        self
    }

    /// In the head it is told that nothing smaller than this id is retained.
    pub fn with_earliest(mut self, earliest: EventId) -> Self {
        self.earliest = earliest;
        self
    }

    /// It begins with a bundle, which is given then.
    pub fn begins_with_bundle(mut self) -> Self {
        self.owed = true;
        self
    }

    /// It is given a bundle.
    pub fn given(&mut self, facts: &Facts, given: Given) -> Result<(), String> {
        let Given { at, tail_before, asked, tail, now } = given;
        if !std::mem::take(&mut self.owed) {
            return Err(format!("a bundle that nobody owes: {given:?}"));
        }
        if at.is_some_and(|at| at > tail) {
            return Err(format!("the bundle lies beyond the tail: {given:?}"));
        }
        match (self.kind, at) {
            (Some(Kind::State), Some(at)) if at >= tail_before && at >= self.at => {
                self.coming = Coming::State { at, asked, given: now, entries: Picture::new() };
            }
            (Some(Kind::Snapshot), at) => {
                let kept = facts.snapshots(&self.filter, asked);
                let bodies = kept.iter().filter(|kept| kept.map(|(at, _)| *at) == at);
                let bodies: Vec<_> =
                    bodies.map(|kept| kept.map(|(_, body)| body.clone()).unwrap_or_default()).collect();
                if bodies.is_empty() {
                    return Err(format!("it is given {given:?}, though there was {kept:?}"));
                }
                match at {
                    Some(at) => self.coming = Coming::Snapshot { at, asked, bodies },
                    None => self.shown.heals = false,
                }
            }
            _ => return Err(format!("the bundle is of before: {given:?}, everything up to {} has come", self.at)),
        }
        if let Some(at) = at {
            (self.at, self.looked, self.excused, self.back) = (at, at, None, Some(at));
        }
        Ok(())
    }

    fn excuses(&self, fact: &Fact) -> bool {
        let excused = |known| {
            let step = if self.saw_trimmed { fact.gone } else { fact.trimmed };
            step.is_some_and(|step| step < known)
        };
        fact.trimmed.is_some() && fact.event.id <= self.told || self.excused.is_some_and(excused)
    }

    /// Everything owed up to here must have come by now, or been told.
    fn settle(&mut self, facts: &Facts, upto: EventId) -> Result<(), String> {
        for fact in facts.matching(&self.filter, self.at, upto) {
            if !self.excuses(fact) {
                let why = if fact.trimmed.is_some() { "was trimmed, untold" } else { "is there, but did not come" };
                return Err(format!("event {} {why}", fact.event.id));
            }
        }
        let lost = self.lost_within(facts, upto).filter(|id| *id > self.told).or(self.in_hole);
        if let Some(id) = lost {
            return Err(format!("what was there up to id {id} was lost, untold"));
        }
        self.at = self.at.max(upto);
        Ok(())
    }

    /// The newest event that was lost among those that are owed up to an id.
    fn lost_within(&self, facts: &Facts, upto: EventId) -> Option<EventId> {
        if self.excused.is_some() || self.at >= upto {
            return None;
        }
        let mut lost = facts.lost.range(self.at + 1..=upto).map(|(_, fact)| fact);
        lost.rfind(|fact| fact.matches(&self.filter)).map(|fact| fact.event.id)
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
            _ if self.closed => Err("it was closed".into()),
            Frame::Entry { json } => self.entry(facts, json),
            Frame::Control { id, name, data } if name == "tidelog.snapshot" => self.snapshot(facts, *id, data),
            Frame::Control { id, name, data } if name == "tidelog.gap" => {
                self.bundle_is_whole(facts).and_then(|()| self.gap(facts, *id, data))
            }
            other => self.goes_on(facts).and_then(|()| match other {
                Frame::Event { id, event, data } => self.event(facts, tail, *id, event.as_deref(), data),
                Frame::Control { id, name, data } if name == "tidelog.live" => self.live(facts, tail, *id, data),
                Frame::Control { id, name, data } if name == "tidelog.closed" => self.is_closed(facts, *id, data),
                _ => Err("it has no business here".into()),
            }),
        };
        judged.map_err(|why| format!("{why}; at {frame:?}"))
    }

    fn entry(&mut self, facts: &Facts, json: &Value) -> Result<(), String> {
        let Coming::State { entries, .. } = &mut self.coming else { return Err("no state is to come".into()) };
        let fact = json["id"].as_u64().and_then(|id| facts.events.get(&id)).ok_or("no such event is durable")?;
        let mut same = Vec::new();
        json_event(&mut same, &fact.event.as_ref());
        if *json != serde_json::from_slice::<Value>(&same).map_err(|e| e.to_string())? {
            return Err(format!("the event is {:?}", fact.event));
        }
        let key = fact.event.key.clone().ok_or("it has no key")?;
        match entries.insert((fact.event.topic.clone(), key), fact.event.id) {
            None => Ok(()),
            Some(id) => Err(format!("its key had come, with {id}")),
        }
    }

    fn snapshot(&mut self, facts: &Facts, id: EventId, body: &Value) -> Result<(), String> {
        let Coming::Snapshot { at, asked, bodies } = std::mem::replace(&mut self.coming, Coming::Nothing) else {
            return Err("no snapshot is to come".into());
        };
        if at != id || !bodies.iter().any(|one| body.as_str() == Some(one)) {
            return Err(format!("the snapshot at {at} is {bodies:?}"));
        }
        let untold = |fact: &&Fact| fact.event.id > self.told && fact.gone.is_some_and(|gone| gone < asked);
        if let Some(fact) = facts.matching(&self.filter, at, EventId::MAX).find(untold) {
            return Err(format!("event {} was gone by then, and that was not told first", fact.event.id));
        }
        self.shown.heals = false;
        self.moves_to(id)
    }

    /// A state that was coming has come, as something else comes.
    fn bundle_is_whole(&mut self, facts: &Facts) -> Result<(), String> {
        if !matches!(self.coming, Coming::State { .. }) {
            return Ok(());
        }
        let Coming::State { at, asked, given, entries } = std::mem::replace(&mut self.coming, Coming::Nothing) else {
            return Ok(());
        };
        let truths: Vec<_> =
            facts.picture_steps(asked, given).map(|step| (facts.picture(&self.filter, at, step), step)).collect();
        let Some((_, step)) = truths.iter().find(|(truth, _)| *truth == entries) else {
            return Err(format!("the state {entries:?} is not true at {at}; that is {truths:?}"));
        };
        self.shown = Shown { picture: Some((entries, *step)), heals: false };
        Ok(())
    }

    /// Nothing is owed, or under way, before what comes of the log.
    fn goes_on(&mut self, facts: &Facts) -> Result<(), String> {
        self.bundle_is_whole(facts)?;
        if self.owed || self.coming != Coming::Nothing || self.kind.is_some() && self.shown.heals {
            return Err(format!("the bundle is to come first: {:?}", self.coming));
        }
        Ok(())
    }

    fn is_closed(&mut self, facts: &Facts, id: EventId, data: &Value) -> Result<(), String> {
        let last = facts.closed(&self.filter).map(|(last, _)| last).ok_or("not all of its topics were closed")?;
        if data["last"].as_u64() != Some(last) || id < last {
            return Err(format!("the last event is {last}"));
        }
        self.settle(facts, last)?;
        self.closed = true;
        self.moves_to(id)
    }

    fn moves_to(&mut self, id: EventId) -> Result<(), String> {
        if self.id.is_some_and(|before| before > id) && self.back.take() != Some(id) {
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
        if id < self.earliest {
            return Err(format!("the head told that nothing below {} is retained", self.earliest));
        }
        self.settle(facts, id - 1)?;
        self.at = id;
        self.saw_trimmed |= fact.trimmed.zip(self.excused).is_some_and(|(step, known)| step < known);
        if let (Some((picture, _)), Some(key)) = (&mut self.shown.picture, &fact.event.key) {
            let place = (fact.event.topic.clone(), key.clone());
            if data.is_empty() {
                picture.remove(&place)
            } else {
                picture.insert(place, id)
            };
        }
        self.moves_to(id)
    }

    fn live(&mut self, facts: &Facts, tail: EventId, id: EventId, data: &Value) -> Result<(), String> {
        if self.ahead.is_some() || id > tail || data["tail"].as_u64() != Some(id) {
            return Err(format!("the tail is {tail}"));
        }
        self.settle(facts, id)?;
        // Under a choice of types, one that is passed over may have taken the place of one that is shown.
        if let Some((picture, step)) = self.shown.picture.as_ref().filter(|_| self.filter.is_every_type()) {
            let truth = facts.picture(&self.filter, id, *step);
            if truth != *picture {
                return Err(format!("the client shows {picture:?}; it is {truth:?}"));
            }
        }
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
            self.heals();
            return self.moves_to(0);
        }
        if self.ahead.is_some() || id != requested || earliest <= requested {
            return Err("its numbers are wrong".into());
        }
        if earliest - 1 <= self.told {
            return Err(format!("losses up to {} were told", self.told));
        }
        let taken = facts.events.range(requested + 1..earliest).any(|(_, fact)| {
            let asked = self.filter.matches_topic(fact.event.topic.as_str());
            fact.trimmed.is_some() && (asked || fact.with_the_log)
        });
        let truly = match reason {
            "trimmed" => taken,
            "lost" => facts.holes.iter().any(|(_, end)| (requested + 1..earliest).contains(end)),
            _ => false,
        };
        if !truly {
            return Err("nothing that was asked for is gone".into());
        }
        self.in_hole = self.in_hole.filter(|id| *id >= earliest);
        self.settle(facts, id)?;
        self.told = self.told.max(earliest - 1);
        self.heals();
        self.moves_to(id)
    }

    /// After a gap a bundle is owed, unless one was given that has yet to come.
    fn heals(&mut self) {
        if self.kind.is_some() {
            self.shown = Shown { picture: None, heals: true };
            self.owed = self.coming == Coming::Nothing;
        }
    }

    /// Whether it is owed a bundle, or the end.
    pub fn is_owed_more(&self, facts: &Facts) -> bool {
        let closed = || facts.closed(&self.filter).is_some_and(|(_, told)| told);
        self.owed || self.coming != Coming::Nothing || closed()
    }

    /// The stream came to its proper end.
    pub fn end(&mut self, facts: &Facts) -> Result<(), String> {
        if self.closed {
            return Ok(());
        }
        let Some(until) = self.until else { return Err("it ended though it was to follow".into()) };
        self.goes_on(facts)?;
        self.settle(facts, until)
    }
}
