//! Steps 6 and 8 of 8, driven by openraft: committed entries in, one after the other; their batches go to `guest/`
//! (step 7), what they wrote goes into the map, replies go to whoever sealed the batch (`batcher/`, through
//! [`Applied`]). Never touches a socket; on the disk only `snapshot/`, `note.rs` and `skips.rs`. Read `replica.rs` first:
//! it is the state machine proper.

mod activation;
mod applier;
mod apply_thread;
mod checkpoints;
pub mod digest;
#[cfg(debug_assertions)]
mod faults;
mod feed;
mod gate;
pub mod health;
pub mod map;
pub mod note;
mod openraft_impl;
pub mod overlay;
mod queries;
mod replica;
mod ring;
pub mod sessions;
mod skip;
mod skips;
pub mod snapshot;

use std::sync::Arc;

use tokio::sync::watch;

use crate::guest::Module;
use crate::outcome::BatchReplies;
use crate::raft::types::{BatchId, LogId, StoredMembership};
use map::Map;
use sessions::Sessions;

pub use activation::{Activation, Active, Pieces};
pub use applier::ApplyAhead;
pub use feed::Backlog;
pub use gate::Gate;
pub use openraft_impl::{APPLY_STACK_BYTES, ApplyFault, Held, StateMachine};
pub use queries::Queries;
#[doc(hidden)]
pub use replica::{Done, Effort, Replica, Step};
pub use ring::{INDICES_MAX, Short};

/// Is told what was applied, after it can be read. Called by one at a time, in log order, on the apply thread
/// or the runtime's.
pub trait Applied: Send + Sync + 'static {
    /// This batch was applied. `replies` are in the order of its commands.
    fn applied(&self, id: BatchId, log_id: LogId, replies: BatchReplies);
    /// An entry of this term was applied: what was handed over for an earlier term and was not applied, never will be.
    fn term_began(&self, term: u64);
    /// This batch was applied, but its replies may be wrong: the state is in doubt. Told in place of `applied`, and before
    /// `term_began`: a batch that was applied must never pass for one that wasn't.
    fn withheld(&self, id: BatchId);
    /// The state was replaced by a snapshot: what became of the batches in it, this node can't know. Told before
    /// anything of what is applied behind the snapshot.
    fn replaced(&self);
}

/// The state at one index. A query takes everything from one of these.
#[derive(Clone)]
pub struct Published {
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
    /// The replicated clock, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The number the next command gets.
    pub first_command: u64,
    /// The digest chain over all that was applied.
    pub digest: [u8; 32],
    pub cluster: u64,
    pub map: Map,
    pub module: Option<Module>,
    /// How `module` came to be: bytes, limits, engine. For snapshots.
    pub active: Option<Arc<Active>>,
    /// A module that is on its way.
    pub pieces: Option<Arc<Pieces>>,
    /// Idempotency keys and their replies.
    pub sessions: Sessions,
}

impl Published {
    pub fn applied_index(&self) -> u64 {
        self.applied.map_or(0, |l| l.index)
    }
}

/// The newest state; also tells when there is a newer one.
pub type View = watch::Receiver<Arc<Published>>;
