//! Long random runs. `SEEDS=n` runs n of them, `SEED=n` just the one, with its trace.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fastrand::Rng;
use tidelog::sse::Form;
use tidelog::store::Store;
use tidelog::store::model::Failing;
use tidelog::subscription::Begin;
use tidelog::subscription::bundle::Kind;
use tidelog::topic::Topic;

use crate::scenarios::filter;
use crate::world::{Ask, Judged, One, Publish, Spec, Step, World};

const SEEDS: u64 = 300;
const STEPS: usize = 4_000;

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

fn spec(rng: &mut Rng) -> Spec {
    let patterns = pick(rng, &PATTERNS);
    let of_one = patterns.len() == 1 && !patterns[0].contains('*');
    let bundle = match rng.u8(..8) {
        0 | 1 => Some(Kind::State),
        2 | 3 if of_one => Some(Kind::Snapshot),
        _ => None,
    };
    Spec {
        filter: filter(patterns, pick(rng, &TYPES)),
        form: pick(rng, &[Form::Sse, Form::SseEnvelope, Form::Lines]),
        follow: rng.u8(..6) > 0,
        begin: Some(begin(rng)).filter(|_| bundle.is_none() || rng.u8(..3) == 0),
        bundle,
        leaves: rng.usize(..30),
        cuts: true,
        fine: true,
    }
}

fn world(rng: &mut Rng) -> World {
    let clients = (0..rng.usize(1..24)).map(|_| spec(rng)).collect();
    World::new(rng.usize(1..6), pick(rng, &[0, 500, 3_000, 20_000, 1 << 20]), clients, Vec::new())
}

fn one(rng: &mut Rng) -> One {
    let key = pick(rng, &KEYS);
    let size = usize::from(key.is_none() || rng.u8(..4) > 0);
    One { topic: pick(rng, &TOPICS), event: pick(rng, &[None, None, Some("t"), Some("u")]), key, size }
}

fn publish(rng: &mut Rng, world: &World) -> Publish {
    let events: Vec<_> = (0..rng.usize(1..6)).map(|_| one(rng)).collect();
    let last = match rng.u8(..8) {
        0 => Some(world.facts.newest_retained(&Topic::parse(events[0].topic).unwrap())),
        1 => Some(rng.u64(..9)),
        _ => None,
    };
    let key = Some((rng.u8(..8), rng.u8(..2))).filter(|_| rng.u8(..3) == 0);
    Publish { events, last, key }
}

fn ask(rng: &mut Rng, world: &World) -> Option<Ask> {
    Some(match rng.u8(..64) {
        0..3 => Ask::Beat,
        3..6 => Ask::Fail(pick(rng, &[Failing::Unwritten, Failing::Written]), pick(rng, &[0, 0, 1, 4])),
        6..12 => {
            // Exactly at an event, as retention and a DELETE of what is there would.
            let (newest, _) = world.facts.events.last_key_value()?;
            let (&upto, fact) = world.facts.events.range(rng.u64(newest / 2..=*newest)..).next()?;
            let topic = TOPICS.into_iter().find(|t| *t == fact.event.topic.as_str());
            Ask::Trim(topic.filter(|_| rng.u8(..3) > 0), upto)
        }
        12 => Ask::Close(pick(rng, &CLOSING)),
        13 => Ask::Delete(pick(rng, &TOPICS)),
        14..18 => Ask::Snapshot(pick(rng, &TOPICS), (world.tail() + 1).saturating_sub(rng.u64(..20))),
        _ => Ask::Publish(publish(rng, world)),
    })
}

fn run(world: &mut World, rng: &mut Rng) -> Judged {
    let mut steps = Vec::new();
    let pace = rng.u8(2..12);
    for _ in 0..STEPS {
        if rng.u8(..pace) == 0 {
            if let Some(ask) = ask(rng, world) {
                world.ask(ask)?;
            }
            continue;
        }
        world.enabled(&mut steps);
        // Leaving is rare, or nobody would ever get anywhere.
        steps.retain(|step| !matches!(step, Step::Leave(_) | Step::Cut(..)) || rng.u8(..40) == 0);
        if rng.u8(..10) == 0 {
            // A poll that nothing called for.
            steps.extend(Some(rng.usize(..world.clients.len())).filter(|&at| world.is_live(at)).map(Step::Poll));
        }
        if !steps.is_empty() {
            world.apply(pick(rng, &steps))?;
        }
    }
    world.finish()
}

/// A run and its trace.
fn seeded(seed: u64, traced: bool) -> (Judged, Vec<String>, u64) {
    let mut rng = Rng::with_seed(seed);
    let mut world = world(&mut rng);
    world.trace = traced.then(Vec::new);
    let judged = catch_unwind(AssertUnwindSafe(|| run(&mut world, &mut rng)));
    match judged {
        Ok(judged) => (judged, world.trace.take().unwrap_or_default(), world.store.tail()),
        Err(panic) => {
            eprintln!("SEED={seed}: a panic\n{}", world.trace.unwrap_or_default().join("\n"));
            resume_unwind(panic)
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn long_random_runs_keep_the_promises() {
    if let Some(seed) = number("SEED") {
        let (judged, trace, _) = seeded(seed, true);
        assert!(judged.is_ok(), "{}\nSEED={seed}: {}", trace.join("\n"), judged.unwrap_err());
        return;
    }
    let seeds = number("SEEDS").unwrap_or(SEEDS);
    let mut ids = 0;
    for seed in 0..seeds {
        let (judged, _, tail) = seeded(seed, false);
        ids += tail;
        assert!(judged.is_ok(), "SEED={seed} replays it: {}", judged.unwrap_err());
    }
    println!("{seeds} seeds, {ids} ids");
}

#[test]
fn a_seed_is_a_run() {
    for seed in 0..3 {
        let (first, second) = (seeded(seed, true), seeded(seed, true));
        assert!(first.1.len() > STEPS / 2 && first == second, "SEED={seed}");
    }
}
