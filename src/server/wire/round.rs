//! When a thread of the wire rests: never, unless all of many followers have had a turn and there is more for them already.
//!
//! What holds: nobody waits who has something of before in front of him, and nobody for longer than [`REST_MAX`].

use std::time::{Duration, Instant};

/// A thread that never catches up, because there is more for its followers whenever all have had their turn, rests for so many times as
/// long as that took: what a write costs hardly depends on how much has gathered for it. With 1,000 subscribers and 2,000 events/s a
/// delivery then takes 0.34 instead of 0.56 µs of the processor's time; the median comes 4 ms later, the p99 sooner.
const REST_TIMES: u32 = 4;

/// Up to so many bytes, a write costs hardly more than with a single frame: over loopback 5.0 to 5.7 µs for all of them, 4.2 to 4.9 for 200.
const CHEAP_BYTES: u32 = 32 << 10;

/// With fewer followers a thread does not rest: they are served soon, and soon is worth more than the processor. Those of one quick publisher, 200
/// on two threads, have an event 1.4 ms after it was published, and 9 ms where their threads rest, for two thirds of the processor's time.
const CROWD_MIN: u32 = 256;

/// The longest rest: a picture on a screen, at 60 a second. Nobody sees what comes sooner.
const REST_MAX: Duration = Duration::from_millis(16);

/// From when there was something to do, or the last round ended, until a follower is to have its second turn.
pub struct Round {
    /// Followers have that of their last turn.
    number: u8,
    since: Instant,
    /// How many had their turn.
    turns: u32,
    /// The most bytes that gathered for one of them.
    most: usize,
    /// Somebody has more in front of him than is new.
    somebody_catches_up: bool,
}

impl Round {
    pub fn begin(number: u8) -> Self {
        Self { number, since: Instant::now(), turns: 0, most: 0, somebody_catches_up: false }
    }

    pub fn next(&mut self) {
        // One that has slept for 256 rounds is taken to have had its turn, and ends a round too early.
        *self = Self::begin(self.number.wrapping_add(1));
    }

    pub fn number(&self) -> u8 {
        self.number
    }

    /// Whether one whose last turn was in that round has had it in this one.
    pub fn had_turn(&self, last: u8) -> bool {
        last == self.number
    }

    pub fn lasts(&self) -> Duration {
        self.since.elapsed()
    }

    /// A follower has had its turn, was given so many bytes, and is, or is not, where the newest event is.
    pub fn turn(&mut self, bytes: usize, is_at_the_edge: bool) {
        self.turns += 1;
        self.most = self.most.max(bytes);
        self.somebody_catches_up |= !is_at_the_edge;
    }

    /// For how long more is to gather, after a round that took so long: until about so much has as is written cheaply.
    pub fn rest(&self, took: Duration) -> Duration {
        if self.somebody_catches_up || self.turns < CROWD_MIN {
            return Duration::ZERO;
        }
        // A round of seconds rests for as long as a shorter one.
        let took = took.min(Duration::from_secs(1));
        let most = u32::try_from(self.most.max(1)).unwrap_or(u32::MAX);
        (took * CHEAP_BYTES / most).saturating_sub(took).min(took * REST_TIMES).min(REST_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_until_cheap_writes_are_full_and_not_where_somebody_catches_up() {
        let ms = Duration::from_millis;
        let crowd = |bytes, is_at_the_edge| {
            let mut round = Round::begin(0);
            (1..CROWD_MIN).for_each(|_| round.turn(1, true));
            round.turn(bytes, is_at_the_edge);
            round
        };
        let rest = |bytes, took| crowd(bytes, true).rest(took);
        assert_eq!(rest(200, ms(3)), ms(12), "four times as long as the round took");
        assert_eq!(rest(200, ms(100)), REST_MAX);
        assert_eq!(rest(16 << 10, ms(3)), ms(3), "as much again fits in");
        assert_eq!(rest(32 << 10, ms(3)), Duration::ZERO);
        assert_eq!(rest(1 << 20, ms(3)), Duration::ZERO);
        assert_eq!(rest(0, Duration::MAX), REST_MAX, "a clock that leapt");
        let mut round = crowd(200, false);
        assert_eq!(round.rest(ms(3)), Duration::ZERO, "somebody catches up");
        round.next();
        round.turn(200, true);
        assert_eq!(round.rest(ms(3)), Duration::ZERO, "they are few");
        (0..CROWD_MIN).for_each(|_| round.turn(200, true));
        assert_eq!(round.rest(ms(3)), ms(12), "that was the round before");
    }
}
