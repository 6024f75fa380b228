//! The judge of what publishers are told. It knows what each asked for, what it was answered, and what was written; nothing of how.
//!
//! What holds: a publish is in the log wholly or not at all, under consecutive ids, once, and only where what it depends on holds at
//! that place; who is told that it is there can rely on that; who is told nothing, or of a failure, is in doubt, and what it asked for
//! may be there all the same, by the time that writing works again. A key is remembered for [`WINDOW`], until [`KEYS_MAX`] newer ones
//! have come; it may be remembered for longer.

use tidelog::event::{Event, EventId, Millis, NewEvent};
use tidelog::sequencer::{Appended, IdempotencyKey, Outcome, Terms};
use tidelog::store::StoreError;
use tidelog::topic::Topic;

use crate::facts::Facts;

/// For so long a publish is remembered, unless so many newer ones have come.
pub const WINDOW: Millis = 7_000;
pub const KEYS_MAX: usize = 4;

/// A publish that was asked for.
struct Asked {
    ticket: u64,
    events: Vec<NewEvent>,
    terms: Terms,
    /// Where it was found in the log.
    written: Option<Appended>,
    /// It was told of a failure, or nothing.
    in_doubt: bool,
}

/// A publish under a key, in the log.
#[derive(Debug, Clone, Copy)]
struct Kept {
    key: IdempotencyKey,
    ids: Appended,
    time: Millis,
    /// So many came before it, those counted that a crash has taken.
    number: usize,
}

#[derive(Default)]
pub struct Ledger {
    /// In the order in which they were asked for.
    asked: Vec<Asked>,
    /// In the order of the log.
    kept: Vec<Kept>,
    numbers: usize,
    /// The log's end as far as publishes were answered: where the next one is judged.
    position: EventId,
    /// The latest time of day that there was.
    pub latest: Millis,
}

fn is(event: &Event, new: &NewEvent) -> bool {
    let NewEvent { topic, event: ty, key, data } = new;
    (&event.topic, &event.event, &event.key, &event.data) == (topic, ty, key, data)
}

impl Ledger {
    /// It is `now`, by the time of day.
    pub fn new(now: Millis) -> Self {
        Self { latest: now, ..Self::default() }
    }

    pub fn ask(&mut self, ticket: u64, events: Vec<NewEvent>, terms: Terms) {
        self.asked.push(Asked { ticket, events, terms, written: None, in_doubt: false });
    }

    /// What is remembered under a key of all that lies up to an id, and whether it must be.
    fn kept(&self, key: IdempotencyKey, upto: EventId) -> Option<(Kept, bool)> {
        let place = self.kept.iter().rposition(|kept| kept.key.key == key.key && kept.ids.last <= upto)?;
        let kept = self.kept[place];
        let must = kept.time + WINDOW >= self.latest && self.numbers - kept.number <= KEYS_MAX;
        Some((kept, must))
    }

    /// A batch was written, of which `facts` know already. Gives how many publishes it holds.
    pub fn written(&mut self, events: &[Event], facts: &Facts) -> Result<u64, String> {
        let (mut rest, mut publishes) = (events, 0);
        let mut next = 0;
        while let Some(first) = rest.first() {
            let fits = |asked: &Asked| {
                let len = asked.events.len();
                asked.written.is_none() && len <= rest.len() && rest.iter().zip(&asked.events).all(|(e, n)| is(e, n))
            };
            let place = self.asked[next..].iter().position(fits).map(|place| place + next);
            let place = place.ok_or_else(|| format!("nobody asked for what begins with {first:?}, wholly and then"))?;
            next = place + 1;
            let asked = &self.asked[place];
            let (mine, others) = rest.split_at(asked.events.len());
            let ids = Appended { first: first.id, last: first.id + mine.len() as EventId - 1 };
            if mine.last().is_some_and(|event| event.id != ids.last) {
                return Err(format!("the ids of a publish have a hole: {mine:?}"));
            }
            let newest = facts.newest_retained(&first.topic, first.id - 1);
            if asked.terms.last.is_some_and(|last| last != newest) {
                return Err(format!("{:?} does not hold at {}, it is {newest}", asked.terms, first.id));
            }
            if let Some(key) = asked.terms.key {
                if let Some((kept, true)) = self.kept(key, first.id - 1) {
                    return Err(format!("{kept:?} was remembered, and is published again as {ids:?}"));
                }
                self.kept.push(Kept { key, ids, time: first.time, number: self.numbers });
                self.numbers += 1;
            }
            let asked = &mut self.asked[place];
            asked.written = Some(ids);
            if asked.in_doubt {
                self.position = ids.last;
            }
            (rest, publishes) = (others, publishes + 1);
        }
        Ok(publishes)
    }

    /// Writing works again: what has not been found of those in doubt is not there, and will not be.
    pub fn settled(&mut self) {
        self.asked.retain(|asked| !asked.in_doubt);
    }

    /// The process died, and what lies beyond this id is gone.
    pub fn crash(&mut self, facts: &Facts) {
        self.asked.clear();
        self.kept.retain(|kept| facts.events.contains_key(&kept.ids.first));
        self.position = facts.tail;
    }

    /// The publish with this ticket was answered. Gives what it was told, in a word.
    pub fn answered(
        &mut self,
        ticket: u64,
        told: &Result<Outcome, StoreError>,
        facts: &Facts,
    ) -> Result<&'static str, String> {
        let place = self.asked.iter().position(|asked| asked.ticket == ticket).ok_or("it was answered twice")?;
        let Ok(told) = told else {
            self.asked[place].in_doubt = true;
            return Ok("publishes in doubt");
        };
        let asked = self.asked.remove(place);
        let judged = self.judge(&asked, told, facts);
        if let Outcome::Appended(ids) = told {
            self.position = ids.last;
        }
        judged.map_err(|why| format!("publish {ticket} of {:?} was answered {told:?}: {why}", asked.terms))
    }

    fn judge(&self, asked: &Asked, told: &Outcome, facts: &Facts) -> Result<&'static str, String> {
        let known = asked.terms.key.and_then(|key| self.kept(key, self.position));
        let same = |kept: &Kept| asked.terms.key == Some(kept.key);
        if let Outcome::Appended(ids) = told {
            return match asked.written {
                Some(written) if written == *ids && ids.first > self.position => Ok("publishes acked"),
                written => Err(format!("it is at {written:?}, behind {}", self.position)),
            };
        }
        if let Some(written) = asked.written {
            return Err(format!("it is there, at {written:?}"));
        }
        match (told, known) {
            (Outcome::Replayed(ids), Some((kept, _))) if kept.ids == *ids && same(&kept) => Ok("repeats answered"),
            (Outcome::Conflict, Some((kept, _))) if !same(&kept) => Ok("conflicts"),
            (Outcome::Replayed(_) | Outcome::Conflict, known) => Err(format!("known is {known:?}")),
            (_, Some((kept, true))) => Err(format!("{kept:?} is remembered")),
            (Outcome::Closed(topic), _) => {
                let one = |topic: &Topic| asked.events.iter().any(|event| event.topic == *topic);
                if facts.is_closed(topic) && one(topic) { Ok("closed to publishes") } else { Err("it is open".into()) }
            }
            (Outcome::Unmet { last }, _) => {
                let newest = facts.newest_retained(&asked.events[0].topic, self.position);
                let unmet = asked.terms.last.is_some_and(|wanted| wanted != *last);
                if unmet && newest == *last { Ok("conditions unmet") } else { Err(format!("the newest is {newest}")) }
            }
            (Outcome::Appended(_), _) => Ok("publishes acked"),
        }
    }
}
