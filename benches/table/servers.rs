//! The servers that are measured: started on loopback with empty data, and ended with everything they made.
//!
//! What holds: each has a port of its own, so that connections of an earlier run hinder no later one; its data lies on the disk of the
//! target directory; dropping it ends its process, within a bound. Must not know what is measured.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::peers;

/// A server that starts reads its log; ours of ten million events takes a second or two.
const START: Duration = Duration::from_secs(60);

/// As long as our own server drains, and then some.
const STOP: Duration = Duration::from_secs(20);

/// How often a process is looked at that should end.
const LOOK: Duration = Duration::from_millis(10);

/// Whose server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    Tidelog,
    /// The bare epoll loop, `limit`.
    Limit,
    /// The program that syncs and echoes, `echo`.
    Echo,
    /// The Durable Streams server, `durable-streams-server`.
    Crate,
    Nchan,
}

impl Who {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tidelog => "tidelog",
            Self::Limit => "limit",
            Self::Echo => "fdatasync and echo",
            Self::Crate => "the crate",
            Self::Nchan => "nchan",
        }
    }
}

/// A running server.
pub struct Server {
    pub who: Who,
    pub address: SocketAddr,
    child: Child,
    log: PathBuf,
    /// Held, not read: what is its own goes when it is dropped.
    _dir: Data,
}

enum Data {
    Own(TempDir),
    Kept(PathBuf),
}

/// Where all that is measured keeps its files: beside the build, so on a disk and not in memory.
pub fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

pub fn temp_dir() -> Result<TempDir, String> {
    fs::create_dir_all(scratch())
        .and_then(|()| tempfile::Builder::new().prefix("bench-").tempdir_in(scratch()))
        .map_err(|e| format!("a directory in {}: {e}", scratch().display()))
}

impl Server {
    /// Starts one with empty data.
    pub fn start(who: Who) -> Result<Self, String> {
        Self::begin(who, Data::Own(temp_dir()?))
    }

    /// Starts one on data that an earlier one left in `dir`, and leaves it there again.
    pub fn on(who: Who, dir: &Path) -> Result<Self, String> {
        Self::begin(who, Data::Kept(dir.to_owned()))
    }

    fn begin(who: Who, dir: Data) -> Result<Self, String> {
        let root = dir.path();
        let data = root.join("data");
        fs::create_dir_all(&data).map_err(|e| format!("{}: {e}", data.display()))?;
        let log = root.join(format!("{}.log", who.name().replace(' ', "-")));
        let port = free_port().map_err(|e| format!("a free port: {e}"))?;
        let (mut command, address) = match who {
            Who::Tidelog => (tidelog(&data), None),
            Who::Limit => (ourselves("limit")?, None),
            Who::Echo => {
                let mut echo = ourselves("echo")?;
                echo.arg(data.join("synced"));
                (echo, None)
            }
            Who::Crate => (peers::durable_streams(port, &data)?, Some(port)),
            Who::Nchan => (peers::nchan(port, root)?, Some(port)),
        };
        // A peer that speaks on stdout must not fill a pipe that nobody reads.
        let sink =
            || File::options().create(true).append(true).open(&log).map_err(|e| format!("{}: {e}", log.display()));
        command.stdin(Stdio::null()).stderr(sink()?);
        if address.is_some() {
            command.stdout(sink()?);
        } else {
            command.stdout(Stdio::piped());
        }
        let child = command.spawn().map_err(|e| format!("starting {}: {e}", who.name()))?;
        let mut server =
            Self { who, address: SocketAddr::from(([127, 0, 0, 1], address.unwrap_or(0))), child, log, _dir: dir };
        match address {
            Some(_) => server.await_port()?,
            None => server.address = server.await_line()?,
        }
        if who == Who::Crate {
            peers::create_streams(server.address)?;
        }
        Ok(server)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The last lines of what it said on stderr.
    pub fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    /// Ends it as a user would, and waits for it.
    pub fn stop(mut self) -> Result<(), String> {
        self.end().map(drop)
    }

    fn end(&mut self) -> Result<ExitStatus, String> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Ok(status);
        }
        if let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM).map_err(|e| format!("ending {}: {e}", self.who.name()))?;
        }
        if let Some(status) = wait(&mut self.child, STOP)? {
            return Ok(status);
        }
        let ended = self.child.kill().and_then(|()| self.child.wait()).map_err(|e| e.to_string());
        ended.and_then(|_| Err(format!("{} did not end within {STOP:?}: it was killed", self.who.name())))
    }

    fn await_line(&mut self) -> Result<SocketAddr, String> {
        let stdout = self.child.stdout.take().ok_or("the server has no stdout")?;
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            // All of it is read, so that the server never waits for a pipe.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(address) = line.strip_prefix("listening on http://").and_then(|a| a.trim().parse().ok()) {
                    // Only the first line is waited for.
                    let _ = tell.send(address);
                }
            }
        });
        told.recv_timeout(START).map_err(|_| format!("{} does not serve: {}", self.who.name(), self.said()))
    }

    fn await_port(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            let ended = self.child.try_wait().map_err(|e| e.to_string())?.is_some();
            if ended || begun.elapsed() > START {
                return Err(format!("{} does not serve: {}", self.who.name(), self.said()));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            eprintln!("bench: {e}");
        }
    }
}

impl Data {
    fn path(&self) -> &Path {
        match self {
            Self::Own(dir) => dir.path(),
            Self::Kept(dir) => dir,
        }
    }
}

fn tidelog(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidelog"));
    without_variables(&mut command);
    command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data);
    command
}

/// Settings of whoever runs this must not reach what is measured: it runs with its defaults.
pub fn without_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("TIDELOG_")) {
        command.env_remove(name);
    }
}

/// This program again, as one of its baselines.
fn ourselves(baseline: &str) -> Result<Command, String> {
    let mut command = Command::new(std::env::current_exe().map_err(|e| format!("this program's own path: {e}"))?);
    command.args(["serve", baseline]);
    Ok(command)
}

/// A port that nobody listens on now.
fn free_port() -> std::io::Result<u16> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr().map(|address| address.port())
}

/// Waits until `child` has ended, at most so long.
pub fn wait(child: &mut Child, most: Duration) -> Result<Option<ExitStatus>, String> {
    let begun = Instant::now();
    loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) => return Ok(Some(status)),
            None if begun.elapsed() > most => return Ok(None),
            None => std::thread::sleep(LOOK),
        }
    }
}

/// One HTTP request on a connection of its own; gives the answer's head.
pub fn request(server: SocketAddr, head: &str) -> Result<String, String> {
    let answer = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(START))?;
        write!(stream, "{head}\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = answer().map_err(|e| format!("{server}: {e}"))?;
    let head = answer.split("\r\n\r\n").next().unwrap_or_default();
    Ok(head.to_owned())
}
