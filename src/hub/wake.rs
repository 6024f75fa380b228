//! Whom a subscriber has woken: its task, or the thread that drives it together with many others.
//!
//! What holds: however many of a thread's subscribers are woken at once, the thread is told once. Must not know who is behind a door.

use std::sync::Arc;
use std::task::Waker;

/// A thread that drives many subscribers.
pub trait Door: Send + Sync {
    /// Wakes those of its subscribers that it numbers so.
    fn knock(&self, places: &[u32]);
}

/// A door that many subscribers know.
pub type SharedDoor = Arc<Box<dyn Door>>;

/// What wakes a subscriber. Small, as each that waits has one: so the doors, which are few, are boxed once more.
pub enum Wake {
    /// A task of its own.
    Task(Box<Waker>),
    /// The thread behind this door, which gave it this number.
    Door(SharedDoor, u32),
}

/// Wakes all of them; each door is knocked on once.
pub fn all(wakes: Vec<Wake>) {
    let mut doors: Vec<(SharedDoor, Vec<u32>)> = Vec::new();
    for wake in wakes {
        match wake {
            Wake::Task(task) => task.wake(),
            Wake::Door(door, place) => {
                // There are as many as a server has threads, so a search is short.
                match doors.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &door)) {
                    Some((_, places)) => places.push(place),
                    None => doors.push((door, vec![place])),
                }
            }
        }
    }
    for (door, places) in doors {
        door.knock(&places);
    }
}
