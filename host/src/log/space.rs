//! How much room this node's disk has. Owns the decision when it is low, before anything fails for want of it: an append
//! that fails is the end of a node. Never writes and never refuses anybody: `raft/` and `node.rs` do, who watch this.
//!
//! The mark is a reserve. What is small and must go on (votes, the log's own stamps) is written below it too.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::LogMetrics;
use crate::config::DiskConfig;

/// Between two looks. At 200 MB/s some 50 MB are written meanwhile: the default reserve is five times that.
const LOOK: Duration = Duration::from_millis(250);
/// Between two looks near a limit: a fast disk writes tens of megabytes in [`LOOK`], and the reserve may be as small.
const LOOK_NEAR: Duration = Duration::from_millis(20);
/// A node that was low goes on when there is this part of the limit more room, so that it doesn't flutter.
const MARGIN: u64 = 16;

/// What was seen, a quarter of a second ago at most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpaceState {
    /// Bytes of the file system that are free for this process.
    pub free_bytes: u64,
    /// Bytes on the disk of all files in the node's folder.
    pub used_bytes: u64,
    /// Set: commands and entries must be refused.
    pub shortage: Option<Shortage>,
}

impl SpaceState {
    /// The shortage, if no end of it is expected soon: another node should lead then. That a snapshot is waited for isn't
    /// one.
    pub fn lasting(&self) -> Option<Shortage> {
        self.shortage.filter(|why| !matches!(why, Shortage::Growth { .. }))
    }
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    Disk {
        free_bytes: u64,
        min_bytes: u64,
    },
    Quota {
        used_bytes: u64,
        quota_bytes: u64,
    },
    /// The log has grown so much that a snapshot is needed first, so that its older part can go.
    Growth {
        grown_bytes: u64,
        max_bytes: u64,
    },
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shortage::Disk { free_bytes, min_bytes } => {
                write!(f, "{free_bytes} bytes are free, {min_bytes} are kept in reserve (--disk-free-min)")
            }
            Shortage::Quota { used_bytes, quota_bytes } => {
                write!(f, "its files take {used_bytes} bytes, {quota_bytes} are allowed (--disk-quota)")
            }
            Shortage::Growth { grown_bytes, max_bytes } => write!(
                f,
                "the log has grown by {grown_bytes} bytes since the last snapshot, {max_bytes} are allowed by the quota \
                 (--disk-quota); it goes on when the next snapshot is made"
            ),
        }
    }
}

/// A look at the disk that is taken again and again, for as long as somebody holds this. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Space {
    state: watch::Receiver<SpaceState>,
    limits: Arc<DiskConfig>,
    log: Arc<LogMetrics>,
}

impl Space {
    /// Takes the first look, and the others in the background. Needs a runtime.
    pub fn start(dir: &Path, limits: DiskConfig, log: Arc<LogMetrics>) -> io::Result<Space> {
        let (told, state) = watch::channel(look(dir, &limits, false)?);
        if let Some(why) = state.borrow().shortage {
            tracing::warn!("the disk is nearly full: {why}; commands are refused until there is room");
        }
        let limits = Arc::new(limits);
        tokio::spawn(watch_disk(dir.to_owned(), limits.clone(), told));
        Ok(Space { state, limits, log })
    }

    pub fn state(&self) -> SpaceState {
        let mut state = *self.state.borrow();
        state.shortage = state.shortage.or_else(|| self.growth());
        state
    }

    /// Not by a look: a fast disk takes a small quota's part between two of them.
    fn growth(&self) -> Option<Shortage> {
        let (grown_bytes, max_bytes) = (self.log.grown(), self.limits.growth_max()?);
        (grown_bytes >= max_bytes).then_some(Shortage::Growth { grown_bytes, max_bytes })
    }

    pub fn is_low(&self) -> bool {
        self.state().shortage.is_some()
    }

    /// Whether a file of so many bytes, which nothing acknowledged waits for, may be written. Half of the reserve stays
    /// for the log. A quota is allowed to be exceeded by it, for as long as it takes to write: older files go for it.
    ///
    /// # Errors
    /// The text says why not. It is the same each time, as long as the reason is.
    pub fn check_room(&self, bytes: u64) -> Result<(), String> {
        let SpaceState { free_bytes, shortage, .. } = self.state();
        match shortage {
            Some(Shortage::Disk { .. }) => return Err("the disk is nearly full (--disk-free-min)".into()),
            Some(Shortage::Quota { .. }) => return Err("its files take what is allowed (--disk-quota)".into()),
            None | Some(Shortage::Growth { .. }) => {}
        }
        if free_bytes < bytes.saturating_add(self.limits.free_min_bytes / 2) {
            return Err(format!("{bytes} bytes would not leave enough of the disk free (--disk-free-min)"));
        }
        Ok(())
    }

    /// Waits until there is room.
    pub async fn enough(&self) {
        loop {
            self.until(|state| state.shortage.is_none()).await;
            if !self.is_low() {
                return;
            }
            tokio::time::sleep(LOOK_NEAR).await;
        }
    }

    /// Waits until there is none, and none is expected soon.
    pub async fn lack(&self) {
        self.until(|state| state.shortage.is_some()).await
    }

    async fn until(&self, mut condition: impl FnMut(&SpaceState) -> bool) {
        let mut state = self.state.clone();
        if state.wait_for(|s| condition(s)).await.is_err() {
            std::future::pending().await
        }
    }
}

async fn watch_disk(dir: PathBuf, limits: Arc<DiskConfig>, told: watch::Sender<SpaceState>) {
    let mut failed = false;
    loop {
        tokio::select! {
            () = tokio::time::sleep(if is_near(&told.borrow(), &limits) { LOOK_NEAR } else { LOOK }) => {}
            () = told.closed() => return,
        }
        let before = *told.borrow();
        let (dir, limits, was_low) = (dir.clone(), limits.clone(), before.shortage.is_some());
        // A disk that hangs must not hang the runtime.
        let looked = tokio::task::spawn_blocking(move || look(&dir, &limits, was_low)).await;
        let state = match looked.map_err(io::Error::other).and_then(|looked| looked) {
            Ok(state) => state,
            Err(e) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!("can't see how much room the disk has: {e}");
                }
                continue;
            }
        };
        failed = false;
        match (before.shortage, state.shortage) {
            (None, Some(why)) => {
                tracing::warn!("the disk is nearly full: {why}; commands are refused until there is room");
            }
            (Some(_), None) => tracing::info!("the disk has room again ({} bytes free)", state.free_bytes),
            _ => {}
        }
        told.send_replace(state);
    }
}

/// Whether the room could be used up between two looks that are far apart.
fn is_near(state: &SpaceState, limits: &DiskConfig) -> bool {
    let disk = state.free_bytes < limits.free_min_bytes.saturating_mul(4);
    let quota = limits.quota_bytes > 0 && state.used_bytes >= limits.quota_bytes / 2;
    disk || quota
}

fn look(dir: &Path, limits: &DiskConfig, was_low: bool) -> io::Result<SpaceState> {
    let disk = rustix::fs::statvfs(dir)?;
    let free_bytes = disk.f_bavail.saturating_mul(disk.f_frsize);
    let used_bytes = used(dir)?;
    Ok(SpaceState { free_bytes, used_bytes, shortage: judge(free_bytes, used_bytes, limits, was_low) })
}

/// Whether there is too little room, with a margin for one who had too little.
fn judge(free_bytes: u64, used_bytes: u64, limits: &DiskConfig, was_low: bool) -> Option<Shortage> {
    let margin = |limit: u64| if was_low { limit / MARGIN } else { 0 };
    let min_bytes = limits.free_min_bytes;
    if free_bytes < min_bytes.saturating_add(margin(min_bytes)) {
        return Some(Shortage::Disk { free_bytes, min_bytes });
    }
    let quota_bytes = limits.quota_bytes;
    if quota_bytes > 0 && used_bytes >= quota_bytes - margin(quota_bytes) {
        return Some(Shortage::Quota { used_bytes, quota_bytes });
    }
    None
}

/// Bytes that the files in a folder take on the disk. What goes away meanwhile counts nothing.
fn used(dir: &Path) -> io::Result<u64> {
    /// Of `st_blocks`, whatever the file system's own blocks are (stat(3type)).
    const BLOCK_BYTES: u64 = 512;
    let mut bytes = 0;
    for file in fs::read_dir(dir)? {
        let meta = file.and_then(|file| Ok((file.metadata()?, file.path())));
        bytes += match meta {
            Ok((meta, path)) if meta.is_dir() => used(&path).unwrap_or(0),
            Ok((meta, _)) => meta.blocks() * BLOCK_BYTES,
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(e),
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn low_begins_at_the_limit_and_ends_beyond_it() {
        let limits = DiskConfig { free_min_bytes: 1600, quota_bytes: 3200 };
        let low = |free, used, was_low| judge(free, used, &limits, was_low).is_some();
        assert!(!low(1600, 3199, false));
        assert!(low(1599, 0, false) && low(1699, 0, true) && !low(1700, 0, true));
        assert!(low(9999, 3200, false) && low(9999, 3000, true) && !low(9999, 2999, true));
        let unlimited = DiskConfig { free_min_bytes: 0, quota_bytes: 0 };
        assert_eq!(judge(0, u64::MAX, &unlimited, true), None);
    }

    #[tokio::test]
    async fn a_folder_over_its_quota_is_low_until_files_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("deep")).unwrap();
        let limits = DiskConfig { free_min_bytes: 0, quota_bytes: 1 << 20 };
        let space = Space::start(dir.path(), limits, Arc::default()).unwrap();
        assert!(!space.is_low());
        fs::write(dir.path().join("deep/ballast"), vec![1; 1 << 20]).unwrap();
        space.lack().await;
        let state = space.state();
        assert!(matches!(state.shortage, Some(Shortage::Quota { .. })) && state.used_bytes >= 1 << 20, "{state:?}");
        assert!(space.check_room(1).unwrap_err().contains("--disk-quota"));
        fs::remove_file(dir.path().join("deep/ballast")).unwrap();
        space.enough().await;
        assert_eq!(space.state().shortage, None);
    }

    #[tokio::test]
    async fn a_log_that_outgrows_its_part_of_the_quota_waits_for_a_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let limits = DiskConfig { free_min_bytes: 0, quota_bytes: 800 << 20 };
        let log = Arc::new(LogMetrics::default());
        let space = Space::start(dir.path(), limits, log.clone()).unwrap();
        log.bytes.store(100 << 20, Relaxed);
        let state = space.state();
        assert!(matches!(state.shortage, Some(Shortage::Growth { .. })) && state.lasting().is_none(), "{state:?}");
        assert_eq!(space.check_room(1 << 20), Ok(()), "the snapshot is what it waits for");
        log.total_at_snapshot.store(1, Relaxed);
        space.enough().await;
    }

    #[tokio::test]
    async fn a_large_file_must_leave_half_of_the_reserve() {
        let dir = tempfile::tempdir().unwrap();
        let unlimited = DiskConfig { free_min_bytes: 0, quota_bytes: 0 };
        let free = look(dir.path(), &unlimited, false).unwrap().free_bytes;
        // Others write to the same disk meanwhile.
        let min = free / 2;
        let start = |free_min_bytes| {
            Space::start(dir.path(), DiskConfig { free_min_bytes, quota_bytes: 0 }, Arc::default()).unwrap()
        };
        let space = start(min);
        assert_eq!(space.check_room(min / 2), Ok(()));
        assert!(space.check_room(free - min / 4).unwrap_err().contains("--disk-free-min"));
        let full = start(u64::MAX);
        assert!(full.check_room(0).unwrap_err().contains("nearly full"));
    }
}
