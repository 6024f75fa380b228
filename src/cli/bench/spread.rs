//! How durations are spread: a histogram of fixed size, for percentiles of any number of them.
//!
//! What holds: a percentile is at most 0.8% above the true one, the maximum is exact. Must not know what was timed.

use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};

/// Buckets for each power of two, as a power of two.
const FINENESS: u32 = 7;
const BUCKETS: usize = (64 - FINENESS as usize + 1) << FINENESS;

/// Durations, in nanoseconds.
#[derive(Debug, Clone)]
pub struct Spread {
    counts: Box<[u64]>,
    count: u64,
    max: u64,
}

impl Default for Spread {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into(), count: 0, max: 0 }
    }
}

impl Spread {
    /// Takes one duration in.
    pub fn add(&mut self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds)] += 1;
        self.count += 1;
        self.max = self.max.max(nanoseconds);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The duration that `fraction` of all do not exceed, in milliseconds; `None` when there is none.
    pub fn milliseconds(&self, fraction: f64) -> Option<f64> {
        // The nearest rank; a count of 2^53 is out of reach.
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let rank = ((self.count as f64 * fraction).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Some(to_milliseconds(upper(bucket).min(self.max)));
            }
        }
        None
    }

    /// The longest, in milliseconds; `None` when there is none.
    pub fn max_milliseconds(&self) -> Option<f64> {
        (self.count > 0).then(|| to_milliseconds(self.max))
    }
}

#[allow(clippy::cast_precision_loss)] // of nanoseconds, beyond months
fn to_milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// Below 2^FINENESS each value has its own bucket; above, each power of two has 2^FINENESS of them.
fn bucket(value: u64) -> usize {
    let shift = (value | 1).ilog2().saturating_sub(FINENESS);
    // At most 2^(FINENESS + 1) + 57 * 2^FINENESS.
    #[allow(clippy::cast_possible_truncation)]
    let step = (value >> shift) as usize;
    ((shift as usize) << FINENESS) + step
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let shift = (bucket >> FINENESS).saturating_sub(1);
    let step = (bucket - (shift << FINENESS)) as u64;
    (step << shift) | ((1 << shift) - 1)
}

/// In milliseconds, to the microsecond: `{"p50","p90","p99","max","samples"}`; null where there are none.
impl Serialize for Spread {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let rounded = |value: Option<f64>| value.map(|ms| (ms * 1e3).round() / 1e3);
        let mut map = to.serialize_map(Some(5))?;
        map.serialize_entry("p50", &rounded(self.milliseconds(0.5)))?;
        map.serialize_entry("p90", &rounded(self.milliseconds(0.9)))?;
        map.serialize_entry("p99", &rounded(self.milliseconds(0.99)))?;
        map.serialize_entry("max", &rounded(self.max_milliseconds()))?;
        map.serialize_entry("samples", &self.count)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_the_nearest_ranks() {
        let mut spread = Spread::default();
        assert_eq!((spread.milliseconds(0.5), spread.max_milliseconds()), (None, None));
        (1..=100).for_each(|ms| spread.add(ms * 1_000_000));
        for (fraction, want) in [(0.5, 50.0), (0.9, 90.0), (0.99, 99.0), (1.0, 100.0), (0.0, 1.0)] {
            let is = spread.milliseconds(fraction).unwrap();
            assert!((want..want * 1.008).contains(&is), "{fraction}: {is}");
        }
        assert_eq!(spread.max_milliseconds(), Some(100.0));
    }

    proptest! {
        #[test]
        fn a_bucket_holds_its_values_narrowly(value in any::<u64>()) {
            let bucket = bucket(value);
            prop_assert!(bucket < BUCKETS);
            prop_assert!(upper(bucket) >= value);
            prop_assert!(upper(bucket) - value <= value >> FINENESS);
            prop_assert!(bucket == 0 || upper(bucket - 1) < value);
        }
    }
}
