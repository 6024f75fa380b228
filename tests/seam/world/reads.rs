//! Reads of the log, as `stream` asks for them and does them: who comes to the same place waits for whoever reads there already.

use std::cell::Cell;

use tidelog::store::Store;
use tidelog::subscription::shared::{Lead, LogDone, Turn};
use tidelog::subscription::{Came, Meanwhile, Stretch, read, read_on};

use super::World;
use super::bundles::Slot;
use super::clients::State;

/// Somebody who reads for all that come by, block by block while others do something else. (Where reads are not fine, [`read_on`] does it, as
/// in a server.)
pub struct Fetching {
    lead: Option<Lead>,
    stretch: Stretch,
    done: Option<LogDone>,
}

impl World {
    /// Asks for a stretch of the log.
    pub(super) fn ask_log(&mut self, stretch: Stretch) -> Result<State, String> {
        let slot = Slot::default();
        match self.shared.turn(&stretch, self.store.floors_told(), slot.asker()) {
            Turn::Known(read) => {
                self.count("reads shared");
                return Ok(State::WasRead(Came::Log(read)));
            }
            Turn::Wait if !self.setting.fine_reads => {
                return Err("a read is under way, though each is done in one step".into());
            }
            Turn::Wait => self.count("reads shared"),
            Turn::Lead(lead) if self.setting.fine_reads => {
                self.fetching.push(Fetching { lead: Some(lead), stretch, done: None });
            }
            Turn::Lead(lead) => {
                let blocks = Cell::new(0);
                let count = || blocks.set(blocks.get() + 1);
                read_on(&*self.store, lead, stretch, &Meanwhile { offer: || (), count, is_alone: || false });
                let done = slot.take().ok_or("a read that was done in one step answered nobody")?;
                let what = if done.is_ok() { "reads of the log" } else { "reads failed" };
                (0..blocks.get()).for_each(|_| self.count(what));
                match done {
                    Ok(came) => return Ok(State::WasRead(came)),
                    failed => slot.put(failed),
                }
            }
        }
        Ok(State::Fetched(slot))
    }

    /// Reads, or hands out what was read, and goes on as long as somebody keeps up.
    pub(super) fn fetch(&mut self, at: usize) {
        let fetching = &mut self.fetching[at];
        let Some(done) = fetching.done.take() else {
            match fetching.lead.take().and_then(Lead::wanted) {
                Some(lead) => {
                    let done = read(&*self.store, &fetching.stretch, || lead.is_waited_for()).map_err(Into::into);
                    fetching.lead = Some(lead);
                    let what = if done.is_ok() { "reads of the log" } else { "reads failed" };
                    fetching.done = Some(done);
                    self.count(what);
                }
                None => drop(self.fetching.remove(at)),
            }
            return;
        };
        let Fetching { lead, stretch, .. } = self.fetching.remove(at);
        let told = self.store.floors_told();
        if let Some((lead, stretch)) = lead.and_then(|lead| lead.done(stretch, told, &done)) {
            self.fetching.insert(at, Fetching { lead: Some(lead), stretch, done: None });
        }
    }
}
