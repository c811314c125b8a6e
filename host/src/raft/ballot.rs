//! Who is right, from what the voters say: a pure decision. A digest that more than half of ALL voters hold at one index
//! is right; those that can't be asked count among all. Who asks and what follows is `audit.rs`.

use std::collections::BTreeMap;

use super::types::NodeId;
use crate::state_machine::Short;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A majority holds this digest.
    Right { right: Short, wrong: Vec<NodeId> },
    /// Voters differ, and no majority holds one digest. Each with whom it was heard from.
    Split(BTreeMap<Short, Vec<NodeId>>),
    /// Nobody differs, but too few were heard.
    Unknown,
}

/// `heard`: each voter that knows its digest at the index, once. `voters`: how many there are in all.
pub fn decide(heard: &[(NodeId, Short)], voters: usize) -> Decision {
    let mut held: BTreeMap<Short, Vec<NodeId>> = BTreeMap::new();
    for (node, digest) in heard {
        held.entry(*digest).or_default().push(*node);
    }
    let majority = held.iter().find(|(_, nodes)| 2 * nodes.len() > voters).map(|(digest, _)| *digest);
    match majority {
        Some(right) => {
            let wrong = held.into_iter().filter(|(digest, _)| *digest != right).flat_map(|(_, nodes)| nodes);
            Decision::Right { right, wrong: wrong.collect() }
        }
        None if held.len() > 1 => Decision::Split(held),
        None => Decision::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Short = [1; 16];
    const B: Short = [2; 16];
    const C: Short = [3; 16];

    fn right(right: Short, wrong: &[NodeId]) -> Decision {
        Decision::Right { right, wrong: wrong.to_vec() }
    }

    fn is_split(heard: &[(NodeId, Short)], voters: usize) -> bool {
        matches!(decide(heard, voters), Decision::Split(_))
    }

    #[test]
    fn more_than_half_of_all_voters_are_right() {
        assert_eq!(decide(&[(1, A), (2, A), (3, A)], 3), right(A, &[]));
        assert_eq!(decide(&[(1, A), (2, B), (3, A)], 3), right(A, &[2]));
        assert_eq!(decide(&[(1, A), (2, A)], 3), right(A, &[]));
        assert_eq!(decide(&[(1, A), (2, A), (3, A), (4, B), (5, C)], 5), right(A, &[4, 5]));
        assert_eq!(decide(&[(1, A), (2, A), (3, A), (4, B)], 5), right(A, &[4]));
        assert_eq!(decide(&[(1, A)], 1), right(A, &[]));
    }

    #[test]
    fn half_is_no_majority_and_neither_is_more_than_half_of_those_heard() {
        assert!(is_split(&[(1, A), (2, B)], 2));
        assert!(is_split(&[(1, A), (2, A), (3, B), (4, B)], 4));
        assert!(is_split(&[(1, A), (2, A), (3, B)], 4));
        assert_eq!(decide(&[(1, A), (2, A), (3, A), (4, B)], 4), right(A, &[4]));
        // One of three is down.
        assert!(is_split(&[(1, A), (2, B)], 3));
        assert!(is_split(&[(1, A), (2, A), (3, B)], 5));
        assert!(is_split(&[(1, A), (2, B), (3, C)], 3));
    }

    #[test]
    fn too_few_that_agree_decide_nothing_and_accuse_nobody() {
        assert_eq!(decide(&[], 3), Decision::Unknown);
        assert_eq!(decide(&[(1, A)], 3), Decision::Unknown);
        assert_eq!(decide(&[(1, A)], 2), Decision::Unknown);
        assert_eq!(decide(&[(1, A), (2, A)], 4), Decision::Unknown);
    }
}
