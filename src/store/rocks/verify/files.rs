//! The files of a log: that all are there, none is strange, and every bit of each is as it was written.
//!
//! | file | how |
//! | --- | --- |
//! | `db/*.sst` | the MANIFEST names it with its size; every block by its checksum (`table`) |
//! | `db/*.log` | `store::wal`; what lies behind the last batch is zero |
//! | `db/MANIFEST-*` | the one that CURRENT names: record by record (`manifest`); an end that is bad must be torn |
//! | `db/CURRENT` | names a MANIFEST that is there |
//! | `db/IDENTITY` | the id that the MANIFEST has too |
//! | `db/OPTIONS-*` | its sum is in `sums` |
//! | `sums` | its own sum |
//! | `ids` | both slots, and zeros about them (`store::mark`) |
//! | `lock`, `db/LOCK` | empty |
//! | `db/LOG*` | not looked at: text for people |

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use super::super::manifest::{Manifest, ManifestError};
use super::super::sums;
use super::{Counted, VerifyError, table};
use crate::store::mark;
use crate::store::wal::{self, WalError};

/// What a file is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Table(u64),
    Wal(u64),
    Manifest,
    Current,
    Identity,
    Settings,
    Sums,
    Ids,
    /// Must be empty.
    Lock,
    /// Text, no data.
    TextLog,
    /// What a stop has left of writing a file.
    Unfinished,
    Unknown,
}

fn number(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn what(name: &str) -> What {
    match name {
        "lock" | "db/LOCK" => return What::Lock,
        "ids" => return What::Ids,
        "sums" => return What::Sums,
        "ids.new" | "sums.new" | mark::SKIP => return What::Unfinished,
        "db/CURRENT" => return What::Current,
        "db/IDENTITY" => return What::Identity,
        _ => {}
    }
    let Some(inner) = name.strip_prefix("db/") else { return What::Unknown };
    if inner == "LOG" || inner.starts_with("LOG.old.") {
        What::TextLog
    } else if let Some(n) = inner.strip_suffix(".sst").and_then(number) {
        What::Table(n)
    } else if let Some(n) = inner.strip_suffix(".log").and_then(number) {
        What::Wal(n)
    } else if inner.strip_prefix("MANIFEST-").and_then(number).is_some() {
        What::Manifest
    } else if sums::is_settings(inner) {
        What::Settings
    } else if inner.strip_suffix(".dbtmp").is_some() {
        What::Unfinished
    } else {
        What::Unknown
    }
}

/// Every file in `dir` and in the directories there, by its path within, with its size.
fn list(dir: &Path) -> Result<BTreeMap<String, u64>, VerifyError> {
    let mut files = BTreeMap::new();
    let mut directories = vec![(dir.to_path_buf(), String::new())];
    while let Some((at, prefix)) = directories.pop() {
        let io = |source| VerifyError::Io { file: at.clone(), source };
        for entry in fs::read_dir(&at).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.metadata().map_err(io)?;
            if kind.is_dir() {
                directories.push((entry.path(), format!("{name}/")));
            } else {
                files.insert(name, kind.len());
            }
        }
    }
    Ok(files)
}

/// Looks at all files; answers whether a database can be opened that is not shorter than it was.
pub fn check_all(dir: &Path, to: &mut Counted<'_>) -> Result<bool, VerifyError> {
    let files = list(dir)?;
    to.watch.begin("files", files.values().sum());
    let known = Known::read(dir, to);
    // The next start cuts it off; nothing is changed from here. RocksDB is not to read one: some it reads without end.
    let mut can_be_opened = known.manifest.as_ref().is_some_and(|manifest| manifest.bad.is_none());
    for (name, &size) in &files {
        (to.summary.files, to.summary.bytes) = (to.summary.files + 1, to.summary.bytes + size);
        match what(name) {
            // They belong together.
            What::Wal(_) | What::Manifest | What::Current => to.watch.advance(size),
            _ => known.check(dir, name, to)?,
        }
    }
    can_be_opened &= known.check_wals(dir, to);
    known.check_missing(&files, to, &mut can_be_opened);
    if let Some(manifest) = &known.manifest {
        Known::check_manifests(&files, manifest, to);
    }
    Ok(can_be_opened)
}

/// Looks at one file.
pub fn check_one(dir: &Path, name: &str, to: &mut Counted<'_>) -> Result<(), VerifyError> {
    let known = Known::read(dir, to);
    match what(name) {
        What::Wal(_) => drop(known.check_wals(dir, to)),
        // They were read just now.
        What::Manifest | What::Current => {
            known.check_missing(&list(dir)?, to, &mut false);
        }
        _ => known.check(dir, name, to)?,
    }
    Ok(())
}

/// What the files are compared with.
struct Known {
    manifest: Option<Manifest>,
    /// `None` where there is no such file, or it is damaged.
    sums: Option<BTreeMap<String, sums::Sum>>,
}

impl Known {
    fn read(dir: &Path, to: &mut Counted<'_>) -> Self {
        let manifest = match Manifest::read(&dir.join("db")) {
            Ok(manifest) => Some(manifest),
            Err(error) => {
                let (place, what) = place_of(dir, &error);
                to.damage(place, what);
                None
            }
        };
        let manifest = manifest.filter(|manifest| is_enough(dir, manifest, to));
        if let Some(place) = manifest.as_ref().and_then(|manifest| manifest.padding.as_ref()) {
            to.damage(format!("{}: byte {}", within(dir, &place.file), place.offset), place.what.to_string());
        }
        let sums = fs::read(dir.join(sums::NAME)).ok().and_then(|text| sums::read(&text));
        Self { manifest, sums }
    }

    fn check(&self, dir: &Path, name: &str, to: &mut Counted<'_>) -> Result<(), VerifyError> {
        let path = dir.join(name);
        let io = |source| VerifyError::Io { file: path.clone(), source };
        let size = fs::metadata(&path).map_err(io)?.len();
        match what(name) {
            What::Table(number) => return self.check_table(&path, name, (number, size), to).map_err(io),
            What::Identity => {
                let id = self.manifest.as_ref().and_then(|manifest| manifest.id.as_deref());
                let text = fs::read(&path).map_err(io)?;
                match id {
                    Some(id) if text.trim_ascii_end() == id.as_bytes() && text.len() <= id.len() + 1 => {}
                    Some(id) => to.damage(name, format!("it does not hold {id}, the id that the MANIFEST has")),
                    None => to.note(name, "it was not looked at: the MANIFEST has no id"),
                }
            }
            What::Settings => self.check_settings(dir, name, to).map_err(io)?,
            What::Sums if self.sums.is_none() => {
                to.damage(
                    name,
                    "its own checksum does not match; nothing depends on it, and the next start writes it anew",
                );
            }
            What::Ids => check_ids(&fs::read(&path).map_err(io)?, name, to),
            What::Lock if size > 0 => to.damage(name, "it should be empty"),
            What::Unfinished => to.note(name, "a stop has left it; it is not used"),
            What::Unknown => to.damage(name, "no such file belongs to a log: move it elsewhere"),
            What::Sums | What::Lock | What::TextLog | What::Wal(_) | What::Manifest | What::Current => {}
        }
        to.watch.advance(size);
        Ok(())
    }

    fn check_table(
        &self,
        path: &Path,
        name: &str,
        (number, size): (u64, u64),
        to: &mut Counted<'_>,
    ) -> Result<(), io::Error> {
        if let Some(manifest) = &self.manifest {
            match manifest.tables.get(&number) {
                Some(table) if table.size != size => {
                    to.damage(name, format!("it has {size} bytes, and should have {}", table.size));
                }
                Some(_) => {}
                None => {
                    // It may have been begun and never finished, so nothing of it is expected.
                    to.note(name, "nothing names it: what a stop has left; the next start removes it");
                    to.watch.advance(size);
                    return Ok(());
                }
            }
        }
        let (mut found, mut read) = (Vec::new(), 0);
        table::check(path, &mut |bad| found.push(bad), &mut |bytes| {
            read += bytes;
            to.watch.advance(bytes);
        })?;
        to.watch.advance(size.saturating_sub(read));
        for (at, what) in found {
            to.damage(format!("{name}: byte {at}"), what);
        }
        Ok(())
    }

    fn check_settings(&self, dir: &Path, name: &str, to: &mut Counted<'_>) -> io::Result<()> {
        let inner = name.trim_start_matches("db/");
        match self.sums.as_ref().map(|sums| sums.get(inner)) {
            Some(Some(&sum)) if sums::of_file(&dir.join(name))? == sum => {}
            Some(Some(_)) => to.damage(
                name,
                "it is not what it was when the log was last opened; RocksDB does not read it, and the next start writes it anew",
            ),
            // Written by a start that was cut short before it noted the sum.
            Some(None) => to.note(name, "it was not looked at: its sum was not noted"),
            None => to.note(name, "it was not looked at: there is no file with its sum"),
        }
        Ok(())
    }

    /// Answers whether they can be opened without losing what was acknowledged.
    fn check_wals(&self, dir: &Path, to: &mut Counted<'_>) -> bool {
        let db = dir.join("db");
        if let Some(error) = self.manifest.as_ref().and_then(|m| m.check_newest_wal(&db).err()) {
            let (place, what) = place_of(dir, &error);
            to.damage(place, what);
            return false;
        }
        match wal::check(&db) {
            Ok(report) => {
                if let Some(place) = report.padding {
                    let at = format!("{}: byte {}", within(dir, &place.file), place.offset);
                    to.damage(at, format!("{}; no event is lost by it", place.what));
                }
                if let Some(place) = report.torn {
                    let at = format!("{}: byte {}", within(dir, &place.file), place.offset);
                    match wal::stray_bit(&place) {
                        Ok(Some(bit)) => to.damage(
                            format!("{}: byte {}", within(dir, &place.file), bit / 8),
                            "a bit is set in the zeros behind the last batch; no event is lost by it, and the next start mends it",
                        ),
                        Ok(None) => to.note(
                            at,
                            format!(
                                "{}: the torn end of a last write, which was never answered; the next start drops it",
                                place.what
                            ),
                        ),
                        Err(error) => to.damage(at, error.to_string()),
                    }
                }
                true
            }
            Err(error) => {
                let (place, what) = match &error {
                    WalError::Corrupt { place } => (
                        format!("{}: byte {}", within(dir, &place.file), place.offset),
                        format!("{}; it is not the torn end of a last write", place.what),
                    ),
                    WalError::Missing { file, offset, expected, found } => (
                        format!("{}: byte {offset}", within(dir, file)),
                        format!(
                            "sequence number {expected} was expected and {found} found: a file, or a part of one, is missing"
                        ),
                    ),
                    WalError::Io { file, source } => (within(dir, file), source.to_string()),
                };
                to.damage(place, what);
                false
            }
        }
    }

    fn check_missing(&self, files: &BTreeMap<String, u64>, to: &mut Counted<'_>, can_be_opened: &mut bool) {
        for number in self.manifest.iter().flat_map(|manifest| manifest.tables.keys()) {
            let name = format!("db/{number:06}.sst");
            if !files.contains_key(&name) {
                to.damage(name, "it is missing");
                *can_be_opened = false;
            }
        }
        if !files.contains_key("db/IDENTITY") {
            to.damage("db/IDENTITY", "it is missing; the next start makes it");
        }
        match &self.sums {
            Some(sums) => {
                let there: BTreeSet<&str> =
                    files.keys().filter_map(|name| name.strip_prefix("db/")).filter(|n| sums::is_settings(n)).collect();
                // A start that was cut short has written newer ones, and removed older ones, without noting it.
                let stale = there.iter().any(|name| !sums.contains_key(*name));
                for name in sums.keys().filter(|name| !stale && !there.contains(name.as_str())) {
                    to.damage(format!("db/{name}"), "it is missing; nothing depends on it");
                }
            }
            None if files.contains_key(sums::NAME) => {}
            None => to.note(sums::NAME, "it is missing: a version before it was there, or a start that was cut short"),
        }
    }

    fn check_manifests(files: &BTreeMap<String, u64>, manifest: &Manifest, to: &mut Counted<'_>) {
        let current = manifest.file.file_name().map(|name| format!("db/{}", name.to_string_lossy()));
        for name in files.keys().filter(|name| what(name) == What::Manifest && Some(*name) != current.as_ref()) {
            to.note(name, "CURRENT names another: what a stop has left; the next start removes it");
        }
        for (family, (name, _)) in &manifest.families {
            let is_known = super::super::layout::FAMILIES.contains(&name.as_str()) || name == "default";
            if !is_known {
                to.damage(
                    current.as_deref().unwrap_or("db"),
                    format!("column family {family} is called {name:?}, which is not known"),
                );
            }
        }
    }
}

/// Whether what can be read of a MANIFEST describes a whole log.
fn is_enough(dir: &Path, manifest: &Manifest, to: &mut Counted<'_>) -> bool {
    let Some(bad) = &manifest.bad else { return true };
    match manifest.check_bad(&dir.join("db")) {
        Ok(None) => true,
        Ok(Some(upto)) => {
            let what = format!(
                "{}: the torn end of a last write, as a power cut may leave it; nothing is lost by it, and the next start cuts the file \
                 off at byte {upto}; until then RocksDB is not to read it",
                bad.what
            );
            to.note(format!("{}: byte {}", within(dir, &bad.file), bad.offset), what);
            true
        }
        Err(error) => {
            let (place, what) = place_of(dir, &error);
            to.damage(place, what);
            false
        }
    }
}

/// Where an error about the MANIFEST is, and what.
fn place_of(dir: &Path, error: &ManifestError) -> (String, String) {
    match error {
        ManifestError::Corrupt { place } => {
            (format!("{}: byte {}", within(dir, &place.file), place.offset), place.what.to_string())
        }
        ManifestError::Damaged { place, why } => (
            format!("{}: byte {}", within(dir, &place.file), place.offset),
            format!("{}; it is not the torn end of a last write, as {why}", place.what),
        ),
        ManifestError::Record { file, offset, what } => {
            (format!("{}: byte {offset}", within(dir, file)), format!("the record {what}"))
        }
        ManifestError::Io { file, source } => (within(dir, file), source.to_string()),
        ManifestError::Current { file } => {
            (within(dir, file), "it does not hold the name of a MANIFEST and the end of a line".into())
        }
        ManifestError::Missing { file } => (within(dir, file), "it is missing, though CURRENT names it".into()),
        ManifestError::NoWal { at_least, .. } => {
            ("db".into(), format!("the newest write-ahead log is missing: its number is {at_least} or more"))
        }
    }
}

fn within(dir: &Path, file: &Path) -> String {
    file.strip_prefix(dir).unwrap_or(file).display().to_string()
}

fn check_ids(bytes: &[u8], name: &str, to: &mut Counted<'_>) {
    for (at, what) in mark::damage(bytes) {
        to.damage(format!("{name}: byte {at}"), what);
    }
}
