//! Step 4 of 8: openraft's calls. Each is put into the view, where it can be read at once, and into the writer's queue,
//! in the same order. Owns no state of its own; waits only for the disk (vote, truncate, purge) or for memory (append).
//! The next file is `writer/mod.rs`.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;

use futures_util::stream::Stream;
use openraft::alias::LeaderIdOf;
use openraft::storage::{IOFlushed, LeaderBoundedStreamResult, LogState, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use super::queue::{Ack, Op};
use super::read::half_open;
use super::view::View;
use super::{QUEUE_UNIT_BYTES, SledLog, lock};
use crate::raft::codec::HEADER_BYTES;
use crate::raft::types::{Entry, LogId, TypeConfig, Vote};

/// What a membership entry is counted as: its encoding is not known before the writer makes it.
const MEMBERSHIP_BYTES: usize = 1024;

impl SledLog {
    /// Does one thing to the view and the queue and waits until it is durable.
    async fn durably(&self, op: Op, change: impl FnOnce(&mut View)) -> io::Result<()> {
        let (tx, rx) = oneshot::channel();
        {
            let call = lock(&self.shared.calls);
            let mut view = lock(&self.shared.view);
            self.check_writable(&view)?;
            change(&mut view);
            self.send(call, view, op, Ack::Done(tx))?;
        }
        rx.await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// Waits until the queue has room for this many bytes. The writer needs nobody to make room, so this ends.
    async fn queue_room(&self, bytes: usize) -> io::Result<tokio::sync::OwnedSemaphorePermit> {
        let all = self.shared.options.queue_bytes_max / QUEUE_UNIT_BYTES;
        // One that is larger than the queue waits until it is empty.
        let units = bytes.div_ceil(QUEUE_UNIT_BYTES).min(all) as u32;
        self.queue_budget.clone().acquire_many_owned(units).await.map_err(|_| self.gone())
    }
}

impl RaftLogStorage<TypeConfig> for SledLog {
    type LogReader = SledLog;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let bounds = lock(&self.shared.view).bounds;
        Ok(LogState { last_purged_log_id: bounds.purged, last_log_id: bounds.last })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.durably(Op::Vote(*vote), |view| view.vote = Some(*vote)).await
    }

    /// Only remembers it: the writer takes it along with its next commit, or saves it when it has nothing else to do.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let call = lock(&self.shared.calls);
        let mut view = lock(&self.shared.view);
        self.check_writable(&view)?;
        view.committed = committed;
        if view.writer_sleeps {
            self.send(call, view, Op::Nudge, Ack::None)?;
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(lock(&self.shared.view).committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<(Entry, usize)> = entries.into_iter().map(sized).collect();
        let bytes = entries.iter().map(|(_, bytes)| bytes).sum();
        let permit = self.queue_room(bytes).await?;
        let call = lock(&self.shared.calls);
        let mut view = lock(&self.shared.view);
        self.check_writable(&view)?;
        // `send` counts this operation.
        let ticket = view.ticket + 1;
        view.append(&entries, ticket).map_err(|gap| io::Error::new(io::ErrorKind::InvalidInput, gap))?;
        let entries = entries.into_iter().map(|(entry, _)| entry).collect();
        self.send(call, view, Op::Append { entries, bytes, permit }, Ack::Flushed(callback))?;
        self.shared.appended.notify_one();
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.durably(Op::Truncate(last_log_id), |view| view.truncate(last_log_id)).await
    }

    /// Returns when the purge is decided durably; the entries themselves are deleted later, a few at a time.
    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.durably(Op::Purge(log_id), |view| view.purge(log_id)).await
    }
}

impl RaftLogReader<TypeConfig> for SledLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = half_open(&range);
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, self.shared.options.read_bytes_max).await
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = half_open(&range);
        Box::pin(self.stream(start, end))
    }

    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: LeaderIdOf<TypeConfig>,
        range: RB,
    ) -> impl Stream<Item = LeaderBoundedStreamResult<TypeConfig>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = half_open(&range);
        Box::pin(self.stream_of_leader(leader, start, end))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(lock(&self.shared.view).vote)
    }
}

fn sized(entry: Entry) -> (Entry, usize) {
    let bytes = record_bytes(&entry);
    (entry, bytes)
}

/// The bytes of an entry's record; a membership's about.
pub(super) fn record_bytes(entry: &Entry) -> usize {
    let payload_bytes = match &entry.payload {
        EntryPayload::Blank => 0,
        EntryPayload::Normal(proposal) => proposal.bytes.len(),
        EntryPayload::Membership(_) => MEMBERSHIP_BYTES,
    };
    HEADER_BYTES + payload_bytes
}
