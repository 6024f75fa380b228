//! Publishers on keep-alive connections, one request in flight each, all on one thread.
//!
//! What holds: a paced publisher keeps to its timetable, so that one late event does not make the next ones late; nothing is sent twice;
//! the first refusal ends the bench, since what follows it measures nothing. Must not know who subscribes.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use indicatif::ProgressBar;
use parking_lot::{Condvar, Mutex};
use rustix::event::epoll::EventFlags;

use super::load::{Epoll, ready};
use super::mark::Mark;
use super::report::as_f64;
use super::spread::Spread;
use super::target::{self, Target};
use super::wire::{Look, Wire};
use super::{Clock, Deadline, Error};

/// How long a connection to a server may take that is to be loaded.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long nothing may be looked at.
const TURN: Duration = Duration::from_millis(100);
/// Bytes of an answer that one read takes; acks have a few hundred.
const READ_BYTES: usize = 16 << 10;

/// What is published.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whose marks they are.
    pub run: u32,
    /// Events of each publisher.
    pub lanes: Vec<u32>,
    /// Where each publisher's n-th event goes: to the (n mod len)-th.
    pub paths: Vec<String>,
    /// Bytes of an event.
    pub size: usize,
    /// Events a request; `None`: one, as itself.
    pub batch: Option<u32>,
    /// Events a second, of all publishers; `None`: as fast as they are acked.
    pub rate: Option<f64>,
}

impl Plan {
    /// `events` in all, shared among `publishers`.
    pub fn shares(events: u32, publishers: u16) -> Vec<u32> {
        let publishers = u32::from(publishers);
        (0..publishers).map(|p| events / publishers + u32::from(p < events % publishers)).collect()
    }
}

/// What is known of the publishers while they work.
#[derive(Debug, Default)]
pub struct Progress {
    /// Looked at while it grows: relaxed is enough. What it comes to is known by joining the publishers.
    acked: AtomicU64,
    /// To be seen soon, and nothing is learnt from it: relaxed is enough.
    stop: AtomicBool,
    is_over: Mutex<bool>,
    over: Condvar,
}

impl Progress {
    /// Events that were acked.
    pub fn acked(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// Whether nothing more will be published.
    pub fn is_over(&self) -> bool {
        *self.is_over.lock()
    }

    /// Waits until it is over, or `most` is.
    pub fn wait(&self, most: Duration) {
        let mut is_over = self.is_over.lock();
        if !*is_over {
            self.over.wait_for(&mut is_over, most);
        }
    }

    fn end(&self) {
        *self.is_over.lock() = true;
        self.over.notify_all();
    }
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Published {
    pub events: u64,
    pub requests: u64,
    /// From the first request to the last ack.
    pub seconds: f64,
    /// From sending a request to its ack.
    pub latency: Spread,
    /// How much later than by the timetable requests were sent.
    pub behind: Spread,
}

/// Connections that are ready to publish.
pub struct Publishers {
    plan: Plan,
    heads: Vec<Vec<u8>>,
    target: Target,
    clock: Clock,
    deadline: Deadline,
    epoll: Epoll,
    lanes: Vec<Lane>,
    buffer: Vec<u8>,
    published: Published,
}

struct Lane {
    socket: TcpStream,
    wire: Wire,
    /// The next event.
    next: u32,
    /// The request on its way, and how much of it was written.
    request: Vec<u8>,
    written: usize,
    /// When it was sent; `None`: none is on its way.
    sent: Option<u64>,
    /// Events in it.
    events: u32,
}

impl Publishers {
    /// Connects them.
    pub fn connect(target: &Target, plan: Plan, clock: Clock, deadline: Deadline) -> Result<Self, Error> {
        let heads = plan.paths.iter().map(|path| target.publish_head(path, plan.batch.is_some())).collect();
        let mut publishers = Self {
            heads,
            target: target.clone(),
            clock,
            deadline,
            epoll: Epoll::new()?,
            lanes: Vec::new(),
            buffer: vec![0; READ_BYTES],
            published: Published::default(),
            plan,
        };
        for _ in 0..publishers.plan.lanes.len() {
            let socket = publishers.socket(publishers.lanes.len())?;
            let wire = Wire::new(Look::Nothing);
            publishers.lanes.push(Lane {
                socket,
                wire,
                next: 0,
                request: Vec::new(),
                written: 0,
                sent: None,
                events: 0,
            });
        }
        Ok(publishers)
    }

    fn socket(&self, number: usize) -> Result<TcpStream, Error> {
        let socket = connect(&self.target)?;
        let failed = |cause| Error::Connect { addr: self.target.addr, cause };
        socket.set_nonblocking(true).map_err(failed)?;
        self.epoll.add(&socket, number)?;
        Ok(socket)
    }

    /// Publishes all of it, on this thread.
    pub fn run(self, progress: &Progress) -> Result<Published, Error> {
        let done = self.publish(progress);
        progress.end();
        done
    }

    /// Publishes all of it, and shows how far it is.
    pub fn run_shown(self, bar: &ProgressBar) -> Result<Published, Error> {
        let shown = self.beside(|progress| {
            // The publishers themselves keep the deadline.
            while !progress.is_over() {
                progress.wait(TURN);
                bar.set_position(progress.acked());
            }
            Ok(())
        });
        Ok(shown?.1)
    }

    /// Publishes beside `work`, on a thread of its own, until both are done. When `work` is done first, what was not
    /// published yet is left.
    pub fn beside<T>(self, work: impl FnOnce(&Progress) -> Result<T, Error>) -> Result<(T, Published), Error> {
        let progress = &Progress::default();
        thread::scope(|scope| {
            let publishing = thread::Builder::new()
                .name("publishers".into())
                .spawn_scoped(scope, || self.run(progress))
                .map_err(Error::Thread)?;
            // Also when `work` panics, the scope must end.
            let stop = StopOnDrop(progress);
            let worked = work(progress);
            drop(stop);
            let published = publishing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // Where both failed, the refused publish is the cause.
            let published = published?;
            Ok((worked?, published))
        })
    }

    fn publish(mut self, progress: &Progress) -> Result<Published, Error> {
        let begun = self.clock.now();
        let mut waiting: BinaryHeap<Reverse<(u64, usize)>> = (0..self.lanes.len())
            .filter(|&l| self.plan.lanes[l] > 0)
            .map(|l| Reverse((self.due(begun, l), l)))
            .collect();
        let mut busy = 0;
        let mut last_ack = begun;
        let mut ready = ready();
        while (busy > 0 || !waiting.is_empty()) && !progress.stop.load(Ordering::Relaxed) {
            let mut wait = TURN;
            while let Some(&Reverse((due, lane))) = waiting.peek() {
                let now = self.clock.now();
                if due > now {
                    wait = wait.min(Duration::from_nanos(due - now));
                    break;
                }
                waiting.pop();
                if self.plan.rate.is_some() {
                    self.published.behind.add(now - due);
                }
                self.send(lane, now)?;
                busy += 1;
            }
            self.epoll.wait(&mut ready, wait, self.plan.rate.is_some())?;
            for event in &ready {
                #[allow(clippy::cast_possible_truncation)] // it is an index
                let lane = event.data.u64() as usize;
                let flags = event.flags;
                if flags.contains(EventFlags::OUT) {
                    self.write(lane)?;
                }
                if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR)
                    && self.read(lane)?
                {
                    last_ack = self.clock.now();
                    busy -= 1;
                    progress.acked.fetch_add(self.lanes[lane].events.into(), Ordering::Relaxed);
                    if self.lanes[lane].next < self.plan.lanes[lane] {
                        waiting.push(Reverse((self.due(begun, lane), lane)));
                    }
                }
            }
            self.deadline.check("events published")?;
        }
        self.published.seconds = as_f64(last_ack - begun) / 1e9;
        Ok(self.published)
    }

    /// When a publisher's next request is to be sent: its events are spread evenly over time, between those of the others.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // nanoseconds above zero
    fn due(&self, begun: u64, lane: usize) -> u64 {
        let Some(rate) = self.plan.rate else { return begun };
        let before = u64::from(self.lanes[lane].next) * self.lanes.len() as u64 + lane as u64;
        begun + (as_f64(before) / rate * 1e9) as u64
    }

    fn send(&mut self, number: usize, now: u64) -> Result<(), Error> {
        let lane = &mut self.lanes[number];
        let left = self.plan.lanes[number] - lane.next;
        let events = self.plan.batch.unwrap_or(1).min(left);
        let length = match self.plan.batch {
            Some(_) => target::batch_length(events as usize, self.plan.size),
            None => self.target.body_length(self.plan.size),
        };
        lane.request.clear();
        lane.request.extend_from_slice(&self.heads[lane.next as usize % self.heads.len()]);
        lane.request.extend_from_slice(format!("{length}\r\n\r\n").as_bytes());
        for sequence in lane.next..lane.next + events {
            #[allow(clippy::cast_possible_truncation)] // publishers are a u16
            let mark = Mark { run: self.plan.run, publisher: number as u16, sequence, time: now };
            match self.plan.batch {
                Some(_) => target::line(&mut lane.request, mark, self.plan.size),
                None => self.target.body(&mut lane.request, mark, self.plan.size),
            }
        }
        (lane.written, lane.sent, lane.events) = (0, Some(now), events);
        lane.next += events;
        self.write(number)
    }

    fn write(&mut self, number: usize) -> Result<(), Error> {
        let lane = &mut self.lanes[number];
        while lane.written < lane.request.len() {
            match lane.socket.write(&lane.request[lane.written..]) {
                Ok(n) => lane.written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Publish(error.to_string())),
            }
        }
        Ok(())
    }

    /// Reads what is there; whether the request on its way was acked by it.
    fn read(&mut self, number: usize) -> Result<bool, Error> {
        let lane = &mut self.lanes[number];
        loop {
            let n = match lane.socket.read(&mut self.buffer) {
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::Publish(error.to_string())),
            };
            if n == 0 && !(lane.wire.may_end() && lane.wire.status().is_some()) {
                if lane.sent.is_some() {
                    return Err(Error::Publish("the server closed the connection before it answered".to_owned()));
                }
                self.lanes[number].socket = self.socket(number)?;
                return Ok(false);
            }
            let fed = lane.wire.feed(&self.buffer[..n], &mut |_| {});
            fed.map_err(|error| Error::Publish(format!("the server sent {error}")))?;
            let is_whole = lane.wire.is_done() || n == 0;
            if let Some(said) = lane.wire.refusal().filter(|_| is_whole || lane.wire.status().is_some()) {
                return Err(Error::Publish(format!("the server said: {said}")));
            }
            if !is_whole {
                continue;
            }
            let closes = lane.wire.closes() || n == 0;
            lane.wire.next();
            let Some(sent) = lane.sent.take() else {
                return Err(Error::Publish("the server sent an answer to nothing".to_owned()));
            };
            self.published.latency.add(self.clock.now() - sent);
            self.published.events += u64::from(lane.events);
            self.published.requests += 1;
            if closes {
                self.lanes[number].socket = self.socket(number)?;
            }
            return Ok(true);
        }
    }
}

struct StopOnDrop<'p>(&'p Progress);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// A connection for small requests that are waited for. It is closed by a reset, so that its port does not wait.
pub fn connect(target: &Target) -> Result<TcpStream, Error> {
    let failed = |cause| Error::Connect { addr: target.addr, cause };
    let socket = TcpStream::connect_timeout(&target.addr, CONNECT_TIMEOUT).map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).map_err(failed)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_shared_out() {
        assert_eq!(Plan::shares(10, 4), [3, 3, 2, 2]);
        assert_eq!(Plan::shares(1, 2), [1, 0]);
        assert_eq!(Plan::shares(u32::MAX, 1), [u32::MAX]);
    }
}
