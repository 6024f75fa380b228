//! A scripted server for the client's tests: it answers the n-th request with the n-th script, byte for byte, so that every
//! way for a connection to break can be written down.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Longer than any step of a test takes on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A step of an answer. When its steps are done, the connection stays open for the next request.
#[derive(Debug, Clone)]
pub(super) enum Act {
    Send(Vec<u8>),
    /// A byte a packet.
    SendBytewise(Vec<u8>),
    Close,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Which connection it came over, counted from 0.
    pub connection: usize,
    /// The request line and the headers as hyper writes them: names in lower case, a space after the colon.
    pub head: String,
    pub body: String,
}

impl Seen {
    pub(super) fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

pub(super) struct Scripted {
    pub url: String,
    seen: mpsc::UnboundedReceiver<Seen>,
    _task: AbortOnDropHandle<()>,
}

impl Scripted {
    /// Serves `answers`, one a request; a request beyond them is answered 204.
    pub(super) async fn start(answers: Vec<Vec<Act>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (saw, seen) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let mut answers = answers.into_iter();
            // One connection at a time: a client that keeps two open is not one of ours.
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                converse(stream, connection, &mut answers, &saw).await;
            }
        });
        Self { url, seen, _task: AbortOnDropHandle::new(task) }
    }

    /// The next request that came.
    pub(super) async fn seen(&mut self) -> Seen {
        tokio::time::timeout(PATIENCE, self.seen.recv()).await.expect("a request in time").unwrap()
    }

    /// Whether there was no request beyond those taken by [`Self::seen`].
    pub(super) fn saw_no_more(&mut self) -> bool {
        self.seen.try_recv().is_err()
    }
}

async fn converse(
    stream: TcpStream,
    connection: usize,
    answers: &mut std::vec::IntoIter<Vec<Act>>,
    saw: &mpsc::UnboundedSender<Seen>,
) {
    stream.set_nodelay(true).unwrap();
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream, connection).await {
        saw.send(request).unwrap();
        let acts = answers.next().unwrap_or_else(|| vec![Act::Send(b"HTTP/1.1 204 No Content\r\n\r\n".to_vec())]);
        for act in acts {
            match act {
                Act::Send(bytes) => drop(stream.write_all(&bytes).await),
                Act::SendBytewise(bytes) => {
                    for byte in bytes {
                        drop(stream.write_all(&[byte]).await);
                        tokio::task::yield_now().await;
                    }
                }
                Act::Close => return,
            }
        }
    }
}

async fn read_request(stream: &mut BufReader<TcpStream>, connection: usize) -> Option<Seen> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line if head.is_empty() => head = format!("{line}\n"),
            line => head = head + line + "\n",
        }
    }
    let mut seen = Seen { connection, head, body: String::new() };
    let length = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    seen.body = String::from_utf8(body).unwrap();
    Some(seen)
}

/// A whole answer with a body.
pub(super) fn answer(status: &str, content_type: &str, body: &str) -> Act {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n");
    Act::Send((head + body).into_bytes())
}

/// A problem, as tidelog answers it.
pub(super) fn problem(status: &str, code: &str, detail: &str) -> Act {
    let body = format!(
        r#"{{"type":"about:blank","title":"t","status":{},"detail":"{detail}","code":"{code}"}}"#,
        &status[..3]
    );
    answer(status, "application/problem+json", &body)
}

/// The head of a stream.
pub(super) fn stream(log: &str, tail: u64) -> Act {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked";
    Act::Send(format!("{head}\r\nTidelog-Log: {log}\r\nTidelog-Tail: {tail}\r\n\r\n").into_bytes())
}

/// A piece of a stream.
pub(super) fn chunk(text: &str) -> Act {
    Act::Send(format!("{:x}\r\n{text}\r\n", text.len()).into_bytes())
}

/// The proper end of a stream.
pub(super) fn end() -> Act {
    Act::Send(b"0\r\n\r\n".to_vec())
}
