//! Walks over the entries' values in key order and puts the entries together again. Owns the finding of whatever is
//! damaged, missing, left over or out of order. Never touches sled, except to say where a walk begins. Next: `tail.rs`.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use sled::{IVec, Tree};

use super::record::{Damage, KIND_GROUP, open_chunk};
use super::{group, keys};
use crate::raft::codec;
use crate::raft::types::Entry;

/// Keys under which the entries of [start, end) lie: the group that `start` is in may begin before it.
pub(super) fn range(tree: &Tree, start: u64, end: u64) -> sled::Result<Range<IVec>> {
    let before = tree.get_lt(keys::chunk(start, 1))?;
    let group =
        before.filter(|(_, value)| value.get(1) == Some(&KIND_GROUP)).and_then(|(key, _)| keys::parse_chunk(&key));
    Ok(keys::range(group.map_or(start, |(first, _)| first), Some(end)))
}

/// Makes sled's cache obey its limit while a large log is read once. sled counts accesses in 256 parts, by page, and
/// looks for something to evict only after 64 accesses to the pages of one part. A walk accesses each leaf once, and
/// leaves of large values have up to a megabyte: gigabytes are read before the first one is evicted.
#[derive(Default)]
pub(super) struct Touch {
    bytes: usize,
}

impl Touch {
    /// One more access for so many bytes read: 64 leaves of this size in each part are the cache's limit then.
    const EVERY_BYTES: usize = 8 << 10;

    /// Something of these bytes was read, which lies under `key`.
    pub(super) fn read(&mut self, tree: &Tree, key: &[u8], bytes: usize) -> sled::Result<()> {
        self.bytes += bytes;
        while self.bytes >= Self::EVERY_BYTES {
            self.bytes -= Self::EVERY_BYTES;
            tree.get(key)?;
        }
        Ok(())
    }
}

/// A place between two entries. What comes next must be exactly the next one.
pub(super) struct Walk {
    next_index: u64,
    /// Of an entry that is not complete yet: chunks seen and chunks in all, and the record so far.
    next_chunk: u32,
    chunks: u32,
    record: BytesMut,
    term: u64,
    sequence: u64,
    /// Nothing was seen yet: a group may begin, or even end, before the first entry.
    fresh: bool,
}

impl Walk {
    pub(super) fn new(first_index: u64) -> Self {
        Walk {
            next_index: first_index,
            next_chunk: 0,
            chunks: 0,
            record: BytesMut::new(),
            term: 0,
            sequence: 0,
            fresh: true,
        }
    }

    /// Hands out the entries that this value completes, with the bytes of their records.
    pub(super) fn step(&mut self, key: &[u8], value: &[u8], mut take: impl FnMut(Entry, usize)) -> Result<(), Damage> {
        let expected = self.next_index;
        let Some((index, chunk)) = keys::parse_chunk(key) else {
            return Err(Damage::Format { index: expected, why: "a key is no entry's" });
        };
        if chunk == 0 && self.next_chunk == 0 && value.get(1) == Some(&KIND_GROUP) {
            return self.step_group(key, value, index, take);
        }
        self.fresh = false;
        if index != expected {
            return Err(self.gap(index));
        }
        if chunk != self.next_chunk {
            return Err(Damage::MissingChunk { index, chunk: self.next_chunk });
        }
        let (chunks, term, data) = open_chunk(key, value, index, chunk)?;
        if chunk == 0 {
            self.chunks = chunks;
            self.check_term(index, term)?;
        } else if (self.chunks, self.term) != (chunks, term) {
            return Err(Damage::Format { index, why: "its chunks are of two records" });
        }
        if chunk >= chunks {
            return Err(Damage::Format { index, why: "it has more chunks than it says" });
        }
        self.record.extend_from_slice(data);
        self.next_chunk += 1;
        if self.next_chunk == chunks {
            let record = std::mem::take(&mut self.record).freeze();
            let bytes = record.len();
            let entry = decode(record, index)?;
            if entry.log_id.leader_id.term != term {
                return Err(Damage::Format { index, why: "the entry's term is not its record's" });
            }
            self.next_index += 1;
            self.next_chunk = 0;
            take(entry, bytes);
        }
        Ok(())
    }

    fn step_group(
        &mut self,
        key: &[u8],
        value: &[u8],
        first: u64,
        mut take: impl FnMut(Entry, usize),
    ) -> Result<(), Damage> {
        if first > self.next_index || (first < self.next_index && !self.fresh) {
            return Err(self.gap(first));
        }
        self.fresh = false;
        let group = group::open(key, value, first)?;
        if group.stamp.sequence < self.sequence {
            return Err(Damage::Format {
                index: first,
                why: "its commit is older than the one of the entry before it",
            });
        }
        self.sequence = group.stamp.sequence;
        let records = group.records()?;
        let value = Bytes::copy_from_slice(value);
        for (index, at) in (first..).zip(records) {
            let bytes = at.len();
            let entry = decode(value.slice(at), index)?;
            self.check_term(index, entry.log_id.leader_id.term)?;
            if index >= self.next_index {
                self.next_index = index + 1;
                take(entry, bytes);
            }
        }
        Ok(())
    }

    /// All entries before `end` must have been seen.
    pub(super) fn finish(&self, end: u64) -> Result<(), Damage> {
        if self.next_index < end { Err(self.gap(end)) } else { Ok(()) }
    }

    /// The entry whose pieces have begun and not ended.
    pub(super) fn unfinished(&self) -> Option<Damage> {
        (self.next_chunk > 0).then(|| self.gap(self.next_index + 1))
    }

    fn check_term(&mut self, index: u64, term: u64) -> Result<(), Damage> {
        if term < self.term {
            return Err(Damage::Format { index, why: "its term is lower than the entry's before it" });
        }
        self.term = term;
        Ok(())
    }

    /// What is wrong when the value of the entry at `found` comes next.
    fn gap(&self, found: u64) -> Damage {
        let index = self.next_index;
        match self.next_chunk {
            0 if found < index => Damage::Format { index: found, why: "it is there twice" },
            0 => Damage::Missing(index),
            chunk => Damage::MissingChunk { index, chunk },
        }
    }
}

fn decode(record: Bytes, index: u64) -> Result<Entry, Damage> {
    let entry = codec::decode(record).map_err(|error| Damage::Entry { index, error })?;
    if entry.log_id.index != index {
        return Err(Damage::Format { index, why: "the entry's index is not its record's" });
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::parts::Parts;
    use crate::log::pending::Pending;
    use crate::log::stamp::Stamp;
    use crate::log::tests::support::entry;
    use crate::log::view::Bounds;

    type Values = Vec<(IVec, IVec)>;

    fn values(sequence: u64, entries: &[Entry], value_bytes_max: usize) -> Values {
        let stamp = Stamp { sequence, bounds: Bounds::EMPTY, committed: None, vote: None };
        let mut pending = Pending::default();
        pending.append(entries.to_vec());
        let mut values = pending.encode(entries.len(), &stamp, value_bytes_max);
        values.sort();
        assert!(values.iter().all(|(_, v)| v.len() <= value_bytes_max));
        values
    }

    fn walk(first: u64, end: u64, values: &Values) -> Result<Vec<Entry>, Damage> {
        let mut walk = Walk::new(first);
        let mut out = Vec::new();
        for (k, v) in values {
            walk.step(k, v, |entry, _| out.push(entry))?;
        }
        walk.finish(end)?;
        Ok(out)
    }

    #[test]
    fn entries_of_all_sizes_survive() {
        for payload in [0, 1, 11, 12, 13, 88, 99, 100, 101, 107, 108, 109, 1_000] {
            let entries = [entry(1, 7, payload), entry(2, 8, payload), entry(2, 9, 0), entry(2, 10, 0)];
            for value_bytes_max in [192, 193, 300, 2_000] {
                assert_eq!(walk(7, 11, &values(1, &entries, value_bytes_max)).unwrap(), entries);
            }
        }
    }

    #[test]
    fn a_walk_may_begin_inside_a_group_and_after_one() {
        let entries: Vec<_> = (5..9).map(|index| entry(1, index, 10)).collect();
        let mut all = values(1, &entries, 4_000);
        assert_eq!(all.len(), 1, "one group");
        assert_eq!(walk(7, 9, &all).unwrap(), entries[2..]);
        all.extend(values(2, &[entry(1, 9, 10)], 4_000));
        assert_eq!(walk(9, 10, &all).unwrap(), [entry(1, 9, 10)]);
        assert_eq!(walk(10, 11, &all).unwrap_err(), Damage::Format { index: 9, why: "it is there twice" });
    }

    #[test]
    fn every_flipped_bit_is_found() {
        for (max, count) in [(150, 4), (4_000, 1)] {
            let values = values(1, &[entry(3, 5, 200), entry(3, 6, 0)], max);
            assert_eq!(values.len(), count);
            for at in 0..values.len() {
                for bit in 0..values[at].1.len() * 8 {
                    let mut bad = values.clone();
                    let mut value = bad[at].1.to_vec();
                    value[bit / 8] ^= 1 << (bit % 8);
                    bad[at].1 = value.into();
                    assert!(walk(5, 7, &bad).is_err(), "value {at} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn holes_leftovers_and_mixtures_are_found() {
        let chunks = values(1, &[entry(3, 5, 300), entry(3, 6, 10), entry(3, 7, 300)], 202);
        let without = |at: usize| {
            let mut bad = chunks.clone();
            bad.remove(at);
            walk(5, 8, &bad).unwrap_err()
        };
        assert_eq!(chunks.len(), 7);
        assert_eq!(without(0), Damage::MissingChunk { index: 5, chunk: 0 });
        assert_eq!(without(1), Damage::MissingChunk { index: 5, chunk: 1 });
        assert_eq!(without(2), Damage::MissingChunk { index: 5, chunk: 2 });
        assert_eq!(without(3), Damage::Missing(6));
        assert_eq!(without(6), Damage::MissingChunk { index: 7, chunk: 2 });
        assert_eq!(walk(5, 9, &chunks).unwrap_err(), Damage::Missing(8));

        let longer = values(1, &[entry(3, 5, 500)], 202);
        let mut leftover = values(1, &[entry(3, 5, 10)], 202);
        leftover.extend_from_slice(&longer[1..]);
        assert!(walk(5, 6, &leftover).is_err());
        let mut moved = chunks.clone();
        moved[3].1 = values(1, &[entry(3, 9, 10)], 202)[0].1.clone();
        assert_eq!(walk(5, 8, &moved).unwrap_err(), Damage::Checksum { index: 6, chunk: 0 });

        let older: Values = [values(7, &[entry(3, 5, 1)], 4_000), values(6, &[entry(3, 6, 1)], 4_000)].concat();
        assert!(matches!(walk(5, 7, &older).unwrap_err(), Damage::Format { index: 6, .. }));
        let terms: Values = [values(7, &[entry(3, 5, 1)], 4_000), values(7, &[entry(2, 6, 1)], 4_000)].concat();
        assert!(matches!(walk(5, 7, &terms).unwrap_err(), Damage::Format { index: 6, .. }));
    }

    #[test]
    fn small_entries_of_one_commit_are_one_value() {
        let mut stamp = Stamp { sequence: 4, bounds: Bounds::EMPTY, committed: None, vote: None };
        let mut write = |entries: Vec<Entry>| {
            let mut pending = Pending::default();
            pending.append(entries);
            pending.take(&mut stamp, None, &Parts::new(1 << 20, 1_000)).0
        };
        let small: Vec<_> = (0..5).map(|index| entry(1, index, 50)).collect();
        assert!(write(small.clone()).is_one());
        assert!(!write((0..9).map(|index| entry(1, index, 50)).collect()).is_one());
        assert!(!write(vec![entry(1, 0, 1_000)]).is_one());
        assert!(matches!(write(Vec::new()).changes.as_slice(), [(key, Some(_))] if key == keys::LAST));
    }
}
