//! Step 3 of 8: a sealed batch becomes a proposal. On the leader it goes to openraft in its envelope; on another
//! node it is forwarded to the leader as it is. Next: `log/` (driven by openraft); later `state_machine/`.
//!
//! The rule that makes a retry safe: a batch is handed over *for one term*. The leader of that term logs it in that
//! term or says no. So once a node has applied an entry of a later term without having applied the batch, the batch
//! will never be: any log that holds the later entry holds no unseen entry of the earlier term (Raft's log matching
//! and leader completeness, Ongaro & Ousterhout 2014, §5.3–5.4). Then, and only then, it may be proposed again.

use std::sync::Arc;

use bytes::Bytes;
use openraft::ReadPolicy;
use tokio::sync::{mpsc, watch};

use super::clock::Clocks;
use super::forward::Forwarder;
use super::network::Peers;
use super::network::message::{Forward, Message};
use super::room::Rooms;
use super::rounds::{Rounds, Waiting};
use super::types::{BatchId, Kind, NodeId};
use super::{Leader, Raft};

/// Is told that a proposal of this node, handed over for `term`, was certainly not logged in that term.
pub trait Refused: Send + Sync + 'static {
    fn refused(&self, sequence: u64, term: u64);
}

/// An index this node had applied, and its digest chain then. Goes into envelopes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stamp {
    pub index: u64,
    pub digest: [u8; 16],
}

/// Where batches go. Cloning is cheap.
#[derive(Clone)]
pub struct Proposals {
    inner: Arc<Inner>,
}

struct Inner {
    raft: Raft,
    leader: watch::Receiver<Option<Leader>>,
    refused: Arc<dyn Refused>,
    forwarder: Forwarder,
    rounds: mpsc::Sender<Waiting>,
    founding: watch::Receiver<bool>,
    rooms: Arc<Rooms>,
}

/// Raft has stopped; nothing can be proposed on this node any more.
#[derive(Debug, thiserror::Error)]
#[error("this node's Raft has stopped")]
pub struct Stopped;

impl Proposals {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        raft: Raft,
        leader: watch::Receiver<Option<Leader>>,
        peers: Arc<Peers>,
        clocks: Arc<Clocks>,
        stamp: impl Fn() -> Stamp + Send + Sync + 'static,
        refused: Arc<dyn Refused>,
        founding: watch::Receiver<bool>,
        rooms: Arc<Rooms>,
    ) -> Self {
        let forwarder = Forwarder::new(peers, refused.clone(), rooms.clone());
        let rounds = Rounds::start(raft.clone(), clocks, Box::new(stamp));
        Proposals { inner: Arc::new(Inner { raft, leader, refused, forwarder, rounds, founding, rooms }) }
    }

    /// Hands the bytes to the leader, waiting for one as long as it takes. Returns the term it was handed over for.
    /// If it wasn't logged after all, and that is certain, `Refused` is told.
    pub async fn propose(&self, id: BatchId, kind: Kind, bytes: Bytes) -> Result<u64, Stopped> {
        let mut watch = self.inner.leader.clone();
        loop {
            let leader = *watch.borrow_and_update();
            if watch.has_changed().is_err() {
                return Err(Stopped);
            }
            match leader {
                // A founder alone is its own quorum: what it acknowledged then, one lost disk would lose.
                Some(Leader { here: true, .. }) if kind == Kind::Batch && self.is_founding() => {
                    let mut founding = self.inner.founding.clone();
                    founding.wait_for(|f| !f).await.map_err(|_| Stopped)?;
                }
                Some(Leader { here: true, term, .. }) if kind == Kind::Batch && self.shortage().is_some() => {
                    self.inner.rooms.leader_refused();
                    self.inner.refused.refused(id.sequence, term);
                    return Ok(term);
                }
                Some(Leader { here: true, term, .. }) => {
                    self.write(id, kind, bytes, term).await?;
                    return Ok(term);
                }
                Some(leader) => {
                    let forward = Forward { term: leader.term, kind, id, bytes: bytes.clone() };
                    if self.inner.forwarder.send(leader, Message::Forward(forward), &mut watch).await {
                        return Ok(leader.term);
                    }
                }
                None => watch.changed().await.map_err(|_| Stopped)?,
            }
        }
    }

    /// This node is the first of a cluster that isn't complete yet.
    pub fn is_founding(&self) -> bool {
        *self.inner.founding.borrow()
    }

    /// Why this node as the leader can log no batch: its disk, or those of too many voters, have no room.
    fn shortage(&self) -> Option<String> {
        use openraft::async_runtime::watch::WatchReceiver;
        self.inner.rooms.shortage(|| {
            let metrics = self.inner.raft.server_metrics();
            metrics.borrow_watched().membership_config.membership().voter_ids().collect()
        })
    }

    /// Why commands can't be logged now for want of room, here or, as it said just now, at the leader.
    pub fn no_room(&self) -> Option<String> {
        let leads = self.inner.leader.borrow().is_some_and(|leader| leader.here);
        let here = self.inner.rooms.space.state().shortage.map(|why| why.to_string());
        let here = if leads { self.shortage() } else { here };
        here.or_else(|| self.inner.rooms.leader_is_low().then(|| "the leader refuses commands for want of room".into()))
    }

    /// Writes to the own log as the leader of `term`; tells `refused` if this node isn't that.
    async fn write(&self, id: BatchId, kind: Kind, bytes: Bytes, term: u64) -> Result<(), Stopped> {
        let refused = self.inner.refused.clone();
        self.log(id, kind, bytes, term, move || refused.refused(id.sequence, term)).await
    }

    /// A batch that the node `from` sealed. `out` leads back to it.
    pub(super) async fn forwarded(&self, from: NodeId, forward: Forward, out: mpsc::Sender<Message>) {
        let Forward { term, kind, id, bytes } = forward;
        if id.node != from {
            tracing::error!("node {from} forwarded a batch in the name of node {}; dropped", id.node);
            return;
        }
        let nack_as = move |full| {
            // Lost only if the connection is, and then the other node waits for the term to end.
            tokio::spawn(async move { out.send(Message::Nack { sequence: id.sequence, term, full }).await });
        };
        if kind == Kind::Batch && self.shortage().is_some() {
            return nack_as(true);
        }
        let nack = move || nack_as(false);
        if kind == Kind::Batch && self.is_founding() {
            return nack();
        }
        if kind == Kind::Batch && raftlet_machine::Batch::access(&bytes).is_err() {
            tracing::error!(node = id.node, "a forwarded batch is no valid archive; refused");
            return nack();
        }
        let _ = self.log(id, kind, bytes, term, nack).await;
    }

    async fn log(
        &self,
        id: BatchId,
        kind: Kind,
        bytes: Bytes,
        term: u64,
        on_refusal: impl FnOnce() + Send + 'static,
    ) -> Result<(), Stopped> {
        let waiting = Waiting { id, kind, bytes, term, on_refusal: Box::new(on_refusal) };
        self.inner.rounds.send(waiting).await.map_err(|_| Stopped)
    }

    /// ReadIndex (Ongaro's thesis, §6.4): an index such that a state that has applied it has seen all that was
    /// acknowledged before the call. Asks the leader, or is it; confirms with a quorum. None: try again.
    pub async fn read_index(&self) -> Option<u64> {
        let mut watch = self.inner.leader.clone();
        let leader = *watch.borrow_and_update();
        match leader {
            Some(Leader { here: true, .. }) => self.confirmed_index().await,
            Some(leader) => self.inner.forwarder.read_index(leader, &mut watch).await,
            None => None,
        }
    }

    /// The leader's side of [`Proposals::read_index`].
    pub(super) async fn confirmed_index(&self) -> Option<u64> {
        let (read, _) = self.inner.raft.get_read_log_id(ReadPolicy::ReadIndex).await.ok()?;
        Some(read.log_id().index)
    }
}
