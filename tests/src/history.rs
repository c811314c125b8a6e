//! What clients did and were told: one record for each operation, with the times between which it must have happened.
//! Knows no rules; `model.rs` and `checker.rs` judge. One line of JSON is one operation.

use std::io::{self, Write};
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// When an operation returned that never did: its effect may come at any later time, or never.
pub const NEVER: u64 = u64::MAX;

/// The one clock of a run: nanoseconds since it began, monotonic, the same for all clients.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Instant);

/// One operation of one client, with all its retries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub client: u32,
    /// The node that was asked last.
    pub node: u64,
    pub action: Action,
    pub outcome: Outcome,
    /// Nanoseconds, just before the first byte of the first attempt was sent.
    pub invoked: u64,
    /// Nanoseconds, just after the last byte of the answer; [`NEVER`] if the outcome is unknown.
    pub returned: u64,
    /// How often it was sent. More than once only under one idempotency key.
    pub attempts: u32,
    /// The last answer was one that had been kept: the write had happened by an earlier attempt.
    #[serde(default)]
    pub replayed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    Get {
        key: String,
    },
    /// No two puts of a run have the same value, so a value names its put.
    Put {
        key: String,
        value: u64,
        when: When,
    },
    Delete {
        key: String,
        when: When,
    },
    /// All keys that begin with this, in one read.
    List {
        prefix: String,
    },
}

/// A write's condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    Always,
    /// `If-None-Match: *`
    Absent,
    /// `If-Match: *`
    Present,
    /// `If-Match` with the etag of a write.
    Match(u64),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Found {
        value: u64,
        etag: u64,
    },
    /// A read or a delete of a key that isn't there.
    Missing,
    /// `created`: 201, there was no such key.
    Stored {
        etag: u64,
        created: bool,
    },
    Deleted,
    /// 412: nothing was written.
    Failed,
    /// Keys with their etags.
    Listed(Vec<(String, u64)>),
    /// Nothing happened, now or later.
    Rejected,
    Unknown,
}

impl Clock {
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    pub fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).expect("a run is shorter than 500 years")
    }
}

impl Action {
    /// The key, or a list's prefix.
    pub fn key(&self) -> &str {
        match self {
            Action::Get { key } | Action::Put { key, .. } | Action::Delete { key, .. } => key,
            Action::List { prefix } => prefix,
        }
    }

    pub fn is_write(&self) -> bool {
        matches!(self, Action::Put { .. } | Action::Delete { .. })
    }
}

impl Operation {
    pub fn is_definite(&self) -> bool {
        !matches!(self.outcome, Outcome::Rejected | Outcome::Unknown)
    }
}

/// Writes one line for each operation.
pub fn write<'a>(mut to: impl Write, operations: impl IntoIterator<Item = &'a Operation>) -> io::Result<()> {
    for operation in operations {
        serde_json::to_writer(&mut to, operation)?;
        to.write_all(b"\n")?;
    }
    to.flush()
}

/// Reads what [`write`] wrote.
pub fn read(text: &str) -> serde_json::Result<Vec<Operation>> {
    text.lines().map(serde_json::from_str).collect()
}
