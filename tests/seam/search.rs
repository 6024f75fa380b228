//! Every order: runs a scenario again and again, each time along the next schedule, until none is left.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use crate::world::{Judged, Step, World};

/// Most steps of one schedule; scenarios are small, so more of them is a loop.
const DEPTH_MAX: usize = 200;

/// Runs `build`'s world along every schedule.
///
/// # Panics
/// When a schedule breaks a promise; the message replays it.
pub fn every_order(name: &str, build: impl Fn() -> World) {
    orders(name, usize::MAX, build);
}

/// Runs `build`'s world along every schedule in which at most so many times one who could go on is interrupted by another: what few
/// interruptions do not break, many seldom do.
///
/// # Panics
/// As [`every_order`].
pub fn orders(name: &str, interruptions: usize, build: impl Fn() -> World) {
    let begun = Instant::now();
    let mut choices: Vec<(usize, usize)> = Vec::new();
    let mut schedules = 0;
    loop {
        let judged = catch_unwind(AssertUnwindSafe(|| run(&mut build(), interruptions, &mut choices)));
        match judged {
            Ok(Ok(())) => {}
            Ok(Err(why)) => panic!("{name}: {why}\n{}", replay(&build, interruptions, &choices)),
            Err(panic) => {
                eprintln!("{name}: a panic\n{}", replay(&build, interruptions, &choices));
                resume_unwind(panic)
            }
        }
        schedules += 1;
        while choices.last().is_some_and(|(taken, of)| taken + 1 == *of) {
            choices.pop();
        }
        match choices.last_mut() {
            Some((taken, _)) => *taken += 1,
            None => break,
        }
    }
    println!("{name}: {schedules} schedules in {:.1?}", begun.elapsed());
}

/// Who takes a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    Script,
    Writer,
    Client(usize),
    Gathering(usize),
    Fetching(usize),
}

impl Actor {
    pub fn of(step: Step) -> Self {
        match step {
            Step::Script => Self::Script,
            Step::Writer => Self::Writer,
            Step::Gather(at) => Self::Gathering(at),
            Step::Fetch(at) => Self::Fetching(at),
            Step::Connect(at) | Step::Poll(at) | Step::Read(at) | Step::Leave(at) => Self::Client(at),
            Step::Cut(at, _) | Step::CutBytes(at, _) => Self::Client(at),
        }
    }
}

/// Goes along `choices`, with at most so many interruptions, then always the first way, which it adds to them.
fn run(world: &mut World, mut interruptions: usize, choices: &mut Vec<(usize, usize)>) -> Judged {
    let mut steps: Vec<Step> = Vec::new();
    let mut last = None;
    for depth in 0..DEPTH_MAX {
        world.enabled(&mut steps);
        let goes_on = steps.iter().any(|step| Some(Actor::of(*step)) == last);
        if goes_on && interruptions == 0 {
            steps.retain(|step| Some(Actor::of(*step)) == last);
        }
        if steps.is_empty() {
            return world.finish();
        }
        if depth == choices.len() {
            choices.push((0, steps.len()));
        }
        assert_eq!(choices[depth].1, steps.len(), "a run is a function of its choices");
        let step = steps[choices[depth].0];
        if goes_on && Some(Actor::of(step)) != last {
            interruptions -= 1;
        }
        last = Some(Actor::of(step));
        world.apply(step)?;
    }
    Err("the schedule does not end".into())
}

fn replay(build: &impl Fn() -> World, interruptions: usize, choices: &[(usize, usize)]) -> String {
    let mut world = build();
    world.trace = Some(Vec::new());
    // It ends as it did before; only what happened on the way is asked for.
    let _ = catch_unwind(AssertUnwindSafe(|| run(&mut world, interruptions, &mut choices.to_vec())));
    world.trace.unwrap_or_default().join("\n")
}
