//! A disk that is told by a journal what a process did to it, and which of it was synced; and the disks that might be left of it
//! when the power goes.
//!
//! What is assumed of a file system:
//!
//! - What a file's fsync or fdatasync covers (what was written before it began) is on the disk when it returns, with the size that it
//!   gave the file. It says nothing of the file's name.
//! - What a directory's fsync covers (the names made, moved and taken away in it before it began) is on the disk when it returns.
//! - Anything else may be there or not: each page of 4 KiB, or each sector of 512 bytes, in any of the versions that it had since it was
//!   last synced; the size as it was after any of these writes, with zeros where the size came and the data did not.
//! - A sector is written whole or not at all.
//! - Names are taken away and moved in the order in which that was asked for, and one that was moved does not come before one that had
//!   been made (so do ext4, XFS and btrfs, whose journals are in order). The write-ahead log's check relies on it: of its old files
//!   the oldest goes first. So does RocksDB, which makes a MANIFEST, moves CURRENT into place and syncs the directory then. Names that
//!   are made may come in any order.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use fastrand::Rng;

const HEAD: usize = 32;
const CREATE: u32 = 1;
const WRITE: u32 = 2;
const SIZE: u32 = 3;
const RENAME: u32 = 4;
const UNLINK: u32 = 5;
const LINK: u32 = 6;
const MKDIR: u32 = 7;
const RMDIR: u32 = 8;
const SYNC: u32 = 9;

/// The files that nobody reads: left out by the recorder, too.
pub fn is_diary(name: &str) -> bool {
    name.rsplit('/').next().is_some_and(|name| name.starts_with("LOG"))
}

/// One operation.
pub struct Record<'j> {
    /// Where it ends in the journal.
    pub end: u64,
    kind: u32,
    inode: u64,
    number: u64,
    a: &'j [u8],
    b: &'j [u8],
}

impl Record<'_> {
    pub fn is_sync(&self) -> bool {
        self.kind == SYNC
    }
}

/// The operations of a journal from `offset` on.
pub fn records(journal: &[u8], mut offset: usize) -> impl Iterator<Item = Record<'_>> {
    std::iter::from_fn(move || {
        let head: &[u8; HEAD] = journal.get(offset..)?.first_chunk()?;
        let u32_at = |at: usize| u32::from_ne_bytes(head[at..at + 4].try_into().unwrap());
        let u64_at = |at: usize| u64::from_ne_bytes(head[at..at + 8].try_into().unwrap());
        let (a, b) = (u32_at(4) as usize, u32_at(8) as usize);
        let rest = &journal[offset + HEAD..];
        assert!(rest.len() >= a + b, "the journal ends within a record");
        offset += HEAD + a + b;
        let (kind, inode, number) = (u32_at(0), u64_at(16), u64_at(24));
        Some(Record { end: offset as u64, kind, inode, number, a: &rest[..a], b: &rest[a..a + b] })
    })
}

/// Where the writes to any MANIFEST that the journal sees being made end.
pub fn manifest_writes(journal: &[u8]) -> Vec<u64> {
    let (mut inodes, mut ends) = (Vec::new(), Vec::new());
    for record in records(journal, 0) {
        let is_one = inodes.contains(&record.inode);
        match record.kind {
            CREATE if String::from_utf8_lossy(record.a).contains("/MANIFEST-") => inodes.push(record.inode),
            // An inode's number is given again.
            CREATE | MKDIR if is_one => inodes.retain(|&inode| inode != record.inode),
            WRITE if is_one => ends.push(record.end),
            _ => {}
        }
    }
    ends
}

type Node = usize;

#[derive(Debug, Clone, Copy)]
enum Edit<'j> {
    Write { offset: usize, data: &'j [u8] },
    Size(usize),
}

impl Edit<'_> {
    fn end(&self) -> usize {
        match *self {
            Self::Write { offset, data } => offset + data.len(),
            Self::Size(size) => size,
        }
    }

    fn apply(&self, content: &mut Vec<u8>) {
        match *self {
            Self::Write { offset, data } => put(content, offset, data),
            Self::Size(size) => content.resize(size, 0),
        }
    }
}

fn put(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if content.len() < offset + data.len() {
        content.resize(offset + data.len(), 0);
    }
    content[offset..offset + data.len()].copy_from_slice(data);
}

#[derive(Clone, Default)]
struct File<'j> {
    synced: Vec<u8>,
    /// Not synced yet; each with where its record ends.
    pending: Vec<(u64, Edit<'j>)>,
}

#[derive(Debug, Clone)]
enum Naming {
    Make { path: String, node: Node },
    Move { from: String, to: String, node: Node },
    Take { path: String, node: Node },
}

impl Naming {
    fn dir(&self) -> &str {
        let (Self::Make { path, .. } | Self::Move { to: path, .. } | Self::Take { path, .. }) = self;
        parent(path)
    }

    fn is_making(&self) -> bool {
        matches!(self, Self::Make { .. })
    }

    fn is_moving(&self) -> bool {
        matches!(self, Self::Move { .. })
    }

    /// Does it, where what it needs is there.
    fn apply(&self, names: &mut BTreeMap<String, Node>) {
        match self {
            Self::Make { path, node } => {
                names.insert(path.clone(), *node);
            }
            Self::Move { from, to, node } => {
                if names.get(from) == Some(node) {
                    names.remove(from);
                }
                names.insert(to.clone(), *node);
            }
            Self::Take { path, node } => {
                if names.get(path) == Some(node) {
                    names.remove(path);
                }
            }
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// How much of what was not synced is left of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    Nothing,
    Everything,
    /// What was written first, over all files; the last of it torn.
    InOrder,
    /// Each unit of so many bytes in any of its versions.
    Units(usize),
}

/// And of the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    Nothing,
    Everything,
    InOrder,
    Any,
}

/// What may be left: paths under the root, and their contents; `None` for a directory.
pub type Image = BTreeMap<String, Option<Vec<u8>>>;

/// A disk under one directory.
#[derive(Clone)]
pub struct Disk<'j> {
    root: String,
    nodes_of_inodes: HashMap<u64, Node>,
    /// `None`: a directory.
    nodes: Vec<Option<File<'j>>>,
    /// As a running system sees it; paths under the root, which is the empty one.
    names: BTreeMap<String, Node>,
    synced: BTreeMap<String, Node>,
    pending: Vec<(u64, Naming)>,
}

impl<'j> Disk<'j> {
    /// What is in a directory now, all of it synced.
    pub fn of(root: &Path) -> Self {
        let mut disk = Self {
            root: root.to_str().unwrap().to_owned(),
            nodes_of_inodes: HashMap::new(),
            nodes: Vec::new(),
            names: BTreeMap::new(),
            synced: BTreeMap::new(),
            pending: Vec::new(),
        };
        for (path, content) in image_of(root) {
            let inode = fs::metadata(root.join(&path)).unwrap().ino();
            let node = disk.node(inode, content.map(|synced| File { synced, pending: Vec::new() }));
            disk.names.insert(path, node);
        }
        disk.synced = disk.names.clone();
        disk
    }

    fn node(&mut self, inode: u64, of: Option<File<'j>>) -> Node {
        self.nodes.push(of);
        self.nodes_of_inodes.insert(inode, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn path(&self, bytes: &[u8]) -> String {
        let path = std::str::from_utf8(bytes).unwrap();
        path.strip_prefix(&self.root)
            .unwrap_or_else(|| panic!("{path} is elsewhere"))
            .trim_start_matches('/')
            .to_owned()
    }

    fn name(&mut self, at: u64, naming: Naming) {
        naming.apply(&mut self.names);
        self.pending.push((at, naming));
    }

    fn edit(&mut self, record: &Record<'j>, edit: Edit<'j>) {
        let node = self.nodes_of_inodes.get(&record.inode).expect("it was seen being made");
        self.nodes[*node].as_mut().expect("it is a file").pending.push((record.end, edit));
    }

    fn place(number: u64) -> usize {
        usize::try_from(number).unwrap()
    }

    /// One operation happens.
    pub fn happens(&mut self, record: &Record<'j>) {
        let at = record.end;
        match record.kind {
            CREATE | MKDIR => {
                let node = self.node(record.inode, (record.kind == CREATE).then(File::default));
                let path = self.path(record.a);
                self.name(at, Naming::Make { path, node });
            }
            WRITE => self.edit(record, Edit::Write { offset: Self::place(record.number), data: record.a }),
            SIZE => self.edit(record, Edit::Size(Self::place(record.number))),
            RENAME => {
                let (from, to) = (self.path(record.a), self.path(record.b));
                assert_eq!(parent(&from), parent(&to), "nothing is moved to another directory");
                let node = self.names[&from];
                assert!(self.nodes[node].is_some(), "no directory is moved");
                self.name(at, Naming::Move { from, to, node });
            }
            LINK => {
                let (from, path) = (self.path(record.a), self.path(record.b));
                let node = self.names[&from];
                self.name(at, Naming::Make { path, node });
            }
            UNLINK | RMDIR => {
                let path = self.path(record.a);
                let node = self.names[&path];
                self.name(at, Naming::Take { path, node });
            }
            SYNC => self.sync(self.nodes_of_inodes[&record.inode], record.number),
            kind => panic!("the journal has a record of kind {kind}"),
        }
    }

    fn sync(&mut self, node: Node, upto: u64) {
        if let Some(file) = &mut self.nodes[node] {
            let covered = file.pending.partition_point(|(at, _)| *at <= upto);
            for (_, edit) in file.pending.drain(..covered) {
                edit.apply(&mut file.synced);
            }
            return;
        }
        let named = self.names.iter().find(|(_, of)| **of == node);
        let dir = named.expect("a directory is synced while it has a name").0.clone();
        for (at, naming) in std::mem::take(&mut self.pending) {
            if at <= upto && naming.dir() == dir {
                naming.apply(&mut self.synced);
            } else {
                self.pending.push((at, naming));
            }
        }
    }

    /// What a running system sees: all that was done.
    pub fn live(&self) -> Image {
        let content = |node: Node| {
            self.nodes[node].as_ref().map(|file| {
                let mut content = file.synced.clone();
                file.pending.iter().for_each(|(_, edit)| edit.apply(&mut content));
                content
            })
        };
        self.names.iter().map(|(path, node)| (path.clone(), content(*node))).collect()
    }

    /// What the power might leave if it went now.
    pub fn cut(&self, rng: &mut Rng, data: Data, names: Names) -> Image {
        let left = self.names_left(rng, names);
        // One moment for all files: what was written up to it is there.
        let oldest = self.nodes.iter().flatten().filter_map(|file| file.pending.first()).map(|(at, _)| *at).min();
        let newest = self.nodes.iter().flatten().filter_map(|file| file.pending.last()).map(|(at, _)| *at).max();
        let moment = oldest.zip(newest).map_or(0, |(oldest, newest)| rng.u64(oldest..=newest));
        let mut image = Image::new();
        for (path, node) in left {
            let content = self.nodes[node].as_ref().map(|file| file.left(rng, data, moment));
            image.insert(path, content);
        }
        // What lies in a directory that is not there is not there.
        let dirs: Vec<String> =
            image.iter().filter(|(_, content)| content.is_none()).map(|(dir, _)| dir.clone()).collect();
        image.retain(|path, _| path.is_empty() || dirs.iter().any(|dir| dir == parent(path)));
        let dirs: Vec<String> =
            image.iter().filter(|(_, content)| content.is_none()).map(|(dir, _)| dir.clone()).collect();
        image.retain(|path, _| path.is_empty() || dirs.iter().any(|dir| dir == parent(path)));
        image
    }

    fn names_left(&self, rng: &mut Rng, how: Names) -> BTreeMap<String, Node> {
        let mut left = self.synced.clone();
        let first = rng.usize(..=self.pending.len());
        let last_move = self.pending[..first].iter().rposition(|(_, naming)| naming.is_moving()).unwrap_or(0);
        for (n, (_, naming)) in self.pending.iter().enumerate() {
            let happens = match how {
                Names::Nothing => false,
                Names::Everything => true,
                Names::InOrder => n < first,
                Names::Any if naming.is_making() => n < last_move || rng.bool(),
                Names::Any => n < first,
            };
            if happens {
                naming.apply(&mut left);
            }
        }
        left
    }

    /// How many operations are not on the disk for certain: on files, and on names.
    pub fn unsynced(&self) -> (usize, usize) {
        (self.nodes.iter().flatten().map(|file| file.pending.len()).sum(), self.pending.len())
    }
}

impl File<'_> {
    fn left(&self, rng: &mut Rng, how: Data, moment: u64) -> Vec<u8> {
        let mut content = self.synced.clone();
        match how {
            Data::Nothing => {}
            Data::Everything => self.pending.iter().for_each(|(_, edit)| edit.apply(&mut content)),
            Data::InOrder => {
                let whole = self.pending.partition_point(|(at, _)| *at < moment);
                self.pending[..whole].iter().for_each(|(_, edit)| edit.apply(&mut content));
                if let Some((_, Edit::Write { offset, data })) = self.pending.get(whole) {
                    let sectors = rng.usize(..=data.len() / 512 + 1) * 512;
                    let torn = sectors.saturating_sub(offset % 512).min(data.len());
                    put(&mut content, *offset, &data[..torn]);
                }
            }
            Data::Units(unit) => self.scatter(rng, unit, &mut content),
        }
        content
    }

    /// Each unit in any of its versions, and the size after any of the writes.
    fn scatter(&self, rng: &mut Rng, unit: usize, content: &mut Vec<u8>) {
        // A change of size is no page's: up to one of them all is there, and after it nothing but what comes before the next.
        let resized: Vec<usize> =
            (0..self.pending.len()).filter(|n| matches!(self.pending[*n].1, Edit::Size(_))).collect();
        let turn = rng.usize(..=resized.len());
        let from = if turn == 0 { 0 } else { resized[turn - 1] + 1 };
        let upto = resized.get(turn).copied().unwrap_or(self.pending.len());
        self.pending[..from].iter().for_each(|(_, edit)| edit.apply(content));
        let writes = &self.pending[from..upto];
        let mut versions: HashMap<usize, usize> = HashMap::new();
        each_unit(writes, unit, |at, _, _| *versions.entry(at).or_default() += 1);
        // In an order of their own, so that a seed gives the same again.
        let mut units: Vec<_> = versions.into_iter().collect();
        units.sort_unstable();
        // Nearly all there, nearly nothing, or anything.
        let mood = rng.u8(..3);
        let mut left: HashMap<usize, usize> = units
            .into_iter()
            .map(|(at, versions)| {
                let version = match (mood, rng.u8(..8)) {
                    (0, 1..) => versions,
                    (1, 1..) => 0,
                    _ => rng.usize(..=versions),
                };
                (at, version)
            })
            .collect();
        let before = content.len();
        each_unit(writes, unit, |at, offset, data| {
            let left = left.get_mut(&at).expect("it was counted");
            if *left > 0 {
                *left -= 1;
                put(content, offset, data);
            }
        });
        let after = rng.usize(..=writes.len());
        let size = writes[..after].iter().map(|(_, edit)| edit.end()).fold(before, usize::max);
        content.resize(size, 0);
    }
}

/// Cuts writes into units: the unit's number, where the piece lies, and what it is.
fn each_unit(writes: &[(u64, Edit<'_>)], unit: usize, mut each: impl FnMut(usize, usize, &[u8])) {
    for (_, edit) in writes {
        let Edit::Write { mut offset, mut data } = *edit else { continue };
        while !data.is_empty() {
            let piece = (unit - offset % unit).min(data.len());
            each(offset / unit, offset, &data[..piece]);
            offset += piece;
            data = &data[piece..];
        }
    }
}

/// What is in a directory.
pub fn image_of(root: &Path) -> Image {
    let mut image = Image::from([(String::new(), None)]);
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if is_diary(&path) {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                dirs.push(path.clone());
                image.insert(path, None);
            } else {
                image.insert(path, Some(fs::read(entry.path()).unwrap()));
            }
        }
    }
    image
}

/// Puts it into an empty directory.
pub fn write(image: &Image, root: &Path) {
    for (path, content) in image {
        match content {
            None => fs::create_dir_all(root.join(path)).unwrap(),
            Some(content) => fs::write(root.join(path), content).unwrap(),
        }
    }
}
