//! Logs to resume in, by size: made once through the HTTP interface and kept in the target directory, for the largest takes a minute or two.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tidelog::client::Client;

use crate::run::Run;
use crate::servers::{Server, Who, scratch};

/// What the logs hold: another layout gets other directories.
const LAYOUT: &str = "resume-4";

/// Half of all events.
pub const DENSE: &str = "dense";

/// One event in so many is on the rare topic, and one on any of those that the wildcard finds.
const RARE_EVERY: usize = 10_000;
pub const RARE: &str = "rare";

/// The other half spreads over so many topics `u0.news`, `u1.news` and so on, as far as there are events for them.
const TOPICS: usize = 100_000;

/// The wildcard has to be resolved against all of those and finds [`ALARMS`] of its own.
pub const WILDCARD: &str = "*.alarm";
const ALARMS: usize = 20;

/// So many different texts that none comes twice in a block of the store: the log is to be as large as one of real events.
const TEXTS: usize = 4_096;
const EVENT_BYTES: usize = 96;

/// The server's default of `limits.batch_events_max`.
const BATCH: usize = 10_000;

/// A batch of ten thousand new topics takes a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// The directory of a log of `events`; what lies there unfinished is made anew.
pub fn resumable(run: &mut Run, events: usize) -> Result<PathBuf, String> {
    let dir = scratch().join("kept").join(format!("{LAYOUT}-{events}"));
    let complete = dir.join("complete");
    if complete.exists() {
        return Ok(dir);
    }
    if dir.exists() {
        fs::remove_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    }
    run.step(&format!("making a log of {events} events, which is kept"));
    let server = Server::on(Who::Tidelog, &dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(fill(run, &server, events))?;
    server.stop()?;
    fs::write(&complete, "").map_err(|e| format!("{}: {e}", complete.display()))?;
    Ok(dir)
}

async fn fill(run: &Run, server: &Server, events: usize) -> Result<(), String> {
    let client = Client::new(&server.url()).map_err(|e| e.to_string())?;
    let texts: Vec<String> =
        (0..TEXTS).map(|seed| crate::common::text(EVENT_BYTES, seed as u64).replace('"', "'")).collect();
    for first in (0..events).step_by(BATCH) {
        let mut lines = String::with_capacity(BATCH * 160);
        for at in first..events.min(first + BATCH) {
            let (topic, data) = (topic(at, events), &texts[at % TEXTS]);
            writeln!(lines, r#"{{"topic":"{topic}","data":"{data}"}}"#).map_err(|e| e.to_string())?;
        }
        let sent = tokio::time::timeout(PATIENCE, client.publish_lines(None, lines, None)).await;
        sent.map_err(|_| format!("no answer within {PATIENCE:?}"))?.map_err(|e| e.to_string())?;
        if (first / BATCH) % 100 == 99 {
            run.step(&format!("{} of {events} events", first + BATCH));
        }
    }
    Ok(())
}

/// The topic of the event at `at`. The last three are one of each that is sought, so that there is one after every place before.
fn topic(at: usize, events: usize) -> String {
    match (events - at, at % RARE_EVERY) {
        (3, _) => DENSE.into(),
        (2, _) => RARE.into(),
        (1, _) => "u0.alarm".into(),
        (_, 5_001) => RARE.into(),
        (_, 5_003) => format!("u{}.alarm", at / RARE_EVERY % ALARMS),
        (_, even) if even % 2 == 0 => DENSE.into(),
        // Neighbours differ: 7,919 is prime.
        _ => format!("u{}.news", at / 2 * 7_919 % TOPICS),
    }
}
