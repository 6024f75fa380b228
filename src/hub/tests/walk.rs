//! Walks through the ring, and what is listed on them.

use super::super::listed::{ByTopic, LISTED_MAX};
use super::super::walk::{BARREN_BATCHES, WALK_BATCHES_MAX};
use super::*;

#[test]
fn a_long_walk_gives_the_others_a_turn() {
    let mut hub = hub();
    let key = attach(&mut hub, "b");
    push(&mut hub, &["b"]);
    for _ in 0..WALK_BATCHES_MAX + 10 {
        push(&mut hub, &["a"]);
    }
    let other = attach(&mut hub, "c");
    let (steps, there) = walk(&mut hub, other, 0);
    assert!(steps > 0 && is_edge(&there), "it is a long way: {steps}");
    assert!(is_edge(&place(&mut hub, key, 1, 0)), "the filter's last match is known");
}

/// The steps of a walk from `cursor` to what comes next, and that.
fn walk(hub: &mut Hub<usize>, key: SubscriberKey, mut cursor: EventId) -> (usize, Place) {
    for steps in 0.. {
        match place(hub, key, cursor, 0) {
            Place::Walking { cursor: on } => {
                assert!(on > cursor, "a walk goes on");
                cursor = on;
            }
            there => return (steps, there),
        }
    }
    unreachable!()
}

fn listed(hub: &Hub<usize>) -> usize {
    hub.filters.iter().filter_map(|(_, live)| live.listed.as_ref()).map(|listed| listed.len()).sum()
}

/// Fills the ring with others' batches: a match, and so many others, and that so many times.
fn sparse(hub: &mut Hub<usize>, matches: usize, others: usize) {
    for _ in 0..matches {
        push(hub, &["a.x"]);
        for _ in 0..others {
            push(hub, &["b"]);
        }
    }
}

/// Filters that match what `sparse` pushes: one whose batches are listed by topic, and one that has a list of its own.
const SPARSE: [&str; 2] = ["a.x", "a.*"];

#[test]
fn what_the_first_reader_looked_for_the_next_is_told() {
    for pattern in SPARSE {
        let mut hub = hub_of(1 << 30);
        sparse(&mut hub, 3, 3 * WALK_BATCHES_MAX);
        let every = 3 * WALK_BATCHES_MAX as EventId + 1;
        let (first, next) = (attach(&mut hub, pattern), attach(&mut hub, pattern));
        let (steps, there) = walk(&mut hub, first, 1);
        assert_eq!(ids(&there), [every + 1]);
        assert_eq!(steps, 10, "each step is bounded");
        let (steps, there) = walk(&mut hub, next, 1);
        assert_eq!((steps, ids(&there)), (1, vec![every + 1]), "what the first has passed while it looked");
        for (cursor, comes) in [(1, every + 1), (2, every + 1), (every + 1, 2 * every + 1)] {
            assert!(matches!(place(&mut hub, next, cursor, 0), Place::Ring(batches) if batches[0].last() == comes));
        }
        assert!(is_edge(&place(&mut hub, next, 2 * every + 1, 0)));
        sparse(&mut hub, 2, BARREN_BATCHES + 1);
        let (steps, there) = walk(&mut hub, next, 3 * every + 1);
        let comes = 3 * every + 1 + BARREN_BATCHES as EventId + 2;
        assert_eq!((steps, ids(&there)), (0, vec![comes]), "what is new is listed, too");
    }
}

#[test]
fn a_filters_list_goes_with_its_last_reader() {
    let mut hub = hub_of(1 << 30);
    sparse(&mut hub, 3, WALK_BATCHES_MAX);
    let (one, other) = (attach(&mut hub, "a.*"), attach(&mut hub, "a.*"));
    walk(&mut hub, one, 1);
    hub.detach(one);
    assert_eq!((hub.listed_numbers, listed(&hub)), (2, 2));
    hub.detach(other);
    assert_eq!((hub.listed_numbers, listed(&hub)), (0, 0));
}

#[test]
fn where_matches_are_many_none_is_listed() {
    for pattern in SPARSE {
        let mut hub = hub_of(1 << 30);
        sparse(&mut hub, 40, BARREN_BATCHES - 1);
        let key = attach(&mut hub, pattern);
        let mut cursor = 0;
        while let Place::Ring(batches) = place(&mut hub, key, cursor, 0) {
            cursor = batches[0].last();
        }
        assert_eq!(cursor, 39 * BARREN_BATCHES as EventId + 1);
        assert!(hub.ring.by_topic().is_none() && hub.filters.iter().all(|(_, live)| live.listed.is_none()));
    }
}

#[test]
fn where_lists_are_full_everyone_looks_for_themselves() {
    let mut hub = hub_of(1 << 30);
    sparse(&mut hub, 2, 2 * WALK_BATCHES_MAX);
    let key = attach(&mut hub, "a.*");
    let (_, there) = walk(&mut hub, key, 1);
    assert_eq!((ids(&there), hub.listed_numbers), (vec![2 * WALK_BATCHES_MAX as EventId + 2], 1));
    hub.listed_numbers += LISTED_MAX;
    push(&mut hub, &["a.x"]);
    assert_eq!((listed(&hub), hub.listed_numbers), (0, LISTED_MAX), "a list that would grow goes");
    assert_eq!(walk(&mut hub, key, 1).0, 2, "as many batches in each step as may be");
    assert_eq!(listed(&hub), 0);
    hub.listed_numbers -= LISTED_MAX;
    assert!(walk(&mut hub, key, 1).0 > 2 && listed(&hub) > 0, "there is room again");
}

#[test]
fn what_has_left_the_ring_keeps_no_room_in_the_lists() {
    let mut hub = hub_of(held(1, 1) * 4 * WALK_BATCHES_MAX);
    sparse(&mut hub, 20, BARREN_BATCHES);
    let (gone, new) = (attach(&mut hub, "a.*"), attach(&mut hub, "c.*"));
    walk(&mut hub, gone, 1);
    let of_gone = listed(&hub);
    assert!(of_gone > 10);
    push(&mut hub, &["c.x"]);
    for _ in 0..5 * WALK_BATCHES_MAX {
        push(&mut hub, &["b"]);
    }
    push(&mut hub, &["c.x"]);
    assert_eq!(listed(&hub), of_gone, "nobody has asked");
    // As if others had the rest.
    hub.listed_numbers += LISTED_MAX - of_gone;
    let begin = hub.ring.get(hub.ring.begin()).unwrap().after();
    walk(&mut hub, new, begin);
    assert_eq!((listed(&hub), hub.listed_numbers), (1, LISTED_MAX - of_gone + 1), "what was gone made room");
}

#[test]
fn of_very_many_topics_the_newest_are_listed() {
    let mut hub = hub_of(1 << 30);
    push(&mut hub, &["a.x"]);
    let names: Vec<String> = (0..300_000).map(|n| format!("t.{n}")).collect();
    let push_all = |hub: &mut Hub<usize>, names: &[String]| {
        for few in names.chunks(16) {
            push(hub, &few.iter().map(String::as_str).collect::<Vec<_>>());
        }
    };
    push_all(&mut hub, &names);
    push(&mut hub, &["a.x"]);
    let last = hub.tail();
    let key = attach(&mut hub, "a.x");
    while hub.ring.list(1, WALK_BATCHES_MAX) {}
    assert_eq!(ids(&walk(&mut hub, key, 1).1), [last]);
    let is_full = |hub: &Hub<usize>| hub.ring.by_topic().unwrap().is_full();
    let begin = |hub: &Hub<usize>| hub.ring.by_topic().unwrap().begin();
    let (was_full, newest) = (is_full(&hub), begin(&hub));
    assert!(was_full && newest > 1_000, "{newest}: there is no room for all");
    push_all(&mut hub, &names[..1_000]);
    assert!(!is_full(&hub) && begin(&hub) > newest && hub.ring.by_topic().unwrap().is_counted());
    assert_eq!(ids(&walk(&mut hub, key, 1).1), [last], "what is not listed is looked at");
}

fn is_for(filter: &Filter, event: &Event) -> bool {
    filter.matches_topic(event.topic.as_str()) && filter.matches_type(event.event.as_ref().map(EventType::as_str))
}

/// Readers anywhere, of topics that are rare and of ones that are not, while the ring grows, is trimmed, and lets go.
#[test]
fn whatever_is_listed_each_is_given_all_that_matches() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut hub = hub_of(held(1, 1) * random.usize(500..4_000));
        let filters = ["x.rare", "some", "x.rare,some", "x.*", "x.*,some", "*", "never"].map(filter);
        let filters: Vec<_> = filters.into_iter().chain([typed("many", "t"), typed("**", "t")]).collect();
        let mut readers: Vec<(SubscriberKey, Arc<Filter>, EventId)> = Vec::new();
        // Every event that is there.
        let mut all: Vec<Event> = Vec::new();
        let mut is_listed = false;
        for _ in 0..6_000 {
            match random.u32(0..100) {
                0..70 => {
                    let topic = match random.u32(0..300) {
                        0 => "x.rare",
                        1..10 => "some",
                        _ => "many",
                    };
                    let mut topics: Vec<&str> = [topic].into_iter().chain(random.bool().then_some("many")).collect();
                    if random.u32(0..500) == 0 {
                        // Larger than the ring, or nearly.
                        topics = topics.repeat(2_000);
                    }
                    let is_typed = random.u32(0..100) == 0;
                    for _ in 0..random.usize(1..20) {
                        let mut events: Vec<_> =
                            topics.iter().zip(hub.tail() + 1..).map(|(t, id)| event(id, t)).collect();
                        events[0].event = is_typed.then(|| EventType::parse("t").unwrap()).flatten();
                        all.extend(events.iter().cloned());
                        hub.push(events);
                    }
                }
                70..72 => {
                    let topics = [&["x.rare"][..], &["some"], &["many"], &["many", "x.rare"]][random.usize(0..4)];
                    let of = topics.iter().map(|t| (*t, hub.tail().saturating_sub(random.u64(0..800))));
                    let floors = floors(&of.collect::<Vec<_>>());
                    hub.trim_topics(&floors);
                    all.retain(|e| floors.get(&e.topic).is_none_or(|floor| e.id > floor.id));
                }
                72 => {
                    let upto = hub.tail().saturating_sub(random.u64(500..4_000));
                    hub.trim_log(floor(upto));
                    all.retain(|e| e.id > upto);
                }
                73..76 => {
                    let filter = filters[random.usize(0..filters.len())].clone();
                    let cursor = random.u64(0..=hub.tail());
                    readers.push((hub.attach(&filter, 0, hub.trims()).0, filter, cursor));
                }
                76 if !readers.is_empty() => {
                    let (key, ..) = readers.swap_remove(random.usize(0..readers.len()));
                    hub.detach(key);
                }
                77 if random.u32(0..100) == 0 => hub.forget(),
                78 if random.u32(0..100) == 0 => drop(hub.skip_to(hub.tail() + 3)),
                _ if readers.is_empty() => {}
                _ => {
                    let at = random.usize(0..readers.len());
                    let (key, filter, cursor) = &mut readers[at];
                    *cursor = (*cursor).max(hub.passed(*key));
                    let bytes_max = random.usize(0..20 * EVENT);
                    let (upto, given) = match hub.place(*key, *cursor, 0, bytes_max, || 0) {
                        Place::Disk { .. } => (hub.ring.after(), None),
                        Place::Walking { cursor } => (cursor, Some(Vec::new())),
                        Place::Edge { tail } => (tail, Some(Vec::new())),
                        Place::Ring(batches) => {
                            let events = batches.iter().flat_map(|batch| batch.events());
                            let ids = events.filter(|e| e.id > *cursor && is_for(filter, e)).map(|e| e.id);
                            (batches.last().unwrap().last(), Some(ids.collect()))
                        }
                        there => panic!("{there:?}"),
                    };
                    if let Some(given) = given {
                        let there = all.iter().filter(|e| e.id > *cursor && e.id <= upto && is_for(filter, e));
                        let there: Vec<EventId> = there.map(|e| e.id).collect();
                        assert_eq!(given, there, "seed {seed}, from {cursor} to {upto}");
                    }
                    *cursor = upto;
                }
            }
            assert_eq!(hub.listed_numbers, listed(&hub));
            assert!(hub.ring.by_topic().is_none_or(ByTopic::is_counted), "seed {seed}");
            is_listed |= hub.ring.by_topic().is_some() && hub.listed_numbers > 0;
        }
        assert!(is_listed, "seed {seed}");
    }
}
