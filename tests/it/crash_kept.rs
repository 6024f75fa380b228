//! What is kept beside the events, through one kill after another on one directory: the state, snapshots, what was closed, and the
//! answers to publishes under their keys.
//!
//! Each worker has topics of its own and asks for one thing at a time, so it knows what they hold, but for what it had no answer to
//! when the server was killed: that may have happened or not, as a whole, and is settled at the next start.

mod model;
mod worker;

use std::thread;

use fastrand::Rng;
use rustix::process::Signal;

use self::worker::{Acks, Worker};
use crate::support::TestServer;

const SEED: u64 = 77;
const WORKERS: u64 = 5;
const ROUNDS: u64 = 20;

#[test]
fn what_was_acked_is_kept_through_kills() {
    killed_again_and_again(SEED, &[]);
}

#[test]
fn what_was_acked_is_kept_through_kills_where_it_is_left_to_the_system() {
    killed_again_and_again(SEED + 1, &["durability=os"]);
}

fn killed_again_and_again(seed: u64, sets: &[&str]) {
    eprintln!("the seed is {seed}");
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng::with_seed(seed);
    let mut workers: Vec<Worker> = (0..WORKERS).map(|n| Worker::new(n, seed)).collect();
    for _ in 0..ROUNDS {
        let mut server = TestServer::start_in(dir.path(), sets);
        workers.iter_mut().for_each(|worker| worker.settle_and_check(&server));
        let acks = Acks::default();
        let enough = rng.u64(..250);
        thread::scope(|scope| {
            let (server, acks) = (&server, &acks);
            let working: Vec<_> =
                workers.iter_mut().map(|worker| scope.spawn(move || worker.work(server, acks))).collect();
            let came = acks.wait_for(enough);
            server.signal(Signal::KILL);
            working.into_iter().for_each(|worker| worker.join().unwrap());
            assert!(came, "{enough} acks never came");
        });
        assert!(!server.wait().success());
    }
    let server = TestServer::start_in(dir.path(), sets);
    workers.iter_mut().for_each(|worker| worker.settle_and_check(&server));
    assert!(server.stop().success());
    let server = TestServer::start_in(dir.path(), sets);
    workers.iter_mut().for_each(|worker| worker.settle_and_check(&server));
    // The seeds reach what is to be tested.
    let mut counts = [0; 4];
    for worker in &workers {
        let all = [worker.settled_late, worker.settled_never, worker.closed(), worker.kept_keys()];
        counts.iter_mut().zip(all).for_each(|(sum, n)| *sum += n);
    }
    eprintln!("settled as done, as never done; topics closed, keys: {counts:?}");
    assert!(counts[2] > 5 && counts[3] > 50, "{counts:?}");
}
