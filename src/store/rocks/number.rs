//! Maps by topic number, which every event read or written is looked up in.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::record::TopicNumber;

pub type ByNumber<V> = HashMap<TopicNumber, V, BuildHasherDefault<NumberHasher>>;

/// Spreads topic numbers. They are given by the log in sequence, so nobody can choose them to collide.
#[derive(Debug, Clone, Copy, Default)]
pub struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(byte.into());
        }
    }

    fn write_u32(&mut self, n: u32) {
        // 2^64 divided by the golden ratio: neighbours end up far apart.
        self.0 = (self.0 ^ u64::from(n)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}
