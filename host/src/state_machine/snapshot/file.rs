//! A snapshot's file while it is written: durable before it gets its name, and gentle to the disk that the log writes to.
//! Never knows what is in it. Next: `folder.rs`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::read::ReadError;
use super::room::Room;
use crate::failpoint;

/// What a file is called, behind its name, until it is whole.
pub(super) const BUILDING: &str = ".building";
/// A file being written is synced after so many bytes: the log's own syncs must not wait for a gigabyte of this.
const SYNC_BYTES: u64 = 8 << 20;

/// Writes a file that has its name only when it is whole and durable.
pub(super) fn write_file<T>(
    path: &Path,
    write: impl FnOnce(Paced) -> Result<(Paced, T), ReadError>,
) -> Result<T, ReadError> {
    let mut building = path.as_os_str().to_owned();
    building.push(BUILDING);
    let building = PathBuf::from(building);
    let (_, written) = write_unnamed(&building, None, write)?;
    fs::rename(&building, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    sync_folder(folder.unwrap_or(Path::new(".")))?;
    Ok(written)
}

/// Writes and syncs a file, and deletes it if that fails, or if the room gets short.
pub(super) fn write_unnamed<T>(
    path: &Path,
    room: Option<Arc<Room>>,
    write: impl FnOnce(Paced) -> Result<(Paced, T), ReadError>,
) -> Result<(File, T), ReadError> {
    let result = begin(path, room).map_err(ReadError::Io).and_then(write).and_then(|(out, written)| {
        let file = out.finish().map_err(ReadError::Io)?;
        Ok((file, written))
    });
    if result.is_err() {
        let _ = fs::remove_file(path);
    }
    result
}

fn begin(path: &Path, room: Option<Arc<Room>>) -> io::Result<Paced> {
    failpoint!("snapshot.begin", io);
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?;
    Ok(Paced { file, room, written: 0, synced: 0 })
}

/// A file that is synced every few megabytes and doesn't stay in the page cache: nobody reads it soon.
pub(super) struct Paced {
    file: File,
    room: Option<Arc<Room>>,
    written: u64,
    synced: u64,
}

impl Paced {
    fn sync(&mut self) -> io::Result<()> {
        failpoint!("snapshot.before-sync", io);
        self.file.sync_data()?;
        if let Some(length) = NonZeroU64::new(self.written - self.synced) {
            // Only advice.
            let _ = rustix::fs::fadvise(&self.file, self.synced, Some(length), rustix::fs::Advice::DontNeed);
        }
        self.synced = self.written;
        self.room.as_ref().map_or(Ok(()), |room| room.check(SYNC_BYTES))
    }

    fn finish(mut self) -> io::Result<File> {
        self.sync()?;
        self.file.sync_all()?;
        Ok(self.file)
    }
}

impl Write for Paced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        failpoint!("snapshot.block", io);
        let written = self.file.write(bytes)?;
        self.written += written as u64;
        if self.written - self.synced >= SYNC_BYTES {
            self.sync()?;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
