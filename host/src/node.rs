//! One node: wires the rooms together, and stops them in reverse order. The only file that sees all of them.
//!
//! `http` → `batcher` → `raft`; openraft drives `log` and `state_machine` → `guest`; replies go from the state machine
//! to the batcher's tickets.

mod ahead;
mod backup;
mod service;
mod starting;

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use tokio::net::TcpListener;

use crate::batcher::{Batcher, Propose, ReadPort, Reads, Tickets};
use crate::config::NodeConfig;
use crate::guest::{Engine, Limits, Module};
use crate::http::{AdminServer, HttpLimits, Server};
use crate::log::{LogOptions, SledLog, Space};
use crate::metrics::Metrics;
use crate::outcome::{BatchReplies, Refusal, Run};
use crate::raft::identity::{Identity, random};
use crate::raft::types::{BatchId, Entry, Kind, LogId};
use crate::raft::{Bootstrap, Consensus, Growth, Parts, Proposals, Refused, Stamp, quarantine};
use crate::state_machine::snapshot::Snapshots;
use crate::state_machine::{Activation, Applied, ApplyFault, Backlog, Gate, Held, Queries, StateMachine, View};
use backup::Backups;
use service::Service;

pub use starting::mark_for_rejoin;

/// The module that a cluster runs if it was given no other.
const KEY_VALUE_MODULE: &[u8] = include_bytes!("../modules/kv.wasm");
/// What may be in a folder before a node was ever started there: the launcher's files.
const LAUNCHER_FILES: [&str; 4] = ["log", "log.old", "pid", "pid.new"];
/// The folder of the durable log, in the node's.
pub(crate) const LOG_DIR: &str = "raft-log";
/// For requests in flight, when the node stops.
const DRAIN: Duration = Duration::from_secs(5);

/// A running node.
pub struct Node {
    server: Server,
    admin: Option<AdminServer>,
    batcher: Batcher,
    consensus: Arc<Consensus>,
    log: SledLog,
    gate: Arc<Gate>,
    apply_fault: ApplyFault,
    ahead: tokio::task::JoinHandle<()>,
    address: SocketAddr,
}

impl Node {
    /// Opens the folder, recovers, and listens; both ports accept connections when this returns. The node may not be
    /// ready yet: it may have to join its cluster or to apply its log.
    pub async fn start(config: NodeConfig) -> anyhow::Result<Node> {
        config.validate()?;
        let engine = Engine::new()?;
        let mut identity = Identity::open(&config.dir, config.id, &LAUNCHER_FILES)?;
        // Ports first: a port that is taken is the commonest mistake, and recovery may take a while.
        let clients = bind(config.listen, "--listen").await?;
        let peers = bind(config.peer_listen, "--peer-listen").await?;
        let address = clients.local_addr()?;
        let operators = match config.admin_listen {
            Some(address) => Some(bind(address, "--admin-listen").await?),
            None => None,
        };
        let admin_address = operators.as_ref().map(TcpListener::local_addr).transpose()?;

        let log_dir = config.dir.join(LOG_DIR);
        // A member's log is never made anew: without it the node has forgotten what it acknowledged.
        let metrics = Arc::new(Metrics::default());
        let observed = metrics.clone();
        let options = LogOptions {
            create: identity.cluster.is_none(),
            on_commit: Some(Arc::new(move |commit| observed.fsync_seconds.observe(commit.fsync_us as f64 / 1e6))),
            ..LogOptions::default()
        };
        let opened = tokio::task::spawn_blocking(move || SledLog::open(&log_dir, options)).await?;
        let mut log = opened.context("the log can't be opened")?;
        let dir = config.dir.clone();
        let snapshots = tokio::task::spawn_blocking(move || Snapshots::open(&dir)).await??;
        starting::prepare(&config, identity, &mut log, &snapshots, &clients, client_limits(&config)).await?;

        let gate = Gate::open(&config.dir, &config.skip, quarantine::read(&config.dir)?)?;
        let space = Space::start(&config.dir, config.disk.clone(), log.metrics())?;
        let asked = space.clone();
        snapshots.ask_for_room(Box::new(move |bytes| asked.check_room(bytes)));
        let tickets = Tickets::new(config.id, random());
        let backlog = Box::new(LogAgain { log: log.clone(), runtime: tokio::runtime::Handle::current() });
        let held = Held { gate: gate.clone(), backlog };
        let (state_machine, view, apply_fault) =
            StateMachine::start(engine.clone(), snapshots.clone(), tickets.clone(), metrics.clone(), held)?;
        let ahead = state_machine.ahead();
        let bootstrap = plan_bootstrap(&config, &mut identity, &engine, &view)?;
        let (stamp_gate, serving_gate) = (gate.clone(), gate.clone());
        let parts = Parts {
            dir: config.dir.clone(),
            identity,
            addresses: config.peers.clone(),
            timing: config.raft.clone(),
            log: log.clone(),
            space: space.clone(),
            state_machine,
            view: view.clone(),
            snapshots,
            growth: Growth { least: config.snapshots.log_bytes as u64, most: config.disk.growth_due() },
            metrics: metrics.clone(),
            listener: peers,
            refused: tickets.clone(),
            stamp: Box::new(move || {
                let (index, digest) = stamp_gate.stamp();
                Stamp { index, digest }
            }),
            bootstrap,
            gate: gate.clone(),
            checks: config.checks.clone(),
            snapshot_bandwidth: config.snapshots.bandwidth as u64,
            may_serve: Box::new(move || serving_gate.may_serve()),
        };
        let consensus = Arc::new(Consensus::start(parts).await?);
        let ahead = ahead::start(consensus.leader.clone(), log.clone(), view.clone(), ahead);

        let queries = Queries::start(std::thread::available_parallelism().map_or(2, usize::from).max(2))?;
        let deadline = config.limits.request_timeout;
        let port =
            Port { proposals: consensus.proposals.clone(), view: view.clone(), queries, tickets, gate: gate.clone() };
        let port = Arc::new(port);
        let tickets = port.tickets.clone();
        let batching = config.batching.clone();
        let queue_bytes_max = config.limits.queue_bytes_max;
        let batcher = Batcher::start(batching, queue_bytes_max, deadline, port.clone(), tickets, metrics.clone());
        let reads = Reads::start(port, queue_bytes_max, deadline, metrics.clone());
        let service = Service {
            node: config.id,
            started: Instant::now(),
            batcher: batcher.clone(),
            reads,
            view,
            gate,
            consensus: consensus.clone(),
            log: log.clone(),
            space,
            quota_bytes: config.disk.quota_bytes,
            metrics,
            http: OnceLock::new(),
            admin_address,
        };
        let service = Arc::new(service);
        let server = Server::start(clients, service.clone(), client_limits(&config));
        let backups = Arc::new(Backups { consensus: consensus.clone(), view: service.view.clone() });
        let admin = operators.map(|listener| AdminServer::start(listener, backups));
        if let Some(address) = admin_address {
            tracing::info!("operators connect to {address}");
        }
        let _ = service.http.set(server.metrics());
        tracing::info!("node {} serves clients on {address}", config.id);
        Ok(Node { server, admin, batcher, consensus, log, gate: service.gate.clone(), apply_fault, ahead, address })
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Resolves, with the reason, when the node met a fault that it must not survive.
    pub fn failed(&self) -> impl Future<Output = String> + Send + 'static {
        let raft = self.consensus.failed();
        let log = self.log.clone();
        let apply = self.apply_fault.clone().met();
        async move {
            tokio::select! {
                why = raft => why,
                why = apply => format!("entries can't be applied: {why}"),
                why = log.failed() => format!("the log failed: {why}"),
            }
        }
    }

    /// Answers what is in flight, takes nothing new, and stops. What was acknowledged is on disk anyway.
    pub async fn shutdown(self) {
        let Node { server, admin, batcher, consensus, log, gate, ahead, .. } = self;
        drop(admin);
        consensus.hand_over().await;
        // Together: a keep-alive connection ends when its last request is answered, and that needs the drain.
        tokio::join!(server.shutdown(DRAIN), batcher.drain(DRAIN));
        drop(batcher);
        consensus.shutdown().await;
        ahead.abort();
        // It never waits for long, and its end by an abort is no news.
        let _ = ahead.await;
        if let Err(e) = log.close().await {
            tracing::warn!("the log was not closed cleanly: {e}");
        }
        gate.ending();
    }
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("can't listen on {address}; another program may use the port: choose another {flag}"))
}

fn client_limits(config: &NodeConfig) -> HttpLimits {
    let limits = &config.limits;
    HttpLimits {
        body_bytes_max: limits.body_bytes_max,
        bulk_bytes_max: limits.bulk_bytes_max,
        bulk_replies_bytes_max: limits.bulk_replies_bytes_max,
        header_bytes_max: limits.header_bytes_max,
        connections_max: limits.connections_max,
        header_read_timeout: limits.header_read_timeout,
        idle_timeout: limits.idle_timeout,
        ..HttpLimits::default()
    }
}

/// What this node has to do to begin a cluster, if anything. A module is checked before a byte is written.
fn plan_bootstrap(
    config: &NodeConfig,
    identity: &mut Identity,
    engine: &Engine,
    view: &View,
) -> anyhow::Result<Option<Bootstrap>> {
    let proposed = match &config.module {
        Some(path) => Some(read_module(path, engine)?),
        None => None,
    };
    let planned = Bootstrap::pending(&config.dir)?;
    if identity.cluster.is_none() && (config.bootstrap || planned.is_some()) {
        // A plan that is there already is the older wish: a crash came between the plan and the next line.
        if planned.is_none() {
            Bootstrap::plan(&config.dir, proposed.as_deref().unwrap_or(KEY_VALUE_MODULE))?;
        }
        identity.join(&config.dir, random())?;
    } else if let Some(module) = proposed {
        let (path, digest) = (config.module.clone().unwrap_or_default(), blake3::hash(&module));
        tracing::info!("--module {} ({}) is a proposal for a new cluster only", path.display(), digest.to_hex());
        tokio::spawn(warn_of_other_module(view.clone(), *digest.as_bytes()));
    }
    let Some(module) = Bootstrap::pending(&config.dir)? else { return Ok(None) };
    let cluster = identity.cluster.context("a folder with a bootstrap plan has a cluster")?;
    let (engine, view) = (engine.identity().to_owned(), view.clone());
    let activation = move |module: &[u8]| Activation::of(module, cluster, Limits::default(), &engine).to_bytes();
    let active = move || view.borrow().module.is_some();
    Ok(Some(Bootstrap::new(config.dir.clone(), module, activation, active)))
}

fn read_module(path: &Path, engine: &Engine) -> anyhow::Result<Vec<u8>> {
    let bytes = fs::read(path).with_context(|| format!("the module {} can't be read", path.display()))?;
    Module::compile(engine, &bytes, Limits::default())
        .with_context(|| format!("the module {} can't be hosted", path.display()))?;
    Ok(bytes)
}

async fn warn_of_other_module(mut view: View, proposed: [u8; 32]) {
    let Ok(state) = view.wait_for(|s| s.module.is_some()).await else { return };
    let Some(module) = &state.module else { return };
    if *module.digest() != proposed {
        let active = module.description();
        tracing::warn!(
            "--module has no effect: this cluster runs {} {}, which is in its log, and goes on with it",
            active.name,
            active.version
        );
    }
}

/// The state machine tells the tickets.
impl Applied for Tickets {
    fn applied(&self, id: BatchId, log_id: LogId, replies: BatchReplies) {
        Tickets::applied(self, id, log_id, replies);
    }

    fn term_began(&self, term: u64) {
        Tickets::term_began(self, term);
    }

    fn withheld(&self, id: BatchId) {
        Tickets::withheld(self, id);
    }

    fn replaced(&self) {
        Tickets::replaced(self);
    }
}

/// Raft tells the tickets.
impl Refused for Tickets {
    fn refused(&self, sequence: u64, term: u64) {
        Tickets::refused(self, sequence, term);
    }
}

/// What the batcher reaches of the other rooms.
struct Port {
    proposals: Proposals,
    view: View,
    queries: Queries,
    tickets: Arc<Tickets>,
    gate: Arc<Gate>,
}

impl Propose for Port {
    async fn propose(&self, sequence: u64, batch: Bytes) -> Option<u64> {
        self.proposals.propose(self.tickets.id(sequence), Kind::Batch, batch).await.ok()
    }

    fn refusal(&self) -> Option<Refusal> {
        self.proposals.no_room().map(Refusal::DiskFull)
    }
}

impl ReadPort for Port {
    async fn read_index(&self) -> Option<u64> {
        self.proposals.read_index().await
    }

    async fn applied(&self, index: u64) {
        // An error says that the state machine is gone; the caller's deadline ends the wait then.
        if self.view.clone().wait_for(|s| s.applied.is_some_and(|l| l.index >= index)).await.is_err() {
            std::future::pending().await
        }
    }

    async fn run(&self, batch: Bytes, run: Run) -> Result<(u64, u64, BatchReplies), String> {
        let state = self.view.borrow().clone();
        let (index, term) = state.applied.map_or((0, 0), |l| (l.index, l.leader_id.term));
        let replies = self.queries.run(state, batch, run).await?;
        // Asked at the end: what was read may have been wrong already.
        self.gate.may_serve()?;
        Ok((index, term, replies))
    }
}

/// The log, for entries that were held when they came.
struct LogAgain {
    log: SledLog,
    runtime: tokio::runtime::Handle,
}

impl Backlog for LogAgain {
    fn read(&self, start: u64, end: u64) -> std::io::Result<Vec<Entry>> {
        use openraft::RaftLogReader;
        let mut log = self.log.clone();
        self.runtime.block_on(log.limited_get_log_entries(start, end))
    }
}
