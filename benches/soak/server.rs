//! The server that is soaked: the built program on a log of its own, and what the system says of its process.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(30);
/// Longer than any reader is away, and short enough that trimming begins at once.
const MAX_AGE: &str = "retention.max_age=45s";
/// Keys that are remembered take memory for as long as that; it is to be full, and not to grow any more, when the first window begins.
const DEDUPE_WINDOW: &str = "dedupe_window=30s";

pub struct Server {
    child: Child,
    url: String,
    dir: TempDir,
}

/// What the system says of the process, and of its data.
#[derive(Debug, Clone, Copy, Default)]
pub struct Looked {
    /// Resident bytes that belong to no file.
    pub memory: f64,
    pub files: f64,
    pub disk: f64,
}

impl Server {
    pub fn start() -> Result<Self, String> {
        let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir =
            fs::create_dir_all(scratch).and_then(|()| tempfile::tempdir_in(scratch)).map_err(|e| e.to_string())?;
        let log = fs::File::create(dir.path().join("stderr")).map_err(|e| e.to_string())?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidelog"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--set", MAX_AGE, "--set", DEDUPE_WINDOW, "--data"])
            .arg(dir.path().join("data"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().map_err(|e| format!("starting the server: {e}"))?;
        let stdout = child.stdout.take().ok_or("the server has no stdout")?;
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(url) = line.strip_prefix("listening on ") {
                    let _ = tell.send(url.trim().to_owned());
                }
            }
        });
        let mut server = Self { child, url: String::new(), dir };
        server.url = told.recv_timeout(START).map_err(|_| format!("the server does not serve: {}", server.said()))?;
        Ok(server)
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// What it said on stderr, without what is of no concern.
    pub fn said(&self) -> String {
        let text = fs::read_to_string(self.dir.path().join("stderr")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.contains(" INFO ")).collect();
        lines.join("\n")
    }

    pub fn look(&self) -> Result<Looked, String> {
        let pid = self.child.id();
        let read = |name: &str| {
            fs::read_to_string(format!("/proc/{pid}/{name}"))
                .map_err(|e| format!("the server is gone ({e}): {}", self.said()))
        };
        let status = read("status")?;
        let anon = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
        let kib: f64 = anon.trim().trim_end_matches(" kB").parse().map_err(|_| "no RssAnon in /proc".to_owned())?;
        let files = fs::read_dir(format!("/proc/{pid}/fd")).map_err(|e| e.to_string())?.count();
        let disk = disk_bytes(&self.dir.path().join("data"));
        Ok(Looked { memory: kib * 1024.0, files: files as f64, disk: disk as f64 })
    }

    /// Ends it in order; gives what it had said.
    pub fn stop(&mut self) -> Result<String, String> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).ok_or("no such process")?;
        kill_process(pid, Signal::TERM).map_err(|e| format!("ending the server: {e}"))?;
        let begun = Instant::now();
        while begun.elapsed() < STOP {
            match self.child.try_wait().map_err(|e| e.to_string())? {
                Some(status) if status.success() => return Ok(self.said()),
                Some(status) => return Err(format!("the server ended with {status}: {}", self.said())),
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        Err(format!("the server did not end within {STOP:?}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Bytes of all files; one that goes while it is looked at counts nothing.
fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            Some(if meta.is_dir() { disk_bytes(&entry.path()) } else { meta.blocks() * 512 })
        })
        .sum()
}
