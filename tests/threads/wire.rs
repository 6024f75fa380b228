//! The inbox of a thread of the wire (`server/wire/inbox.rs`), with the kernel's own eventfd and epoll, watched by edges as there, and
//! the whole way from the hub through a door (`hub/wake.rs`) to the followers behind it.
//!
//! The thread here sleeps as the one there: it looks into its inbox only when the bell has rung. When everybody else has ended and
//! the bell is silent, whatever still lies in the inbox is lost.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use shuttle::sync::atomic::{AtomicUsize, Ordering};

use self::inbox::{Inbox, Mail, ReadDone};
use crate::event::{Event, EventId};
use crate::hub::wake::{self, Door as _, SharedDoor, Wake};
use crate::hub::{self, Hub, Place, SubscriberKey};
use crate::store::StoreError;
use crate::sync::Mutex;
use crate::world::{all, event, filter, go};

#[path = "../../src/server/wire/inbox.rs"]
mod inbox;

/// A connection that comes.
pub struct Fresh(u32);

/// What the thread of the wire sleeps on.
struct Bed {
    epoll: OwnedFd,
    inbox: Arc<Inbox>,
    /// How many may still put something in.
    others: Arc<AtomicUsize>,
}

impl Bed {
    fn new(others: usize) -> Self {
        let (epoll, inbox) = (epoll::create(CreateFlags::CLOEXEC).unwrap(), Arc::new(Inbox::new().unwrap()));
        epoll::add(&epoll, inbox.bell(), EventData::new_u64(0), EventFlags::IN | EventFlags::ET).unwrap();
        Self { epoll, inbox, others: Arc::new(AtomicUsize::new(others)) }
    }

    /// Sleeps until the bell rings; false when nobody is left who could ring it.
    fn sleeps(&self) -> bool {
        loop {
            // Before the bell is listened to: who has ended has rung it before.
            let nobody = self.others.load(Ordering::SeqCst) == 0;
            let mut rings = Vec::with_capacity(1);
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            if epoll::wait(&self.epoll, spare_capacity(&mut rings), Some(&at_once)).unwrap() > 0 {
                return true;
            }
            if nobody {
                return false;
            }
            shuttle::thread::yield_now();
        }
    }

    /// Another thread, which puts something in.
    fn go(&self, work: impl FnOnce(&Arc<Inbox>) + Send + 'static) -> shuttle::thread::JoinHandle<()> {
        let (inbox, others) = (self.inbox.clone(), self.others.clone());
        go(move || {
            work(&inbox);
            others.fetch_sub(1, Ordering::SeqCst);
        })
    }
}

fn put(inbox: &Arc<Inbox>, what: u32) {
    match what % 3 {
        0 => inbox.knock(&[what]),
        1 => inbox.admit(Fresh(what)),
        _ => inbox.read_done(ReadDone { place: what, serial: 0, read: Err(StoreError::Closed.into()) }),
    }
}

fn empty(mail: &mut Mail) -> Vec<u32> {
    let mut all: Vec<_> = mail.woken.drain(..).collect();
    all.extend(mail.fresh.drain(..).map(|Fresh(what)| what));
    all.extend(mail.reads.drain(..).map(|done| done.place));
    all
}

pub fn what_is_put_into_an_inbox_is_seen() {
    let bed = Bed::new(3);
    let others = [0, 10, 20].map(|from| bed.go(move |inbox| (from..from + 3).for_each(|what| put(inbox, what))));
    let (mut mail, mut seen) = (Mail::default(), Vec::new());
    while bed.sleeps() {
        bed.inbox.take(&mut mail);
        assert!(!mail.closed);
        seen.extend(empty(&mut mail));
    }
    bed.inbox.take(&mut mail);
    assert!(empty(&mut mail).is_empty(), "something came, and the bell did not ring");
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2, 10, 11, 12, 20, 21, 22]);
    all(others);
}

pub fn a_closed_inbox_wakes_its_thread_and_keeps_nothing() {
    let bed = Bed::new(3);
    let puts = |from| bed.go(move |inbox| (from..from + 3).for_each(|what| put(inbox, what)));
    let others = [puts(0), puts(10), bed.go(|inbox| inbox.close())];
    let mut mail = Mail::default();
    while !mail.closed {
        assert!(bed.sleeps(), "it was closed, and its thread sleeps on");
        empty(&mut mail);
        bed.inbox.take(&mut mail);
    }
    all(others);
    let mut left = Mail::default();
    bed.inbox.take(&mut left);
    assert!(left.closed);
    assert!(empty(&mut left).is_empty(), "what is put into a closed inbox stays there for ever");
}

/// Followers that one thread drives are woken through their door, by events, and by heartbeats between them.
pub fn behind_a_door_nobody_sleeps_over_an_event() {
    const EVENTS: EventId = 4;
    let bed = Bed::new(3);
    let door: SharedDoor = Arc::new(Box::new(bed.inbox.clone()));
    let mutex = Arc::new(Mutex::new(Hub::new(hub::Options::default(), 0)));
    let publishers = [0, 1].map(|_| {
        let hub = mutex.clone();
        bed.go(move |_| {
            for _ in 0..EVENTS / 2 {
                let wakes = {
                    let mut hub = hub.lock();
                    let id = hub.tail() + 1;
                    hub.push(vec![Event::new(id, 0, event(id))])
                };
                wake::all(wakes);
            }
        })
    });
    let heart = {
        let hub = mutex.clone();
        bed.go(move |_| {
            // Later than any heartbeat.
            for round in 1..=2 {
                let wakes = hub.lock().beat(round * 1_000_000);
                wake::all(wakes);
            }
        })
    };
    let filter = Arc::new(filter());
    let attach = || {
        let mut hub = mutex.lock();
        let tail = hub.tail();
        (hub.attach(&filter, 0, 0).0, tail)
    };
    let mut followers: Vec<(SubscriberKey, EventId)> = (0..2).map(|_| attach()).collect();
    let mut turns: Vec<u32> = vec![0, 1];
    let mut mail = Mail::default();
    loop {
        for place in turns.drain(..) {
            let (key, cursor) = &mut followers[place as usize];
            loop {
                match mutex.lock().place(*key, *cursor, 0, 0, || Wake::Door(door.clone(), place)) {
                    Place::Edge { tail } => {
                        assert_eq!(tail, *cursor, "it waits before what it has not seen");
                        break;
                    }
                    Place::Ring(batches) => {
                        assert!(batches[0].last() > *cursor);
                        *cursor = batches[0].last();
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        if !bed.sleeps() {
            break;
        }
        bed.inbox.take(&mut mail);
        turns.append(&mut mail.woken);
    }
    assert!(
        followers.iter().all(|(_, cursor)| *cursor == EVENTS),
        "an event came, and a follower sleeps: {followers:?}"
    );
    all(publishers);
    all([heart]);
}
