//! A disk that gives no answer: whoever publishes is told that the outcome is not known, on a lane and beside it, and finds it out under
//! its key; whoever asks whether the server is ready is told why it is not; and when the disk goes on, so does everything.
//!
//! The log is opened within the test's own process, where the time that a commit may take can be set; so each test runs itself again,
//! with the faults loaded. Every fsync hangs until the test lets it go. `HANGS=n` hangs so many times more.

use std::collections::HashMap;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tidelog::http::{self, Api};
use tidelog::log::{self, Log};
use tidelog::server::{self, Server};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{FaultyDisk, SYNC_MS};
use crate::support::{ANY_PORT, Answer, Conn, Stream, TOO_LONG, until};

const COMMIT_TIMEOUT: Duration = Duration::from_millis(300);
/// Within so much more everybody is told: a lane notices in a second, and the rest is for a busy machine.
const TOLD_WITHIN: Duration = Duration::from_secs(2);
/// Longer than any test: it is let go before.
const HANGS: Duration = TOO_LONG;
/// Set where the faults are loaded.
const WITHIN: &str = "FAULTS_WITHIN";

/// Runs `test`, the caller, again in a process of its own, with the faults loaded; there, does `work`.
fn with_faults(test: &str, work: impl FnOnce()) {
    if std::env::var(WITHIN).is_ok() {
        return work();
    }
    let disk = FaultyDisk::new();
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", &format!("faults::hang::{test}"), "--nocapture"]).env(WITHIN, "1");
    assert!(disk.under(&mut again).status().unwrap().success(), "see above");
}

/// A server in this process.
struct Served {
    disk: FaultyDisk,
    runtime: Runtime,
    log: Log,
    addr: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

impl Served {
    fn start(publish_threads: usize) -> Self {
        let disk = FaultyDisk::of_environment();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let log = Log::open(log::Options { commit_timeout: COMMIT_TIMEOUT, ..log::Options::new(disk.data()) }).unwrap();
        let drain_timeout = Duration::from_millis(500);
        let options = server::Options { listen: ANY_PORT, publish_threads, drain_timeout, ..Default::default() };
        let server = {
            let _within = runtime.enter();
            Server::bind(options).unwrap()
        };
        let addr = server.local_addr().unwrap();
        let api = Api::new(log.clone(), http::Options::default());
        let (stop, stopped) = oneshot::channel::<()>();
        let served = runtime.spawn(server.run(api, async { drop(stopped.await) }));
        Self { disk, runtime, log, addr, stop, served }
    }

    fn connect(&self) -> Conn {
        Conn::connect(self.addr).unwrap()
    }

    fn get(&self, target: &str) -> Answer {
        self.connect().ask("GET", target, &[], b"").unwrap()
    }

    fn hang(&self) {
        self.disk.sync_takes(HANGS);
    }

    fn go_on(&self) {
        self.disk.set(SYNC_MS, 0);
    }

    /// Seconds that the write under way has taken.
    fn under_way(&self) -> f64 {
        let metrics = self.get("/metrics").body;
        let line = metrics.lines().find_map(|line| line.strip_prefix("tidelog_write_under_way_seconds "));
        line.unwrap().parse().unwrap()
    }

    /// Data by id, of the whole log in order.
    fn everything(&self) -> Vec<(u64, String)> {
        let target = "/events?from=earliest&follow=false";
        let stream = Stream::open(self.addr, target, &[("Accept", "application/x-ndjson")]).unwrap();
        let text = stream.rest().expect("it ends properly");
        let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.filter_map(|line| Some((line["id"].as_u64()?, line["data"].as_str()?.to_owned()))).collect()
    }

    fn stop(self) {
        drop(self.stop);
        self.runtime.block_on(async {
            self.served.await.unwrap();
            self.log.close().await;
        });
    }
}

#[test]
fn a_disk_that_hangs_leaves_an_outcome_that_is_not_known_and_can_be_found_out() {
    with_faults("a_disk_that_hangs_leaves_an_outcome_that_is_not_known_and_can_be_found_out", || {
        for publish_threads in [0, 4] {
            is_found_out(publish_threads);
        }
    });
}

fn is_found_out(publish_threads: usize) {
    let server = Served::start(publish_threads);
    let before = server.log.tail();
    let mut conn = server.connect();
    let mut ask = |key: &str, data: &str| {
        let key = format!("{publish_threads}-{key}");
        conn.ask("POST", "/topics/a", &[("Idempotency-Key", &key)], data.as_bytes()).unwrap()
    };
    assert_eq!(ask("k0", "before").status, 201);
    server.hang();
    let begun = Instant::now();
    let answer = ask("k1", "unknown");
    let took = begun.elapsed();
    assert_eq!((answer.status, answer.problem().as_str()), (504, "outcome_unknown"), "{answer:?}");
    assert!((COMMIT_TIMEOUT..COMMIT_TIMEOUT + TOLD_WITHIN).contains(&took), "{took:?}");
    // Who reads does not notice, and sees nothing that is not durable.
    assert_eq!(server.everything().len() as u64, before + 1);
    // The same again while it hangs: it is not known still.
    assert_eq!(ask("k1", "unknown").status, 504);
    server.go_on();
    let known = until("the outcome is known", || Some(ask("k1", "unknown")).filter(|answer| answer.status != 504));
    assert_eq!((known.status, known.header("idempotency-replayed")), (200, Some("true")), "{known:?}");
    assert_eq!((known.json()["id"].as_u64(), server.log.tail()), (Some(before + 2), before + 2), "once, and no more");
    assert_eq!(server.everything().len() as u64, before + 2);
    assert_eq!(ask("k1", "other").status, 422);
    server.stop();
}

/// One who publishes under keys, on the way that it takes.
struct Publisher {
    name: String,
    conn: Conn,
    /// What keeps a request off the lanes.
    more: &'static [(&'static str, &'static str)],
    batch: bool,
    number: u64,
}

impl Publisher {
    fn new(server: &Served, name: String, more: &'static [(&'static str, &'static str)], batch: bool) -> Self {
        Self { name, conn: server.connect(), more, batch, number: 0 }
    }

    fn key(&self) -> String {
        format!("{}.{}", self.name, self.number)
    }

    /// What it publishes now.
    fn data(&self) -> Vec<String> {
        (0..if self.batch { 3 } else { 1 }).map(|n| format!("{}.{n}", self.key())).collect()
    }

    fn ask(&mut self) -> Answer {
        let key = self.key();
        let mut headers = vec![("Idempotency-Key", key.as_str())];
        headers.extend(self.more);
        let mut body = self.data().concat();
        if self.batch {
            headers.push(("Content-Type", "application/x-ndjson"));
            body = self.data().iter().map(|data| format!("{{\"data\":\"{data}\"}}\n")).collect();
        }
        self.conn.ask("POST", "/topics/a", &headers, body.as_bytes()).unwrap()
    }

    /// Publishes what it then knows to be there, under consecutive ids from the one that it gives.
    fn publish(&mut self, known: &mut HashMap<String, u64>, expect: u16) {
        let answer = self.ask();
        assert_eq!(answer.status, expect, "{}: {answer:?}", self.key());
        let first = answer.json()[if self.batch { "first" } else { "id" }].as_u64().unwrap();
        for (data, id) in self.data().into_iter().zip(first..) {
            assert_eq!(known.insert(data, id), None);
        }
        self.number += 1;
    }

    fn is_told_that_it_is_not_known(&mut self) -> Duration {
        let begun = Instant::now();
        let answer = self.ask();
        let took = begun.elapsed();
        assert_eq!((answer.status, answer.problem().as_str()), (504, "outcome_unknown"), "{}: {answer:?}", self.name);
        assert!(took >= COMMIT_TIMEOUT, "{}: told after {took:?} that it is not known", self.name);
        assert!(took < COMMIT_TIMEOUT + TOLD_WITHIN, "{}: told only after {took:?}", self.name);
        took
    }
}

/// No plain request has this, and hyper passes over it.
const HYPERS: &[(&str, &str)] = &[("Expect", "nothing")];

#[test]
fn while_a_disk_hangs_everybody_is_told_on_lanes_and_beside_them() {
    with_faults("while_a_disk_hangs_everybody_is_told_on_lanes_and_beside_them", || {
        let times: u64 = std::env::var("HANGS").map_or(0, |n| n.parse().expect("HANGS is a number"));
        everybody_is_told(2 + times);
    });
}

fn everybody_is_told(times: u64) {
    let server = Served::start(4);
    let position = |name: &str, all: &[Publisher]| all.iter().position(|one| one.name == name).unwrap();
    let mut known = HashMap::new();
    let mut publishers: Vec<_> = (0..6)
        .map(|n| Publisher::new(&server, format!("lane{n}"), &[], n % 2 == 1))
        .chain([Publisher::new(&server, "beside".into(), HYPERS, true)])
        .collect();
    let mut idle = Publisher::new(&server, "idle".into(), &[], false);
    let mut follower = Stream::open(server.addr, "/topics/**?from=earliest", &[]).unwrap();
    let (mut seen, mut keyless) = (Vec::new(), Vec::new());
    let longest = AtomicU64::new(0);
    for time in 0..times {
        // From the second on they are on their lane.
        for publisher in publishers.iter_mut().chain([&mut idle]) {
            (0..3).for_each(|_| publisher.publish(&mut known, 201));
        }
        let ready = || server.get("/readyz").status;
        assert_eq!(ready(), 200);
        until("nothing is under way", || (server.under_way() == 0.0).then_some(()));
        server.hang();
        // Who comes first has the writer, and hangs in it: a lane, or the writer's own thread. The others wait for it.
        let first = position(if time.is_multiple_of(2) { "lane0" } else { "beside" }, &publishers);
        publishers.swap(0, first);
        let mut new = Publisher::new(&server, format!("new{time}"), &[], false);
        thread::scope(|scope| {
            let (server, longest) = (&server, &longest);
            let tell = move |publisher: &mut Publisher| {
                // And again while it hangs.
                for _ in 0..2 {
                    let took = publisher.is_told_that_it_is_not_known();
                    longest.fetch_max(u64::try_from(took.as_millis()).unwrap(), Ordering::Relaxed);
                }
            };
            let (first, others) = publishers.split_first_mut().unwrap();
            let first = scope.spawn(move || tell(first));
            until("the writer is at it", || (server.under_way() > 0.0).then_some(()));
            let others: Vec<_> = others.iter_mut().map(|publisher| scope.spawn(move || tell(publisher))).collect();
            // One who has never been on a lane, and would come to it now.
            let new = &mut new;
            let new = scope.spawn(move || tell(new));
            // One without a key, which does not wait to be told: it may be there, whole, or not.
            let data = format!("keyless{time}");
            let lines = (0..3).map(|n| format!("{{\"data\":\"{data}.{n}\"}}\n")).collect::<String>();
            let headers = [("Content-Type", "application/x-ndjson")];
            idle.conn.request("POST", "/topics/a", &headers, lines.as_bytes()).unwrap();
            keyless.push(data);
            until("it is said", || (ready() == 503).then_some(()));
            let answer = server.get("/readyz");
            assert_eq!(answer.problem(), "storage_failed");
            assert!(answer.detail().contains("the disk has given no answer for "), "{}", answer.detail());
            assert!(server.get("/metrics").body.contains("tidelog_log_writable 0"));
            assert!(server.under_way() >= COMMIT_TIMEOUT.as_secs_f64() / 3.0);
            assert_eq!(server.get("/healthz").status, 200);
            [first, new].into_iter().chain(others).for_each(|publisher| publisher.join().unwrap());
            assert_eq!(idle.conn.answer(false).unwrap().status, 504, "the one without a key");
            // Who has been told goes on, also with what is not for a lane.
            let page = idle.conn.ask("GET", "/topics/a", &[("Accept", "application/json")], b"").unwrap();
            assert_eq!(page.status, 200);
            assert_eq!(
                server.everything().last().map(|(id, _)| *id),
                Some(server.log.tail()),
                "nothing came meanwhile"
            );
        });
        server.go_on();
        until("it is ready again", || (ready() == 200).then_some(()));
        assert!(server.get("/metrics").body.contains("tidelog_log_writable 1"));
        // What was not known is found out: it had happened, and is not done again.
        for publisher in publishers.iter_mut().chain([&mut new]) {
            publisher.publish(&mut known, 200);
            publisher.publish(&mut known, 201);
        }
        idle = Publisher::new(&server, format!("idle{time}"), &[], false);
    }
    let log = server.everything();
    assert!(log.is_sorted_by_key(|(id, _)| *id));
    let mut by_data = HashMap::new();
    for (id, data) in &log {
        assert_eq!(by_data.insert(data.clone(), *id), None, "{data} is there twice");
    }
    for (data, id) in &known {
        assert_eq!(by_data.remove(data), Some(*id), "{data}");
    }
    for data in keyless {
        let ids: Vec<_> = (0..3).filter_map(|n| by_data.remove(&format!("{data}.{n}"))).collect();
        assert!(ids.is_empty() || ids.len() == 3 && ids[2] == ids[0] + 2, "{data} has {ids:?}: not whole");
    }
    assert_eq!(by_data, HashMap::new(), "nobody has published these");
    while seen.len() < log.len() {
        let event = follower.next().expect("it goes on");
        if !event.is_control() {
            seen.push((event.id, event.data));
        }
    }
    assert_eq!(seen, log, "a follower saw each once, in order");
    println!("{times} times: told after {} ms at the latest; {} events", longest.into_inner(), log.len());

    // A server that is to stop meanwhile ends its connections in time.
    let mut last = publishers.swap_remove(position("lane0", &publishers));
    last.publish(&mut known, 201);
    server.hang();
    last.conn.request("POST", "/topics/a", &[], b"last").unwrap();
    until("the writer is at it", || (server.under_way() > 0.0).then_some(()));
    let Served { disk, runtime, log, stop, served, .. } = server;
    let begun = Instant::now();
    drop(stop);
    let _ = last.conn.until_closed();
    let took = begun.elapsed();
    assert!(took < COMMIT_TIMEOUT + TOLD_WITHIN, "its connection was ended after {took:?}");
    disk.set(SYNC_MS, 0);
    runtime.block_on(async {
        served.await.unwrap();
        log.close().await;
    });
}
