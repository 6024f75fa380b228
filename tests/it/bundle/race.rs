//! The race that states end: whatever is published meanwhile, a state is what the log makes it at its id, and from there nothing is
//! missed and nothing comes twice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use fastrand::Rng;
use serde_json::Value;

use super::{BATCH, SSE, State, WAYS, entries, replayed, state};
use crate::support::{OnDrop, Stream, TestServer, until};

const SEED: u64 = 31;
const WRITERS: u64 = 8;
const PUBLISHES: u64 = 120;
const READERS: usize = 4;

/// Entries, and between which two ids they are true: no matching event lies between them.
struct Seen {
    from: u64,
    upto: u64,
    entries: State,
    /// The ids of the events that came on a stream from there.
    then: Vec<u64>,
}

fn write(server: &TestServer, writer: u64) {
    let mut rng = Rng::with_seed(SEED + writer);
    let mut conn = server.connect();
    for n in 0..PUBLISHES {
        let mut one = || {
            let data = if rng.u8(..4) == 0 { String::new() } else { format!("{writer}/{n}") };
            let key = if rng.u8(..8) == 0 { String::new() } else { format!("\"key\":\"{}\",", rng.u8(..6)) };
            format!("{{\"topic\":\"h.{}\",{key}\"data\":\"{data}\"}}\n", rng.u8(..4))
        };
        let lines: String = (0..=n % 3).map(|_| one()).collect();
        let answer = conn.ask("POST", "/topics", &[BATCH], lines.as_bytes()).unwrap();
        assert_eq!(answer.status, 201, "{answer:?}");
    }
}

fn follow(mut stream: Stream, first: Option<u64>) -> Vec<u64> {
    let mut ids: Vec<u64> = first.into_iter().collect();
    while ids.len() < 20 {
        let event = stream.next().expect("the stream goes on");
        match event.event.as_str() {
            "" => ids.push(event.id),
            "tidelog.live" => {}
            _ => panic!("{event:?}"),
        }
    }
    ids
}

fn ask(server: &TestServer, pattern: &str, stop: &AtomicBool) -> Vec<Seen> {
    let mut seen = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let (as_of, entries) = state(server, pattern);
        let stream = server.stream(&format!("/topics/{pattern}?last_event_id={as_of}"), &[SSE]);
        seen.push(Seen { from: as_of, upto: as_of, entries, then: follow(stream, None) });
    }
    seen
}

fn subscribe(server: &TestServer, pattern: &str, stop: &AtomicBool) -> Vec<Seen> {
    let mut seen = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mut stream = server.stream(&format!("/topics/{pattern}?from=state"), &[SSE]);
        let (entries, next) = entries(&mut stream);
        let one = if next.event == "tidelog.live" {
            let (from, upto) = (next.id, next.id);
            Seen { from, upto, entries, then: follow(stream, None) }
        } else {
            Seen { from: 0, upto: next.id - 1, entries, then: follow(stream, Some(next.id)) }
        };
        seen.push(one);
    }
    seen
}

#[test]
fn every_state_is_what_the_log_makes_it_and_goes_on_from_there() {
    for sets in WAYS {
        let server = TestServer::start(sets);
        let stop = AtomicBool::new(false);
        let patterns = ["h.*", "**", "h.1", "h.**"];
        let seen = thread::scope(|scope| {
            let (server, stop) = (&server, &stop);
            let stops = OnDrop(|| stop.store(true, Ordering::Relaxed));
            let readers: Vec<_> = (0..READERS)
                .flat_map(|n| {
                    let pattern = patterns[n];
                    [
                        scope.spawn(move || (pattern, ask(server, pattern, stop))),
                        scope.spawn(move || (pattern, subscribe(server, pattern, stop))),
                    ]
                })
                .collect();
            let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || write(server, writer))).collect();
            writers.into_iter().for_each(|writer| writer.join().unwrap());
            drop(stops);
            // For those who still wait for their events.
            let mut conn = server.connect();
            until("all have had their events", || {
                assert_eq!(conn.ask("POST", "/topics/h.1", &[], b"x").unwrap().status, 201);
                readers.iter().all(thread::ScopedJoinHandle::is_finished).then_some(())
            });
            readers.into_iter().map(|reader| reader.join().unwrap()).collect::<Vec<_>>()
        });
        let mut states = 0;
        for (pattern, seen) in seen {
            let log = server.everything(&format!("/topics/{pattern}"));
            let ids: Vec<u64> = log.iter().map(|event: &Value| event["id"].as_u64().unwrap()).collect();
            states += seen.len();
            for Seen { from, upto, entries, then } in seen {
                assert!(from <= upto);
                assert_eq!(entries, replayed(&log, upto), "{pattern} as of {upto}");
                let at = ids.partition_point(|id| *id <= upto);
                assert_eq!(then[..], ids[at..at + then.len()], "{pattern} from {upto} on");
            }
        }
        assert!(states > 40, "only {states} states");
    }
}
