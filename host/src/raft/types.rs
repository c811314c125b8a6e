//! What a log entry is: the types openraft is instantiated with. Step 3 of 8 starts here; the next file is
//! `raft/mod.rs`. Knows no disk and no socket: `log/` and `raft/network` store and send what `codec.rs` encodes.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

openraft::declare_raft_types!(
    /// Standard Raft: one leader per term, a log id is (term, index).
    pub TypeConfig:
        D = Proposal,
        // Replies don't travel through openraft: each node answers its own clients when it applies (step 8).
        R = (),
        NodeId = u64,
        Node = Member,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

pub type NodeId = u64;

/// What the membership says of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Peer address, `host:port`. A node's own `--peers` goes before this, so that a cluster can move.
    pub address: String,
    /// The identity in that node's folder. A node that comes back with another one lost its disk, and with it
    /// votes and entries it had acknowledged: it is refused.
    pub identity: u64,
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:016x})", self.address, self.identity)
    }
}
pub type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub type Vote = openraft::alias::VoteOf<TypeConfig>;
pub type Entry = openraft::alias::EntryOf<TypeConfig>;
pub type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;

pub type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// A whole, verified snapshot on this node's disk. Open, so that it can be read to its end after a newer one took its
/// place.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    pub meta: SnapshotMeta,
    pub path: PathBuf,
    pub file: Arc<File>,
    pub bytes: u64,
}

/// Identifies a batch for ever: the node that sealed it, that node's start, and a counter since then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BatchId {
    pub node: NodeId,
    /// Random, drawn at each start of the node.
    pub boot: u64,
    pub sequence: u64,
}

/// What an entry's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Kind {
    /// An archived `Batch`.
    Batch = 1,
    /// The next piece of a module's bytes. Pieces arrive in order and are complete when `ActivateModule` comes.
    ModuleChunk = 2,
    /// A postcard-encoded `state_machine::Activation`: from here on this module answers.
    ActivateModule = 3,
    /// No payload: every replica digests its whole content at this index, so that silent corruption is found.
    Checkpoint = 5,
}

/// What the leader writes beside the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    pub kind: Kind,
    pub id: BatchId,
    /// The leader's clock, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The leader's digest chain (its first 16 bytes) at an index it had applied.
    pub stamp_index: u64,
    pub stamp_digest: [u8; 16],
}

/// One entry's payload: an envelope and untouched bytes. Cloning is cheap. openraft asks for serde, but entries are
/// encoded by `codec.rs` alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    pub envelope: Envelope,
    pub bytes: Bytes,
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Envelope { kind, id, .. } = self.envelope;
        write!(f, "{kind:?} {}/{:x}/{} ({} bytes)", id.node, id.boot, id.sequence, self.bytes.len())
    }
}
