//! Heads of plain requests, read, and heads of their answers, written.
//!
//! What holds: what is taken here, hyper would take too and understand in the same way. What could be understood in two ways, or
//! is out of the ordinary, is left to it. Must not know sockets.

use std::cell::RefCell;
use std::io::Write as _;
use std::ops::Range;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HeaderName, HeaderValue, TRANSFER_ENCODING, UPGRADE};
use hyper::http::response;
use hyper::{Method, Request, StatusCode, Uri, Version};

/// A longer head is hyper's to judge.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Most header lines. Browsers send some twenty.
const HEADERS_MAX: usize = 32;

/// A longer body is not read as a whole before it is looked at, and takes so long to parse that another thread should.
pub const BODY_BYTES_MAX: usize = 16 * 1024;

/// A request's head, and where in the bytes its body lies.
pub struct Head {
    pub request: Request<()>,
    pub body_at: usize,
    pub end: usize,
    /// The value of its `Content-Length`; empty where it has none.
    pub length_at: Range<usize>,
}

/// What bytes begin with. It is taken apart as soon as it is there, so a box for the head would cost more than its size does.
#[allow(clippy::large_enum_variant)]
pub enum Look {
    Plain(Head),
    /// What is there could become plain, but its head is not complete.
    PartOfHead,
    /// So many bytes of its body are missing.
    PartOfBody(usize),
    Other,
}

/// Looks at the beginning of `bytes`, whose head may have at most `head_bytes_max`: a plain request is a POST over HTTP/1.1 with a body
/// of a declared, small size that is there, or, where `gets` are wanted, a GET without a body.
pub fn look(bytes: &[u8], head_bytes_max: usize, gets: bool) -> Look {
    let begins = |with: &[u8]| {
        let n = bytes.len().min(with.len());
        bytes[..n] == with[..n]
    };
    let method = if begins(b"POST /") {
        Method::POST
    } else if gets && begins(b"GET /") {
        Method::GET
    } else {
        return Look::Other;
    };
    let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut lines);
    let body_at = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(body_at)) if body_at <= head_bytes_max => body_at,
        Ok(httparse::Status::Partial) if bytes.len() < head_bytes_max => return Look::PartOfHead,
        _ => return Look::Other,
    };
    let (Some(1), Some(path), Some(declared)) = (parsed.version, parsed.path, declared(parsed.headers).ok()) else {
        return Look::Other;
    };
    let (len, length) = match declared {
        Some(declared) if method == Method::POST => declared,
        None if method == Method::GET => (0, &bytes[..0]),
        _ => return Look::Other,
    };
    let length_at = length.as_ptr().addr() - bytes.as_ptr().addr();
    let length_at = length_at..length_at + length.len();
    let end = body_at + len;
    if bytes.len() < end {
        return Look::PartOfBody(end - bytes.len());
    }
    match request(method, &bytes[..body_at], path, parsed.headers) {
        Some(request) => Look::Plain(Head { request, body_at, end, length_at }),
        None => Look::Other,
    }
}

/// Something out of the ordinary is said of how the body is sent, or of the connection.
struct OutOfTheOrdinary;

/// The declared length, if there is one, as a number and as it stands there.
fn declared<'a>(lines: &[httparse::Header<'a>]) -> Result<Option<(usize, &'a [u8])>, OutOfTheOrdinary> {
    let mut len = None;
    for line in lines {
        let is = |name: &HeaderName| line.name.eq_ignore_ascii_case(name.as_str());
        if is(&CONTENT_LENGTH) {
            let digits = std::str::from_utf8(line.value).ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
            let small = digits.and_then(|digits| digits.parse().ok()).filter(|n| *n <= BODY_BYTES_MAX);
            if len.replace((small.ok_or(OutOfTheOrdinary)?, line.value)).is_some() {
                return Err(OutOfTheOrdinary);
            }
        } else if is(&CONNECTION) {
            if !line.value.eq_ignore_ascii_case(b"keep-alive") {
                return Err(OutOfTheOrdinary);
            }
        } else if is(&TRANSFER_ENCODING) || is(&EXPECT) || is(&UPGRADE) {
            return Err(OutOfTheOrdinary);
        }
    }
    Ok(len)
}

fn request(method: Method, head: &[u8], path: &str, lines: &[httparse::Header<'_>]) -> Option<Request<()>> {
    // One copy, of which all values are parts.
    let copy = Bytes::copy_from_slice(head);
    let part = |part: &[u8]| {
        let at = part.as_ptr().addr() - head.as_ptr().addr();
        copy.slice(at..at + part.len())
    };
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.version_mut() = Version::HTTP_11;
    *request.uri_mut() = Uri::from_maybe_shared(part(path.as_bytes())).ok()?;
    let headers = request.headers_mut();
    headers.reserve(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_maybe_shared(part(line.value)).ok()?);
    }
    Some(request)
}

/// Writes an answer's head as hyper does; without a length its body comes in chunks.
pub fn write(out: &mut Vec<u8>, head: &response::Parts, body_len: Option<usize>, goes_on: bool) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(head.status.canonical_reason().unwrap_or("<none>").as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in &head.headers {
        line(out, name.as_str(), value.as_bytes());
    }
    if !goes_on {
        line(out, "connection", b"close");
    }
    match body_len {
        Some(_) if head.status == StatusCode::NO_CONTENT => {}
        Some(len) => write!(out, "content-length: {len}\r\n").expect("writing to memory does not fail"),
        None => line(out, "transfer-encoding", b"chunked"),
    }
    DATE.with_borrow_mut(|date| line(out, "date", date.now().as_bytes()));
    out.extend_from_slice(b"\r\n");
}

/// Writes a chunk of a body that comes in chunks; nothing where there is nothing, as that would be its end.
pub fn chunk(out: &mut Vec<u8>, bytes: &[u8]) {
    if !bytes.is_empty() {
        write!(out, "{:x}\r\n", bytes.len()).expect("writing to memory does not fail");
        out.extend_from_slice(bytes);
        out.extend_from_slice(b"\r\n");
    }
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The date, written anew when a second has passed.
#[derive(Default)]
struct Date {
    second: u64,
    text: String,
}

thread_local!(static DATE: RefCell<Date> = RefCell::default());

impl Date {
    fn now(&mut self) -> &str {
        let now = SystemTime::now();
        // A clock before 1970 counts as 1970.
        let second = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if self.second != second || self.text.is_empty() {
            (self.second, self.text) = (second, httpdate::fmt_http_date(now.max(UNIX_EPOCH)));
        }
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Option<(Request<()>, String)> {
        match look(text.as_bytes(), HEAD_BYTES_MAX, false) {
            Look::Plain(Head { request, body_at, end, .. }) => Some((request, text[body_at..end].to_owned())),
            _ => None,
        }
    }

    fn is_other(text: &str) -> bool {
        matches!(look(text.as_bytes(), HEAD_BYTES_MAX, false), Look::Other)
    }

    #[test]
    fn a_small_post_is_plain() {
        let text = "POST /topics/a?event=x HTTP/1.1\r\nHost: h\r\ncontent-LENGTH: 2\r\nX: \t1 \r\nx: 2\r\nConnection: Keep-Alive\r\n\r\nhiPOST";
        let (request, body) = plain(text).unwrap();
        assert_eq!((request.method(), request.version(), &*body), (&Method::POST, Version::HTTP_11, "hi"));
        assert_eq!(*request.uri(), "/topics/a?event=x");
        let all = |name: &str| request.headers().get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((all("host"), all("x"), all("content-length")), (vec!["h"], vec!["1", "2"], vec!["2"]));
    }

    #[test]
    fn what_is_not_there_yet_is_waited_for() {
        let text = "POST /topics/a HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello";
        let head = text.len() - 5;
        for n in 0..text.len() {
            match look(&text.as_bytes()[..n], HEAD_BYTES_MAX, true) {
                Look::PartOfHead => assert!(n < head, "{n}"),
                Look::PartOfBody(missing) => assert_eq!((n >= head, missing), (true, text.len() - n)),
                Look::Plain(_) | Look::Other => panic!("{n}"),
            }
        }
        assert!(plain(text).is_some());
    }

    #[test]
    fn everything_else_is_left_to_hyper() {
        let post = |lines: &str| format!("POST /topics/a HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\nhello");
        assert!(plain(&post("Content-Length: 5")).is_some());
        for lines in [
            "X: y",
            "Content-Length: +5",
            "Content-Length: 5, 5",
            "Content-Length:",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 16385",
            "Content-Length: 99999999999999999999999",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Content-Length: 5\r\nExpect: 100-continue",
            "Content-Length: 5\r\nConnection: close",
            "Content-Length: 5\r\nConnection: keep-alive, Upgrade",
            "Content-Length: 5\r\nUpgrade: h2c",
            "Content-Length: 5\r\nBad Name: x",
            "Content-Length: 5\r\n folded",
            "Content-Length: 5\r\nX: \u{1}",
        ] {
            assert!(is_other(&post(lines)), "{lines}");
        }
        for line in
            ["GET / HTTP/1.1", "POST /a HTTP/1.0", "POST * HTTP/1.1", "POST http://h/a HTTP/1.1", "post /a HTTP/1.1"]
        {
            assert!(is_other(&format!("{line}\r\nHost: h\r\nContent-Length: 0\r\n\r\n")), "{line}");
        }
        assert!(is_other(&format!("POST /{} HTTP/1.1\r\n", "a".repeat(HEAD_BYTES_MAX))));
        assert!(is_other(&post(&format!("Content-Length: 5\r\n{}X: y", "X: y\r\n".repeat(HEADERS_MAX)))));
    }

    #[test]
    fn a_get_is_plain_where_it_is_wanted_and_has_no_body() {
        let get = |lines: &str| format!("GET /topics/a?from=3 HTTP/1.1\r\nHost: h\r\n{lines}\r\nGET /next");
        let look = |text: &str, gets| look(text.as_bytes(), HEAD_BYTES_MAX, gets);
        let text = get("Accept: text/event-stream\r\n");
        let Look::Plain(Head { request, body_at, end, length_at }) = look(&text, true) else { panic!("it is plain") };
        assert_eq!((request.method(), body_at, &text[end..]), (&Method::GET, end, "GET /next"));
        assert!(length_at.is_empty());
        assert!(matches!(look(&text, false), Look::Other));
        assert!(matches!(look("GE", true), Look::PartOfHead) && matches!(look("GE", false), Look::Other));
        for lines in ["Content-Length: 0\r\n", "Content-Length: 5\r\n", "Connection: close\r\n", "Upgrade: h2c\r\n"] {
            assert!(matches!(look(&get(lines), true), Look::Other), "{lines}");
        }
        for other in ["HEAD / HTTP/1.1\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "GET * HTTP/1.1\r\n\r\n"] {
            assert!(matches!(look(other, true), Look::Other), "{other}");
        }
    }

    #[test]
    fn an_answers_head_is_written_as_hyper_writes_it() {
        let mut response = hyper::Response::new(());
        *response.status_mut() = StatusCode::CREATED;
        response.headers_mut().insert("x-y", HeaderValue::from_static("z"));
        let (head, ()) = response.into_parts();
        let written = |goes_on| {
            let mut out = Vec::new();
            write(&mut out, &head, Some(7), goes_on);
            String::from_utf8(out).unwrap()
        };
        let text = written(true);
        let date = text.strip_prefix("HTTP/1.1 201 Created\r\nx-y: z\r\ncontent-length: 7\r\ndate: ").unwrap();
        let date = date.strip_suffix("\r\n\r\n").unwrap();
        assert!(httpdate::parse_http_date(date).is_ok(), "{date}");
        assert!(written(false).contains("\r\nconnection: close\r\n"));
        let mut out = Vec::new();
        write(&mut out, &head, None, true);
        chunk(&mut out, b"");
        chunk(&mut out, &[b'x'; 17]);
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("\r\ntransfer-encoding: chunked\r\n") && !text.contains("content-length"), "{text}");
        assert!(text.ends_with("\r\n\r\n11\r\nxxxxxxxxxxxxxxxxx\r\n"), "{text}");
    }
}
