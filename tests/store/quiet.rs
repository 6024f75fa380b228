//! Topics that are quiet for long: wherever a reader stands, what it is given is what the model store gives.

use tidelog::event::{Event, EventId};
use tidelog::store::model::ModelStore;
use tidelog::store::{Durability, Store};

use crate::support::{event, filter, log_trim, open, read, topic_trim, trim};

const SEGMENT: EventId = 65_536;
const SEGMENTS: EventId = 150;

/// A few events in each segment. Forty topics have one in some: two of them just one behind the other, two more than thirty segments
/// apart, and some one and the same segment.
fn events() -> Vec<Event> {
    let mut events = Vec::new();
    for segment in 0..SEGMENTS {
        let first = segment * SEGMENT;
        let mut push = |offset: EventId, topic: &str| events.push(event(first + offset, first, topic, "x"));
        push(3, "filler");
        match segment {
            0 | 1 | 50 | 120 => push(70, "r.0"),
            2 | 51 => push(60_000, "r.1"),
            n if n % 40 == 9 => (0..40).for_each(|topic| push(100 + topic, &format!("r.{topic}"))),
            _ => {}
        }
        push(SEGMENT - 1, "filler");
    }
    events
}

#[test]
fn what_lies_many_segments_away_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (mut rocks, model) = (open(dir.path(), Durability::Os), ModelStore::default());
    for some in events().chunks(64) {
        rocks.append(some).unwrap();
        model.append(some).unwrap();
    }
    let compare = |rocks: &dyn Store, what: &str| {
        for patterns in [&["r.0"][..], &["r.1"], &["r.0", "r.1", "r.2"], &["r.*"], &["none", "r.3"], &["filler", "r.1"]]
        {
            let filter = filter(patterns, &[]);
            let all = read(&model, &filter, 0, model.tail());
            assert_eq!(read(rocks, &filter, 0, rocks.tail()), all, "{what}: {patterns:?}");
            for segment in (0..SEGMENTS).step_by(3) {
                for (after, upto) in [(0, 2 * SEGMENT), (80, 45 * SEGMENT + 65), (60_000, SEGMENTS * SEGMENT)] {
                    let after = segment * SEGMENT + after;
                    let upto = (after + upto).min(model.tail());
                    let of_the_model = read(&model, &filter, after, upto);
                    assert_eq!(
                        read(rocks, &filter, after, upto),
                        of_the_model,
                        "{what}: {patterns:?}, {after}..{upto}"
                    );
                }
            }
        }
    };
    compare(&rocks, "open");
    rocks.tidy().unwrap();
    compare(&rocks, "sealed");
    drop(rocks);
    rocks = open(dir.path(), Durability::Os);
    compare(&rocks, "opened again");
    for store in [&rocks as &dyn Store, &model] {
        trim(store, &[topic_trim("r.0", 60 * SEGMENT), topic_trim("r.5", 100 * SEGMENT), log_trim(10 * SEGMENT)]);
    }
    compare(&rocks, "trimmed");
    rocks.tidy().unwrap();
    compare(&rocks, "trimmed and tidied");
}
