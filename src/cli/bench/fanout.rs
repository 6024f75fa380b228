//! `tidelog bench fanout`: many subscribers, and what a delivery costs.

use std::time::Duration;

use super::check::{Check, Expectation};
use super::load::{Load, Sink};
use super::options::{rate, size};
use super::publishers::{Plan, Publishers};
use super::report::as_f64;
use super::spread::Spread;
use super::wire::{Frame, Kind};
use super::{Error, Found, Run, own_cpu_seconds, process, with_tally, wrong};

/// How long nothing may come after the last ack before the rest counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long events that come twice are still waited for.
const AFTERMATH: Duration = Duration::from_millis(100);

/// Many subscribers, live: deliveries a second, their latency, CPU time each
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --rate, each publisher sends its next event as soon as the last one is acked: that measures how many deliveries the \
server can do. With a rate below that, it measures what one costs.

Examples:
  tidelog bench fanout --rate 100                     # what a delivery costs
  tidelog bench fanout --events 10000                 # how many there can be
  tidelog bench fanout --subscribers 10000 --topics 10000 --events 20000 --publishers 16")]
pub struct Args {
    /// Subscribers
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    subscribers: u32,
    /// Events, of all publishers
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..))]
    events: u32,
    /// Events a second, of all publishers. Without it: as fast as they are acked
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// Bytes of an event, such as 128 or 16KiB
    #[arg(long, value_name = "BYTES", default_value = "128", value_parser = size)]
    size: usize,
    /// Publishers, one request in flight each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    publishers: u16,
    /// Topics: subscriber i follows topic i mod N, publishes go round
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    topics: u32,
}

/// Checks and times every delivery.
pub struct Deliveries {
    pub check: Check,
    pub latency: Spread,
    /// Whose marks have this clock's times.
    pub run: u32,
    /// When the last event came.
    pub last: u64,
}

impl Deliveries {
    pub fn new(check: Check, run: u32) -> Self {
        Self { check, latency: Spread::default(), run, last: 0 }
    }
}

impl Sink for Deliveries {
    fn frame(&mut self, subscriber: usize, frame: &Frame, now: u64) {
        if frame.kind != Kind::Event {
            if let Some(id) = frame.id {
                self.check.advance(subscriber, id);
            }
            return;
        }
        if let Some(mark) = self.check.take(subscriber, frame.id, frame.mark) {
            self.last = now;
            if mark.run == self.run {
                self.latency.add(now.saturating_sub(mark.time));
            }
        }
    }
}

pub(super) fn run(run: &Run, args: &Args) -> Result<Found, Error> {
    let (target, clock) = (&run.target, run.clock);
    let subscribers = args.subscribers as usize;
    process::allow_sockets(subscribers + usize::from(args.publishers))?;
    let lanes = Plan::shares(args.events, args.publishers);
    let expects = Expectation { run: Some(target.run), lanes: lanes.clone(), topics: args.topics };
    let mut sink = Deliveries::new(Check::new(expects, subscribers, target.has_ids()), target.run);
    let mut load = Load::new(target, target.look(), clock)?;
    run.step("subscribers connected", args.subscribers.into());
    let begun = clock.now();
    load.connect_all(run, subscribers, |i| target.subscribe(topic(i, args.topics)), &mut sink)?;
    let connect_seconds = clock.seconds_since(begun);
    let plan = Plan {
        run: target.run,
        lanes,
        paths: (0..args.topics).map(|topic| target.publish_path(topic)).collect(),
        size: args.size,
        batch: None,
        rate: args.rate,
    };
    let publishers = Publishers::connect(target, plan, clock, run.deadline)?;

    run.step("deliveries", sink.check.tally().expected);
    let (before, own, begun) = (run.usage(), own_cpu_seconds(), clock.now());
    let ((), published) = publishers.beside(|progress| deliver(run, &mut load, &mut sink, &|| progress.is_over()))?;
    let seconds = as_f64(sink.last.max(begun) - begun) / 1e9;
    let (cost, own) = (run.cost(before), own_cpu_seconds() - own);
    load.settle(AFTERMATH, AFTERMATH * 5, &mut sink)?;

    let tally = sink.check.tally();
    let report = run.report("fanout");
    let report = report
        .count("subscribers", args.subscribers.into())
        .count("topics", args.topics.into())
        .count("publishers", args.publishers.into())
        .count("events", published.events)
        .memory("size_bytes", Some(args.size as u64));
    let report = with_tally(report, &tally)
        .count("cut", load.cut() as u64)
        .number("connect_seconds", connect_seconds)
        .number("seconds", seconds)
        .number("deliveries_per_second", as_f64(sink.check.distinct()) / seconds)
        .number("events_per_second", as_f64(published.events) / published.seconds)
        .spread("latency_ms", &sink.latency)
        .spread("publish_ms", &published.latency)
        .spread("behind_schedule_ms", &published.behind)
        .server(cost, "server_cpu_us_per_delivery", tally.deliveries)
        .number("server_cpu_us_per_event", cost.map_or(f64::NAN, |cost| cost.cpu_us() / as_f64(published.events)))
        .number("client_cpu_seconds", own);
    Ok(Found { report, wrong: wrong(&tally, load.cut(), load.failure()) })
}

/// The topic that a subscriber follows.
#[allow(clippy::cast_possible_truncation)] // topics are a u32
pub fn topic(subscriber: usize, topics: u32) -> u32 {
    (subscriber % topics as usize) as u32
}

/// Pumps until everybody has everything, or nothing more comes.
pub(super) fn deliver(
    run: &Run,
    load: &mut Load,
    sink: &mut Deliveries,
    is_published: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let mut last_change = run.clock.now();
    let patience = super::load::nanoseconds(PATIENCE);
    loop {
        if load.pump(Duration::from_millis(20), sink)? > 0 {
            last_change = run.clock.now();
        }
        run.bar.set_position(sink.check.distinct());
        let is_published = is_published();
        let gave_up = run.deadline.has_passed() || run.clock.now() - last_change > patience;
        if is_published && (sink.check.is_complete() || gave_up) {
            return Ok(());
        }
    }
}
