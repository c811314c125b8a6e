//! Deletes what the log has no more: what was purged, a little at a time, and what was cut off, before anything else is
//! written. Owns the pace. Nothing waits for a purge: it is done again if it is lost.

use std::io;
use std::sync::atomic::Ordering::Relaxed;

use super::{Writer, checkpoint, lock, sled_error};
use crate::failpoint;

/// Values deleted at once after a purge, at least: about a leaf of sled's, which is written again for it. Measured with
/// values of 64 KiB: a hundred took 8 ms, and a commit that came meanwhile waited for them.
const PURGE_VALUES: usize = 16;
/// Under load one such piece is deleted after this many commits, and twice as many values as these commits wrote: so
/// what is to be deleted gets less. Otherwise a piece is deleted whenever the queue is empty.
pub(super) const COMMITS_PER_PURGE: u32 = 4;

impl Writer {
    pub(super) fn purge_when_idle(&mut self) -> io::Result<()> {
        self.purge_some(PURGE_VALUES)
    }

    pub(super) fn purge_under_load(&mut self) -> io::Result<()> {
        if self.commits_since_purge < COMMITS_PER_PURGE {
            return Ok(());
        }
        // All of it, however many rounds that takes: else more would be written than is deleted.
        let mut left = PURGE_VALUES.max(2 * self.pending.values_written());
        while left > 0 {
            let round = left.min(self.parts.deletions_max);
            self.purge_some(round)?;
            left = if self.disk.backlog { left - round } else { 0 };
        }
        Ok(())
    }

    /// Deletes a few purged entries. Not synced here: it goes along with what is synced next.
    fn purge_some(&mut self, values_max: usize) -> io::Result<()> {
        self.commits_since_purge = 0;
        self.pending.count_again();
        if !self.disk.backlog {
            return Ok(());
        }
        self.checkpoints.wait(self.deleted_at)?;
        let (oldest, more) = {
            let _turn = lock(&self.shared.disk);
            let (from, end) = (self.disk.oldest, self.disk.bounds.first);
            let count = values_max.min(self.parts.deletions_max);
            self.pending.remove(&self.disk.db, from, end, count).map_err(sled_error)?
        };
        failpoint!("log.purge-values", io);
        self.shared.metrics.values_purged.fetch_add(self.pending.removals() as u64, Relaxed);
        if !self.pending.is_empty() {
            let (write, _) = self.take();
            self.apply(write)?;
            self.checkpoints.ask(self.disk.sequence);
            self.deleted_at = self.disk.sequence;
        }
        (self.disk.oldest, self.disk.backlog) = (oldest, more);
        Ok(())
    }

    /// Deletes what lies behind the last entry, durably: what takes its place must not be mixed with it.
    pub(super) fn delete_beyond(&mut self) -> io::Result<()> {
        loop {
            let any = {
                let _turn = lock(&self.shared.disk);
                let next = self.disk.bounds.next();
                self.pending.remove_beyond(&self.disk.db, next, self.parts.deletions_max).map_err(sled_error)?
            };
            if !any {
                return Ok(());
            }
            self.checkpoints.wait(self.deleted_at)?;
            failpoint!("log.delete-beyond", io);
            let (write, _) = self.take();
            self.apply(write)?;
            checkpoint::sync(&self.disk.db, &self.disk.db_file)?;
            self.checkpoints.done(self.disk.sequence);
        }
    }
}
