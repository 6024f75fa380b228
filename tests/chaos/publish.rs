//! Publishers over a bad network: each publish is repeated under its key until its answer has come.
//!
//! What holds: a first attempt is never told that it was a repetition, the answers to one key all say the same ids, and what was
//! answered is all there is: the judge compares it with the log.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::World;
use super::history::{Kept, Log, Published};
use super::wire::Wire;

pub const TOPICS: [&str; 12] =
    ["t.0", "t.1", "t.2", "t.3", "t.4", "t.5", "k.0", "k.1", "k.2", "deep.a.b", "deep.a.c", "rare"];

/// What a publisher has seen.
#[derive(Debug, Default)]
pub struct Done {
    pub log: Log,
    pub publishes: u64,
    /// Attempts of which no answer came.
    pub unanswered: u64,
    /// Answers that said that it had happened before.
    pub replayed: u64,
    /// Of these, those to attempts after one without an answer: the first had happened after all.
    pub healed: u64,
}

fn data(rng: &mut Rng, publisher: u64, n: u64) -> String {
    let mut data = format!("{publisher}-{n}");
    let lines = if rng.u8(..8) == 0 { rng.usize(1..6) } else { 0 };
    for _ in 0..lines {
        data.push_str(["\n", "\nid: 7\n", "\n\n", " ü → 🐟", "\ndata: x"][rng.usize(..5)]);
    }
    let filler = match rng.u8(..40) {
        0 => rng.usize(..40_000),
        1..8 => rng.usize(..2_000),
        _ => rng.usize(..60),
    };
    data.extend(std::iter::repeat_with(|| rng.alphanumeric()).take(filler));
    data
}

fn event(rng: &mut Rng, publisher: u64, n: u64) -> Published {
    let topic = if rng.u8(..100) == 0 { 11 } else { rng.usize(..11) };
    let event = ["", "", "x", "y"][rng.usize(..4)].to_owned();
    let keyed = TOPICS[topic].starts_with('k') && rng.bool();
    let key = keyed.then(|| format!("key{}", rng.u8(..6)));
    let data = if keyed && rng.u8(..8) == 0 { String::new() } else { data(rng, publisher, n) };
    Published { topic: TOPICS[topic].to_owned(), event, key, data }
}

/// One publish: its events, and the request without its first line's rest and its key.
struct Asked {
    events: Vec<Published>,
    head: String,
    body: Vec<u8>,
}

fn line(event: &Published) -> String {
    let mut object = json!({"topic": event.topic, "data": event.data});
    if !event.event.is_empty() {
        object["event"] = event.event.as_str().into();
    }
    if let Some(key) = &event.key {
        object["key"] = key.as_str().into();
    }
    format!("{object}\n")
}

/// How it is framed, by chance: plain, through hyper, in chunks.
fn frame(rng: &mut Rng, head: &mut String, body: &str) -> Vec<u8> {
    match rng.u8(..4) {
        0 => {
            head.push_str("Transfer-Encoding: chunked\r\n");
            let mut framed = Vec::new();
            let mut rest = body.as_bytes();
            while !rest.is_empty() {
                let (chunk, after) = rest.split_at(rng.usize(1..=rest.len()));
                framed.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                framed.extend_from_slice(chunk);
                framed.extend_from_slice(b"\r\n");
                rest = after;
            }
            framed.extend_from_slice(b"0\r\n\r\n");
            framed
        }
        n => {
            let unusual = if n == 1 { "Expect: nothing\r\n" } else { "" };
            let _ = write!(head, "{unusual}Content-Length: {}\r\n", body.len());
            body.as_bytes().to_vec()
        }
    }
}

fn ask(rng: &mut Rng, publisher: u64, n: &mut u64) -> Asked {
    let count = if rng.u8(..8) == 0 { rng.usize(2..20) } else { 1 };
    let events: Vec<_> = (0..count)
        .map(|_| {
            *n += 1;
            event(rng, publisher, *n)
        })
        .collect();
    let (target, kind, body) = match &events[..] {
        [one] => {
            let key = one.key.as_ref().map(|key| format!("&key={key}")).unwrap_or_default();
            (format!("/topics/{}?event={}{key}", one.topic, one.event), "text/plain", one.data.clone())
        }
        all => ("/topics".to_owned(), "application/x-ndjson", all.iter().map(line).collect()),
    };
    let mut head = format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n");
    let body = frame(rng, &mut head, &body);
    Asked { events, head, body }
}

/// The ids of an answer, and whether it was a repetition's; `None` when it is to be tried again.
async fn attempt(wire: &mut Wire, request: &[u8]) -> std::io::Result<Option<(u64, u64, bool)>> {
    wire.send(request).await?;
    let (head, body) = wire.answer().await?;
    match head.status {
        200 | 201 => {
            let json: Value = serde_json::from_str(&body).expect("answers are JSON");
            let number = |name: &str| json[name].as_u64();
            let first = number("first").or(number("id")).expect("an answer has ids");
            let replayed = head.header("idempotency-replayed") == Some("true");
            assert_eq!(replayed, head.status == 200, "{head:?}");
            Ok(Some((first, number("last").unwrap_or(first), replayed)))
        }
        // Its body came too late; it drains; the disk was asked to stop.
        408 | 503 | 504 => Ok(None),
        // A half-close amid its body.
        400 if body.contains("the body could not be read to its end") => Ok(None),
        _ => panic!("{head:?} {body}"),
    }
}

/// Publishes until it is told to stop; nothing is left without its answer.
pub async fn publish(world: Arc<World>, publisher: u64) -> Done {
    let mut rng = Rng::with_seed(world.seed.wrapping_mul(31) + publisher);
    let (mut done, mut n, mut wire) = (Done::default(), 0, None);
    while !world.stop.load(Ordering::Relaxed) {
        let Asked { events, head, body } = ask(&mut rng, publisher, &mut n);
        let key = format!("{}-{publisher}-{}", world.seed, done.publishes);
        let mut request = format!("{head}Idempotency-Key: {key}\r\n\r\n").into_bytes();
        request.extend_from_slice(&body);
        let (mut ids, mut lost) = (None, 0);
        // Some are repeated though they were answered.
        let answers = if rng.u8(..20) == 0 { 2 } else { 1 };
        for answer in 0..answers {
            let (first, last, replayed) = loop {
                let mut open = match wire.take() {
                    Some(open) => open,
                    None => match Wire::connect(world.through).await {
                        Ok(open) => open,
                        Err(_) => {
                            sleep(Duration::from_millis(rng.u64(5..50))).await;
                            continue;
                        }
                    },
                };
                match attempt(&mut open, &request).await {
                    Ok(Some(answered)) => {
                        wire = Some(open);
                        break answered;
                    }
                    Ok(None) => sleep(Duration::from_millis(rng.u64(20..100))).await,
                    Err(_) => {}
                }
                lost += 1;
                done.unanswered += 1;
            };
            assert!(!replayed || lost > 0 || answer > 0, "{key}: a first attempt is no repetition");
            assert!(replayed || answer == 0, "{key}: it was answered before");
            assert_eq!(*ids.get_or_insert((first, last)), (first, last), "{key}: one key, one answer");
            done.replayed += u64::from(replayed);
            done.healed += u64::from(replayed && answer == 0);
        }
        let (first, last) = ids.expect("it was answered");
        assert_eq!(last - first + 1, events.len() as u64, "{key}");
        for (id, event) in (first..).zip(&events) {
            assert!(done.log.insert(id, Kept::of(event)).is_none(), "the id {id} was given twice");
        }
        done.publishes += 1;
        sleep(Duration::from_millis(rng.u64(2..25))).await;
    }
    done
}
