//! What is kept beside the log: the state, snapshots, and the answers to publishes.

use std::collections::HashSet;

use super::super::super::layout::{
    IDEMPOTENCY, SNAPSHOT, STATE, decode_remembered, decode_snapshot, log_id, state_event, state_place,
};
use super::super::Counted;
use super::log::record_of;
use super::{Log, Rows};
use crate::event::EventId;
use crate::record::{Record, TopicNumber};

pub fn check(rows: &Rows, log: &Log, to: &mut Counted<'_>) {
    rows.all(STATE, to, &mut |key, value, to| check_state(rows, log, (key, value), to));
    check_snapshots(rows, log, to);
    check_remembered(rows, log, to);
}

/// A row of the state is an event of its topic and key, and the log has it unless it is trimmed. That none is newer, the log's own pass
/// has seen.
fn check_state(rows: &Rows, log: &Log, (key, value): (&[u8], &[u8]), to: &mut Counted<'_>) {
    let (Some((topic, key)), Some((id, bytes))) = (state_place(key), state_event(value)) else {
        return to.damage("state", "a row cannot be read");
    };
    let Some(known) = log.topics.get(&topic) else {
        return to.damage(format!("state: key {key:?}"), format!("it is of topic number {topic}, which is not known"));
    };
    let place = format!("state: topic {}, key {key:?}", known.name.as_str());
    if !known.marks.keyed {
        to.damage(&place, "its topic's row says that it has no keys");
    }
    let record = match Record::decode(bytes) {
        Ok(record) => record,
        Err(error) => return to.damage(place, format!("it cannot be read: {error}")),
    };
    if record.topic != topic || record.key != Some(key) || record.data.is_empty() {
        to.damage(&place, "another event lies there");
    }
    if id == 0 || id > log.tail {
        to.damage(&place, format!("it is event {id}, which was never given"));
    }
    match record_of(rows, id) {
        Ok(Some(there)) if there != bytes => to.damage(place, format!("event {id} is another one in the log")),
        Ok(None) if id > log.floor_of(topic) => {
            to.damage(place, format!("it is event {id}, which is not in the log"));
        }
        // Where the log cannot be read, that was told.
        _ => {}
    }
}

fn check_snapshots(rows: &Rows, log: &Log, to: &mut Counted<'_>) {
    let mut found: HashSet<TopicNumber> = HashSet::new();
    rows.all(SNAPSHOT, to, &mut |key, value, to| {
        let Some(topic) = key.try_into().ok().map(TopicNumber::from_be_bytes) else {
            return to.damage("snapshot", "a row has no topic");
        };
        let Some(known) = log.topics.get(&topic) else {
            return to.damage("snapshot", format!("it is of topic number {topic}, which is not known"));
        };
        found.insert(topic);
        let place = format!("snapshot: topic {}", known.name.as_str());
        match decode_snapshot(value) {
            None => to.damage(place, "it cannot be read"),
            Some(snapshot) if Some(snapshot.at) != known.marks.snapshot_at => {
                to.damage(place, format!("it is of {}, and its topic's row says otherwise", snapshot.at));
            }
            Some(_) => {}
        }
    });
    for (_, known) in
        log.topics.iter().filter(|(topic, known)| known.marks.snapshot_at.is_some() && !found.contains(topic))
    {
        to.damage(format!("snapshot: topic {}", known.name.as_str()), "it is missing");
    }
}

fn check_remembered(rows: &Rows, log: &Log, to: &mut Counted<'_>) {
    let mut before: EventId = 0;
    rows.all(IDEMPOTENCY, to, &mut |key, value, to| {
        let Some(first) = log_id(key) else { return to.damage("idempotency", "a row has no id") };
        let place = format!("idempotency: id {first}");
        let Some(remembered) = decode_remembered(first, value) else { return to.damage(place, "it cannot be read") };
        if first <= before || remembered.last > log.tail {
            to.damage(&place, format!("it names events {first} to {}, of which some are another's", remembered.last));
        }
        before = remembered.last.max(first);
        for id in [first, remembered.last] {
            match record_of(rows, id) {
                Ok(Some(record)) if Record::decode(&record).is_ok_and(|record| record.time != remembered.time) => {
                    to.damage(&place, format!("it has another time than event {id}"));
                }
                // Of which topic it was, nobody knows any more.
                Ok(None) if id > log.floor.max(log.highest) => {
                    to.damage(&place, format!("it names event {id}, which is not in the log"));
                }
                _ => {}
            }
        }
    });
}
