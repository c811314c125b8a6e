//! Queries, batched like commands: all that wait share one ReadIndex round and one guest instance. A query joins only
//! a round that starts after it arrived, so it sees every write that was acknowledged before (Ongaro's thesis, §6.4).
//! A query has no effect, so it may always be refused.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use raftlet_machine::{Batch, Request};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::{Room, Waiter, weight};
use crate::metrics::Metrics;
use crate::outcome::{Answer, CommandReply, Refusal};

/// Rounds under way at once: while one asks the quorum, another runs.
const ROUNDS_MAX: usize = 4;
/// Queries in one round.
const ROUND_QUERIES_MAX: usize = 1024;
/// Before the leader is asked again.
const RETRY: Duration = Duration::from_millis(20);

/// What reads need of the rest of the node.
pub trait ReadPort: Send + Sync + 'static {
    /// An index that covers all that was acknowledged before the call. None: no leader could confirm one.
    fn read_index(&self) -> impl Future<Output = Option<u64>> + Send;
    /// Waits until this node has applied the index.
    fn applied(&self, index: u64) -> impl Future<Output = ()> + Send;
    /// Runs `count` archived queries on the newest state; returns its index and term too.
    fn run(
        &self,
        batch: Vec<u8>,
        count: usize,
    ) -> impl Future<Output = Result<(u64, u64, Vec<CommandReply>), String>> + Send;
}

struct Waiting {
    request: Request,
    waiter: Waiter,
    since: Instant,
}

/// Where queries wait. Cloning is cheap.
#[derive(Clone)]
pub struct Reads {
    linearizable: mpsc::UnboundedSender<Waiting>,
    stale: mpsc::UnboundedSender<Waiting>,
    room: Arc<Room>,
}

impl Reads {
    /// `queue_bytes_max`: of the queries that were taken and not yet answered; more are refused.
    pub fn start<P: ReadPort>(
        port: Arc<P>,
        queue_bytes_max: usize,
        deadline: Duration,
        metrics: Arc<Metrics>,
    ) -> Reads {
        let start = |confirmed| {
            let (queue, waiting) = mpsc::unbounded_channel();
            tokio::spawn(rounds(port.clone(), waiting, confirmed, deadline, metrics.clone()));
            queue
        };
        Reads { linearizable: start(true), stale: start(false), room: Room::new(queue_bytes_max) }
    }

    /// Answers a query: from a state that has seen all that was acknowledged before, or, if `stale`, from this
    /// node's state as it is.
    pub async fn query(&self, request: Request, stale: bool) -> Result<Answer, Refusal> {
        let place = self.room.take(weight(&request))?;
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { request, waiter: Waiter { answer, _place: place }, since: Instant::now() };
        let queue = if stale { &self.stale } else { &self.linearizable };
        queue.send(waiting).map_err(|_| Refusal::ShuttingDown)?;
        answered.await.unwrap_or(Err(Refusal::ShuttingDown))
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
    let waited_ms = || oldest.elapsed().as_millis() as u64;
    if confirmed {
        let until = oldest + deadline;
        let index = tokio::time::timeout_at(until, async {
            loop {
                match port.read_index().await {
                    Some(index) => break index,
                    None => tokio::time::sleep(RETRY).await,
                }
            }
        });
        let Ok(index) = index.await else { return refuse(round, &Refusal::NoLeader { waited_ms: waited_ms() }) };
        if tokio::time::timeout_at(until, port.applied(index)).await.is_err() {
            return refuse(round, &Refusal::Lagging { waited_ms: waited_ms() });
        }
    }
    let (requests, waiters): (Vec<_>, Vec<_>) = round.into_iter().map(|w| (w.request, w.waiter)).unzip();
    let count = requests.len();
    match port.run(Batch { commands: requests }.to_bytes(), count).await {
        Ok((index, term, replies)) => {
            assert_eq!(replies.len(), count, "the guest room answers every query");
            for (waiter, reply) in waiters.into_iter().zip(replies) {
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

fn refuse(round: Vec<Waiting>, refusal: &Refusal) {
    for w in round {
        w.waiter.answer(Err(refusal.clone()));
    }
}

#[cfg(test)]
#[path = "reads_tests.rs"]
mod tests;
