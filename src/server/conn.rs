//! One connection: which protocol it speaks, and hyper on it until it ends.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::io::Socket;
use super::pace::{Paced, Streams};
use super::{Handle, Shared};
use crate::http::Peer;

/// With these bytes an HTTP/2 connection begins; no HTTP/1 method is called so.
const PREFACE: &[u8; 4] = b"PRI ";

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
pub async fn serve<H: Handle>(mut stream: TcpStream, peer: Peer, handler: H, shared: &Shared) {
    let served = async {
        let looked_at = tokio::select! {
            looked_at = tokio::time::timeout(shared.options.header_timeout, look(&mut stream)) => looked_at,
            () = shared.drain.cancelled() => return,
        };
        let Ok(Ok(looked_at)) = looked_at else { return };
        let is_http2 = looked_at[..] == PREFACE[..];
        let socket = Socket::new(stream, looked_at, shared.options.write_timeout);
        if is_http2 {
            serve_http2(socket, peer, handler, shared).await;
        } else {
            serve_http1(socket, peer, handler, shared).await;
        }
    };
    tokio::select! {
        () = served => {}
        () = shared.kill.cancelled() => {}
    }
}

/// Reads until the bytes are the preface, or can no longer become it.
async fn look(stream: &mut TcpStream) -> std::io::Result<Bytes> {
    let mut bytes = [0; PREFACE.len()];
    let mut len = 0;
    while len < PREFACE.len() && bytes[..len] == PREFACE[..len] {
        match stream.read(&mut bytes[len..]).await? {
            0 => break,
            n => len += n,
        }
    }
    Ok(Bytes::copy_from_slice(&bytes[..len]))
}

async fn serve_http1<H: Handle>(socket: Socket, peer: Peer, handler: H, shared: &Shared) {
    let unread = Arc::new(AtomicBool::new(false));
    let service = {
        let unread = Arc::clone(&unread);
        service_fn(move |request: Request<Incoming>| {
            let (handler, unread) = (handler.clone(), Arc::clone(&unread));
            Box::pin(async move {
                let request = request.map(|body| RequestBody { body, unread });
                Ok::<_, Infallible>(handler.handle(request, peer).await)
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
    let ended = loop {
        tokio::select! {
            ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break ended,
            () = shared.drain.cancelled(), if !draining => {
                draining = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
    let socket = connection.into_parts().io.into_inner();
    socket.finish(unread.load(Ordering::Relaxed)).await;
}

async fn serve_http2<H: Handle>(socket: Socket, peer: Peer, handler: H, shared: &Shared) {
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = handler.clone();
        async move {
            let request = request.map(|body| RequestBody { body, unread: Arc::default() });
            let response: Response<_> = handler.handle(request, peer).await;
            Ok::<_, Infallible>(response.map(Paced::new))
        }
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

/// A request's body, which tells when it is let go before its end.
pub struct RequestBody {
    body: Incoming,
    unread: Arc<AtomicBool>,
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if !self.body.is_end_stream() {
            self.unread.store(true, Ordering::Relaxed);
        }
    }
}
