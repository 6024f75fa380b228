//! A thread of the wire: its followers, whose turn it is, and the epoll loop.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::Result;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::chunk::{Chunk, Unsent};
use super::follower::{Doing, End, Follower, Then, Thrown};
use super::inbox::{Inbox, Mail, ReadDone};
use super::round::Round;
use super::{Fresh, GiveBack};
use crate::hub::pages::Pages;
use crate::hub::wake::SharedDoor;
use crate::subscription::Reading;
use crate::subscription::run::Runs;
use crate::subscription::shared::{Asker, Done};

/// Followers that have a turn before sockets and inbox are looked at again: at 7 µs a write, some 2 ms.
const TURNS_MAX: usize = 256;

/// A thread that writes without a break offers its core to others after so many turns: some 0.2 ms. Else one that wakes meanwhile, such as a
/// publisher's, waits for the end of the system's slice, which is 3 ms and more. One publisher beside 1,000 subscribers published a fifth
/// more with it (a quarter with 8 turns, a seventh with 128).
const SPELL_TURNS: usize = 32;

/// A look at the sockets that takes no longer has found something at once: the thread had nothing to do only if it did take longer.
const WAIT_MIN: Duration = Duration::from_micros(20);

/// Sockets that are told of at once.
const EVENTS_MAX: usize = 1024;

/// How long a client that is still sending, though its stream has ended, is listened to.
const LINGER: Duration = Duration::from_secs(2);

/// The bell's number among the sockets': no place and serial make it, as places are below 2^32 − 1.
const BELL: u64 = u64::MAX;

/// When a follower is to be looked at; it may have gone, or have a later one by then.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Deadline {
    at: Instant,
    place: u32,
    serial: u32,
}

pub struct Shard {
    epoll: OwnedFd,
    inbox: Arc<Inbox>,
    door: SharedDoor,
    write_timeout: Duration,
    runtime: Handle,
    give_back: Arc<GiveBack>,
    followers: Pages<Follower>,
    serial: u32,
    /// Whose turn it is; each follower is in it at most once.
    turns: VecDeque<u32>,
    /// At most two for each follower that is or was doing something.
    deadlines: BinaryHeap<Reverse<Deadline>>,
    chunk: Chunk,
    /// What the followers were given last.
    runs: Runs,
    round: Round,
    /// How many followers have a read on its way.
    reading: usize,
    /// Turns since the core was last offered to others.
    spell: usize,
}

impl Shard {
    /// # Errors
    /// When there are no more files to be had.
    pub fn new(inbox: Arc<Inbox>, write_timeout: Duration, runtime: Handle, give_back: Arc<GiveBack>) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, inbox.bell(), EventData::new_u64(BELL), EventFlags::IN | EventFlags::ET)?;
        Ok(Self {
            epoll,
            door: Arc::new(Box::new(Arc::clone(&inbox))),
            inbox,
            write_timeout,
            runtime,
            give_back,
            followers: Pages::default(),
            serial: 0,
            turns: VecDeque::new(),
            deadlines: BinaryHeap::new(),
            chunk: Chunk::default(),
            runs: Runs::default(),
            round: Round::begin(0),
            reading: 0,
            spell: 0,
        })
    }

    /// Runs until the inbox is closed.
    pub fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let mut mail = Mail::default();
        loop {
            self.wait(&mut events);
            for event in events.drain(..) {
                self.happened(event);
            }
            self.inbox.take(&mut mail);
            if mail.closed {
                return;
            }
            self.read_mail(&mut mail);
            self.expire();
            for _ in 0..TURNS_MAX {
                if self.rests() {
                    break;
                }
                let Some(place) = self.turns.pop_front() else { break };
                self.turn(place);
            }
        }
    }

    /// At the end of a round, lets more gather; false where there is nothing to wait for.
    fn rests(&mut self) -> bool {
        let next = self.turns.front().and_then(|&place| self.followers.get(place as usize));
        if next.is_none_or(|follower| !self.round.had_turn(follower.round)) {
            return false;
        }
        let rest = if self.reading > 0 { Duration::ZERO } else { self.round.rest(self.round.lasts()) };
        self.round.next();
        if rest.is_zero() {
            return false;
        }
        std::thread::sleep(rest);
        self.spell = 0;
        true
    }

    fn wait(&mut self, events: &mut Vec<Event>) {
        let idle_since = self.turns.is_empty().then(Instant::now);
        let timeout = if self.turns.is_empty() {
            self.deadlines.peek().map(|Reverse(next)| next.at.saturating_duration_since(Instant::now()))
        } else {
            Some(Duration::ZERO)
        };
        let timeout = timeout.map(|timeout| Timespec {
            // Rounded up by the kernel to what its timers can.
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                // Nothing of what is asked can be refused; a loop that does not wait is better than one that ends.
                tracing::error!(%error, "cannot wait for sockets");
            }
        }
        if idle_since.is_some_and(|since| since.elapsed() >= WAIT_MIN) {
            self.round.next();
            self.spell = 0;
        }
    }

    fn read_mail(&mut self, mail: &mut Mail) {
        // Not drained: after a crowd has come, its room would stay.
        for fresh in std::mem::take(&mut mail.fresh) {
            self.admit(fresh);
        }
        for done in mail.reads.drain(..) {
            self.was_read(done);
        }
        for place in mail.woken.drain(..) {
            self.queue(place);
        }
    }

    /// Where a follower is, unless it has gone.
    fn get(&self, place: u32, serial: u32) -> Option<usize> {
        let at = place as usize;
        self.followers.get(at).filter(|follower| follower.serial == serial).map(|_| at)
    }

    fn admit(&mut self, fresh: Fresh) {
        self.serial = self.serial.wrapping_add(1);
        let follower = Follower::new(fresh, self.serial, self.round.number().wrapping_sub(1));
        let place = u32::try_from(self.followers.vacant()).expect("there are fewer than four billion sockets");
        let interest = quiet(&follower);
        if let Err(error) = epoll::add(&self.epoll, follower.socket(), data(place, self.serial), interest) {
            tracing::warn!(%error, "a stream cannot be followed");
            return;
        }
        self.followers.insert(follower);
        self.queue(place);
    }

    /// It is to be asked what is next, in its turn, unless it is doing something.
    fn queue(&mut self, place: u32) {
        if let Some(follower) = self.followers.get_mut(place as usize)
            && !follower.queued
            && follower.is_free()
        {
            follower.queued = true;
            self.turns.push_back(place);
        }
    }

    fn turn(&mut self, place: u32) {
        let Some(follower) = self.followers.get_mut(place as usize) else { return };
        if !std::mem::take(&mut follower.queued) || !follower.is_free() {
            return;
        }
        follower.round = self.round.number();
        let then = follower.gather(&mut self.runs, &self.door, place, &mut self.chunk);
        self.round.turn(self.chunk.bytes(), matches!(then, Then::Wait));
        self.spell += 1;
        self.send(place, then);
        if self.spell >= SPELL_TURNS {
            self.spell = 0;
            std::thread::yield_now();
        }
    }

    /// Writes what was gathered, and goes on from there.
    fn send(&mut self, place: u32, then: Then) {
        let Some(follower) = self.followers.get_mut(place as usize) else { return };
        let end = if let Then::End(end) = then { Some(end) } else { None };
        if !self.chunk.is_empty() || end == Some(End::Proper) {
            match follower.write(&mut self.chunk, end == Some(End::Proper)) {
                Ok(unsent) if unsent.is_empty() => {}
                Ok(unsent) => return self.block(place, unsent, end),
                Err(_) => return self.remove(place),
            }
        }
        match then {
            Then::Wait => {}
            Then::Again => self.queue(place),
            Then::Read(reading) => self.read(place, reading),
            Then::End(end) => self.end(place, end),
        }
    }

    fn block(&mut self, place: u32, unsent: Unsent, end: Option<End>) {
        let Some(follower) = self.followers.get_mut(place as usize) else { return };
        let since = Instant::now();
        follower.doing = Some(Box::new(Doing::Blocked { unsent, since, end }));
        if !std::mem::replace(&mut follower.watched, true) {
            let at = since + self.write_timeout;
            self.deadlines.push(Reverse(Deadline { at, place, serial: follower.serial }));
        }
        self.listen(place, EventFlags::OUT);
    }

    /// Also listens for these, beside what a quiet follower listens for.
    fn listen(&mut self, place: u32, more: EventFlags) {
        let Some(follower) = self.followers.get(place as usize) else { return };
        let (data, interest) = (data(place, follower.serial), quiet(follower) | more);
        if let Err(error) = epoll::modify(&self.epoll, follower.socket(), data, interest) {
            tracing::warn!(%error, "a stream cannot be followed any more");
            self.remove(place);
        }
    }

    fn read(&mut self, place: u32, reading: Reading) {
        let Some(follower) = self.followers.get_mut(place as usize) else { return };
        let (source, inbox, serial) = (follower.source().clone(), Arc::clone(&self.inbox), follower.serial);
        let here = Arc::new(());
        let asker = ForFollower { here: Arc::downgrade(&here), inbox, place, serial };
        follower.doing = Some(Box::new(Doing::Reading { _here: here }));
        self.reading += 1;
        let in_runtime = self.runtime.enter();
        let known = source.ask(reading, Box::new(asker));
        drop(in_runtime);
        if let Some(read) = known {
            self.was_read(ReadDone { place, serial, read: Ok(read) });
        }
    }

    fn was_read(&mut self, ReadDone { place, serial, read }: ReadDone) {
        let Some(at) = self.get(place, serial) else { return };
        self.reading -= 1;
        // What is in the machine is gathered in its turn; that a read failed is said at once.
        match self.followers[at].was_read(read, &mut self.chunk) {
            Some(end) => self.send(place, Then::End(end)),
            None => self.queue(place),
        }
    }

    fn happened(&mut self, event: Event) {
        let (number, flags) = (event.data.u64(), event.flags);
        if number == BELL {
            return;
        }
        let (place, serial) = parts(number);
        let Some(at) = self.get(place, serial) else { return };
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            return self.remove(place);
        }
        if self.followers[at].is_lingering() {
            // Up to its end: what is left unread resets the connection.
            if matches!(self.followers[at].throw_away(), Thrown::End) {
                self.remove(place);
            }
            return;
        }
        if flags.contains(EventFlags::RDHUP) {
            return self.remove(place);
        }
        if flags.contains(EventFlags::OUT) {
            self.flush(place);
        }
    }

    /// The socket takes bytes again.
    fn flush(&mut self, place: u32) {
        let Some(follower) = self.followers.get_mut(place as usize) else { return };
        let Some(mut doing) = follower.doing.take() else { return };
        let Doing::Blocked { unsent, since, end } = &mut *doing else {
            follower.doing = Some(doing);
            return;
        };
        match unsent.write(follower.socket()) {
            Err(_) => return self.remove(place),
            Ok(written) if written > 0 => *since = Instant::now(),
            Ok(_) => {}
        }
        if !unsent.is_empty() {
            follower.doing = Some(doing);
            return;
        }
        let end = *end;
        self.listen(place, EventFlags::empty());
        match end {
            Some(end) => self.end(place, end),
            None => self.queue(place),
        }
    }

    /// All bytes of the stream are with the kernel.
    fn end(&mut self, place: u32, end: End) {
        let Some(follower) = self.followers.get_mut(place as usize) else { return };
        if follower.goes_on_after(end) {
            let _ = epoll::delete(&self.epoll, follower.socket());
            if let Some(follower) = self.followers.remove(place as usize) {
                (self.give_back)(follower.give_back());
            }
            return;
        }
        if !follower.shut() {
            return self.remove(place);
        }
        let until = Instant::now() + LINGER;
        follower.doing = Some(Box::new(Doing::Lingering { until }));
        self.deadlines.push(Reverse(Deadline { at: until, place, serial: follower.serial }));
        self.listen(place, EventFlags::IN);
    }

    /// Closing its socket also takes it out of the epoll set, since no one else has it open.
    fn remove(&mut self, place: u32) {
        let Some(follower) = self.followers.remove(place as usize) else { return };
        self.reading -= usize::from(follower.is_reading());
    }

    fn expire(&mut self) {
        if self.deadlines.is_empty() {
            return;
        }
        let now = Instant::now();
        while self.deadlines.peek().is_some_and(|Reverse(next)| next.at <= now) {
            let Some(Reverse(Deadline { place, serial, .. })) = self.deadlines.pop() else { return };
            let Some(at) = self.get(place, serial) else { continue };
            let follower = &mut self.followers[at];
            match follower.deadline(self.write_timeout) {
                None => follower.watched = false,
                Some(at) if at > now => self.deadlines.push(Reverse(Deadline { at, place, serial })),
                Some(_) => self.give_up(place, serial),
            }
        }
    }
}

impl Shard {
    /// Its time is over. The kernel tells only of much room: a socket into which a single byte goes is not one that takes nothing.
    fn give_up(&mut self, place: u32, serial: u32) {
        self.flush(place);
        let Some(at) = self.get(place, serial) else { return };
        let follower = &mut self.followers[at];
        match follower.deadline(self.write_timeout) {
            None => follower.watched = false,
            Some(at) if at > Instant::now() => self.deadlines.push(Reverse(Deadline { at, place, serial })),
            Some(_) => {
                follower.reset();
                self.remove(place);
            }
        }
    }
}

/// Has what was read put into the inbox, as long as the follower is there.
struct ForFollower {
    here: Weak<()>,
    inbox: Arc<Inbox>,
    place: u32,
    serial: u32,
}

impl Asker for ForFollower {
    fn waits(&self) -> bool {
        self.here.strong_count() > 0
    }

    fn answer(self: Box<Self>, read: Done) {
        if self.waits() {
            self.inbox.read_done(ReadDone { place: self.place, serial: self.serial, read });
        }
    }
}

impl Drop for Shard {
    /// Also where the thread panicked: what is sent to it from now on is let go at once.
    fn drop(&mut self) {
        self.inbox.close();
        self.inbox.take(&mut Mail::default());
    }
}

/// What a follower listens for while it has nothing to write.
fn quiet(follower: &Follower) -> EventFlags {
    // That a connection broke is told unasked.
    if follower.ends_with_its_client() { EventFlags::RDHUP } else { EventFlags::empty() }
}

fn data(place: u32, serial: u32) -> EventData {
    EventData::new_u64(u64::from(place) << 32 | u64::from(serial))
}

fn parts(number: u64) -> (u32, u32) {
    let part = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
    (part(number >> 32), part(number))
}
