//! What must hold of a run, and whether it did.

use std::time::Duration;

use crate::readers::Everyone;
use crate::samples::Sample;

/// How much the last third of the windows may lie above the first: medians, so that one window does not decide.
const MEMORY_GROWS_MAX: f64 = 1.10;
/// Besides, as an allocator's pages settle for some minutes.
const MEMORY_SETTLES: f64 = 8.0 * 1024.0 * 1024.0;
const FILES_GROW_MAX: f64 = 1.10;
const DISK_GROWS_MAX: f64 = 1.25;
/// Latencies of a machine that other programs share are less steady.
const LATENCY_GROWS_MAX: f64 = 2.0;
/// An overload is to be over within so long.
const RECOVERY: Duration = Duration::from_secs(10);

/// What three times the capacity did.
pub struct Overload {
    /// Events a second.
    pub offered: f64,
    pub sample: Sample,
    /// Until publishes and deliveries were as quick as before, within a factor of 2.
    pub recovered: Option<Duration>,
    pub after: Sample,
}

pub struct Verdict {
    pub minutes: f64,
    pub capacity: f64,
    pub samples: Vec<Sample>,
    pub overload: Overload,
    pub everyone: Everyone,
    /// What the server said on stderr that was a warning or worse.
    pub said: String,
    /// What readers and publishers found wrong.
    pub found: Vec<String>,
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// A thing that is to stay as it is: its name, unit, medians of the first and the last third, and the most that the last may be.
pub struct Flat {
    pub what: &'static str,
    pub unit: &'static str,
    pub first: f64,
    pub last: f64,
    pub most: f64,
}

const MIB: f64 = 1024.0 * 1024.0;

impl Verdict {
    pub fn flat(&self) -> Vec<Flat> {
        let third = self.samples.len() / 3;
        let one = |what, unit, of: fn(&Sample) -> f64, factor: f64, more: f64| {
            let first = median(self.samples[..third].iter().map(of));
            let last = median(self.samples[self.samples.len() - third..].iter().map(of));
            Flat { what, unit, first, last, most: first * factor + more }
        };
        vec![
            one("memory", "MiB", |s| s.looked.memory / MIB, MEMORY_GROWS_MAX, MEMORY_SETTLES / MIB),
            one("open files", "", |s| s.looked.files, FILES_GROW_MAX, 0.0),
            one("disk", "MiB", |s| s.looked.disk / MIB, DISK_GROWS_MAX, 0.0),
            one("publish p50", "ms", |s| s.publish_p50, LATENCY_GROWS_MAX, 0.0),
            one("publish p99", "ms", |s| s.publish_p99, LATENCY_GROWS_MAX, 0.0),
            one("delivery p50", "ms", |s| s.delivery_p50, LATENCY_GROWS_MAX, 0.0),
            one("delivery p99", "ms", |s| s.delivery_p99, LATENCY_GROWS_MAX, 0.0),
        ]
    }

    /// Everything that is not as it must be.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.found.clone();
        let grown = self.flat().into_iter().filter(|flat| flat.last > flat.most);
        faults.extend(
            grown.map(|flat| format!("{} went from {:.2} to {:.2} {}", flat.what, flat.first, flat.last, flat.unit)),
        );
        if self.everyone.behind > 0 {
            faults.push(format!(
                "{} of {} readers did not come to the tail",
                self.everyone.behind, self.everyone.readers
            ));
        }
        match self.overload.recovered {
            Some(took) if took <= RECOVERY => {}
            Some(took) => faults.push(format!("it took {:.1} s to recover from the overload", took.as_secs_f64())),
            None => faults.push("it did not recover from the overload".to_owned()),
        }
        if !self.said.is_empty() {
            faults.push(format!("the server said: {}", self.said));
        }
        faults
    }

    pub fn text(&self) -> String {
        let flat = self.flat().into_iter().map(|Flat { what, unit, first, last, most }| {
            format!("{what:13} {first:10.2} -> {last:10.2} {unit} (at most {most:.2})")
        });
        let Everyone { readers, events, reconnects, .. } = self.everyone;
        let seen = format!("{readers} readers saw {events} events over {} connections", readers + reconnects);
        let recovered =
            self.overload.recovered.map_or("never".to_owned(), |took| format!("after {:.1} s", took.as_secs_f64()));
        let overload = format!(
            "overload: {:.0} events/s offered, {:.0} answered, {:.0} publishes refused; well again {recovered}",
            self.overload.offered, self.overload.sample.acked_rate, self.overload.sample.refused
        );
        let faults = self.faults().into_iter().map(|fault| format!("WRONG: {fault}"));
        flat.chain([seen, overload]).chain(faults).collect::<Vec<_>>().join("\n")
    }
}
