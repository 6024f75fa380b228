//! What a publish depends on: keys that make it safe to repeat, and conditions on what its topic holds.

mod conditions;
mod keys;
