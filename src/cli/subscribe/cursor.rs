//! The file in which `tidelog subscribe --cursor` keeps its place: one line of JSON, `{"id":42,"log":"…"}`.
//!
//! What holds: the file is replaced whole, so that it is the old place or the new one whenever the program or the machine
//! stops. Must not know what was done with the events before it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidelog::event::{EVENT_ID_MAX, EventId};
use tokio::time::Instant;

/// Shortest time between two writes of the file, unless the program ends.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// A place in a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Everything up to this id is done with.
    pub id: EventId,
    /// The log's name, when the server told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
}

/// Why the place cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum CursorError {
    #[error("cannot read the cursor file {}: {cause}", path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error(
        "the cursor file {} is not one ({why}); it is one line like {{\"id\":42,\"log\":\"x\"}}. Mend it, or remove it to begin anew",
        path.display()
    )]
    Malformed { path: PathBuf, why: String },
    #[error("cannot write the cursor file {}: {cause}", path.display())]
    Write { path: PathBuf, cause: io::Error },
}

/// Reads the file; `None` when there is none yet.
pub fn load(path: &Path) -> Result<Option<Cursor>, CursorError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(CursorError::Read { path: path.to_owned(), cause }),
    };
    let malformed = |why: String| CursorError::Malformed { path: path.to_owned(), why };
    let cursor: Cursor = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
    if cursor.id > EVENT_ID_MAX {
        return Err(malformed(format!("the largest id is {EVENT_ID_MAX}")));
    }
    Ok(Some(cursor))
}

/// Replaces the file: written beside it, synced, renamed over it.
fn save(path: &Path, cursor: &Cursor) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut beside = OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(beside);
    let mut line = serde_json::to_vec(cursor)?;
    line.push(b'\n');
    let written = File::create(&beside).and_then(|mut file| file.write_all(&line).and_then(|()| file.sync_all()));
    if let Err(error) = written.and_then(|()| fs::rename(&beside, path)) {
        // The first error is the one to tell.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// Keeps the place in a file, or nowhere.
pub struct Keeper {
    path: Option<PathBuf>,
    saved: Option<Cursor>,
    noted: Option<Cursor>,
    saved_at: Option<Instant>,
}

impl Keeper {
    /// Keeps it in `path`, which says `saved` now.
    pub fn new(path: Option<PathBuf>, saved: Option<Cursor>) -> Self {
        Self { path, noted: saved.clone(), saved, saved_at: None }
    }

    /// Takes note of a place that has been reached.
    pub fn note(&mut self, cursor: Cursor) {
        self.noted = Some(cursor);
    }

    /// When the file is to be written next; `None` while it is as noted.
    pub fn due(&self) -> Option<Instant> {
        let behind = self.path.is_some() && self.noted != self.saved;
        behind.then(|| self.saved_at.map_or_else(Instant::now, |at| at + SAVE_INTERVAL))
    }

    /// Writes what was noted, if the file does not say it yet.
    pub async fn save(&mut self) -> Result<(), CursorError> {
        let (Some(path), Some(cursor)) = (&self.path, &self.noted) else { return Ok(()) };
        if self.noted == self.saved {
            return Ok(());
        }
        let (at, what) = (path.clone(), cursor.clone());
        let written = tokio::task::spawn_blocking(move || save(&at, &what)).await.map_err(io::Error::other);
        written.and_then(|written| written).map_err(|cause| CursorError::Write { path: path.clone(), cause })?;
        self.saved.clone_from(&self.noted);
        self.saved_at = Some(Instant::now());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(id: EventId) -> Cursor {
        Cursor { id, log: Some("x\"y".into()) }
    }

    #[tokio::test]
    async fn what_was_kept_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cursor");
        assert_eq!(load(&path).unwrap(), None);
        let mut keeper = Keeper::new(Some(path.clone()), None);
        assert_eq!(keeper.due(), None);
        for id in [1, 2] {
            keeper.note(cursor(id));
            assert!(keeper.due().is_some());
            keeper.save().await.unwrap();
            assert_eq!((load(&path).unwrap(), keeper.due()), (Some(cursor(id)), None));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        keeper.note(cursor(3));
        assert!(keeper.due().unwrap() > Instant::now(), "at most once a second");
    }

    #[test]
    fn a_file_that_is_no_cursor_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cursor");
        for bad in ["", "42", "{}", "{\"id\":-1}", "{\"id\":9007199254740992}", "{\"id\":1,\"x\":2}", "{\"id\":1} 2"] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(load(&path), Err(CursorError::Malformed { .. })), "{bad}");
        }
        fs::write(&path, "{\"id\":7}").unwrap();
        assert_eq!(load(&path).unwrap(), Some(Cursor { id: 7, log: None }));
        assert!(matches!(load(dir.path()), Err(CursorError::Read { .. })));
    }

    #[tokio::test]
    async fn a_place_that_cannot_be_kept_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut keeper = Keeper::new(Some(dir.path().join("missing/cursor")), None);
        keeper.note(cursor(1));
        assert!(matches!(keeper.save().await, Err(CursorError::Write { .. })));
    }
}
