//! How a cluster begins. One node starts it alone, so that no empty folder ever votes: it elects itself, logs the
//! module, then takes each peer in as a learner and, when it has caught up, as a voter. `bootstrap.wasm` in the
//! node's folder says that this isn't finished; it survives restarts, so a beginning is always carried to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use openraft::ChangeMembers;
use tokio::sync::watch;

use super::identity::{random, write_durably};
use super::network::message::{Answer, Call, Message};
use super::network::{Outgoing, Peers};
use super::types::{BatchId, Kind, Member, NodeId};
use super::{Leader, Proposals, Raft};

const FILE: &str = "bootstrap.wasm";
/// Piece of a module in one entry. Small enough to travel and to be logged like a batch.
const CHUNK_BYTES: usize = 512 << 10;
/// Between attempts of whatever didn't work.
const RETRY: Duration = Duration::from_millis(100);
/// A node that has to finish a beginning but finds another leading waits this long before it asks for the lead.
const LEADERLESS: Duration = Duration::from_secs(3);

type Encode = Box<dyn Fn(&[u8]) -> Bytes + Send + Sync>;

/// The work of a cluster's first node.
pub struct Bootstrap {
    dir: PathBuf,
    module: Bytes,
    /// Encodes the entry that activates a module of these bytes.
    activation: Encode,
    /// True once the state has a module.
    active: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Bootstrap {
    /// Remembers, durably, that a cluster is to begin here with this module.
    pub fn plan(dir: &Path, module: &[u8]) -> std::io::Result<()> {
        write_durably(dir, FILE, module)
    }

    /// The module of a beginning that isn't finished.
    pub fn pending(dir: &Path) -> std::io::Result<Option<Bytes>> {
        match std::fs::read(dir.join(FILE)) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub fn new(
        dir: PathBuf,
        module: Bytes,
        activation: impl Fn(&[u8]) -> Bytes + Send + Sync + 'static,
        active: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        Bootstrap { dir, module, activation: Box::new(activation), active: Box::new(active) }
    }

    /// Carries the beginning to its end, whatever is there of it already.
    pub(super) async fn run(
        self,
        raft: Raft,
        peers: Arc<Peers>,
        proposals: Proposals,
        mut leader: watch::Receiver<Option<Leader>>,
        founding: watch::Sender<bool>,
    ) {
        loop {
            match self.step(&raft, &peers, &proposals, &mut leader).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(e) => tracing::info!("the cluster isn't complete yet: {e:#}"),
            }
            tokio::time::sleep(RETRY).await;
        }
        if let Err(e) = std::fs::remove_file(self.dir.join(FILE)) {
            tracing::warn!("{FILE} can't be removed ({e}); the next start will look at it again");
        }
        founding.send_replace(false);
        tracing::info!("the cluster is complete");
    }

    /// One attempt. True when nothing is left to do.
    async fn step(
        &self,
        raft: &Raft,
        peers: &Peers,
        proposals: &Proposals,
        leader: &mut watch::Receiver<Option<Leader>>,
    ) -> anyhow::Result<bool> {
        let me = peers.identity();
        let address = |id: NodeId| peers.addresses.get(&id).cloned().context("a node without an address in --peers");
        if !raft.is_initialized().await? {
            let member = Member { address: address(me.node)?, identity: me.identity };
            raft.initialize(BTreeMap::from([(me.node, member)])).await?;
        }
        let lead = tokio::time::timeout(LEADERLESS, leader.wait_for(|l| l.is_some_and(|l| l.here))).await.is_ok();
        if !lead {
            // Only a leader can go on with this, and it is this node that has to.
            let other = *leader.borrow();
            if let Some(Leader { node, .. }) = other {
                call(peers, node, &address(node)?, Call::Lead { node: me.node }).await?;
            }
            return Ok(false);
        }
        if !(self.active)() {
            self.log_module(me.node, proposals).await?;
            return Ok(false);
        }
        let (members, voters, settled) = membership(raft);
        for (&id, address) in &peers.addresses {
            if !members.contains_key(&id) {
                let cluster = me.cluster.context("a bootstrapping node has a cluster")?;
                let identity = call(peers, id, address, Call::Join { cluster }).await?;
                let member = Member { address: address.clone(), identity };
                raft.add_learner(id, member, true).await.with_context(|| format!("adding node {id}"))?;
            }
        }
        let missing: BTreeSet<NodeId> = peers.addresses.keys().copied().filter(|id| !voters.contains(id)).collect();
        if missing.is_empty() && settled {
            return Ok(true);
        }
        // With none missing this ends a joint configuration that an attempt before this one left: in it, this node
        // alone is a quorum of the old half, and without it nothing could be committed.
        raft.change_membership(ChangeMembers::AddVoterIds(missing), true).await?;
        Ok(false)
    }

    /// The module's bytes, in pieces, then the entry that activates it. An attempt that breaks off leaves pieces
    /// behind; the next attempt's first piece says so by its batch id, and the state machine starts anew.
    async fn log_module(&self, node: NodeId, proposals: &Proposals) -> anyhow::Result<()> {
        let boot = random();
        let mut sequence = 0;
        let mut propose = async |kind, bytes| {
            let id = BatchId { node, boot, sequence };
            sequence += 1;
            proposals.propose(id, kind, bytes).await
        };
        for start in (0..self.module.len()).step_by(CHUNK_BYTES) {
            let end = (start + CHUNK_BYTES).min(self.module.len());
            propose(Kind::ModuleChunk, self.module.slice(start..end)).await?;
        }
        propose(Kind::ActivateModule, (self.activation)(&self.module)).await?;
        for _ in 0..100 {
            if (self.active)() {
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
        Ok(())
    }
}

/// All members, the voters of all configurations, and whether there is but one configuration and it is committed.
fn membership(raft: &Raft) -> (BTreeMap<NodeId, Member>, BTreeSet<NodeId>, bool) {
    use openraft::async_runtime::watch::WatchReceiver;
    let metrics = raft.server_metrics();
    let m = metrics.borrow_watched();
    let membership = m.membership_config.membership();
    let settled = membership.get_joint_config().len() == 1 && m.committed_membership_config == m.membership_config;
    (membership.nodes().map(|(id, m)| (*id, m.clone())).collect(), membership.voter_ids().collect(), settled)
}

/// One call on a connection of its own; returns the identity of the other node's folder.
async fn call(peers: &Peers, id: NodeId, address: &str, call: Call) -> anyhow::Result<u64> {
    let (mut reader, mut writer, caller) = peers.dial(id, address, None).await?;
    let mut out = Outgoing::default();
    Message::Call(call).push_to(&mut out);
    let exchange = async {
        writer.write(&mut out).await?;
        Message::read(reader.next().await?)
    };
    match tokio::time::timeout(LEADERLESS, exchange).await.context("no answer")?? {
        Message::Answer(Answer::Done) => Ok(caller.identity),
        Message::Answer(Answer::Refused(why)) => anyhow::bail!("node {id} refuses: {why}"),
        _ => anyhow::bail!("node {id} answered with another message"),
    }
}
