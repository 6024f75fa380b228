//! `tidelog bench idle`: what a subscriber costs that gets nothing.

mod http2;

use std::time::Duration;

use super::load::Load;
use super::process::Usage;
use super::report::as_f64;
use super::{Error, Found, Run, fanout, process};

/// Subscribers to whom nothing is published: memory of the server each
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Measure a server that was just started: memory that it has kept of earlier connections would hide what these take. What counts is by \
how much its resident memory grows, but for that which files hold as well: the program's code, which is loaded when it is first used.

Examples:
  tidelog bench idle --subscribers 10000
  tidelog bench idle --subscribers 10000 --topics 10000
  tidelog bench idle --subscribers 10000 --http2 100")]
pub struct Args {
    /// Subscribers
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    subscribers: u32,
    /// How long they are held before the memory is read
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    hold: Duration,
    /// Topics: subscriber i follows topic i mod N
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    topics: u32,
    /// Over HTTP/2, so many streams on each connection
    #[arg(long, value_name = "STREAMS", value_parser = clap::value_parser!(u32).range(1..))]
    http2: Option<u32>,
}

pub(super) fn run(run: &Run, args: &Args) -> Result<Found, Error> {
    let connections = args.subscribers.div_ceil(args.http2.unwrap_or(1));
    process::allow_sockets(connections as usize)?;
    if run.process.is_none() {
        return Err(Error::NeedsProcess);
    }
    run.step("subscribers connected", args.subscribers.into());
    let held = match args.http2 {
        Some(streams) => http2::hold(run, args, streams)?,
        None => hold(run, args)?,
    };
    let idle_seconds = held.idle.map_or(f64::NAN, |cost| cost.cpu_us() / 1e6);
    // Code that is loaded because it runs for the first time belongs to no subscriber.
    let own = |usage: Usage| usage.rss_bytes.cast_signed() - usage.file_bytes.cast_signed();
    let grown = held.cost.map(|cost| own(cost.after) - own(cost.before));
    #[allow(clippy::cast_precision_loss)] // of bytes beyond petabytes
    let each = grown.map_or(f64::NAN, |bytes| bytes as f64 / as_f64(args.subscribers.into()));
    let report = run
        .report("idle")
        .count("subscribers", args.subscribers.into())
        .count("topics", args.topics.into())
        .count("connections", connections.into())
        .number("connect_seconds", held.connect_seconds)
        .number("bytes_per_subscriber", each)
        .number("idle_server_cpu_seconds", idle_seconds)
        .server(held.cost, "server_cpu_us_per_subscriber", args.subscribers.into())
        .count("cut", held.cut as u64);
    let wrong = (held.cut > 0).then(|| format!("{} subscribers were cut off", held.cut));
    Ok(Found { report, wrong })
}

/// What was measured while they were held.
struct Held {
    connect_seconds: f64,
    /// While nothing happened.
    idle: Option<super::Cost>,
    /// Of all of it, connecting too.
    cost: Option<super::Cost>,
    cut: usize,
}

/// Connects them over HTTP/1.1, and holds them.
fn hold(run: &Run, args: &Args) -> Result<Held, Error> {
    let (before, begun) = (run.usage(), run.clock.now());
    let mut load = Load::new(&run.target, run.target.look(), run.clock)?;
    let request = |subscriber| run.target.subscribe(fanout::topic(subscriber, args.topics));
    load.connect_all(run, args.subscribers as usize, request, &mut ())?;
    let (connect_seconds, connected, from) = (run.clock.seconds_since(begun), run.usage(), run.clock.now());
    while run.clock.seconds_since(from) < args.hold.as_secs_f64() && load.cut() + load.ended() == 0 {
        load.pump(args.hold.min(Duration::from_millis(100)), &mut ())?;
        run.deadline.check("subscribers held")?;
    }
    let cut = load.cut() + load.ended();
    Ok(Held { connect_seconds, idle: run.cost(connected), cost: run.cost(before), cut })
}
