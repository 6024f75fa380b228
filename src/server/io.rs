//! A connection's socket: it gives back first what was already looked at, and closes itself when its peer takes nothing.
//!
//! Must not know HTTP.

use std::future::Future as _;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// How long a client that is still sending, though it has its answer, is listened to.
const LINGER: Duration = Duration::from_secs(2);

/// The socket.
pub struct Socket {
    stream: TcpStream,
    /// Bytes that were read before the protocol was known.
    looked_at: Bytes,
    write_timeout: Duration,
    /// Runs while a write waits; made when one first does.
    timer: Option<Pin<Box<Sleep>>>,
    /// A write waits. Seen from outside, where the socket itself is within hyper, but by the task that writes: relaxed is enough.
    waiting: Arc<AtomicBool>,
    /// The kernel had room that it did not speak of: it is filled past the runtime, which waits for the kernel's word.
    has_room: bool,
}

impl Socket {
    /// `stream`, of which `looked_at` was already read.
    pub fn new(stream: TcpStream, looked_at: Bytes, write_timeout: Duration) -> Self {
        Self { stream, looked_at, write_timeout, timer: None, waiting: Arc::default(), has_room: false }
    }

    /// Whether a write waits: it stays true to this socket wherever that is.
    pub fn waiting(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.waiting)
    }

    /// The socket itself, non-blocking. Bytes that were looked at must have been read.
    ///
    /// # Errors
    /// When the runtime cannot let it go.
    pub fn into_std(self) -> Result<std::net::TcpStream> {
        debug_assert!(self.looked_at.is_empty(), "the head of a request holds at least these");
        self.stream.into_std()
    }

    /// What was looked at, or put back, and not read since.
    pub fn take_back(&mut self) -> Bytes {
        std::mem::take(&mut self.looked_at)
    }

    /// Reads what comes into the room that `into` has left; gives 0 at the end. What was looked at must have been read.
    ///
    /// # Errors
    /// When the connection has broken.
    pub async fn read_more(&mut self, into: &mut BytesMut) -> Result<usize> {
        debug_assert!(self.looked_at.is_empty(), "what comes first is read first");
        self.stream.read_buf(into).await
    }

    /// These were read too early, and are to be read again.
    pub fn put_back(&mut self, bytes: Bytes) {
        debug_assert!(self.looked_at.is_empty(), "what comes first is put back first");
        self.looked_at = bytes;
    }

    /// Ends the connection. With `unread`, bytes of its last request may still be coming: closing a socket that has unread
    /// bytes resets it, which would take the answer away from a client that has not read it yet.
    pub async fn finish(mut self, unread: bool) {
        let _ = self.stream.shutdown().await;
        if unread {
            let mut scrap = [0; 4096];
            let drained = async { while matches!(self.stream.read(&mut scrap).await, Ok(n) if n > 0) {} };
            let _ = tokio::time::timeout(LINGER, drained).await;
        }
    }

    /// Writes: through the runtime, and past it where that has waited for `write_timeout` since the last byte went out. The kernel tells
    /// only of much room, and a socket that takes a single byte is not one that takes nothing. Fails when it does take nothing.
    fn watched(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<Result<usize>>,
        past: impl Fn(SockRef<'_>) -> Result<usize>,
    ) -> Poll<Result<usize>> {
        if self.has_room {
            match past(SockRef::from(&self.stream)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.has_room = false,
                written => return Poll::Ready(written),
            }
        }
        let written = write(Pin::new(&mut self.stream), cx);
        if written.is_ready() {
            self.waiting.store(false, Ordering::Relaxed);
            return written;
        }
        let deadline = Instant::now() + self.write_timeout;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if !self.waiting.swap(true, Ordering::Relaxed) {
            timer.as_mut().reset(deadline);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if let Ok(written) = past(SockRef::from(&self.stream)) {
            self.waiting.store(false, Ordering::Relaxed);
            self.has_room = true;
            return Poll::Ready(Ok(written));
        }
        // What its kernel buffer still holds is for nobody.
        let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        Poll::Ready(Err(Error::new(ErrorKind::TimedOut, "the peer took no byte for write_timeout")))
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        if this.looked_at.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, into);
        }
        let n = this.looked_at.len().min(into.remaining());
        into.put_slice(&this.looked_at[..n]);
        this.looked_at.advance(n);
        // What follows is most often there too, and hyper doubles a buffer of which the first read leaves a part. After an error the end comes.
        if this.looked_at.is_empty() && into.remaining() > 0 {
            let _ = Pin::new(&mut this.stream).poll_read(cx, into);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        self.get_mut().watched(cx, |stream, cx| stream.poll_write(cx, bytes), |socket| socket.send(bytes))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        let write = |stream: Pin<&mut TcpStream>, cx: &mut Context<'_>| stream.poll_write_vectored(cx, slices);
        self.get_mut().watched(cx, write, |socket| socket.send_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    async fn pair(looked_at: &'static [u8], write_timeout: Duration) -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        (Socket::new(stream, Bytes::from_static(looked_at), write_timeout), client)
    }

    #[tokio::test]
    async fn what_was_looked_at_is_read_again() {
        let (mut socket, mut client) = pair(b"PRI ", Duration::from_secs(60)).await;
        client.write_all(b"* HTTP").await.unwrap();
        client.shutdown().await.unwrap();
        let mut all = Vec::new();
        socket.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"PRI * HTTP");
    }

    /// The kernel says that a socket can be written when a third of its buffer is free. A peer that takes less than that within the
    /// timeout takes something all the same.
    #[tokio::test]
    async fn a_peer_is_not_left_while_it_takes_less_than_the_kernel_speaks_of() {
        const TIMEOUT: Duration = Duration::from_millis(500);
        let (mut socket, mut client) = pair(b"", TIMEOUT).await;
        SockRef::from(&client).set_recv_buffer_size(32 << 10).unwrap();
        SockRef::from(&socket.stream).set_send_buffer_size(4 << 20).unwrap();
        let chunk = vec![0; 64 << 20];
        let mut reader = async || {
            // More than one segment in a timeout, which are freed in one piece, and less than a third of the buffer.
            let mut scrap = vec![0; 20 << 10];
            for _ in 0..16 {
                client.read_exact(&mut scrap).await.unwrap();
                tokio::time::sleep(TIMEOUT / 4).await;
            }
        };
        tokio::select! {
            () = reader() => {}
            written = socket.write_all(&chunk) => panic!("{written:?}, though the peer read all the while"),
        }
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_left_and_one_that_takes_little_is_not() {
        let (mut socket, mut client) = pair(b"", Duration::from_millis(200)).await;
        let chunk = vec![0; 1 << 20];
        // More than the kernel's buffers of both ends hold, read at a crawl: each read is within the timeout.
        let (slow_reader, written) = tokio::join!(
            async {
                let mut all = vec![0; 64 << 20];
                client.read_exact(&mut all).await.unwrap();
                client
            },
            async {
                for _ in 0..64 {
                    socket.write_all(&chunk).await?;
                }
                Ok::<(), Error>(())
            }
        );
        written.unwrap();
        let error = loop {
            if let Err(error) = socket.write_all(&chunk).await {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(slow_reader);
    }
}
