//! What a bench found, as one JSON object for programs and as a table for people.
//!
//! What holds: the names of the members are the API, units are in the names, and the table is made of the same members. Must not
//! know what was measured.

use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::process::Usage;
use super::spread::Spread;

/// One member.
#[derive(Debug, Clone)]
pub enum Figure {
    Count(u64),
    /// May be below zero: memory that was given back.
    Bytes(i64),
    /// In the unit that ends its name.
    Number(f64),
    /// In milliseconds.
    Spread(Spread),
    Text(String),
    /// For each of several, in JSON only.
    List(Vec<serde_json::Value>),
    /// It could not be measured.
    Unknown,
}

/// All that a bench found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    members: Vec<(&'static str, Figure)>,
}

impl Report {
    /// Of the bench called `name`.
    pub fn new(name: &str) -> Self {
        Self::default().text("bench", name)
    }

    pub fn text(self, name: &'static str, text: &str) -> Self {
        self.with(name, Figure::Text(text.to_owned()))
    }

    pub fn count(self, name: &'static str, count: u64) -> Self {
        self.with(name, Figure::Count(count))
    }

    pub fn number(self, name: &'static str, number: f64) -> Self {
        self.with(name, if number.is_finite() { Figure::Number(number) } else { Figure::Unknown })
    }

    pub fn memory(self, name: &'static str, bytes: Option<u64>) -> Self {
        self.with(name, bytes.map_or(Figure::Unknown, |bytes| Figure::Bytes(bytes.cast_signed())))
    }

    pub fn spread(self, name: &'static str, spread: &Spread) -> Self {
        self.with(name, Figure::Spread(spread.clone()))
    }

    pub fn with(mut self, name: &'static str, figure: Figure) -> Self {
        self.members.push((name, figure));
        self
    }

    /// What the server paid: its CPU time, also for each of `count` things, and its memory.
    pub fn server(self, cost: Option<Cost>, each: &'static str, count: u64) -> Self {
        let Some(cost @ Cost { before, after }) = cost else {
            let names = ["server_cpu_seconds", each, "server_rss_bytes_before", "server_rss_bytes_after"];
            return names.into_iter().fold(self, |report, name| report.with(name, Figure::Unknown));
        };
        self.number("server_cpu_seconds", cost.cpu_us() / 1e6)
            .number(each, cost.cpu_us() / as_f64(count))
            .memory("server_rss_bytes_before", Some(before.rss_bytes))
            .memory("server_rss_bytes_after", Some(after.rss_bytes))
    }

    /// The table.
    pub fn table(&self) -> String {
        let rows: Vec<_> =
            self.members.iter().filter_map(|(name, figure)| Some((label(name), shown(name, figure)?))).collect();
        let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
        rows.iter().fold(String::new(), |table, (label, value)| table + &format!("{label:<width$}  {value}\n"))
    }
}

/// What a process had used at two times.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub before: Usage,
    pub after: Usage,
}

impl Cost {
    /// Microseconds of CPU time between the two.
    pub fn cpu_us(&self) -> f64 {
        (self.after.cpu_seconds - self.before.cpu_seconds) * 1e6
    }
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.members.len()))?;
        for (name, figure) in &self.members {
            match figure {
                Figure::Count(count) => map.serialize_entry(name, count)?,
                Figure::Bytes(bytes) => map.serialize_entry(name, bytes)?,
                Figure::Number(number) => map.serialize_entry(name, &((number * 1e4).round() / 1e4))?,
                Figure::Spread(spread) => map.serialize_entry(name, spread)?,
                Figure::Text(text) => map.serialize_entry(name, text)?,
                Figure::List(list) => map.serialize_entry(name, list)?,
                Figure::Unknown => map.serialize_entry(name, &())?,
            }
        }
        map.end()
    }
}

/// The units that a name may tell, and how a table writes them.
const UNITS: [(&str, &str); 5] =
    [("_per_second", "/s"), ("_seconds", " s"), ("_ms", " ms"), ("_us", " µs"), ("_bytes", "")];

fn label(name: &str) -> String {
    let mut name = name.replace("_cpu_us_per_", "_cpu_per_").replace("_rss_bytes_", "_memory_");
    for (unit, _) in UNITS {
        if let Some(rest) = name.strip_suffix(unit) {
            name.truncate(rest.len());
        }
    }
    name.replace('_', " ")
}

fn unit(name: &str) -> &'static str {
    if name.contains("_us_per_") {
        return " µs";
    }
    UNITS.iter().find(|(suffix, _)| name.ends_with(suffix)).map_or("", |(_, unit)| unit)
}

fn shown(name: &str, figure: &Figure) -> Option<String> {
    Some(match figure {
        Figure::Count(count) => grouped(*count),
        Figure::Bytes(bytes) if bytes.unsigned_abs() < 10_000 => format!("{bytes} B"),
        Figure::Bytes(bytes) => {
            let sign = if *bytes < 0 { "-" } else { "" };
            format!("{sign}{}", bytesize::ByteSize(bytes.unsigned_abs()).display().iec())
        }
        // Rates above a thousand have no use for a fraction.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Figure::Number(number) if *number >= 1000.0 => format!("{}{}", grouped(number.round() as u64), unit(name)),
        Figure::Number(number) => format!("{number:.3}{}", unit(name)),
        Figure::Spread(spread) if spread.count() == 0 => "none".to_owned(),
        Figure::Spread(spread) => {
            let ms = |value: Option<f64>| value.map_or("–".to_owned(), |ms| format!("{ms:.3}"));
            let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|fraction| ms(spread.milliseconds(fraction)));
            let max = ms(spread.max_milliseconds());
            format!("p50 {p50} ms, p90 {p90}, p99 {p99}, max {max} (of {})", grouped(spread.count()))
        }
        Figure::Text(text) => text.clone(),
        Figure::List(_) => return None,
        Figure::Unknown => "unknown".to_owned(),
    })
}

/// With a comma at the thousands.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count as a number; they stay below 2^53.
#[allow(clippy::cast_precision_loss)]
pub fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut spread = Spread::default();
        spread.add(1_500_000);
        let usage = |cpu_seconds, rss_bytes| Usage { cpu_seconds, rss_bytes, file_bytes: 0 };
        let cost = Cost { before: usage(1.0, 1000), after: usage(3.0, 3 << 20) };
        Report::new("fanout")
            .count("deliveries", 1_234_567)
            .number("deliveries_per_second", 123_456.7)
            .number("seconds", 1.5)
            .spread("latency_ms", &spread)
            .number("ratio", f64::NAN)
            .server(Some(cost), "server_cpu_us_per_delivery", 1_000_000)
            .with("connections", Figure::List(vec![serde_json::Value::Null]))
    }

    #[test]
    fn names_carry_units_in_json() {
        let json = serde_json::to_value(report()).unwrap();
        let want = serde_json::json!({
            "bench": "fanout", "deliveries": 1_234_567, "deliveries_per_second": 123_456.7, "seconds": 1.5,
            "latency_ms": {"p50": 1.5, "p90": 1.5, "p99": 1.5, "max": 1.5, "samples": 1}, "ratio": null,
            "server_cpu_seconds": 2.0, "server_cpu_us_per_delivery": 2.0, "server_rss_bytes_before": 1000,
            "server_rss_bytes_after": 3 << 20, "connections": [null],
        });
        assert_eq!(json, want);
    }

    #[test]
    fn a_table_is_aligned_and_has_units() {
        let want = "\
bench                    fanout
deliveries               1,234,567
deliveries               123,457/s
seconds                  1.500
latency                  p50 1.500 ms, p90 1.500, p99 1.500, max 1.500 (of 1)
ratio                    unknown
server cpu               2.000 s
server cpu per delivery  2.000 µs
server memory before     1000 B
server memory after      3.0 MiB
";
        assert_eq!(report().table(), want);
    }
}
