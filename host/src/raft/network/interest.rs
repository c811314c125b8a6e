//! Which nodes wait for commits: those that send batches or ask for read rounds answer from their own state, once it has
//! what the leader has committed. `pipeline.rs` tells the others later. Knows no message.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::super::types::NodeId;

/// A node is taken to go on asking for so long.
const RECENT: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Interests(Mutex<BTreeMap<NodeId, Arc<Interest>>>);

/// Of one node.
#[derive(Default)]
pub(super) struct Interest {
    asked: Mutex<Option<Instant>>,
    waker: AtomicWaker,
}

impl Interests {
    pub(super) fn of(&self, node: NodeId) -> Arc<Interest> {
        self.0.lock().expect("no code panics under this lock").entry(node).or_default().clone()
    }
}

impl Interest {
    /// The node sent a batch, or asked for a read round.
    pub(super) fn asked(&self) {
        *self.asked.lock().expect("no code panics under this lock") = Some(Instant::now());
        self.waker.wake();
    }

    pub(super) fn is_recent(&self) -> bool {
        self.asked.lock().expect("no code panics under this lock").is_some_and(|asked| asked.elapsed() < RECENT)
    }

    /// Wakes when the node asks. One at a time can wait for that.
    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }
}
