//! The server over real sockets, with a handler whose answers are made up.

mod plain;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::{Commits, Handle, Options, RequestBody, Server};
use crate::http::Peer;
use crate::http::answer::{Body, Framing, Source};
use crate::log::StreamError;
use crate::sse::Form;

/// Every wait in here is over long before this; a test that reaches it has failed.
const TOO_LONG: Duration = Duration::from_secs(30);
const CHUNK: &[u8] = &[b'x'; 64 * 1024];

/// Answers by path.
#[derive(Clone, Default)]
struct Fake {
    draining: CancellationToken,
    disk: Arc<Disk>,
    /// How many heads it was asked about.
    heads: Arc<AtomicUsize>,
}

/// What a lane's thread waits for when it was asked to.
#[derive(Default)]
struct Disk {
    asked: Notify,
    answer: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

impl Commits for Arc<Disk> {
    async fn due(&self) {
        self.asked.notified().await;
    }

    fn commit(&self) {
        let answer = self.answer.lock().take();
        answer.expect("it is there when it is asked for").recv_timeout(TOO_LONG).unwrap();
    }
}

impl Fake {
    fn source(&self, path: &str) -> Source {
        let chunks = |n: usize| tokio_stream::iter((0..n).map(|_| Ok(Bytes::from_static(CHUNK))));
        let broken = tokio_stream::once(Err(StreamError::Draining { cursor: 7 }));
        match path {
            "/broken" => Box::pin(broken),
            "/long-and-broken" => Box::pin(chunks(512).chain(broken)),
            "/endless" => Box::pin(tokio_stream::iter(std::iter::repeat_with(|| Ok(Bytes::from_static(CHUNK))))),
            // Quiet until the drain.
            _ => {
                let draining = self.draining.clone().cancelled_owned();
                let mut draining = Box::pin(draining);
                let mut told = false;
                Box::pin(Polled(move |cx: &mut std::task::Context<'_>| {
                    use std::task::Poll;
                    if told {
                        return Poll::Ready(None);
                    }
                    std::task::ready!(draining.as_mut().poll(cx));
                    told = true;
                    Poll::Ready(Some(Err(StreamError::Draining { cursor: 7 })))
                }))
            }
        }
    }
}

struct Polled<F>(F);

impl<F, T> futures_core::Stream for Polled<F>
where
    F: FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Option<T>> + Unpin,
{
    type Item = T;
    fn poll_next(self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<T>> {
        (self.get_mut().0)(cx)
    }
}

impl Handle for Fake {
    async fn handle(&self, request: Request<RequestBody>, peer: Peer) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let chunk_bytes_max = if request.version() == hyper::Version::HTTP_2 { 16 * 1024 } else { usize::MAX };
        let framing = Framing { form: Form::Lines, retry: Duration::from_secs(2), chunk_bytes_max };
        let mut response = Response::new(match path.as_str() {
            _ if peer.turned_away => Body::full("turned away"),
            "/read" => Body::full(request.into_body().collect().await.unwrap().to_bytes().len().to_string()),
            "/early" => Body::full("early"),
            "/known" => Body::full("handled"),
            "/away" => Body::sent_away(framing, Some(7), &StreamError::Draining { cursor: 7 }.into()),
            "/who" => Body::full(std::thread::current().name().unwrap_or_default().to_owned()),
            "/hang" => std::future::pending().await,
            _ => Body::stream(framing, self.source(&path)),
        });
        if path == "/early" {
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        }
        response
    }

    /// The number of its head.
    type Known = usize;

    fn known(&self, request: &Parts) -> Option<usize> {
        (request.uri.path() == "/known").then(|| self.heads.fetch_add(1, Ordering::SeqCst) + 1)
    }

    async fn repeat(&self, known: &usize, body: &[u8]) -> Response<Body> {
        Response::new(Body::full(format!("head {known}, {} bytes", body.len())))
    }

    fn drain(&self) {
        self.draining.cancel();
    }

    fn lane(&self) -> Option<(Self, impl Commits)> {
        Some((self.clone(), self.disk.clone()))
    }
}

#[tokio::test]
async fn what_is_accepted_is_prepared() {
    let options = Options { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..Options::default() };
    let gone_after = options.write_timeout * super::GONE_WRITE_TIMEOUTS;
    let server = Server::bind(options).unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(server.local_addr().unwrap()), server.listener.accept());
    let ((stream, _), _client) = (accepted.unwrap(), client.unwrap());
    let socket = SockRef::from(&stream);
    assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(15));
    #[cfg(target_os = "linux")]
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(gone_after));
}

struct Running {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    ended: JoinHandle<()>,
}

fn start(change: impl FnOnce(&mut Options)) -> Running {
    start_with(Fake::default(), change)
}

fn start_with(fake: Fake, change: impl FnOnce(&mut Options)) -> Running {
    let mut options = Options { listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..Options::default() };
    change(&mut options);
    let server = Server::bind(options).unwrap();
    let address = server.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let ended = tokio::spawn(server.run(fake, async { drop(stopped.await) }));
    Running { address, stop: Some(stop), ended }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn send(&self, bytes: &str) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream
    }

    async fn http2(&self) -> http2::SendRequest<Empty<Bytes>> {
        let (sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(self.connect().await)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn stop(mut self) {
        drop(self.stop.take());
        in_time(self.ended).await.unwrap();
    }
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TOO_LONG, future).await.expect("it takes too long")
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

fn get2(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://localhost{path}")).body(Empty::new()).unwrap()
}

async fn until(stream: &mut TcpStream, mark: &str) -> String {
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains(mark) {
        let mut chunk = [0; 4096];
        let n = in_time(stream.read(&mut chunk)).await.unwrap();
        assert!(n > 0, "the end came before {mark:?}: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&chunk[..n]);
    }
    String::from_utf8(text).unwrap()
}

async fn to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    in_time(stream.read_to_end(&mut all)).await.unwrap();
    all
}

const LAST: &str = "{\"event\":\"tidelog.error\",\"after\":7,\"data\":{";

#[tokio::test]
async fn the_head_of_a_stream_comes_before_its_first_byte() {
    let server = start(|_| ());
    let mut stream = server.send(&get("/quiet")).await;
    let head = until(&mut stream, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("transfer-encoding: chunked"), "{head}");
    let mut sender = server.http2().await;
    assert_eq!(in_time(sender.send_request(get2("/quiet"))).await.unwrap().status(), 200);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_that_breaks_off_has_its_last_bytes_and_no_last_chunk() {
    let server = start(|_| ());
    for (path, before) in [("/broken", 0), ("/away", 0), ("/long-and-broken", 512 * CHUNK.len())] {
        let mut stream = server.send(&get(path)).await;
        // Let the server's writes run full before anything is read.
        let mut all = until(&mut stream, "HTTP/1.1 200 OK\r\n").await.into_bytes();
        all.extend(to_end(&mut stream).await);
        let at = memchr::memmem::find(&all, LAST.as_bytes()).expect("the last bytes are there");
        assert!(all.ends_with(b"}}\n\r\n"), "{:?}", String::from_utf8_lossy(&all[at..]));
        assert!(all.len() > before);
    }
    server.stop().await;
}

#[tokio::test]
async fn an_http2_stream_that_breaks_off_has_its_last_bytes_and_is_reset() {
    let server = start(|_| ());
    let mut sender = server.http2().await;
    for (path, before) in [("/broken", 0), ("/away", 0), ("/long-and-broken", 512 * CHUNK.len())] {
        let mut body = in_time(sender.send_request(get2(path))).await.unwrap().into_body();
        let mut all = Vec::new();
        let error = loop {
            match in_time(body.frame()).await.expect("no proper end") {
                Ok(frame) => all.extend_from_slice(&frame.into_data().unwrap()),
                Err(error) => break error,
            }
        };
        assert!(memchr::memmem::find(&all, LAST.as_bytes()).is_some(), "{} bytes, then {error:?}", all.len());
        assert!(all.ends_with(b"}}\n") && all.len() > before);
        assert!(format!("{error:?}").contains("INTERNAL_ERROR"), "{error:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_stalled_http2_stream_is_reset_and_its_neighbours_are_not() {
    let server = start(|options| options.write_timeout = Duration::from_millis(300));
    let mut sender = server.http2().await;
    let mut stalled = in_time(sender.send_request(get2("/endless"))).await.unwrap().into_body();
    let mut quiet = in_time(sender.send_request(get2("/quiet"))).await.unwrap().into_body();
    // The client's window opens only for what is read; nothing of the first stream is, until its reset must have come.
    let neighbour = tokio::time::timeout(Duration::from_millis(1500), quiet.frame()).await;
    assert!(neighbour.is_err(), "the quiet stream goes on: {neighbour:?}");
    let error = loop {
        match in_time(stalled.frame()).await.expect("no proper end") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(format!("{error:?}").contains("CANCEL"), "{error:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_socket_that_takes_nothing_is_closed_and_one_that_waits_for_events_is_not() {
    let server = start(|options| options.write_timeout = Duration::from_millis(300));
    let mut quiet = server.send(&get("/quiet")).await;
    until(&mut quiet, "\r\n\r\n").await;
    let stalled = server.send(&get("/endless")).await;
    // Its own side sees the reset as an error, without reading.
    let reset = in_time(stalled.ready(tokio::io::Interest::ERROR)).await.unwrap();
    assert!(reset.is_error());
    let mut byte = [0];
    assert!(tokio::time::timeout(Duration::from_millis(50), quiet.read(&mut byte)).await.is_err());
    server.stop().await;
}

#[tokio::test]
async fn heads_are_bounded_in_bytes_and_in_time() {
    let server = start(|options| options.header_timeout = Duration::from_millis(200));
    let large = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX-Large: {}\r\n\r\n", "x".repeat(70_000));
    let mut stream = server.send(&large).await;
    assert!(until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 431 "));
    let fits = format!("GET /early HTTP/1.1\r\nHost: localhost\r\nX-Large: {}\r\n\r\n", "x".repeat(60_000));
    let mut stream = server.send(&fits).await;
    assert!(until(&mut stream, "early").await.starts_with("HTTP/1.1 413 "));
    for begun in ["", "P", "PRI", "GET /quiet HTTP/1.1\r\nHost: lo"] {
        let mut stream = server.send(begun).await;
        assert_eq!(to_end(&mut stream).await, b"", "{begun:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn requests_that_begin_like_the_preface_are_http1() {
    let server = start(|_| ());
    let mut stream = server.send("P").await;
    stream.write_all(b"OST /read HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc").await.unwrap();
    assert!(until(&mut stream, "\r\n\r\n3").await.starts_with("HTTP/1.1 200 "));
    // The same connection again.
    stream.write_all(get("/early").as_bytes()).await.unwrap();
    until(&mut stream, "early").await;
    server.stop().await;
}

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let server = start(|_| ());
    let mut stream = server.connect().await;
    let size = 20 << 20;
    let head = format!("POST /early HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..size / CHUNK.len() {
        // It may be refused halfway; the answer must be there all the same.
        if in_time(stream.write_all(CHUNK)).await.is_err() {
            break;
        }
    }
    let text = until(&mut stream, "early").await;
    assert!(text.starts_with("HTTP/1.1 413 "), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_most_are_told_so() {
    let server = start(|options| options.connections_max = 1);
    let mut first = server.send(&get("/quiet")).await;
    until(&mut first, "\r\n\r\n").await;
    let mut second = server.send(&get("/quiet")).await;
    assert!(String::from_utf8(to_end(&mut second).await).unwrap().ends_with("turned away"));
    drop(first);
    // The place is free as soon as the server has noticed.
    in_time(async {
        loop {
            let mut third = server.send(&get("/early")).await;
            if until(&mut third, "\r\n\r\n").await.starts_with("HTTP/1.1 413") {
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_drain_ends_streams_and_idle_connections_by_themselves_and_the_rest_in_time() {
    let server = start(|options| options.drain_timeout = Duration::from_millis(500));
    let address = server.address;
    let mut silent = server.connect().await;
    let mut idle = server.send(&get("/early")).await;
    until(&mut idle, "early").await;
    let mut following = server.send(&get("/quiet")).await;
    until(&mut following, "\r\n\r\n").await;
    let mut sender = server.http2().await;
    let mut following2 = in_time(sender.send_request(get2("/quiet"))).await.unwrap().into_body();
    let mut hanging = server.send(&get("/hang")).await;
    let ended = tokio::spawn(server.stop());
    assert_eq!(to_end(&mut silent).await, b"");
    assert_eq!(to_end(&mut idle).await, b"");
    let last = String::from_utf8(to_end(&mut following).await).unwrap();
    assert!(last.contains(LAST) && last.ends_with("}}\n\r\n"), "{last}");
    let last = in_time(following2.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert!(last.starts_with(LAST.as_bytes()));
    assert!(in_time(following2.frame()).await.unwrap().is_err());
    let mut end = Vec::new();
    let _ = in_time(hanging.read_to_end(&mut end)).await;
    assert_eq!(end, b"");
    in_time(ended).await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
