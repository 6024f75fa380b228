//! Every key there is: its name, what it is for, how it is read and how it is shown.
//!
//! One table, so that the file, the variables, `--set`, the help and the tests cannot know different keys.
//! `[[retention.topics]]` alone is no row here: it is a list of tables, which only a file can write.

use std::time::Duration;

use super::value::{MustBe, Value, show_duration, show_size};
use super::{Config, Durability, LogFormat};
use crate::event::EVENT_ID_MAX;
use crate::log::Limits;

/// One key.
pub(super) struct Key {
    /// With dots for nesting.
    pub name: &'static str,
    /// What it is for, in a few words.
    pub help: &'static str,
    pub set: fn(&mut Config, &Value) -> Result<(), MustBe>,
    /// The value, as it would be written.
    pub get: fn(&Config) -> String,
}

/// The key that is a list of tables.
pub(super) const RULES: &str = "retention.topics";

const MILLISECOND: Duration = Duration::from_millis(1);
/// No timer needs more, and sums with the clock stay far from overflow.
const DAY: Duration = Duration::from_secs(86_400);
/// Answers to repeated requests are kept that long at most: they lie in the store meanwhile.
const YEAR: Duration = Duration::from_secs(365 * 86_400);
/// A batch is held in memory whole, its frames are up to seven times as large, and lengths are 32-bit numbers on disk.
const BATCH_BYTES_MOST: u64 = 256 << 20;
/// Each event costs some memory besides its bytes while its batch is built.
const BATCH_EVENTS_MOST: u64 = 1_000_000;
/// Each costs some 50 bytes of memory.
const DEDUPE_KEYS_MOST: u64 = 1_000_000_000;
/// No machine writes faster with more.
const PUBLISH_THREADS_MOST: u64 = 64;
const STREAM_THREADS_MOST: u64 = 64;
/// Topics are numbered with 32 bits on disk.
const TOPICS_MOST: u64 = u32::MAX as u64;

pub(super) const DURABILITIES: &[(&str, Durability)] =
    &[("sync", Durability::Sync), ("interval", Durability::Interval), ("os", Durability::Os)];

pub(super) const FORMATS: &[(&str, LogFormat)] = &[("text", LogFormat::Text), ("json", LogFormat::Json)];

pub(super) const KEYS: &[Key] = &[
    Key {
        name: "listen",
        help: "address and port; port 0 picks a free one",
        set: |c, v| v.address().map(|read| c.listen = read),
        get: |c| c.listen.to_string(),
    },
    Key {
        name: "data",
        help: "directory of the log; created when missing",
        set: |c, v| v.text("the path of a directory").map(|read| c.data = read.into()),
        get: |c| c.data.display().to_string(),
    },
    Key {
        name: "durability",
        help: "when a publish is answered: sync (on disk), interval, os",
        set: |c, v| v.choice(DURABILITIES).map(|read| c.durability = read),
        get: |c| name_of(DURABILITIES, c.durability),
    },
    Key {
        name: "heartbeat",
        help: "silence on a stream after which a heartbeat is sent",
        set: |c, v| v.duration(MILLISECOND..=DAY).map(|read| c.heartbeat = read),
        get: |c| show_duration(c.heartbeat),
    },
    Key {
        name: "retry",
        help: "how long clients wait before they reconnect (±50%)",
        set: |c, v| v.duration(MILLISECOND..=DAY).map(|read| c.retry = read),
        get: |c| show_duration(c.retry),
    },
    Key {
        name: "write_timeout",
        help: "a socket that takes no byte for this long is closed",
        set: |c, v| v.duration(MILLISECOND..=DAY).map(|read| c.write_timeout = read),
        get: |c| show_duration(c.write_timeout),
    },
    Key {
        name: "request_timeout",
        help: "time a client has to send a whole request",
        set: |c, v| v.duration(MILLISECOND..=DAY).map(|read| c.request_timeout = read),
        get: |c| show_duration(c.request_timeout),
    },
    Key {
        name: "drain_timeout",
        help: "time for what is in flight when the server stops",
        set: |c, v| v.duration(Duration::ZERO..=DAY).map(|read| c.drain_timeout = read),
        get: |c| show_duration(c.drain_timeout),
    },
    Key {
        name: "stream_threads",
        help: "most threads that write streams; 0: tasks do",
        set: |c, v| v.count(0..=STREAM_THREADS_MOST).map(|read| c.stream_threads = length(read)),
        get: |c| c.stream_threads.to_string(),
    },
    Key {
        name: "publish_threads",
        help: "most threads that serve publishers; 0: tasks do",
        set: |c, v| v.count(0..=PUBLISH_THREADS_MOST).map(|read| c.publish_threads = length(read)),
        get: |c| c.publish_threads.to_string(),
    },
    Key {
        name: "dedupe_window",
        help: "how long an Idempotency-Key is remembered",
        set: |c, v| v.duration(MILLISECOND..=YEAR).map(|read| c.dedupe_window = read),
        get: |c| show_duration(c.dedupe_window),
    },
    Key {
        name: "dedupe_keys_max",
        help: "most Idempotency-Keys that are remembered",
        set: |c, v| v.count(1..=DEDUPE_KEYS_MOST).map(|read| c.dedupe_keys_max = read),
        get: |c| c.dedupe_keys_max.to_string(),
    },
    Key {
        name: "retention.max_events",
        help: "most events of the log; 0: no limit",
        set: |c, v| max_events(&mut c.retention.limits, v),
        get: |c| c.retention.limits.max_events.to_string(),
    },
    Key {
        name: "retention.max_age",
        help: "greatest age of an event; 0: no limit",
        set: |c, v| max_age(&mut c.retention.limits, v),
        get: |c| show_duration(Duration::from_millis(c.retention.limits.max_age)),
    },
    Key {
        name: "retention.max_bytes",
        help: "most bytes of the log's events; 0: no limit",
        set: |c, v| max_bytes(&mut c.retention.limits, v),
        get: |c| show_size(c.retention.limits.max_bytes),
    },
    Key {
        name: "limits.event_bytes_max",
        help: "largest data of an event",
        set: |c, v| bytes(v).map(|read| c.limits.event_bytes_max = read),
        get: |c| show_size(c.limits.event_bytes_max as u64),
    },
    Key {
        name: "limits.batch_events_max",
        help: "most events in one publish",
        set: |c, v| v.count(1..=BATCH_EVENTS_MOST).map(|read| c.limits.batch_events_max = length(read)),
        get: |c| c.limits.batch_events_max.to_string(),
    },
    Key {
        name: "limits.batch_bytes_max",
        help: "largest body of a publish or a snapshot",
        set: |c, v| bytes(v).map(|read| c.limits.batch_bytes_max = read),
        get: |c| show_size(c.limits.batch_bytes_max as u64),
    },
    Key {
        name: "limits.topics_max",
        help: "most topics; 0: no limit",
        set: |c, v| v.count_limit(TOPICS_MOST).map(|read| c.limits.topics_max = read),
        get: |c| c.limits.topics_max.to_string(),
    },
    Key {
        name: "limits.connections_max",
        help: "most open connections; 0: no limit",
        set: |c, v| v.count_limit(u64::from(u32::MAX)).map(|read| c.limits.connections_max = length(read)),
        get: |c| c.limits.connections_max.to_string(),
    },
    Key {
        name: "cors.allow_origins",
        help: "other web sites whose pages may use this server",
        set: |c, v| v.origins().map(|read| c.cors.allow_origins = read),
        get: |c| c.cors.allow_origins.join(","),
    },
    Key {
        name: "log.format",
        help: "of what is logged to stderr: text, json",
        set: |c, v| v.choice(FORMATS).map(|read| c.log.format = read),
        get: |c| name_of(FORMATS, c.log.format),
    },
    Key {
        name: "log.level",
        help: "off, error, warn, info, debug or trace; also by module",
        set: |c, v| level(v).map(|read| c.log.level = read),
        get: |c| c.log.level.clone(),
    },
];

/// The row of `name`.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether `name` is a table that holds keys.
pub(super) fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// The variable that sets the key `name`.
pub(super) fn variable(name: &str) -> String {
    format!("{}{}", super::VARIABLE_PREFIX, name.replace('.', "__").to_ascii_uppercase())
}

/// Sets one of the three limits; `None` when there is none of this name.
pub(super) fn set_limit(limits: &mut Limits, name: &str, value: &Value) -> Option<Result<(), MustBe>> {
    match name {
        "max_events" => Some(max_events(limits, value)),
        "max_age" => Some(max_age(limits, value)),
        "max_bytes" => Some(max_bytes(limits, value)),
        "trim_to_snapshot" => Some(value.yes().map(|read| limits.trim_to_snapshot = read)),
        _ => None,
    }
}

fn max_events(limits: &mut Limits, value: &Value) -> Result<(), MustBe> {
    value.count_limit(EVENT_ID_MAX).map(|read| limits.max_events = read)
}

fn max_age(limits: &mut Limits, value: &Value) -> Result<(), MustBe> {
    let age = value.duration_limit()?;
    // More milliseconds than 64 bits hold are 584 million years: no limit that anything could reach.
    limits.max_age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    Ok(())
}

fn max_bytes(limits: &mut Limits, value: &Value) -> Result<(), MustBe> {
    value.size_limit().map(|read| limits.max_bytes = read)
}

fn bytes(value: &Value) -> Result<usize, MustBe> {
    value.size(1..=BATCH_BYTES_MOST).map(length)
}

/// A number that its range keeps within 32 bits.
fn length(read: u64) -> usize {
    usize::try_from(read).unwrap_or(usize::MAX)
}

/// A filter of log lines. A bare word must be a level: the filter's own grammar would take a misspelt one for a module.
fn level(value: &Value) -> Result<String, MustBe> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    const MUST_BE: &str =
        "off, error, warn, info, debug or trace, and may go on with levels by module, as in info,tidelog::store=debug";
    let text = value.text(MUST_BE)?;
    let known = |part: &str| part.contains(['=', '[']) || LEVELS.contains(&part.to_ascii_lowercase().as_str());
    let parsed = tracing_subscriber::EnvFilter::builder().parse(text).is_ok();
    if parsed && text.split(',').all(known) { Ok(text.into()) } else { Err(MUST_BE.into()) }
}

fn name_of<T: Copy + PartialEq>(choices: &[(&str, T)], chosen: T) -> String {
    choices.iter().find(|(_, choice)| *choice == chosen).map_or_else(String::new, |(name, _)| (*name).into())
}
