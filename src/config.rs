//! The configuration of the server: defaults, under a TOML file, under `TIDELOG_` variables, under `--set`, under flags.
//!
//! A value is checked where it is read, so what is wrong is told with the key, the place it stands at and what is
//! allowed; an unknown key is refused in every layer, so that a typo is not silence. File, variables and flags are
//! arguments: nothing here reads the process's state. Plain values only: it knows the rooms' words, no room knows it.

mod error;
mod keys;
mod value;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

pub use error::{ConfigError, Source};
use keys::{KEYS, RULES};
use value::{Value, show_size};

pub use crate::log::{Durability, Limits};
use crate::topic::Pattern;

/// What the names of all variables begin with. A variable that does is a setting, or refused.
pub const VARIABLE_PREFIX: &str = "TIDELOG_";

/// Everything that can be configured. [`Config::default`] is what holds without any file, variable or flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Port 0: one that is free.
    pub listen: SocketAddr,
    pub data: PathBuf,
    pub durability: Durability,
    /// 1 ms to 1 day.
    pub heartbeat: Duration,
    /// Before the jitter of ±50%; 1 ms to 1 day.
    pub retry: Duration,
    /// 1 ms to 1 day.
    pub write_timeout: Duration,
    /// 1 ms to 1 day.
    pub request_timeout: Duration,
    /// 0: what is in flight is cut off at once; at most 1 day.
    pub drain_timeout: Duration,
    /// At most; 0: each stream is a task. At most 64.
    pub stream_threads: usize,
    /// Most threads for those who publish small events one by one; 0: tasks serve them. At most 64.
    pub publish_threads: usize,
    /// 1 ms to 1 year.
    pub dedupe_window: Duration,
    /// At least 1.
    pub dedupe_keys_max: u64,
    pub retention: Retention,
    pub limits: SizeLimits,
    pub cors: Cors,
    pub log: Logging,
}

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// Of the whole log.
    pub limits: Limits,
    /// Of each topic that matches; the last rule that matches wins.
    pub topics: Vec<RetentionRule>,
}

/// What is kept of each topic that matches a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionRule {
    pub pattern: Pattern,
    pub limits: Limits,
}

/// What is refused for its size or number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SizeLimits {
    /// At least 1, at most `batch_bytes_max`.
    pub event_bytes_max: usize,
    /// At least 1.
    pub batch_events_max: usize,
    /// At least 1, at most 256 MiB.
    pub batch_bytes_max: usize,
    /// 0: no limit.
    pub topics_max: u64,
    /// 0: no limit but the machine's.
    pub connections_max: usize,
}

/// What pages of other web sites may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cors {
    /// As browsers send them in `Origin`: lower case, without the port that the scheme implies. Sorted, each once.
    pub allow_origins: Vec<String>,
}

/// How the server logs what it does, to stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    pub format: LogFormat,
    /// A directive of `tracing_subscriber::EnvFilter`, known to be valid.
    pub level: String,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    /// One object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 4242)),
            data: "./tidelog-data".into(),
            durability: Durability::Sync,
            heartbeat: Duration::from_secs(15),
            retry: Duration::from_secs(2),
            write_timeout: Duration::from_secs(60),
            request_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
            stream_threads: 4,
            publish_threads: 4,
            dedupe_window: Duration::from_secs(600),
            dedupe_keys_max: 10_000_000,
            retention: Retention::default(),
            limits: SizeLimits {
                event_bytes_max: 1 << 20,
                batch_events_max: 10_000,
                batch_bytes_max: 16 << 20,
                topics_max: 0,
                connections_max: 0,
            },
            cors: Cors::default(),
            log: Logging { format: LogFormat::Text, level: "info".into() },
        }
    }
}

/// The flags that are short for a key.
#[derive(Debug, Clone, Copy, Default)]
pub struct Flags<'a> {
    pub listen: Option<&'a str>,
    pub data: Option<&'a Path>,
}

impl Config {
    /// Lays the layers over the defaults: the file, the variables of `env` that begin with [`VARIABLE_PREFIX`], `sets`
    /// (`KEY=VALUE`, the last of a key wins) and `flags`.
    ///
    /// # Errors
    /// [`ConfigError`] for the first key that is unknown or whose value is not allowed.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        sets: &[String],
        flags: Flags<'_>,
    ) -> Result<Self, ConfigError> {
        let mut draft = Draft::default();
        if let Some(path) = file {
            let text =
                std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable { path: path.into(), error })?;
            draft.file(path, &text)?;
        }
        draft.variables(env)?;
        draft.sets(sets)?;
        draft.flags(flags)?;
        draft.finish()
    }
}

/// Every key with its default and what it is for, a line each: for the help.
#[must_use]
pub fn describe() -> String {
    let defaults = Config::default();
    let mut lines = String::new();
    for key in KEYS {
        let default = match (key.get)(&defaults) {
            none if none.is_empty() => "(none)".into(),
            some => some,
        };
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "  {:<24} {default:<16} {}", key.name, key.help);
    }
    lines
}

/// A configuration in the making.
#[derive(Default)]
struct Draft {
    config: Config,
    /// Where the keys that are not at their default were set last.
    sources: BTreeMap<&'static str, Source>,
}

impl Draft {
    fn file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let at = |offset: usize| {
            let before = text.get(..offset).unwrap_or(text);
            Source::File { path: path.into(), line: before.matches('\n').count() + 1 }
        };
        let document = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
            place: at(error.span().map_or(0, |span| span.start)),
            reason: error.message().replace('\n', ", "),
        })?;
        self.table("", document.get_ref(), &at)
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>, at: &impl Fn(usize) -> Source) -> Result<(), ConfigError> {
        for (key, value) in table {
            let name = format!("{prefix}{}", key.get_ref());
            let source = at(key.span().start);
            match value.get_ref() {
                DeValue::Table(inner) if keys::is_section(&name) => self.table(&format!("{name}."), inner, at)?,
                rules if name == RULES => self.rules(rules, source, at)?,
                other if keys::is_section(&name) => {
                    let must_be = format!("a table, written [{name}]");
                    let value = Value::from_toml(other).to_string();
                    return Err(ConfigError::Invalid { key: name, value, place: source, must_be });
                }
                other => self.set(&name, &Value::from_toml(other), source)?,
            }
        }
        Ok(())
    }

    fn rules(&mut self, rules: &DeValue<'_>, source: Source, at: &impl Fn(usize) -> Source) -> Result<(), ConfigError> {
        let not_rules = |value: &DeValue<'_>, source| ConfigError::Invalid {
            key: RULES.into(),
            value: Value::from_toml(value).to_string(),
            place: source,
            must_be: format!("a list of tables, each written [[{RULES}]]"),
        };
        let DeValue::Array(rules) = rules else { return Err(not_rules(rules, source)) };
        for rule in rules {
            let DeValue::Table(table) = rule.get_ref() else {
                return Err(not_rules(rule.get_ref(), at(rule.span().start)));
            };
            let rule = read_rule(table, at(rule.span().start), at)?;
            self.config.retention.topics.push(rule);
        }
        Ok(())
    }

    fn variables(&mut self, env: impl IntoIterator<Item = (String, String)>) -> Result<(), ConfigError> {
        for (name, value) in env {
            if !name.starts_with(VARIABLE_PREFIX) {
                continue;
            }
            let source = Source::Variable(name.clone());
            if name.starts_with(&keys::variable(RULES)) {
                return Err(ConfigError::OnlyInFile { place: source });
            }
            match KEYS.iter().find(|key| keys::variable(key.name) == name) {
                Some(key) => self.set(key.name, &Value::Text(value), source)?,
                None => return Err(ConfigError::unknown_variable(&name)),
            }
        }
        Ok(())
    }

    fn sets(&mut self, sets: &[String]) -> Result<(), ConfigError> {
        for text in sets {
            let (name, value) =
                text.split_once('=').ok_or_else(|| ConfigError::NotAnAssignment { text: text.clone() })?;
            if name.starts_with(RULES) {
                return Err(ConfigError::OnlyInFile { place: Source::Set });
            }
            self.set(name, &Value::Text(value.into()), Source::Set)?;
        }
        Ok(())
    }

    fn flags(&mut self, flags: Flags<'_>) -> Result<(), ConfigError> {
        if let Some(listen) = flags.listen {
            self.set("listen", &Value::Text(listen.into()), Source::Flag("--listen"))?;
        }
        if let Some(data) = flags.data {
            // Not by way of text: a path need not be UTF-8. Only the empty one is left to refuse.
            if data.as_os_str().is_empty() {
                self.set("data", &Value::Text(String::new()), Source::Flag("--data"))?;
            }
            self.config.data = data.into();
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &Value, source: Source) -> Result<(), ConfigError> {
        let Some(key) = keys::find(name) else { return Err(ConfigError::unknown_key(name, source)) };
        (key.set)(&mut self.config, value).map_err(|must_be| ConfigError::Invalid {
            key: key.name.into(),
            value: value.to_string(),
            place: source.clone(),
            must_be,
        })?;
        self.sources.insert(key.name, source);
        Ok(())
    }

    /// What concerns more than one key.
    ///
    /// An event is a batch of one, so its limit lies within the batch's. Where only one of the two was set, the other
    /// follows: who allows events of 32 MiB, or batches of 64 KiB at most, means just that.
    fn finish(mut self) -> Result<Config, ConfigError> {
        let SizeLimits { event_bytes_max: event, batch_bytes_max: batch, .. } = self.config.limits;
        if event > batch {
            let sources =
                (self.sources.remove("limits.event_bytes_max"), self.sources.remove("limits.batch_bytes_max"));
            match sources {
                (Some(event_source), Some(batch_source)) => {
                    let (event, batch) = (show_size(event as u64), show_size(batch as u64));
                    return Err(ConfigError::EventLargerThanBatch { event, event_source, batch, batch_source });
                }
                (Some(_), None) => self.config.limits.batch_bytes_max = event,
                (None, _) => self.config.limits.event_bytes_max = batch,
            }
        }
        Ok(self.config)
    }
}

fn read_rule(table: &DeTable<'_>, place: Source, at: &impl Fn(usize) -> Source) -> Result<RetentionRule, ConfigError> {
    let (mut pattern, mut limits) = (None, Limits::default());
    for (key, value) in table {
        let name = key.get_ref().as_ref();
        let value = Value::from_toml(value.get_ref());
        let read = if name == "pattern" {
            Some(read_pattern(&value).map(|read| pattern = Some(read)))
        } else {
            keys::set_limit(&mut limits, name, &value)
        };
        let (key, found_at) = (format!("{RULES}.{name}"), at(key.span().start));
        match read {
            None => {
                let hint = "; a rule has pattern, max_events, max_age, max_bytes and trim_to_snapshot".into();
                return Err(ConfigError::UnknownKey { name: key, place: found_at, hint });
            }
            Some(Err(must_be)) => {
                return Err(ConfigError::Invalid { key, value: value.to_string(), place: found_at, must_be });
            }
            Some(Ok(())) => {}
        }
    }
    let pattern = pattern.ok_or_else(|| ConfigError::Invalid {
        key: format!("{RULES}.pattern"),
        value: "missing".into(),
        place,
        must_be: "a pattern of topics, such as orders.**".into(),
    })?;
    Ok(RetentionRule { pattern, limits })
}

fn read_pattern(value: &Value) -> Result<Pattern, String> {
    const MUST_BE: &str = "a pattern of topics, such as orders.**";
    Pattern::parse(value.text(MUST_BE)?).map_err(|why| format!("{MUST_BE}: {why}"))
}

#[cfg(test)]
mod tests;
