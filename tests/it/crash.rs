//! The program killed with SIGKILL under mixed load, again and again on one directory: while it starts and recovers, while it works,
//! while it seals and trims in the background. With subscribers that live across the kills and resume.
//!
//! - `worker`: asks for one thing at a time (batches, keys, conditions, idempotent publishes and their repetition, closes, snapshots, trims,
//!   deletes) and knows what its topics must hold, but for what it had no answer to, which is settled at the next start.
//! - `bulk`: publishers side by side, batches across topics, small and large; nothing of theirs is trimmed, so all that was acked or
//!   delivered must be in the log, in order, in whole batches, under its id for ever, and the state is what a replay of it gives.
//! - `count`: a topic that counts, with snapshots and trims up to them, and one that retention trims.
//! - `follow`: subscribers: from an id, `from=state`, `from=snapshot`. Each gets each event once, in order.
//!
//! `KILLS=n` is how many kills there are with each durability, `SEED=n` where the dice begin. How threads fall is not in the seed.

mod bulk;
mod count;
mod follow;
mod model;
#[allow(dead_code, reason = "the tests of power cuts use the rest")]
mod worker;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;

use self::bulk::{Bulk, publish};
use self::count::{Counting, Retained};
use self::follow::{FromLog, FromSnapshot, FromState};
use self::worker::{Acks, Worker};
use crate::support::{ANY_PORT, BIN, TestServer, serve};

const WORKERS: u64 = 4;
const PUBLISHERS: u64 = 4;

/// Rounds between two readings of the whole log; else only what is new is read.
const WHOLE_EVERY: u64 = 25;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn killed_again_and_again_where_it_is_synced_to_disk() {
    killed_again_and_again("sync", number("KILLS", 30));
}

#[test]
fn killed_again_and_again_where_it_is_left_to_the_system() {
    killed_again_and_again("os", number("KILLS", 30) / 2);
    killed_again_and_again("interval", number("KILLS", 30) / 6);
}

/// All who talk to the server, across its lives.
struct Clients {
    workers: Vec<Worker>,
    bulk: Bulk,
    counting: Counting,
    retained: Retained,
    from_log: [FromLog; 2],
    from_state: FromState,
    from_snapshot: FromSnapshot,
}

/// How a life ends.
#[derive(Debug, Clone, Copy)]
enum Death {
    /// At this moment of its start, or right after.
    Starting(Duration),
    /// After so many answers.
    Answers(u64),
    /// After so long a time that the background has begun its work.
    Late(Duration),
}

impl Death {
    fn any(rng: &mut Rng) -> Self {
        match rng.u8(..10) {
            0..4 => Self::Starting(Duration::from_micros(rng.u64(..60_000))),
            4..8 => Self::Answers(rng.u64(..300)),
            // The janitor's first round comes after a second.
            8 => Self::Late(Duration::from_millis(rng.u64(980..1060))),
            _ => Self::Late(Duration::from_millis(rng.u64(1000..1500))),
        }
    }
}

fn killed_again_and_again(durability: &str, kills: u64) {
    let seed = number("SEED", 77);
    eprintln!("{durability}: SEED={seed} KILLS={kills}");
    let (begun, dir) = (Instant::now(), tempfile::tempdir().unwrap());
    let sets = [format!("durability={durability}"), "heartbeat=500ms".to_owned()];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let mut rng = Rng::with_seed(seed);
    let may_lose = durability != "sync";
    let mut clients = Clients {
        workers: (0..WORKERS).map(|n| Worker::new(n, seed)).collect(),
        bulk: Bulk::default(),
        counting: Counting::default(),
        retained: Retained::default(),
        from_log: [(); 2].map(|()| FromLog::new(may_lose)),
        from_state: FromState::new(may_lose),
        from_snapshot: FromSnapshot::new(may_lose),
    };
    let (mut starting, mut late) = (0, 0);
    for kill in 0..kills {
        if kill > 0 && kill.is_multiple_of(WHOLE_EVERY) {
            eprintln!("  {kill} kills in {:.1?}, {} events", begun.elapsed(), clients.bulk.log.len());
        }
        let death = Death::any(&mut rng);
        match death {
            Death::Starting(after) => {
                die_starting(dir.path(), &sets, after);
                starting += 1;
                continue;
            }
            Death::Answers(_) => {}
            Death::Late(_) => late += 1,
        }
        let mut server = TestServer::start_in(dir.path(), &sets);
        clients.check(&server, kill.is_multiple_of(WHOLE_EVERY));
        clients.live(&server, death, rng.u64(..));
        assert!(!server.wait().success());
    }
    let server = TestServer::start_in(dir.path(), &sets);
    clients.check(&server, true);
    clients.finish(&server);
    // Stopped in order, nothing is skipped.
    let tail = server.tail();
    assert!(server.stop().success());
    let server = TestServer::start_in(dir.path(), &sets);
    assert_eq!(server.tail(), tail);
    clients.check(&server, true);
    assert_eq!(server.publish("other", "x"), server.tail());
    let mut counts = [0; 4];
    for worker in &clients.workers {
        let all = [worker.settled_late, worker.settled_never, worker.closed(), worker.kept_keys()];
        counts.iter_mut().zip(all).for_each(|(sum, n)| *sum += n);
    }
    eprintln!(
        "{durability}: {kills} kills ({starting} while starting, {late} late) in {:.1?}; {} events of {} batches that stayed, tail {}; \
         counted to {}, {} snapshots; settled as done, as never done; topics closed, keys: {counts:?}; followers saw {:?}, {} bundles of \
         state, {} snapshots",
        begun.elapsed(),
        clients.bulk.log.len(),
        clients.bulk.batches,
        server.tail(),
        clients.counting.count,
        clients.counting.snapshots,
        clients.from_log.each_ref().map(|follower| follower.seen.len()),
        clients.from_state.bundles,
        clients.from_snapshot.bundles,
    );
    assert!(kills < 20 || (counts[2] > 5 && counts[3] > 50), "{counts:?}");
}

fn die_starting(dir: &Path, sets: &[&str], after: Duration) {
    let mut program = Command::new(BIN);
    let mut child = serve(&mut program, ANY_PORT, dir, sets).spawn().unwrap();
    // Nothing is waited for: it is a moment by chance.
    thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
}

impl Clients {
    /// All that is known is there.
    fn check(&mut self, server: &TestServer, whole: bool) {
        self.workers.iter_mut().for_each(|worker| worker.settle_and_check(server));
        self.bulk.check(server, whole);
        self.counting.check(server);
        self.retained.check(server);
    }

    /// Until the server is killed.
    fn live(&mut self, server: &TestServer, death: Death, seed: u64) {
        let (acks, number) = (Acks::default(), AtomicU64::new(self.bulk.number));
        let (published, came) = thread::scope(|scope| {
            let (acks, number) = (&acks, &number);
            let publishers: Vec<_> =
                (0..PUBLISHERS).map(|n| scope.spawn(move || publish(server, n, number, seed ^ n, acks))).collect();
            for worker in &mut self.workers {
                scope.spawn(move || worker.work(server, acks, u64::MAX));
            }
            for follower in &mut self.from_log {
                scope.spawn(move || follower.follow(server));
            }
            scope.spawn(|| self.counting.count_on(server, seed));
            scope.spawn(|| self.retained.publish(server));
            scope.spawn(|| self.from_state.follow(server));
            scope.spawn(|| self.from_snapshot.follow(server));
            let came = match death {
                Death::Answers(enough) => acks.wait_for(enough),
                Death::Starting(after) | Death::Late(after) => {
                    thread::sleep(after);
                    true
                }
            };
            server.signal(Signal::KILL);
            let published: Vec<_> = publishers.into_iter().flat_map(|one| one.join().unwrap()).collect();
            (published, came)
        });
        assert!(came, "the answers never came: {death:?}");
        self.bulk.number = number.load(Ordering::Relaxed);
        self.bulk.tell(published);
        for follower in &mut self.from_log {
            let new = follower.take_new();
            self.bulk.tell(new);
        }
    }

    /// The subscribers catch up with a server that has nothing to do: what they have is what there is.
    fn finish(&mut self, server: &TestServer) {
        for follower in &mut self.from_log {
            follower.finish(server);
            let log: Vec<_> = self.bulk.log.iter().map(|(id, (.., data))| (*id, data)).collect();
            let seen: Vec<_> = follower.seen.iter().map(|(id, (.., data))| (*id, data)).collect();
            assert_eq!(seen.len(), log.len(), "a subscriber has not seen each event once");
            assert!(seen == log, "a subscriber has seen something else than the log");
        }
        self.from_state.finish(server);
        assert_eq!(self.from_state.state, self.bulk.state, "a subscriber's state is not the log's");
        self.from_snapshot.finish(server);
        // With few kills nobody may have counted yet.
        assert_eq!(
            self.from_snapshot.value.unwrap_or(0),
            self.counting.count,
            "a subscriber has not counted to the end"
        );
    }
}
