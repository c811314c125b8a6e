//! What clients reach of a node: commands and queries pass the gate and go to the batcher; status, readiness and metrics
//! are put together from all rooms.

use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use raftlet_machine::Request;

use crate::batcher::{Batcher, Reads};
use crate::http::{
    Api, Consistency, DiskStatus, HoldStatus, HttpMetrics, IdempotencyStatus, Member, MemberRole, ModuleStatus,
    QuarantineStatus, RequestClass, Status, StatusClass,
};
use crate::log::{SledLog, Space};
use crate::metrics::Metrics;
use crate::outcome::{Answer, BatchAnswer, Refusal};
use crate::raft::Consensus;
use crate::state_machine::health::{Health, Why};
use crate::state_machine::sessions::SessionLimits;
use crate::state_machine::{Gate, View};

/// Entries that a node may be behind and still call itself ready: less than a heartbeat's worth at full load.
const READY_LAG_MAX: u64 = 1000;

fn hold_status(health: &Health) -> Option<HoldStatus> {
    if let Some(doubt) = &health.doubt {
        let reason = if matches!(doubt.why, Why::NoMajority { .. }) { "no-majority" } else { "suspicion" };
        return Some(HoldStatus { reason, index: doubt.index, skip: None, detail: doubt.to_string() });
    }
    let poison = health.poison.as_ref()?;
    let skip = Some(format!("{}:{}", poison.index, poison.checksum));
    Some(HoldStatus { reason: "entry", index: poison.index, skip, detail: poison.to_string() })
}

/// What the client listener calls.
pub(super) struct Service {
    pub(super) node: u64,
    pub(super) started: Instant,
    pub(super) batcher: Batcher,
    pub(super) reads: Reads,
    pub(super) view: View,
    pub(super) gate: Arc<Gate>,
    pub(super) consensus: Arc<Consensus>,
    pub(super) log: SledLog,
    pub(super) space: Space,
    pub(super) quota_bytes: u64,
    pub(super) metrics: Arc<Metrics>,
    pub(super) http: OnceLock<Arc<HttpMetrics>>,
    pub(super) admin_address: Option<SocketAddr>,
}

impl Service {
    /// Refuses what comes too early, or to a node whose state can't be trusted. `fresh`: it needs the newest state.
    fn open(&self, fresh: bool) -> Result<(), Refusal> {
        let Health { quarantine, doubt, poison } = self.gate.health();
        if let Some(quarantine) = quarantine {
            return Err(Refusal::Quarantined(quarantine.to_string()));
        }
        if let Some(doubt) = doubt {
            return Err(Refusal::Held(doubt.to_string()));
        }
        // What was applied before is right: a stale read may have it.
        if let Some(poison) = poison.filter(|_| fresh) {
            return Err(Refusal::Held(poison.to_string()));
        }
        if self.consensus.proposals.is_founding() {
            return Err(Refusal::Founding);
        }
        // Before the module is logged nothing else may be: it is the first entry of the application's.
        if self.view.borrow().module.is_none() {
            return Err(Refusal::NoModule);
        }
        Ok(())
    }

    fn open_to_commands(&self) -> Result<(), Refusal> {
        self.open(true)?;
        match self.consensus.proposals.no_room() {
            Some(why) => Err(Refusal::DiskFull(why)),
            None => Ok(()),
        }
    }

    fn disk(&self) -> DiskStatus {
        let state = self.space.state();
        DiskStatus {
            free_bytes: state.free_bytes,
            used_bytes: state.used_bytes,
            quota_bytes: (self.quota_bytes > 0).then_some(self.quota_bytes),
            low: state.shortage.is_some(),
        }
    }
}

impl Api for Service {
    async fn command(&self, request: Request) -> Result<Answer, Refusal> {
        self.open_to_commands()?;
        self.batcher.submit(request).await
    }

    async fn command_batch(&self, archive: Bytes, commands: usize) -> Result<BatchAnswer, Refusal> {
        self.open_to_commands()?;
        self.batcher.submit_batch(archive, commands).await
    }

    async fn query_batch(
        &self,
        archive: Bytes,
        queries: usize,
        consistency: Consistency,
    ) -> Result<BatchAnswer, Refusal> {
        let stale = consistency == Consistency::Stale;
        self.open(!stale)?;
        self.reads.query_batch(archive, queries, stale).await
    }

    async fn query(&self, request: Request, consistency: Consistency) -> Result<Answer, Refusal> {
        let stale = consistency == Consistency::Stale;
        self.open(!stale)?;
        self.reads.query(request, stale).await
    }

    fn status(&self) -> Status {
        let raft = self.consensus.status();
        let state = self.view.borrow().clone();
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let health = self.gate.health();
        let role = |votes| if votes { MemberRole::Voter } else { MemberRole::Learner };
        Status {
            node_id: self.node,
            role: raft.role,
            leader_id: raft.leader,
            term: raft.term,
            last_log_index: raft.last_log_index,
            applied_index: state.applied.map(|l| l.index),
            snapshot_index: raft.snapshot_index,
            module: state.module.as_ref().map(|m| ModuleStatus {
                name: m.description().name.clone(),
                version: m.description().version.clone(),
                digest: hex(m.digest()),
            }),
            state_digest: hex(&state.digest),
            members: (raft.members.into_iter())
                .map(|(id, member, votes)| Member { id, peer_address: member.address, role: role(votes) })
                .collect(),
            version: env!("CARGO_PKG_VERSION"),
            cluster_id: raft.cluster.map_or_else(String::new, |c| format!("{c:016x}")),
            boot_id: format!("{:016x}", self.batcher.boot()),
            uptime_seconds: self.started.elapsed().as_secs(),
            queue_bytes: self.batcher.queue_bytes() as u64,
            idempotency: {
                let SessionLimits { window_ms, keys_max, bytes_max } = state.session_limits();
                let (keys, bytes) = (state.sessions.keys(), state.sessions.bytes());
                IdempotencyStatus { window_ms, keys, keys_max, bytes, bytes_max }
            },
            hold: hold_status(&health),
            quarantine: health.quarantine.map(|q| QuarantineStatus {
                what: q.what.to_string(),
                index: q.index,
                ours: q.ours,
                theirs: q.theirs,
                time_ms: q.time_ms,
            }),
            disk: self.disk(),
            admin_address: self.admin_address.map(|a| a.to_string()),
        }
    }

    fn ready(&self) -> Result<(), String> {
        let raft = self.consensus.status();
        if let Some(why) = raft.failed {
            return Err(format!("this node's Raft has stopped: {why}"));
        }
        if raft.cluster.is_none() {
            return Err(
                "this node hasn't joined a cluster; it waits for the node that was started with --bootstrap".into()
            );
        }
        if self.consensus.proposals.is_founding() {
            return Err("the cluster isn't complete yet; its first node waits for the others".into());
        }
        self.gate.may_serve()?;
        if let Some(poison) = self.gate.health().poison {
            return Err(poison.to_string());
        }
        if let Some(why) = self.space.state().lasting() {
            return Err(format!("the disk is nearly full, only reads are answered: {why}"));
        }
        if let Some(progress) = self.consensus.fetching() {
            return Err(progress);
        }
        let state = self.view.borrow().clone();
        if state.module.is_none() {
            return Err("no module is active yet".into());
        }
        if raft.leader.is_none() {
            return Err("no leader is known".into());
        }
        let behind = raft.committed_index.saturating_sub(state.applied_index());
        if behind > READY_LAG_MAX {
            return Err(format!("this node has still to apply {behind} entries"));
        }
        if !raft.members.iter().any(|(id, _, votes)| *id == self.node && *votes) {
            return Err("this node doesn't vote yet; it is catching up".into());
        }
        Ok(())
    }

    fn metrics(&self) -> String {
        let raft = self.consensus.status();
        let state = self.view.borrow().clone();
        let m = &self.metrics;
        m.applied_index.set(state.applied_index());
        m.term.set(raft.term);
        m.is_leader.set(u64::from(raft.role == "leader"));
        m.snapshots.purged_index.set(raft.purged_index.unwrap_or(0));
        m.queue_bytes.set(self.batcher.queue_bytes() as u64);
        m.store_keys.set(state.map.len());
        m.store_bytes.set(state.map.bytes());
        m.idempotency_keys.set(state.sessions.keys());
        m.idempotency_bytes.set(state.sessions.bytes());
        let log = self.log.metrics();
        m.log.entries.set(log.entries.load(Relaxed));
        m.log.bytes.set(log.bytes.load(Relaxed));
        m.log.fsyncs.set(log.fsyncs.load(Relaxed));
        m.log.fsync_seconds.set(log.fsync_us.load(Relaxed) as f64 / 1e6);
        let disk = self.disk();
        m.disk_free_bytes.set(disk.free_bytes);
        m.disk_used_bytes.set(disk.used_bytes);
        m.disk_low.set(u64::from(disk.low));
        m.log.tail_bytes.set(log.tail_bytes.load(Relaxed));
        if let Some(http) = self.http.get() {
            for class in RequestClass::ALL {
                for status in StatusClass::ALL {
                    m.set_requests(class.name(), status.name(), http.requests(class, status));
                }
            }
            m.connections_open.set(http.connections_open.load(Relaxed));
            m.bulk_replies_bytes.set(http.bulk_replies_bytes.load(Relaxed));
        }
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &m.registry).expect("a String takes everything");
        text
    }
}
