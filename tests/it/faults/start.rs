//! A start that cannot be: a sentence on stderr that names the file and says how to mend it, a status that is not 0, and nothing
//! changed in the directory.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::io::Errno;

use super::{FOR_EVER, Fault, FaultyDisk};
use crate::support::{ANY_PORT, BIN, TestServer, serve};

/// All files by name, with their bytes. What RocksDB tells of itself, and the lock, say nothing of the log.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            all.extend(files(&path));
        } else if !name.starts_with("LOG") && !name.eq_ignore_ascii_case("lock") {
            all.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    all
}

/// A log with tables, a write-ahead log, and reserved ids.
fn log_in(dir: &Path) {
    for _ in 0..3 {
        let server = TestServer::start_in(dir, &["durability=interval"]);
        for n in 0..20 {
            server.publish("a", &format!("event {n}"));
        }
        server.kill();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(path, to).unwrap();
        }
    }
}

/// Why `program` does not serve `dir`.
fn refusal(program: &mut Command, dir: &Path) -> String {
    let output = serve(program, ANY_PORT, dir, &[]).output().unwrap();
    assert_ne!(output.status.code(), Some(124), "{} is served", dir.display());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code().is_some_and(|code| code != 0), "{}: {said}", output.status);
    assert!(output.stdout.is_empty(), "nothing listens");
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// The program, ended when it does not end.
fn bounded() -> Command {
    let mut program = Command::new("timeout");
    program.args(["20", BIN]);
    program
}

fn one(dir: &Path, ending: &str) -> PathBuf {
    let mut found: Vec<_> = fs::read_dir(dir.join("db")).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| {
        path.file_name().unwrap().to_string_lossy().contains(ending) && fs::metadata(path).unwrap().len() > 0
    });
    found.sort();
    found.pop().unwrap_or_else(|| panic!("no {ending}"))
}

#[test]
fn a_log_of_which_a_file_is_missing_or_cut_is_refused_and_left_as_it_is() {
    let home = tempfile::tempdir().unwrap();
    let whole = home.path().join("whole");
    log_in(&whole);
    for ending in ["CURRENT", "MANIFEST-", ".sst", "ids"] {
        for cut in ["missing", "empty", "half"] {
            let dir = home.path().join(format!("{ending}-{cut}"));
            copy(&whole, &dir);
            let file = if ending == "ids" { dir.join("ids") } else { one(&dir, ending) };
            match cut {
                "missing" => fs::remove_file(&file).unwrap(),
                cut => {
                    let len = if cut == "empty" { 0 } else { fs::metadata(&file).unwrap().len() / 2 };
                    fs::File::options().write(true).open(&file).unwrap().set_len(len).unwrap();
                }
            }
            // Half of the mark is one of its two slots, which holds.
            if (ending, cut) == ("ids", "half") {
                let server = TestServer::start_in(&dir, &[]);
                assert_eq!(server.everything("/topics/a").len(), 60);
                continue;
            }
            let before = files(&dir);
            let said = refusal(&mut bounded(), &dir);
            println!("{ending} {cut}: {}", said.trim());
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            assert!(said.contains("corrupt"), "{ending} {cut}: {said}");
            assert!(said.contains(name.trim_end_matches(".sst")), "{ending} {cut}: {said}");
            let after = files(&dir);
            assert!(before.keys().eq(after.keys()), "{ending} {cut}: {:?} {:?}", before.keys(), after.keys());
            for (path, bytes) in &before {
                assert!(after[path] == *bytes, "{ending} {cut}: {} was changed", path.display());
            }
            // Gone for good, more ids are skipped than can have been given, and who may have seen them is told.
            if ending == "ids" {
                assert!(said.contains("ids.skip"), "{said}");
                let given_up = home.path().join(format!("given-up-{cut}"));
                copy(&dir, &given_up);
                fs::write(given_up.join("ids.skip"), "").unwrap();
                let server = TestServer::start_in(&given_up, &["durability=interval"]);
                let tail = server.tail();
                assert!((1 << 24..1 << 25).contains(&tail), "{tail}");
                assert_eq!(server.everything("/topics/a").len(), 60);
                let gap = server.stream("/topics/a", &[("Last-Event-ID", "1000000")]).control("tidelog.gap");
                assert_eq!(gap.json()["reason"], "lost");
                assert_eq!(server.publish("a", "on from there"), tail + 1);
                server.kill();
                // Once only: the mark is there again.
                let server = TestServer::start_in(&given_up, &["durability=interval"]);
                assert!((tail + 1..tail + 200_000).contains(&server.tail()), "{} {tail}", server.tail());
            }
            // Put back, it is what it was.
            let original = whole.join(file.strip_prefix(&dir).unwrap());
            fs::copy(original, &file).unwrap();
            let server = TestServer::start_in(&dir, &[]);
            assert_eq!(server.everything("/topics/a").len(), 60, "{ending} {cut}");
        }
    }
}

#[test]
fn a_directory_that_cannot_be_used_is_named() {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let dir = home.path().join("data");
    log_in(&dir);
    let mut other = Command::new("timeout");
    other.args(["20", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", BIN]);
    if fs::metadata(home.path()).unwrap().uid() == 0 {
        let before = files(&dir);
        let said = refusal(&mut other, &dir);
        println!("another's: {}", said.trim());
        assert!(said.contains("Permission denied") && said.contains("cannot open the log in"), "{said}");
        assert!(files(&dir) == before);
    }
    let file = home.path().join("file");
    fs::write(&file, "something").unwrap();
    let said = refusal(&mut bounded(), &file);
    println!("a file: {}", said.trim());
    assert!(said.contains("data directory") && said.contains("file"), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "something");
    let said = refusal(&mut bounded(), &file.join("below"));
    assert!(said.contains("data directory"), "{said}");
    // One that is not there is made.
    let server = TestServer::start_in(&home.path().join("not/there/yet"), &[]);
    assert_eq!(server.publish("a", "x"), 1);
}

/// A disk that fails while the log is opened: it is refused, and served when the cause is gone.
#[test]
fn a_disk_that_fails_at_the_start_is_said() {
    for (fault, errno, word) in [
        (Fault::Open, Errno::MFILE, "Too many open files"),
        (Fault::Open, Errno::ACCESS, "Permission denied"),
        (Fault::Write, Errno::ROFS, "Read-only file system"),
        (Fault::Write, Errno::NOSPC, "No space left on device"),
        (Fault::Sync, Errno::IO, "Input/output error"),
        (Fault::Read, Errno::IO, "Input/output error"),
    ] {
        let disk = FaultyDisk::new();
        log_in(&disk.data());
        disk.fail(fault, errno, FOR_EVER);
        let mut program = bounded();
        let said = refusal(disk.under(&mut program), &disk.data());
        println!("{fault:?} {errno:?}: {}", said.trim());
        assert!(said.contains(word), "{fault:?} {errno:?}: {said}");
        assert!(!said.contains("corrupt"), "a disk that fails is no corrupt log: {said}");
        assert!(disk.struck() > 0);
        disk.mend();
        let server = disk.serve(&[]);
        assert_eq!(server.everything("/topics/a").len(), 60);
        server.publish("a", "x");
    }
}
