//! The bodies of answers: bytes that are there, or a stream that has a first line, its events, and one of two ends.
//!
//! What holds: a stream that ends though there is more to come says so in its last bytes and then breaks off (no last
//! chunk, `RST_STREAM`), and it breaks off only when those bytes have been written, so that they are not thrown away with
//! the connection. A stream of the log can be taken over by whoever serves the connection. Must not know requests.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use hyper::body::{Frame, SizeHint};
use tokio::sync::oneshot;

use super::problem::Problem;
use crate::event::EventId;
use crate::log::{Bundle, StreamError, Subscription};
use crate::sse::{Control, Form};

/// Where a stream's bytes come from.
pub type Source = Pin<Box<dyn Stream<Item = Result<Bytes, StreamError>> + Send>>;

/// The body of an answer.
pub struct Body(Kind);

enum Kind {
    Full(Bytes),
    Pieces(Pieces),
    Stream(Box<Streamed>),
}

/// Bytes that lie in several places, most of them shared with other answers.
struct Pieces {
    first: Bytes,
    shared: Arc<Bundle>,
    sent: usize,
    last: Bytes,
}

impl Pieces {
    fn next(&mut self) -> Option<Bytes> {
        let first = std::mem::take(&mut self.first);
        if !first.is_empty() {
            return Some(first);
        }
        if let Some(piece) = self.shared.pieces().get(self.sent) {
            self.sent += 1;
            return Some(piece.clone());
        }
        Some(std::mem::take(&mut self.last)).filter(|last| !last.is_empty())
    }

    fn len(&self) -> u64 {
        let shared = self.shared.pieces().iter().skip(self.sent).map(Bytes::len).sum::<usize>();
        (self.first.len() + shared + self.last.len()) as u64
    }
}

struct Streamed {
    form: Form,
    retry: Duration,
    chunk_bytes_max: usize,
    /// Bytes that are next, before the state's own.
    next: Bytes,
    state: State,
}

enum State {
    Running(Source),
    /// A stream of the log, which can be taken over.
    Following(Box<Subscription>),
    /// It was: here nothing more comes, and when all before it was taken, this is set.
    TakenOver(Arc<AtomicBool>),
    /// The last bytes are with the connection; when they have been written this is dropped at the other end.
    Ending(oneshot::Receiver<()>),
    Ended,
}

/// A stream's improper end, made on purpose.
#[derive(Debug, thiserror::Error)]
#[error("the stream ends before its end, so that its client comes back")]
pub struct BrokenOff;

/// The last bytes of a stream that breaks off, which know when they are let go.
struct Last {
    bytes: Vec<u8>,
    _written: oneshot::Sender<()>,
}

impl AsRef<[u8]> for Last {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// How a stream is framed.
#[derive(Debug, Clone, Copy)]
pub struct Framing {
    pub form: Form,
    /// How long a client should wait before it comes back; jittered by half around this.
    pub retry: Duration,
    /// Most bytes of a chunk handed to the connection.
    pub chunk_bytes_max: usize,
}

impl Body {
    /// No bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::full(Bytes::new())
    }

    /// These bytes.
    #[must_use]
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self(Kind::Full(bytes.into()))
    }

    /// What is shared with other answers, between these bytes.
    #[must_use]
    pub fn around(first: impl Into<Bytes>, shared: Arc<Bundle>, last: impl Into<Bytes>) -> Self {
        Self(Kind::Pieces(Pieces { first: first.into(), shared, sent: 0, last: last.into() }))
    }

    /// A stream of `source`, after its `retry:`.
    #[must_use]
    pub fn stream(framing: Framing, source: Source) -> Self {
        Self::begun(framing, State::Running(source))
    }

    /// A stream of the log, after its `retry:`.
    #[must_use]
    pub fn follow(framing: Framing, subscription: Subscription) -> Self {
        Self::begun(framing, State::Following(Box::new(subscription)))
    }

    fn begun(framing: Framing, state: State) -> Self {
        let Framing { form, retry, chunk_bytes_max } = framing;
        let mut first = Vec::new();
        form.retry(&mut first, jittered(retry));
        Self(Kind::Stream(Box::new(Streamed { form, retry, chunk_bytes_max, next: first.into(), state })))
    }

    /// Takes the stream over, when it is one of the log: all that comes after its head and its `retry:` is then the
    /// caller's to write. This body stays open.
    pub fn take_over(&mut self) -> Option<TakenOver> {
        let Kind::Stream(stream) = &mut self.0 else { return None };
        if !matches!(stream.state, State::Following(_)) {
            return None;
        }
        let begun = Arc::new(AtomicBool::new(false));
        let state = std::mem::replace(&mut stream.state, State::TakenOver(Arc::clone(&begun)));
        let State::Following(subscription) = state else { return None };
        let farewell = Farewell::new(stream.retry);
        Some(TakenOver { subscription: *subscription, farewell, begun })
    }

    /// Takes what a stream has before the log's.
    pub fn first(&mut self) -> Bytes {
        match &mut self.0 {
            Kind::Stream(stream) => std::mem::take(&mut stream.next),
            Kind::Full(_) | Kind::Pieces(_) => Bytes::new(),
        }
    }

    /// A stream that sends its client away, to come back later from `cursor`, or, without one, as it came.
    #[must_use]
    pub fn sent_away(framing: Framing, cursor: Option<EventId>, problem: &Problem) -> Self {
        let Framing { form, retry, chunk_bytes_max } = framing;
        let (next, state) = break_off(form, retry, cursor, problem);
        Self(Kind::Stream(Box::new(Streamed { form, retry, chunk_bytes_max, next, state })))
    }

    /// All bytes, when they are there.
    #[must_use]
    pub fn into_whole(self) -> Option<Bytes> {
        match self.0 {
            Kind::Full(bytes) => Some(bytes),
            Kind::Pieces(_) | Kind::Stream(_) => None,
        }
    }

    /// How many bytes there are, when they are there.
    #[must_use]
    pub fn exact_len(&self) -> Option<u64> {
        match &self.0 {
            Kind::Full(bytes) => Some(bytes.len() as u64),
            Kind::Pieces(pieces) => Some(pieces.len()),
            Kind::Stream(_) => None,
        }
    }
}

/// A stream that is served by other means than its body.
pub struct TakenOver {
    /// What comes after the first bytes.
    pub subscription: Subscription,
    /// What it says at an improper end.
    pub farewell: Farewell,
    /// Set when the connection has taken all that the body has.
    pub begun: Arc<AtomicBool>,
}

/// The last bytes of a stream that breaks off. Small, as every idle stream has one.
#[derive(Debug, Clone, Copy)]
pub struct Farewell {
    retry_ms: u32,
}

impl Farewell {
    /// For streams whose clients are to wait for `retry`.
    #[must_use]
    pub fn new(retry: Duration) -> Self {
        Self { retry_ms: u32::try_from(retry.as_millis()).unwrap_or(u32::MAX) }
    }

    /// When to come back, and why it ended, in a stream of this form; after these bytes it breaks off without its proper end.
    #[must_use]
    pub fn words(self, form: Form, error: StreamError) -> Vec<u8> {
        let retry = Duration::from_millis(self.retry_ms.into());
        last_words(form, retry, Some(cursor_of(&error)), &error.into())
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let bytes = match &mut self.get_mut().0 {
            Kind::Full(bytes) => Ok(std::mem::take(bytes)).map(|b| Some(b).filter(|b| !b.is_empty())),
            Kind::Pieces(pieces) => Ok(pieces.next()),
            Kind::Stream(stream) => ready!(stream.poll(cx)),
        };
        Poll::Ready(bytes.map(|bytes| bytes.map(Frame::data)).transpose())
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.0, Kind::Full(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        self.exact_len().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Streamed {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, BrokenOff>> {
        loop {
            if !self.next.is_empty() {
                let n = self.next.len().min(self.chunk_bytes_max);
                return Poll::Ready(Ok(Some(self.next.split_to(n))));
            }
            let polled = match &mut self.state {
                State::Running(source) => source.as_mut().poll_next(cx),
                State::Following(subscription) => Pin::new(&mut **subscription).poll_next(cx),
                State::TakenOver(begun) => {
                    begun.store(true, Ordering::Release);
                    return Poll::Pending;
                }
                State::Ending(written) => {
                    // Nothing is ever sent: the sender lies in the last bytes and is dropped with them. They are dropped
                    // when all of them are in the socket (HTTP/1.1, whose writes are queued, not copied) or in the
                    // connection's write buffer, ahead of the reset (HTTP/2).
                    let _ = ready!(Pin::new(written).poll(cx));
                    self.state = State::Ended;
                    return Poll::Ready(Err(BrokenOff));
                }
                State::Ended => return Poll::Ready(Ok(None)),
            };
            match ready!(polled) {
                Some(Ok(bytes)) => self.next = bytes,
                Some(Err(error)) => {
                    let cursor = cursor_of(&error);
                    (self.next, self.state) = break_off(self.form, self.retry, Some(cursor), &error.into());
                }
                None => {
                    self.state = State::Ended;
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }
}

fn break_off(form: Form, retry: Duration, cursor: Option<EventId>, problem: &Problem) -> (Bytes, State) {
    let bytes = last_words(form, retry, cursor, problem);
    let (sender, receiver) = oneshot::channel();
    (Bytes::from_owner(Last { bytes, _written: sender }), State::Ending(receiver))
}

fn last_words(form: Form, retry: Duration, cursor: Option<EventId>, problem: &Problem) -> Vec<u8> {
    let mut bytes = Vec::new();
    form.retry(&mut bytes, jittered(retry));
    form.control(&mut bytes, cursor, &Control::Error { problem: &problem.json() });
    bytes
}

fn cursor_of(error: &StreamError) -> EventId {
    match error {
        StreamError::Draining { cursor } | StreamError::Reading { cursor, .. } => *cursor,
    }
}

/// `around` ±50%, so that clients sent away together do not come back together.
fn jittered(around: Duration) -> Duration {
    around.mul_f64(0.5 + fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    const FRAMING: Framing = Framing { form: Form::Sse, retry: Duration::from_secs(2), chunk_bytes_max: usize::MAX };

    fn source(items: Vec<Result<Bytes, StreamError>>) -> Source {
        Box::pin(tokio_stream::iter(items))
    }

    async fn next(body: &mut Body) -> Option<Result<String, BrokenOff>> {
        let frame = body.frame().await?;
        Some(frame.map(|f| String::from_utf8(f.into_data().unwrap().to_vec()).unwrap()))
    }

    fn retry_of(line: &str) -> u64 {
        line.strip_prefix("retry: ").unwrap().lines().next().unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn a_stream_begins_with_a_jittered_retry_and_can_end_properly() {
        let mut body = Body::stream(FRAMING, source(vec![Ok("id: 1\n\n".into()), Ok(Bytes::new()), Ok("x".into())]));
        let retry = retry_of(&next(&mut body).await.unwrap().unwrap());
        assert!((1000..=3000).contains(&retry), "{retry}");
        assert_eq!(next(&mut body).await.unwrap().unwrap(), "id: 1\n\n");
        assert_eq!(next(&mut body).await.unwrap().unwrap(), "x");
        assert!(next(&mut body).await.is_none());
    }

    #[tokio::test]
    async fn json_lines_have_no_retry() {
        let framing = Framing { form: Form::Lines, ..FRAMING };
        let mut body = Body::stream(framing, source(vec![Ok("{}\n".into())]));
        assert_eq!(next(&mut body).await.unwrap().unwrap(), "{}\n");
    }

    #[tokio::test]
    async fn a_broken_stream_says_why_and_breaks_off_only_when_that_is_written() {
        let mut body = Body::stream(FRAMING, source(vec![Err(StreamError::Draining { cursor: 7 })]));
        next(&mut body).await.unwrap().unwrap();
        let last = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let text = std::str::from_utf8(&last).unwrap();
        assert!((1000..=3000).contains(&retry_of(text)));
        assert!(
            text.contains("\nid: 7\nevent: tidelog.error\ndata: {") && text.contains("\"code\":\"draining\""),
            "{text}"
        );
        assert!(text.ends_with("}\n\n"), "{text}");
        let mut end = tokio_test_poll(&mut body);
        assert!(end.is_pending());
        drop(last);
        end = tokio_test_poll(&mut body);
        assert!(matches!(end, Poll::Ready(Some(Err(BrokenOff)))));
        assert!(next(&mut body).await.is_none());
    }

    fn tokio_test_poll(body: &mut Body) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        hyper::body::Body::poll_frame(Pin::new(body), &mut cx)
    }

    #[tokio::test]
    async fn chunks_are_cut_where_the_connection_wants_them_small() {
        let framing = Framing { form: Form::Lines, chunk_bytes_max: 4, ..FRAMING };
        let mut body = Body::stream(framing, source(vec![Ok("0123456789".into())]));
        for want in ["0123", "4567", "89"] {
            assert_eq!(next(&mut body).await.unwrap().unwrap(), want);
        }
        assert!(next(&mut body).await.is_none());
    }
}
