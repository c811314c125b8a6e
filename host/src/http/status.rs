//! What `/_/status` shows, as JSON. Filled by `node.rs`; this room only prints it.

use serde::Serialize;

/// One node's view of itself and the cluster. All of it may be a moment old.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    pub node_id: u64,
    /// `starting`, `leader`, `follower`, `candidate`, `learner` or `stopped`.
    pub role: &'static str,
    pub leader_id: Option<u64>,
    pub term: u64,
    pub last_log_index: Option<u64>,
    pub applied_index: Option<u64>,
    pub snapshot_index: Option<u64>,
    /// Absent until the cluster has activated one.
    pub module: Option<ModuleStatus>,
    /// Hexadecimal digest chain at `applied_index`: equal on all nodes that have applied the same entries.
    pub state_digest: String,
    pub members: Vec<Member>,
    /// Of the binary.
    pub version: &'static str,
    pub cluster_id: String,
    /// Hexadecimal; drawn at each start of the node.
    pub boot_id: String,
    pub uptime_seconds: u64,
    /// Bytes of commands that wait for their replies.
    pub queue_bytes: u64,
    /// Where operators connect, if they can.
    pub admin_address: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModuleStatus {
    pub name: String,
    pub version: String,
    /// Hexadecimal BLAKE3 of the module's bytes.
    pub digest: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    pub id: u64,
    /// Where its peers reach it.
    pub peer_address: String,
    pub role: MemberRole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    Voter,
    Learner,
}
