//! The query of a request, taken strictly: what a resource does not know, or was given twice, is refused.
//!
//! Must not know what the parameters mean, but for how a duration or a number is written.

use std::str::FromStr;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::error::{Error, clip};

/// Most parameters of one request. The 64 KiB of a request head would allow ten thousand patterns, and matching an event
/// costs time in their number.
const PARAMETERS_MAX: usize = 1_000;

/// The parameters, decoded, in the order they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `raw`, the part of the target after `?`.
    ///
    /// # Errors
    /// When something in it is not UTF-8, or there is too much of it.
    pub fn parse(raw: Option<&str>) -> Result<Self, Error> {
        let mut parameters = Vec::new();
        for part in raw.unwrap_or("").split('&').filter(|part| !part.is_empty()) {
            if parameters.len() == PARAMETERS_MAX {
                return Err(Error::Query(format!("the query has more than {PARAMETERS_MAX} parameters")));
            }
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            parameters.push((decode(name)?, decode(value)?));
        }
        Ok(Self(parameters))
    }

    /// Refuses every parameter that is not one of `known`; `what` names the resource in the answer.
    ///
    /// # Errors
    /// Naming the first that is not known.
    pub fn only(&self, what: &str, known: &[&str]) -> Result<(), Error> {
        match self.0.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) if known.is_empty() => {
                Err(Error::Query(format!("the parameter {:?} is not for {what}, which takes none", clip(name))))
            }
            Some((name, _)) => Err(Error::Query(format!(
                "the parameter {:?} is not for {what}, which takes {}",
                clip(name),
                known.join(", ")
            ))),
        }
    }

    /// The value of `name`, when it is given.
    ///
    /// # Errors
    /// When it is given more than once.
    pub fn one(&self, name: &str) -> Result<Option<&str>, Error> {
        let mut values = self.0.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let value = values.next();
        match values.next() {
            None => Ok(value),
            Some(_) => Err(Error::Query(format!("the parameter {name} is given more than once"))),
        }
    }

    /// Every value of `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The value of `name`, a number from 1 to `max`.
    ///
    /// # Errors
    /// When it is none, or too large, or given twice.
    pub fn count(&self, name: &str, max: usize) -> Result<Option<usize>, Error> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        match plain::<usize>(text) {
            Some(n) if (1..=max).contains(&n) => Ok(Some(n)),
            _ => Err(Error::Query(format!("{name}={:?}: it is a number from 1 to {max}", clip(text)))),
        }
    }

    /// The value of `name`, a duration such as `30s`, at most `max`.
    ///
    /// # Errors
    /// When it is none, or too long, or given twice.
    pub fn duration(&self, name: &str, max: Duration) -> Result<Option<Duration>, Error> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        match humantime::parse_duration(text) {
            Ok(duration) if duration <= max => Ok(Some(duration)),
            _ => Err(Error::Query(format!(
                "{name}={:?}: it is a duration such as 30s, at most {}s",
                clip(text),
                max.as_secs()
            ))),
        }
    }

    /// The value of `name`, `true` or `false`.
    ///
    /// # Errors
    /// When it is neither, or given twice.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Error> {
        match self.one(name)? {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(text) => Err(Error::Query(format!("{name}={:?}: it is true or false", clip(text)))),
        }
    }
}

/// A number in plain decimal digits: `FromStr` alone would take a `+`.
fn plain<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn decode(text: &str) -> Result<String, Error> {
    let spaced = text.replace('+', " ");
    match percent_decode_str(&spaced).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(Error::Query(format!("{:?} in the query does not decode to UTF-8", clip(text)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(raw: &str) -> Query {
        Query::parse(Some(raw)).unwrap()
    }

    #[test]
    fn parameters_are_decoded_as_forms_are() {
        let q = query("key=Z%C3%BCrich+7&&a&b=1=2&c=%2B");
        assert_eq!(q.one("key").unwrap(), Some("Zürich 7"));
        assert_eq!(q.one("a").unwrap(), Some(""));
        assert_eq!(q.one("b").unwrap(), Some("1=2"));
        assert_eq!(q.one("c").unwrap(), Some("+"));
        assert_eq!(q.one("d").unwrap(), None);
        assert_eq!(Query::parse(None).unwrap(), query(""));
        assert!(Query::parse(Some("key=%FF")).is_err());
    }

    #[test]
    fn what_is_unknown_or_doubled_is_refused() {
        let q = query("topic=a&topic=b&limt=5");
        assert_eq!(q.all("topic").collect::<Vec<_>>(), ["a", "b"]);
        assert!(q.one("topic").is_err());
        let error = q.only("a page", &["topic", "limit"]).unwrap_err().to_string();
        assert!(error.contains("\"limt\"") && error.contains("topic, limit"), "{error}");
        assert!(q.only("a page", &["topic", "limt"]).is_ok());
        assert!(query("").only("it", &[]).is_ok());
        assert!(query("x").only("it", &[]).is_err());
    }

    #[test]
    fn there_is_a_most_of_them() {
        assert!(Query::parse(Some(&"topic=a&".repeat(PARAMETERS_MAX))).is_ok());
        assert!(Query::parse(Some(&"topic=a&".repeat(PARAMETERS_MAX + 1))).is_err());
    }

    #[test]
    fn numbers_durations_and_flags_have_one_spelling() {
        assert_eq!(query("limit=1000").count("limit", 1000).unwrap(), Some(1000));
        for bad in ["limit=0", "limit=1001", "limit=", "limit=-1", "limit=+1", "limit=%2B1", "limit=1e2"] {
            assert!(query(bad).count("limit", 1000).is_err(), "{bad}");
        }
        let max = Duration::from_secs(60);
        assert_eq!(query("wait=60s").duration("wait", max).unwrap(), Some(max));
        assert_eq!(query("wait=0s").duration("wait", max).unwrap(), Some(Duration::ZERO));
        for bad in ["wait=61s", "wait=30", "wait=", "wait=-1s", "wait=1x"] {
            assert!(query(bad).duration("wait", max).is_err(), "{bad}");
        }
        assert_eq!(query("follow=false").flag("follow").unwrap(), Some(false));
        for bad in ["follow=", "follow=0", "follow=False"] {
            assert!(query(bad).flag("follow").is_err(), "{bad}");
        }
    }
}
