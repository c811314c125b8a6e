//! Giving the lead away: when the node stops, when its state is found wrong, and when its disk has no room but another
//! voter's has. Owns the choice of
//! the successor; openraft does the rest. Nothing is lost when it fails: there is an election, or the leader stays.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::watch;

use super::room::Rooms;
use super::types::NodeId;
use super::{Leader, Raft};

/// For the successor to be elected: a vote is two syncs and a round trip.
const HAND_OVER: Duration = Duration::from_millis(500);
/// A voter that acknowledged nothing for so long may be dead: five heartbeats.
const HEARD: Duration = Duration::from_secs(1);
/// Between attempts of a leader without room to find a successor.
const AGAIN: Duration = Duration::from_secs(1);

/// What is needed to give the lead away.
#[derive(Clone)]
pub(super) struct Lead {
    pub raft: Raft,
    pub leader: watch::Receiver<Option<Leader>>,
    rooms: Arc<Rooms>,
    /// Nodes whose state is in doubt or stands still.
    unfit: Arc<Mutex<BTreeSet<NodeId>>>,
}

impl Lead {
    pub(super) fn new(raft: Raft, leader: watch::Receiver<Option<Leader>>, rooms: Arc<Rooms>) -> Self {
        Lead { raft, leader, rooms, unfit: Arc::default() }
    }

    /// Nodes that must not be asked to lead, as the last audit found.
    pub(super) fn unfit(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.unfit.lock().expect("no code panics under this lock")
    }

    /// If this node leads, lets the voter that has most of the log lead instead, if there is one that is fit and has
    /// room for more.
    pub(super) async fn hand_over(&self) {
        if !self.leader.borrow().is_some_and(|l| l.here) {
            return;
        }
        let Some(successor) = self.successor() else {
            tracing::info!("no other voter can be asked to lead");
            return;
        };
        tracing::info!("handing the lead over to node {successor}");
        if self.raft.trigger().transfer_leader(successor).await.is_ok() {
            let mut changed = self.leader.clone();
            let other = changed.wait_for(|l| l.is_some_and(|l| !l.here));
            let _ = tokio::time::timeout(HAND_OVER, other).await;
        }
    }

    fn successor(&self) -> Option<NodeId> {
        let metrics = self.raft.metrics();
        let m = metrics.borrow_watched();
        let membership = m.membership_config.membership();
        let unfit = self.unfit();
        // A leader that hands over to a dead node is mute until there is an election.
        let heard = |id: &NodeId| {
            let last = m.heartbeat.as_ref().and_then(|heard| heard.get(id)).and_then(Option::as_ref);
            last.is_some_and(|at| at.elapsed() < HEARD)
        };
        let fits = |id: &NodeId| *id != m.id && self.rooms.has_room(*id) && !unfit.contains(id) && heard(id);
        let voters: Vec<NodeId> = membership.voter_ids().filter(fits).collect();
        let matched = m.replication.iter().flatten().filter(|(id, _)| voters.contains(id));
        matched.max_by_key(|(_, matching)| **matching).map(|(id, _)| *id)
    }

    /// A leader without room can log nothing for anybody; another one can. Runs until it is aborted.
    pub(super) async fn without_room(self) {
        loop {
            self.rooms.space.lack().await;
            self.hand_over().await;
            tokio::time::sleep(AGAIN).await;
        }
    }
}
