//! The writer: the real one, step by step; what is asked of it, and what it answers.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use tidelog::event::{Digest, EventType, Key, Millis, NewEvent};
use tidelog::hub::Hub;
use tidelog::metrics::Metrics;
use tidelog::sequencer::local::{Kept, Parts, Refusal, Request, Ticket, Writer};
use tidelog::sequencer::{IdempotencyKey, Outcome, Terms};
use tidelog::store::model::{Failing, ModelStore, Write};
use tidelog::store::{Durability, Limits, Snapshot, Store, StoreError, Trim};
use tidelog::topic::Topic;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::{Ask, Judged, One, Publish, World};
use crate::answers::{KEYS_MAX, WINDOW};

thread_local! {
    /// The time of day, as the writer of this thread's world is told it.
    static DAY: Cell<Millis> = const { Cell::new(0) };
    /// Whom it has woken.
    static WOKEN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

fn day() -> Millis {
    DAY.get()
}

fn woken(connections: Vec<usize>) {
    WOKEN.with_borrow_mut(|woken| woken.extend(connections));
}

/// Whoever was to be woken is no more.
pub fn forget_woken() {
    WOKEN.take();
}

pub fn writer(
    store: &Arc<ModelStore>,
    hub: &Arc<parking_lot::Mutex<Hub<usize>>>,
    durability: Durability,
    metrics: &Arc<Metrics>,
) -> (Writer<usize>, Refusal) {
    let refusal = Refusal::default();
    let parts = Parts {
        store: store.clone(),
        hub: hub.clone(),
        wake: woken,
        durability,
        dedupe_window: WINDOW,
        dedupe_keys_max: KEYS_MAX as u64,
        clock: day,
        refusal: refusal.clone(),
        metrics: metrics.clone(),
    };
    (Writer::new(parts), refusal)
}

type Answer<T> = oneshot::Receiver<Result<T, StoreError>>;

/// Whoever waits for an answer.
pub enum Waiting {
    Publish(u64, Publish, Answer<Outcome>),
    Trim(Vec<Trim>, Answer<()>),
    Delete(Topic, Answer<()>),
    Close(Topic, Answer<()>),
    Keep(Topic, Snapshot, Answer<Kept>),
    Retain(Answer<()>),
}

fn came<T>(answer: &mut Answer<T>) -> Result<Option<Result<T, StoreError>>, String> {
    match answer.try_recv() {
        Ok(told) => Ok(Some(told)),
        Err(TryRecvError::Empty) => Ok(None),
        Err(TryRecvError::Closed) => Err("nobody answers any more".into()),
    }
}

fn topic(name: &str) -> Topic {
    Topic::parse(name).unwrap()
}

/// The `at`th event of a publish.
fn event(name: u64, at: usize, One { topic: of, event, key, size }: One) -> NewEvent {
    let mut data = format!("{name}/{at}");
    data.extend(std::iter::repeat_n('.', size.saturating_sub(data.len())));
    data.truncate(if size == 0 { 0 } else { data.len() });
    NewEvent {
        topic: topic(of),
        event: event.and_then(|e| EventType::parse(e).unwrap()),
        key: key.map(|key| Key::parse(key).unwrap()),
        data,
    }
}

impl World {
    /// What is asked of the writer waits with it.
    pub(super) fn submit(&mut self, ask: Ask) {
        let request = match ask {
            Ask::Publish(publish) => self.publish(publish),
            Ask::Trim(of, upto) => self.trim(vec![Trim { topic: of.map(topic), upto }]),
            Ask::Delete(name) => {
                let (ticket, answer) = Ticket::new(None);
                self.waiting.push_back(Waiting::Delete(topic(name), answer));
                Request::Delete { topic: topic(name), ticket }
            }
            Ask::Close(name) => {
                let (ticket, answer) = Ticket::new(None);
                self.waiting.push_back(Waiting::Close(topic(name), answer));
                Request::Close { topic: topic(name), ticket }
            }
            Ask::Snapshot(name, at) => {
                self.snapshots += 1;
                let body = format!("snapshot {}", self.snapshots);
                let snapshot = Snapshot { at, content_type: "text/plain".into(), body };
                let (ticket, answer) = Ticket::new(None);
                self.waiting.push_back(Waiting::Keep(topic(name), snapshot.clone(), answer));
                Request::Keep { topic: topic(name), snapshot, ticket }
            }
            Ask::Retain(name, limits) => {
                let limits = Some(limits).filter(|limits| *limits != Limits::default());
                let (ticket, answer) = Ticket::new(None);
                self.waiting.push_back(Waiting::Retain(answer));
                Request::Retain { topic: topic(name), limits, ticket }
            }
            _ => return,
        };
        self.writer.ask([request]);
    }

    fn publish(&mut self, publish: Publish) -> Request {
        let number = self.publishes;
        self.publishes += 1;
        let name = publish.again.unwrap_or(number);
        let events = publish.events.iter().enumerate().map(|(at, one)| event(name, at, *one));
        let events: Vec<_> = events.collect();
        let key =
            publish.key.map(|(key, other)| IdempotencyKey { key: Digest([key; 16]), request: Digest([other; 16]) });
        let terms = Terms { last: publish.last, key };
        self.ledger.ask(number, events.clone(), terms);
        let (ticket, answer) = Ticket::new(None);
        self.waiting.push_back(Waiting::Publish(number, Publish { again: Some(name), ..publish }, answer));
        Request::Append { events, terms, ticket }
    }

    pub(super) fn trim(&mut self, trims: Vec<Trim>) -> Request {
        let (ticket, answer) = Ticket::new(None);
        self.waiting.push_back(Waiting::Trim(trims.clone(), answer));
        Request::Trim { trims, ticket }
    }

    /// One round of the janitor: what the limits ask for is asked of the writer.
    pub(super) fn round(&mut self) {
        let due = self.store.due_trims(&self.policy, self.day);
        match due {
            Ok(trims) if !trims.is_empty() => {
                self.count("trims by retention");
                let request = self.trim(trims);
                self.writer.ask([request]);
            }
            Ok(_) => {}
            Err(_) => self.count("reads failed"),
        }
    }

    /// Whether the writer has something to do, or would try to open the log again.
    pub(super) fn writer_goes_on(&self) -> bool {
        !self.writer.is_idle() || self.refusal.read().as_ref().is_some_and(|_| !self.is_full && !self.is_unreadable)
    }

    pub(super) fn write(&mut self) -> Judged {
        DAY.set(self.day);
        if self.writer.is_idle() {
            // A second passes, and whatever was the matter is mended.
            self.store.set_failing(Failing::No);
            self.store.skip_ids(std::mem::take(&mut self.skip));
            self.writer.tick();
        }
        let refused = self.refusal.read().is_some();
        self.writer.step();
        self.look(refused)
    }

    /// What a step of the writer has changed is told to the judges, then what it has answered.
    fn look(&mut self, refused: bool) -> Judged {
        for write in self.store.take_written() {
            self.digest(&write);
            self.note(|| format!("  written: {write:?}"));
            let batch = if let Write::Commit(events, _) = &write { events.clone() } else { Vec::new() };
            self.count_write(&write, refused);
            self.facts.learn(write, self.step)?;
            let publishes = self.ledger.written(&batch, &self.facts)?;
            self.add("publishes written", publishes);
        }
        let (trims, published) = (self.hub.lock().trims(), self.store.times_published());
        if std::mem::replace(&mut self.trims, trims) != trims {
            self.facts.tell(self.step);
        }
        if std::mem::replace(&mut self.published, published) != published {
            self.facts.publish(self.step);
        }
        if refused && self.refusal.read().is_none() {
            self.facts.tell_closed();
            self.facts.answered(self.step);
        }
        self.hear()?;
        if self.refusal.read().is_none() {
            self.ledger.settled();
        }
        let woken = WOKEN.take();
        if !woken.is_empty() {
            self.wake(&woken);
        }
        Ok(())
    }

    fn count_write(&mut self, write: &Write, refused: bool) {
        match write {
            Write::Commit(events, _) => {
                self.add("events", events.len() as u64);
                self.count("commits");
            }
            Write::Floors(_) => self.count("trims"),
            Write::Delete(..) => self.count("deletes"),
            Write::Close(..) => self.count("closes"),
            Write::Keep(..) => self.count("snapshots kept"),
            Write::Retain(..) => self.count("retentions set"),
            Write::Skip(..) => self.count("holes"),
        }
        if refused && !matches!(write, Write::Skip(..)) {
            self.count("undecided writes found");
        }
    }

    /// Hears the answers that have come.
    fn hear(&mut self) -> Judged {
        while let Some(mut first) = self.waiting.pop_front() {
            let heard = match &mut first {
                Waiting::Publish(number, publish, answer) => match came(answer)? {
                    None => false,
                    Some(told) => {
                        self.digest(&(&number, &told));
                        let what = self.ledger.answered(*number, &told, &self.facts)?;
                        self.count(what);
                        if told.is_err() && publish.key.is_some() {
                            self.in_doubt.push(publish.clone());
                        }
                        true
                    }
                },
                Waiting::Trim(trims, answer) => match came(answer)? {
                    None => false,
                    Some(Err(_)) => true,
                    Some(Ok(())) => match trims.iter().find(|trim| !self.facts.is_gone(trim)) {
                        Some(trim) => return Err(format!("{trim:?} is said to be done, and it is not")),
                        None => true,
                    },
                },
                Waiting::Delete(topic, answer) => match came(answer)? {
                    None => false,
                    Some(Err(_)) => true,
                    Some(Ok(())) => {
                        self.facts.tell(self.step);
                        let all = Trim { topic: Some(topic.clone()), upto: self.facts.tail };
                        if !self.facts.is_gone(&all) || self.facts.snapshot_of(topic).is_some() {
                            return Err(format!("{topic} is said to be deleted, and it is not"));
                        }
                        true
                    }
                },
                Waiting::Close(topic, answer) => match came(answer)? {
                    None => false,
                    Some(Err(_)) => true,
                    Some(Ok(())) if !self.facts.is_closed(topic) => return Err(format!("{topic} is not closed")),
                    Some(Ok(())) => {
                        self.facts.tell_closed();
                        true
                    }
                },
                Waiting::Keep(topic, snapshot, answer) => match came(answer)? {
                    None => false,
                    Some(told) => {
                        let kept = self.facts.snapshot_of(topic);
                        let truly = match &told {
                            Ok(Kept::Yes) => {
                                kept.is_some_and(|(at, body)| (*at, body) == (snapshot.at, &snapshot.body))
                            }
                            Ok(Kept::Older { than }) => kept.is_some_and(|(at, _)| at == than && *than > snapshot.at),
                            Ok(Kept::Beyond { tail }) => snapshot.at > *tail,
                            Err(_) => true,
                        };
                        if !truly {
                            return Err(format!("of {topic}'s {snapshot:?} is said {told:?}; there is {kept:?}"));
                        }
                        if told.is_ok() {
                            self.facts.answered(self.step);
                        }
                        true
                    }
                },
                Waiting::Retain(answer) => came(answer)?.is_some(),
            };
            if !heard {
                self.waiting.push_front(first);
                break;
            }
        }
        Ok(())
    }
}
