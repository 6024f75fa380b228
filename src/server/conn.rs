//! One connection: which protocol it speaks, and hyper on it until it ends.

use std::convert::Infallible;
use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::CONNECTION;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::io::Socket;
use super::lanes::Publishing;
use super::pace::{Paced, Streams};
use super::plain::{self, Next, Plain};
use super::wire::{Fresh, GivenBack};
use super::{Handle, Seat, Shared};
use crate::http::Peer;
use crate::http::answer::TakenOver;

/// With these bytes an HTTP/2 connection begins; no HTTP/1 method is called so. All of them are waited for here, within the time that a
/// head has: hyper would wait for the rest of them for ever.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// HTTP/2: one page that follows many topics, or a proxy for many pages, needs hundreds of streams.
const STREAMS_MAX: u32 = 1_000;
/// HTTP/2: what a stream may hold of answers that its window does not let out: with 1,000 streams, 64 MB a connection at
/// the worst.
const SEND_BYTES_MAX: usize = 64 * 1024;
/// HTTP/2: what a client may send ahead of being read, for one stream and for all: the memory that a hostile uploader can
/// take outside the budget of bodies. At 50 ms of round trip still 20 MB/s.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// HTTP/2: pings find a peer that vanished behind a proxy, where TCP's own keepalive ends at the proxy.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// HTTP/2: how long a connection that is beyond the most may go on to be told so.
const TURNED_AWAY_TIME: Duration = Duration::from_secs(1);

/// Serves `stream` until it ends, or the server does.
pub async fn serve<H: Handle>(stream: TcpStream, peer: Peer, seat: Seat, handler: H, shared: &Arc<Shared>) {
    let served = async {
        let mut socket = Socket::new(stream, Bytes::new(), shared.options.write_timeout);
        let mut read = BytesMut::new();
        let looked_at = tokio::select! {
            looked_at = tokio::time::timeout(shared.options.header_timeout, look(&mut socket, &mut read)) => looked_at,
            () = shared.drain.cancelled() => return,
        };
        let Ok(Ok(())) = looked_at else { return };
        if read.starts_with(PREFACE) {
            socket.put_back(read.freeze());
            // Boxed, as most connections are not, and have no need of its room.
            Box::pin(serve_http2(socket, peer, handler, shared)).await;
            drop(seat);
        } else {
            match (Plain { socket, read }).serve(peer, &handler, shared).await {
                // Boxed for the same reason.
                Next::Hyper(socket) => Box::pin(serve_http1(socket, peer, seat, handler, shared)).await,
                Next::Lane(plain) => to_a_lane(plain, seat, shared),
                Next::Stream(Plain { socket, read }, stream, opening) => {
                    let taken = Taken { stream, opening, keep_alive: true };
                    hand_over(socket, read.freeze(), false, taken, seat, shared);
                }
                Next::End(socket) => socket.finish(false).await,
            }
        }
    };
    tokio::select! {
        () = served => {}
        () = shared.kill.cancelled() => {}
    }
}

/// Lets a lane serve what publishes again and again.
fn to_a_lane(plain: Plain, seat: Seat, shared: &Arc<Shared>) {
    let Some(lanes) = shared.lanes.get() else { return };
    match plain.socket.into_std() {
        Ok(socket) => lanes.take(Publishing { socket, read: plain.read, seat }, shared),
        Err(error) => tracing::warn!(%error, "a publisher cannot go on"),
    }
}

/// Serves a connection on which a stream has ended properly.
pub async fn resume<H: Handle>(back: GivenBack, handler: H, shared: &Shared) {
    let GivenBack { socket, ahead, seat } = back;
    let served = async {
        match TcpStream::from_std(socket) {
            Ok(stream) => {
                let socket = Socket::new(stream, ahead, shared.options.write_timeout);
                serve_http1(socket, Peer { turned_away: false }, seat, handler, shared).await;
            }
            Err(error) => tracing::debug!(%error, "a connection cannot go on"),
        }
    };
    tokio::select! {
        () = served => {}
        () = shared.kill.cancelled() => {}
    }
}

/// Reads until the bytes are the preface, or can no longer become it.
async fn look(socket: &mut Socket, read: &mut BytesMut) -> std::io::Result<()> {
    while read.len() < PREFACE.len() && read[..] == PREFACE[..read.len()] {
        read.reserve(plain::READ_BYTES);
        if socket.read_more(read).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// What a connection's service tells the task that serves the connection.
#[derive(Default)]
struct Ties {
    /// The last request's body was let go before its end. The connection's task lets it go, and asks: relaxed is enough.
    unread: AtomicBool,
    /// A stream that is to be served on the wire.
    taken: Mutex<Option<Taken>>,
}

struct Taken {
    stream: TakenOver,
    /// What of it is not written yet.
    opening: Vec<u8>,
    keep_alive: bool,
}

impl Ties {
    /// Whether a stream was taken over, and its head is with the connection.
    fn is_begun(&self) -> bool {
        self.taken.lock().as_ref().is_some_and(|taken| taken.stream.begun.load(Ordering::Acquire))
    }
}

/// Why hyper is done with a connection.
enum Done {
    Ended(hyper::Result<()>),
    /// A stream has begun that needs it no more.
    Begun,
}

async fn serve_http1<H: Handle>(socket: Socket, peer: Peer, seat: Seat, handler: H, shared: &Shared) {
    let ties = Arc::new(Ties::default());
    let waiting = socket.waiting();
    let service = {
        let (ties, has_wire) = (Arc::clone(&ties), shared.wire.get().is_some());
        service_fn(move |request: Request<Incoming>| {
            let (handler, ties) = (handler.clone(), Arc::clone(&ties));
            Box::pin(async move {
                let on_wire = has_wire && request.version() == Version::HTTP_11;
                let keep_alive = request.body().is_end_stream() && !asks_to_close(request.headers());
                let request = request.map(|body| RequestBody::coming(body, Arc::clone(&ties)));
                let mut response = handler.handle(request, peer).await;
                if on_wire && let Some(stream) = response.body_mut().take_over() {
                    *ties.taken.lock() = Some(Taken { stream, opening: Vec::new(), keep_alive });
                }
                Ok::<_, Infallible>(response)
            })
        })
    };
    let header_bytes_max = usize::try_from(shared.options.header_bytes_max).unwrap_or(usize::MAX);
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.options.header_timeout)
        .max_header_size(header_bytes_max)
        // It bounds what is read ahead and what waits to be written, so 64 KiB would do, but a head must fit.
        .max_buf_size(header_bytes_max.max(64 * 1024))
        // Chunks are queued, not copied: a body that breaks off relies on it to learn that its last bytes are written.
        .writev(true)
        .keep_alive(!peer.turned_away)
        .serve_connection(TokioIo::new(socket), service);
    let mut draining = false;
    let poll = |cx: &mut Context<'_>, connection: &mut http1::Connection<_, _>| {
        // Not `poll_without_shutdown`, which is ready before all is written where a request's body is not read to its end.
        match Pin::new(connection).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Done::Ended(ended)),
            // hyper writes all that it has before it waits, so what is not written yet waits in the socket.
            Poll::Pending if ties.is_begun() && !waiting.load(Ordering::Relaxed) => Poll::Ready(Done::Begun),
            Poll::Pending => Poll::Pending,
        }
    };
    let done = loop {
        tokio::select! {
            done = poll_fn(|cx| poll(cx, &mut connection)) => break done,
            () = shared.drain.cancelled(), if !draining => {
                draining = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    let parts = connection.into_parts();
    let (socket, unread) = (parts.io.into_inner(), ties.unread.load(Ordering::Relaxed));
    match done {
        Done::Begun => {
            if let Some(taken) = ties.taken.lock().take() {
                hand_over(socket, parts.read_buf, unread, taken, seat, shared);
            }
        }
        Done::Ended(ended) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection broke off");
            }
            socket.finish(unread).await;
        }
    }
}

/// Lets the wire serve the rest.
fn hand_over(socket: Socket, ahead: Bytes, unread: bool, taken: Taken, seat: Seat, shared: &Shared) {
    let (Taken { stream, opening, keep_alive }, Some(wire)) = (taken, shared.wire.get()) else { return };
    match socket.into_std() {
        Ok(socket) => {
            let keep_alive = keep_alive && !shared.drain.is_cancelled();
            wire.take(Fresh { socket, opening, ahead, keep_alive, unread, stream, seat });
        }
        Err(error) => tracing::warn!(%error, "a stream cannot be followed"),
    }
}

/// Whether the connection ends with this request's answer.
fn asks_to_close(headers: &HeaderMap) -> bool {
    let mut options = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    options.any(|value| value.split(',').any(|option| option.trim().eq_ignore_ascii_case("close")))
}

async fn serve_http2<H: Handle>(socket: Socket, peer: Peer, handler: H, shared: &Shared) {
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = handler.clone();
        // Boxed, as a stream's task lives for as long as its answer, which has no need of this room.
        Box::pin(async move {
            let request = request.map(|body| RequestBody::coming(body, Arc::default()));
            let response: Response<_> = handler.handle(request, peer).await;
            Ok::<_, Infallible>(response.map(Paced::new))
        })
    });
    let streams = Streams { tasks: shared.tasks.clone(), write_timeout: shared.options.write_timeout };
    let connection = http2::Builder::new(streams)
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_send_buf_size(SEND_BYTES_MAX)
        .adaptive_window(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(shared.options.header_bytes_max)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(socket), service);
    let mut connection = pin!(connection);
    let mut leave = pin!(async {
        if peer.turned_away {
            tokio::time::sleep(TURNED_AWAY_TIME).await;
        } else {
            shared.drain.cancelled().await;
        }
    });
    let mut draining = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = &mut leave, if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

/// A request's body: what is there, or what comes, which tells when it is let go before its end.
pub struct RequestBody(Kind);

enum Kind {
    Whole(Bytes),
    Coming { body: Incoming, ties: Arc<Ties> },
}

impl RequestBody {
    /// All of it is there.
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self(Kind::Whole(bytes))
    }

    fn coming(body: Incoming, ties: Arc<Ties>) -> Self {
        Self(Kind::Coming { body, ties })
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.get_mut().0 {
            Kind::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Kind::Coming { body, .. } => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(bytes) => bytes.is_empty(),
            Kind::Coming { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Coming { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Kind::Coming { body, ties } = &self.0
            && !body.is_end_stream()
        {
            ties.unread.store(true, Ordering::Relaxed);
        }
    }
}
