//! What is counted while it runs, and what a window of it looks like.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::server::Looked;

/// Most latencies that are kept of one window; beyond, each new one takes the place of a random other, so that all are as likely kept.
const LATENCIES_MAX: usize = 100_000;
/// Most faults that are told one by one.
const FOUND_MAX: usize = 50;

/// Latencies of a window, in nanoseconds.
#[derive(Default)]
struct Latencies {
    kept: Vec<u64>,
    count: u64,
}

impl Latencies {
    fn add(&mut self, latency: u64) {
        self.count += 1;
        if self.kept.len() < LATENCIES_MAX {
            self.kept.push(latency);
        } else if let Some(place) =
            usize::try_from(fastrand::u64(..self.count)).ok().and_then(|at| self.kept.get_mut(at))
        {
            *place = latency;
        }
    }

    /// Milliseconds.
    fn percentile(&mut self, percent: usize) -> f64 {
        if self.kept.is_empty() {
            return 0.0;
        }
        self.kept.sort_unstable();
        self.kept[(self.kept.len() - 1) * percent / 100] as f64 / 1e6
    }
}

/// What all publishers and readers count into.
pub struct Tally {
    begun: Instant,
    publish: Mutex<Latencies>,
    delivery: Mutex<Latencies>,
    acked: AtomicU64,
    /// By a reader of everything.
    delivered: AtomicU64,
    refused: AtomicU64,
    skipped: AtomicU64,
    found: Mutex<Vec<String>>,
}

impl Tally {
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            publish: Mutex::default(),
            delivery: Mutex::default(),
            acked: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            found: Mutex::default(),
        }
    }

    /// Nanoseconds since it began.
    pub fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    pub fn at(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.begun).as_nanos()).unwrap_or(u64::MAX)
    }

    pub fn acked(&self, due: u64) {
        self.acked.fetch_add(1, Ordering::Relaxed);
        self.publish.lock().add(self.now().saturating_sub(due));
    }

    /// `everything`: by one who reads all topics.
    pub fn delivered(&self, due: u64, everything: bool) {
        if everything {
            self.delivered.fetch_add(1, Ordering::Relaxed);
        }
        self.delivery.lock().add(self.now().saturating_sub(due));
    }

    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Publishes that were due and were not sent, as all publishers waited.
    pub fn skipped(&self, n: u64) {
        self.skipped.fetch_add(n, Ordering::Relaxed);
    }

    /// Something that must not be.
    pub fn fault(&self, what: String) {
        let mut found = self.found.lock();
        if found.len() < FOUND_MAX {
            eprintln!("soak: {what}");
            found.push(what);
        }
    }

    pub fn found(&self) -> Vec<String> {
        self.found.lock().clone()
    }

    /// A window begins.
    pub fn clear(&self) {
        for counter in [&self.acked, &self.delivered, &self.refused, &self.skipped] {
            counter.store(0, Ordering::Relaxed);
        }
        *self.publish.lock() = Latencies::default();
        *self.delivery.lock() = Latencies::default();
    }

    /// A window has ended, which began `window` ago.
    pub fn sample(&self, at: Duration, window: Duration, looked: Looked) -> Sample {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let seconds = window.as_secs_f64();
        let (mut publish, mut delivery) = (self.publish.lock(), self.delivery.lock());
        Sample {
            at: at.as_secs_f64() / 60.0,
            acked_rate: count(&self.acked) / seconds,
            delivered_rate: count(&self.delivered) / f64::from(crate::readers::EVERYTHING) / seconds,
            refused: count(&self.refused),
            skipped: count(&self.skipped),
            publish_p50: publish.percentile(50),
            publish_p99: publish.percentile(99),
            delivery_p50: delivery.percentile(50),
            delivery_p99: delivery.percentile(99),
            looked,
        }
    }
}

/// A window of the run.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Minutes since it began.
    pub at: f64,
    /// Events a second.
    pub acked_rate: f64,
    pub delivered_rate: f64,
    pub refused: f64,
    pub skipped: f64,
    /// Milliseconds.
    pub publish_p50: f64,
    pub publish_p99: f64,
    pub delivery_p50: f64,
    pub delivery_p99: f64,
    pub looked: Looked,
}

impl Sample {
    pub fn line(&self) -> String {
        format!(
            "{:.0} events/s, publish p99 {:.1} ms, delivery p99 {:.1} ms, {:.0} MiB, {:.0} files",
            self.acked_rate,
            self.publish_p99,
            self.delivery_p99,
            self.looked.memory / f64::from(1 << 20),
            self.looked.files
        )
    }
}
