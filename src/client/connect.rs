//! Connections: where the server is, one HTTP/1.1 connection, and those that wait to be used again.
//!
//! Must not know what is asked over them.

use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderMap, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::{Client, Error, Problem};

/// Most bytes of an answer that is not a stream; acks and problems have a few hundred.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Most connections that are kept for later; more are only open while as many calls run at once.
const IDLE_MAX: usize = 8;
/// How long a connection is kept. Below the idle timeouts of common proxies, because a request that meets a closing
/// connection has an unknown outcome.
const IDLE_AGE_MAX: Duration = Duration::from_secs(15);

/// Where a server is.
#[derive(Debug)]
pub(super) struct Target {
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// `host[:port]` as it was written.
    authority: HeaderValue,
    /// The path before the contract's own; empty, or it begins with a slash and ends without one.
    prefix: String,
}

impl Target {
    /// Reads `http://HOST[:PORT][/PREFIX]`.
    pub(super) fn parse(url: &str) -> Result<Self, Error> {
        let wrong = |why| Error::Url { url: url.to_owned(), why };
        let uri: Uri = url.parse().map_err(|_| wrong("is malformed; it looks like http://127.0.0.1:4242"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(wrong("is https, which is not supported yet; use http:// or a local TLS proxy"));
            }
            _ => return Err(wrong("has to begin with http://")),
        }
        let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("has a user name, which is not supported"));
        }
        if uri.query().is_some() {
            return Err(wrong("has a query; it ends after the path"));
        }
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        Ok(Self {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| wrong("names a malformed host"))?,
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// `host[:port]` as it was written.
    fn server(&self) -> String {
        String::from_utf8_lossy(self.authority.as_bytes()).into_owned()
    }

    /// A request for `path` (with its query) below the prefix.
    pub(super) fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, Error> {
        let uri = Uri::try_from(format!("{}{path}", self.prefix)).map_err(|_| Error::Url {
            url: self.server(),
            why: "with the path and query of this request is longer than HTTP clients can send; ask for fewer topics",
        })?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        let agent = HeaderValue::from_static(concat!("tidelog/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().insert(USER_AGENT, agent);
        request.headers_mut().insert(HOST, self.authority.clone());
        Ok(request)
    }

    /// Connects.
    pub(super) async fn connect(&self, connect_timeout: Duration) -> Result<Connection, Error> {
        let failed = |cause| Error::Connect { server: self.server(), cause };
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let stream = match tokio::time::timeout(connect_timeout, connecting).await {
            Ok(stream) => stream.map_err(failed)?,
            Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
        };
        // Requests and acks are small and waited for.
        stream.set_nodelay(true).map_err(failed)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|cause| Error::Unsent { server: self.server(), cause })?;
        // Its errors come out where the answer is waited for.
        let task = tokio::spawn(async move { drop(connection.await) });
        Ok(Connection { sender, _task: AbortOnDropHandle::new(task) })
    }
}

/// One HTTP/1.1 connection; closed when it is dropped.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _task: AbortOnDropHandle<()>,
}

/// Why a request got no answer.
pub(super) enum NoAnswer {
    /// Nothing of it was sent: here it is again.
    Unsent(Box<Request<Full<Bytes>>>, hyper::Error),
    /// Something may have been sent.
    Broken(hyper::Error),
}

impl Connection {
    /// Sends `request` and waits for the head of the answer.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, NoAnswer> {
        if let Err(error) = self.sender.ready().await {
            return Err(NoAnswer::Unsent(Box::new(request), error));
        }
        self.sender.try_send_request(request).await.map_err(|mut failed| match failed.take_message() {
            Some(request) => NoAnswer::Unsent(Box::new(request), failed.into_error()),
            None => NoAnswer::Broken(failed.into_error()),
        })
    }
}

/// A connection that waits to be used again.
#[derive(Debug)]
pub(super) struct Idle {
    connection: Connection,
    since: Instant,
}

impl Idle {
    /// Whether it is known that the server has closed it.
    pub(super) fn is_closed(&self) -> bool {
        self.connection.sender.is_closed()
    }
}

impl Client {
    /// Sends `request`, over an idle connection when there is one, and reads the whole answer.
    pub(super) async fn call(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, HeaderMap, Bytes), Error> {
        let within = self.timeouts.answer;
        match tokio::time::timeout(within, self.call_unbounded(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Broken(format!("no answer within {}", humantime::format_duration(within)))),
        }
    }

    async fn call_unbounded(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, HeaderMap, Bytes), Error> {
        let mut connection = match self.take_idle() {
            Some(connection) => connection,
            None => self.target.connect(self.timeouts.connect).await?,
        };
        let response = match connection.send(request).await {
            Ok(response) => response,
            Err(NoAnswer::Broken(error)) => return Err(Error::Broken(causes(&error))),
            // The one repetition: it was not sent, so it cannot happen twice.
            Err(NoAnswer::Unsent(request, _)) => {
                connection = self.target.connect(self.timeouts.connect).await?;
                connection.send(*request).await.map_err(|failed| match failed {
                    NoAnswer::Unsent(_, cause) => Error::Unsent { server: self.target.server(), cause },
                    NoAnswer::Broken(error) => Error::Broken(causes(&error)),
                })?
            }
        };
        let (head, body) = response.into_parts();
        let body = read_answer(body).await?;
        self.keep(connection);
        Ok((head.status, head.headers, body))
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock();
        idle.retain(|i| i.since.elapsed() < IDLE_AGE_MAX && !i.is_closed());
        idle.pop().map(|i| i.connection)
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_MAX && !connection.sender.is_closed() {
            idle.push(Idle { connection, since: Instant::now() });
        }
    }
}

/// Reads the whole body of an answer.
pub(super) async fn read_answer(body: Incoming) -> Result<Bytes, Error> {
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    Ok(body.map_err(|error| Error::Broken(format!("in the middle of the answer: {}", causes(&*error))))?.to_bytes())
}

/// An error and what caused it, as one fragment of a sentence.
pub(super) fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What an answer that is no success says.
pub(super) fn problem(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Problem {
    #[derive(serde::Deserialize, Default)]
    #[serde(default)]
    struct Members {
        title: String,
        detail: String,
        code: String,
    }
    let members: Members = serde_json::from_slice(body).unwrap_or_default();
    let reason = status.canonical_reason().unwrap_or("an error").to_lowercase();
    let detail = [members.detail, members.title, reason].into_iter().find(|text| !text.is_empty()).unwrap_or_default();
    let retry_after = headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok()).map(Duration::from_secs);
    Problem { status: status.as_u16(), code: members.code, detail, retry_after }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Act, PATIENCE, Scripted};
    use super::*;

    #[test]
    fn urls_are_http_with_an_optional_port_and_prefix() {
        let target = Target::parse("http://localhost:4242").unwrap();
        assert_eq!((target.host.as_str(), target.port, target.prefix.as_str()), ("localhost", 4242, ""));
        let target = Target::parse("http://[::1]/events/log/").unwrap();
        assert_eq!((target.host.as_str(), target.port, target.prefix.as_str()), ("::1", 80, "/events/log"));
        assert_eq!(target.authority, "[::1]");
        let request = target.request(Method::GET, "/topics?x=1", Bytes::new()).unwrap();
        assert_eq!(request.uri(), "/events/log/topics?x=1");
        assert_eq!(request.headers()[HOST], "[::1]");
    }

    #[test]
    fn other_urls_are_refused_with_the_reason() {
        for (url, word) in [
            ("https://example.org", "https"),
            ("ftp://example.org", "http://"),
            ("127.0.0.1:4242", "http://"),
            ("localhost", "http://"),
            ("http://", "malformed"),
            ("", "malformed"),
            ("http://a:b@example.org", "user name"),
            ("http://example.org/?a=b", "query"),
        ] {
            let error = Target::parse(url).unwrap_err().to_string();
            assert!(error.contains(word), "{url}: {error}");
        }
    }

    #[tokio::test]
    async fn a_request_for_a_closed_connection_comes_back_unsent() {
        let mut server = Scripted::start(vec![vec![Act::Close]]).await;
        let target = Target::parse(&server.url).unwrap();
        let mut connection = target.connect(PATIENCE).await.unwrap();
        let request = || target.request(Method::GET, "/", Bytes::from_static(b"x")).unwrap();
        assert!(matches!(connection.send(request()).await, Err(NoAnswer::Broken(_))), "this one was sent");
        assert_eq!(server.seen().await.body, "x");
        let Err(NoAnswer::Unsent(back, _)) = connection.send(request()).await else { panic!("it cannot be sent") };
        assert_eq!(back.uri(), "/");
    }

    #[test]
    fn a_problem_without_json_still_says_something() {
        let none = HeaderMap::new();
        let problem = problem(StatusCode::BAD_GATEWAY, &none, b"<html>");
        assert_eq!((problem.detail.as_str(), problem.code.as_str()), ("bad gateway", ""));
    }
}
