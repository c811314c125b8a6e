//! The limits of a module: replicated state, set by the entry that activates it. They never come from a node's own
//! settings, because a limit decides replies. The next file is `engine.rs`.

use raftlet_machine::limits;
use serde::{Deserialize, Serialize};

use super::engine::MEMORY_BYTES_CAP;

/// What a module may use. Fuel is about one unit per Wasm instruction and per byte copied in bulk; about 10⁹ a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Of one command or query, imports included. Default 100 million: about 0.1 s.
    pub fuel_per_command: u64,
    /// Of all commands of a batch together, those that failed included. Default 1 billion: about 1 s. Commands beyond it
    /// are answered `BatchBudget` and have no effect.
    pub fuel_per_batch: u64,
    /// Of what belongs to no command: until the first `begin`, and again added to the last command's fuel, for the
    /// archiving of the replies. Also of `describe`. Default 200 million.
    pub fuel_frame: u64,
    /// Of one instance's linear memory, in bytes. Default 256 MiB; at most [`MEMORY_BYTES_CAP`].
    pub memory_bytes_max: u64,
    /// Of one key, in bytes. Default 4 KiB, as the contract says.
    pub key_bytes_max: u32,
    /// Of one value, in bytes. Default 8 MiB and 64 KiB, as the contract says.
    pub value_bytes_max: u32,
    /// Of a batch's archived replies, in bytes. Default 64 MiB.
    pub reply_bytes_max: u32,
}

/// A light run's fuel for its commands: about a millisecond.
const LIGHT_FUEL: u64 = 1_000_000;
/// And for what belongs to none of them, before the first and again behind the last.
const LIGHT_FRAME_FUEL: u64 = 500_000;
/// A light run's memory, in bytes. To fetch, clear and copy it must take no longer than the fuel.
const LIGHT_MEMORY_BYTES: u64 = 8 << 20;
/// They are copied, checked and hashed.
const LIGHT_REPLY_BYTES: u32 = 256 << 10;

/// These limits can't be used on any node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLimits {
    #[error("the limit {name} is 0, it must be at least 1")]
    Zero { name: &'static str },
    #[error("the limit {name} is {value}, it must be at most {max}")]
    TooLarge { name: &'static str, value: u64, max: u64 },
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            fuel_per_command: 100_000_000,
            fuel_per_batch: 1_000_000_000,
            fuel_frame: 200_000_000,
            memory_bytes_max: 256 << 20,
            key_bytes_max: limits::KEY_BYTES_MAX as u32,
            value_bytes_max: limits::VALUE_BYTES_MAX as u32,
            reply_bytes_max: limits::REPLIES_BYTES_MAX as u32,
        }
    }
}

/// Sums of two fuels must stay inside wasmtime's signed counter.
const FUEL_MAX: u64 = i64::MAX as u64 / 4;

impl Limits {
    /// At most a light run's (`apply.rs`).
    pub(super) fn light(self) -> Limits {
        Limits {
            fuel_per_batch: self.fuel_per_batch.min(LIGHT_FUEL),
            fuel_frame: self.fuel_frame.min(LIGHT_FRAME_FUEL),
            memory_bytes_max: self.memory_bytes_max.min(LIGHT_MEMORY_BYTES),
            reply_bytes_max: self.reply_bytes_max.min(LIGHT_REPLY_BYTES),
            ..self
        }
    }

    /// What each limit must be so that every node can keep it.
    pub fn validate(&self) -> Result<(), InvalidLimits> {
        let bounds = [
            ("fuel_per_command", self.fuel_per_command, FUEL_MAX),
            ("fuel_per_batch", self.fuel_per_batch, FUEL_MAX),
            ("fuel_frame", self.fuel_frame, FUEL_MAX),
            ("memory_bytes_max", self.memory_bytes_max, MEMORY_BYTES_CAP),
            ("key_bytes_max", u64::from(self.key_bytes_max), u64::from(u32::MAX)),
            ("value_bytes_max", u64::from(self.value_bytes_max), u64::from(u32::MAX)),
            ("reply_bytes_max", u64::from(self.reply_bytes_max), u64::from(u32::MAX)),
        ];
        for (name, value, max) in bounds {
            if value == 0 {
                return Err(InvalidLimits::Zero { name });
            }
            if value > max {
                return Err(InvalidLimits::TooLarge { name, value, max });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_the_bounds_are_kept() {
        let limits = Limits::default();
        assert_eq!(limits.validate(), Ok(()));
        assert_eq!(Limits { memory_bytes_max: MEMORY_BYTES_CAP, ..limits }.validate(), Ok(()));
        assert!(Limits { memory_bytes_max: MEMORY_BYTES_CAP + 1, ..limits }.validate().is_err());
        assert!(Limits { fuel_per_command: 0, ..limits }.validate().is_err());
        assert!(Limits { fuel_frame: u64::MAX, ..limits }.validate().is_err());
    }
}
