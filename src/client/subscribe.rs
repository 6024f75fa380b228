//! Subscribing: one stream of items over as many connections as it takes.
//!
//! What holds: the cursor is the last complete event's id, so a connection that breaks anywhere resumes with no gap and no
//! duplicate; it is read only as fast as the caller takes items. Must not know what the items are used for.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use form_urlencoded::Serializer;
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode};
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;

use super::connect::{Connection, NoAnswer, causes, problem, read_answer};
use super::items::{Reading, read};
use super::{Client, Error, Item};
use crate::event::{EventId, parse_id};
use crate::sse::decode::{Decoder, Limits, Message, TooLarge};
use crate::topic::Pattern;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const TIDELOG_LOG: HeaderName = HeaderName::from_static("tidelog-log");
const TIDELOG_TAIL: HeaderName = HeaderName::from_static("tidelog-tail");

/// No wait before an attempt is drawn from less than this, whatever the server says, so that no client ever spins.
const BACKOFF_MIN: Duration = Duration::from_millis(10);

/// How events are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Each event's data is the whole event (`envelope=json`), so that topic, key and time are known.
    Envelope,
    /// Plain frames, as an `EventSource` gets them; [`Subscription::frame`] gives their bytes.
    Plain,
}

/// How to subscribe.
#[derive(Debug, Clone)]
pub struct SubscribeOptions {
    /// Where to begin, as the query `from=` says it (`earliest`, `latest`, `N`, `-N`, a time, an age, `state`, `snapshot`), unless
    /// there is an `after`. `None`: `latest`.
    pub from: Option<String>,
    /// Begin after this id.
    pub after: Option<EventId>,
    /// The name of the log that `after` is an id of, so that another log is noticed.
    pub log: Option<String>,
    /// Only events of these types; empty: of every type.
    pub types: Vec<String>,
    /// Whether to stay for what comes; else the stream ends at the tail.
    pub follow: bool,
    pub wire: Wire,
    /// A connection over which no byte came for so long is broken. The default is three of the server's default heartbeats.
    pub read_timeout: Duration,
    /// Upper end of the first wait before a reconnect, until the server says another; it doubles with each failure.
    pub retry: Duration,
    /// Upper end of every wait.
    pub retry_max: Duration,
    /// How many attempts may fail one after another before the subscription gives up; `None`: it never does.
    pub failures_max: Option<u32>,
    /// Most bytes of a line and an event.
    pub limits: Limits,
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self {
            from: None,
            after: None,
            log: None,
            types: Vec::new(),
            follow: true,
            wire: Wire::Envelope,
            read_timeout: 3 * Duration::from_secs(15),
            retry: Duration::from_secs(2),
            retry_max: Duration::from_secs(30),
            failures_max: None,
            limits: Limits::default(),
        }
    }
}

impl Client {
    /// Follows the topics that match any of `patterns` (none: every topic). Connects when it is first polled, and again
    /// whenever the connection breaks; ends after the server's proper end, or after an `Err`, which connecting again would not
    /// mend.
    #[must_use]
    pub fn subscribe(&self, patterns: &[Pattern], options: SubscribeOptions) -> Subscription {
        let topic = match patterns {
            [one] => one.as_topic().map(|topic| topic.as_str().to_owned()),
            _ => None,
        };
        Subscription {
            client: self.clone(),
            patterns: patterns.to_vec(),
            topic,
            cursor: options.after,
            log: options.log.clone(),
            from: options.from.clone(),
            retry: options.retry,
            options,
            failures: 0,
            closed: false,
            frame: Vec::new(),
            state: State::Start,
        }
    }
}

/// A stream of [`Item`]s. Its `next` may be dropped and called again at any time; nothing is lost.
pub struct Subscription {
    client: Client,
    patterns: Vec<Pattern>,
    /// The topic of every event, when it can only be one.
    topic: Option<String>,
    options: SubscribeOptions,
    from: Option<String>,
    cursor: Option<EventId>,
    log: Option<String>,
    retry: Duration,
    /// Attempts that have failed since something was last received.
    failures: u32,
    closed: bool,
    frame: Vec<u8>,
    state: State,
}

type Connecting = Pin<Box<dyn Future<Output = Result<Opened, Error>> + Send>>;

enum State {
    Start,
    Waiting(Pin<Box<Sleep>>),
    Connecting(Connecting),
    Reading(Box<Open>),
    Ended,
}

impl Subscription {
    /// After which id it would resume now: that of the last item yielded. `None` as long as there is none.
    #[must_use]
    pub fn cursor(&self) -> Option<EventId> {
        self.cursor
    }

    /// The name of the log that the cursor is an id of, once it is known.
    #[must_use]
    pub fn log(&self) -> Option<&str> {
        self.log.as_deref()
    }

    /// On [`Wire::Plain`], the frame of the item that was yielded last, as it came, without comments; else empty.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    fn request(&self) -> Result<Request<Full<Bytes>>, Error> {
        let mut query = Serializer::new(String::new());
        for pattern in &self.patterns {
            query.append_pair("topic", pattern.as_str());
        }
        for event in &self.options.types {
            query.append_pair("event", event);
        }
        if let Some(from) = &self.from {
            query.append_pair("from", from);
        }
        if self.options.wire == Wire::Envelope {
            query.append_pair("envelope", "json");
        }
        if !self.options.follow {
            query.append_pair("follow", "false");
        }
        let query = query.finish();
        let mark = if query.is_empty() { "" } else { "?" };
        let mut request = self.client.target.request(Method::GET, &format!("/events{mark}{query}"), Bytes::new())?;
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(cursor) = self.cursor {
            request.headers_mut().insert(LAST_EVENT_ID, HeaderValue::from(cursor));
        }
        Ok(request)
    }

    fn connect(&self) -> Connecting {
        let request = self.request();
        let client = self.client.clone();
        let options = &self.options;
        let mut decoder = Decoder::new(options.limits);
        if options.wire == Wire::Plain {
            decoder = decoder.keep_frames();
        }
        let read_timeout = options.read_timeout;
        Box::pin(async move {
            let mut connection = client.target.connect(client.timeouts.connect).await?;
            match tokio::time::timeout(read_timeout, open(&mut connection, request?)).await {
                Ok(answer) => {
                    let (head, body) = answer?;
                    let stream = body.map(|body| Box::new(Open::new(body, connection, decoder, read_timeout)));
                    Ok(Opened { head, stream })
                }
                Err(_) => Err(silent(read_timeout)),
            }
        })
    }

    /// The head of an answer has come.
    fn opened(&mut self, opened: Opened) -> Option<Item> {
        let Opened { head, stream } = opened;
        let changed = head.log.and_then(|log| self.note_log(log));
        self.state = match stream {
            // It was asked for what comes after another log's id.
            _ if changed.is_some() && self.cursor.is_some() => {
                self.start_over();
                State::Start
            }
            None => State::Ended,
            Some(open) => {
                // The beginning is fixed now, so a connection that breaks before the first event misses nothing.
                if self.cursor.is_none() && matches!(self.from.as_deref(), None | Some("latest")) {
                    self.cursor = head.tail;
                }
                State::Reading(open)
            }
        };
        changed
    }

    /// Takes the name of the log; an item when there was another.
    fn note_log(&mut self, now: String) -> Option<Item> {
        match self.log.replace(now.clone()) {
            Some(was) if was != now => Some(Item::LogChanged { was, now }),
            _ => None,
        }
    }

    /// Ids of another log mean nothing here: everything of this one is new. From id 0, so that what is gone is told.
    fn start_over(&mut self) {
        self.cursor = match self.from.as_deref() {
            Some("state" | "snapshot") => None,
            _ => Some(0),
        };
    }

    fn received(&mut self, message: Message) -> Result<Item, Error> {
        let reading = match self.options.wire {
            Wire::Envelope => Reading::Envelope,
            Wire::Plain => Reading::Plain(self.topic.as_deref()),
        };
        let mut message = message;
        self.frame = std::mem::take(&mut message.frame);
        let item = read(message, &reading)?;
        match &item {
            Item::Error(_) => {}
            Item::Live { log, .. } => {
                self.failures = 0;
                if let Some(changed) = self.note_log(log.clone()) {
                    self.start_over();
                    self.state = State::Start;
                    return Ok(changed);
                }
            }
            Item::Closed { .. } => self.closed = true,
            _ => self.failures = 0,
        }
        Ok(item)
    }

    /// A connection could not be had, or broke.
    fn failed(&mut self, error: Error) -> Result<Item, Error> {
        self.failures += 1;
        if !error.is_passing() || self.options.failures_max.is_some_and(|max| self.failures > max) {
            self.state = State::Ended;
            return Err(error);
        }
        let asked = match &error {
            Error::Refused(problem) => problem.retry_after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let max = self.options.retry_max;
        let retry_in = backoff(self.retry, self.failures, max, fastrand::f64()).max(asked.min(max));
        self.state = State::Waiting(Box::pin(tokio::time::sleep(retry_in)));
        Ok(Item::Disconnected { why: error.to_string(), retry_in })
    }

    /// The body has ended as HTTP says, which is the server's word for "there is no more".
    fn body_ended(&mut self) -> Option<Result<Item, Error>> {
        if self.closed || !self.options.follow {
            self.state = State::Ended;
            return None;
        }
        // A proxy may have said it. If it was the server, it answers 204 now.
        Some(self.failed(Error::Broken("the stream was ended".into())))
    }
}

impl Stream for Subscription {
    type Item = Result<Item, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            match &mut this.state {
                State::Ended => return Poll::Ready(None),
                State::Start => this.state = State::Connecting(this.connect()),
                State::Waiting(sleep) => {
                    ready!(sleep.as_mut().poll(cx));
                    this.state = State::Start;
                }
                State::Connecting(connecting) => match ready!(connecting.as_mut().poll(cx)) {
                    Ok(opened) => {
                        if let Some(item) = this.opened(opened) {
                            this.frame.clear();
                            return Poll::Ready(Some(Ok(item)));
                        }
                    }
                    Err(error) => {
                        this.frame.clear();
                        return Poll::Ready(Some(this.failed(error)));
                    }
                },
                State::Reading(open) => {
                    let happened = ready!(open.poll_message(cx));
                    if let Ok(id) = parse_id(open.decoder.last_event_id()) {
                        this.cursor = Some(id);
                    }
                    if let Some(retry) = open.decoder.retry() {
                        this.retry = retry;
                    }
                    this.frame.clear();
                    let item = match happened {
                        Happened::Message(message) => {
                            let item = this.received(message);
                            if item.is_err() {
                                this.state = State::Ended;
                            }
                            Some(item)
                        }
                        Happened::Ended => this.body_ended(),
                        Happened::Broken(error) => Some(this.failed(error)),
                    };
                    return Poll::Ready(item);
                }
            }
        }
    }
}

/// What a server has answered.
struct Opened {
    head: Head,
    /// `None`: nothing more is owed (204).
    stream: Option<Box<Open>>,
}

#[derive(Default)]
struct Head {
    log: Option<String>,
    tail: Option<EventId>,
}

/// Sends the request and reads the head of the answer; no body: 204.
async fn open(connection: &mut Connection, request: Request<Full<Bytes>>) -> Result<(Head, Option<Incoming>), Error> {
    let response = connection.send(request).await.map_err(|failed| match failed {
        NoAnswer::Unsent(_, error) | NoAnswer::Broken(error) => Error::Broken(causes(&error)),
    })?;
    let (parts, body) = response.into_parts();
    let text = |name| parts.headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let head = Head {
        log: text(TIDELOG_LOG).map(str::to_owned),
        tail: text(TIDELOG_TAIL).and_then(|tail| parse_id(tail).ok()),
    };
    match parts.status {
        StatusCode::NO_CONTENT => Ok((head, None)),
        StatusCode::OK if is_event_stream(&parts.headers) => Ok((head, Some(body))),
        status if status.is_client_error() || status.is_server_error() => {
            let body = read_answer(body).await.unwrap_or_default();
            Err(Error::Refused(problem(status, &parts.headers, &body)))
        }
        status => {
            let kind = text(CONTENT_TYPE).unwrap_or("no content type");
            Err(Error::NotTidelog(format!("{status} with {kind}, where text/event-stream was asked for")))
        }
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/event-stream")
}

fn silent(read_timeout: Duration) -> Error {
    Error::Broken(format!("no byte came for {}", humantime::format_duration(read_timeout)))
}

/// A stream that is being read.
struct Open {
    body: Incoming,
    _connection: Connection,
    decoder: Decoder,
    /// What has come and is not decoded yet: at most one of hyper's reads.
    chunk: Bytes,
    read_timeout: Duration,
    /// Counts while the body is waited for, not while the caller is busy with an item.
    idle: Pin<Box<Sleep>>,
    waiting: bool,
}

enum Happened {
    Message(Message),
    Ended,
    Broken(Error),
}

impl Open {
    fn new(body: Incoming, connection: Connection, decoder: Decoder, read_timeout: Duration) -> Self {
        let idle = Box::pin(tokio::time::sleep(read_timeout));
        Self { body, _connection: connection, decoder, chunk: Bytes::new(), read_timeout, idle, waiting: false }
    }

    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Happened> {
        loop {
            match self.decode() {
                Ok(Some(message)) => return Poll::Ready(Happened::Message(message)),
                Ok(None) => {}
                Err(error) => return Poll::Ready(Happened::Broken(error.into())),
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => {
                    self.waiting = false;
                    match frame {
                        // Trailers say nothing to us.
                        Some(Ok(frame)) => self.chunk = frame.into_data().unwrap_or_default(),
                        Some(Err(error)) => return Poll::Ready(Happened::Broken(Error::Broken(causes(&error)))),
                        None => return Poll::Ready(Happened::Ended),
                    }
                }
                Poll::Pending => {
                    if !self.waiting {
                        self.waiting = true;
                        self.idle.as_mut().reset(Instant::now() + self.read_timeout);
                    }
                    ready!(self.idle.as_mut().poll(cx));
                    return Poll::Ready(Happened::Broken(silent(self.read_timeout)));
                }
            }
        }
    }

    fn decode(&mut self) -> Result<Option<Message>, TooLarge> {
        let mut rest = &self.chunk[..];
        let message = self.decoder.next(&mut rest);
        let taken = self.chunk.len() - rest.len();
        self.chunk.advance(taken);
        message
    }
}

/// How long to wait before the attempt after `failures` of them (at least 1): exponential, with full jitter, so that clients
/// that were cut off together do not come back together. `random` is from 0 to 1.
fn backoff(retry: Duration, failures: u32, max: Duration, random: f64) -> Duration {
    let doubled = 2u32.saturating_pow(failures.saturating_sub(1));
    retry.max(BACKOFF_MIN).saturating_mul(doubled).min(max).mul_f64(random)
}

#[cfg(test)]
mod tests;
