//! Sealed batches on their way, each with the requests that wait for it (steps 3 to 8 of 8 happen elsewhere). Replies
//! come from this node's own apply, on the leader and on followers alike, so it doesn't matter which connection broke
//! meanwhile. A ticket ends in exactly one way: applied, or refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::{BatchWaiter, Waiter};
use crate::outcome::{Answer, BatchAnswer, BatchReplies, Refusal};
use crate::raft::types::{BatchId, LogId, NodeId};

/// The wait for returning clients lasts at most this many commits. `max_delay` bounds it too.
const GATHER_COMMITS: u32 = 2;

/// A second batch goes on its way beside the first with at least this many commands. Fewer are better served by one
/// commit after the other: what a commit costs hardly depends on their number.
const OVERLAP_MIN: usize = 16;

/// What became of a batch that was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Applied,
    /// Certainly not logged: it may be handed over again.
    NotLogged,
}

/// All tickets of one node since its start.
pub struct Tickets {
    node: NodeId,
    boot: u64,
    open: Mutex<Open>,
    closed: Notify,
}

/// Who waits for the replies of a batch.
pub(super) enum Waiters {
    /// One for each command: the batch was gathered here.
    Each(Vec<Waiter>),
    /// One for all of them: a client sent the batch as it is.
    Whole(BatchWaiter),
}

impl Waiters {
    fn refuse(self, refusal: &Refusal) {
        match self {
            Waiters::Each(waiters) => waiters.into_iter().for_each(|w| w.answer(Err(refusal.clone()))),
            Waiters::Whole(waiter) => waiter.answer(Err(refusal.clone())),
        }
    }

    fn answer(self, LogId { leader_id, index }: LogId, replies: BatchReplies) {
        let term = leader_id.term;
        match self {
            Waiters::Each(waiters) => {
                assert_eq!(waiters.len(), replies.len(), "a gathered batch has one waiter for each command");
                for (waiter, reply) in waiters.into_iter().zip(replies.into_each()) {
                    waiter.answer(Ok(Answer { index, term, reply }));
                }
            }
            Waiters::Whole(waiter) => {
                assert_eq!(waiter.commands, replies.len(), "every command is answered");
                waiter.answer(Ok(BatchAnswer { index, term, replies }));
            }
        }
    }
}

#[derive(Default)]
struct Open {
    tickets: HashMap<u64, Ticket>,
    /// Of these, those whose batches were gathered here. Only they count for the gathering: a client that sends whole
    /// batches waits for nobody, and nobody for it.
    gathered: usize,
    /// The commands in these.
    commands: usize,
    next_sequence: u64,
    /// Of the newest entry that was applied.
    term: u64,
    /// Commands answered since the last batch was sealed: closed-loop clients send as many again, at once.
    answered: usize,
    /// When the last ticket of a gathered batch was closed.
    closed: Option<Instant>,
    /// Running mean of the time from seal to answer, of gathered batches.
    commit: Duration,
}

impl Open {
    fn may_overlap(&self, waiting: usize) -> bool {
        self.gathered == 1 && waiting >= self.commands.max(OVERLAP_MIN)
    }
}

struct Ticket {
    waiters: Waiters,
    /// The term it was handed over for.
    term: Option<u64>,
    /// The term whose leader refused it.
    refused: Option<u64>,
    watcher: Option<oneshot::Sender<Fate>>,
    issued: Instant,
}

impl Ticket {
    /// It was handed over, and that came to nothing.
    fn is_lost(&self, applied_term: u64) -> bool {
        self.term.is_some_and(|t| t < applied_term || self.refused == Some(t))
    }

    /// Tells the watcher, if the ticket is lost.
    fn tell_if_lost(&mut self, applied_term: u64) {
        if self.is_lost(applied_term)
            && let Some(watcher) = self.watcher.take()
        {
            // Forgotten with the attempt it was about: the next may go to the same leader in the same term.
            self.term = None;
            self.refused = None;
            let _ = watcher.send(Fate::NotLogged);
        }
    }
}

impl Tickets {
    /// `boot`: random, of this start.
    pub fn new(node: NodeId, boot: u64) -> Arc<Tickets> {
        Arc::new(Tickets { node, boot, open: Mutex::default(), closed: Notify::new() })
    }

    /// The id of one of this node's batches.
    pub fn id(&self, sequence: u64) -> BatchId {
        BatchId { node: self.node, boot: self.boot, sequence }
    }

    /// A ticket for a batch that was just sealed. Returns its sequence number.
    pub(super) fn issue(&self, waiters: Waiters) -> u64 {
        let mut open = self.lock();
        let sequence = open.next_sequence;
        open.next_sequence += 1;
        if let Waiters::Each(each) = &waiters {
            open.gathered += 1;
            open.commands += each.len();
            open.answered = 0;
        }
        let issued = Instant::now();
        open.tickets.insert(sequence, Ticket { waiters, term: None, refused: None, watcher: None, issued });
        sequence
    }

    pub(super) fn handed_over(&self, sequence: u64, term: u64) {
        let mut open = self.lock();
        if let Some(ticket) = open.tickets.get_mut(&sequence) {
            ticket.term = Some(term);
        }
    }

    /// Waits until it is known what became of the batch.
    pub(super) async fn fate(&self, sequence: u64) -> Fate {
        let watched = {
            let mut open = self.lock();
            let applied_term = open.term;
            let Some(ticket) = open.tickets.get_mut(&sequence) else { return Fate::Applied };
            let (watcher, watched) = oneshot::channel();
            ticket.watcher = Some(watcher);
            ticket.tell_if_lost(applied_term);
            watched
        };
        // Dropped unsent when the ticket is closed.
        watched.await.unwrap_or(Fate::Applied)
    }

    /// Closes the ticket: all who wait are refused.
    pub(super) fn refuse(&self, sequence: u64, refusal: &Refusal) {
        if let Some(ticket) = self.close(sequence) {
            ticket.waiters.refuse(refusal);
        }
    }

    /// Somebody waits for this batch.
    pub(super) fn is_open(&self, sequence: u64) -> bool {
        self.lock().tickets.contains_key(&sequence)
    }

    /// No batch that was gathered on this node is on its way.
    pub(super) fn is_pipe_idle(&self) -> bool {
        self.lock().gathered == 0
    }

    /// With the pipe idle and this many commands waiting: until when to wait for the others that were just answered
    /// and are about to come back, at most for two commits. None: seal now. Without this, the first to come back would be sealed alone and all
    /// others would wait for its commit. A lone client never waits: it is all that is expected.
    pub(super) fn gather_until(&self, waiting: usize) -> Option<Instant> {
        let open = self.lock();
        let until = open.closed? + GATHER_COMMITS * open.commit;
        (waiting < open.answered && Instant::now() < until).then_some(until)
    }

    /// With one batch on its way and this many commands waiting: they are half of all, so they don't wait for the other
    /// half. While one half is being committed, the clients of the other are served; else all would be served, then all
    /// committed, and the processors wait in between.
    pub(super) fn may_overlap(&self, waiting: usize) -> bool {
        self.lock().may_overlap(waiting)
    }

    /// Until the pipe is idle or this many commands may go on their way beside what is in it.
    pub(super) async fn room_in_pipe(&self, waiting: usize) {
        self.until(|open| open.gathered == 0 || open.may_overlap(waiting)).await;
    }

    /// Until no batch of this node is on its way at all.
    pub(super) async fn all_closed(&self) {
        self.until(|open| open.tickets.is_empty()).await;
    }

    async fn until(&self, condition: impl Fn(&Open) -> bool) {
        loop {
            // Created before the check, so that no notification falls between.
            let closed = self.closed.notified();
            if condition(&self.lock()) {
                return;
            }
            closed.await;
        }
    }

    fn close(&self, sequence: u64) -> Option<Ticket> {
        let ticket = {
            let mut open = self.lock();
            let ticket = open.tickets.remove(&sequence);
            if let Some(Ticket { waiters: Waiters::Each(waiters), issued, .. }) = &ticket {
                open.gathered -= 1;
                open.commands -= waiters.len();
                open.answered += waiters.len();
                open.closed = Some(Instant::now());
                open.commit = (open.commit * 7 + issued.elapsed()) / 8;
            }
            ticket
        };
        self.closed.notify_waiters();
        ticket
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().expect("no code panics under this lock")
    }

    /// The state machine applied a batch, anyone's.
    pub fn applied(&self, id: BatchId, log_id: LogId, replies: BatchReplies) {
        if (id.node, id.boot) != (self.node, self.boot) {
            return;
        }
        let Some(Ticket { waiters, .. }) = self.close(id.sequence) else {
            // Its clients were told that the outcome is unknown: this was it.
            return;
        };
        waiters.answer(log_id, replies);
    }

    /// The state machine applied this batch, anyone's, but nobody may rely on its replies.
    pub fn withheld(&self, id: BatchId) {
        if (id.node, id.boot) == (self.node, self.boot) {
            self.refuse(id.sequence, &Refusal::InDoubt);
        }
    }

    /// The state was replaced by a snapshot, and any batch of this node's that was on its way may be in it. They are all
    /// closed: the term rule needs every entry to be applied here. Must be called before [`Tickets::term_began`] is for
    /// an entry behind the snapshot, or that would take such a batch for one that was never logged.
    pub fn replaced(&self) {
        let open: Vec<u64> = self.lock().tickets.keys().copied().collect();
        for sequence in open {
            self.refuse(sequence, &Refusal::Replaced);
        }
    }

    /// The state machine applied an entry of this term: what was handed over for earlier ones and is still open was
    /// not logged, and never will be (see `raft/proposals.rs`).
    pub fn term_began(&self, term: u64) {
        let mut open = self.lock();
        open.term = open.term.max(term);
        for ticket in open.tickets.values_mut() {
            ticket.tell_if_lost(term);
        }
    }

    /// The leader of `term` said that it didn't log this batch.
    pub fn refused(&self, sequence: u64, term: u64) {
        let mut open = self.lock();
        let applied_term = open.term;
        if let Some(ticket) = open.tickets.get_mut(&sequence) {
            ticket.refused = ticket.refused.max(Some(term));
            ticket.tell_if_lost(applied_term);
        }
    }
}
