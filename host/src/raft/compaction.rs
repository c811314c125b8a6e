//! When a snapshot is made, and what may be purged from the log then. Owns the policy and the agreement of snapshots and
//! log at the start; never reads or writes a snapshot's file itself: that is `state_machine/snapshot/`.
//!
//! openraft makes no snapshots here: an error of its builder stops the node, and a full disk is no reason to. The file is
//! made beside it, and openraft is told when it is durable.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use openraft::RaftLogReader;
use openraft::storage::RaftLogStorage;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::Raft;
use super::types::{LogId, NodeId, SnapshotFile};
use crate::failpoint;
use crate::log::{LogMetrics, SledLog};
use crate::metrics::Metrics;
use crate::state_machine::snapshot::{SnapshotError, Snapshots};
use crate::state_machine::{Gate, View};

/// How often the log's growth is looked at. At full load it grows by some tens of megabytes meanwhile.
const LOOK: Duration = Duration::from_millis(250);
/// The same where the log may not grow beyond some bytes: writers wait for the snapshot.
const LOOK_BOUND: Duration = Duration::from_millis(20);
/// After a snapshot that could not be written: room may be made meanwhile.
const RETRY: Duration = Duration::from_secs(10);

/// What the policy works with.
pub struct Compaction {
    raft: Raft,
    snapshots: Arc<Snapshots>,
    view: View,
    gate: Arc<Gate>,
    log: Arc<LogMetrics>,
    metrics: Arc<Metrics>,
    growth: Growth,
    /// Of the newest snapshot, as far as this task has seen.
    newest: Option<LogId>,
}

/// When a snapshot is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Growth {
    /// Bytes that the log has grown by since the last one, or more: as many as that one's file has, so that the work for
    /// snapshots stays in proportion to the work for the log.
    pub least: u64,
    /// Bytes that it may grow by whatever the file has.
    pub most: u64,
}

impl Growth {
    /// `last`: the bytes of the last snapshot's file, or which of the cluster's nodes this is, if it has no snapshot yet.
    fn due(&self, last: Result<u64, Turn>) -> u64 {
        match last {
            Ok(file_bytes) => self.least.max(file_bytes).min(self.most),
            Err(Turn { rank, of }) => (u128::from(self.due(Ok(0))) * u128::from(rank) / u128::from(of)) as u64,
        }
    }
}

/// The nodes of a cluster have logs that grow alike, and would all make their snapshots at the same time, when no quorum
/// is left whose disks have nothing else to do. So each makes its first one after another part of the growth, and those
/// that follow are apart as well, as long as nodes don't fetch snapshots instead of making them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    /// From one.
    rank: u64,
    of: u64,
}

impl Turn {
    fn new(node: NodeId, voters: impl Iterator<Item = NodeId>) -> Turn {
        let all: BTreeSet<NodeId> = voters.chain([node]).collect();
        let before = all.range(..node).count();
        Turn { rank: before as u64 + 1, of: all.len() as u64 }
    }
}

impl Compaction {
    pub async fn new(
        raft: Raft,
        log: SledLog,
        snapshots: Arc<Snapshots>,
        view: View,
        gate: Arc<Gate>,
        metrics: Arc<Metrics>,
        growth: Growth,
    ) -> io::Result<Compaction> {
        let state = log.clone().get_log_state().await?;
        let kept = snapshots.kept();
        let newest = kept.first().and_then(|file| file.meta.last_log_id);
        let index = |id: Option<LogId>| id.map_or(0, |id| id.index);
        let (purged, last) = (index(state.last_purged_log_id), index(state.last_log_id));
        let entries = last.saturating_sub(purged);
        let behind = last.saturating_sub(index(newest).max(purged));
        let log = log.metrics();
        // By their number: what each takes isn't known without reading them all again.
        let part = if entries == 0 { 0.0 } else { behind as f64 / entries as f64 };
        let at_open = log.bytes_at_open.load(Relaxed);
        log.total_at_snapshot.store(at_open - (at_open as f64 * part) as u64, Relaxed);
        if let Some(file) = kept.first() {
            metrics.snapshots.bytes.set(file.bytes);
            metrics.snapshots.index.set(index(newest));
        }
        Ok(Compaction { raft, snapshots, view, gate, log, metrics, growth, newest })
    }

    /// Until openraft stops.
    pub async fn run(mut self) {
        // A crash may have come between the last snapshot and its purge.
        self.purge().await;
        let mut looks = interval(if self.growth.most == u64::MAX { LOOK } else { LOOK_BOUND });
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let before = self.newest;
            let is_due = self.is_due();
            if self.newest != before {
                self.purge().await;
            }
            if !is_due {
                continue;
            }
            if let Err(e) = self.build().await {
                tracing::error!(
                    "no snapshot could be made, the log keeps growing: {e}; it is tried again in {RETRY:?}"
                );
                self.metrics.snapshots.failed.inc();
                sleep(RETRY).await;
            }
        }
    }

    fn is_due(&mut self) -> bool {
        let kept = self.snapshots.kept();
        let newest = kept.first().and_then(|file| file.meta.last_log_id);
        if newest != self.newest {
            // Fetched from a peer, which is as good as made.
            self.is_newest(newest, self.log.total());
        }
        let state = self.view.borrow();
        let turn = || Turn::new(*self.raft.node_id(), state.membership.membership().voter_ids());
        let due = self.growth.due(kept.first().map(|file| file.bytes).ok_or_else(turn));
        // A state that may be wrong must not take the place of a right one.
        self.log.grown() >= due && self.gate.may_serve().is_ok() && state.applied > newest
    }

    fn is_newest(&mut self, newest: Option<LogId>, total: u64) {
        self.newest = newest;
        self.log.total_at_snapshot.store(total, Relaxed);
    }

    async fn build(&mut self) -> Result<(), SnapshotError> {
        let (started, total) = (Instant::now(), self.log.total());
        let state = self.view.borrow().clone();
        let file = self.snapshots.build_apart(state).await?;
        let last = file.meta.last_log_id;
        self.is_newest(last, total);
        let (seconds, index) = (started.elapsed().as_secs_f64(), last.map_or(0, |l| l.index));
        let figures = &self.metrics.snapshots;
        figures.built.inc();
        figures.bytes.set(file.bytes);
        figures.seconds.set(seconds);
        figures.index.set(index);
        tracing::info!(index, bytes = file.bytes, seconds, "made the snapshot {}", file.path.display());
        // An error says that openraft has stopped, and the node with it.
        let _ = self.raft.trigger().snapshot().await;
        failpoint!("snapshot.before-purge");
        self.purge().await;
        Ok(())
    }

    /// Followers that need purged entries get a snapshot; openraft doesn't purge what it is sending just now.
    async fn purge(&self) {
        if let Some(upto) = purge_upto(&self.snapshots.kept()) {
            let _ = self.raft.trigger().purge_log(upto).await;
        }
    }
}

/// The last entry that the log need not have, given the snapshots, newest first: that of the older one. If the newest is
/// damaged, that one and the log make the state.
fn purge_upto(kept: &[SnapshotFile]) -> Option<u64> {
    kept.get(1).and_then(|file| file.meta.last_log_id).map(|last| last.index)
}

/// Makes the log agree with the newest snapshot, before Raft starts. They may differ where a crash came between a
/// snapshot's adoption and its installation: entries that it proves to be uncommitted may still be in the log, and
/// openraft refuses to start with them. Installing would have dropped them.
///
/// # Errors
/// The snapshot and the committed part of the log are of two histories; or the log can't be written.
pub async fn reconcile(log: &SledLog, newest: Option<LogId>) -> io::Result<()> {
    let Some(newest) = newest else { return Ok(()) };
    let mut log = log.clone();
    let state = log.get_log_state().await?;
    let (purged, Some(last)) = (state.last_purged_log_id, state.last_log_id) else { return Ok(()) };
    if purged.is_some_and(|purged| newest.index <= purged.index) {
        return Ok(());
    }
    let differs = if last.index >= newest.index {
        let same = log.try_get_log_entries(newest.index..newest.index + 1).await?;
        same.first().is_some_and(|entry| entry.log_id != newest)
    } else {
        // Shorter, but of a later term: a leader that didn't have the snapshot's last entry, so nothing of it was
        // committed.
        last > newest
    };
    if !differs {
        return Ok(());
    }
    let keep = log.read_committed().await?.max(purged);
    if keep.is_some_and(|keep| keep.index >= newest.index) {
        return Err(io::Error::other(format!(
            "the newest snapshot ends with entry {newest}, but the log has another entry there and says that it is \
             committed: they are of two clusters, or one of them is damaged"
        )));
    }
    tracing::warn!("the log's entries behind {keep:?} can't be committed: the snapshot at {newest} replaces them");
    log.truncate_after(keep).await
}

#[cfg(test)]
mod tests {
    use openraft::storage::LogState;

    use super::super::codec::log_id;
    use super::*;
    use crate::log::tests::support::{append, entries, open, read_indices};
    use crate::raft::types::SnapshotMeta;

    struct Case {
        /// Terms and index ranges of what is in the log.
        log: &'static [(u64, std::ops::Range<u64>)],
        committed: Option<LogId>,
        purged: Option<LogId>,
        snapshot: LogId,
    }

    /// The indices that are left, or the error. Then what openraft does at the start must be possible.
    async fn left(case: Case) -> Result<Vec<u64>, String> {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        for (term, range) in case.log {
            append(&log, entries(*term, range.clone(), 10)).await;
        }
        log.save_committed(case.committed).await.unwrap();
        if let Some(purged) = case.purged {
            log.purge(purged).await.unwrap();
        }
        reconcile(&log, Some(case.snapshot)).await.map_err(|e| e.to_string())?;
        let left = read_indices(&log).await;
        let last = log.get_log_state().await.unwrap().last_log_id;
        if last < Some(case.snapshot) {
            let behind = last.is_none_or(|last| last.index < case.snapshot.index);
            assert!(behind, "openraft refuses to start: {last:?} is no prefix of {}", case.snapshot);
            log.purge(case.snapshot).await.unwrap();
            let state: LogState<_> = log.get_log_state().await.unwrap();
            assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(case.snapshot), Some(case.snapshot)));
        }
        Ok(left)
    }

    #[tokio::test]
    async fn a_log_that_has_the_snapshots_last_entry_stays() {
        let case = Case { log: &[(1, 1..6), (2, 6..20)], committed: None, purged: None, snapshot: log_id(2, 10) };
        assert_eq!(left(case).await.unwrap(), (1..20).collect::<Vec<_>>());
        let case = Case { log: &[(1, 1..9)], committed: None, purged: Some(log_id(1, 4)), snapshot: log_id(1, 4) };
        assert_eq!(left(case).await.unwrap(), (5..9).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_shorter_log_stays() {
        let case = Case { log: &[(1, 1..6)], committed: None, purged: None, snapshot: log_id(2, 10) };
        assert_eq!(left(case).await.unwrap(), (1..6).collect::<Vec<_>>());
        let case = Case { log: &[], committed: None, purged: None, snapshot: log_id(2, 10) };
        assert_eq!(left(case).await.unwrap(), [0; 0]);
    }

    #[tokio::test]
    async fn entries_that_the_snapshot_proves_uncommitted_go() {
        // As long as the snapshot or longer, of an older term.
        let committed = Some(log_id(1, 3));
        let case = Case { log: &[(1, 1..20)], committed, purged: None, snapshot: log_id(2, 10) };
        assert_eq!(left(case).await.unwrap(), [1, 2, 3]);
        let case = Case { log: &[(1, 1..11)], committed, purged: Some(log_id(1, 5)), snapshot: log_id(2, 10) };
        assert_eq!(left(case).await.unwrap(), [0; 0]);
        // Shorter, but of a later term.
        let case = Case { log: &[(1, 1..4), (3, 4..8)], committed, purged: None, snapshot: log_id(2, 10) };
        assert_eq!(left(case).await.unwrap(), [1, 2, 3]);
    }

    #[test]
    fn a_large_state_makes_snapshots_rare_but_not_beyond_the_most() {
        let growth = Growth { least: 10, most: 40 };
        assert_eq!([growth.due(Ok(0)), growth.due(Ok(20)), growth.due(Ok(80))], [10, 20, 40]);
    }

    #[test]
    fn the_nodes_make_their_first_snapshots_one_after_the_other() {
        let growth = Growth { least: 120, most: u64::MAX };
        let due = |node, voters: &[u64]| growth.due(Err(Turn::new(node, voters.iter().copied())));
        assert_eq!([2, 5, 9].map(|node| due(node, &[9, 2, 5])), [40, 80, 120]);
        assert_eq!(due(7, &[7]), 120);
        // One that joins, and one that has not heard of anybody yet.
        assert_eq!([due(3, &[1, 2]), due(3, &[])], [120, 120]);
        // Where the log may not grow beyond some bytes, nobody waits for more.
        let bound = Growth { least: 120, most: 60 };
        assert_eq!([1, 2].map(|node| bound.due(Err(Turn::new(node, [1, 2].into_iter())))), [30, 60]);
    }

    #[test]
    fn the_log_goes_back_to_the_older_of_two_snapshots() {
        let file = |index| SnapshotFile {
            meta: SnapshotMeta { last_log_id: Some(log_id(1, index)), ..SnapshotMeta::default() },
            path: "none".into(),
            file: Arc::new(std::fs::File::open("/dev/null").unwrap()),
            bytes: 0,
        };
        assert_eq!(purge_upto(&[]), None);
        assert_eq!(purge_upto(&[file(9)]), None, "if it is damaged, the whole log is needed");
        assert_eq!(purge_upto(&[file(9), file(5)]), Some(5));
    }

    #[tokio::test]
    async fn two_histories_are_refused() {
        let committed = Some(log_id(1, 15));
        let case = Case { log: &[(1, 1..20)], committed, purged: None, snapshot: log_id(2, 10) };
        let error = left(case).await.unwrap_err();
        assert!(error.contains("two clusters"), "{error}");
    }
}
