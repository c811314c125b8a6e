//! The entry that makes a module answer. What decides replies stands here, in the log, and not in a node's settings:
//! the module's bytes (by digest; the pieces came before), its limits, and the engine that runs it.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::sessions::SessionLimits;
use crate::guest::Limits;
use crate::raft::types::BatchId;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activation {
    /// The cluster's id: the seed of all randomness that modules see.
    pub cluster: u64,
    /// BLAKE3 of the module's bytes.
    pub digest: [u8; 32],
    pub bytes: u64,
    pub limits: Limits,
    /// Of idempotency keys.
    pub sessions: SessionLimits,
    /// Of the node that proposed it. A replica with another engine may decide fuel and stack differently.
    pub engine: String,
}

/// The activation that counts, with the bytes it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Active {
    pub activation: Activation,
    pub module: Bytes,
}

/// The pieces of one attempt to log a module, so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pieces {
    pub first: BatchId,
    pub next_sequence: u64,
    pub bytes: Vec<u8>,
}

impl Pieces {
    /// Whether the entry `id` goes on where these pieces end.
    fn is_next(&self, id: BatchId) -> bool {
        (self.first.node, self.first.boot, self.next_sequence) == (id.node, id.boot, id.sequence)
    }

    /// One more piece. The first of another attempt voids what an earlier one left.
    pub fn add(pieces: &mut Option<Arc<Pieces>>, id: BatchId, bytes: &[u8]) {
        match pieces {
            Some(p) if p.is_next(id) => {
                let p = Arc::make_mut(p);
                p.bytes.extend_from_slice(bytes);
                p.next_sequence += 1;
            }
            _ => {
                *pieces = Some(Arc::new(Pieces { first: id, next_sequence: id.sequence + 1, bytes: bytes.to_vec() }));
            }
        }
    }

    /// The whole module, if the entry `id` ends this attempt.
    pub fn complete(pieces: Option<Arc<Pieces>>, id: BatchId) -> Vec<u8> {
        pieces.filter(|p| p.is_next(id)).map_or_else(Vec::new, |p| p.bytes.clone())
    }
}

impl Activation {
    pub fn of(module: &[u8], cluster: u64, limits: Limits, engine: &str) -> Self {
        let digest = *blake3::hash(module).as_bytes();
        Activation {
            cluster,
            digest,
            bytes: module.len() as u64,
            limits,
            sessions: SessionLimits::default(),
            engine: engine.into(),
        }
    }

    pub fn to_bytes(&self) -> Bytes {
        postcard::to_allocvec(self).expect("numbers and text can be encoded").into()
    }

    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        postcard::from_bytes(bytes).map_err(|e| format!("the activation can't be read: {e}"))
    }
}
