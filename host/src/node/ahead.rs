//! When entries are applied ahead of their commit (`state_machine/applier/ahead.rs`): on the leader, which has clients that
//! wait, as soon as it has logged one and has nothing else to do.

use tokio::sync::watch;

use crate::log::SledLog;
use crate::raft::Leader;
use crate::state_machine::ApplyAhead;

/// Until Raft has stopped.
pub(super) async fn while_leading(mut leader: watch::Receiver<Option<Leader>>, log: SledLog, ahead: ApplyAhead) {
    loop {
        let leads = leader.borrow_and_update().is_some_and(|leader| leader.here);
        tokio::select! {
            changed = leader.changed() => if changed.is_err() {
                return;
            },
            () = log.appended(), if leads => {
                // Whatever is ready to run goes first: above all the messages that carry the entry to the followers.
                tokio::task::yield_now().await;
                ahead.apply(|index| log.in_memory(index));
            }
        }
    }
}
