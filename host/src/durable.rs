//! Files and folders that a power cut leaves whole: a small file is there whole or as it was before, a folder keeps its
//! name. Knows no room.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

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
