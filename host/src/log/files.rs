//! The files beside sled's own: the lock, the marker, the watermark; and the syncing of folders. Owns their formats.
//! Knows nothing of entries. `open.rs`, the next file, decides what they mean.
//!
//! ```text
//! DIR/lock        held (flock) while the log is open
//! DIR/log.json    the marker: a log lives here. Format, sizes and random identity; written once, when all else is durable
//! DIR/watermark   two slots: sequence and next index of a durable commit. Catches a sled that recovers an older state
//! DIR/journal     the newest commits, until sled is synced (`journal.rs`)
//! DIR/sled/       db, conf, snap.*, and blobs/, which stays empty
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record::{seal, u64_at, unseal};

/// Version of the folder's layout.
pub(super) const LAYOUT_VERSION: u32 = 4;

/// One slot fills a sector, so that a torn write can't hurt the other one.
const SLOT_BYTES: usize = 512;
const SLOT_USED_BYTES: usize = 21;
const WATERMARK: &[u8] = b"watermark";

pub(super) struct Paths {
    pub dir: PathBuf,
    pub lock: PathBuf,
    pub marker: PathBuf,
    /// The marker of a log whose creation has not finished.
    pub marker_creating: PathBuf,
    pub watermark: PathBuf,
    pub journal: PathBuf,
    pub sled: PathBuf,
    pub db: PathBuf,
    pub conf: PathBuf,
    pub blobs: PathBuf,
}

impl Paths {
    pub(super) fn new(dir: &Path) -> Self {
        let sled = dir.join("sled");
        Paths {
            dir: dir.to_owned(),
            lock: dir.join("lock"),
            marker: dir.join("log.json"),
            marker_creating: dir.join("log.json.creating"),
            watermark: dir.join("watermark"),
            journal: dir.join("journal"),
            db: sled.join("db"),
            conf: sled.join("conf"),
            blobs: sled.join("blobs"),
            sled,
        }
    }

    /// Something of a log is here, finished or not.
    pub(super) fn has_data(&self) -> bool {
        self.sled.exists() || self.watermark.exists()
    }
}

/// What the marker file says. Fixed for the log's whole life: sled can't change its segment size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    pub format: u32,
    /// Random, in hex: the same as in the tree, so that a marker and a `db` of two logs don't pass as one.
    pub identity: String,
    pub segment_bytes: usize,
    pub chunk_bytes: usize,
}

impl Marker {
    pub(super) fn generate(segment_bytes: usize, chunk_bytes: usize) -> io::Result<Self> {
        let mut random = [0; 16];
        File::open("/dev/urandom")?.read_exact(&mut random)?;
        let identity = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Marker { format: LAYOUT_VERSION, identity, segment_bytes, chunk_bytes })
    }

    pub(super) fn read(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::from),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Durable when it returns, except for its name: see [`sync_folder`].
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.write_all(b"\n")?;
        file.sync_all()
    }
}

/// The lock, held until it is dropped. `None`: another process holds it.
pub(super) fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Makes names in a folder durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Deletes snapshots that sled began and did not finish: it may refuse to open beside them (sled issue 1527).
pub(super) fn delete_unfinished_snapshots(sled: &Path) -> io::Result<()> {
    for file in fs::read_dir(sled)? {
        let file = file?;
        let name = file.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(file.path())?;
        }
    }
    Ok(())
}

/// The sequence of a commit that is durable, kept outside of sled. After a commit it is written without a sync of its
/// own: a power cut may leave an older one, which is still true, and the death of the process loses nothing.
pub(super) struct Watermark {
    file: File,
    pub sequence: u64,
    /// Index of the next entry as of that commit.
    pub next: u64,
    /// The slot that does not hold `sequence`: they take turns, so that one is always whole.
    spare: u64,
}

impl Watermark {
    pub(super) fn create(path: &Path, sequence: u64, next: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(2 * SLOT_BYTES as u64)?;
        let mut watermark = Watermark { file, sequence: 0, next: 0, spare: 0 };
        watermark.raise(sequence, next)?;
        watermark.sync()?;
        Ok(watermark)
    }

    /// `None`: the file is missing or neither slot is undamaged.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut newest = None;
        for slot in 0..2 {
            let mut bytes = [0; SLOT_USED_BYTES];
            if file.read_exact_at(&mut bytes, slot * SLOT_BYTES as u64).is_ok()
                && let Some(data) = unseal(WATERMARK, &bytes, 16)
            {
                newest = newest.max(Some((u64_at(data, 0), u64_at(data, 8), 1 - slot)));
            }
        }
        Ok(newest.map(|(sequence, next, spare)| Watermark { file, sequence, next, spare }))
    }

    pub(super) fn raise(&mut self, sequence: u64, next: u64) -> io::Result<()> {
        assert!(sequence > self.sequence, "the watermark only rises");
        let mut data = [0; 16];
        data[..8].copy_from_slice(&sequence.to_le_bytes());
        data[8..].copy_from_slice(&next.to_le_bytes());
        self.file.write_all_at(&seal(WATERMARK, &data), self.spare * SLOT_BYTES as u64)?;
        (self.sequence, self.next) = (sequence, next);
        self.spare = 1 - self.spare;
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_survives_one_damaged_slot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("watermark");
        assert!(Watermark::open(&path).unwrap().is_none());
        let mut watermark = Watermark::create(&path, 1, 0).unwrap();
        watermark.raise(2, 7).unwrap();
        watermark.raise(5, 9).unwrap();
        assert_eq!(Watermark::open(&path).unwrap().unwrap().sequence, 5);
        watermark.file.write_all_at(b"x", 3).unwrap();
        let mut watermark = Watermark::open(&path).unwrap().unwrap();
        assert_eq!((watermark.sequence, watermark.next, watermark.spare), (2, 7, 0));
        watermark.raise(6, 3).unwrap();
        assert_eq!(Watermark::open(&path).unwrap().unwrap().sequence, 6);
        watermark.file.write_all_at(b"x", 3).unwrap();
        watermark.file.write_all_at(b"x", SLOT_BYTES as u64 + 3).unwrap();
        assert!(Watermark::open(&path).unwrap().is_none());
    }

    #[test]
    fn only_unfinished_snapshots_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["db", "snap.00F1", "snap.00F2.generating"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        delete_unfinished_snapshots(dir.path()).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["db", "snap.00F1"]);
    }
}
