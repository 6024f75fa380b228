//! HTTP: requests become calls to the log, and what the log says becomes answers.
//!
//! One file a resource; `problem.rs` alone turns errors into statuses. What holds: every request is judged by where it comes
//! from before anything else, and nothing that it says is passed over in silence. Must not know sockets.

pub mod accept;
pub mod answer;
pub mod begin;
pub mod body;
mod bundle;
pub mod cross_site;
pub mod error;
pub mod forms;
mod ops;
pub mod problem;
mod publish;
pub mod query;
pub mod route;
mod subscribe;
#[doc(hidden)]
pub mod terms;
mod topics;

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::body::Body as HttpBody;
use hyper::header::{
    ACCESS_CONTROL_REQUEST_METHOD, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};

use crate::event::Millis;
use crate::log::{Lane, Log};
use answer::Body;
use body::Budget;
use cross_site::{Allowed, CrossSite};
use error::Error;
use problem::Problem;
use route::Resource;

const TIDELOG_LOG: HeaderName = HeaderName::from_static("tidelog-log");

/// What can be set here.
#[derive(Clone)]
pub struct Options {
    pub limits: forms::Limits,
    /// After this long without a byte, a stream sends a heartbeat.
    pub heartbeat: Duration,
    /// What clients are told to wait before they come back, ±50%.
    pub retry: Duration,
    /// From a request's head to the last byte of its body.
    pub request_timeout: Duration,
    /// The bytes that all bodies being read, parsed and appended may take together.
    pub bodies_bytes_max: usize,
    /// Origins that may ask beside the server's own; `*` for every one, without credentials.
    pub allow_origins: Vec<String>,
    /// The server listens on a loopback address, so only loopback names are its own.
    pub loopback: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            limits: forms::Limits::default(),
            heartbeat: Duration::from_secs(15),
            retry: Duration::from_secs(2),
            request_timeout: Duration::from_secs(30),
            // Sixteen of the largest batches, or a quarter of a small machine.
            bodies_bytes_max: 256 << 20,
            allow_origins: Vec::new(),
            loopback: true,
        }
    }
}

/// What the server knows of the connection that a request came on.
#[derive(Debug, Clone, Copy, Default)]
pub struct Peer {
    /// There are more connections than there may be: it is told to come back.
    pub turned_away: bool,
}

/// The API over one log. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    inner: Arc<Inner>,
}

struct Inner {
    log: Log,
    /// Its name, as every answer about it says it.
    log_name: HeaderValue,
    options: Options,
    cross_site: CrossSite,
    bodies: Budget,
    draining: Arc<AtomicBool>,
}

/// A publish whose head was looked at: what all with the same head ask for.
pub struct Known {
    plan: publish::Plan,
    path: Box<str>,
    /// By where it comes from, which its head says.
    allowed: Option<Allowed>,
}

impl Api {
    /// The API over `log`.
    #[must_use]
    pub fn new(log: Log, options: Options) -> Self {
        let cross_site = CrossSite::new(&options.allow_origins, options.loopback);
        let bodies = Budget::new(options.bodies_bytes_max);
        let log_name = HeaderValue::from_str(log.name()).unwrap_or_else(|_| HeaderValue::from_static(""));
        Self { inner: Arc::new(Inner { log, log_name, options, cross_site, bodies, draining: Arc::default() }) }
    }

    /// From now on sends everybody away, and ends what streams there are.
    pub fn drain(&self) {
        self.inner.draining.store(true, Ordering::Release);
        self.inner.log.drain();
    }

    /// The same API for a thread that serves publishers and commits what they publish; see [`Lane`].
    #[must_use]
    pub fn lane(&self) -> (Self, Lane) {
        let Inner { log, log_name, options, cross_site, bodies, draining } = &*self.inner;
        let (log, lane) = log.lane();
        let (log_name, options) = (log_name.clone(), options.clone());
        let (cross_site, bodies, draining) = (cross_site.clone(), bodies.clone(), draining.clone());
        let inner = Inner { log, log_name, options, cross_site, bodies, draining };
        (Self { inner: Arc::new(inner) }, lane)
    }

    /// Answers one request.
    pub async fn handle<B>(&self, request: Request<B>, peer: Peer) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Display,
    {
        let (request, body) = request.into_parts();
        let (response, allowed) = match self.inner.cross_site.judge(&request) {
            Err(error) => (Problem::from(error).response(), None),
            Ok(allowed) => (self.answer(&request, body, peer, allowed.as_ref()).await, allowed),
        };
        let response = self.marked(response, allowed.as_ref());
        if request.method == Method::HEAD { headless(response) } else { response }
    }

    /// What a publish asks for by its head, to be answered by [`Api::repeat`] as often as that comes again; `None` for anything else, for
    /// what is refused, and for a head with an idempotency key, as the next one has another.
    pub(crate) fn known(&self, request: &Parts) -> Option<Known> {
        let allowed = self.inner.cross_site.judge(request).ok()?;
        let path = request.uri.path();
        let topic = match (Resource::of(path)?, &request.method) {
            (Resource::Topic(name), &Method::POST) => Some(route::topic(name).ok()?),
            (Resource::Topics, &Method::POST) => None,
            _ => return None,
        };
        let plan = publish::Plan::of(request, topic).ok().filter(|plan| !plan.has_key())?;
        Some(Known { plan, path: path.into(), allowed })
    }

    /// Answers a publish with a known head and this body, which is small. What may change while the head does not is judged anew.
    pub(crate) async fn repeat(&self, known: &Known, body: &[u8]) -> Response<Body> {
        let answer = publish::repeat(self, &known.plan, body).await;
        let response = answer.unwrap_or_else(|error| self.refused(&Method::POST, &known.path, error).response());
        self.marked(response, known.allowed.as_ref())
    }

    /// What every answer says.
    fn marked(&self, mut response: Response<Body>, allowed: Option<&Allowed>) -> Response<Body> {
        self.inner.cross_site.mark(response.headers_mut(), allowed);
        response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }

    /// Notes that a request is refused.
    fn refused(&self, method: &Method, path: &str, error: Error) -> Problem {
        let problem = Problem::from(error);
        if method == Method::POST {
            self.inner.log.count_refused(problem.code.as_str());
        }
        // What the log cannot do is said where it fails, once, and counted here; a line for each refused request would flood.
        tracing::debug!(%method, path, code = problem.code.as_str(), "{}", problem.detail);
        problem
    }

    async fn answer<B>(&self, request: &Parts, body: B, peer: Peer, allowed: Option<&Allowed>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Display,
    {
        let error = match self.dispatch(request, body, peer, allowed).await {
            Ok(response) => return response,
            Err(error) => error,
        };
        let problem = self.refused(&request.method, request.uri.path(), error);
        if subscribe::is_to_be_sent_away(request, &problem)
            && let Some(resource) = Resource::of(request.uri.path())
        {
            return match resource.pattern() {
                Ok(Some(pattern)) => subscribe::send_away(self, request, pattern, &problem)
                    .await
                    .unwrap_or_else(|error| Problem::from(error).response()),
                Ok(None) => problem.response(),
                Err(error) => Problem::from(error).response(),
            };
        }
        problem.response()
    }

    async fn dispatch<B>(
        &self,
        request: &Parts,
        body: B,
        peer: Peer,
        allowed: Option<&Allowed>,
    ) -> Result<Response<Body>, Error>
    where
        B: HttpBody<Data = Bytes> + Unpin,
        B::Error: Display,
    {
        let resource = Resource::of(request.uri.path()).ok_or(Error::NoResource)?;
        // Operators must see in, above all when it is full.
        if peer.turned_away && !matches!(resource, Resource::Healthz | Resource::Metrics) {
            return Err(Error::Overloaded("there are too many connections (limits.connections_max)"));
        }
        // What is not HEAD keeps its own arm; HEAD is GET without its body.
        let get = request.method == Method::GET || request.method == Method::HEAD;
        match (resource, &request.method) {
            (_, &Method::OPTIONS) => Ok(options(request, resource, allowed.is_some())),
            (Resource::Page, _) if get => Ok(ops::page()),
            (Resource::Healthz, _) if get => ops::healthz(request),
            (Resource::Readyz, _) if get => ops::readyz(self, request),
            (Resource::Metrics, _) if get => ops::metrics(self, request),
            (Resource::OpenApi, _) if get => ops::openapi(request),
            (Resource::Events, _) if get => subscribe::get(self, request, None).await,
            (Resource::Topics, _) if get => topics::list(self, request).await,
            // What these two look at in a request's head, `known` is to look at as well.
            (Resource::Topics, &Method::POST) => publish::post(self, request, None, body).await,
            (Resource::Topic(_), _) if get => subscribe::get(self, request, resource.pattern()?.flatten()).await,
            (Resource::Topic(name), &Method::POST) => {
                publish::post(self, request, Some(route::topic(name)?), body).await
            }
            (Resource::Topic(name), &Method::DELETE) => topics::delete(self, request, &route::topic(name)?).await,
            (Resource::Retention(name), _) if get => topics::retention(self, request, &route::topic(name)?),
            (Resource::Retention(name), &Method::PUT) => {
                topics::set_retention(self, request, &route::topic(name)?, body).await
            }
            (Resource::Retention(name), &Method::DELETE) => {
                topics::forget_retention(self, request, &route::topic(name)?).await
            }
            (Resource::State(pattern), _) if get => bundle::state(self, request, route::pattern(pattern)?).await,
            (Resource::Snapshot(name), _) if get => bundle::snapshot(self, request, &route::topic(name)?).await,
            (Resource::Snapshot(name), &Method::PUT) => {
                bundle::put_snapshot(self, request, &route::topic(name)?, body).await
            }
            (Resource::Close(name), &Method::POST) => topics::close(self, request, &route::topic(name)?).await,
            (_, method) => Err(Error::Method { method: error::clip(method.as_str()), allow: resource.allow() }),
        }
    }

    fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Acquire)
    }

    /// Whether events and changes are taken at all.
    fn takes_events(&self) -> Result<(), Error> {
        if self.is_draining() { Err(Error::Draining) } else { Ok(()) }
    }

    fn log_name(&self) -> HeaderValue {
        self.inner.log_name.clone()
    }
}

/// `OPTIONS`: what a resource takes; to a browser of another origin, also what it may send.
fn options(request: &Parts, resource: Resource<'_>, foreign: bool) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(resource.allow()));
    if foreign && request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        cross_site::preflight(response.headers_mut(), resource.allow());
    }
    response
}

/// The same head, with the length that the body would have had.
fn headless(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    if let Some(len) = body.exact_len().filter(|len| *len > 0) {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
    }
    Response::from_parts(head, Body::empty())
}

fn answer_json(json: String) -> Response<Body> {
    let mut response = Response::new(Body::full(json));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// Bodies beyond this are parsed on a blocking thread: at some 300 MB/s this takes a millisecond of an async worker.
const INLINE_BYTES_MAX: usize = 256 * 1024;

/// Runs `parse`, which goes through so many bytes: off the async workers where they are many.
async fn parsed<T: Send + 'static>(
    bytes: usize,
    parse: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    if bytes <= INLINE_BYTES_MAX {
        return parse();
    }
    // It does not panic, so what ends it is the end of the runtime.
    tokio::task::spawn_blocking(parse).await.map_err(|_| Error::Draining)?
}

fn now() -> Millis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}
