//! What the server counts of itself, as `GET /metrics` shows it.
//!
//! One [`Metrics`] is shared by all rooms; each adds to the handles that concern it, which are atomics (the histogram
//! and the labelled ones take a short lock). Must not know any room: labels are plain names.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// The media type of what [`Metrics::render`] gives.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds: from a fast SSD's fsync (0.1 ms) to a disk on which nothing goes any more.
const COMMIT_BUCKETS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Shown from the start, at 0: a rate over a counter that first appears with its first refusal would not see that one.
const REFUSALS_SHOWN: [&str; 4] = ["overloaded", "draining", "storage_failed", "too_large"];
const GAPS_SHOWN: [&str; 3] = ["trimmed", "lost", "ahead"];

type Labelled = Family<[(&'static str, &'static str); 1], Counter>;

/// All that is counted. Clones of a handle count into the same number.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Events that became durable.
    pub events_appended: Counter,
    /// Bytes of their data.
    pub bytes_appended: Counter,
    /// Batches that the group commit wrote.
    pub commits: Counter,
    commit_seconds: Histogram,
    publish_refused: Labelled,
    /// Publishes that are remembered under an idempotency key.
    pub keys_remembered: Gauge<u64, AtomicU64>,
    /// Of them, those that were forgotten before the window had passed, as there were too many.
    pub keys_forgotten_early: Counter,
    /// Streams that are open.
    pub subscribers: Gauge,
    /// Sockets that are open.
    pub connections: Gauge,
    /// Bytes of frames that sockets were given.
    pub bytes_delivered: Counter,
    /// Batches that subscriptions read from the store, since they were not in the ring.
    pub catchup_reads: Counter,
    gaps_told: Labelled,
    /// The largest durable id.
    pub tail: Gauge<u64, AtomicU64>,
    /// The smallest retained id.
    pub earliest: Gauge<u64, AtomicU64>,
    /// Bytes of frames in the ring.
    pub ring_bytes: Gauge<u64, AtomicU64>,
    log_writable: Gauge,
    /// Seconds that the commit, or other write, has taken so far that is under way; 0 when none is.
    pub write_under_way: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// All at zero. `started` is when the process was.
    #[must_use]
    pub fn new(started: SystemTime) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            events_appended: Counter::default(),
            bytes_appended: Counter::default(),
            commits: Counter::default(),
            commit_seconds: Histogram::new(COMMIT_BUCKETS),
            publish_refused: Labelled::default(),
            keys_remembered: Gauge::default(),
            keys_forgotten_early: Counter::default(),
            subscribers: Gauge::default(),
            connections: Gauge::default(),
            bytes_delivered: Counter::default(),
            catchup_reads: Counter::default(),
            gaps_told: Labelled::default(),
            tail: Gauge::default(),
            earliest: Gauge::default(),
            ring_bytes: Gauge::default(),
            log_writable: Gauge::default(),
            write_under_way: Gauge::default(),
        };
        for code in REFUSALS_SHOWN {
            drop(metrics.publish_refused.get_or_create(&[("code", code)]));
        }
        for reason in GAPS_SHOWN {
            drop(metrics.gaps_told.get_or_create(&[("reason", reason)]));
        }
        metrics.register_log();
        metrics.register_delivery();
        metrics.register_process(started);
        metrics
    }

    /// The library adds `_total` to counters and a full stop to every help text.
    fn register_log(&mut self) {
        let all = &mut self.registry;
        all.register("tidelog_events_appended", "Events that became durable", self.events_appended.clone());
        all.register("tidelog_bytes_appended", "Bytes of data that became durable", self.bytes_appended.clone());
        all.register("tidelog_commits", "Batches written by group commit", self.commits.clone());
        all.register_with_unit(
            "tidelog_commit",
            "Time to make a batch durable",
            Unit::Seconds,
            self.commit_seconds.clone(),
        );
        all.register("tidelog_publish_refused", "Publishes refused, by error code", self.publish_refused.clone());
        all.register("tidelog_dedupe_keys", "Idempotency keys remembered", self.keys_remembered.clone());
        all.register(
            "tidelog_dedupe_keys_forgotten_early",
            "Idempotency keys forgotten within dedupe_window, as dedupe_keys_max newer ones had come",
            self.keys_forgotten_early.clone(),
        );
        all.register("tidelog_tail", "Largest durable id", self.tail.clone());
        all.register("tidelog_earliest", "Smallest retained id", self.earliest.clone());
        all.register("tidelog_log_writable", "Whether the log takes events: 1 or 0", self.log_writable.clone());
        all.register_with_unit(
            "tidelog_write_under_way",
            "Time that the write under way has taken so far, 0 when there is none",
            Unit::Seconds,
            self.write_under_way.clone(),
        );
    }

    fn register_delivery(&mut self) {
        let all = &mut self.registry;
        all.register("tidelog_subscribers", "Open streams", self.subscribers.clone());
        all.register("tidelog_connections", "Open sockets", self.connections.clone());
        all.register("tidelog_bytes_delivered", "Bytes of streams handed to sockets", self.bytes_delivered.clone());
        all.register(
            "tidelog_catchup_reads",
            "Batches that subscriptions read from disk instead of memory",
            self.catchup_reads.clone(),
        );
        all.register("tidelog_gaps_told", "Gaps that subscribers were told, by reason", self.gaps_told.clone());
        all.register("tidelog_ring_bytes", "Bytes of the newest events held in memory", self.ring_bytes.clone());
    }

    fn register_process(&mut self, started: SystemTime) {
        let all = &mut self.registry;
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        all.register("tidelog_build", "The program", version);
        // A clock before 1970 is shown as 1970.
        let started = started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(started);
        all.register_with_unit("process_start_time", "When the process started, since 1970", Unit::Seconds, gauge);
    }

    /// A batch of `events` with `bytes` of data became durable, which took `took`.
    pub fn committed(&self, events: u64, bytes: u64, took: Duration) {
        self.events_appended.inc_by(events);
        self.bytes_appended.inc_by(bytes);
        self.commits.inc();
        self.commit_seconds.observe(took.as_secs_f64());
    }

    /// A publish was answered with the error `code`.
    pub fn refused(&self, code: &'static str) {
        self.publish_refused.get_or_create(&[("code", code)]).inc();
    }

    /// A subscriber was told a gap: `trimmed`, `lost` or `ahead`.
    pub fn gap_told(&self, reason: &'static str) {
        self.gaps_told.get_or_create(&[("reason", reason)]).inc();
    }

    /// Whether the log takes events.
    pub fn set_writable(&self, writable: bool) {
        self.log_writable.set(writable.into());
    }

    /// Everything, as OpenMetrics text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        Metrics::new(UNIX_EPOCH + Duration::from_millis(1_700_000_000_500))
    }

    /// The number of one sample.
    fn sample(text: &str, name: &str) -> String {
        let line = text.lines().find(|line| line.starts_with(name) && line[name.len()..].starts_with(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}"))[name.len() + 1..].into()
    }

    #[test]
    fn every_family_is_there_from_the_start() {
        let text = metrics().render();
        for name in [
            "tidelog_events_appended_total",
            "tidelog_bytes_appended_total",
            "tidelog_commits_total",
            "tidelog_commit_seconds_count",
            "tidelog_publish_refused_total{code=\"overloaded\"}",
            "tidelog_dedupe_keys",
            "tidelog_dedupe_keys_forgotten_early_total",
            "tidelog_subscribers",
            "tidelog_connections",
            "tidelog_bytes_delivered_total",
            "tidelog_catchup_reads_total",
            "tidelog_gaps_told_total{reason=\"trimmed\"}",
            "tidelog_gaps_told_total{reason=\"lost\"}",
            "tidelog_gaps_told_total{reason=\"ahead\"}",
            "tidelog_tail",
            "tidelog_earliest",
            "tidelog_ring_bytes",
            "tidelog_log_writable",
            "tidelog_write_under_way_seconds",
        ] {
            assert_eq!(sample(&text, name).parse::<f64>(), Ok(0.0), "{name}");
        }
        let build = format!("tidelog_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
        assert_eq!(sample(&text, &build), "1");
        assert_eq!(sample(&text, "process_start_time_seconds"), "1700000000.5");
    }

    #[test]
    fn what_happens_is_counted() {
        let metrics = metrics();
        metrics.committed(3, 300, Duration::from_micros(200));
        metrics.committed(1, 10, Duration::from_secs(20));
        metrics.refused("overloaded");
        metrics.refused("bad_json");
        metrics.gap_told("lost");
        metrics.tail.set(u64::MAX);
        metrics.set_writable(true);
        let text = metrics.render();
        for (name, value) in [
            ("tidelog_events_appended_total", "4"),
            ("tidelog_bytes_appended_total", "310"),
            ("tidelog_commits_total", "2"),
            ("tidelog_commit_seconds_bucket{le=\"0.0001\"}", "0"),
            ("tidelog_commit_seconds_bucket{le=\"0.00025\"}", "1"),
            ("tidelog_commit_seconds_bucket{le=\"10.0\"}", "1"),
            ("tidelog_commit_seconds_bucket{le=\"+Inf\"}", "2"),
            ("tidelog_publish_refused_total{code=\"overloaded\"}", "1"),
            ("tidelog_publish_refused_total{code=\"bad_json\"}", "1"),
            ("tidelog_gaps_told_total{reason=\"lost\"}", "1"),
            ("tidelog_tail", "18446744073709551615"),
            ("tidelog_log_writable", "1"),
        ] {
            assert_eq!(sample(&text, name), value, "{name}");
        }
    }

    /// The rules of OpenMetrics that a scraper rejects a text for: families in one piece, each with its type and its
    /// help, names and numbers well formed, no sample twice, and the end marked.
    #[test]
    fn what_is_rendered_is_open_metrics() {
        let metrics = metrics();
        metrics.committed(3, 300, Duration::from_micros(200));
        let text = metrics.render();
        let body = text.strip_suffix("# EOF\n").expect("the end is marked");
        assert!(!body.contains("# EOF"));
        let (mut families, mut samples, mut current) = (Vec::new(), Vec::new(), String::new());
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let mut words = rest.splitn(3, ' ');
                let (kind, name, what) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                assert!(["HELP", "TYPE", "UNIT"].contains(&kind) && !what.is_empty(), "{line}");
                if kind == "HELP" {
                    assert!(!families.contains(&name.to_owned()), "{name} in two pieces");
                    families.push(name.to_owned());
                    name.clone_into(&mut current);
                }
                assert_eq!(name, current, "{line}");
                continue;
            }
            let (sample, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let name = sample.split('{').next().unwrap();
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{line}");
            let suffix = name.strip_prefix(&current).unwrap_or_else(|| panic!("{line} under {current}"));
            assert!(["", "_total", "_bucket", "_count", "_sum", "_info"].contains(&suffix), "{line}");
            assert!(!samples.contains(&sample.to_owned()), "{line} twice");
            samples.push(sample.to_owned());
        }
        assert_eq!(families.len(), 19, "{families:?}");
    }
}
