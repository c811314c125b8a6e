//! A cluster of `raftlet node start` processes in a temporary folder: started, killed, paused, restarted by the
//! test, and watched through `/_/status`. Nodes are named by their ids, 1 to N. When a test fails, the tails of the
//! nodes' logs are printed; a node that panicked fails its test. Next: `load.rs`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

use crate::clocks;
use crate::http::Client;
use crate::ports::Reserved;
use crate::process::{Process, Signal, Usage, assert_no_panic, tail, usage};
use crate::proxy::{self, Network};
use crate::slots::{self, Slot};
use crate::wait;

/// Generous: a debug build compiles a module at each start, and other tests use the same cores.
pub const START_WITHIN: Duration = Duration::from_secs(60);
/// For an election and what follows from it.
pub const ELECT_WITHIN: Duration = Duration::from_secs(30);
/// For a graceful stop.
pub const STOP_WITHIN: Duration = Duration::from_secs(30);
const STATUS_WITHIN: Duration = Duration::from_secs(2);
const TAIL_LINES: usize = 40;

#[derive(Debug)]
pub struct Cluster {
    // Dropped first, so that nobody writes into the folder when it goes.
    nodes: Vec<Node>,
    peers: Vec<(u64, SocketAddr)>,
    network: Option<Network>,
    options: Options,
    folder: TempDir,
    _slot: Option<Slot>,
}

/// How the nodes are started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--module FILE` for the node that bootstraps.
    pub module: Option<PathBuf>,
    /// More arguments for every node.
    pub args: Vec<OsString>,
    /// The nodes reach each other through a [`Network`] that can be cut and slowed.
    pub proxied: bool,
    /// Each node has a time of day of its own (`clocks.rs`).
    pub clocks: bool,
}

#[derive(Debug)]
struct Node {
    id: u64,
    listen: Reserved,
    peer: Reserved,
    process: Option<Process>,
    paused: bool,
    /// More variables for its next start.
    environment: Vec<(String, String)>,
    /// A bootstrapping node does it at its first start only.
    started_before: bool,
}

/// What `/_/status` says.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    pub node_id: u64,
    pub role: String,
    pub leader_id: Option<u64>,
    pub term: u64,
    pub last_log_index: Option<u64>,
    pub applied_index: Option<u64>,
    pub snapshot_index: Option<u64>,
    pub module: Option<Module>,
    pub state_digest: Option<String>,
    pub members: Value,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Module {
    pub name: String,
    pub version: String,
    pub digest: String,
}

impl Cluster {
    /// N nodes with the built-in module, all ready.
    pub fn start(nodes: u64) -> Cluster {
        Self::start_with(nodes, Options::default())
    }

    pub fn start_with(nodes: u64, options: Options) -> Cluster {
        let mut cluster = Self::prepare(nodes, options, Some(slots::take()));
        cluster.restart_all();
        cluster
    }

    /// A cluster beside another one of the same test: it uses no slot of its own.
    pub fn start_beside(_other: &Cluster, nodes: u64) -> Cluster {
        let mut cluster = Self::prepare(nodes, Options::default(), None);
        cluster.restart_all();
        cluster
    }

    /// Ports and folders, no process yet.
    pub fn prepare(nodes: u64, options: Options, slot: Option<Slot>) -> Cluster {
        let reserve = || Reserved::any().expect("a free port");
        let node = |id| Node {
            id,
            listen: reserve(),
            peer: reserve(),
            process: None,
            paused: false,
            environment: Vec::new(),
            started_before: false,
        };
        let nodes: Vec<Node> = (1..=nodes).map(node).collect();
        let peers: Vec<(u64, SocketAddr)> = nodes.iter().map(|n| (n.id, n.peer.address())).collect();
        let network = options.proxied.then(|| Network::between(&peers).expect("ports for the links"));
        let folder = tempfile::Builder::new().prefix("raftlet-test-").tempdir().expect("a temporary folder");
        Cluster { peers, network, nodes, options, folder, _slot: slot }
    }

    pub fn ids(&self) -> impl Iterator<Item = u64> + use<> {
        1..=self.nodes.len() as u64
    }

    pub fn address(&self, id: u64) -> SocketAddr {
        self.node(id).listen.address()
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.ids().map(|id| self.address(id)).collect()
    }

    /// Where the other nodes reach it.
    pub fn peer_address(&self, id: u64) -> SocketAddr {
        self.node(id).peer.address()
    }

    pub fn client(&self, id: u64) -> Client {
        Client::new(self.address(id))
    }

    /// The node's data folder.
    pub fn data(&self, id: u64) -> PathBuf {
        self.folder.path().join(format!("node-{id}"))
    }

    /// The whole cluster's temporary folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// All the node wrote to stderr, over all its runs.
    pub fn log(&self, id: u64) -> String {
        let path = self.folder.path().join(format!("node-{id}.err"));
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// The command line of a node.
    pub fn arguments(&self, id: u64, bootstrap: bool) -> Vec<OsString> {
        let node = self.node(id);
        let mut args: Vec<OsString> = ["node", "start", "--id"].map(Into::into).into();
        args.push(id.to_string().into());
        args.extend(["--dir".into(), self.data(id).into()]);
        args.extend(["--listen".into(), node.listen.address().to_string().into()]);
        args.extend(["--peer-listen".into(), node.peer.address().to_string().into()]);
        args.extend(["--peers".into(), proxy::peer_list(self.network.as_ref(), &self.peers, id).into()]);
        if bootstrap {
            args.push("--bootstrap".into());
            if let Some(module) = &self.options.module {
                args.extend(["--module".into(), module.into()]);
            }
        }
        args.extend(self.options.args.iter().cloned());
        args
    }

    /// The network between the nodes.
    ///
    /// # Panics
    /// If the cluster was started without [`Options::proxied`].
    #[track_caller]
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("the cluster is proxied")
    }

    /// Starts a node that does not run. Node 1 bootstraps at its first start. Does not wait.
    pub fn restart(&mut self, id: u64) {
        let bootstrap = id == 1 && !self.node(id).started_before;
        let args = self.arguments(id, bootstrap);
        self.restart_as(id, &args);
    }

    /// Sets a variable in the environment of the node's next start, and of that one only.
    pub fn set_variable(&mut self, id: u64, name: &str, value: &str) {
        self.node_mut(id).environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts a node that does not run with these arguments.
    pub fn restart_as(&mut self, id: u64, args: &[OsString]) {
        let folder = self.folder.path().to_owned();
        let clock = self.options.clocks.then(|| clocks::environment(&folder, id)).into_iter().flatten();
        let node = self.node_mut(id);
        assert!(node.process.is_none(), "node {id} runs already");
        let mut environment = std::mem::take(&mut node.environment);
        environment.extend(clock);
        node.process = Some(Process::start_in(&format!("node-{id}"), &folder, args, &environment, Signal::KILL));
        node.started_before = true;
        node.paused = false;
    }

    /// Starts all nodes that do not run and waits until all are ready.
    #[track_caller]
    pub fn restart_all(&mut self) {
        for id in self.ids() {
            if self.node(id).process.is_none() {
                self.restart(id);
            }
        }
        for id in self.ids() {
            self.wait_ready(id);
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self, id: u64) {
        self.running(id).kill();
        self.node_mut(id).process = None;
    }

    /// SIGKILL for all, one right after the other.
    pub fn kill_all(&mut self) {
        for node in &mut self.nodes {
            if let Some(process) = &mut node.process {
                process.signal(Signal::KILL);
            }
        }
        // Dropping waits for its end.
        self.nodes.iter_mut().for_each(|node| node.process = None);
    }

    /// SIGSTOP: the node is there and does not answer.
    #[track_caller]
    pub fn pause(&mut self, id: u64) {
        self.running(id).pause();
        self.node_mut(id).paused = true;
    }

    /// SIGCONT.
    pub fn resume(&mut self, id: u64) {
        self.running(id).signal(Signal::CONT);
        self.node_mut(id).paused = false;
    }

    /// Any other signal.
    pub fn signal(&mut self, id: u64, signal: Signal) {
        self.running(id).signal(signal);
    }

    /// SIGTERM; waits for the end.
    #[track_caller]
    pub fn terminate(&mut self, id: u64) -> ExitStatus {
        self.signal(id, Signal::TERM);
        self.wait_exit(id)
    }

    /// Waits until the node ends.
    #[track_caller]
    pub fn wait_exit(&mut self, id: u64) -> ExitStatus {
        let status = self.running(id).wait(STOP_WITHIN);
        self.node_mut(id).process = None;
        status
    }

    /// How the node ended, if it did.
    pub fn exited(&mut self, id: u64) -> Option<ExitStatus> {
        self.node_mut(id).process.as_mut().and_then(Process::exited)
    }

    pub fn is_paused(&self, id: u64) -> bool {
        self.node(id).paused
    }

    pub fn is_running(&self, id: u64) -> bool {
        self.node(id).process.is_some()
    }

    #[track_caller]
    pub fn pid(&self, id: u64) -> u32 {
        self.node(id).process.as_ref().expect("the node runs").pid()
    }

    /// What a running node has used since its start.
    #[track_caller]
    pub fn usage(&self, id: u64) -> Usage {
        usage(self.pid(id))
    }

    /// None if the node does not run, is paused, or does not answer in two seconds.
    pub fn status(&self, id: u64) -> Option<Status> {
        if self.node(id).process.is_none() || self.node(id).paused {
            return None;
        }
        let response = self.client(id).answer_within(STATUS_WITHIN).get("/_/status").ok()?;
        if response.status != 200 {
            return None;
        }
        Some(serde_json::from_slice(&response.body).unwrap_or_else(|e| panic!("status of node {id}: {e}: {response}")))
    }

    /// The statuses of the nodes that answer.
    pub fn statuses(&self) -> Vec<Status> {
        self.ids().filter_map(|id| self.status(id)).collect()
    }

    #[track_caller]
    pub fn wait_ready(&mut self, id: u64) {
        wait::until(&format!("node {id} is ready"), START_WITHIN, || {
            if let Some(status) = self.exited(id) {
                panic!("node {id} ended ({status}) before it was ready:\n{}", tail(&self.log(id), TAIL_LINES));
            }
            let answer = self.client(id).answer_within(STATUS_WITHIN).get("/_/ready").ok()?;
            (answer.status == 200).then_some(())
        });
    }

    /// Waits until a majority of the cluster follows one leader in one term; its id.
    #[track_caller]
    pub fn leader(&self) -> u64 {
        wait::until("a majority follows one leader", ELECT_WITHIN, || {
            let statuses = self.statuses();
            let leader = statuses.iter().filter(|s| s.role == "leader").max_by_key(|s| s.term)?;
            let follows = |s: &&Status| s.term == leader.term && s.leader_id == Some(leader.node_id);
            let following = statuses.iter().filter(follows).count();
            (following > self.nodes.len() / 2).then_some(leader.node_id)
        })
    }

    /// A node that is not the leader.
    #[track_caller]
    pub fn follower(&self) -> u64 {
        let leader = self.leader();
        self.ids().find(|id| *id != leader).expect("there is more than one node")
    }

    /// Waits until all running nodes have applied the same last entry; the common digest.
    ///
    /// # Panics
    /// As soon as two nodes, or one node at two times, show different digests at the same index.
    #[track_caller]
    pub fn wait_converged(&self) -> String {
        let running = self.nodes.iter().filter(|n| n.process.is_some() && !n.paused).count();
        let mut seen: HashMap<u64, (u64, String)> = HashMap::new();
        let converged = wait::poll(ELECT_WITHIN, || {
            let statuses = self.statuses();
            for s in &statuses {
                let (Some(index), Some(shown)) = (s.applied_index, &s.state_digest) else { continue };
                let (node, digest) = seen.entry(index).or_insert_with(|| (s.node_id, shown.clone()));
                assert_eq!(digest, shown, "nodes {node} and {} differ at index {index}", s.node_id);
            }
            let first = statuses.first()?;
            let same = |s: &Status| s.applied_index == first.applied_index && s.last_log_index == s.applied_index;
            (statuses.len() == running && statuses.iter().all(same)).then(|| first.state_digest.clone())?
        });
        converged.unwrap_or_else(|| panic!("not all of {running} nodes applied the same index: {:#?}", self.statuses()))
    }

    fn node(&self, id: u64) -> &Node {
        &self.nodes[id as usize - 1]
    }

    fn node_mut(&mut self, id: u64) -> &mut Node {
        &mut self.nodes[id as usize - 1]
    }

    fn running(&mut self, id: u64) -> &mut Process {
        self.node_mut(id).process.as_mut().unwrap_or_else(|| panic!("node {id} does not run"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_all();
        let failed = std::thread::panicking();
        for id in self.ids() {
            let log = self.log(id);
            if failed {
                println!("--- the end of node {id}'s log\n{}", tail(&log, TAIL_LINES));
            } else {
                assert_no_panic(&format!("node {id}"), &log);
            }
        }
    }
}
