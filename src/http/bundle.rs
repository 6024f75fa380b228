//! `GET /topics/{pattern}/state` and `/topics/{topic}/snapshot`: what a client is given before it subscribes, each with the id at which
//! it is true.

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use hyper::Response;
use hyper::body::Body as HttpBody;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::request::Parts;

use super::answer::Body;
use super::begin::{self, LAST_EVENT_ID};
use super::body::Bounds;
use super::error::Error;
use super::query::Query;
use super::{Api, TIDELOG_LOG, forms, no_content, parsed};
use crate::event::EventId;
use crate::log::{BundleKind, Snapshot};
use crate::topic::{Filter, Pattern, Topic};

/// What a snapshot is, whose publisher did not say it.
const TEXT: &str = "text/plain; charset=utf-8";

/// Answers the newest event of each topic and key.
pub async fn state(api: &Api, request: &Parts, pattern: Pattern) -> Result<Response<Body>, Error> {
    Query::parse(request.uri.query())?.only("a state", &[])?;
    if api.is_draining() {
        return Err(Error::Draining);
    }
    let filter = Arc::new(Filter::new(vec![pattern], Vec::new()));
    let bundle = api.inner.log.bundle(BundleKind::State, &filter).await?;
    let as_of = bundle.at.unwrap_or(0);
    let first = format!("{{\"as_of\":{as_of},\"entries\":[");
    let mut response = Response::new(Body::around(first, bundle, &b"]}"[..]));
    true_at(api, response.headers_mut(), as_of, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Answers the topic's snapshot.
pub async fn snapshot(api: &Api, request: &Parts, topic: &Topic) -> Result<Response<Body>, Error> {
    Query::parse(request.uri.query())?.only("a snapshot", &[])?;
    if api.is_draining() {
        return Err(Error::Draining);
    }
    let filter = Arc::new(Filter::new(vec![topic.clone().into()], Vec::new()));
    let bundle = api.inner.log.bundle(BundleKind::Snapshot, &filter).await?;
    let at = bundle.at.ok_or(Error::NoSnapshot)?;
    let content_type = HeaderValue::from_str(&bundle.content_type).unwrap_or(HeaderValue::from_static(TEXT));
    let mut response = Response::new(Body::around(Bytes::new(), bundle, Bytes::new()));
    true_at(api, response.headers_mut(), at, content_type);
    Ok(response)
}

/// Keeps the body as the topic's snapshot.
pub async fn put_snapshot<B>(api: &Api, request: &Parts, topic: &Topic, body: B) -> Result<Response<Body>, Error>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Display,
{
    api.takes_events()?;
    Query::parse(request.uri.query())?.only("a snapshot", &[])?;
    let at = begin::header(&request.headers)?.ok_or(Error::NoId)?;
    let content_type = request.headers.get(CONTENT_TYPE).map_or(Ok(TEXT), HeaderValue::to_str);
    let content_type = content_type.map_err(|_| {
        let why = "it has characters that are not visible ASCII".to_owned();
        Error::Header { name: "Content-Type", why }
    })?;
    let options = &api.inner.options;
    let bounds = Bounds {
        bytes_max: options.limits.batch_bytes_max,
        what: "the snapshot",
        option: "limits.batch_bytes_max",
        time: options.request_timeout,
    };
    let read = api.inner.bodies.read(&request.headers, body, bounds).await?;
    let bytes = read.bytes;
    let body = parsed(bytes.len(), move || forms::utf8(bytes)).await?;
    let snapshot = Snapshot { at, content_type: content_type.to_owned(), body };
    api.inner.log.put_snapshot(topic, snapshot).await?;
    drop(read.share);
    Ok(no_content())
}

fn true_at(api: &Api, headers: &mut HeaderMap, at: EventId, content_type: HeaderValue) {
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(LAST_EVENT_ID, HeaderValue::from(at));
    headers.insert(TIDELOG_LOG, api.log_name());
}
