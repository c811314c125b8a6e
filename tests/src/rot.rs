//! Damage to a stopped node's files: which kinds of files there are, copies of whole folders, and bytes that a seed
//! flips. Knows nothing of what the files mean.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;

const SECTOR_BYTES: u64 = 512;
/// A file may be large and mostly empty: half of the flips look this often for a byte that isn't 0.
const TRIES: usize = 2_000;

/// The files of a folder by kind. A kind is the path in the folder with everything that differs from file to file (ids,
/// indices) left out. Empty files can't rot.
pub fn kinds(folder: &Path) -> BTreeMap<String, Vec<PathBuf>> {
    let mut kinds: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in files(folder) {
        let inner = path.strip_prefix(folder).expect("it is in the folder").to_string_lossy().into_owned();
        if fs::metadata(&path).is_ok_and(|m| m.len() > 0) {
            kinds.entry(kind(&inner)).or_default().push(path);
        }
    }
    kinds
}

/// `snapshots/0000000000000001-00000000000000ff-12345678.snapshot` is of the kind `snapshots/*.snapshot`.
fn kind(path: &str) -> String {
    let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
    let numbered = |part: &str| part.len() >= 8 && part.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let parts: Vec<&str> = name.split('.').map(|part| if numbered(part) { "*" } else { part }).collect();
    if folder.is_empty() { parts.join(".") } else { format!("{folder}/{}", parts.join(".")) }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder can be read").filter_map(Result::ok);
    let mut found: Vec<PathBuf> = entries
        .flat_map(|entry| match entry.path() {
            path if path.is_dir() => files(&path),
            path => vec![path],
        })
        .collect();
    found.sort();
    found
}

/// Makes `to` a copy of the folder `from`; what was there is gone.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Damages a file that isn't empty; says how.
pub fn damage(path: &Path, rng: &mut Rng) -> io::Result<String> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let bytes = file.metadata()?.len();
    match rng.u8(0..5) {
        // What a parser doesn't notice: one digit becomes another.
        0 if let Some(at) = digit(&file, bytes, rng)? => {
            alter(&file, at, |byte| byte ^ 1)?;
            Ok(format!("the digit at {at} of {bytes} is another one"))
        }
        0 | 1 => {
            let at = place(&file, bytes, rng)?;
            let bit = rng.u8(0..8);
            alter(&file, at, |byte| byte ^ 1 << bit)?;
            Ok(format!("bit {bit} of byte {at} of {bytes} flipped"))
        }
        2 => {
            let (at, by) = (place(&file, bytes, rng)?, rng.u8(1..));
            alter(&file, at, |byte| byte ^ by)?;
            Ok(format!("byte {at} of {bytes} xor {by}"))
        }
        3 => {
            let (at, count) = (place(&file, bytes, rng)?, rng.u64(2..=16));
            for at in at..(at + count).min(bytes) {
                alter(&file, at, |byte| byte ^ 0xff)?;
            }
            Ok(format!("{count} bytes from {at} of {bytes} inverted"))
        }
        _ => {
            let at = place(&file, bytes, rng)? / SECTOR_BYTES * SECTOR_BYTES;
            let count = SECTOR_BYTES.min(bytes - at);
            file.write_all_at(&vec![0; count as usize], at)?;
            Ok(format!("{count} bytes from {at} of {bytes} are zeros"))
        }
    }
}

/// Where: anywhere, or, half of the time, where the file says something.
fn place(file: &File, bytes: u64, rng: &mut Rng) -> io::Result<u64> {
    let mut at = rng.u64(0..bytes);
    if rng.bool() {
        let mut byte = [0];
        for _ in 0..TRIES {
            file.read_exact_at(&mut byte, at)?;
            if byte != [0] {
                break;
            }
            at = rng.u64(0..bytes);
        }
    }
    Ok(at)
}

/// Where a digit is, of a small file.
fn digit(file: &File, bytes: u64, rng: &mut Rng) -> io::Result<Option<u64>> {
    const SMALL_BYTES: u64 = 4_096;
    if bytes > SMALL_BYTES {
        return Ok(None);
    }
    let mut text = vec![0; bytes as usize];
    file.read_exact_at(&mut text, 0)?;
    let digits: Vec<u64> = (0..bytes).filter(|at| text[*at as usize].is_ascii_digit()).collect();
    Ok(rng.choice(&digits).copied())
}

fn alter(file: &File, at: u64, change: impl FnOnce(u8) -> u8) -> io::Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[change(byte[0])], at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_leave_out_what_differs_from_file_to_file() {
        for (path, expected) in [
            ("identity.json", "identity.json"),
            ("raft-log/sled/db", "raft-log/sled/db"),
            ("raft-log/sled/snap.0000000000001F00", "raft-log/sled/snap.*"),
            ("snapshots/0000000000000001-00000000000000ff-12345678.snapshot", "snapshots/*.snapshot"),
        ] {
            assert_eq!(kind(path), expected);
        }
    }

    #[test]
    fn a_damaged_copy_differs_and_the_original_stays() {
        let mut rng = crate::seed::rng("a_damaged_copy_differs");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("inner")).expect("a folder");
        let bytes: Vec<u8> = (0..5_000).map(|n| (n % 255) as u8 + 1).collect();
        fs::write(from.join("inner/file"), &bytes).expect("a file");
        fs::write(from.join("empty"), "").expect("a file");
        assert_eq!(kinds(&from).keys().collect::<Vec<_>>(), ["inner/file"]);
        for _ in 0..100 {
            copy(&from, &to).expect("the copy");
            assert_eq!(fs::read(to.join("inner/file")).expect("a file"), bytes);
            let how = damage(&to.join("inner/file"), &mut rng).expect("damage");
            let damaged = fs::read(to.join("inner/file")).expect("a file");
            assert!(damaged != bytes && damaged.len() == bytes.len(), "{how}");
            assert_eq!(fs::read(from.join("inner/file")).expect("a file"), bytes);
        }
    }
}
