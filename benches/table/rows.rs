//! The table: its rows in order, and how each is measured.

mod curves;
mod echo;
mod fanout;
mod herd;
mod idle;
mod publish;
mod replay;
mod resume;
mod slow;
mod topics;

use crate::run::Run;

/// A row.
pub struct Row {
    /// What names it on the command line and in the notes.
    pub key: &'static str,
    pub what: &'static str,
    pub measured: &'static str,
    /// In words; the figures carry it in numbers.
    pub goal: &'static str,
    /// How many pairs it takes when nobody says otherwise.
    pub pairs: usize,
    /// About how many seconds it takes at first, and for each pair: for whoever waits.
    pub seconds: (f64, f64),
    pub run: fn(&mut Run) -> Result<(), String>,
}

/// A CPU figure needs more pairs than others: what else the machine does falls on it.
const CPU_PAIRS: usize = 10;
const PAIRS: usize = 3;

/// All rows, in the table's order. The last has no goals: it is for the plots.
pub const ROWS: &[Row] = &[
    Row {
        key: "fanout",
        what: "delivery below saturation: 1,000 subscribers × 100 events/s × 128 B",
        measured: "server CPU per delivery ÷ that of `limit`",
        goal: "≤ 1.10",
        pairs: CPU_PAIRS,
        seconds: (0.0, 22.0),
        run: fanout::below,
    },
    Row {
        key: "fanout-near",
        what: "delivery near saturation: 1,000 subscribers, offered 2,000 events/s for 10 s",
        measured: "share delivered; p99 ÷ the crate's; CPU ÷ the crate's",
        goal: "all; ≤ 1; ≤ 0.85",
        pairs: CPU_PAIRS,
        seconds: (0.0, 30.0),
        run: fanout::near,
    },
    Row {
        key: "fanout-beyond",
        what: "delivery beyond it: the same, 10,000 events unthrottled, 1 publisher and 16",
        measured: "deliveries/s ÷ the crate's",
        goal: "≥ 1.5",
        pairs: PAIRS,
        seconds: (0.0, 30.0),
        run: fanout::beyond,
    },
    Row {
        key: "idle",
        what: "an idle subscriber, HTTP/1.1 without TLS, 10,000 of them",
        measured: "resident bytes each: one filter; 10,000 filters; an HTTP/2 stream",
        goal: "≤ 256 B; ≤ 1 KB; ≤ 4 KB",
        pairs: PAIRS,
        seconds: (0.0, 50.0),
        run: idle::run,
    },
    Row {
        key: "topics",
        what: "10,000 subscribers on 10,000 topics, publishing to them one by one",
        measured: "server CPU per publish ÷ the same with 10 subscribers",
        goal: "≤ 1.2",
        pairs: CPU_PAIRS,
        seconds: (0.0, 16.0),
        run: topics::run,
    },
    Row {
        key: "publish",
        what: "synced publishes, one event a request, 256 B; 1, 8, 64 publishers",
        measured: "acks/s ÷ the crate's",
        goal: "≥ 1.0, 1.2, 1.3",
        pairs: PAIRS,
        seconds: (0.0, 24.0),
        run: publish::single,
    },
    Row {
        key: "publish-batches",
        what: "synced JSON-lines batches of 500 × 256 B, 4 publishers",
        measured: "events/s ÷ RocksDB's own synced batches of 500 in a loop",
        goal: "≥ 0.6",
        pairs: PAIRS,
        seconds: (0.0, 10.0),
        run: publish::batches,
    },
    Row {
        key: "replay",
        what: "replay of 1,000,000 events of 256 B on one connection, caches dropped and warm",
        measured: "events/s ÷ raw RocksDB iteration; ÷ the crate's SSE replay (one event a post there too)",
        goal: "≥ 0.6; ≥ 2",
        pairs: PAIRS,
        seconds: (60.0, 25.0),
        run: replay::one,
    },
    Row {
        key: "replay-50",
        what: "50 such replays at once",
        measured: "share of the replays that were not cut; CPU per event ÷ one replay's",
        goal: "all; ≤ 0.6",
        pairs: CPU_PAIRS,
        seconds: (20.0, 30.0),
        run: replay::many,
    },
    Row {
        key: "resume",
        what: "first event of a resume, log of 10 thousand, 1 and 10 million events, topic dense and 1 in 10,000, and a rare wildcard over 100,000 topics",
        measured: "p99 ÷ that at 10 thousand, and p99",
        goal: "≤ 1.5, and ≤ 5 ms",
        pairs: PAIRS,
        seconds: (90.0, 30.0),
        run: resume::run,
    },
    Row {
        key: "herd",
        what: "a herd: 10,000 subscribers reconnect at once, each 100 events behind",
        measured: "until all are live ÷ the crate's time for the same; publish p99 meanwhile ÷ quiet",
        goal: "≤ 0.5; ≤ 3",
        pairs: PAIRS,
        seconds: (0.0, 60.0),
        run: herd::run,
    },
    Row {
        key: "echo",
        what: "publish to receive, one subscriber",
        measured: "p50 and p99 beside those of a program that does fdatasync and a loopback echo in the same run",
        goal: "+ 0.2 ms; + 1 ms",
        pairs: PAIRS,
        seconds: (0.0, 4.0),
        run: echo::run,
    },
    Row {
        key: "slow",
        what: "ten subscribers that read 1 KB/s among 1,000 quick ones, 50 MB published",
        measured: "publish p99 and quick delivery p99 ÷ without them; memory grows by, beyond what ten quick ones in their place make it grow",
        goal: "≤ 1.1; ≤ 1 MB each",
        pairs: PAIRS,
        seconds: (0.0, 320.0),
        run: slow::run,
    },
    Row {
        key: "curves",
        what: "the plots: 128 B events over numbers of subscribers and over rates",
        measured: "server CPU per delivery",
        goal: "",
        pairs: 1,
        seconds: (0.0, 250.0),
        run: curves::run,
    },
];

/// Row, key, title, x and y of each plot.
pub const PLOTS: &[(&str, &str, &str, &str, &str)] = &[
    (
        "curves",
        curves::SUBSCRIBERS,
        "Cost of a delivery over subscribers, at 50 events/s",
        "subscribers",
        "server CPU per delivery, µs",
    ),
    (
        "curves",
        curves::RATES,
        "Cost of a delivery over the rate, 1,000 subscribers",
        "events/s",
        "server CPU per delivery, µs",
    ),
    ("resume", resume::PLOT, "First event of a resume over the size of the log", "events in the log", "p99, ms"),
];
