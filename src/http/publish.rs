//! `POST /topics/{topic}` and `POST /topics`: a body becomes events, the events are appended, and the answer is their ids.

use std::fmt::Display;

use bytes::Bytes;
use hyper::body::Body as HttpBody;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};

use super::answer::Body;
use super::body::{Bounds, Read, sent_as_it_is};
use super::error::Error;
use super::forms::{self, Form, Names};
use super::query::Query;
use super::terms::{self, Asked, Target};
use super::{Api, TIDELOG_LOG, answer_json, parsed};
use crate::event::{EventType, Key, NewEvent};
use crate::log::{Answer, Terms};
use crate::topic::Topic;

const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Publishes the body to `topic`, or, when there is none, each line to the topic that it names.
pub async fn post<B>(api: &Api, request: &Parts, topic: Option<Topic>, body: B) -> Result<Response<Body>, Error>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Display,
{
    api.takes_events()?;
    let plan = Plan::of(request, topic)?;
    let Read { bytes, share } = api.inner.bodies.read(&request.headers, body, plan.bounds(api)).await?;
    let (form, limits) = (plan.form, api.inner.options.limits);
    let (events, terms) = parsed(bytes.len(), move || plan.events(&limits, bytes)).await?;
    let answer = append(api, form, events, terms).await;
    // The events came out of the body's share of memory, so it is held until they are in the log.
    drop(share);
    answer
}

/// Publishes as `plan` says a body that is there, and small.
pub async fn repeat(api: &Api, plan: &Plan, body: &[u8]) -> Result<Response<Body>, Error> {
    api.takes_events()?;
    let Read { bytes, share } = api.inner.bodies.take(body, plan.bounds(api))?;
    let (events, terms) = plan.events(&api.inner.options.limits, bytes)?;
    let answer = append(api, plan.form, events, terms).await;
    drop(share);
    answer
}

/// What the head of a publish asks for, whatever body comes with it.
pub struct Plan {
    form: Form,
    /// Where all of a batch goes.
    topic: Option<Topic>,
    /// Of a single event.
    names: Option<Names>,
    asked: Asked,
    target: Target,
}

impl Plan {
    /// What `request` asks for: to publish to `topic`, or to where each line says.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn of(request: &Parts, topic: Option<Topic>) -> Result<Self, Error> {
        let asked = terms::asked(&request.headers, topic.is_some())?;
        let form = form(request, topic.is_some())?;
        let names = names(request, form, topic.as_ref())?;
        sent_as_it_is(&request.headers)?;
        let target = if asked.has_key() { Target::of(request) } else { Target::default() };
        Ok(Self { form, topic, names, asked, target })
    }

    /// Whether it may be repeated under an idempotency key.
    pub fn has_key(&self) -> bool {
        self.asked.has_key()
    }

    fn events(&self, limits: &forms::Limits, body: Vec<u8>) -> Result<(Vec<NewEvent>, Terms), Error> {
        let terms = self.asked.terms(&self.target, &body);
        let events = match self.names.clone() {
            Some(names) if self.form == Form::Json => vec![forms::json(names, body)?],
            Some(names) => vec![forms::text(names, body)?],
            None => forms::lines(self.topic.as_ref(), limits, &body)?,
        };
        Ok((events, terms))
    }

    fn bounds(&self, api: &Api) -> Bounds {
        let options = &api.inner.options;
        let (bytes_max, what, option) = match self.form {
            Form::Text | Form::Json => (options.limits.event_bytes_max, "the event", "limits.event_bytes_max"),
            Form::Lines => (options.limits.batch_bytes_max, "the batch", "limits.batch_bytes_max"),
        };
        Bounds { bytes_max, what, option, time: options.request_timeout }
    }
}

async fn append(api: &Api, form: Form, events: Vec<NewEvent>, terms: Terms) -> Result<Response<Body>, Error> {
    let count = events.len();
    let Answer { appended, replayed } = api.inner.log.append_on(events, terms).await?;
    let json = match form {
        Form::Text | Form::Json => format!("{{\"id\":{}}}", appended.first),
        Form::Lines => {
            format!("{{\"first\":{},\"last\":{},\"count\":{count}}}", appended.first, appended.last)
        }
    };
    let mut response = answer_json(json);
    if replayed {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    } else {
        *response.status_mut() = StatusCode::CREATED;
    }
    response.headers_mut().insert(TIDELOG_LOG, api.log_name());
    Ok(response)
}

fn form(request: &Parts, one_topic: bool) -> Result<Form, Error> {
    let content_type = request.headers.get(CONTENT_TYPE).map_or(Ok(""), HeaderValue::to_str).unwrap_or("");
    let form = Form::of(content_type);
    if one_topic || form == Form::Lines {
        return Ok(form);
    }
    let why = "POST /topics takes a batch of JSON lines, application/x-ndjson; text and JSON go to /topics/{topic}";
    Err(Error::Header { name: "Content-Type", why: why.to_owned() })
}

/// What the query says of a single event; `None` for a batch.
fn names(request: &Parts, form: Form, topic: Option<&Topic>) -> Result<Option<Names>, Error> {
    let query = Query::parse(request.uri.query())?;
    let Some(topic) = topic.filter(|_| form != Form::Lines) else {
        query.only("a batch, whose lines say it themselves", &[])?;
        return Ok(None);
    };
    query.only("publishing one event", &["event", "key"])?;
    let event = query.one("event")?.map_or(Ok(None), EventType::parse).map_err(Error::EventType)?;
    let key = query.one("key")?.map(Key::parse).transpose().map_err(Error::Key)?;
    Ok(Some(Names { topic: topic.clone(), event, key }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Options;
    use crate::log::{self, Log};
    use hyper::Request;

    fn head(method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(target).header("Host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[tokio::test]
    async fn a_known_head_is_answered_until_the_server_drains() {
        let dir = tempfile::tempdir().unwrap();
        let api = Api::new(Log::open(log::Options::new(dir.path())).unwrap(), Options::default());
        let known = api.known(&head("POST", "/topics/a", &[])).unwrap();
        for id in 1..=3 {
            let answer = api.repeat(&known, b"x").await;
            assert_eq!(answer.status(), StatusCode::CREATED);
            assert_eq!(answer.into_body().into_whole().unwrap(), format!("{{\"id\":{id}}}"));
        }
        api.drain();
        assert_eq!(api.repeat(&known, b"x").await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(api.inner.log.tail(), 3);
    }

    #[tokio::test]
    async fn what_is_refused_by_its_head_or_is_no_publish_is_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let api = Api::new(Log::open(log::Options::new(dir.path())).unwrap(), Options::default());
        let is_known = |method, target, headers: &[_]| api.known(&head(method, target, headers)).is_some();
        let lines = ("Content-Type", "application/x-ndjson");
        assert!(is_known("POST", "/topics/a?event=e&key=k", &[("If-Match", "\"3\"")]));
        assert!(is_known("POST", "/topics", &[lines]));
        for (method, target) in [("GET", "/topics/a"), ("PUT", "/topics/a"), ("POST", "/topics/a/close"), ("POST", "/")]
        {
            assert!(!is_known(method, target, &[]), "{method} {target}");
        }
        for target in ["/topics", "/topics/a..b", "/topics/a?colour=red", "/topics/a?key="] {
            assert!(!is_known("POST", target, &[]), "{target}");
        }
        for header in [
            ("Origin", "http://elsewhere.example"),
            ("Host", "elsewhere.example"),
            ("Content-Encoding", "gzip"),
            ("If-Match", "3"),
            ("Idempotency-Key", "new each time"),
        ] {
            assert!(!is_known("POST", "/topics/a", &[header]), "{header:?}");
        }
    }
}
