//! What an idle subscriber holds of memory.

use crate::run::{Measure, Run};
use crate::servers::Who;

const KIB: f64 = 1024.0;

pub fn run(run: &mut Run) -> Result<(), String> {
    let subscribers = run.scaled(10_000, 500).to_string();
    let each = |more: &[&'static str]| [&["--hold", "2s"], more].concat();
    let measure = |what: &str, most: f64| Measure::value(what, "B").at_most(most);
    let ways = [
        (measure("HTTP/1.1, one filter", 256.0), each(&[]), &[Who::Tidelog, Who::Crate, Who::Nchan][..]),
        (measure("HTTP/1.1, a filter each", KIB), each(&["--topics", "10000"]), &[Who::Tidelog][..]),
        (measure("a stream of HTTP/2, 100 on a connection", 4.0 * KIB), each(&["--http2", "100"]), &[Who::Tidelog][..]),
    ];
    run.remark("Of what is resident, what files hold as well does not count: the program's code, which is loaded when it first runs.");
    let pairs = run.pairs(3);
    for (measure, args, all) in ways {
        let all = run.contenders(&[Who::Tidelog], &all[1..]);
        let args = [&["--subscribers", &subscribers], &args[..]].concat();
        for pair in 0..pairs {
            let bytes = run.turns(pair, &all, |run, who| {
                run.step(&format!("{}, run {} of {pairs}", who.name(), pair + 1));
                run.load(who, "idle", &args)?.number("/bytes_per_subscriber")
            })?;
            for (who, bytes) in all.iter().zip(bytes) {
                let measure = if *who == Who::Tidelog { measure.clone() } else { measure.clone().of(*who) };
                run.note(&measure, bytes, None);
            }
        }
    }
    Ok(())
}
