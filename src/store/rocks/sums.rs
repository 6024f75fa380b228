//! The file `sums`: checksums of the files of the database that have none of their own.
//!
//! RocksDB writes its settings into OPTIONS files, as text, at each opening; nobody reads them but people and tools, and a flipped bit in
//! one of them would never be noticed. So after each opening their CRC-32C is noted here, for `verify`. Nothing else depends on it, and
//! where it cannot be written, it is not.
//!
//! ```text
//! OPTIONS-000045 9313 1f2e3d4c      a line a file: name, bytes, CRC-32C
//! sums 5a6b7c8d                     the last line: CRC-32C of all before it
//! ```
//!
//! Must not know RocksDB's handle.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

pub const NAME: &str = "sums";

/// What is noted of a file: bytes and CRC-32C.
pub type Sum = (u64, u32);

/// Notes the sums of the settings in `dir/db` in the file `sums` in `dir`, whole or not at all.
///
/// # Errors
/// When a file cannot be read or written.
pub fn write(dir: &Path) -> io::Result<()> {
    let mut text = String::new();
    for (name, (bytes, crc)) in of_settings(&dir.join("db"))? {
        writeln!(text, "{name} {bytes} {crc:08x}").map_err(io::Error::other)?;
    }
    writeln!(text, "{NAME} {:08x}", crc32c::crc32c(text.as_bytes())).map_err(io::Error::other)?;
    let unfinished = dir.join("sums.new");
    let mut file = File::create(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()?;
    fs::rename(&unfinished, dir.join(NAME))
}

/// The sums of the OPTIONS files in `dir` as they are.
///
/// # Errors
/// When the directory or a file cannot be read.
pub fn of_settings(dir: &Path) -> io::Result<BTreeMap<String, Sum>> {
    let mut sums = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string()
            && is_settings(&name)
        {
            sums.insert(name, of_file(&entry.path())?);
        }
    }
    Ok(sums)
}

/// One file's sum.
///
/// # Errors
/// When it cannot be read.
pub fn of_file(path: &Path) -> io::Result<Sum> {
    // They have some ten kilobytes.
    let bytes = fs::read(path)?;
    Ok((bytes.len() as u64, crc32c::crc32c(&bytes)))
}

/// Whether a file of this name holds settings.
#[must_use]
pub fn is_settings(name: &str) -> bool {
    name.strip_prefix("OPTIONS-").is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What a file `sums` says; `None` where it is damaged.
#[must_use]
pub fn read(text: &[u8]) -> Option<BTreeMap<String, Sum>> {
    let text = std::str::from_utf8(text).ok()?;
    let (before, last) = text.strip_suffix('\n')?.rsplit_once('\n').map_or(("", text), |(a, b)| (&text[..=a.len()], b));
    let crc = last.trim_end_matches('\n').strip_prefix("sums ").and_then(hex)?;
    if crc != crc32c::crc32c(before.as_bytes()) {
        return None;
    }
    let line = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let (bytes, crc) = rest.split_once(' ')?;
        Some((name.to_owned(), (bytes.parse().ok()?, hex(crc)?)))
    };
    before.lines().map(line).collect()
}

/// Eight digits as they are written above: no other spelling of the same number.
fn hex(digits: &str) -> Option<u32> {
    let number = u32::from_str_radix(digits, 16).ok()?;
    (format!("{number:08x}") == digits).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_any_flipped_bit_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("db")).unwrap();
        for expected in 0..3 {
            write(dir.path()).unwrap();
            let text = fs::read(dir.path().join(NAME)).unwrap();
            let sums = read(&text).unwrap();
            assert_eq!(sums.len(), expected);
            assert!(sums.iter().all(|(name, sum)| of_file(&dir.path().join("db").join(name)).unwrap() == *sum));
            for bit in 0..text.len() * 8 {
                let mut flipped = text.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(read(&flipped), None, "bit {bit}");
            }
            for len in 0..text.len() {
                assert_eq!(read(&text[..len]), None, "{len} bytes");
            }
            fs::write(dir.path().join(format!("db/OPTIONS-00000{expected}")), format!("text {expected}")).unwrap();
            fs::write(dir.path().join("db/OPTIONS-00000.dbtmp"), "").unwrap();
        }
    }
}
