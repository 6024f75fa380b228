//! Deliveries: below, near and beyond what the machine can do.

use crate::run::{Measure, Run};
use crate::servers::Who;

/// nchan is told beside the others, not judged by: fewer pairs will do.
const PAIRS_OF_NCHAN: usize = 3;

pub fn below(run: &mut Run) -> Result<(), String> {
    let (subscribers, events) = (run.scaled(1_000, 20).to_string(), run.scaled(400, 50).to_string());
    let args = ["--subscribers", &subscribers, "--events", &events, "--rate", "100", "--size", "128"];
    let all = run.contenders(&[Who::Tidelog, Who::Limit], &[Who::Crate, Who::Nchan]);
    let of_limit = Measure::ratio("server CPU per delivery", "µs", "limit");
    let pairs = run.pairs(10);
    for pair in 0..pairs {
        let now: Vec<Who> = all.iter().copied().filter(|who| *who != Who::Nchan || pair < PAIRS_OF_NCHAN).collect();
        let cpu = run.turns(pair, &now, |run, who| {
            run.step(&format!("pair {} of {pairs}, {}", pair + 1, who.name()));
            run.load(who, "fanout", &args)?.number("/server_cpu_us_per_delivery")
        })?;
        for (who, took) in now.into_iter().zip(&cpu) {
            match who {
                Who::Limit | Who::Echo => {}
                Who::Tidelog => run.note(&of_limit.clone().at_most(1.10), *took, Some(cpu[1])),
                Who::Crate | Who::Nchan => run.note(&of_limit.clone().of(who), *took, Some(cpu[1])),
            }
        }
    }
    Ok(())
}

pub fn near(run: &mut Run) -> Result<(), String> {
    let subscribers = run.scaled(1_000, 20).to_string();
    let events = run.scaled(20_000, 2_000).to_string();
    // Four publishers keep to the rate also while an acknowledgement takes longer.
    let args =
        ["--subscribers", &subscribers, "--events", &events, "--rate", "2000", "--size", "128", "--publishers", "4"];
    let all = run.contenders(&[Who::Tidelog], &[Who::Crate]);
    let pairs = run.pairs(10);
    for pair in 0..pairs {
        let seen = run.turns(pair, &all, |run, who| {
            run.step(&format!("pair {} of {pairs}, {}", pair + 1, who.name()));
            let load = run.load(who, "fanout", &args)?;
            let share = load.number("/deliveries")? / load.number("/expected")?;
            let rate = load.number("/events_per_second")?;
            Ok((share, load.number("/latency_ms/p99")?, load.number("/server_cpu_us_per_delivery")?, rate))
        })?;
        let (share, p99, cpu, rate) = seen[0];
        run.note(&Measure::value("events taken", "/s"), rate, None);
        run.note(&Measure::value("share of the events delivered", "").at_least(1.0), share, None);
        if let Some((their_share, their_p99, their_cpu, their_rate)) = seen.get(1).copied() {
            run.note(&Measure::ratio("delivery p99", "ms", "the crate").at_most(1.0), p99, Some(their_p99));
            run.note(&Measure::ratio("server CPU per delivery", "µs", "the crate").at_most(0.85), cpu, Some(their_cpu));
            run.note(&Measure::value("share of the events delivered", "").of(Who::Crate), their_share, None);
            run.note(&Measure::value("events taken", "/s").of(Who::Crate), their_rate, None);
        }
    }
    Ok(())
}

pub fn beyond(run: &mut Run) -> Result<(), String> {
    let (subscribers, events) = (run.scaled(1_000, 20).to_string(), run.scaled(10_000, 1_000).to_string());
    let all = run.contenders(&[Who::Tidelog], &[Who::Crate]);
    let pairs = run.pairs(3);
    for (publishers, what) in [("1", "1 publisher"), ("16", "16 publishers")] {
        let args = ["--subscribers", &subscribers, "--events", &events, "--size", "128", "--publishers", publishers];
        for pair in 0..pairs {
            let rates = run.turns(pair, &all, |run, who| {
                run.step(&format!("{what}, pair {} of {pairs}, {}", pair + 1, who.name()));
                run.load(who, "fanout", &args)?.number("/deliveries_per_second")
            })?;
            if let [ours, theirs] = rates[..] {
                run.note(&Measure::ratio(what, "deliveries/s", "the crate").at_least(1.5), ours, Some(theirs));
            }
        }
    }
    Ok(())
}
