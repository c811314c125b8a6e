//! The leader's side of step 3 of 8: batches of all nodes, proposed in rounds. While a round is being committed the
//! next one gathers, so that the batches of all nodes share one sync and one message to each follower instead of
//! taking turns. It goes while the last one is applied. A lone batch waits for nothing. Next: `log/` (driven by openraft).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::Raft;
use super::clock::Clocks;
use super::proposals::Stamp;
use super::types::{BatchId, Envelope, Kind, NodeId, Proposal, TypeConfig};

/// Batches that wait to be proposed. Beyond, their senders wait.
const WAITING_MAX: usize = 1024;
/// A round with this many bytes is proposed while others are under way: then it is bytes that take the time.
const ROUND_BYTES: usize = 256 << 10;
/// A batch waits for the round before it, or for other nodes' batches, for at most this long. Far peers make rounds
/// long; then they overlap.
const ROUND_WAIT_MAX: Duration = Duration::from_millis(5);

/// A node whose last batch is this many rounds old is not waited for.
const LATELY_ROUNDS: u32 = 3;

/// A batch to be logged in `term`, by this node as its leader.
pub struct Waiting {
    pub id: BatchId,
    pub kind: Kind,
    pub bytes: Bytes,
    pub term: u64,
    /// Called if it certainly wasn't logged.
    pub on_refusal: Box<dyn FnOnce() + Send>,
}

pub struct Rounds {
    raft: Raft,
    clocks: Arc<Clocks>,
    stamp: Box<dyn Fn() -> Stamp + Send + Sync>,
    waiting: mpsc::Receiver<Waiting>,
    under_way: Arc<UnderWay>,
    /// When each node's last batch came.
    seen: BTreeMap<NodeId, Instant>,
}

/// Batches that were proposed and are not committed yet.
#[derive(Default)]
struct UnderWay {
    batches: AtomicUsize,
    none: Notify,
    pace: Mutex<Pace>,
}

/// How long rounds take.
#[derive(Default, Clone, Copy)]
struct Pace {
    started: Option<Instant>,
    /// When the last round ended. None while one is under way, and before the first.
    ended: Option<Instant>,
    /// Running mean of a round's time.
    mean: Duration,
}

impl UnderWay {
    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().expect("no code panics under this lock")
    }

    fn began(&self) {
        let mut pace = self.pace();
        pace.started.get_or_insert_with(Instant::now);
        pace.ended = None;
    }

    /// One batch is committed or refused. With the last one the round ends.
    fn done(&self) {
        if self.batches.fetch_sub(1, Relaxed) == 1 {
            let now = Instant::now();
            let mut pace = self.pace();
            if let Some(started) = pace.started.take() {
                pace.mean = (pace.mean * 7 + (now - started)) / 8;
            }
            pace.ended = Some(now);
            drop(pace);
            self.none.notify_one();
        }
    }
}

impl Pace {
    /// Until when to wait for other nodes' batches after a round. Bounded: a mean may stem from a disk that stalled.
    fn gather_until(&self) -> Option<Instant> {
        Some(self.ended? + self.mean.min(ROUND_WAIT_MAX))
    }

    /// A node whose last batch is older than this is not waited for.
    fn lately(&self) -> Duration {
        LATELY_ROUNDS * self.mean.min(ROUND_WAIT_MAX)
    }
}

impl Rounds {
    /// Starts the task; it ends when the sender is dropped or Raft stops.
    pub fn start(
        raft: Raft,
        clocks: Arc<Clocks>,
        stamp: Box<dyn Fn() -> Stamp + Send + Sync>,
    ) -> mpsc::Sender<Waiting> {
        let (sender, waiting) = mpsc::channel(WAITING_MAX);
        let (under_way, seen) = (Arc::default(), BTreeMap::new());
        let rounds = Rounds { raft, clocks, stamp, waiting, under_way, seen };
        tokio::spawn(rounds.run());
        sender
    }

    async fn run(mut self) {
        let mut round = Vec::new();
        loop {
            let Some(first) = self.waiting.recv().await else { return };
            let arrived = Instant::now();
            let mut bytes = first.bytes.len();
            round.push(first);
            loop {
                while let Ok(more) = self.waiting.try_recv() {
                    bytes += more.bytes.len();
                    round.push(more);
                }
                let idle = self.under_way.batches.load(Relaxed) == 0;
                let pace = *self.under_way.pace();
                let until = match pace.gather_until() {
                    _ if idle && self.all_there(&round, pace.lately()) => break,
                    Some(until) if idle => until,
                    _ => arrived + ROUND_WAIT_MAX,
                };
                if bytes >= ROUND_BYTES || Instant::now() >= until {
                    break;
                }
                tokio::select! {
                    more = self.waiting.recv() => match more {
                        Some(more) => {
                            bytes += more.bytes.len();
                            round.push(more);
                        }
                        None => break,
                    },
                    () = self.under_way.none.notified(), if !idle => {}
                    () = tokio::time::sleep_until(until) => {}
                }
            }
            self.under_way.began();
            for waiting in round.drain(..) {
                if self.propose(waiting).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Whether each node that had a batch lately has one in this round. Nodes whose clients wait for the round that has
    /// just ended send their next batches at about the same time.
    fn all_there(&mut self, round: &[Waiting], lately: Duration) -> bool {
        let now = Instant::now();
        self.seen.extend(round.iter().map(|w| (w.id.node, now)));
        self.seen.retain(|_, at| *at + lately >= now);
        self.seen.keys().all(|node| round.iter().any(|w| w.id.node == *node))
    }

    fn voters(&self) -> usize {
        use openraft::async_runtime::watch::WatchReceiver;
        self.raft.server_metrics().borrow_watched().membership_config.membership().voter_ids().count()
    }

    /// Hands one batch to openraft, which merges those that come together.
    async fn propose(&self, waiting: Waiting) -> Result<(), ()> {
        let Waiting { id, kind, bytes, term, on_refusal } = waiting;
        let Stamp { index, digest } = (self.stamp)();
        let time_ms = self.clocks.stamp_ms(self.voters());
        let envelope = Envelope { kind, id, time_ms, stamp_index: index, stamp_digest: digest };
        let (responder, committed, completed) = ProgressResponder::new();
        self.under_way.batches.fetch_add(1, Relaxed);
        let write = self.raft.write(Proposal { envelope, bytes }).with_leader(term_id(term)).responder(responder);
        write.await.map_err(|_| ())?;
        let under_way = self.under_way.clone();
        tokio::spawn(async move {
            // What isn't committed ends without this word.
            let _ = committed.await;
            under_way.done();
            let result = completed.await;
            // Success is seen when the entry is applied. Only this error says that nothing was logged.
            if let Ok(Err(ClientWriteError::ForwardToLeader(_))) = result {
                on_refusal();
            }
        });
        Ok(())
    }
}

fn term_id(term: u64) -> openraft::alias::CommittedLeaderIdOf<TypeConfig> {
    super::codec::log_id(term, 0).leader_id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_for_other_nodes_is_bounded_whatever_rounds_took() {
        let now = Instant::now();
        let quick = Pace { started: None, ended: Some(now), mean: Duration::from_millis(2) };
        assert_eq!(quick.gather_until(), Some(now + Duration::from_millis(2)));
        assert_eq!(quick.lately(), Duration::from_millis(6));
        let slow = Pace { mean: Duration::from_secs(3600), ..quick };
        assert_eq!(slow.gather_until(), Some(now + ROUND_WAIT_MAX));
        assert_eq!(slow.lately(), LATELY_ROUNDS * ROUND_WAIT_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rounds_time_ends_when_its_last_batch_is_done_not_when_the_next_one_comes() {
        let under_way = UnderWay::default();
        under_way.batches.store(2, Relaxed);
        under_way.began();
        tokio::time::advance(Duration::from_millis(8)).await;
        under_way.done();
        assert_eq!(under_way.pace().ended, None);
        under_way.done();
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(under_way.pace().mean, Duration::from_millis(1));
        assert_eq!(under_way.pace().ended.map(|e| e.elapsed()), Some(Duration::from_secs(3600)));
    }
}
