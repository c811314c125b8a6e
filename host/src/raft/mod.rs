//! Consensus, step 3 of 8, on openraft, which is hidden behind this room: it drives `log/` (steps 4 and 5) and
//! `state_machine/` (steps 6 to 8) through their trait impls. Never looks into a batch, never answers a client.

mod audit;
mod ballot;
mod calls;
pub mod clock;
pub mod codec;
mod compaction;
mod forward;
mod hand_over;
mod hearing;
pub mod identity;
mod membership;
mod network;
mod proposals;
pub mod quarantine;
pub mod reload;
mod room;
mod rounds;
pub mod types;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use openraft::{ServerState, SnapshotPolicy};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{ChecksConfig, RaftTiming};
use crate::log::{SledLog, Space};
use crate::metrics::Metrics;
use crate::state_machine::snapshot::Snapshots;
use crate::state_machine::{Gate, StateMachine, View};
use audit::Audit;
use calls::Calls;
use clock::Clocks;
use compaction::Compaction;
use hand_over::Lead;
use identity::Identity;
use network::snapshots::Serving;
use network::{Installer, Interests, Links, Peers, Served};
use room::Rooms;
use types::{Member, NodeId, TypeConfig};

pub use compaction::{Growth, reconcile};
pub use membership::Bootstrap;
pub use proposals::{Proposals, Refused, Stamp, Stopped};

pub type Raft = openraft::Raft<TypeConfig, StateMachine>;

/// Entries in one message, at most; the log caps their bytes.
const APPEND_ENTRIES_MAX: u64 = 512;
/// Advances of the commit index that may wait to be applied. Beyond, openraft's core waits: it neither logs nor votes. One
/// takes some bytes; what the entries take is bounded by the nodes' queues. A batch may be applied for seconds, while a
/// thousand others are committed.
const APPLIES_WAITING_MAX: u64 = 65_536;

/// Who leads, as this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leader {
    pub node: NodeId,
    pub term: u64,
    /// It is this node.
    pub here: bool,
}

/// A running Raft node.
pub struct Consensus {
    pub proposals: Proposals,
    pub leader: watch::Receiver<Option<Leader>>,
    lead: Lead,
    /// For backups: the snapshots of this node, and how fast they may leave it.
    pub serving: Arc<Serving>,
    installer: Arc<Installer>,
    raft: Raft,
    peers: Arc<Peers>,
    tasks: Mutex<JoinSet<()>>,
}

/// What a node's Raft is made of.
pub struct Parts {
    pub dir: PathBuf,
    pub identity: Identity,
    pub addresses: BTreeMap<NodeId, String>,
    pub timing: RaftTiming,
    pub log: SledLog,
    pub space: Space,
    pub state_machine: StateMachine,
    pub view: View,
    pub snapshots: Arc<Snapshots>,
    /// Of the log, from one snapshot to the next.
    pub growth: Growth,
    pub metrics: Arc<Metrics>,
    pub listener: TcpListener,
    pub refused: Arc<dyn Refused>,
    pub stamp: Box<dyn Fn() -> Stamp + Send + Sync>,
    /// Set on the node that makes a new cluster, until that is done.
    pub bootstrap: Option<Bootstrap>,
    pub gate: Arc<Gate>,
    pub checks: ChecksConfig,
    /// Bytes a second, of all snapshots that leave this node together; 0: no cap.
    pub snapshot_bandwidth: u64,
    /// `Err` says why nobody may take this node's state now.
    pub may_serve: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// For `/_/status`.
#[derive(Debug, Clone)]
pub struct RaftStatus {
    pub role: &'static str,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub last_log_index: Option<u64>,
    pub committed_index: u64,
    pub snapshot_index: Option<u64>,
    /// Entries up to here are not in the log any more.
    pub purged_index: Option<u64>,
    pub cluster: Option<u64>,
    /// Id, what the membership says, whether it votes.
    pub members: Vec<(NodeId, Member, bool)>,
    /// Why openraft stopped, if it did.
    pub failed: Option<String>,
}

impl Consensus {
    pub async fn start(parts: Parts) -> anyhow::Result<Consensus> {
        let (gate, checks, metrics) = (parts.gate, parts.checks, parts.metrics);
        let Parts { dir, identity, addresses, timing, log, state_machine, listener, refused, stamp, bootstrap, .. } =
            parts;
        let view = parts.view.clone();
        let serving = Serving::new(parts.snapshots.clone(), view, parts.snapshot_bandwidth, parts.may_serve);
        let config = openraft::Config {
            cluster_name: "raftlet".into(),
            heartbeat_interval: timing.heartbeat.as_millis() as u64,
            election_timeout_min: timing.election_min.as_millis() as u64,
            election_timeout_max: timing.election_max.as_millis() as u64,
            max_payload_entries: APPEND_ENTRIES_MAX,
            // `compaction.rs` decides when, and what is purged then: openraft would purge up to the newest snapshot.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            // A restored leader could serve what another leader has overwritten.
            enable_leader_restore: Some(false),
            // A node that was cut off must not force an election when it comes back.
            enable_pre_vote: Some(true),
            state_machine_channel_size: Some(APPLIES_WAITING_MAX),
            ..openraft::Config::default()
        };
        let peers = Arc::new(Peers::new(dir.clone(), identity, addresses));
        let clocks = Arc::new(Clocks::default());
        let rooms = Arc::new(Rooms::new(parts.space));
        let interests = Arc::<Interests>::default();
        let links = Links {
            peers: peers.clone(),
            clocks: clocks.clone(),
            rooms: rooms.clone(),
            serving: serving.clone(),
            interests: interests.clone(),
        };
        let raft = Raft::new(identity.node, Arc::new(config.validate()?), links, log.clone(), state_machine).await?;
        let members = raft.server_metrics();
        let lookup = move |id| {
            use openraft::async_runtime::watch::WatchReceiver;
            members.borrow_watched().membership_config.membership().get_node(&id).cloned()
        };
        peers.member.set(Box::new(lookup)).ok().expect("set once, here");
        serving.set_raft(raft.clone());
        let installer = Arc::new(Installer::new(peers.clone(), raft.clone(), parts.snapshots.clone()));

        let mut tasks = JoinSet::new();
        let (leader_changed, leader) = watch::channel(None);
        tasks.spawn(watch_leader(raft.clone(), leader_changed));
        let (founded, founding) = watch::channel(bootstrap.is_some());
        let proposals = Proposals::new(
            raft.clone(),
            leader.clone(),
            peers.clone(),
            clocks,
            stamp,
            refused,
            founding,
            rooms.clone(),
        );
        let lead = Lead::new(raft.clone(), leader.clone(), rooms.clone());
        let audit =
            Audit::new(identity.node, dir, gate.clone(), Calls::new(peers.clone()), lead.clone(), metrics.clone());
        let audit = Arc::new(audit);
        tasks.spawn(audit.clone().run(proposals.clone(), checks));
        let served = Served {
            peers: peers.clone(),
            raft: raft.clone(),
            proposals: proposals.clone(),
            audit,
            space: rooms.space.clone(),
            serving: serving.clone(),
            interests,
            installer: installer.clone(),
        };
        tasks.spawn(network::serve(listener, Arc::new(served)));
        let compaction = Compaction::new(
            raft.clone(),
            log,
            parts.snapshots,
            parts.view,
            gate.clone(),
            metrics.clone(),
            parts.growth,
        );
        tasks.spawn(compaction.await?.run());
        if let Some(bootstrap) = bootstrap {
            tasks.spawn(bootstrap.run(raft.clone(), peers.clone(), proposals.clone(), leader.clone(), founded));
        }
        tasks.spawn(lead.clone().without_room());
        Ok(Consensus { proposals, leader, lead, serving, installer, raft, peers, tasks: Mutex::new(tasks) })
    }

    pub fn status(&self) -> RaftStatus {
        use openraft::async_runtime::watch::WatchReceiver;
        let metrics = self.raft.metrics();
        let m = metrics.borrow_watched();
        let membership = m.membership_config.membership();
        let voters: Vec<NodeId> = membership.voter_ids().collect();
        RaftStatus {
            role: match m.state {
                ServerState::Leader => "leader",
                ServerState::Follower => "follower",
                ServerState::Candidate => "candidate",
                ServerState::Learner => "learner",
                ServerState::Shutdown => "stopped",
            },
            leader: m.current_leader,
            term: m.current_term,
            last_log_index: m.last_log_index,
            committed_index: m.local_committed.map_or(0, |c| c.index),
            snapshot_index: m.snapshot.map(|s| s.index),
            purged_index: m.purged.map(|p| p.index),
            cluster: self.peers.identity().cluster,
            members: membership.nodes().map(|(id, member)| (*id, member.clone(), voters.contains(id))).collect(),
            failed: m.running_state.as_ref().err().map(|e| e.to_string()),
        }
    }

    /// How far a snapshot is that this node needs from its leader, if there is one.
    pub fn fetching(&self) -> Option<String> {
        self.installer.progress()
    }

    /// Resolves when this node must not go on: openraft stopped, or the folder belongs to another cluster.
    pub fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        use openraft::async_runtime::watch::WatchReceiver;
        let metrics = self.raft.metrics();
        // The full metrics change with every entry; these only with the node's role, which a stop changes too.
        let mut server_metrics = self.raft.server_metrics();
        let mut misplaced = self.peers.misplaced.subscribe();
        async move {
            let stopped = async {
                loop {
                    let failure = metrics.borrow_watched().running_state.as_ref().err().map(|e| e.to_string());
                    if let Some(failure) = failure {
                        return failure;
                    }
                    if server_metrics.changed().await.is_err() {
                        // The sender went with openraft's core; why, stands in the last full metrics.
                        let last = metrics.borrow_watched().running_state.as_ref().err().map(|e| e.to_string());
                        return last.unwrap_or_else(|| "Raft has stopped".to_string());
                    }
                }
            };
            let misplaced = async {
                let text = misplaced.wait_for(Option::is_some).await.ok().and_then(|text| text.clone());
                match text {
                    Some(text) => text,
                    None => std::future::pending().await,
                }
            };
            tokio::select! { why = stopped => why, why = misplaced => why }
        }
    }

    /// If this node leads, lets the voter that has most of the log lead instead, so that a planned stop costs no
    /// election timeout. Best effort: an election follows anyway.
    pub async fn hand_over(&self) {
        self.lead.hand_over().await;
    }

    /// Stops openraft and stops talking to peers. What is in the log stays.
    pub async fn shutdown(&self) {
        if let Err(e) = self.raft.shutdown().await {
            tracing::warn!("Raft ended badly: {e}");
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock().expect("no code panics under this lock"));
        tasks.shutdown().await;
        self.installer.stop();
    }
}

async fn watch_leader(raft: Raft, changed: watch::Sender<Option<Leader>>) {
    use openraft::async_runtime::watch::WatchReceiver;
    let mut metrics = raft.server_metrics();
    loop {
        let leader = {
            let m = metrics.borrow_watched();
            let here = m.state.is_leader();
            // A committed vote: a quorum has elected that node in that term.
            let elected = m.vote.is_committed().then_some((m.vote.leader_id.voted_for, m.vote.leader_id.term));
            elected
                .filter(|(node, _)| (*node == m.id) == here && m.current_leader == Some(*node))
                .map(|(node, term)| Leader { node, term, here })
        };
        changed.send_if_modified(|known| {
            let modified = *known != leader;
            *known = leader;
            modified
        });
        if metrics.changed().await.is_err() {
            return;
        }
    }
}
