//! One HTTP/1.1 connection to the server, made anew when it is needed.
//!
//! What holds: every call ends within a bound, and a failure says which of two it is: refused (nothing happened), or
//! broken (it may have happened). Must not know quakes.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A loopback or a LAN answers at once; a machine that is off would keep us for minutes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longer than the longest fsync of a busy disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A page with one quake is about a kilobyte; whatever sends more is not a tidelog.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Why a call gave nothing.
pub enum Failure {
    /// The answer says that nothing was done, and that the same call would be refused again.
    Refused(String),
    /// There was no answer, or one that leaves it open: it may have been done.
    Broken(String),
}

/// A server, and the connection to it while there is one.
pub struct Link {
    authority: String,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Link {
    /// `server` is `http://HOST:PORT`.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn new(server: &str) -> Result<Self, String> {
        let authority = server.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        match authority.and_then(|text| text.parse::<hyper::http::uri::Authority>().ok()) {
            Some(found) if found.port().is_some() => Ok(Self { authority: found.to_string(), sender: None }),
            _ => Err(format!("--server wants http://HOST:PORT, not {server:?}")),
        }
    }

    pub async fn get_json(&mut self, target: &str) -> Result<Bytes, Failure> {
        self.call(Method::GET, target, Bytes::new()).await
    }

    pub async fn post_json(&mut self, target: &str, body: &'static str) -> Result<Bytes, Failure> {
        self.call(Method::POST, target, Bytes::from_static(body.as_bytes())).await
    }

    async fn call(&mut self, method: Method, target: &str, body: Bytes) -> Result<Bytes, Failure> {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, &self.authority)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| Failure::Refused(e.to_string()))?;
        let outcome = match timeout(ANSWER_TIMEOUT, self.exchange(request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
        };
        match outcome {
            Ok((status, body)) if status.is_success() => Ok(body),
            Ok((status, body)) => {
                let answer = format!("{status} {}", String::from_utf8_lossy(&body));
                let again = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
                Err(if again { Failure::Broken(answer) } else { Failure::Refused(answer) })
            }
            Err(reason) => {
                self.sender = None;
                Err(Failure::Broken(reason))
            }
        }
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String> {
        if self.sender.as_ref().is_none_or(SendRequest::is_closed) {
            self.sender = None;
        }
        let sender = match &mut self.sender {
            Some(sender) => sender,
            none => none.insert(connect(&self.authority).await?),
        };
        sender.ready().await.map_err(|e| format!("connection lost: {e}"))?;
        let answer = sender.send_request(request).await.map_err(|e| format!("connection lost: {e}"))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((status, body.map_err(|e| format!("connection lost: {e}"))?.to_bytes()))
    }
}

async fn connect(authority: &str) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect(authority)).await {
        Ok(made) => made.map_err(|e| format!("no connection to {authority}: {e}"))?,
        Err(_) => return Err(format!("no connection to {authority} within {} s", CONNECT_TIMEOUT.as_secs())),
    };
    // One small request at a time: waiting to fill a packet would only delay it.
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // Its errors reach the caller through the sender.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
