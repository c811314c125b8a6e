//! Reading entries: from the tail, else from sled. Owns the answer to what happens when the log is truncated or purged
//! meanwhile. Writes nothing. Streams are cut into pieces so that a long one never holds much memory.

use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::atomic::Ordering::Relaxed;

use futures_util::stream::{self, Stream};
use openraft::errors::LeaderChanged;
use openraft::storage::LeaderBoundedStreamError;

use super::record::Damage;
use super::walk::{self, Walk};
use super::{Shared, SledLog, lock};
use crate::raft::types::{Entry, TypeConfig, Vote};

type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;

/// One look at the view.
enum Look {
    /// The tail had the rest.
    Done,
    /// This range is below the tail.
    Disk(Range<u64>),
}

impl SledLog {
    /// Entries of [start, end) that the log contains, in order and without holes: as many as fit into `bytes_max`,
    /// but at least one. As of one moment: a truncation or a purge meanwhile starts it again.
    pub(super) async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        'again: loop {
            let (epoch, range) = {
                let view = lock(&self.shared.view);
                (view.epoch, view.clamp(start, end))
            };
            let (mut out, mut used) = (Vec::new(), 0);
            loop {
                let next = range.start + out.len() as u64;
                let look = {
                    let view = lock(&self.shared.view);
                    if view.epoch != epoch {
                        continue 'again;
                    }
                    if next >= range.end || (!out.is_empty() && used >= bytes_max) {
                        Look::Done
                    } else if next < view.tail.first() {
                        Look::Disk(next..range.end.min(view.tail.first()))
                    } else {
                        view.tail.read(next, range.end, bytes_max, &mut used, &mut out);
                        Look::Done
                    }
                };
                let Look::Disk(below) = look else { return Ok(out) };
                match self.read_disk(below, bytes_max.saturating_sub(used)).await {
                    Ok((entries, bytes)) if out.is_empty() || used + bytes <= bytes_max => {
                        out.extend(entries);
                        used += bytes;
                    }
                    Ok(_) => return Ok(out),
                    // What was deleted or written over meanwhile is no damage.
                    Err(_) if lock(&self.shared.view).epoch != epoch => continue 'again,
                    Err(e) => return Err(e),
                }
            }
        }
    }

    /// Reads at most one piece. sled's reads are short but may wait for the disk: not on the runtime's threads.
    async fn read_disk(&self, range: Range<u64>, bytes_max: usize) -> io::Result<(Vec<Entry>, usize)> {
        let shared = self.shared.clone();
        let bytes_max = bytes_max.min(shared.options.read_bytes_max);
        let read = tokio::task::spawn_blocking(move || shared.read_disk(range, bytes_max));
        read.await.map_err(io::Error::other)?
    }

    /// Like [`SledLog::read`], but one piece after the other. The end is fixed now.
    pub(super) fn stream(&self, start: u64, end: u64) -> impl Stream<Item = io::Result<Entry>> + Send + use<> {
        let range = lock(&self.shared.view).clamp(start, end);
        let state = Cursor { log: self.clone(), next: range.start, end: range.end, piece: Vec::new().into_iter() };
        stream::try_unfold(state, |mut cursor| async move { Ok(cursor.next().await?.map(|entry| (entry, cursor))) })
    }

    /// The same, but only while the vote is the given leader's and committed.
    pub(super) fn stream_of_leader(
        &self,
        leader: LeaderId,
        start: u64,
        end: u64,
    ) -> impl Stream<Item = Result<Entry, LeaderBoundedStreamError<TypeConfig>>> + Send + use<> {
        let range = lock(&self.shared.view).clamp(start, end);
        let cursor = Cursor { log: self.clone(), next: range.start, end: range.end, piece: Vec::new().into_iter() };
        stream::try_unfold((cursor, leader), |(mut cursor, leader)| async move {
            cursor.check_leader(leader)?;
            let next = cursor.next().await?;
            // The vote changes before any entry is truncated: an entry read under an unchanged vote is the leader's.
            cursor.check_leader(leader)?;
            Ok(next.map(|entry| (entry, (cursor, leader))))
        })
    }
}

impl Shared {
    fn read_disk(&self, range: Range<u64>, bytes_max: usize) -> io::Result<(Vec<Entry>, usize)> {
        let turn = lock(&self.disk);
        let Some(tree) = turn.as_ref() else {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the log is closed"));
        };
        let damage = |damage: Damage| io::Error::new(io::ErrorKind::InvalidData, damage);
        let mut walk = Walk::new(range.start);
        let (mut out, mut used, mut full) = (Vec::new(), 0, false);
        let keys = walk::range(tree, range.start, range.end).map_err(io::Error::other)?;
        for item in tree.range(keys) {
            let (key, value) = item.map_err(io::Error::other)?;
            let take = |entry: Entry, bytes| {
                full |= !out.is_empty() && used + bytes > bytes_max;
                if !full && entry.log_id.index < range.end {
                    out.push(entry);
                    used += bytes;
                }
            };
            walk.step(&key, &value, take).map_err(damage)?;
            if full {
                break;
            }
        }
        if !full {
            walk.finish(range.end).map_err(damage)?;
        }
        self.metrics.entries_read_from_disk.fetch_add(out.len() as u64, Relaxed);
        Ok((out, used))
    }
}

/// A place in the log from which a stream goes on.
struct Cursor {
    log: SledLog,
    next: u64,
    end: u64,
    piece: std::vec::IntoIter<Entry>,
}

impl Cursor {
    async fn next(&mut self) -> io::Result<Option<Entry>> {
        if self.piece.len() == 0 && self.next < self.end {
            let bytes_max = self.log.shared.options.read_bytes_max;
            self.piece = self.log.read(self.next, self.end, bytes_max).await?.into_iter();
        }
        let Some(entry) = self.piece.next() else {
            // Both were there when the stream began.
            return if self.next < self.end { Err(self.hole()) } else { Ok(None) };
        };
        if entry.log_id.index != self.next {
            return Err(self.hole());
        }
        self.next += 1;
        Ok(Some(entry))
    }

    fn hole(&self) -> io::Error {
        let why = format!("entry {} was truncated or purged while it was about to be read", self.next);
        io::Error::new(io::ErrorKind::NotFound, why)
    }

    fn check_leader(&self, leader: LeaderId) -> Result<(), LeaderBoundedStreamError<TypeConfig>> {
        let vote: Option<Vote> = lock(&self.log.shared.view).vote;
        match vote {
            Some(vote) if vote.committed && vote.leader_id == leader => Ok(()),
            vote => Err(LeaderChanged::new(leader, vote).into()),
        }
    }
}

/// The range with an exclusive end.
pub(super) fn half_open(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}
