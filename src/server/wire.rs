//! Streams of the log over raw sockets: a few threads, each with an epoll loop over thousands of sockets, drive the cursors
//! of those that only follow.
//!
//! `plain` or hyper reads the request; then the socket comes here ([`Wire::take`]). A follower that waits is a cursor, a
//! place in the hub and a socket, without a task and without a buffer; all that has gathered since its last write leaves in one.
//! What holds: it is the same state machine as in `subscription/stream.rs`, driven by the same rules; a follower's chunk
//! is full at `chunk::WRITE_BYTES`, and it has no more than one on its way, nor more than one read; each gets a bounded share of a turn; a stream that ends
//! properly gives its connection back, and one that breaks off has its last bytes in the socket before it is shut.
//! Must not know requests, nor how events are encoded.

#[cfg(target_os = "linux")]
mod chunk;
#[cfg(target_os = "linux")]
mod follower;
#[cfg(target_os = "linux")]
mod inbox;
#[cfg(not(target_os = "linux"))]
mod none;
#[cfg(target_os = "linux")]
mod round;
#[cfg(target_os = "linux")]
mod shard;
#[cfg(all(test, target_os = "linux"))]
mod tests;
#[cfg(target_os = "linux")]
mod threads;

use std::net::TcpStream;

use bytes::Bytes;

use super::Seat;
use crate::http::answer::TakenOver;

#[cfg(not(target_os = "linux"))]
pub use self::none::Wire;
#[cfg(target_os = "linux")]
pub use self::threads::Wire;

/// More threads do not write faster: from here on it is the kernel's work that counts, and the other cores have other work.
pub const THREADS_MAX: usize = 4;

/// How many threads there are to be on this machine, where there may be `most`.
pub fn threads(most: usize) -> usize {
    if cfg!(not(target_os = "linux")) {
        return 0;
    }
    std::thread::available_parallelism().map_or(1, usize::from).min(most)
}

/// A connection whose stream begins. Where there is no room for it any more, as after [`Wire::stop`], it is closed as it is.
pub struct Fresh {
    /// Non-blocking.
    pub socket: TcpStream,
    /// The stream's head and first bytes, where they are not written yet: they leave together with what follows.
    pub opening: Vec<u8>,
    /// Bytes of the next request, which were read already.
    pub ahead: Bytes,
    /// Whether the connection goes on after a proper end.
    pub keep_alive: bool,
    /// Whether bytes of the request may still come, which nobody wants.
    pub unread: bool,
    pub stream: TakenOver,
    pub seat: Seat,
}

/// A connection whose stream has ended properly.
pub struct GivenBack {
    /// Non-blocking.
    pub socket: TcpStream,
    pub ahead: Bytes,
    pub seat: Seat,
}

/// What takes connections back. Called on a thread of the wire, so it must not block.
pub type GiveBack = dyn Fn(GivenBack) + Send + Sync;
