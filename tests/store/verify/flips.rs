//! Flipped bits: each is found, and none opens as a shorter log.

use super::*;

pub fn flip(path: &Path, bit: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).unwrap();
}

#[test]
fn every_flipped_bit_is_found() {
    let dir = copied(full().dir.path());
    let mut random = seeded("flips");
    let all = std::env::var("FLIPS").is_ok_and(|flips| flips == "all");
    let mut flips = 0;
    for name in names(dir.path()) {
        let path = dir.path().join(&name);
        let before = fs::read(&path).unwrap();
        let written = before.iter().rposition(|&byte| byte != 0).map_or(0, |at| at + 100);
        for byte in 0..before.len() {
            // The zeros ahead of the log are many and alike.
            if !all && byte > written && byte % 97 > 0 && (byte + 8) % (32 << 10) > 16 {
                continue;
            }
            let bits = if all {
                0..8
            } else {
                let bit = random.u64(0..8);
                bit..bit + 1
            };
            for bit in bits {
                let bit = byte as u64 * 8 + bit;
                flip(&path, bit);
                let mut found = Found::default();
                verify_file(dir.path(), &name, &mut found).unwrap();
                assert!(
                    !found.damage().is_empty(),
                    "{name}: bit {} of byte {byte} is not found: {:?}",
                    bit % 8,
                    found.0
                );
                let file = name.trim_start_matches("db/");
                // One that hides the newest log's name from the others is about a file that is not there.
                assert!(
                    found.damage().iter().any(|line| line.contains(file)) || file == "CURRENT",
                    "{name}: {:?}",
                    found.0
                );
                flip(&path, bit);
                flips += 1;
            }
        }
        assert!(fs::read(&path).unwrap() == before);
        let mut found = Found::default();
        verify_file(dir.path(), &name, &mut found).unwrap();
        assert_eq!(found.damage(), [""; 0], "{name}");
    }
    println!("{flips} flips found");
}

/// Opens it; `true` where all was there, `false` where it said that it is not. It must not be shorter, or anything else.
pub fn opens_whole_or_refuses(dir: &Path, what: &str) -> bool {
    let full = full();
    let told = |error: &StoreError| {
        let text = error.to_string();
        let names_it = [".sst", ".log", "MANIFEST", "CURRENT", "ids", "verify", "IDENTITY", "OPTIONS", "column famil"];
        assert!(names_it.iter().any(|name| text.contains(name)), "{what}: {text}");
        false
    };
    let store = match RocksStore::open(options(dir, Durability::Sync)) {
        Ok(store) => store,
        Err(error) => return told(&error),
    };
    // Twice: once as it was found, and once after the work in the background has gone over it.
    for _ in 0..2 {
        match see(&store, &full.remembered) {
            Ok(seen) => assert!(seen == full.seen, "{what}: {}", difference(&seen, &full.seen)),
            Err(error) => return told(&error),
        }
        if let Err(error) = store.tidy() {
            return told(&error);
        }
    }
    true
}

pub fn difference(now: &Seen, before: &Seen) -> String {
    let (a, b) = (now.events.len(), before.events.len());
    if now.events != before.events {
        return format!("{a} events of {b}");
    }
    format!("{now:?}\nwas\n{before:?}")
}

#[test]
fn a_log_with_a_flipped_bit_opens_whole_or_not_at_all() {
    let mut random = seeded("opened with a flipped bit");
    let (mut whole, mut refused) = (0, 0);
    let from = full().dir.path();
    let files: Vec<(String, u64)> = crate::support::listing(from).into_iter().filter(|(_, size)| *size > 0).collect();
    for n in 0..number("FLIPPED_OPENS", 250) {
        let dir = copied(from);
        // The files that tell of others, and the log, in every other turn.
        let (name, size) = loop {
            let (name, size) = &files[random.usize(..files.len())];
            if n % 2 == 0 || name.contains("MANIFEST") || name.contains("CURRENT") || name.ends_with(".log") {
                break (name, *size);
            }
        };
        let bytes = fs::read(dir.path().join(name)).unwrap();
        let written = bytes.iter().rposition(|&byte| byte != 0).map_or(size, |at| at as u64 + 20).min(size);
        let bit = random.u64(0..written * 8);
        flip(&dir.path().join(name), bit);
        if opens_whole_or_refuses(dir.path(), &format!("{name}, bit {} of byte {}", bit % 8, bit / 8)) {
            whole += 1;
        } else {
            refused += 1;
        }
    }
    println!("{whole} opened whole, {refused} refused");
    assert!(refused > 0);
}

/// RocksDB takes a length that does not fit into what is left of the file for a torn last write, and passes over all records behind it.
#[test]
fn no_flipped_bit_of_the_manifest_opens_a_shorter_log() {
    let mut random = seeded("manifest");
    let from = full().dir.path();
    let name = names(from).into_iter().find(|name| name.contains("MANIFEST")).unwrap();
    let bytes = fs::read(from.join(&name)).unwrap();
    let dir = copied(from);
    let path = dir.path().join(&name);
    let refused = |bits: &[u64]| {
        for &bit in bits {
            flip(&path, bit);
        }
        let Err(error) = RocksStore::open(options(dir.path(), Durability::Sync)) else { panic!("bits {bits:?}") };
        fs::write(&path, &bytes).unwrap();
        let text = error.to_string();
        assert!(text.contains("MANIFEST") && text.contains("would silently lose"), "{text}");
        text
    };
    let (mut records, mut at) = (0, 0);
    while at + 7 < bytes.len() {
        let next = at + 7 + usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
        let (first, length) = (at as u64 * 8, (at as u64 + 5) * 8 + random.u64(0..8));
        assert!(refused(&[length]).contains(&format!("bit {} of byte {} is flipped", length % 8, length / 8)));
        // What is wrong with more than a bit is no torn write either, if a record follows.
        if next < bytes.len() {
            refused(&[first + 40 + 5, first + 40 + 6, first + 40 + 7]);
        }
        (at, records) = (next, records + 1);
    }
    println!("{records} records");
    assert!(records > 10);
    // A bit of each byte, or all: it is the damage of one bit, wherever, and nothing is cut off.
    let bits = bytes.len() as u64 * 8;
    let all = std::env::var("FLIPS").is_ok_and(|flips| flips == "all");
    let some: Vec<u64> =
        (0..bits).filter(|bit| all || bit % 8 == 0).map(|bit| if all { bit } else { bit + random.u64(0..8) }).collect();
    for bit in some {
        flip(&path, bit);
        let flipped = fs::read(&path).unwrap();
        let Err(error) = RocksStore::open(options(dir.path(), Durability::Sync)) else { panic!("bit {bit}") };
        let text = error.to_string();
        assert!(text.contains(&format!("bit {} of byte {} is flipped", bit % 8, bit / 8)), "bit {bit}: {text}");
        assert!(fs::read(&path).unwrap() == flipped, "bit {bit}: something was cut off");
        flip(&path, bit);
    }
    assert!(fs::read(&path).unwrap() == bytes);
    // What is left of a last write that was torn is cut off; `torn` tears more.
    fs::write(&path, [&bytes[..], &[7, 7, 7, 7, 90, 0, 1, 2, 2]].concat()).unwrap();
    assert_eq!(verified(dir.path()).1.damage(), [""; 0]);
    fs::write(&path, &bytes).unwrap();
    assert!(opens_whole_or_refuses(dir.path(), "as it was"));
}

#[test]
fn a_bit_in_the_last_batch_and_the_newest_log_that_is_missing_are_refused() {
    let from = full().dir.path();
    let wal = crate::support::wal(from);
    let bytes = fs::read(&wal).unwrap();
    let written = bytes.iter().rposition(|&byte| byte != 0).unwrap() as u64;
    let name = wal.strip_prefix(from).unwrap().to_owned();
    for bit in (written - 40) * 8..(written + 1) * 8 {
        let dir = copied(from);
        flip(&dir.path().join(&name), bit);
        let Err(error) = RocksStore::open(options(dir.path(), Durability::Sync)) else { panic!("bit {bit}") };
        let text = error.to_string();
        assert!(text.contains(&format!("bit {} of byte {} is flipped", bit % 8, bit / 8)), "{text}");
        flip(&dir.path().join(&name), bit);
    }
    let dir = copied(from);
    fs::remove_file(dir.path().join(&name)).unwrap();
    let Err(error) = RocksStore::open(options(dir.path(), Durability::Sync)) else { panic!("it was opened") };
    assert!(error.to_string().contains("newest write-ahead log"), "{error}");
}
