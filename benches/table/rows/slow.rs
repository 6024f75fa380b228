//! Slow readers among quick ones: they must harm nobody.

use crate::load::Load;
use crate::run::{Measure, Run};
use crate::servers::Who;

/// Events of 16 KiB a second, to all of them some 650 MB: below what two cores can deliver, or the times would be those of queues.
const RATE: &str = "40";

pub fn run(run: &mut Run) -> Result<(), String> {
    let subscribers = run.scaled(1_000, 50).to_string();
    let bytes = format!("{}KB", run.scaled(50_000, 2_000));
    let args = |pace| {
        ["--subscribers", &subscribers, "--slow", "10", "--slow-rate", pace, "--bytes", &bytes, "--rate", RATE].to_vec()
    };
    let runs = run.pairs(3);
    for at in 0..runs {
        run.step(&format!("run {} of {runs}, without and with them", at + 1));
        let load = run.load(Who::Tidelog, "slow", &args("1KB"))?;
        for (what, path) in [("publish p99", "publish"), ("quick delivery p99", "latency")] {
            let measure = Measure::ratio(what, "ms", "without them").at_most(1.1);
            let p99 = |phase: &str| load.number(&format!("/{path}_{phase}_ms/p99"));
            run.note(&measure, p99("with")?, Some(p99("without")?));
        }
        // What is published twice fills memtables and caches too, whoever reads it: ten that are not slow tell how much.
        run.step(&format!("run {} of {runs}, with quick ones in their place", at + 1));
        let quick = run.load(Who::Tidelog, "slow", &args("100MB"))?;
        let grown = |load: &Load| load.number("/server_rss_bytes_per_slow");
        let more = grown(&load)? - grown(&quick)?;
        run.note(&Measure::value("memory for each slow one", "MB").at_most(1.0), more / 1e6, None);
    }
    Ok(())
}
