//! The short way's reader of requests beside hyper: what it takes, hyper takes too, and understands alike, in the same order, with the
//! same body; what it waits for, hyper waits for; and no beginning of a request is taken for the whole. A head that is found to be the
//! one before is read alike.

use std::cell::RefCell;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, Version};
use tidelog::server::head::{HEAD_BYTES_MAX, Head, Look, look};
use tidelog::server::repeat::Repeat;

use super::source::Source;

/// A request as a handler sees it.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    method: String,
    uri: String,
    version: Version,
    headers: Vec<(String, Vec<u8>)>,
}

impl Seen {
    fn of<B>(request: &Request<B>) -> Self {
        let headers =
            request.headers().iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()));
        Self {
            method: request.method().to_string(),
            uri: request.uri().to_string(),
            version: request.version(),
            headers: headers.collect(),
        }
    }
}

/// A socket on which bytes have come, and no end.
struct Socket {
    unread: Vec<u8>,
    written: Rc<RefCell<Vec<u8>>>,
}

impl Read for Socket {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return Poll::Pending;
        }
        let n = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..n]);
        self.unread.drain(..n);
        Poll::Ready(Ok(()))
    }
}

impl Write for Socket {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written.borrow_mut().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What hyper makes of bytes.
#[derive(Debug, Default)]
struct Hypers {
    /// Every request whose head it has given to the handler, and the body, when that is complete.
    requests: Vec<(Seen, Option<Vec<u8>>)>,
    written: Vec<u8>,
}

fn hyper(bytes: &[u8]) -> Hypers {
    let requests = Rc::new(RefCell::new(Vec::new()));
    let written = Rc::new(RefCell::new(Vec::new()));
    let service = {
        let requests = Rc::clone(&requests);
        service_fn(move |request: Request<Incoming>| {
            let requests = Rc::clone(&requests);
            requests.borrow_mut().push((Seen::of(&request), None));
            let at = requests.borrow().len() - 1;
            async move {
                if let Ok(body) = request.into_body().collect().await {
                    requests.borrow_mut()[at].1 = Some(body.to_bytes().to_vec());
                }
                Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
            }
        })
    };
    let socket = Socket { unread: bytes.to_vec(), written: Rc::clone(&written) };
    let mut connection = http1::Builder::new().serve_connection(socket, service);
    let mut cx = Context::from_waker(Waker::noop());
    // It yields now and then; it is done when a few turns in a row change nothing.
    let (mut idle, mut before) = (0, (0, 0, 0));
    while idle < 4 {
        if Pin::new(&mut connection).poll(&mut cx).is_ready() {
            break;
        }
        let done = requests.borrow().iter().filter(|r: &&(_, Option<Vec<u8>>)| r.1.is_some()).count();
        let now = (requests.borrow().len(), done, written.borrow().len());
        idle = if now == before { idle + 1 } else { 0 };
        before = now;
    }
    drop(connection);
    Hypers { requests: requests.take(), written: written.take() }
}

pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let flags = source.byte();
    let gets = flags & 1 == 1;
    let head_bytes_max = if flags & 2 == 0 { HEAD_BYTES_MAX } else { usize::from(source.byte()) };
    let bytes = source.rest();
    let hypers = hyper(bytes);
    let mut rest = bytes;
    let mut nth = 0;
    let mut before = None::<Repeat<Seen>>;
    loop {
        if let Some(before) = &before {
            repeated(before, rest, head_bytes_max);
        }
        match look(rest, head_bytes_max, gets) {
            Look::Plain(head) => {
                let Head { request, body_at, end, length_at } = head;
                assert!(body_at <= end && end <= rest.len() && body_at <= head_bytes_max);
                let Some((seen, body)) = hypers.requests.get(nth) else {
                    panic!("hyper does not take request {nth}: {}", String::from_utf8_lossy(&hypers.written));
                };
                assert_eq!(seen, &Seen::of(&request));
                assert_eq!(body.as_deref(), Some(&rest[body_at..end]));
                beginnings(&rest[..end], body_at, head_bytes_max, gets);
                if request.method() == "POST" {
                    let known = Repeat::of(&rest[..body_at], length_at.clone(), Seen::of(&request));
                    if let Some(known) = &known {
                        assert_eq!(
                            known.again(&rest[..end], head_bytes_max),
                            Some((&Seen::of(&request), body_at..end))
                        );
                        for length in ["", "0", "7", "16384", "16385", "+1", "1 1", "0x1", "18446744073709551617"] {
                            let (head, rest) = (&rest[..length_at.start], &rest[length_at.end..]);
                            repeated(known, &[head, length.as_bytes(), rest, &[b'x'; 7]].concat(), head_bytes_max);
                        }
                    }
                    before = known;
                }
                (rest, nth) = (&rest[end..], nth + 1);
            }
            Look::PartOfBody(missing) => {
                assert!(missing > 0);
                let whole = [rest, &vec![b'x'; missing]].concat();
                match (hypers.requests.get(nth), look(&whole, head_bytes_max, gets)) {
                    (Some((_, body)), Look::Plain(head)) => assert!(body.is_none() && head.end == whole.len()),
                    // What hyper takes and this does not, a value that is no text, say, is only slower that way.
                    (_, Look::Other) => {}
                    _ => panic!("hyper does not take the head of {nth}, or more is waited for than was said"),
                }
                break;
            }
            Look::PartOfHead => {
                assert!(rest.len() < head_bytes_max, "it waits without a bound");
                assert_eq!(hypers.requests.len(), nth, "hyper has a whole head");
                break;
            }
            Look::Other => break,
        }
    }
    // The connection goes on after each of them, as on the short way.
    let answers = String::from_utf8_lossy(&hypers.written);
    for answer in answers.split_inclusive("\r\n\r\n").take(nth) {
        let status = StatusCode::OK;
        assert!(answer.starts_with(&format!("HTTP/1.1 {}", status.as_str())), "{answer}");
        assert!(!answer.contains("connection: close"), "{answer}");
    }
}

/// What is taken for the head before is plain, has the same body, and says the same but for its length.
fn repeated(before: &Repeat<Seen>, bytes: &[u8], head_bytes_max: usize) {
    let Some((known, body)) = before.again(bytes, head_bytes_max) else { return };
    let (request, body_at, end) = match look(bytes, head_bytes_max, false) {
        Look::Plain(Head { request, body_at, end, .. }) => (request, body_at, end),
        Look::PartOfBody(missing) => return assert_eq!(bytes.len() + missing, body.end),
        Look::PartOfHead | Look::Other => panic!("it is not plain: {}", String::from_utf8_lossy(bytes)),
    };
    assert_eq!((body_at, end), (body.start, body.end));
    let but_its_length = |seen: &Seen| {
        let headers: Vec<_> = seen.headers.iter().filter(|(name, _)| name != "content-length").cloned().collect();
        (seen.method.clone(), seen.uri.clone(), seen.version, headers)
    };
    assert_eq!(but_its_length(known), but_its_length(&Seen::of(&request)));
}

/// No beginning of a plain request is plain, or is given up.
fn beginnings(request: &[u8], body_at: usize, head_bytes_max: usize, gets: bool) {
    let step = (request.len() / 64).max(1);
    for n in (0..request.len()).step_by(step).chain([body_at.saturating_sub(1), body_at.min(request.len() - 1)]) {
        match look(&request[..n], head_bytes_max, gets) {
            Look::PartOfHead => assert!(n < body_at, "{n}"),
            Look::PartOfBody(missing) => assert!(n >= body_at && missing == request.len() - n, "{n}"),
            Look::Plain(_) => panic!("{n} bytes of {} are plain", request.len()),
            Look::Other => panic!("{n} bytes of {} are given up", request.len()),
        }
    }
}
