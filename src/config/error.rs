//! What can be wrong with a configuration, each told in one sentence: which key, where it stands, what it must be.

use std::fmt;
use std::path::PathBuf;

use super::keys::{KEYS, RULES, variable};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    File { path: PathBuf, line: usize },
    Variable(String),
    Set,
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Variable(name) => write!(f, "the variable {name}"),
            Self::Set => f.write_str("--set"),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// Why a configuration is refused. Nothing of it is used then.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}: {error}", .path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("{place} is not valid TOML: {reason}")]
    Syntax { place: Source, reason: String },
    #[error("there is no setting {name} ({place}){hint}")]
    UnknownKey { name: String, place: Source, hint: String },
    #[error("there is no setting for the variable {name}{hint}")]
    UnknownVariable { name: String, hint: String },
    #[error("the variable {name} does not hold valid UTF-8")]
    NotUnicode { name: String },
    #[error("{key} is {value} ({place}), but it must be {must_be}")]
    Invalid { key: String, value: String, place: Source, must_be: String },
    #[error("{RULES} ({place}) can only be written in a file (--config), each rule as a table [[{RULES}]]")]
    OnlyInFile { place: Source },
    #[error("--set takes KEY=VALUE, such as --set heartbeat=30s, which {text:?} is not")]
    NotAnAssignment { text: String },
    #[error(
        "limits.event_bytes_max is {event} ({event_source}), but it must be at most limits.batch_bytes_max, which is \
         {batch} ({batch_source}), since a single event is a batch of one"
    )]
    EventLargerThanBatch { event: String, event_source: Source, batch: String, batch_source: Source },
}

impl ConfigError {
    pub(super) fn unknown_key(name: &str, source: Source) -> Self {
        let hint = nearest(name).map_or_else(
            || "; all settings are listed by `tidelog serve --help`".into(),
            |near| format!("; did you mean {near}?"),
        );
        Self::UnknownKey { name: name.into(), place: source, hint }
    }

    pub(super) fn unknown_variable(name: &str) -> Self {
        // For every service, here one called "tidelog", Kubernetes sets such variables in all containers.
        let by_kubernetes = ["TIDELOG_SERVICE_", "TIDELOG_PORT"].iter().any(|prefix| name.starts_with(prefix));
        let hint = if by_kubernetes {
            "; if Kubernetes sets it, for a service called tidelog, set enableServiceLinks: false in the pod's spec"
                .into()
        } else {
            let key = name.trim_start_matches(super::VARIABLE_PREFIX).to_ascii_lowercase().replace("__", ".");
            nearest(&key).map_or_else(
                || "; all settings are listed by `tidelog serve --help`".into(),
                |near| format!("; did you mean {}?", variable(near)),
            )
        };
        Self::UnknownVariable { name: name.into(), hint }
    }
}

/// The key that was probably meant: the same word in a table, or a typo away.
fn nearest(name: &str) -> Option<&'static str> {
    let last = name.rsplit('.').next().unwrap_or(name);
    let names = || KEYS.iter().map(|key| key.name).chain([RULES]);
    let same_word = || names().find(|known| known.rsplit('.').next() == Some(last));
    // A third of a name may be wrong before it is another name.
    let close = || {
        names()
            .map(|known| (strsim::damerau_levenshtein(known, name), known))
            .min()
            .filter(|&(distance, known)| distance * 3 <= known.len())
            .map(|(_, known)| known)
    };
    same_word().or_else(close)
}
