//! Chaos: the built server behind a bad network, while it is stopped and killed too. Every subscriber's sequence is exactly the log's.
//!
//! `proxy` stands between the server and all of its clients and delays, squeezes, stalls, cuts and forgets their connections; `publish` and
//! `subscribe` are those clients, in every form that there is; `history` judges what they saw. `vanish` takes the network away for real
//! and measures when the server notices. `churn` looks at what connections that broke leave behind.
//!
//! `SEED=n` draws other plans, `CHAOS_SECONDS=n` goes on for longer. What a seed fixes are the plans of connections and of clients; which
//! of them meet is for the scheduler, so a failure is looked for again with the same seed, not replayed to the byte (`tests/seam` does that).

// Long tables and small bodies read better as they are; numbers here are small.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::format_collect,
    clippy::similar_names,
    clippy::single_match_else,
    clippy::struct_field_names,
    clippy::too_many_lines
)]

mod churn;
mod history;
mod proxy;
mod publish;
mod subscribe;
#[path = "../it/support.rs"]
#[allow(dead_code)]
mod support;
mod vanish;
mod wire;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::history::Log;
use crate::proxy::{ALL, Fault, Proxy, free_address};
use crate::publish::publish;
use crate::subscribe::{FORMS, RETRY, Subscriber};
use crate::support::{TestServer, until};

const SECONDS: u64 = 20;
const PUBLISHERS: u64 = 6;
const SUBSCRIBERS: u64 = 54;
/// After the last event everybody is to have seen it by then: a few reconnects, each through stalls of a second and silence of one more.
const CATCH_UP: Duration = Duration::from_secs(30);

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// What all clients know.
pub struct World {
    seed: u64,
    /// Where the server is reached, through the bad network.
    through: SocketAddr,
    /// Publishers publish no more.
    stop: AtomicBool,
    /// The last event's id; 0 while it is not known.
    end: AtomicU64,
}

impl World {
    fn is_seen(&self, cursor: u64) -> bool {
        let end = self.end.load(Ordering::Acquire);
        end > 0 && cursor >= end
    }
}

fn start(addr: SocketAddr, dir: &Path, sets: &[&str]) -> TestServer {
    let retry = format!("retry={}ms", RETRY.as_millis());
    let all = [&["heartbeat=200ms", "write_timeout=1s", "drain_timeout=1s", "request_timeout=3s", &retry], sets];
    TestServer::start_at(addr, dir, &all.concat())
}

#[test]
fn each_subscriber_sees_exactly_the_log_through_thousands_of_broken_connections() {
    chaos(&[], number("CHAOS_SECONDS", SECONDS), number("SEED", 20_261_122));
}

/// Half of the default time: the same promises where streams and publishers are tasks.
#[test]
fn each_subscriber_sees_exactly_the_log_where_streams_are_tasks() {
    let sets = &["stream_threads=0", "publish_threads=0"];
    chaos(sets, number("CHAOS_SECONDS", SECONDS) / 2, number("SEED", 20_261_122) + 1);
}

fn chaos(sets: &[&str], seconds: u64, seed: u64) {
    println!("SEED={seed} CHAOS_SECONDS={seconds} {sets:?}");
    let dir = tempfile::tempdir().unwrap();
    let addr = free_address();
    let mut server = start(addr, dir.path(), sets);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let proxy = {
        let _within = runtime.enter();
        Proxy::start(seed, addr)
    };
    let world = Arc::new(World { seed, through: proxy.addr, stop: AtomicBool::new(false), end: AtomicU64::new(0) });
    let (mut publishers, mut subscribers) = (JoinSet::new(), JoinSet::new());
    for n in 0..PUBLISHERS {
        publishers.spawn_on(publish(world.clone(), n), runtime.handle());
    }
    for n in 0..SUBSCRIBERS {
        subscribers.spawn_on(Subscriber::new(seed, n).run(world.clone()), runtime.handle());
    }

    // Stopped and killed in the first two thirds, often; the last third is one server's.
    let begun = Instant::now();
    let (all, mut restarts) = (Duration::from_secs(seconds), 0);
    let lives = (seconds / 2).max(3);
    while begun.elapsed() < all {
        sleep(all / u32::try_from(lives).unwrap());
        if restarts > 0 && seconds >= 60 && restarts % 10 == 0 {
            println!("{:?} of {all:?}: {restarts} restarts, {} connections", begun.elapsed(), proxy.connections());
        }
        if begun.elapsed() < all * 2 / 3 {
            restarts += 1;
            server = restart(server, addr, dir.path(), sets, restarts % 2 == 0);
        }
    }
    world.stop.store(true, Ordering::Relaxed);
    proxy.be_calm();
    let done = runtime.block_on(async { tokio::time::timeout(CATCH_UP, publishers.join_all()).await });
    let done = done.expect("every publish is answered in the end");
    let mut log = Log::new();
    let (mut publishes, mut unanswered, mut replayed, mut healed) = (0, 0, 0, 0);
    for one in done {
        for (id, event) in one.log {
            assert!(log.insert(id, event).is_none(), "the id {id} was given twice");
        }
        publishes += one.publishes;
        unanswered += one.unanswered;
        replayed += one.replayed;
        healed += one.healed;
    }
    let last = *log.last_key_value().expect("something was published").0;
    world.end.store(last, Ordering::Release);
    let readers = runtime.block_on(async { tokio::time::timeout(CATCH_UP, subscribers.join_all()).await });
    let readers = readers.expect("every subscriber sees the last event in the end");

    // What was answered is what is there, once and no more.
    assert_eq!(server.tail(), last);
    let stored = server.everything("/events");
    let ids: Vec<_> = stored.iter().map(|event| event["id"].as_u64().unwrap()).collect();
    assert!(ids.iter().eq(log.keys()), "{} events are there, {} were answered", ids.len(), log.len());
    for (event, kept) in stored.iter().zip(log.values()) {
        assert_eq!(history::hash_object(event), kept.whole(), "{event}");
    }
    let (mut seen, mut connections, mut torn, mut lives, mut torn_states) = (0, 0, 0, 0, 0);
    for reader in &readers {
        seen += reader.lives.iter().map(|life| life.check(&log)).sum::<usize>();
        connections += reader.connections;
        torn += reader.torn;
        torn_states += reader.torn_states;
        lives += reader.lives.len();
    }
    // Nothing is left of those who went.
    drop(runtime);
    until("all subscribers are gone", || (server.metric("tidelog_subscribers") == 0).then_some(()));
    until("all sockets are closed", || (connections_of(&server) == 0).then_some(()));
    assert!(!server.said().contains("panicked"), "{}", server.said());
    assert!(server.stop().success());
    println!(
        "{publishes} publishes of {} events, {unanswered} attempts without an answer, {replayed} answers of repetitions \
         ({healed} to what had happened unheard)\n{connections} connections of {SUBSCRIBERS} subscribers, {torn} broken within \
         a frame, {torn_states} within a state, {lives} lives, {seen} events seen; {restarts} restarts; {} connections in all, {:?}",
        log.len(),
        proxy.connections(),
        begun.elapsed(),
    );
    let faults: Vec<_> = ALL.iter().map(|fault| format!("{fault:?} {}", proxy.counts().of(*fault))).collect();
    println!("{}", faults.join(", "));

    // It was bad enough: each fault happened, and each form met some.
    for fault in ALL {
        assert!(proxy.counts().of(fault) > 0, "{fault:?} never happened");
    }
    assert!(connections > 100 * seconds, "{connections} connections in {seconds} s");
    assert!(proxy.counts().of(Fault::Reset) > 10 * seconds && torn > seconds && healed > 0, "{torn} {healed}");
    assert!(log.len() as u64 > 20 * seconds, "{} events", log.len());
    for form in FORMS {
        let of: u64 = readers.iter().filter(|reader| reader.form == form).map(|reader| reader.connections).sum();
        assert!(of > seconds, "{form:?} has connected {of} times");
    }
}

fn restart(mut server: TestServer, addr: SocketAddr, dir: &Path, sets: &[&str], kills: bool) -> TestServer {
    assert!(!server.said().contains("panicked"), "{}", server.said());
    if kills {
        server.kill();
    } else {
        server.signal(Signal::TERM);
        let status = server.wait();
        assert!(status.success() && !server.said().contains("panicked"), "{status} {}", server.said());
    }
    start(addr, dir, sets)
}

/// How many TCP connections the server holds open, as the kernel counts them.
pub fn connections_of(server: &TestServer) -> usize {
    let process = format!("/proc/{}", server.pid().as_raw_nonzero());
    // The tenth column of a line is the socket's number.
    let table = std::fs::read_to_string(format!("{process}/net/tcp")).unwrap();
    let sockets: HashSet<_> = table.lines().filter_map(|line| line.split_whitespace().nth(9)).collect();
    let files = std::fs::read_dir(format!("{process}/fd")).unwrap().flatten();
    let links = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    let is_tcp = |link: &Path| {
        let number = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
        number.is_some_and(|number| sockets.contains(number))
    };
    // One listens.
    links.filter(|link| is_tcp(link)).count().saturating_sub(1)
}
