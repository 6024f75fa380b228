//! One follower: a cursor, its place in the hub, a socket, and what it is just doing. Kept small: most of them wait.

use std::io::Read as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::SockRef;

use super::chunk::{Chunk, Unsent};
use super::{Fresh, GivenBack};
use crate::http::answer::Farewell;
use crate::hub::wake::{SharedDoor, Wake};
use crate::log::StreamError;
use crate::server::Seat;
use crate::subscription::run::Runs;
use crate::subscription::shared::Done;
use crate::subscription::stream::{Following, Source};
use crate::subscription::{Reading, Want};

pub struct Follower {
    /// Tells followers apart that were given the same place one after the other.
    pub serial: u32,
    /// In which of its thread's rounds it last had its turn.
    pub round: u8,
    /// It waits for its turn.
    pub queued: bool,
    /// A deadline is kept for it.
    pub watched: bool,
    afterwards: Afterwards,
    socket: TcpStream,
    farewell: Farewell,
    following: Following,
    seat: Seat,
    /// Boxed: one that waits does nothing.
    pub doing: Option<Box<Doing>>,
    ahead: Option<Box<Bytes>>,
}

/// What keeps a follower from being asked what is next.
pub enum Doing {
    /// It has not had its first turn, in which these bytes are written before all others.
    Opening(Vec<u8>),
    /// The socket is full.
    Blocked { unsent: Unsent, since: Instant, end: Option<End> },
    /// A read is on its way; when this goes, nobody waits for it.
    Reading { _here: Arc<()> },
    /// It has ended; what its client still sends is thrown away, so that it is not reset before it has read the last bytes.
    Lingering { until: Instant },
}

/// What becomes of a connection after the proper end of its stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    GoOn,
    Close,
    /// Bytes of the request may still come, which nobody wants.
    CloseUnread,
}

/// How a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Proper,
    /// There is more to come: no last chunk.
    BrokenOff,
}

/// What is to be done when all that was gathered is written.
pub enum Then {
    /// Nothing, until it is woken.
    Wait,
    /// It is to be asked again in its turn.
    Again,
    Read(Reading),
    End(End),
}

impl Follower {
    pub fn new(fresh: Fresh, serial: u32, round: u8) -> Self {
        let Fresh { socket, opening, ahead, keep_alive, unread, stream, seat } = fresh;
        Self {
            serial,
            round,
            queued: false,
            watched: false,
            afterwards: match (keep_alive, unread) {
                (true, _) => Afterwards::GoOn,
                (false, false) => Afterwards::Close,
                (false, true) => Afterwards::CloseUnread,
            },
            socket,
            farewell: stream.farewell,
            following: stream.subscription.into_following(),
            seat,
            doing: Some(opening).filter(|opening| !opening.is_empty()).map(|opening| Box::new(Doing::Opening(opening))),
            ahead: Some(ahead).filter(|ahead| !ahead.is_empty()).map(Box::new),
        }
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub fn source(&self) -> &Arc<Source> {
        self.following.source()
    }

    /// Whether a client that says that it sends no more has gone. One that has sent the next request already may still read: hyper
    /// would not notice its end either.
    pub fn ends_with_its_client(&self) -> bool {
        self.ahead.is_none()
    }

    /// Whether it may have a turn: it waits, or has not had its first.
    pub fn is_free(&self) -> bool {
        matches!(self.doing.as_deref(), None | Some(Doing::Opening(_)))
    }

    /// Gathers what is next into `chunk`. Only of one that is free.
    pub fn gather(&mut self, runs: &mut Runs, door: &SharedDoor, place: u32, chunk: &mut Chunk) -> Then {
        if let Some(Doing::Opening(opening)) = self.doing.take().map(|doing| *doing) {
            chunk.open(&opening);
        }
        while !chunk.is_full() {
            match self.following.next(runs, || Wake::Door(Arc::clone(door), place)) {
                Want::Emit(bytes) => chunk.push(bytes),
                Want::EmitAndWait(bytes) => {
                    chunk.push(bytes);
                    return Then::Wait;
                }
                Want::Tell(reason, bytes) => {
                    self.source().metrics.gap_told(reason.as_str());
                    chunk.push(bytes);
                }
                Want::Wait => return Then::Wait,
                Want::Yield => return Then::Again,
                // Nothing is read before what is there was taken; the machine asks for it again.
                Want::Read(_) if !chunk.is_empty() => return Then::Again,
                Want::Read(reading) => return Then::Read(reading),
                Want::End => return Then::End(End::Proper),
                Want::Drained => {
                    let error = StreamError::Draining { cursor: self.following.cursor() };
                    chunk.push(self.farewell.words(self.following.form(), error).into());
                    return Then::End(End::BrokenOff);
                }
            }
        }
        Then::Again
    }

    /// Writes what was gathered.
    ///
    /// # Errors
    /// When the connection has broken.
    pub fn write(&mut self, chunk: &mut Chunk, last: bool) -> std::io::Result<Unsent> {
        self.source().metrics.bytes_delivered.inc_by(chunk.bytes() as u64);
        chunk.write(&self.socket, last)
    }

    /// Takes in what was read; what it says instead when that failed.
    pub fn was_read(&mut self, read: Done, chunk: &mut Chunk) -> Option<End> {
        self.doing = None;
        match read {
            Ok(read) => {
                self.following.was_read(read);
                None
            }
            Err(source) => {
                let error = StreamError::Reading { cursor: self.following.cursor(), source };
                chunk.push(self.farewell.words(self.following.form(), error).into());
                Some(End::BrokenOff)
            }
        }
    }

    /// When it has done for too long what it is doing.
    pub fn deadline(&self, write_timeout: Duration) -> Option<Instant> {
        match self.doing.as_deref() {
            Some(Doing::Blocked { since, .. }) => Some(*since + write_timeout),
            Some(Doing::Lingering { until }) => Some(*until),
            Some(Doing::Opening(_) | Doing::Reading { .. }) | None => None,
        }
    }

    /// Whether a read is on its way.
    pub fn is_reading(&self) -> bool {
        matches!(self.doing.as_deref(), Some(Doing::Reading { .. }))
    }

    pub fn is_lingering(&self) -> bool {
        matches!(self.doing.as_deref(), Some(Doing::Lingering { .. }))
    }

    /// Whether the connection is to be given back after this end.
    pub fn goes_on_after(&self, end: End) -> bool {
        end == End::Proper && self.afterwards == Afterwards::GoOn
    }

    pub fn give_back(self) -> GivenBack {
        let ahead = self.ahead.map_or_else(Bytes::new, |ahead| *ahead);
        GivenBack { socket: self.socket, ahead, seat: self.seat }
    }

    /// Says that nothing more comes. True when the client may still be sending, so that closing would reset it.
    pub fn shut(&self) -> bool {
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
        self.afterwards == Afterwards::CloseUnread || self.ahead.is_some() || matches!(self.throw_away(), Thrown::Some)
    }

    /// Reads and throws away a bounded number of bytes.
    pub fn throw_away(&self) -> Thrown {
        let mut scrap = [0; 16 << 10];
        match (&self.socket).read(&mut scrap) {
            Ok(0) => Thrown::End,
            Ok(_) => Thrown::Some,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted) => {
                Thrown::None
            }
            Err(_) => Thrown::End,
        }
    }

    /// Its socket is to be reset when it closes: what the kernel still holds of it is for nobody.
    pub fn reset(&self) {
        let _ = SockRef::from(&self.socket).set_linger(Some(Duration::ZERO));
    }
}

/// What there was to throw away.
pub enum Thrown {
    None,
    Some,
    End,
}

#[cfg(test)]
mod tests {
    use super::Follower;

    /// With its place in the hub (56 bytes and two short entries) an idle subscriber is to stay well below 256 bytes.
    #[test]
    fn one_that_waits_is_small() {
        assert!(size_of::<Option<Follower>>() <= 112, "{}", size_of::<Option<Follower>>());
    }
}
