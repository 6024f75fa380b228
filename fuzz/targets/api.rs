//! Whole requests to the handler over a log on RocksDB: each is answered with a status and a code of the contract, none with a panic or a
//! failure; ids that are acknowledged rise; and a stream is one by the standard, with ids that rise too.

use std::cell::OnceCell;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Method, Request, Response};
use serde_json::Value;
use tempfile::TempDir;
use tidelog::http::answer::Body;
use tidelog::http::forms::Limits;
use tidelog::http::problem::Code;
use tidelog::http::{Api, Options, Peer};
use tidelog::log::{self, Durability, Log};
use tokio::runtime::{Builder, Runtime};

use super::source::Source;
use super::standard;

const METHODS: [&str; 7] = ["GET", "POST", "GET", "POST", "PUT", "DELETE", "HEAD"];

/// Paths and queries that mean something, to be put together.
const PATHS: [&str; 14] = [
    "/topics/a",
    "/topics/a.b",
    "/topics/*",
    "/topics/a.**",
    "/topics/**",
    "/events",
    "/topics",
    "/topics/a/state",
    "/topics/a/snapshot",
    "/topics/c/close",
    "/topics/a/retention",
    "/topics/**/state",
    "/topics/c",
    "/metrics",
];
const QUERIES: [&str; 16] = [
    "follow=false",
    "from=",
    "event=",
    "key=",
    "envelope=json",
    "limit=",
    "before=",
    "topic=",
    "last_event_id=",
    "prefix=",
    "after=",
    "from=state",
    "from=earliest",
    "from=snapshot",
    "wait=",
    "from=-",
];
const HEADERS: [&str; 12] = [
    "accept",
    "content-type",
    "last-event-id",
    "idempotency-key",
    "if-match",
    "if-none-match",
    "origin",
    "content-length",
    "content-encoding",
    "access-control-request-method",
    "accept",
    "content-type",
];
const VALUES: [&str; 14] = [
    "text/event-stream",
    "application/x-ndjson",
    "application/json",
    "*/*",
    "0",
    "1",
    "9007199254740991",
    "\"0\"",
    "*",
    "k1",
    "k2",
    "\"9007199254740991\"",
    "281474976710656",
    "identity",
];
const BODIES: [&str; 8] = [
    "{\"data\":1}",
    "{\"key\":\"k\",\"data\":\"\"}\n{\"data\":[ 1 ]}",
    "{\"topic\":\"a\",\"event\":\"t\",\"data\":\"x\"}",
    "text",
    "",
    "{\"max_events\":2}",
    "{\"max_age\":\"1h\",\"max_bytes\":\"1MiB\"}",
    "{\"topic\":\"a.b\",\"key\":\"k\",\"data\":\"\\r\\n\"}\n",
];

/// A log, and what is needed to ask it. It lives as long as the thread: opening a log for every run would be most of the run.
struct World {
    runtime: Runtime,
    api: Api,
    log: Log,
    _dir: TempDir,
}

thread_local!(static WORLD: OnceCell<Lasting> = const { OnceCell::new() });

/// A thread's own world. At the thread's end tokio's part of it is gone, so another thread closes the log.
struct Lasting(Option<World>);

impl Drop for Lasting {
    fn drop(&mut self) {
        if let Some(world) = self.0.take() {
            let _ = std::thread::spawn(move || world.runtime.block_on(world.log.close())).join();
        }
    }
}

impl World {
    fn new() -> Self {
        let dir = super::scratch();
        let runtime = Builder::new_current_thread().enable_all().build().expect("there is a runtime");
        let options = log::Options { durability: Durability::Os, topics_max: 64, ..log::Options::new(dir.path()) };
        let log = runtime.block_on(async { Log::open(options) }).expect("a new log opens");
        let limits = Limits { event_bytes_max: 512, batch_events_max: 8, batch_bytes_max: 2048 };
        let api = Api::new(log.clone(), Options { limits, loopback: false, ..Options::default() });
        Self { runtime, api, log, _dir: dir }
    }
}

pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    WORLD.with(|world| {
        let Some(world) = &world.get_or_init(|| Lasting(Some(World::new()))).0 else { return };
        // A topic that a former run has closed, or filled the table with, is nothing to this one.
        for topic in ["a", "a.b", "c"] {
            let _ = ask(world, &delete(topic));
        }
        for _ in 0..4 {
            if source.is_empty() {
                break;
            }
            if let Some(request) = request(&mut source) {
                let before = world.log.tail();
                check(&request, ask(world, &request), before, world.log.tail());
            }
        }
    });
}

#[derive(Clone)]
struct Asked {
    request: Request<Bytes>,
}

fn delete(topic: &str) -> Asked {
    let request = Request::builder().method(Method::DELETE).uri(format!("/topics/{topic}"));
    Asked { request: request.body(Bytes::new()).expect("it is a request") }
}

fn request(source: &mut Source<'_>) -> Option<Asked> {
    let mut target = if source.byte() < 24 { format!("/{}", source.text()) } else { source.choose(&PATHS).to_owned() };
    for at in 0..source.byte() % 4 {
        target.push(if at == 0 { '?' } else { '&' });
        target += source.choose(&QUERIES);
        match source.byte() {
            0..100 => target += source.choose(&VALUES),
            100..200 => target += &source.number().to_string(),
            200..210 => target += &source.text(),
            _ => {}
        }
    }
    let mut request = Request::builder().method(source.choose(&METHODS)).uri(target).header("host", "log.example");
    for _ in 0..source.byte() % 4 {
        let name = HeaderName::from_static(source.choose(&HEADERS));
        let value = match source.byte() {
            0..200 => HeaderValue::from_static(source.choose(&VALUES)),
            200..230 => HeaderValue::from(source.number()),
            _ => HeaderValue::from_bytes(source.bytes().trim_ascii()).ok()?,
        };
        request = request.header(name, value);
    }
    let body = if source.byte() < 200 { source.choose(&BODIES).as_bytes() } else { source.bytes() };
    Some(Asked { request: request.body(Bytes::copy_from_slice(body)).ok()? })
}

/// What came, and as much of the body as came at once.
struct Answered {
    head: Response<()>,
    body: Vec<u8>,
    whole: bool,
}

/// `None`: it waits, as a page may that holds no event yet.
fn ask(world: &World, asked: &Asked) -> Option<Answered> {
    world.runtime.block_on(async {
        let request = asked.request.clone().map(Full::new);
        let endless = asked.request.uri().query().is_some_and(|q| q.contains("wait="));
        let most = if endless { Duration::from_millis(5) } else { Duration::from_secs(20) };
        let response = match tokio::time::timeout(most, world.api.handle(request, Peer::default())).await {
            Ok(response) => response,
            Err(_) if endless => return None,
            Err(late) => panic!("{:?} is not answered: {late}", asked.request),
        };
        let (head, body) = response.into_parts();
        let mut answered = Answered { head: Response::from_parts(head, ()), body: Vec::new(), whole: false };
        let ends =
            !is_stream(&answered.head) || asked.request.uri().query().is_some_and(|q| q.contains("follow=false"));
        read(body, &mut answered, ends).await;
        Some(answered)
    })
}

fn is_stream(head: &Response<()>) -> bool {
    let kind = head.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    head.status() == 200 && matches!(kind, Some(b"text/event-stream" | b"application/x-ndjson"))
}

async fn read(mut body: Body, answered: &mut Answered, ends: bool) {
    let most = if ends { Duration::from_secs(20) } else { Duration::from_millis(1) };
    loop {
        match tokio::time::timeout(most, body.frame()).await {
            Ok(None) => answered.whole = true,
            Ok(Some(Ok(frame))) => {
                answered.body.extend_from_slice(&frame.into_data().unwrap_or_default());
                if answered.body.len() < 64 * 1024 {
                    continue;
                }
            }
            // A stream that breaks off on purpose.
            Ok(Some(Err(_))) => {}
            Err(_) => assert!(!ends, "the body does not end"),
        }
        return;
    }
}

fn check(asked: &Asked, answered: Option<Answered>, before: u64, after: u64) {
    let request = &asked.request;
    let Some(Answered { head, body, whole }) = answered else { return };
    let status = head.status().as_u16();
    let is_head = request.method() == Method::HEAD;
    let code = || Code::ALL.iter().filter(|c| c.status().as_u16() == status).map(|c| c.as_str());
    match status {
        200 | 201 | 204 => {}
        400.. => {
            assert!(status < 500, "{request:?}: {status} {}", String::from_utf8_lossy(&body));
            assert!(head.headers()[CONTENT_TYPE] == "application/problem+json", "{request:?}");
            if !is_head {
                let problem: Value = serde_json::from_slice(&body).expect("problem details are JSON");
                let named = problem["code"].as_str().expect("it has a code");
                assert!(code().any(|c| c == named), "{status} {named}");
            }
        }
        _ => panic!("{request:?}: {status}"),
    }
    if request.method() == Method::POST && status == 201 {
        let answer: Value = serde_json::from_slice(&body).expect("the answer is JSON");
        let first = answer["id"].as_u64().or(answer["first"].as_u64()).expect("it names an id");
        let last = answer["id"].as_u64().or(answer["last"].as_u64()).expect("it names an id");
        assert!(before < first && first <= last && last == after, "{before} {answer} {after}");
        assert_eq!(answer["count"].as_u64().unwrap_or(1), last - first + 1);
    } else {
        assert_eq!(before, after, "{request:?}: only a publish that is answered 201 appends");
    }
    if is_stream(&head) && !is_head {
        stream(&head, &body, whole, after);
    }
}

fn stream(head: &Response<()>, body: &[u8], whole: bool, tail: u64) {
    let mut last = None;
    if head.headers()[CONTENT_TYPE] == "text/event-stream" {
        let stream = standard::parse(body);
        assert!(stream.reconnection_time.is_some(), "it begins with a retry");
        for event in stream.events.iter().filter(|e| !e.kind.starts_with("tidelog.")) {
            rises(&mut last, event.last_event_id.parse().expect("an id is a number"), tail);
        }
    } else if whole {
        for line in body.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
            let line: Value = serde_json::from_slice(line).expect("a line is JSON");
            if let Some(id) = line["id"].as_u64() {
                rises(&mut last, id, tail);
            }
        }
    }
}

fn rises(last: &mut Option<u64>, id: u64, tail: u64) {
    assert!(last.replace(id).is_none_or(|last| last < id) && id <= tail, "{id} after {last:?}, the tail is {tail}");
}
