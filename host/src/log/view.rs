//! What the log contains as readers see it: the bounds, the vote, the committed id and the tail, all as of the last
//! call and not as of the disk. Owns the rules of append, truncate and purge; never waits and never touches sled.
//! The writer follows the same rules with its own copy of the bounds: see `writer/mod.rs`, the next file.

use std::sync::Arc;

use super::tail::Tail;
use crate::raft::types::{Entry, LogId, Vote};

/// Where the log begins and ends.
///
/// ```text
///   purged   first ......... last
///   ------gone------|--entries--|
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub purged: Option<LogId>,
    /// Index of the first entry, if there is one. `purged` plus one, once there was a purge.
    pub first: u64,
    /// Of the last entry; `purged` if there is none.
    pub last: Option<LogId>,
}

/// An append that would leave a hole or turn the log back.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("entry {found} can't follow the log's last entry {last:?}: entries must be consecutive and terms never fall")]
pub(super) struct Gap {
    found: LogId,
    last: Option<LogId>,
}

impl Bounds {
    pub(super) const EMPTY: Bounds = Bounds { purged: None, first: 0, last: None };

    /// Index of the next entry. An empty log that was never purged takes any.
    pub(super) fn next(&self) -> u64 {
        self.last.map_or(self.first, |last| last.index + 1)
    }

    /// The bounds after these entries, which must follow one another and the log.
    pub(super) fn appended(mut self, entries: &[Entry]) -> Result<Bounds, Gap> {
        for entry in entries {
            let found = entry.log_id;
            match self.last {
                Some(last) if found.index != last.index + 1 || found.leader_id.term < last.leader_id.term => {
                    return Err(Gap { found, last: self.last });
                }
                None if self.purged.is_none() => self.first = found.index,
                _ => {}
            }
            self.last = Some(found);
        }
        Ok(self)
    }

    /// The bounds without the entries after `after`. Unchanged if there are none; purged entries don't come back.
    pub(super) fn truncated(mut self, after: Option<LogId>) -> Bounds {
        let after = after.max(self.purged);
        let keeps_all = after.is_some_and(|after| self.last.is_none_or(|last| last.index <= after.index));
        if !keeps_all {
            self.last = after.filter(|after| after.index >= self.first).or(self.purged);
        }
        self
    }

    /// The bounds without the entries up to `upto`, which may lie beyond the last one (after a snapshot).
    pub(super) fn purged(mut self, upto: LogId) -> Bounds {
        if self.purged.is_none_or(|purged| purged.index < upto.index) {
            self.purged = Some(upto);
            self.first = upto.index + 1;
            if self.last.is_none_or(|last| last.index <= upto.index) {
                self.last = Some(upto);
            }
        }
        self
    }
}

/// The log as readers see it. Behind one lock, held only for moments.
pub(super) struct View {
    pub bounds: Bounds,
    /// Set before the disk has it: a reader for an old leader must stop before the truncation that may follow.
    pub vote: Option<Vote>,
    pub committed: Option<LogId>,
    pub tail: Tail,
    /// Counts truncations and purges. A read from sled is good only if this didn't change meanwhile.
    pub epoch: u64,
    /// Operations handed to the writer so far, or about to be by the one call whose turn it is.
    pub ticket: u64,
    /// The newest of them that sled has too: it comes after the acknowledgement.
    #[cfg(test)]
    pub written: u64,
    /// The writer sleeps and knows no `committed` that it should write.
    pub writer_sleeps: bool,
    /// Set once, by the first error of the disk.
    pub failure: Option<Arc<str>>,
    pub closed: bool,
}

impl View {
    pub(super) fn new(bounds: Bounds, vote: Option<Vote>, committed: Option<LogId>, tail_bytes_max: usize) -> Self {
        let tail = Tail::new(bounds.next(), tail_bytes_max);
        View {
            bounds,
            vote,
            committed,
            tail,
            epoch: 0,
            ticket: 0,
            #[cfg(test)]
            written: 0,
            writer_sleeps: false,
            failure: None,
            closed: false,
        }
    }

    /// Takes entries whose records have these bytes. All or none.
    pub(super) fn append(&mut self, entries: &[(Entry, usize)], ticket: u64) -> Result<(), Gap> {
        let mut bounds = self.bounds;
        for (entry, _) in entries {
            bounds = bounds.appended(std::slice::from_ref(entry))?;
        }
        // An empty log that was never purged begins where its first entry is.
        if self.bounds.last.is_none() {
            self.tail.truncate(bounds.first);
        }
        self.bounds = bounds;
        for (entry, bytes) in entries {
            self.tail.push(entry.clone(), *bytes, ticket);
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, after: Option<LogId>) {
        let next = self.bounds.next();
        self.bounds = self.bounds.truncated(after);
        if self.bounds.next() < next {
            self.tail.truncate(self.bounds.next());
        }
        self.epoch += 1;
    }

    pub(super) fn purge(&mut self, upto: LogId) {
        self.bounds = self.bounds.purged(upto);
        self.tail.purge(self.bounds.first);
        self.epoch += 1;
    }

    /// What of [start, end) the log contains.
    pub(super) fn clamp(&self, start: u64, end: u64) -> std::ops::Range<u64> {
        let end = end.min(self.bounds.last.map_or(0, |last| last.index + 1));
        let start = start.max(self.bounds.first);
        start..end.max(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::support::entry;
    use crate::raft::codec::log_id;

    #[test]
    fn appends_must_follow_the_log() {
        let start = Bounds::EMPTY.appended(&[entry(1, 3, 0), entry(1, 4, 0)]).unwrap();
        assert_eq!(start, Bounds { purged: None, first: 3, last: Some(log_id(1, 4)) });
        for bad in [entry(1, 4, 0), entry(1, 6, 0), entry(0, 5, 0)] {
            assert!(start.appended(&[bad]).is_err());
        }
        assert!(Bounds::EMPTY.purged(log_id(1, 9)).appended(&[entry(1, 9, 0)]).is_err());
        assert!(Bounds::EMPTY.purged(log_id(1, 9)).appended(&[entry(1, 10, 0)]).is_ok());
    }

    #[test]
    fn truncation_keeps_what_is_before() {
        let log = Bounds { purged: Some(log_id(1, 3)), first: 4, last: Some(log_id(2, 8)) };
        assert_eq!(log.truncated(Some(log_id(1, 6))).last, Some(log_id(1, 6)));
        assert_eq!(log.truncated(Some(log_id(2, 8))), log);
        assert_eq!(log.truncated(Some(log_id(2, 11))), log);
        assert_eq!(log.truncated(None).last, Some(log_id(1, 3)));
        assert_eq!(log.truncated(Some(log_id(1, 2))).last, Some(log_id(1, 3)));
        assert_eq!(Bounds::EMPTY.truncated(None), Bounds::EMPTY);
    }

    #[test]
    fn purge_may_go_beyond_the_end_but_never_back() {
        let log = Bounds { purged: Some(log_id(1, 3)), first: 4, last: Some(log_id(2, 8)) };
        let within = log.purged(log_id(1, 6));
        assert_eq!(within, Bounds { purged: Some(log_id(1, 6)), first: 7, last: Some(log_id(2, 8)) });
        assert_eq!(within.purged(log_id(1, 5)), within);
        let beyond = log.purged(log_id(3, 20));
        assert_eq!(beyond, Bounds { purged: Some(log_id(3, 20)), first: 21, last: Some(log_id(3, 20)) });
    }
}
