//! The leader's clock for envelopes. A leader whose clock is ahead, or is stepped ahead, would push the replicated clock,
//! which never goes back, ahead for all, and idempotency keys would be forgotten early: so the stamp is never more than
//! a second beyond the median clock of the nodes it has heard, and without a majority's clocks it says nothing.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::types::NodeId;

/// How far a leader's stamp may be beyond the median, in milliseconds.
const AHEAD_MS_MAX: u64 = 1000;
/// A stamp that doesn't move the replicated clock.
const NO_NEWS: u64 = 0;

/// The peers' clocks, as last heard.
#[derive(Default)]
pub struct Clocks {
    /// Milliseconds since the Unix epoch, and when they were heard. Not the difference to this node's own time of day:
    /// when that is stepped, all differences are wrong until each peer is heard again.
    heard: Mutex<BTreeMap<NodeId, (u64, Instant)>>,
}

impl Clocks {
    /// A peer said its clock shows `time_ms`. What its message took to arrive makes it look that much behind.
    pub fn heard(&self, peer: NodeId, time_ms: u64) {
        self.heard.lock().expect("no code panics under this lock").insert(peer, (time_ms, Instant::now()));
    }

    /// Milliseconds since the Unix epoch, for an envelope. `voters`: how many the cluster has, this node included.
    pub fn stamp_ms(&self, voters: usize) -> u64 {
        let heard = self.heard.lock().expect("no code panics under this lock");
        let now = |(time_ms, at): &(u64, Instant)| time_ms.saturating_add(at.elapsed().as_millis() as u64);
        stamp(now_ms(), heard.values().map(now).collect(), voters)
    }
}

/// `clocks` are the others'.
fn stamp(own_ms: u64, mut clocks: Vec<u64>, voters: usize) -> u64 {
    clocks.push(own_ms);
    // Of a leader that has just been elected: with its first commit it has heard a majority.
    if clocks.len() <= voters / 2 {
        return NO_NEWS;
    }
    clocks.sort_unstable();
    // With an even number the lower of the two in the middle: it is the cautious one.
    let median = clocks[(clocks.len() - 1) / 2];
    own_ms.min(median.saturating_add(AHEAD_MS_MAX))
}

/// This machine's clock, milliseconds since the Unix epoch; 0 if it stands before that.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_800_000_000_000;
    const HOUR: u64 = 3_600_000;

    #[test]
    fn a_clock_that_runs_ahead_is_held_to_a_second_beyond_the_median() {
        assert_eq!(stamp(NOON, vec![], 1), NOON);
        assert_eq!(stamp(NOON, vec![NOON - 20, NOON + 30], 3), NOON);
        // Both peers are an hour behind: it is this node that is ahead.
        assert_eq!(stamp(NOON, vec![NOON - HOUR, NOON - HOUR], 3), NOON - HOUR + AHEAD_MS_MAX);
        // One peer alone is behind: the median is still here.
        assert_eq!(stamp(NOON, vec![NOON - HOUR, NOON + 5], 3), NOON);
        // This node is behind; its stamp is not moved forward.
        assert_eq!(stamp(NOON, vec![NOON + 9_000, NOON + 9_000], 3), NOON);
        assert_eq!(stamp(NOON, vec![u64::MAX, u64::MAX], 3), NOON);
    }

    #[test]
    fn a_leader_that_has_heard_no_majority_moves_the_clock_nowhere() {
        assert_eq!(stamp(NOON, vec![], 3), NO_NEWS);
        assert_eq!(stamp(NOON, vec![NOON], 5), NO_NEWS);
        assert_eq!(stamp(NOON, vec![NOON, NOON], 5), NOON);
        assert_eq!(stamp(NOON, vec![NOON - HOUR], 3), NOON - HOUR + AHEAD_MS_MAX, "of two the lower one");
    }

    #[test]
    fn a_step_of_the_own_clock_is_noticed_before_anybody_is_heard_again() {
        // As if the step came right after these were heard.
        let before = now_ms() - HOUR;
        let clocks = Clocks::default();
        clocks.heard(2, before);
        clocks.heard(3, before);
        std::thread::sleep(std::time::Duration::from_millis(5));
        let stamp = clocks.stamp_ms(3);
        assert!(stamp >= before + AHEAD_MS_MAX + 5, "the peers' clocks go on");
        assert!(stamp < before + AHEAD_MS_MAX + HOUR / 2, "{} ms beyond", stamp - before);
    }
}
