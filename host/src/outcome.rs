//! What can become of a request: an [`Answer`], or a [`Refusal`] that says whether anything may have happened.
//! Shared by all rooms; knows none of them. Statuses are `http/`'s business.

use std::fmt;

use bytes::Bytes;
use raftlet_machine::{ArchivedReply, Replies, Reply};

/// A request that was executed.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Log index of the entry that was applied, or of the state that was read.
    pub index: u64,
    pub term: u64,
    pub reply: CommandReply,
}

/// What came out of one command or query.
#[derive(Debug, Clone)]
pub enum CommandReply {
    /// The module's answer.
    Module(ModuleReply),
    /// The host's answer in the module's place. The same on every replica; the command's writes were dropped.
    Failed(Failure),
    /// What the first command with this idempotency key was answered, which is one of the others. This one was not run.
    Replayed(Box<CommandReply>),
}

/// One reply inside an archive that was validated. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct ModuleReply {
    archive: Bytes,
    position: usize,
}

/// Why a command has no reply of its module's. Deterministic: decided by fuel, limits and the module alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The module trapped; the text names the trap.
    Trap(String),
    /// The command used up its own fuel.
    OutOfFuel,
    /// The module's memory would have grown beyond its limit.
    OutOfMemory,
    /// The batch's fuel was used up before this command was run: it may be sent again.
    BatchBudget,
    /// The module's answer breaks the contract; the text says how.
    InvalidReply(String),
    /// A query was cut off by the clock. Never happens to a command.
    QueryTimeout,
    /// No module was active at that index.
    NoModule,
    /// The idempotency key was used for another request before.
    KeyReused,
    /// No more idempotency keys can be kept: the command was not run.
    KeysFull,
    /// The entry was skipped by the operators, because it killed its processes: the command was not run.
    Skipped,
}

/// What a refused client may conclude (member `outcome` of the problem document).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing happened and nothing will.
    Rejected,
    /// It may have happened, or may yet.
    Unknown,
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the queue is full ({queued_bytes} bytes wait, {limit_bytes} may); try again later")]
    Overloaded { queued_bytes: usize, limit_bytes: usize },
    #[error("no leader could be reached within {waited_ms} ms; a majority of the cluster may be down")]
    NoLeader { waited_ms: u64 },
    #[error("no module is active yet; the cluster is starting")]
    NoModule,
    #[error("the cluster isn't complete yet: its first node waits until all of --peers have joined")]
    Founding,
    #[error("this node is shutting down")]
    ShuttingDown,
    #[error("this node has not caught up with the leader within {waited_ms} ms; ask another, or read stale")]
    Lagging { waited_ms: u64 },
    #[error("this node can't run queries: {0}")]
    LocalFault(String),
    #[error("the disk of this node is nearly full: {0}")]
    DiskFull(String),
    #[error("this node is in quarantine: {0}")]
    Quarantined(String),
    #[error("this node doesn't apply entries: {0}")]
    Held(String),
    #[error("this node's state was replaced by a snapshot while the command was on its way; it may have taken effect")]
    Replaced,
    #[error("this node's state is in doubt since the command was applied here; it may have taken effect")]
    InDoubt,
    #[error("no answer within {waited_ms} ms; the command may still take effect")]
    Timeout { waited_ms: u64 },
}

impl Refusal {
    /// Whether the refused command may have taken effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            Refusal::Timeout { .. } | Refusal::Replaced | Refusal::InDoubt => Outcome::Unknown,
            _ => Outcome::Rejected,
        }
    }
}

impl ModuleReply {
    /// `archive` must have passed [`Replies::access`] and have a reply at `position`.
    pub fn new(archive: Bytes, position: usize) -> Self {
        ModuleReply { archive, position }
    }

    /// The reply, read in place.
    pub fn get(&self) -> &ArchivedReply {
        // SAFETY: `new` asks for an archive that was validated, and the bytes are immutable.
        let replies = unsafe { rkyv::access_unchecked::<raftlet_machine::ArchivedReplies>(&self.archive) };
        &replies.replies[self.position]
    }

    /// An archive of this reply alone, in memory of its own: the one it is in has those of a whole batch.
    pub fn to_archive(&self) -> Vec<u8> {
        let reply = rkyv::deserialize::<Reply, rkyv::rancor::Error>(self.get());
        Replies { replies: vec![reply.expect("a validated archive can be read")] }.to_bytes()
    }

    /// The body, cut out of the archive without a copy.
    pub fn body(&self) -> Bytes {
        self.archive.slice_ref(self.get().body.as_slice())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Trap(what) => write!(f, "the module trapped: {what}"),
            Failure::OutOfFuel => write!(f, "the command used up its fuel"),
            Failure::OutOfMemory => write!(f, "the module's memory limit was reached"),
            Failure::BatchBudget => write!(f, "the batch's fuel was used up before this command was run"),
            Failure::QueryTimeout => write!(f, "the query was not done in its time"),
            Failure::NoModule => write!(f, "no module was active yet"),
            Failure::KeyReused => write!(f, "this Idempotency-Key was used for another request"),
            Failure::KeysFull => write!(f, "no more idempotency keys can be kept now"),
            Failure::Skipped => write!(f, "the entry of this command was skipped by the operators"),
            Failure::InvalidReply(why) => write!(f, "the module's reply breaks the contract: {why}"),
        }
    }
}

impl CommandReply {
    /// The reply itself, whoever got it first.
    pub fn original(&self) -> &CommandReply {
        match self {
            CommandReply::Replayed(first) => first.original(),
            own => own,
        }
    }

    /// The replies of a whole archive, in order. Validates it.
    pub fn split(archive: Bytes) -> Result<Vec<CommandReply>, raftlet_machine::InvalidArchive> {
        let count = Replies::access(&archive)?.replies.len();
        Ok((0..count).map(|i| CommandReply::Module(ModuleReply::new(archive.clone(), i))).collect())
    }
}
