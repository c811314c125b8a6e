//! Step 5 of 8: the one thread that writes. Everything queued → one write to the journal → fdatasync → acks, the newest
//! first; then the same into sled, which is synced in the background. Owns the order of operations and what a failed
//! write means; never answers a read. The next file of a batch's path is `state_machine/`, once openraft has seen a
//! quorum of such acks.
//!
//! An error is fatal: a sync that failed may have lost pages that a second sync would report as written, so nothing
//! is tried again and every later operation fails.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use super::checkpoint::{self, Checkpoints};
use super::files::Watermark;
use super::journal::{Journal, Written};
use super::metrics::Commit;
use super::parts::Parts;
use super::pending::{Counts, Pending, Write};
use super::queue::{Ack, Op, Queued};
use super::stamp::{Stamp, Unreadable};
use super::view::Bounds;
use super::{Shared, failed_error, lock, sled_error};
use crate::failpoint;
use crate::raft::types::{LogId, Vote};

mod deletions;

use deletions::COMMITS_PER_PURGE;

/// An idle writer saves a newer `committed` after this time, if no commit took it along.
const IDLE: Duration = Duration::from_millis(500);
/// Sled is synced after so many commits that wrote `m/last`: it stands in one leaf with the newest entries, which may be
/// large, and every tenth change of a leaf writes all of it (`parts.rs`).
const STAMPS_MAX: u32 = 64;
/// The watermark file is synced at most this often: it is true without.
const WATERMARK_SYNC: Duration = Duration::from_secs(2);

/// What the writer found on disk when the log was opened.
pub(super) struct Start {
    pub db: sled::Db,
    pub db_file: File,
    /// The same, opened again: an error of a write is told once to each, and two sync it.
    pub checkpoint_file: File,
    /// Held until the writer drops it.
    pub _lock_file: File,
    pub watermark: Watermark,
    pub journal: Journal,
    pub segment_bytes: usize,
    pub bounds: Bounds,
    pub sequence: u64,
    pub committed: Option<LogId>,
    pub vote: Option<Vote>,
    /// No entry before this index is on disk.
    pub oldest: u64,
    /// There may be purged entries to be deleted.
    pub backlog: bool,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    queue: Receiver<Queued>,
    disk: Start,
    checkpoints: Checkpoints,
    pending: Pending,
    /// Of the operations in the current commit, in their order.
    acks: Vec<Ack>,
    /// The last entry in the newest stamp that was written.
    written: Option<LogId>,
    parts: Parts,
    commits_since_purge: u32,
    /// Commits in the journal, since sled was synced for them, that wrote `m/last`.
    stamps: u32,
    /// The commit of the last deletions: sled is synced for them before the next ones.
    deleted_at: u64,
    watermark_synced: Instant,
}

enum Wake {
    Op(Queued),
    /// Nothing came for a while and there is a `committed` to be saved.
    Committed,
    /// All handles are gone.
    Gone,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, queue: Receiver<Queued>, disk: Start) -> io::Result<Self> {
        let chunk_bytes = shared.chunk_bytes;
        let checkpoints = Checkpoints::start(disk.db.clone(), disk.checkpoint_file.try_clone()?, disk.sequence)?;
        #[cfg(test)]
        checkpoints.observe(shared.options.on_checkpoint.clone());
        Ok(Writer {
            shared,
            queue,
            checkpoints,
            pending: Pending::default(),
            acks: Vec::new(),
            written: disk.bounds.last,
            parts: Parts::new(disk.segment_bytes, chunk_bytes),
            disk,
            commits_since_purge: 0,
            stamps: 0,
            deleted_at: 0,
            watermark_synced: Instant::now(),
        })
    }

    /// The thread's whole life.
    pub(super) fn run(mut self) {
        let result = catch_unwind(AssertUnwindSafe(|| self.work())).unwrap_or_else(|panic| {
            let why = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref().copied());
            Err(io::Error::other(format!("the writer panicked: {}", why.unwrap_or("no message"))))
        });
        let closed = match result {
            Ok(closed) => closed,
            Err(e) => self.fail(&e),
        };
        let Writer { shared, disk, checkpoints, .. } = self;
        // Its thread has a handle of sled's.
        drop(checkpoints);
        let failure = lock(&shared.view).failure.clone();
        drop(lock(&shared.disk).take());
        // sled writes what it has left when it is dropped, and panics if that fails.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(disk)));
        let result = match (failure, dropped) {
            (Some(failure), _) => Err(failed_error(&failure)),
            (None, Err(_)) => Err(io::Error::other("sled could not be closed")),
            (None, Ok(())) => Ok(()),
        };
        closed.answer(result);
    }

    /// Until the log is closed: returns whom to tell.
    fn work(&mut self) -> io::Result<Ack> {
        loop {
            let mut ops = Vec::new();
            let mut closed = None;
            match self.wait()? {
                Wake::Op(first) => closed = self.drain(first, &mut ops),
                Wake::Committed => {}
                Wake::Gone => closed = Some(Ack::None),
            }
            self.commit(ops)?;
            if let Some(closed) = closed {
                self.checkpoints.check()?;
                checkpoint::sync(&self.disk.db, &self.disk.db_file)?;
                self.disk.watermark.sync()?;
                return Ok(closed);
            }
            self.purge_under_load()?;
        }
    }

    /// The next operation. While there is none, purged entries are deleted.
    fn wait(&mut self) -> io::Result<Wake> {
        loop {
            match self.queue.try_recv() {
                Ok(first) => return Ok(Wake::Op(first)),
                Err(TryRecvError::Disconnected) => return Ok(Wake::Gone),
                Err(TryRecvError::Empty) if self.disk.backlog => self.purge_when_idle()?,
                Err(TryRecvError::Empty) => break,
            }
        }
        match self.queue.recv_timeout(IDLE) {
            Ok(first) => return Ok(Wake::Op(first)),
            Err(RecvTimeoutError::Disconnected) => return Ok(Wake::Gone),
            Err(RecvTimeoutError::Timeout) => {}
        }
        {
            let mut view = lock(&self.shared.view);
            if self.newer_committed(view.committed).is_some() {
                return Ok(Wake::Committed);
            }
            view.writer_sleeps = true;
        }
        let next = self.queue.recv();
        lock(&self.shared.view).writer_sleeps = false;
        Ok(next.map_or(Wake::Gone, Wake::Op))
    }

    /// Takes everything queued, up to a bound. Returns whom to tell if the log is to be closed.
    fn drain(&self, first: Queued, ops: &mut Vec<Queued>) -> Option<Ack> {
        let mut next = Some(first);
        let mut total = 0;
        while let Some(queued) = next {
            match queued.op {
                Op::Close => return Some(queued.ack),
                Op::Append { bytes, .. } => total += bytes,
                _ => {}
            }
            ops.push(queued);
            next = if total < self.shared.options.batch_bytes_max { self.queue.try_recv().ok() } else { None };
        }
        None
    }

    /// Makes the operations durable and then says so.
    fn commit(&mut self, queued: Vec<Queued>) -> io::Result<()> {
        let started = Instant::now();
        let newest = queued.last().map(|queued| queued.ticket);
        // All of them first: whatever fails below, nobody is forgotten.
        let (ops, acks): (Vec<Op>, Vec<Ack>) = queued.into_iter().map(|queued| (queued.op, queued.ack)).unzip();
        self.acks = acks;
        // The queue's memory is given back when all is done.
        let mut permits = Vec::new();
        for op in ops {
            // By itself: what it deletes is not in the same write as what comes in its place.
            let is_cut = matches!(op, Op::Truncate(_));
            if is_cut {
                self.write(started, None)?;
            }
            self.prepare(op, &mut permits)?;
            if is_cut {
                self.write(started, None)?;
                self.delete_beyond()?;
            }
        }
        let committed = lock(&self.shared.view).committed;
        if let Some(committed) = self.newer_committed(committed) {
            self.pending.stamp();
            self.disk.committed = Some(committed);
        }
        self.write(started, newest)?;
        self.acknowledge();
        #[cfg(test)]
        newest.into_iter().for_each(|newest| lock(&self.shared.view).written = newest);
        if self.watermark_synced.elapsed() >= WATERMARK_SYNC {
            self.disk.watermark.sync()?;
            self.watermark_synced = Instant::now();
        }
        Ok(())
    }

    /// Makes all that is pending durable, one part after the other. With the last one everybody in `acks` is told, if
    /// there is a `newest` ticket of them.
    fn write(&mut self, mut started: Instant, newest: Option<u64>) -> io::Result<()> {
        while !self.pending.is_empty() {
            let (write, (entries, bytes)) = self.take();
            let newest = newest.filter(|_| self.pending.is_empty());
            if let Some(upto) = self.disk.journal.needs(&write) {
                self.checkpoints.wait(upto)?;
            }
            self.checkpoints.check()?;
            failpoint!("log.before-write", io);
            let encoded = Instant::now();
            let fsync_us = match self.disk.journal.write(self.disk.sequence, &write)? {
                Written::Here { filled } => {
                    self.sync(true)?;
                    let fsync_us = encoded.elapsed().as_micros() as u64;
                    if let Some(upto) = filled {
                        self.checkpoints.ask(upto);
                    }
                    self.stamps += u32::from(!write.is_one());
                    if newest.is_some() {
                        self.acknowledge();
                    }
                    // Until then readers find it in the tail.
                    self.apply(write)?;
                    if self.stamps >= STAMPS_MAX {
                        self.stamps = 0;
                        self.checkpoints.ask(self.disk.sequence);
                    }
                    fsync_us
                }
                Written::Elsewhere => {
                    // Never two large writes of sled's at once without a sync.
                    self.checkpoints.wait(self.deleted_at)?;
                    self.apply(write)?;
                    self.sync(false)?;
                    // It wrote more than a few groups.
                    self.commits_since_purge += COMMITS_PER_PURGE;
                    encoded.elapsed().as_micros() as u64
                }
            };
            self.commits_since_purge += 1;
            let apply_us = (started.elapsed().as_micros() as u64).saturating_sub(fsync_us);
            self.durable(newest, &Commit { entries, bytes, apply_us, fsync_us });
            started = Instant::now();
        }
        Ok(())
    }

    /// Tells all who wait for the commit.
    fn acknowledge(&mut self) {
        failpoint!("log.after-sync");
        if self.acks.is_empty() {
            return;
        }
        // A completion asserts all before it, so the newest first spares openraft a step for each.
        for ack in self.acks.drain(..).rev() {
            ack.answer(Ok(()));
        }
        // Whoever was woken on this processor comes first: somebody waits for that, and for nothing that follows here.
        std::thread::yield_now();
    }

    /// Adds an operation to the changes and to the bounds.
    fn prepare(&mut self, op: Op, permits: &mut Vec<OwnedSemaphorePermit>) -> io::Result<()> {
        let before = self.disk.bounds;
        match op {
            Op::Vote(vote) => {
                failpoint!("log.vote", io);
                self.disk.vote = Some(vote);
                self.pending.stamp();
            }
            Op::Append { entries, permit, .. } => {
                self.disk.bounds = before.appended(&entries).map_err(io::Error::other)?;
                self.pending.append(entries);
                permits.push(permit);
            }
            Op::Truncate(after) => {
                failpoint!("log.truncate", io);
                self.disk.bounds = before.truncated(after);
                let next = self.disk.bounds.next();
                if next < before.next() {
                    let _turn = lock(&self.shared.disk);
                    self.pending.truncate(&self.disk.db, next).map_err(unreadable)?;
                }
            }
            Op::Purge(upto) => {
                failpoint!("log.purge", io);
                self.disk.bounds = before.purged(upto);
                if self.disk.bounds != before {
                    self.pending.purge(self.disk.bounds.first);
                    self.disk.backlog = true;
                }
            }
            Op::Nudge | Op::Close => {}
        }
        Ok(())
    }

    /// The next of the changes as one write, with the stamp that every commit carries. Also how many entries and how
    /// many bytes of them there are.
    fn take(&mut self) -> (Write, Counts) {
        self.disk.sequence += 1;
        let Start { sequence, bounds, committed, vote, .. } = self.disk;
        let mut stamp = Stamp { sequence, bounds, committed, vote };
        let (write, counts) = self.pending.take(&mut stamp, self.written, &self.parts);
        self.written = stamp.bounds.last;
        if write.is_one() {
            self.shared.metrics.single_writes.fetch_add(1, Relaxed);
        }
        (write, counts)
    }

    /// Into sled's memory.
    fn apply(&self, write: Write) -> io::Result<()> {
        let _turn = lock(&self.shared.disk);
        write.apply(&self.disk.db).map_err(sled_error)
    }

    /// The commit that was just written becomes durable where it is.
    fn sync(&mut self, is_in_journal: bool) -> io::Result<()> {
        #[cfg(test)]
        if let Some(hook) = &self.shared.options.before_sync {
            hook()?;
        }
        failpoint!("log.before-sync", io);
        if is_in_journal {
            self.disk.journal.sync()?;
        } else {
            checkpoint::sync(&self.disk.db, &self.disk.db_file)?;
            self.checkpoints.done(self.disk.sequence);
        }
        failpoint!("log.before-watermark", io);
        let next = Bounds { last: self.written, ..self.disk.bounds }.next();
        self.disk.watermark.raise(self.disk.sequence, next)
    }

    fn durable(&mut self, newest: Option<u64>, commit: &Commit) {
        let tail_bytes = {
            let mut view = lock(&self.shared.view);
            if let Some(newest) = newest {
                view.tail.evict(newest);
            }
            view.tail.bytes()
        };
        self.shared.metrics.committed(commit, tail_bytes);
        if let Some(observe) = &self.shared.options.on_commit {
            observe(commit);
        }
    }

    /// `committed` is saved only when it is newer, and never ahead of the log that is in the same commit.
    fn newer_committed(&self, committed: Option<LogId>) -> Option<LogId> {
        committed.filter(|c| Some(*c) > self.disk.committed && Some(*c) <= self.disk.bounds.last)
    }

    /// Answers everybody with the error, for as long as somebody asks.
    fn fail(&mut self, error: &io::Error) -> Ack {
        let failure: Arc<str> = error.to_string().into();
        tracing::error!(error = %failure, "the log can't be written any more; the node must stop");
        lock(&self.shared.view).failure = Some(failure.clone());
        for ack in self.acks.drain(..) {
            ack.answer(Err(failed_error(&failure)));
        }
        self.shared.failed.send_replace(Some(failure.clone()));
        while let Ok(queued) = self.queue.recv() {
            if let Op::Close = queued.op {
                return queued.ack;
            }
            queued.ack.answer(Err(failed_error(&failure)));
        }
        Ack::None
    }
}

fn unreadable(error: Unreadable) -> io::Error {
    match error {
        Unreadable::Damage(damage) => io::Error::new(io::ErrorKind::InvalidData, damage),
        Unreadable::Sled(error) => sled_error(error),
    }
}
