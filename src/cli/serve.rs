//! `tidelog serve`: the configuration, the log, the sockets, in the order in which they start and stop.
//!
//! The one line on stdout says that it serves; everything else goes to stderr. Must not know HTTP.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tidelog::config::{self, Config, ConfigError, Flags, LogFormat, Logging, VARIABLE_PREFIX};
use tidelog::http::{self, Api, forms};
use tidelog::log::{self, Log, OpenError, Policy};
use tidelog::metrics::Metrics;
use tidelog::server::{self, Server};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use tracing_subscriber::EnvFilter;

/// What a shell reports for a program that an interrupt ended.
const STATUS_SECOND_SIGNAL: i32 = 130;

/// Within so long after the first signal another one is the same: `timeout`, shells and make signal the process and its group,
/// which must not cut the drain short. Nobody who means a second one is that fast.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// After the log is closed, threads that hang in a disk's driver are left behind: what they wrote was never answered.
const BLOCKING_EXIT: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  tidelog serve
  tidelog serve --listen 0.0.0.0:80 --data /var/lib/tidelog
  tidelog serve --config tidelog.toml --set log.format=json
  TIDELOG_RETENTION__MAX_AGE=7d tidelog serve

Then, in two other terminals:
  curl -N http://127.0.0.1:4242/topics/hello
  curl -d 'world' http://127.0.0.1:4242/topics/hello
";

/// The arguments of `tidelog serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = long_help())]
pub struct Args {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Serve on this address and port; port 0 picks a free one [default: 127.0.0.1:4242]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Keep the log in this directory [default: ./tidelog-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Set one setting, such as heartbeat=30s; can be repeated (--help lists all settings)
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Why the server did not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot start threads: {0}")]
    Runtime(io::Error),
    #[error("cannot wait for signals: {0}")]
    Signals(io::Error),
    #[error("cannot open the log in {}: {error}", dir.display())]
    Open { dir: PathBuf, error: OpenError },
    #[error("cannot listen on {address}: {error}{}", hint(error))]
    Listen { address: SocketAddr, error: io::Error },
}

/// Serves until a signal says stop.
///
/// # Errors
/// [`Error`] when it cannot start; the log is closed then.
pub fn run(args: &Args) -> Result<(), Error> {
    let config = load(args)?;
    init_logging(&config.log);
    debug!(?config, "configured");
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Error::Runtime)?;
    // In a task of its own, since this thread is none of the runtime's: each connection that it accepted would first be told from one thread to another.
    let done = runtime.block_on(runtime.spawn(serve(Arc::new(config))));
    let done = done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
    runtime.shutdown_timeout(BLOCKING_EXIT);
    done
}

/// The configuration of these arguments, the process's variables and the file that they name.
///
/// # Errors
/// [`ConfigError`] for the first thing that is wrong.
pub fn load(args: &Args) -> Result<Config, ConfigError> {
    let flags = Flags { listen: args.listen.as_deref(), data: args.data.as_deref() };
    Config::load(args.config.as_deref(), settings_of(std::env::vars_os())?, &args.set, flags)
}

/// The variables that are settings. Others need not be UTF-8.
fn settings_of(variables: impl Iterator<Item = (OsString, OsString)>) -> Result<Vec<(String, String)>, ConfigError> {
    let mut settings = Vec::new();
    for (name, value) in variables {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with(VARIABLE_PREFIX) {
            let value = value.into_string().map_err(|_| ConfigError::NotUnicode { name: name.clone() })?;
            settings.push((name, value));
        }
    }
    Ok(settings)
}

/// Logs to stderr from here on. `RUST_LOG` is not asked: the setting is `log.level`.
pub fn init_logging(logging: &Logging) {
    // The configuration has parsed it before; what it let pass cannot be wrong here.
    let filter = EnvFilter::builder().parse_lossy(&logging.level);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let set = match logging.format {
        LogFormat::Text => lines.with_ansi(colours).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    if set.is_err() {
        debug!("logging was set up before");
    }
}

/// The order of starting, and the same backwards of stopping.
async fn serve(config: Arc<Config>) -> Result<(), Error> {
    // First, so that a signal while a long log is being opened ends it in order.
    let stop = stop_on_signal()?;
    let metrics = Arc::new(Metrics::new(SystemTime::now()));
    let log = open_log(&config, &metrics).await?;
    let served = serve_log(&config, &log, &metrics, stop).await;
    log.close().await;
    info!(tail = log.tail(), "the log is closed");
    served
}

async fn serve_log(config: &Config, log: &Log, metrics: &Arc<Metrics>, stop: CancellationToken) -> Result<(), Error> {
    let address = config.listen;
    let failed = |error| Error::Listen { address, error };
    let options = server::Options {
        listen: address,
        write_timeout: config.write_timeout,
        drain_timeout: config.drain_timeout,
        connections_max: config.limits.connections_max,
        stream_threads: config.stream_threads,
        publish_threads: config.publish_threads,
        connections: metrics.connections.clone(),
        // A request that never gets to the end of its head is as late as one whose body does not come.
        header_timeout: config.request_timeout,
        ..server::Options::default()
    };
    let server = Server::bind(options).map_err(failed)?;
    let address = server.local_addr().map_err(failed)?;
    if stop.is_cancelled() {
        return Ok(());
    }
    if let Err(error) = announce(&mut io::stdout().lock(), address) {
        // Nobody may be reading; that is no reason not to serve.
        debug!(%error, "cannot write to stdout");
    }
    if io::stderr().is_terminal() {
        let _ = suggest(&mut io::stderr().lock(), address);
    }
    server.run(api(config, log, address), stop.cancelled()).await;
    Ok(())
}

/// Opens the log in `config.data`, on a blocking thread: it may have to recover.
async fn open_log(config: &Config, metrics: &Arc<Metrics>) -> Result<Log, Error> {
    let retention = Policy {
        log: config.retention.limits,
        topics: config.retention.topics.iter().map(|rule| (rule.pattern.clone(), rule.limits)).collect(),
    };
    let options = log::Options {
        durability: config.durability,
        retention,
        topics_max: config.limits.topics_max,
        dedupe_window: config.dedupe_window,
        dedupe_keys_max: config.dedupe_keys_max,
        heartbeat: config.heartbeat,
        metrics: metrics.clone(),
        ..log::Options::new(&config.data)
    };
    let opened = tokio::task::spawn_blocking(move || Log::open(options)).await;
    opened.expect("opening the log does not panic").map_err(|error| Error::Open { dir: config.data.clone(), error })
}

fn api(config: &Config, log: &Log, address: SocketAddr) -> Api {
    let options = http::Options {
        limits: forms::Limits {
            event_bytes_max: config.limits.event_bytes_max as u64,
            batch_events_max: config.limits.batch_events_max,
            batch_bytes_max: config.limits.batch_bytes_max as u64,
        },
        heartbeat: config.heartbeat,
        retry: config.retry,
        request_timeout: config.request_timeout,
        allow_origins: config.cors.allow_origins.clone(),
        loopback: address.ip().is_loopback(),
        ..http::Options::default()
    };
    Api::new(log.clone(), options)
}

/// Cancelled by the first SIGTERM or SIGINT. A second one, later than [`SAME_SIGNAL`], ends the process at once.
fn stop_on_signal() -> Result<CancellationToken, Error> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        let name = next(&mut terminate, &mut interrupt).await;
        info!(signal = name, "stopping; a second signal ends at once");
        told.cancel();
        let first = Instant::now();
        let mut name = next(&mut terminate, &mut interrupt).await;
        while first.elapsed() < SAME_SIGNAL {
            name = next(&mut terminate, &mut interrupt).await;
        }
        warn!(signal = name, "ended at once; what was acknowledged is on disk as far as durability says");
        process::exit(STATUS_SECOND_SIGNAL);
    });
    Ok(stop)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// A connection is an open file, and the limit that a shell hands on, often 1024, is meant for programs of another age:
/// it is raised as far as it may be.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        Ok(()) => debug!(from = limit.current, to = limit.maximum, "raised the limit of open files"),
        Err(error) => warn!(%error, limit = limit.current, "cannot raise the limit of open files"),
    }
}

/// The one line on stdout, by which whoever started the server knows that it serves, and where.
fn announce(out: &mut impl Write, address: SocketAddr) -> io::Result<()> {
    writeln!(out, "listening on http://{address}")?;
    out.flush()
}

/// What to try next.
fn suggest(out: &mut impl Write, mut address: SocketAddr) -> io::Result<()> {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    writeln!(out, "\nTry, in two other terminals:")?;
    writeln!(out, "  curl -N http://{address}/topics/hello")?;
    writeln!(out, "  curl -d 'world' http://{address}/topics/hello\n")?;
    out.flush()
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; choose another port with --listen, or 127.0.0.1:0 for a free one",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege: choose another with --listen",
        io::ErrorKind::AddrNotAvailable => "; it is no address of this machine (0.0.0.0 is all of them)",
        _ => "",
    }
}

fn long_help() -> String {
    let settings = config::describe();
    format!(
        "{EXAMPLES}
Settings and their defaults: for --set; for a TOML file, which can hold [[retention.topics]] too; \
and for variables, as in TIDELOG_LIMITS__EVENT_BYTES_MAX. Flags win over variables, variables over the file.

{settings}
Durations: 15s, 10m, 7d. Sizes: 64KiB, 10GiB. config.example.toml explains each.
"
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_line_on_stdout_is_a_url() {
        let line = |address: &str| written(|out| announce(out, address.parse().unwrap()));
        assert_eq!(line("127.0.0.1:4242"), "listening on http://127.0.0.1:4242\n");
        assert_eq!(line("[::1]:1"), "listening on http://[::1]:1\n");
    }

    #[test]
    fn what_is_suggested_can_be_reached() {
        let lines = |address: &str| written(|out| suggest(out, address.parse().unwrap()));
        assert!(lines("0.0.0.0:80").contains("curl -N http://127.0.0.1:80/topics/hello\n"));
        assert!(lines("[::]:80").contains("curl -d 'world' http://[::1]:80/topics/hello\n"));
        assert!(lines("10.0.0.7:80").contains("http://10.0.0.7:80/"));
    }

    #[test]
    fn only_variables_of_ours_need_be_text() {
        let bytes = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
        let foreign = (bytes(b"LS_\xff"), bytes(b"\xff"));
        let ours = (bytes(b"TIDELOG_DATA"), bytes(b"/x"));
        let settings = settings_of([foreign, ours].into_iter()).unwrap();
        assert_eq!(settings, [("TIDELOG_DATA".into(), "/x".into())]);
        let broken = (bytes(b"TIDELOG_DATA"), bytes(b"/\xff"));
        let error = settings_of([broken].into_iter()).unwrap_err();
        assert_eq!(error.to_string(), "the variable TIDELOG_DATA does not hold valid UTF-8");
    }

    #[test]
    fn the_help_shows_how_and_lists_every_setting() {
        let help = long_help();
        assert!(help.contains("curl -N http://127.0.0.1:4242/topics/hello"));
        for name in ["heartbeat", "limits.event_bytes_max", "cors.allow_origins", "log.level"] {
            assert!(help.contains(name), "{name}");
        }
    }
}
