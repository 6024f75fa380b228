//! The clients: how each comes, reads, leaves and comes back.

use std::sync::Arc;
use std::time::Duration;

use tidelog::event::{EventId, Millis};
use tidelog::hub::SubscriberKey;
use tidelog::sse::{Floor, GapReason};
use tidelog::store::Store;
use tidelog::subscription::bundle::{Bundle, Dress, Wanted};
use tidelog::subscription::{Begin, Came, Known, LookUp, Options, Reading, Start, Subscription, Want, look_up};

use super::bundles::{Asking, Slot};
use super::{Cut, HEARTBEAT, Judged, Spec, World};
use crate::facts::Facts;
use crate::watch::{Given, Shown, Watch};
use crate::wire::{Frame, Reader};

#[derive(Debug)]
pub enum State {
    Ready,
    Waiting,
    Reading(Reading),
    /// Somebody reads it.
    Fetched(Slot),
    WasRead(Came),
    Asking(Asking),
    /// With what the tail was when it asked, and at which step.
    WasGiven(Arc<Bundle>, (EventId, u64)),
}

#[derive(Debug)]
pub struct Live {
    pub key: SubscriberKey,
    pub machine: Subscription,
    pub state: State,
    /// When something last came.
    pub heard: Millis,
    reader: Reader,
}

/// How far a beginning is fixed, as `Log::start`, `Log::start_with` and `Source::place` do it.
#[derive(Debug)]
pub enum Stage {
    Out,
    Trims(u64),
    /// With the step at which the store was asked.
    Known(Known, u64),
    Asking((Known, u64), Asking),
    Given(Known, u64, Arc<Bundle>, (EventId, u64)),
    Tail(Known, u64, EventId),
    Started(Start),
    Attached(Start, SubscriberKey, bool),
    Floor(Start, SubscriberKey, Floor),
    Closed(Start, SubscriberKey, EventId),
    Live(Box<Live>),
    Gone,
}

pub struct Client {
    pub spec: Spec,
    pub stage: Stage,
    pub watch: Option<Watch>,
    shown: Shown,
    /// What it comes back with.
    pub id: Option<EventId>,
    /// Tells its connections apart: a wake of one that it left wakes nothing.
    pub connection: usize,
}

impl Client {
    pub fn new(spec: Spec) -> Self {
        Self { spec, stage: Stage::Out, watch: None, shown: Shown::default(), id: None, connection: 0 }
    }

    /// It comes back with some id, and knows nothing of before.
    pub fn comes_with(&mut self, id: EventId) {
        (self.id, self.shown) = (Some(id), Shown::default());
    }

    /// Whether it is about to be live.
    pub fn connects(&self) -> bool {
        match &self.stage {
            Stage::Live(_) | Stage::Gone => false,
            Stage::Asking(_, asking) => asking.goes_on(),
            _ => true,
        }
    }

    fn begin(&self) -> Option<Begin> {
        self.id.map(Begin::After).or(self.spec.begin)
    }

    /// Its judge, of whom it is known what it came with.
    fn watch(&mut self, facts: &Facts, watch: Watch) -> Watch {
        let id = match self.begin() {
            Some(Begin::After(id)) => Some(id),
            _ => None,
        };
        watch.with_bundle(facts, self.spec.bundle, id, std::mem::take(&mut self.shown))
    }
}

impl World {
    pub(super) fn connect(&mut self, at: usize) -> Judged {
        let stage = std::mem::replace(&mut self.clients[at].stage, Stage::Gone);
        self.clients[at].stage = match stage {
            Stage::Asking(known, mut asking) => {
                let before = asking.before;
                match (self.ask_on(&mut asking)?, before) {
                    (Some(Ok(bundle)), Some(before)) => Stage::Given(known.0, known.1, bundle, before),
                    // It is refused, and comes again.
                    (Some(Err(_)), _) => Stage::Out,
                    _ => Stage::Asking(known, asking),
                }
            }
            Stage::Started(_) | Stage::Attached(..) | Stage::Floor(..) | Stage::Closed(..) => self.place(at, stage),
            other => self.start(at, other)?,
        };
        Ok(())
    }

    fn start(&mut self, at: usize, stage: Stage) -> Result<Stage, String> {
        let client = &mut self.clients[at];
        let Spec { filter, form, follow, bundle, .. } = client.spec.clone();
        Ok(match (stage, client.begin()) {
            (Stage::Out, _) => Stage::Trims(self.hub.lock().trims()),
            (Stage::Trims(trims), _) => Stage::Known(Known::of(&*self.store, &filter, trims), self.step),
            (Stage::Known(known, step), None) => {
                let kind = bundle.ok_or("it neither begins anywhere nor with a bundle")?;
                Stage::Asking((known, step), Asking::new(Wanted { kind, filter, dress: Dress::Frames(form) }))
            }
            (Stage::Known(known, step), Some(_)) => Stage::Tail(known, step, self.hub.lock().tail()),
            (Stage::Given(known, step, bundle, (tail_before, asked)), _) => {
                let tail = self.hub.lock().tail();
                let begin = bundle.at.map_or(Begin::Earliest, Begin::After);
                let start = Start::with(bundle.clone(), known, tail);
                let watch = Watch::new(filter, begin, follow, &self.facts, start.tail, (step, self.step));
                let mut watch = client.watch(&self.facts, watch).with_earliest(start.earliest).begins_with_bundle();
                let tail = if self.drained { start.tail } else { tail };
                watch.given(&self.facts, Given { at: bundle.at, tail_before, asked, tail, now: self.step })?;
                client.watch = Some(watch);
                Stage::Started(start)
            }
            (Stage::Tail(known, step, tail), Some(begin)) => {
                let mut step_back = look_up(&*self.store, &filter, begin, tail);
                let found = loop {
                    match step_back {
                        Ok(LookUp::Found(cursor)) => break cursor,
                        Ok(LookUp::Further(rest, upto)) => step_back = look_up(&*self.store, &filter, rest, upto),
                        // It is refused, and comes again.
                        Err(_) => {
                            self.count("reads failed");
                            return Ok(Stage::Out);
                        }
                    }
                };
                let watch = Watch::new(filter, begin, follow, &self.facts, tail, (step, self.step));
                let start = Start::fix(begin, known, tail, found);
                client.watch = Some(client.watch(&self.facts, watch).with_earliest(start.earliest));
                Stage::Started(start)
            }
            (other, _) => other,
        })
    }

    fn place(&mut self, at: usize, stage: Stage) -> Stage {
        if self.clients[at].id.is_some() && matches!(stage, Stage::Started(_)) {
            self.count("resumes");
        }
        let filter = &self.clients[at].spec.filter;
        let (start, key) = match stage {
            Stage::Started(start) => {
                let (key, rose) = self.hub.lock().attach(filter, self.now, start.trims);
                return Stage::Attached(start, key, rose);
            }
            Stage::Attached(start, key, true) => {
                let floor = self.store.floor(filter);
                return Stage::Floor(start, key, floor);
            }
            Stage::Floor(start, key, floor) => {
                self.hub.lock().raise_floor(key, floor);
                return Stage::Attached(start, key, false);
            }
            Stage::Attached(start, key, false) => match self.store.closed(filter) {
                Some(last) => return Stage::Closed(start, key, last),
                None => (start, key),
            },
            Stage::Closed(start, key, last) => {
                self.hub.lock().mark_closed(key, last);
                (start, key)
            }
            other => return other,
        };
        self.connections += 1;
        let client = &mut self.clients[at];
        client.connection = self.connections;
        let Spec { form, follow, bundle, .. } = client.spec;
        let options = Options { form, heartbeat: Duration::from_millis(HEARTBEAT), follow, bundle };
        let filter = self.hub.lock().filter(key).expect("it has its place");
        let machine = Subscription::new(key, filter, start, options, self.now);
        let reader = Reader::new(form);
        Stage::Live(Box::new(Live { key, machine, state: State::Ready, heard: self.now, reader }))
    }

    /// `cut`: it leaves when so much has come.
    pub(super) fn poll(&mut self, at: usize, cut: Option<Cut>) -> Judged {
        let client = &mut self.clients[at];
        let (Stage::Live(live), Some(watch)) = (&mut client.stage, &mut client.watch) else {
            return Err("it is not live".into());
        };
        let mut before = live.machine.cursor();
        match std::mem::replace(&mut live.state, State::Ready) {
            State::WasRead(read) => live.machine.was_read(read),
            State::WasGiven(bundle, (tail_before, asked)) => {
                let tail = if self.drained { EventId::MAX } else { self.hub.lock().tail() };
                watch.given(&self.facts, Given { at: bundle.at, tail_before, asked, tail, now: self.step })?;
                before = bundle.at.unwrap_or(before);
                live.machine.was_read(Came::Bundle(bundle));
            }
            _ => {}
        }
        let connection = client.connection;
        let want = live.machine.next(&self.hub, &mut self.runs, &self.store.name(), self.now, || connection);
        let tail = self.hub.lock().tail();
        if live.machine.cursor() < before || live.machine.cursor() > tail && !self.drained {
            return Err(format!("the cursor goes from {before} to {} of {tail}", live.machine.cursor()));
        }
        let mut seen: Vec<Frame> = Vec::new();
        let mut came = bytes::Bytes::new();
        let mut leaves = false;
        if matches!(want, Want::EmitAndWait(_)) {
            live.state = State::Waiting;
        }
        let told = match &want {
            Want::Tell(GapReason::Trimmed, _) => Some("gaps told: trimmed"),
            Want::Tell(GapReason::Lost, _) => Some("gaps told: lost"),
            Want::Tell(GapReason::Ahead, _) => Some("gaps told: ahead"),
            Want::End => Some("streams ended"),
            _ => None,
        };
        match want {
            Want::Emit(bytes) | Want::EmitAndWait(bytes) | Want::Tell(_, bytes) => {
                let mut reach = &bytes[..];
                if let Some(Cut::Bytes(n)) = cut {
                    reach = &bytes[..n % (bytes.len() + 1)];
                }
                seen = if client.spec.bytewise {
                    reach.chunks(1).flat_map(|byte| live.reader.read(byte)).collect()
                } else {
                    live.reader.read(reach)
                };
                live.heard = self.now;
                if let Some(cut) = cut {
                    if let Cut::Frames(frames) = cut {
                        seen.truncate(frames);
                    }
                    client.spec.leaves -= 1;
                    leaves = true;
                }
                for frame in &seen {
                    watch.frame(&self.facts, tail, frame)?;
                }
                came = bytes;
            }
            Want::Read(Reading::Log(stretch)) if stretch.upto > tail => return Err(format!("{stretch:?} of {tail}")),
            Want::Read(Reading::Bundle(wanted)) => live.state = State::Asking(Asking::new(wanted)),
            Want::Read(reading) => live.state = State::Reading(reading),
            Want::Wait if live.heard + HEARTBEAT <= self.now => return Err("its heartbeat is due".into()),
            Want::Wait => live.state = State::Waiting,
            Want::Yield => {}
            Want::Drained if !self.drained => return Err("nobody drains".into()),
            Want::End | Want::Drained => {
                if matches!(want, Want::End) {
                    watch.end(&self.facts)?;
                }
                let key = live.key;
                client.stage = Stage::Gone;
                self.hub.lock().detach(key);
            }
        }
        if self.setting.digests {
            self.mix(&came);
        }
        if let Some(told) = told {
            self.count(told);
        }
        if self.trace.is_some() {
            self.note(|| format!("  sees {seen:?}"));
        }
        self.add("frames seen", seen.len() as u64);
        if leaves {
            self.count("streams cut");
            self.leave(at);
        }
        Ok(())
    }

    pub(super) fn read(&mut self, at: usize) -> Judged {
        let Stage::Live(live) = &mut self.clients[at].stage else { return Err("it is not live".into()) };
        match std::mem::replace(&mut live.state, State::Ready) {
            State::Reading(Reading::Log(stretch)) => {
                let next = self.ask_log(stretch)?;
                self.becomes(at, next);
            }
            State::Fetched(slot) => match slot.take() {
                Some(Ok(came)) => self.becomes(at, State::WasRead(came)),
                Some(Err(_)) => self.stumble(at),
                None => return Err("nobody has read it".into()),
            },
            State::Asking(mut asking) => {
                let before = asking.before;
                match (self.ask_on(&mut asking)?, before) {
                    (Some(Ok(bundle)), Some(before)) => self.becomes(at, State::WasGiven(bundle, before)),
                    (Some(Err(_)), _) => self.stumble(at),
                    _ => self.becomes(at, State::Asking(asking)),
                }
            }
            _ => return Err("it does not read".into()),
        }
        Ok(())
    }

    fn becomes(&mut self, at: usize, state: State) {
        if let Stage::Live(live) = &mut self.clients[at].stage {
            live.state = state;
        }
    }

    /// Its stream ends with an error, as what it wanted could not be read; it comes back.
    fn stumble(&mut self, at: usize) {
        self.count("streams ended by an error");
        self.leave(at);
    }

    pub(super) fn leave(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if let Stage::Live(live) = &client.stage {
            self.hub.lock().detach(live.key);
        }
        if let Some(Watch { id, shown, .. }) = client.watch.take() {
            client.id = id.or(client.id);
            client.shown = shown;
        }
        client.stage = Stage::Out;
    }
}
