//! Who shares a read, who is told what, and how much is kept.

use bytes::Bytes;
use proptest::prelude::*;

use super::super::block::DENSE_IDS;
use super::*;
use crate::topic::Pattern;

fn reading(pattern: &str, after: EventId, upto: EventId) -> Stretch {
    let filter = Filter::new(vec![Pattern::parse(pattern).unwrap()], Vec::new());
    Stretch { filter: Arc::new(filter), form: Form::Sse, after, upto, bytes_max: READ_BYTES }
}

#[expect(clippy::unnecessary_wraps, reason = "it is handed in where a read may fail")]
fn read(upto: EventId, bytes: usize) -> LogDone {
    Ok(WasRead { bytes: Bytes::from(vec![b'x'; bytes]), upto, last: upto })
}

#[test]
fn a_first_block_ends_with_the_first_match_that_is_far_away_and_no_other_does() {
    let after = 1_000_003;
    let ends = |bytes_max, ids: &[EventId]| {
        let mut cut = Cut::new(after, bytes_max);
        ids.iter().zip(1..).find(|(id, n)| cut.is_here(after + *id, n * 100)).map(|(id, _)| *id)
    };
    let rare: Vec<EventId> = (1..=40).map(|n| n * 10_000).collect();
    assert_eq!(ends(FIRST_READ_BYTES, &rare), Some(10_000));
    assert_eq!(ends(FIRST_READ_BYTES, &[1, FIRST_IDS - 1, FIRST_IDS, FIRST_IDS + 1]), Some(FIRST_IDS));
    assert_eq!(ends(FIRST_READ_BYTES * 4, &rare), Some(70_000));
    assert_eq!(ends(READ_BYTES, &rare), None, "a later block is as long as it may be");
}

/// What an asker was answered; `None` while it waits.
type Told = Arc<Mutex<Option<Done>>>;

struct Waiter(Told);

impl Asker for Waiter {
    fn waits(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn answer(self: Box<Self>, done: Done) {
        *self.0.lock() = Some(done);
    }
}

fn asks(shared: &Arc<Shared>, stretch: &Stretch, told: u64) -> (Turn, Told) {
    let answer = Told::default();
    (shared.turn(stretch, told, Box::new(Waiter(answer.clone()))), answer)
}

fn lead(turn: (Turn, Told)) -> Lead {
    let (Turn::Lead(lead), _) = turn else { panic!("it is to be read") };
    lead
}

fn known(turn: (Turn, Told)) -> EventId {
    let (Turn::Known(read), _) = turn else { panic!("it was read") };
    read.upto
}

fn waits(turn: (Turn, Told)) -> Told {
    let (Turn::Wait, answer) = turn else { panic!("it is being read") };
    answer
}

fn upto(answer: &Told) -> Option<EventId> {
    answer.lock().as_ref().map(|done| match done.as_ref().unwrap() {
        Came::Log(read) => read.upto,
        Came::Bundle(_) => panic!("nobody asks for a bundle here"),
    })
}

#[test]
fn one_reads_for_those_who_wait_and_those_who_come_later() {
    let shared = Arc::new(Shared::default());
    let (first, answer) = asks(&shared, &reading("a", 5, 90), 0);
    let first = lead((first, Told::default()));
    let second = waits(asks(&shared, &reading("a", 5, 91), 0));
    lead(asks(&shared, &reading("b", 5, 90), 0));
    lead(asks(&shared, &reading("a", 6, 90), 0));
    lead(asks(&shared, &Stretch { form: Form::Lines, ..reading("a", 5, 90) }, 0));
    assert!(first.done(reading("a", 5, 90), 0, &read(40, 100)).is_none(), "so little is no block");
    assert_eq!((upto(&answer), upto(&second)), (Some(40), Some(40)));
    assert_eq!(known(asks(&shared, &reading("a", 5, 95), 0)), 40);
}

#[test]
fn a_read_of_before_a_trim_is_for_nobody_who_comes_after() {
    let shared = Arc::new(Shared::default());
    drop(lead(asks(&shared, &reading("a", 5, 90), 0)).done(reading("a", 5, 90), 0, &read(40, 100)));
    let running = lead(asks(&shared, &reading("a", 40, 90), 0));
    let before = waits(asks(&shared, &reading("a", 40, 90), 0));
    // Floors were published: both are read anew.
    let anew = lead(asks(&shared, &reading("a", 40, 90), 1));
    let after = waits(asks(&shared, &reading("a", 40, 90), 1));
    drop(lead(asks(&shared, &reading("a", 5, 90), 1)).done(reading("a", 5, 90), 1, &read(30, 50)));
    assert_eq!(known(asks(&shared, &reading("a", 5, 90), 1)), 30);
    drop(running.done(reading("a", 40, 90), 1, &read(80, 100)));
    assert_eq!((upto(&before), upto(&after)), (Some(80), None), "who asked before is given what was begun before");
    drop(anew.done(reading("a", 40, 90), 1, &read(70, 100)));
    assert_eq!(upto(&after), Some(70));
    assert_eq!(known(asks(&shared, &reading("a", 40, 90), 1)), 70);
    assert_eq!(shared.bytes(), 2 * ENTRY_BYTES + 150);
}

#[test]
fn nobody_is_given_more_than_was_asked_for() {
    let shared = Arc::new(Shared::default());
    let first = lead(asks(&shared, &reading("a", 5, 90), 0));
    let (alone, answer) = asks(&shared, &reading("a", 5, 60), 0);
    drop(lead((alone, Told::default())).done(reading("a", 5, 60), 0, &read(50, 100)));
    assert_eq!(upto(&answer), Some(50));
    drop(first.done(reading("a", 5, 90), 0, &read(80, 100)));
    assert_eq!(known(asks(&shared, &reading("a", 5, 80), 0)), 80);
    lead(asks(&shared, &reading("a", 5, 79), 0));
    assert_eq!(known(asks(&shared, &reading("a", 5, 90), 0)), 80, "a read for one does not replace what is shared");
}

#[test]
fn a_reader_that_gives_up_or_fails_leaves_nothing_behind() {
    let shared = Arc::new(Shared::default());
    for fails in [false, true] {
        let (first, answer) = asks(&shared, &reading("a", 5, 90), 0);
        let first = lead((first, Told::default()));
        assert!(first.is_waited_for());
        drop(answer);
        assert!(!first.is_waited_for());
        assert!(first.wanted().is_none(), "who asked has left");
        let first = lead(asks(&shared, &reading("a", 5, 90), 0));
        let second = waits(asks(&shared, &reading("a", 5, 90), 0));
        let first = first.wanted().unwrap();
        if fails {
            assert!(first.done(reading("a", 5, 90), 0, &Err(StoreError::Closed.into())).is_none());
        } else {
            drop(first);
        }
        assert!(matches!(*second.lock(), Some(Err(ReadingError::Store(StoreError::Closed)))));
        assert_eq!(shared.bytes(), 0);
        assert!(shared.0.lock().entries.is_empty());
    }
}

/// A lead for a third block, for which somebody waits, and the one who asked for the second is held; with its stretch, and their answers.
fn holding(shared: &Arc<Shared>) -> (Lead, Stretch, [Told; 2]) {
    let at = |after| reading("a", after, 9_999);
    let (first, _waits) = asks(shared, &at(0), 0);
    let (next, stretch) = lead((first, Told::default())).done(at(0), 0, &read(1, READ_BYTES)).unwrap();
    let quick = waits(asks(shared, &at(1), 0));
    let (next, stretch) = next.done(stretch, 0, &read(2, READ_BYTES)).unwrap();
    let waiting = waits(asks(shared, &at(2), 0));
    assert_eq!((upto(&quick), upto(&waiting)), (None, None), "one that has come back is answered later");
    (next, stretch, [quick, waiting])
}

#[test]
fn one_that_is_held_has_its_block_whatever_becomes_of_the_next() {
    let shared = Arc::new(Shared::default());
    let (next, stretch, [held, waiting]) = holding(&shared);
    assert!(next.done(stretch, 0, &Err(StoreError::Closed.into())).is_none());
    assert_eq!(upto(&held), Some(2));
    assert!(matches!(*waiting.lock(), Some(Err(_))));

    let shared = Arc::new(Shared::default());
    let (next, _, [held, waiting]) = holding(&shared);
    drop(next);
    assert_eq!(upto(&held), Some(2));
    assert!(matches!(*waiting.lock(), Some(Err(_))));

    let shared = Arc::new(Shared::default());
    let (mut next, stretch, [held, waiting]) = holding(&shared);
    next.answer_held();
    assert_eq!((upto(&held), upto(&waiting)), (Some(2), None));
    let sparse = 3 + DENSE_IDS;
    assert!(next.done(stretch, 0, &read(sparse, READ_BYTES)).is_some());
    assert_eq!(upto(&waiting), Some(sparse), "what is rare is waited for no longer than it takes");
}

#[test]
fn what_a_scan_reads_on_does_not_replace_what_was_begun_after_a_trim() {
    let shared = Arc::new(Shared::default());
    let (first, _waits) = asks(&shared, &reading("a", 0, 9_999), 5);
    let first = lead((first, Told::default()));
    let fresh = lead(asks(&shared, &reading("a", 1, 9_999), 6));
    assert!(first.done(reading("a", 0, 9_999), 5, &read(1, READ_BYTES)).is_none());
    drop(fresh.done(reading("a", 1, 9_999), 6, &read(2, 10)));
    assert_eq!(known(asks(&shared, &reading("a", 1, 9_999), 6)), 2);
}

#[test]
fn many_that_are_apart_have_less_read_ahead() {
    let shared = Arc::new(Shared::default());
    let readers = u64::from(AHEAD_OF_QUICK_MAX);
    let reads: Vec<EventId> = (0..readers)
        .map(|reader| {
            let mut back = Vec::new();
            let comes_back = |after| {
                if after == 1 {
                    back.push(waits(asks(&shared, &reading(&format!("r{reader}"), 1, 9_999), 0)));
                }
            };
            run(&shared, &format!("r{reader}"), 0, comes_back)
        })
        .collect();
    assert_eq!(reads[0], 2 + u64::from(AHEAD_OF_QUICK_MAX));
    assert_eq!(*reads.last().unwrap(), 2 + u64::from(AHEAD_MAX));
    assert_eq!(shared.0.lock().pause, 0, "and nothing went unread");
}

#[test]
fn who_asks_while_another_gives_up_is_answered() {
    let shared = Arc::new(Shared::default());
    let lead_on = |lead: Lead, after| {
        if let Some(lead) = lead.wanted() {
            drop(lead.done(reading("a", after, 90), 0, &read(90, 1)));
        }
    };
    for after in 0..20_000 {
        let left = lead(asks(&shared, &reading("a", after, 90_000), 0));
        let met = std::sync::Barrier::new(2);
        let (turn, answer) = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                met.wait();
                asks(&shared, &reading("a", after, 90_000), 0)
            });
            met.wait();
            lead_on(left, after);
            other.join().unwrap()
        });
        match turn {
            Turn::Known(_) => {}
            Turn::Wait => assert_eq!(upto(&answer), Some(90), "in round {after}"),
            Turn::Lead(lead) => lead_on(lead, after),
        }
    }
}

#[test]
fn what_is_kept_is_bounded_and_the_oldest_goes() {
    let shared = Arc::new(Shared::default());
    for after in 0..1_000 {
        let reading = reading("a", after, after + 1);
        drop(lead(asks(&shared, &reading, 0)).done(reading, 0, &read(after + 1, READ_BYTES)));
        assert!(shared.bytes() <= SHARED_BYTES_MAX);
    }
    let inner = shared.0.lock();
    assert_eq!(inner.entries.len(), SHARED_BYTES_MAX / (READ_BYTES + ENTRY_BYTES));
    assert!(inner.done.len() <= 2 * inner.entries.len());
    assert!(inner.entries.keys().all(|place| place.after >= 1_000 - inner.entries.len() as u64));
}

/// Reads from `after` on until nothing more is wanted; gives where that was.
fn run(shared: &Arc<Shared>, pattern: &str, after: EventId, mut meanwhile: impl FnMut(EventId)) -> EventId {
    let (first, _waits) = asks(shared, &reading(pattern, after, 9_999), 0);
    let mut next = Some((lead((first, Told::default())), reading(pattern, after, 9_999)));
    let mut came = after;
    while let Some((lead, reading)) = next {
        came = reading.after + 1;
        meanwhile(reading.after);
        next = lead.done(reading, 0, &read(came, READ_BYTES));
    }
    came
}

#[test]
fn a_little_is_read_ahead_and_more_while_somebody_keeps_up() {
    let shared = Arc::new(Shared::default());
    let ahead = u64::from(AHEAD_MAX);
    assert_eq!(run(&shared, "a", 0, |_| {}), 1 + ahead);
    assert_eq!(known(asks(&shared, &reading("a", ahead, 9_999), 0)), 1 + ahead);
    let mut keeps_up = Vec::new();
    let all = |after| {
        if after != 100 {
            keeps_up.push(waits(asks(&shared, &reading("a", after, 9_999), 0)));
        }
    };
    assert_eq!(run(&shared, "a", 100, all), 100 + u64::from(RUN_MAX));
    let mut leaves = None;
    let with_the_third = |after| {
        if after == 202 {
            let answer = waits(asks(&shared, &reading("a", after, 9_999), 0));
            leaves = Some(Arc::downgrade(&answer));
        }
    };
    assert_eq!(run(&shared, "a", 200, with_the_third), 203, "nothing is read ahead of one that has gone");
    assert!(leaves.is_some_and(|answer| answer.upgrade().is_none()));
    let small = |after| Stretch { bytes_max: READ_BYTES / 4, ..reading("s", after, 9_999) };
    let (first, _waits) = asks(&shared, &small(0), 0);
    let first = lead((first, Told::default()));
    assert!(first.done(small(0), 0, &read(1, READ_BYTES / 4)).is_none(), "nor of one that has just begun");
    // What was read ahead goes unread.
    for reader in 0..200 {
        run(&shared, &format!("r{reader}"), 0, |_| {});
    }
    assert_eq!(run(&shared, "z", 0, |_| {}), 1, "slow readers that share the room have nothing read ahead");
}

/// Where the blocks of a reader end that begins after `after`; matches have these ids and so many bytes each.
fn ends(after: EventId, matches: &[(EventId, usize)]) -> Vec<EventId> {
    let mut ends = Vec::new();
    let (mut cut, mut bytes) = (Cut::new(after, READ_BYTES), 0);
    for &(id, size) in matches.iter().filter(|(id, _)| *id > after) {
        bytes += size;
        if cut.is_here(id, bytes) {
            assert!(bytes >= READ_BYTES / 8 && bytes < READ_BYTES + size);
            ends.push(id);
            (cut, bytes) = (Cut::new(id, READ_BYTES), 0);
        }
    }
    ends
}

proptest! {
    #[test]
    fn readers_that_began_apart_fall_into_step(
        sizes in prop::collection::vec(100usize..400, 16_000), sparse in 1u64..50, apart in 1u64..3_000,
    ) {
        let matches: Vec<_> = (1..).map(|n| n * sparse).zip(sizes).collect();
        let (one, other) = (ends(0, &matches), ends(apart * sparse, &matches));
        let late = matches.len() as u64 * sparse / 2;
        let late = |ends: &[EventId]| ends.iter().copied().filter(|&id| id > late).collect::<Vec<_>>();
        prop_assert_eq!(late(&one), late(&other));
    }

    #[test]
    fn blocks_are_neither_small_nor_large(sizes in prop::collection::vec(1usize..100_000, 0..500)) {
        let matches: Vec<_> = (1..).zip(sizes).collect();
        ends(0, &matches);
    }
}
