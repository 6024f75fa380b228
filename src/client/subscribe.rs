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
mod tests {
    use tokio_stream::StreamExt as _;

    use super::super::testing::{Act, PATIENCE, Scripted, answer, chunk, end, problem as problem_answer, stream};
    use super::super::{Event, Problem};
    use super::*;
    use crate::event::EventRef;
    use crate::sse::{Control, Form, GapReason};

    fn frame(id: EventId, data: &str) -> String {
        let mut out = Vec::new();
        let event = EventRef { id, topic: "a.b", event: Some("t"), key: None, time: 1000, data };
        Form::SseEnvelope.event(&mut out, &event);
        String::from_utf8(out).unwrap()
    }

    fn control(cursor: EventId, control: &Control<'_>) -> String {
        let mut out = Vec::new();
        Form::Sse.control(&mut out, cursor, control);
        String::from_utf8(out).unwrap()
    }

    fn live(tail: EventId, log: &str) -> String {
        control(tail, &Control::Live { tail, log })
    }

    /// Reconnects at once.
    fn quick() -> SubscribeOptions {
        SubscribeOptions { retry: Duration::ZERO, retry_max: BACKOFF_MIN, ..SubscribeOptions::default() }
    }

    fn follow(server: &Scripted, options: SubscribeOptions) -> Subscription {
        Client::new(&server.url).unwrap().subscribe(&[Pattern::parse("a.*").unwrap()], options)
    }

    /// What happened, told shortly; up to the end of the stream.
    async fn told(subscription: &mut Subscription) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(item) = tokio::time::timeout(PATIENCE, subscription.next()).await.expect("an item in time") {
            told.push(match item {
                Ok(Item::Event(Event { id, data, .. })) => format!("{id} {data}"),
                Ok(Item::Live { tail, .. }) => format!("live {tail}"),
                Ok(Item::Gap { requested, earliest, reason }) => format!("gap {requested} {earliest} {reason}"),
                Ok(Item::LogChanged { was, now }) => format!("log {was} {now}"),
                Ok(Item::Disconnected { .. }) => "disconnected".into(),
                Ok(Item::Error(Problem { code, .. })) => format!("error {code}"),
                Ok(other) => format!("{other:?}"),
                Err(error) => format!("failed: {error}"),
            });
        }
        told
    }

    #[tokio::test]
    async fn a_stream_that_breaks_in_a_frame_resumes_without_gap_or_duplicate() {
        let second = frame(8, "two");
        let (torn, _) = second.split_at(second.len() - 1);
        let mut server = Scripted::start(vec![
            vec![stream("l", 9), chunk("retry: 1\n"), chunk(&frame(7, "one")), chunk(torn), Act::Close],
            vec![stream("l", 9), chunk(&(frame(8, "two") + &live(9, "l"))), Act::Close],
        ])
        .await;
        let options = SubscribeOptions { from: Some("7".into()), types: vec!["t".into(), "u v".into()], ..quick() };
        let mut subscription = follow(&server, options);
        assert_eq!(told(&mut subscription).await, ["7 one", "disconnected", "8 two", "live 9", "disconnected"]);
        assert_eq!((subscription.cursor(), subscription.log()), (Some(9), Some("l")));

        let first = server.seen().await;
        assert_eq!(first.target(), "/events?topic=a.*&event=t&event=u+v&from=7&envelope=json");
        assert_eq!((first.header("last-event-id"), first.header("accept")), (None, Some("text/event-stream")));
        let again = server.seen().await;
        assert_eq!((again.target(), again.header("last-event-id")), (first.target(), Some("7")));
        assert_eq!(server.seen().await.header("last-event-id"), Some("9"));
    }

    #[tokio::test]
    async fn latest_is_where_the_first_head_says() {
        let mut server = Scripted::start(vec![vec![stream("l", 41), Act::Close]]).await;
        assert_eq!(told(&mut follow(&server, quick())).await, ["disconnected"]);
        assert_eq!(server.seen().await.header("last-event-id"), None);
        assert_eq!(server.seen().await.header("last-event-id"), Some("41"));
    }

    #[tokio::test]
    async fn bytes_may_come_one_by_one() {
        let text = frame(1, "a\nb") + ":\n" + &frame(2, "ü");
        let Act::Send(bytes) = chunk(&text) else { unreachable!() };
        let server = Scripted::start(vec![vec![stream("l", 2), Act::SendBytewise(bytes), Act::Close]]).await;
        assert_eq!(told(&mut follow(&server, quick())).await, ["1 a\nb", "2 ü", "disconnected"]);
    }

    #[tokio::test]
    async fn what_passes_is_tried_again_and_what_does_not_is_final() {
        let mut server = Scripted::start(vec![
            vec![problem_answer("503 Service Unavailable", "draining", "d")],
            vec![problem_answer("429 Too Many Requests", "too_many_requests", "d")],
            vec![problem_answer("408 Request Timeout", "timeout", "d"), Act::Close],
            vec![Act::Close],
            vec![problem_answer("400 Bad Request", "bad_pattern", "no such pattern")],
        ])
        .await;
        let mut want = vec!["disconnected".to_owned(); 4];
        want.push("failed: the server refused: no such pattern (400 bad_pattern)".into());
        assert_eq!(told(&mut follow(&server, quick())).await, want);
        for _ in 0..5 {
            server.seen().await;
        }
        assert!(server.saw_no_more());
    }

    #[tokio::test]
    async fn something_else_than_a_stream_is_final() {
        for other in [answer("200 OK", "text/html", "<p>"), answer("302 Found", "text/html", "")] {
            let server = Scripted::start(vec![vec![other]]).await;
            let got = told(&mut follow(&server, quick())).await;
            assert!(got.len() == 1 && got[0].contains("text/html"), "{got:?}");
        }
        let server = Scripted::start(vec![vec![stream("l", 1), chunk("id: 1\ndata: not an envelope\n\n")]]).await;
        let got = told(&mut follow(&server, quick())).await;
        assert!(got.len() == 1 && got[0].contains("cannot be read"), "{got:?}");
    }

    #[tokio::test]
    async fn nothing_more_is_the_end() {
        let server = Scripted::start(vec![]).await;
        let options = SubscribeOptions { after: Some(5), ..quick() };
        assert_eq!(told(&mut follow(&server, options)).await, [""; 0]);
    }

    #[tokio::test]
    async fn a_proper_end_is_the_end_only_where_one_is_due() {
        let answers = || vec![vec![stream("l", 1), chunk(&frame(1, "x")), end()]];
        let mut server = Scripted::start(answers()).await;
        let options = SubscribeOptions { follow: false, ..quick() };
        assert_eq!(told(&mut follow(&server, options)).await, ["1 x"]);
        assert_eq!(server.seen().await.target(), "/events?topic=a.*&envelope=json&follow=false");

        let server = Scripted::start(answers()).await;
        assert_eq!(
            told(&mut follow(&server, quick())).await,
            ["1 x", "disconnected"],
            "then it is asked, and says 204"
        );

        let closed = "id: 1\nevent: tidelog.closed\ndata: {\"last\":1}\n\n";
        let mut server = Scripted::start(vec![vec![stream("l", 1), chunk(closed), end()]]).await;
        assert_eq!(told(&mut follow(&server, quick())).await, ["Closed { last: 1 }"]);
        server.seen().await;
        assert!(server.saw_no_more());
    }

    #[tokio::test]
    async fn gaps_and_errors_are_told_and_the_cursor_of_a_gap_is_kept() {
        let gap = control(0, &Control::Gap { requested: 90, earliest: 3, reason: GapReason::Ahead });
        let error = control(3, &Control::Error { problem: r#"{"status":503,"code":"draining","detail":"d"}"# });
        let mut server = Scripted::start(vec![
            vec![stream("l", 5), chunk(&gap), Act::Close],
            vec![stream("l", 5), chunk(&(frame(3, "x") + "retry: 1\n" + &error)), Act::Close],
        ])
        .await;
        let options = SubscribeOptions { after: Some(90), ..quick() };
        let want = ["gap 90 3 ahead", "disconnected", "3 x", "error draining", "disconnected"];
        assert_eq!(told(&mut follow(&server, options)).await, want);
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(server.seen().await.header("last-event-id").unwrap().to_owned());
        }
        assert_eq!(ids, ["90", "0", "3"]);
    }

    #[tokio::test]
    async fn another_log_is_told_and_followed_from_its_beginning() {
        let mut server = Scripted::start(vec![
            vec![stream("old", 7), chunk(&frame(7, "x")), Act::Close],
            vec![stream("new", 9), chunk(&frame(8, "not from its beginning"))],
            vec![stream("new", 9), chunk(&frame(1, "y")), Act::Close],
        ])
        .await;
        let got = told(&mut follow(&server, quick())).await;
        assert_eq!(got, ["7 x", "disconnected", "log old new", "1 y", "disconnected"]);
        for want in [None, Some("7"), Some("0"), Some("1")] {
            assert_eq!(server.seen().await.header("last-event-id"), want);
        }
    }

    #[tokio::test]
    async fn the_log_that_the_caller_names_is_compared_too() {
        let server =
            Scripted::start(vec![vec![stream("new", 9)], vec![stream("new", 9), chunk(&frame(1, "y")), end()]]).await;
        let options = SubscribeOptions { after: Some(7), log: Some("old".into()), follow: false, ..quick() };
        assert_eq!(told(&mut follow(&server, options)).await, ["log old new", "1 y"]);
    }

    #[tokio::test]
    async fn silence_is_a_broken_connection() {
        // The first never answers, the second stops within its stream.
        let server = Scripted::start(vec![vec![], vec![stream("l", 1), chunk(&frame(1, "x"))]]).await;
        let options = SubscribeOptions { read_timeout: Duration::from_millis(400), ..quick() };
        assert_eq!(told(&mut follow(&server, options)).await, ["disconnected", "1 x", "disconnected"]);
    }

    #[tokio::test]
    async fn it_gives_up_when_told_to() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let client = Client::new(&format!("http://{closed}")).unwrap();
        let mut subscription = client.subscribe(&[], SubscribeOptions { failures_max: Some(2), ..quick() });
        let got = told(&mut subscription).await;
        assert_eq!(got[..2], ["disconnected", "disconnected"]);
        assert!(got.len() == 3 && got[2].starts_with("failed: cannot connect to 127.0.0.1:"), "{got:?}");
    }

    #[tokio::test]
    async fn an_event_beyond_the_limit_is_final() {
        let server = Scripted::start(vec![vec![stream("l", 1), chunk(&frame(1, "x"))]]).await;
        let limits = Limits { line_bytes_max: 20, event_bytes_max: 20 };
        let got = told(&mut follow(&server, SubscribeOptions { limits, ..quick() })).await;
        assert_eq!(got, ["failed: the stream has a line of more than 20 bytes"]);
    }

    #[tokio::test]
    async fn the_plain_wire_gives_its_frames() {
        let text = "retry: 1\nid: 1\nevent: t\ndata: a\ndata: b\n\n:\n".to_owned() + &live(2, "l");
        let mut server = Scripted::start(vec![vec![stream("l", 2), chunk(&text), Act::Close]]).await;
        let options = SubscribeOptions { wire: Wire::Plain, ..quick() };
        let mut subscription = Client::new(&server.url).unwrap().subscribe(&[Pattern::parse("a.b").unwrap()], options);
        let Some(Ok(Item::Event(event))) = subscription.next().await else { panic!() };
        assert_eq!((event.topic.as_deref(), event.data.as_str()), (Some("a.b"), "a\nb"));
        assert_eq!(subscription.frame(), b"retry: 1\nid: 1\nevent: t\ndata: a\ndata: b\n\n");
        assert_eq!(subscription.next().await.unwrap().unwrap(), Item::Live { tail: 2, log: "l".into() });
        assert_eq!(subscription.frame(), live(2, "l").as_bytes());
        assert_eq!(server.seen().await.target(), "/events?topic=a.b");
    }

    #[test]
    fn waits_double_up_to_the_bound_with_full_jitter() {
        let (s, max) = (Duration::from_secs, Duration::from_secs(30));
        assert_eq!([1, 2, 3, 4, 5, 99].map(|n| backoff(s(2), n, max, 1.0)), [s(2), s(4), s(8), s(16), max, max]);
        assert_eq!(backoff(s(2), 3, max, 0.5), s(4));
        assert_eq!(backoff(s(2), 3, max, 0.0), s(0));
        assert_eq!(backoff(Duration::ZERO, 1, max, 1.0), BACKOFF_MIN);
        assert_eq!(backoff(Duration::from_millis(u64::MAX), 9, max, 1.0), max);
    }
}
