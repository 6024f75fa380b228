//! HTTP as these clients speak it, for the bytes that come before a break too: heads and bodies, over HTTP/1.0, 1.1 and 2.
//!
//! What holds: every wait is bounded by [`SILENCE`], which is longer than many heartbeats: so half-open connections are noticed. An
//! end that is not the body's proper one is an error.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::Head;

/// After so long without a byte a connection counts as broken.
pub const SILENCE: Duration = Duration::from_millis(1_500);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    Chunks,
    Bytes(usize),
    /// HTTP/1.0: the end of the connection is the end of the body, proper or not.
    UntilClosed,
    Done,
    /// It broke off, and all that came was given.
    Broken,
}

/// A connection over HTTP/1.
pub struct Wire {
    socket: TcpStream,
    buffer: Vec<u8>,
    body: Body,
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, why.to_owned())
}

impl Wire {
    pub async fn connect(addr: SocketAddr) -> io::Result<Self> {
        let socket = timeout(SILENCE, TcpStream::connect(addr)).await??;
        socket.set_nodelay(true)?;
        Ok(Self { socket, buffer: Vec::new(), body: Body::Done })
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        timeout(SILENCE, self.socket.write_all(bytes)).await?
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    async fn more(&mut self) -> io::Result<()> {
        match timeout(SILENCE, self.socket.read_buf(&mut self.buffer)).await?? {
            0 => Err(broken("the connection ended")),
            _ => Ok(()),
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut from = 0;
        loop {
            if let Some(end) = self.buffer[from..].iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=from + end).collect();
                let line = String::from_utf8(line).expect("heads are UTF-8");
                return Ok(line.strip_suffix("\r\n").expect("lines of heads end with CRLF").to_owned());
            }
            from = self.buffer.len();
            self.more().await?;
        }
    }

    pub async fn head(&mut self) -> io::Result<Head> {
        let first = self.line().await?;
        let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|text| text.parse().ok());
        let mut head = Head { status: status.unwrap_or_else(|| panic!("{first:?}")), headers: Vec::new() };
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').expect("header lines have a colon");
            head.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        self.body = if head.status == 204 {
            Body::Done
        } else if head.header("transfer-encoding") == Some("chunked") {
            Body::Chunks
        } else if let Some(length) = head.header("content-length") {
            Body::Bytes(length.parse().expect("a length is a number"))
        } else {
            Body::UntilClosed
        };
        Ok(head)
    }

    /// The next bytes of the body; `None` at its proper end.
    pub async fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.body {
            Body::Done | Body::Bytes(0) => {
                self.body = Body::Done;
                Ok(None)
            }
            Body::Broken => Err(broken("the body broke off")),
            Body::Bytes(left) => {
                if self.buffer.is_empty() {
                    self.more().await?;
                }
                let n = left.min(self.buffer.len());
                self.body = Body::Bytes(left - n);
                Ok(Some(self.buffer.drain(..n).collect()))
            }
            Body::UntilClosed => {
                if self.buffer.is_empty() {
                    self.more().await?;
                }
                Ok(Some(std::mem::take(&mut self.buffer)))
            }
            Body::Chunks => {
                let length = usize::from_str_radix(&self.line().await?, 16).expect("a chunk begins with its length");
                while self.buffer.len() < length + 2 {
                    if let Err(error) = self.more().await {
                        // What came of it is looked at too: a client of the standard gives it to its parser at once.
                        if length > 0 && !self.buffer.is_empty() {
                            self.body = Body::Broken;
                            self.buffer.truncate(length);
                            return Ok(Some(std::mem::take(&mut self.buffer)));
                        }
                        return Err(error);
                    }
                }
                let chunk = self.buffer.drain(..length).collect();
                assert_eq!(self.buffer.drain(..2).collect::<Vec<_>>(), b"\r\n", "a chunk ends with its line");
                if length == 0 {
                    self.body = Body::Done;
                    return Ok(None);
                }
                Ok(Some(chunk))
            }
        }
    }

    /// A whole answer.
    pub async fn answer(&mut self) -> io::Result<(Head, String)> {
        let head = self.head().await?;
        let mut body = Vec::new();
        while let Some(piece) = self.piece().await? {
            body.extend_from_slice(&piece);
        }
        Ok((head, String::from_utf8(body).expect("answers are UTF-8")))
    }
}

/// A stream's body, over whatever it comes.
pub enum Stream {
    One(Wire),
    Two(Incoming),
}

impl Stream {
    pub async fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::One(wire) => wire.piece().await,
            Self::Two(body) => match timeout(SILENCE, body.frame()).await? {
                None => Ok(None),
                Some(frame) => {
                    let frame = frame.map_err(io::Error::other)?;
                    Ok(Some(frame.into_data().map(|bytes| bytes.to_vec()).unwrap_or_default()))
                }
            },
        }
    }
}

/// A GET over HTTP/2, on a connection of its own.
pub async fn get_http2(addr: SocketAddr, target: &str, headers: &[(&str, String)]) -> io::Result<(Head, Stream)> {
    let socket = timeout(SILENCE, TcpStream::connect(addr)).await??;
    socket.set_nodelay(true)?;
    let shake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket));
    let (mut sender, connection) = timeout(SILENCE, shake).await?.map_err(io::Error::other)?;
    // Ends when the stream is let go, and with it the sender.
    tokio::spawn(connection);
    let mut request = Request::builder().uri(format!("http://localhost{target}"));
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).expect("it is well formed");
    let response = timeout(SILENCE, sender.send_request(request)).await?.map_err(io::Error::other)?;
    let (parts, body) = response.into_parts();
    let text = |value: &hyper::header::HeaderValue| value.to_str().expect("headers are text").to_owned();
    let headers = parts.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
    Ok((Head { status: parts.status.as_u16(), headers }, Stream::Two(body)))
}
