//! Everything that lies in the store: no bytes make a decoder panic, what was encoded is decoded, what is decoded can be encoded again,
//! and keys lie in the order of what they stand for.

use std::cell::OnceCell;
use std::fs;

use tempfile::TempDir;
use tidelog::event::{Digest, EVENT_ID_MAX};
use tidelog::record::{Malformed, Packer, Record, Records};
use tidelog::store::mark::Mark;
use tidelog::store::rocks::layout::{
    Marks, Share, Summary, TopicRow, decode_postings, decode_remembered, decode_snapshot, encode_postings,
    encode_remembered, encode_snapshot, first_id, last_id, log_id, log_key, offset_of, pair, postings_key,
    postings_place, read_pair, segment_of, state_event, state_key, state_place, state_range,
};
use tidelog::store::{Limits, Remembered, Snapshot};

use super::source::Source;

thread_local!(static DIR: OnceCell<TempDir> = const { OnceCell::new() });

pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    match source.byte() % 8 {
        0 => any_record(source.rest()),
        1 => any_row(&mut source),
        2 => any_index(source.rest()),
        3 => any_mark(source.rest()),
        4 => a_record(&mut source),
        5 => rows(&mut source),
        6 => indexes(&mut source),
        _ => keys(&mut source),
    }
}

fn any_record(bytes: &[u8]) {
    let Ok(records) = Records::of(bytes) else { return };
    let Ok(all) = records.clone().map(|entry| entry?.record()).collect::<Result<Vec<_>, Malformed>>() else { return };
    assert!(
        all.len() as u64 == records.left()
            && all.iter().all(|r| (r.topic, r.time) == (records.topic(), records.time()))
    );
    if let [record] = all[..] {
        assert_eq!(Record::decode(bytes), Ok(record));
        let mut again = Vec::new();
        record.encode(&mut again);
        assert_eq!(again, bytes);
    }
    let mut packer = Packer::default();
    // Larger ones than are made are read.
    if all.iter().all(|record| packer.push(record)) {
        assert_eq!(packer.take(), bytes);
    }
}

fn any_row(source: &mut Source<'_>) {
    let first = source.number();
    let bytes = source.clone().rest();
    if let Some(row) = TopicRow::decode(bytes) {
        assert_eq!(row.encode(), bytes);
    }
    if let Some(snapshot) = decode_snapshot(bytes) {
        assert_eq!(decode_snapshot(&encode_snapshot(&snapshot)), Some(snapshot));
    }
    if let Some(remembered) = decode_remembered(first, bytes) {
        assert!(remembered.first == first && remembered.last >= first);
        assert_eq!(decode_remembered(first, &encode_remembered(&remembered)), Some(remembered));
    }
    if let Some((topic, key)) = state_place(bytes) {
        assert_eq!(state_key(topic, key), bytes);
    }
    if let Some((id, record)) = state_event(bytes) {
        assert_eq!([&id.to_be_bytes(), record].concat(), bytes);
        any_record(record);
    }
    if let Some((topic, segment)) = postings_place(bytes) {
        assert_eq!(postings_key(topic, segment), bytes);
    }
    assert_eq!(log_id(bytes).map(log_key).as_ref().map(|key| &key[..]), Some(bytes).filter(|b| b.len() == 8));
    assert_eq!(
        read_pair(bytes).map(|(a, b)| pair(a, b)).as_ref().map(|p| &p[..]),
        Some(bytes).filter(|b| b.len() == 16)
    );
}

fn any_index(bytes: &[u8]) {
    if let Some(postings) = decode_postings(bytes) {
        assert!(postings.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!(decode_postings(&encode_postings(postings.iter().copied())), Some(postings));
    }
    if let Some(summary) = Summary::decode(bytes) {
        assert!(summary.shares.is_sorted_by(|a, b| a.topic < b.topic));
        // What is summed up at every start must not overflow, whatever a row says.
        let _ = (summary.bytes(), summary.events());
        assert_eq!(Summary::decode(&summary.encode()), Some(summary));
    }
}

/// The file of reserved ids.
fn any_mark(bytes: &[u8]) {
    DIR.with(|dir| {
        let dir = dir.get_or_init(super::scratch).path();
        // Its two slots lie in pages of their own.
        let (one, two) = bytes.split_at(bytes.len() / 2);
        let mut file = vec![0; 4096 * 2];
        file[..one.len().min(4096)].copy_from_slice(&one[..one.len().min(4096)]);
        file[4096..][..two.len().min(4096)].copy_from_slice(&two[..two.len().min(4096)]);
        fs::write(dir.join("ids"), &file).expect("a file can be written");
        if let Ok((mark, reserved)) = Mark::open(dir) {
            assert!(reserved.is_some() && mark.reserved() == reserved);
        }
    });
}

fn a_record(source: &mut Source<'_>) {
    let text = |source: &mut Source<'_>| source.bit().then(|| source.text()).filter(|t| t.len() <= 200);
    let (topic, time, event, key) = (source.number() >> 32, source.number(), text(source), text(source));
    let data = String::from_utf8_lossy(source.clone().rest());
    let topic = u32::try_from(topic).expect("it has 32 bits");
    let record = Record { topic, time, event: event.as_deref(), key: key.as_deref(), data: &data };
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    assert_eq!(Record::decode(&bytes), Ok(record));
    // None of its beginnings passes for a record with the same names.
    for len in 0..bytes.len() - data.len() {
        assert!(Record::decode(&bytes[..len]).is_err(), "{len} of {bytes:?}");
    }
    // The same and its beginnings, one behind the other.
    let ends = data.char_indices().map(|(at, _)| at).rev();
    let records: Vec<_> = ends.map(|end| Record { data: &data[..end], ..record }).collect();
    let mut packer = Packer::default();
    let count = records.iter().take_while(|record| packer.push(record)).count();
    if count > 0 {
        let pack = packer.take();
        let entries = Records::of(pack).expect("it was packed");
        let unpacked: Result<Vec<_>, _> = entries.map(|entry| entry?.record()).collect();
        assert_eq!(unpacked.as_deref(), Ok(&records[..count]));
    }
}

fn rows(source: &mut Source<'_>) {
    let number = |source: &mut Source<'_>| source.bit().then(|| source.number());
    let limits = |source: &mut Source<'_>| Limits {
        max_events: source.number(),
        max_age: source.number(),
        max_bytes: source.number(),
        trim_to_snapshot: source.bit(),
    };
    let marks = Marks {
        retention: source.bit().then(|| limits(source)),
        closed: number(source),
        keyed: source.bit(),
        snapshot_at: number(source),
    };
    let row = TopicRow { number: u32::from(source.byte()) << 24, floor: source.number(), marks };
    assert_eq!(TopicRow::decode(&row.encode()), Some(row));
    let snapshot = Snapshot { at: source.number(), content_type: source.text(), body: source.text() };
    assert_eq!(decode_snapshot(&encode_snapshot(&snapshot)), Some(snapshot));
    let first = source.number() % EVENT_ID_MAX;
    let last = first.saturating_add(source.number());
    let digest = |source: &mut Source<'_>| Digest([source.byte(); 16]);
    let remembered = Remembered { key: digest(source), request: digest(source), first, last, time: source.number() };
    assert_eq!(decode_remembered(first, &encode_remembered(&remembered)), Some(remembered));
}

fn indexes(source: &mut Source<'_>) {
    let (mut postings, mut shares) = (Vec::new(), Vec::new());
    let (mut offset, mut topic, mut left) = (0u16, 0u32, u64::MAX);
    while !source.is_empty() {
        let low = |n: u64| u32::try_from(n & u64::from(u32::MAX)).expect("it has 32 bits");
        let (step, bytes) = (low(source.number()), source.number());
        if let Some(next) = offset.checked_add(u16::try_from(step % 512).expect("it is small")) {
            if postings.is_empty() || next > offset {
                postings.push((next, low(bytes)));
            }
            offset = next;
        }
        if let Some(next) = topic.checked_add(step)
            && (shares.is_empty() || next > topic)
            && bytes <= left
        {
            left -= bytes;
            shares.push(Share { topic: next, events: low(source.number()), bytes, last: offset });
            topic = next;
        }
    }
    assert_eq!(decode_postings(&encode_postings(postings.iter().copied())), Some(postings));
    let summary = Summary { first_time: u64::from(offset), last_time: u64::from(topic), shares };
    assert_eq!(summary.bytes(), u64::MAX - left);
    assert_eq!(Summary::decode(&summary.encode()), Some(summary));
}

fn keys(source: &mut Source<'_>) {
    let (a, b) = (source.number(), source.number());
    assert_eq!(log_key(a).cmp(&log_key(b)), a.cmp(&b));
    assert_eq!(log_id(&log_key(a)), Some(a));
    let halves = |n: u64| (u32::try_from(n >> 32).expect("32 bits"), u32::try_from(n & 0xffff_ffff).expect("32 bits"));
    let ((topic, segment), (other, later)) = (halves(a), halves(b));
    assert_eq!(postings_key(topic, segment).cmp(&postings_key(other, later)), (topic, segment).cmp(&(other, later)));
    assert_eq!(postings_place(&postings_key(topic, segment)), Some((topic, segment)));
    let id = a & ((1 << 48) - 1);
    assert_eq!(first_id(segment_of(id)) + u64::from(offset_of(id)), id);
    assert!(first_id(segment_of(id)) <= id && id <= last_id(segment_of(id)));
    assert!(segment == 0 || last_id(segment - 1) + 1 == first_id(segment));
    let (one, two) = (source.text(), source.text());
    assert_eq!(
        state_key(topic, &one).cmp(&state_key(other, &two)),
        (topic, one.as_bytes()).cmp(&(other, two.as_bytes()))
    );
    assert_eq!(state_place(&state_key(topic, &one)), Some((topic, &*one)));
    let (from, to) = state_range(topic);
    let key = state_key(other, &two);
    assert_eq!(from[..] <= key[..] && key[..] < to[..], topic == other);
}
