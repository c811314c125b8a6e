//! Files and folders that a power cut leaves whole: a small file is there whole or as it was before, a folder keeps its
//! name. And small files that rotted bits don't pass for right ones. Knows no room.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A small file of JSON. Without the checksum, one digit that became another would pass.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checked {
    /// Of the value as compact JSON.
    crc32: u32,
    value: serde_json::Value,
}

impl Checked {
    fn of(value: serde_json::Value) -> Checked {
        Checked { crc32: crc32fast::hash(value.to_string().as_bytes()), value }
    }
}

/// What `write_checked` makes of a value.
pub fn checked<T: Serialize>(value: &T) -> Vec<u8> {
    let value = serde_json::to_value(value).expect("texts and numbers can be written as JSON");
    serde_json::to_vec_pretty(&Checked::of(value)).expect("JSON can be written")
}

/// [`write_durably`] with a checksum.
pub fn write_checked<T: Serialize>(dir: &Path, name: &str, value: &T) -> io::Result<()> {
    write_durably(dir, name, &checked(value))
}

/// What [`write_checked`] wrote; None if there is no such file.
///
/// # Errors
/// The file can't be read, or, with its path, is not what was written.
pub fn read_checked<T: DeserializeOwned>(dir: &Path, name: &str) -> io::Result<Option<T>> {
    let path = dir.join(name);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
    };
    let damaged = |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", path.display()));
    let Checked { crc32, value } = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    let read = Checked::of(value);
    if read.crc32 != crc32 {
        return Err(damaged("its checksum is wrong".into()));
    }
    serde_json::from_value(read.value).map(Some).map_err(|e| damaged(e.to_string()))
}

/// Temp file, fsync, rename, fsync of the folder: afterwards the file is there whole, or as it was before.
pub fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(temporary(name));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// What a crash within [`write_durably`] leaves.
pub fn temporary(name: &str) -> String {
    format!("{name}.new")
}

/// Creates the folder and its parents as far as they are missing, and syncs each folder that got a new name. If it was
/// there already its own name is synced: whoever made it may not have done that.
pub fn create_durably(dir: &Path) -> io::Result<()> {
    let missing = dir.ancestors().take_while(|a| !a.as_os_str().is_empty() && !a.exists()).count();
    fs::create_dir_all(dir)?;
    for parent in dir.ancestors().skip(1).take(missing.max(1)) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        match File::open(parent).and_then(|folder| folder.sync_all()) {
            // A parent that this user may not read is somebody else's, and so was the making of the folder.
            Err(e) if missing == 0 && e.kind() == io::ErrorKind::PermissionDenied => {}
            result => result?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_checked_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let value = ("a text".to_owned(), 17u64, vec![1u8, 2]);
        assert_eq!(read_checked::<(String, u64, Vec<u8>)>(dir.path(), "file").unwrap(), None);
        write_checked(dir.path(), "file", &value).unwrap();
        let read = || read_checked::<(String, u64, Vec<u8>)>(dir.path(), "file");
        assert_eq!(read().unwrap().as_ref(), Some(&value));
        let good = fs::read(dir.path().join("file")).unwrap();
        for (at, bit) in (0..good.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            fs::write(dir.path().join("file"), &bad).unwrap();
            match read() {
                // One white space is as good as another.
                Ok(found) => assert_eq!(found.as_ref(), Some(&value), "{}", String::from_utf8_lossy(&bad)),
                Err(e) => assert!(e.to_string().contains("file"), "{e}"),
            }
        }
    }

    #[test]
    fn a_folder_is_created_with_its_parents_and_may_be_there() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b/c");
        create_durably(&dir).unwrap();
        assert!(dir.is_dir());
        create_durably(&dir).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        assert!(create_durably(&root.path().join("file/below")).is_err());
    }
}
