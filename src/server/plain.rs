//! The short way for small publishes and for streams over HTTP/1.1: most of what a server does is this, so it is done without
//! what only other requests need. (While hyper has a request it holds some 20 KB, of which an allocator keeps a part for every stream
//! that was begun in between.)
//!
//! What holds: it takes a request only when all of it is plain (`head`); every other one, with all that was read, is hyper's, and so is
//! the connection from then on. Both ask the same handler, so an answer is the same on either way. At most a head and a body of
//! a plain request are read ahead. Must not know what requests mean.

#[doc(hidden)]
pub mod head;
#[doc(hidden)]
pub mod repeat;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::{Method, Request, Response};
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, Sleep};

use self::head::{Head, Look};
use self::repeat::Repeat;
use super::io::Socket;
use super::{Handle, RequestBody, Shared};
use crate::http::Peer;
use crate::http::answer::{Body, TakenOver};

/// What a connection's first read has room for, and what one keeps while it waits: the head of a browser's request, or a publish of
/// ordinary size.
pub const READ_BYTES: usize = 2 * 1024;

/// How long the rest of a small body is waited for here. It comes with its head or right behind it; the time for one that is slow is
/// hyper's and the handler's to count.
const BODY_WAIT: Duration = Duration::from_millis(100);

/// What is to become of a connection.
pub enum Next {
    /// It has a request that is not plain, or that does not come: hyper has the whole of it to read.
    Hyper(Socket),
    /// It publishes again and again, and has just sent another one.
    Lane(Plain),
    /// A stream begins, with these bytes: its head, and what comes before the log.
    Stream(Plain, TakenOver, Vec<u8>),
    /// It has ended, or is to be ended.
    End(Socket),
}

/// A connection and what was read from it.
pub struct Plain {
    pub socket: Socket,
    pub read: BytesMut,
}

/// What came of waiting for more of a request.
enum More {
    Some,
    /// The other side has ended, or broken off.
    Nothing,
    Late,
    Drained,
}

/// A deadline that is put off for every request: the timer is only set anew when it runs out too early.
struct Deadline {
    at: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Deadline {
    fn new(at: Instant) -> Self {
        Self { at, sleep: Box::pin(tokio::time::sleep_until(at)) }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.sleep.as_mut().poll(cx).is_ready() {
            if self.at <= Instant::now() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(self.at);
        }
        Poll::Pending
    }
}

/// How long a connection is waited for: until a deadline, or until the server ends.
struct Patience<'a, D> {
    deadline: Deadline,
    header_timeout: Duration,
    drained: Pin<&'a mut D>,
}

impl<'a, D: Future> Patience<'a, D> {
    fn new(shared: &Shared, drained: Pin<&'a mut D>) -> Self {
        let header_timeout = shared.options.header_timeout;
        Self { deadline: Deadline::new(Instant::now() + header_timeout), header_timeout, drained }
    }

    /// A request was answered.
    fn begin_anew(&mut self) {
        self.deadline.at = Instant::now() + self.header_timeout;
    }
}

/// There is no plain request.
enum Not {
    Plain,
    /// None comes any more.
    There,
}

impl Plain {
    /// Answers plain requests until there is one that is not, or the connection is to end. It stays no longer than for the first publish
    /// where there are lanes, or until a stream has begun.
    pub async fn serve<H: Handle>(mut self, peer: Peer, handler: &H, shared: &Shared) -> Next {
        let to_lane = shared.lanes.get().is_some() && !peer.turned_away;
        let gets = shared.wire.get().is_some() && !peer.turned_away;
        let drained = pin!(shared.drain.cancelled());
        let mut patience = Patience::new(shared, drained);
        let mut published = false;
        loop {
            let Head { request, body_at, end, .. } = match self.head(shared, gets, &mut patience).await {
                Ok(head) => head,
                Err(not) => return self.without(&not),
            };
            let is_get = request.method() == Method::GET;
            if published && to_lane && !is_get {
                return Next::Lane(self);
            }
            published |= !is_get;
            let body = Bytes::copy_from_slice(&self.read[body_at..end]);
            let mut response = handler.handle(request.map(|()| RequestBody::whole(body)), peer).await;
            if is_get && let Some(stream) = response.body_mut().take_over() {
                self.read.advance(end);
                return Next::Stream(self, stream, opening(response));
            }
            let goes_on = !peer.turned_away && !shared.drain.is_cancelled();
            let Some(answer) = written_out(response, goes_on) else {
                // What is neither whole nor a stream that can be taken over is for hyper to write, which asks again: a GET
                // changes nothing. No publish is answered so.
                return if is_get { self.into_hyper() } else { Next::End(self.socket) };
            };
            self.read.advance(end);
            if self.socket.write_all(&answer).await.is_err() || !goes_on {
                return Next::End(self.socket);
            }
            patience.begin_anew();
        }
    }

    /// Answers plain POSTs, on a lane, until there is a request that is none, or the connection is to end. Those who publish again and
    /// again send one and the same head, which is looked at once.
    pub async fn publishes<H: Handle>(mut self, handler: &H, shared: &Shared) -> Next {
        let drained = pin!(shared.drain.cancelled());
        let mut patience = Patience::new(shared, drained);
        let mut repeat = None::<Repeat<H::Known>>;
        let head_bytes_max = head_bytes_max(shared);
        loop {
            if self.read.is_empty() && !matches!(self.more(READ_BYTES, &mut patience).await, More::Some) {
                return Next::End(self.socket);
            }
            let (response, end) = if let Some((known, body)) =
                repeat.as_ref().and_then(|head| head.again(&self.read, head_bytes_max))
            {
                let end = body.end;
                if let Some(missing) = end.checked_sub(self.read.len()).filter(|missing| *missing > 0) {
                    match self.more_of_body(missing, &mut patience).await {
                        More::Some => continue,
                        More::Nothing | More::Late => return self.into_hyper(),
                        More::Drained => return Next::End(self.socket),
                    }
                }
                (handler.repeat(known, &self.read[body]).await, end)
            } else {
                let Head { request, body_at, end, length_at } = match self.head(shared, false, &mut patience).await {
                    Ok(head) => head,
                    Err(not) => return self.without(&not),
                };
                let ((request, ()), body) = (request.into_parts(), &self.read[body_at..end]);
                let response = if let Some(known) = handler.known(&request) {
                    let response = handler.repeat(&known, body).await;
                    repeat = Repeat::of(&self.read[..body_at], length_at, known);
                    response
                } else {
                    let body = RequestBody::whole(Bytes::copy_from_slice(body));
                    handler.handle(Request::from_parts(request, body), Peer { turned_away: false }).await
                };
                (response, end)
            };
            let goes_on = !shared.drain.is_cancelled();
            // No publish is answered in pieces.
            let Some(answer) = written_out(response, goes_on) else { return Next::End(self.socket) };
            self.read.advance(end);
            if self.socket.write_all(&answer).await.is_err() || !goes_on {
                return Next::End(self.socket);
            }
            patience.begin_anew();
        }
    }

    /// Reads until there is a plain request, or none that could become one.
    async fn head(
        &mut self,
        shared: &Shared,
        gets: bool,
        patience: &mut Patience<'_, impl Future>,
    ) -> Result<Head, Not> {
        let head_bytes_max = head_bytes_max(shared);
        loop {
            let (more, missing) = match head::look(&self.read, head_bytes_max, gets) {
                Look::Plain(head) => return Ok(head),
                Look::Other => return Err(Not::Plain),
                Look::PartOfHead => (self.more(READ_BYTES, patience).await, false),
                Look::PartOfBody(missing) => (self.more_of_body(missing, patience).await, true),
            };
            match more {
                More::Some => {}
                // What has begun is to be answered, be it that it is late.
                More::Nothing | More::Late if missing => return Err(Not::Plain),
                More::Nothing | More::Late | More::Drained => return Err(Not::There),
            }
        }
    }

    async fn more_of_body(&mut self, missing: usize, patience: &mut Patience<'_, impl Future>) -> More {
        tokio::time::timeout(BODY_WAIT, self.more(missing, patience)).await.unwrap_or(More::Late)
    }

    async fn more(&mut self, room: usize, patience: &mut Patience<'_, impl Future>) -> More {
        self.read.reserve(room);
        let mut reading = pin!(self.socket.read_more(&mut self.read));
        poll_fn(|cx| {
            if let Poll::Ready(read) = reading.as_mut().poll(cx) {
                return Poll::Ready(if matches!(read, Ok(n) if n > 0) { More::Some } else { More::Nothing });
            }
            if patience.drained.as_mut().poll(cx).is_ready() {
                return Poll::Ready(More::Drained);
            }
            patience.deadline.poll(cx).map(|()| More::Late)
        })
        .await
    }

    fn without(self, not: &Not) -> Next {
        match not {
            Not::Plain => self.into_hyper(),
            Not::There => Next::End(self.socket),
        }
    }

    fn into_hyper(mut self) -> Next {
        self.socket.put_back(self.read.freeze());
        Next::Hyper(self.socket)
    }
}

/// A longer head is hyper's.
fn head_bytes_max(shared: &Shared) -> usize {
    usize::try_from(shared.options.header_bytes_max).unwrap_or(usize::MAX).min(head::HEAD_BYTES_MAX)
}

/// The head of a stream that was taken over, and its first bytes.
fn opening(response: Response<Body>) -> Vec<u8> {
    let (head, mut body) = response.into_parts();
    let mut out = Vec::with_capacity(512);
    head::write(&mut out, &head, None, true);
    head::chunk(&mut out, &body.first());
    out
}

/// The whole answer as bytes; `None` when they are not all there.
fn written_out(response: Response<Body>, goes_on: bool) -> Option<Vec<u8>> {
    let (head, body) = response.into_parts();
    let body = body.into_whole()?;
    let mut out = Vec::with_capacity(384 + body.len());
    head::write(&mut out, &head, Some(body.len()), goes_on);
    out.extend_from_slice(&body);
    Some(out)
}
