//! Turns operations into writes of sled's: a single value wherever that is possible, because a `sled::Batch` costs a
//! second write to the disk; and never more at once than sled can lose without a trace of it (`parts.rs`). Owns the rule
//! that each part leaves a log that can be opened. Never flushes: that is `writer/mod.rs`'s.

use std::collections::{BTreeSet, VecDeque};

use sled::{Batch, IVec, Tree};

use super::parts::Parts;
use super::record::{self, KIND_GROUP};
use super::stamp::{Stamp, Unreadable};
use super::{group, keys, store, walk};
use crate::raft::codec;
use crate::raft::types::{Entry, LogId};

/// Changes to the tree that are not applied yet.
#[derive(Default)]
pub(super) struct Pending {
    removed: BTreeSet<IVec>,
    /// In the order of their indices. The tree has nothing from the first of these on.
    queued: Vec<Entry>,
    /// What is left of an entry that is written in several parts, in the order of the keys.
    cut: Option<(LogId, VecDeque<(IVec, IVec)>)>,
    /// There is something to be said that only the stamp says.
    stamp_changed: bool,
    /// The tree has values behind the last entry: a stamp in a group wouldn't be found.
    beyond: bool,
    builder: group::Builder,
    counts: Counts,
    values_written: usize,
}

/// Entries that were appended, and bytes of all records in the write: a truncation may write some again.
pub(super) type Counts = (u64, u64);

/// A key, and its new value; none: it is removed.
pub(super) type Change = (IVec, Option<IVec>);

/// One atomic write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub changes: Vec<Change>,
}

impl Pending {
    /// The commit is to be made even if only its stamp is new.
    pub(super) fn stamp(&mut self) {
        self.stamp_changed = true;
    }

    pub(super) fn append(&mut self, entries: Vec<Entry>) {
        self.counts.0 += entries.len() as u64;
        self.queued.extend(entries);
    }

    /// Ends the log before `index`, which is in the tree, as is everything that was queued. What a group has before it
    /// stays; what lies behind is deleted after that ([`Pending::remove_beyond`]).
    pub(super) fn truncate(&mut self, tree: &Tree, index: u64) -> Result<(), Unreadable> {
        assert!(self.is_empty(), "a truncation is a write of its own");
        self.stamp_changed = true;
        self.beyond = true;
        let Some((key, value)) = tree.get_lt(keys::chunk(index, 0))? else { return Ok(()) };
        let Some((first, _)) = keys::parse_chunk(&key) else { return Ok(()) };
        if value.get(1) == Some(&KIND_GROUP) && group::open(&key, &value, first)?.end() > index {
            // It takes the same key.
            let queued = &mut self.queued;
            walk::Walk::new(first).step(&key, &value, |entry, _| {
                if entry.log_id.index < index {
                    queued.push(entry);
                }
            })?;
        }
        Ok(())
    }

    /// Removes values behind the last entry, at most `count`, the lowest first. Whether there was any.
    pub(super) fn remove_beyond(&mut self, tree: &Tree, next: u64, count: usize) -> sled::Result<bool> {
        for key in tree.range(keys::range(next, None)).keys().take(count) {
            self.removed.insert(key?);
        }
        Ok(!self.removed.is_empty())
    }

    /// Forgets queued entries before `first`: they were purged before they were written.
    pub(super) fn purge(&mut self, first: u64) {
        let gone = self.queued.partition_point(|entry| entry.log_id.index < first);
        self.queued.drain(..gone);
        self.stamp_changed = true;
    }

    /// Removes values in the tree all of whose entries lie in [start, end), at most `count` of them. Returns where the
    /// oldest value left may be, and whether there are more to be removed.
    pub(super) fn remove(&mut self, tree: &Tree, start: u64, end: u64, count: usize) -> sled::Result<(u64, bool)> {
        let mut held: Option<(IVec, u64)> = None;
        for key in tree.range(keys::range(start, None)).keys() {
            let key = key?;
            let Some((index, _)) = keys::parse_chunk(&key) else { break };
            // What begins here says where the one before it ends.
            if let Some((key, first)) = held.take() {
                if index > end {
                    held = Some((key, first));
                    break;
                }
                if self.removed.len() >= count {
                    return Ok((first, true));
                }
                self.removed.insert(key);
            }
            if index >= end {
                return Ok((index, false));
            }
            held = Some((key, index));
        }
        let Some((key, first)) = held else { return Ok((end, false)) };
        let Some(value) = tree.get(&key)? else { return Ok((end, false)) };
        // One that is damaged is left for a reader to find.
        let last_end = if value.get(1) == Some(&KIND_GROUP) {
            group::open(&key, &value, first).map_or(u64::MAX, |group| group.end())
        } else {
            first + 1
        };
        if last_end > end {
            return Ok((first, false));
        }
        self.removed.insert(key);
        Ok((end, false))
    }

    /// How many values are to be removed.
    pub(super) fn removals(&self) -> usize {
        self.removed.len()
    }

    /// How many values of entries were written since [`Pending::count_again`].
    pub(super) fn values_written(&self) -> usize {
        self.values_written
    }

    pub(super) fn count_again(&mut self) {
        self.values_written = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.queued.is_empty() && self.cut.is_none() && !self.stamp_changed
    }

    /// The first of the queued entries as keys and values: groups, and chunks of those that are too large for one.
    pub(super) fn encode(&mut self, count: usize, stamp: &Stamp, value_bytes_max: usize) -> Vec<(IVec, IVec)> {
        let mut values = Vec::new();
        for entry in self.queued.drain(..count) {
            let (head, payload) = codec::encode(&entry);
            let index = entry.log_id.index;
            let bytes = head.len() + payload.len();
            self.counts.1 += bytes as u64;
            if !group::Builder::can_hold(bytes, value_bytes_max) {
                values.extend(self.builder.finish(stamp));
                record::cut(entry.log_id, &head, &payload, value_bytes_max, |key, value| values.push((key, value)));
                continue;
            }
            if !self.builder.has_room(index, bytes, value_bytes_max) {
                values.extend(self.builder.finish(stamp));
            }
            self.builder.push(index, &head, &payload);
        }
        values.extend(self.builder.finish(stamp));
        values
    }

    /// The next part of the changes as one write that carries the stamp, and how many entries were appended, of how
    /// many bytes. The stamp is of the whole log with all changes; it is brought to what this part makes of it.
    /// `written`: the last entry before it.
    pub(super) fn take(&mut self, stamp: &mut Stamp, written: Option<LogId>, parts: &Parts) -> (Write, Counts) {
        let mut values = Vec::new();
        if self.cut.is_none() {
            let (count, bytes) = self.next_entries(parts.bytes_max);
            let last = count.checked_sub(1).map(|last| self.queued[last].log_id);
            if count < self.queued.len() {
                stamp.end_at(last);
            }
            values = self.encode(count, stamp, parts.value_bytes_max);
            if let Some(last) = last.filter(|_| bytes > parts.bytes_max) {
                self.cut = Some((last, std::mem::take(&mut values).into()));
            }
        }
        if let Some((id, mut pieces)) = self.cut.take() {
            values = pieces.drain(..parts.values_max().min(pieces.len())).collect();
            stamp.end_at(Some(id));
            if !pieces.is_empty() {
                // The entry counts when all of it is there. Until then its values lie behind the last one.
                stamp.end_at(written);
                self.cut = Some((id, pieces));
            }
        }
        self.values_written += values.len();
        let removed = std::mem::take(&mut self.removed);
        self.stamp_changed = false;
        let counts = std::mem::take(&mut self.counts);
        if removed.is_empty() && !std::mem::take(&mut self.beyond) {
            match values.pop() {
                Some((key, value)) if values.is_empty() && value.get(1) == Some(&KIND_GROUP) => {
                    return (Write { changes: vec![(key, Some(value))] }, counts);
                }
                last => values.extend(last),
            }
        }
        let mut changes: Vec<Change> = removed.into_iter().map(|key| (key, None)).collect();
        changes.extend(values.into_iter().map(|(key, value)| (key, Some(value))));
        changes.push((keys::LAST.into(), Some(stamp.to_meta().into())));
        (Write { changes }, counts)
    }

    /// How many of the queued entries fit into a part, but at least one if there is any, and their bytes.
    fn next_entries(&self, bytes_max: usize) -> (usize, usize) {
        let (mut count, mut total) = (0, 0);
        for entry in &self.queued {
            let bytes = store::record_bytes(entry);
            if count > 0 && total + bytes > bytes_max {
                break;
            }
            (count, total) = (count + 1, total + bytes);
        }
        (count, total)
    }
}

impl Write {
    pub(super) fn apply(self, tree: &Tree) -> sled::Result<()> {
        // A `Batch` of one would cost sled a second message.
        if let [(key, Some(value))] = self.changes.as_slice() {
            return tree.insert(key, value).map(drop);
        }
        let mut batch = Batch::default();
        for (key, value) in self.changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        tree.apply_batch(batch)
    }

    pub(super) fn is_one(&self) -> bool {
        matches!(self.changes.as_slice(), [(_, Some(_))])
    }
}
