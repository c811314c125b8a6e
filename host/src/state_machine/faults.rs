//! Faults that a test asks for by `FAILPOINTS`, on one node of a cluster: a poisonous entry, a flipped bit, a write that
//! goes wrong, a module that sees its node's own clock. The entry that is to be hurt has the fault's name in its bytes
//! (`failpoint:poison`), so that a client chooses the moment. Debug builds only; a release build has nothing of this.

use openraft::EntryPayload;
use openraft::entry::RaftEntry;

use super::Published;
use super::gate::Pass;
use super::map;
use crate::raft::types::{Entry, Proposal};
use crate::{failpoint, failpoint_hit};

/// What is to be done to the state after the entry was applied.
#[derive(Default)]
pub(super) struct Fault {
    corrupt_map: bool,
    corrupt_write: bool,
}

/// May end the process.
pub(super) fn before(entry: &Entry, pass: Pass) -> Fault {
    let EntryPayload::Normal(Proposal { bytes, .. }) = &entry.payload else { return Fault::default() };
    if !matches!(pass, Pass::Apply | Pass::Checkpoint) {
        return Fault::default();
    }
    failpoint!("apply.before");
    let names = |fault: &[u8]| bytes.windows(fault.len()).any(|w| w == fault);
    if failpoint_hit!("apply.poison") && names(b"failpoint:poison") {
        failpoint::die();
    }
    let fault = Fault {
        corrupt_map: failpoint_hit!("apply.corrupt-map") && names(b"failpoint:corrupt-map"),
        corrupt_write: failpoint_hit!("apply.corrupt-write") && names(b"failpoint:corrupt-write"),
    };
    if fault.corrupt_map || fault.corrupt_write {
        tracing::warn!(index = entry.log_id().index, "failpoint: this node's state is changed");
    }
    fault
}

impl Fault {
    pub(super) fn after(&self, state: &mut Published) {
        if self.corrupt_map || self.corrupt_write {
            let first = state.map.iter().next().map(|e| (e.key().to_vec(), e.value().to_vec()));
            if let Some((key, mut value)) = first {
                match value.last_mut() {
                    Some(byte) => *byte ^= 1,
                    None => value.push(1),
                }
                state.map.insert(map::Entry::new(&key, &value));
            }
        }
        if self.corrupt_write {
            // As if the wrong value had been this entry's write.
            state.digest = *blake3::hash(&state.digest).as_bytes();
        }
        failpoint!("apply.after");
    }
}

/// Nanoseconds since the Unix epoch, by this node's own clock: what no module may see.
pub(super) fn own_clock() -> Option<u64> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    // Two nodes may apply an entry in the same microsecond.
    failpoint_hit!("apply.own-clock").then(|| now.as_nanos() as u64)
}
