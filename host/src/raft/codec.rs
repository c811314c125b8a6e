//! An entry as bytes: the same form in the log and between peers. A fixed header, then the payload's bytes as they
//! are, so that a batch is never copied to be encoded. Bytes that are no entry are an error, never a panic.
//!
//! ```text
//! 0  format version (1)      8  term         32 batch id: node, boot, sequence (3 × u64)
//! 1  kind                    16 index        56 time_ms
//! 2  reserved (0)            24 payload len  64 stamp index   72 stamp digest (16)   88 payload
//! ```
//!
//! All integers are little-endian. Kinds: 0 blank, 4 membership (postcard), else [`Kind`].

use bytes::{Bytes, BytesMut};
use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use openraft::vote::RaftLeaderId;

use super::types::{BatchId, Entry, Envelope, Kind, LogId, Proposal};

/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 88;
/// Version of the form above.
pub const ENTRY_VERSION: u8 = 1;

// A log with another layout of batches in it must be refused, not misread.
const _: () = assert!(ENTRY_VERSION == raftlet_machine::FORMAT_VERSION);

const BLANK: u8 = 0;
const MEMBERSHIP: u8 = 4;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("{0} bytes are too few for an entry")]
    Short(usize),
    #[error("entry has format version {0}; this binary knows {ENTRY_VERSION}")]
    Version(u8),
    #[error("entry has the unknown kind {0}")]
    Kind(u8),
    #[error("entry says it has {said} payload bytes but has {found}")]
    Length { said: u64, found: usize },
    #[error("entry has a membership that can't be read: {0}")]
    Membership(String),
}

/// The header and the payload, to be written one after the other.
pub fn encode(entry: &Entry) -> ([u8; HEADER_BYTES], Bytes) {
    let (kind, envelope, payload) = match &entry.payload {
        EntryPayload::Blank => (BLANK, None, Bytes::new()),
        EntryPayload::Normal(p) => (p.envelope.kind as u8, Some(p.envelope), p.bytes.clone()),
        EntryPayload::Membership(m) => {
            let bytes = postcard::to_allocvec(m).expect("a membership can always be encoded");
            (MEMBERSHIP, None, bytes.into())
        }
    };
    let log_id = entry.log_id();
    let mut h = [0; HEADER_BYTES];
    h[0] = ENTRY_VERSION;
    h[1] = kind;
    let mut put = |at: usize, v: u64| h[at..at + 8].copy_from_slice(&v.to_le_bytes());
    put(8, log_id.leader_id.term);
    put(16, log_id.index);
    put(24, payload.len() as u64);
    if let Some(e) = envelope {
        put(32, e.id.node);
        put(40, e.id.boot);
        put(48, e.id.sequence);
        put(56, e.time_ms);
        put(64, e.stamp_index);
        h[72..88].copy_from_slice(&e.stamp_digest);
    }
    (h, payload)
}

/// The length of the payload that follows this header.
pub fn payload_len(header: &[u8]) -> Result<u64, DecodeError> {
    if header.len() < HEADER_BYTES {
        return Err(DecodeError::Short(header.len()));
    }
    Ok(u64_at(header, 24))
}

/// Reads one entry that fills `bytes`. The payload is a slice of `bytes`, not a copy.
pub fn decode(bytes: Bytes) -> Result<Entry, DecodeError> {
    let said = payload_len(&bytes)?;
    let found = bytes.len() - HEADER_BYTES;
    if said != found as u64 {
        return Err(DecodeError::Length { said, found });
    }
    if bytes[0] != ENTRY_VERSION {
        return Err(DecodeError::Version(bytes[0]));
    }
    let payload = bytes.slice(HEADER_BYTES..);
    let payload = match bytes[1] {
        BLANK => EntryPayload::Blank,
        MEMBERSHIP => EntryPayload::Membership(
            postcard::from_bytes(&payload).map_err(|e| DecodeError::Membership(e.to_string()))?,
        ),
        kind => EntryPayload::Normal(Proposal { envelope: envelope(kind, &bytes)?, bytes: payload }),
    };
    Ok(Entry::new(log_id(u64_at(&bytes, 8), u64_at(&bytes, 16)), payload))
}

/// A log id from its two numbers.
pub fn log_id(term: u64, index: u64) -> LogId {
    // In standard Raft the id of a committed leader is its term; whose it was doesn't matter.
    let leader = openraft::impls::leader_id_std::LeaderId::<u64, u64>::new(term, 0);
    LogId::new(leader.to_committed(), index)
}

fn envelope(kind: u8, bytes: &[u8]) -> Result<Envelope, DecodeError> {
    let kind = match kind {
        1 => Kind::Batch,
        2 => Kind::ModuleChunk,
        3 => Kind::ActivateModule,
        5 => Kind::Checkpoint,
        other => return Err(DecodeError::Kind(other)),
    };
    let id = BatchId { node: u64_at(bytes, 32), boot: u64_at(bytes, 40), sequence: u64_at(bytes, 48) };
    let stamp_digest = bytes[72..88].try_into().expect("16 bytes");
    Ok(Envelope { kind, id, time_ms: u64_at(bytes, 56), stamp_index: u64_at(bytes, 64), stamp_digest })
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

/// Header and payload in one buffer.
pub fn to_bytes(entry: &Entry) -> Bytes {
    let (header, payload) = encode(entry);
    let mut out = BytesMut::with_capacity(HEADER_BYTES + payload.len());
    out.extend_from_slice(&header);
    out.extend_from_slice(&payload);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::super::types::Member;
    use super::*;
    use openraft::Membership;
    use std::collections::{BTreeMap, BTreeSet};

    fn entries() -> Vec<Entry> {
        let id = BatchId { node: 2, boot: 0xb007, sequence: 9 };
        let envelope =
            Envelope { kind: Kind::Batch, id, time_ms: 1_234, stamp_index: 6, stamp_digest: *b"0123456789abcdef" };
        let bytes = Bytes::from_static(b"|BATCH|\0\xff");
        let member = Member { address: "127.0.0.1:9080".into(), identity: 7 };
        let nodes: BTreeMap<u64, Member> = [(1, member)].into();
        let membership = Membership::new(vec![BTreeSet::from([1])], nodes).unwrap();
        vec![
            Entry::new(log_id(3, 6), EntryPayload::Blank),
            Entry::new(log_id(3, 7), EntryPayload::Normal(Proposal { envelope, bytes })),
            Entry::new(log_id(3, 8), EntryPayload::Membership(membership)),
        ]
    }

    #[test]
    fn every_kind_of_entry_survives_the_round_trip() {
        for entry in entries() {
            assert_eq!(decode(to_bytes(&entry)).unwrap(), entry);
        }
    }

    #[test]
    fn bytes_that_are_no_entry_are_errors() {
        let good = to_bytes(&entries()[1]);
        assert_eq!(decode(good.slice(..50)), Err(DecodeError::Short(50)));
        assert_eq!(decode(good.slice(..good.len() - 1)), Err(DecodeError::Length { said: 9, found: 8 }));
        let with = |at: usize, v: u8| {
            let mut b = good.to_vec();
            b[at] = v;
            decode(b.into()).unwrap_err()
        };
        assert_eq!(with(0, 2), DecodeError::Version(2));
        assert_eq!(with(1, 77), DecodeError::Kind(77));
        assert!(matches!(with(1, MEMBERSHIP), DecodeError::Membership(_)));
    }
}
