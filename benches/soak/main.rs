//! A long run at four fifths of what the machine can do, with clients that come and go and retention that trims all the while: memory,
//! file descriptors and latency are to stay flat, and no event is to be lost. Then three times as much as it can do, and how long it
//! takes to be well again.
//!
//! `make soak MINUTES=30` runs it and writes docs/soak.md with its plots. The load is made by this program, on the same machine: what is
//! called capacity is what server and load can do together. What is wrong ends it with an exit status of 1.
//!
//! Every event says its number among those of its topic and when it was to be sent, so that every reader can tell a lost one, a double
//! one, and how old it is. Publishers send by the clock, not when the answer to the last one has come: a server that is late shows as late.

// Rates and times are printed with three digits.
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod page;
#[path = "../table/plot.rs"]
mod plot;
mod publishers;
mod readers;
mod samples;
mod server;
mod verdict;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::time::Instant;

use crate::publishers::{Pace, Publishers};
use crate::readers::Readers;
use crate::samples::{Sample, Tally};
use crate::server::Server;
use crate::verdict::{Overload, Verdict};

/// Run a soak and an overload, and write docs/soak.md
#[derive(Parser)]
struct Args {
    /// Minutes at four fifths of capacity
    #[arg(long, default_value = "10")]
    minutes: String,
    /// Only print the verdict; leave docs/ as it is
    #[arg(long, default_value = "")]
    dry: String,
    /// cargo gives this to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

/// How long capacity is measured, after as long to get going.
const CALIBRATION: Duration = Duration::from_secs(10);
/// Before the first window: until retention trims, and the store's buffers have been filled and emptied.
const WARMING: Duration = Duration::from_secs(90);
/// What of the capacity the soak asks for.
const SHARE: f64 = 0.8;
/// What of it the overload asks for, and how long.
const OVERLOAD: f64 = 3.0;
const OVERLOAD_TIME: Duration = Duration::from_secs(30);
/// Windows of the whole soak; each is one place of a plot.
const WINDOWS: u32 = 120;
/// After an overload, windows of so long are looked at,
const LOOK: Duration = Duration::from_millis(500);
/// at most so long.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// The whole run.
struct Soak {
    server: Server,
    publishers: Publishers,
    tally: Arc<Tally>,
    /// Events a second.
    capacity: f64,
    begun: Instant,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let Some(minutes) = args.minutes.parse().ok().filter(|m| (0.1..=10_000.0).contains(m)) else {
        eprintln!("soak: MINUTES is a number from 0.1 to 10000, not {:?}", args.minutes);
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime.map_err(|e| e.to_string()).and_then(|runtime| runtime.block_on(run(minutes)));
    match done {
        Ok(verdict) => {
            println!("{}", verdict.text());
            if args.dry.is_empty()
                && let Err(error) = page::write(&verdict)
            {
                eprintln!("soak: writing docs/soak.md: {error}");
                return ExitCode::from(2);
            }
            if verdict.faults().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(minutes: f64) -> Result<Verdict, String> {
    let server = Server::start()?;
    let tally = Arc::new(Tally::new());
    let readers = Readers::start(&server.url(), &tally)?;
    let publishers = Publishers::start(&server.url(), &tally)?;
    let mut soak = Soak { server, publishers, tally, capacity: 0.0, begun: Instant::now() };
    soak.calibrate().await?;
    let samples = soak.soak(Duration::from_secs_f64(minutes * 60.0)).await?;
    let overload = soak.overload(&samples).await?;
    soak.publishers.pace(Pace::Rest);
    // Whoever is behind catches up; then it is known that nothing is missing.
    soak.publishers.stop().await;
    let everyone = readers.finish(RECOVERY_MAX).await;
    let said = soak.server.stop()?;
    Ok(Verdict { minutes, capacity: soak.capacity, samples, overload, everyone, said, found: soak.tally.found() })
}

impl Soak {
    /// Publishers ask as fast as they are answered; what arrives at the readers then is the capacity.
    async fn calibrate(&mut self) -> Result<(), String> {
        eprintln!("soak: measuring what server and load can do together, {} s", 2 * CALIBRATION.as_secs());
        self.publishers.pace(Pace::Unbounded);
        tokio::time::sleep(CALIBRATION).await;
        self.sample(CALIBRATION).await?;
        let sample = self.sample(CALIBRATION).await?;
        self.capacity = sample.acked_rate.min(sample.delivered_rate);
        eprintln!(
            "soak: {} events/s were answered and {} read: the capacity is the lesser",
            plot::number(sample.acked_rate),
            plot::number(sample.delivered_rate)
        );
        if self.capacity < 10.0 {
            return Err(format!("a capacity of {:.1} events/s is none: {}", self.capacity, self.server.said()));
        }
        Ok(())
    }

    async fn soak(&mut self, time: Duration) -> Result<Vec<Sample>, String> {
        let window = time / WINDOWS;
        self.publishers.pace(Pace::Rate(self.capacity * SHARE));
        eprintln!("soak: warming up, {} s", WARMING.as_secs());
        self.sample(WARMING).await?;
        let mut samples = Vec::new();
        let bar = indicatif::ProgressBar::new(WINDOWS.into());
        bar.set_style(
            indicatif::ProgressStyle::with_template("soak: {bar:30} {pos}/{len} {msg}, {eta} to go")
                .map_err(|e| e.to_string())?,
        );
        for _ in 0..WINDOWS {
            let sample = self.sample(window).await?;
            bar.set_message(sample.line());
            bar.inc(1);
            samples.push(sample);
        }
        bar.finish_and_clear();
        Ok(samples)
    }

    /// Three times what it can do; then how long it takes until publishes and deliveries are as quick as before.
    async fn overload(&mut self, before: &[Sample]) -> Result<Overload, String> {
        eprintln!("soak: three times as much, {} s", OVERLOAD_TIME.as_secs());
        let quiet = |of: fn(&Sample) -> f64| verdict::median(before.iter().map(of));
        let (publish, delivery) = (quiet(|s| s.publish_p99), quiet(|s| s.delivery_p99));
        self.publishers.pace(Pace::Overload(self.capacity * OVERLOAD));
        let sample = self.sample(OVERLOAD_TIME).await?;
        self.publishers.pace(Pace::Rate(self.capacity * SHARE));
        let over = Instant::now();
        let mut recovered = None;
        while over.elapsed() < RECOVERY_MAX {
            let now = self.sample(LOOK).await?;
            if now.acked_rate > 0.0 && now.publish_p99 <= 2.0 * publish && now.delivery_p99 <= 2.0 * delivery {
                recovered = Some(over.elapsed());
                break;
            }
        }
        let after = self.sample(CALIBRATION).await?;
        Ok(Overload { offered: self.capacity * OVERLOAD, sample, recovered, after })
    }

    async fn sample(&self, window: Duration) -> Result<Sample, String> {
        self.tally.clear();
        let begun = Instant::now();
        tokio::time::sleep(window).await;
        let looked = self.server.look()?;
        Ok(self.tally.sample(self.begun.elapsed(), begun.elapsed(), looked))
    }
}
