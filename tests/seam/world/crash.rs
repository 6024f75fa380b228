//! The process dies, at any step, and another begins over what the disk still has.

use std::sync::Arc;

use tidelog::store::model::{Failing, Write};
use tidelog::store::{Durability, Store};

use super::clients::Stage;
use super::writer::{Waiting, forget_woken, writer};
use super::{Bundles, Judged, Runs, World, metrics, new_hub};

impl World {
    /// Of what was not synced the first `kept` writes survive. `within`: it dies in the midst of the writer's next step, and what that
    /// would have written is there or not.
    pub(super) fn crash(&mut self, kept: usize, within: Option<bool>) -> Judged {
        self.count("crashes");
        if let Some(found) = within.filter(|_| !self.writer.is_idle()) {
            // What it is told of its write it does not live to tell.
            self.store.set_failing(if found { Failing::Written } else { Failing::Unwritten });
            self.count(if self.writer.is_about_to_commit() {
                "crashes within a commit"
            } else {
                "crashes within a step"
            });
            self.writer.step();
        }
        let unsynced = self.store.unsynced();
        let lost = self.store.crash(kept);
        if lost > 0 {
            self.count("crashes that took unsynced writes");
            self.add("writes lost", lost as u64);
        }
        if lost > 0 && (self.setting.durability == Durability::Sync || lost > unsynced) {
            return Err(format!("{lost} writes are gone"));
        }
        self.begin_again(lost)
    }

    /// It is stopped in good order: nothing is gone, and no id is skipped.
    pub(super) fn restart(&mut self) -> Judged {
        if !self.writer.is_idle() || self.refusal.read().is_some() || self.store.writable().is_err() {
            return Ok(());
        }
        if self.store.close().is_err() {
            // It is not in good order then, though nothing that was written is forgotten.
            return self.crash(usize::MAX, None);
        }
        self.count("restarts");
        let holes = self.facts.holes.len();
        let lost = self.store.crash(0);
        self.begin_again(lost)?;
        if lost > 0 || self.facts.holes.len() > holes {
            return Err(format!("{lost} writes are gone, or ids were skipped, by a stop in good order"));
        }
        Ok(())
    }

    fn begin_again(&mut self, lost: usize) -> Judged {
        self.step += 1;
        let seen = self.tail();
        self.facts.crash(lost, self.step)?;
        for waiting in std::mem::take(&mut self.waiting) {
            if let Waiting::Publish(_, publish, _) = waiting
                && publish.key.is_some()
            {
                self.in_doubt.push(publish);
            }
        }
        for write in self.store.take_written() {
            self.note(|| format!("  found: {write:?}"));
            if let Write::Commit(events, _) = &write {
                let events = events.clone();
                self.count("commits found after a crash");
                self.facts.learn(write, self.step)?;
                self.ledger.written(&events, &self.facts)?;
            } else {
                self.facts.learn(write, self.step)?;
            }
        }
        // Nobody was there to be told of what was found just now.
        self.facts.crash(0, self.step)?;
        self.ledger.crash(&self.facts);
        if self.store.tail() != self.facts.tail || self.store.tail() < seen {
            return Err(format!("the log ends at {}, and {seen} was shown", self.store.tail()));
        }
        self.hub = new_hub(&self.setting, self.store.tail());
        self.runs = Runs::default();
        (self.writer, self.refusal) = writer(&self.store, &self.hub, self.setting.durability, metrics());
        (self.shared, self.bundles) = (Arc::default(), Bundles::default());
        forget_woken();
        self.fetching.clear();
        self.gatherings.clear();
        (self.is_full, self.is_unreadable, self.skip) = (false, false, 0);
        (self.trims, self.published) = (0, self.store.times_published());
        for at in 0..self.clients.len() {
            if !matches!(self.clients[at].stage, Stage::Gone) {
                self.leave(at);
            }
        }
        self.step += 1;
        Ok(())
    }
}
