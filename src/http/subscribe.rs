//! `GET /topics/{pattern}` and `GET /events`: streams and pages of what matches, from where the client left off.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode, Version};

use super::accept::{self, Answer};
use super::answer::{Body, Framing};
use super::begin::{self, Wish};
use super::error::Error;
use super::problem::Problem;
use super::query::Query;
use super::{Api, TIDELOG_LOG, now};
use crate::event::{EventId, EventType};
use crate::log::{Begin, BundleKind, Page, Start, SubscribeOptions};
use crate::sse::{Control, Form, decimal, json_string};
use crate::topic::{Filter, Pattern};

const PAGE_EVENTS: usize = 100;
const PAGE_EVENTS_MAX: usize = 1_000;
const WAIT_MAX: Duration = Duration::from_secs(60);

/// HTTP/2 sends no frame that is larger, and takes a chunk whole, however little its window: small chunks keep what a
/// stalled stream holds to its send buffer and one of these.
const HTTP2_CHUNK_BYTES_MAX: usize = 16 * 1024;

const TIDELOG_EARLIEST: HeaderName = HeaderName::from_static("tidelog-earliest");
const TIDELOG_TAIL: HeaderName = HeaderName::from_static("tidelog-tail");
const TIDELOG_LAST: HeaderName = HeaderName::from_static("tidelog-last");
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What a subscriber asks for.
#[derive(Debug)]
struct Asked {
    filter: Arc<Filter>,
    wish: Wish,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Stream { form: Form, follow: bool },
    Page { limit: usize, wait: Duration },
}

/// Answers a stream or a page; `pattern` is the path's, `None` for `/events`.
pub async fn get(api: &Api, request: &Parts, pattern: Option<Pattern>) -> Result<Response<Body>, Error> {
    let asked = asked(request, pattern)?;
    if api.is_draining() {
        return Err(Error::Draining);
    }
    let log = &api.inner.log;
    // Before the beginning is fixed, so that it never lies beyond the tail that the head tells.
    let last = match asked.filter.single_topic() {
        Some(topic) => Some(log.last_of(&topic).await),
        None => None,
    };
    let start = start(api, request, &asked).await?;
    let mut response = match asked.how {
        How::Stream { form, follow } => stream(api, request, &asked, start, form, follow).await?,
        How::Page { limit, wait } => page(api, request, &asked, start, limit, wait).await?,
    };
    if let Some(last) = last {
        response.headers_mut().insert(TIDELOG_LAST, HeaderValue::from(last));
    }
    Ok(response)
}

/// Where it begins. A request for the head alone has no use for a bundle, which would begin no earlier than the tail.
async fn start(api: &Api, request: &Parts, Asked { filter, wish, how }: &Asked) -> Result<Start, Error> {
    let log = &api.inner.log;
    let start = match (wish.begin, wish.bundle, how) {
        (None, Some(kind), How::Stream { form, .. }) if request.method != Method::HEAD => {
            log.start_with(kind, filter, *form).await?
        }
        (begin, _, _) => log.start(filter, begin.unwrap_or(Begin::Latest)).await?,
    };
    Ok(start)
}

async fn stream(
    api: &Api,
    request: &Parts,
    asked: &Asked,
    start: Start,
    form: Form,
    follow: bool,
) -> Result<Response<Body>, Error> {
    let log = &api.inner.log;
    let mut response = Response::new(Body::empty());
    positions(api, response.headers_mut(), start.earliest, start.tail);
    // One that was closed behind the beginning, after events of then, owes them still.
    let ends = !follow || log.closed(&asked.filter).is_some_and(|last| last <= start.tail);
    if asked.wish.by_header && ends && !log.owes(&asked.filter, &start).await? {
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        return Ok(response);
    }
    stream_headers(response.headers_mut(), form);
    if request.method != Method::HEAD {
        let (heartbeat, bundle) = (api.inner.options.heartbeat, asked.wish.bundle);
        let options = SubscribeOptions { form, heartbeat, follow, bundle };
        let subscription = log.subscribe(&asked.filter, start, options);
        *response.body_mut() = Body::follow(framing(api, request, form), subscription);
    }
    Ok(response)
}

async fn page(
    api: &Api,
    request: &Parts,
    asked: &Asked,
    start: Start,
    limit: usize,
    wait: Duration,
) -> Result<Response<Body>, Error> {
    let mut response = Response::new(Body::empty());
    if request.method == Method::HEAD {
        positions(api, response.headers_mut(), start.earliest, start.tail);
    } else {
        let page = api.inner.log.page(&asked.filter, start, limit, wait).await?;
        positions(api, response.headers_mut(), page.earliest, page.tail);
        *response.body_mut() = Body::full(page_json(&page, api.inner.log.name()));
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Sends away, with a 200, a client that never retries after anything else, when what is wrong will pass by itself.
///
/// # Errors
/// When the request is wrong beside that, or where it begins cannot be read.
pub async fn send_away(
    api: &Api,
    request: &Parts,
    pattern: Option<Pattern>,
    problem: &Problem,
) -> Result<Response<Body>, Error> {
    let Asked { filter, wish, how } = asked(request, pattern)?;
    let How::Stream { form, .. } = how else { return Ok(problem.response()) };
    // The stream's id is what the client comes back with, so it is where it wished to begin.
    let cursor = match wish.begin {
        // It has had nothing of its bundle: it is to come back as it came.
        None => None,
        Some(Begin::After(id)) => Some(id),
        Some(Begin::At(id)) => Some(id.saturating_sub(1)),
        Some(begin @ (Begin::Earliest | Begin::Latest | Begin::Last(_) | Begin::Time(_))) => {
            Some(api.inner.log.start(&filter, begin).await?.cursor)
        }
    };
    let mut response = Response::new(Body::sent_away(framing(api, request, form), cursor, problem));
    response.headers_mut().insert(TIDELOG_LOG, api.log_name());
    stream_headers(response.headers_mut(), form);
    Ok(response)
}

/// Whether a failed request is one to [send away](send_away) rather than to answer with its status.
#[must_use]
pub fn is_to_be_sent_away(request: &Parts, problem: &Problem) -> bool {
    request.method == Method::GET
        && problem.code.passes_by_itself()
        && accept::names_event_stream(&request.headers)
        && matches!(accept::choose(&request.headers), Ok(Answer::EventStream))
}

fn asked(request: &Parts, pattern: Option<Pattern>) -> Result<Asked, Error> {
    let answer = accept::choose(&request.headers)?;
    let query = Query::parse(request.uri.query())?;
    let mut known = begin::PARAMETERS.to_vec();
    known.push("event");
    if pattern.is_none() {
        known.push("topic");
    }
    let (what, own): (_, &[&str]) = match answer {
        Answer::EventStream => ("an event stream", &["envelope", "follow"]),
        Answer::Lines => ("a stream of JSON lines", &["follow"]),
        Answer::Page => ("a page (Accept: application/json)", &["limit", "wait"]),
    };
    known.extend(own);
    query.only(what, &known)?;
    let how = match answer {
        Answer::EventStream | Answer::Lines => {
            How::Stream { form: form(answer, &query)?, follow: query.flag("follow")?.unwrap_or(true) }
        }
        Answer::Page => How::Page {
            limit: query.count("limit", PAGE_EVENTS_MAX)?.unwrap_or(PAGE_EVENTS),
            wait: query.duration("wait", WAIT_MAX)?.unwrap_or(Duration::ZERO),
        },
    };
    let default = if matches!(how, How::Page { .. }) { Begin::Earliest } else { Begin::Latest };
    let wish = begin::begin(&request.headers, &query, default, now())?;
    let filter = filter(&query, pattern)?;
    match wish.bundle {
        Some(_) if matches!(how, How::Page { .. }) => {
            Err(Error::Query("from=state and from=snapshot are for streams; a page has no bundle".to_owned()))
        }
        Some(BundleKind::Snapshot) if filter.single_topic().is_none() => {
            Err(Error::Query("from=snapshot is for one topic, without wildcards".to_owned()))
        }
        _ => Ok(Asked { filter: Arc::new(filter), wish, how }),
    }
}

fn form(answer: Answer, query: &Query) -> Result<Form, Error> {
    match (answer, query.one("envelope")?) {
        (Answer::Lines, _) => Ok(Form::Lines),
        (_, None) => Ok(Form::Sse),
        (_, Some("json")) => Ok(Form::SseEnvelope),
        (_, Some(_)) => Err(Error::Query("envelope is json, or is left out".to_owned())),
    }
}

fn filter(query: &Query, pattern: Option<Pattern>) -> Result<Filter, Error> {
    let patterns = match pattern {
        Some(pattern) => vec![pattern],
        None => query
            .all("topic")
            .map(|text| Pattern::parse(text).map_err(|why| Error::pattern(text, why)))
            .collect::<Result<_, _>>()?,
    };
    let types = query.all("event").map(|text| EventType::parse(text).map_err(Error::EventType));
    Ok(Filter::new(patterns, types.collect::<Result<_, _>>()?))
}

fn framing(api: &Api, request: &Parts, form: Form) -> Framing {
    let chunk_bytes_max = if request.version == Version::HTTP_2 { HTTP2_CHUNK_BYTES_MAX } else { usize::MAX };
    Framing { form, retry: api.inner.options.retry, chunk_bytes_max }
}

fn positions(api: &Api, headers: &mut HeaderMap, earliest: EventId, tail: EventId) {
    headers.insert(TIDELOG_EARLIEST, HeaderValue::from(earliest));
    headers.insert(TIDELOG_TAIL, HeaderValue::from(tail));
    headers.insert(TIDELOG_LOG, api.log_name());
}

fn stream_headers(headers: &mut HeaderMap, form: Form) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(form.content_type()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
}

fn page_json(page: &Page, log: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(page.events.len() + 160);
    out.extend_from_slice(b"{\"events\":[");
    out.extend_from_slice(&page.events);
    out.push(b']');
    for (name, id) in [("next", page.next), ("earliest", page.earliest), ("tail", page.tail)] {
        out.extend_from_slice(format!(",\"{name}\":").as_bytes());
        decimal(&mut out, id);
    }
    out.extend_from_slice(b",\"log\":");
    json_string(&mut out, log);
    if let Some(gap) = page.gap {
        out.extend_from_slice(b",\"gap\":");
        Control::Gap { requested: gap.requested, earliest: gap.earliest, reason: gap.reason }.json(&mut out);
    }
    if let Some(last) = page.closed {
        out.extend_from_slice(b",\"closed\":");
        Control::Closed { last }.json(&mut out);
    }
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::NewEvent;
    use crate::log::{self, Gap, Log};
    use crate::sse::GapReason;
    use crate::topic::Topic;
    use hyper::Request;

    fn ask(accept: &str, target: &str, pattern: Option<&str>) -> Result<Asked, Error> {
        let request = Request::builder().uri(target).header("accept", accept).body(()).unwrap().into_parts().0;
        asked(&request, pattern.map(|p| Pattern::parse(p).unwrap()))
    }

    #[test]
    fn every_form_has_its_own_parameters_and_defaults() {
        let stream = ask("text/event-stream", "/topics/a", Some("a")).unwrap();
        assert_eq!(stream.how, How::Stream { form: Form::Sse, follow: true });
        assert_eq!(stream.wish.begin, Some(Begin::Latest));
        let page = ask("application/json", "/topics/a", Some("a")).unwrap();
        assert_eq!(page.how, How::Page { limit: 100, wait: Duration::ZERO });
        assert_eq!(page.wish.begin, Some(Begin::Earliest));
        let lines = ask("application/x-ndjson", "/topics/a?follow=false", Some("a")).unwrap();
        assert_eq!(lines.how, How::Stream { form: Form::Lines, follow: false });
        let envelope = ask("*/*", "/topics/a?envelope=json", Some("a")).unwrap();
        assert_eq!(envelope.how, How::Stream { form: Form::SseEnvelope, follow: true });
    }

    #[test]
    fn what_a_form_does_not_use_is_refused() {
        for (accept, query) in [
            ("text/event-stream", "limit=1"),
            ("text/event-stream", "wait=1s"),
            ("text/event-stream", "envelope=xml"),
            ("text/event-stream", "topic=a"),
            ("text/event-stream", "form=earliest"),
            ("application/x-ndjson", "envelope=json"),
            ("application/x-ndjson", "limit=1"),
            ("application/json", "envelope=json"),
            ("application/json", "follow=true"),
            ("application/json", "limit=0"),
            ("application/json", "limit=1001"),
            ("application/json", "wait=61s"),
            ("application/json", "from=state"),
            ("application/json", "from=snapshot"),
        ] {
            let refused = ask(accept, &format!("/topics/a?{query}"), Some("a"));
            assert!(matches!(refused, Err(Error::Query(_))), "{accept} {query}");
        }
    }

    #[test]
    fn events_takes_topics_and_types() {
        let asked = ask("*/*", "/events?topic=b&topic=a.*&event=x&event=message", None).unwrap();
        assert_eq!(asked.filter.patterns().iter().map(Pattern::as_str).collect::<Vec<_>>(), ["a.*", "b"]);
        assert!(asked.filter.matches_type(None) && asked.filter.matches_type(Some("x")));
        assert!(!asked.filter.matches_type(Some("y")));
        assert!(ask("*/*", "/events", None).unwrap().filter.is_everything());
        assert!(matches!(ask("*/*", "/events?topic=", None), Err(Error::Pattern { .. })));
        assert!(matches!(ask("*/*", "/events?event=open", None), Err(Error::EventType(_))));
        assert!(matches!(ask("image/png", "/events", None), Err(Error::NotAcceptable)));
    }

    #[test]
    fn a_snapshot_is_of_one_topic() {
        assert!(ask("*/*", "/topics/a?from=snapshot", Some("a")).is_ok());
        assert!(ask("*/*", "/events?topic=a&from=snapshot", None).is_ok());
        for (target, pattern) in [
            ("/topics/*?from=snapshot", Some("*")),
            ("/events?from=snapshot", None),
            ("/events?topic=a&topic=b&from=snapshot", None),
        ] {
            assert!(matches!(ask("*/*", target, pattern), Err(Error::Query(_))), "{target}");
        }
        assert!(ask("*/*", "/topics/*?from=state", Some("*")).is_ok());
    }

    #[tokio::test]
    async fn a_topic_that_was_closed_behind_a_beginning_owes_what_came_between() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(log::Options::new(dir.path())).unwrap();
        let api = Api::new(log.clone(), super::super::Options::default());
        let topic = Topic::parse("a").unwrap();
        let publish = || log.append(vec![NewEvent { topic: topic.clone(), event: None, key: None, data: "x".into() }]);
        let mut request = Request::builder().uri("/topics/a").body(()).unwrap().into_parts().0;
        request.headers.insert(begin::LAST_EVENT_ID, HeaderValue::from(1));
        let asked = asked(&request, Some(Pattern::parse("a").unwrap())).unwrap();
        publish().await.unwrap();
        let before = start(&api, &request, &asked).await.unwrap();
        publish().await.unwrap();
        log.close_topic(&topic).await.unwrap();
        let answered = |start| stream(&api, &request, &asked, start, Form::Sse, true);
        assert_eq!(answered(before).await.unwrap().status(), StatusCode::OK);
        let at_end = Start { cursor: 2, ..start(&api, &request, &asked).await.unwrap() };
        assert_eq!(answered(at_end).await.unwrap().status(), StatusCode::NO_CONTENT);
        log.close().await;
    }

    #[test]
    fn a_page_tells_its_place_and_its_gap() {
        let mut page = Page {
            events: b"{\"id\":57}".to_vec(),
            count: 1,
            next: 58,
            gap: None,
            closed: None,
            earliest: 1,
            tail: 90,
        };
        assert_eq!(
            String::from_utf8(page_json(&page, "x")).unwrap(),
            "{\"events\":[{\"id\":57}],\"next\":58,\"earliest\":1,\"tail\":90,\"log\":\"x\"}"
        );
        page.gap = Some(Gap { requested: 4, earliest: 57, reason: GapReason::Trimmed });
        let json: serde_json::Value = serde_json::from_slice(&page_json(&page, "x")).unwrap();
        assert_eq!(json["gap"], serde_json::json!({"requested": 4, "earliest": 57, "reason": "trimmed"}));
        page.closed = Some(57);
        let json: serde_json::Value = serde_json::from_slice(&page_json(&page, "x")).unwrap();
        assert_eq!(json["closed"], serde_json::json!({"last": 57}));
    }
}
