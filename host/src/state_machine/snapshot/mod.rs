//! Snapshots of the state machine: one file holds the whole state at one log index. Owns the file format, the folder
//! `snapshots/` and what is kept there; never talks to a peer and never touches the log. Reading order: `write.rs`,
//! `block.rs`, `read.rs` (the format) → `file.rs`, `folder.rs`, `load.rs`. Who decides when one is made is `raft/compaction.rs`.
//!
//! ```text
//! 0   "raftletS"   8  format version (u32)   12  bytes of the header (u32)   16  CRC-32 of all before it and the header
//! 20  header: postcard of Header
//! ... blocks (block.rs): module, pieces, map, sessions; each section is one stream of bytes cut into blocks
//! ... the last block: postcard of Footer
//! end bytes of the file (u64), CRC-32 of the id and that, "Steltfar"
//! ```
//!
//! Integers are little-endian. Map and sessions are records in key order: length of the key (u32), of the value (u32), key,
//! value. The first 20 bytes and their checksum stay as they are in later versions, so that one is told from damage.

mod block;
mod file;
mod folder;
mod load;
mod read;
mod room;
#[cfg(test)]
mod tests;
mod write;

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Published;
use super::activation::Activation;
use super::digest::Facts;
use crate::raft::identity::random;
use crate::raft::types::{BatchId, LogId, SnapshotMeta, StoredMembership};
use read::{FromStart, ReadError, Reader};

pub use folder::{Gap, Incoming, Snapshots};
pub use load::Loaded;
pub use room::HasRoom;

/// Version of the file format.
pub const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"raftletS";
const END: &[u8; 8] = b"Steltfar";
/// After the last block.
const TRAILER_BYTES: usize = 20;
/// Read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// What a snapshot says of the state, before its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Random, drawn when the file was written: it is part of the file's name and of every checksum in it.
    pub id: u32,
    /// Of the last entry that is in the state.
    pub last: LogId,
    pub membership: StoredMembership,
    /// The replicated clock, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The number the next command gets.
    pub first_command: u64,
    pub cluster: u64,
    /// The digest chain.
    pub chain: [u8; 32],
    /// Of the active module, whose bytes follow.
    pub activation: Option<Activation>,
    pub pieces: Option<PiecesHead>,
}

/// A module that is on its way, without its bytes, which follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PiecesHead {
    pub first: BatchId,
    pub next_sequence: u64,
    pub bytes: u64,
}

/// What is in a whole, verified snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub header: Header,
    /// Keys in the store.
    pub keys: u64,
    /// Bytes of keys and values in the store.
    pub bytes: u64,
    /// Idempotency keys.
    pub sessions: u64,
    /// The content digest ([`super::digest::Content`]).
    pub digest: [u8; 32],
    /// Of the file.
    pub file_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("the snapshot {}: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("the snapshot {} is damaged: {why}", .path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("the snapshot {} has format version {found}; this binary knows {known}; use a newer one", .path.display(), known = VERSION)]
    Version { path: PathBuf, found: u32 },
    #[error("the snapshot {} is older than those that are kept", .path.display())]
    Obsolete { path: PathBuf },
}

/// Stands at the end of the data, so that nothing that was cut off passes for the whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Footer {
    /// Before the footer's own.
    blocks: u64,
    keys: u64,
    bytes: u64,
    sessions: u64,
    digest: [u8; 32],
}

impl Header {
    /// Of this state, if an entry was ever applied to it. Draws an id.
    pub fn of(state: &Published) -> Option<Header> {
        Some(Header {
            id: random() as u32,
            last: state.applied?,
            membership: state.membership.clone(),
            time_ms: state.time_ms,
            first_command: state.first_command,
            cluster: state.cluster,
            chain: state.digest,
            activation: state.active.as_ref().map(|active| active.activation.clone()),
            pieces: state.pieces.as_ref().map(|pieces| PiecesHead {
                first: pieces.first,
                next_sequence: pieces.next_sequence,
                bytes: pieces.bytes.len() as u64,
            }),
        })
    }

    /// What openraft wants to know of a snapshot.
    pub fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: Some(self.last), last_membership: self.membership.clone() }
    }

    fn facts(&self) -> Facts {
        Facts {
            index: self.last.index,
            time_ms: self.time_ms,
            first_command: self.first_command,
            cluster: self.cluster,
            chain: self.chain,
            module: self.activation.as_ref().map_or([0; 32], |a| a.digest),
        }
    }
}

impl Summary {
    fn new(header: Header, footer: &Footer, file_bytes: u64) -> Summary {
        let Footer { keys, bytes, sessions, digest, .. } = *footer;
        Summary { header, keys, bytes, sessions, digest, file_bytes }
    }
}

/// Reads a whole snapshot and checks everything that can be checked. Memory is flat whatever its size.
pub fn verify(path: &Path) -> Result<Summary, SnapshotError> {
    walk(&open(path)?, path, &mut ())
}

/// Only the header, with its checksum: to look at a file, not to trust it.
pub fn header(path: &Path) -> Result<Header, SnapshotError> {
    let file = open(path)?;
    Ok(Reader::open(FromStart::new(&file)).map_err(|e| e.at(path))?.header)
}

/// Writes a copy with another header, durably: for a restore, which needs another membership. The copy gets an id of
/// its own. Whatever is at `to` is replaced, and only by a whole copy.
pub fn rewrite(from: &Path, to: &Path, change: impl FnOnce(&mut Header)) -> Result<Summary, SnapshotError> {
    let source = open(from)?;
    let reader = reader(&source).map_err(|e| e.at(from))?;
    let mut header = reader.header.clone();
    header.id = random() as u32;
    change(&mut header);
    file::write_file(to, |out| {
        let mut writer = write::Writer::new(out, header).map_err(ReadError::Io)?;
        reader.walk(&mut writer)?;
        writer.finish().map_err(ReadError::Io)
    })
    .map_err(|e| match e {
        // Whatever can't be read is the source's; writing fails with the rest.
        ReadError::Io(_) => e.at(to),
        _ => e.at(from),
    })
}

/// The name of a snapshot's file: `{term:016x}-{index:016x}-{id:08x}.snapshot`.
pub fn file_name(last: LogId, id: u32) -> String {
    format!("{:016x}-{:016x}-{id:08x}.snapshot", last.leader_id.term, last.index)
}

fn open(path: &Path) -> Result<File, SnapshotError> {
    File::open(path).map_err(|error| SnapshotError::Io { path: path.into(), error })
}

fn reader(file: &File) -> Result<Reader<BufReader<FromStart<'_>>>, ReadError> {
    Reader::open(BufReader::with_capacity(BUFFER_BYTES, FromStart::new(file)))
}

fn walk(file: &File, path: &Path, sink: &mut impl read::Sink) -> Result<Summary, SnapshotError> {
    reader(file).and_then(|reader| reader.walk(sink)).map_err(|e| e.at(path))
}
