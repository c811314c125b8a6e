//! The stamp: what a commit says of the whole log beside its entries. Owns its bytes, and the rule which of the stamps
//! in the tree counts. Never writes one: `pending.rs` does. Next: `record.rs`.
//!
//! ```text
//! stamp   0 sequence  8 first index  16 flags (1 purged, 2 last, 4 committed, 8 vote, 16 the vote is committed)
//!         24 purged   40 last        56 committed   72 vote: term, node      (log ids: term, index)
//! ```
//!
//! Every commit has exactly one sequence and carries a stamp: inside the group it consists of, or under
//! [`keys::LAST`], or both. The newest sequence counts. The record that carries it is only ever removed by a write that
//! carries a newer one.

use sled::Tree;

use super::record::{self, Damage, KIND_GROUP, u64_at};
use super::view::Bounds;
use super::{group, keys};
use crate::raft::codec::log_id;
use crate::raft::types::{LogId, Vote};

/// Bytes of a stamp.
pub(super) const STAMP_BYTES: usize = 88;

const PURGED: u64 = 1;
const LAST: u64 = 2;
const COMMITTED: u64 = 4;
const VOTE: u64 = 8;
const VOTE_COMMITTED: u64 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Counts commits since the log was created.
    pub sequence: u64,
    pub bounds: Bounds,
    /// The last committed log id that was saved.
    pub committed: Option<LogId>,
    /// The hard state.
    pub vote: Option<Vote>,
}

/// Why no stamp was found.
#[derive(Debug)]
pub(super) enum Unreadable {
    Damage(Damage),
    Sled(sled::Error),
}

impl From<Damage> for Unreadable {
    fn from(damage: Damage) -> Self {
        Unreadable::Damage(damage)
    }
}

impl From<sled::Error> for Unreadable {
    fn from(error: sled::Error) -> Self {
        Unreadable::Sled(error)
    }
}

impl Stamp {
    /// Of the log that ends with this entry and not later.
    pub(super) fn end_at(&mut self, last: Option<LogId>) {
        let purged = self.bounds.purged;
        let is_behind = |last: &LogId| purged.is_none_or(|purged| purged.index < last.index);
        self.bounds.last = last.filter(is_behind).or(purged);
        self.committed = self.committed.min(self.bounds.last);
    }

    pub(super) fn to_bytes(self) -> [u8; STAMP_BYTES] {
        let mut bytes = [0; STAMP_BYTES];
        let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        let mut flags = 0;
        let ids = [(24, PURGED, self.bounds.purged), (40, LAST, self.bounds.last), (56, COMMITTED, self.committed)];
        for (at, flag, id) in ids {
            if let Some(id) = id {
                flags |= flag;
                put(at, id.leader_id.term);
                put(at + 8, id.index);
            }
        }
        if let Some(vote) = self.vote {
            flags |= VOTE | if vote.committed { VOTE_COMMITTED } else { 0 };
            put(72, vote.leader_id.term);
            put(80, vote.leader_id.voted_for);
        }
        put(0, self.sequence);
        put(8, self.bounds.first);
        put(16, flags);
        bytes
    }

    /// `None`: the bytes contradict themselves. Whether they are undamaged is their record's to know.
    pub(super) fn from_bytes(bytes: &[u8; STAMP_BYTES]) -> Option<Stamp> {
        let flags = u64_at(bytes, 16);
        let id = |at, flag| (flags & flag != 0).then(|| log_id(u64_at(bytes, at), u64_at(bytes, at + 8)));
        let bounds = Bounds { purged: id(24, PURGED), first: u64_at(bytes, 8), last: id(40, LAST) };
        let vote = (flags & VOTE != 0).then(|| {
            let mut vote = Vote::new(u64_at(bytes, 72), u64_at(bytes, 80));
            vote.committed = flags & VOTE_COMMITTED != 0;
            vote
        });
        let fits = bounds.purged.is_none_or(|p| p.index.checked_add(1) == Some(bounds.first) && Some(p) <= bounds.last);
        fits.then_some(Stamp { sequence: u64_at(bytes, 0), bounds, committed: id(56, COMMITTED), vote })
    }

    /// As the value under [`keys::LAST`].
    pub(super) fn to_meta(self) -> Vec<u8> {
        record::seal(keys::LAST, &self.to_bytes())
    }

    fn from_meta(value: &[u8]) -> Option<Stamp> {
        let bytes = record::unseal(keys::LAST, value, STAMP_BYTES)?;
        Stamp::from_bytes(bytes.try_into().ok()?)
    }
}

/// The stamp of the newest commit in the tree. Groups later in the log are of later commits, so that only the last one
/// can be newer than what lies under [`keys::LAST`].
pub(super) fn newest(tree: &Tree) -> Result<Stamp, Unreadable> {
    let meta = tree.get(keys::LAST)?.and_then(|value| Stamp::from_meta(&value));
    let meta = meta.ok_or(Unreadable::Damage(Damage::Meta("last")))?;
    let Some((key, value)) = tree.get_lt(keys::ENTRY_END)? else { return Ok(meta) };
    let Some((index, chunk)) = keys::parse_chunk(&key) else { return Ok(meta) };
    if value.get(1) != Some(&KIND_GROUP) {
        // A group that lost its kind must not pass as an older commit's leftover.
        record::open_chunk(&key, &value, index, chunk)?;
        return Ok(meta);
    }
    let stamp = group::open(&key, &value, index)?.stamp;
    Ok(if stamp.sequence > meta.sequence { stamp } else { meta })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_survive_and_damage_is_found() {
        let bounds = Bounds { purged: Some(log_id(1, 3)), first: 4, last: Some(log_id(2, 7)) };
        let mut vote = Vote::new_committed(5, 3);
        let full = Stamp { sequence: 9, bounds, committed: Some(log_id(2, 6)), vote: Some(vote) };
        vote.committed = false;
        let open = Stamp { vote: Some(vote), committed: None, ..full };
        let empty = Stamp { sequence: 1, bounds: Bounds::EMPTY, committed: None, vote: None };
        for stamp in [full, open, empty] {
            assert_eq!(Stamp::from_bytes(&stamp.to_bytes()), Some(stamp));
            assert_eq!(Stamp::from_meta(&stamp.to_meta()), Some(stamp));
        }
        let meta = full.to_meta();
        for bit in 0..meta.len() * 8 {
            let mut bad = meta.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Stamp::from_meta(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn bounds_that_contradict_themselves_are_refused() {
        let stamp = |first, last| Stamp {
            sequence: 1,
            bounds: Bounds { purged: Some(log_id(1, 3)), first, last: Some(log_id(1, last)) },
            committed: None,
            vote: None,
        };
        assert!(Stamp::from_bytes(&stamp(4, 3).to_bytes()).is_some());
        assert!(Stamp::from_bytes(&stamp(5, 9).to_bytes()).is_none());
        assert!(Stamp::from_bytes(&stamp(4, 2).to_bytes()).is_none());
    }
}
