//! The threads of the wire, and who is served by which.

use std::io::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::inbox::Inbox;
use super::shard::Shard;
use super::{Fresh, GiveBack};

/// The threads.
pub struct Wire {
    inboxes: Vec<Arc<Inbox>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Whose turn it is. Nothing else is learnt from it: relaxed is enough.
    next: AtomicUsize,
}

impl Wire {
    /// Starts the threads. Reads from disk run on `runtime`; a socket that takes no byte for `write_timeout` is closed.
    ///
    /// # Errors
    /// When the system has no more threads or files to give.
    pub fn start(threads: usize, write_timeout: Duration, runtime: &Handle, give_back: &Arc<GiveBack>) -> Result<Self> {
        let wire = Self { inboxes: Vec::new(), threads: Mutex::default(), next: AtomicUsize::new(0) };
        (0..threads).try_fold(wire, |mut wire, number| {
            let inbox = Arc::new(Inbox::new()?);
            let shard = Shard::new(Arc::clone(&inbox), write_timeout, runtime.clone(), Arc::clone(give_back))?;
            let thread = std::thread::Builder::new().name(format!("wire-{number}")).spawn(move || shard.run())?;
            wire.inboxes.push(inbox);
            wire.threads.get_mut().push(thread);
            Ok(wire)
        })
    }

    /// Serves the rest of a stream. After [`Wire::stop`] the connection is closed.
    pub fn take(&self, fresh: Fresh) {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.inboxes[turn % self.inboxes.len()].admit(fresh);
    }

    /// Closes all that is left at once, and waits for the threads. Blocks for a moment.
    pub fn stop(&self) {
        self.inboxes.iter().for_each(|inbox| inbox.close());
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.join().is_err() {
                tracing::error!("a thread of the wire had panicked");
            }
        }
    }
}

impl Drop for Wire {
    /// Also where a server is dropped in its midst: the threads end by themselves.
    fn drop(&mut self) {
        self.inboxes.iter().for_each(|inbox| inbox.close());
    }
}
