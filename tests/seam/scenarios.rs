//! Small scenarios of which every order is tried.

use std::sync::Arc;

use tidelog::event::EventType;
use tidelog::sse::Form;
use tidelog::store::model::Failing;
use tidelog::subscription::Begin;
use tidelog::topic::{Filter, Pattern};

use crate::search::every_order;
use crate::world::{Ask, Spec, World};

/// More than any scenario fills.
const WIDE: usize = 1 << 20;
/// About two events.
const NARROW: usize = 400;

pub fn filter(patterns: &[&str], types: &[&str]) -> Arc<Filter> {
    let patterns = patterns.iter().map(|p| Pattern::parse(p).unwrap()).collect();
    let types = types.iter().map(|t| EventType::parse(t).unwrap()).collect();
    Arc::new(Filter::new(patterns, types))
}

fn client(pattern: &str, begin: Begin) -> Spec {
    Spec { filter: filter(&[pattern], &[]), form: Form::Sse, follow: true, begin, leaves: 0, cuts: false, fine: false }
}

fn one(topic: &'static str) -> Ask {
    Ask::Publish(vec![(topic, None)])
}

fn some(topics: &[&'static str]) -> Ask {
    Ask::Publish(topics.iter().map(|t| (*t, None)).collect())
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
        World::new(2, WIDE, vec![typed], vec![Ask::Publish(batch), Ask::Publish(vec![("c", Some("x"))])])
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
}
