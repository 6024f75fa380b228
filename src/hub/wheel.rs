//! A wheel of heartbeats: one entry a subscriber, swept tick by tick, instead of a timer each.

use std::time::Duration;

use super::SubscriberKey;
use crate::event::Millis;

/// Ticks to a heartbeat: it is late by at most one of them.
const TICKS: u64 = 32;

pub struct Wheel {
    heartbeat: Millis,
    tick: Millis,
    /// By due time, modulo the length of the wheel: a heartbeat and one tick more.
    slots: Vec<Vec<SubscriberKey>>,
    /// The next tick to sweep.
    next: u64,
}

impl Wheel {
    pub fn new(heartbeat: Duration) -> Self {
        let heartbeat = u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX).max(1);
        let tick = (heartbeat / TICKS).max(1);
        let slots = usize::try_from(heartbeat / tick + 2).unwrap_or(usize::MAX);
        Self { heartbeat, tick, slots: vec![Vec::new(); slots], next: 0 }
    }

    pub fn insert(&mut self, key: SubscriberKey, now: Millis) {
        if self.next == 0 {
            self.next = now / self.tick;
        }
        self.put(key, now + self.heartbeat);
    }

    fn put(&mut self, key: SubscriberKey, due: Millis) {
        // Rounded up, so that it is never early; kept within the wheel, so that it is never a turn late.
        let at = due.div_ceil(self.tick).clamp(self.next, self.next + self.slots.len() as u64 - 1);
        let slot = at % self.slots.len() as u64;
        self.slots[usize::try_from(slot).unwrap_or(0)].push(key);
    }

    /// Sweeps up to `now`: `due` says for each entry when it is due again, or lets it go.
    pub fn turn(&mut self, now: Millis, due: &mut dyn FnMut(SubscriberKey, Millis) -> Option<Millis>) {
        let upto = now / self.tick;
        // After a long pause one turn sweeps every slot.
        self.next = self.next.max((upto + 1).saturating_sub(self.slots.len() as u64));
        while self.next <= upto {
            let slot = usize::try_from(self.next % self.slots.len() as u64).unwrap_or(0);
            self.next += 1;
            for key in std::mem::take(&mut self.slots[slot]) {
                if let Some(again) = due(key, self.heartbeat) {
                    self.put(key, again);
                }
            }
        }
    }
}
