//! Bytes of a fuzzer, taken apart into numbers, choices and texts. They never run out: what is missing is zeros and empty texts.
//!
//! (The crate `arbitrary` would do, but it would be a dependency of the product's tests for these few lines.)

/// What is left of the bytes.
#[derive(Clone)]
pub struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    pub fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    pub fn bit(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// Any 64 bits. Most numbers that matter are small or at a power of two, so the first byte says how many follow.
    pub fn number(&mut self) -> u64 {
        let shape = self.byte();
        let power = 1u64 << (shape >> 2);
        match shape & 3 {
            0 => u64::from(shape >> 2),
            1 => (0..8).fold(0, |n, _| n << 8 | u64::from(self.byte())),
            2 => power.wrapping_add(u64::from(self.byte() & 3)).wrapping_sub(2),
            _ => u64::from(self.byte()) << 8 | u64::from(self.byte()),
        }
    }

    /// Less than `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        let n = u64::from(self.byte()) << 16 | u64::from(self.byte()) << 8 | u64::from(self.byte());
        usize::try_from(n % end as u64).expect("it is less than a usize")
    }

    /// One of `choices`.
    pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    /// So many bytes as the next one says, or as are left.
    pub fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes
    }

    /// The same as text; what is no UTF-8 is replaced.
    pub fn text(&mut self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }
}
