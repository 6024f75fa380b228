//! What others tell a thread of the wire, and the bell that wakes it.
//!
//! What holds: what is put in is seen, for the bell is rung whenever something lies in an inbox that was empty; a closed inbox
//! keeps nothing. Its size is bounded by the thread's followers: each is woken at most once, and has at most one read, at a time.

use std::io::Result;
use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};

use super::Fresh;
use crate::hub::wake::Door;
use crate::subscription::shared::Done;
use crate::sync::Mutex;

/// A read that is done, for the follower in this place with this serial number.
pub struct ReadDone {
    pub place: u32,
    pub serial: u32,
    pub read: Done,
}

/// What has come in.
#[derive(Default)]
pub struct Mail {
    /// Followers to ask again.
    pub woken: Vec<u32>,
    pub fresh: Vec<Fresh>,
    pub reads: Vec<ReadDone>,
    pub closed: bool,
}

impl Mail {
    fn is_empty(&self) -> bool {
        self.woken.is_empty() && self.fresh.is_empty() && self.reads.is_empty() && !self.closed
    }
}

/// A thread's inbox.
pub struct Inbox {
    mail: Mutex<Mail>,
    /// An eventfd that is watched by edges and so is never read: each write is an edge.
    bell: OwnedFd,
}

impl Inbox {
    /// # Errors
    /// When there are no more files to be had.
    pub fn new() -> Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { mail: Mutex::default(), bell })
    }

    /// Readable, by edges, when there is mail.
    pub fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    /// Takes all that has come in; `mail`, which is empty, is given in exchange, for its room.
    pub fn take(&self, mail: &mut Mail) {
        let mut inside = self.mail.lock();
        std::mem::swap(&mut *inside, mail);
        // Under the same lock: what would still come in after that would stay for ever.
        inside.closed = mail.closed;
    }

    pub fn admit(&self, fresh: Fresh) {
        self.put(|mail| mail.fresh.push(fresh));
    }

    pub fn read_done(&self, done: ReadDone) {
        self.put(|mail| mail.reads.push(done));
    }

    pub fn close(&self) {
        self.put(|mail| mail.closed = true);
    }

    fn put(&self, put: impl FnOnce(&mut Mail)) {
        let mut mail = self.mail.lock();
        if mail.closed {
            return;
        }
        let was_empty = mail.is_empty();
        put(&mut mail);
        drop(mail);
        if was_empty && let Err(error) = rustix::io::write(&self.bell, &1_u64.to_ne_bytes()) {
            // Only a counter that is full refuses, after 2^64 rings.
            tracing::error!(%error, "cannot wake a thread of the wire");
        }
    }
}

impl Door for std::sync::Arc<Inbox> {
    fn knock(&self, places: &[u32]) {
        self.put(|mail| mail.woken.extend_from_slice(places));
    }
}
