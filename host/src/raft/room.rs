//! Which nodes have room on their disks: this one, and the others as they last said with an answer to an append. Owns
//! the decision whether this node as the leader may log a batch. Never looks at a disk: that is `log/space.rs`'s.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::types::NodeId;
use crate::log::Space;

/// How long a leader's refusal for want of room is taken for the state of things.
const SAID: Duration = Duration::from_secs(1);
/// A leader without room hands the lead over if it can: only one that refuses for so long couldn't, and until then
/// batches are handed over again, so that clients don't notice.
const PATIENCE: Duration = Duration::from_secs(2);
/// Refusals that are further apart are of two shortages.
const APART: Duration = Duration::from_secs(5);

pub struct Rooms {
    pub space: Space,
    low: Mutex<BTreeSet<NodeId>>,
    refused: Mutex<Option<Refusals>>,
}

/// When the leader refused batches because there is no room.
#[derive(Clone, Copy)]
struct Refusals {
    first: Instant,
    last: Instant,
}

impl Refusals {
    fn and(before: Option<Refusals>, now: Instant) -> Refusals {
        let first = before.filter(|r| now.saturating_duration_since(r.last) < APART).map_or(now, |r| r.first);
        Refusals { first, last: now }
    }

    fn lasting(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < SAID && self.last.saturating_duration_since(self.first) >= PATIENCE
    }
}

impl Rooms {
    pub fn new(space: Space) -> Self {
        Rooms { space, low: Mutex::default(), refused: Mutex::default() }
    }

    /// A peer said whether its disk is nearly full.
    pub fn heard(&self, peer: NodeId, low: bool) {
        let mut peers = self.low.lock().expect("no code panics under this lock");
        if low {
            peers.insert(peer);
        } else {
            peers.remove(&peer);
        }
    }

    /// Whether a peer has room. One that wasn't heard is believed to.
    pub fn has_room(&self, peer: NodeId) -> bool {
        !self.low.lock().expect("no code panics under this lock").contains(&peer)
    }

    /// Why a leader must log nothing: its own disk, or those of so many voters that the others are no majority.
    pub fn shortage(&self, voters: impl FnOnce() -> Vec<NodeId>) -> Option<String> {
        if let Some(why) = self.space.state().shortage {
            return Some(why.to_string());
        }
        let low = self.low.lock().expect("no code panics under this lock");
        if low.is_empty() {
            return None;
        }
        let voters = voters();
        let (without, with): (Vec<NodeId>, Vec<NodeId>) = voters.iter().copied().partition(|id| low.contains(id));
        (with.len() * 2 <= voters.len()).then(|| format!("a majority is needed, and nodes {without:?} have no room"))
    }

    /// The leader refused a batch of this node for want of room.
    pub fn leader_refused(&self) {
        let mut refused = self.refused.lock().expect("no code panics under this lock");
        *refused = Some(Refusals::and(*refused, Instant::now()));
    }

    /// Whether it does so, and does not hand over to one that has room.
    pub fn leader_is_low(&self) -> bool {
        let refused = self.refused.lock().expect("no code panics under this lock");
        refused.is_some_and(|refused| refused.lasting(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DiskConfig;

    #[test]
    fn only_a_leader_that_goes_on_refusing_is_taken_to_have_no_room() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let first = Refusals::and(None, at(0));
        assert!(!first.lasting(at(0)));
        let later = Refusals::and(Some(first), at(2_000));
        assert!(later.lasting(at(2_999)) && !later.lasting(at(3_000)));
        let probe = Refusals::and(Some(later), at(6_999));
        assert!(probe.lasting(at(6_999)), "still the same shortage");
        assert!(!Refusals::and(Some(probe), at(12_000)).lasting(at(12_000)), "another one");
    }

    #[tokio::test]
    async fn a_majority_without_room_is_a_shortage() {
        let dir = tempfile::tempdir().unwrap();
        let space = |free_min_bytes| {
            Space::start(dir.path(), DiskConfig { free_min_bytes, quota_bytes: 0 }, Default::default()).unwrap()
        };
        let rooms = Rooms::new(space(0));
        let shortage = || rooms.shortage(|| vec![1, 2, 3]);
        assert_eq!(shortage(), None);
        rooms.heard(2, true);
        assert!(shortage().is_none() && !rooms.has_room(2) && rooms.has_room(3));
        rooms.heard(3, true);
        assert!(shortage().unwrap().contains("nodes [2, 3] have no room"));
        rooms.heard(2, false);
        assert_eq!(shortage(), None);
        let full = Rooms::new(space(u64::MAX));
        assert!(full.shortage(Vec::new).unwrap().contains("--disk-free-min"));
    }
}
