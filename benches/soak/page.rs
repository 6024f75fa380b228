//! docs/soak.md and its plots.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::PathBuf;

use crate::plot::{Plot, Scale, Series, number};
use crate::publishers;
use crate::samples::Sample;
use crate::verdict::Verdict;

const MIB: f64 = 1024.0 * 1024.0;

/// A plot: its file, title, axis, and what it shows.
type Shown = (&'static str, &'static str, &'static str, &'static [(&'static str, fn(&Sample) -> f64)]);

const PLOTS: [Shown; 4] = [
    ("soak-memory", "Memory of the server", "MiB", &[("resident, without files", |s| s.looked.memory / MIB)]),
    ("soak-files", "File descriptors of the server", "open files", &[("open files", |s| s.looked.files)]),
    ("soak-disk", "Disk", "MiB", &[("data directory", |s| s.looked.disk / MIB)]),
    (
        "soak-latency",
        "Latency, from when an event was due",
        "ms",
        &[
            ("publish p50", |s| s.publish_p50),
            ("publish p99", |s| s.publish_p99),
            ("delivery p50", |s| s.delivery_p50),
            ("delivery p99", |s| s.delivery_p99),
        ],
    ),
];

pub fn write(verdict: &Verdict) -> io::Result<()> {
    let docs = PathBuf::from("docs");
    for (file, title, y, series) in PLOTS {
        let begun = verdict.samples.first().map_or(0.0, |s| s.at);
        let series = series.iter().map(|(name, of)| Series {
            name: (*name).to_owned(),
            places: verdict.samples.iter().map(|s| (s.at - begun, of(s))).collect(),
        });
        let plot = Plot { title: title.to_owned(), x: "minutes", y, scale: Scale::Linear, series: series.collect() };
        if let Some(svg) = plot.svg() {
            fs::write(docs.join("plots").join(format!("{file}.svg")), svg)?;
        }
    }
    fs::write(docs.join("soak.md"), text(verdict))
}

fn text(verdict: &Verdict) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = sections(&mut out, verdict);
    out
}

fn sections(out: &mut String, verdict: &Verdict) -> std::fmt::Result {
    let Verdict { minutes, capacity, overload, everyone, .. } = verdict;
    writeln!(
        out,
        "# Soak\n\n`make soak MINUTES={minutes}` wrote this. {} publishers with a topic each send events of 256 B by the clock, durability `sync`; \
         {} readers follow: of all topics, of one, some that come and go every few seconds and resume by their last id, some that pause until the log has to \
         serve them. Each publish has an idempotency key. The log keeps 45 s and keys for 30 s, so trimming and forgetting never rest. Load and server share {} cores: what they can do together is the capacity.\n",
        publishers::STEADY,
        everyone.readers,
        std::thread::available_parallelism().map_or(0, usize::from),
    )?;
    writeln!(
        out,
        "**{}**: {} events/s for {} minutes, four fifths of the capacity of {} events/s. Readers saw {} events over {} connections.\n",
        if verdict.faults().is_empty() {
            "Nothing was lost, nothing came twice, nothing grew"
        } else {
            "Not as it must be"
        },
        number(capacity * crate::SHARE),
        number(*minutes),
        number(*capacity),
        number(everyone.events as f64),
        number((everyone.readers + everyone.reconnects) as f64),
    )?;
    for fault in verdict.faults() {
        writeln!(out, "- wrong: {fault}")?;
    }
    writeln!(out, "\n| | first third | last third | at most |\n| --- | --- | --- | --- |")?;
    for flat in verdict.flat() {
        let unit = if flat.unit.is_empty() { String::new() } else { format!(" {}", flat.unit) };
        writeln!(
            out,
            "| {} | {}{unit} | {}{unit} | {}{unit} |",
            flat.what,
            number(flat.first),
            number(flat.last),
            number(flat.most)
        )?;
    }
    writeln!(
        out,
        "\nMedians over windows; latencies are from when an event was due, at readers that were there all the time.\n"
    )?;
    for (file, title, ..) in PLOTS {
        writeln!(out, "![{title}](plots/{file}.svg)\n")?;
    }
    let (during, after) = (&overload.sample, &overload.after);
    let recovered = overload
        .recovered
        .map_or_else(|| "did not come".to_owned(), |took| format!("came after {:.1} s", took.as_secs_f64()));
    writeln!(
        out,
        "## Overload\n\nThree times the capacity ({} events/s) for {} s from {} publishers: {} events/s were answered, with a p99 of {} ms; {} publishes were \
         refused with 503; {} that were due found every publisher waiting, and were not sent. Memory was {} MiB at its end. Back at four fifths of the capacity, \
         latencies within twice those of before {recovered}; 10 s later publish p99 was {} ms and memory {} MiB. No event was lost then either.",
        number(overload.offered),
        crate::OVERLOAD_TIME.as_secs(),
        publishers::ALL,
        number(during.acked_rate),
        number(during.publish_p99),
        number(during.refused),
        number(during.skipped),
        number(during.looked.memory / MIB),
        number(after.publish_p99),
        number(after.looked.memory / MIB),
    )
}
