//! What keeps a node from applying, and from answering. Plain facts, shared by whoever applies, who obeys them, by
//! `raft/audit.rs`, which decides most of them, and by `node.rs`, which tells clients. The gate that keeps them is
//! `gate.rs`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::ring::Short;

/// Which digest was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// The chain: all writes and replies so far.
    Chain,
    /// The whole content, at a checkpoint.
    Content,
}

/// This node differs from the majority. Only a new state from elsewhere ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantine {
    pub what: What,
    /// Log index at which the digests were compared.
    pub index: u64,
    /// Hexadecimal, this node's.
    pub ours: String,
    /// Hexadecimal, the majority's.
    pub theirs: String,
    /// This machine's clock, milliseconds since the Unix epoch.
    pub time_ms: u64,
}

/// Nodes differ and it isn't known who is right. The audit ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doubt {
    pub what: What,
    /// Only a comparison at this index or a later one can end it.
    pub index: u64,
    pub why: Why,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The leader of `term` has another digest than this node at that index.
    Stamp { term: u64, ours: Short, theirs: Short },
    /// Voters differ, and no digest is held by more than half of all.
    NoMajority { digests: String },
    /// This node leads and is the one that is wrong: it answers nobody while it hands over.
    Outvoted,
}

/// An entry that ended this node's process again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poison {
    pub index: u64,
    pub checksum: Checksum,
    pub deaths: u32,
    /// A `--skip-entry` for this index that doesn't fit.
    pub refused_skip: Option<Checksum>,
}

/// Identifies an entry beside its index: the first bytes of its BLAKE3. The same on all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum(pub [u8; 8]);

/// All of it. Nothing set: the node is sound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    pub quarantine: Option<Quarantine>,
    pub doubt: Option<Doubt>,
    pub poison: Option<Poison>,
}

impl Health {
    /// Entries are applied.
    pub fn is_open(&self) -> bool {
        self.is_trusted() && self.poison.is_none()
    }

    /// The state may be shown to others: replies, reads, snapshots. A node that is held by an entry has a state that is
    /// old but right.
    pub fn is_trusted(&self) -> bool {
        self.quarantine.is_none() && self.doubt.is_none()
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            What::Chain => "digest chain",
            What::Content => "content digest",
        })
    }
}

impl fmt::Display for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Quarantine { what, index, ours, theirs, .. } = self;
        write!(f, "its {what} at index {index} is {ours}, the majority's is {theirs}; ask another node")
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Doubt { what, index, why } = self;
        match why {
            Why::Stamp { term, ours, theirs } => write!(
                f,
                "its {what} at index {index} is {}, that of the leader of term {term} is {}; who is right isn't known yet",
                hex(ours),
                hex(theirs)
            ),
            Why::NoMajority { digests } => {
                write!(f, "the voters' {what}s at index {index} differ ({digests}) and no majority agrees; ")?;
                f.write_str("start the voters that are missing")
            }
            Why::Outvoted => write!(f, "its {what} at index {index} is not the majority's; it hands the lead over"),
        }
    }
}

impl fmt::Display for Poison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Poison { index, checksum, deaths, refused_skip } = self;
        write!(f, "the entry {index}:{checksum} ended this node's process {deaths} times and isn't applied; ")?;
        if let Some(given) = refused_skip {
            write!(f, "--skip-entry {index}:{given} names another entry; ")?;
        }
        write!(
            f,
            "if no node has applied it, restart all with --skip-entry {index}:{checksum} to leave it out; \
             to try it again delete the file `applying` in the node's folder and restart"
        )
    }
}
