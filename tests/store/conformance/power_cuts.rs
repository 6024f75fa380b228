//! What of a power cut's loss the real store recovers is what the model does: a beginning of what was not synced, then a hole over all
//! ids that may have been given, under which something may have been shown.

use super::*;

#[derive(Debug, Clone)]
enum Op {
    Append(u8, u8),
    Sync,
    Trim(u8, Index),
    Delete(u8),
    Tidy,
    NearBoundary,
    /// So much of the newest write-ahead log is there, in 255ths.
    Cut(u8),
    OpenAgain,
    Stop,
}

fn op() -> impl Strategy<Value = Op> {
    let topic = || 0..TOPICS.len() as u8;
    prop_oneof![
        8 => (topic(), 1..40u8).prop_map(|(t, n)| Op::Append(t, n)),
        1 => Just(Op::Sync),
        1 => (topic(), any::<Index>()).prop_map(|(t, at)| Op::Trim(t, at)),
        1 => topic().prop_map(Op::Delete),
        1 => Just(Op::Tidy),
        1 => Just(Op::NearBoundary),
        3 => any::<u8>().prop_map(Op::Cut),
        1 => Just(Op::OpenAgain),
        1 => Just(Op::Stop),
    ]
}

/// What a power cut may take.
#[derive(Default)]
struct Unsynced {
    /// Where each commit ends that was not synced.
    commits: Vec<EventId>,
    /// The newest write-ahead log when something was last synced, and its length then.
    synced: (Option<std::ffi::OsString>, u64),
}

impl Unsynced {
    fn none(&mut self, pair: &Pair) {
        let wal = newest_wal(pair.dir.path());
        let len = wal.as_ref().map_or(0, |wal| wal.metadata().unwrap().len());
        *self = Self { commits: Vec::new(), synced: (wal.and_then(|wal| Some(wal.file_name()?.to_owned())), len) };
    }
}

fn step(pair: &mut Pair, durability: Durability, unsynced: &mut Unsynced, op: &Op) {
    let options = |dir: &TempDir| Options { durability, ..options(dir) };
    match op {
        Op::Append(t, n) => {
            let draft = |n: u8| Draft {
                topic: *t,
                kind: n % 3,
                key: n % 3,
                bytes: usize::from(n) * 40,
                times: 1 + n % 5 / 3,
                later: u64::from(n.is_multiple_of(7)),
            };
            pair.append_remembered((0..*n).map(draft), Some(*n % 9));
            unsynced.commits.push(pair.model.tail());
        }
        Op::Sync => {
            pair.rocks.sync().unwrap();
            pair.model.sync().unwrap();
            unsynced.none(pair);
        }
        Op::Trim(t, at) => {
            let upto = at.index(usize::try_from(pair.next + 5).unwrap()) as EventId;
            pair.raise(&[Trim { topic: Some(topic(TOPICS[usize::from(*t)])), upto }]);
            pair.settle();
            sync(pair, unsynced);
        }
        Op::Delete(t) => {
            let name = topic(TOPICS[usize::from(*t)]);
            assert_eq!(pair.rocks.delete_topic(&name).unwrap(), pair.model.delete_topic(&name).unwrap());
            pair.settle();
            sync(pair, unsynced);
        }
        Op::Tidy => pair.rocks.tidy().unwrap(),
        Op::NearBoundary => pair.next = pair.next.max(pair.next.next_multiple_of(SEGMENT) - 3),
        Op::Cut(part) => {
            pair.dir = crash_copy(pair.dir.path());
            if let Some(wal) = newest_wal(pair.dir.path()) {
                let same = wal.file_name().map(ToOwned::to_owned) == unsynced.synced.0;
                let durable = if same { unsynced.synced.1 } else { 0 };
                let file = std::fs::File::options().write(true).open(wal).unwrap();
                let len = file.metadata().unwrap().len();
                file.set_len(durable + (len - durable) * u64::from(*part) / 255).unwrap();
            }
            pair.rocks = RocksStore::open(options(&pair.dir)).unwrap();
            let left = read(&pair.rocks, &Filter::all(), 0, pair.rocks.tail());
            let newest = left.last().map_or(0, |event| event.id);
            let kept = unsynced.commits.iter().filter(|last| **last <= newest).count();
            let lost = unsynced.commits.len() - kept;
            assert_eq!(pair.model.crash(kept), lost);
            pair.after_start(unsynced);
        }
        Op::OpenAgain => {
            pair.rocks.reopen().unwrap();
            pair.model.reopen().unwrap();
            pair.settle();
            pair.after_start(unsynced);
        }
        Op::Stop => {
            pair.rocks.close().unwrap();
            pair.model.close().unwrap();
            pair.model.crash(0);
            let elsewhere = tempfile::tempdir().unwrap();
            // The lock goes with the store.
            pair.rocks = RocksStore::open(options(&elsewhere)).unwrap();
            pair.rocks = RocksStore::open(options(&pair.dir)).unwrap();
            pair.after_start(unsynced);
        }
    }
}

/// What was done before is durable, as both say; RocksDB writes nothing where nothing changes.
fn sync(pair: &Pair, unsynced: &mut Unsynced) {
    pair.rocks.sync().unwrap();
    pair.model.sync().unwrap();
    unsynced.none(pair);
}

fn newest_wal(dir: &std::path::Path) -> Option<std::path::PathBuf> {
    let files = std::fs::read_dir(dir.join("db")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "log")).max()
}

impl Pair {
    fn after_start(&mut self, unsynced: &mut Unsynced) {
        unsynced.none(self);
        self.opened();
        self.next = self.model.tail() + 1;
        self.time = self.time.max(self.model.last_time());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_a_power_cut_leaves_is_the_models(
        ops in prop::collection::vec((op(), any::<[Index; 3]>()), 1..30),
        durability in prop_oneof![Just(Durability::Interval), Just(Durability::Os), Just(Durability::Sync)],
        chosen in any::<[Index; 3]>(),
    ) {
        let all = filters();
        let dir = tempfile::tempdir().unwrap();
        let rocks = RocksStore::open(Options { durability, ..options(&dir) }).unwrap();
        let model = ModelStore::default().with_durability(durability, 65_536);
        let mut pair = Pair { dir, rocks, model, next: 1, time: 1000 };
        let mut unsynced = Unsynced::default();
        for (op, places) in &ops {
            if durability == Durability::Sync && matches!(op, Op::Cut(part) if *part < 255) {
                continue;
            }
            step(&mut pair, durability, &mut unsynced, op);
            pair.compare(&all, places, &chosen);
        }
        pair.settle();
        pair.rocks.tidy().unwrap();
        pair.compare_settled();
    }
}
