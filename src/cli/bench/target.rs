//! Where the server is, and the bytes of what is asked of it.
//!
//! Must not know sockets.

use std::fmt::Write as _;
use std::net::{SocketAddr, ToSocketAddrs as _};

use hyper::Uri;
use tidelog::client::Client;
use tidelog::topic::Topic;

use super::Error;
use super::mark::{LENGTH, Mark};
use super::options::{Common, Peer};
use super::wire::Look;

/// The server under test, and the topics of this run.
#[derive(Debug, Clone)]
pub struct Target {
    pub addr: SocketAddr,
    /// As it was written.
    pub url: String,
    authority: String,
    /// The path before the contract's own.
    prefix: String,
    /// What the topics' names begin with.
    pub topic: String,
    /// Whose marks count.
    pub run: u32,
    peer: Peer,
}

impl Target {
    /// Resolves the server's name.
    pub fn new(common: &Common) -> Result<Self, Error> {
        // It refuses what is no URL of a server, and says why.
        Client::new(&common.server)?;
        let resolve = |cause| Error::Resolve { server: common.server.clone(), cause };
        let invalid = || resolve(std::io::ErrorKind::InvalidInput.into());
        let uri: Uri = common.server.parse().map_err(|_| invalid())?;
        let authority = uri.authority().ok_or_else(invalid)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let mut addresses = (host, authority.port_u16().unwrap_or(80)).to_socket_addrs().map_err(resolve)?;
        Ok(Self {
            addr: addresses.next().ok_or_else(invalid)?,
            url: common.server.clone(),
            authority: authority.to_string(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            topic: common.topic.as_ref().map_or_else(random_topic, ToString::to_string),
            run: fastrand::u32(..),
            peer: common.peer.clone(),
        })
    }

    /// Whether it is another server than tidelog.
    pub fn is_peer(&self) -> bool {
        self.peer.subscribe_path.is_some()
    }

    /// Whether each event has an id.
    pub fn has_ids(&self) -> bool {
        !self.peer.no_ids
    }

    /// What is looked for in a stream.
    pub fn look(&self) -> Look {
        if self.has_ids() { Look::Frames } else { Look::Marks }
    }

    /// The name of topic `number`.
    pub fn topic_name(&self, number: u32) -> String {
        format!("{}.{number}", self.topic)
    }

    /// Whether different topics have different paths to publish at.
    pub fn has_topics(&self) -> bool {
        self.peer.publish_path.as_ref().is_none_or(|path| path.contains("{i}"))
    }

    /// A subscription to topic `number`, from now on.
    pub fn subscribe(&self, number: u32) -> Vec<u8> {
        self.follow(self.peer.subscribe_path.as_ref(), number, None)
    }

    /// The same again, after `last`.
    pub fn subscribe_behind(&self, number: u32, last: u64) -> Vec<u8> {
        match &self.peer.behind_path {
            Some(path) => self.follow(Some(path), number, None),
            None => self.follow(self.peer.subscribe_path.as_ref(), number, Some(last)),
        }
    }

    /// The URL of a subscription to topic `number`.
    pub fn subscribe_url(&self, number: u32) -> String {
        let path = self.path(self.peer.subscribe_path.as_ref(), number);
        format!("http://{}{}{path}", self.authority, self.prefix)
    }

    fn follow(&self, template: Option<&String>, number: u32, last: Option<u64>) -> Vec<u8> {
        self.get(&self.path(template, number), last)
    }

    fn path(&self, template: Option<&String>, number: u32) -> String {
        match template {
            Some(template) => template.replace("{i}", &number.to_string()),
            None => format!("/topics/{}", self.topic_name(number)),
        }
    }

    /// A request for the stream at `path`.
    pub fn get(&self, path: &str, last: Option<u64>) -> Vec<u8> {
        let mut request = self.head("GET", path);
        request.push_str("Accept: text/event-stream\r\n");
        if let Some(last) = last {
            // Writing to a string does not fail.
            let _ = write!(request, "Last-Event-ID: {last}\r\n");
        }
        with_headers(request, &self.peer.subscribe_header)
    }

    /// A request without a body that answers no stream.
    pub fn ask(&self, method: &str, path: &str) -> Vec<u8> {
        with_headers(self.head(method, path), &[])
    }

    fn head(&self, method: &str, path: &str) -> String {
        format!("{method} {}{path} HTTP/1.1\r\nHost: {}\r\n", self.prefix, self.authority)
    }

    /// Where an event of topic `number` is published.
    pub fn publish_path(&self, number: u32) -> String {
        self.path(self.peer.publish_path.as_ref(), number)
    }

    /// What of a request to publish at `path` stands before the length of its body.
    pub fn publish_head(&self, path: &str, is_batch: bool) -> Vec<u8> {
        let mut head = self.head("POST", path);
        if is_batch {
            head.push_str("Content-Type: application/x-ndjson\r\n");
        }
        for header in &self.peer.publish_header {
            head.push_str(header);
            head.push_str("\r\n");
        }
        head.push_str("Content-Length: ");
        head.into_bytes()
    }

    /// Bytes of the body of one event.
    pub fn body_length(&self, size: usize) -> usize {
        self.peer.body_prefix.len() + size + self.peer.body_suffix.len()
    }

    /// Appends the body of one event.
    pub fn body(&self, out: &mut Vec<u8>, mark: Mark, size: usize) {
        out.extend_from_slice(self.peer.body_prefix.as_bytes());
        data(out, mark, size);
        out.extend_from_slice(self.peer.body_suffix.as_bytes());
    }
}

/// What stands around an event's data in a batch.
const LINE: (&str, &str) = ("{\"data\":\"", "\"}\n");

/// Bytes of a batch.
pub fn batch_length(events: usize, size: usize) -> usize {
    events * (LINE.0.len() + size + LINE.1.len())
}

/// Appends one line of a batch.
pub fn line(out: &mut Vec<u8>, mark: Mark, size: usize) {
    out.extend_from_slice(LINE.0.as_bytes());
    data(out, mark, size);
    out.extend_from_slice(LINE.1.as_bytes());
}

/// `size` bytes that begin with the mark; no character of them is special to JSON or SSE.
fn data(out: &mut Vec<u8>, mark: Mark, size: usize) {
    let end = out.len() + size.max(LENGTH);
    mark.write(out);
    out.resize(end, b'x');
}

fn with_headers(mut request: String, headers: &[String]) -> Vec<u8> {
    for header in headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    request.into_bytes()
}

fn random_topic() -> String {
    let name = Topic::parse(&format!("bench.{:08x}", fastrand::u32(..)));
    name.expect("letters, digits and a dot are a topic").to_string()
}
