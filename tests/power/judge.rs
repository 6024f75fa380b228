//! What must be found on a disk after a power cut, by what had been promised when the power went.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tidelog::event::{Digest, EventRef};
use tidelog::sse::GapReason;
use tidelog::store::rocks::verify::{Finding, Kind, Watch, verify_file};
use tidelog::store::rocks::{Options, RocksStore};
use tidelog::store::{Durability, Scan, Store, StoreError, wal};
use tidelog::topic::{Filter, Pattern};

use crate::life::{Known, Second, Told};
use crate::model::{Change, Model};
use crate::worker::Fact;

/// What a log was found to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Of all workers.
    pub model: Model,
    /// The topics that nobody trims.
    pub log: BTreeMap<u64, Told>,
    pub tail: u64,
}

/// How a disk was judged.
#[derive(Debug, Clone, Default)]
#[allow(clippy::struct_excessive_bools, reason = "they are counted one by one")]
pub struct Verdict {
    /// The write-ahead log had a torn end, which was accepted.
    pub torn: bool,
    /// The MANIFEST had a torn end, which was cut off.
    pub manifest: bool,
    /// Not opened, and said why.
    pub refused: Option<String>,
    /// Something that nobody had been told of yet was there, as a whole.
    pub more: bool,
    /// Something that had been acked is gone; only without `sync`.
    pub lost: bool,
}

fn told(event: &EventRef<'_>) -> Told {
    (event.topic.to_owned(), event.key.unwrap_or_default().to_owned(), event.data.to_owned())
}

fn is_bulk(topic: &str) -> bool {
    topic.starts_with("b.")
}

/// What can be read of a log; wrong is what cannot be read twice alike.
pub fn held(store: &RocksStore) -> Result<Held, String> {
    let err = |e: StoreError| e.to_string();
    let mut model = Model::default();
    let mut log = BTreeMap::new();
    let all = Filter::all();
    let (tail, mut at) = (store.tail(), 0);
    let mut newest = 0;
    let mut wrong = None;
    while at < tail {
        at = store
            .scan(Scan { filter: &all, after: at, upto: tail }, &mut |event| {
                if event.id <= newest {
                    wrong = Some(format!("event {} comes after {newest}", event.id));
                }
                newest = event.id;
                if is_bulk(event.topic) {
                    log.insert(event.id, told(event));
                } else {
                    let held = (event.key.unwrap_or_default().to_owned(), event.data.to_owned());
                    model.topic(event.topic).events.insert(event.id, held);
                }
                ControlFlow::Continue(())
            })
            .map_err(err)?;
    }
    let mut state: BTreeMap<(String, String), (u64, String)> = BTreeMap::new();
    store
        .state(&all, &mut |event| {
            let (topic, key, data) = told(event);
            if is_bulk(&topic) {
                state.insert((topic, key), (event.id, data));
            } else {
                model.topic(&topic).state.insert(key, (event.id, data));
            }
            ControlFlow::Continue(())
        })
        .map_err(err)?;
    let mut replayed = BTreeMap::new();
    for (id, (topic, key, data)) in &log {
        if !key.is_empty() {
            replayed.insert((topic.clone(), key.clone()), (*id, data.clone()));
        }
    }
    if replayed != state {
        return Err("the state is not what a replay of the log gives".to_owned());
    }
    for topic in store.topics("", None, usize::MAX).map_err(err)? {
        let name = topic.topic.as_str();
        let (events, last) = if is_bulk(name) {
            let of = log.iter().filter(|(_, (topic, ..))| topic == name);
            (of.clone().count(), of.clone().next_back().map_or(0, |(id, _)| *id))
        } else {
            let held = model.topic(name);
            held.closed = topic.closed;
            held.snapshot = store.snapshot(name).map_err(err)?.map(|snapshot| (snapshot.at, snapshot.body));
            (held.events.len(), model.last(name))
        };
        if (topic.events, topic.last) != (events as u64, last) {
            return Err(format!("{topic:?} is counted, {events} up to {last} are there"));
        }
        // Through the index, which is another way than the log's.
        let filter = Filter::new(vec![Pattern::parse(name).map_err(|e| e.to_string())?], Vec::new());
        let (mut n, mut at) = (0, 0);
        while at < tail {
            at = store
                .scan(Scan { filter: &filter, after: at, upto: tail }, &mut |_| {
                    n += 1;
                    ControlFlow::Continue(())
                })
                .map_err(err)?;
        }
        if n != events {
            return Err(format!("{n} events of {name} are found by the index, {events} are in the log"));
        }
    }
    model.tidy();
    wrong.map_or(Ok(Held { model, log, tail }), Err)
}

/// Opens a log of the disk under `dir`, and reads it; as `Ok(Err)` why it was refused.
pub fn open(dir: &Path, durability: Durability) -> Result<Result<(RocksStore, Held), String>, String> {
    match RocksStore::open(Options { durability, cache_bytes: 4 << 20, ..Options::new(dir) }) {
        Ok(store) => {
            let held = held(&store)?;
            Ok(Ok((store, held)))
        }
        Err(StoreError::Corrupt(why)) => Ok(Err(why.to_string())),
        Err(error) => Err(format!("it is not opened, and not called corrupt: {error}")),
    }
}

#[derive(Default)]
struct Found(Vec<Finding>);

impl Watch for Found {
    fn found(&mut self, finding: Finding) {
        self.0.push(finding);
    }
    fn begin(&mut self, _: &'static str, _: u64) {}
    fn advance(&mut self, _: u64) {}
}

/// As `verify` tells.
fn has_torn_manifest(dir: &Path) -> bool {
    let Ok(name) = fs::read_to_string(dir.join("db/CURRENT")) else { return false };
    let mut found = Found::default();
    verify_file(dir, &format!("db/{}", name.trim_end()), &mut found).is_ok()
        && found.0.iter().any(|finding| finding.kind == Kind::Note && finding.what.contains("cuts the file off"))
}

/// What may be refused, rather than opened shorter than it was: without `sync`, a write-ahead log with a hole, or one of which a torn
/// MANIFEST cannot be told to need nothing that is gone. With `sync` nothing.
fn may_refuse(why: &str, durability: Durability) -> bool {
    durability != Durability::Sync && why.contains("write-ahead log")
}

/// Judges the disk under `dir` as the power left it.
pub fn judge(dir: &Path, durability: Durability, known: &Known, at: u64) -> Result<Verdict, String> {
    let mut verdict = Verdict::default();
    verdict.torn = wal::check(&dir.join("db")).is_ok_and(|report| report.torn.is_some());
    verdict.manifest = has_torn_manifest(dir);
    let (store, held) = match open(dir, durability)? {
        Ok(opened) => opened,
        Err(why) if may_refuse(&why, durability) => {
            verdict.refused = Some(why);
            return Ok(verdict);
        }
        Err(why) => return Err(format!("it is refused: {why}")),
    };
    whole(&held.log)?;
    for (id, told) in &held.log {
        match known.log.get(id) {
            Some(before) if before == told => {}
            other => return Err(format!("event {id} is {told:?}; it was {other:?}")),
        }
    }
    let before = |when: u64| when <= at;
    let mut largest = 0;
    let mut lost = 0;
    for knew in known.events.iter().filter(|knew| before(knew.known)) {
        largest = largest.max(knew.id);
        if held.log.get(&knew.id) != Some(&knew.told) {
            lost = lost.max(knew.id);
            if durability == Durability::Sync {
                return Err(format!(
                    "event {} is gone, which was told when the journal was {} long",
                    knew.id, knew.known
                ));
            }
        }
    }
    for (name, facts) in &known.workers {
        let (done, next) = facts.split_at(facts.partition_point(|fact| before(fact.known)));
        for fact in done {
            if let Change::Publish(lines) = &fact.change {
                largest = largest.max(fact.first + lines.len() as u64 - 1);
            }
        }
        if durability == Durability::Sync {
            verdict.more |= as_told(&held.model, name, done, next.first())?;
            remembered(&store, done)?;
        }
    }
    verdict.more |= held.log.last_key_value().is_some_and(|(id, _)| *id > largest);
    if held.tail < largest {
        return Err(format!("the tail is {}, but {largest} was given out: it would be given again", held.tail));
    }
    if durability != Durability::Sync {
        without_sync(&store, &held, known, lost)?;
        verdict.lost = lost > 0;
    }
    Ok(verdict)
}

/// Judges a disk on which a log had been opened after a cut, and found to hold `before`, by what that `second` start was asked and told.
pub fn judge_again(dir: &Path, before: &Held, second: &Second, at: u64) -> Result<Verdict, String> {
    let mut verdict = Verdict::default();
    verdict.torn = wal::check(&dir.join("db")).is_ok_and(|report| report.torn.is_some());
    verdict.manifest = has_torn_manifest(dir);
    let (_, held) = match open(dir, Durability::Sync)? {
        Ok(opened) => opened,
        Err(why) => return Err(format!("it is refused: {why}")),
    };
    whole(&held.log)?;
    if held.model != before.model {
        return Err("what was found after the first cut is not what is there after the second".to_owned());
    }
    let mut least = before.log.clone();
    let knew = &second.knew;
    least.extend(knew.iter().filter(|knew| knew.known <= at).map(|knew| (knew.id, knew.told.clone())));
    let mut most = least.clone();
    most.extend(knew.iter().map(|knew| (knew.id, knew.told.clone())));
    if let Some((id, _)) = least.iter().find(|(id, told)| held.log.get(id) != Some(told)) {
        return Err(format!("event {id} is gone, which was found after the first cut, or acked since"));
    }
    let last = most.last_key_value().map_or(0, |(id, _)| *id);
    let may_be = |id: u64, told: &Told| most.get(&id).or(second.asked.as_ref().filter(|_| id > last)) == Some(told);
    if let Some((id, told)) = held.log.iter().find(|&(id, told)| !may_be(*id, told)) {
        return Err(format!("event {id} is {told:?}, which it never was"));
    }
    verdict.more = held.log.len() > least.len();
    Ok(verdict)
}

/// A worker's topics hold what they must, and perhaps what was asked for last; whether they do.
fn as_told(found: &Model, name: &str, done: &[Fact], next: Option<&Fact>) -> Result<bool, String> {
    let own = |topic: &String| topic.split('.').next() == Some(name);
    let found =
        Model(found.0.iter().filter(|(topic, _)| own(topic)).map(|(t, held)| (t.clone(), held.clone())).collect());
    let mut expected = Model::default();
    done.iter().for_each(|fact| expected.apply(&fact.change, fact.first));
    if found == expected {
        return Ok(false);
    }
    let without = expected.clone();
    if let Some(next) = next {
        expected.apply(&next.change, next.first);
        if found == expected {
            return Ok(true);
        }
    }
    let topics: BTreeSet<&String> = without.0.keys().chain(found.0.keys()).collect();
    let (expected, found) = (&without.0, &found.0);
    let wrong: Vec<_> = topics
        .into_iter()
        .filter(|topic| expected.get(*topic) != found.get(*topic))
        .map(|topic| format!("{topic}: told {:?}, there is {:?}", expected.get(topic), found.get(topic)))
        .collect();
    Err(format!("{} (next came {next:?})", wrong.join("\n  ")))
}

fn remembered(store: &RocksStore, done: &[Fact]) -> Result<(), String> {
    for fact in done {
        let Some(key) = &fact.key else { continue };
        let whole: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let digest = Digest(*whole.first_chunk().unwrap());
        match store.remembered(digest).map_err(|e| e.to_string())? {
            Some(remembered) if remembered.first == fact.first => {}
            other => return Err(format!("{key:?} published {}; it is remembered as {other:?}", fact.first)),
        }
    }
    Ok(())
}

/// What may be lost without `sync` is the end, and that is told.
fn without_sync(store: &RocksStore, held: &Held, known: &Known, lost: u64) -> Result<(), String> {
    if let Some((last, _)) = held.log.last_key_value()
        && let Some((hole, _)) = known.log.range(..last).find(|(id, _)| !held.log.contains_key(id))
    {
        return Err(format!("event {hole} is gone, and {last} is there"));
    }
    let floor = store.floor(&Filter::new(vec![Pattern::parse("b.**").unwrap()], Vec::new()));
    if lost > 0 && (floor.id < lost || floor.reason != GapReason::Lost) {
        return Err(format!("event {lost} is lost, and the log tells of {floor:?}"));
    }
    Ok(())
}

/// Batches are there as a whole, under consecutive ids, in the order in which each publisher sent them.
fn whole(log: &BTreeMap<u64, Told>) -> Result<(), String> {
    let mut open: Option<(String, u64, usize)> = None;
    let mut newest: BTreeMap<String, u64> = BTreeMap::new();
    for (&id, (_, _, data)) in log {
        let parts: Vec<&str> = data.split('/').collect();
        let (at, count): (usize, usize) = (parts[2].parse().unwrap(), parts[3].parse().unwrap());
        let head = format!("{}/{}", parts[0], parts[1]);
        let follows = match &open {
            Some((batch, before, place)) => *batch == head && before + 1 == id && place + 1 == at,
            None => {
                let n = parts[1].parse().unwrap();
                at == 0 && newest.insert(parts[0].to_owned(), n).is_none_or(|before| before < n)
            }
        };
        if !follows {
            return Err(format!("event {id}, {head} {at} of {count}, comes after {open:?}: torn, or out of order"));
        }
        open = (at + 1 < count).then_some((head, id, at));
    }
    open.map_or(Ok(()), |open| Err(format!("the last batch is torn: {open:?}")))
}
