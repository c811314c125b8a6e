//! The leader's clock for envelopes. A leader whose clock runs ahead would push the replicated clock, which never
//! goes back, ahead for all: so the stamp is never more than a second beyond the median clock of the nodes it hears.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use super::types::NodeId;

/// How far a leader's stamp may be beyond the median, in milliseconds.
const AHEAD_MS_MAX: i64 = 1000;

/// How far the peers' clocks are from this node's, as last heard.
#[derive(Default)]
pub struct Clocks {
    offsets_ms: Mutex<BTreeMap<NodeId, i64>>,
}

impl Clocks {
    /// A peer said its clock shows `time_ms`. What its message took to arrive makes it look that much behind.
    pub fn heard(&self, peer: NodeId, time_ms: u64) {
        let offset = (time_ms as i64).saturating_sub(now_ms() as i64);
        self.offsets_ms.lock().expect("no code panics under this lock").insert(peer, offset);
    }

    /// Milliseconds since the Unix epoch, for an envelope.
    pub fn stamp_ms(&self) -> u64 {
        let offsets: Vec<i64> =
            self.offsets_ms.lock().expect("no code panics under this lock").values().copied().collect();
        now_ms().saturating_add_signed(correction(offsets))
    }
}

/// What to add to the own clock, never positive. `offsets` are the others'.
fn correction(mut offsets: Vec<i64>) -> i64 {
    offsets.push(0);
    offsets.sort_unstable();
    // With an even number the lower of the two in the middle: it is the cautious one.
    let median = offsets[(offsets.len() - 1) / 2];
    (median + AHEAD_MS_MAX).min(0)
}

/// This machine's clock, milliseconds since the Unix epoch; 0 if it stands before that.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_runs_ahead_is_held_to_a_second_beyond_the_median() {
        assert_eq!(correction(vec![]), 0);
        assert_eq!(correction(vec![-20, 30]), 0);
        // Both peers are an hour behind: it is this node that is ahead.
        assert_eq!(correction(vec![-3_600_000, -3_600_000]), -3_599_000);
        // One peer alone is behind: the median is still here.
        assert_eq!(correction(vec![-3_600_000, 5]), 0);
        // This node is behind; its stamp is not moved forward.
        assert_eq!(correction(vec![9_000, 9_000]), 0);
    }
}
