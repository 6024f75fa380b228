//! The machine that figures were taken on, and what is done to it between runs.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rustix::fs::{Advice, fadvise};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::results::Spread;
use crate::servers::{Who, scratch, temp_dir};
use crate::{echo, peers};

/// Subscribers of the largest rows, and some more for everything else.
const FILES_NEEDED: u64 = 10_500;

/// Enough for a median of something that takes a quarter of a millisecond, or ten on a slow disk.
const SYNCS: usize = 200;

/// What a reader has to know of the machine, by name.
pub fn describe() -> Result<BTreeMap<String, String>, String> {
    let (median, p99) = fdatasync()?;
    let mut all = BTreeMap::from([
        ("cores".to_owned(), std::thread::available_parallelism().map_or(0, usize::from).to_string()),
        ("processor".to_owned(), field("/proc/cpuinfo", "model name")),
        ("memory".to_owned(), memory()),
        ("kernel".to_owned(), format!("Linux {}", read("/proc/sys/kernel/osrelease"))),
        ("file system".to_owned(), file_system(scratch())),
        ("fdatasync of 256 B appended".to_owned(), format!("median {median:.2} ms, p99 {p99:.2} ms")),
        ("tidelog".to_owned(), version()),
    ]);
    let found: Vec<String> = [Who::Crate, Who::Nchan].into_iter().filter_map(peers::version).collect();
    if !found.is_empty() {
        all.insert("peers".to_owned(), found.join(", "));
    }
    Ok(all)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn field(path: &str, name: &str) -> String {
    let text = read(path);
    let value = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
    value.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
}

fn memory() -> String {
    let kib: u64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    format!("{} GiB", kib.div_ceil(1 << 20))
}

/// The type of the file system that `dir` is on.
fn file_system(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let mounts = read("/proc/self/mounts");
    let of = mounts.lines().filter_map(|line| {
        let mut parts = line.split(' ');
        let (_, at, kind) = (parts.next()?, parts.next()?, parts.next()?);
        dir.starts_with(at).then_some((at.len(), kind.to_owned()))
    });
    of.max().map_or_else(|| "unknown".to_owned(), |(_, kind)| kind)
}

/// The version, and the commit where there is one.
fn version() -> String {
    let git = |args: &[&str]| {
        let out = Command::new("git").args(args).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let changed = git(&["status", "--porcelain", "--", "src", "Cargo.lock"]).is_some_and(|changes| !changes.is_empty());
    let changed = if changed { " with changes" } else { "" };
    let commit =
        git(&["rev-parse", "--short=10", "HEAD"]).map(|commit| format!(" ({commit}{changed})")).unwrap_or_default();
    format!("{}{commit}", env!("CARGO_PKG_VERSION"))
}

/// Milliseconds of appending and syncing, median and p99.
fn fdatasync() -> Result<(f64, f64), String> {
    let dir = temp_dir()?;
    let mut took = Vec::with_capacity(SYNCS);
    let mut measure = || -> std::io::Result<()> {
        let mut file = File::create(dir.path().join("synced"))?;
        for _ in 0..SYNCS {
            let begun = Instant::now();
            file.write_all(&[b'x'; 256])?;
            file.sync_data()?;
            took.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        Ok(())
    };
    measure().map_err(|e| format!("measuring the disk: {e}"))?;
    took.sort_unstable_by(f64::total_cmp);
    let median = Spread::of(&took).map_or(f64::NAN, |spread| spread.median);
    Ok((median, echo::percentile(&took, 99)))
}

/// Lets this program, and what it starts, hold as many files as the machine allows it to.
pub fn raise_limits() -> Result<(), String> {
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        eprintln!("bench: the limit of open files stays at {:?}: {e}", limit.current);
    }
    match getrlimit(Resource::Nofile).current {
        Some(files) if files < FILES_NEEDED => {
            Err(format!("this process may open {files} files and needs {FILES_NEEDED}: raise the limit (ulimit -Hn)"))
        }
        _ => Ok(()),
    }
}

/// What lies in memory and would be lost on a reboot.
pub fn in_memory(dir: &Path) -> bool {
    matches!(file_system(dir).as_str(), "tmpfs" | "ramfs")
}

/// Makes the next reads of what is in `dir` come from the disk. Says how, where not the whole cache of the kernel was dropped.
pub fn drop_caches(dir: &Path) -> Result<Option<&'static str>, String> {
    rustix::fs::sync();
    if fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
        return Ok(None);
    }
    forget(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    Ok(Some(
        "Not run as root: instead of dropping the kernel's caches, each file's pages were given up (posix_fadvise).",
    ))
}

/// Reads all that is in `dir`, so that the kernel has it in memory.
pub fn read_through(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            read_through(&path)?;
        } else {
            std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
        }
    }
    Ok(())
}

fn forget(dir: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            forget(&path)?;
        } else {
            fadvise(File::open(path)?, 0, None, Advice::DontNeed)?;
        }
    }
    Ok(())
}
