//! The bytes of one record: a command that had an idempotency key, and what it was answered. They are in every snapshot
//! and under its digest, so their layout, and the texts of failures, are a published format (version 1).
//!
//! | offset | what |
//! |---|---|
//! | 0 | format version (1) |
//! | 1 | kind: 0 the module's reply; 1 trap, 2 out of fuel, 3 out of memory, 4 invalid reply |
//! | 2 | replicated clock when it was applied, ms since the Unix epoch (u64, little-endian) |
//! | 10 | command number (u64, little-endian) |
//! | 18 | fingerprint of the request (16 bytes) |
//! | 34 | an archive of one reply, or the failure's text |

use bytes::Bytes;
use raftlet_machine::Replies;

use crate::outcome::{CommandReply, Failure, ModuleReply};

const VERSION: u8 = 1;
/// What stands before the reply.
pub(super) const HEAD_BYTES: usize = 34;

/// Half of a BLAKE3 hash: only who can choose both requests could find two with the same, and would gain nothing.
pub(super) type Fingerprint = [u8; 16];

mod kind {
    pub const REPLY: u8 = 0;
    pub const TRAP: u8 = 1;
    pub const OUT_OF_FUEL: u8 = 2;
    pub const OUT_OF_MEMORY: u8 = 3;
    pub const INVALID_REPLY: u8 = 4;
}

/// One record, read in place.
pub(super) struct Record<'a> {
    pub time_ms: u64,
    pub number: u64,
    pub fingerprint: Fingerprint,
    kind: u8,
    payload: &'a [u8],
}

/// None: nothing happened that a repetition must not do again, so nothing is kept.
pub(super) fn encode(time_ms: u64, number: u64, fingerprint: &Fingerprint, reply: &CommandReply) -> Option<Vec<u8>> {
    let (kind, payload) = match reply {
        CommandReply::Module(reply) => (kind::REPLY, reply.to_archive()),
        CommandReply::Failed(failure) => match failure {
            Failure::Trap(what) => (kind::TRAP, what.clone().into_bytes()),
            Failure::OutOfFuel => (kind::OUT_OF_FUEL, Vec::new()),
            Failure::OutOfMemory => (kind::OUT_OF_MEMORY, Vec::new()),
            Failure::InvalidReply(why) => (kind::INVALID_REPLY, why.clone().into_bytes()),
            Failure::BatchBudget
            | Failure::ReplayBudget
            | Failure::NoModule
            | Failure::KeyReused
            | Failure::KeysFull
            | Failure::Skipped
            | Failure::QueryTimeout => return None,
        },
        CommandReply::Replayed(_) => return None,
    };
    let mut record = Vec::with_capacity(HEAD_BYTES + payload.len());
    record.extend([VERSION, kind]);
    record.extend(time_ms.to_le_bytes());
    record.extend(number.to_le_bytes());
    record.extend(fingerprint);
    record.extend(payload);
    Some(record)
}

impl<'a> Record<'a> {
    /// Reads what stands before the reply. [`Record::check`] looks at the reply.
    pub fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let Some((head, payload)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
            return Err(format!("a record of {} bytes is too short", bytes.len()));
        };
        if head[0] != VERSION {
            return Err(format!("its record has format {}, this version reads {VERSION}", head[0]));
        }
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
        let fingerprint = head[18..].try_into().expect("16 bytes");
        Ok(Record { time_ms: number(2), number: number(10), fingerprint, kind: head[1], payload })
    }

    /// Whether [`Record::reply`] can be asked.
    pub fn check(&self) -> Result<(), String> {
        match self.kind {
            kind::REPLY => {
                let replies = Replies::access(self.payload).map_err(|e| format!("its reply is {e}"))?;
                match replies.replies.as_slice() {
                    [reply] if (200..=599).contains(&reply.status.to_native()) => Ok(()),
                    [_] => Err("its reply has no HTTP status".into()),
                    several => Err(format!("it has {} replies", several.len())),
                }
            }
            kind::TRAP | kind::INVALID_REPLY => {
                std::str::from_utf8(self.payload).map(drop).map_err(|_| "its failure's text is not UTF-8".into())
            }
            kind::OUT_OF_FUEL | kind::OUT_OF_MEMORY if self.payload.is_empty() => Ok(()),
            other => Err(format!("its record is of no known kind ({other}, {} bytes)", self.payload.len())),
        }
    }

    /// The reply that was kept, in memory of its own.
    pub fn reply(&self) -> CommandReply {
        let text = || String::from_utf8_lossy(self.payload).into_owned();
        CommandReply::Failed(match self.kind {
            kind::REPLY => return CommandReply::Module(ModuleReply::new(Bytes::copy_from_slice(self.payload), 0)),
            kind::TRAP => Failure::Trap(text()),
            kind::OUT_OF_FUEL => Failure::OutOfFuel,
            kind::OUT_OF_MEMORY => Failure::OutOfMemory,
            _ => Failure::InvalidReply(text()),
        })
    }
}
