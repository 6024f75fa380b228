//! The program killed under load, again and again on one directory: what was acked is there, no id ever names another
//! event, batches are whole, and what a subscriber saw is in the log.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use fastrand::Rng;
use parking_lot::{Condvar, Mutex};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Conn, Stream, TOO_LONG, TestServer};

const SEED: u64 = 4242;

/// Data by id: what somebody was told.
type Known = BTreeMap<u64, String>;

/// How many publishes were acked in a round, for who waits to kill.
#[derive(Default)]
struct Acks(Mutex<u64>, Condvar);

/// Publishes until the server is gone; gives what was acked. Data names its publisher, its place among that publisher's, and its
/// place in its batch.
fn publish(server: &TestServer, publisher: u64, number: &AtomicU64, acks: &Acks) -> Known {
    let mut acked = Known::new();
    let Ok(mut conn) = Conn::connect(server.addr) else { return acked };
    let mut rng = Rng::with_seed(SEED + publisher);
    loop {
        let n = number.fetch_add(1, Ordering::Relaxed);
        let count = if publisher.is_multiple_of(2) { 1 } else { rng.u64(1..40) };
        let padding = "x".repeat(rng.usize(..300));
        let data: Vec<_> = (0..count).map(|at| format!("{publisher}/{n}/{at}/{count}/{padding}")).collect();
        let sent = if publisher.is_multiple_of(2) {
            conn.ask("POST", &format!("/topics/c.{publisher}"), &[], data[0].as_bytes())
        } else {
            let lines: String =
                data.iter().map(|data| format!("{{\"topic\":\"c.{}\",\"data\":\"{data}\"}}\n", n % 7)).collect();
            conn.ask("POST", "/topics", &[("Content-Type", "application/x-ndjson")], lines.as_bytes())
        };
        let Ok(answer) = sent else { return acked };
        assert_eq!(answer.status, 201, "{answer:?}");
        let json = answer.json();
        let first = json.get("first").unwrap_or(&json["id"]).as_u64().unwrap();
        acked.extend((first..).zip(data));
        *acks.0.lock() += 1;
        acks.1.notify_all();
    }
}

/// Follows until the server is gone; gives what it saw. `cursor` is where it goes on.
fn follow(server: &TestServer, cursor: &mut u64, may_lose: bool) -> Known {
    let mut seen = Known::new();
    let id = cursor.to_string();
    let stream = Stream::open(server.addr, "/topics/c.**", &[("Last-Event-ID", &id)]);
    let mut stream = match stream {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => panic!("{error}"),
        Err(_) => return seen,
    };
    while let Some(event) = stream.next() {
        match event.event.as_str() {
            "" => {
                assert!(event.id > *cursor, "{} after {cursor}", event.id);
                assert!(seen.insert(event.id, event.data).is_none());
            }
            "tidelog.live" => {}
            "tidelog.gap" if may_lose => assert_eq!(event.json()["reason"], "lost", "{event:?}"),
            _ => panic!("{event:?}"),
        }
        *cursor = event.id.max(*cursor);
    }
    seen
}

/// What is known of a log that is killed again and again.
struct Witness {
    known: Known,
    cursors: [u64; 3],
    number: AtomicU64,
}

impl Witness {
    fn tell(&mut self, told: Known) {
        for (id, data) in told {
            let before = self.known.entry(id).or_insert_with(|| data.clone());
            assert_eq!(*before, data, "id {id} names two events");
        }
    }

    /// Everything that was told is in the log, which is in order and whole.
    fn check(&mut self, events: &[Value]) {
        let log: Known = events
            .iter()
            .map(|event| (event["id"].as_u64().unwrap(), event["data"].as_str().unwrap().to_owned()))
            .collect();
        assert!(events.iter().map(|event| event["id"].as_u64()).is_sorted(), "ids ascend");
        assert_eq!(log.len(), events.len(), "each id is there once");
        for (id, data) in &self.known {
            assert_eq!(log.get(id), Some(data), "event {id} was acked or delivered");
        }
        let mut newest: HashMap<&str, u64> = HashMap::new();
        let mut open: Option<(&str, u64, u64)> = None;
        for (&id, data) in &log {
            let parts: Vec<_> = data.split('/').collect();
            let (publisher, n): (_, u64) = (parts[0], parts[1].parse().unwrap());
            let (at, count): (u64, u64) = (parts[2].parse().unwrap(), parts[3].parse().unwrap());
            let head = &data[..parts[0].len() + 1 + parts[1].len()];
            match open {
                Some((batch, before, place)) => {
                    assert_eq!((batch, before + 1, place + 1), (head, id, at), "a batch is torn");
                }
                None => {
                    assert_eq!(at, 0, "a batch has lost its beginning at {id}");
                    let newest = newest.insert(publisher, n);
                    assert!(newest.is_none_or(|before| before < n), "publish {n} came after {newest:?}");
                }
            }
            open = (at + 1 < count).then_some((head, id, at));
        }
        assert!(open.is_none(), "the last batch is torn");
        // From here on these are facts too: what was there once stays.
        self.tell(log);
    }

    /// One life of the server: checked, resumed before anything new is published, loaded, killed.
    fn round(&mut self, dir: &std::path::Path, sets: &[&str], acks_before_kill: u64, may_lose: bool) {
        let mut server = TestServer::start_in(dir, sets);
        self.check(&server.everything("/topics/c.**"));
        if let (Some((&last, _)), Some((&first, data))) = (self.known.last_key_value(), self.known.first_key_value()) {
            assert!(server.tail() >= last);
            let mut resumed = server.stream("/events", &[("Last-Event-ID", &(first - 1).to_string())]);
            let event = resumed.next().unwrap();
            if may_lose && event.event == "tidelog.gap" {
                assert_eq!(event.json()["reason"], "lost");
            } else {
                assert_eq!((event.id, &event.data), (first, data));
            }
        }
        let acks = Acks::default();
        let told = thread::scope(|scope| {
            let (server, number, acks) = (&server, &self.number, &acks);
            let mut threads = Vec::new();
            for publisher in 0..6 {
                threads.push(scope.spawn(move || publish(server, publisher, number, acks)));
            }
            for cursor in &mut self.cursors {
                threads.push(scope.spawn(move || follow(server, cursor, may_lose)));
            }
            let mut count = acks.0.lock();
            let waited = acks.1.wait_while_for(&mut count, |count| *count < acks_before_kill, TOO_LONG);
            drop(count);
            server.signal(Signal::KILL);
            assert!(!waited.timed_out(), "{acks_before_kill} acks never came");
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        told.into_iter().for_each(|told| self.tell(told));
        assert!(!server.wait().success());
    }
}

fn killed_again_and_again(rounds: u64, sets: &[&str], may_lose: bool) {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::with_seed(SEED);
    let mut witness = Witness { known: Known::new(), cursors: [0; 3], number: AtomicU64::new(0) };
    for round in 0..rounds {
        // Now and then before anything was acked.
        let acks = if round % 6 == 5 { 0 } else { rng.u64(1..400) };
        witness.round(dir.path(), sets, acks, may_lose);
    }
    let server = TestServer::start_in(dir.path(), sets);
    witness.check(&server.everything("/topics/c.**"));
    assert!(witness.known.len() as u64 > rounds, "{} events", witness.known.len());
    let last = *witness.known.last_key_value().unwrap().0;
    assert!(server.publish("c.0", "0/9999999999/0/1/") > last);
    // Stopped in order, nothing is skipped.
    let tail = server.tail();
    assert!(server.stop().success());
    let server = TestServer::start_in(dir.path(), sets);
    assert_eq!(server.tail(), tail);
    assert_eq!(server.publish("c.0", "x"), tail + 1);
}

#[test]
fn synced_to_disk() {
    killed_again_and_again(18, &[], false);
}

#[test]
fn synced_at_intervals() {
    killed_again_and_again(5, &["durability=interval"], true);
}

#[test]
fn left_to_the_system() {
    killed_again_and_again(5, &["durability=os"], true);
}
