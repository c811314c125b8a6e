//! Which group the apply thread gets next. While the gate is closed, groups are taken off openraft's hands unapplied, so
//! that its core never waits for this node's state: the channel to the state machine is bounded, and a core that waits
//! there neither logs nor votes. What was let go is read from the log again when the gate opens. openraft believes that
//! it is applied; only purging would depend on that, and it keeps to snapshots, which are made from the real state.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use openraft::entry::RaftEntry;
use tokio::sync::oneshot;

use super::apply_thread::{Group, Work};
use super::gate::Gate;
use crate::raft::types::{Entry, LogId};

/// Until a closed gate is looked at again, at the latest.
const POLL: Duration = Duration::from_millis(20);
/// Before a log that can't be read is read again.
const RETRY: Duration = Duration::from_secs(1);

/// Reads committed entries again.
pub trait Backlog: Send + 'static {
    /// Entries from `start` to before `end`: at least one, in order, without a gap. Blocks.
    fn read(&self, start: u64, end: u64) -> io::Result<Vec<Entry>>;
}

pub(super) struct Feed {
    gate: Arc<Gate>,
    backlog: Box<dyn Backlog>,
    /// The index behind the last entry that openraft has given.
    given: u64,
}

impl Feed {
    pub(super) fn new(gate: Arc<Gate>, backlog: Box<dyn Backlog>) -> Self {
        Feed { gate, backlog, given: 0 }
    }

    /// Waits for a group that follows what is `applied` and may be applied, or for another state. None: openraft is gone.
    /// Others may apply what never comes here, but only while nothing that came is left.
    pub(super) fn next(&mut self, incoming: &Receiver<Work>, applied: impl Fn() -> Option<LogId>) -> Option<Work> {
        loop {
            let next = applied().map_or(0, |l| l.index + 1);
            let is_behind = self.given > next;
            let is_open = self.gate.is_open();
            let came = if !is_behind {
                Some(incoming.recv().ok()?)
            } else if is_open {
                match incoming.try_recv() {
                    Ok(work) => Some(work),
                    Err(TryRecvError::Disconnected) => return None,
                    Err(TryRecvError::Empty) => None,
                }
            } else {
                match incoming.recv_timeout(POLL) {
                    Ok(work) => Some(work),
                    Err(RecvTimeoutError::Disconnected) => return None,
                    Err(RecvTimeoutError::Timeout) => continue,
                }
            };
            match came {
                Some(Work::Apply(group)) => {
                    self.note(&group);
                    // The gate may have changed while this waited.
                    if !is_behind && self.gate.is_open() {
                        return Some(Work::Apply(group));
                    }
                    let _ = group.applied.send(Ok(()));
                }
                // Another state needs nothing of what was held.
                Some(replace) => return Some(replace),
                None => match self.read(next) {
                    Ok(entries) => return Some(Work::Apply(Group { entries, applied: oneshot::channel().0 })),
                    Err(e) => {
                        tracing::error!("what was held can't be read from the log: {e}");
                        std::thread::sleep(RETRY);
                    }
                },
            }
        }
    }

    fn note(&mut self, group: &Group) {
        if let Some(last) = group.entries.last() {
            self.given = last.log_id().index + 1;
        }
    }

    fn read(&self, next: u64) -> io::Result<Vec<Entry>> {
        let end = self.given.min(next + super::openraft_impl::GROUP_MAX as u64);
        let entries = self.backlog.read(next, end)?;
        if !(next..).zip(&entries).all(|(index, entry)| entry.log_id().index == index) || entries.is_empty() {
            return Err(io::Error::other(format!("the log has not all entries from {next} to {end}")));
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use openraft::EntryPayload;
    use tokio::sync::oneshot::Receiver as Applied;

    use super::*;
    use crate::raft::codec::log_id;
    use crate::state_machine::health::{Doubt, What, Why};

    /// All entries there ever were.
    struct Log;

    impl Backlog for Log {
        fn read(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
            // Fewer than asked for, as a log with large entries gives.
            Ok((start..end.min(start + 3)).map(entry).collect())
        }
    }

    fn entry(index: u64) -> Entry {
        Entry::new(log_id(1, index), EntryPayload::Blank)
    }

    fn give(groups: &Sender<Work>, indices: std::ops::Range<u64>) -> Applied<io::Result<()>> {
        let (applied, done) = oneshot::channel();
        groups.send(Work::Apply(Group { entries: indices.map(entry).collect(), applied })).expect("somebody listens");
        done
    }

    fn indices(work: &Work) -> Vec<u64> {
        let Work::Apply(group) = work else { panic!("no state was replaced") };
        group.entries.iter().map(|e| e.log_id().index).collect()
    }

    fn close(gate: &Gate) {
        gate.doubt(Doubt { what: What::Chain, index: 1, why: Why::NoMajority { digests: String::new() } });
    }

    #[test]
    fn what_came_while_the_gate_was_closed_is_read_again_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let gate = Gate::open(dir.path(), &[], None).unwrap();
        let mut feed = Feed::new(gate.clone(), Box::new(Log));
        let (groups, incoming) = channel();
        let _first = give(&groups, 0..2);
        assert_eq!(indices(&feed.next(&incoming, || None).unwrap()), [0, 1]);

        close(&gate);
        let mut let_go = [give(&groups, 2..4), give(&groups, 4..9)];
        let opener = std::thread::spawn({
            let gate = gate.clone();
            move || {
                // openraft is told that it is done, or its core would stop.
                while let_go
                    .iter_mut()
                    .any(|done| !matches!(done.try_recv(), Ok(Ok(())) | Err(oneshot::error::TryRecvError::Closed)))
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                gate.cleared(What::Chain, 1);
            }
        });
        assert_eq!(indices(&feed.next(&incoming, || Some(log_id(1, 1))).unwrap()), [2, 3, 4]);
        opener.join().unwrap();
        // What comes while it catches up must wait for its turn.
        let mut later = give(&groups, 9..10);
        assert_eq!(indices(&feed.next(&incoming, || Some(log_id(1, 4))).unwrap()), [5, 6, 7]);
        assert!(matches!(later.try_recv(), Ok(Ok(()))));
        assert_eq!(indices(&feed.next(&incoming, || Some(log_id(1, 7))).unwrap()), [8, 9]);
        let _direct = give(&groups, 10..11);
        assert_eq!(indices(&feed.next(&incoming, || Some(log_id(1, 9))).unwrap()), [10]);
    }

    #[test]
    fn half_a_group_that_was_held_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let gate = Gate::open(dir.path(), &[], None).unwrap();
        let mut feed = Feed::new(gate, Box::new(Log));
        let (groups, incoming) = channel();
        let _first = give(&groups, 0..5);
        assert_eq!(indices(&feed.next(&incoming, || None).unwrap()).len(), 5);
        assert_eq!(indices(&feed.next(&incoming, || Some(log_id(1, 2))).unwrap()), [3, 4]);
    }

    #[test]
    fn a_closed_gate_does_not_keep_a_node_from_stopping() {
        let dir = tempfile::tempdir().unwrap();
        let gate = Gate::open(dir.path(), &[], None).unwrap();
        let mut feed = Feed::new(gate.clone(), Box::new(Log));
        let (groups, incoming) = channel();
        close(&gate);
        let _held = give(&groups, 0..5);
        drop(groups);
        assert!(feed.next(&incoming, || None).is_none());
    }
}
