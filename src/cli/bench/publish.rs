//! `tidelog bench publish`: how many publishes are acked.

use super::options::size;
use super::publishers::{Plan, Publishers};
use super::report::as_f64;
use super::{Error, Found, Run, own_cpu_seconds, process};

/// Publishers without subscribers: acks and events a second, CPU time each
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tidelog bench publish                                  # 64 publishers, one event a request
  tidelog bench publish --publishers 1 --events 5000     # how long one ack takes
  tidelog bench publish --publishers 4 --batch 500 --events 1000000")]
pub struct Args {
    /// Publishers, one request in flight each
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    publishers: u16,
    /// Events, of all publishers
    #[arg(long, value_name = "N", default_value_t = 64_000, value_parser = clap::value_parser!(u32).range(1..))]
    events: u32,
    /// Bytes of an event, such as 256 or 16KiB
    #[arg(long, value_name = "BYTES", default_value = "256", value_parser = size)]
    size: usize,
    /// Events a request, as JSON lines. Without it: one, as text
    #[arg(long, value_name = "EVENTS", value_parser = clap::value_parser!(u32).range(1..=10_000), conflicts_with = "publish_path")]
    batch: Option<u32>,
    /// Topics: publishes go round
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    topics: u32,
}

pub(super) fn run(run: &Run, args: &Args) -> Result<Found, Error> {
    process::allow_sockets(args.publishers.into())?;
    let plan = Plan {
        run: run.target.run,
        lanes: Plan::shares(args.events, args.publishers),
        paths: (0..args.topics).map(|topic| run.target.publish_path(topic)).collect(),
        size: args.size,
        batch: args.batch,
        rate: None,
    };
    let publishers = Publishers::connect(&run.target, plan, run.clock, run.deadline)?;
    run.step("events acked", args.events.into());
    let (before, own) = (run.usage(), own_cpu_seconds());
    let published = publishers.run_shown(&run.bar)?;
    let (cost, own) = (run.cost(before), own_cpu_seconds() - own);
    let report = run
        .report("publish")
        .count("publishers", args.publishers.into())
        .count("topics", args.topics.into())
        .count("batch_events", args.batch.unwrap_or(1).into())
        .memory("size_bytes", Some(args.size as u64))
        .count("events", published.events)
        .count("acks", published.requests)
        .number("seconds", published.seconds)
        .number("acks_per_second", as_f64(published.requests) / published.seconds)
        .number("events_per_second", as_f64(published.events) / published.seconds)
        .spread("latency_ms", &published.latency)
        .server(cost, "server_cpu_us_per_event", published.events)
        .number("client_cpu_seconds", own);
    Ok(Found { report, wrong: None })
}
