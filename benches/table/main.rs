//! The table of docs/performance.md: what tidelog promises of speed, measured beside others in one run on one machine.
//!
//! `make bench` runs all of it, `make bench ROWS=fanout,publish PAIRS=3` a part. Every figure comes from runs in turn, on servers started
//! with empty data. The samples are kept in docs/performance.json, so that a part of the rows leaves the others' last results; the page is
//! written from these and from the reasons in docs/performance.notes.md.
//!
//! The load comes from `tidelog bench`. This program starts what is measured, and knows the goals.

#[path = "../common/mod.rs"]
mod common;
mod echo;
mod limit;
mod load;
mod logs;
mod machine;
mod page;
mod peers;
mod plot;
mod results;
mod rows;
mod run;
mod servers;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};

use crate::results::Results;
use crate::rows::{ROWS, Row};
use crate::run::{Run, Settings, minutes};

/// Run the performance table and write docs/performance.md
#[derive(Parser)]
struct Args {
    /// Only these rows (comma-separated); `none` only writes the page [default: all]
    #[arg(long, value_name = "KEY,KEY", default_value = "")]
    rows: String,
    /// So many pairs for every row [default: 10 for CPU figures, 3 for others]
    #[arg(long, default_value = "")]
    pairs: String,
    /// `none`: leave other servers out
    #[arg(long, default_value = "", value_parser = ["", "none"])]
    peers: String,
    /// Less load, to see that everything works: the results go to the target directory, not into docs/
    #[arg(long, default_value = "")]
    scale: String,
    /// cargo gives this to every bench
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    baseline: Option<Baseline>,
}

/// What this program is when it starts itself as something to compare with.
#[derive(Subcommand)]
enum Baseline {
    #[command(hide = true)]
    Serve { which: String, file: Option<PathBuf> },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.baseline {
        Some(Baseline::Serve { which, file }) => serve(which, file.as_deref()).map(|()| true),
        None => bench(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve(which: &str, file: Option<&Path>) -> Result<(), String> {
    match (which, file) {
        ("limit", None) => limit::serve(),
        ("echo", Some(file)) => echo::serve(file),
        _ => return Err(format!("there is no baseline {which:?}, or it wants a file")),
    }
    .map_err(|e| format!("{which}: {e}"))
}

/// Runs what is asked for and writes the page; false when something was missing or failed.
fn bench(args: &Args) -> Result<bool, String> {
    let rows = chosen(&args.rows)?;
    let settings = settings(args)?;
    let docs = PathBuf::from("docs");
    let whole = (settings.scale - 1.0).abs() < f64::EPSILON;
    let out = if whole { docs.clone() } else { servers::scratch().join("scaled") };
    std::fs::create_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    let kept = out.join("performance.json");
    let mut results = Results::read(&kept)?;
    let mut good = true;
    if !rows.is_empty() {
        machine::raise_limits()?;
        let machine = machine::describe()?;
        let seconds: f64 = rows.iter().map(|row| expected(row, &settings).as_secs_f64()).sum();
        eprintln!(
            "{} rows, about {}; logs that are kept between runs: {}",
            rows.len(),
            minutes(Duration::from_secs_f64(seconds)),
            servers::scratch().display()
        );
        for (at, row) in rows.iter().enumerate() {
            let name = format!("row {} of {}, {}", at + 1, rows.len(), row.key);
            let mut run = Run::new(settings, name, expected(row, &settings));
            run.result.at = now();
            run.result.machine.clone_from(&machine);
            if machine::in_memory(servers::scratch()) {
                run.remark("The data lay in memory, not on a disk: nothing synced here is to be believed.");
            }
            let begun = Instant::now();
            if let Err(e) = (row.run)(&mut run) {
                eprintln!("row {}: {e}", row.key);
                run.result.error = Some(e);
            }
            run.result.seconds = begun.elapsed().as_secs_f64().round();
            good &= run.result.error.is_none() && run.result.missing.is_empty();
            results.rows.insert(row.key.to_owned(), run.result);
            // After each row, so that an interrupted run has kept what it took.
            results.write(&kept)?;
        }
    }
    let unexplained = page::write(&results, &docs.join("performance.notes.md"), &out)?;
    for key in unexplained {
        eprintln!(
            "bench: row {key} does not reach its goal, and docs/performance.notes.md has no `## {key}` that says why"
        );
    }
    eprintln!("bench: wrote {}", out.join("performance.md").display());
    Ok(good)
}

fn settings(args: &Args) -> Result<Settings, String> {
    let number = |text: &str, name: &str| {
        let parsed = text.parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
        parsed.ok_or_else(|| format!("{name} is {text:?}: it wants a number above 0"))
    };
    let pairs = match args.pairs.as_str() {
        "" => None,
        text => Some(
            text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("--pairs is {text:?}: it wants 1 or more"))?,
        ),
    };
    let scale = if args.scale.is_empty() { 1.0 } else { number(&args.scale, "--scale")? };
    Ok(Settings { pairs, scale, peers: args.peers != "none" })
}

fn chosen(keys: &str) -> Result<Vec<&'static Row>, String> {
    match keys {
        "" => Ok(ROWS.iter().collect()),
        "none" => Ok(Vec::new()),
        keys => keys.split(',').map(str::trim).map(find).collect(),
    }
}

fn find(key: &str) -> Result<&'static Row, String> {
    let known = || ROWS.iter().map(|row| row.key).collect::<Vec<_>>().join(", ");
    ROWS.iter().find(|row| row.key == key).ok_or_else(|| format!("there is no row {key:?}; there are {}", known()))
}

/// About how long a row takes.
#[allow(clippy::cast_precision_loss)]
fn expected(row: &Row, settings: &Settings) -> Duration {
    let (once, each) = row.seconds;
    Duration::from_secs_f64((once + each * settings.pairs.unwrap_or(row.pairs) as f64) * settings.scale.min(1.0))
}

fn now() -> String {
    jiff::Timestamp::now().round(jiff::Unit::Second).map_or_else(|_| String::new(), |now| now.to_string())
}
