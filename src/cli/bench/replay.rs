//! `tidelog bench replay`: a long topic from its beginning, on one connection or many.

use std::time::Duration;

use serde_json::json;

use super::check::{Check, Expectation, Tally};
use super::load::{Load, Sink, nanoseconds};
use super::options::size;
use super::publishers::{Plan, Publishers};
use super::report::{Figure, as_f64};
use super::spread::Spread;
use super::wire::{Frame, Kind};
use super::{Error, Found, Run, own_cpu_seconds, process, with_tally, wrong};

/// Events a request, and publishers, when a topic is filled.
const FILL: (u32, u16) = (500, 4);
/// How long nothing may come from a server that does not end its replay, before the rest counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// A topic from its beginning: events a second, CPU time each
#[derive(Debug, clap::Args)]
#[command(after_help = "\
With --topic, what that topic holds is replayed, whatever it is: its ids must ascend, and each connection must get as many events \
as the others. Without it, a new topic is filled first, and the marks in it are checked too; the report names it.

Examples:
  tidelog bench replay --events 1000000
  tidelog bench replay --topic bench.0123abcd.0 --connections 50")]
pub struct Args {
    /// Events to fill the topic with
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    events: u32,
    /// Bytes of an event, such as 256 or 16KiB
    #[arg(long, value_name = "BYTES", default_value = "256", value_parser = size)]
    size: usize,
    /// Replays at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Publishers that fill the topic
    #[arg(long, value_name = "N", default_value_t = FILL.1, value_parser = clap::value_parser!(u16).range(1..))]
    publishers: u16,
    /// The topic was filled by an earlier run, with the same --events and --publishers
    #[arg(long, hide_short_help = true, help_heading = "Other servers", requires = "subscribe_path")]
    filled: bool,
}

struct Replay {
    check: Check,
    /// Of each connection.
    events: Vec<u64>,
    first: Vec<u64>,
    last: Vec<u64>,
    /// Whether it has told that it has caught up with the log.
    is_live: Vec<bool>,
    gaps: u64,
}

impl Sink for Replay {
    fn frame(&mut self, connection: usize, frame: &Frame, now: u64) {
        match frame.kind {
            // What is published meanwhile is no part of it.
            _ if self.is_live[connection] => {}
            Kind::Live => self.is_live[connection] = true,
            Kind::Event => {
                self.check.take(connection, frame.id, frame.mark);
                if self.events[connection] == 0 {
                    self.first[connection] = now;
                }
                self.events[connection] += 1;
                self.last[connection] = now;
            }
            Kind::Gap => self.gaps += 1,
            Kind::Error | Kind::Control => {}
        }
    }
}

pub(super) fn run(run: &Run, args: &Args) -> Result<Found, Error> {
    let (target, connections) = (&run.target, args.connections as usize);
    process::allow_sockets(connections + usize::from(args.publishers))?;
    let is_there = run.common.topic.is_some() && !target.is_peer();
    let fill_seconds = if is_there || args.filled { 0.0 } else { fill(run, args)? };
    let lanes = if is_there { Vec::new() } else { Plan::shares(args.events, args.publishers) };
    let expects = Expectation { run: (!args.filled).then_some(target.run), lanes, topics: 1 };
    let times = || vec![0; connections];
    let check = Check::new(expects, connections, target.has_ids());
    let is_live = vec![false; connections];
    let mut replay = Replay { check, events: times(), first: times(), last: times(), is_live, gaps: 0 };
    let name = if is_there { target.topic.clone() } else { target.topic_name(0) };
    let request =
        if target.is_peer() { target.subscribe(0) } else { target.get(&format!("/topics/{name}?from=earliest"), None) };

    let mut load = Load::new(target, target.look(), run.clock)?;
    run.step("events replayed", u64::from(args.events) * u64::from(args.connections));
    let (before, own, begun) = (run.usage(), own_cpu_seconds(), run.clock.now());
    let bar = indicatif::ProgressBar::hidden();
    load.connect(connections, usize::MAX, |_| request.clone(), run.deadline, &bar, &mut replay)?;
    finish(run, &mut load, &mut replay, begun)?;
    let seconds = as_f64(replay.last.iter().max().map_or(0, |last| last.max(&begun) - begun)) / 1e9;
    let (cost, own) = (run.cost(before), own_cpu_seconds() - own);

    let tally = tally(&replay, is_there);
    let complete: Vec<bool> = (0..connections).map(|c| is_complete(&replay, c, target.is_peer())).collect();
    let events: u64 = replay.events.iter().sum();
    let report = run
        .report("replay")
        .text("replayed_topic", &name)
        .count("connections", args.connections.into())
        .count("events", replay.events.iter().copied().max().unwrap_or(0))
        .number("fill_seconds", fill_seconds);
    let report = with_tally(report, &tally)
        .count("gaps", replay.gaps)
        .count("complete", complete.iter().filter(|is| **is).count() as u64)
        .count("cut", load.cut() as u64)
        .number("seconds", seconds)
        .number("events_per_second", as_f64(events) / seconds)
        .spread("first_event_ms", &first_event(&replay, begun))
        .server(cost, "server_cpu_us_per_event", events)
        .number("client_cpu_seconds", own)
        .with("each_connection", Figure::List(each(&load, &replay, &complete, begun)));
    // Who has everything is not harmed by a cut.
    let short = complete.iter().filter(|is| !**is).count();
    let why = load.failure().map(|why| format!(" ({why})")).unwrap_or_default();
    let short = (short > 0).then(|| format!("{short} of {connections} replays did not come to their end{why}"));
    let wrong = wrong(&tally, 0, None).or(short);
    Ok(Found { report, wrong })
}

/// Publishes what is to be replayed; gives the seconds it took.
fn fill(run: &Run, args: &Args) -> Result<f64, Error> {
    let plan = Plan {
        run: run.target.run,
        lanes: Plan::shares(args.events, args.publishers),
        paths: vec![run.target.publish_path(0)],
        size: args.size,
        // Others know no JSON lines.
        batch: (!run.target.is_peer()).then_some(FILL.0),
        rate: None,
    };
    run.step("events published", args.events.into());
    let publishers = Publishers::connect(&run.target, plan, run.clock, run.deadline)?;
    Ok(publishers.run_shown(&run.bar)?.seconds)
}

/// Pumps until every connection has its end, or nothing more comes.
fn finish(run: &Run, load: &mut Load, replay: &mut Replay, begun: u64) -> Result<(), Error> {
    let mut last_change = begun;
    let is_over = |load: &Load, replay: &Replay| {
        let mut connections = replay.is_live.iter().enumerate();
        connections.all(|(connection, is_live)| *is_live || !load.is_open(connection))
            || (run.target.is_peer() && replay.check.is_complete())
    };
    while !is_over(load, replay) {
        if load.pump(Duration::from_millis(100), replay)? > 0 {
            last_change = run.clock.now();
        }
        run.bar.set_position(replay.events.iter().sum());
        if run.clock.now() - last_change > nanoseconds(PATIENCE) || run.deadline.has_passed() {
            break;
        }
    }
    Ok(())
}

fn tally(replay: &Replay, is_there: bool) -> Tally {
    let tally = replay.check.tally();
    if !is_there {
        return tally;
    }
    // Nobody knows how many there are, but it is the same number for all.
    let deliveries: u64 = replay.events.iter().sum();
    let expected = replay.events.iter().max().unwrap_or(&0) * replay.events.len() as u64;
    Tally { deliveries, expected, lost: expected - deliveries, foreign: 0, ..tally }
}

fn is_complete(replay: &Replay, connection: usize, is_peer: bool) -> bool {
    replay.check.is_complete_for(connection) && (is_peer || replay.is_live[connection])
}

fn first_event(replay: &Replay, begun: u64) -> Spread {
    let mut spread = Spread::default();
    for (first, _) in replay.first.iter().zip(&replay.events).filter(|(_, events)| **events > 0) {
        spread.add(first - begun);
    }
    spread
}

fn each(load: &Load, replay: &Replay, complete: &[bool], begun: u64) -> Vec<serde_json::Value> {
    let seconds = |at: u64| as_f64(at.max(begun) - begun) / 1e9;
    (0..complete.len())
        .map(|c| {
            let (events, seconds) = (replay.events[c], seconds(replay.last[c]));
            json!({"events": events, "seconds": seconds, "complete": complete[c], "cut": load.is_cut(c)})
        })
        .collect()
}
