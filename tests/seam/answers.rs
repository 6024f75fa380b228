//! The judge of what publishers are told: what a publish depends on holds exactly as the log stands in its order.

use std::collections::VecDeque;

use tidelog::event::{EventId, Millis, NewEvent};
use tidelog::sequencer::{Appended, Commit, IdempotencyKey, Outcome, Terms};
use tidelog::store::{Remembered, StoreError};
use tidelog::topic::Topic;

use crate::facts::Facts;

/// For so long a publish is remembered, unless so many newer ones have come.
pub const WINDOW: Millis = 7_000;
pub const KEYS_MAX: usize = 4;

/// The answers of a batch, by publish.
pub type Answers = Vec<(u64, Result<Outcome, StoreError>)>;

#[derive(Default)]
pub struct Ledger {
    /// What was submitted, and is not in a batch yet.
    pending: Vec<(u64, Vec<NewEvent>, Terms)>,
    /// What the batch under way is to be answered.
    expected: Vec<(u64, Outcome)>,
    remembered: VecDeque<Remembered>,
}

impl Ledger {
    pub fn submit(&mut self, ticket: u64, events: Vec<NewEvent>, terms: Terms) {
        self.pending.push((ticket, events, terms));
    }

    /// `commit` was made of all that was submitted, at `now`.
    pub fn begun(&mut self, commit: &Commit, facts: &Facts, now: Millis) -> Result<(), String> {
        let before = facts.events.keys().last().max(facts.holes.last()).copied().unwrap_or(0);
        let mut upto = commit.events.first().map_or(before, |event| event.id - 1);
        if upto < before {
            return Err(format!("ids up to {before} were given: {commit:?}"));
        }
        let (mut appended, mut remembered): (Vec<(EventId, NewEvent)>, Vec<Remembered>) = (Vec::new(), Vec::new());
        for (ticket, events, terms) in std::mem::take(&mut self.pending) {
            let newest = |topic: &Topic| {
                let in_batch = appended.iter().rev().find(|(_, event)| event.topic == *topic).map(|(id, _)| *id);
                in_batch.unwrap_or_else(|| facts.newest_retained(topic))
            };
            let refused = self.refusal(&events, terms, &remembered, facts, newest, now);
            let outcome = refused.unwrap_or_else(|| {
                let first = upto + 1;
                for event in events {
                    upto += 1;
                    appended.push((upto, event));
                }
                if let Some(IdempotencyKey { key, request }) = terms.key {
                    let time = commit.events.last().map_or(0, |event| event.time);
                    remembered.push(Remembered { key, request, first, last: upto, time });
                }
                Outcome::Appended(Appended { first, last: upto })
            });
            self.expected.push((ticket, outcome));
        }
        let same = commit.events.len() == appended.len()
            && commit.events.iter().zip(appended).all(|(event, (id, new))| {
                let NewEvent { topic, event: ty, key, data } = new;
                event.id == id && (&event.topic, &event.event, &event.key, &event.data) == (&topic, &ty, &key, &data)
            });
        let in_time =
            commit.events.iter().all(|event| event.time >= facts.events.values().last().map_or(0, |f| f.event.time));
        if !same || !in_time || commit.remembered != remembered {
            return Err(format!("{commit:?} is no batch for {:?}, {remembered:?}", self.expected));
        }
        Ok(())
    }

    fn refusal(
        &self,
        events: &[NewEvent],
        terms: Terms,
        in_batch: &[Remembered],
        facts: &Facts,
        newest: impl Fn(&Topic) -> EventId,
        now: Millis,
    ) -> Option<Outcome> {
        let known = terms.key.and_then(|IdempotencyKey { key, request }| {
            let mut all = self.remembered.iter().filter(|r| r.time + WINDOW >= now).chain(in_batch);
            let first = all.find(|r| r.key == key)?;
            let same = Outcome::Replayed(Appended { first: first.first, last: first.last });
            Some(if first.request == request { same } else { Outcome::Conflict })
        });
        let closed = || events.iter().find(|e| facts.is_closed(&e.topic)).map(|e| Outcome::Closed(e.topic.clone()));
        let unmet = || {
            let last = newest(&events.first()?.topic);
            (terms.last? != last).then_some(Outcome::Unmet { last })
        };
        known.or_else(closed).or_else(unmet)
    }

    /// The batch is in the log.
    pub fn written(&mut self, commit: &Commit) {
        self.remembered.extend(&commit.remembered);
    }

    /// What is too old, or too much, is forgotten.
    pub fn forget(&mut self, now: Millis) {
        self.remembered.retain(|r| r.time + WINDOW >= now);
        while self.remembered.len() > KEYS_MAX {
            self.remembered.pop_front();
        }
    }

    pub fn answered(&mut self, answers: &Answers, facts: &Facts) -> Result<(), String> {
        let expected = std::mem::take(&mut self.expected);
        let told = answers.iter().map(|(ticket, told)| (ticket, told.as_ref().ok()));
        if !told.eq(expected.iter().map(|(ticket, outcome)| (ticket, Some(outcome)))) {
            return Err(format!("publishes were answered {answers:?}; it is {expected:?}"));
        }
        for (ticket, outcome) in &expected {
            if let Outcome::Appended(Appended { first, last }) = outcome
                && !(*first..=*last).all(|id| facts.events.contains_key(&id))
            {
                return Err(format!("publish {ticket} was answered {outcome:?}, which is not durable"));
            }
        }
        Ok(())
    }

    /// The batch failed: everybody is told that, and nothing else.
    pub fn failed(&mut self, told: &[u64]) -> Result<(), String> {
        let expected: Vec<u64> = std::mem::take(&mut self.expected).into_iter().map(|(ticket, _)| ticket).collect();
        if *told == *expected {
            Ok(())
        } else {
            Err(format!("{told:?} were told of a failure that befell {expected:?}"))
        }
    }
}
