//! `tidelog bench slow`: what a few slow readers do to the quick ones and to the publisher.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::check::{Check, Expectation, Tally};
use super::fanout::Deliveries;
use super::load::{Load, nanoseconds};
use super::options::{bytes, rate, size};
use super::publishers::{Plan, Published, Publishers};
use super::report::as_f64;
use super::spread::Spread;
use super::wire::{Kind, Wire};
use super::{Error, Found, Run, Usage, process, with_tally, wrong};

/// How long nothing may come before the rest counts as lost.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a slow reader reads its share, and how often the memory is looked at.
const TURN: Duration = Duration::from_millis(250);
/// The receive buffer of a slow reader: small, so that what it has not read waits with the server.
const RECEIVE_BYTES: usize = 16 << 10;

/// Slow readers among quick ones: publish and delivery times without and with them, memory each
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The same events are published twice: first to the quick subscribers alone, then with slow ones beside them, which must get what \
they read in order and without gaps too, and must not be cut off. The memory is the largest seen with them less the largest without.

Examples:
  tidelog bench slow --subscribers 1000 --slow 10 --slow-rate 1KB --bytes 50MB")]
pub struct Args {
    /// Quick subscribers
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    subscribers: u32,
    /// Slow subscribers
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    slow: u32,
    /// What a slow subscriber reads a second
    #[arg(long, value_name = "BYTES", default_value = "1KB", value_parser = bytes)]
    slow_rate: u64,
    /// What is published, each of the two times
    #[arg(long, value_name = "BYTES", default_value = "50MB", value_parser = bytes)]
    bytes: u64,
    /// Bytes of an event, such as 128 or 16KiB
    #[arg(long, value_name = "BYTES", default_value = "16KiB", value_parser = size)]
    size: usize,
    /// Events a second; below what the server can deliver, or the times are those of its queues
    #[arg(long, value_name = "N", default_value = "25", value_parser = rate)]
    rate: f64,
}

/// What was seen while the events were published once.
struct Phase {
    published: Published,
    latency: Spread,
    tally: Tally,
    before: Option<Usage>,
    after: Option<Usage>,
    /// The largest memory seen.
    peak: Option<u64>,
    cut: usize,
    failure: Option<String>,
}

pub(super) fn run(run: &Run, args: &Args) -> Result<Found, Error> {
    let (quick, slow) = (args.subscribers as usize, args.slow as usize);
    process::allow_sockets(quick + slow + 1)?;
    let events = (args.bytes / args.size as u64).clamp(1, u32::MAX.into());
    // Clamped to it.
    let events = u32::try_from(events).unwrap_or(u32::MAX);
    run.step("deliveries without slow readers", u64::from(events) * u64::from(args.subscribers));
    let without = phase(run, args, events, run.target.run, None)?;
    let run_number = run.target.run.wrapping_add(1);
    let mut readers = Readers::connect(run, args, events, run_number)?;
    run.step("deliveries with slow readers", u64::from(events) * u64::from(args.subscribers));
    let with = phase(run, args, events, run_number, Some(&mut readers))?;
    let slow_tally = readers.check.tally_so_far();

    let each = match (with.peak, without.peak) {
        (Some(with), Some(without)) => (as_f64(with) - as_f64(without)) / as_f64(args.slow.into()),
        _ => f64::NAN,
    };
    let ratio = |of: fn(&Phase) -> &Spread| {
        let p99 = |phase| of(phase).milliseconds(0.99).unwrap_or(f64::NAN);
        p99(&with) / p99(&without)
    };
    let rss = |usage: Option<Usage>| usage.map(|usage| usage.rss_bytes);
    let report = run
        .report("slow")
        .count("subscribers", args.subscribers.into())
        .count("slow", args.slow.into())
        .count("events", events.into())
        .memory("size_bytes", Some(args.size as u64));
    let report = with_tally(report, &sum(&without.tally, &with.tally))
        .count("slow_deliveries", slow_tally.deliveries)
        .count("slow_lost", slow_tally.lost)
        .count("cut", (without.cut + with.cut + readers.cut) as u64)
        .number("seconds", without.published.seconds + with.published.seconds)
        .spread("publish_without_ms", &without.published.latency)
        .spread("publish_with_ms", &with.published.latency)
        .number("publish_p99_ratio", ratio(|phase| &phase.published.latency))
        .spread("latency_without_ms", &without.latency)
        .spread("latency_with_ms", &with.latency)
        .number("latency_p99_ratio", ratio(|phase| &phase.latency))
        .memory("server_rss_bytes_before", rss(without.before))
        .memory("server_rss_bytes_after", rss(with.after))
        .memory("server_rss_bytes_peak_without", without.peak)
        .memory("server_rss_bytes_peak_with", with.peak)
        .number("server_rss_bytes_per_slow", each);
    let wrong = [&without, &with]
        .iter()
        .find_map(|phase| wrong(&phase.tally, phase.cut, phase.failure.clone()))
        .or_else(|| wrong(&slow_tally, readers.cut, None).map(|text| format!("slow readers: {text}")));
    Ok(Found { report, wrong })
}

fn sum(a: &Tally, b: &Tally) -> Tally {
    Tally {
        expected: a.expected + b.expected,
        deliveries: a.deliveries + b.deliveries,
        lost: a.lost + b.lost,
        doubled: a.doubled + b.doubled,
        disordered: a.disordered + b.disordered,
        strayed: a.strayed + b.strayed,
        foreign: a.foreign + b.foreign,
    }
}

/// Publishes all of it once, to quick subscribers that connect for it.
fn phase(
    run: &Run,
    args: &Args,
    events: u32,
    run_number: u32,
    mut readers: Option<&mut Readers>,
) -> Result<Phase, Error> {
    let (target, quick) = (&run.target, args.subscribers as usize);
    let expects = Expectation { run: Some(run_number), lanes: vec![events], topics: 1 };
    let mut sink = Deliveries::new(Check::new(expects, quick, target.has_ids()), run_number);
    let mut load = Load::new(target, target.look(), run.clock)?;
    let hidden = indicatif::ProgressBar::hidden();
    load.connect(quick, 100, |_| target.subscribe(0), run.deadline, &hidden, &mut sink)?;
    load.settle(Duration::from_millis(100), Duration::from_secs(3), &mut sink)?;
    let plan = Plan {
        run: run_number,
        lanes: vec![events],
        paths: vec![target.publish_path(0)],
        size: args.size,
        batch: None,
        rate: Some(args.rate),
    };
    let before = run.usage();
    let publishers = Publishers::connect(target, plan, run.clock, run.deadline)?;
    let (peak, published) = publishers.beside(|progress| {
        let (mut peak, mut due, mut last_change) = (run.usage().map(|usage| usage.rss_bytes), 0, run.clock.now());
        loop {
            if load.pump(Duration::from_millis(20), &mut sink)? > 0 {
                last_change = run.clock.now();
            }
            let now = run.clock.now();
            if now >= due {
                due = now + nanoseconds(TURN);
                peak = peak.max(run.usage().map(|usage| usage.rss_bytes));
                if let Some(readers) = &mut readers {
                    readers.read();
                }
            }
            run.bar.set_position(sink.check.distinct());
            let gave_up = now - last_change > nanoseconds(PATIENCE) || run.deadline.has_passed();
            if progress.is_over() && (sink.check.is_complete() || gave_up) {
                return Ok(peak);
            }
        }
    })?;
    let (tally, cut, failure) = (sink.check.tally(), load.cut(), load.failure());
    Ok(Phase { published, latency: sink.latency, tally, before, after: run.usage(), peak, cut, failure })
}

/// Subscribers that read a little from time to time.
struct Readers {
    /// `None`: it was cut off.
    all: Vec<Option<(TcpStream, Wire)>>,
    check: Check,
    /// Bytes that each may read in a turn.
    share: usize,
    cut: usize,
}

impl Readers {
    fn connect(run: &Run, args: &Args, events: u32, run_number: u32) -> Result<Self, Error> {
        let slow = args.slow as usize;
        let expects = Expectation { run: Some(run_number), lanes: vec![events], topics: 1 };
        let check = Check::new(expects, slow, run.target.has_ids());
        let share = args.slow_rate * u64::try_from(TURN.as_millis()).unwrap_or(u64::MAX) / 1000;
        let share = usize::try_from(share).unwrap_or(usize::MAX).clamp(1, 1 << 20);
        let all = (0..slow).map(|_| reader(run).map(Some)).collect::<Result<_, _>>()?;
        Ok(Self { all, check, share, cut: 0 })
    }

    /// The share of one turn, of each.
    fn read(&mut self) {
        let mut buffer = vec![0; self.share];
        for (number, reader) in self.all.iter_mut().enumerate() {
            let Some((socket, wire)) = reader else { continue };
            let is_cut = match socket.read(&mut buffer) {
                Ok(0) => true,
                Ok(n) => {
                    let check = &mut self.check;
                    let fed = wire.feed(&buffer[..n], &mut |frame| {
                        if frame.kind == Kind::Event {
                            check.take(number, frame.id, frame.mark);
                        }
                    });
                    fed.is_err() || wire.refusal().is_some()
                }
                Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
            };
            if is_cut {
                self.cut += 1;
                *reader = None;
            }
        }
    }
}

/// Subscribes with a small buffer, and reads no further than the head.
fn reader(run: &Run) -> Result<(TcpStream, Wire), Error> {
    let failed = |cause| Error::Connect { addr: run.target.addr, cause };
    let socket = Socket::new(Domain::for_address(run.target.addr), Type::STREAM, None).map_err(failed)?;
    socket.set_recv_buffer_size(RECEIVE_BYTES).map_err(failed)?;
    socket.set_linger(Some(Duration::ZERO)).map_err(failed)?;
    socket.connect(&run.target.addr.into()).map_err(failed)?;
    let mut socket: TcpStream = socket.into();
    socket.set_read_timeout(Some(run.deadline.left().max(Duration::from_millis(1)))).map_err(failed)?;
    socket.write_all(&run.target.subscribe(0)).map_err(failed)?;
    let (mut wire, mut buffer) = (Wire::new(run.target.look()), [0; 256]);
    while wire.status().is_none() {
        let n = socket.read(&mut buffer).map_err(failed)?;
        wire.feed(&buffer[..n], &mut |_| {}).map_err(|error| Error::Subscribe(error.to_string()))?;
        if n == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
    }
    if let Some(said) = wire.refusal() {
        return Err(Error::Subscribe(format!("the server said: {said}")));
    }
    socket.set_nonblocking(true).map_err(failed)?;
    Ok((socket, wire))
}
