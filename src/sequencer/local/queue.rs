//! What waits for the writer, and the writer itself while nobody works with it.
//!
//! What holds: one thread at a time has the writer, and does all that waited when it took it. What is *sent* the sequencer's thread
//! sees to; what is *left*, whoever left it, who waits for the writer where another thread has it. Should a thread panic while it has
//! the writer, nothing is written any more, and everybody is told.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use super::{Refusal, Request, TICK, UnderWay, Worker};
use crate::store::StoreError;
use crate::sync::time::Instant;
use crate::sync::{Condvar, Mutex, MutexGuard, thread};

/// The writer has ended.
#[derive(Debug)]
pub struct Ended;

/// The way to the writer. Cheap to clone.
#[derive(Clone)]
pub struct Requests {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Wakes the sequencer's thread.
    asked: Condvar,
    /// Wakes one of those who wait for the writer to do what they have left.
    returned: Condvar,
    refusal: Refusal,
    under_way: Arc<UnderWay>,
}

struct State {
    /// Bounded by the shares that requests hold.
    queue: Vec<Request>,
    /// How many of them were sent.
    sent: usize,
    /// Empty; its room is used again.
    spare: Vec<Request>,
    /// Here while nobody works with it.
    writer: Option<Box<Worker>>,
    /// How many wait for it besides the sequencer's thread.
    waiting: usize,
    ended: bool,
}

impl Requests {
    pub(super) fn new(writer: Box<Worker>, refusal: Refusal, under_way: Arc<UnderWay>) -> Self {
        let (queue, spare) = (Vec::new(), Vec::new());
        let state = State { queue, sent: 0, spare, writer: Some(writer), waiting: 0, ended: false };
        let (asked, returned) = (Condvar::new(), Condvar::new());
        Self { shared: Arc::new(Shared { state: Mutex::new(state), asked, returned, refusal, under_way }) }
    }

    /// Asks; the sequencer's thread does it.
    ///
    /// # Errors
    /// `Ended` after [`Request::Stop`].
    pub fn send(&self, request: Request) -> Result<(), Ended> {
        let mut state = self.put(request)?;
        state.sent += 1;
        // Else it was woken already, or is woken when the writer is given back.
        if state.sent == 1 && state.writer.is_some() {
            drop(state);
            self.shared.asked.notify_one();
        }
        Ok(())
    }

    /// Asks; the caller is to call [`Requests::work`] soon. Gives how many requests wait now.
    ///
    /// # Errors
    /// As [`Requests::send`].
    pub fn leave(&self, request: Request) -> Result<usize, Ended> {
        Ok(self.put(request)?.queue.len())
    }

    /// How many requests wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().queue.len()
    }

    /// How long what the writer does now has taken so far: a commit, or another write. Zero while it does nothing.
    #[must_use]
    pub fn under_way(&self) -> Duration {
        self.shared.under_way.time()
    }

    fn put(&self, request: Request) -> Result<MutexGuard<'_, State>, Ended> {
        let mut state = self.shared.state.lock();
        if state.ended {
            return Err(Ended);
        }
        state.queue.push(request);
        Ok(state)
    }

    /// Does all that waits on this thread, or waits for whoever took it. Blocks on the disk.
    pub fn work(&self) {
        let mut state = self.shared.state.lock();
        while !state.queue.is_empty() {
            if state.writer.is_some() {
                drop(self.work_once(state));
                return;
            }
            state.waiting += 1;
            self.shared.returned.wait(&mut state);
            state.waiting -= 1;
        }
    }

    /// One turn with the writer, when it is here.
    fn work_once<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let Some(mut writer) = state.writer.take() else { return state };
        let mut requests = std::mem::take(&mut state.spare);
        std::mem::swap(&mut state.queue, &mut requests);
        state.sent = 0;
        drop(state);
        let deathbed = Deathbed(&self.shared);
        let goes_on = writer.work(&mut requests);
        writer.tick_if_due();
        drop(deathbed);
        let mut state = self.shared.state.lock();
        state.writer = Some(writer);
        state.spare = requests;
        if goes_on == ControlFlow::Break(()) {
            self.shared.end(&mut state);
        } else if state.waiting > 0 {
            // It does what was sent as well.
            self.shared.returned.notify_one();
        } else if state.sent > 0 {
            self.shared.asked.notify_one();
        }
        state
    }

    /// What the sequencer's thread does.
    pub(super) fn work_until_stopped(&self) {
        let mut state = self.shared.state.lock();
        while !state.ended {
            let tick = state.writer.as_ref().map(|writer| writer.next_tick());
            // While another thread has the writer, that one sees to the tick.
            let wake = tick.unwrap_or_else(|| Instant::now() + TICK);
            let due = tick.is_some_and(|tick| tick <= Instant::now());
            if tick.is_some() && (state.sent > 0 || due) && state.waiting == 0 {
                state = self.work_once(state);
            } else {
                self.shared.asked.wait_until(&mut state, wake);
            }
        }
    }
}

impl Shared {
    fn end(&self, state: &mut State) {
        state.ended = true;
        // Those who wait for an answer see that none comes.
        state.queue.clear();
        self.asked.notify_one();
        self.returned.notify_all();
    }
}

/// Says, should a thread panic while it has the writer, that nothing is written any more.
struct Deathbed<'a>(&'a Shared);

impl Drop for Deathbed<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let died = StoreError::Io { doing: "writing", cause: "the writer has died; restart the server".into() };
            *self.0.refusal.write() = Some(died);
            self.0.end(&mut self.0.state.lock());
        }
    }
}
