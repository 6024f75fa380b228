//! What operators and browsers look at: health, metrics, the description of the API, and the page.

use hyper::Response;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY};
use hyper::http::request::Parts;

use super::Api;
use super::answer::Body;
use super::error::Error;
use super::query::Query;
use crate::log::Health;
use crate::metrics::CONTENT_TYPE as CONTENT_TYPE_METRICS;

const PAGE: &str = include_str!("../ui/index.html");
const DESCRIPTION: &str = include_str!("openapi.json");

/// The page is one file and talks to its own server only.
const PAGE_POLICY: &str = "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
     img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Alive: it answers.
pub fn healthz(request: &Parts) -> Result<Response<Body>, Error> {
    takes_no_query(request)?;
    Ok(answer("text/plain; charset=utf-8", "ok\n"))
}

/// Ready: it takes events.
pub fn readyz(api: &Api, request: &Parts) -> Result<Response<Body>, Error> {
    takes_no_query(request)?;
    if api.is_draining() {
        return Err(Error::Draining);
    }
    match api.inner.log.health() {
        Health::Writable => Ok(answer("text/plain; charset=utf-8", "ready\n")),
        Health::Refusing { reason } => Err(Error::Refusing { reason: reason.to_string() }),
        Health::Hanging { time } => {
            let seconds = time.as_secs_f64();
            Err(Error::Refusing { reason: format!("the disk has given no answer for {seconds:.1} s; publishes wait") })
        }
    }
}

/// What is counted, for Prometheus.
pub fn metrics(api: &Api, request: &Parts) -> Result<Response<Body>, Error> {
    takes_no_query(request)?;
    Ok(answer(CONTENT_TYPE_METRICS, api.inner.log.metrics().render()))
}

/// The description of the API.
pub fn openapi(request: &Parts) -> Result<Response<Body>, Error> {
    takes_no_query(request)?;
    Ok(answer("application/json", DESCRIPTION.replacen("{version}", env!("CARGO_PKG_VERSION"), 1)))
}

/// The page.
pub fn page() -> Response<Body> {
    let mut response = answer("text/html; charset=utf-8", PAGE);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

fn takes_no_query(request: &Parts) -> Result<(), Error> {
    Query::parse(request.uri.query())?.only("this resource", &[])
}

fn answer(content_type: &'static str, text: impl Into<bytes::Bytes>) -> Response<Body> {
    let mut response = Response::new(Body::full(text));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

#[cfg(test)]
mod tests {
    use super::super::problem::Code;
    use super::super::route::Resource;
    use serde_json::Value;

    fn description() -> Value {
        serde_json::from_str(super::DESCRIPTION).unwrap()
    }

    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(members) => members.iter().for_each(|(name, value)| match value.as_str() {
                Some(target) if name == "$ref" => found.push(target),
                _ => references(value, found),
            }),
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_described_path_is_there_with_those_methods() {
        let description = description();
        let mut described = Vec::new();
        for (path, item) in description["paths"].as_object().unwrap() {
            let target = path.replace("{topic}", "a");
            let resource = Resource::of(&target).unwrap_or_else(|| panic!("{path}"));
            for method in item.as_object().unwrap().keys().filter(|key| *key != "parameters") {
                assert!(resource.allow().split(", ").any(|m| m.eq_ignore_ascii_case(method)), "{method} {path}");
                described.push(format!("{} {target}", method.to_uppercase()));
            }
        }
        for path in [
            "/",
            "/healthz",
            "/readyz",
            "/metrics",
            "/openapi.json",
            "/events",
            "/topics",
            "/topics/a",
            "/topics/a/retention",
            "/topics/a/state",
            "/topics/a/snapshot",
            "/topics/a/close",
        ] {
            for method in Resource::of(path).unwrap().allow().split(", ").filter(|m| *m != "OPTIONS") {
                assert!(described.contains(&format!("{method} {path}")), "{method} {path} is not described");
            }
        }
    }

    #[test]
    fn every_problem_code_is_described_and_every_reference_resolves() {
        let description = description();
        let codes = &description["components"]["schemas"]["Problem"]["properties"]["code"]["enum"];
        let described: Vec<_> = codes.as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
        assert_eq!(described, Code::ALL.iter().map(|c| c.as_str()).collect::<Vec<_>>());
        let mut found = Vec::new();
        references(&description, &mut found);
        assert!(!found.is_empty());
        for target in found {
            assert!(description.pointer(target.trim_start_matches('#')).is_some(), "{target}");
        }
    }
}
