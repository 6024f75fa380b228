//! A herd: everybody reconnects at once.

use crate::peers;
use crate::run::{Measure, Run};
use crate::servers::{Server, Who};

/// Publishes a second, before and meanwhile: enough of them for a p99 of the second or two that it takes.
const TRICKLE: &str = "100";

pub fn run(run: &mut Run) -> Result<(), String> {
    let subscribers = run.scaled(10_000, 200).to_string();
    let all = run.contenders(&[Who::Tidelog], &[Who::Crate]);
    let pairs = run.pairs(3);
    for pair in 0..pairs {
        let seen = run.turns(pair, &all, |run, who| {
            run.step(&format!("pair {} of {pairs}, {}", pair + 1, who.name()));
            let server = Server::start(who)?;
            let mut args = vec!["--subscribers", &subscribers, "--behind", "100", "--trickle", TRICKLE];
            if who == Who::Crate {
                // All that its stream holds is what they missed.
                args.extend(["--behind-path", peers::FROM_THE_BEGINNING]);
            }
            let load = run.load_on(&server, "herd", &args)?;
            Ok((load.number("/live_seconds")?, load.number("/publish_ms/p99")?, load.number("/quiet_publish_ms/p99")?))
        })?;
        let (live, herd, quiet) = seen[0];
        if let Some((their_live, their_herd, their_quiet)) = seen.get(1).copied() {
            run.note(&Measure::ratio("until all are live", "s", "the crate").at_most(0.5), live, Some(their_live));
            run.note(
                &Measure::ratio("publish p99 meanwhile", "ms", "quiet").of(Who::Crate),
                their_herd,
                Some(their_quiet),
            );
        }
        run.note(&Measure::ratio("publish p99 meanwhile", "ms", "quiet").at_most(3.0), herd, Some(quiet));
    }
    Ok(())
}
