//! What a machine may know beside the request and the store. Equal on all replicas.

use super::bindings::raftlet::machine::types;

/// The only clock, identity and randomness there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Of the entry that is applied; in a query, of the state that is read.
    pub log_index: u64,
    pub term: u64,
    /// Milliseconds since the Unix epoch, stamped by the leader, never running backwards.
    pub time_ms: u64,
    /// This command's own number: unique and increasing for ever. In a query it names no command.
    pub command_number: u64,
    /// Random bits, equal on all replicas, different for each command.
    pub seed: u64,
}

impl Context {
    /// The context of the command at `position`.
    pub(super) fn of_command(batch: &types::Context, position: u32) -> Self {
        Context {
            log_index: batch.log_index,
            term: batch.term,
            time_ms: batch.time_ms,
            command_number: batch.first_command + u64::from(position),
            seed: mix(batch.seed ^ mix(u64::from(position))),
        }
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): neighbouring inputs give unrelated outputs.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_one_batch_differ_in_number_and_seed_only() {
        let batch = types::Context { log_index: 7, term: 2, time_ms: 5, first_command: 40, seed: 9 };
        let (first, second) = (Context::of_command(&batch, 0), Context::of_command(&batch, 1));
        assert_eq!((first.command_number, second.command_number), (40, 41));
        assert_ne!(first.seed, second.seed);
        assert_eq!(Context { command_number: 40, seed: first.seed, ..second }, first);
        assert_eq!(Context::of_command(&batch, 1), second);
    }
}
