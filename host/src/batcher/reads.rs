//! Queries, batched like commands: all that wait share one ReadIndex round and one guest instance. A query joins only
//! a round that starts after it arrived, so it sees every write that was acknowledged before (Ongaro's thesis, §6.4).
//! A query has no effect, so it may always be refused. Batches that clients made: `reads/batches.rs`.

mod batches;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raftlet_machine::{Batch, Request};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use self::batches::WaitingBatch;
use super::{BatchWaiter, REQUEST_OVERHEAD_BYTES, Room, Waiter, weight};
use crate::metrics::Metrics;
use crate::outcome::{Answer, BatchAnswer, BatchReplies, Refusal, Run};

/// Rounds under way at once: while one asks the quorum, another runs.
const ROUNDS_MAX: usize = 4;
/// Queries, or batches of them, in one round.
const ROUND_QUERIES_MAX: usize = 1024;
/// Before the leader is asked again.
const RETRY: Duration = Duration::from_millis(20);

/// What reads need of the rest of the node.
pub trait ReadPort: Send + Sync + 'static {
    /// An index that covers all that was acknowledged before the call. None: no leader could confirm one.
    fn read_index(&self) -> impl Future<Output = Option<u64>> + Send;
    /// Waits until this node has applied the index.
    fn applied(&self, index: u64) -> impl Future<Output = ()> + Send;
    /// Runs queries of an archived batch on the newest state; returns its index and term too.
    fn run(&self, batch: Bytes, run: Run) -> impl Future<Output = Result<(u64, u64, BatchReplies), String>> + Send;
}

struct Waiting {
    request: Request,
    waiter: Waiter,
    since: Instant,
}

/// Where queries wait. Cloning is cheap.
#[derive(Clone)]
pub struct Reads {
    linearizable: Queues,
    stale: Queues,
    room: Arc<Room>,
}

#[derive(Clone)]
struct Queues {
    single: mpsc::UnboundedSender<Waiting>,
    batches: mpsc::UnboundedSender<WaitingBatch>,
}

impl Reads {
    /// `queue_bytes_max`: of the queries that were taken and not yet answered; more are refused.
    pub fn start<P: ReadPort>(
        port: Arc<P>,
        queue_bytes_max: usize,
        deadline: Duration,
        metrics: Arc<Metrics>,
    ) -> Reads {
        // All batches of queries run one after the other: the query threads are there for the others too.
        let turn = Arc::new(Semaphore::new(1));
        let start = |confirmed| {
            let (single, waiting) = mpsc::unbounded_channel();
            tokio::spawn(rounds(port.clone(), waiting, confirmed, deadline, metrics.clone()));
            let (batches, waiting) = mpsc::unbounded_channel();
            let turn = turn.clone();
            tokio::spawn(batches::rounds(port.clone(), waiting, confirmed, deadline, metrics.clone(), turn));
            Queues { single, batches }
        };
        Reads { linearizable: start(true), stale: start(false), room: Room::new(queue_bytes_max) }
    }

    /// Answers a query: from a state that has seen all that was acknowledged before, or, if `stale`, from this
    /// node's state as it is.
    pub async fn query(&self, request: Request, stale: bool) -> Result<Answer, Refusal> {
        let place = self.room.take(weight(&request))?;
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { request, waiter: Waiter { answer, _place: place }, since: Instant::now() };
        self.queues(stale).single.send(waiting).map_err(|_| Refusal::ShuttingDown)?;
        answered.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    /// The same for a batch that a client made: a valid archive of so many queries, all of them checked. It is run as
    /// it is.
    pub async fn query_batch(&self, archive: Bytes, queries: usize, stale: bool) -> Result<BatchAnswer, Refusal> {
        let place = self.room.take(REQUEST_OVERHEAD_BYTES + archive.len())?;
        let (answer, answered) = oneshot::channel();
        let waiter = BatchWaiter { answer, commands: queries, _place: place };
        let waiting = WaitingBatch { archive, waiter, since: Instant::now() };
        self.queues(stale).batches.send(waiting).map_err(|_| Refusal::ShuttingDown)?;
        answered.await.unwrap_or(Err(Refusal::ShuttingDown))
    }

    fn queues(&self, stale: bool) -> &Queues {
        if stale { &self.stale } else { &self.linearizable }
    }
}

async fn rounds<P: ReadPort>(
    port: Arc<P>,
    mut waiting: mpsc::UnboundedReceiver<Waiting>,
    confirmed: bool,
    deadline: Duration,
    metrics: Arc<Metrics>,
) {
    let slots = Arc::new(Semaphore::new(ROUNDS_MAX));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("never closed");
        let mut round = Vec::new();
        if waiting.recv_many(&mut round, ROUND_QUERIES_MAX).await == 0 {
            return;
        }
        metrics.read_rounds.inc();
        let port = port.clone();
        tokio::spawn(async move {
            run_round(&*port, round, confirmed, deadline).await;
            drop(slot);
        });
    }
}

async fn run_round<P: ReadPort>(port: &P, mut round: Vec<Waiting>, confirmed: bool, deadline: Duration) {
    round.retain(|w| !w.waiter.gone());
    let Some(oldest) = round.first().map(|w| w.since) else { return };
    if confirmed && let Err(refusal) = confirm(port, oldest, deadline).await {
        return round.into_iter().for_each(|w| w.waiter.answer(Err(refusal.clone())));
    }
    let (requests, waiters): (Vec<_>, Vec<_>) = round.into_iter().map(|w| (w.request, w.waiter)).unzip();
    let count = requests.len();
    let run = Run { positions: 0..count as u32, reply_bytes_max: usize::MAX };
    match port.run(Batch { commands: requests }.to_bytes().into(), run).await {
        Ok((index, term, replies)) => {
            assert_eq!(replies.len(), count, "the guest room answers every query");
            for (waiter, reply) in waiters.into_iter().zip(replies.into_each()) {
                waiter.answer(Ok(Answer { index, term, reply }));
            }
        }
        Err(why) => {
            tracing::error!("queries could not be run on this node: {why}");
            for waiter in waiters {
                waiter.answer(Err(Refusal::LocalFault(why.clone())));
            }
        }
    }
}

/// Waits until this node has seen all that was acknowledged before the call. `since`: when the oldest query came.
async fn confirm<P: ReadPort>(port: &P, since: Instant, deadline: Duration) -> Result<(), Refusal> {
    let until = since + deadline;
    let waited_ms = || since.elapsed().as_millis() as u64;
    let index = tokio::time::timeout_at(until, async {
        loop {
            match port.read_index().await {
                Some(index) => break index,
                None => tokio::time::sleep(RETRY).await,
            }
        }
    });
    let index = index.await.map_err(|_| Refusal::NoLeader { waited_ms: waited_ms() })?;
    let applied = tokio::time::timeout_at(until, port.applied(index)).await;
    applied.map_err(|_| Refusal::Lagging { waited_ms: waited_ms() })
}

#[cfg(test)]
#[path = "reads_tests.rs"]
mod tests;
