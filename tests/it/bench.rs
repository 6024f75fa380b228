//! `tidelog bench`: small runs of every kind against a server, and against one that does what it must not.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;
use serde_json::Value;

use crate::support::{BIN, TestServer};

/// Runs it to its end, which its own timeout bounds; gives the exit status, its JSON, and what it said.
fn bench(url: &str, args: &str) -> (Option<i32>, Value, String) {
    let mut command = Command::new(BIN);
    command.arg("bench").args(args.split_whitespace()).args(["--server", url, "--json"]);
    if !args.contains("--timeout") {
        command.args(["--timeout", "60s"]);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), json, said)
}

/// The report of a run in which nothing was wrong.
fn good(server: &TestServer, args: &str) -> Value {
    let (status, json, said) = bench(&server.url(), args);
    assert_eq!((status, said.as_str()), (Some(0), ""), "{args}: {json}");
    assert_eq!(json["bench"], args.split(' ').next().unwrap());
    assert_eq!(json["server"], server.url());
    for fault in ["lost", "doubled", "disordered", "strayed", "foreign", "cut"] {
        assert!(json.get(fault).is_none_or(|count| count == 0), "{args}: {fault} in {json}");
    }
    json
}

fn assert_counts(json: &Value, counts: &[(&str, u64)]) {
    for (name, count) in counts {
        assert_eq!(json[name], *count, "{name} in {json}");
    }
}

fn assert_above_zero(json: &Value, names: &[&str]) {
    for name in names {
        assert!(json[name].as_f64().is_some_and(|number| number > 0.0), "{name} in {json}");
    }
}

fn assert_spread(json: &Value, name: &str, samples: u64) {
    let spread = &json[name];
    assert_eq!(spread["samples"], samples, "{name} in {json}");
    let values = ["p50", "p90", "p99", "max"].map(|member| spread[member].as_f64().unwrap());
    assert!(values[0] > 0.0 && values.is_sorted(), "{name} in {json}");
}

#[test]
fn fanout_counts_times_and_checks_deliveries() {
    let server = TestServer::start(&[]);
    let json = good(&server, "fanout --subscribers 20 --events 50 --size 64");
    assert_counts(&json, &[("subscribers", 20), ("events", 50), ("deliveries", 1000), ("expected", 1000)]);
    assert_spread(&json, "latency_ms", 1000);
    assert_spread(&json, "publish_ms", 50);
    let above = ["seconds", "deliveries_per_second", "server_rss_bytes_before", "server_rss_bytes_after"];
    assert_above_zero(&json, &above);
    assert!(json["server_cpu_seconds"].is_number() && json["server_cpu_us_per_delivery"].is_number(), "{json}");

    let json = good(&server, "fanout --subscribers 7 --events 41 --rate 500 --publishers 3 --topics 3 --topic b.c");
    // Publishers of 14, 14 and 13 events, to topics in turn: 15, 14 and 12 to each; subscribers 3, 2 and 2 on each.
    assert_counts(&json, &[("expected", 3 * 15 + 2 * 14 + 2 * 12), ("deliveries", 97)]);
    assert!(json["seconds"].as_f64().unwrap() >= 0.078, "41 events at 500 a second take 80 ms: {json}");
    assert_eq!(server.everything("/topics/b.c.1").len(), 14);
}

/// One thread has more followers than it serves in one go, and publishers that leave it no time: it rests, and they stand in many places.
#[test]
fn a_crowd_that_is_never_caught_up_with_misses_nothing() {
    let server = TestServer::start(&["stream_threads=1"]);
    let json = good(&server, "fanout --subscribers 600 --events 2000 --publishers 4 --size 64");
    assert_counts(&json, &[("deliveries", 1_200_000), ("expected", 1_200_000)]);
    let json = good(&server, "fanout --subscribers 600 --topics 3 --events 900 --publishers 2 --size 3000");
    assert_counts(&json, &[("deliveries", 180_000), ("expected", 180_000)]);
}

#[test]
fn idle_tells_memory_over_both_protocols() {
    let server = TestServer::start(&[]);
    let json = good(&server, "idle --subscribers 50 --hold 50ms --topics 10");
    assert_counts(&json, &[("subscribers", 50), ("connections", 50)]);
    assert!(json["bytes_per_subscriber"].is_number(), "{json}");
    let json = good(&server, "idle --subscribers 50 --hold 50ms --http2 20");
    assert_counts(&json, &[("subscribers", 50), ("connections", 3)]);
}

#[test]
fn publish_counts_acks_and_events() {
    let server = TestServer::start(&[]);
    let json = good(&server, "publish --publishers 3 --events 100");
    assert_counts(&json, &[("events", 100), ("acks", 100)]);
    assert_spread(&json, "latency_ms", 100);
    let json = good(&server, "publish --publishers 2 --events 101 --batch 20 --topic b");
    assert_counts(&json, &[("events", 101), ("acks", 6)]);
    assert_above_zero(&json, &["acks_per_second", "events_per_second"]);
    assert_eq!(server.everything("/topics/b.0").len(), 101);
}

#[test]
fn replay_fills_a_topic_or_takes_what_is_there() {
    let server = TestServer::start(&[]);
    let json = good(&server, "replay --events 3000 --connections 3 --size 100");
    assert_counts(&json, &[("events", 3000), ("deliveries", 9000), ("complete", 3), ("gaps", 0)]);
    assert_above_zero(&json, &["events_per_second", "seconds", "fill_seconds"]);
    assert_spread(&json, "first_event_ms", 3);
    let each = json["each_connection"].as_array().unwrap();
    assert!(each.len() == 3 && each.iter().all(|each| each["complete"] == true && each["events"] == 3000), "{json}");
    for data in ["one", "two"] {
        server.publish("there", data);
    }
    let json = good(&server, "replay --topic there --connections 2");
    assert_counts(&json, &[("events", 2), ("deliveries", 4), ("expected", 4), ("complete", 2)]);
}

#[test]
fn resume_times_the_first_event() {
    let server = TestServer::start(&[]);
    let (status, _, said) = bench(&server.url(), "resume --resumes 3");
    assert_eq!((status, said.contains("the log is empty")), (Some(1), true), "{said}");
    for n in 0..20 {
        server.publish(if n % 4 == 0 { "a.rare?event=t" } else { "a.often" }, "x");
    }
    let json = good(&server, "resume --resumes 30");
    assert_counts(&json, &[("resumes", 30), ("earliest", 1), ("tail", 20)]);
    assert_spread(&json, "first_event_ms", 30);
    // The last rare one is the 17th: who has that is live at once.
    let json = good(&server, "resume --resumes 100 --pattern a.* --event t --seed 1");
    let samples = |name: &str| json[name]["samples"].as_u64().unwrap();
    assert!(samples("live_ms") > 0 && samples("first_event_ms") + samples("live_ms") == 100, "{json}");
    good(&server, "resume --resumes 10 --topic a.rare");
}

#[test]
fn a_herd_comes_back_and_becomes_live() {
    let server = TestServer::start(&[]);
    let json = good(&server, "herd --subscribers 50 --behind 7 --quiet 200ms --trickle 50");
    assert_counts(&json, &[("deliveries", 350), ("expected", 350), ("live", 50)]);
    assert_above_zero(&json, &["connect_seconds", "live_seconds"]);
    assert_spread(&json, "live_ms", 50);
    assert!(json["quiet_publish_ms"]["samples"].as_u64().unwrap() >= 9, "{json}");
    assert!(json["publish_ms"].is_object(), "{json}");
}

#[test]
fn slow_readers_are_compared_with_none() {
    let server = TestServer::start(&[]);
    let json = good(&server, "slow --subscribers 5 --slow 2 --slow-rate 100KB --bytes 100KB --size 1KB --rate 200");
    assert_counts(&json, &[("events", 100), ("deliveries", 1000), ("slow_lost", 0)]);
    assert!(json["slow_deliveries"].as_u64().unwrap() > 0, "{json}");
    assert_spread(&json, "latency_without_ms", 500);
    assert_spread(&json, "latency_with_ms", 500);
    assert_above_zero(&json, &["publish_p99_ratio", "latency_p99_ratio", "server_rss_bytes_peak_with"]);
    assert!(json["server_rss_bytes_per_slow"].is_number(), "{json}");
}

#[test]
fn echo_times_each_round() {
    let server = TestServer::start(&[]);
    let json = good(&server, "echo --rounds 30");
    assert_counts(&json, &[("rounds", 30)]);
    assert_spread(&json, "latency_ms", 30);
    assert_spread(&json, "publish_ms", 30);
}

#[test]
fn what_cannot_be_measured_is_said() {
    let server = TestServer::start(&["limits.event_bytes_max=1KiB"]);
    let (status, _, said) = bench(&server.url(), "publish --events 3 --size 2000");
    assert_eq!(status, Some(1));
    assert!(
        said.starts_with("tidelog: publishing failed: the server said: 413 ") && said.contains("too_large"),
        "{said}"
    );
    let (_, _, said) = bench(&server.url(), "fanout --subscribers 1000000");
    assert!(said.contains("ulimit -n"), "{said}");
    let (_, _, said) = bench(&server.url(), "fanout --events 100 --rate 1 --subscribers 1 --timeout 300ms");
    assert!(said.contains("not all events published within 300ms"), "{said}");
    let (_, _, said) = bench(&server.url(), "idle --subscribers 1 --pid 4294967295");
    assert!(said.contains("no process 4294967295"), "{said}");
    assert_eq!(bench(&server.url(), "fanout --size 5").0, Some(2));
    let url = server.url();
    server.kill();
    let (status, _, said) = bench(&url, "echo --rounds 1");
    assert!(status == Some(1) && said.contains("cannot connect to 127.0.0.1:"), "{said}");
}

/// A server without ids, chunks or topics: what is posted goes to all subscribers, as `relay` changes it.
fn relay(relay: fn(usize, &str) -> String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let subscribers = Arc::new(Mutex::new(Vec::<TcpStream>::new()));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let subscribers = subscribers.clone();
            thread::spawn(move || converse(stream, &subscribers, relay));
        }
    });
    url
}

fn converse(mut stream: TcpStream, subscribers: &Mutex<Vec<TcpStream>>, relay: fn(usize, &str) -> String) {
    let (mut request, mut buffer, mut posted) = (String::new(), [0; 4096], 0);
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        request.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        while let Some((head, rest)) = request.split_once("\r\n\r\n") {
            if head.starts_with("GET /s ") {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").unwrap();
                return subscribers.lock().push(stream);
            }
            assert!(head.starts_with("POST /p ") && head.contains("\r\nX-A:b"), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
            let Some(body) = rest.get(..length.parse().unwrap()) else { break };
            let frames = relay(posted, body);
            for subscriber in subscribers.lock().iter_mut() {
                // Who has left is not told.
                let _ = subscriber.write_all(frames.as_bytes());
            }
            posted += 1;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
            request = rest[body.len()..].to_owned();
        }
    }
}

const PEER: &str = "--subscribe-path /s --publish-path /p --publish-header X-A:b";

#[test]
fn another_server_is_judged_by_marks_alone() {
    let url = relay(|_, body| format!("data: {body}\n\n"));
    let (status, json, said) = bench(
        &url,
        &format!("fanout --subscribers 3 --events 10 --no-ids --body-prefix <a> --body-suffix </a> {PEER}"),
    );
    assert_eq!((status, said.as_str()), (Some(0), ""), "{json}");
    assert_counts(&json, &[("deliveries", 30), ("expected", 30)]);
    let (status, json, _) = bench(&url, &format!("echo --rounds 5 --no-ids {PEER}"));
    assert_eq!(status, Some(0), "{json}");
}

#[test]
fn events_that_are_doubled_disordered_or_without_ids_fail_the_run() {
    let run = |url: &str, more: &str| {
        let (status, json, said) = bench(url, &format!("fanout --subscribers 2 --events 10 {more} {PEER}"));
        assert_eq!(status, Some(1), "{json}");
        let faults = ["lost", "doubled", "disordered"].map(|name| json[name].as_u64().unwrap());
        (faults, said)
    };
    let doubled = relay(|_, body| format!("data: {body}\n\n").repeat(2));
    let (faults, said) = run(&doubled, "--no-ids");
    assert_eq!(faults, [0, 20, 0], "{said}");
    assert_eq!(said, "tidelog: of 20 deliveries 0 were lost, 20 came twice, 0 out of order\n");
    let without = relay(|_, body| format!("data: {body}\n\n"));
    assert_eq!(run(&without, "").0, [0, 0, 20]);
    // Ids 10, 9, …
    let descending = relay(|n, body| format!("id: {}\ndata: {body}\n\n", 10 - n));
    assert_eq!(run(&descending, "").0, [0, 0, 18]);
}

#[test]
fn events_that_are_lost_fail_the_run() {
    let lossy = relay(|n, body| if n == 4 { String::new() } else { format!("data: {body}\n\n") });
    let (status, json, said) =
        bench(&lossy, &format!("fanout --subscribers 2 --events 10 --no-ids --timeout 1s {PEER}"));
    assert_eq!((status, &json["lost"]), (Some(1), &2.into()), "{said}");
    assert_eq!(said, "tidelog: of 20 deliveries 2 were lost, 0 came twice, 0 out of order\n");
}
