//! The world: the writer, the hub, the readers and the model store, moved on by one [`Step`] at a time.
//!
//! Steps are as fine as threads can interleave: what happens in one step happens under one lock, or touches nothing shared.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidelog::event::{Event, EventId, Millis, NewEvent};
use tidelog::hub::{self, Hub, SubscriberKey};
use tidelog::sequencer::local::{catch_up, tell_floors};
use tidelog::sequencer::{Appended, Commit, Outcome, Sequencer, Terms};
use tidelog::sse::Form;
use tidelog::store::model::{Failing, ModelStore};
use tidelog::store::{Store, StoreError, Trim};
use tidelog::subscription::shared::{Asker, Done, Shared, Turn};
use tidelog::subscription::{Begin, Came, Known, LookUp, Options, Reading, Start, Subscription, Want, look_up, read};
use tidelog::topic::{Filter, Topic};

use crate::facts::Facts;
use crate::watch::{Frame, Watch, frames};

pub const HEARTBEAT: Millis = 3_200;

/// What is asked of the writer, and what befalls it.
#[derive(Debug, Clone)]
pub enum Ask {
    /// Topics and types; the data names the publish.
    Publish(Vec<(&'static str, Option<&'static str>)>),
    /// The events of the log, or of a topic, up to an id.
    Trim(Option<&'static str>, EventId),
    /// The commits that are begun from now on fail; the reopening skips so many ids.
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
    /// A poll of which only the first frame reaches the client, which leaves.
    Cut(usize),
    Read(usize),
    Leave(usize),
}

/// How a client subscribes.
#[derive(Debug, Clone)]
pub struct Spec {
    pub filter: Arc<Filter>,
    pub form: Form,
    pub follow: bool,
    pub begin: Begin,
    /// How often it may leave; it comes back with the last id that it saw, or begins anew when it saw none.
    pub leaves: usize,
    /// Whether what it leaves over is cut in the middle of a chunk.
    pub cuts: bool,
    /// Whether its beginning is fixed step by step.
    pub fine: bool,
}

/// The answers of a batch, by publish.
type Answers = Vec<(u64, Result<Outcome, StoreError>)>;

#[derive(Debug)]
enum Writer {
    Idle,
    Begun(Commit),
    Appended(Vec<Event>),
    Pushed(Answers, Vec<usize>),
    Refusing,
    Raised(Vec<Trim>),
    Told,
}

#[derive(Debug)]
enum State {
    Ready,
    Waiting,
    Reading(Reading),
    WasRead(Came),
}

/// Reads are done in one step here, so nobody waits for what another reads.
struct Nobody;

impl Asker for Nobody {
    fn waits(&self) -> bool {
        true
    }

    fn answer(self: Box<Self>, _: Done) {}
}

#[derive(Debug)]
struct Live {
    key: SubscriberKey,
    machine: Subscription,
    state: State,
    /// When something last came.
    heard: Millis,
}

#[derive(Debug)]
enum Stage {
    Out,
    Trims(u64),
    Known(Known, u64),
    Tail(Known, u64, EventId),
    Started(Start),
    Attached(Start, SubscriberKey, bool),
    Live(Box<Live>),
    Gone,
}

pub struct Client {
    pub spec: Spec,
    stage: Stage,
    watch: Option<Watch>,
    /// What it comes back with.
    id: Option<EventId>,
    /// Tells its connections apart: a wake of one that it left wakes nothing.
    connection: usize,
}

pub struct World {
    pub store: ModelStore,
    pub hub: Mutex<Hub<usize>>,
    shared: Arc<Shared>,
    sequencer: Sequencer<u64>,
    writer: Writer,
    requests: VecDeque<Ask>,
    pub script: VecDeque<Ask>,
    pub clients: Vec<Client>,
    pub facts: Facts,
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
        let client = |spec| Client { spec, stage: Stage::Out, watch: None, id: None, connection: 0 };
        Self {
            store: ModelStore::with_short_scans(scan_max),
            hub: Mutex::new(Hub::new(options, 0)),
            shared: Arc::default(),
            sequencer: Sequencer::new(0, 0, 0),
            writer: Writer::Idle,
            requests: VecDeque::new(),
            script: script.into(),
            clients: clients.into_iter().map(client).collect(),
            facts: Facts::default(),
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
        for (at, client) in self.clients.iter().enumerate() {
            match &client.stage {
                Stage::Gone => {}
                Stage::Live(live) => match live.state {
                    State::Waiting => {}
                    State::Reading(_) => steps.push(Step::Read(at)),
                    State::Ready | State::WasRead(_) => {
                        steps.push(Step::Poll(at));
                        if client.spec.cuts && client.spec.leaves > 0 {
                            steps.push(Step::Cut(at));
                        }
                    }
                },
                _ => steps.push(Step::Connect(at)),
            }
        }
    }

    /// Whether a poll of this client is more than asking again in vain.
    pub fn is_live(&self, at: usize) -> bool {
        matches!(&self.clients[at].stage, Stage::Live(live) if !matches!(live.state, State::Reading(_)))
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
                self.connect(at);
                let client = &self.clients[at];
                let how = format!("  {:?}, with the id {:?}: {:?}", client.spec, client.id, client.stage);
                self.note(|| how);
                while !self.clients[at].spec.fine && !matches!(self.clients[at].stage, Stage::Live(_)) {
                    self.connect(at);
                }
            }
            Step::Poll(at) => self.poll(at, false).map_err(|why| format!("client {at}: {why}"))?,
            Step::Cut(at) => self.poll(at, true).map_err(|why| format!("client {at}: {why}"))?,
            Step::Read(at) => self.read(at)?,
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
            Ask::Publish(_) | Ask::Trim(..) => self.requests.push_back(ask),
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

    // ---- the writer, as its thread does it

    fn write(&mut self) -> Judged {
        self.writer = match std::mem::replace(&mut self.writer, Writer::Idle) {
            Writer::Idle => self.begin()?,
            Writer::Begun(batch) => self.append(batch),
            Writer::Appended(batch) => {
                let answers = self.sequencer.settled(&batch);
                let wakes = self.hub.lock().push(batch);
                Writer::Pushed(answers, wakes)
            }
            Writer::Pushed(answers, wakes) => {
                self.answered(&answers)?;
                self.wake(&wakes);
                Writer::Idle
            }
            Writer::Refusing => {
                self.store.set_failing(Failing::No);
                self.store.skip_ids(std::mem::take(&mut self.skip));
                let before = self.store.tail();
                self.store.reopen().unwrap();
                if self.store.tail() > before {
                    self.facts.holes.push(self.store.tail());
                }
                let wakes = Mutex::new(Vec::new());
                catch_up(&self.store, &self.hub, |woken| wakes.lock().extend(woken)).unwrap();
                self.sequencer.resume(self.store.tail(), self.store.last_time());
                self.wake(&wakes.into_inner());
                Writer::Idle
            }
            Writer::Raised(rose) => {
                tell_floors(&mut self.hub.lock(), rose);
                Writer::Told
            }
            Writer::Told => {
                self.store.floors_published();
                self.facts.publish(self.step);
                Writer::Idle
            }
        };
        Ok(())
    }

    fn begin(&mut self) -> Result<Writer, String> {
        if let Some(Ask::Trim(topic, upto)) = self.requests.front().cloned() {
            self.requests.pop_front();
            let topic = topic.map(|t| Topic::parse(t).unwrap());
            let rose = self.store.raise_floors(&[Trim { topic, upto }]).unwrap();
            self.facts.raise(&rose, self.step);
            return Ok(Writer::Raised(rose));
        }
        while let Some(Ask::Publish(_)) = self.requests.front() {
            let Some(Ask::Publish(events)) = self.requests.pop_front() else { break };
            let ticket = self.publishes;
            self.publishes += 1;
            let events = events.into_iter().enumerate().map(|(at, (topic, event))| NewEvent {
                topic: Topic::parse(topic).unwrap(),
                event: event.and_then(|e| tidelog::event::EventType::parse(e).unwrap()),
                key: None,
                data: format!("{ticket}/{at}"),
            });
            self.sequencer.submit(ticket, events.collect(), Terms::default());
        }
        self.sequencer.next(self.now, &self.store).map(Writer::Begun).ok_or_else(|| "nothing to commit".into())
    }

    fn append(&mut self, Commit { events, remembered }: Commit) -> Writer {
        let before = self.store.tail();
        let done = self.store.commit(&events, &remembered);
        if self.store.tail() > before {
            self.facts.append(&events);
        }
        if done.is_ok() {
            return Writer::Appended(events);
        }
        self.sequencer.failed();
        Writer::Refusing
    }

    fn answered(&self, answers: &Answers) -> Judged {
        for (ticket, outcome) in answers {
            let Ok(Outcome::Appended(Appended { first, last })) = outcome else {
                return Err(format!("publish {ticket} was answered {outcome:?}"));
            };
            for (id, at) in (*first..=*last).zip(0..) {
                let there = self.facts.events.get(&id).map(|fact| fact.event.data.clone());
                if there != Some(format!("{ticket}/{at}")) {
                    return Err(format!("publish {ticket} was answered {id}, under which {there:?} lies"));
                }
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

    /// Whom the writer has yet to wake for the batch that it has pushed.
    fn wakes_to_come(&self) -> &[usize] {
        if let Writer::Pushed(_, wakes) = &self.writer { wakes } else { &[] }
    }

    fn will_wake(&self, client: &Client) -> bool {
        self.wakes_to_come().contains(&client.connection)
    }

    // ---- the clients

    fn connect(&mut self, at: usize) {
        let client = &mut self.clients[at];
        let begin = client.id.map_or(client.spec.begin, Begin::After);
        let filter = &client.spec.filter;
        client.stage = match std::mem::replace(&mut client.stage, Stage::Gone) {
            Stage::Out => Stage::Trims(self.hub.lock().trims()),
            Stage::Trims(trims) => Stage::Known(Known::of(&self.store, filter, trims), self.step),
            Stage::Known(known, step) => Stage::Tail(known, step, self.hub.lock().tail()),
            Stage::Tail(known, step, tail) => {
                let mut step_back = look_up(&self.store, filter, begin, tail).unwrap();
                let found = loop {
                    match step_back {
                        LookUp::Found(cursor) => break cursor,
                        LookUp::Further(rest, upto) => step_back = look_up(&self.store, filter, rest, upto).unwrap(),
                    }
                };
                client.watch =
                    Some(Watch::new(filter.clone(), begin, client.spec.follow, &self.facts, tail, (step, self.step)));
                Stage::Started(Start::fix(begin, known, tail, found))
            }
            Stage::Started(start) => {
                let (key, rose) = self.hub.lock().attach(filter, self.now, start.trims);
                Stage::Attached(start, key, rose)
            }
            Stage::Attached(start, key, rose) => {
                if rose {
                    let floor = self.store.floor(filter);
                    self.hub.lock().raise_floor(key, floor);
                }
                self.connections += 1;
                client.connection = self.connections;
                let Spec { form, follow, .. } = client.spec;
                let options = Options { form, heartbeat: Duration::from_millis(HEARTBEAT), follow, bundle: None };
                let machine = Subscription::new(key, filter.clone(), start, options, self.now);
                Stage::Live(Box::new(Live { key, machine, state: State::Ready, heard: self.now }))
            }
            stage @ (Stage::Live(_) | Stage::Gone) => stage,
        };
    }

    fn poll(&mut self, at: usize, cut: bool) -> Judged {
        let client = &mut self.clients[at];
        let (Stage::Live(live), Some(watch)) = (&mut client.stage, &mut client.watch) else {
            return Err("it is not live".into());
        };
        let before = live.machine.cursor();
        if let State::WasRead(read) = std::mem::replace(&mut live.state, State::Ready) {
            live.machine.was_read(read);
        }
        let connection = client.connection;
        let want = live.machine.next(&self.hub, &self.store.name(), self.now, || connection);
        let tail = self.hub.lock().tail();
        if live.machine.cursor() < before || live.machine.cursor() > tail {
            return Err(format!("the cursor goes from {before} to {} of {tail}", live.machine.cursor()));
        }
        let mut seen: Vec<Frame> = Vec::new();
        let mut leaves = false;
        match want {
            Want::Emit(bytes) | Want::Tell(_, bytes) => {
                seen = frames(client.spec.form, &bytes);
                live.heard = self.now;
                if cut {
                    seen.truncate(1);
                    client.spec.leaves -= 1;
                    leaves = true;
                }
                for frame in &seen {
                    watch.frame(&self.facts, tail, frame)?;
                }
            }
            Want::Read(Reading::Log(stretch)) if stretch.upto > tail => return Err(format!("{stretch:?} of {tail}")),
            Want::Read(reading) => live.state = State::Reading(reading),
            Want::Wait if live.heard + HEARTBEAT <= self.now => return Err("its heartbeat is due".into()),
            Want::Wait => live.state = State::Waiting,
            Want::Yield => {}
            Want::End => {
                watch.end(&self.facts)?;
                let key = live.key;
                client.stage = Stage::Gone;
                self.hub.lock().detach(key);
            }
            Want::Drained if !self.drained => return Err("nobody drains".into()),
            Want::Drained => {
                let key = live.key;
                client.stage = Stage::Gone;
                self.hub.lock().detach(key);
            }
        }
        if self.trace.is_some() {
            self.note(|| format!("  sees {seen:?}"));
        }
        if leaves {
            self.leave(at);
        }
        Ok(())
    }

    fn read(&mut self, at: usize) -> Judged {
        let Stage::Live(live) = &mut self.clients[at].stage else { return Err("it is not live".into()) };
        let State::Reading(Reading::Log(stretch)) = &live.state else { return Err("it does not read".into()) };
        // What another has read at this place is taken, as the drivers do, however long ago that was.
        let told = self.store.floors_told();
        let got = match self.shared.turn(stretch, told, Box::new(Nobody)) {
            Turn::Known(read) => read,
            Turn::Wait => return Err("a read is under way, though each is done in one step".into()),
            Turn::Lead(lead) => {
                let done = read(&self.store, stretch).map_err(Into::into);
                drop(lead.done(stretch.clone(), told, &done));
                done.map_err(|e| e.to_string())?
            }
        };
        live.state = State::WasRead(Came::Log(got));
        Ok(())
    }

    fn leave(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if let Stage::Live(live) = &client.stage {
            self.hub.lock().detach(live.key);
        }
        client.id = client.watch.take().and_then(|watch| watch.id).or(client.id);
        client.stage = Stage::Out;
    }

    /// Who waits, was not woken, and will not be, has everything that subscribers may see.
    fn nobody_waits_in_vain(&mut self) -> Judged {
        let tail = self.tail();
        let woken = self.wakes_to_come().to_vec();
        for (at, client) in self.clients.iter_mut().enumerate() {
            let (Stage::Live(live), Some(watch)) = (&client.stage, &mut client.watch) else { continue };
            if matches!(live.state, State::Waiting)
                && !woken.contains(&client.connection)
                && let Some(id) = watch.is_owed(&self.facts, tail)
            {
                return Err(format!("client {at} waits, and event {id} does not wake it"));
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
            match steps.iter().find(|step| !matches!(step, Step::Cut(_))) {
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
        for (at, client) in self.clients.iter_mut().enumerate() {
            let Some(watch) = &mut client.watch else { return Err(format!("client {at} never began")) };
            let Stage::Live(live) = &client.stage else { continue };
            if let Some(id) = watch.is_owed(&self.facts, tail) {
                return Err(format!("in the end client {at} lacks event {id}"));
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
