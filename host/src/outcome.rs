//! What can become of a request: an [`Answer`], or a [`Refusal`] that says whether anything may have happened. A whole
//! batch that one client sent has a [`BatchAnswer`]. Shared by all rooms; knows none of them. Statuses are `http/`'s business.

use std::fmt;

use bytes::Bytes;
use raftlet_machine::{ArchivedReplies, ArchivedReply, InvalidArchive, Replies, Reply};

/// A request that was executed.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Log index of the entry that was applied, or of the state that was read.
    pub index: u64,
    pub term: u64,
    pub reply: CommandReply,
}

/// A batch that was executed for one client.
#[derive(Debug, Clone)]
pub struct BatchAnswer {
    /// Log index of the entry that was applied, or of the oldest state that was read.
    pub index: u64,
    pub term: u64,
    pub replies: BatchReplies,
}

/// What came out of one batch: one reply for each of its commands or queries, in their order.
#[derive(Debug, Clone)]
pub enum BatchReplies {
    /// The module's, all of them and nothing else, as it archived them: nothing is taken apart for each.
    Whole(ModuleReplies),
    Each(Vec<CommandReply>),
}

/// A validated archive of replies. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct ModuleReplies {
    archive: Bytes,
}

/// One reply of a batch, where it stands.
#[derive(Clone, Copy)]
pub enum ReplyView<'a> {
    Module(&'a ArchivedReply),
    Failed(&'a Failure),
    Replayed(&'a CommandReply),
}

/// Which queries of an archived batch are run together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub positions: std::ops::Range<u32>,
    /// Bytes that their replies may have together; beyond it the rest is [`Failure::BatchBudget`]. Only what has to be
    /// run one by one can get there: the replies of one run are bounded anyway.
    pub reply_bytes_max: usize,
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
    /// The first command with this idempotency key was run, but its reply doesn't fit among those that are repeated with
    /// it. The only failure of a command that has happened.
    ReplayBudget,
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

impl ModuleReplies {
    /// # Errors
    /// The bytes are no archive of replies.
    pub fn new(archive: Bytes) -> Result<Self, InvalidArchive> {
        Replies::access(&archive)?;
        Ok(ModuleReplies { archive })
    }

    /// The replies, read in place.
    pub fn get(&self) -> &[ArchivedReply] {
        // SAFETY: `new` has validated the archive, and the bytes are immutable.
        let replies = unsafe { rkyv::access_unchecked::<ArchivedReplies>(&self.archive) };
        &replies.replies
    }

    /// The archive itself.
    pub fn archive(&self) -> &Bytes {
        &self.archive
    }

    fn each(&self) -> impl ExactSizeIterator<Item = CommandReply> {
        (0..self.get().len()).map(|at| CommandReply::Module(ModuleReply::new(self.archive.clone(), at)))
    }
}

impl BatchReplies {
    /// The replies of a whole archive. Validates it.
    pub fn whole(archive: Bytes) -> Result<Self, InvalidArchive> {
        ModuleReplies::new(archive).map(BatchReplies::Whole)
    }

    pub fn len(&self) -> usize {
        match self {
            BatchReplies::Whole(replies) => replies.get().len(),
            BatchReplies::Each(replies) => replies.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads them one after the other, in place.
    pub fn iter(&self) -> impl Iterator<Item = ReplyView<'_>> {
        let (whole, each) = match self {
            BatchReplies::Whole(replies) => (replies.get(), &[][..]),
            BatchReplies::Each(replies) => (&[][..], &replies[..]),
        };
        whole.iter().map(ReplyView::Module).chain(each.iter().map(CommandReply::view))
    }

    /// One of its own for each command or query.
    pub fn into_each(self) -> Vec<CommandReply> {
        match self {
            BatchReplies::Whole(replies) => replies.each().collect(),
            BatchReplies::Each(replies) => replies,
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
        let replies = unsafe { rkyv::access_unchecked::<ArchivedReplies>(&self.archive) };
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
            Failure::ReplayBudget => write!(
                f,
                "the first command with this Idempotency-Key was run, but its reply is too large to be repeated \
                 together with those before it; send it again for its reply"
            ),
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
    pub fn split(archive: Bytes) -> Result<Vec<CommandReply>, InvalidArchive> {
        BatchReplies::whole(archive).map(BatchReplies::into_each)
    }

    /// It, where it stands.
    pub fn view(&self) -> ReplyView<'_> {
        match self {
            CommandReply::Module(reply) => ReplyView::Module(reply.get()),
            CommandReply::Failed(failure) => ReplyView::Failed(failure),
            CommandReply::Replayed(first) => ReplyView::Replayed(first),
        }
    }
}
