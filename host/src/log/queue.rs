//! What is handed to the writer, in the order of the calls: votes and entries are one queue. Next: `writer/mod.rs`.

use std::io;

use openraft::storage::IOFlushed;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::raft::types::{Entry, LogId, TypeConfig, Vote};

/// One operation in the order in which it was called.
pub(super) struct Queued {
    pub ticket: u64,
    pub op: Op,
    pub ack: Ack,
}

pub(super) enum Op {
    Vote(Vote),
    Append {
        entries: Vec<Entry>,
        bytes: usize,
        /// The queue's memory: given back when the entries are durable.
        permit: OwnedSemaphorePermit,
    },
    Truncate(Option<LogId>),
    Purge(LogId),
    /// Wakes the writer: there is a `committed` to be saved when nothing else is to do.
    Nudge,
    Close,
}

/// Who waits for an operation to be durable.
pub(super) enum Ack {
    None,
    Flushed(IOFlushed<TypeConfig>),
    Done(oneshot::Sender<io::Result<()>>),
}

impl Ack {
    pub(super) fn answer(self, result: io::Result<()>) {
        match self {
            Ack::None => {}
            Ack::Flushed(callback) => callback.io_completed(result),
            // Whoever waited may have gone.
            Ack::Done(tx) => drop(tx.send(result)),
        }
    }
}
