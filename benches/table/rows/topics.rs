//! Many topics with a subscriber each, published to one by one: what is elsewhere must cost nothing.

use crate::run::{Measure, Run};
use crate::servers::Who;

pub fn run(run: &mut Run) -> Result<(), String> {
    let (many, events) = (run.scaled(10_000, 200), run.scaled(10_000, 500));
    let pairs = run.pairs(10);
    let measure = Measure::ratio("server CPU per publish", "µs", "10 subscribers").at_most(1.2);
    for pair in 0..pairs {
        let cpu = run.turns(pair, &[many, 10], |run, subscribers| {
            run.step(&format!("pair {} of {pairs}, {subscribers} subscribers", pair + 1));
            let (n, events) = (subscribers.to_string(), events.to_string());
            let args = ["--subscribers", &n, "--topics", &n, "--events", &events, "--size", "128"];
            let load = run.load(Who::Tidelog, "fanout", &args)?;
            Ok(load.number("/server_cpu_seconds")? * 1e6 / load.number("/events")?)
        })?;
        run.note(&measure, cpu[0], Some(cpu[1]));
    }
    Ok(())
}
