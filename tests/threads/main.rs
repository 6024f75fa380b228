//! What threads share, under schedules of our choosing.
//!
//! The rooms of floors 0 to 4, the writer's queue, the lanes, the hub, shared reads, bundles, the whole log, are compiled here once more,
//! from the same files, but with the locks, conditions, threads and tasks of `sync.rs` here instead of those of `src/sync.rs`. shuttle
//! runs each scenario again and again on one thread of the system, and decides at every one of their calls who goes on: by chance,
//! by random priorities with few changes (PCT, which finds what few preemptions at the right places break), and by uniform random
//! walks. Nobody waits by the clock (bounds of waits run out only where a scenario lets them), so whoever is not told waits for ever,
//! and that shuttle reports as a deadlock; the scenarios judge the rest: answers, order, what was seen.
//!
//! `cargo test --test threads` runs all, or those whose names contain the argument. `SCHEDULES` is how many of each kind a scenario is run
//! under, `SEED` where chance begins: the same seed gives the same schedules. A failure prints its seed and its schedule;
//! `SCHEDULE=… cargo test --test threads NAME` runs that one alone.

// The rooms' own tests are compiled, since this is a test, and do not run here. What is left are manners of short scenarios.
#![allow(
    dead_code,
    unused_imports,
    clippy::module_inception,
    clippy::needless_pass_by_value,
    clippy::single_match_else,
    clippy::unchecked_time_subtraction
)]

#[path = "../../src"]
mod house {
    pub mod event;
    pub mod hub;
    pub mod log;
    pub mod metrics;
    pub mod record;
    pub mod sequencer;
    pub mod sse;
    pub mod store;
    pub mod subscription;
    pub mod topic;
}
pub use house::{event, hub, log, metrics, record, sequencer, sse, store, subscription, topic};

mod pace;
mod readers;
mod sync;
mod wire;
mod world;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler, UrwRandomScheduler};
use shuttle::{Config, MaxSteps, Runner};

/// With which all scenarios together take some 15 seconds.
const SCHEDULES: usize = 1_500;

/// Changes of priority in a schedule of the second kind.
const DEPTH: usize = 4;

/// Far more steps than any scenario takes: one that goes on and on is stuck.
const STEPS_MAX: usize = 200_000;

/// The scenario without threads to choose from.
const ALONE: &str = "a_stalled_stream_is_cut_and_a_moving_one_never";

type Scenario = (&'static str, fn());

const SCENARIOS: [Scenario; 23] = [
    ("who_sends_is_answered", writer::who_sends_is_answered),
    ("who_sends_and_who_works", writer::who_sends_and_who_works),
    ("ticks_fall_between", writer::ticks_fall_between),
    ("what_was_left_behind_is_done", writer::what_was_left_behind_is_done),
    ("a_stop_ends_all", writer::a_stop_ends_all),
    ("a_writer_that_dies_tells_everybody", writer::a_writer_that_dies_tells_everybody),
    ("lanes_and_a_publisher_beside_them", writer::lanes_and_a_publisher_beside_them),
    ("a_lane_whose_publishers_another_thread_drives", writer::a_lane_whose_publishers_another_thread_drives),
    ("a_log_that_closes_under_its_publishers", writer::a_log_that_closes_under_its_publishers),
    ("at_the_seam_nothing_is_missed", readers::at_the_seam_nothing_is_missed),
    ("shared_reads_are_answered_though_readers_vanish", readers::shared_reads_are_answered_though_readers_vanish),
    ("a_trim_is_told_to_all_who_miss_something", readers::a_trim_is_told_to_all_who_miss_something),
    ("a_close_is_told_to_all", readers::a_close_is_told_to_all),
    ("a_drain_is_told_to_all", readers::a_drain_is_told_to_all),
    ("states_are_shared_and_never_stale", readers::states_are_shared_and_never_stale),
    ("from_a_state_on_nothing_is_missed", readers::from_a_state_on_nothing_is_missed),
    ("a_state_waits_for_its_tail_and_no_longer", readers::a_state_waits_for_its_tail_and_no_longer),
    (
        "a_state_of_before_a_delete_is_for_nobody_who_asks_after",
        readers::a_state_of_before_a_delete_is_for_nobody_who_asks_after,
    ),
    ("who_waits_is_told_when_the_one_who_gathers_is_gone", readers::who_waits_is_told_when_the_one_who_gathers_is_gone),
    ("what_is_put_into_an_inbox_is_seen", wire::what_is_put_into_an_inbox_is_seen),
    ("a_closed_inbox_wakes_its_thread_and_keeps_nothing", wire::a_closed_inbox_wakes_its_thread_and_keeps_nothing),
    ("behind_a_door_nobody_sleeps_over_an_event", wire::behind_a_door_nobody_sleeps_over_an_event),
    (ALONE, pace::a_stalled_stream_is_cut_and_a_moving_one_never),
];

fn main() {
    let wanted: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let seed = number("SEED").unwrap_or(1);
    let schedules = usize::try_from(number("SCHEDULES").unwrap_or(SCHEDULES as u64)).expect("so many fit into memory");
    let replay = std::env::var("SCHEDULE").ok();
    let mut failed = Vec::new();
    let (begun, mut sum) = (Instant::now(), 0);
    for (name, scenario) in SCENARIOS.into_iter().filter(|(name, _)| wants(name)) {
        let begun = Instant::now();
        let run = || match &replay {
            Some(schedule) => run(ReplayScheduler::new_from_encoded(schedule), scenario),
            // One thread alone: what chance there is lies in the numbers, and the other schedulers refuse it.
            None if name == ALONE => run(RandomScheduler::new_from_seed(seed, 3 * schedules), scenario),
            None => {
                run(RandomScheduler::new_from_seed(seed, schedules), scenario)
                    + run(PctScheduler::new_from_seed(seed, DEPTH, schedules), scenario)
                    + run(UrwRandomScheduler::new_from_seed(seed, schedules), scenario)
            }
        };
        print!("{name:50} ");
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(schedules) => {
                sum += schedules;
                println!("{schedules:7} schedules in {:5.1} s", begun.elapsed().as_secs_f64());
            }
            Err(_) => {
                println!("FAILED: SEED={seed} SCHEDULES={schedules} cargo test --release --test threads {name}");
                failed.push(name);
            }
        }
    }
    println!("{sum} schedules from seed {seed} in {:.1} s", begun.elapsed().as_secs_f64());
    assert!(failed.is_empty(), "failed: {failed:?}");
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

fn run(scheduler: impl Scheduler + 'static, scenario: fn()) -> usize {
    let mut config = Config::new();
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.stack_size = 256 << 10;
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(scenario)
}
