//! Replays a week of earthquakes into a tidelog server, and serves the page that shows them.
//!
//! What holds: every quake is published exactly once and in order, although the server may be killed at any moment.
//! One publish is under way at a time, so after a broken connection only one is in doubt, and the newest quake in the
//! log tells whether it was appended. The log is also the only memory: started anew, this goes on where the log ends.

mod page;

use std::fmt::Display;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use tidelog::client::{self, Client, Item, SubscribeOptions, Timeouts};
use tidelog::event::{EventType, Key, NewEvent};
use tidelog::topic::{Pattern, Topic};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;

/// One quake a line, by origin time. USGS Earthquake Hazards Program, public domain.
const QUAKES: &str = include_str!("quakes.ndjson");

/// Every quake; each is published to its network's topic.
const PATTERN: &str = "quakes.**";

/// A loopback or a LAN answers at once; and no fsync of a busy disk takes longer than the second.
const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(3), answer: Duration::from_secs(30) };

/// How often a server that is away is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Publishes a week of earthquakes to `quakes.<network>`, and serves a page that follows them.
#[derive(Parser)]
#[command(name = "quakes")]
struct Args {
    /// The tidelog server.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:4242")]
    server: String,
    /// Seconds of the week in one second: 3600 makes an hour a second, 0 goes as fast as answers come.
    #[arg(long, value_name = "N", default_value_t = 3600.0, value_parser = speed)]
    speed: f64,
    /// Where the page is served; port 0 picks one. The server must allow its origin (`cors.allow_origins`).
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:4243")]
    page: SocketAddr,
    /// Serve no page, and end with the last quake.
    #[arg(long)]
    no_page: bool,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(n) if n.is_finite() && n >= 0.0 => Ok(n),
        _ => Err("a number from 0 up is wanted".into()),
    }
}

/// What of a quake is needed to publish it; the line itself is the data.
#[derive(Deserialize)]
struct Quake {
    id: String,
    /// Milliseconds since 1970.
    time: u64,
    net: String,
    mag: f64,
    place: String,
    #[serde(skip)]
    line: &'static str,
}

impl Quake {
    fn event(&self) -> Result<NewEvent, String> {
        let wrong = |e: &dyn Display| format!("quakes.ndjson: {}: {e}", self.id);
        Ok(NewEvent {
            topic: Topic::parse(&format!("quakes.{}", self.net)).map_err(|e| wrong(&e))?,
            event: EventType::parse("quake").map_err(|e| wrong(&e))?,
            key: Some(Key::parse(&self.id).map_err(|e| wrong(&e))?),
            data: self.line.to_owned(),
        })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let run = run(Args::parse());
    let ended = tokio::select! {
        ended = run => ended,
        _ = tokio::signal::ctrl_c() => Ok(()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("quakes: {reason}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), String> {
    let quakes = read(QUAKES)?;
    let client = Client::new(&args.server).map_err(|e| e.to_string())?.with_timeouts(TIMEOUTS);
    if args.no_page {
        return feed(&client, &quakes, args.speed).await;
    }
    let listener = TcpListener::bind(args.page)
        .await
        .map_err(|e| format!("the page cannot be served on {}: {e}; choose another address with --page", args.page))?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    println!("page on http://{address}/");
    // The page stays after the last quake.
    let (fed, ()) = tokio::join!(
        async {
            let fed = feed(&client, &quakes, args.speed).await;
            if let Err(reason) = &fed {
                eprintln!("quakes: {reason}; Ctrl-C ends the page too");
            }
            fed
        },
        page::serve(listener, &args.server)
    );
    fed
}

fn read(lines: &'static str) -> Result<Vec<Quake>, String> {
    let quake = |line| serde_json::from_str::<Quake>(line).map(|quake| Quake { line, ..quake });
    lines.lines().map(quake).collect::<Result<_, _>>().map_err(|e| format!("quakes.ndjson: {e}"))
}

/// Publishes what the log does not hold yet.
async fn feed(client: &Client, quakes: &[Quake], speed: f64) -> Result<(), String> {
    let mut next = resume(client, quakes).await?;
    let bar = progress(quakes.len());
    say(&bar, &format!("{next} of {} quakes are in the log; publishing the others", quakes.len()));
    let mut pace = Pace::new(speed, quakes.get(next));
    while let Some(quake) = quakes.get(next) {
        bar.set_position(next as u64);
        pace.until(quake).await;
        match client.publish(quake.event()?, None).await {
            Ok(_) => {
                next += 1;
                bar.set_message(format!("M {:.1} {}", quake.mag, quake.place));
            }
            Err(error) if !error.outcome_unknown() && !error.is_passing() => {
                return Err(format!("{}: {error}", quake.id));
            }
            Err(error) => {
                say(&bar, &format!("{error}; looking where the log ends"));
                // What a living server still has in its hands is settled by then. (A publisher that cannot wait and
                // look sends an idempotency key instead.)
                tokio::time::sleep(LOOK_AGAIN).await;
                let held = resume(client, quakes).await?;
                say(&bar, &verdict(held, next, &quake.id));
                next = held;
                pace = Pace::new(speed, quakes.get(next));
            }
        }
    }
    bar.finish_and_clear();
    println!("all {} quakes are in the log", quakes.len());
    Ok(())
}

/// What the end of the log says about the publish that was under way: quake number `next`.
fn verdict(held: usize, next: usize, id: &str) -> String {
    match held {
        n if n == next => format!("{id} was not appended; publishing it again"),
        n if n == next + 1 => format!("{id} had been appended; going on after it"),
        n if n < next => format!("THE LOG HOLDS {n} QUAKES BUT HAD CONFIRMED {next}; publishing the others again"),
        n => format!("somebody else publishes too: the log holds {n} quakes; going on after them"),
    }
}

/// How many quakes the log holds, told by the newest one. Waits for a server that is away.
async fn resume(client: &Client, quakes: &[Quake]) -> Result<usize, String> {
    let Some(newest) = newest(client).await? else { return Ok(0) };
    let key = newest.key.unwrap_or_default();
    let held = quakes.iter().position(|quake| quake.id == key);
    held.map(|n| n + 1).ok_or_else(|| {
        format!("the log's newest event on {PATTERN} has the key {key:?}, which is none of these quakes; start with an empty data directory")
    })
}

/// The newest quake in the log, if there is any: a subscription to the last one that ends where the log ends.
async fn newest(client: &Client) -> Result<Option<client::Event>, String> {
    let pattern = Pattern::parse(PATTERN).expect("it is fixed and valid");
    let options = SubscribeOptions {
        from: Some("-1".into()),
        follow: false,
        retry: LOOK_AGAIN,
        retry_max: LOOK_AGAIN,
        ..SubscribeOptions::default()
    };
    let mut stream = client.subscribe(&[pattern], options);
    let mut told = false;
    while let Some(item) = stream.next().await {
        match item.map_err(|e| format!("the log cannot be read: {e}"))? {
            Item::Event(event) => return Ok(Some(event)),
            Item::Disconnected { why, .. } if !told => {
                println!("waiting for the server ({why})");
                told = true;
            }
            _ => {}
        }
    }
    Ok(None)
}

/// When each quake is due: as far apart as they were, `speed` times as fast.
struct Pace {
    speed: f64,
    began: Instant,
    first: u64,
}

impl Pace {
    /// Starts now, with `first`.
    fn new(speed: f64, first: Option<&Quake>) -> Self {
        Self { speed, began: Instant::now(), first: first.map_or(0, |quake| quake.time) }
    }

    async fn until(&mut self, quake: &Quake) {
        if self.speed > 0.0 {
            let since = Duration::from_millis(quake.time.saturating_sub(self.first));
            tokio::time::sleep_until(self.began + since.div_f64(self.speed)).await;
        }
    }
}

/// A bar on the terminal; nothing where there is none.
fn progress(total: usize) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len} {wide_msg}").expect("the template is fixed and valid");
    ProgressBar::new(total as u64).with_style(style)
}

fn say(bar: &ProgressBar, words: &str) {
    bar.suspend(|| println!("{words}"));
}
