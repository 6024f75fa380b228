//! The built program over real sockets: what a client, an operator and a disk see of it.
//!
//! One target, so that everything here is linked once. Every wait is bounded; nothing sleeps to wait.

mod cli;
mod contract;
mod crash;
mod disk;
mod drain;
mod fsync;
mod http2;
mod refusals;
mod seam;
mod support;
