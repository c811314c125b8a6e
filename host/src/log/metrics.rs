//! Counters of the log. Owns no export and no histogram: `node.rs` reads the counters, or is told of each commit.
//! Next: `store.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One commit of the writer: one write, one fdatasync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Entries made durable by it. Zero if it was for a vote, a truncation or a purge only.
    pub entries: u64,
    /// Bytes of these entries' records.
    pub bytes: u64,
    /// Microseconds to encode the commit and to put it into sled's memory.
    pub apply_us: u64,
    /// Microseconds until it was durable, the write included.
    pub fsync_us: u64,
}

/// Told of each commit, on the writer's thread: it must be quick and must not panic.
pub type CommitObserver = Arc<dyn Fn(&Commit) + Send + Sync>;

/// Counters since the log was opened, except where it says something else.
#[derive(Debug, Default)]
pub struct LogMetrics {
    pub fsyncs: AtomicU64,
    pub fsync_us: AtomicU64,
    pub fsync_us_last: AtomicU64,
    pub apply_us: AtomicU64,
    pub entries: AtomicU64,
    pub bytes: AtomicU64,
    /// Commits, and deletions after a purge, that were one value of sled's and needed no Batch.
    pub single_writes: AtomicU64,
    /// Of the last commit that had entries.
    pub entries_per_fsync_last: AtomicU64,
    /// Entries read again from sled because the tail no longer had them.
    pub entries_read_from_disk: AtomicU64,
    /// Values of purged entries that were deleted.
    pub values_purged: AtomicU64,
    /// Bytes of the entries' records that the log had when it was opened.
    pub bytes_at_open: AtomicU64,
    /// Bytes of entries in memory now.
    pub tail_bytes: AtomicU64,
    /// What [`LogMetrics::total`] said at the newest snapshot. Whoever makes snapshots sets it.
    pub(crate) total_at_snapshot: AtomicU64,
}

impl LogMetrics {
    /// Bytes of the entries' records that ever were in the log, as far as is known since it was opened.
    pub fn total(&self) -> u64 {
        self.bytes_at_open.load(Relaxed) + self.bytes.load(Relaxed)
    }

    /// Bytes that the log has grown by since the newest snapshot.
    pub fn grown(&self) -> u64 {
        self.total().saturating_sub(self.total_at_snapshot.load(Relaxed))
    }

    pub(super) fn committed(&self, commit: &Commit, tail_bytes: usize) {
        self.fsyncs.fetch_add(1, Relaxed);
        self.fsync_us.fetch_add(commit.fsync_us, Relaxed);
        self.fsync_us_last.store(commit.fsync_us, Relaxed);
        self.apply_us.fetch_add(commit.apply_us, Relaxed);
        self.entries.fetch_add(commit.entries, Relaxed);
        self.bytes.fetch_add(commit.bytes, Relaxed);
        if commit.entries > 0 {
            self.entries_per_fsync_last.store(commit.entries, Relaxed);
        }
        self.tail_bytes.store(tail_bytes as u64, Relaxed);
    }
}
