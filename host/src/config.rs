//! Everything about a node that can be set: each default with its unit and its reason, and the rules a configuration
//! must obey. Never reads flags, environment or files: that is `cli/settings.rs`. What a configuration starts is
//! `node.rs`.

mod limits;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use limits::HttpLimits;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// One node's configuration. [`NodeConfig::validate`] says what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// The node's id in the cluster, 1 or more. It belongs to `dir` for ever.
    pub id: u64,
    /// The data directory. Created if it isn't there.
    pub dir: PathBuf,
    /// Where clients connect. Port 0: any free port.
    pub listen: SocketAddr,
    /// Where the other nodes connect. Port 0: any free port.
    pub peer_listen: SocketAddr,
    /// All nodes of the cluster, this one included: id to `host:port` of the peer listener.
    pub peers: BTreeMap<u64, String>,
    /// Found the cluster, with `peers` as its members, if `dir` is empty. A `dir` that has data ignores it.
    pub bootstrap: bool,
    /// The module that a bootstrapping node proposes. None: the key-value module that is part of the binary.
    pub module: Option<PathBuf>,
    pub batching: BatchingConfig,
    pub limits: HttpLimits,
    pub raft: RaftTiming,
    pub snapshots: SnapshotConfig,
    pub checks: ChecksConfig,
    /// Entries to be left out when they are applied. To be given on all nodes alike.
    pub skip: Vec<SkipEntry>,
    pub disk: DiskConfig,
    /// Threads for connections and Raft. 0: as many as the machine has cores.
    pub worker_threads: usize,
    /// Where operators connect, for backups. None: nowhere. Whoever can connect can copy the whole state.
    pub admin_listen: Option<SocketAddr>,
}

/// When a batch is sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchingConfig {
    pub mode: Batching,
    /// Commands.
    pub max_ops: usize,
    /// Bytes of the commands together. One command that is larger makes a batch alone.
    pub max_bytes: usize,
    /// The longest time that a command waits for others while the pipe is busy.
    pub max_delay: Duration,
}

/// When a snapshot is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotConfig {
    /// Bytes of log entries since the last one; but never before the log has grown by what the last one's file takes.
    pub log_bytes: usize,
    /// Bytes a second of all snapshots that leave this node together. 0: no cap.
    pub bandwidth: usize,
}

/// Raft's clocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftTiming {
    pub heartbeat: Duration,
    /// A follower that hears nothing stands for election after a random time from here ...
    pub election_min: Duration,
    /// ... to here.
    pub election_max: Duration,
}

/// How the nodes' states are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChecksConfig {
    /// How often the leader compares digests, if something was applied.
    pub audit_interval: Duration,
    /// How often it has all nodes digest their whole content, if something was applied. Zero: never.
    pub checkpoint_interval: Duration,
}

/// An entry, by its log index and the beginning of its BLAKE3: `4711:0123456789abcdef`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SkipEntry {
    pub index: u64,
    pub checksum: [u8; 8],
}

/// How much of the disk a node may use. Beyond it commands are refused until there is room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskConfig {
    /// Bytes of the file system that are kept free.
    pub free_min_bytes: u64,
    /// Bytes that all files in the node's directory may take. 0: no limit of their own.
    pub quota_bytes: u64,
}

impl Default for DiskConfig {
    fn default() -> Self {
        DiskConfig {
            // Five times what a fast disk takes between two looks at it, and many days of votes.
            free_min_bytes: 256 * MIB as u64,
            quota_bytes: 0,
        }
    }
}

impl DiskConfig {
    /// A new log takes up to three segments of 8 MiB before its first entry.
    pub const QUOTA_LEAST: u64 = 32 * MIB as u64;

    /// Bytes that the log may grow by since the newest snapshot before commands are refused; `None`: any. It keeps the
    /// entries of two snapshots and its file takes up to three times as much, so that this is three quarters of a
    /// quota. The file never shrinks: if nothing held it back, a burst of writes could use up the quota for good.
    pub fn growth_max(&self) -> Option<u64> {
        (self.quota_bytes > 0).then_some(self.quota_bytes / 8)
    }

    /// Bytes that it may grow by before a snapshot is due, whatever else is asked for.
    pub fn growth_due(&self) -> u64 {
        self.growth_max().map_or(u64::MAX, |max| max / 2)
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        must(self.quota_bytes == 0 || self.quota_bytes >= Self::QUOTA_LEAST, || {
            format!("disk-quota: {} is too little; give at least 32MiB, or 0 for no quota", self.quota_bytes)
        })
    }
}

/// When a batch is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batching {
    /// When no batch of this node is on its way, and at each of the limits.
    Adaptive,
    /// Only at the limits: a command waits for others, or for the delay, although nothing else is to do.
    Fixed,
    /// At once: each command is a batch of its own.
    Off,
}

impl Default for BatchingConfig {
    fn default() -> Self {
        BatchingConfig {
            mode: Batching::Adaptive,
            // Beyond this the cost of a commit is spread thin enough; a larger batch only lengthens the apply that
            // everybody behind it waits for.
            max_ops: 1024,
            // As the default body limit: the largest body makes a batch alone, small ones never make a larger entry.
            max_bytes: MIB,
            // Over what a commit takes on a busy machine, so that the end of the one before it seals the next batch, and
            // this only bounds the wait when commits are slow. An idle pipe seals at once: only a busy one can cost it.
            max_delay: Duration::from_millis(4),
        }
    }
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        // The log keeps the entries of two, so this bounds it, and a restart reads them all: a second or two.
        // The bandwidth: a gigabyte in 16 seconds, and half of what a 1 Gbit/s network carries: commits keep theirs.
        SnapshotConfig { log_bytes: 128 * MIB, bandwidth: 64 * MIB }
    }
}

impl Default for RaftTiming {
    fn default() -> Self {
        RaftTiming {
            // Also the time that a heartbeat's acknowledgement may take, and that waits for the follower's fsync: with a
            // slower disk the leader would not be sure of its quorum and refuse writes.
            heartbeat: Duration::from_millis(200),
            // Three heartbeats: a slow fsync or a busy core is no lost leader.
            election_min: Duration::from_millis(600),
            // Twice the minimum: two candidates rarely stand at the same moment.
            election_max: Duration::from_millis(1200),
        }
    }
}

impl Default for ChecksConfig {
    fn default() -> Self {
        ChecksConfig {
            // So long may a wrong node answer reads unnoticed. A comparison is one small message to each node.
            audit_interval: Duration::from_secs(1),
            // It reads all of the state: a second of one core for a gigabyte.
            checkpoint_interval: Duration::from_secs(600),
        }
    }
}

impl std::str::FromStr for SkipEntry {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong =
            || ConfigError(format!("{text:?} names no entry; give INDEX:CHECKSUM as the node's status shows it"));
        let (index, digits) = text.split_once(':').ok_or_else(wrong)?;
        let is_hex = digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit());
        let checksum = u64::from_str_radix(digits, 16).ok().filter(|_| is_hex).ok_or_else(wrong)?;
        Ok(SkipEntry { index: index.parse().map_err(|_| wrong())?, checksum: checksum.to_be_bytes() })
    }
}

/// A setting that can't be used. The text says which and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Returns the error `text` unless `condition` holds.
fn must(condition: bool, text: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if condition { Ok(()) } else { Err(ConfigError(text())) }
}

impl NodeConfig {
    /// The rules that no single value can break alone are checked here too, so that a node never starts half right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        must(self.id >= 1, || "id: 0 is no node id; ids begin with 1".into())?;
        must(!self.peers.is_empty(), || "peers: give all nodes of the cluster, as in 1=10.0.0.1:9080,2=...".into())?;
        must(self.peers.contains_key(&self.id), || {
            let ids: Vec<_> = self.peers.keys().map(u64::to_string).collect();
            format!("peers: node {} is not among them ({}); list this node too", self.id, ids.join(", "))
        })?;
        let mut owner_of = BTreeMap::new();
        for (id, address) in &self.peers {
            must(*id >= 1, || "peers: 0 is no node id; ids begin with 1".into())?;
            check_peer_address(*id, address)?;
            if let Some(other) = owner_of.insert(address, id) {
                return Err(ConfigError(format!("peers: nodes {other} and {id} have the same address {address}")));
            }
        }
        must(self.listen.port() == 0 || self.listen != self.peer_listen, || {
            format!("listen and peer-listen are both {}; clients and peers need a port each", self.listen)
        })?;
        must(!self.dir.as_os_str().is_empty(), || "dir: give the directory that keeps this node's data".into())?;
        if let Some(admin) = self.admin_listen.filter(|a| a.port() != 0) {
            must(admin != self.listen && admin != self.peer_listen, || {
                format!(
                    "admin-listen: {admin} is a listener of clients or peers already; operators need a port of their own"
                )
            })?;
        }
        self.batching.validate()?;
        self.limits.validate()?;
        self.snapshots.validate()?;
        self.disk.validate()?;
        self.raft.validate()?;
        self.checks.validate()
    }
}

impl ChecksConfig {
    pub fn validate(&self) -> Result<(), ConfigError> {
        let text = humantime::format_duration;
        must(self.audit_interval >= Duration::from_millis(10), || {
            format!("audit-interval: {} is too short; give at least 10ms", text(self.audit_interval))
        })?;
        let is_short = !self.checkpoint_interval.is_zero() && self.checkpoint_interval < Duration::from_millis(100);
        must(!is_short, || {
            let given = text(self.checkpoint_interval);
            format!("checkpoint-interval: {given} is too short; give at least 100ms, or 0s for none")
        })
    }
}

/// `host:port`, for node `id`.
pub fn check_peer_address(id: u64, address: &str) -> Result<(), ConfigError> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    must(matches!(port, Some(Ok(1..))), || {
        format!("peers: the address of node {id} is {address:?}, but must be HOST:PORT, as in 10.0.0.{id}:9080")
    })
}

impl BatchingConfig {
    /// Commands in the largest batch that may be asked for.
    pub const MAX_OPS_LIMIT: usize = raftlet_machine::limits::BATCH_COMMANDS_MAX;
    /// Bytes of the largest batch that may be asked for: it is one log entry, which peers hold in memory.
    pub const MAX_BYTES_LIMIT: usize = 16 * MIB;
    /// The longest delay that may be asked for.
    pub const MAX_DELAY_LIMIT: Duration = Duration::from_secs(1);

    pub fn validate(&self) -> Result<(), ConfigError> {
        must((1..=Self::MAX_OPS_LIMIT).contains(&self.max_ops), || {
            format!("batch-max-ops: {} is not from 1 to {}", self.max_ops, Self::MAX_OPS_LIMIT)
        })?;
        must((KIB..=Self::MAX_BYTES_LIMIT).contains(&self.max_bytes), || {
            format!("batch-max-bytes: {} is not from 1KiB to 16MiB", self.max_bytes)
        })?;
        must(self.max_delay <= Self::MAX_DELAY_LIMIT, || {
            let given = humantime::format_duration(self.max_delay);
            format!("batch-max-delay: {given} is too long; 1s is the longest, a few milliseconds are usual")
        })
    }
}

impl SnapshotConfig {
    pub fn validate(&self) -> Result<(), ConfigError> {
        must(self.log_bytes >= 64 * KIB, || {
            format!("snapshot-log-bytes: {} is too little; give at least 64KiB, tens of MiB are usual", self.log_bytes)
        })?;
        // A transfer that is slower looks dead.
        must(self.bandwidth == 0 || self.bandwidth >= 64 * KIB, || {
            format!(
                "snapshot-bandwidth: {} is too slow; give at least 64KiB (a second), or 0 for no cap",
                self.bandwidth
            )
        })
    }
}

impl RaftTiming {
    pub fn validate(&self) -> Result<(), ConfigError> {
        let text = humantime::format_duration;
        must(self.heartbeat >= Duration::from_millis(10), || {
            format!("heartbeat: {} is too short; give at least 10ms", text(self.heartbeat))
        })?;
        // Two may be lost or late before a follower stands.
        must(self.election_min >= self.heartbeat.saturating_mul(3), || {
            let (given, least) = (text(self.election_min), text(self.heartbeat.saturating_mul(3)));
            format!("election-min: {given} is under three heartbeats; give at least {least} or a shorter heartbeat")
        })?;
        must(self.election_max > self.election_min, || {
            let (max, min) = (text(self.election_max), text(self.election_min));
            format!("election-max: {max} must be longer than election-min ({min}), or candidates collide")
        })
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
