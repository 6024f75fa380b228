//! Every order: runs a scenario again and again, each time along the next schedule, until none is left.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use crate::world::{Judged, Step, World};

/// Most steps of one schedule; scenarios are small, so more of them is a loop.
const DEPTH_MAX: usize = 200;

/// Runs `build`'s world along every schedule, and gives how many there are.
///
/// # Panics
/// When a schedule breaks a promise; the message replays it.
pub fn every_order(name: &str, build: impl Fn() -> World) -> usize {
    let begun = Instant::now();
    let mut choices: Vec<(usize, usize)> = Vec::new();
    let mut schedules = 0;
    loop {
        let judged = catch_unwind(AssertUnwindSafe(|| run(&mut build(), &mut choices)));
        match judged {
            Ok(Ok(())) => {}
            Ok(Err(why)) => panic!("{name}: {why}\n{}", replay(&build, &choices)),
            Err(panic) => {
                eprintln!("{name}: a panic\n{}", replay(&build, &choices));
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
    schedules
}

/// Goes along `choices`, then always the first way, which it adds to them.
fn run(world: &mut World, choices: &mut Vec<(usize, usize)>) -> Judged {
    let mut steps: Vec<Step> = Vec::new();
    for depth in 0..DEPTH_MAX {
        world.enabled(&mut steps);
        if steps.is_empty() {
            return world.finish();
        }
        if depth == choices.len() {
            choices.push((0, steps.len()));
        }
        assert_eq!(choices[depth].1, steps.len(), "a run is a function of its choices");
        world.apply(steps[choices[depth].0])?;
    }
    Err("the schedule does not end".into())
}

fn replay(build: &impl Fn() -> World, choices: &[(usize, usize)]) -> String {
    let mut world = build();
    world.trace = Some(Vec::new());
    // It ends as it did before; only what happened on the way is asked for.
    let _ = catch_unwind(AssertUnwindSafe(|| run(&mut world, &mut choices.to_vec())));
    world.trace.unwrap_or_default().join("\n")
}
