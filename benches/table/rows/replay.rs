//! Replay: everything from the beginning of a topic, beside RocksDB's own iteration over the same events, each under a key.

use std::path::Path;
use std::time::Instant;

use tempfile::TempDir;

use crate::common;
use crate::load::Load;
use crate::machine;
use crate::peers;
use crate::run::{Measure, Run};
use crate::servers::{Server, Who, scratch, temp_dir};

/// As the load generator fills it, and as it names the one topic that it then fills.
const PREFIX: &str = "replayed";
const TOPIC: &str = "replayed.0";

/// The crate makes one message of a post, so that there it is one event a post.
const FILLERS: &str = "64";

const SIZE: &str = "256";

/// Who replays: a server, or RocksDB by itself.
#[derive(Clone, Copy, PartialEq)]
enum Reader {
    Server(Who),
    RocksDb,
}

impl Reader {
    fn name(self) -> &'static str {
        match self {
            Self::Server(who) => who.name(),
            Self::RocksDb => "RocksDB",
        }
    }
}

/// Events a second, with caches dropped and the second time.
type Rates = [f64; 2];

/// A log of `events`, made once for the row, as the load generator fills it.
fn filled(run: &mut Run, who: Who, events: usize) -> Result<TempDir, String> {
    run.step(&format!("filling {} with {events} events", who.name()));
    let dir = temp_dir()?;
    let server = Server::on(who, dir.path())?;
    let events = events.to_string();
    let mut args = vec!["--topic", PREFIX, "--events", &events, "--size", SIZE];
    args.extend(if who == Who::Tidelog {
        ["--publishers", "4", "--batch", "500"].as_slice()
    } else {
        &["--publishers", FILLERS]
    });
    run.load_on(&server, "publish", &args)?;
    server.stop()?;
    Ok(dir)
}

pub fn one(run: &mut Run) -> Result<(), String> {
    let events = run.scaled(1_000_000, 10_000);
    let ours = filled(run, Who::Tidelog, events)?;
    let theirs = if run.has(Who::Crate) { Some(filled(run, Who::Crate, events)?) } else { None };
    run.step("copying its events to a bare RocksDB");
    let bare = common::Iterated::copy_of(&ours.path().join("data"), scratch());
    let mut all = vec![(Reader::Server(Who::Tidelog), ours.path()), (Reader::RocksDb, bare.dir())];
    all.extend(theirs.as_ref().map(|dir| (Reader::Server(Who::Crate), dir.path())));
    let pairs = run.pairs(3);
    for pair in 0..pairs {
        let rates = run.turns(pair, &all, |run, (reader, dir)| {
            run.step(&format!("pair {} of {pairs}, {}", pair + 1, reader.name()));
            match reader {
                Reader::Server(who) => served(run, who, dir, events),
                Reader::RocksDb => iterated(run, &bare, events),
            }
        })?;
        for (at, what) in ["caches dropped", "warm"].into_iter().enumerate() {
            let measure = Measure::ratio(what, "events/s", "RocksDB's iteration").at_least(0.6);
            run.note(&measure, rates[0][at], Some(rates[1][at]));
            if let Some(theirs) = rates.get(2) {
                let measure = Measure::ratio(what, "events/s", "the crate").at_least(2.0);
                run.note(&measure, rates[0][at], Some(theirs[at]));
            }
        }
    }
    Ok(())
}

/// A server that just started, with caches dropped, and the same once more.
fn served(run: &mut Run, who: Who, dir: &Path, events: usize) -> Result<Rates, String> {
    let server = Server::on(who, dir)?;
    drop_caches(run, dir)?;
    let mut rate = || replay(run, &server, events, 1)?.number("/events_per_second");
    let rates = [rate()?, rate()?];
    server.stop()?;
    Ok(rates)
}

fn replay(run: &mut Run, server: &Server, events: usize, connections: usize) -> Result<Load, String> {
    let (count, connections) = (events.to_string(), connections.to_string());
    let mut args = vec!["--events", &count, "--size", SIZE, "--connections", &connections];
    if server.who == Who::Crate {
        args.extend(["--subscribe-path", peers::FROM_THE_BEGINNING, "--publishers", FILLERS, "--filled"]);
    } else {
        args.extend(["--topic", TOPIC]);
    }
    let load = run.load_on(server, "replay", &args)?;
    // What the generator did not fill itself, it cannot count.
    let got = load.number("/events")?;
    #[allow(clippy::cast_precision_loss)]
    if (got - events as f64).abs() > 0.5 {
        let short = format!("{} gave {got} of {events} events", server.who.name());
        if server.who == Who::Tidelog {
            return Err(short);
        }
        run.remark(&format!("Once or more, {short}."));
    }
    Ok(load)
}

/// RocksDB by itself.
fn iterated(run: &mut Run, bare: &common::Iterated, events: usize) -> Result<Rates, String> {
    drop_caches(run, bare.dir())?;
    let rate = || {
        let begun = Instant::now();
        let (count, _) = bare.iterate();
        let took = begun.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss)]
        if count == events as u64 {
            Ok(count as f64 / took)
        } else {
            Err(format!("RocksDB found {count} records and should have found {events}"))
        }
    };
    Ok([rate()?, rate()?])
}

fn drop_caches(run: &mut Run, dir: &Path) -> Result<(), String> {
    if let Some(how) = machine::drop_caches(dir)? {
        run.remark(how);
    }
    Ok(())
}

pub fn many(run: &mut Run) -> Result<(), String> {
    let (events, connections) = (run.scaled(1_000_000, 10_000), 50);
    let log = filled(run, Who::Tidelog, events)?;
    let pairs = run.pairs(10);
    let measure = Measure::ratio("server CPU per event", "µs", "one replay").at_most(0.6);
    for pair in 0..pairs {
        let seen = run.turns(pair, &[connections, 1], |run, connections| {
            run.step(&format!("pair {} of {pairs}, {connections} at once", pair + 1));
            // A server of its own for each, as warm as the other: what it reads is in the kernel's cache.
            let server = Server::on(Who::Tidelog, log.path())?;
            let load = replay(run, &server, events, connections)?;
            server.stop()?;
            #[allow(clippy::cast_precision_loss)]
            Ok((load.number("/complete")? / connections as f64, load.number("/server_cpu_us_per_event")?))
        })?;
        run.note(&Measure::value("share of the 50 that were not cut", "").at_least(1.0), seen[0].0, None);
        run.note(&measure, seen[0].1, Some(seen[1].1));
    }
    Ok(())
}
