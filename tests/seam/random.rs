//! The simulation's choices, all of them drawn from one seed: how the world is, who takes the next step, what is asked for, what fails.
//!
//! Whose turn it is is mostly drawn evenly; now and then one actor is starved for long, or has all the turns.

use fastrand::Rng;
use tidelog::event::EventId;
use tidelog::sse::Form;
use tidelog::store::model::Failing;
use tidelog::store::{Durability, Limits, Policy};
use tidelog::subscription::Begin;
use tidelog::subscription::bundle::Kind;
use tidelog::topic::{Pattern, Topic};

use crate::scenarios::filter;
use crate::search::Actor;
use crate::world::{Ask, Judged, One, Publish, Setting, Spec, Step, World};

const TOPICS: [&str; 7] = ["a", "a.x", "a.y", "b.x", "c", "d", "e"];
/// Those that are closed: the others go on.
const CLOSING: [&str; 3] = ["c", "d", "e"];
const PATTERNS: [&[&str]; 12] = [
    &["a"],
    &["c"],
    &["d"],
    &["a.x"],
    &["b.x"],
    &["a.*"],
    &["*.x"],
    &["a.**"],
    &["**"],
    &["a", "b.*"],
    &["c", "d"],
    &["a", "e"],
];
const TYPES: [&[&str]; 5] = [&[], &[], &[], &["t"], &["u", "message"]];
const KEYS: [Option<&str>; 4] = [None, Some("k"), Some("l"), Some("m")];

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

fn begin(rng: &mut Rng) -> Begin {
    match rng.u8(..8) {
        0 => Begin::After(0),
        1 => Begin::After(rng.u64(..200)),
        2 => Begin::At(rng.u64(1..100)),
        3 => Begin::Earliest,
        4 => Begin::Last(rng.u64(1..10)),
        5 => Begin::Time(rng.u64(1_000_000..1_100_000)),
        _ => Begin::Latest,
    }
}

/// What many ask for alike, so that they share reads and bundles.
#[derive(Clone, Copy)]
struct Crowd {
    patterns: &'static [&'static str],
    types: &'static [&'static str],
    form: Form,
    kind: Kind,
}

impl Crowd {
    fn drawn(rng: &mut Rng) -> Self {
        let form = pick(rng, &[Form::Sse, Form::SseEnvelope, Form::Lines]);
        let kind = pick(rng, &[Kind::State, Kind::Snapshot]);
        Self { patterns: pick(rng, &PATTERNS), types: pick(rng, &TYPES), form, kind }
    }
}

/// One of `crowd`, or anybody.
fn spec(rng: &mut Rng, crowd: Crowd) -> Spec {
    let Crowd { patterns, types, form, kind } = if rng.bool() { crowd } else { Crowd::drawn(rng) };
    let of_one = patterns.len() == 1 && !patterns[0].contains('*');
    let bundle = Some(kind).filter(|kind| rng.bool() && (of_one || *kind == Kind::State));
    Spec {
        filter: filter(patterns, types),
        form,
        follow: rng.u8(..6) > 0,
        begin: Some(begin(rng)).filter(|_| bundle.is_none() || rng.u8(..3) == 0),
        bundle,
        leaves: rng.usize(..30),
        cuts: true,
        fine: true,
        bytewise: rng.u8(..8) == 0,
    }
}

fn limits(rng: &mut Rng) -> Limits {
    let mut max = |m: u64| if rng.u8(..3) == 0 { rng.u64(1..m) } else { 0 };
    let (max_events, max_age, max_bytes) = (max(20), max(10_000), max(900));
    Limits { max_events, max_age, max_bytes, trim_to_snapshot: rng.u8(..4) == 0 }
}

fn policy(rng: &mut Rng) -> Policy {
    let of_log = if rng.bool() { Limits::default() } else { Limits { trim_to_snapshot: false, ..limits(rng) } };
    Policy { log: of_log, topics: vec![(Pattern::parse("a.**").unwrap(), limits(rng))] }
}

fn world(rng: &mut Rng, crowd: Crowd) -> World {
    let setting = Setting {
        scan_max: rng.usize(1..6),
        ring_bytes_max: pick(rng, &[0, 500, 3_000, 20_000, 1 << 20]),
        durability: pick(rng, &[Durability::Sync, Durability::Sync, Durability::Interval, Durability::Os]),
        reserve: pick(rng, &[1, 3, 20, 1_000]),
        policy: policy(rng),
        fine_reads: true,
        digests: true,
    };
    let clients = (0..rng.usize(1..12)).map(|_| spec(rng, crowd)).collect();
    World::with(setting, clients, Vec::new())
}

fn one(rng: &mut Rng) -> One {
    let key = pick(rng, &KEYS);
    let size = usize::from(key.is_none() || rng.u8(..4) > 0);
    One { topic: pick(rng, &TOPICS), event: pick(rng, &[None, None, Some("t"), Some("u")]), key, size }
}

fn publish(rng: &mut Rng, world: &World) -> Publish {
    let mut events: Vec<_> = (0..rng.usize(1..6)).map(|_| one(rng)).collect();
    // Its data tells publishes apart.
    events[0].size = events[0].size.max(1);
    let last = match rng.u8(..8) {
        0 => Some(world.facts.newest_retained(&Topic::parse(events[0].topic).unwrap(), EventId::MAX)),
        1 => Some(rng.u64(..9)),
        _ => None,
    };
    let key = Some((rng.u8(..8), rng.u8(..2))).filter(|_| rng.u8(..3) == 0);
    Publish { events, last, key, again: None }
}

/// What is asked next, or befalls it.
fn ask(rng: &mut Rng, world: &mut World, crowd: Crowd) -> Option<Ask> {
    let client = rng.usize(..world.clients.len());
    Some(match rng.u8(..128) {
        0..4 => Ask::Beat,
        4..8 => Ask::Fail(pick(rng, &[Failing::Unwritten, Failing::Written]), pick(rng, &[0, 0, 1, 4])),
        8..13 => trim(rng, world)?,
        13 => Ask::Close(pick(rng, &CLOSING)),
        14..16 => Ask::Delete(pick(rng, &TOPICS)),
        16..22 => Ask::Snapshot(pick(rng, &TOPICS), (world.tail() + 1).saturating_sub(rng.u64(..20))),
        22..24 => Ask::Retain(pick(rng, &TOPICS), if rng.bool() { limits(rng) } else { Limits::default() }),
        24..29 => Ask::Round,
        29..34 => Ask::Tick,
        34 => Ask::FailReopens(rng.u32(1..3)),
        35..37 => Ask::Unreadable(!world.is_unreadable),
        37..39 => Ask::Full(!world.is_full),
        // What ails the disk seldom ails it for long.
        39..48 if world.is_unreadable => Ask::Unreadable(false),
        39..48 if world.is_full => Ask::Full(false),
        39..41 => Ask::Clock(pick(rng, &[-20_000, -700, -1, 5, 400, 2_500, 30_000])),
        41..44 => {
            let unsynced = world.store.unsynced();
            let kept = if rng.bool() { unsynced } else { rng.usize(..=unsynced) };
            Ask::Crash(kept, pick(rng, &[None, Some(false), Some(true)]))
        }
        44 => Ask::Restart,
        48..52 => Ask::Elsewhere(client, rng.u64(..world.tail() + 5)),
        52..56 => Ask::Visitor(client, Box::new(spec(rng, crowd))),
        56..66 if !world.in_doubt.is_empty() => {
            let publish = world.in_doubt.swap_remove(rng.usize(..world.in_doubt.len()));
            *world.happened.entry("publishes repeated when in doubt").or_default() += 1;
            Ask::Publish(publish)
        }
        _ => Ask::Publish(publish(rng, world)),
    })
}

/// Exactly at an event, as retention and a DELETE of what is there would.
fn trim(rng: &mut Rng, world: &World) -> Option<Ask> {
    let (newest, _) = world.facts.events.last_key_value()?;
    let (&upto, fact) = world.facts.events.range(rng.u64(newest / 2..=*newest)..).next()?;
    let topic = TOPICS.into_iter().find(|t| *t == fact.event.topic.as_str());
    Some(Ask::Trim(topic.filter(|_| rng.u8(..3) > 0), upto))
}

/// Whose turns are not drawn evenly, and for how many steps.
#[derive(Clone, Copy)]
enum Bias {
    None,
    Starves(Actor, u32),
    Bursts(Actor, u32),
}

impl Bias {
    fn drawn(rng: &mut Rng, steps: &[Step], world: &mut World) -> Self {
        let draw = rng.u8(..80);
        if draw > 2 {
            return Self::None;
        }
        let actor = Actor::of(pick(rng, steps));
        let (what, bias) = match draw {
            0 => ("bursts of one actor", Self::Bursts(actor, rng.u32(5..40))),
            _ => ("actors starved", Self::Starves(actor, rng.u32(20..200))),
        };
        *world.happened.entry(what).or_default() += 1;
        bias
    }

    /// Leaves out of `steps` those whose turn it is not, unless nobody else's it is.
    fn apply(&mut self, steps: &mut Vec<Step>) {
        let (Self::Starves(_, left) | Self::Bursts(_, left)) = self else { return };
        *left -= 1;
        let left = *left;
        let now = *self;
        let wanted = |step: &Step| match now {
            Self::None => true,
            Self::Starves(actor, _) => Actor::of(*step) != actor,
            Self::Bursts(actor, _) => Actor::of(*step) == actor,
        };
        if steps.iter().any(wanted) {
            steps.retain(wanted);
        }
        if left == 0 {
            *self = Self::None;
        }
    }
}

/// A run of so many steps; what it was like is in its world.
pub struct Run {
    rng: Rng,
    crowd: Crowd,
    pub world: World,
    /// How many were taken.
    pub taken: usize,
}

impl Run {
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let crowd = Crowd::drawn(&mut rng);
        let world = world(&mut rng, crowd);
        Self { rng, crowd, world, taken: 0 }
    }

    pub fn go(&mut self, steps: usize) -> Judged {
        let Self { rng, crowd, world, taken } = self;
        let mut enabled = Vec::new();
        let mut bias = Bias::None;
        let pace = rng.u8(3..12);
        while *taken < steps {
            *taken += 1;
            if rng.u8(..pace) == 0 {
                if let Some(ask) = ask(rng, world, *crowd) {
                    world.ask(ask)?;
                }
                continue;
            }
            world.enabled(&mut enabled);
            // Leaving is rare, or nobody would ever get anywhere.
            enabled.retain(|step| !matches!(step, Step::Leave(_) | Step::Cut(..)) || rng.u8(..40) == 0);
            for step in &mut enabled {
                if let Step::Cut(at, _) = *step
                    && rng.bool()
                {
                    *step = Step::CutBytes(at, rng.usize(..100_000));
                }
            }
            if rng.u8(..10) == 0 {
                // A poll that nothing called for.
                enabled.extend(Some(rng.usize(..world.clients.len())).filter(|&at| world.is_live(at)).map(Step::Poll));
            }
            if enabled.is_empty() {
                continue;
            }
            if matches!(bias, Bias::None) {
                bias = Bias::drawn(rng, &enabled, world);
            }
            bias.apply(&mut enabled);
            world.apply(pick(rng, &enabled))?;
        }
        world.finish()
    }
}
