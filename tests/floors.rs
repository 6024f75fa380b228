//! The house stands on its floors: reads `src/` and fails where a room imports one above it, or one beside it.
//!
//! The floors are those of the table in `src/lib.rs`. An import is a path that begins with `crate::`, in a `use` or in line, in
//! tests too; comments are not read. What is excepted stands here with its reason, and an exception that nothing needs any
//! longer fails as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Above every room of the library: the program.
const PROGRAM: u8 = 7;

/// A room, another of its floor that it may import, and why.
const NEIGHBOURS: [(&str, &str, &str); 2] = [
    ("event", "topic", "an event stands under a topic: two halves of one vocabulary"),
    ("topic", "event", "a filter asks for types of events: the other half"),
];

/// The rooms that stand beside the house: who may import them from which floor up, and which floors they may import themselves.
const BESIDE: [(&str, u8, u8, &str); 4] = [
    ("config", PROGRAM, 6, "it knows every room's options; no room knows where they come from"),
    ("metrics", 3, 0, "counters, for whoever waits for the disk or a socket"),
    ("sync", 2, 0, "locks, threads and tasks, for whoever shares memory; `tests/threads` has its own"),
    ("client", PROGRAM, 1, "it relies on the HTTP contract alone, as any other client"),
];

/// Words that stand for waiting and time: floors 0 to 2 have them as arguments, or not at all.
const WAITING: [&str; 8] =
    ["tokio", "tokio_stream", "tokio_util", "hyper", "hyper_util", "http_body_util", "SystemTime", "Instant"];

/// A file, one of these words, and why it may stand there.
const WAITING_ALLOWED: [(&str, &str, &str); 2] = [
    ("sse.rs", "SystemTime", "its epoch, to write an event's time as text; the clock is not asked"),
    ("store/space.rs", "Instant", "how long a disk that was full has had room again is a fact of the machine"),
];

/// Where RocksDB may be named: the store's own rooms, and the tests that read what RocksDB wrote.
const ROCKSDB: [&str; 3] = ["store/rocks.rs", "store/rocks/", "store/wal/tests.rs"];

struct Source {
    /// Below `src/`.
    path: String,
    /// The first name of its path: `store` of `store/rocks.rs`.
    room: String,
    /// Without comments.
    code: String,
}

fn sources() -> Vec<Source> {
    // Cargo runs tests where `Cargo.toml` is. The path of the build would be another clone's, where several share a target directory.
    let src = Path::new("src");
    let mut files = Vec::new();
    collect(src, &mut files);
    files.sort();
    let read = |file: PathBuf| {
        let path = file.strip_prefix(src).unwrap().to_str().unwrap().to_owned();
        let room = path.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        Source { room, code: without_comments(&fs::read_to_string(&file).unwrap()), path }
    };
    files.into_iter().map(read).collect()
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            files.push(path);
        }
    }
}

/// Line comments go. Block comments are not used here, and `//` within a string (a URL) takes no import with it.
fn without_comments(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// Room by floor, of the table in `lib.rs`. The rooms beside it are in [`BESIDE`].
fn floors() -> BTreeMap<String, u8> {
    let lib = fs::read_to_string("src/lib.rs").unwrap();
    let mut floors = BTreeMap::new();
    let mut beside = BTreeSet::new();
    for row in lib.lines().filter_map(|line| line.strip_prefix("//! | ")) {
        let mut cells = row.split('|').map(str::trim);
        let (floor, rooms) = (cells.next().unwrap(), cells.next().unwrap_or(""));
        for room in rooms.split("[`").skip(1).map(|rest| rest.split('`').next().unwrap().to_owned()) {
            match floor.parse() {
                Ok(floor) => assert_eq!(floors.insert(room, floor), None, "twice in the table of lib.rs: {row}"),
                Err(_) => assert!(beside.insert(room), "twice in the table of lib.rs: {row}"),
            }
        }
    }
    assert_eq!(beside, BESIDE.iter().map(|(room, ..)| (*room).to_owned()).collect(), "the rooms beside the others");
    let listed: BTreeSet<&str> = floors.keys().chain(&beside).map(String::as_str).collect();
    let declared = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    assert_eq!(listed, declared.collect(), "the table of lib.rs lists every room");
    floors
}

/// The rooms that `code` imports: `crate::room`, and each of `crate::{room::x, other}`.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => drop(found.insert(first_name(rest))),
            Some(group) => {
                let mut depth = 0;
                let mut begins = true;
                for (at, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => begins = true,
                        c if begins && !c.is_whitespace() => {
                            found.insert(first_name(&group[at..]));
                            begins = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found
}

fn first_name(path: &str) -> String {
    path.chars().take_while(|&c| is_word(c)).collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn names(code: &str, word: &str) -> bool {
    code.split(|c| !is_word(c)).any(|found| found == word)
}

/// Why `room` may not import `other`; `None` when it may.
fn objection(floors: &BTreeMap<String, u8>, room: &str, other: &str) -> Option<String> {
    let beside = |name: &str| BESIDE.iter().find(|(room, ..)| *room == name);
    let floor_of = |name: &str| if matches!(name, "main" | "cli") { Some(PROGRAM) } else { floors.get(name).copied() };
    if room == other || room == "lib" {
        return None;
    }
    match (beside(room), beside(other), floor_of(room), floor_of(other)) {
        (Some((_, _, upto, _)), None, _, Some(theirs)) if theirs <= *upto => None,
        (None, Some((_, from, ..)), Some(own), _) if own >= *from => None,
        (None, None, Some(PROGRAM), Some(PROGRAM)) => None,
        (None, None, Some(own), Some(theirs)) if theirs < own => None,
        (None, None, Some(own), Some(theirs)) if theirs == own => {
            let excepted = NEIGHBOURS.iter().any(|(from, to, _)| (*from, *to) == (room, other));
            (!excepted).then(|| format!("both stand on floor {own}"))
        }
        (_, Some((.., why)), ..) => Some(format!("{other} stands beside: {why}")),
        (Some((.., why)), ..) => Some(format!("{room} stands beside: {why}")),
        (_, _, Some(own), Some(theirs)) => Some(format!("floor {theirs} stands above floor {own}")),
        _ => Some("it is no room of the table in lib.rs".to_owned()),
    }
}

#[test]
fn a_room_imports_only_rooms_below_it() {
    let floors = floors();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for source in sources() {
        for other in imports(&source.code) {
            if let Some(why) = objection(&floors, &source.room, &other) {
                wrong.push(format!("src/{} imports crate::{other}: {why}", source.path));
            }
            seen.insert((source.room.clone(), other));
        }
        // A way around: from a file of the top, `super` is the crate.
        for other in floors.keys().filter(|other| **other != source.room && !source.path.contains('/')) {
            if source.code.contains(&format!("use super::{other}")) {
                wrong.push(format!("src/{} imports super::{other}: write crate::{other}", source.path));
            }
        }
    }
    for (room, other, _) in NEIGHBOURS {
        if !seen.contains(&(room.to_owned(), other.to_owned())) {
            wrong.push(format!("{room} no longer imports {other}: take the exception out"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn only_the_store_names_rocksdb() {
    let named = sources().into_iter().filter(|source| names(&source.code, "rocksdb")).map(|source| source.path);
    let (right, wrong): (Vec<_>, Vec<_>) = named.partition(|path| ROCKSDB.iter().any(|place| path.starts_with(place)));
    assert!(wrong.is_empty(), "rocksdb is named in {wrong:?}, and belongs into {ROCKSDB:?}");
    assert!(!right.is_empty(), "nothing was read");
}

#[test]
fn the_lower_floors_neither_wait_nor_ask_the_time() {
    let floors = floors();
    let mut wrong = Vec::new();
    let mut needed = BTreeSet::new();
    for source in sources() {
        if floors.get(&source.room).is_none_or(|&floor| floor > 2) {
            continue;
        }
        for word in WAITING.into_iter().filter(|word| names(&source.code, word)) {
            if WAITING_ALLOWED.iter().any(|(path, allowed, _)| (*path, *allowed) == (source.path.as_str(), word)) {
                needed.insert(word);
            } else {
                wrong.push(format!("src/{} names {word}", source.path));
            }
        }
        if source.path == "sse.rs" && source.code.contains("SystemTime::now") {
            wrong.push("src/sse.rs asks the clock".to_owned());
        }
    }
    for (path, word, _) in WAITING_ALLOWED {
        if !needed.contains(word) {
            wrong.push(format!("src/{path} no longer names {word}: take the exception out"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn the_reader_of_imports_reads() {
    let code = without_comments(
        "use crate::{event::{Event, EventId}, hub, topic::Filter};\n// crate::server\nlet x = crate::log::Log;",
    );
    assert_eq!(imports(&code).into_iter().collect::<Vec<_>>(), ["event", "hub", "log", "topic"]);
    let floors = floors();
    let objects = |room, other| objection(&floors, room, other).is_some();
    assert!(
        objects("store", "hub") && objects("store", "log") && objects("log", "config") && objects("client", "store")
    );
    assert!(objects("store", "metrics") && objects("http", "nowhere"));
    assert!(!objects("store", "sse") && !objects("server", "event") && !objects("cli", "config"));
    assert!(!objects("config", "server") && !objects("log", "metrics"));
}
