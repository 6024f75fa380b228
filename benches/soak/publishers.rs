//! Publishers, each with a topic of its own, that send by one clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidelog::client::{Client, Error};
use tidelog::event::NewEvent;
use tidelog::topic::Topic;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::samples::Tally;

/// Publishers that send at all times.
pub const STEADY: u64 = 64;
/// Publishers of an overload, those among them.
pub const ALL: u64 = 512;
const EVENT_BYTES: usize = 256;
/// Between two attempts of one that was refused; the server asks for at least as long.
const PAUSE: Duration = Duration::from_millis(200);
/// One that is later than this when its turn comes is left out: in an overload the clock would run ahead for ever.
const LATE_MAX: Duration = Duration::from_secs(1);

/// How fast they send, all together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    Rest,
    /// As soon as each is answered.
    Unbounded,
    /// Events a second.
    Rate(f64),
    /// The same, with all publishers, and refusals are no fault.
    Overload(f64),
    Stop,
}

/// A pace, and when it began.
#[derive(Clone)]
struct Beat {
    pace: Pace,
    begun: Instant,
    /// The next turn that nobody has taken.
    next: Arc<AtomicU64>,
}

pub struct Publishers {
    beat: watch::Sender<Beat>,
    tasks: JoinSet<()>,
}

impl Publishers {
    pub fn start(url: &str, tally: &Arc<Tally>) -> Result<Self, String> {
        let rest = Beat { pace: Pace::Rest, begun: Instant::now(), next: Arc::default() };
        let (beat, beats) = watch::channel(rest);
        let mut tasks = JoinSet::new();
        for number in 0..ALL {
            // A client each, so a connection each.
            let client = Client::new(url).map_err(|e| e.to_string())?;
            let topic = Topic::parse(&format!("soak.{number}")).map_err(|e| e.to_string())?;
            let publisher = Publisher { client, topic, number, sent: 0, tally: tally.clone() };
            tasks.spawn(publisher.run(beats.clone()));
        }
        Ok(Self { beat, tasks })
    }

    pub fn pace(&self, pace: Pace) {
        self.beat.send_replace(Beat { pace, begun: Instant::now(), next: Arc::default() });
    }

    /// Lets each have its last answer.
    pub async fn stop(&mut self) {
        self.pace(Pace::Stop);
        while self.tasks.join_next().await.is_some() {}
    }
}

struct Publisher {
    client: Client,
    topic: Topic,
    number: u64,
    sent: u64,
    tally: Arc<Tally>,
}

impl Publisher {
    async fn run(mut self, mut beats: watch::Receiver<Beat>) {
        loop {
            let beat = beats.borrow_and_update().clone();
            let due = match beat.pace {
                Pace::Stop => return,
                Pace::Overload(rate) => Some(rate),
                Pace::Rate(rate) if self.number < STEADY => Some(rate),
                Pace::Unbounded if self.number < STEADY => None,
                Pace::Rest | Pace::Rate(_) | Pace::Unbounded => {
                    if beats.changed().await.is_err() {
                        return;
                    }
                    continue;
                }
            };
            let at = match due {
                None => Instant::now(),
                Some(rate) => {
                    let turn = beat.next.fetch_add(1, Ordering::Relaxed);
                    beat.begun + Duration::from_secs_f64(turn as f64 / rate)
                }
            };
            let is_overload = matches!(beat.pace, Pace::Overload(_));
            if is_overload && at.elapsed() > LATE_MAX {
                self.tally.skipped(1);
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep_until(at) => {}
                changed = beats.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            }
            self.publish(self.tally.at(at), is_overload).await;
        }
    }

    /// Publishes the topic's next event, until it is answered.
    async fn publish(&mut self, due: u64, is_overload: bool) {
        self.sent += 1;
        let mut data = format!("{} {due} ", self.sent);
        data.extend(std::iter::repeat_n('x', EVENT_BYTES.saturating_sub(data.len())));
        let key = format!("{}-{}", self.number, self.sent);
        loop {
            let event = NewEvent { topic: self.topic.clone(), event: None, key: None, data: data.clone() };
            match self.client.publish(event, Some(&key)).await {
                Ok(_) => return self.tally.acked(due),
                Err(Error::Refused(problem)) if is_overload && problem.status == 503 => self.tally.refused(),
                Err(error) => {
                    self.tally.fault(format!("a publish to {} failed: {error}", self.topic));
                    if !error.is_passing() {
                        return;
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
