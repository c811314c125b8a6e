//! Values of the log's tree as bytes: a large entry is cut into chunks, each with a checksum of its own. Owns their
//! format and the list of what can be wrong; never touches sled or a file. Small entries are in groups: see `group.rs`,
//! the next file. Entries' own bytes are `raft/codec.rs`'s.
//!
//! ```text
//! chunk   0 version (2)  1 kind (0)  2 reserved (0)  4 crc32  8 chunks of this record  12 reserved (0)  16 term  24 data
//! meta    0 version (2)  1 crc32     5 data
//! ```
//!
//! Integers are little-endian. A checksum covers the key, the header without itself, and the data, so that a piece
//! that lies under another entry's key is damage too.

use sled::IVec;

use super::keys::{self, CHUNK_KEY_BYTES};
use crate::raft::codec::DecodeError;
use crate::raft::types::LogId;

/// Version of the form above and of the groups'.
pub(super) const RECORD_VERSION: u8 = 2;
/// One piece of one entry's record.
pub(super) const KIND_CHUNK: u8 = 0;
/// Whole entries of one commit.
pub(super) const KIND_GROUP: u8 = 1;
/// Bytes before the data of a chunk.
pub(super) const CHUNK_HEADER_BYTES: usize = 24;

/// Why bytes of the log can't be trusted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Damage {
    #[error("entry {0} is missing")]
    Missing(u64),
    #[error("entry {index}: chunk {chunk} of its record is missing")]
    MissingChunk { index: u64, chunk: u32 },
    #[error("entry {index}: chunk {chunk} of its record has a wrong checksum")]
    Checksum { index: u64, chunk: u32 },
    #[error("entry {index}: its record has format version {version}; this binary knows {RECORD_VERSION}")]
    Version { index: u64, version: u8 },
    #[error("entry {index}: its record breaks the format: {why}")]
    Format { index: u64, why: &'static str },
    #[error("entry {index}: {error}")]
    Entry { index: u64, error: DecodeError },
    #[error("commit {commit} in the journal can't be used: {why}")]
    Journal { commit: u64, why: &'static str },
    #[error("the log's value '{0}' is damaged or missing")]
    Meta(&'static str),
}

/// Cuts the record of an entry, which is `head` and `payload`, into values of at most `chunk_bytes` and hands them out
/// in order.
pub(super) fn cut(id: LogId, head: &[u8], payload: &[u8], chunk_bytes: usize, mut put: impl FnMut(IVec, IVec)) {
    let total = head.len() + payload.len();
    let room = chunk_bytes - CHUNK_HEADER_BYTES;
    let chunks = u32::try_from(total.div_ceil(room)).expect("an entry has fewer than 2^32 chunks");
    let mut value = Vec::with_capacity(chunk_bytes.min(total + CHUNK_HEADER_BYTES));
    let mut at = 0;
    for chunk in 0..chunks {
        let end = (at + room).min(total);
        let key = keys::chunk(id.index, chunk);
        value.clear();
        value.extend_from_slice(&[RECORD_VERSION, KIND_CHUNK, 0, 0, 0, 0, 0, 0]);
        value.extend_from_slice(&chunks.to_le_bytes());
        value.extend_from_slice(&[0; 4]);
        value.extend_from_slice(&id.leader_id.term.to_le_bytes());
        if at < head.len() {
            value.extend_from_slice(&head[at..end.min(head.len())]);
        }
        if end > head.len() {
            value.extend_from_slice(&payload[at.max(head.len()) - head.len()..end - head.len()]);
        }
        put_crc(&key, &mut value);
        put(IVec::from(&key), IVec::from(value.as_slice()));
        at = end;
    }
}

/// How many chunks the record has, its term, and this chunk's data.
pub(super) fn open_chunk<'a>(
    key: &[u8],
    value: &'a [u8],
    index: u64,
    chunk: u32,
) -> Result<(u32, u64, &'a [u8]), Damage> {
    check_value(key, value, index, chunk, CHUNK_HEADER_BYTES)?;
    let chunks = u32::from_le_bytes([value[8], value[9], value[10], value[11]]);
    Ok((chunks, u64_at(value, 16), &value[CHUNK_HEADER_BYTES..]))
}

/// Version, length and checksum of an entry's value, of either kind.
pub(super) fn check_value(key: &[u8], value: &[u8], index: u64, chunk: u32, header_bytes: usize) -> Result<(), Damage> {
    if value.len() <= header_bytes {
        return Err(Damage::Checksum { index, chunk });
    }
    // Before the checksum: another version may have put its own somewhere else.
    if value[0] != RECORD_VERSION {
        return Err(Damage::Version { index, version: value[0] });
    }
    let said = u32::from_le_bytes([value[4], value[5], value[6], value[7]]);
    if said == value_crc(key, value) { Ok(()) } else { Err(Damage::Checksum { index, chunk }) }
}

/// Fills in the checksum of an entry's value when all else is in it.
pub(super) fn put_crc(key: &[u8], value: &mut [u8]) {
    let crc = value_crc(key, value);
    value[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn value_crc(key: &[u8], value: &[u8]) -> u32 {
    debug_assert_eq!(key.len(), CHUNK_KEY_BYTES);
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(&value[..4]);
    crc.update(&value[8..]);
    crc.finalize()
}

/// Data with version and checksum.
pub(super) fn seal(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(5 + data.len());
    out.push(RECORD_VERSION);
    out.extend_from_slice(&meta_crc(key, data).to_le_bytes());
    out.extend_from_slice(data);
    out
}

/// The data, if it is `len` bytes of this version and undamaged.
pub(super) fn unseal<'a>(key: &[u8], bytes: &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, data) = bytes.split_at_checked(5)?;
    let said = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    (head[0] == RECORD_VERSION && data.len() == len && said == meta_crc(key, data)).then_some(data)
}

fn meta_crc(key: &[u8], data: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[RECORD_VERSION]);
    crc.update(key);
    crc.update(data);
    crc.finalize()
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
