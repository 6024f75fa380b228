//! `tidelog verify`: whether a log is as it was written; what is wrong with it where, and how to mend that.
//!
//! What is found goes to stdout, a line each, at once; progress and the summary to stderr, so that a script reads the lines alone.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use tidelog::store::rocks::verify::{Finding, Kind, Summary, Watch, verify};

use super::output::tell;

/// Read a log that no server has open, and tell what is wrong where
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every file is read, and every bit of it is covered by a checksum or compared with what it must be (but for RocksDB's own text logs, \
db/LOG*, which are no data). Then every row is read: that each event can be decoded, ids ascend and times never go back; that indexes, \
counts, floors, the state, snapshots, closed topics and idempotency keys are what the log says. Nothing is changed, and no server can \
start on DIR meanwhile.

What is wrong is printed to stdout, a line each:
  db/000012.sst: byte 4096: the checksum of a block of 4011 bytes does not match
  log: id 42: it is missing, though its topic's postings name it
Lines that begin with `note: ` are no damage: what a power cut or a stop may leave.

Exit status: 0 the log is sound, 1 it is damaged, 2 it could not be looked at.

Examples:
  tidelog verify ./tidelog-data
  systemctl stop tidelog && tidelog verify /var/lib/tidelog && systemctl start tidelog
  tidelog verify /backups/2026-11-22 >damage.txt || mail -s 'bad backup' ops <damage.txt")]
pub struct Args {
    /// The data directory (what `serve` calls --data)
    dir: PathBuf,
}

/// Runs the command; the exit status tells what it found.
pub fn run(args: &Args) -> ExitCode {
    let begun = Instant::now();
    let bar = if io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{msg:12} {wide_bar} {percent:>3}% {eta:>5}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut watch = Told { bar, is_broken: false };
    let looked = verify(&args.dir, &mut watch);
    watch.bar.finish_and_clear();
    match looked {
        Ok(summary) => {
            tell(&summed(&args.dir, &summary, begun.elapsed().as_secs_f64()));
            if watch.is_broken {
                tell("not all of it could be written to stdout");
            }
            if summary.damage > 0 {
                tell(MEND);
                ExitCode::FAILURE
            } else if watch.is_broken {
                ExitCode::from(COULD_NOT_LOOK)
            } else {
                ExitCode::SUCCESS
            }
        }
        Err(error) => {
            tell(&error.to_string());
            ExitCode::from(COULD_NOT_LOOK)
        }
    }
}

const COULD_NOT_LOOK: u8 = 2;

const MEND: &str = "\
how to mend it:
  1. Keep a copy of the directory as it is; look at the disk and the memory (dmesg, smartctl): bits do not flip by themselves.
  2. Where a line names a single flipped bit (\"bit 3 of byte 4711\"), turn it back in a copy, and verify that.
  3. Otherwise restore a backup that `tidelog verify` finds sound. Clients resume by their last id, and are told of what is lost.
  4. `sums`, `lock`, db/OPTIONS-* and db/IDENTITY hold no events: where only they are named, the log itself is whole.";

fn summed(dir: &std::path::Path, summary: &Summary, seconds: f64) -> String {
    let Summary { files, bytes, events, topics, damage, notes } = *summary;
    let found = match damage {
        0 => "sound".to_owned(),
        1 => "DAMAGED in 1 place".to_owned(),
        n => format!("DAMAGED in {n} places"),
    };
    let notes = if notes > 0 { format!(", {notes} notes") } else { String::new() };
    #[expect(clippy::cast_precision_loss, reason = "it is told with one digit")]
    let megabytes = bytes as f64 / 1e6;
    format!(
        "{} is {found}{notes}: {files} files, {bytes} bytes, {events} events, {topics} topics in {seconds:.1} s ({:.1} MB/s)",
        dir.display(),
        megabytes / seconds.max(1e-6)
    )
}

struct Told {
    bar: ProgressBar,
    /// Whoever reads stdout has left.
    is_broken: bool,
}

impl Watch for Told {
    fn found(&mut self, finding: Finding) {
        let note = if finding.kind == Kind::Note { "note: " } else { "" };
        // One line each, whatever names and keys hold.
        let line: String = finding.to_string().chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        let written = self.bar.suspend(|| writeln!(io::stdout(), "{note}{line}"));
        self.is_broken |= written.is_err();
    }

    fn begin(&mut self, part: &'static str, steps: u64) {
        self.bar.reset();
        self.bar.set_length(steps);
        self.bar.set_message(part);
    }

    fn advance(&mut self, steps: u64) {
        self.bar.inc(steps);
    }
}
