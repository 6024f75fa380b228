//! The commands, one file each.

pub mod bench;
mod output;
pub mod publish;
pub mod serve;
pub mod subscribe;
#[cfg(test)]
mod testing;
pub mod verify;

/// Where a server listens when nobody says otherwise.
const DEFAULT_SERVER: &str = "http://127.0.0.1:4242";
