//! `tidelog bench echo`: from publishing to receiving, one event at a time.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::check::{Check, Expectation};
use super::fanout::Deliveries;
use super::load::Sink as _;
use super::mark::Mark;
use super::options::size;
use super::publishers::connect;
use super::spread::Spread;
use super::wire::{Look, Wire};
use super::{Error, Found, Run, own_cpu_seconds, with_tally, wrong};

/// Rounds before those that count: the first ones find cold caches.
const WARM_UP: u32 = 20;
/// Longest wait between two looks at the time.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// One subscriber, one publish at a time: time from sending it to having it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tidelog bench echo --rounds 1000")]
pub struct Args {
    /// Events
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    rounds: u32,
    /// Bytes of an event, such as 128 or 16KiB
    #[arg(long, value_name = "BYTES", default_value = "128", value_parser = size)]
    size: usize,
}

/// A connection that is read when poll says so.
struct Half {
    socket: TcpStream,
    wire: Wire,
}

impl Half {
    fn new(socket: TcpStream, look: Look) -> Self {
        Self { socket, wire: Wire::new(look) }
    }

    /// Reads once what is there.
    fn read(&mut self, buffer: &mut [u8], take: &mut impl FnMut(&super::wire::Frame)) -> Result<(), Error> {
        let failed = |text: String| Error::Subscribe(text);
        let n = self.socket.read(buffer).map_err(|error| failed(error.to_string()))?;
        if n == 0 {
            return Err(failed("the server closed the connection amid its answer".to_owned()));
        }
        self.wire.feed(&buffer[..n], take).map_err(|error| failed(format!("the server sent {error}")))?;
        self.wire.refusal().map_or(Ok(()), |said| Err(failed(format!("the server said: {said}"))))
    }
}

pub(super) fn run(run: &Run, args: &Args) -> Result<Found, Error> {
    let (target, clock) = (&run.target, run.clock);
    let rounds = args.rounds + WARM_UP;
    let expects = Expectation { run: Some(target.run), lanes: vec![rounds], topics: 1 };
    let mut sink = Deliveries::new(Check::new(expects, 1, target.has_ids()), target.run);
    let mut buffer = vec![0; 64 << 10];
    let mut subscriber = Half::new(connect(target)?, target.look());
    let started = |cause| Error::Connect { addr: target.addr, cause };
    subscriber.socket.write_all(&target.subscribe(0)).map_err(started)?;
    let patience = Some(run.deadline.left().max(Duration::from_millis(1)));
    subscriber.socket.set_read_timeout(patience).map_err(started)?;
    while subscriber.wire.status().is_none() {
        subscriber.read(&mut buffer, &mut |_| {})?;
    }
    let mut publisher = Half::new(connect(target)?, Look::Nothing);
    let head = target.publish_head(&target.publish_path(0), false);
    let mut acks = Spread::default();
    let (mut before, mut own) = (run.usage(), own_cpu_seconds());
    run.step("rounds", rounds.into());
    for sequence in 0..rounds {
        if sequence == WARM_UP {
            (acks, sink.latency) = (Spread::default(), Spread::default());
            (before, own) = (run.usage(), own_cpu_seconds());
        }
        let sent = clock.now();
        let mark = Mark { run: target.run, publisher: 0, sequence, time: sent };
        let request = request(run, &head, mark, args.size);
        publisher.socket.write_all(&request).map_err(|error| Error::Publish(error.to_string()))?;
        while sink.check.distinct() <= sequence.into() || !publisher.wire.is_done() {
            run.deadline.check("events echoed")?;
            let [received, acked] = wait(&subscriber, &publisher)?;
            if received {
                // The time is the one when it was there, not when it was looked at.
                let now = clock.now();
                subscriber.read(&mut buffer, &mut |frame| sink.frame(0, frame, now))?;
            }
            if acked {
                publisher.read(&mut buffer, &mut |_| {})?;
                if publisher.wire.is_done() {
                    acks.add(clock.now() - sent);
                }
            }
        }
        if publisher.wire.closes() {
            publisher = Half::new(connect(target)?, Look::Nothing);
        }
        publisher.wire.next();
        run.bar.inc(1);
    }
    let tally = sink.check.tally();
    let report = run.report("echo").count("rounds", args.rounds.into()).memory("size_bytes", Some(args.size as u64));
    let report = with_tally(report, &tally)
        .spread("latency_ms", &sink.latency)
        .spread("publish_ms", &acks)
        .server(run.cost(before), "server_cpu_us_per_event", args.rounds.into())
        .number("client_cpu_seconds", own_cpu_seconds() - own);
    Ok(Found { report, wrong: wrong(&tally, 0, None) })
}

fn request(run: &Run, head: &[u8], mark: Mark, size: usize) -> Vec<u8> {
    let mut request = head.to_vec();
    request.extend_from_slice(format!("{}\r\n\r\n", run.target.body_length(size)).as_bytes());
    run.target.body(&mut request, mark, size);
    request
}

/// Which of the two has something to read.
fn wait(subscriber: &Half, publisher: &Half) -> Result<[bool; 2], Error> {
    let mut both = [&subscriber.socket, &publisher.socket].map(|socket| PollFd::new(socket, PollFlags::IN));
    match poll(&mut both, Some(&TURN)) {
        Ok(_) => Ok(both.map(|fd| !fd.revents().is_empty())),
        Err(Errno::INTR) => Ok([false; 2]),
        Err(errno) => Err(Error::Loop(errno)),
    }
}
