//! Exactly-once: idempotency keys with the replies that their commands got. Replicated state: the same on every replica
//! at the same index, and part of every snapshot. Kept for a window of the replicated clock.

use serde::{Deserialize, Serialize};

use super::map::Map;

/// How long and how many. Replicated: set by the entry that activates the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionLimits {
    /// A key is kept for at least this long, in milliseconds of the replicated clock. Default 10 minutes.
    pub window_ms: u64,
    /// Keys at the same time. Default 1 million.
    pub keys_max: u64,
    /// Bytes of keys and replies together. Default 256 MiB.
    pub bytes_max: u64,
}

impl Default for SessionLimits {
    fn default() -> Self {
        SessionLimits { window_ms: 600_000, keys_max: 1_000_000, bytes_max: 256 << 20 }
    }
}

/// All keys. Cloning is O(1).
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    /// Idempotency key to encoded record.
    records: Map,
}

impl Sessions {
    /// Key to encoded record, in key order: what a snapshot keeps.
    pub fn records(&self) -> &Map {
        &self.records
    }

    /// From what a snapshot kept.
    ///
    /// # Errors
    /// A record can't be read.
    pub fn restore(records: Map) -> Result<Sessions, String> {
        Ok(Sessions { records })
    }
}
