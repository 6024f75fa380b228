//! Who may ask from where: a text POST is a request that any web page may send to any host, so origins and, on a loopback
//! address, host names are checked before anything else.
//!
//! What holds: a foreign origin gets neither an effect nor an answer to read. Must not know resources.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, HOST, HeaderValue, ORIGIN,
    VARY,
};
use hyper::http::request::Parts;

use super::error::{Error, clip};

const ALLOWED_HEADERS: &str =
    "Content-Type, Last-Event-ID, Idempotency-Key, If-Match, If-None-Match, Authorization, Cache-Control";
const EXPOSED_HEADERS: &str =
    "Tidelog-Earliest, Tidelog-Tail, Tidelog-Log, Tidelog-Last, Last-Event-ID, Idempotency-Replayed";
/// Browsers keep a preflight's answer for this long; a change of `allow_origins` is felt within it.
const PREFLIGHT_SECONDS: &str = "600";

/// The rules.
#[derive(Debug, Clone, Default)]
pub struct CrossSite {
    /// Origins in lower case, without default ports.
    origins: Vec<String>,
    /// `*` is among the allowed origins: every one but `null`, without credentials.
    any: bool,
    /// The server listens on a loopback address, which a page can reach under a name of its own (DNS rebinding).
    loopback: bool,
}

/// A foreign origin that was let in, and is to be told so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    origin: HeaderValue,
    credentials: bool,
}

impl CrossSite {
    /// Rules that allow `origins` beside the server's own.
    #[must_use]
    pub fn new(origins: &[String], loopback: bool) -> Self {
        Self {
            origins: origins.iter().map(|o| normal(o.trim_end_matches('/'))).collect(),
            any: origins.iter().any(|o| o == "*"),
            loopback,
        }
    }

    /// Judges a request: `None` when it is from no other origin.
    ///
    /// # Errors
    /// When it is to be refused.
    pub fn judge(&self, request: &Parts) -> Result<Option<Allowed>, Error> {
        let host = host(request)?;
        if self.loopback && !host.is_some_and(is_loopback) {
            return Err(Error::Host(host.map_or_else(|| "absent".to_owned(), |h| format!("{:?}", clip(h)))));
        }
        let mut origins = request.headers.get_all(ORIGIN).iter();
        let Some(value) = origins.next() else { return Ok(None) };
        let refused = || Err(Error::Origin(clip(&String::from_utf8_lossy(value.as_bytes()))));
        let Ok(text) = value.to_str() else { return refused() };
        if origins.next().is_some() {
            return refused();
        }
        let origin = normal(text);
        if host.is_some_and(|h| ["http://", "https://"].iter().any(|s| origin == normal(&format!("{s}{h}")))) {
            return Ok(None);
        }
        if origin == "null" {
            return refused();
        }
        let listed = self.origins.contains(&origin);
        if listed || self.any {
            return Ok(Some(Allowed { origin: value.clone(), credentials: listed }));
        }
        refused()
    }

    /// Tells an answer's browser what it may do with it.
    pub fn mark(&self, headers: &mut HeaderMap, allowed: Option<&Allowed>) {
        if self.any || !self.origins.is_empty() {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        let Some(allowed) = allowed else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed.origin.clone());
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS));
        if allowed.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
}

/// Answers what a browser asks before a request that is not simple.
pub fn preflight(headers: &mut HeaderMap, methods: &'static str) {
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_HEADERS));
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_SECONDS));
}

/// The host that the request is for, with its port: `:authority` on HTTP/2, else `Host`.
fn host(request: &Parts) -> Result<Option<&str>, Error> {
    if let Some(authority) = request.uri.authority() {
        let text = authority.as_str();
        return Ok(Some(text.rsplit_once('@').map_or(text, |(_, host)| host)));
    }
    let mut hosts = request.headers.get_all(HOST).iter();
    let Some(value) = hosts.next() else { return Ok(None) };
    match (value.to_str(), hosts.next()) {
        (Ok(text), None) => Ok(Some(text)),
        _ => Err(Error::Header { name: "Host", why: "it is one host name, once".to_owned() }),
    }
}

/// `localhost` or a loopback address, with any port or none. An address cannot be rebound, so all of them will do.
fn is_loopback(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) => (name, port),
            None => return false,
        },
        None => host.find(':').map_or((host, ""), |at| host.split_at(at)),
    };
    let port_is_one = port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()));
    port_is_one && (name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()))
}

/// An origin in lower case, without the port that its scheme has anyway.
fn normal(origin: &str) -> String {
    let origin = origin.to_ascii_lowercase();
    let default_port = if origin.starts_with("https://") { ":443" } else { ":80" };
    origin.strip_suffix(default_port).map_or_else(|| origin.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut builder = Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    fn judge(rules: &CrossSite, host: &str, origin: Option<&str>) -> Result<Option<Allowed>, Error> {
        let mut headers = vec![("host", host)];
        headers.extend(origin.map(|o| ("origin", o)));
        rules.judge(&request("/topics/a", &headers))
    }

    #[test]
    fn the_servers_own_origin_is_http_or_https_and_its_host() {
        let rules = CrossSite::new(&[], false);
        let own = |host, origin| matches!(judge(&rules, host, Some(origin)), Ok(None));
        assert!(own("log.example:4242", "http://log.example:4242"));
        assert!(own("log.example:4242", "https://LOG.example:4242"));
        assert!(own("log.example", "https://log.example:443"));
        assert!(own("log.example:80", "http://log.example"));
        assert!(own("[::1]:4242", "http://[::1]:4242"));
        for foreign in
            ["http://log.example", "http://evil.example", "null", "", "ftp://log.example:4242", "log.example:4242"]
        {
            assert!(matches!(judge(&rules, "log.example:4242", Some(foreign)), Err(Error::Origin(_))), "{foreign}");
        }
        assert!(matches!(judge(&rules, "log.example", None), Ok(None)));
    }

    #[test]
    fn allowed_origins_are_told_so_and_others_are_refused() {
        let rules = CrossSite::new(&["https://App.example/".to_owned(), "http://localhost:3000".to_owned()], false);
        let allowed = judge(&rules, "log.example", Some("https://app.example")).unwrap().unwrap();
        let mut headers = HeaderMap::new();
        rules.mark(&mut headers, Some(&allowed));
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_ORIGIN], "https://app.example");
        assert_eq!(headers[ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
        assert_eq!(headers[VARY], "Origin");
        for name in ["Tidelog-Earliest", "Tidelog-Tail", "Tidelog-Log", "Last-Event-ID", "Idempotency-Replayed"] {
            assert!(headers[ACCESS_CONTROL_EXPOSE_HEADERS].to_str().unwrap().contains(name));
        }
        for foreign in ["http://app.example", "https://app.example.evil.example", "https://app.example:8443", "null"] {
            assert!(judge(&rules, "log.example", Some(foreign)).is_err(), "{foreign}");
        }
        let twice = request("/", &[("host", "a"), ("origin", "http://a"), ("origin", "http://a")]);
        assert!(rules.judge(&twice).is_err());
    }

    #[test]
    fn a_star_allows_all_but_null_and_no_credentials() {
        let rules = CrossSite::new(&["*".to_owned()], false);
        let allowed = judge(&rules, "log.example", Some("https://any.example")).unwrap().unwrap();
        assert!(!allowed.credentials);
        assert!(judge(&rules, "log.example", Some("null")).is_err());
    }

    #[test]
    fn on_loopback_the_host_is_a_loopback_name() {
        let rules = CrossSite::new(&[], true);
        for good in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:4242", "[::1]", "[::1]:4242", "localhost:"] {
            assert!(judge(&rules, good, None).is_ok(), "{good}");
        }
        for bad in
            ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "127.1", "::1", "[::1", "", "[::1]x"]
        {
            assert!(matches!(judge(&rules, bad, None), Err(Error::Host(_))), "{bad}");
        }
        assert!(rules.judge(&request("/", &[])).is_err());
        assert!(CrossSite::new(&[], false).judge(&request("/", &[])).is_ok());
        // The name is checked before the origin, which a rebound page would share.
        assert!(matches!(judge(&rules, "evil.example", Some("http://evil.example")), Err(Error::Host(_))));
        // HTTP/2 says it in the target.
        assert!(rules.judge(&request("http://localhost:4242/", &[("host", "evil.example")])).is_ok());
        assert!(rules.judge(&request("http://localhost@evil.example/", &[])).is_err());
    }
}
