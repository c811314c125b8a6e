//! Queries that a client sent as one batch: its archive is run as it is. Batches that wait share one ReadIndex round,
//! as single queries do, and run one after the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raftlet_machine::limits::REPLIES_BYTES_MAX;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::super::BatchWaiter;
use super::{ROUND_QUERIES_MAX, ROUNDS_MAX, ReadPort, confirm};
use crate::metrics::Metrics;
use crate::outcome::{BatchAnswer, BatchReplies, CommandReply, Failure, Refusal, ReplyView, Run};

/// Queries that are run together. A run may be cut by the clock, and then costs no more than these.
const RUN_QUERIES_MAX: usize = 4096;

pub(super) struct WaitingBatch {
    pub(super) archive: Bytes,
    pub(super) waiter: BatchWaiter,
    pub(super) since: Instant,
}

/// Takes batches until nobody sends any more. `turn` has one permit, for all runs.
pub(super) async fn rounds<P: ReadPort>(
    port: Arc<P>,
    mut waiting: mpsc::UnboundedReceiver<WaitingBatch>,
    confirmed: bool,
    deadline: Duration,
    metrics: Arc<Metrics>,
    turn: Arc<Semaphore>,
) {
    let slots = Arc::new(Semaphore::new(ROUNDS_MAX));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("never closed");
        let mut round = Vec::new();
        if waiting.recv_many(&mut round, ROUND_QUERIES_MAX).await == 0 {
            return;
        }
        metrics.read_rounds.inc();
        let (port, turn) = (port.clone(), turn.clone());
        tokio::spawn(async move {
            let seen = if confirmed { confirm(&*port, round[0].since, deadline).await } else { Ok(()) };
            for batch in round {
                let answer = match &seen {
                    Ok(()) => run(&*port, &batch, batch.since + deadline, &turn).await,
                    Err(refusal) => Err(refusal.clone()),
                };
                batch.waiter.answer(answer);
            }
            drop(slot);
        });
    }
}

/// Runs all queries of a batch, each time on the newest state. What was read may together be as large as the replies to
/// one batch of commands; the queries beyond that aren't run.
async fn run<P: ReadPort>(
    port: &P,
    batch: &WaitingBatch,
    until: Instant,
    turn: &Semaphore,
) -> Result<BatchAnswer, Refusal> {
    let late = || Refusal::Timeout { waited_ms: batch.since.elapsed().as_millis() as u64 };
    let count = batch.waiter.commands;
    let mut reply_bytes_left = REPLIES_BYTES_MAX;
    let mut parts = Vec::with_capacity(1);
    for first in (0..count).step_by(RUN_QUERIES_MAX) {
        if reply_bytes_left == 0 {
            break;
        }
        let _turn = tokio::time::timeout_at(until, turn.acquire()).await.map_err(|_| late())?;
        if batch.waiter.answer.is_closed() || Instant::now() >= until {
            return Err(late());
        }
        let last = count.min(first + RUN_QUERIES_MAX);
        let run = Run { positions: first as u32..last as u32, reply_bytes_max: reply_bytes_left };
        let (index, term, replies) = port.run(batch.archive.clone(), run).await.map_err(|why| {
            tracing::error!("queries could not be run on this node: {why}");
            Refusal::LocalFault(why)
        })?;
        assert_eq!(replies.len(), last - first, "the guest room answers every query");
        reply_bytes_left = reply_bytes_left.saturating_sub(body_bytes(&replies));
        parts.push(BatchAnswer { index, term, replies });
    }
    Ok(joined(parts, count))
}

fn body_bytes(replies: &BatchReplies) -> usize {
    let bytes = |reply| if let ReplyView::Module(reply) = reply { reply.body.len() } else { 0 };
    replies.iter().map(bytes).sum()
}

/// The parts as one, under the oldest state's index: all of them have seen at least that.
fn joined(mut parts: Vec<BatchAnswer>, count: usize) -> BatchAnswer {
    if parts.len() == 1 && parts[0].replies.len() == count {
        return parts.remove(0);
    }
    let oldest = parts.iter().map(|part| (part.index, part.term)).min().expect("a batch has a query");
    let mut replies: Vec<_> = parts.into_iter().flat_map(|part| part.replies.into_each()).collect();
    replies.resize(count, CommandReply::Failed(Failure::BatchBudget));
    BatchAnswer { index: oldest.0, term: oldest.1, replies: BatchReplies::Each(replies) }
}
