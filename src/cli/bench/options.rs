//! What every bench is told: where the server is, and how to speak to one that is not tidelog.
//!
//! Must not know what is measured.

use std::time::Duration;

use bytesize::ByteSize;
use tidelog::topic::Topic;

use super::mark;

/// The options that all benches share.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// The server: `http://HOST[:PORT][/PREFIX]`
    #[arg(long, global = true, value_name = "URL", default_value = crate::cli::DEFAULT_SERVER)]
    pub server: String,
    /// What the topics' names begin with. Without it: bench.xxxx, new each time
    #[arg(long, global = true, value_name = "TOPIC", value_parser = Topic::parse)]
    pub topic: Option<Topic>,
    /// Print one JSON object instead of a table
    #[arg(long, global = true)]
    pub json: bool,
    /// The server's process, for its CPU time and memory. Without it: looked up, when the server is on this machine
    #[arg(long, global = true)]
    pub pid: Option<u32>,
    /// How long all of it may take. Without it: 120s, and 10m for `slow`
    #[arg(long, global = true, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
    #[command(flatten)]
    pub peer: Peer,
}

/// How another server is spoken to, to compare with it.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Other servers")]
pub struct Peer {
    /// The path and query to subscribe at; `{i}` is the topic's number
    #[arg(long, global = true, hide_short_help = true, value_name = "PATH", value_parser = path, requires = "publish_path")]
    pub subscribe_path: Option<String>,
    /// The path and query to publish at
    #[arg(long, global = true, hide_short_help = true, value_name = "PATH", value_parser = path, requires = "subscribe_path")]
    pub publish_path: Option<String>,
    /// `herd`: the path and query to connect with again, when not by Last-Event-ID
    #[arg(long, global = true, hide_short_help = true, value_name = "PATH", value_parser = path)]
    pub behind_path: Option<String>,
    /// A header of each subscription (repeatable)
    #[arg(long, global = true, hide_short_help = true, value_name = "NAME: VALUE", value_parser = header)]
    pub subscribe_header: Vec<String>,
    /// A header of each publish (repeatable)
    #[arg(long, global = true, hide_short_help = true, value_name = "NAME: VALUE", value_parser = header)]
    pub publish_header: Vec<String>,
    /// What each published body begins with; --size does not count it
    #[arg(long, global = true, hide_short_help = true, value_name = "TEXT", default_value = "")]
    pub body_prefix: String,
    /// What each published body ends with
    #[arg(long, global = true, hide_short_help = true, value_name = "TEXT", default_value = "")]
    pub body_suffix: String,
    /// The events have no numeric ids: judge by the marks alone
    #[arg(long, global = true, hide_short_help = true)]
    pub no_ids: bool,
}

/// A path with its query, as it goes into a request line.
fn path(text: &str) -> Result<String, &'static str> {
    if !text.starts_with('/') {
        return Err("it begins with a slash");
    }
    if text.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err("it holds spaces or other characters that have to be percent-encoded");
    }
    Ok(text.to_owned())
}

fn header(text: &str) -> Result<String, &'static str> {
    let is_header = text.split_once(':').is_some_and(|(name, _)| !name.is_empty() && !name.contains(' '));
    if is_header && !text.contains(['\r', '\n']) { Ok(text.to_owned()) } else { Err("it looks like `Name: value`") }
}

/// Bytes, as `128`, `1KB` or `16KiB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|size| size.as_u64())
}

/// The size of an event.
pub fn size(text: &str) -> Result<usize, String> {
    let size = bytes(text)?;
    let size = usize::try_from(size).map_err(|error| error.to_string())?;
    if size < mark::LENGTH {
        return Err(format!("it is at least {}: so long is the mark by which events are told apart", mark::LENGTH));
    }
    Ok(size)
}

/// Events a second.
pub fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|error: std::num::ParseFloatError| error.to_string())?;
    if rate.is_finite() && rate > 0.0 { Ok(rate) } else { Err("it is above 0".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked() {
        assert_eq!((bytes("1KB"), bytes("16KiB"), bytes("50MB")), (Ok(1000), Ok(16384), Ok(50_000_000)));
        assert_eq!(size("128"), Ok(128));
        assert!(size("37").is_err() && size("x").is_err());
        assert!(rate("0").is_err() && rate("inf").is_err() && rate("0.5").is_ok());
        assert!(path("x").is_err() && path("/x y").is_err() && path("/{i}?offset=-1").is_ok());
        assert!(header("a").is_err() && header("A b: c").is_err() && header("A: b\r\n").is_err());
        assert!(header("Content-Type: text/plain").is_ok());
    }
}
