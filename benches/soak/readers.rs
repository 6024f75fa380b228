//! Readers that stay, that come and go, and that are slow; each sees every event of its topics once and in order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidelog::client::{Client, Item, SubscribeOptions, Subscription};
use tidelog::event::EventId;
use tidelog::topic::Pattern;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;

use crate::publishers::STEADY;
use crate::samples::Tally;

/// Readers of all topics that stay.
pub const EVERYTHING: u32 = 4;
/// Readers of one topic that stay: some on each.
const OF_ONE: u64 = 2 * STEADY;
/// Readers that come and go.
const RESTLESS: u64 = 100;
/// How long they stay and are away, at most.
const STAYS: Duration = Duration::from_secs(10);
const AWAY: Duration = Duration::from_secs(5);
/// Readers of one topic that read for so long, then do not for up to so long; what they missed is no longer in memory then.
const SLOW: u64 = 8;
const SLOW_READS: Duration = Duration::from_secs(5);
const SLOW_PAUSE: Duration = Duration::from_secs(15);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Everything,
    OfOne,
    Restless,
    Slow,
}

/// What became of all.
#[derive(Debug, Clone, Copy, Default)]
pub struct Everyone {
    pub readers: u64,
    pub events: u64,
    pub reconnects: u64,
    /// Readers of which it is not known that they got all, as the time was over.
    pub behind: u64,
}

pub struct Readers {
    end: watch::Sender<bool>,
    tasks: JoinSet<Reader>,
}

struct Reader {
    client: Client,
    pattern: Pattern,
    manner: Manner,
    tally: Arc<Tally>,
    cursor: Option<EventId>,
    /// The newest number of each topic.
    newest: HashMap<String, u64>,
    events: u64,
    reconnects: u64,
    /// It has read to the tail, where nothing more comes.
    is_done: bool,
}

impl Readers {
    pub fn start(url: &str, tally: &Arc<Tally>) -> Result<Self, String> {
        let (end, ends) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut start = |name: &str, manner| -> Result<(), String> {
            let client = Client::new(url).map_err(|e| e.to_string())?;
            let pattern = Pattern::parse(name).map_err(|e| e.to_string())?;
            let (newest, tally) = (HashMap::new(), tally.clone());
            let reader = Reader {
                client,
                pattern,
                manner,
                tally,
                cursor: None,
                newest,
                events: 0,
                reconnects: 0,
                is_done: false,
            };
            tasks.spawn(reader.run(ends.clone()));
            Ok(())
        };
        for _ in 0..EVERYTHING {
            start("soak.*", Manner::Everything)?;
        }
        for number in 0..OF_ONE {
            start(&format!("soak.{}", number % STEADY), Manner::OfOne)?;
        }
        for number in 0..RESTLESS {
            let one = format!("soak.{}", number % STEADY);
            start(if number % 10 == 0 { "soak.*" } else { &one }, Manner::Restless)?;
        }
        for number in 0..SLOW {
            start(&format!("soak.{number}"), Manner::Slow)?;
        }
        Ok(Self { end, tasks })
    }

    /// Lets everybody come to the tail, which does not move any more, within `most`.
    pub async fn finish(mut self, most: Duration) -> Everyone {
        self.end.send_replace(true);
        let mut everyone = Everyone { readers: self.tasks.len() as u64, ..Everyone::default() };
        let deadline = Instant::now() + most;
        while let Ok(Some(joined)) = tokio::time::timeout_at(deadline, self.tasks.join_next()).await {
            let Ok(reader) = joined else { continue };
            everyone.events += reader.events;
            everyone.reconnects += reader.reconnects;
            everyone.behind += u64::from(!reader.is_done);
        }
        everyone.behind += self.tasks.len() as u64;
        everyone
    }
}

impl Reader {
    async fn run(mut self, mut ends: watch::Receiver<bool>) -> Self {
        loop {
            let stays = if self.manner == Manner::Restless {
                STAYS.mul_f64(fastrand::f64()).max(Duration::from_millis(1))
            } else {
                Duration::from_secs(u64::from(u32::MAX))
            };
            let is_ending = *ends.borrow_and_update();
            // At the end everybody reads to the tail once more, whatever it has seen.
            let options = SubscribeOptions {
                after: self.cursor,
                from: self.cursor.is_none().then(|| "latest".to_owned()),
                follow: !is_ending,
                ..SubscribeOptions::default()
            };
            let mut subscription = self.client.subscribe(&[self.pattern.clone()], options);
            if is_ending {
                while let Some(item) = subscription.next().await {
                    self.take(item);
                }
                self.is_done = true;
                return self;
            }
            tokio::select! {
                () = self.follow(&mut subscription) => {}
                () = tokio::time::sleep(stays) => {}
                _ = ends.changed() => {}
            }
            // What it has taken is what it resumes after; what lies in the socket is thrown away.
            self.cursor = subscription.cursor().or(self.cursor);
            drop(subscription);
            self.reconnects += 1;
            if self.manner == Manner::Restless && !*ends.borrow() {
                tokio::time::sleep(AWAY.mul_f64(fastrand::f64())).await;
            }
        }
    }

    async fn follow(&mut self, subscription: &mut Subscription) {
        let mut since = Instant::now();
        while let Some(item) = subscription.next().await {
            self.take(item);
            if self.manner == Manner::Slow && since.elapsed() > SLOW_READS {
                tokio::time::sleep(SLOW_PAUSE.mul_f64(fastrand::f64())).await;
                since = Instant::now();
            }
        }
        self.tally.fault(format!("a stream of {} ended by itself", self.pattern));
    }

    fn take(&mut self, item: Result<Item, tidelog::client::Error>) {
        match item {
            Ok(Item::Event(event)) => self.event(event.topic.unwrap_or_default(), &event.data),
            Ok(Item::Live { .. }) => {}
            Ok(Item::Disconnected { why, .. }) => {
                self.tally.fault(format!("a reader of {} was cut off: {why}", self.pattern));
            }
            Ok(other) => self.tally.fault(format!("a reader of {} was told {other:?}", self.pattern)),
            Err(error) => self.tally.fault(format!("a reader of {} failed: {error}", self.pattern)),
        }
    }

    fn event(&mut self, topic: String, data: &str) {
        self.events += 1;
        let mut words = data.split(' ').map(str::parse::<u64>);
        let (Some(Ok(number)), Some(Ok(due))) = (words.next(), words.next()) else {
            return self.tally.fault(format!("an event of {topic} is not what was published: {data:?}"));
        };
        match self.newest.get_mut(&topic) {
            Some(newest) if *newest + 1 == number => *newest = number,
            Some(newest) => {
                self.tally.fault(format!("event {number} of {topic} came after {newest}"));
                *newest = number;
            }
            None => drop(self.newest.insert(topic, number)),
        }
        match self.manner {
            // Those who were away, or took their time, are late of their own accord.
            Manner::Restless | Manner::Slow => {}
            Manner::Everything | Manner::OfOne => self.tally.delivered(due, self.manner == Manner::Everything),
        }
    }
}
