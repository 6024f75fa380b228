//! Subscribers over a bad network: each follows in its own form until it has seen the last event, over as many connections as it takes.
//!
//! What holds: they resume by the last id they were told, and by nothing else, as an `EventSource` does, after the `retry:` that they
//! were told; what came of a frame before a break is thrown away. What they have seen is judged afterwards.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastrand::Rng;
use serde_json::Value;
use socket2::SockRef;
use tidelog::client::{Client, Item, SubscribeOptions, Timeouts};
use tidelog::topic::Pattern;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt as _;

use super::World;
use super::history::{Began, Frames, Life, Wish, hash_object, hash_plain};
use super::publish::TOPICS;
use super::wire::{SILENCE, Stream, Wire, get_http2};
use crate::support::Head;

/// The server's `retry`, around which each stream is told its own.
pub const RETRY: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As a browser asks for it: HTTP/1.1, the server's short way.
    Sse,
    /// The same, where hyper reads the request.
    SseUnusual,
    /// The end of the connection is all that tells the end.
    Http10,
    Http2,
    Envelope,
    Lines,
    /// `from=state`, then the events.
    State,
    /// Page by page, on a connection that is kept as long as it holds.
    Pages,
    /// This crate's own client.
    Own,
}

pub const FORMS: [Form; 9] = [
    Form::Sse,
    Form::SseUnusual,
    Form::Http10,
    Form::Http2,
    Form::Envelope,
    Form::Lines,
    Form::State,
    Form::Pages,
    Form::Own,
];

#[derive(Debug)]
pub struct Subscriber {
    pub form: Form,
    wish: Wish,
    latest: bool,
    rng: Rng,
    retry: Duration,
    /// What it has seen, and before: one whose form is state forgets everything now and then, and begins anew.
    pub lives: Vec<Life>,
    pub connections: u64,
    /// Breaks within a frame.
    pub torn: u64,
    /// States that were begun and not ended.
    pub torn_states: u64,
}

fn wish(rng: &mut Rng, form: Form) -> Wish {
    let one = |rng: &mut Rng| TOPICS[rng.usize(..TOPICS.len() - 1)].to_owned();
    let (patterns, types): (Vec<String>, Vec<String>) = if form == Form::State {
        (vec![["k.*", "k.1", "**"][rng.usize(..3)].to_owned()], vec![])
    } else {
        match rng.u8(..10) {
            0 => (vec!["**".into()], vec![]),
            1 => (vec!["t.*".into()], vec!["x".into()]),
            2 => (vec!["deep.*.b".into(), "t.2".into()], vec![]),
            3 => (vec!["rare".into()], vec![]),
            4 => (vec!["nothing.ever".into()], vec![]),
            5 => (vec!["k.*".into()], vec!["x".into(), "y".into()]),
            6 => (vec!["deep.**".into(), "rare".into()], vec![]),
            _ => (vec![one(rng)], vec![]),
        }
    };
    Wish { patterns, types }
}

impl Subscriber {
    pub fn new(seed: u64, number: u64) -> Self {
        let mut rng = Rng::with_seed(seed.wrapping_mul(131) + number);
        let form = FORMS[number as usize % FORMS.len()];
        let wish = wish(&mut rng, form);
        let latest = rng.u8(..4) == 0 && !matches!(form, Form::State | Form::Pages | Form::Own);
        let whole = !matches!(form, Form::Sse | Form::SseUnusual | Form::Http10 | Form::Http2 | Form::State);
        let lives = vec![Life::new(wish.clone(), whole)];
        Self { form, wish, latest, rng, retry: RETRY, lives, connections: 0, torn: 0, torn_states: 0 }
    }

    fn life(&mut self) -> &mut Life {
        self.lives.last_mut().expect("it begins with one")
    }

    fn query(&self) -> String {
        let topics = self.wish.patterns.iter().map(|pattern| format!("topic={pattern}&"));
        topics.chain(self.wish.types.iter().map(|event| format!("event={event}&"))).collect()
    }

    pub async fn run(mut self, world: Arc<World>) -> Self {
        match self.form {
            Form::Own => self.run_own(&world).await,
            Form::Pages => self.run_pages(&world).await,
            _ => {
                while !world.is_seen(self.life().cursor) {
                    self.connections += 1;
                    // Why it broke is for nobody.
                    let _ = self.connect(&world).await;
                    sleep(self.retry).await;
                    if self.form == Form::State && self.rng.u8(..4) == 0 && !world.stop.load(Ordering::Relaxed) {
                        let anew = Life::new(self.wish.clone(), false);
                        self.lives.push(anew);
                    }
                }
            }
        }
        self
    }

    async fn open(&mut self, world: &World) -> io::Result<(Head, Stream)> {
        let began = self.life().began.is_some();
        let cursor = began.then(|| self.life().cursor);
        let from = match (self.form, self.latest) {
            (Form::State, _) => "from=state",
            // Both stay in the URL, as a page's URL does.
            (_, true) => "from=latest",
            (_, false) => "from=earliest",
        };
        let envelope = if self.form == Form::Envelope { "envelope=json&" } else { "" };
        let target = format!("/events?{}{envelope}{from}", self.query());
        let accept = if self.form == Form::Lines { "application/x-ndjson" } else { "text/event-stream" };
        let mut headers = vec![("accept", accept.to_owned())];
        headers.extend(cursor.map(|id| ("last-event-id", id.to_string())));
        if self.form == Form::Http2 {
            return get_http2(world.through, &target, &headers).await;
        }
        if self.form == Form::SseUnusual {
            headers.push(("expect", "nothing".to_owned()));
        }
        let version = if self.form == Form::Http10 { "1.0" } else { "1.1" };
        let lines: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!("GET {target} HTTP/{version}\r\nhost: localhost\r\n{}\r\n", lines.concat());
        let mut wire = Wire::connect(world.through).await?;
        wire.send(request.as_bytes()).await?;
        let head = wire.head().await?;
        Ok((head, Stream::One(wire)))
    }

    /// One connection, to its end.
    async fn connect(&mut self, world: &World) -> io::Result<()> {
        let (head, mut stream) = self.open(world).await?;
        if head.status == 503 {
            return Ok(());
        }
        assert_eq!(head.status, 200, "{head:?} {:?}", self.form);
        if self.life().began.is_none() && self.form != Form::State {
            let tail = head.header("tidelog-tail").expect("streams tell the tail").parse().expect("an id");
            let latest = self.latest;
            let life = self.life();
            life.began = Some(Began::After(if latest { tail } else { 0 }));
            life.cursor = if latest { tail } else { 0 };
        }
        let (mut frames, mut lines, mut entries) = (Frames::default(), Vec::new(), Vec::new());
        let broken = loop {
            let piece = match stream.piece().await {
                Ok(Some(piece)) => piece,
                Ok(None) => panic!("{:?}: a stream with more to come has no proper end", self.form),
                Err(error) => break error,
            };
            if self.form == Form::Lines {
                lines.extend_from_slice(&piece);
                self.take_lines(&mut lines);
            } else {
                frames.feed(&piece);
                self.take_frames(&mut frames, &mut entries);
            }
            if world.is_seen(self.life().cursor) {
                return Ok(());
            }
            // Some leave by themselves, in the midst of a frame too, most often without a word.
            if self.rng.u16(..200) == 0 && !world.stop.load(Ordering::Relaxed) {
                if let Stream::One(wire) = &stream
                    && self.rng.u8(..4) > 0
                {
                    let _ = SockRef::from(wire.socket()).set_linger(Some(Duration::ZERO));
                }
                break io::ErrorKind::Interrupted.into();
            }
        };
        self.torn += u64::from(frames.is_amid() || !lines.is_empty());
        self.torn_states += u64::from(!entries.is_empty());
        if let Some(retry) = frames.retry {
            let retry = Duration::from_millis(retry);
            assert!((RETRY / 2..=RETRY * 3 / 2).contains(&retry), "{retry:?}");
            self.retry = retry;
        }
        Err(broken)
    }

    fn take_frames(&mut self, frames: &mut Frames, entries: &mut Vec<(u64, u64)>) {
        while let Some(frame) = frames.next() {
            let form = self.form;
            let object = || serde_json::from_str::<Value>(&frame.data).expect("it is JSON");
            match frame.event.as_str() {
                "tidelog.state" => {
                    assert!(self.life().began.is_none(), "a state though it resumed");
                    let entry = object();
                    entries.push((entry["id"].as_u64().expect("entries have ids"), hash_object(&entry)));
                    continue;
                }
                "tidelog.error" => {
                    assert_eq!(object()["code"], "draining");
                    continue;
                }
                _ => {}
            }
            let id = frame.id.expect("all else has an id");
            let is_live = frame.event == "tidelog.live";
            let life = self.life();
            if life.began.is_none() {
                let as_of = if is_live { id } else { id - 1 };
                let all = entries.drain(..).collect();
                (life.began, life.cursor) = (Some(Began::State { as_of, entries: all }), as_of);
            }
            match frame.event.as_str() {
                "tidelog.live" => {
                    let tail = object()["tail"].as_u64().expect("it tells the tail");
                    assert!(tail >= id);
                    life.advance(id);
                }
                name if name.starts_with("tidelog.") => panic!("{frame:?}"),
                _ if form == Form::Envelope => {
                    let object = object();
                    assert_eq!(object["id"], id);
                    life.take(id, hash_object(&object));
                }
                name => life.take(id, hash_plain(name, &frame.data)),
            }
        }
    }

    fn take_lines(&mut self, bytes: &mut Vec<u8>) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = bytes.drain(..=end).collect();
            if line.len() == 1 {
                continue;
            }
            let object: Value = serde_json::from_slice(&line).expect("a line is JSON");
            let life = self.life();
            match (object.get("id"), object["event"].as_str()) {
                (Some(id), _) => life.take(id.as_u64().expect("an id"), hash_object(&object)),
                (None, Some("tidelog.live")) => life.advance(object["after"].as_u64().expect("an id")),
                (None, Some("tidelog.error")) => assert_eq!(object["data"]["code"], "draining"),
                _ => panic!("{object}"),
            }
        }
    }

    async fn run_pages(&mut self, world: &World) {
        self.life().began = Some(Began::After(0));
        let mut kept = None;
        while !world.is_seen(self.life().cursor) {
            match self.page(world, &mut kept).await {
                Ok(()) if self.rng.u8(..20) > 0 => {}
                _ => {
                    kept = None;
                    sleep(self.retry).await;
                }
            }
        }
    }

    async fn page(&mut self, world: &World, kept: &mut Option<Wire>) -> io::Result<()> {
        let mut wire = match kept.take() {
            Some(wire) => wire,
            None => {
                self.connections += 1;
                Wire::connect(world.through).await?
            }
        };
        let after = self.life().cursor;
        let limit = self.rng.u16(1..1000);
        let target = format!("/events?{}from={}&limit={limit}&wait=100ms", self.query(), after + 1);
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n");
        wire.send(request.as_bytes()).await?;
        let (head, body) = wire.answer().await?;
        if head.status == 503 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        assert_eq!(head.status, 200, "{head:?} {body}");
        let page: Value = serde_json::from_str(&body).expect("a page is JSON");
        assert!(page.get("gap").is_none(), "{page}");
        let life = self.life();
        for event in page["events"].as_array().expect("a page has events") {
            life.take(event["id"].as_u64().expect("an id"), hash_object(event));
        }
        life.advance(page["next"].as_u64().expect("an id") - 1);
        *kept = Some(wire);
        Ok(())
    }

    async fn run_own(&mut self, world: &World) {
        let timeouts = Timeouts { connect: SILENCE, answer: SILENCE };
        let client = Client::new(&format!("http://{}", world.through)).expect("a URL").with_timeouts(timeouts);
        let patterns: Vec<_> = self.wish.patterns.iter().map(|text| Pattern::parse(text).expect("a pattern")).collect();
        let options = SubscribeOptions {
            from: Some("earliest".to_owned()),
            types: self.wish.types.clone(),
            read_timeout: SILENCE,
            retry: RETRY,
            retry_max: 5 * RETRY,
            ..SubscribeOptions::default()
        };
        let mut items = client.subscribe(&patterns, options);
        self.connections = 1;
        self.life().began = Some(Began::After(0));
        while !world.is_seen(self.life().cursor) {
            let Ok(item) = timeout(SILENCE, items.next()).await else { continue };
            match item.expect("it follows until it is left").expect("every break is mended") {
                Item::Event(event) => {
                    let object = event.object.as_ref().expect("it asks for the whole event");
                    let object: Value = serde_json::from_str(object).expect("it is JSON");
                    self.life().take(event.id, hash_object(&object));
                }
                Item::Live { .. } => {
                    let cursor = items.cursor().expect("a live has an id");
                    self.life().advance(cursor);
                }
                Item::Disconnected { .. } => self.connections += 1,
                Item::Error(problem) => assert_eq!(problem.code, "draining"),
                other => panic!("{other:?}"),
            }
        }
    }
}
