//! `tidelog bench resume`: how soon a reader that comes back has its first event.

use std::io::Read as _;
use std::time::Duration;
use std::{io, io::Write as _};

use tidelog::topic::Pattern;

use super::publishers::connect;
use super::spread::Spread;
use super::target::Target;
use super::wire::{Frame, Kind, Look, Wire, header};
use super::{Clock, Error, Found, Run};

/// Bytes that one read takes: the first event may come with as many as the server sends at once.
const READ_BYTES: usize = 64 << 10;

/// Readers that come back somewhere in the log: time to their first event
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each connects by itself, with the Last-Event-ID of a random place between the oldest retained event and the newest. The time is \
from connecting to the last byte of the first event. Where no event that matches follows, the time until the server says so \
(tidelog.live) is counted by itself.

Examples:
  tidelog bench resume
  tidelog bench resume --pattern 'orders.*.created' --resumes 1000
  tidelog bench resume --topic orders.eu --event paid")]
pub struct Args {
    /// How often
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    resumes: u32,
    /// What is followed: orders.eu, orders.*.created, ** (the default; or --topic)
    #[arg(long, value_name = "PATTERN", value_parser = Pattern::parse)]
    pattern: Option<Pattern>,
    /// Only events of this type
    #[arg(long, value_name = "TYPE")]
    event: Option<String>,
    /// Seed of the places, to try the same again
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

pub(super) fn run(run: &Run, args: &Args) -> Result<Found, Error> {
    if run.target.is_peer() {
        return Err(Error::Unfit("only tidelog's own ids can be resumed from anywhere".to_owned()));
    }
    let pattern = match (&args.pattern, &run.common.topic) {
        (Some(pattern), _) => pattern.to_string(),
        (None, Some(topic)) => topic.to_string(),
        (None, None) => "**".to_owned(),
    };
    let mut path = format!("/topics/{pattern}");
    if let Some(event) = &args.event {
        path += &form_urlencoded::Serializer::new("?".to_owned()).append_pair("event", event).finish();
    }
    let (earliest, tail) = bounds(run, &path)?;
    if tail == 0 || earliest > tail {
        return Err(Error::Unfit("the log is empty: publish something first, with `tidelog bench publish`".to_owned()));
    }
    let seed = args.seed.unwrap_or_else(|| fastrand::u32(..).into());
    let mut places = fastrand::Rng::with_seed(seed);
    let mut resumed = Resumed::default();
    run.step("resumes", args.resumes.into());
    let before = run.usage();
    for _ in 0..args.resumes {
        run.deadline.check("resumes done")?;
        let after = places.u64(earliest.max(1) - 1..tail);
        let request = run.target.get(&path, Some(after));
        resumed.take(after, &first(&run.target, &request, run.clock, run.deadline.left())?);
        run.bar.inc(1);
    }
    let disordered = resumed.disordered();
    let report = run
        .report("resume")
        .text("pattern", &pattern)
        .count("seed", seed)
        .count("earliest", earliest)
        .count("tail", tail)
        .count("resumes", args.resumes.into())
        .count("gaps", resumed.gaps)
        .count("disordered", disordered)
        .spread("first_event_ms", &resumed.event)
        .spread("live_ms", &resumed.live)
        .server(run.cost(before), "server_cpu_us_per_resume", args.resumes.into());
    let wrong = (disordered > 0).then(|| format!("{disordered} resumes began with an event that was not the next"));
    Ok(Found { report, wrong })
}

/// The oldest retained id and the newest.
fn bounds(run: &Run, path: &str) -> Result<(u64, u64), Error> {
    let mut socket = connect(&run.target)?;
    let failed = |cause| Error::Connect { addr: run.target.addr, cause };
    socket.set_read_timeout(Some(run.deadline.left().max(Duration::from_millis(1)))).map_err(failed)?;
    socket.write_all(&run.target.ask("HEAD", path)).map_err(failed)?;
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    while memchr::memmem::find(&head, b"\r\n\r\n").is_none() {
        match socket.read(&mut buffer).map_err(failed)? {
            0 => return Err(failed(io::ErrorKind::UnexpectedEof.into())),
            n => head.extend_from_slice(&buffer[..n]),
        }
    }
    let number = |name| header(&head, name)?.parse().ok();
    if let (Some(earliest), Some(tail)) = (number("tidelog-earliest"), number("tidelog-tail")) {
        return Ok((earliest, tail));
    }
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    Err(Error::Subscribe(format!("the server said: {}", String::from_utf8_lossy(line))))
}

/// What a stream begins with.
struct First {
    /// The first event, or that there is none.
    frame: Frame,
    has_gap: bool,
    nanoseconds: u64,
}

fn first(target: &Target, request: &[u8], clock: Clock, most: Duration) -> Result<First, Error> {
    let begun = clock.now();
    let failed = |cause: io::Error| Error::Subscribe(cause.to_string());
    let mut socket = connect(target)?;
    socket.set_read_timeout(Some(most.max(Duration::from_millis(1)))).map_err(failed)?;
    socket.write_all(request).map_err(failed)?;
    let (mut wire, mut buffer) = (Wire::new(Look::Frames), vec![0; READ_BYTES]);
    let (mut frame, mut has_gap) = (None, false);
    loop {
        let n = socket.read(&mut buffer).map_err(failed)?;
        let now = clock.now();
        let fed = wire.feed(&buffer[..n], &mut |got| match got.kind {
            Kind::Event | Kind::Live => _ = frame.get_or_insert(*got),
            Kind::Gap => has_gap = true,
            Kind::Error | Kind::Control => {}
        });
        fed.map_err(|error| Error::Subscribe(format!("the server sent {error}")))?;
        if let Some(said) = wire.refusal() {
            return Err(Error::Subscribe(format!("the server said: {said}")));
        }
        if let Some(frame) = frame {
            return Ok(First { frame, has_gap, nanoseconds: now - begun });
        }
        if n == 0 {
            return Err(Error::Subscribe("the server closed the connection amid its answer".to_owned()));
        }
    }
}

#[derive(Default)]
struct Resumed {
    event: Spread,
    live: Spread,
    gaps: u64,
    /// After which id, and the first event's; without those that were told a gap.
    firsts: Vec<(u64, u64)>,
    /// Firsts that are not after the place.
    before: u64,
}

impl Resumed {
    fn take(&mut self, after: u64, first: &First) {
        self.gaps += u64::from(first.has_gap);
        if first.frame.kind == Kind::Live {
            return self.live.add(first.nanoseconds);
        }
        self.event.add(first.nanoseconds);
        match first.frame.id {
            Some(id) if id > after => {
                if !first.has_gap {
                    self.firsts.push((after, id));
                }
            }
            _ => self.before += 1,
        }
    }

    /// Resumes whose first event was not the next, as others' firsts show.
    fn disordered(&mut self) -> u64 {
        self.firsts.sort_unstable();
        let is_wrong = |pair: &&[(u64, u64)]| {
            let [(_, first), (after, next)] = **pair else { return false };
            // Nothing lies between a place and its first event, so places between them have the same.
            next < first || (after < first && next != first)
        };
        self.before + self.firsts.windows(2).filter(is_wrong).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_event_that_is_not_the_next_is_told() {
        let disordered = |firsts: &[(u64, u64)]| {
            let mut resumed = Resumed::default();
            for &(after, id) in firsts {
                let frame = Frame { kind: Kind::Event, id: Some(id), mark: None };
                resumed.take(after, &First { frame, has_gap: false, nanoseconds: 1 });
            }
            resumed.disordered()
        };
        assert_eq!(disordered(&[(5, 7), (1, 7), (6, 7), (7, 9), (6, 7)]), 0);
        assert_eq!(disordered(&[(5, 5)]), 1, "again what was had");
        assert_eq!(disordered(&[(1, 8), (5, 7)]), 1, "7 was left out");
        assert_eq!(disordered(&[(5, 9), (1, 7)]), 1, "7 was left out, after 5");
    }
}
