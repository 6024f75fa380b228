//! HTTP/2 with prior knowledge: the same API, many streams on one connection, and none holds up another.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::process::Signal;
use tidelog::sse::decode::{Decoder, Message};
use tokio::net::TcpStream;

use crate::support::{TOO_LONG, TestServer};

pub type Sender = SendRequest<Full<Bytes>>;

pub async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TOO_LONG, future).await.expect("it takes too long")
}

/// A connection whose streams take `window` bytes each before they are read.
pub async fn connect(server: &TestServer, window: u32) -> Sender {
    let socket = TokioIo::new(TcpStream::connect(server.addr).await.unwrap());
    let mut builder = Builder::new(TokioExecutor::new());
    // The connection's own window is large, so that a stream can only stall itself.
    builder.timer(TokioTimer::new()).initial_stream_window_size(window).initial_connection_window_size(64 << 20);
    let (sender, connection) = builder.handshake(socket).await.unwrap();
    tokio::spawn(connection);
    sender
}

pub async fn send(
    sender: &mut Sender,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response<Incoming> {
    let mut request = Request::builder().method(method).uri(format!("http://localhost{target}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = in_time(sender.send_request(request.body(Full::from(body.to_owned())).unwrap())).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    response
}

async fn publish(sender: &mut Sender, topic: &str, data: &str) -> u64 {
    let response = send(sender, "POST", &format!("/topics/{topic}"), &[], data).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let body = in_time(response.into_body().collect()).await.unwrap().to_bytes();
    serde_json::from_slice::<serde_json::Value>(&body).unwrap()["id"].as_u64().unwrap()
}

pub struct Stream {
    pub body: Incoming,
    decoder: Decoder,
    rest: Vec<u8>,
}

impl Stream {
    pub async fn open(sender: &mut Sender, target: &str, headers: &[(&str, &str)]) -> Self {
        let response = send(sender, "GET", target, headers, "").await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert!(response.headers().contains_key("tidelog-tail"));
        Self { body: response.into_body(), decoder: Decoder::default(), rest: Vec::new() }
    }

    /// `Err`: how it was broken off.
    pub async fn next(&mut self) -> Result<Message, hyper::Error> {
        loop {
            let mut rest = &self.rest[..];
            let message = self.decoder.next(&mut rest).unwrap();
            self.rest = rest.to_vec();
            if let Some(message) = message {
                return Ok(message);
            }
            let frame = in_time(self.body.frame()).await.expect("no proper end")?;
            self.rest.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    pub async fn event(&mut self) -> Message {
        loop {
            let message = self.next().await.unwrap();
            if message.event != "tidelog.live" {
                return message;
            }
        }
    }
}

#[tokio::test]
async fn publishers_and_subscribers_share_a_connection() {
    let mut server = TestServer::start(&[]);
    let mut sender = connect(&server, 1 << 20).await;
    let mut streams = Vec::new();
    for n in 0..100 {
        let mut stream = Stream::open(&mut sender, &format!("/topics/s.{n}"), &[("accept", "text/event-stream")]).await;
        assert_eq!(stream.next().await.unwrap().event, "tidelog.live");
        streams.push(stream);
    }
    for n in 0..100 {
        assert_eq!(publish(&mut sender, &format!("s.{n}"), &format!("data {n}")).await, n + 1);
    }
    for (n, stream) in (0..).zip(&mut streams) {
        let event = stream.event().await;
        assert_eq!((event.id, event.data), ((n + 1).to_string(), format!("data {n}")));
    }
    let mut resumed = Stream::open(&mut sender, "/events", &[("last-event-id", "98")]).await;
    assert_eq!((resumed.event().await.id, resumed.event().await.id), ("99".into(), "100".into()));
    let refused = send(&mut sender, "POST", "/topics/a..b", &[], "x").await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["content-type"]),
        (400, &"application/problem+json".parse().unwrap())
    );
    let refused = send(&mut sender, "POST", "/topics/a", &[("origin", "http://evil.example")], "x").await;
    assert_eq!(refused.status().as_u16(), 403);
    let head = send(&mut sender, "HEAD", "/topics/s.1", &[], "").await;
    assert_eq!(head.headers()["tidelog-last"], "2");
    // A drain resets each stream after it has said why.
    server.signal(Signal::TERM);
    let error = streams[7].event().await;
    assert!(error.event == "tidelog.error" && error.data.contains("\"draining\""), "{error:?}");
    assert!(streams[7].next().await.is_err(), "no proper end");
    drop((streams, resumed));
    assert_eq!(server.wait().code(), Some(0));
}

#[tokio::test]
async fn a_stream_that_is_not_read_holds_up_no_other() {
    let server = TestServer::start(&["heartbeat=200ms"]);
    let mut sender = connect(&server, 64 << 10).await;
    let mut stalled = Stream::open(&mut sender, "/topics/bulk", &[]).await;
    let mut other = Stream::open(&mut sender, "/topics/**", &[]).await;
    assert_eq!(other.next().await.unwrap().event, "tidelog.live");
    // Far more than its window, the server's buffers and the ring take.
    let data = "x".repeat(512 << 10);
    for id in 1..=160 {
        assert_eq!(publish(&mut sender, "bulk", &data).await, id);
        assert_eq!(other.event().await.id, id.to_string());
    }
    let mut late = Stream::open(&mut sender, "/topics/bulk", &[("last-event-id", "0")]).await;
    assert_eq!(late.event().await.id, "1");
    // It was stalled for less than `write_timeout`; when it reads again it has missed nothing.
    for id in 1..=160 {
        let event = stalled.event().await;
        assert_eq!((event.id, event.data.len()), (id.to_string(), data.len()));
    }
}

#[tokio::test]
async fn a_stream_that_is_not_read_for_the_write_timeout_is_reset_alone() {
    let server = TestServer::start(&["write_timeout=500ms"]);
    let mut sender = connect(&server, 16 << 10).await;
    let mut stalled = Stream::open(&mut sender, "/topics/bulk", &[]).await;
    let mut other = Stream::open(&mut sender, "/topics/other", &[]).await;
    assert_eq!(other.next().await.unwrap().event, "tidelog.live");
    for id in 1..=8 {
        assert_eq!(publish(&mut sender, "bulk", &"x".repeat(512 << 10)).await, id);
    }
    let subscribers = || server.get("/metrics", &[]).body.lines().any(|line| line == "tidelog_subscribers 1");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !subscribers() {
        assert!(tokio::time::Instant::now() < deadline, "it is still there");
        tokio::task::yield_now().await;
    }
    publish(&mut sender, "other", "y").await;
    assert_eq!(other.event().await.data, "y");
    let broken = loop {
        if let Err(error) = stalled.next().await {
            break error;
        }
    };
    assert!(!broken.is_timeout(), "{broken}");
}
