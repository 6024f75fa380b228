//! Which resource a path names, and which methods each takes.
//!
//! Must not know what the resources do.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::error::Error;
use crate::topic::{Pattern, Topic};

/// The resources; a topic's segment is as it stands in the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource<'a> {
    Page,
    Healthz,
    Readyz,
    Metrics,
    OpenApi,
    Events,
    Topics,
    Topic(&'a str),
    Retention(&'a str),
    State(&'a str),
    Snapshot(&'a str),
    Close(&'a str),
}

impl<'a> Resource<'a> {
    /// The resource that `path` names.
    #[must_use]
    pub fn of(path: &'a str) -> Option<Self> {
        Some(match path {
            "/" => Self::Page,
            "/healthz" => Self::Healthz,
            "/readyz" => Self::Readyz,
            "/metrics" => Self::Metrics,
            "/openapi.json" => Self::OpenApi,
            "/events" => Self::Events,
            "/topics" => Self::Topics,
            _ => match path.strip_prefix("/topics/")?.split_once('/') {
                None => Self::Topic(path.strip_prefix("/topics/")?),
                Some((topic, "retention")) => Self::Retention(topic),
                Some((pattern, "state")) => Self::State(pattern),
                Some((topic, "snapshot")) => Self::Snapshot(topic),
                Some((topic, "close")) => Self::Close(topic),
                Some(_) => return None,
            },
        })
    }

    /// The methods that it takes, as `Allow` lists them.
    #[must_use]
    pub fn allow(self) -> &'static str {
        match self {
            Self::Page
            | Self::Healthz
            | Self::Readyz
            | Self::Metrics
            | Self::OpenApi
            | Self::Events
            | Self::State(_) => "GET, HEAD, OPTIONS",
            Self::Topics => "GET, HEAD, POST, OPTIONS",
            Self::Topic(_) => "GET, HEAD, POST, DELETE, OPTIONS",
            Self::Retention(_) => "GET, HEAD, PUT, DELETE, OPTIONS",
            Self::Snapshot(_) => "GET, HEAD, PUT, OPTIONS",
            Self::Close(_) => "POST, OPTIONS",
        }
    }

    /// The pattern that a subscriber asks for here: `Some(None)` when the query says it, `None` when nobody subscribes here.
    ///
    /// # Errors
    /// When the segment is no pattern.
    pub fn pattern(self) -> Result<Option<Option<Pattern>>, Error> {
        match self {
            Self::Events => Ok(Some(None)),
            Self::Topic(segment) => pattern(segment).map(|pattern| Some(Some(pattern))),
            Self::Page
            | Self::Healthz
            | Self::Readyz
            | Self::Metrics
            | Self::OpenApi
            | Self::Topics
            | Self::Retention(_)
            | Self::State(_)
            | Self::Snapshot(_)
            | Self::Close(_) => Ok(None),
        }
    }
}

/// The pattern that a path's segment names.
///
/// # Errors
/// When it names none.
pub fn pattern(segment: &str) -> Result<Pattern, Error> {
    let text = decode(segment).ok_or(Error::PatternEncoding)?;
    Pattern::parse(&text).map_err(|why| Error::pattern(&text, why))
}

/// The topic that a path's segment names.
///
/// # Errors
/// When it names none.
pub fn topic(segment: &str) -> Result<Topic, Error> {
    let text = decode(segment).ok_or(Error::TopicEncoding)?;
    Topic::parse(&text).map_err(|why| Error::topic(&text, why))
}

/// A `%` that encodes nothing stays, and is refused as a character.
fn decode(segment: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(segment).decode_utf8().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_resources() {
        assert_eq!(Resource::of("/topics/a.b"), Some(Resource::Topic("a.b")));
        assert_eq!(Resource::of("/topics/a/retention"), Some(Resource::Retention("a")));
        assert_eq!(Resource::of("/topics/a.*/state"), Some(Resource::State("a.*")));
        assert_eq!(Resource::of("/topics/a/snapshot"), Some(Resource::Snapshot("a")));
        assert_eq!(Resource::of("/topics/a/close"), Some(Resource::Close("a")));
        assert_eq!(Resource::of("/topics/"), Some(Resource::Topic("")));
        for unknown in ["", "*", "/x", "/events/", "/topics/a/states", "/topics/a/", "/topics/a/retention/"] {
            assert_eq!(Resource::of(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn segments_are_percent_decoded() {
        assert_eq!(topic("a%2Eb%3a1").unwrap().as_str(), "a.b:1");
        for bad in ["", "a%2Fb", "a%", "a%zz", "a+b", "%C3%A9", "*", "%2A"] {
            assert!(matches!(topic(bad), Err(Error::Topic { .. })), "{bad}");
        }
        assert!(matches!(topic("%FF"), Err(Error::TopicEncoding)));
        let pattern = |s| Resource::Topic(s).pattern();
        assert_eq!(pattern("a.%2A%2A").unwrap().unwrap().unwrap().as_str(), "a.**");
        assert!(matches!(pattern("a.%2A%2Ab"), Err(Error::Pattern { .. })));
        assert!(matches!(pattern("%FF"), Err(Error::PatternEncoding)));
        assert_eq!(Resource::Events.pattern().unwrap(), Some(None));
        assert_eq!(Resource::Topics.pattern().unwrap(), None);
    }
}
