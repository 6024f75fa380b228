//! The store as its readers and its writer see it: `RocksStore` against the model store, and against crashes, trims and time.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "the numbers of these tests are small, and what is measured is only printed"
)]

mod conformance;
mod kept;
mod quiet;
mod recovery;
mod retention;
mod support;
mod torn;
mod verify;
