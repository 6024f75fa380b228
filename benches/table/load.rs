//! The load generator, `tidelog bench`, run on a server from outside, and the numbers that it prints.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::peers;
use crate::servers::{Server, temp_dir, wait, without_variables};

/// How long one run may take at most. The longest, 50 MB twice among slow readers, takes less than three minutes.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The generator ends by itself after its timeout; so much later it is killed.
const GRACE: Duration = Duration::from_secs(30);

/// What a run gave.
pub struct Load {
    numbers: Value,
    /// What the generator said when it was not satisfied: events were lost, doubled or out of order, or publishes refused.
    pub complaint: Option<String>,
}

/// Runs `tidelog bench SCENARIO` on `server`; `args` are the scenario's own.
///
/// # Errors
/// When it gives no numbers. When it gives some and complains, that is [`Load::complaint`].
pub fn run(server: &Server, scenario: &str, args: &[&str]) -> Result<Load, String> {
    let mut options = peers::load_options(server.who);
    // What the row says itself goes before what fits the server in general.
    if let Some(at) = options.iter().position(|option| args.contains(&option.as_str())) {
        options.drain(at..at + 2);
    }
    let dir = temp_dir()?;
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    let create = |path| File::create(path).map_err(|e| format!("a file for the load generator's output: {e}"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidelog"));
    without_variables(&mut command);
    command
        .args(["bench", scenario, "--json", "--server", &server.url(), "--pid", &server.pid().to_string()])
        .args(["--timeout", &format!("{}s", TIMEOUT.as_secs())])
        .args(options)
        .args(args)
        .stdin(Stdio::null())
        .stdout(create(&out)?)
        .stderr(create(&err)?);
    let mut child = command.spawn().map_err(|e| format!("tidelog bench: {e}"))?;
    let ended = wait(&mut child, TIMEOUT + GRACE)?;
    let said = fs::read_to_string(&err).unwrap_or_default();
    let said = said.trim().lines().last().unwrap_or_default().trim_start_matches("tidelog: ").to_owned();
    let what = || format!("tidelog bench {scenario} on {}", server.who.name());
    let Some(status) = ended else {
        let _ = child.kill().and_then(|()| child.wait());
        return Err(format!("{} did not end within {TIMEOUT:?}", what()));
    };
    let printed = fs::read_to_string(&out).unwrap_or_default();
    match serde_json::from_str(printed.trim()) {
        Ok(numbers) => Ok(Load { numbers, complaint: (!status.success()).then_some(said) }),
        Err(_) if said.is_empty() => {
            Err(format!("{}: no numbers ({status}); the server said: {}", what(), server.said()))
        }
        Err(_) => Err(format!("{}: {said}", what())),
    }
}

impl Load {
    /// The number at `path`, such as `/latency_ms/p99`.
    pub fn number(&self, path: &str) -> Result<f64, String> {
        let found = self.numbers.pointer(path).and_then(Value::as_f64);
        found.ok_or_else(|| format!("tidelog bench printed no number at {path}: {}", self.numbers))
    }

    /// An error when the generator was not satisfied: nothing may be judged by such a run.
    pub fn whole(self) -> Result<Self, String> {
        match self.complaint {
            Some(complaint) => Err(complaint),
            None => Ok(self),
        }
    }
}
