//! The folder `snapshots/` of a node: which snapshots are kept, how one gets in, and what is done with a damaged one. A
//! file gets its name only when it is whole and durable. Never decides when one is made: that is `raft/compaction.rs`.
//!
//! ```text
//! {term:016x}-{index:016x}-{id:08x}.snapshot   whole; the two newest are kept
//! NAME.building                                 being written; deleted at the next start
//! NAME.partial                                  being fetched; at most one, kept for the next attempt
//! damaged-NAME                                  set aside, for people to look at
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::file::{BUILDING, Unlinked, sync_folder, write_unnamed};
use super::load::{Loaded, Loading};
use super::read::ReadError;
use super::room::{HasRoom, Room};
use super::write::write_state;
use super::{Header, SnapshotError, Summary, file_name, open, walk};
use crate::failpoint;
use crate::raft::types::SnapshotFile;
use crate::state_machine::Published;

const FOLDER: &str = "snapshots";
const WHOLE: &str = ".snapshot";
const PARTIAL: &str = ".partial";
const DAMAGED: &str = "damaged-";
/// How many are kept. The log is purged only up to the oldest of them, so that any of them and the log make the state.
const KEPT: usize = 2;
/// What a thread that writes a snapshot adds to its niceness.
const NICENESS: i32 = 10;

/// The folder. The two newest snapshots are kept.
#[derive(Debug)]
pub struct Snapshots {
    dir: PathBuf,
    /// Newest first.
    kept: Mutex<Vec<SnapshotFile>>,
    /// Held while a snapshot is written: one at a time.
    building: Mutex<()>,
    /// Set aside since the folder was opened: names and reasons.
    damaged: Mutex<Vec<(String, String)>>,
    room: Arc<Room>,
}

/// A snapshot that is being fetched: `NAME.partial`. It survives a restart, so that the fetch can go on.
#[derive(Debug)]
pub struct Incoming {
    /// The name of the finished file.
    pub name: String,
    pub path: PathBuf,
    /// Open for reading and writing. What comes next belongs at `have`.
    pub file: File,
    /// Bytes that were there when it was opened.
    pub have: u64,
}

/// The log was purged further than any usable snapshot reaches: the state can't be rebuilt from this folder.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Gap {
    /// Entries up to here are not in the log any more.
    pub purged: u64,
    /// The newest usable snapshot ends here.
    pub snapshot: Option<u64>,
    text: String,
}

impl Snapshots {
    /// Opens the folder, or makes it. Verifies what is there; damaged files are set aside as `damaged-NAME`, with a
    /// warning, and leftovers of unfinished writes are deleted. Blocks: about a second for a gigabyte.
    ///
    /// # Errors
    /// The folder or a file can't be read or renamed, or a file is of a newer format. Damage is no error.
    pub fn open(node_dir: &Path) -> Result<Arc<Snapshots>, SnapshotError> {
        let dir = node_dir.join(FOLDER);
        let io = |error| SnapshotError::Io { path: dir.clone(), error };
        if !dir.exists() {
            fs::create_dir(&dir).and_then(|()| sync_folder(node_dir)).map_err(io)?;
        }
        let mut names = Vec::new();
        for file in fs::read_dir(&dir).map_err(io)? {
            let name = file.map_err(io)?.file_name().to_string_lossy().into_owned();
            if name.ends_with(BUILDING) {
                fs::remove_file(dir.join(&name)).map_err(io)?;
            } else if is_name(&name) {
                names.push(name);
            }
        }
        let snapshots = Snapshots {
            dir: dir.clone(),
            kept: Mutex::default(),
            building: Mutex::default(),
            damaged: Mutex::default(),
            room: Arc::default(),
        };
        // Term and index come first in a name, both of fixed length.
        names.sort_unstable_by(|a, b| b.cmp(a));
        for name in names {
            let path = dir.join(&name);
            if lock(&snapshots.kept).len() == KEPT {
                fs::remove_file(&path).map_err(io)?;
                continue;
            }
            match snapshots.check(&path, &name) {
                Ok(file) => lock(&snapshots.kept).push(file),
                Err(SnapshotError::Damaged { why, .. }) => snapshots.rename_damaged(&name, &why).map_err(io)?,
                Err(e) => return Err(e),
            }
        }
        Ok(Arc::new(snapshots))
    }

    /// From here on `has_room` is asked before a snapshot is written. To be called once.
    pub fn ask_for_room(&self, has_room: HasRoom) {
        self.room.ask(has_room);
    }

    /// # Errors
    /// `StorageFull`: so many bytes more should not be written now; the text says why.
    pub fn check_room(&self, bytes: u64) -> io::Result<()> {
        self.room.check(bytes)
    }

    /// Newest first, at most two, all verified.
    pub fn kept(&self) -> Vec<SnapshotFile> {
        lock(&self.kept).clone()
    }

    /// Whether something is left out between the snapshots and the log, which was purged up to this index. To be called
    /// before Raft starts: it would begin with an empty state.
    pub fn gap(&self, purged: Option<u64>) -> Option<Gap> {
        let purged = purged?;
        let snapshot = lock(&self.kept).first().and_then(index);
        if snapshot.is_some_and(|index| index >= purged) {
            return None;
        }
        let dir = self.dir.display();
        let has = match snapshot {
            Some(index) => format!("the newest usable snapshot in {dir} ends at entry {index}"),
            None => format!("there is no usable snapshot in {dir}"),
        };
        let damaged: Vec<String> = lock(&self.damaged)
            .iter()
            .map(|(name, why)| format!("{} is damaged: {why}", self.dir.join(format!("{DAMAGED}{name}")).display()))
            .collect();
        let damaged = if damaged.is_empty() { String::new() } else { format!(" ({})", damaged.join("; ")) };
        let text = format!(
            "the log begins after entry {purged}, but {has}{damaged}; this node can't rebuild its state from what it \
             has: restore the snapshot's file, or let the node fetch one from a peer"
        );
        Some(Gap { purged, snapshot, text })
    }

    /// Writes a snapshot of this state, durably. Blocks; one at a time. Returns the newest kept one if that is of the
    /// same entry already.
    ///
    /// # Errors
    /// The file can't be written, or there is no room for it; nothing of it is left. Nothing was ever applied to the
    /// state.
    pub fn build(&self, state: &Published) -> Result<SnapshotFile, SnapshotError> {
        self.build_unless(state, None)
    }

    /// `damaged` doesn't count as kept.
    fn build_unless(&self, state: &Published, damaged: Option<&Path>) -> Result<SnapshotFile, SnapshotError> {
        let _one_at_a_time = lock(&self.building);
        let Some(header) = Header::of(state) else {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "an empty state has no snapshot");
            return Err(SnapshotError::Io { path: self.dir.clone(), error });
        };
        if let Some(same) = lock(&self.kept)
            .iter()
            .find(|kept| kept.meta.last_log_id == Some(header.last) && Some(kept.path.as_path()) != damaged)
        {
            return Ok(same.clone());
        }
        let name = file_name(header.last, header.id);
        let building = self.dir.join(format!("{name}{BUILDING}"));
        let meta = header.meta();
        let io = |error| SnapshotError::Io { path: building.clone(), error };
        self.check_room(self.expected_bytes(state)).map_err(io)?;
        let result = write_unnamed(&building, Some(self.room.clone()), |out| {
            write_state(out, header, state).map_err(ReadError::Io)
        });
        let (file, summary) = result.map_err(|e| e.at(&building))?;
        let path = self.name_durably(&building, &name).map_err(io)?;
        let file = SnapshotFile { meta, path, file: Arc::new(file), bytes: summary.file_bytes };
        self.keep(file)
    }

    /// What the file of this state will take at most, nearly always: the next one is due when the log has grown by as much
    /// as the last one has. Not so after the first one, which may have come early.
    fn expected_bytes(&self, state: &Published) -> u64 {
        let module = state.active.as_ref().map_or(0, |active| active.module.len() as u64);
        let plain = state.map.bytes() + state.sessions.bytes() + module;
        match lock(&self.kept).as_slice() {
            [last, _, ..] => plain.min(2 * last.bytes),
            _ => plain,
        }
    }

    /// [`Snapshots::build`] on a thread of its own, with low priority. The state is dropped there too: that may free much.
    pub async fn build_apart(self: &Arc<Self>, state: Arc<Published>) -> Result<SnapshotFile, SnapshotError> {
        self.build_on_thread(state, None).await
    }

    /// The same for a state whose kept snapshot was found damaged: a new one is written even of the same entry.
    pub async fn build_in_place_of(
        self: &Arc<Self>,
        state: Arc<Published>,
        damaged: &SnapshotFile,
    ) -> Result<SnapshotFile, SnapshotError> {
        self.build_on_thread(state, Some(damaged.path.clone())).await
    }

    async fn build_on_thread(
        self: &Arc<Self>,
        state: Arc<Published>,
        damaged: Option<PathBuf>,
    ) -> Result<SnapshotFile, SnapshotError> {
        let (tx, rx) = oneshot::channel();
        let snapshots = self.clone();
        let build = move || {
            // Only this thread's, on Linux. It may be refused; then the snapshot is only less polite.
            let _ = rustix::process::nice(NICENESS);
            let _ = tx.send(snapshots.build_unless(&state, damaged.as_deref()));
        };
        let io = |error| SnapshotError::Io { path: self.dir.clone(), error };
        std::thread::Builder::new().name("snapshot".into()).spawn(build).map_err(io)?;
        rx.await.unwrap_or_else(|_| Err(io(io::Error::other("the thread that wrote it panicked"))))
    }

    /// Gives the disk back what an unfinished fetch has taken.
    pub fn discard_incoming(&self, name: &str) -> io::Result<()> {
        if !is_name(name) {
            return Ok(());
        }
        match fs::remove_file(self.dir.join(format!("{name}{PARTIAL}"))) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Makes or opens the partial file of the snapshot that is called `name` at its source ([`file_name`]). Partial files
    /// of others are deleted.
    ///
    /// # Errors
    /// `InvalidInput` if this is no snapshot's name.
    pub fn incoming(&self, name: &str) -> io::Result<Incoming> {
        if !is_name(name) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no snapshot's name")));
        }
        let partial = format!("{name}{PARTIAL}");
        for file in fs::read_dir(&self.dir)? {
            let file = file?;
            let other = file.file_name().to_string_lossy().into_owned();
            if other.ends_with(PARTIAL) && other != partial {
                fs::remove_file(file.path())?;
            }
        }
        let path = self.dir.join(partial);
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
        let have = file.metadata()?.len();
        Ok(Incoming { name: name.into(), path, file, have })
    }

    /// Takes a fetched snapshot in: verifies all of it, makes it durable, and deletes what is older than the two newest.
    /// One with the same last entry as a kept one takes its place. Blocks.
    ///
    /// # Errors
    /// `Damaged`: the partial file was deleted, so that the next fetch begins anew. `Obsolete`: two newer ones are kept.
    pub fn adopt(&self, incoming: Incoming) -> Result<SnapshotFile, SnapshotError> {
        let Incoming { name, path: partial, file, .. } = incoming;
        let io = |error| SnapshotError::Io { path: partial.clone(), error };
        adopting().map_err(io)?;
        let checked = check_file(&file, &partial, &name);
        if let Err(SnapshotError::Damaged { .. }) = &checked {
            fs::remove_file(&partial).map_err(io)?;
        }
        let summary = checked?;
        file.sync_all().map_err(io)?;
        let path = self.name_durably(&partial, &name).map_err(io)?;
        let meta = summary.header.meta();
        self.keep(SnapshotFile { meta, path, file: Arc::new(file), bytes: summary.file_bytes })
    }

    /// Renames a kept snapshot to `damaged-NAME`: it isn't used any more.
    pub fn set_aside(&self, file: &SnapshotFile, why: &str) -> io::Result<()> {
        let Some(name) = file.path.file_name().map(|name| name.to_string_lossy().into_owned()) else { return Ok(()) };
        lock(&self.kept).retain(|kept| kept.path != file.path);
        self.rename_damaged(&name, why)
    }

    /// A snapshot's content, checked again while it is read. Blocks.
    pub fn load(&self, file: &SnapshotFile) -> Result<Loaded, SnapshotError> {
        let mut loading = Loading::default();
        let summary = walk(&file.file, &file.path, &mut loading)?;
        Ok(loading.finish(summary))
    }

    fn check(&self, path: &Path, name: &str) -> Result<SnapshotFile, SnapshotError> {
        let file = open(path)?;
        let summary = check_file(&file, path, name)?;
        let meta = summary.header.meta();
        Ok(SnapshotFile { meta, path: path.into(), file: Arc::new(file), bytes: summary.file_bytes })
    }

    /// The file is whole and durable under its own name when this returns.
    fn name_durably(&self, unnamed: &Path, name: &str) -> io::Result<PathBuf> {
        failpoint!("snapshot.before-rename");
        let path = self.dir.join(name);
        fs::rename(unnamed, &path)?;
        failpoint!("snapshot.after-rename");
        sync_folder(&self.dir)?;
        Ok(path)
    }

    /// Adds a durable file and deletes those that it makes superfluous.
    fn keep(&self, file: SnapshotFile) -> Result<SnapshotFile, SnapshotError> {
        failpoint!("snapshot.before-delete");
        let mut kept = lock(&self.kept);
        let at = kept.partition_point(|other| other.meta.last_log_id > file.meta.last_log_id);
        kept.insert(at, file.clone());
        let most = kept.len().min(KEPT);
        let mut superfluous = kept.split_off(most);
        // Two of the same entry are one: the second could not stand in for the first.
        if let [first, second] = kept.as_slice()
            && first.meta.last_log_id == second.meta.last_log_id
        {
            let replaced = kept.remove(1);
            let older = (!superfluous.is_empty()).then(|| superfluous.remove(0));
            kept.extend(older);
            superfluous.push(replaced);
        }
        let obsolete = superfluous.iter().any(|other| other.path == file.path);
        drop(kept);
        self.delete(superfluous);
        if obsolete { Err(SnapshotError::Obsolete { path: file.path }) } else { Ok(file) }
    }

    /// Whoever reads one of them has it open. What can't be deleted now, the next start deletes. What they take is given
    /// back at once if the disk has little room, and otherwise gently, by and by.
    fn delete(&self, superfluous: Vec<SnapshotFile>) {
        let (mut unlinked, mut bytes) = (Vec::new(), 0);
        for other in superfluous {
            match Unlinked::new(&other.path) {
                Ok(gone) => {
                    bytes += other.bytes;
                    unlinked.push(gone);
                }
                Err(e) => tracing::warn!("the old snapshot {} can't be deleted: {e}", other.path.display()),
            }
        }
        if unlinked.is_empty() || self.check_room(bytes).is_err() {
            return;
        }
        if let Err(e) = sync_folder(&self.dir) {
            tracing::warn!("{} can't be synced: {e}", self.dir.display());
            return;
        }
        let free = move || {
            let _ = rustix::process::nice(NICENESS);
            unlinked.into_iter().for_each(Unlinked::free_when_alone);
        };
        if let Err(e) = std::thread::Builder::new().name("snapshot-free".into()).spawn(free) {
            tracing::debug!("a deleted snapshot gives its room back all at once: {e}");
        }
    }

    fn rename_damaged(&self, name: &str, why: &str) -> io::Result<()> {
        let aside = self.dir.join(format!("{DAMAGED}{name}"));
        fs::rename(self.dir.join(name), &aside)?;
        sync_folder(&self.dir)?;
        tracing::warn!("a snapshot is damaged: {why}; it was set aside as {}", aside.display());
        lock(&self.damaged).push((name.into(), why.into()));
        Ok(())
    }
}

/// The index of the last entry in a snapshot.
fn index(file: &SnapshotFile) -> Option<u64> {
    file.meta.last_log_id.map(|last| last.index)
}

fn adopting() -> io::Result<()> {
    failpoint!("snapshot.adopt", io);
    Ok(())
}

fn check_file(file: &File, path: &Path, name: &str) -> Result<Summary, SnapshotError> {
    let summary = walk(file, path, &mut ())?;
    let own = file_name(summary.header.last, summary.header.id);
    if own != name {
        return Err(SnapshotError::Damaged { path: path.into(), why: format!("it is another one, {own}") });
    }
    Ok(summary)
}

/// `{16 hex}-{16 hex}-{8 hex}.snapshot`, and nothing else: names come from peers too.
fn is_name(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(WHOLE) else { return false };
    let is_hex = |part: &str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let parts: Vec<&str> = stem.split('-').collect();
    parts.iter().map(|part| part.len()).eq([16, 16, 8]) && parts.iter().all(|part| is_hex(part))
}

/// A panic while a lock is held leaves nothing half done in what these locks guard.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
