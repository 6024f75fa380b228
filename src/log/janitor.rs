//! What goes on in the background: retention, sealing, giving back the disk, and the heartbeats of those who wait.
//!
//! Two threads. What holds: a trim passes through the sequencer like every write; a slow disk holds up no heartbeat.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::event::Millis;
use crate::hub::{
    Hub,
    wake::{self, Wake},
};
use crate::sequencer::local::{Request, Requests, Ticket};
use crate::store::{Policy, Store, StoreError};
use crate::sync::mpsc::{self, RecvTimeoutError, Sender};
use crate::sync::thread::{Builder, JoinHandle};
use crate::sync::{Mutex, task};

/// How often retention is looked at. The promise is within ten seconds.
const ROUND: Duration = Duration::from_secs(1);

/// Most floors that rise in one write, at some 2 µs each: publishers wait for it.
const TRIMS_AT_ONCE: usize = 1024;

/// Heartbeats are late by at most so much, or by a thirty-second of a heartbeat where that is more.
const BEAT_MIN: Duration = Duration::from_millis(10);
const BEAT_MAX: Duration = Duration::from_millis(500);

/// The two threads; they end when it is stopped or dropped.
pub struct Janitor {
    stop: Vec<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Janitor {
    /// `clock` is the time of day, by which events age; `uptime` never goes back.
    ///
    /// # Errors
    /// When the system has no threads to give.
    pub fn start(
        store: Arc<dyn Store>,
        requests: Requests,
        (policy, clock): (Policy, fn() -> Millis),
        hub: Arc<Mutex<Hub<Wake>>>,
        (heartbeat, uptime): (Duration, fn() -> Millis),
    ) -> io::Result<Self> {
        let mut janitor = Self { stop: Vec::new(), threads: Vec::new() };
        let mut told = String::new();
        janitor.every("janitor", ROUND, move || {
            let failed = round(&*store, &requests, &policy, clock()).err().map(|e| e.to_string()).unwrap_or_default();
            // Once, not every second until it is mended.
            if !failed.is_empty() && failed != told {
                tracing::warn!(error = failed, "retention and sealing could not be done; trying again");
            }
            told = failed;
        })?;
        janitor.every("heartbeat", (heartbeat / 32).clamp(BEAT_MIN, BEAT_MAX), move || {
            let wakes = hub.lock().beat(uptime());
            wake::all(wakes);
        })?;
        Ok(janitor)
    }

    fn every(&mut self, name: &str, period: Duration, mut work: impl FnMut() + Send + 'static) -> io::Result<()> {
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = Builder::new().name(name.into()).spawn(move || {
            while stopped.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                work();
            }
        })?;
        self.stop.push(stop);
        self.threads.push(thread);
        Ok(())
    }

    /// Waits until what is being done is done.
    pub fn stop(self) {
        drop(self.stop);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a background thread had panicked");
            }
        }
    }
}

fn round(store: &dyn Store, requests: &Requests, policy: &Policy, now: Millis) -> Result<(), StoreError> {
    let trims = store.due_trims(policy, now)?;
    for some in trims.chunks(TRIMS_AT_ONCE) {
        let (ticket, answered) = Ticket::new(None);
        if requests.send(Request::Trim { trims: some.to_vec(), ticket }).is_err() {
            return Ok(());
        }
        task::wait(answered).unwrap_or(Err(StoreError::Closed))?;
    }
    store.tidy()
}
