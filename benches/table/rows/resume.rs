//! From a reconnect to its first event, by how long the log is.

use crate::logs::{DENSE, RARE, WILDCARD, resumable};
use crate::machine;
use crate::run::{Measure, Run};
use crate::servers::{Server, Who};

/// The plot's key.
pub const PLOT: &str = "resume";

const SMALL: usize = 10_000;

pub fn run(run: &mut Run) -> Result<(), String> {
    let large = [run.scaled(1_000_000, 100_000), run.scaled(10_000_000, 300_000)];
    // The log of a hundred thousand is a place on the plot.
    let sizes = [SMALL, 100_000, large[0], large[1]];
    let logs = sizes.map(|events| resumable(run, events).map(|dir| (events, dir)));
    let logs = logs.into_iter().collect::<Result<Vec<_>, _>>()?;
    // The p99 of a thousand is the eleventh slowest; of two hundred it would be the third, so one slip of the machine more or less.
    let (cold_resumes, warm_resumes) = (run.scaled(200, 30).to_string(), run.scaled(1_000, 30).to_string());
    let ways = [
        ("a dense topic", ["--topic", DENSE]),
        ("a topic with 1 event in 10,000", ["--topic", RARE]),
        ("a rare wildcard over 100,000 topics", ["--pattern", WILDCARD]),
    ];
    let rounds = run.pairs(3);
    let order: Vec<usize> = (0..logs.len()).collect();
    for round in 0..rounds {
        let seen = run.turns(round, &order, |run, at| {
            let (events, dir) = &logs[at];
            run.step(&format!("round {} of {rounds}, {events} events", round + 1));
            let server = Server::on(Who::Tidelog, dir)?;
            let mut p99 = Vec::new();
            for (what, by) in &ways {
                // First on a cold cache, so that its slowest resumes read from the disk: told, without a goal, as what a disk takes
                // for a read is its own. Then again, at other places, with the log in the kernel's memory: else those would read from
                // the disk just as well, and only the small log, of which nothing is left to read, would not.
                if let Some(how) = machine::drop_caches(dir)? {
                    run.remark(how);
                }
                let resume = |run: &mut Run, resumes: &str| {
                    let load = run.load_on(&server, "resume", &[by, &["--resumes", resumes][..]].concat())?;
                    load.number("/first_event_ms/p99")
                };
                let cold = resume(run, &cold_resumes)?;
                machine::read_through(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
                let took = resume(run, &warm_resumes)?;
                #[allow(clippy::cast_precision_loss)]
                run.point(PLOT, what, *events as f64, took);
                p99.push((cold, took));
            }
            server.stop()?;
            Ok(p99)
        })?;
        for (at, events) in [(2, "1 million"), (3, "10 million")] {
            for (way, (what, _)) in ways.iter().enumerate() {
                let name = format!("p99 in {events} events, {what}");
                let ((cold, ours), (_, small)) = (seen[at][way], seen[0][way]);
                run.note(&Measure::ratio(name.clone(), "ms", "10 thousand events").at_most(1.5), ours, Some(small));
                run.note(&Measure::value(name.clone(), "ms").at_most(5.0), ours, None);
                run.note(&Measure::value(format!("{name}, after caches were dropped"), "ms"), cold, None);
            }
        }
    }
    run.remark("A log of 10 thousand events holds 5,000 of the 100,000 topics: no more fit in.");
    Ok(())
}
