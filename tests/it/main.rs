//! The built program over real sockets: what a client, an operator and a disk see of it.
//!
//! One target, so that everything here is linked once. Every wait is bounded; nothing sleeps to wait.

// Long tables of cases and small bodies that are put together read better as they are.
#![allow(
    clippy::format_collect,
    clippy::needless_for_each,
    clippy::similar_names,
    clippy::single_match_else,
    clippy::struct_field_names,
    clippy::too_many_lines
)]

mod bench;
mod bundle;
mod cli;
mod close;
mod contract;
mod crash;
mod disk;
mod drain;
mod faults;
mod fsync;
mod http2;
mod refusals;
mod repeats;
mod seam;
mod support;
mod terms;
