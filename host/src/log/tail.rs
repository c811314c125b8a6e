//! The newest entries in memory: what is not durable yet, and what followers and the state machine are about to read.
//! Owns no lock and no disk. Older entries are read from sled by `read.rs`; what holds this is `view.rs`, the next file.

use std::collections::VecDeque;

use crate::raft::types::Entry;

/// Consecutive entries, the newest last. Bounded by bytes, except that it keeps whatever is not durable.
pub(super) struct Tail {
    entries: VecDeque<Kept>,
    /// Index of the oldest entry here, or of the next one if there is none.
    first: u64,
    bytes: usize,
    bytes_max: usize,
}

struct Kept {
    entry: Entry,
    bytes: usize,
    /// Of the append that brought it. Not the index: that is used again after a truncation.
    ticket: u64,
}

impl Tail {
    pub(super) fn new(first: u64, bytes_max: usize) -> Self {
        Tail { entries: VecDeque::new(), first, bytes: 0, bytes_max }
    }

    /// Index of the oldest entry that can be read here. All entries from here to the log's end are here.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The caller has checked that the entry is the next one.
    pub(super) fn push(&mut self, entry: Entry, bytes: usize, ticket: u64) {
        assert_eq!(entry.log_id.index, self.next(), "entries of the tail must be consecutive");
        self.bytes += bytes;
        self.entries.push_back(Kept { entry, bytes, ticket });
    }

    /// Drops all entries from `index` on, which is the next one from now on.
    pub(super) fn truncate(&mut self, index: u64) {
        while self.next() > index {
            match self.entries.pop_back() {
                Some(kept) => self.bytes -= kept.bytes,
                None => break,
            }
        }
        if self.entries.is_empty() {
            self.first = index;
        }
    }

    /// Drops all entries before `index`, durable or not: nobody may read them any more.
    pub(super) fn purge(&mut self, index: u64) {
        while self.first < index && self.pop_front() {}
        if self.entries.is_empty() {
            self.first = self.first.max(index);
        }
    }

    /// Forgets the oldest entries until the bound is kept, but none whose ticket is above `durable`.
    pub(super) fn evict(&mut self, durable: u64) {
        while self.bytes > self.bytes_max && self.entries.front().is_some_and(|kept| kept.ticket <= durable) {
            self.pop_front();
        }
    }

    /// Appends entries of [start, end) to `out` until it holds `bytes_max` bytes, but at least one; `used` counts them.
    pub(super) fn read(&self, start: u64, end: u64, bytes_max: usize, used: &mut usize, out: &mut Vec<Entry>) {
        assert!(start >= self.first, "entry {start} is not in the tail, which begins at {}", self.first);
        let (from, to) = ((start - self.first) as usize, (end.min(self.next()) - self.first) as usize);
        for kept in self.entries.range(from.min(to)..to) {
            if !out.is_empty() && *used + kept.bytes > bytes_max {
                return;
            }
            *used += kept.bytes;
            out.push(kept.entry.clone());
        }
    }

    /// The entry, if it is here.
    pub(super) fn get(&self, index: u64) -> Option<Entry> {
        let at = index.checked_sub(self.first)?;
        self.entries.get(at as usize).map(|kept| kept.entry.clone())
    }

    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn pop_front(&mut self) -> bool {
        let Some(kept) = self.entries.pop_front() else { return false };
        self.bytes -= kept.bytes;
        self.first += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::support::entry;

    fn tail(count: u64) -> Tail {
        let mut tail = Tail::new(10, 35);
        for i in 0..count {
            tail.push(entry(1, 10 + i, 1), 10, i);
        }
        tail
    }

    fn indices(tail: &Tail, start: u64, end: u64, bytes_max: usize) -> Vec<u64> {
        let mut out = Vec::new();
        tail.read(start, end, bytes_max, &mut 0, &mut out);
        out.iter().map(|e| e.log_id.index).collect()
    }

    #[test]
    fn it_forgets_the_oldest_but_never_what_is_not_durable() {
        let mut tail = tail(6);
        tail.evict(0);
        assert_eq!((tail.first(), tail.bytes()), (11, 50));
        tail.evict(9);
        assert_eq!((tail.first(), tail.bytes()), (13, 30));
    }

    #[test]
    fn reads_are_bounded_by_bytes_but_never_empty() {
        let tail = tail(6);
        assert_eq!(indices(&tail, 10, 99, 1_000), [10, 11, 12, 13, 14, 15]);
        assert_eq!(indices(&tail, 11, 14, 25), [11, 12]);
        assert_eq!(indices(&tail, 11, 14, 1), [11]);
        assert_eq!(indices(&tail, 11, 11, 1), [0; 0]);
        assert_eq!(indices(&tail, 40, 50, 1), [0; 0]);
    }

    #[test]
    fn one_is_found_while_it_is_here() {
        let mut t = tail(6);
        t.evict(0);
        let found =
            |t: &Tail| (9..17).filter(|index| t.get(*index).is_some_and(|e| e.log_id.index == *index)).collect();
        let all: Vec<u64> = found(&t);
        assert_eq!(all, [11, 12, 13, 14, 15]);
        t.truncate(13);
        t.push(entry(2, 13, 1), 10, 7);
        t.purge(12);
        let all: Vec<u64> = found(&t);
        assert_eq!((all, t.get(13)), (vec![12, 13], Some(entry(2, 13, 1))));
    }

    #[test]
    fn truncation_and_purge_move_the_ends() {
        let mut t = tail(6);
        t.truncate(13);
        assert_eq!((t.first(), t.bytes()), (10, 30));
        t.purge(12);
        assert_eq!((t.first(), t.bytes()), (12, 10));
        t.purge(40);
        assert_eq!((t.first(), t.bytes()), (40, 0));
        t.push(entry(1, 40, 1), 10, 9);
        t.truncate(5);
        assert_eq!((t.first(), t.bytes()), (5, 0));
    }
}
