//! What is fuzzed, one file a target: each is a function `run(&[u8])` that panics where the product, or what it holds true, is broken.
//!
//! The same functions serve `cargo fuzz` (`fuzz_targets/`, by coverage, for hours) and `tests/fuzz.rs` (corpus, regressions and seeded
//! mutations of them, in every `make test`). Whatever bytes come in, `run` returns, unless there is a fault.

pub mod api;
pub mod codecs;
pub mod config;
pub mod decode;
pub mod frames;
pub mod head;
pub mod lines;
pub mod request;
pub mod source;
pub mod standard;
pub mod topics;
pub mod wal;

/// A new directory, in memory where the system has such a place: files are written anew for each run.
pub fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory can be made")
}

/// A target: its name, which is that of its corpus too, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: &[Target] = &[
    ("api", api::run),
    ("codecs", codecs::run),
    ("config", config::run),
    ("decode", decode::run),
    ("frames", frames::run),
    ("head", head::run),
    ("lines", lines::run),
    ("request", request::run),
    ("topics", topics::run),
    ("wal", wal::run),
];
