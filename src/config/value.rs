//! One value as a layer gave it, and how it is read as a duration, a size, a number, a choice.
//!
//! A reader that refuses says what the value *must be*, as the rest of the sentence "…, but it must be …".
//! Must not know which key a value is for.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytesize::ByteSize;
use toml::de::{DeInteger, DeValue};

/// What a value must be instead.
pub(super) type MustBe = String;

/// A value of the file, a variable or a flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// Also everything from a variable or a flag.
    Text(String),
    Integer(i128),
    List(Vec<Value>),
    Yes(bool),
    /// Nothing that any key takes; says what it is.
    Other(String),
}

impl Value {
    pub(super) fn from_toml(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) => integer(number),
            DeValue::Array(items) => Self::List(items.iter().map(|item| Self::from_toml(item.get_ref())).collect()),
            DeValue::Float(number) => Self::Other(number.to_string()),
            DeValue::Boolean(yes) => Self::Yes(*yes),
            DeValue::Datetime(time) => Self::Other(time.to_string()),
            DeValue::Table(_) => Self::Other("a table".into()),
        }
    }

    /// Text that is not empty.
    pub(super) fn text(&self, must_be: &str) -> Result<&str, MustBe> {
        match self {
            Self::Text(text) if !text.is_empty() => Ok(text),
            _ => Err(must_be.into()),
        }
    }

    /// A duration with its unit, in `range`.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Result<Duration, MustBe> {
        self.read_duration().filter(|read| range.contains(read)).ok_or_else(|| {
            let (least, most) = (show_duration(*range.start()), show_duration(*range.end()));
            format!("a duration from {least} to {most}, with its unit, such as 15s, 10m or 7d")
        })
    }

    /// A duration with its unit, of one millisecond or more; or 0, which stands for no limit.
    pub(super) fn duration_limit(&self) -> Result<Duration, MustBe> {
        let whole = |read: &Duration| read.is_zero() || *read >= Duration::from_millis(1);
        self.read_duration()
            .filter(whole)
            .ok_or_else(|| "0 (no limit) or a duration of at least 1ms, with its unit, such as 15m, 12h or 7d".into())
    }

    /// A number of bytes in `range`, with or without a unit.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Result<u64, MustBe> {
        self.read_size().filter(|read| range.contains(read)).ok_or_else(|| {
            let (least, most) = (show_size(*range.start()), show_size(*range.end()));
            format!("a size from {least} to {most}, in bytes or with a unit, such as 65536, 64KiB or 1MiB")
        })
    }

    /// A number of bytes, with or without a unit; 0 stands for no limit.
    pub(super) fn size_limit(&self) -> Result<u64, MustBe> {
        self.read_size()
            .ok_or_else(|| "0 (no limit) or a size, in bytes or with a unit, such as 512MiB or 10GiB".into())
    }

    /// A whole number in `range`.
    pub(super) fn count(&self, range: RangeInclusive<u64>) -> Result<u64, MustBe> {
        self.read_count()
            .filter(|read| range.contains(read))
            .ok_or_else(|| format!("a whole number from {} to {}", range.start(), range.end()))
    }

    /// A whole number up to `most`; 0 stands for no limit.
    pub(super) fn count_limit(&self, most: u64) -> Result<u64, MustBe> {
        self.read_count()
            .filter(|read| *read <= most)
            .ok_or_else(|| format!("0 (no limit) or a whole number of at most {most}"))
    }

    /// `true` or `false`.
    pub(super) fn yes(&self) -> Result<bool, MustBe> {
        match self {
            Self::Yes(yes) => Ok(*yes),
            _ => Err("true or false".into()),
        }
    }

    /// One of the `choices`, by name.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, MustBe> {
        let chosen = self.text("").unwrap_or_default();
        choices.iter().find(|(name, _)| *name == chosen).map(|&(_, choice)| choice).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            format!("one of {}", names.join(", "))
        })
    }

    /// An address and a port; `localhost` is 127.0.0.1.
    pub(super) fn address(&self) -> Result<SocketAddr, MustBe> {
        let text = self.text("").unwrap_or_default();
        let local = || {
            let port = text.strip_prefix("localhost:")?.parse().ok()?;
            Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))
        };
        text.parse().ok().or_else(local).ok_or_else(|| {
            "an address and a port, such as 127.0.0.1:4242, [::1]:4242 or, for every network, 0.0.0.0:4242".into()
        })
    }

    /// Origins as browsers write them. A text holds them separated by commas; the empty one is none.
    pub(super) fn origins(&self) -> Result<Vec<String>, MustBe> {
        let must_be = |wrong: &Self| {
            format!(
                "a list of origins, each scheme://host or scheme://host:port and nothing after it, such as \
                 https://app.example.com, which {wrong} is not"
            )
        };
        let read = |text: &str| read_origin(text).ok_or_else(|| must_be(&Self::Text(text.into())));
        let mut origins = match self {
            Self::Text(text) if text.trim().is_empty() => Vec::new(),
            Self::Text(text) => text.split(',').map(|item| read(item.trim())).collect::<Result<_, _>>()?,
            Self::List(items) => items
                .iter()
                .map(|item| match item {
                    Self::Text(text) => read(text),
                    other => Err(must_be(other)),
                })
                .collect::<Result<_, _>>()?,
            other => return Err(must_be(other)),
        };
        origins.sort();
        origins.dedup();
        Ok(origins)
    }

    fn read_duration(&self) -> Option<Duration> {
        match self {
            Self::Integer(0) => Some(Duration::ZERO),
            Self::Text(text) => humantime::parse_duration(text).ok(),
            _ => None,
        }
    }

    fn read_size(&self) -> Option<u64> {
        match self {
            Self::Integer(number) => u64::try_from(*number).ok(),
            Self::Text(text) => text.parse::<ByteSize>().ok().map(|size| size.as_u64()),
            _ => None,
        }
    }

    fn read_count(&self) -> Option<u64> {
        match self {
            Self::Integer(number) => u64::try_from(*number).ok(),
            Self::Text(text) if text.bytes().all(|b| b.is_ascii_digit()) => text.parse().ok(),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::List(items) => {
                f.write_str("[")?;
                for (at, item) in items.iter().enumerate() {
                    if at > 0 {
                        f.write_str(", ")?;
                    }
                    item.fmt(f)?;
                }
                f.write_str("]")
            }
            Self::Yes(yes) => yes.fmt(f),
            Self::Other(what) => f.write_str(what),
        }
    }
}

fn integer(number: &DeInteger<'_>) -> Value {
    // An integer beyond 128 bits is not one that any key takes: it is shown as it was written.
    i128::from_str_radix(number.as_str(), number.radix())
        .map_or_else(|_| Value::Other(number.to_string()), Value::Integer)
}

/// The origin as a browser sends it: lower case, without the port that the scheme implies.
fn read_origin(text: &str) -> Option<String> {
    let text = text.to_ascii_lowercase();
    let (scheme, authority) = text.split_once("://")?;
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    // The colon of a port is the one after the bracket of an IPv6 address.
    let host_end = authority.find(']').map_or(0, |bracket| bracket + 1);
    let (host, port) = match authority[host_end..].find(':') {
        Some(colon) => {
            let (host, port) = authority.split_at(host_end + colon);
            (host, Some(port[1..].parse::<u16>().ok().filter(|_| port[1..].bytes().all(|b| b.is_ascii_digit()))?))
        }
        None => (authority, None),
    };
    let host_ok = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)),
    };
    if !scheme_ok || !host_ok {
        return None;
    }
    match (scheme, port) {
        (_, None) | ("http", Some(80)) | ("https", Some(443)) => Some(format!("{scheme}://{host}")),
        (_, Some(port)) => Some(format!("{scheme}://{host}:{port}")),
    }
}

/// A duration as it is written in the configuration: the largest unit that holds it in whole numbers, up to days.
pub(super) fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    match units.iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None if millis == 0 => "0".into(),
        None => format!("{millis}ms"),
    }
}

/// A size as it is written in the configuration: the largest unit that holds it in whole numbers.
pub(super) fn show_size(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    #[test]
    fn durations_have_a_unit_and_stay_in_their_range() {
        let range = Duration::from_millis(1)..=Duration::from_secs(86_400);
        for (written, seconds) in [("15s", 15), ("10m", 600), ("1h 30m", 5400), ("1d", 86_400)] {
            assert_eq!(text(written).duration(range.clone()), Ok(Duration::from_secs(seconds)), "{written}");
        }
        for bad in
            [text("15"), text("0"), text("0s"), text("2d"), text(""), text("-1s"), text("1us"), Value::Integer(15)]
        {
            assert!(bad.duration(range.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_limit_of_zero_is_no_limit_and_none_rounds_to_it() {
        for zero in [text("0"), text("0s"), Value::Integer(0)] {
            assert_eq!(zero.duration_limit(), Ok(Duration::ZERO), "{zero}");
        }
        assert_eq!(text("7d").duration_limit(), Ok(Duration::from_secs(7 * 86_400)));
        assert!(text("1us").duration_limit().is_err());
        assert_eq!(Value::Integer(0).size_limit(), Ok(0));
        assert_eq!(text("0").count_limit(9), Ok(0));
        assert!(text("10").count_limit(9).is_err());
    }

    #[test]
    fn sizes_are_bytes_or_have_a_unit() {
        for (written, bytes) in [("64KiB", 65_536), ("64 kib", 65_536), ("10GiB", 10 << 30), ("1KB", 1000), ("7", 7)] {
            assert_eq!(text(written).size_limit(), Ok(bytes), "{written}");
        }
        assert_eq!(Value::Integer(4096).size(1..=8192), Ok(4096));
        for bad in [text("64 apples"), text(""), text("-1"), Value::Integer(-1), Value::Other("1.5".into())] {
            assert!(bad.size_limit().is_err(), "{bad}");
        }
    }

    #[test]
    fn counts_are_whole_numbers() {
        assert_eq!(text("10000").count(1..=1_000_000), Ok(10_000));
        assert_eq!(Value::Integer(1).count(1..=2), Ok(1));
        for bad in [text(""), text("1.0"), text("+1"), text("1k"), text("0"), text("99999999999999999999")] {
            assert!(bad.count(1..=1_000_000).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_address_has_a_port() {
        for (written, read) in
            [("127.0.0.1:0", "127.0.0.1:0"), ("[::]:80", "[::]:80"), ("localhost:4242", "127.0.0.1:4242")]
        {
            assert_eq!(text(written).address().unwrap().to_string(), read);
        }
        for bad in ["", "127.0.0.1", ":4242", "4242", "example.com:80", "127.0.0.1:65536"] {
            assert!(text(bad).address().is_err(), "{bad}");
        }
    }

    #[test]
    fn origins_are_read_as_browsers_send_them() {
        let read = |written| text(written).origins();
        assert_eq!(read(""), Ok(vec![]));
        assert_eq!(
            read("https://B.example:443, http://a.example:8080"),
            Ok(vec!["http://a.example:8080".into(), "https://b.example".into()])
        );
        assert_eq!(
            read("http://[::1]:80,http://[::1]:3000"),
            Ok(vec!["http://[::1]".into(), "http://[::1]:3000".into()])
        );
        assert_eq!(read("capacitor://localhost"), Ok(vec!["capacitor://localhost".into()]));
        for bad in [
            "*",
            "null",
            "a.example",
            "https://",
            "https://a.example/",
            "https://a.example/x",
            "https://a b",
            "https://*.example",
            "https://u@a.example",
            "https://a:",
            "https://a:x",
            "https://a:+1",
            "https://a:65536",
            "https://[::1",
            "https://[x]",
            "://a",
            "https://a,",
            "http://é.example",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert!(Value::List(vec![Value::Integer(1)]).origins().is_err());
        assert!(Value::Integer(1).origins().is_err());
    }

    #[test]
    fn what_is_shown_can_be_read_back() {
        for millis in [1, 1500, 60_000, 5_400_000, 86_400_000, 90_000_000_000] {
            let duration = Duration::from_millis(millis);
            assert_eq!(text(&show_duration(duration)).duration_limit(), Ok(duration));
        }
        assert_eq!(show_duration(Duration::from_secs(604_800)), "7d");
        for bytes in [0, 1, 1000, 1024, 3 << 20, (1 << 40) + 1] {
            assert_eq!(text(&show_size(bytes)).size_limit(), Ok(bytes));
        }
        assert_eq!(show_size(16 << 20), "16MiB");
    }
}
