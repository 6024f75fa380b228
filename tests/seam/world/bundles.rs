//! Bundles, as `stream` asks for them and gathers them.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tidelog::event::EventId;
use tidelog::subscription::bundle::{Bundle, Heard, Turn, Wanted};
use tidelog::subscription::shared::{Asker, Done};
use tidelog::subscription::{Came, ReadingError};

use super::World;

#[derive(Debug, Default)]
struct Answer {
    done: Option<Done>,
    left: bool,
}

/// Where one who waits is answered. Dropped, it does not wait any more.
#[derive(Debug, Default)]
pub struct Slot(Arc<Mutex<Answer>>);

impl Slot {
    pub fn is_answered(&self) -> bool {
        self.0.lock().done.is_some()
    }

    pub fn take(&self) -> Option<Done> {
        self.0.lock().done.take()
    }

    pub fn put(&self, done: Done) {
        self.0.lock().done = Some(done);
    }

    pub fn asker(&self) -> Box<dyn Asker> {
        Box::new(Waiter(self.0.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.lock().left = true;
    }
}

struct Waiter(Arc<Mutex<Answer>>);

impl Asker for Waiter {
    fn waits(&self) -> bool {
        !self.0.lock().left
    }

    fn answer(self: Box<Self>, done: Done) {
        self.0.lock().done = Some(done);
    }
}

/// One who asks for a bundle.
#[derive(Debug)]
pub struct Asking {
    wanted: Wanted,
    /// What the tail was when it asked, and at which step.
    pub before: Option<(EventId, u64)>,
    trims: u64,
    heard: Option<Heard>,
    slot: Option<Slot>,
}

impl Asking {
    pub fn new(wanted: Wanted) -> Self {
        Self { wanted, before: None, trims: 0, heard: None, slot: None }
    }

    /// Whether it can: not while it waits.
    pub fn goes_on(&self) -> bool {
        self.slot.as_ref().is_none_or(Slot::is_answered)
    }
}

/// Somebody who gathers a bundle, and the next one as long as somebody has come meanwhile.
pub struct Gathering {
    wanted: Wanted,
    waiting: Vec<Box<dyn Asker>>,
    /// [`Hub::trims`](tidelog::hub::Hub::trims) of before.
    trims: Option<u64>,
    gathered: Option<(Heard, Result<Arc<Bundle>, ReadingError>)>,
    connection: usize,
    awaits: bool,
}

impl Gathering {
    pub fn goes_on(&self) -> bool {
        !self.awaits
    }

    pub fn wake(&mut self, woken: &HashSet<usize>) {
        self.awaits &= !woken.contains(&self.connection);
    }
}

impl World {
    /// Asks on; gives the bundle when it is there, or that it cannot be read.
    pub(super) fn ask_on(&mut self, asking: &mut Asking) -> Result<Option<Result<Arc<Bundle>, ReadingError>>, String> {
        let Some((tail, _)) = asking.before else {
            let hub = self.hub.lock();
            (asking.before, asking.trims) = (Some((hub.tail(), self.step)), hub.trims());
            return Ok(None);
        };
        let Some(heard) = asking.heard else {
            asking.heard = Some(Heard::of(&*self.store, asking.trims));
            return Ok(None);
        };
        if let Some(slot) = &asking.slot {
            return match slot.take() {
                Some(Ok(Came::Bundle(bundle))) => Ok(Some(Ok(bundle))),
                Some(Err(error)) => Ok(Some(Err(error))),
                other => Err(format!("who asked for a bundle was answered {other:?}")),
            };
        }
        let slot = Slot::default();
        match self.bundles.turn(&asking.wanted, tail, heard, slot.asker()) {
            Turn::Known(bundle) => {
                self.count("bundles shared");
                return Ok(Some(Ok(bundle)));
            }
            Turn::Wait => {}
            Turn::Lead(waiting) => {
                self.connections += 1;
                let (wanted, connection) = (asking.wanted.clone(), self.connections);
                self.gatherings.push(Gathering {
                    wanted,
                    waiting,
                    trims: None,
                    gathered: None,
                    connection,
                    awaits: false,
                });
            }
        }
        asking.slot = Some(slot);
        Ok(None)
    }

    pub(super) fn gather(&mut self, at: usize) {
        let gathering = &mut self.gatherings[at];
        let Some(trims) = gathering.trims else {
            gathering.trims = Some(self.hub.lock().trims());
            return;
        };
        let Some((heard, done)) = gathering.gathered.take() else {
            gathering.gathered = Some(self.bundles.gather(&*self.store, &gathering.wanted, trims));
            return;
        };
        let id = done.as_ref().ok().and_then(|bundle| bundle.at).unwrap_or(0);
        let connection = gathering.connection;
        if !self.hub.lock().has_reached(id, || connection) {
            gathering.awaits = true;
            gathering.gathered = Some((heard, done));
            return;
        }
        let waiting = std::mem::take(&mut gathering.waiting);
        let what = if done.is_ok() { "bundles gathered" } else { "reads failed" };
        *self.happened.entry(what).or_default() += 1;
        match self.bundles.done(&gathering.wanted, heard, &done, waiting) {
            Some(next) => (gathering.waiting, gathering.trims) = (next, None),
            None => drop(self.gatherings.remove(at)),
        }
    }
}
