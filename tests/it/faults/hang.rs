//! A disk that gives no answer: a publisher is told that the outcome is not known, and finds it out under its key.
//!
//! The log is opened within the test's own process, where the time that a commit may take can be set; so the test runs itself again,
//! with the faults loaded.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use tidelog::http::{self, Api};
use tidelog::log::{self, Log};
use tidelog::server::{self, Server};

use super::{FaultyDisk, SYNC_MS};
use crate::support::{ANY_PORT, Conn};

const COMMIT_TIMEOUT: Duration = Duration::from_millis(300);
const HANGS: Duration = Duration::from_secs(2);
/// Set where the faults are loaded.
const WITHIN: &str = "FAULTS_WITHIN";

#[test]
fn a_disk_that_hangs_leaves_an_outcome_that_is_not_known_and_can_be_found_out() {
    if std::env::var(WITHIN).is_ok() {
        return within_a_process_whose_disk_hangs();
    }
    let disk = FaultyDisk::new();
    let mut again = Command::new(std::env::current_exe().unwrap());
    let this = "faults::hang::a_disk_that_hangs_leaves_an_outcome_that_is_not_known_and_can_be_found_out";
    again.args(["--exact", this, "--nocapture"]).env(WITHIN, "1");
    assert!(disk.under(&mut again).status().unwrap().success(), "see above");
}

fn within_a_process_whose_disk_hangs() {
    let disk = FaultyDisk::of_environment();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let log = Log::open(log::Options { commit_timeout: COMMIT_TIMEOUT, ..log::Options::new(disk.data()) }).unwrap();
    // Where publishers have no threads of their own: such a thread waits for the disk itself, and can say nothing meanwhile.
    let options = server::Options { listen: ANY_PORT, publish_threads: 0, ..server::Options::default() };
    let server = {
        let _within = runtime.enter();
        Server::bind(options).unwrap()
    };
    let addr = server.local_addr().unwrap();
    let api = Api::new(log.clone(), http::Options::default());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = runtime.spawn(server.run(api, async { drop(stopped.await) }));

    let mut conn = Conn::connect(addr).unwrap();
    let mut ask =
        |key: &str, data: &str| conn.ask("POST", "/topics/a", &[("Idempotency-Key", key)], data.as_bytes()).unwrap();
    assert_eq!(ask("k0", "before").status, 201);
    disk.sync_takes(HANGS);
    let begun = Instant::now();
    let answer = ask("k1", "unknown");
    let took = begun.elapsed();
    assert_eq!((answer.status, answer.problem().as_str()), (504, "outcome_unknown"), "{answer:?}");
    assert!((COMMIT_TIMEOUT..HANGS).contains(&took), "{took:?}");
    // Who reads does not notice, and sees nothing that is not durable.
    let page = |conn: &mut Conn| {
        let answer = conn.ask("GET", "/topics/a", &[("Accept", "application/json")], b"").unwrap().json();
        answer["events"].as_array().unwrap().len()
    };
    let mut reader = Conn::connect(addr).unwrap();
    assert_eq!((page(&mut reader), begun.elapsed() < HANGS), (1, true));
    // The same again while it hangs: it is not known still.
    assert_eq!(ask("k1", "unknown").status, 504);
    disk.set(SYNC_MS, 0);
    let known = loop {
        let answer = ask("k1", "unknown");
        if answer.status != 504 {
            break answer;
        }
        assert!(begun.elapsed() < 5 * HANGS);
        thread::sleep(Duration::from_millis(20));
    };
    assert_eq!((known.status, known.header("idempotency-replayed")), (200, Some("true")), "{known:?}");
    assert_eq!((known.json()["id"].as_u64(), page(&mut reader), log.tail()), (Some(2), 2, 2), "once, and no more");
    assert_eq!(ask("k1", "other").status, 422);
    drop(stop);
    runtime.block_on(async {
        served.await.unwrap();
        log.close().await;
    });
}
