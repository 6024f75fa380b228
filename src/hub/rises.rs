//! The floors that were raised for one filter, in the order in which that was told.
//!
//! What holds: a reader that asks for what rose since it began is given at least the highest of that, whatever was raised before it
//! began: a floor of long ago that is higher hides none that is raised now.

use crate::sse::Floor;

/// Most rises that are kept apart. Beyond, the two oldest become one, and those who began between them are told the higher of both.
const RISES_MAX: usize = 16;

/// Ascending by number, each lower than the one before it: what is older and lower tells nobody anything.
#[derive(Debug, Default)]
pub struct Rises(Vec<(u64, Floor)>);

impl Rises {
    /// A floor was raised, by the trim of this number; numbers never fall.
    pub fn raise(&mut self, number: u64, floor: Floor) {
        while self.0.pop_if(|(_, lower)| lower.id <= floor.id).is_some() {}
        match self.0.last() {
            Some((last, _)) if *last == number => {}
            _ => self.0.push((number, floor)),
        }
        if self.0.len() > RISES_MAX {
            self.0[1].1 = self.0[0].1;
            self.0.remove(0);
        }
    }

    /// The highest floor of those that were raised after the trim of this number.
    #[must_use]
    pub fn since(&self, number: u64) -> Floor {
        let first = self.0.partition_point(|(n, _)| *n <= number);
        self.0.get(first).map_or(Floor::NONE, |(_, floor)| *floor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sse::GapReason;

    fn floor(id: u64) -> Floor {
        Floor { id, reason: GapReason::Trimmed }
    }

    proptest! {
        #[test]
        fn nothing_that_rose_since_is_hidden(
            raised in prop::collection::vec((0u64..2, 1u64..60), 0..60), descending in any::<bool>(), since in 0u64..60,
        ) {
            let mut rises = Rises::default();
            let mut number = 1;
            let mut all = Vec::new();
            for (at, (step, id)) in raised.into_iter().enumerate() {
                number += step;
                let id = if descending { 100 - at as u64 } else { id };
                rises.raise(number, floor(id));
                all.push((number, id));
            }
            let highest = all.iter().filter(|(n, _)| *n > since).map(|(_, id)| *id).max().unwrap_or(0);
            let got = rises.since(since).id;
            prop_assert!(got >= highest && (highest > 0 || got == 0), "{got} of {highest}");
            prop_assert!(rises.0.len() <= RISES_MAX);
            if rises.0.len() < RISES_MAX {
                prop_assert_eq!(got, highest);
            }
        }
    }
}
