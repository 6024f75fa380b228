//! What the rooms synchronise with here: shuttle's primitives, in the shape of `src/sync.rs`. Each call is a place where shuttle may
//! let another thread go on; that is also where a thread loses the processor when it panics, or is told that its time is over.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;

use shuttle::sync as model;

use self::clock::Instant;

/// In the shape of parking_lot's.
#[derive(Default)]
pub struct Mutex<T>(model::Mutex<T>);

pub struct MutexGuard<'a, T> {
    of: &'a model::Mutex<T>,
    /// Not there while it waits.
    held: Option<model::MutexGuard<'a, T>>,
}

const HELD: &str = "a guard is without its lock only within a wait";

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self(model::Mutex::new(value))
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { of: &self.0, held: Some(lock(&self.0)) }
    }
}

/// parking_lot knows no poison.
fn lock<T>(mutex: &model::Mutex<T>) -> model::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mutex")
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_ref().expect(HELD)
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_mut().expect(HELD)
    }
}

#[derive(Default)]
pub struct Condvar(model::Condvar);

impl Condvar {
    pub fn new() -> Self {
        Self(model::Condvar::new())
    }

    pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.held.take().expect(HELD);
        guard.held = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends by its bound only where the scenario's [`clock`] allows it: else time would save whoever is not told.
    pub fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, until: Instant) {
        if clock::reaches(until) {
            drop(guard.held.take());
            guard.held = Some(lock(guard.of));
        } else {
            self.wait(guard);
        }
    }

    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[derive(Default)]
pub struct RwLock<T>(model::RwLock<T>);

impl<T> RwLock<T> {
    pub fn new(value: T) -> Self {
        Self(model::RwLock::new(value))
    }

    pub fn read(&self) -> model::RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self) -> model::RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

pub mod thread {
    use std::any::Any;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    pub use shuttle::thread::{JoinHandle, ThreadId, current};
    pub use std::thread::panicking;

    /// What a thread dies of when the scenario has it so. Any other panic is a failure.
    pub struct Death;

    /// Whether `work` came to its end.
    pub fn survives(work: impl FnOnce()) -> bool {
        let died = |with: Box<dyn Any + Send>| if with.is::<Death>() { false } else { resume_unwind(with) };
        catch_unwind(AssertUnwindSafe(work)).map_or_else(died, |()| true)
    }

    #[derive(Default)]
    pub struct Builder(shuttle::thread::Builder);

    impl Builder {
        pub fn new() -> Self {
            Self::default()
        }

        pub fn name(self, name: String) -> Self {
            Self(self.0.name(name))
        }

        /// As the system does, it lets the others go on when one thread has died.
        pub fn spawn(self, work: impl FnOnce() + Send + 'static) -> std::io::Result<JoinHandle<()>> {
            self.0.spawn(move || {
                let _ = survives(work);
            })
        }
    }
}

pub mod mpsc {
    pub use shuttle::sync::mpsc::{RecvTimeoutError, Sender, channel};
}

pub mod task {
    use std::cell::Cell;
    use std::future::Future;
    use std::pin::Pin;

    use shuttle::future::{JoinError, JoinHandle, block_on};
    use tokio::sync::oneshot;

    use crate::world::{any, drop_after};

    std::thread_local! {
        static MORTAL: Cell<bool> = const { Cell::new(false) };
    }

    /// Whether tasks that are spawned from now on may be dropped at any await, as they are with their runtime.
    pub fn are_mortal(mortal: bool) {
        MORTAL.set(mortal);
    }

    pub fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<Option<T>> {
        let polls = if MORTAL.get() { any(4) } else { u32::MAX };
        // Boxed, as shuttle asks for no more than that it can be moved.
        let future: Pin<Box<dyn Future<Output = Option<T>> + Send>> = Box::pin(drop_after(polls, future));
        shuttle::future::spawn(future)
    }

    /// A task of shuttle's has a stack of its own and may block.
    pub fn spawn_blocking<T: Send + 'static>(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = Result<T, JoinError>> + Send {
        shuttle::future::spawn(async move { work() })
    }

    pub fn wait<T>(answer: oneshot::Receiver<T>) -> Result<T, oneshot::error::RecvError> {
        block_on(answer)
    }
}

pub mod time {
    use std::convert::Infallible;
    use std::future::Future;
    use std::time::Duration;

    pub use super::clock::{Instant, sleep};

    /// Nobody is to be saved by a bound.
    pub async fn timeout<T>(_most: Duration, future: impl Future<Output = T>) -> Result<T, Infallible> {
        Ok(future.await)
    }
}

/// The time, which stands still but for the waits that end by their bound: so many as the scenario allows, when chance will have it.
pub mod clock {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::ops::{Add, Sub};
    use std::task::Poll;
    use std::time::Duration;

    use shuttle::rand::{Rng as _, thread_rng};

    std::thread_local! {
        // All threads of an execution run on one of the system's.
        static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
        static LEFT: Cell<u32> = const { Cell::new(0) };
    }

    /// Since the execution began.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub struct Instant(Duration);

    impl Instant {
        pub fn now() -> Self {
            Self(NOW.get())
        }

        pub fn elapsed(self) -> Duration {
            NOW.get() - self.0
        }
    }

    impl Add<Duration> for Instant {
        type Output = Self;

        fn add(self, more: Duration) -> Self {
            Self(self.0 + more)
        }
    }

    impl Sub for Instant {
        type Output = Duration;

        fn sub(self, other: Self) -> Duration {
            self.0 - other.0
        }
    }

    /// Begins an execution, in which at most `waits` end by their bound.
    pub fn begin(waits: u32) {
        NOW.set(Duration::ZERO);
        LEFT.set(waits);
    }

    /// Lets time go on, for who sleeps.
    pub fn pass(time: Duration) {
        NOW.set(NOW.get() + time);
    }

    /// Comes back when so much time has passed. Whoever lets it pass polls again: nobody is woken by it.
    pub async fn sleep(time: Duration) {
        let until = NOW.get() + time;
        poll_fn(|_| if NOW.get() < until { Poll::Pending } else { Poll::Ready(()) }).await;
    }

    /// Whether the wait that begins now lasts until then.
    pub(super) fn reaches(until: Instant) -> bool {
        if LEFT.get() == 0 || thread_rng().gen_bool(0.5) {
            return false;
        }
        LEFT.set(LEFT.get() - 1);
        NOW.set(NOW.get().max(until.0));
        true
    }
}
