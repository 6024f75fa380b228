//! What a start finds: after a clean stop, an unclean one, a power cut, corruption, and in what is not its own.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;
use tidelog::event::EventId;
use tidelog::sse::GapReason;
use tidelog::store::rocks::{Options, RocksStore, verify};
use tidelog::store::{Durability, Floor, Limits, Store, StoreError};
use tidelog::topic::Filter;

use crate::support::{
    FAMILIES, Found, crash_copy, event, filter, ids, listing, log_trim, open, put, raw, read, topic, topic_trim, trim,
    wal,
};

fn append(store: &dyn Store, first: EventId, n: u64) {
    for id in first..first + n {
        store.append(&[event(id, id, "t", format!("event {id}"))]).unwrap();
    }
}

fn try_open(dir: &Path) -> Result<RocksStore, StoreError> {
    RocksStore::open(Options::new(dir))
}

fn refused(dir: &Path) -> StoreError {
    match try_open(dir) {
        Ok(_) => panic!("it was opened"),
        Err(error) => error,
    }
}

fn contents(dir: &Path) -> Vec<(String, Vec<u8>)> {
    listing(dir).into_iter().map(|(name, _)| (name.clone(), fs::read(dir.join(name)).unwrap())).collect()
}

fn written(n: u64) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Sync);
    append(&store, 1, n);
    store.close().unwrap();
    dir
}

#[test]
fn after_a_clean_stop_no_id_is_skipped() {
    for durability in [Durability::Sync, Durability::Interval, Durability::Os] {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..3 {
            let store = open(dir.path(), durability);
            assert_eq!(store.tail(), round * 10, "{durability:?}");
            assert_eq!(store.floor(&Filter::all()), Floor { id: 0, reason: GapReason::Trimmed });
            append(&store, round * 10 + 1, 10);
            store.close().unwrap();
        }
    }
}

#[test]
fn after_an_unclean_stop_the_ids_that_may_have_been_given_are_a_hole() {
    for durability in [Durability::Interval, Durability::Os] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), durability);
        append(&store, 1, 10);
        let copy = crash_copy(dir.path());
        drop(store);

        let store = open(copy.path(), durability);
        let tail = store.tail();
        assert!((10_000..200_000).contains(&tail), "{tail}: a hole, and no larger than what is reserved at once");
        let lost = Floor { id: tail, reason: GapReason::Lost };
        for f in [Filter::all(), filter(&["t"], &[]), filter(&["*.x"], &[])] {
            assert_eq!(store.floor(&f), lost, "whoever may have seen what is lost is told");
        }
        assert_eq!(ids(&store, &["t"]), (1..=10).collect::<Vec<_>>(), "the process died, not the machine");
        assert_eq!(store.earliest(), 1);
        append(&store, tail + 1, 2);
        assert_eq!(store.before_last(&filter(&["t"], &[]), 3, store.tail()).unwrap(), 9);
        store.close().unwrap();
        drop(store);

        let store = open(copy.path(), durability);
        assert_eq!(store.tail(), tail + 2, "a clean stop adds none");
        assert_eq!(store.floor(&Filter::all()), lost, "it is remembered");
        trim(&store, &[log_trim(tail + 1)]);
        assert_eq!(store.floor(&Filter::all()), Floor { id: tail + 1, reason: GapReason::Trimmed });
    }
}

#[test]
fn no_id_is_given_twice_whatever_the_disk_forgets() {
    for durability in [Durability::Interval, Durability::Os] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), durability);
        append(&store, 1, 50);
        let full = fs::metadata(wal(dir.path())).unwrap().len();
        for cut in [0, 1, full / 3, full / 2, full - 1] {
            let copy = crash_copy(dir.path());
            fs::File::options().write(true).open(wal(copy.path())).unwrap().set_len(cut).unwrap();
            // Whatever it is run with from then on.
            for next in [Durability::Sync, durability] {
                let again = crash_copy(copy.path());
                let store = open(again.path(), next);
                assert!(store.tail() >= 50, "{durability:?}, then {next:?}, cut at {cut}: {}", store.tail());
                assert_eq!(store.floor(&Filter::all()), Floor { id: store.tail(), reason: GapReason::Lost });
                let left = ids(&store, &["t"]);
                assert_eq!(left, (1..=left.len() as u64).collect::<Vec<_>>(), "what is left is a beginning");
                let next = store.tail() + 1;
                append(&store, next, 1);
                assert_eq!(ids(&store, &["t"]).last(), Some(&next));
            }
        }
    }
}

/// The last id that is reserved may be given as well as any other; whoever has seen it is told that it is lost.
#[test]
fn who_has_seen_the_last_id_that_was_reserved_is_told_that_it_is_lost() {
    for durability in [Durability::Interval, Durability::Os] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), durability);
        append(&store, 1, 10);
        let synced = fs::metadata(wal(dir.path())).unwrap().len();
        let reserved = open(crash_copy(dir.path()).path(), durability).tail();
        append(&store, reserved, 1);
        let copy = crash_copy(dir.path());
        fs::File::options().write(true).open(wal(copy.path())).unwrap().set_len(synced).unwrap();
        drop(store);

        let store = open(copy.path(), durability);
        assert_eq!(ids(&store, &["t"]), (1..=10).collect::<Vec<_>>());
        let floor = store.floor(&Filter::all());
        assert!(floor.id > reserved && floor.reason == GapReason::Lost, "{floor:?} for one who has seen {reserved}");
    }
}

/// Where the zeros ahead of the log begin.
fn written_to(wal: &Path) -> u64 {
    let bytes = fs::read(wal).unwrap();
    bytes.iter().rposition(|&byte| byte != 0).map_or(0, |at| at as u64 + 1)
}

/// Small batches go into zeros that were written ahead, large ones beside them; logs change in their midst, and others write too.
#[test]
fn zeros_ahead_of_the_log_cover_nothing_and_are_taken_for_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = RocksStore::open(Options { write_buffer_bytes: 1 << 20, ..Options::new(dir.path()) }).unwrap();
    let (mut next, mut ahead, stop) = (1, 0, AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                store.set_retention(&topic("beside"), Some(Limits { max_events: 1, ..Limits::default() })).unwrap();
                store.tidy().unwrap();
            }
        });
        for round in 0..610_u64 {
            let bytes = if round % 60 == 59 { 100_000 } else { 1_500 };
            let data = |id: u64| format!("{id} {}", "x".repeat(bytes));
            store.append(&[event(next, next, "t", data(next)), event(next + 1, next, "u", data(next + 1))]).unwrap();
            next += 2;
            if round % 25 == 0 {
                let newest = wal(dir.path());
                ahead += u32::from(fs::metadata(&newest).unwrap().len() > written_to(&newest) + 4096);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(ahead > 12, "it was ahead at {ahead} of 25 times");
    let copy = crash_copy(dir.path());
    let report = tidelog::store::wal::check(&copy.path().join("db")).unwrap();
    assert_eq!(report.torn, None);
    let reopened = try_open(copy.path()).unwrap();
    let found = read(&reopened, &filter(&["**"], &[]), 0, reopened.tail());
    assert_eq!(found.iter().map(|e| e.id).collect::<Vec<_>>(), (1..next).collect::<Vec<_>>());
    assert!(found.iter().all(|e| e.data.starts_with(&format!("{} x", e.id))));
}

#[test]
fn a_torn_last_write_costs_no_earlier_event() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Sync);
    append(&store, 1, 20);
    let before = written_to(&wal(dir.path()));
    store.append(&[event(21, 21, "t", "x".repeat(300))]).unwrap();
    let after = written_to(&wal(dir.path()));
    for cut in (before..after).step_by(23) {
        let copy = crash_copy(dir.path());
        let file = fs::File::options().write(true).open(wal(copy.path())).unwrap();
        file.set_len(cut).unwrap();
        if cut % 2 == 0 {
            file.set_len(after).unwrap();
        }
        let store = try_open(copy.path()).unwrap();
        assert_eq!(ids(&store, &["**"]), (1..=20).collect::<Vec<_>>(), "cut at {cut}");
        assert_eq!(store.tail(), 20);
        append(&store, 21, 1);
        drop(store);
        assert_eq!(ids(&try_open(copy.path()).unwrap(), &["**"]).len(), 21, "cut at {cut}, and on from there");
    }
}

#[test]
fn a_flipped_bit_in_the_middle_is_refused_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Sync);
    append(&store, 1, 20);
    let copy = crash_copy(dir.path());
    let good = fs::read(wal(copy.path())).unwrap();
    let last = usize::try_from(written_to(&wal(copy.path()))).unwrap() / 20 * 18;
    for at in (0..last).step_by(97) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(wal(copy.path()), bad).unwrap();
        let before = contents(copy.path());
        let error = refused(copy.path());
        assert!(matches!(error, StoreError::Corrupt(_)), "at {at}: {error}");
        assert!(error.to_string().contains("restoring a backup"), "it says how to mend it: {error}");
        assert!(contents(copy.path()) == before, "at {at}");
    }
    fs::write(wal(copy.path()), good).unwrap();
    assert_eq!(ids(&try_open(copy.path()).unwrap(), &["t"]).len(), 20, "once mended it opens");
}

#[test]
fn one_at_a_time_serves_a_directory() {
    let dir = written(3);
    let store = try_open(dir.path()).unwrap();
    let error = refused(dir.path());
    assert!(matches!(error, StoreError::Locked(_)), "{error}");
    append(&store, 4, 1);
    drop(store);
    assert_eq!(try_open(dir.path()).unwrap().tail(), 4);
}

#[test]
fn another_format_is_named_as_such() {
    let dir = written(3);
    put(dir.path(), "meta", b"format", Some(&99u32.to_be_bytes()));
    let error = refused(dir.path());
    assert!(matches!(error, StoreError::Version(_)) && error.to_string().contains("99"), "{error}");

    let dir = written(3);
    raw(dir.path(), &[&FAMILIES[..], &["invented"]].concat(), |_| {});
    let before = contents(dir.path());
    let error = refused(dir.path());
    assert!(matches!(error, StoreError::Version(_)) && error.to_string().contains("invented"), "{error}");
    assert!(contents(dir.path()) == before);
}

/// Version 2 had no packs, and is otherwise the same.
#[test]
fn a_log_of_the_version_before_is_read_and_written_on() {
    let format = |dir: &Path| {
        let found = std::cell::Cell::new(0);
        raw(dir, &FAMILIES, |db| {
            let row = db.get_cf(db.cf_handle("meta").unwrap(), b"format").unwrap().unwrap();
            found.set(u32::from_be_bytes(row.try_into().unwrap()));
        });
        found.get()
    };
    let dir = written(3);
    let newest = format(dir.path());
    for old in [0, 1, newest + 1] {
        put(dir.path(), "meta", b"format", Some(&old.to_be_bytes()));
        assert!(matches!(refused(dir.path()), StoreError::Version(_)), "{old}");
    }
    put(dir.path(), "meta", b"format", Some(&2u32.to_be_bytes()));
    let mut found = Found::default();
    verify::verify(dir.path(), &mut found).unwrap();
    // Its tables are not as this program writes them, since they were changed in between.
    assert!(!found.0.iter().any(|finding| finding.place == "meta"), "{:?}", found.0);
    // What cannot be opened stays what it was.
    put(dir.path(), "log", &9u64.to_be_bytes(), Some(b"nonsense"));
    assert!(matches!(refused(dir.path()), StoreError::Corrupt(_)));
    assert_eq!(format(dir.path()), 2);
    put(dir.path(), "log", &9u64.to_be_bytes(), None);
    let store = open(dir.path(), Durability::Sync);
    store.append(&[event(4, 9, "t", "in"), event(5, 9, "t", "a pack")]).unwrap();
    assert_eq!(ids(&store, &["t"]), [1, 2, 3, 4, 5]);
    store.close().unwrap();
    drop(store);
    assert_eq!(format(dir.path()), newest, "an older program does not open it any more");
    assert_eq!(ids(&open(dir.path(), Durability::Sync), &["t"]), [1, 2, 3, 4, 5]);
}

#[test]
fn what_cannot_be_is_corruption() {
    let mut record = vec![1, 0, 0, 0, 0, 0];
    record.extend_from_slice(&7u64.to_be_bytes());
    let stranger = [&record[..2], &77u32.to_be_bytes(), &record[6..]].concat();
    // Of events without data: the length of what follows, and flags.
    let pack = |count: u8| [&[2, count], &record[2..], &[0, 1, 0].repeat(count.into())].concat();
    let cases = [
        ("a record past the tail", "log", 4u64.to_be_bytes().to_vec(), Some(record.clone())),
        ("a record of an unknown topic", "log", 3u64.to_be_bytes().to_vec(), Some(stranger)),
        ("a record that is none", "log", 2u64.to_be_bytes().to_vec(), Some(b"nonsense".to_vec())),
        ("a pack that begins before the first event", "log", 2u64.to_be_bytes().to_vec(), Some(pack(3))),
        ("a pack over others", "log", 3u64.to_be_bytes().to_vec(), Some(pack(2))),
        ("a pack past the tail", "log", 5u64.to_be_bytes().to_vec(), Some(pack(2))),
        ("a pack that is cut short", "log", 3u64.to_be_bytes().to_vec(), Some(pack(2)[..19].to_vec())),
        ("a tail without its record", "log", 3u64.to_be_bytes().to_vec(), None),
        ("a topic's row that is none", "topic", b"t".to_vec(), Some(b"short".to_vec())),
        ("no name", "meta", b"name".to_vec(), None),
        ("a tail that is none", "meta", b"tail".to_vec(), Some(b"9".to_vec())),
    ];
    for (what, family, key, value) in cases {
        let dir = written(3);
        put(dir.path(), family, &key, value.as_deref());
        let error = refused(dir.path());
        assert!(matches!(error, StoreError::Corrupt(_)), "{what}: {error}");
    }
}

#[test]
fn a_pack_over_the_end_of_a_sealed_segment_is_corruption() {
    const SEGMENT: EventId = 65_536;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Sync);
    store.append(&[event(SEGMENT - 2, 7, "t", "")]).unwrap();
    store.append(&[event(SEGMENT, 7, "t", "")]).unwrap();
    store.tidy().unwrap();
    store.close().unwrap();
    drop(store);
    drop(try_open(dir.path()).unwrap());
    let pack = [&[2, 2, 0, 0, 0, 0], &7u64.to_be_bytes()[..], &[0, 1, 0, 0, 1, 0]].concat();
    put(dir.path(), "log", &SEGMENT.to_be_bytes(), Some(&pack));
    let error = refused(dir.path());
    assert!(matches!(error, StoreError::Corrupt(_)) && error.to_string().contains("reaches into"), "{error}");
}

#[test]
fn a_floor_that_nobody_was_told_of_hides_nothing_after_reopening_either() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Sync);
    append(&store, 1, 10);
    store.append(&[event(11, 11, "u", "")]).unwrap();
    let trims = [topic_trim("t", 6), log_trim(3)];
    store.raise_floors(&trims).unwrap();
    assert_eq!(store.floor(&filter(&["t"], &[])).id, 6, "whoever asks is told");
    store.settle().unwrap();
    store.tidy().unwrap();
    assert_eq!(ids(&store, &["t"]), (1..=10).collect::<Vec<_>>());
    assert_eq!(store.earliest(), 1, "what is still given is not said to be gone");
    store.reopen().unwrap();
    assert_eq!(store.floor(&filter(&["t"], &[])).id, 6);
    assert_eq!(ids(&store, &["t"]), (1..=10).collect::<Vec<_>>());
    assert_eq!(store.earliest(), 1);
    store.floors_published();
    assert_eq!(ids(&store, &["t"]), (7..=10).collect::<Vec<_>>());
    store.settle().unwrap();
    assert_eq!(store.topics("t", None, 1).unwrap()[0].events, 4);
    assert_eq!(store.earliest(), 7);
    store.raise_floors(&[log_trim(11)]).unwrap();
    // Again, as where what was found could not be told at once; and background work in between takes none of it.
    for _ in 0..2 {
        store.reopen().unwrap();
        store.tidy().unwrap();
        assert_eq!(ids(&store, &["t"]), (7..=10).collect::<Vec<_>>(), "nor when all of it is trimmed");
        assert_eq!(store.earliest(), 7);
    }
    store.floors_published();
    store.settle().unwrap();
    assert_eq!(store.earliest(), 12);
}

#[test]
fn a_topic_is_forgotten_when_nothing_about_it_is_to_be_remembered() {
    const NEXT_SEGMENT: u64 = 1 << 16;
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path(), Durability::Sync);
    for (id, name) in [(1, "gone"), (2, "kept"), (3, "limited"), (4, "trimmed")] {
        store.append(&[event(id, id, name, "x")]).unwrap();
    }
    store.set_retention(&topic("limited"), Some(Limits { max_events: 9, ..Limits::default() })).unwrap();
    store.set_retention(&topic("empty"), Some(Limits::default())).unwrap();
    store.append(&[event(NEXT_SEGMENT, 5, "kept", "x"), event(NEXT_SEGMENT + 1, 6, "trimmed", "x")]).unwrap();
    trim(&store, &[topic_trim("trimmed", NEXT_SEGMENT + 1), log_trim(NEXT_SEGMENT - 1)]);
    store.tidy().unwrap();
    let known = |store: &RocksStore| {
        ["gone", "kept", "limited", "trimmed", "empty"].into_iter().filter(|t| store.has_topic(t)).collect::<Vec<_>>()
    };
    for _ in 0..2 {
        assert_eq!(known(&store), ["kept", "limited", "trimmed", "empty"]);
        assert_eq!(store.topic_count(), 4);
        assert_eq!(store.floor(&filter(&["trimmed"], &[])).id, NEXT_SEGMENT + 1);
        store.close().unwrap();
        drop(store);
        store = open(dir.path(), Durability::Sync);
    }
    store.set_retention(&topic("limited"), None).unwrap();
    store.set_retention(&topic("empty"), None).unwrap();
    assert_eq!(known(&store), ["kept", "trimmed"]);
    let back = NEXT_SEGMENT + 2;
    store.append(&[event(back, 7, "gone", "again"), event(back + 1, 7, "limited", "again")]).unwrap();
    store = {
        let copy = crash_copy(dir.path());
        drop(store);
        let store = open(copy.path(), Durability::Sync);
        assert_eq!(ids(&store, &["gone"]), [back]);
        assert_eq!(ids(&store, &["*"]), [NEXT_SEGMENT, back, back + 1]);
        assert_eq!(read(&store, &filter(&["limited"], &[]), 0, back + 1)[0].data, "again");
        store
    };
    assert_eq!(store.earliest(), NEXT_SEGMENT);
}

/// A reader or a trim that waits for the store twice, with a reopening in between, would wait forever.
#[test]
fn reopening_waits_for_readers_and_trims_and_they_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Sync);
    for first in (1..3000).step_by(100) {
        let batch: Vec<_> = (first..first + 100).map(|id| event(id, id, &format!("t.{}", id % 7), "x")).collect();
        store.append(&batch).unwrap();
    }
    let (done, finished) = mpsc::channel();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let keep_on = |work: fn(&RocksStore)| {
            let (store, stop) = (&store, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    work(store);
                }
            });
        };
        keep_on(|s| drop(s.topics("", None, 10)));
        keep_on(|s| drop(s.settle()));
        keep_on(|s| drop(s.due_trims(&tidelog::store::Policy::default(), 1)));
        keep_on(|s| drop(s.before_last(&filter(&["*.3"], &[]), 100, 3000)));
        let (store, stop) = (&store, &stop);
        scope.spawn(move || {
            for round in 1..=30 {
                store.raise_floors(&[topic_trim("t.1", round * 50), log_trim(round * 40)]).unwrap();
                store.floors_published();
                store.reopen().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            done.send(()).unwrap();
        });
        if finished.recv_timeout(Duration::from_secs(120)).is_err() {
            // The threads cannot be joined any more.
            eprintln!("deadlock");
            std::process::abort();
        }
    });
    store.settle().unwrap();
    assert_eq!(store.earliest(), 1201);
}

#[test]
fn the_smallest_retained_id_is_known_after_reopening_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Sync);
    append(&store, (1 << 16) - 1, 3);
    store.tidy().unwrap();
    assert_eq!(store.earliest(), (1 << 16) - 1);
    store.reopen().unwrap();
    assert_eq!(store.earliest(), (1 << 16) - 1);
}

/// The mark of reserved ids goes. Where ids may have been given that the log does not hold, that is refused, by `verify` too, and nothing
/// is changed; elsewhere it costs nothing, whatever the durability was and becomes.
#[test]
fn a_log_without_its_mark_is_refused_where_ids_may_be_given_twice_and_nowhere_else() {
    use Durability::{Interval, Os, Sync};
    // What it was run with in turn, each time stopped cleanly but for the last; whether its mark is needed then.
    let lives: [(&[Durability], bool); 9] = [
        (&[Sync], false),
        (&[Interval], true),
        (&[Os], true),
        (&[Sync, Interval], true),
        (&[Interval, Sync], false),
        (&[Interval, Sync, Interval], true),
        (&[Os, Interval, Sync, Sync], false),
        (&[Sync, Sync], false),
        (&[Os, Os], true),
    ];
    for (life, is_needed) in lives {
        let dir = tempfile::tempdir().unwrap();
        let mut next = 1;
        let mut last: Option<RocksStore> = None;
        for &durability in life {
            // Stopped cleanly, it can do without.
            if let Some(store) = last.take() {
                store.close().unwrap();
            }
            let without = crash_copy(dir.path());
            let had = fs::remove_file(without.path().join("ids")).is_ok();
            assert_eq!(had, next > 1, "{life:?}");
            assert_eq!(open(without.path(), durability).tail(), next - 1, "{life:?}");
            let store = open(dir.path(), durability);
            assert_eq!(store.tail(), next - 1, "{life:?}");
            append(&store, next, 10);
            next += 10;
            last = Some(store);
        }
        let copy = crash_copy(dir.path());
        let ids = copy.path().join("ids");
        let there = fs::read(&ids).ok();
        if there.is_some() {
            fs::remove_file(&ids).unwrap();
        }
        for durability in [Sync, Interval, Os] {
            if !is_needed {
                let again = crash_copy(copy.path());
                assert_eq!(open(again.path(), durability).tail(), next - 1, "{life:?}, then {durability:?}");
                continue;
            }
            let before = contents(copy.path());
            let Err(error) = RocksStore::open(Options { durability, ..Options::new(copy.path()) }) else {
                panic!("{life:?}, then {durability:?}: it is opened")
            };
            assert!(error.to_string().contains("ids is missing"), "{error}");
            assert!(contents(copy.path()) == before, "{life:?}, then {durability:?}: something was changed");
        }
        assert_eq!(says_of_ids(copy.path()), is_needed, "{life:?}: verify");
        if let Some(there) = there {
            fs::write(&ids, there).unwrap();
            assert!(!says_of_ids(copy.path()), "{life:?}: verify, though it is there");
            // Opened with sync it is not needed any more, also if that is not stopped cleanly.
            let store = open(copy.path(), Sync);
            let tail = store.tail();
            assert!(tail >= next - 1);
            let again = crash_copy(copy.path());
            fs::remove_file(again.path().join("ids")).unwrap();
            assert_eq!(open(again.path(), Interval).tail(), tail, "{life:?}");
        }
    }
}

/// A log of a program that did not note that its mark is needed: it does from the next start on.
#[test]
fn a_mark_that_is_there_is_noted_when_the_log_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Durability::Os);
    append(&store, 1, 10);
    store.close().unwrap();
    drop(store);
    // Clean, so nothing is noted; nothing is appended either.
    let store = open(dir.path(), Durability::Os);
    let copy = crash_copy(dir.path());
    drop(store);
    fs::remove_file(copy.path().join("ids")).unwrap();
    assert!(refused(copy.path()).to_string().contains("ids is missing"));
}

/// Whether `verify` finds that the mark is missing.
fn says_of_ids(dir: &Path) -> bool {
    struct Told(bool);
    impl verify::Watch for Told {
        fn found(&mut self, finding: verify::Finding) {
            assert!(finding.kind == verify::Kind::Note || finding.place == "ids", "{finding}");
            self.0 |= finding.kind == verify::Kind::Damage;
        }
        fn begin(&mut self, _part: &'static str, _steps: u64) {}
        fn advance(&mut self, _steps: u64) {}
    }
    let mut told = Told(false);
    verify::verify(dir, &mut told).unwrap();
    told.0
}
