//! Publish to receive, beside the least that it can take: one fdatasync and one echo over loopback.

use crate::echo::{MESSAGE_BYTES, measure, percentile};
use crate::run::{Measure, Run};
use crate::servers::{Server, Who};

pub fn run(run: &mut Run) -> Result<(), String> {
    let rounds = run.scaled(1_000, 100);
    let pairs = run.pairs(3);
    let beside = "fdatasync and echo";
    for pair in 0..pairs {
        let took = run.turns(pair, &[Who::Tidelog, Who::Echo], |run, who| {
            run.step(&format!("pair {} of {pairs}, {}", pair + 1, who.name()));
            if who == Who::Echo {
                let echo = Server::start(who)?;
                let took = measure(echo.address, rounds).map_err(|e| format!("the echo: {e}"))?;
                return Ok((percentile(&took, 50), percentile(&took, 99)));
            }
            let (rounds, size) = (rounds.to_string(), MESSAGE_BYTES.to_string());
            let load = run.load(who, "echo", &["--rounds", &rounds, "--size", &size])?;
            Ok((load.number("/latency_ms/p50")?, load.number("/latency_ms/p99")?))
        })?;
        run.note(&Measure::difference("p50", "ms", beside).at_most(0.2), took[0].0, Some(took[1].0));
        run.note(&Measure::difference("p99", "ms", beside).at_most(1.0), took[0].1, Some(took[1].1));
    }
    Ok(())
}
