//! The writer, as its thread does it.

use parking_lot::Mutex;
use tidelog::event::{Digest, EventId, EventType, Key, NewEvent};
use tidelog::sequencer::local::{catch_up, tell_floors};
use tidelog::sequencer::{Commit, IdempotencyKey, Terms};
use tidelog::store::model::Failing;
use tidelog::store::{Snapshot, Store, StoreError, Trim};
use tidelog::topic::Topic;

use super::{Ask, Judged, One, Publish, World};
use crate::answers::{Answers, KEYS_MAX, WINDOW};

#[derive(Debug)]
pub enum Writer {
    Idle,
    Begun(Commit),
    Appended(Commit),
    Pushed(Answers, Vec<usize>, bool),
    Refusing,
    Raised(Vec<Trim>),
    Told,
    Closed(Topic),
    Waking(Vec<usize>),
    /// A snapshot was kept.
    Kept,
}

impl Writer {
    /// Whom it has yet to wake.
    pub fn wakes_to_come(&self) -> &[usize] {
        if let Self::Pushed(_, wakes, _) | Self::Waking(wakes) = self { wakes } else { &[] }
    }
}

fn topic(name: &str) -> Topic {
    Topic::parse(name).unwrap()
}

/// The `at`th event of a publish.
fn event(ticket: u64, at: usize, One { topic: name, event, key, size }: One) -> NewEvent {
    let mut data = format!("{ticket}/{at}");
    data.extend(std::iter::repeat_n('.', size.saturating_sub(data.len())));
    data.truncate(if size == 0 { 0 } else { data.len() });
    NewEvent {
        topic: topic(name),
        event: event.and_then(|e| EventType::parse(e).unwrap()),
        key: key.map(|key| Key::parse(key).unwrap()),
        data,
    }
}

impl World {
    pub(super) fn write(&mut self) -> Judged {
        self.writer = match std::mem::replace(&mut self.writer, Writer::Idle) {
            Writer::Idle => self.begin()?,
            Writer::Begun(commit) => self.append(commit)?,
            Writer::Appended(Commit { events, remembered }) => {
                let answers = self.sequencer.settled(&events);
                let wakes = self.hub.lock().push(events);
                Writer::Pushed(answers, wakes, !remembered.is_empty())
            }
            Writer::Pushed(answers, wakes, remembers) => {
                self.ledger.answered(&answers, &self.facts)?;
                self.wake(&wakes);
                if remembers {
                    self.store.forget_keys(self.now.saturating_sub(WINDOW), KEYS_MAX as u64);
                    self.ledger.forget(self.now);
                }
                Writer::Idle
            }
            Writer::Refusing => self.open_again(),
            Writer::Raised(rose) => {
                tell_floors(&mut self.hub.lock(), rose);
                self.facts.tell(self.step);
                Writer::Told
            }
            Writer::Told => {
                self.store.floors_published();
                self.facts.publish(self.step);
                Writer::Idle
            }
            Writer::Closed(topic) => {
                let wakes = self.hub.lock().close(topic.as_str(), |filter| self.store.closed(filter));
                self.facts.tell_closed();
                Writer::Waking(wakes)
            }
            Writer::Waking(wakes) => {
                self.wake(&wakes);
                Writer::Idle
            }
            Writer::Kept => {
                self.facts.answered(self.step);
                Writer::Idle
            }
        };
        Ok(())
    }

    fn begin(&mut self) -> Result<Writer, String> {
        match self.requests.front() {
            Some(Ask::Publish(_)) => return self.begin_commit(),
            None => return Err("nothing is asked for".into()),
            _ => {}
        }
        let step = self.step;
        match self.requests.pop_front() {
            Some(Ask::Trim(of, upto)) => {
                let trims = [Trim { topic: of.map(topic), upto }];
                let done = self.store.raise_floors(&trims);
                Ok(self.done(done, |facts| facts.raise(&trims, step), Writer::Raised))
            }
            Some(Ask::Delete(name)) => {
                let done = self.store.delete_topic(&topic(name)).map(|rose| rose.into_iter().collect());
                Ok(self.done(done, |facts| facts.delete(&topic(name), step), Writer::Raised))
            }
            Some(Ask::Close(name)) => {
                let done = self.store.close_topic(&topic(name));
                let mut last = None;
                if done.is_err() {
                    return Ok(self.done(done, |facts| _ = facts.close(&topic(name)), |_| Writer::Idle));
                }
                let next = self.done(
                    done.clone(),
                    |facts| last = Some(facts.close(&topic(name))),
                    |_| Writer::Closed(topic(name)),
                );
                if done.ok() == last { Ok(next) } else { Err(format!("{name} was closed at {last:?}")) }
            }
            Some(Ask::Snapshot(name, at)) => Ok(self.keep(&topic(name), at)),
            other => Err(format!("{other:?} is not for the writer")),
        }
    }

    /// What became of a write, and how it goes on. One that failed may have been done all the same.
    fn done<T>(
        &mut self,
        done: Result<T, StoreError>,
        record: impl FnOnce(&mut crate::facts::Facts),
        next: impl FnOnce(T) -> Writer,
    ) -> Writer {
        if done.is_ok() || self.store.failing() == Failing::Written {
            record(&mut self.facts);
        }
        done.map_or(Writer::Refusing, next)
    }

    fn keep(&mut self, topic: &Topic, at: EventId) -> Writer {
        let older = self.store.snapshot_at(topic.as_str()).is_some_and(|kept| kept > at);
        if at > self.tail() || older {
            return Writer::Idle;
        }
        let body = format!("the snapshot of step {}", self.step);
        let snapshot = Snapshot { at, content_type: "text/plain".into(), body: body.clone() };
        let done = self.store.put_snapshot(topic, &snapshot);
        self.done(done, |facts| facts.keep(topic, (at, body)), |()| Writer::Kept)
    }

    fn begin_commit(&mut self) -> Result<Writer, String> {
        while let Some(Ask::Publish(_)) = self.requests.front() {
            let Some(Ask::Publish(Publish { events, last, key })) = self.requests.pop_front() else { break };
            let ticket = self.publishes;
            self.publishes += 1;
            let events: Vec<_> = events.into_iter().enumerate().map(|(at, one)| event(ticket, at, one)).collect();
            let key = key.map(|(key, other)| IdempotencyKey { key: Digest([key; 16]), request: Digest([other; 16]) });
            let terms = Terms { last, key };
            self.ledger.submit(ticket, events.clone(), terms);
            self.sequencer.submit(ticket, events, terms);
        }
        let commit = self.sequencer.next(self.now, &self.store).ok_or("nothing to commit")?;
        self.ledger.begun(&commit, &self.facts, self.now)?;
        Ok(Writer::Begun(commit))
    }

    fn append(&mut self, commit: Commit) -> Result<Writer, String> {
        if commit.events.is_empty() {
            return Ok(Writer::Appended(commit));
        }
        let before = self.store.tail();
        let done = self.store.commit(&commit.events, &commit.remembered);
        if self.store.tail() > before {
            self.facts.append(&commit.events)?;
            self.ledger.written(&commit);
        }
        if done.is_ok() {
            return Ok(Writer::Appended(commit));
        }
        let told = self.sequencer.failed();
        self.ledger.failed(&told)?;
        Ok(Writer::Refusing)
    }

    fn open_again(&mut self) -> Writer {
        self.store.set_failing(Failing::No);
        self.store.skip_ids(std::mem::take(&mut self.skip));
        let before = self.store.tail();
        self.store.reopen().unwrap();
        if self.store.tail() > before {
            self.facts.holes.push(self.store.tail());
        }
        let wakes = Mutex::new(Vec::new());
        catch_up(&self.store, &self.hub, |woken| wakes.lock().extend(woken)).unwrap();
        self.facts.tell(self.step);
        self.facts.tell_closed();
        self.store.floors_published();
        self.facts.publish(self.step);
        self.sequencer.resume(self.store.tail(), self.store.last_time());
        self.wake(&wakes.into_inner());
        Writer::Idle
    }
}
