//! `GET /topics`, `DELETE /topics/{topic}`, `/topics/{topic}/close` and `/topics/{topic}/retention`: what topics there are, how they end,
//! and what they keep.

use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use bytesize::ByteSize;
use hyper::Response;
use hyper::body::Body as HttpBody;
use hyper::http::request::Parts;
use serde::{Deserialize, Serialize};

use super::answer::Body;
use super::body::Bounds;
use super::error::Error;
use super::query::Query;
use super::{Api, answer_json, no_content};
use crate::event::{EventId, Millis, parse_id};
use crate::log::{Limits, TopicInfo};
use crate::topic::Topic;

const LIST: usize = 100;
const LIST_MAX: usize = 1_000;
/// A policy is four members; what is larger is none.
const RETENTION_BYTES_MAX: u64 = 4 * 1024;

#[derive(Serialize)]
struct Listed<'a> {
    topic: &'a str,
    earliest: EventId,
    last: EventId,
    events: u64,
    bytes: u64,
    subscribers: u64,
    closed: bool,
}

impl<'a> From<&'a TopicInfo> for Listed<'a> {
    fn from(info: &'a TopicInfo) -> Self {
        let TopicInfo { topic, earliest, last, events, bytes, subscribers, closed } = info;
        Self {
            topic: topic.as_str(),
            earliest: *earliest,
            last: *last,
            events: *events,
            bytes: *bytes,
            subscribers: *subscribers,
            closed: *closed,
        }
    }
}

#[derive(Serialize)]
struct List<'a> {
    topics: Vec<Listed<'a>>,
    /// For `after=`; absent topics have none.
    next: Option<&'a str>,
}

/// Lists topics, in the order of their names.
pub async fn list(api: &Api, request: &Parts) -> Result<Response<Body>, Error> {
    let query = Query::parse(request.uri.query())?;
    query.only("the list of topics", &["prefix", "limit", "after"])?;
    let limit = query.count("limit", LIST_MAX)?.unwrap_or(LIST);
    let (prefix, after) = (query.one("prefix")?.unwrap_or(""), query.one("after")?);
    // One more than is shown tells whether there are more.
    let topics = api.inner.log.topics(prefix, after, limit + 1).await?;
    Ok(answer_json(list_json(&topics, limit)))
}

fn list_json(topics: &[TopicInfo], limit: usize) -> String {
    let shown = &topics[..topics.len().min(limit)];
    let next = shown.last().filter(|_| topics.len() > limit).map(|info| info.topic.as_str());
    let list = List { topics: shown.iter().map(Listed::from).collect(), next };
    serde_json::to_string(&list).expect("strings and numbers are always valid JSON")
}

/// Removes a topic's events, or those before an id.
pub async fn delete(api: &Api, request: &Parts, topic: &Topic) -> Result<Response<Body>, Error> {
    api.takes_events()?;
    let query = Query::parse(request.uri.query())?;
    query.only("deleting a topic's events", &["before"])?;
    // An empty one is refused, not absent: a script whose variable is unset must not delete everything.
    let before = query.one("before")?.map(|text| parse_id(text).map_err(|why| Error::id("before", why))).transpose()?;
    api.inner.log.delete(topic, before).await?;
    Ok(no_content())
}

/// Ends a topic. What the body says, if it says anything, is not read.
pub async fn close(api: &Api, request: &Parts, topic: &Topic) -> Result<Response<Body>, Error> {
    api.takes_events()?;
    Query::parse(request.uri.query())?.only("closing a topic", &[])?;
    api.inner.log.close_topic(topic).await?;
    Ok(no_content())
}

/// The topic's own retention.
pub fn retention(api: &Api, request: &Parts, topic: &Topic) -> Result<Response<Body>, Error> {
    Query::parse(request.uri.query())?.only("retention", &[])?;
    let limits = api.inner.log.retention(topic).ok_or(Error::NoRetention)?;
    Ok(answer_json(retention_json(&limits)))
}

/// Sets the topic's own retention.
pub async fn set_retention<B>(api: &Api, request: &Parts, topic: &Topic, body: B) -> Result<Response<Body>, Error>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Display,
{
    api.takes_events()?;
    Query::parse(request.uri.query())?.only("retention", &[])?;
    let bounds = Bounds {
        bytes_max: RETENTION_BYTES_MAX,
        what: "the retention",
        option: "it has at most four members",
        time: api.inner.options.request_timeout,
    };
    let read = api.inner.bodies.read(&request.headers, body, bounds).await?;
    api.inner.log.set_retention(topic, Some(parse_retention(&read.bytes)?)).await?;
    Ok(no_content())
}

/// Forgets the topic's own retention, so that the configured policy holds.
pub async fn forget_retention(api: &Api, request: &Parts, topic: &Topic) -> Result<Response<Body>, Error> {
    api.takes_events()?;
    Query::parse(request.uri.query())?.only("retention", &[])?;
    api.inner.log.set_retention(topic, None).await?;
    Ok(no_content())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    max_events: Option<u64>,
    max_age: Option<Quantity>,
    max_bytes: Option<Quantity>,
    trim_to_snapshot: Option<bool>,
}

/// A plain number, or one with its unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Quantity {
    Number(u64),
    Text(String),
}

fn parse_retention(body: &[u8]) -> Result<Limits, Error> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Error::Json(
            "a retention is a JSON object with max_events, max_age, max_bytes and trim_to_snapshot, each optional"
                .to_owned(),
        ));
    }
    let Written { max_events, max_age, max_bytes, trim_to_snapshot } =
        serde_json::from_slice(body).map_err(|e| Error::Json(format!("the body is no retention: {e}")))?;
    Ok(Limits {
        max_events: max_events.unwrap_or(0),
        max_age: max_age.map(age).transpose()?.unwrap_or(0),
        max_bytes: max_bytes.map(size).transpose()?.unwrap_or(0),
        trim_to_snapshot: trim_to_snapshot.unwrap_or(false),
    })
}

/// Milliseconds; a plain number is seconds.
fn age(quantity: Quantity) -> Result<Millis, Error> {
    let duration = match quantity {
        Quantity::Number(seconds) => Some(Duration::from_secs(seconds)),
        Quantity::Text(text) => humantime::parse_duration(&text).ok(),
    };
    duration
        .and_then(|duration| Millis::try_from(duration.as_millis()).ok())
        .ok_or_else(|| Error::Json("max_age is a duration such as \"7d\", or a number of seconds".to_owned()))
}

fn size(quantity: Quantity) -> Result<u64, Error> {
    match quantity {
        Quantity::Number(bytes) => Ok(bytes),
        Quantity::Text(text) => text
            .parse::<ByteSize>()
            .map(|size| size.as_u64())
            .map_err(|_| Error::Json("max_bytes is a size such as \"10GiB\", or a number of bytes".to_owned())),
    }
}

fn retention_json(limits: &Limits) -> String {
    let Limits { max_events, max_age, max_bytes, trim_to_snapshot } = limits;
    let rule = if *trim_to_snapshot { ",\"trim_to_snapshot\":true" } else { "" };
    format!("{{\"max_events\":{max_events},\"max_age\":\"{}\",\"max_bytes\":{max_bytes}{rule}}}", written(*max_age))
}

/// A duration as the configuration writes it: `7d`, `1h30m`, `0s`.
fn written(mut rest: Millis) -> String {
    let mut text = String::new();
    for (unit, millis) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if rest >= millis {
            text.push_str(&(rest / millis).to_string());
            text.push_str(unit);
            rest %= millis;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_is_numbers_or_texts_with_units() {
        let parse = |body: &str| parse_retention(body.as_bytes());
        assert_eq!(parse("{}").unwrap(), Limits::default());
        assert_eq!(
            parse("{\"max_events\":10,\"max_age\":\"7d\",\"max_bytes\":\"10GiB\"}").unwrap(),
            Limits { max_events: 10, max_age: 604_800_000, max_bytes: 10 << 30, ..Limits::default() }
        );
        assert_eq!(
            parse(" {\"max_age\":60,\"max_bytes\":4096,\"max_events\":null}").unwrap(),
            Limits { max_events: 0, max_age: 60_000, max_bytes: 4096, ..Limits::default() }
        );
        for bad in [
            "",
            "7",
            "[1,2,3]",
            "{\"max_evnts\":1}",
            "{\"max_events\":-1}",
            "{\"max_events\":\"many\"}",
            "{\"max_age\":\"7\"}",
            "{\"max_age\":1.5}",
            "{\"max_bytes\":\"10 apples\"}",
            "{\"max_age\":18446744073709551615}",
        ] {
            assert!(matches!(parse(bad), Err(Error::Json(_))), "{bad}");
        }
    }

    #[test]
    fn what_is_given_back_can_be_put_again() {
        for limits in [
            Limits::default(),
            Limits { max_events: 1, max_age: 604_800_000, max_bytes: 3, ..Limits::default() },
            Limits { max_events: 1, max_age: 5_400_001, max_bytes: 3, trim_to_snapshot: true },
            Limits { max_events: u64::MAX, max_age: u64::MAX, max_bytes: u64::MAX, ..Limits::default() },
        ] {
            assert_eq!(parse_retention(retention_json(&limits).as_bytes()).unwrap(), limits);
        }
        assert_eq!((written(604_800_000), written(5_400_000), written(0)), ("7d".into(), "1h30m".into(), "0s".into()));
    }

    #[test]
    fn a_list_says_where_to_go_on() {
        let info = |name: &str| TopicInfo {
            topic: Topic::parse(name).unwrap(),
            earliest: 1,
            last: 2,
            events: 2,
            bytes: 10,
            subscribers: 0,
            closed: false,
        };
        let list = [info("a"), info("b"), info("c")];
        let json = |limit| serde_json::from_str::<serde_json::Value>(&list_json(&list, limit)).unwrap();
        assert_eq!(json(2)["next"], "b");
        assert_eq!(json(2)["topics"].as_array().unwrap().len(), 2);
        assert!(json(3)["next"].is_null());
        assert_eq!(
            json(3)["topics"][2],
            serde_json::json!(
                {"topic": "c", "earliest": 1, "last": 2, "events": 2, "bytes": 10, "subscribers": 0, "closed": false}
            )
        );
        assert!(serde_json::from_str::<serde_json::Value>(&list_json(&[], 2)).unwrap()["next"].is_null());
    }
}
