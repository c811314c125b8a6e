//! The entry that makes a module answer. What decides replies stands here, in the log, and not in a node's settings:
//! the module's bytes (by digest; the pieces came before), its limits, and the engine that runs it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::guest::Limits;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activation {
    /// The cluster's id: the seed of all randomness that modules see.
    pub cluster: u64,
    /// BLAKE3 of the module's bytes.
    pub digest: [u8; 32],
    pub bytes: u64,
    pub limits: Limits,
    /// Of the node that proposed it. A replica with another engine may decide fuel and stack differently.
    pub engine: String,
}

impl Activation {
    pub fn of(module: &[u8], cluster: u64, limits: Limits, engine: &str) -> Self {
        let digest = *blake3::hash(module).as_bytes();
        Activation { cluster, digest, bytes: module.len() as u64, limits, engine: engine.into() }
    }

    pub fn to_bytes(&self) -> Bytes {
        postcard::to_allocvec(self).expect("numbers and text can be encoded").into()
    }

    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        postcard::from_bytes(bytes).map_err(|e| format!("the activation can't be read: {e}"))
    }
}
