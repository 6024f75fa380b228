//! Rows that are not what the log says, changed through RocksDB: all checksums match.

#![allow(clippy::too_many_lines, reason = "a table of changes to rows is long")]

use super::*;

#[test]
fn every_row_that_is_not_what_the_log_says_is_found() {
    let full = full();
    let from = copied(full.dir.path());
    // Into files, so that what is changed comes behind.
    drop(RocksStore::open(options(from.path(), Durability::Sync)).unwrap());
    let rows = |family: &str| {
        let found = std::cell::RefCell::new(Vec::new());
        let copy = copied(from.path());
        raw(copy.path(), &FAMILIES, |db| {
            for row in db.iterator_cf(db.cf_handle(family).unwrap(), rocksdb::IteratorMode::Start) {
                let (key, value) = row.unwrap();
                found.borrow_mut().push((key.to_vec(), value.to_vec()));
            }
        });
        found.into_inner()
    };
    let mut changes: Vec<Change> = Vec::new();
    for family in FAMILIES {
        let mut rows = rows(family);
        assert!(!rows.is_empty(), "{family} has no rows");
        // Those of the log that lie below its floor may be anything that can be read.
        if ["log", "idempotency"].contains(&family) {
            rows.retain(|(key, _)| key[..] > 23u64.to_be_bytes()[..]);
        }
        let some = [0, rows.len() / 2, rows.len() - 1];
        for (key, value) in some.into_iter().map(|n| rows[n].clone()) {
            // The body of a snapshot is any text.
            if !value.is_empty() && family != "snapshot" {
                changes.push(("is cut short", family, key.clone(), Some(value[..value.len() - 1].to_vec())));
            }
            changes.push(("has a key that is none", family, [&key[..], &[0xff, 0xfe]].concat(), Some(value.clone())));
        }
    }
    let log = rows("log");
    let newest = log.last().unwrap().clone();
    let in_sealed = log.iter().find(|(key, _)| key[..] > (2 * SEGMENT).to_be_bytes()[..]).unwrap().clone();
    let with = |value: &[u8], at: usize, bytes: &[u8]| {
        let mut value = value.to_vec();
        value[at..at + bytes.len()].copy_from_slice(bytes);
        Some(value)
    };
    let id = |key: &[u8]| u64::from_be_bytes(key.try_into().unwrap());
    let past = (id(&newest.0) + 1).to_be_bytes().to_vec();
    changes.extend([
        ("is missing", "log", in_sealed.0.clone(), None),
        ("is missing", "log", newest.0.clone(), None),
        ("lies past the tail", "log", past, Some(newest.1.clone())),
        ("goes back in time", "log", newest.0.clone(), with(&newest.1, 6, &1u64.to_be_bytes())),
        ("is of an unknown topic", "log", newest.0.clone(), with(&newest.1, 2, &900u32.to_be_bytes())),
        ("is of another topic", "log", in_sealed.0.clone(), with(&in_sealed.1, 2, &1u32.to_be_bytes())),
        ("is longer", "log", in_sealed.0.clone(), Some([&in_sealed.1[..], b"!"].concat())),
        ("lies at the end of all ids", "log", u64::MAX.to_be_bytes().to_vec(), Some(newest.1.clone())),
        ("lies at the end of all ids", "log", (u64::MAX - 1).to_be_bytes().to_vec(), Some(newest.1.clone())),
        ("lies where none was", "log", (id(&in_sealed.0) + 20_000).to_be_bytes().to_vec(), Some(in_sealed.1.clone())),
    ]);
    // Of the last packs one is in a sealed segment, one is not: there is no index yet to tell what lay there. Each has three events.
    let packs = log.iter().filter(|(_, value)| value[..2] == [2, 3]);
    let (sealed, open): (Vec<_>, Vec<_>) = packs.partition(|(key, _)| id(key) < 3 * SEGMENT);
    for ((key, value), is_sealed) in [(sealed.last().unwrap(), true), (open.last().unwrap(), false)] {
        let first_len = 2 + usize::from(u16::from_be_bytes([value[14], value[15]]));
        let (first, others) = value[14..].split_at(first_len);
        let pack = |count: u8, events: &[&[u8]]| Some([&[2, count], &value[2..14], &events.concat()].concat());
        let boundary = (3 * SEGMENT).to_be_bytes().to_vec();
        changes.extend([
            ("begins among those before", "log", key.clone(), pack(4, &[first, first, others])),
            ("counts too many", "log", key.clone(), pack(4, &[first, others])),
            ("counts too few", "log", key.clone(), pack(2, &[first, others])),
            ("lies in two segments", "log", boundary, Some(value.clone())),
        ]);
        if is_sealed {
            changes.extend([
                ("has lost its first event", "log", key.clone(), pack(2, &[others])),
                ("has events in another order", "log", key.clone(), pack(3, &[others, first])),
                ("is alone", "log", key.clone(), Some([&[1, first[2]], &value[2..14], &first[3..]].concat())),
                ("is missing", "log", key.clone(), None),
            ]);
        }
    }
    for (key, value) in rows("state").into_iter().step_by(5) {
        let older = id(&value[..8]) - 1;
        changes.push(("is missing", "state", key.clone(), None));
        changes.push(("is older", "state", key.clone(), with(&value, 0, &older.to_be_bytes())));
        changes.push(("is of no event", "state", key.clone(), with(&value, 0, &0u64.to_be_bytes())));
        changes.push(("is a pack", "state", key.clone(), with(&value, 8, &[2])));
        changes.push(("says something else", "state", key, Some([&value[..], b"!"].concat())));
    }
    for (key, value) in rows("topic") {
        changes.push((
            "has a floor beyond the tail",
            "topic",
            key.clone(),
            with(&value, 4, &(1u64 << 40).to_be_bytes()),
        ));
        changes.push(("has a number never given", "topic", key, with(&value, 0, &900u32.to_be_bytes())));
    }
    // Number, floor, flags, and what these speak of: 4 that it is closed, 8 that it may have keys.
    let (key, value) = rows("topic").into_iter().find(|(key, _)| key == b"t.0").unwrap();
    assert_eq!(value[12], 8);
    let closed = [&value[..12], &[12], &5u64.to_be_bytes()].concat();
    changes.push(("was closed before its events", "topic", key.clone(), Some(closed)));
    changes.push(("has keys and says not", "topic", key.clone(), with(&value, 12, &[0])));
    changes.push(("has another's number", "topic", b"plain".to_vec(), Some(value)));
    changes.push(("is missing", "topic", key, None));
    for (key, value) in rows("snapshot") {
        changes.push(("is missing", "snapshot", key.clone(), None));
        changes.push(("is of another id", "snapshot", key, with(&value, 0, &1u64.to_be_bytes())));
    }
    let closed_number = rows("topic").into_iter().find(|(key, _)| key == b"closed").unwrap().1[3];
    // The last of a segment is behind everything trimmed. (Of segments, the last without a row is one that is not sealed yet.)
    changes.push(("is missing", "postings", rows("postings").last().unwrap().0.clone(), None));
    changes.push(("is missing", "segment", 1u32.to_be_bytes().to_vec(), None));
    let unshared = [3u32.to_be_bytes(), 900u32.to_be_bytes()].concat();
    changes.push((
        "is of a segment to come",
        "segment",
        900u32.to_be_bytes().to_vec(),
        Some(rows("segment")[0].1.clone()),
    ));
    changes.push((
        "is of no share",
        "postings",
        [&b"\0\0\0"[..], &[closed_number], &2u32.to_be_bytes()].concat(),
        Some(vec![1, 30]),
    ));
    changes.push((
        "is of a number never given",
        "postings",
        unshared.iter().rev().copied().collect(),
        Some(vec![1, 30]),
    ));
    let (key, value) = rows("segment").last().unwrap().clone();
    let last = value.len() - 1;
    changes.push(("counts otherwise", "segment", key.clone(), with(&value, last, &[value[last] ^ 1])));
    changes.push(("has other times", "segment", key, with(&value, 0, &1u64.to_be_bytes())));
    let (key, value) = rows("postings").last().unwrap().clone();
    changes.push(("has other bytes", "postings", key, with(&value, value.len() - 1, &[value[value.len() - 1] ^ 1])));
    let (key, value) = rows("idempotency").last().unwrap().clone();
    changes.push((
        "names what was never given",
        "idempotency",
        (1u64 << 41).to_be_bytes().to_vec(),
        Some(value.clone()),
    ));
    changes.push(("speaks of too many events", "idempotency", key.clone(), with(&value, value.len() - 1, &[9])));
    let first = rows("idempotency").into_iter().rev().nth(4).unwrap();
    changes.push(("speaks of another's events", "idempotency", first.0, with(&first.1, first.1.len() - 1, &[9])));
    changes.push(("has another time", "idempotency", key, with(&value, 33, &1u64.to_be_bytes())));
    let within = [in_sealed.0.clone(), (id(&in_sealed.0) + 1).to_be_bytes().to_vec()].concat();
    changes.push(("is where events are", "meta", b"hole".to_vec(), Some(within)));
    for name in [&b"format"[..], b"name", b"tail", b"next_topic"] {
        changes.push(("is missing", "meta", name.to_vec(), None));
    }
    for (name, value) in
        [(&b"floor"[..], &(1u64 << 40).to_be_bytes()[..]), (b"tail", &[0; 16]), (b"hole", &[9; 16]), (b"strange", b"x")]
    {
        changes.push(("is something else", "meta", name.to_vec(), Some(value.to_vec())));
    }
    let (total, mut missed, mut told) = (changes.len(), Vec::new(), std::collections::BTreeSet::new());
    for (what, family, key, value) in changes {
        let dir = copied(from.path());
        put(dir.path(), family, &key, value.as_deref());
        let (_, found) = verified(dir.path());
        if found.damage().is_empty() {
            missed.push(format!("{family}: a row {what} ({key:?}): {:?}", found.0));
        }
        told.extend(found.damage());
    }
    assert_eq!(missed, [""; 0]);
    for what in ["its pack begins among the events before it", "its pack lies in two segments"] {
        assert!(told.iter().any(|line| line.ends_with(what)), "nobody was told that {what}");
    }
    println!("{total} changes found");
    // No check is there that none of them needs.
    for line in told {
        println!("told: {line}");
    }
}
