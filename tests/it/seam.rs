//! The seam between the past and the present: hundreds of subscribers come, go and resume while publishers write without
//! pause, and each has seen exactly the log's matching events, in order, once.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use parking_lot::{Condvar, Mutex};

use crate::support::{Conn, OnDrop, Stream, TOO_LONG, TestServer};

const SEED: u64 = 20_261_122;
const PUBLISHING: Duration = Duration::from_secs(4);
const TOPICS: u64 = 20;
const PUBLISHERS: u64 = 4;
const SUBSCRIBERS: u64 = 300;

/// What is in the log, by what the publishers were answered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Published {
    topic: String,
    event: &'static str,
    data: String,
}

type Log = BTreeMap<u64, Published>;

fn event(rng: &mut Rng, publisher: u64, n: u64) -> Published {
    // One in a thousand is of a topic that nearly never has anything.
    let topic = if rng.u32(..1000) == 0 { "rare".to_owned() } else { format!("t.{}", rng.u64(..TOPICS)) };
    let event = ["", "", "x", "y"][rng.usize(..4)];
    Published { topic, event, data: format!("{publisher}-{n}") }
}

/// Publishes until `stop`, one by one and in batches across topics.
fn publish(server: &TestServer, publisher: u64, stop: &AtomicBool) -> Log {
    let mut rng = Rng::with_seed(SEED + publisher);
    let (mut conn, mut log, mut n) = (server.connect(), Log::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let count = if rng.u8(..10) == 0 { rng.usize(2..50) } else { 1 };
        let events: Vec<_> = (0..count)
            .map(|_| {
                event(&mut rng, publisher, {
                    n += 1;
                    n
                })
            })
            .collect();
        let (target, content_type, body) = if let [only] = &events[..] {
            let target = format!("/topics/{}?event={}", only.topic, only.event);
            (target, "text/plain", only.data.clone())
        } else {
            let line = |e: &Published| {
                format!("{{\"topic\":\"{}\",\"event\":\"{}\",\"data\":\"{}\"}}\n", e.topic, e.event, e.data)
            };
            ("/topics".to_owned(), "application/x-ndjson", events.iter().map(line).collect())
        };
        let answer = conn.ask("POST", &target, &[("Content-Type", content_type)], body.as_bytes()).unwrap();
        assert_eq!(answer.status, 201, "{answer:?}");
        let json = answer.json();
        let first = json.get("first").unwrap_or(&json["id"]).as_u64().unwrap();
        log.extend((first..).zip(events));
    }
    log
}

#[derive(Debug, Clone, Copy)]
enum Form {
    Sse,
    Envelope,
    Lines,
    Page,
}

/// Who wants what in which form.
struct Wish {
    target: String,
    form: Form,
    topics: Vec<String>,
    event: Option<&'static str>,
}

impl Wish {
    fn of(subscriber: u64, rng: &mut Rng) -> Self {
        let one = format!("t.{}", rng.u64(..TOPICS));
        let form = [Form::Sse, Form::Sse, Form::Lines, Form::Envelope, Form::Page][rng.usize(..5)];
        let (target, topics, event) = match subscriber % 30 {
            0 => ("/topics/t.*?".into(), vec![], None),
            1 => ("/events?topic=t.**&topic=rare&".into(), vec![], None),
            2 | 3 => ("/topics/rare?".into(), vec!["rare".into()], None),
            4 | 5 => (format!("/topics/{one}?event=x&"), vec![one], Some("x")),
            6 => {
                let other = format!("t.{}", rng.u64(..TOPICS));
                (format!("/events?topic={one}&topic={other}&"), vec![one, other], None)
            }
            7 => ("/topics/nothing.ever?".into(), vec!["nothing.ever".into()], None),
            _ => (format!("/topics/{one}?"), vec![one], None),
        };
        Self { target, form, topics, event }
    }

    fn matches(&self, published: &Published) -> bool {
        let topic = self.topics.is_empty() && (self.target.contains("rare") || published.topic != "rare")
            || self.topics.contains(&published.topic);
        topic && self.event.is_none_or(|event| event == published.event)
    }
}

/// What one has seen, and up to where.
struct Reader {
    wish: Wish,
    began: u64,
    cursor: u64,
    seen: Vec<(u64, String)>,
}

impl Reader {
    fn take(&mut self, id: u64, data: String) {
        assert!(id > self.cursor, "{id} after {}", self.cursor);
        self.cursor = id;
        self.seen.push((id, data));
    }

    /// Comes, goes and resumes until it has seen everything up to the last event.
    fn run(&mut self, server: &TestServer, rng: &mut Rng, end: &AtomicU64) {
        let mut first = true;
        loop {
            // How much it reads before it leaves, wherever in a frame that is.
            let mut patience = rng.usize(..200_000);
            let begin = match (first, rng.bool()) {
                (true, true) => "from=earliest",
                (true, false) => "from=latest",
                _ => "",
            };
            let done = match self.wish.form {
                Form::Page => self.page(server, begin, end),
                _ => self.stream(server, begin, &mut patience, &mut first, end),
            };
            if done {
                return;
            }
            first = false;
        }
    }

    fn is_done(&self, end: &AtomicU64) -> bool {
        // 0 while it is not known.
        let end = end.load(Ordering::Acquire);
        end > 0 && self.cursor >= end
    }

    fn stream(
        &mut self,
        server: &TestServer,
        begin: &str,
        patience: &mut usize,
        first: &mut bool,
        end: &AtomicU64,
    ) -> bool {
        let accept = if matches!(self.wish.form, Form::Lines) { "application/x-ndjson" } else { "text/event-stream" };
        let envelope = if matches!(self.wish.form, Form::Envelope) { "envelope=json&" } else { "" };
        let cursor = self.cursor.to_string();
        let mut headers = vec![("Accept", accept)];
        if begin.is_empty() {
            headers.push(("Last-Event-ID", &cursor));
        }
        let mut stream = server.stream(&format!("{}{envelope}{begin}", self.wish.target), &headers);
        if *first && begin == "from=latest" {
            self.began = stream.head.header("tidelog-tail").unwrap().parse().unwrap();
            self.cursor = self.began;
        }
        let mut partial = Vec::new();
        loop {
            let mut bytes = stream.bytes().expect("nobody is cut off");
            // While publishers write it may leave, in the midst of a frame too; at the end it stays.
            let leaves = bytes.len() >= *patience && end.load(Ordering::Acquire) == 0;
            if leaves {
                bytes.truncate(*patience);
            }
            *patience = patience.saturating_sub(bytes.len());
            match self.wish.form {
                Form::Lines => {
                    partial.extend_from_slice(&bytes);
                    self.lines(&mut partial);
                }
                _ => self.frames(&mut stream, &bytes),
            }
            if self.is_done(end) {
                return true;
            }
            if leaves {
                stream.shutdown();
                return false;
            }
        }
    }

    fn frames(&mut self, stream: &mut Stream, mut bytes: &[u8]) {
        while let Some(message) = stream.decoder.next(&mut bytes).unwrap() {
            let id: u64 = message.id.parse().unwrap();
            match (message.event.as_str(), self.wish.form) {
                ("tidelog.live", _) => self.cursor = self.cursor.max(id),
                (name, _) if name.starts_with("tidelog.") => panic!("{message:?}"),
                (_, Form::Envelope) => {
                    let object: serde_json::Value = serde_json::from_str(&message.data).unwrap();
                    assert_eq!(object["id"], id);
                    self.take(id, object["data"].as_str().unwrap().to_owned());
                }
                _ => self.take(id, message.data),
            }
        }
    }

    fn lines(&mut self, partial: &mut Vec<u8>) {
        while let Some(end) = partial.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = partial.drain(..=end).collect();
            if line.len() == 1 {
                continue;
            }
            let object: serde_json::Value = serde_json::from_slice(&line).unwrap();
            match object.get("id") {
                Some(id) => self.take(id.as_u64().unwrap(), object["data"].as_str().unwrap().to_owned()),
                None => {
                    assert_eq!(object["event"], "tidelog.live", "{object}");
                    self.cursor = self.cursor.max(object["after"].as_u64().unwrap());
                }
            }
        }
    }

    fn page(&mut self, server: &TestServer, begin: &str, end: &AtomicU64) -> bool {
        let from = if begin.is_empty() { format!("from={}", self.cursor + 1) } else { begin.to_owned() };
        let target = format!("{}{from}&limit=1000&wait=200ms", self.wish.target);
        let page = server.get(&target, &[("Accept", "application/json")]).json();
        assert!(page.get("gap").is_none(), "{page}");
        for event in page["events"].as_array().unwrap() {
            self.take(event["id"].as_u64().unwrap(), event["data"].as_str().unwrap().to_owned());
        }
        let next = page["next"].as_u64().unwrap();
        assert!(next > self.cursor);
        if begin == "from=latest" && self.seen.is_empty() {
            self.began = next - 1;
        } else if begin == "from=latest" {
            // Where it began is not said; what it saw first is.
            self.began = self.seen[0].0 - 1;
        }
        self.cursor = next - 1;
        self.is_done(end)
    }

    fn check(&self, log: &Log) {
        let want = log.range(self.began + 1..).filter(|(_, published)| self.wish.matches(published));
        let want: Vec<_> = want.map(|(&id, published)| (id, published.data.clone())).collect();
        let differs = self.seen.iter().zip(&want).find(|(seen, want)| seen != want);
        assert!(
            differs.is_none() && self.seen.len() == want.len(),
            "{} {:?} from {}: {} seen, {} are there; the first that differ (seen, there): {differs:?}",
            self.wish.target,
            self.wish.form,
            self.began,
            self.seen.len(),
            want.len(),
        );
    }
}

#[test]
fn each_subscriber_sees_everything_once_in_order() {
    see_everything(&["heartbeat=200ms"]);
}

#[test]
fn each_subscriber_sees_everything_once_in_order_where_streams_are_tasks() {
    see_everything(&["heartbeat=200ms", "stream_threads=0", "publish_threads=0"]);
}

fn see_everything(sets: &[&str]) {
    let server = TestServer::start(sets);
    let (stop, end) = (AtomicBool::new(false), AtomicU64::new(0));
    let (log, readers) = thread::scope(|scope| {
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|n| {
                scope.spawn({
                    let (server, stop) = (&server, &stop);
                    move || publish(server, n, stop)
                })
            })
            .collect();
        let subscribers: Vec<_> = (0..SUBSCRIBERS)
            .map(|n| {
                let (server, end) = (&server, &end);
                scope.spawn(move || {
                    let mut rng = Rng::with_seed(SEED + 1000 + n);
                    let mut reader = Reader { wish: Wish::of(n, &mut rng), began: 0, cursor: 0, seen: Vec::new() };
                    reader.run(server, &mut rng, end);
                    reader
                })
            })
            .collect();
        let stops = OnDrop(|| stop.store(true, Ordering::Relaxed));
        // Where the test has failed, nobody waits for the last event.
        let _ends = OnDrop(|| {
            let _ = end.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed);
        });
        // The test's own clock: a subscriber that hears nothing but this.
        let deadline = Instant::now() + PUBLISHING;
        let mut ticks = server.stream("/topics/nothing", &[]);
        while Instant::now() < deadline {
            ticks.bytes().unwrap();
        }
        drop(stops);
        let log: Log = publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect();
        let last = *log.last_key_value().unwrap().0;
        assert_eq!(server.tail(), last);
        end.store(last, Ordering::Release);
        (log, subscribers.into_iter().map(|subscriber| subscriber.join().unwrap()).collect::<Vec<_>>())
    });
    assert!(log.len() > 500, "only {} events", log.len());
    assert_eq!(log.len() as u64, *log.last_key_value().unwrap().0, "ids are consecutive");
    let stored = server.everything("/events");
    assert_eq!(stored.len(), log.len());
    for (event, (&id, published)) in stored.iter().zip(&log) {
        assert_eq!((event["id"].as_u64(), event["topic"].as_str()), (Some(id), Some(published.topic.as_str())));
        assert_eq!(event["data"], published.data.as_str());
    }
    for reader in &readers {
        reader.check(&log);
    }
    let seen: usize = readers.iter().map(|reader| reader.seen.len()).sum();
    assert!(seen > 10 * log.len(), "{seen} deliveries of {} events", log.len());
}

/// Each is an eighth of a MiB, and all of them more than two rings of 64 MiB.
const BULK_BYTES: usize = 128 << 10;
const BULK_EVENTS: u64 = 1200;

fn bulk(n: u64) -> String {
    let head = format!("{n} ");
    let filler = char::from(b'a' + u8::try_from(n % 26).unwrap());
    head + &filler.to_string().repeat(BULK_BYTES)
}

/// How many events there are, for who waits for that.
#[derive(Default)]
struct Count(Mutex<u64>, Condvar);

impl Count {
    fn raise(&self, to: u64) {
        *self.0.lock() = to;
        self.1.notify_all();
    }

    fn wait_for(&self, least: u64) {
        let mut count = self.0.lock();
        let over = self.1.wait_while_for(&mut count, |count| *count < least, TOO_LONG);
        assert!(!over.timed_out(), "{least} events were never published");
    }
}

#[test]
fn a_slow_reader_falls_back_to_the_disk_and_is_not_cut_off() {
    fall_back(&[]);
}

#[test]
fn a_slow_reader_falls_back_to_the_disk_and_is_not_cut_off_where_streams_are_tasks() {
    fall_back(&["stream_threads=0"]);
}

fn fall_back(sets: &[&str]) {
    let server = TestServer::start(sets);
    let published = Count::default();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|n| {
                let (server, published) = (&server, &published);
                scope.spawn(move || {
                    let conn = Conn::connect_narrow(server.addr, 64 << 10).unwrap();
                    let mut stream = Stream::over(conn, "/topics/bulk", &[]).unwrap();
                    stream.control("tidelog.live");
                    // Each stops reading at another place until the ring has run over it.
                    let pauses = [10 + n * 7, 300 + n * 50];
                    for id in 1..=BULK_EVENTS {
                        let event = stream.event();
                        assert_eq!(event.id, id);
                        assert!(event.data == bulk(id), "the data of event {id}");
                        if pauses.contains(&id) {
                            published.wait_for((id + 600).min(BULK_EVENTS));
                        }
                    }
                })
            })
            .collect();
        // One that hears of something else is not held up meanwhile.
        let mut other = server.stream("/topics/other", &[]);
        other.control("tidelog.live");
        crate::support::until("all of them follow", || {
            server.get("/metrics", &[]).body.lines().any(|line| line == "tidelog_subscribers 5").then_some(())
        });
        let mut conn = server.connect();
        for id in 1..=BULK_EVENTS {
            let answer = conn.ask("POST", "/topics/bulk", &[], bulk(id).as_bytes()).unwrap();
            assert_eq!(answer.json()["id"], id);
            published.raise(id);
        }
        server.publish("other", "x");
        assert_eq!(other.event().data, "x");
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    let metrics = server.get("/metrics", &[]).body;
    let reads = metrics.lines().find_map(|line| line.strip_prefix("tidelog_catchup_reads_total ")).unwrap();
    assert!(reads.parse::<u64>().unwrap() > 20, "{reads} reads from the disk");
    let ring = metrics.lines().find_map(|line| line.strip_prefix("tidelog_ring_bytes ")).unwrap();
    assert!(ring.parse::<u64>().unwrap() <= 65 << 20, "the ring holds {ring} bytes");
}

/// Slower than the kernel's own notion of a peer that is still there, and much faster than a byte in `write_timeout`.
#[test]
fn a_reader_of_a_few_bytes_at_a_time_is_not_cut_off() {
    for sets in [&["write_timeout=1s"][..], &["write_timeout=1s", "stream_threads=0"]] {
        let server = TestServer::start(sets);
        for n in 0..64 {
            server.publish("bulk", &bulk(n));
        }
        let mut conn = Conn::connect_narrow(server.addr, 16 << 10).unwrap();
        conn.request("GET", "/topics/bulk?from=earliest", &[], b"").unwrap();
        // The pace is what is tested: 48 KB a second, for several times the timeout.
        let mut left = vec![0; 12 << 10];
        for turn in 0..20 {
            conn.socket
                .read_exact(&mut left)
                .unwrap_or_else(|error| panic!("cut off at turn {turn} with {sets:?}: {error}"));
            thread::sleep(Duration::from_millis(250));
        }
    }
}
