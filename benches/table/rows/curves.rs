//! What a delivery costs over the number of subscribers and over the rate, for the plots.

use crate::run::Run;
use crate::servers::Who;

/// How long each place is measured: long enough for CPU that is told in hundredths of a second.
const SECONDS: usize = 6;

/// Faster than so many events a second to a thousand subscribers, one write for each delivery is more than two cores can do: `limit` then
/// only takes longer, at the same price.
const LIMIT_RATE: usize = 300;

/// The plots' keys.
pub const SUBSCRIBERS: &str = "subscribers";
pub const RATES: &str = "rates";

pub fn run(run: &mut Run) -> Result<(), String> {
    let all = run.contenders(&[Who::Tidelog, Who::Limit], &[Who::Crate]);
    let rounds = run.pairs(1);
    for round in 0..rounds {
        for subscribers in [30, 100, 300, 1_000, 2_000] {
            place(run, round, &all, SUBSCRIBERS, subscribers, 50, subscribers)?;
        }
        for rate in [10, 30, 100, 300, 1_000, 2_000] {
            let subscribers = run.scaled(1_000, 20);
            place(run, round, &all, RATES, subscribers, rate, rate)?;
        }
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss)]
fn place(
    run: &mut Run,
    round: usize,
    all: &[Who],
    plot: &str,
    subscribers: usize,
    rate: usize,
    x: usize,
) -> Result<(), String> {
    let (n, events, per_second) =
        (subscribers.to_string(), run.scaled(rate * SECONDS, 20).to_string(), rate.to_string());
    let args = ["--subscribers", &n, "--events", &events, "--rate", &per_second, "--size", "128", "--publishers", "4"];
    let all: Vec<Who> = all.iter().copied().filter(|who| *who != Who::Limit || rate <= LIMIT_RATE).collect();
    let cpu = run.turns(round, &all, |run, who| {
        run.step(&format!("{n} subscribers, {rate} events/s, {}", who.name()));
        run.load(who, "fanout", &args)?.number("/server_cpu_us_per_delivery")
    })?;
    for (who, cpu) in all.iter().zip(cpu) {
        run.point(plot, who.name(), x as f64, cpu);
    }
    Ok(())
}
