//! Replays a week of earthquakes into a tidelog server, and serves the page that shows them.
//!
//! What holds: every quake is published exactly once and in order, although the server may be killed at any moment.
//! One publish is under way at a time, so after a broken connection only one is in doubt, and the newest quake in the
//! log tells whether it was appended. The log is also the only memory: started anew, this goes on where the log ends.

mod link;
mod page;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use link::{Failure, Link};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::time::Instant;

/// One quake a line, by origin time. USGS Earthquake Hazards Program, public domain.
const QUAKES: &str = include_str!("quakes.ndjson");

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
    let mut link = Link::new(&args.server)?;
    if args.no_page {
        return feed(&mut link, &quakes, args.speed).await;
    }
    let listener = TcpListener::bind(args.page)
        .await
        .map_err(|e| format!("the page cannot be served on {}: {e}; choose another address with --page", args.page))?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    println!("page on http://{address}/");
    // The page stays after the last quake.
    let (fed, ()) = tokio::join!(
        async {
            let fed = feed(&mut link, &quakes, args.speed).await;
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
async fn feed(link: &mut Link, quakes: &[Quake], speed: f64) -> Result<(), String> {
    let mut next = resume(link, quakes).await?;
    let bar = progress(quakes.len());
    say(&bar, &format!("{next} of {} quakes are in the log; publishing the others", quakes.len()));
    let mut pace = Pace::new(speed, quakes.get(next));
    while let Some(quake) = quakes.get(next) {
        bar.set_position(next as u64);
        pace.until(quake).await;
        match publish(link, quake).await {
            Ok(()) => {
                next += 1;
                bar.set_message(format!("M {:.1} {}", quake.mag, quake.place));
            }
            Err(Failure::Refused(answer)) => return Err(format!("{} was refused: {answer}", quake.id)),
            Err(Failure::Broken(reason)) => {
                say(&bar, &format!("{reason}; looking where the log ends"));
                // What a living server still has in its hands is settled by then. (A publisher that cannot wait and
                // look sends an idempotency key instead.)
                tokio::time::sleep(LOOK_AGAIN).await;
                let held = resume(link, quakes).await?;
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
async fn resume(link: &mut Link, quakes: &[Quake]) -> Result<usize, String> {
    let mut told = false;
    loop {
        match newest(link).await {
            Ok(None) => return Ok(0),
            Ok(Some(key)) => {
                let held = quakes.iter().position(|quake| quake.id == key);
                return held.map(|n| n + 1).ok_or_else(|| format!("the log's newest event on quakes.** has the key {key:?}, which is none of these quakes; start with an empty data directory"));
            }
            Err(Failure::Refused(answer)) => return Err(format!("the log cannot be read: {answer}")),
            Err(Failure::Broken(reason)) => {
                if !told {
                    println!("waiting for the server ({reason})");
                    told = true;
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        }
    }
}

async fn publish(link: &mut Link, quake: &Quake) -> Result<(), Failure> {
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("event", "quake")
        .append_pair("key", &quake.id)
        .finish();
    link.post_json(&format!("/topics/quakes.{}?{query}", quake.net), quake.line).await.map(drop)
}

/// The key of the newest event on `quakes.**`, if there is any.
async fn newest(link: &mut Link) -> Result<Option<String>, Failure> {
    #[derive(Deserialize)]
    struct Page {
        events: Vec<Event>,
    }
    #[derive(Deserialize)]
    struct Event {
        key: Option<String>,
    }
    let body = link.get_json("/events?topic=quakes.**&from=-1&limit=1").await?;
    let page: Page = serde_json::from_slice(&body).map_err(|e| Failure::Refused(format!("no page of events: {e}")))?;
    Ok(page.events.into_iter().next_back().map(|event| event.key.unwrap_or_default()))
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
