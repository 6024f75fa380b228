//! What threads share memory and wait for each other with: every lock, condition, thread and task that the rooms of this house
//! synchronise by hand comes from here.
//!
//! What holds: these are other crates' own items under their own names, nothing is wrapped. They have one door so that
//! `tests/threads` can compile the same rooms against primitives whose schedule it chooses.

pub use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

/// Threads.
pub mod thread {
    pub use std::thread::{Builder, JoinHandle, ThreadId, current, panicking};
}

/// Channels between threads.
pub mod mpsc {
    pub use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
}

/// Tasks.
pub mod task {
    pub use tokio::task::{spawn, spawn_blocking};

    /// Waits for an answer on a thread that may block.
    ///
    /// # Errors
    /// When none comes.
    pub fn wait<T>(answer: tokio::sync::oneshot::Receiver<T>) -> Result<T, tokio::sync::oneshot::error::RecvError> {
        answer.blocking_recv()
    }
}

/// When waiting ends.
pub mod time {
    pub use std::time::Instant;
    pub use tokio::time::{sleep, timeout};
}
