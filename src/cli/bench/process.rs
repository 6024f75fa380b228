//! What the server's process costs: CPU time and memory, from /proc; and the limits of this one.
//!
//! What holds: a process counts with all that descend from it, since some servers are several. Must not know HTTP.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, SocketAddr};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::Error;

/// Of a second; Linux tells user space CPU time in these, whatever its own tick is.
const TICKS: f64 = 100.0;

/// What a process has used.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Of user and system.
    pub cpu_seconds: f64,
    /// Resident memory.
    pub rss_bytes: u64,
    /// What of it lies in files as well: the program's code, which is there once it has run.
    pub file_bytes: u64,
}

/// A process to measure.
#[derive(Debug, Clone, Copy)]
pub struct Process(u32);

impl Process {
    /// The one with this number.
    pub fn new(pid: u32) -> Result<Self, Error> {
        if stat(pid).is_some() { Ok(Self(pid)) } else { Err(Error::NoProcess(pid)) }
    }

    /// This one.
    pub fn own() -> Self {
        Self(std::process::id())
    }

    /// Seconds of CPU time of it alone.
    pub fn cpu_seconds(self) -> f64 {
        stat(self.0).map_or(0.0, |stat| stat.cpu_seconds)
    }

    /// The one that listens at `addr`, when it is on this machine and may be looked at; of several, the one that started the
    /// others.
    pub fn listening(addr: SocketAddr) -> Option<Self> {
        let inodes = listening_inodes(addr);
        if inodes.is_empty() {
            return None;
        }
        let holders: HashSet<u32> = pids().filter(|&pid| holds(pid, &inodes)).collect();
        let is_first = |pid: &u32| stat(*pid).is_some_and(|stat| !holders.contains(&stat.parent));
        holders.iter().copied().filter(is_first).min().map(Self)
    }

    /// What it and all that descend from it have used until now; nothing once it has ended.
    pub fn usage(self) -> Usage {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for pid in pids() {
            if let Some(stat) = stat(pid) {
                children.entry(stat.parent).or_default().push(pid);
            }
        }
        let (mut usage, mut of) = (Usage::default(), vec![self.0]);
        while let Some(pid) = of.pop() {
            of.extend(children.remove(&pid).unwrap_or_default());
            if let Some(stat) = stat(pid) {
                usage.cpu_seconds += stat.cpu_seconds;
                let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                usage.rss_bytes += status_bytes(&status, "VmRSS:");
                usage.file_bytes += status_bytes(&status, "RssFile:");
            }
        }
        usage
    }
}

struct Stat {
    parent: u32,
    cpu_seconds: f64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let fields: Vec<&str> = text[text.rfind(')')? + 2..].split(' ').collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, cpu_seconds: (ticks(11)? + ticks(12)?) / TICKS })
}

/// A number of bytes in /proc's status of a process; 0 once it has ended.
fn status_bytes(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The sockets of this machine's that listen at `addr`, or at its port on every address.
fn listening_inodes(addr: SocketAddr) -> HashSet<u64> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|table| fs::File::open(table).ok());
    let lines = tables.flat_map(|table| {
        // Those that listen come first; to tell the others takes the kernel a while.
        BufReader::new(table).lines().skip(1).map_while(Result::ok).take_while(|line| is_listening(line))
    });
    lines.filter_map(|line| listening_inode(&line, addr)).collect()
}

fn is_listening(line: &str) -> bool {
    line.split_whitespace().nth(3) == Some("0A")
}

fn listening_inode(line: &str, addr: SocketAddr) -> Option<u64> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (ip, port) = fields.get(1)?.split_once(':')?;
    let is_any = ip.bytes().all(|digit| digit == b'0');
    let is_here = u16::from_str_radix(port, 16) == Ok(addr.port()) && (is_any || ip == kernel_hex(addr.ip()));
    // A server elsewhere is not the one that listens on every address here.
    let is_local = addr.ip().is_loopback() || !is_any;
    if is_here && is_local { fields.get(9)?.parse().ok() } else { None }
}

/// As /proc/net writes it: words of four bytes, each in the machine's own order.
fn kernel_hex(ip: IpAddr) -> String {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let words = octets.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    words.fold(String::new(), |hex, word| hex + &format!("{word:08X}"))
}

fn holds(pid: u32, inodes: &HashSet<u64>) -> bool {
    let inode = |link: &str| link.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok();
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files
        .filter_map(|file| fs::read_link(file.path()).ok())
        .any(|link| link.to_str().and_then(inode).is_some_and(|inode| inodes.contains(&inode)))
}

/// Makes sure that this process may hold `sockets` of them.
pub fn allow_sockets(sockets: usize) -> Result<(), Error> {
    // Besides: what the program has open anyway, epoll, and files of /proc.
    let need = sockets as u64 + 40;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= need) {
        return Ok(());
    }
    if limit.maximum.is_none_or(|maximum| maximum >= need)
        && setrlimit(Resource::Nofile, Rlimit { current: Some(need), ..limit }).is_ok()
    {
        return Ok(());
    }
    Err(Error::Files { need, may: limit.maximum.unwrap_or(u64::MAX) })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn whoever_listens_is_found() {
        for at in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
            // A machine may have no IPv6.
            let Ok(listener) = TcpListener::bind(at) else { continue };
            let port = listener.local_addr().unwrap().port();
            let ip = if at.starts_with('[') { "[::1]" } else { "127.0.0.1" };
            let found = Process::listening(format!("{ip}:{port}").parse().unwrap());
            assert_eq!(found.map(|process| process.0), Some(std::process::id()), "{at}");
        }
    }

    #[test]
    fn usage_is_told() {
        let usage = Process::own().usage();
        assert!(usage.rss_bytes > 100_000 && usage.cpu_seconds >= 0.0, "{usage:?}");
        assert!(usage.file_bytes > 100_000 && usage.file_bytes < usage.rss_bytes, "{usage:?}");
        assert!(Process::new(u32::MAX).is_err());
    }

    #[test]
    fn more_sockets_than_a_process_may_hold_are_refused() {
        assert!(allow_sockets(1).is_ok());
        if getrlimit(Resource::Nofile).maximum.is_some() {
            let said = allow_sockets(1 << 40).unwrap_err().to_string();
            assert!(said.contains("ulimit -n"), "{said}");
        }
    }
}
