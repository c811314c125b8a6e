//! Exactly-once: idempotency keys with the replies that their commands got. Replicated state: the same on every replica
//! at the same index, and part of every snapshot. Time is the replicated clock, and nothing is forgotten but when a
//! batch is applied, so that the state follows from the log alone. Knows no module and runs nothing. Next:
//! `sessions/plan.rs` (what becomes of the commands of a batch), `sessions/record.rs` (one record's bytes).

mod plan;
mod record;

#[cfg(test)]
mod tests;

use raftlet_machine::ArchivedBatch;
use serde::{Deserialize, Serialize};

use self::record::{Fingerprint, Record};
use super::map::{Entry, Map};
use crate::outcome::CommandReply;

/// How long and how many. Replicated: set by the entry that activates the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionLimits {
    /// A key is kept for at least this long, in milliseconds of the replicated clock. Default 10 minutes.
    pub window_ms: u64,
    /// Keys at the same time. Default 1 million.
    pub keys_max: u64,
    /// Bytes of keys and records together, beyond which no new key is taken. Default 256 MiB. Replies aren't known
    /// before their commands run: those of one batch may go beyond it.
    pub bytes_max: u64,
}

impl Default for SessionLimits {
    fn default() -> Self {
        SessionLimits { window_ms: 600_000, keys_max: 1_000_000, bytes_max: 256 << 20 }
    }
}

impl SessionLimits {
    fn is_expired(&self, then_ms: u64, now_ms: u64) -> bool {
        then_ms.saturating_add(self.window_ms) < now_ms
    }
}

/// Expired keys that one batch forgets, at most: so many, and [`FORGET_PER_COMMAND`] for each of its commands. It is
/// more than a batch can add, so that what has expired never fills the place of what comes.
const FORGET_PER_BATCH: usize = 64;
const FORGET_PER_COMMAND: usize = 2;

/// All keys. Cloning is O(1).
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    /// Idempotency key to encoded record.
    records: Map,
    /// Time and command number (big-endian) to idempotency key: the oldest first. Follows from `records`.
    by_age: Map,
}

impl Sessions {
    /// Key to encoded record, in key order: what a snapshot keeps.
    pub fn records(&self) -> &Map {
        &self.records
    }

    /// Number of keys.
    pub fn keys(&self) -> u64 {
        self.records.len()
    }

    /// Bytes of keys and records.
    pub fn bytes(&self) -> u64 {
        self.records.bytes()
    }

    /// Whether a command of the batch has a key that is known, expired or not.
    pub fn knows_any(&self, batch: &ArchivedBatch) -> bool {
        batch.commands.iter().filter_map(plan::key_of).any(|key| self.records.get(key).is_some())
    }

    /// From what a snapshot kept.
    ///
    /// # Errors
    /// A key or a record can't be one that was kept.
    pub fn restore(records: Map) -> Result<Sessions, String> {
        let mut by_age = Map::new();
        for entry in records.iter() {
            let of = |why: String| format!("the idempotency key {:?}: {why}", entry.key().escape_ascii().to_string());
            if !plan::is_key(entry.key()) {
                return Err(of("no key is like this".into()));
            }
            let record = Record::read(entry.value()).and_then(|r| r.check().map(|()| r)).map_err(of)?;
            let age = age(record.time_ms, record.number);
            if by_age.insert(Entry::new(&age, entry.key())) {
                return Err(of(format!("command {} has another key too", record.number)));
            }
        }
        Ok(Sessions { records, by_age })
    }

    /// Forgets the oldest of the expired keys. The work is bounded; what is left goes with a later batch.
    fn forget_expired(&mut self, now_ms: u64, limits: &SessionLimits, commands: usize) {
        for _ in 0..FORGET_PER_BATCH + FORGET_PER_COMMAND * commands {
            // Nearly always empty or young, and then this is all.
            let Some(oldest) = (!self.by_age.is_empty()).then(|| self.by_age.iter().next()).flatten() else { return };
            let time: [u8; 8] = oldest.key()[..8].try_into().expect("an age has 16 bytes");
            if !limits.is_expired(u64::from_be_bytes(time), now_ms) {
                return;
            }
            let (age, key) = (oldest.key().to_vec(), oldest.value().to_vec());
            self.by_age.remove(&age);
            self.records.remove(&key);
        }
    }

    /// What is known of this key. An expired record is none, and is forgotten on the way.
    fn look_up(&mut self, key: &[u8], now_ms: u64, limits: &SessionLimits) -> Option<(Fingerprint, CommandReply)> {
        let found = self.records.get(key)?;
        let record = Record::read(found.value()).expect("records are checked when they come in");
        if !limits.is_expired(record.time_ms, now_ms) {
            return Some((record.fingerprint, record.reply()));
        }
        let age = age(record.time_ms, record.number);
        self.by_age.remove(&age);
        self.records.remove(key);
        None
    }

    /// Keeps the reply of a command that was run under a key that isn't known. False: it isn't one to be kept.
    fn keep(&mut self, key: &[u8], time_ms: u64, number: u64, fingerprint: &Fingerprint, reply: &CommandReply) -> bool {
        let Some(record) = record::encode(time_ms, number, fingerprint, reply) else { return false };
        let known = self.records.insert(Entry::new(key, &record));
        assert!(!known, "a key that is known isn't run again");
        self.by_age.insert(Entry::new(&age(time_ms, number), key));
        true
    }
}

/// Orders by time, then by command number.
fn age(time_ms: u64, number: u64) -> [u8; 16] {
    let mut age = [0; 16];
    age[..8].copy_from_slice(&time_ms.to_be_bytes());
    age[8..].copy_from_slice(&number.to_be_bytes());
    age
}
