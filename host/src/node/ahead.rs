//! When entries are applied ahead of their commit (`state_machine/applier/ahead.rs`): on the leader, as soon as it has logged
//! the next one and has nothing else to do.

use tokio::sync::watch;
use tokio::task::{JoinHandle, yield_now};

use crate::log::SledLog;
use crate::raft::Leader;
use crate::state_machine::{ApplyAhead, View};

/// The task; it ends when Raft has stopped.
pub(super) fn start(
    leader: watch::Receiver<Option<Leader>>,
    log: SledLog,
    view: View,
    ahead: ApplyAhead,
) -> JoinHandle<()> {
    tokio::spawn(while_leading(leader, log, view, ahead))
}

async fn while_leading(mut leader: watch::Receiver<Option<Leader>>, log: SledLog, mut view: View, ahead: ApplyAhead) {
    loop {
        let leads = leader.borrow_and_update().is_some_and(|leader| leader.here);
        tokio::select! {
            biased;
            changed = leader.changed() => if changed.is_err() {
                return;
            },
            () = log.appended(), if leads => {}
            // The entry behind the one that was applied may be there for long.
            changed = view.changed(), if leads => if changed.is_err() {
                return;
            },
        }
        // What is ready to run goes first: above all the messages that carry the entry to the followers.
        yield_now().await;
        if leader.borrow().is_some_and(|leader| leader.here) {
            ahead.apply(|index| log.in_memory(index));
        }
    }
}
