//! Turns operations into one set of changes, which becomes one write of sled's: a single value wherever that is
//! possible, because a `sled::Batch` costs a second write to the disk. Owns the rule that the later operation wins and
//! that nothing of an older entry is left over. Never flushes: that is `writer.rs`'s.

use std::collections::BTreeSet;

use sled::{Batch, IVec, Tree};

use super::record::{self, KIND_GROUP};
use super::stamp::{Stamp, Unreadable};
use super::{group, keys, walk};
use crate::raft::codec;
use crate::raft::types::Entry;

/// Changes to the tree that are not applied yet.
#[derive(Default)]
pub(super) struct Pending {
    /// Keys to be removed, unless they are written too.
    removed: BTreeSet<IVec>,
    /// In the order of their indices. Whatever the tree has from the first of these on is in `removed`.
    queued: Vec<Entry>,
    /// There is something to be said that only the stamp says.
    stamp_changed: bool,
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

    /// Removes the entries from `index` on: those queued here and those in the tree. What a group has before it stays.
    pub(super) fn truncate(&mut self, tree: &Tree, index: u64) -> Result<(), Unreadable> {
        let keep = self.queued.partition_point(|entry| entry.log_id.index < index);
        self.queued.truncate(keep);
        for key in tree.range(keys::range(index, None)).keys() {
            self.removed.insert(key?);
        }
        self.stamp_changed = true;
        if self.queued.is_empty() { self.cut_group(tree, index) } else { Ok(()) }
    }

    /// Queues again what the group that reaches to `index` has before it.
    fn cut_group(&mut self, tree: &Tree, index: u64) -> Result<(), Unreadable> {
        let Some((key, value)) = tree.get_lt(keys::chunk(index, 0))? else { return Ok(()) };
        let Some((first, _)) = keys::parse_chunk(&key) else { return Ok(()) };
        if value.get(1) != Some(&KIND_GROUP) || self.removed.contains(&key) {
            return Ok(());
        }
        if group::open(&key, &value, first)?.end() > index {
            let queued = &mut self.queued;
            walk::Walk::new(first).step(&key, &value, |entry, _| {
                if entry.log_id.index < index {
                    queued.push(entry);
                }
            })?;
            self.removed.insert(key);
        }
        Ok(())
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
        self.removed.is_empty() && self.queued.is_empty() && !self.stamp_changed
    }

    /// The queued entries as keys and values: groups, and chunks of those that are too large for one.
    pub(super) fn encode(&mut self, stamp: &Stamp, value_bytes_max: usize) -> Vec<(IVec, IVec)> {
        let mut values = Vec::new();
        for entry in self.queued.drain(..) {
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

    /// The changes as one write that carries the stamp, and how many entries were appended, of how many bytes. No
    /// changes are left.
    pub(super) fn take(&mut self, stamp: &Stamp, value_bytes_max: usize) -> (Write, Counts) {
        let mut values = self.encode(stamp, value_bytes_max);
        self.values_written += values.len();
        let mut removed = std::mem::take(&mut self.removed);
        for (key, _) in &values {
            removed.remove(key);
        }
        self.stamp_changed = false;
        let counts = std::mem::take(&mut self.counts);
        if removed.is_empty() {
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
