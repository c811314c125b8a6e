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
    pub idempotency: IdempotencyStatus,
    /// This node's state differs from the majority's: it answers nobody and applies nothing.
    pub quarantine: Option<QuarantineStatus>,
    /// This node applies nothing for another reason.
    pub hold: Option<HoldStatus>,
    pub disk: DiskStatus,
    /// Where operators connect, if they can.
    pub admin_address: Option<String>,
}

/// Idempotency keys, at `applied_index`; the same on all nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IdempotencyStatus {
    /// A key is known for at least this long, by the cluster's clock.
    pub window_ms: u64,
    pub keys: u64,
    pub keys_max: u64,
    /// Of keys and replies.
    pub bytes: u64,
    pub bytes_max: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuarantineStatus {
    /// `digest chain` or `content digest`.
    pub what: String,
    /// Log index at which the digests were compared.
    pub index: u64,
    /// Hexadecimal, this node's.
    pub ours: String,
    /// Hexadecimal, the majority's.
    pub theirs: String,
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HoldStatus {
    /// `entry` (it killed the process), `suspicion` or `no-majority`.
    pub reason: &'static str,
    /// Of the entry, or at which the digests differ.
    pub index: u64,
    /// What `--skip-entry` takes, if an entry is held.
    pub skip: Option<String>,
    /// For people: what happened and what to do.
    pub detail: String,
}

/// Of this node's disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DiskStatus {
    /// Bytes of the file system that are free.
    pub free_bytes: u64,
    /// Bytes that the files in the node's directory take.
    pub used_bytes: u64,
    /// Null: there is no quota.
    pub quota_bytes: Option<u64>,
    /// Commands and entries are refused until there is room.
    pub low: bool,
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
