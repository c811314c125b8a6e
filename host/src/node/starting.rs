//! What a node does before Raft starts, when it can't start from its own folder: takes the state from a peer, and says
//! so to whoever asks meanwhile. Next: `Node::start`.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use raftlet_machine::Request;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::config::NodeConfig;
use crate::http::{Api, Consistency, HttpLimits, Server, Status};
use crate::log::SledLog;
use crate::outcome::{Answer, BatchAnswer, Refusal};
use crate::raft::identity::Identity;
use crate::raft::reconcile;
use crate::raft::reload::{self, Reload};
use crate::state_machine::snapshot::Snapshots;

/// For those who wait for an answer of the starting node, when it has started.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(1);

/// Makes the folder one that Raft can start from: log and snapshots without a gap, and no contradiction.
pub async fn prepare(
    config: &NodeConfig,
    identity: Identity,
    log: &mut SledLog,
    snapshots: &Arc<Snapshots>,
    clients: &TcpListener,
    limits: HttpLimits,
) -> anyhow::Result<()> {
    if let Some(reason) = Reload::reason(&config.dir, log, snapshots).await? {
        let (progress, seen) = watch::channel("starting".to_string());
        // The same socket again: the node's own server takes it over.
        let listener = rustix::io::fcntl_dupfd_cloexec(clients, 0)?;
        let listener = TcpListener::from_std(listener.into())?;
        let server = Server::start(listener, Arc::new(Starting { node: config.id, identity, seen }), limits);
        let reload = Reload {
            dir: config.dir.clone(),
            identity,
            addresses: config.peers.clone(),
            snapshots: snapshots.clone(),
            progress,
        };
        let reloaded = reload.run(&reason, log).await;
        server.shutdown(DRAIN).await;
        reloaded?;
    }
    let newest = snapshots.kept().first().and_then(|file| file.meta.last_log_id);
    reload::raise_vote(log, newest, identity.node).await?;
    reconcile(log, newest).await.context("the log and the snapshots don't fit together")
}

/// Marks the folder of a stopped node, durably: its next start takes the state from a peer. Returns the node's id.
pub fn mark_for_rejoin(dir: &Path) -> anyhow::Result<u64> {
    let identity = Identity::read(dir)?;
    if identity.cluster.is_none() {
        anyhow::bail!("{} has not joined a cluster: it has no state to be replaced, just start it", dir.display());
    }
    // What a running node holds too: while this is held it can't start.
    let _held = SledLog::hold(&dir.join(super::LOG_DIR))?;
    reload::mark(dir).with_context(|| format!("{} can't be marked", dir.display()))?;
    Ok(identity.node)
}

/// Serves clients until the node does: it is alive, and says why it can't serve yet.
struct Starting {
    node: u64,
    identity: Identity,
    seen: watch::Receiver<String>,
}

impl Api for Starting {
    async fn command(&self, _: Request) -> Result<Answer, Refusal> {
        Err(Refusal::Held(self.seen.borrow().clone()))
    }

    async fn query(&self, _: Request, _: Consistency) -> Result<Answer, Refusal> {
        Err(Refusal::Held(self.seen.borrow().clone()))
    }

    async fn command_batch(&self, _: Bytes, _: usize) -> Result<BatchAnswer, Refusal> {
        Err(Refusal::Held(self.seen.borrow().clone()))
    }

    async fn query_batch(&self, _: Bytes, _: usize, _: Consistency) -> Result<BatchAnswer, Refusal> {
        Err(Refusal::Held(self.seen.borrow().clone()))
    }

    fn status(&self) -> Status {
        Status {
            node_id: self.node,
            role: "starting",
            version: env!("CARGO_PKG_VERSION"),
            cluster_id: self.identity.cluster.map_or_else(String::new, |c| format!("{c:016x}")),
            ..Status::default()
        }
    }

    fn ready(&self) -> Result<(), String> {
        Err(self.seen.borrow().clone())
    }

    fn metrics(&self) -> String {
        "# EOF\n".into()
    }
}
