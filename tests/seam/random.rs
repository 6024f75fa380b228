//! Long random runs. `SEEDS=n` runs n of them, `SEED=n` just the one, with its trace.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use fastrand::Rng;
use tidelog::sse::Form;
use tidelog::store::Store;
use tidelog::store::model::Failing;
use tidelog::subscription::Begin;

use crate::scenarios::filter;
use crate::world::{Ask, Judged, Spec, Step, World};

const SEEDS: u64 = 300;
const STEPS: usize = 4_000;

const TOPICS: [&str; 5] = ["a", "a.x", "a.y", "b.x", "c"];
const PATTERNS: [&[&str]; 9] =
    [&["a"], &["c"], &["a.x"], &["b.x"], &["a.*"], &["*.x"], &["a.**"], &["**"], &["a", "b.*"]];
const TYPES: [&[&str]; 5] = [&[], &[], &[], &["t"], &["u", "message"]];

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

fn world(rng: &mut Rng) -> World {
    let clients = (0..rng.usize(1..24)).map(|_| Spec {
        filter: filter(pick(rng, &PATTERNS), pick(rng, &TYPES)),
        form: pick(rng, &[Form::Sse, Form::SseEnvelope, Form::Lines]),
        follow: rng.u8(..6) > 0,
        begin: begin(rng),
        leaves: rng.usize(..30),
        cuts: true,
        fine: true,
    });
    let clients = clients.collect();
    World::new(rng.usize(1..6), pick(rng, &[0, 500, 3_000, 20_000, 1 << 20]), clients, Vec::new())
}

fn ask(rng: &mut Rng, world: &World) -> Option<Ask> {
    Some(match rng.u8(..20) {
        0 => Ask::Beat,
        1 => Ask::Fail(pick(rng, &[Failing::Unwritten, Failing::Written]), pick(rng, &[0, 0, 1, 4])),
        2 | 3 => {
            // Exactly at an event, as retention and a DELETE of what is there would.
            let (newest, _) = world.facts.events.last_key_value()?;
            let (&upto, fact) = world.facts.events.range(rng.u64(newest / 2..=*newest)..).next()?;
            let topic = TOPICS.into_iter().find(|t| *t == fact.event.topic.as_str());
            Ask::Trim(topic.filter(|_| rng.u8(..3) > 0), upto)
        }
        _ => {
            let one = |rng: &mut Rng| (pick(rng, &TOPICS), pick(rng, &[None, None, Some("t"), Some("u")]));
            Ask::Publish((0..rng.usize(1..6)).map(|_| one(rng)).collect())
        }
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
        steps.retain(|step| !matches!(step, Step::Leave(_) | Step::Cut(_)) || rng.u8(..40) == 0);
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
