//! The configuration: any file, variables and `--set` are read without a panic; what is wrong is told with its key and its line; and what
//! was read, written out again, reads as the same.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tidelog::config::{Config, ConfigError, Durability, Flags, Limits, LogFormat, Source, VARIABLE_PREFIX};

thread_local!(static DIR: OnceCell<TempDir> = const { OnceCell::new() });

/// The file, and after it, each behind a zero byte, variables (those that begin as variables do) and `--set`s.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\0');
    let file = parts.next().unwrap_or_default();
    let (mut env, mut sets) = (BTreeMap::new(), Vec::new());
    for part in parts {
        match part.split_once('=') {
            Some((name, value)) if name.starts_with(VARIABLE_PREFIX) => {
                drop(env.insert(name.to_owned(), value.to_owned()));
            }
            _ => sets.push(part.to_owned()),
        }
    }
    let (path, loaded) = load(file, env, &sets);
    match loaded {
        Ok(config) => {
            let written = written(&config);
            let (_, again) = load(&written, BTreeMap::new(), &[]);
            match again {
                Ok(again) => assert_eq!(again, config, "{written}"),
                Err(error) => panic!("{error}: {written}"),
            }
        }
        Err(error) => told(&error, file, &path),
    }
}

fn load(file: &str, env: BTreeMap<String, String>, sets: &[String]) -> (PathBuf, Result<Config, ConfigError>) {
    DIR.with(|dir| {
        let path = dir.get_or_init(super::scratch).path().join("tidelog.toml");
        fs::write(&path, file).expect("a file can be written");
        let loaded = Config::load(Some(&path), env, sets, Flags::default());
        (path, loaded)
    })
}

/// An error names its key, and the line where it stands.
fn told(error: &ConfigError, file: &str, path: &Path) {
    let text = error.to_string();
    let lines = file.matches('\n').count() + 1;
    let in_file = |place: &Source| match place {
        Source::File { path: named, line } => {
            assert!(named == path && text.contains(&format!("line {line}")), "{text}");
            assert!((1..=lines).contains(line), "{text}: the file has {lines} lines");
            file.split('\n').nth(line - 1)
        }
        _ => None,
    };
    let named = |key: &str, place: &Source| {
        assert!(text.contains(key), "{text}");
        let Some(line) = in_file(place) else { return };
        let last = key.rsplit('.').next().unwrap_or(key);
        // A key may be written with escapes, or have a dot in quotes, and one that is missing stands nowhere.
        assert!(line.contains(last) || line.contains('\\') || text.contains("missing"), "{text}: {line:?}");
    };
    match error {
        ConfigError::Syntax { place, .. } => drop(in_file(place)),
        ConfigError::UnknownKey { name, place, .. } => named(name, place),
        ConfigError::Invalid { key, place, .. } => named(key, place),
        ConfigError::UnknownVariable { name, .. } => assert!(text.contains(name)),
        ConfigError::OnlyInFile { .. } | ConfigError::NotAnAssignment { .. } => {}
        ConfigError::EventLargerThanBatch { event_source, batch_source, .. } => {
            named("event_bytes_max", event_source);
            let _ = in_file(batch_source);
        }
        ConfigError::Unreadable { .. } | ConfigError::NotUnicode { .. } => panic!("{text}"),
    }
    assert!(!text.is_empty());
}

/// A file that says all of `config`.
fn written(config: &Config) -> String {
    let duration = |d: Duration| text(&format!("{}s {}ns", d.as_secs(), d.subsec_nanos()));
    let durability = match config.durability {
        Durability::Sync => "sync",
        Durability::Interval => "interval",
        Durability::Os => "os",
    };
    let format = match config.log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    let limits = &config.limits;
    let mut out = String::new();
    let mut line = |name: &str, value: String| writeln!(out, "{name} = {value}").expect("a String takes every write");
    line("listen", text(&config.listen.to_string()));
    line("data", text(config.data.to_str().expect("it came as text")));
    line("durability", text(durability));
    line("heartbeat", duration(config.heartbeat));
    line("retry", duration(config.retry));
    line("write_timeout", duration(config.write_timeout));
    line("request_timeout", duration(config.request_timeout));
    line("drain_timeout", duration(config.drain_timeout));
    line("stream_threads", config.stream_threads.to_string());
    line("publish_threads", config.publish_threads.to_string());
    line("dedupe_window", duration(config.dedupe_window));
    line("dedupe_keys_max", config.dedupe_keys_max.to_string());
    line("limits.event_bytes_max", limits.event_bytes_max.to_string());
    line("limits.batch_events_max", limits.batch_events_max.to_string());
    line("limits.batch_bytes_max", limits.batch_bytes_max.to_string());
    line("limits.topics_max", limits.topics_max.to_string());
    line("limits.connections_max", limits.connections_max.to_string());
    line(
        "cors.allow_origins",
        format!("[{}]", config.cors.allow_origins.iter().map(|o| text(o)).collect::<Vec<_>>().join(",")),
    );
    line("log.format", text(format));
    line("log.level", text(&config.log.level));
    out += "[retention]\n";
    write_limits(&mut out, &config.retention.limits, false);
    for rule in &config.retention.topics {
        writeln!(out, "[[retention.topics]]\npattern = {}", text(rule.pattern.as_str())).expect("it takes every write");
        write_limits(&mut out, &rule.limits, true);
    }
    out
}

fn write_limits(out: &mut String, limits: &Limits, of_topic: bool) {
    let Limits { max_events, max_age, max_bytes, trim_to_snapshot } = limits;
    writeln!(out, "max_events = {max_events}\nmax_age = \"{max_age}ms\"\nmax_bytes = \"{max_bytes}\"")
        .expect("it takes every write");
    if of_topic {
        writeln!(out, "trim_to_snapshot = {trim_to_snapshot}").expect("it takes every write");
    }
}

/// A TOML string. JSON's escapes are TOML's too, but JSON leaves DEL as it is.
fn text(text: &str) -> String {
    serde_json::to_string(text).expect("a text is JSON").replace('\u{7f}', "\\u007f")
}
