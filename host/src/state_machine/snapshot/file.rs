//! A snapshot's file while it is written and when it is deleted: durable before it gets its name, and gentle both times to
//! the disk that the log writes to. Never knows what is in it. Next: `folder.rs`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::read::ReadError;
use super::room::Room;
use crate::failpoint;

/// What a file is called, behind its name, until it is whole.
pub(super) const BUILDING: &str = ".building";
/// A file being written is synced after so many bytes: the log's own syncs wait for as much of this.
const SYNC_BYTES: u64 = 1 << 20;
/// A deleted file is given back to the disk in pieces of so many bytes: the log's own syncs wait for as much of that. A
/// file system that tells its disk what is free (`discard`) needs tens of milliseconds for some hundred megabytes.
const FREE_BYTES: u64 = 4 << 20;
/// How often it is looked whether somebody still reads a deleted file.
const LOOK: Duration = Duration::from_secs(1);
const LOOKS: u32 = 60;

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

/// A file that is synced every [`SYNC_BYTES`] and doesn't stay in the page cache: nobody reads it soon.
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

/// A file without a name. What it takes is given back when nobody has it open any more, all at once, or before that by
/// [`Unlinked::free_when_alone`]. None: it could not be opened.
pub(super) struct Unlinked(Option<File>);

impl Unlinked {
    /// Takes a file's name away.
    pub(super) fn new(path: &Path) -> io::Result<Unlinked> {
        let file = OpenOptions::new().read(true).write(true).open(path).ok();
        fs::remove_file(path)?;
        Ok(Unlinked(file))
    }

    /// Gives back piece by piece what the file takes, as soon as nobody else reads it; all at once if somebody does so for
    /// a minute. To be called after the folder was synced, so that no power cut brings the name back. Blocks.
    pub(super) fn free_when_alone(self) {
        for _ in 0..LOOKS {
            // First of all: whoever had found the name before it was taken away has opened the file then.
            std::thread::sleep(LOOK);
            match self.free() {
                Ok(0) => {}
                Ok(_) => return,
                Err(e) => return tracing::warn!("a deleted snapshot gives its room back all at once: {e}"),
            }
        }
    }

    /// Returns how many bytes were given back: none if anybody else still has the file, by another name or open, here or in
    /// another process, or if that can't be known.
    fn free(&self) -> io::Result<u64> {
        let Unlinked(Some(file)) = self else { return Ok(0) };
        let found = file.metadata()?;
        if found.nlink() > 0 || !is_open_once(file) {
            return Ok(0);
        }
        let mut left = found.len();
        while left > 0 {
            left = left.saturating_sub(FREE_BYTES);
            file.set_len(left)?;
            file.sync_data()?;
        }
        Ok(found.len())
    }
}

/// Whether nobody but the caller has the file open: the kernel grants a lease for writing only then. False where it doesn't
/// know, because others reach the files by another way: networks, layers, user space.
fn is_open_once(file: &File) -> bool {
    /// As fcntl(2) has it; the crate doesn't.
    const F_SETSIG: libc::c_int = 10;
    if !has_leases(file) {
        return false;
    }
    let fd = file.as_raw_fd();
    // SAFETY: calls of the kernel on a descriptor that is open; they take no pointers.
    unsafe {
        // Whoever opens the file while the lease is held makes a signal, which would end this process. This one doesn't.
        if libc::fcntl(fd, F_SETSIG, libc::SIGURG) != 0 || libc::fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK) != 0 {
            return false;
        }
        libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK);
    }
    true
}

/// Whether it is on a file system of this machine's own.
fn has_leases(file: &File) -> bool {
    const OWN: [libc::c_long; 5] = [
        libc::EXT4_SUPER_MAGIC,
        libc::XFS_SUPER_MAGIC,
        libc::BTRFS_SUPER_MAGIC,
        libc::F2FS_SUPER_MAGIC,
        libc::TMPFS_MAGIC,
    ];
    rustix::fs::fstatfs(file).is_ok_and(|found| OWN.contains(&found.f_type))
}

pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Instant;

    use super::*;

    const BYTES: usize = 2 * FREE_BYTES as usize + 1;

    fn made(dir: &Path) -> PathBuf {
        let path = dir.join("old");
        fs::write(&path, vec![7; BYTES]).unwrap();
        path
    }

    fn assert_whole(mut file: &File) {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, vec![7; BYTES]);
    }

    /// Another test's child has this process's files until its exec.
    fn assert_freed(unlinked: &Unlinked) {
        let begun = Instant::now();
        while unlinked.free().unwrap() != BYTES as u64 {
            assert!(begun.elapsed() < Duration::from_secs(10), "somebody has the file");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_deleted_file_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = made(dir.path());
        let unlinked = Unlinked::new(&path).unwrap();
        assert!(!path.exists());
        if !has_leases(unlinked.0.as_ref().unwrap()) {
            return println!("not tested: the file system of {} has no leases", path.display());
        }
        assert_freed(&unlinked);
        assert_eq!(unlinked.0.unwrap().metadata().unwrap().len(), 0);
    }

    #[test]
    fn one_that_somebody_reads_or_writes_stays_whole() {
        let dir = tempfile::tempdir().unwrap();
        for writes in [false, true] {
            let path = made(dir.path());
            let reader = OpenOptions::new().read(true).write(writes).open(&path).unwrap();
            let unlinked = Unlinked::new(&path).unwrap();
            assert_eq!(unlinked.free().unwrap(), 0);
            assert_whole(&reader);
            drop(reader);
            if has_leases(unlinked.0.as_ref().unwrap()) {
                assert_freed(&unlinked);
            }
        }
    }

    /// `cp -l` is a way to keep one.
    #[test]
    fn one_with_another_name_stays_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = made(dir.path());
        let other = dir.path().join("kept");
        fs::hard_link(&path, &other).unwrap();
        assert_eq!(Unlinked::new(&path).unwrap().free().unwrap(), 0);
        assert_whole(&File::open(&other).unwrap());
    }
}
