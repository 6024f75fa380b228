//! `tidelog bench herd`: everybody loses the connection and comes back at once.

use std::time::Duration;

use super::check::{Check, Expectation};
use super::fanout::Deliveries;
use super::load::{Load, Sink, nanoseconds};
use super::options::{rate, size};
use super::publishers::{Plan, Progress, Published, Publishers};
use super::report::as_f64;
use super::spread::Spread;
use super::wire::{Frame, Kind};
use super::{Error, Found, Run, own_cpu_seconds, process, with_tally, wrong};

/// How long nothing may come before the rest counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// Subscribers that all reconnect at once, each behind: time until they are live
#[derive(Debug, clap::Args)]
#[command(after_help = "\
They subscribe, all connections are cut, --behind events are published, and all connect again with the Last-Event-ID that each has \
seen: until each has what it missed and is live. A trickle of publishes to another topic, before and meanwhile, shows what it does to \
publishers.

Examples:
  tidelog bench herd --subscribers 10000 --behind 100")]
pub struct Args {
    /// Subscribers
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    subscribers: u32,
    /// Events that each has missed
    #[arg(long, value_name = "EVENTS", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    behind: u32,
    /// Bytes of an event, such as 128 or 16KiB
    #[arg(long, value_name = "BYTES", default_value = "128", value_parser = size)]
    size: usize,
    /// Connections on their way at once. Without it: all of them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    in_flight: Option<u32>,
    /// Publishes of the trickle a second
    #[arg(long, value_name = "RATE", default_value = "20", value_parser = rate)]
    trickle: f64,
    /// How long the trickle is timed before the herd
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    quiet: Duration,
}

/// Takes note of who is live.
struct Herd {
    deliveries: Deliveries,
    /// Whether the stream says when it is live.
    tells_live: bool,
    is_live: Vec<bool>,
    live: Spread,
    /// Time to each subscriber's first event.
    first: Spread,
    has_first: Vec<bool>,
    begun: u64,
}

impl Herd {
    fn is_all_live(&self) -> bool {
        self.live.count() == self.is_live.len() as u64
    }
}

impl Sink for Herd {
    fn frame(&mut self, subscriber: usize, frame: &Frame, now: u64) {
        self.deliveries.frame(subscriber, frame, now);
        if frame.kind == Kind::Event && !self.has_first[subscriber] {
            self.has_first[subscriber] = true;
            self.first.add(now - self.begun);
        }
        let is_told = frame.kind == Kind::Live || !self.tells_live;
        if is_told && !self.is_live[subscriber] && self.deliveries.check.is_complete_for(subscriber) {
            self.is_live[subscriber] = true;
            self.live.add(now - self.begun);
        }
    }
}

pub(super) fn run(run: &Run, args: &Args) -> Result<Found, Error> {
    let (target, clock) = (&run.target, run.clock);
    let subscribers = args.subscribers as usize;
    process::allow_sockets(subscribers + 2)?;
    let expects = Expectation { run: Some(target.run), lanes: vec![args.behind], topics: 1 };
    let mut herd = Herd {
        deliveries: Deliveries::new(Check::new(expects, subscribers, target.has_ids()), target.run),
        tells_live: !target.is_peer(),
        is_live: vec![false; subscribers],
        live: Spread::default(),
        first: Spread::default(),
        has_first: vec![false; subscribers],
        begun: 0,
    };
    let mut load = Load::new(target, target.look(), clock)?;
    run.step("subscribers connected", args.subscribers.into());
    load.connect_all(run, subscribers, |_| target.subscribe(0), &mut herd.deliveries)?;
    let ((), quiet) = with_trickle(run, args, |_| pump_for(run, &mut load, &mut herd, args.quiet))?;

    load.cut_all();
    publish(run, args)?;

    run.step("subscribers connected again", args.subscribers.into());
    let (before, own) = (run.usage(), own_cpu_seconds());
    herd.begun = clock.now();
    let (connect_seconds, trickled) = with_trickle(run, args, |_| reconnect(run, args, &mut load, &mut herd))?;
    let live_seconds = herd.live.max_milliseconds().unwrap_or(f64::NAN) / 1e3;
    let (cost, own) = (run.cost(before), own_cpu_seconds() - own);

    let check = &herd.deliveries.check;
    let (tally, live) = (check.tally(), herd.live.count());
    let report = run
        .report("herd")
        .count("subscribers", args.subscribers.into())
        .count("behind", args.behind.into())
        .memory("size_bytes", Some(args.size as u64));
    let report = with_tally(report, &tally)
        .count("live", live)
        .count("cut", load.cut() as u64)
        .number("connect_seconds", connect_seconds)
        .number("live_seconds", live_seconds)
        .number("deliveries_per_second", as_f64(check.distinct()) / live_seconds)
        .spread("first_event_ms", &herd.first)
        .spread("live_ms", &herd.live)
        .spread("quiet_publish_ms", &quiet.latency)
        .spread("publish_ms", &trickled.latency)
        .server(cost, "server_cpu_us_per_delivery", tally.deliveries)
        .number("client_cpu_seconds", own);
    let wrong = wrong(&tally, load.cut(), load.failure())
        .or_else(|| (!herd.is_all_live()).then(|| format!("only {live} of {subscribers} subscribers became live")));
    Ok(Found { report, wrong })
}

/// Does `work` while events trickle to another topic.
fn with_trickle<T>(
    run: &Run,
    args: &Args,
    work: impl FnOnce(&Progress) -> Result<T, Error>,
) -> Result<(T, Published), Error> {
    if !run.target.has_topics() {
        // Then they would go to those that reconnect.
        return Ok((work(&Progress::default())?, Published::default()));
    }
    let plan = Plan {
        run: run.target.run,
        // It goes on for as long as the work does.
        lanes: vec![u32::MAX],
        paths: vec![run.target.publish_path(1)],
        size: args.size,
        batch: None,
        rate: Some(args.trickle),
    };
    Publishers::connect(&run.target, plan, run.clock, run.deadline)?.beside(work)
}

fn pump_for(run: &Run, load: &mut Load, herd: &mut Herd, how_long: Duration) -> Result<(), Error> {
    let begun = run.clock.now();
    while run.clock.now() - begun < nanoseconds(how_long) {
        load.pump(Duration::from_millis(20), &mut herd.deliveries)?;
        run.deadline.check("events of the quiet trickle published")?;
    }
    Ok(())
}

/// Publishes what the subscribers miss.
fn publish(run: &Run, args: &Args) -> Result<(), Error> {
    let plan = Plan {
        run: run.target.run,
        lanes: vec![args.behind],
        paths: vec![run.target.publish_path(0)],
        size: args.size,
        batch: None,
        rate: None,
    };
    Publishers::connect(&run.target, plan, run.clock, run.deadline)?.run(&Progress::default())?;
    Ok(())
}

/// Connects all again, until all are live or nothing more comes. Gives the seconds until the last had its answer's head.
fn reconnect(run: &Run, args: &Args, load: &mut Load, herd: &mut Herd) -> Result<f64, Error> {
    let ids: Vec<u64> = (0..herd.is_live.len()).map(|s| herd.deliveries.check.last_id(s)).collect();
    let request = |subscriber: usize| run.target.subscribe_behind(0, ids[subscriber]);
    let in_flight = args.in_flight.map_or(usize::MAX, |n| n as usize);
    load.connect(ids.len(), in_flight, request, run.deadline, &run.bar, herd)?;
    let connect_seconds = run.clock.seconds_since(herd.begun);
    let mut last_change = run.clock.now();
    while !herd.is_all_live() && load.cut() == 0 && !run.deadline.has_passed() {
        if load.pump(Duration::from_millis(20), herd)? > 0 {
            last_change = run.clock.now();
        }
        if run.clock.now() - last_change > nanoseconds(PATIENCE) {
            break;
        }
    }
    Ok(connect_seconds)
}
