//! Small scenarios of which every order is tried.

use std::sync::Arc;

use tidelog::event::EventType;
use tidelog::sse::Form;
use tidelog::store::model::Failing;
use tidelog::subscription::Begin;
use tidelog::subscription::bundle::Kind;
use tidelog::topic::{Filter, Pattern};

use crate::search::{every_order, orders};
use crate::world::{Ask, One, Publish, Spec, World};

/// More than any scenario fills.
const WIDE: usize = 1 << 20;
/// So many interruptions, where all of them would be too many schedules.
const FEW: usize = 2;
/// About two events.
const NARROW: usize = 400;

pub fn filter(patterns: &[&str], types: &[&str]) -> Arc<Filter> {
    let patterns = patterns.iter().map(|p| Pattern::parse(p).unwrap()).collect();
    let types = types.iter().map(|t| EventType::parse(t).unwrap()).collect();
    Arc::new(Filter::new(patterns, types))
}

fn client(pattern: &str, begin: Begin) -> Spec {
    Spec {
        filter: filter(&[pattern], &[]),
        form: Form::Sse,
        follow: true,
        begin: Some(begin),
        bundle: None,
        leaves: 0,
        cuts: false,
        fine: false,
        bytewise: false,
    }
}

pub fn publish(events: impl IntoIterator<Item = impl Into<One>>) -> Publish {
    Publish { events: events.into_iter().map(Into::into).collect(), ..Publish::default() }
}

fn some(topics: &[&'static str]) -> Ask {
    Ask::Publish(publish(topics.iter().map(|topic| (*topic, None))))
}

fn one(topic: &'static str) -> Ask {
    some(&[topic])
}

fn trim(topic: &'static str, upto: u64) -> Ask {
    Ask::Trim(Some(topic), upto)
}

#[test]
fn a_publish_and_an_arrival() {
    for begin in [Begin::After(0), Begin::Latest, Begin::Earliest, Begin::Last(1), Begin::At(2), Begin::Time(1)] {
        every_order(&format!("a publish and an arrival from {begin:?}"), || {
            World::new(1, WIDE, vec![Spec { fine: true, ..client("a", begin) }], vec![one("a"), one("a")]).after(1)
        });
    }
}

#[test]
fn two_publishes_and_two_subscribers() {
    every_order("two publishes, a subscriber", || {
        World::new(2, WIDE, vec![client("a", Begin::After(0))], vec![one("a"), one("a")])
    });
    every_order("two publishes, two subscribers", || {
        let b = Spec { form: Form::Lines, ..client("b", Begin::Latest) };
        World::new(2, WIDE, vec![client("a", Begin::After(0)), b], vec![some(&["a", "b"])])
    });
}

#[test]
fn a_ring_that_forgets_at_once() {
    for bytes in [0, NARROW] {
        every_order(&format!("a ring of {bytes} bytes"), || {
            World::new(1, bytes, vec![client("a", Begin::After(0))], vec![some(&["a", "b"]), one("a")]).after(1)
        });
    }
}

#[test]
fn a_batch_that_matches_in_part() {
    every_order("a batch that matches in part", || {
        let typed = Spec { filter: filter(&["*"], &["x"]), ..client("a", Begin::Latest) };
        let batch = vec![("a", None), ("a", Some("x")), ("b", Some("y"))];
        World::new(2, WIDE, vec![typed], vec![Ask::Publish(publish(batch)), Ask::Publish(publish([("c", Some("x"))]))])
    });
    every_order("nothing that matches, then a heartbeat", || {
        World::new(2, WIDE, vec![client("a", Begin::Latest)], vec![one("b"), Ask::Beat, one("b")])
    });
}

#[test]
fn a_trim_of_the_log_and_a_reader_from_disk() {
    every_order("a trim of the log, a reader", || {
        let asks = vec![some(&["a", "b", "a"]), Ask::Trim(None, 2)];
        World::new(1, 0, vec![client("a", Begin::After(0))], asks).after(1)
    });
    every_order("a trim of the log, a publish, an arrival", || {
        let asks = vec![some(&["a", "a"]), Ask::Trim(None, 2), one("a")];
        World::new(2, NARROW, vec![client("a", Begin::After(0))], asks).after(1)
    });
}

#[test]
fn a_trim_while_a_beginning_is_fixed() {
    for begin in [Begin::After(1), Begin::Earliest, Begin::Latest, Begin::Last(2), Begin::Time(1), Begin::After(9)] {
        every_order(&format!("a trim while {begin:?} is fixed"), || {
            let asks = vec![some(&["a", "a", "a"]), trim("a", 2)];
            World::new(2, NARROW, vec![Spec { fine: true, ..client("a", begin) }], asks).after(1)
        });
    }
    every_order("a publish and its trim while the latest is fixed", || {
        let asks = vec![one("a"), trim("a", 1)];
        World::new(2, WIDE, vec![Spec { fine: true, ..client("a", Begin::Latest) }], asks)
    });
}

/// Events of which each is a block of its own.
fn large(topics: &[&'static str]) -> Ask {
    Ask::Publish(publish(topics.iter().map(|topic| One { topic, event: None, key: None, size: 70_000 })))
}

#[test]
fn a_trim_between_two_blocks_of_one_who_began_in_its_midst() {
    for begin in [Begin::Earliest, Begin::Last(3), Begin::Time(1)] {
        orders(&format!("a trim between two blocks of one who began in its midst, {begin:?}"), 3, || {
            let asks = vec![large(&["a", "a", "a"]), trim("a", 2)];
            World::new(1, 0, vec![Spec { fine: true, ..client("a", begin) }], asks).after(1)
        });
        orders(&format!("the same when the trim was found written, {begin:?}"), 3, || {
            let asks = vec![large(&["a", "a", "a"]), Ask::Fail(Failing::Written, 0), trim("a", 2)];
            World::new(1, 0, vec![Spec { fine: true, ..client("a", begin) }], asks).after(2)
        });
    }
}

#[test]
fn a_trim_below_a_floor_of_long_ago() {
    for begin in [Begin::Earliest, Begin::Last(9), Begin::After(9)] {
        every_order(&format!("a trim below another topic's floor of long ago, {begin:?}"), || {
            let asks = vec![some(&["b", "b", "a"]), trim("a", 3), trim("b", 1)];
            World::new(1, 0, vec![Spec { fine: true, ..client("*", begin) }], asks).after(2)
        });
    }
}

#[test]
fn a_trim_of_the_topic_of_one_who_waits() {
    every_order("a trim of the topic of one who waits", || {
        let asks = vec![one("a"), trim("a", 1), one("a")];
        World::new(2, WIDE, vec![client("a", Begin::Latest)], asks)
    });
    every_order("a trim of a batch in the ring in part", || {
        let asks = vec![some(&["a", "b", "a"]), trim("a", 1), trim("b", 2)];
        World::new(2, WIDE, vec![client("*", Begin::After(0))], asks)
    });
    every_order("a trim of the log through a batch in the ring", || {
        let asks = vec![some(&["a", "b", "a"]), Ask::Trim(None, 2)];
        World::new(3, WIDE, vec![client("a", Begin::After(0)), client("b", Begin::After(0))], asks).after(1)
    });
}

#[test]
fn one_who_leaves_and_comes_back() {
    for (bytes, begin) in [(WIDE, Begin::Latest), (NARROW, Begin::After(0))] {
        every_order(&format!("leaving in the middle of a batch, {begin:?}"), || {
            let cut = Spec { leaves: 1, cuts: true, ..client("a", begin) };
            World::new(3, bytes, vec![cut], vec![some(&["a", "b", "a"])])
        });
    }
    every_order("leaving in the middle of a batch, while another comes", || {
        let cut = Spec { leaves: 1, cuts: true, ..client("a", Begin::After(0)) };
        World::new(3, WIDE, vec![cut], vec![some(&["a", "a"]), one("a")]).after(1)
    });
    every_order("leaving while a trim goes on", || {
        let cut = Spec { leaves: 1, cuts: true, ..client("**", Begin::After(0)) };
        World::new(3, WIDE, vec![cut], vec![some(&["a", "b", "a"]), trim("b", 2)]).after(1)
    });
}

#[test]
fn one_who_does_not_follow() {
    for begin in [Begin::After(0), Begin::Latest, Begin::Last(1), Begin::After(7)] {
        every_order(&format!("not following, {begin:?}"), || {
            let ends = Spec { follow: false, fine: true, form: Form::SseEnvelope, ..client("a", begin) };
            World::new(1, WIDE, vec![ends], vec![some(&["a", "b"]), one("a")]).after(1)
        });
    }
    every_order("not following, while a trim goes on", || {
        let ends = Spec { follow: false, ..client("a", Begin::After(0)) };
        World::new(1, WIDE, vec![ends], vec![some(&["a", "a"]), trim("a", 1)]).after(1)
    });
}

#[test]
fn a_commit_that_fails() {
    for (failing, skip) in
        [(Failing::Unwritten, 0), (Failing::Written, 0), (Failing::Unwritten, 3), (Failing::Written, 3)]
    {
        every_order(&format!("a commit that fails, {failing:?}, {skip} ids skipped"), || {
            let asks = vec![one("a"), Ask::Fail(failing, skip), one("a")];
            World::new(2, WIDE, vec![client("a", Begin::After(0))], asks).after(1)
        });
    }
    orders("a commit is found, and cannot be delivered before a trim", 4, || {
        let failing = [Ask::Fail(Failing::Written, 0), one("a"), Ask::Unreadable(true), trim("a", 1)];
        let asks = [&failing[..], &[Ask::Unreadable(false), one("a")]].concat();
        World::new(9, WIDE, vec![client("a", Begin::Latest)], asks)
    });
    every_order("a trim that fails and was written all the same", || {
        let asks = vec![some(&["a", "b"]), Ask::Fail(Failing::Written, 0), trim("a", 1)];
        World::new(2, WIDE, vec![client("*", Begin::After(0))], asks).after(1)
    });
    every_order("a topic was trimmed, and another reads on when a commit has failed", || {
        let asks = vec![some(&["b", "a", "b"]), trim("b", 3), Ask::Fail(Failing::Unwritten, 0), one("a")];
        World::new(2, WIDE, vec![client("a", Begin::After(0))], asks).after(2)
    });
}

#[test]
fn a_drain() {
    every_order("a drain", || {
        let asks = vec![one("a"), Ask::Drain, one("a")];
        World::new(2, WIDE, vec![client("a", Begin::After(0))], asks)
    });
    // The second is given what the first was.
    orders("a drain with two at one place", FEW, || {
        let asks = vec![one("a"), one("a"), Ask::Drain];
        World::new(2, WIDE, vec![client("a", Begin::After(0)), client("a", Begin::After(0))], asks).after(1)
    });
}

fn keyed(events: &[(&'static str, &'static str, usize)]) -> Ask {
    Ask::Publish(publish(events.iter().map(|(topic, key, size)| One {
        topic,
        event: None,
        key: Some(key),
        size: *size,
    })))
}

fn after(last: u64, events: &[&'static str]) -> Ask {
    Ask::Publish(Publish { last: Some(last), ..publish(events.iter().map(|topic| (*topic, None))) })
}

fn once(key: u8, request: u8, topic: &'static str) -> Ask {
    Ask::Publish(Publish { key: Some((key, request)), ..publish([(topic, None)]) })
}

#[test]
fn publishes_that_depend_on_the_log() {
    orders("conditions, in one batch and in several", FEW, || {
        let asks = vec![after(0, &["a"]), after(0, &["a", "b"]), after(1, &["a"]), trim("a", 2), after(0, &["a"])];
        World::new(2, WIDE, vec![], asks)
    });
    orders("repetitions, until the window runs out", FEW, || {
        let asks = vec![once(1, 1, "a"), once(1, 1, "a"), Ask::Beat, once(1, 2, "a"), Ask::Beat, Ask::Beat];
        World::new(2, WIDE, vec![], [asks, vec![once(1, 2, "a"), once(1, 1, "a")]].concat())
    });
    orders("repetitions of what was pushed out by newer keys", FEW, || {
        let asks = (1..=5).map(|key| once(key, 1, "a")).chain([once(1, 1, "a"), once(5, 1, "a")]).collect();
        World::new(2, WIDE, vec![], asks).after(3)
    });
    for failing in [Failing::Unwritten, Failing::Written] {
        orders(&format!("what rests on a batch that fails, {failing:?}"), FEW, || {
            let asks = vec![once(1, 1, "a"), Ask::Fail(failing, 0), once(1, 1, "a"), after(0, &["a"]), once(1, 1, "a")];
            World::new(2, WIDE, vec![], asks)
        });
    }
    orders("a close among publishes", FEW, || {
        let asks = vec![once(1, 1, "a"), Ask::Close("a"), once(1, 1, "a"), some(&["b", "a"]), after(0, &["b"])];
        World::new(2, WIDE, vec![], asks)
    });
}

#[test]
fn a_close() {
    let begins = [Begin::After(0), Begin::Latest, Begin::Last(1)];
    for begin in begins {
        orders(&format!("a close and an arrival from {begin:?}"), FEW, || {
            let asks = vec![one("a"), Ask::Close("a"), Ask::Close("a")];
            World::new(1, WIDE, vec![Spec { fine: true, ..client("a", begin) }], asks)
        });
    }
    orders("a close of two topics, while one waits for both and one for more", FEW, || {
        let both = Spec { filter: filter(&["a", "b"], &[]), ..client("a", Begin::Latest) };
        let asks = vec![Ask::Close("a"), one("b"), Ask::Close("b")];
        World::new(1, WIDE, vec![both, client("*", Begin::Latest)], asks)
    });
    orders("a close of one's topic, another's goes on", FEW, || {
        let both = Spec { filter: filter(&["a", "b"], &[]), ..client("a", Begin::After(0)) };
        World::new(1, 0, vec![both], vec![one("a"), Ask::Close("a"), one("b")])
    });
    orders("a close, and one who is joined by another", FEW, || {
        let asks = vec![one("a"), Ask::Close("a")];
        World::new(1, WIDE, vec![client("a", Begin::Latest), client("a", Begin::After(0))], asks).after(1)
    });
    orders("a close, for one who does not follow, and one who leaves", FEW, || {
        let ends = Spec { follow: false, ..client("a", Begin::After(0)) };
        let cut = Spec { leaves: 1, cuts: true, ..client("a", Begin::After(0)) };
        World::new(1, WIDE, vec![ends, cut], vec![one("a"), Ask::Close("a")]).after(1)
    });
    orders("a close of a topic that was deleted", FEW, || {
        let asks = vec![some(&["a", "b"]), Ask::Delete("a"), Ask::Close("a")];
        World::new(1, WIDE, vec![client("a", Begin::After(0))], asks).after(1)
    });
    orders("a close, and ids that are skipped", FEW, || {
        let asks = vec![Ask::Close("a"), Ask::Fail(Failing::Unwritten, 2), one("b")];
        World::new(1, WIDE, vec![client("a", Begin::Latest)], asks)
    });
    for failing in [Failing::Unwritten, Failing::Written] {
        orders(&format!("a close that fails, {failing:?}"), FEW, || {
            let asks = vec![Ask::Fail(failing, 0), Ask::Close("a")];
            World::new(1, WIDE, vec![client("a", Begin::Latest), client("a", Begin::Latest)], asks)
        });
    }
}

/// One who begins with a bundle, step by step.
fn with(kind: Kind, pattern: &str) -> Spec {
    Spec { bundle: Some(kind), begin: None, fine: true, ..client(pattern, Begin::Latest) }
}

/// One who begins after an id, and is sent a bundle after a gap.
fn healed(kind: Kind, pattern: &str, after: u64) -> Spec {
    Spec { bundle: Some(kind), ..client(pattern, Begin::After(after)) }
}

#[test]
fn a_state_and_publishes() {
    orders("a state and publishes", FEW, || {
        let asks = vec![keyed(&[("a", "k", 1), ("a", "l", 1)]), keyed(&[("a", "k", 0), ("b", "k", 1)])];
        World::new(2, WIDE, vec![with(Kind::State, "a")], asks).after(1)
    });
    orders("a state that is empty", FEW, || {
        World::new(2, 0, vec![with(Kind::State, "a")], vec![one("a"), keyed(&[("a", "k", 0)])]).after(1)
    });
    orders("a state in several pieces, and one who leaves", 1, || {
        let cut = Spec { leaves: 1, cuts: true, fine: false, ..with(Kind::State, "a") };
        let asks = vec![keyed(&[("a", "k", 70_000), ("a", "l", 140_000), ("a", "m", 1)])];
        World::new(9, 0, vec![cut], asks).after(1)
    });
    orders("a state while a commit fails", FEW, || {
        let asks = vec![keyed(&[("a", "k", 1)]), Ask::Fail(Failing::Written, 2), keyed(&[("a", "k", 1)])];
        World::new(2, WIDE, vec![with(Kind::State, "a")], asks).after(1)
    });
    orders("a state while it drains", FEW, || {
        let asks = vec![keyed(&[("a", "k", 1)]), Ask::Drain];
        World::new(2, WIDE, vec![with(Kind::State, "a")], asks)
    });
}

#[test]
fn a_state_and_trims() {
    orders("a state, and a trim of what came before it", FEW, || {
        let asks = vec![keyed(&[("a", "k", 1), ("a", "l", 1)]), trim("a", 2)];
        World::new(2, WIDE, vec![with(Kind::State, "a")], asks).after(1)
    });
    orders("a state, a publish and its trim", FEW, || {
        let asks = vec![keyed(&[("a", "k", 1)]), keyed(&[("a", "k", 1)]), trim("a", 2)];
        World::new(2, WIDE, vec![Spec { fine: false, ..with(Kind::State, "a") }], asks).after(1)
    });
    orders("a state and a DELETE", FEW, || {
        let asks = vec![keyed(&[("a", "k", 1), ("b", "k", 1)]), Ask::Delete("a")];
        World::new(2, WIDE, vec![with(Kind::State, "*")], asks).after(1)
    });
    orders("a state, a DELETE and a publish after it", FEW, || {
        let asks = vec![keyed(&[("a", "k", 1), ("a", "l", 1)]), Ask::Delete("a"), keyed(&[("a", "k", 1)])];
        World::new(2, NARROW, vec![Spec { fine: false, ..with(Kind::State, "a") }], asks).after(1)
    });
}

#[test]
fn a_gap_heals() {
    orders("a trim, and one who is sent the state for it", FEW, || {
        let asks = vec![keyed(&[("a", "k", 1), ("a", "l", 1), ("a", "k", 1)]), trim("a", 2), keyed(&[("a", "l", 0)])];
        World::new(1, 0, vec![healed(Kind::State, "a", 0)], asks).after(1)
    });
    orders("a trim, and one who leaves while it is sent the state", FEW, || {
        let cut = Spec { leaves: 1, cuts: true, ..healed(Kind::State, "a", 0) };
        let asks = vec![keyed(&[("a", "k", 1), ("a", "l", 1), ("a", "m", 1)]), trim("a", 2)];
        World::new(1, WIDE, vec![cut], asks).after(2)
    });
    orders("one whose id is another log's", FEW, || {
        let cut = Spec { leaves: 1, cuts: true, ..healed(Kind::State, "a", 9) };
        World::new(1, WIDE, vec![cut], vec![keyed(&[("a", "k", 1), ("a", "l", 1)])]).after(1)
    });
    orders("ids are skipped, and one is sent the state for it", FEW, || {
        let asks = vec![keyed(&[("a", "k", 1)]), Ask::Fail(Failing::Unwritten, 2), keyed(&[("a", "k", 0)])];
        World::new(1, WIDE, vec![healed(Kind::State, "a", 0)], asks)
    });
    orders("a trim, and one who does not follow", FEW, || {
        let ends = Spec { follow: false, ..healed(Kind::State, "a", 0) };
        let asks = vec![keyed(&[("a", "k", 1), ("a", "l", 1)]), trim("a", 1), keyed(&[("a", "k", 1)])];
        World::new(1, 0, vec![ends], asks).after(1)
    });
}

#[test]
fn bundles_are_shared() {
    orders("two who ask for a state, and a publish", FEW, || {
        let two = vec![Spec { fine: false, ..with(Kind::State, "a") }; 2];
        World::new(2, WIDE, two, vec![keyed(&[("a", "k", 1)])])
    });
    orders("two who ask for a state, and a DELETE", FEW, || {
        let one = || Spec { fine: false, ..with(Kind::State, "a") };
        World::new(2, WIDE, vec![one(), one()], vec![keyed(&[("a", "k", 1)]), Ask::Delete("a")]).after(1)
    });
}

#[test]
fn a_snapshot() {
    orders("a snapshot and an arrival", FEW, || {
        let asks = vec![some(&["a", "a"]), Ask::Snapshot("a", 1), one("a")];
        World::new(1, WIDE, vec![with(Kind::Snapshot, "a")], asks).after(1)
    });
    orders("a snapshot, a trim up to beyond it", FEW, || {
        let asks = vec![some(&["a", "a", "a"]), Ask::Snapshot("a", 1), trim("a", 2)];
        World::new(1, WIDE, vec![with(Kind::Snapshot, "a")], asks).after(2)
    });
    orders("a snapshot that is deleted", FEW, || {
        let asks = vec![some(&["a", "a"]), Ask::Snapshot("a", 1), Ask::Delete("a"), one("a")];
        World::new(1, WIDE, vec![Spec { fine: false, ..with(Kind::Snapshot, "a") }], asks).after(2)
    });
    orders("a gap, and the way back to a snapshot", FEW, || {
        let cut = Spec { leaves: 1, cuts: true, ..healed(Kind::Snapshot, "a", 1) };
        let asks = vec![some(&["a", "a", "a"]), Ask::Snapshot("a", 1), trim("a", 2), one("a")];
        World::new(9, 0, vec![cut], asks).after(2)
    });
    orders("ids are skipped, and the way back to a snapshot", FEW, || {
        let asks =
            vec![some(&["a", "a", "a"]), Ask::Snapshot("a", 1), one("a"), Ask::Fail(Failing::Unwritten, 2), one("b")];
        World::new(9, WIDE, vec![healed(Kind::Snapshot, "a", 2)], asks).after(2)
    });
    orders("two who ask for a snapshot while it is replaced", FEW, || {
        let one = || Spec { fine: false, ..with(Kind::Snapshot, "a") };
        let asks = vec![some(&["a", "a"]), Ask::Snapshot("a", 1), Ask::Snapshot("a", 2)];
        World::new(9, WIDE, vec![one(), one()], asks).after(2)
    });
    orders("two who ask for a snapshot, and a trim up to beyond it", FEW, || {
        let one = || Spec { fine: false, ..with(Kind::Snapshot, "a") };
        let asks = vec![some(&["a", "a"]), Ask::Snapshot("a", 1), trim("a", 2)];
        World::new(9, WIDE, vec![one(), one()], asks).after(2)
    });
}

#[test]
fn a_bundle_and_a_close() {
    orders("a state and a close", FEW, || {
        let asks = vec![keyed(&[("a", "k", 1)]), Ask::Close("a")];
        World::new(2, WIDE, vec![with(Kind::State, "a")], asks)
    });
    orders("a trim and a close", FEW, || {
        let asks = vec![keyed(&[("a", "k", 1), ("a", "l", 1)]), trim("a", 2), Ask::Close("a")];
        World::new(1, 0, vec![healed(Kind::State, "a", 0)], asks).after(1)
    });
}
