//! A server's lives under load on a recorded disk, with deaths between; and what its clients came to know, each thing with the length
//! that the journal had then.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::thread;

use fastrand::Rng;
use serde_json::Value;
use tempfile::TempDir;

use crate::disk::{self, Disk, Image, image_of, records};
use crate::model::json_lines;
use crate::support::{BIN, Conn, Stream, TestServer};
use crate::worker::{Acks, Fact, Worker};

const WORKERS: u64 = 4;
const PUBLISHERS: u64 = 2;

/// An event of those that nobody trims: topic, key (empty: none), data.
pub type Told = (String, String, String);

/// What somebody came to know: an event under an id.
pub struct Knew {
    pub id: u64,
    pub told: Told,
    pub known: u64,
}

/// All that was recorded.
pub struct Recording {
    pub base: Disk<'static>,
    pub journal: Vec<u8>,
    pub known: Known,
}

/// What must be found, by when.
#[derive(Default)]
pub struct Known {
    /// By worker: its name, and what it changed.
    pub workers: Vec<(String, Vec<Fact>)>,
    /// Events that were acked or delivered, each with when.
    pub events: Vec<Knew>,
    /// Every event of those topics that there ever was.
    pub log: BTreeMap<u64, Told>,
}

/// Compiles the recorder, once.
pub fn recorder() -> &'static Path {
    static BUILT: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("recorder.so");
        let source = "tests/power/recorder.c";
        let compiler = Command::new("cc")
            .args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .arg(&library)
            .args([source, "-ldl", "-lpthread"])
            .output();
        match compiler {
            Ok(output) if output.status.success() => {}
            Ok(output) => panic!("cc cannot compile {source}:\n{}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => panic!("this test compiles a recorder in C: install a C compiler as cc (apt-get install gcc libc6-dev): {error}"),
        }
        (dir, library)
    });
    path
}

/// The program under the recorder.
pub fn recorded(root: &Path, journal: &Path, kill_at: Option<u64>) -> Command {
    let mut command = Command::new(BIN);
    command.env("LD_PRELOAD", recorder()).env("RECORDER_ROOT", root).env("RECORDER_JOURNAL", journal);
    if let Some(at) = kill_at {
        command.env("RECORDER_KILL_AT", at.to_string());
    }
    command
}

pub fn length(journal: &Path) -> u64 {
    fs::metadata(journal).unwrap().len()
}

/// What a recording is to be of.
pub struct Plan {
    pub seed: u64,
    pub durability: &'static str,
    /// SIGKILLs, some of them while it starts.
    pub deaths: usize,
    /// Small events that are published first: more than 65,536 make a segment full.
    pub before: usize,
    /// Operations on the disk in one life.
    pub operations: std::ops::Range<u64>,
    /// Whether the last life, and what comes after `before`, is long enough for what goes on in the background.
    pub linger: bool,
}

/// Lives it, and checks that the journal tells all that happened to the disk.
pub fn live(plan: &Plan) -> Recording {
    let home = tempfile::tempdir().unwrap();
    let home_path = home.path().canonicalize().unwrap();
    let (root, journal) = (home_path.join("root"), home_path.join("journal"));
    fs::create_dir(&root).unwrap();
    File::create(&journal).unwrap();
    let base = Disk::of(&root);
    let mut rng = Rng::with_seed(plan.seed);
    let mut workers: Vec<Worker> = (0..WORKERS).map(|n| Worker::new(n, plan.seed)).collect();
    workers.iter_mut().for_each(|worker| worker.note_beside(&journal));
    let mut bulk = Bulk { journal: journal.clone(), number: 0, cursor: 0, knew: Vec::new() };
    let sets = [format!("durability={}", plan.durability), "heartbeat=200ms".to_owned()];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let dir = root.join("data");
    for life in 0..=plan.deaths {
        let is_last = life == plan.deaths;
        // Most starts take some 60 operations on the disk and more.
        let kill_at = match rng.u8(..3) {
            _ if is_last => None,
            0 => Some(rng.u64(1..60)),
            _ => Some(rng.u64(plan.operations.clone())),
        };
        if let Some(server) = TestServer::try_start_as(recorded(&root, &journal, kill_at), &dir, &sets) {
            one_life(server, plan, &mut workers, &mut bulk, is_last, &mut rng);
        } else {
            assert!(kill_at.is_some_and(|at| at < 60), "it does not start");
        }
        let bytes = fs::read(&journal).unwrap();
        let mut disk: Disk<'_> = base.clone();
        records(&bytes, 0).for_each(|record| disk.happens(&record));
        assert!(disk.live() == image_of(&root), "the journal does not tell all that happened to {}", root.display());
    }
    let mut log = BTreeMap::new();
    for Knew { id, told, .. } in &bulk.knew {
        let before = log.insert(*id, told.clone());
        assert!(before.is_none_or(|before| before == *told), "id {id} names two events");
    }
    let journal = fs::read(&journal).unwrap();
    let facts = workers.into_iter().map(|worker| (worker.name, worker.facts)).collect();
    Recording { base, journal, known: Known { workers: facts, events: bulk.knew, log } }
}

/// A start on what a cut has left.
pub struct Second {
    pub base: Disk<'static>,
    pub journal: Vec<u8>,
    /// How long the journal was when it served; nothing where it died before.
    pub served: Option<u64>,
    pub knew: Vec<Knew>,
    /// The last that was published, where nobody was told whether it happened.
    pub asked: Option<Told>,
}

/// Starts the server on a disk that a cut has left, and has it publish a little.
pub fn restart(image: &Image, kill_at: Option<u64>, rng: &mut Rng) -> Second {
    let home = tempfile::tempdir().unwrap();
    let home_path = home.path().canonicalize().unwrap();
    let (root, journal) = (home_path.join("root"), home_path.join("journal"));
    fs::create_dir(&root).unwrap();
    disk::write(image, &root);
    File::create(&journal).unwrap();
    let base = Disk::of(&root);
    let (mut served, mut knew, mut asked) = (None, Vec::new(), None);
    if let Some(mut server) = TestServer::try_start_as(recorded(&root, &journal, kill_at), &root.join("data"), &[]) {
        // Whoever asks now is told what was found.
        served = Some(length(&journal));
        let mut conn = Conn::connect(server.addr);
        for n in 0..rng.u64(1..40) {
            let Ok(conn) = &mut conn else { break };
            let batch = [("b.0".to_owned(), format!("k{}", n % 3), format!("again/{n}/0/1/"))];
            let Ok(acked) = send(conn, &batch, &journal) else {
                let [told] = batch;
                asked = Some(told);
                break;
            };
            knew.extend(acked);
        }
        server.signal(rustix::process::Signal::TERM);
        server.wait();
    }
    Second { base, journal: fs::read(&journal).unwrap(), served, knew, asked }
}

fn one_life(
    mut server: TestServer,
    plan: &Plan,
    workers: &mut [Worker],
    bulk: &mut Bulk,
    is_last: bool,
    rng: &mut Rng,
) {
    workers.iter_mut().for_each(|worker| worker.settle_and_check(&server));
    bulk.look(&server);
    if bulk.number == 0 {
        bulk.fill(&server, plan.before);
        if plan.linger && plan.before > 0 {
            // While nobody else writes, so that what is written can be told from the rest.
            rounds_of_the_janitor(&server);
        }
    }
    let acks = Acks::default();
    let most = if is_last { 150 } else { u64::MAX };
    let (journal, number) = (bulk.journal.clone(), bulk.number);
    let cursor = bulk.cursor;
    let published_seed = rng.u64(..);
    let (published, seen) = thread::scope(|scope| {
        let (server, acks, journal) = (&server, &acks, &journal);
        let follower = (!is_last).then(|| scope.spawn(move || follow(server, cursor, journal)));
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|n| scope.spawn(move || publish(server, n, number, published_seed + n, journal, most)))
            .collect();
        let working: Vec<_> =
            workers.iter_mut().map(|worker| scope.spawn(move || worker.work(server, acks, most))).collect();
        working.into_iter().for_each(|worker| worker.join().unwrap());
        let published: Vec<_> = publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect();
        (published, follower.map(|follower| follower.join().unwrap()).unwrap_or_default())
    });
    bulk.number += 1_000_000;
    bulk.knew.extend(published);
    bulk.cursor = seen.last().map_or(bulk.cursor, |knew| knew.id);
    bulk.knew.extend(seen);
    if is_last {
        bulk.look(&server);
        if plan.linger {
            rounds_of_the_janitor(&server);
            bulk.more_after(&server);
        }
        assert!(server.stop().success());
    } else {
        assert!(!server.wait().success());
    }
}

/// A full segment is sealed in the first. The wait is for an event that never comes.
fn rounds_of_the_janitor(server: &TestServer) {
    let page = server.get("/topics/none?wait=2s", &[("Accept", "application/json")]);
    assert_eq!(page.status, 200, "{page:?}");
}

/// The topics that nobody trims.
struct Bulk {
    journal: PathBuf,
    number: u64,
    cursor: u64,
    knew: Vec<Knew>,
}

fn text(event: &Value, member: &str) -> String {
    event.get(member).map_or("", |value| value.as_str().unwrap()).to_owned()
}

fn told(event: &Value) -> Told {
    (text(event, "topic"), text(event, "key"), text(event, "data"))
}

impl Bulk {
    /// Reads all of it: from here on it is known.
    fn look(&mut self, server: &TestServer) {
        let events = server.everything("/topics/b.**");
        let known = length(&self.journal);
        self.knew.extend(events.iter().map(|event| Knew {
            id: event["id"].as_u64().unwrap(),
            told: told(event),
            known,
        }));
    }

    fn fill(&mut self, server: &TestServer, events: usize) {
        let mut conn = server.connect();
        for (n, some) in (0..events).collect::<Vec<_>>().chunks(9000).enumerate() {
            let batch: Vec<Told> = (0..some.len())
                .map(|at| {
                    // What is rare is found by its postings alone; of what is not, the log itself is read.
                    let topic = if at % 4000 == 7 { "b.rare".to_owned() } else { format!("b.{}", at % 3) };
                    (topic, String::new(), format!("fill/{n}/{at}/{}/", some.len()))
                })
                .collect();
            self.knew.extend(send(&mut conn, &batch, &self.journal).expect("it goes on"));
        }
    }

    fn more_after(&mut self, server: &TestServer) {
        let batch = [("b.0".to_owned(), "k0".to_owned(), "after/0/0/1/".to_owned())];
        self.knew.extend(send(&mut server.connect(), &batch, &self.journal).expect("it goes on"));
    }
}

/// Publishes one batch, and gives what is known when it is acked.
fn send(conn: &mut Conn, batch: &[Told], journal: &Path) -> io::Result<Vec<Knew>> {
    let body = json_lines(batch.iter().map(|(topic, key, data)| (Some(topic.as_str()), key.as_str(), data.as_str())));
    let answer = conn.ask("POST", "/topics", &[("Content-Type", "application/x-ndjson")], body.as_bytes())?;
    let known = length(journal);
    assert_eq!(answer.status, 201, "{answer:?}");
    let first = answer.json()["first"].as_u64().unwrap();
    Ok((first..).zip(batch).map(|(id, told)| Knew { id, told: told.clone(), known }).collect())
}

/// Publishes until the server is gone, at most so often. Data names its publisher, its place among that publisher's, its place in its
/// batch, and how many that has.
fn publish(server: &TestServer, publisher: u64, from: u64, seed: u64, journal: &Path, most: u64) -> Vec<Knew> {
    let mut knew = Vec::new();
    let Ok(mut conn) = Conn::connect(server.addr) else { return knew };
    let mut rng = Rng::with_seed(seed);
    for n in from..from.saturating_add(most) {
        let count = match rng.u8(..40) {
            0 => rng.usize(100..800),
            1..20 => 1,
            _ => rng.usize(1..30),
        };
        let padding = "x".repeat(rng.usize(..400));
        let batch: Vec<Told> = (0..count)
            .map(|at| {
                let key = if rng.bool() { String::new() } else { format!("k{}", rng.u8(..9)) };
                (format!("b.{}", rng.u8(..6)), key, format!("{publisher}/{n}/{at}/{count}/{padding}"))
            })
            .collect();
        match send(&mut conn, &batch, journal) {
            Ok(acked) => knew.extend(acked),
            Err(_) => break,
        }
    }
    knew
}

/// Follows until the server is gone.
fn follow(server: &TestServer, cursor: u64, journal: &Path) -> Vec<Knew> {
    let mut knew = Vec::new();
    let id = cursor.to_string();
    let Ok(mut stream) = Stream::open(server.addr, "/topics/b.**?envelope=json", &[("Last-Event-ID", &id)]) else {
        return knew;
    };
    let mut last = cursor;
    while let Some(event) = stream.next() {
        if event.event.is_empty() {
            assert!(event.id > last, "{} after {last}", event.id);
            last = event.id;
            let known = length(journal);
            knew.push(Knew { id: event.id, told: told(&event.json()), known });
        }
    }
    knew
}
