//! `tidelog bench`: load for a running server, and what the load cost it.
//!
//! What holds: every subscriber is checked, by the ids and by marks in the data; a bench in which an event was lost, doubled or out of
//! order fails. No bench is longer than its timeout. Must not know the server's rooms: it speaks HTTP, and reads /proc.

mod check;
mod echo;
mod fanout;
mod herd;
mod idle;
mod load;
mod mark;
mod options;
mod process;
mod publish;
mod publishers;
mod replay;
mod report;
mod resume;
mod slow;
mod spread;
mod target;
mod wire;

use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rustix::io::Errno;
use tidelog::client;

use self::check::Tally;
use self::options::Common;
use self::process::{Process, Usage};
use self::report::{Cost, Report};
use self::target::Target;
use super::output::tell;

/// Put load on a running server and measure it
#[derive(Debug, clap::Args)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
The events go to topics of their own, which stay there: use a server whose data you can throw away. Each event holds a mark, and \
each subscriber is checked: when one misses an event, or gets one twice or out of order, the exit status is 1.

Client and server share the machine: only ratios within one run mean much. The CPU time and the memory are the server \
process's, from /proc.

Examples:
  tidelog bench fanout --subscribers 1000 --events 400 --rate 100
  tidelog bench publish --publishers 64 --json
  tidelog bench replay --events 1000000 --connections 50
  tidelog bench fanout --server http://127.0.0.1:7000 --subscribe-path /s --publish-path /p --no-ids"
)]
pub struct Args {
    #[command(subcommand)]
    bench: Bench,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Subcommand)]
enum Bench {
    Fanout(fanout::Args),
    Idle(idle::Args),
    Publish(publish::Args),
    Replay(replay::Args),
    Resume(resume::Args),
    Herd(herd::Args),
    Slow(slow::Args),
    Echo(echo::Args),
}

/// Why there is no result, or a bad one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("cannot resolve {server}: {cause}")]
    Resolve { server: String, cause: io::Error },
    #[error("cannot connect to {addr}: {cause}")]
    Connect { addr: SocketAddr, cause: io::Error },
    #[error(
        "this takes {need} open files, and a process may hold {may}: raise the limit with `ulimit -n {need}` (as root, or in \
         /etc/security/limits.conf), or ask for less"
    )]
    Files { need: u64, may: u64 },
    #[error("there is no process {0}: --pid is the server's")]
    NoProcess(u32),
    #[error("the server's process was not found: name it with --pid, on the machine where it runs")]
    NeedsProcess,
    #[error("cannot wait for sockets: {0}")]
    Loop(#[source] Errno),
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
    #[error("a subscription failed: {0}")]
    Subscribe(String),
    #[error("publishing failed: {0}")]
    Publish(String),
    #[error("not all {doing} within {}; --timeout allows more", humantime::format_duration(*.after))]
    Timeout { doing: &'static str, after: Duration },
    #[error("{0}")]
    Unfit(String),
    /// It ran, and the server did what it must not.
    #[error("{0}")]
    Wrong(String),
    #[error("cannot write to stdout: {0}")]
    Output(#[source] io::Error),
}

/// Runs the command.
///
/// # Errors
/// [`Error`] is one sentence for stderr; the exit status is 1.
pub fn run(args: Args) -> Result<(), Error> {
    let Args { bench, common } = args;
    let minutes = if matches!(bench, Bench::Slow(_)) { 10 } else { 2 };
    let run = Run::new(common, Duration::from_secs(minutes * 60))?;
    let found = match bench {
        Bench::Fanout(args) => fanout::run(&run, &args),
        Bench::Idle(args) => idle::run(&run, &args),
        Bench::Publish(args) => publish::run(&run, &args),
        Bench::Replay(args) => replay::run(&run, &args),
        Bench::Resume(args) => resume::run(&run, &args),
        Bench::Herd(args) => herd::run(&run, &args),
        Bench::Slow(args) => slow::run(&run, &args),
        Bench::Echo(args) => echo::run(&run, &args),
    };
    run.bar.finish_and_clear();
    let Found { report, wrong } = found?;
    let text = if run.common.json {
        serde_json::to_string(&report).map_err(|error| Error::Output(error.into()))? + "\n"
    } else {
        report.table()
    };
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)?;
    wrong.map_or(Ok(()), |wrong| Err(Error::Wrong(wrong)))
}

/// What a bench found, and what was wrong with it.
struct Found {
    report: Report,
    wrong: Option<String>,
}

/// Nanoseconds since the program began.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

impl Clock {
    pub fn now(self) -> u64 {
        load::nanoseconds(self.0.elapsed())
    }

    /// Seconds since `then`.
    pub fn seconds_since(self, then: u64) -> f64 {
        report::as_f64(self.now() - then) / 1e9
    }
}

/// When all must be done.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    begun: Instant,
    after: Duration,
}

impl Deadline {
    /// Fails when it has passed; `doing` is what was not done, as in "not all events published".
    pub fn check(self, doing: &'static str) -> Result<(), Error> {
        if self.has_passed() { Err(Error::Timeout { doing, after: self.after }) } else { Ok(()) }
    }

    pub fn has_passed(self) -> bool {
        self.begun.elapsed() > self.after
    }

    /// How long there still is.
    pub fn left(self) -> Duration {
        self.after.saturating_sub(self.begun.elapsed())
    }
}

/// What all benches have.
struct Run {
    common: Common,
    target: Target,
    clock: Clock,
    deadline: Deadline,
    /// The server's.
    process: Option<Process>,
    bar: ProgressBar,
}

impl Run {
    fn new(common: Common, timeout: Duration) -> Result<Self, Error> {
        let target = Target::new(&common)?;
        let process = match common.pid {
            Some(pid) => Some(Process::new(pid)?),
            None => Process::listening(target.addr),
        };
        if process.is_none() {
            tell("the server's process was not found, so its CPU time and memory are unknown; --pid names it");
        }
        let after = common.timeout.unwrap_or(timeout);
        let begun = Instant::now();
        let deadline = Deadline { begun, after };
        Ok(Self { target, clock: Clock(begun), deadline, process, bar: bar(), common })
    }

    /// The next thing to show progress of.
    fn step(&self, what: &'static str, of: u64) {
        self.bar.reset();
        self.bar.set_length(of);
        self.bar.set_message(what);
    }

    fn usage(&self) -> Option<Usage> {
        self.process.map(Process::usage)
    }

    /// What the server has used since `before`.
    fn cost(&self, before: Option<Usage>) -> Option<Cost> {
        Some(Cost { before: before?, after: self.usage()? })
    }

    /// How each report begins.
    fn report(&self, name: &str) -> Report {
        Report::new(name).text("server", &self.target.url).text("topic", &self.target.topic)
    }
}

/// Seconds of CPU time that this process has used.
fn own_cpu_seconds() -> f64 {
    Process::own().cpu_seconds()
}

/// What every report of deliveries says of the checks.
fn with_tally(report: Report, tally: &Tally) -> Report {
    report
        .count("deliveries", tally.deliveries)
        .count("expected", tally.expected)
        .count("lost", tally.lost)
        .count("doubled", tally.doubled)
        .count("disordered", tally.disordered)
        .count("strayed", tally.strayed)
        .count("foreign", tally.foreign)
}

/// What was wrong: the tally, and connections that should not have broken.
fn wrong(tally: &Tally, cut: usize, failure: Option<String>) -> Option<String> {
    let cut = (cut > 0).then(|| {
        let why = failure.map(|why| format!(" ({why})")).unwrap_or_default();
        format!("{cut} subscriber{} cut off{why}", if cut == 1 { " was" } else { "s were" })
    });
    let wrong: Vec<String> = tally.wrong().into_iter().chain(cut).collect();
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

/// On stderr, when somebody is looking.
fn bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {human_pos} of {human_len} {msg}, {elapsed}");
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}
