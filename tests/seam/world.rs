//! The world: the writer, the hub, the readers and the model store, moved on by one [`Step`] at a time.
//!
//! Steps are as fine as threads can interleave: what happens in one step happens under one lock, or touches nothing shared.

mod bundles;
mod clients;
mod writer;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidelog::event::{EventId, Millis};
use tidelog::hub::{self, Hub};
use tidelog::sequencer::Sequencer;
use tidelog::sse::Form;
use tidelog::store::model::{Failing, ModelStore};
use tidelog::subscription::Begin;
use tidelog::subscription::bundle::{Bundles, Kind};
use tidelog::subscription::shared::Shared;
use tidelog::topic::Filter;

use self::bundles::Gathering;
use self::clients::{Client, Stage, State};
use self::writer::Writer;
use crate::answers::{Ledger, WINDOW};
use crate::facts::Facts;

pub const HEARTBEAT: Millis = 3_200;

/// An event that is published; its data names the publish.
#[derive(Debug, Clone, Copy)]
pub struct One {
    pub topic: &'static str,
    pub event: Option<&'static str>,
    pub key: Option<&'static str>,
    /// The data is padded to so many bytes; 0: it is empty, which removes the key.
    pub size: usize,
}

impl From<(&'static str, Option<&'static str>)> for One {
    fn from((topic, event): (&'static str, Option<&'static str>)) -> Self {
        Self { topic, event, key: None, size: 1 }
    }
}

/// A publish.
#[derive(Debug, Clone, Default)]
pub struct Publish {
    pub events: Vec<One>,
    /// Only where the newest retained event of its first topic is this.
    pub last: Option<EventId>,
    /// The idempotency key, and what else tells requests apart.
    pub key: Option<(u8, u8)>,
}

/// What is asked of the writer, and what befalls it.
#[derive(Debug, Clone)]
pub enum Ask {
    Publish(Publish),
    /// The events of the log, or of a topic, up to an id.
    Trim(Option<&'static str>, EventId),
    Delete(&'static str),
    Close(&'static str),
    /// A topic's snapshot, true at an id.
    Snapshot(&'static str, EventId),
    /// The writes that are begun from now on fail; the reopening skips so many ids.
    Fail(Failing, u64),
    /// Time passes by more than a heartbeat.
    Beat,
    Drain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The next ask of the script.
    Script,
    /// The writer goes on.
    Writer,
    Connect(usize),
    Poll(usize),
    /// A poll of which only so many frames reach the client, which leaves.
    Cut(usize, usize),
    Read(usize),
    /// Whoever gathers a bundle goes on.
    Gather(usize),
    Leave(usize),
}

/// How a client subscribes.
#[derive(Debug, Clone)]
pub struct Spec {
    pub filter: Arc<Filter>,
    pub form: Form,
    pub follow: bool,
    /// `None`: with the bundle.
    pub begin: Option<Begin>,
    /// What it is sent at the beginning, or after a gap.
    pub bundle: Option<Kind>,
    /// How often it may leave; it comes back with the last id that it saw, or begins anew when it saw none.
    pub leaves: usize,
    /// Whether what it leaves over is cut in the middle of a chunk.
    pub cuts: bool,
    /// Whether its beginning is fixed step by step.
    pub fine: bool,
}

pub struct World {
    pub store: ModelStore,
    pub hub: Mutex<Hub<usize>>,
    shared: Arc<Shared>,
    bundles: Bundles,
    gatherings: Vec<Gathering>,
    sequencer: Sequencer<u64>,
    writer: Writer,
    requests: VecDeque<Ask>,
    pub script: VecDeque<Ask>,
    pub clients: Vec<Client>,
    pub facts: Facts,
    ledger: Ledger,
    now: Millis,
    step: u64,
    publishes: u64,
    connections: usize,
    skip: u64,
    drained: bool,
    /// What happened, where that was asked for.
    pub trace: Option<Vec<String>>,
}

pub type Judged = Result<(), String>;

impl World {
    /// Scans look at `scan_max` records; the ring keeps `ring_bytes_max`.
    pub fn new(scan_max: usize, ring_bytes_max: usize, clients: Vec<Spec>, script: Vec<Ask>) -> Self {
        let options = hub::Options { ring_bytes_max, heartbeat: Duration::from_millis(HEARTBEAT) };
        Self {
            store: ModelStore::with_short_scans(scan_max),
            hub: Mutex::new(Hub::new(options, 0)),
            shared: Arc::default(),
            bundles: Bundles::default(),
            gatherings: Vec::new(),
            sequencer: Sequencer::new(0, 0, WINDOW),
            writer: Writer::Idle,
            requests: VecDeque::new(),
            script: script.into(),
            clients: clients.into_iter().map(Client::new).collect(),
            facts: Facts::default(),
            ledger: Ledger::default(),
            now: 1_000_000,
            step: 0,
            publishes: 0,
            connections: 0,
            skip: 0,
            drained: false,
            trace: None,
        }
    }

    /// Does the next `asks` of the script at once, before the search begins.
    pub fn after(mut self, asks: usize) -> Self {
        for _ in 0..asks {
            self.apply(Step::Script).unwrap();
            while self.writer_goes_on() {
                self.apply(Step::Writer).unwrap();
            }
        }
        self
    }

    pub fn tail(&self) -> EventId {
        self.hub.lock().tail()
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(what());
        }
    }

    fn writer_goes_on(&self) -> bool {
        !(matches!(self.writer, Writer::Idle) && self.requests.is_empty())
    }

    /// All that can happen next.
    pub fn enabled(&self, steps: &mut Vec<Step>) {
        steps.clear();
        if !self.script.is_empty() {
            steps.push(Step::Script);
        }
        self.enabled_without_script(steps);
        for (at, client) in self.clients.iter().enumerate() {
            if client.spec.leaves > 0 && matches!(client.stage, Stage::Live(_)) {
                steps.push(Step::Leave(at));
            }
        }
    }

    fn enabled_without_script(&self, steps: &mut Vec<Step>) {
        if self.writer_goes_on() {
            steps.push(Step::Writer);
        }
        steps.extend((0..self.gatherings.len()).filter(|at| self.gatherings[*at].goes_on()).map(Step::Gather));
        for (at, client) in self.clients.iter().enumerate() {
            match &client.stage {
                Stage::Gone => {}
                Stage::Asking(_, asking) if !asking.goes_on() => {}
                Stage::Live(live) => match &live.state {
                    State::Waiting => {}
                    State::Asking(asking) if !asking.goes_on() => {}
                    State::Reading(_) | State::Asking(_) => steps.push(Step::Read(at)),
                    State::Ready | State::WasRead(_) | State::WasGiven(..) => {
                        steps.push(Step::Poll(at));
                        if client.spec.cuts && client.spec.leaves > 0 {
                            let most = if client.spec.bundle.is_some() { 2 } else { 1 };
                            steps.extend((1..=most).map(|frames| Step::Cut(at, frames)));
                        }
                    }
                },
                _ => steps.push(Step::Connect(at)),
            }
        }
    }

    /// Whether a poll of this client is more than asking again in vain.
    pub fn is_live(&self, at: usize) -> bool {
        let reads = |state: &State| matches!(state, State::Reading(_) | State::Asking(_));
        matches!(&self.clients[at].stage, Stage::Live(live) if !reads(&live.state))
    }

    pub fn apply(&mut self, step: Step) -> Judged {
        self.step += 1;
        self.note(|| format!("{step:?}"));
        match step {
            Step::Script => match self.script.pop_front() {
                Some(ask) => self.ask(ask)?,
                None => return Err("the script is over".into()),
            },
            Step::Writer => {
                self.write()?;
                let now = format!("  {:?}", self.writer);
                self.note(|| now);
            }
            Step::Connect(at) => {
                self.connect(at).map_err(|why| format!("client {at}: {why}"))?;
                let client = &self.clients[at];
                let how = format!("  {:?}, with the id {:?}: {:?}", client.spec, client.id, client.stage);
                self.note(|| how);
                while !self.clients[at].spec.fine && self.clients[at].connects() {
                    self.connect(at).map_err(|why| format!("client {at}: {why}"))?;
                }
            }
            Step::Poll(at) => self.poll(at, None).map_err(|why| format!("client {at}: {why}"))?,
            Step::Cut(at, frames) => self.poll(at, Some(frames)).map_err(|why| format!("client {at}: {why}"))?,
            Step::Read(at) => self.read(at)?,
            Step::Gather(at) => self.gather(at)?,
            Step::Leave(at) => {
                self.clients[at].spec.leaves -= 1;
                self.leave(at);
            }
        }
        self.nobody_waits_in_vain()
    }

    pub fn ask(&mut self, ask: Ask) -> Judged {
        self.note(|| format!("  {ask:?}"));
        match ask {
            Ask::Publish(_) | Ask::Trim(..) | Ask::Delete(_) | Ask::Close(_) | Ask::Snapshot(..) => {
                self.requests.push_back(ask);
            }
            Ask::Fail(failing, skip) => {
                self.store.set_failing(failing);
                self.skip = skip;
            }
            Ask::Beat => return self.beat(),
            Ask::Drain => {
                self.drained = true;
                let wakes = self.hub.lock().drain();
                self.wake(&wakes);
            }
        }
        Ok(())
    }

    fn wake(&mut self, connections: &[usize]) {
        let woken: HashSet<usize> = connections.iter().copied().collect();
        for client in &mut self.clients {
            if let Stage::Live(live) = &mut client.stage
                && matches!(live.state, State::Waiting)
                && woken.contains(&client.connection)
            {
                live.state = State::Ready;
            }
        }
        self.gatherings.iter_mut().for_each(|gathering| gathering.wake(&woken));
        self.note(|| format!("  wakes {connections:?}"));
    }

    fn beat(&mut self) -> Judged {
        self.now += HEARTBEAT + HEARTBEAT / 32;
        let wakes = self.hub.lock().beat(self.now);
        self.wake(&wakes);
        let late = |client: &Client| match &client.stage {
            Stage::Live(live) => {
                let waits = matches!(live.state, State::Waiting) && !self.will_wake(client);
                waits && live.heard + HEARTBEAT <= self.now
            }
            _ => false,
        };
        match self.clients.iter().position(late) {
            Some(at) => Err(format!("client {at} was not woken for its heartbeat")),
            None => Ok(()),
        }
    }

    /// Whom the writer has yet to wake for what it has told the hub.
    fn wakes_to_come(&self) -> &[usize] {
        self.writer.wakes_to_come()
    }

    fn will_wake(&self, client: &Client) -> bool {
        self.wakes_to_come().contains(&client.connection)
    }

    /// Who waits, was not woken, and will not be, has everything that subscribers may see.
    fn nobody_waits_in_vain(&mut self) -> Judged {
        let tail = self.tail();
        let woken = self.wakes_to_come().to_vec();
        for (at, client) in self.clients.iter_mut().enumerate() {
            let (Stage::Live(live), Some(watch)) = (&client.stage, &mut client.watch) else { continue };
            if !matches!(live.state, State::Waiting) || woken.contains(&client.connection) {
                continue;
            }
            if let Some(id) = watch.is_owed(&self.facts, tail) {
                return Err(format!("client {at} waits, and event {id} does not wake it"));
            }
            if watch.is_owed_more(&self.facts) {
                return Err(format!("client {at} waits, and a bundle or the end is owed to it"));
            }
        }
        Ok(())
    }

    // ---- the end

    /// Lets everything come to rest.
    pub fn rest(&mut self) -> Judged {
        let mut steps = Vec::new();
        for _ in 0..1_000_000 {
            steps.clear();
            self.enabled_without_script(&mut steps);
            match steps.iter().find(|step| !matches!(step, Step::Cut(..))) {
                Some(&step) => self.apply(step)?,
                None => return Ok(()),
            }
        }
        Err("it does not come to rest".into())
    }

    /// Comes to rest, lets a heartbeat pass, and judges the end: everyone has everything, and an id that says so.
    pub fn finish(&mut self) -> Judged {
        self.rest()?;
        if !self.drained {
            self.beat()?;
            self.rest()?;
        }
        let tail = self.tail();
        if !self.gatherings.is_empty() {
            return Err("whoever gathers a bundle hangs".into());
        }
        for (at, client) in self.clients.iter_mut().enumerate() {
            let Some(watch) = &mut client.watch else { return Err(format!("client {at} never began")) };
            let Stage::Live(live) = &client.stage else { continue };
            if let Some(id) = watch.is_owed(&self.facts, tail) {
                return Err(format!("in the end client {at} lacks event {id}"));
            }
            if watch.is_owed_more(&self.facts) {
                return Err(format!("in the end client {at} lacks a bundle or its end"));
            }
            if live.machine.cursor() != tail || watch.id != Some(tail) {
                return Err(format!(
                    "in the end client {at} stands at {} and knows {:?} of {tail}",
                    live.machine.cursor(),
                    watch.id
                ));
            }
            let key = live.key;
            self.hub.lock().detach(key);
        }
        match self.hub.lock().subscribers() {
            0 => Ok(()),
            left => Err(format!("{left} subscribers are left in the hub")),
        }
    }
}
