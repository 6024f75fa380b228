//! The hub by itself: where cursors stand, who is woken when, what the ring keeps.

mod walk;

use super::*;
use crate::event::EventType;
use crate::sse::{Form, GapReason};
use crate::topic::Pattern;

/// Bytes that an event of these tests costs before it is encoded.
const EVENT: usize = 160 + 1;

/// Bytes that so many batches with so many events in all cost in the ring.
const fn held(batches: usize, events: usize) -> usize {
    batches * ring::BATCH_BYTES + events * EVENT
}

/// Nobody is woken.
const NOBODY: [usize; 0] = [];

fn hub_of(ring_bytes_max: usize) -> Hub<usize> {
    Hub::new(Options { ring_bytes_max, heartbeat: Duration::from_millis(3_200) }, 0)
}

fn hub() -> Hub<usize> {
    hub_of(1 << 20)
}

fn filter(patterns: &str) -> Arc<Filter> {
    Arc::new(Filter::new(patterns.split(',').map(|one| Pattern::parse(one).unwrap()).collect(), vec![]))
}

fn typed(pattern: &str, name: &str) -> Arc<Filter> {
    Arc::new(Filter::new(vec![Pattern::parse(pattern).unwrap()], vec![EventType::parse(name).unwrap()]))
}

fn event(id: EventId, topic: &str) -> Event {
    Event { id, topic: Topic::parse(topic).unwrap(), event: None, key: None, time: 0, data: "x".into() }
}

/// Pushes one batch of events to these topics, and gives whom it wakes.
fn push(hub: &mut Hub<usize>, topics: &[&str]) -> Vec<usize> {
    let after = hub.tail();
    hub.push(topics.iter().zip(after + 1..).map(|(topic, id)| event(id, topic)).collect())
}

fn attach(hub: &mut Hub<usize>, pattern: &str) -> SubscriberKey {
    hub.attach(&filter(pattern), 0, hub.trims()).0
}

fn place(hub: &mut Hub<usize>, key: SubscriberKey, cursor: EventId, wake: usize) -> Place {
    hub.place(key, cursor, 0, 0, || wake)
}

fn ids(place: &Place) -> Vec<EventId> {
    let Place::Ring(batches) = place else { panic!("{place:?} is not in the ring") };
    let batch = &batches[0];
    batch.events().iter().map(|e| e.id).collect()
}

fn is_edge(place: &Place) -> bool {
    matches!(place, Place::Edge { .. })
}

fn floor(id: EventId) -> Floor {
    Floor { id, reason: GapReason::Trimmed }
}

fn floors(of: &[(&str, EventId)]) -> HashMap<Topic, Floor> {
    of.iter().map(|(topic, id)| (Topic::parse(topic).unwrap(), floor(*id))).collect()
}

#[test]
fn a_cursor_stands_on_disk_in_the_ring_or_at_the_edge() {
    let mut hub = hub_of(held(3, 3));
    let key = attach(&mut hub, "a");
    for _ in 0..5 {
        push(&mut hub, &["a"]);
    }
    assert!(matches!(place(&mut hub, key, 1, 0), Place::Disk { upto: 5 }));
    assert_eq!(ids(&place(&mut hub, key, 2, 0)), [3]);
    assert_eq!(ids(&place(&mut hub, key, 4, 0)), [5]);
    assert!(matches!(place(&mut hub, key, 5, 0), Place::Edge { tail: 5 }));
}

#[test]
fn of_the_ring_so_many_bytes_are_given_and_one_batch_at_least() {
    let mut hub = hub_of(usize::MAX);
    let key = attach(&mut hub, "a");
    for topic in ["a", "b", "a", "a", "b", "a"] {
        push(&mut hub, &[topic]);
    }
    let mut given = |cursor, bytes_max| {
        let Place::Ring(batches) = hub.place(key, cursor, 0, bytes_max, || 0) else { panic!("it is in the ring") };
        batches.iter().map(|batch| batch.last()).collect::<Vec<_>>()
    };
    assert_eq!(given(0, 0), [1]);
    assert_eq!(given(0, EVENT), [1]);
    assert_eq!(given(0, 2 * EVENT), [1, 3]);
    assert_eq!(given(0, 3 * EVENT - 1), [1, 3]);
    assert_eq!(given(2, usize::MAX), [3, 4, 6], "what does not match counts for nothing");
}

#[test]
fn one_that_is_given_the_last_there_is_waits_at_once() {
    let mut hub = hub_of(usize::MAX);
    let key = attach(&mut hub, "a");
    for topic in ["a", "a", "b"] {
        push(&mut hub, &[topic]);
    }
    assert!(!hub.waits_beyond(key, 1, 0, || 7), "there is more for it");
    assert!(hub.waits_beyond(key, 2, 0, || 7), "what comes after is not for it");
    assert_eq!(hub.passed(key), 3);
    assert_eq!(push(&mut hub, &["b"]), NOBODY);
    assert_eq!(push(&mut hub, &["a"]), [7]);
    assert!(!hub.waits_beyond(key, 4, 0, || 7), "that one is");
    hub.mark_closed(key, 5);
    assert!(!hub.waits_beyond(key, 5, 0, || 7), "its end is to be told");
    let key = attach(&mut hub, "b");
    hub.drain();
    assert!(!hub.waits_beyond(key, 5, 0, || 7), "nobody would wake it");
}

#[test]
fn batches_without_a_match_are_passed_over() {
    let mut hub = hub();
    let (a, b) = (attach(&mut hub, "a"), attach(&mut hub, "b"));
    push(&mut hub, &["a"]);
    push(&mut hub, &["b"]);
    push(&mut hub, &["a", "b"]);
    push(&mut hub, &["a"]);
    assert_eq!(ids(&place(&mut hub, b, 0, 0)), [2]);
    assert_eq!(ids(&place(&mut hub, b, 2, 0)), [3, 4]);
    assert!(is_edge(&place(&mut hub, b, 4, 0)), "what is left is a's");
    assert_eq!(ids(&place(&mut hub, a, 1, 0)), [3, 4]);
}

#[test]
fn a_filter_that_comes_late_finds_what_the_ring_holds() {
    let mut hub = hub();
    push(&mut hub, &["a"]);
    push(&mut hub, &["b"]);
    let key = attach(&mut hub, "a");
    assert_eq!(ids(&place(&mut hub, key, 0, 0)), [1]);
    assert!(is_edge(&place(&mut hub, key, 1, 0)));
}

#[test]
fn the_first_batch_that_matches_wakes_and_only_once() {
    let mut hub = hub();
    let (a, b) = (attach(&mut hub, "a"), attach(&mut hub, "b.*"));
    assert!(is_edge(&place(&mut hub, a, 0, 1)) && is_edge(&place(&mut hub, b, 0, 2)));
    assert_eq!(push(&mut hub, &["c"]), NOBODY);
    assert_eq!(push(&mut hub, &["a", "a"]), [1]);
    assert_eq!(push(&mut hub, &["a", "b.x"]), [2], "a was woken and has not asked again");
    assert_eq!(ids(&place(&mut hub, a, 0, 1)), [2, 3], "it jumps over what did not match");
    assert_eq!(hub.passed(b), 3, "all before the batch that woke it is behind it");
}

#[test]
fn one_who_waits_twice_is_woken_by_the_last_word() {
    let mut hub = hub();
    let key = attach(&mut hub, "a");
    place(&mut hub, key, 0, 1);
    place(&mut hub, key, 0, 2);
    assert_eq!(push(&mut hub, &["a"]), [2]);
}

#[test]
fn one_push_of_several_batches_wakes_for_the_first() {
    let mut hub = hub();
    let key = attach(&mut hub, "a");
    place(&mut hub, key, 0, 1);
    let long = |id, topic: &str| Event { data: "x".repeat(batch::PIECE_BYTES), ..event(id, topic) };
    assert_eq!(hub.push(vec![long(1, "b"), long(2, "a"), long(3, "a")]), [1]);
    assert_eq!(hub.passed(key), 1);
    assert_eq!(ids(&place(&mut hub, key, 1, 1)), [2]);
}

#[test]
fn a_type_that_does_not_match_wakes_nobody() {
    let mut hub = hub();
    let (key, _) = hub.attach(&typed("**", "t"), 0, 0);
    place(&mut hub, key, 0, 1);
    let with = |id, name: &str| Event { event: EventType::parse(name).unwrap(), ..event(id, "a") };
    assert_eq!(hub.push(vec![event(1, "a"), with(2, "u")]), NOBODY);
    assert_eq!(hub.passed(key), 2, "who is not woken has seen everything");
    assert_eq!(hub.push(vec![event(3, "b"), with(4, "t")]), [1]);
}

#[test]
fn nobody_is_lost_when_others_leave() {
    let mut hub = hub();
    let keys: Vec<_> = (0..5).map(|_| attach(&mut hub, "a")).collect();
    for (at, &key) in keys.iter().enumerate() {
        place(&mut hub, key, 0, at);
    }
    // One in the middle, the last, one twice; and one that does not wait any more.
    for gone in [1, 4, 1] {
        hub.detach(keys[gone]);
    }
    let mut woken = push(&mut hub, &["a"]);
    woken.sort_unstable();
    assert_eq!(woken, [0, 2, 3]);
    hub.detach(keys[0]);
    assert_eq!(hub.subscribers(), 2);
    let again = attach(&mut hub, "b");
    hub.detach(keys[1]);
    assert_eq!(hub.subscribers_of("b"), 1, "an old key does not let go who came after it");
    hub.detach(again);
    assert_eq!((hub.subscribers_of("b"), hub.subscribers_of("a")), (0, 2));
    assert!(matches!(place(&mut hub, keys[1], 0, 9), Place::Drained), "who is gone gets nothing");
}

#[test]
fn subscribers_of_a_topic_are_counted_once_each() {
    let mut hub = hub();
    for pattern in ["a.b", "a.*", "**", "a.b", "c"] {
        attach(&mut hub, pattern);
    }
    let two = Filter::new(vec![Pattern::parse("*.b").unwrap(), Pattern::parse("a.**").unwrap()], vec![]);
    hub.attach(&Arc::new(two), 0, 0);
    assert_eq!((hub.subscribers_of("a.b"), hub.subscribers_of("c"), hub.subscribers_of("d")), (5, 2, 1));
}

#[test]
fn the_ring_keeps_its_bytes() {
    let mut hub = hub_of(held(2, 3));
    push(&mut hub, &["a", "a"]);
    push(&mut hub, &["a"]);
    assert_eq!(hub.ring_bytes(), held(2, 3));
    push(&mut hub, &["a"]);
    assert_eq!(hub.ring_bytes(), held(2, 2), "batches go whole");
    let key = attach(&mut hub, "a");
    assert!(matches!(place(&mut hub, key, 1, 0), Place::Disk { .. }), "not even its second half is there");
    push(&mut hub, &["a"; 12]);
    assert_eq!(hub.ring_bytes(), 0, "one that is too large for the ring does not stay");
    assert!(matches!(place(&mut hub, key, 15, 0), Place::Disk { upto: 16 }));
}

#[test]
fn what_is_encoded_counts_as_long_as_it_is_there() {
    let mut hub = hub_of(20 * EVENT);
    let key = attach(&mut hub, "a");
    push(&mut hub, &["a", "b"]);
    let Place::Ring(batches) = place(&mut hub, key, 0, 0) else { panic!("it is in the ring") };
    let batch = &batches[0];
    let (share, grown) = batch.share(&filter("a"), Form::Sse, 0);
    assert!(grown > share.len());
    hub.grown(batch, grown);
    assert_eq!(hub.ring_bytes(), held(1, 2) + grown);
    assert_eq!(batch.share(&filter("a"), Form::Sse, 0), (share, 0), "it is cut once");
    hub.trim_topics(&floors(&[("b", 2)]));
    assert_eq!(hub.ring_bytes(), held(1, 1), "what is left is encoded anew");
    let (_, late) = batch.share(&filter("b"), Form::Sse, 0);
    hub.grown(batch, late);
    assert_eq!(hub.ring_bytes(), held(1, 1), "a batch that was replaced counts no more");
    hub.trim_log(floor(2));
    hub.grown(batch, late);
    assert_eq!(hub.ring_bytes(), 0);
}

#[test]
fn a_batch_may_push_itself_out_by_growing() {
    let mut hub = hub_of(held(1, 1));
    let key = attach(&mut hub, "a");
    push(&mut hub, &["a"]);
    let Place::Ring(batches) = place(&mut hub, key, 0, 0) else { panic!("it is in the ring") };
    let batch = &batches[0];
    let (_, grown) = batch.share(&filter("a"), Form::Lines, 0);
    hub.grown(batch, grown);
    assert_eq!(hub.ring_bytes(), 0);
    assert!(matches!(place(&mut hub, key, 0, 0), Place::Disk { upto: 1 }));
    assert!(is_edge(&place(&mut hub, key, 1, 0)));
}

#[test]
fn a_share_is_what_matches_after_the_cursor() {
    let events = vec![event(5, "a"), event(6, "b"), event(7, "a")];
    let batch = Batch::cut(4, events).remove(0);
    let share = |pattern: &str, cursor| {
        let (bytes, _) = batch.share(&filter(pattern), Form::Sse, cursor);
        String::from_utf8(bytes.to_vec()).unwrap()
    };
    assert_eq!(share("a", 4), "id: 5\ndata: x\n\nid: 7\ndata: x\n\n");
    assert_eq!(share("a", 5), "id: 7\ndata: x\n\n");
    assert_eq!(share("*", 5), "id: 6\ndata: x\n\nid: 7\ndata: x\n\n");
    assert_eq!(share("b", 6), "");
    assert_eq!((batch.last_match(&filter("b")), batch.last_match(&filter("c"))), (6, 4));
}

#[test]
fn a_push_is_cut_into_pieces_that_leave_nothing_out() {
    let sized = |id, bytes| Event { data: "x".repeat(bytes), ..event(id, "a") };
    let half = batch::PIECE_BYTES / 2;
    let batches =
        Batch::cut(9, vec![sized(10, half), sized(11, 10), sized(14, half), sized(15, 3 * half), sized(16, 1)]);
    let spans: Vec<_> = batches.iter().map(|b| (b.after(), b.last(), b.events().len())).collect();
    assert_eq!(spans, [(9, 11, 2), (11, 14, 1), (14, 15, 1), (15, 16, 1)]);
    assert!(Batch::cut(9, vec![]).is_empty());
}

#[test]
fn a_trim_of_the_log_takes_the_ring_with_it() {
    let mut hub = hub();
    let key = attach(&mut hub, "a");
    push(&mut hub, &["a", "a"]);
    push(&mut hub, &["a", "a", "a"]);
    hub.trim_log(floor(3));
    assert_eq!(hub.floor(key).id, 3);
    assert!(matches!(place(&mut hub, key, 1, 0), Place::Disk { upto: 5 }));
    assert_eq!(ids(&place(&mut hub, key, 2, 0)), [4, 5], "the half that is left");
    assert_eq!(hub.ring_bytes(), held(1, 2));
    hub.trim_log(floor(5));
    assert_eq!(hub.ring_bytes(), 0);
    assert!(matches!(place(&mut hub, key, 2, 0), Place::Disk { upto: 5 }));
    assert!(is_edge(&place(&mut hub, key, 5, 0)));
}

#[test]
fn a_trim_of_topics_leaves_the_others() {
    let mut hub = hub();
    let (a, b, all) = (attach(&mut hub, "a"), attach(&mut hub, "b"), attach(&mut hub, "**"));
    push(&mut hub, &["a", "b"]);
    push(&mut hub, &["a"]);
    push(&mut hub, &["a"]);
    hub.trim_topics(&floors(&[("a", 3), ("c", 4)]));
    assert_eq!([a, b, all].map(|key| hub.floor(key).id), [3, 0, 4]);
    assert_eq!(ids(&place(&mut hub, all, 0, 0)), [2]);
    assert_eq!(ids(&place(&mut hub, a, 0, 0)), [4], "a batch of which nothing is left is passed over");
    assert_eq!(ids(&place(&mut hub, b, 1, 0)), [2]);
    assert_eq!(hub.ring_bytes(), held(3, 2));
}

#[test]
fn what_a_trim_leaves_empty_is_let_go_in_time() {
    let mut hub = hub_of(held(10, 10));
    for id in 1..=1_000 {
        push(&mut hub, &["a"]);
        hub.trim_topics(&floors(&[("a", id)]));
    }
    assert!(hub.ring.end() - hub.ring.begin() < 20 && hub.ring_bytes() <= held(10, 10));
}

#[test]
fn only_what_rose_since_a_beginning_counts_and_all_of_it() {
    let mut hub = hub();
    push(&mut hub, &["a"; 9]);
    let (old, rose) = hub.attach(&filter("*"), 0, hub.trims());
    assert!(!rose);
    let before = hub.trims();
    hub.trim_topics(&floors(&[("a", 7)]));
    let (new, rose) = hub.attach(&filter("*"), 0, hub.trims());
    assert!(!rose);
    hub.trim_topics(&floors(&[("b", 4)]));
    assert_eq!([old, new].map(|key| hub.floor(key).id), [7, 4], "a higher floor of before hides none");
    let (late, rose) = hub.attach(&filter("*"), 0, before);
    assert!(rose, "what rose while its beginning was fixed is for the store to say");
    hub.raise_floor(late, floor(7));
    assert_eq!([old, new, late].map(|key| hub.floor(key).id), [7, 4, 7]);
}

#[test]
fn skipped_ids_are_behind_everyone() {
    let mut hub = hub();
    let (a, b) = (attach(&mut hub, "a"), attach(&mut hub, "a"));
    push(&mut hub, &["a"]);
    assert!(is_edge(&place(&mut hub, a, 1, 1)));
    assert_eq!(hub.skip_to(9), NOBODY);
    hub.raise_floors(|_| Floor { id: 9, reason: GapReason::Lost });
    assert_eq!((hub.tail(), hub.passed(a), hub.ring_bytes()), (9, 9, 0));
    assert!(matches!(place(&mut hub, b, 0, 2), Place::Disk { upto: 9 }));
    assert_eq!(hub.floor(b), Floor { id: 9, reason: GapReason::Lost });
    assert_eq!(push(&mut hub, &["a"]), [1]);
    assert_eq!(ids(&place(&mut hub, a, 9, 1)), [10]);
    assert_eq!(hub.skip_to(4), NOBODY);
    assert_eq!(hub.tail(), 10, "never back");
}

#[test]
fn a_heartbeat_is_due_after_silence_and_again() {
    // Also where the low four bytes of the time, which are kept of it, begin anew.
    for start in [1_000_000, (400 << 32) - 8_000] {
        let mut hub = hub();
        let (key, _) = hub.attach(&filter("a"), start, 0);
        let mut sent = start;
        for _ in 0..5 {
            hub.place(key, 0, sent, 0, || 7);
            assert_eq!(hub.beat(sent + 3_199), NOBODY, "never early");
            assert_eq!(hub.beat(sent + 3_400), [7], "late by at most a tick");
            assert_eq!(hub.beat(sent + 3_400), NOBODY);
            sent += 3_400;
        }
        // It sends something in between.
        hub.place(key, 0, sent + 3_000, 0, || 7);
        assert_eq!(hub.beat(sent + 6_199), NOBODY);
        assert_eq!(hub.beat(sent + 6_300), [7]);
    }
}

#[test]
fn a_time_is_told_by_its_low_bytes_when_it_is_near() {
    const DAY: Millis = 24 * 60 * 60 * 1000;
    for now in [0, 5, DAY, (400 << 32) - 1, 400 << 32, (400 << 32) + 1] {
        for away in [0, 1, 3_200, DAY, 24 * DAY] {
            for time in [now.saturating_sub(away), now + away] {
                assert_eq!(long_time(short_time(time), now), time, "{time} at {now}");
            }
        }
    }
}

/// With its follower (112 bytes) and two short entries an idle subscriber is to stay well below 256 bytes.
#[test]
fn one_that_waits_is_small() {
    assert!(size_of::<Option<Subscriber<wake::Wake>>>() <= 56, "{}", size_of::<Option<Subscriber<wake::Wake>>>());
}

#[test]
fn heartbeats_survive_a_pause_and_those_who_leave() {
    let mut hub = hub();
    let keys: Vec<_> = (0..4).map(|at| hub.attach(&filter("a"), 1_000_000 + at * 100, 0).0).collect();
    for (wake, &key) in keys.iter().enumerate() {
        hub.place(key, 0, 1_000_000, 0, || wake);
    }
    hub.detach(keys[2]);
    let mut woken = hub.beat(90_000_000);
    woken.sort_unstable();
    assert_eq!(woken, [0, 1, 3], "all of them at once after a long pause");
    hub.place(keys[0], 0, 90_000_000, 0, || 0);
    assert_eq!(hub.beat(90_003_300), [0], "only who waits can be woken");
    let (key, _) = hub.attach(&filter("a"), 180_000_000, 0);
    hub.place(key, 0, 180_000_000, 0, || 5);
    assert_eq!(hub.beat(180_003_100), NOBODY, "one that came after a pause is not early");
    assert_eq!(hub.beat(180_003_300), [5]);
}

#[test]
fn a_heartbeat_does_not_end_the_wait() {
    let mut hub = hub();
    let key = attach(&mut hub, "a");
    place(&mut hub, key, 0, 1);
    assert_eq!(hub.beat(3_300), [1]);
    assert_eq!(push(&mut hub, &["b"]), NOBODY);
    assert_eq!(hub.passed(key), 1, "it has seen everything all the same");
    assert_eq!(push(&mut hub, &["a"]), NOBODY, "it was woken, and asks by itself");
    assert_eq!(ids(&place(&mut hub, key, 1, 1)), [2]);
}

#[test]
fn a_drain_wakes_all_and_nothing_more_comes() {
    let mut hub = hub();
    let (a, b) = (attach(&mut hub, "a"), attach(&mut hub, "b"));
    push(&mut hub, &["a"]);
    place(&mut hub, b, 0, 2);
    assert_eq!(hub.drain(), [2]);
    assert!([a, b].into_iter().all(|key| matches!(place(&mut hub, key, 0, 0), Place::Drained)));
    assert_eq!(push(&mut hub, &["b"]), NOBODY);
    assert_eq!(hub.drain(), NOBODY);
    hub.detach(b);
    assert_eq!(hub.subscribers(), 1);
}

#[test]
fn who_waits_for_a_tail_is_woken_when_it_is_there() {
    let mut hub = hub();
    assert!(!hub.has_reached(2, || 7));
    assert!(!hub.has_reached(4, || 8));
    assert_eq!(push(&mut hub, &["a"]), NOBODY);
    assert_eq!(push(&mut hub, &["a", "a"]), [7]);
    assert!(hub.has_reached(3, || 9));
    assert_eq!(hub.skip_to(5), [8]);
    assert!(!hub.has_reached(6, || 10));
    assert_eq!(hub.drain(), [10]);
    assert!(hub.has_reached(6, || 11), "nobody waits for what never comes");
}

#[test]
fn at_the_end_of_closed_topics_nothing_is_waited_for() {
    let mut hub = hub();
    let both = Arc::new(Filter::new(vec![Pattern::parse("a").unwrap(), Pattern::parse("b").unwrap()], vec![]));
    let (a, wild) = (attach(&mut hub, "a"), attach(&mut hub, "*"));
    let (both, _) = hub.attach(&both, 0, hub.trims());
    let slow = attach(&mut hub, "a");
    push(&mut hub, &["a", "b"]);
    assert!(is_edge(&place(&mut hub, a, 2, 1)) && is_edge(&place(&mut hub, both, 2, 2)));
    assert!(is_edge(&place(&mut hub, wild, 2, 3)));
    // Of the filter for both, `b` is still open.
    assert_eq!(hub.close("a", |filter| filter.single_topic().map(|_| 1)), [1]);
    assert!(matches!(place(&mut hub, a, 2, 1), Place::Closed { last: 1, tail: 2 }));
    assert!(is_edge(&place(&mut hub, both, 2, 2)));
    assert_eq!(hub.close("b", |_| Some(2)), [2]);
    assert_eq!(ids(&place(&mut hub, slow, 0, 4)), [1, 2], "what it is still owed comes first");
    assert!(matches!(place(&mut hub, slow, 2, 4), Place::Closed { last: 1, tail: 2 }));
    assert!(matches!(place(&mut hub, both, 2, 2), Place::Closed { last: 2, tail: 2 }));
    assert!(is_edge(&place(&mut hub, wild, 2, 3)), "topics may still come");
    let late = attach(&mut hub, "a");
    hub.mark_closed(late, 1);
    assert!(matches!(place(&mut hub, late, 2, 1), Place::Closed { last: 1, tail: 2 }));
}
