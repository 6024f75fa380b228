//! Other servers of the same kind: where they are found, how they are started, and what the load generator must be told to speak to them.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::servers::{Who, request};

/// Where Debian and Ubuntu put the module.
const NCHAN_MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

const DURABLE_STREAMS: &str = "durable-streams-server";

/// The crate has no filters, and each stream has to be made before it is used. The load generator puts numbers for `{i}`.
const STREAM: &str = "/v1/stream/bench{i}";

/// How many are made: one that is followed, and one beside it that a herd's trickle goes to.
const STREAMS: usize = 2;

/// Whether it is installed; otherwise what is missing.
pub fn present(who: Who) -> Result<(), String> {
    match who {
        Who::Tidelog | Who::Limit | Who::Echo => Ok(()),
        Who::Crate => durable_streams_program().map(drop),
        Who::Nchan if Path::new(NCHAN_MODULE).exists() && on_path("nginx").is_some() => Ok(()),
        Who::Nchan => Err("nginx with nchan is not installed: `make bench-peers` installs it".into()),
    }
}

/// Where `make bench-peers` installs.
fn home() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    cache.unwrap_or_default().join("tidelog/peers")
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.exists())
}

fn durable_streams_program() -> Result<PathBuf, String> {
    let ours = home().join("bin").join(DURABLE_STREAMS);
    let found = if ours.exists() { Some(ours) } else { on_path(DURABLE_STREAMS) };
    found.ok_or_else(|| "the Durable Streams server is not installed: `make bench-peers` installs it".into())
}

pub fn durable_streams(port: u16, data: &Path) -> Result<Command, String> {
    let mut command = Command::new(durable_streams_program()?);
    command.args(["--port", &port.to_string(), "--data-dir"]).arg(data);
    Ok(command)
}

/// Makes the streams, or finds that they are there.
pub fn create_streams(server: SocketAddr) -> Result<(), String> {
    for i in 0..STREAMS {
        let path = STREAM.replace("{i}", &i.to_string());
        let answer = request(server, &format!("PUT {path} HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 0"))?;
        if !answer.split(' ').nth(1).is_some_and(|status| status.starts_with('2')) {
            return Err(format!("the crate made no stream: {}", answer.lines().next().unwrap_or("it hung up")));
        }
    }
    Ok(())
}

/// nginx with two workers, on memory that holds all of a run.
pub fn nchan(port: u16, dir: &Path) -> Result<Command, String> {
    let file = dir.join("nginx.conf");
    let dir = dir.display();
    let text = format!(
        "load_module {NCHAN_MODULE};
worker_processes 2; worker_rlimit_nofile 20000; daemon off; pid {dir}/nginx.pid; error_log {dir}/nginx.err warn;
events {{ worker_connections 19000; }}
http {{
  access_log off; keepalive_requests 100000000; nchan_shared_memory_size 1024M; client_body_temp_path {dir}/body;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location ~ ^/pub/(.+)$ {{ nchan_publisher; nchan_channel_id $1; nchan_message_buffer_length 0; nchan_message_timeout 0; client_max_body_size 2m; }}
    location ~ ^/sub/(.+)$ {{ nchan_subscriber eventsource; nchan_channel_id $1; nchan_subscriber_first_message oldest; }}
  }}
}}
"
    );
    fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()))?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(&file);
    Ok(command)
}

/// The options of the load generator that fit `who`.
pub fn load_options(who: Who) -> Vec<String> {
    let options: &[(&str, &str)] = match who {
        Who::Tidelog | Who::Echo => &[],
        Who::Limit => &[("--subscribe-path", "/"), ("--publish-path", "/")],
        Who::Crate => &[
            ("--subscribe-path", "/v1/stream/bench{i}?offset=now&live=sse"),
            ("--publish-path", STREAM),
            ("--publish-header", "Content-Type: text/plain"),
        ],
        Who::Nchan => &[("--subscribe-path", "/sub/{i}"), ("--publish-path", "/pub/{i}")],
    };
    let mut all: Vec<String> = options.iter().flat_map(|(name, value)| [(*name).into(), (*value).into()]).collect();
    if matches!(who, Who::Crate | Who::Nchan) {
        // Their framing has no ids that ascend as numbers.
        all.push("--no-ids".into());
    }
    all
}

/// The crate's stream from its beginning.
pub const FROM_THE_BEGINNING: &str = "/v1/stream/bench{i}?offset=-1&live=sse";

/// What is installed, for the page.
pub fn version(who: Who) -> Option<String> {
    match who {
        Who::Crate => {
            let listed = fs::read_to_string(home().join(".crates.toml")).ok()?;
            let version = listed.split("\"durable-streams ").nth(1)?.split(' ').next()?;
            Some(format!("Durable Streams {version}"))
        }
        Who::Nchan => {
            let said = Command::new("nginx").arg("-v").output().ok()?.stderr;
            let said = String::from_utf8(said).ok()?;
            Some(format!("nchan in nginx {}", said.trim().rsplit('/').next()?))
        }
        Who::Tidelog | Who::Limit | Who::Echo => None,
    }
}
