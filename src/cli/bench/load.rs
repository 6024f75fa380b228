//! Many subscribers on one thread: an epoll loop over their sockets, with one buffer for all.
//!
//! What holds: a subscriber costs no thread, no timer and no buffer of its own, so that the load takes little of the machine that it
//! shares with the server; no wait is longer than it is told. Must not know what the events are for: a [`Sink`] does.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use indicatif::ProgressBar;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use super::target::Target;
use super::wire::{Frame, Look, Wire};
use super::{Clock, Deadline, Error, Run};

/// Bytes that one read takes: more than a socket's buffer usually holds, and still within the processor's second cache.
const READ_BYTES: usize = 256 << 10;
/// Events that one call of epoll gives.
const READY_MAX: usize = 1024;
/// Connections from one source address, below the ports that Linux gives out to one by default (28,000).
const PORTS_MAX: usize = 20_000;
/// Connections on their way at once, below the length of the shortest queue that servers listen with (128).
const IN_FLIGHT_MAX: usize = 100;
/// Longest wait between two looks at the time.
const TURN: Duration = Duration::from_millis(100);

/// Who gets the frames.
pub trait Sink {
    /// `now`: when the read that brought it returned, in nanoseconds of the clock.
    fn frame(&mut self, subscriber: usize, frame: &Frame, now: u64);
}

/// A sink that wants nothing.
impl Sink for () {
    fn frame(&mut self, _: usize, _: &Frame, _: u64) {}
}

/// epoll, edge-triggered.
pub struct Epoll(OwnedFd);

/// What a wait found; it can be used again for the next.
pub type Ready = Vec<epoll::Event>;

/// Room for what one wait can find.
pub fn ready() -> Ready {
    Vec::with_capacity(READY_MAX)
}

impl Epoll {
    pub fn new() -> Result<Self, Error> {
        epoll::create(CreateFlags::CLOEXEC).map(Self).map_err(Error::Loop)
    }

    /// Watches `socket` for both directions, as `number`.
    pub fn add(&self, socket: &impl AsFd, number: usize) -> Result<(), Error> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        epoll::add(&self.0, socket, EventData::new_u64(number as u64), flags).map_err(Error::Loop)
    }

    /// Waits at most `wait`, to the nanosecond where `is_precise`: epoll itself counts milliseconds.
    pub fn wait(&self, ready: &mut Ready, wait: Duration, is_precise: bool) -> Result<(), Error> {
        ready.clear();
        let mut timeout = timespec(wait);
        if is_precise {
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::Loop(errno)),
            }
            timeout = timespec(Duration::ZERO);
        }
        match epoll::wait(&self.0, spare_capacity(ready), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::Loop(errno)),
        }
    }
}

/// As the system calls want it.
fn timespec(wait: Duration) -> Timespec {
    // A wait of more than i64 seconds ends no bench.
    Timespec { tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: wait.subsec_nanos().into() }
}

/// How a subscription stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    /// The request is sent, the head of the answer is not there.
    Asked,
    Open,
    /// The answer came to its proper end.
    Ended,
    /// The connection broke.
    Cut,
}

struct Subscriber {
    socket: TcpStream,
    stage: Stage,
    wire: Wire,
    /// What is to be sent once it is connected.
    request: Vec<u8>,
}

/// The subscribers.
pub struct Load {
    epoll: Epoll,
    ready: Ready,
    addr: SocketAddr,
    look: Look,
    clock: Clock,
    buffer: Vec<u8>,
    subscribers: Vec<Subscriber>,
    /// Who may have more: the last read filled the buffer, or there was none.
    again: Vec<usize>,
    /// Of each stage that is counted.
    opened: usize,
    ended: usize,
    cut: usize,
    /// Why the first that never opened did not.
    refused: Option<String>,
    /// Why the first that was cut was.
    failure: Option<String>,
}

impl Load {
    pub fn new(target: &Target, look: Look, clock: Clock) -> Result<Self, Error> {
        Ok(Self {
            epoll: Epoll::new()?,
            ready: ready(),
            addr: target.addr,
            look,
            clock,
            buffer: vec![0; READ_BYTES],
            subscribers: Vec::new(),
            again: Vec::new(),
            opened: 0,
            ended: 0,
            cut: 0,
            refused: None,
            failure: None,
        })
    }

    /// Connects `count` subscribers, of which the n-th sends `request(n)`, until each has the head of its answer. At most
    /// `in_flight` wait for theirs at once.
    pub fn connect(
        &mut self,
        count: usize,
        in_flight: usize,
        request: impl Fn(usize) -> Vec<u8>,
        deadline: Deadline,
        bar: &ProgressBar,
        sink: &mut impl Sink,
    ) -> Result<(), Error> {
        bar.set_length(count as u64);
        while self.opened < count {
            let begun = self.subscribers.len();
            if begun < count && begun - self.opened < in_flight {
                self.begin(request(begun))?;
                // Those that are on their way are seen to between.
                if !(begun + 1).is_multiple_of(32) {
                    continue;
                }
                self.pump_once(Duration::ZERO, false, sink)?;
            } else {
                self.pump(TURN, sink)?;
            }
            deadline.check("subscribers connected")?;
            bar.set_position(self.opened as u64);
            if let Some(why) = self.refused.take() {
                return Err(Error::Subscribe(why));
            }
        }
        bar.set_position(count as u64);
        Ok(())
    }

    /// The same for a whole bench: with bounds that keep clear of the server's queue of connections.
    pub(super) fn connect_all(
        &mut self,
        run: &Run,
        count: usize,
        request: impl Fn(usize) -> Vec<u8>,
        sink: &mut impl Sink,
    ) -> Result<(), Error> {
        self.connect(count, IN_FLIGHT_MAX, request, run.deadline, &run.bar, sink)?;
        self.settle(Duration::from_millis(100), Duration::from_secs(3), sink)
    }

    fn begin(&mut self, request: Vec<u8>) -> Result<(), Error> {
        let number = self.subscribers.len();
        let socket = self.socket(number).map_err(|cause| Error::Connect { addr: self.addr, cause })?;
        self.epoll.add(&socket, number)?;
        let wire = Wire::new(self.look);
        self.subscribers.push(Subscriber { socket, stage: Stage::Connecting, wire, request });
        Ok(())
    }

    /// A socket that is on its way.
    fn socket(&self, number: usize) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.addr), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // It is closed by a reset, so that ten thousand ports do not wait a minute each.
        socket.set_linger(Some(Duration::ZERO))?;
        if number >= PORTS_MAX && self.addr.ip().is_loopback() && self.addr.is_ipv4() {
            // Below 127.0.250.1: five million connections.
            #[allow(clippy::cast_possible_truncation)]
            let ip = Ipv4Addr::new(127, 0, 1 + (number / PORTS_MAX % 250) as u8, 1);
            socket.bind(&SocketAddr::from((ip, 0)).into())?;
        }
        match socket.connect(&self.addr.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => Err(error),
            _ => Ok(socket.into()),
        }
    }

    /// Waits at most `wait` for something to come, and takes in what is there. Gives the bytes that came.
    pub fn pump(&mut self, wait: Duration, sink: &mut impl Sink) -> Result<usize, Error> {
        self.pump_once(wait, true, sink)
    }

    /// The same; unless it `reads`, only connections that are made are seen to, and the rest the next time.
    fn pump_once(&mut self, wait: Duration, reads: bool, sink: &mut impl Sink) -> Result<usize, Error> {
        let wait = if self.again.is_empty() { wait } else { Duration::ZERO };
        let mut found = std::mem::take(&mut self.ready);
        self.epoll.wait(&mut found, wait, false)?;
        let mut bytes = 0;
        for event in &found {
            // The numbers are indices.
            #[allow(clippy::cast_possible_truncation)]
            let number = event.data.u64() as usize;
            let flags = event.flags;
            if self.subscribers[number].stage == Stage::Connecting {
                self.connected(number);
            }
            let to_end = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
            if !reads {
                self.again.push(number);
            } else if to_end || flags.contains(EventFlags::IN) {
                bytes += self.read(number, to_end, sink);
            }
        }
        self.ready = found;
        if !reads {
            return Ok(0);
        }
        for number in std::mem::take(&mut self.again) {
            bytes += self.read(number, true, sink);
        }
        Ok(bytes)
    }

    fn connected(&mut self, number: usize) {
        let subscriber = &mut self.subscribers[number];
        let request = std::mem::take(&mut subscriber.request);
        let sent = match subscriber.socket.take_error() {
            Ok(None) => subscriber.socket.write_all(&request),
            Ok(Some(error)) | Err(error) => Err(error),
        };
        subscriber.stage = Stage::Asked;
        if let Err(error) = sent {
            self.end(number, Stage::Cut, || error.to_string());
        }
    }

    /// Reads once; with `to_end`, until there is nothing more or the buffer was filled.
    fn read(&mut self, number: usize, to_end: bool, sink: &mut impl Sink) -> usize {
        let mut bytes = 0;
        loop {
            let subscriber = &mut self.subscribers[number];
            if !matches!(subscriber.stage, Stage::Asked | Stage::Open) {
                return bytes;
            }
            let n = match subscriber.socket.read(&mut self.buffer) {
                Ok(0) => {
                    let is_whole = subscriber.wire.status().is_some() && subscriber.wire.may_end();
                    let stage = if is_whole { Stage::Ended } else { Stage::Cut };
                    self.end(number, stage, || "the server closed the connection amid its answer".to_owned());
                    return bytes;
                }
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    self.end(number, Stage::Cut, || error.to_string());
                    return bytes;
                }
            };
            bytes += n;
            let now = self.clock.now();
            let fed = subscriber.wire.feed(&self.buffer[..n], &mut |frame| sink.frame(number, frame, now));
            self.took(number, fed.err().map(|error| format!("the server sent {error}")));
            if n == self.buffer.len() {
                self.again.push(number);
                return bytes;
            }
            if !to_end {
                return bytes;
            }
        }
    }

    /// Notes where a subscription stands after a read.
    fn took(&mut self, number: usize, malformed: Option<String>) {
        let subscriber = &mut self.subscribers[number];
        let refusal = malformed.or_else(|| subscriber.wire.refusal().map(|said| format!("the server said: {said}")));
        if let Some(refusal) = refusal {
            return self.end(number, Stage::Cut, || refusal);
        }
        if subscriber.stage == Stage::Asked && subscriber.wire.status().is_some() {
            subscriber.stage = Stage::Open;
            self.opened += 1;
        }
        if self.subscribers[number].wire.is_done() {
            self.end(number, Stage::Ended, String::new);
        }
    }

    fn end(&mut self, number: usize, stage: Stage, why: impl FnOnce() -> String) {
        let was = std::mem::replace(&mut self.subscribers[number].stage, stage);
        if was != Stage::Open {
            self.refused.get_or_insert_with(why);
        } else if stage == Stage::Ended {
            self.ended += 1;
        } else {
            self.cut += 1;
            self.failure.get_or_insert_with(why);
        }
    }

    /// Pumps until nothing has come for `quiet`, or `most` is over: what a subscription begins with is not to be measured.
    pub fn settle(&mut self, quiet: Duration, most: Duration, sink: &mut impl Sink) -> Result<(), Error> {
        let begun = self.clock.now();
        let mut last = begun;
        loop {
            let now = self.clock.now();
            if nanoseconds(quiet) < now - last || nanoseconds(most) < now - begun {
                return Ok(());
            }
            if self.pump(quiet, sink)? > 0 {
                last = self.clock.now();
            }
        }
    }

    /// Cuts all connections at once, and forgets them.
    pub fn cut_all(&mut self) {
        self.subscribers.clear();
        self.again.clear();
        (self.opened, self.ended, self.cut) = (0, 0, 0);
    }

    /// Subscriptions whose answer came to its proper end.
    pub fn ended(&self) -> usize {
        self.ended
    }

    /// Subscriptions that broke.
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// Whether this one may still get something.
    pub fn is_open(&self, number: usize) -> bool {
        !matches!(self.subscribers[number].stage, Stage::Ended | Stage::Cut)
    }

    /// Whether this one broke.
    pub fn is_cut(&self, number: usize) -> bool {
        self.subscribers[number].stage == Stage::Cut
    }

    /// Why the first of those that broke did so.
    pub fn failure(&self) -> Option<String> {
        self.failure.clone()
    }
}

/// As the clock counts.
pub fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}
