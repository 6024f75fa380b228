//! The mark inside the data of each event that a bench publishes: whose it is, which one, and when it was sent.
//!
//! What holds: a mark has a fixed length and no character that JSON or SSE would change, so it is found in any framing. Must not
//! know where the bytes come from.

use memchr::memchr;

/// Bytes of a mark; no event of a bench is smaller.
pub const LENGTH: usize = PREFIX.len() + 8 + 4 + 8 + 14 + 1;

const PREFIX: &[u8; 3] = b"~tb";
const END: u8 = b'~';

/// What a mark says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// A random number of the run of the program that published the event.
    pub run: u32,
    /// Which of the run's publishers.
    pub publisher: u16,
    /// Which of the publisher's events, from 0.
    pub sequence: u32,
    /// When it was sent, in nanoseconds of that program's clock. 56 bits are two years.
    pub time: u64,
}

impl Mark {
    /// Appends it to `out`.
    pub fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(PREFIX);
        hex(out, u64::from(self.run), 8);
        hex(out, u64::from(self.publisher), 4);
        hex(out, u64::from(self.sequence), 8);
        hex(out, self.time, 14);
        out.push(END);
    }

    /// The mark with which `bytes` begin.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.get(..LENGTH)?.strip_prefix(PREFIX)?;
        if rest[34] != END {
            return None;
        }
        // The widths bound the values.
        #[allow(clippy::cast_possible_truncation)]
        Some(Self {
            run: number(&rest[..8])? as u32,
            publisher: number(&rest[8..12])? as u16,
            sequence: number(&rest[12..20])? as u32,
            time: number(&rest[20..34])?,
        })
    }

    /// The first mark in `bytes`.
    pub fn find(bytes: &[u8]) -> Option<Self> {
        match find(bytes, 0) {
            Found::Mark(mark, _) => Some(mark),
            Found::Begun(_) | Found::Nothing => None,
        }
    }
}

/// What [`find`] came upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A mark, and where the bytes after it begin.
    Mark(Mark, usize),
    /// From here to the end could be the beginning of a mark.
    Begun(usize),
    Nothing,
}

/// Looks for a mark in `bytes` that begins at `from` or later.
pub fn find(bytes: &[u8], mut from: usize) -> Found {
    while let Some(at) = memchr(PREFIX[0], &bytes[from..]) {
        let start = from + at;
        let rest = &bytes[start..];
        if let Some(mark) = Mark::read(rest) {
            return Found::Mark(mark, start + LENGTH);
        }
        let known = rest.len().min(PREFIX.len());
        if rest.len() < LENGTH && rest[..known] == PREFIX[..known] {
            return Found::Begun(start);
        }
        from = start + 1;
    }
    Found::Nothing
}

fn hex(out: &mut Vec<u8>, value: u64, digits: u32) {
    for digit in (0..digits).rev() {
        // Four bits.
        #[allow(clippy::cast_possible_truncation)]
        let digit = (value >> (4 * digit)) as usize & 15;
        out.push(b"0123456789abcdef"[digit]);
    }
}

/// What each byte is as a hexadecimal digit in lower case; 255 of those that are none.
const DIGITS: [u8; 256] = {
    let (mut digits, mut digit) = ([u8::MAX; 256], 0);
    while digit < 16 {
        digits[b"0123456789abcdef"[digit as usize] as usize] = digit;
        digit += 1;
    }
    digits
};

/// Hexadecimal digits, at most 16, in lower case. A replay reads millions of marks a second, so that nothing branches here.
fn number(digits: &[u8]) -> Option<u64> {
    let (mut value, mut all) = (0, 0);
    for &digit in digits {
        let digit = DIGITS[usize::from(digit)];
        all |= digit;
        value = value << 4 | u64::from(digit & 15);
    }
    (all < 16).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(mark: Mark) -> Vec<u8> {
        let mut bytes = Vec::new();
        mark.write(&mut bytes);
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        for mark in [
            Mark { run: 0, publisher: 0, sequence: 0, time: 0 },
            Mark { run: u32::MAX, publisher: u16::MAX, sequence: u32::MAX, time: (1 << 56) - 1 },
            Mark { run: 0xdead_beef, publisher: 7, sequence: 1_000_000, time: 123_456_789_012 },
        ] {
            let bytes = written(mark);
            assert_eq!(bytes.len(), LENGTH);
            assert_eq!(Mark::read(&bytes), Some(mark));
            assert_eq!(Mark::find(&[b"{\"data\":\"~t~~tb", &bytes[..], b"xxx\"}"].concat()), Some(mark));
        }
    }

    #[test]
    fn what_may_become_a_mark_is_told_from_what_cannot() {
        let mark = Mark { run: 1, publisher: 2, sequence: 3, time: 4 };
        let bytes = [b"ab", &written(mark)[..]].concat();
        assert_eq!(find(&bytes, 0), Found::Mark(mark, bytes.len()));
        for end in 3..bytes.len() {
            assert_eq!(find(&bytes[..end], 0), Found::Begun(2), "{end}");
        }
        for none in [&b""[..], b"ab", b"~x", b"~tx and more", b"~tbxyz that has no digits at all, however long"] {
            assert_eq!(find(none, 0), Found::Nothing);
        }
    }
}
