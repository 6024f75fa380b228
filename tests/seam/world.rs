//! The world: the writer, the hub, the readers and the model store, moved on by one [`Step`] at a time.
//!
//! Steps are as fine as threads can interleave: what happens in one step happens under one lock, or touches nothing shared.

mod bundles;
mod clients;
mod crash;
mod reads;
mod writer;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tidelog::event::{EventId, Millis};
use tidelog::hub::{self, Hub};
use tidelog::metrics::Metrics;
use tidelog::sequencer::local::{Refusal, Writer};
use tidelog::sse::Form;
use tidelog::store::model::{Failing, ModelStore};
use tidelog::store::{Durability, Limits, Policy};
use tidelog::subscription::Begin;
use tidelog::subscription::bundle::{Bundles, Kind};
use tidelog::subscription::run::Runs;
use tidelog::subscription::shared::Shared;
use tidelog::topic::Filter;

use self::bundles::Gathering;
use self::clients::{Client, Stage, State};
use self::reads::Fetching;
use self::writer::{Waiting, writer};
use crate::answers::Ledger;
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
    /// It says what the publish of this number says, as one that is tried again does.
    pub again: Option<u64>,
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
    /// A topic's own limits; none of them: those of the policy.
    Retain(&'static str, Limits),
    /// A round of retention.
    Round,
    /// A second passes for the writer.
    Tick,
    /// The next so many attempts to open the log again fail.
    FailReopens(u32),
    Unreadable(bool),
    Full(bool),
    /// Somebody sets the clock, forward or back.
    Clock(i64),
    /// Time passes by more than a heartbeat.
    Beat,
    Drain,
    /// The process dies; of what was not synced so many writes survive. `Some`: in the midst of the writer's next step, of which a write
    /// is there or not.
    Crash(usize, Option<bool>),
    /// It is stopped in good order, and started again.
    Restart,
    /// A client that is not connected comes with some other id.
    Elsewhere(usize, EventId),
    /// A client that is not connected is another one from now on.
    Visitor(usize, Box<Spec>),
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
    /// The same with so many bytes, counted modulo what there is.
    CutBytes(usize, usize),
    Read(usize),
    /// Whoever reads the log for others goes on.
    Fetch(usize),
    /// Whoever gathers a bundle goes on.
    Gather(usize),
    Leave(usize),
}

/// How a client subscribes.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is another way to be")]
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
    /// Whether its bytes come one by one.
    pub bytewise: bool,
}

/// How a world is.
pub struct Setting {
    /// Scans look at so many records.
    pub scan_max: usize,
    /// The ring keeps so many bytes.
    pub ring_bytes_max: usize,
    pub durability: Durability,
    /// Ids that are reserved ahead, where the durability is not `sync`.
    pub reserve: EventId,
    pub policy: Policy,
    /// Whether a read of the log takes several steps, so that others may come to wait for it.
    pub fine_reads: bool,
    /// Whether a digest is made of all that happens.
    pub digests: bool,
}

/// How much of what is handed out reaches a client that leaves.
#[derive(Debug, Clone, Copy)]
pub enum Cut {
    Frames(usize),
    /// Modulo what there is.
    Bytes(usize),
}

pub struct World {
    setting: Setting,
    pub store: Arc<ModelStore>,
    pub hub: Arc<Mutex<Hub<usize>>>,
    shared: Arc<Shared>,
    /// Of all clients, as though one thread drove them.
    runs: Runs,
    fetching: Vec<Fetching>,
    bundles: Bundles,
    gatherings: Vec<Gathering>,
    writer: Writer<usize>,
    refusal: Refusal,
    waiting: VecDeque<Waiting>,
    pub script: VecDeque<Ask>,
    pub clients: Vec<Client>,
    pub facts: Facts,
    ledger: Ledger,
    policy: Policy,
    /// Publishes under a key that were answered with an error, or not at all.
    pub in_doubt: Vec<Publish>,
    now: Millis,
    /// The time of day, which may go back.
    pub day: Millis,
    step: u64,
    publishes: u64,
    snapshots: u64,
    connections: usize,
    trims: u64,
    published: u64,
    skip: u64,
    pub is_full: bool,
    pub is_unreadable: bool,
    drained: bool,
    /// How often what happened.
    pub happened: BTreeMap<&'static str, u64>,
    /// Of all that happened and was handed out.
    pub digest: u64,
    /// What happened, where that was asked for.
    pub trace: Option<Vec<String>>,
}

pub type Judged = Result<(), String>;

/// What is counted is no part of a history.
fn metrics() -> &'static Arc<Metrics> {
    static ALL: OnceLock<Arc<Metrics>> = OnceLock::new();
    ALL.get_or_init(|| Arc::new(Metrics::new(SystemTime::UNIX_EPOCH)))
}

fn new_hub(setting: &Setting, tail: EventId) -> Arc<Mutex<Hub<usize>>> {
    let options = hub::Options { ring_bytes_max: setting.ring_bytes_max, heartbeat: Duration::from_millis(HEARTBEAT) };
    Arc::new(Mutex::new(Hub::new(options, tail)))
}

impl World {
    /// Scans look at `scan_max` records; the ring keeps `ring_bytes_max`.
    pub fn new(scan_max: usize, ring_bytes_max: usize, clients: Vec<Spec>, script: Vec<Ask>) -> Self {
        let (durability, policy) = (Durability::Sync, Policy::default());
        let setting =
            Setting { scan_max, ring_bytes_max, durability, reserve: 0, policy, fine_reads: false, digests: false };
        Self::with(setting, clients, script)
    }

    pub fn with(setting: Setting, clients: Vec<Spec>, script: Vec<Ask>) -> Self {
        let store = ModelStore::with_short_scans(setting.scan_max).with_durability(setting.durability, setting.reserve);
        let store = Arc::new(store.noting());
        let hub = new_hub(&setting, 0);
        let (writer, refusal) = writer(&store, &hub, setting.durability, metrics());
        Self {
            store,
            hub,
            shared: Arc::default(),
            runs: Runs::default(),
            fetching: Vec::new(),
            bundles: Bundles::default(),
            gatherings: Vec::new(),
            writer,
            refusal,
            waiting: VecDeque::new(),
            script: script.into(),
            clients: clients.into_iter().map(Client::new).collect(),
            facts: Facts::default(),
            ledger: Ledger::new(1_000_000),
            policy: setting.policy.clone(),
            in_doubt: Vec::new(),
            now: 1_000_000,
            day: 1_000_000,
            step: 0,
            publishes: 0,
            snapshots: 0,
            connections: 0,
            trims: 0,
            published: 0,
            skip: 0,
            is_full: false,
            is_unreadable: false,
            drained: false,
            happened: BTreeMap::new(),
            digest: 0xcbf2_9ce4_8422_2325,
            trace: None,
            setting,
        }
    }

    fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    fn add(&mut self, what: &'static str, times: u64) {
        if times > 0 {
            *self.happened.entry(what).or_default() += times;
        }
    }

    /// FNV-1a.
    fn mix(&mut self, what: &[u8]) {
        for byte in what {
            self.digest = (self.digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// What happened becomes part of the digest, where that is wanted.
    fn digest(&mut self, what: &impl std::fmt::Debug) {
        if self.setting.digests {
            self.mix(format!("{what:?}").as_bytes());
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
        steps.extend((0..self.fetching.len()).map(Step::Fetch));
        steps.extend((0..self.gatherings.len()).filter(|at| self.gatherings[*at].goes_on()).map(Step::Gather));
        for (at, client) in self.clients.iter().enumerate() {
            match &client.stage {
                Stage::Gone => {}
                // Else it would come and be refused for ever, where every order is tried.
                Stage::Out if self.is_unreadable && !self.setting.fine_reads => {}
                Stage::Asking(_, asking) if !asking.goes_on() => {}
                Stage::Live(live) => match &live.state {
                    State::Waiting => {}
                    State::Asking(asking) if !asking.goes_on() => {}
                    State::Fetched(slot) if !slot.is_answered() => {}
                    State::Fetched(_) | State::Reading(_) | State::Asking(_) => steps.push(Step::Read(at)),
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
        let reads = |state: &State| matches!(state, State::Reading(_) | State::Asking(_) | State::Fetched(_));
        matches!(&self.clients[at].stage, Stage::Live(live) if !reads(&live.state))
    }

    pub fn apply(&mut self, step: Step) -> Judged {
        self.step += 1;
        self.digest(&step);
        self.note(|| format!("{step:?}"));
        match step {
            Step::Script => match self.script.pop_front() {
                Some(ask) => self.ask(ask)?,
                None => return Err("the script is over".into()),
            },
            Step::Writer => self.write()?,
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
            Step::Cut(at, frames) => {
                self.poll(at, Some(Cut::Frames(frames))).map_err(|why| format!("client {at}: {why}"))?;
            }
            Step::CutBytes(at, bytes) => {
                self.poll(at, Some(Cut::Bytes(bytes))).map_err(|why| format!("client {at}: {why}"))?;
            }
            Step::Fetch(at) => self.fetch(at),
            Step::Read(at) => self.read(at)?,
            Step::Gather(at) => self.gather(at),
            Step::Leave(at) => {
                self.clients[at].spec.leaves -= 1;
                self.leave(at);
            }
        }
        self.nobody_waits_in_vain()
    }

    pub fn ask(&mut self, ask: Ask) -> Judged {
        self.note(|| format!("  {ask:?}"));
        self.step += 1;
        self.digest(&ask);
        match ask {
            Ask::Fail(failing, skip) => {
                self.store.set_failing(failing);
                self.skip = skip;
            }
            Ask::Round => self.round(),
            Ask::Tick => self.writer.tick(),
            Ask::FailReopens(times) => {
                self.store.fail_reopens(times);
                self.add("reopenings made to fail", times.into());
            }
            Ask::Unreadable(unreadable) => {
                self.is_unreadable = unreadable;
                self.store.set_unreadable(unreadable);
            }
            Ask::Full(full) => {
                self.is_full = full;
                self.store.set_full(full);
                self.count("disks full, or freed");
            }
            Ask::Clock(by) => {
                self.day = self.day.saturating_add_signed(by);
                self.ledger.latest = self.ledger.latest.max(self.day);
                if by < 0 {
                    self.count("clocks set back");
                }
            }
            Ask::Beat => return self.beat(),
            Ask::Drain => {
                self.drained = true;
                let wakes = self.hub.lock().drain();
                self.wake(&wakes);
            }
            Ask::Crash(kept, within) => return self.crash(kept, within),
            Ask::Restart => return self.restart(),
            Ask::Elsewhere(at, id) if matches!(self.clients[at].stage, Stage::Out) => {
                self.count("clients that came with any id");
                self.clients[at].comes_with(id);
            }
            Ask::Visitor(at, spec) if matches!(self.clients[at].stage, Stage::Out | Stage::Gone) => {
                self.count("visitors");
                self.clients[at] = Client::new(*spec);
            }
            Ask::Elsewhere(..) | Ask::Visitor(..) => {}
            asked => self.submit(asked),
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
        self.day += HEARTBEAT + HEARTBEAT / 32;
        self.ledger.latest = self.ledger.latest.max(self.day);
        let wakes = self.hub.lock().beat(self.now);
        self.wake(&wakes);
        let late = |client: &Client| match &client.stage {
            Stage::Live(live) => {
                let waits = matches!(live.state, State::Waiting) && !self.writer.owes_wakes();
                waits && live.heard + HEARTBEAT <= self.now
            }
            _ => false,
        };
        match self.clients.iter().position(late) {
            Some(at) => Err(format!("client {at} was not woken for its heartbeat")),
            None => Ok(()),
        }
    }

    /// Who waits, was not woken, and will not be, has everything that subscribers may see.
    fn nobody_waits_in_vain(&mut self) -> Judged {
        if self.writer.owes_wakes() {
            return Ok(());
        }
        let tail = self.tail();
        for (at, client) in self.clients.iter_mut().enumerate() {
            let (Stage::Live(live), Some(watch)) = (&client.stage, &mut client.watch) else { continue };
            if !matches!(live.state, State::Waiting) {
                continue;
            }
            if self.drained {
                return Err(format!("client {at} waits, and nobody comes any more"));
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
            match steps.iter().find(|step| !matches!(step, Step::Cut(..) | Step::CutBytes(..))) {
                Some(&step) => self.apply(step)?,
                None => return Ok(()),
            }
        }
        Err("it does not come to rest".into())
    }

    /// Comes to rest, lets a heartbeat pass, and judges the end: everyone has everything, and an id that says so.
    pub fn finish(&mut self) -> Judged {
        self.ask(Ask::Unreadable(false))?;
        self.ask(Ask::Full(false))?;
        self.ask(Ask::Fail(Failing::No, 0))?;
        self.ask(Ask::Tick)?;
        self.rest()?;
        if !self.waiting.is_empty() || self.refusal.read().is_some() {
            return Err(format!("{} wait for an answer for ever", self.waiting.len()));
        }
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
