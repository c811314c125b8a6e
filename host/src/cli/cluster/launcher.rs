//! All nodes of a local cluster as child processes: started together, waited for, ended together. Depends on nothing
//! but child processes and HTTP. `start.rs` puts a command around it, `bench/` a measurement.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::bail;
use futures_util::future::join_all;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::folder::Folder;
use super::ports::Ports;
use super::process::{Event, NodeSpec, Wish, tend};
use crate::cli::http::Url;
use crate::cli::node_status::{NodeStatus, is_ready};
use crate::cli::settings::{Peers, Settings};

/// From the first child to all nodes ready.
pub const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for one answer of a node.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two looks at nodes that are starting.
const START_POLL: Duration = Duration::from_millis(50);
/// Lines of a dead node's log in a message.
const TAIL_LINES: usize = 12;

/// What to start.
#[derive(Debug, Clone)]
pub struct Plan {
    pub executable: PathBuf,
    pub folder: Folder,
    /// Node 1 first.
    pub ports: Vec<Ports>,
    /// Node 1 founds the cluster. Exactly one node may: two would found two clusters.
    pub found: bool,
    pub module: Option<PathBuf>,
    pub settings: Settings,
    /// Dead children are started again.
    pub restart: bool,
}

/// The running children. Dropped, it kills them.
#[derive(Debug)]
pub struct Cluster {
    folder: Folder,
    nodes: Nodes,
    wish: watch::Sender<Wish>,
    events: mpsc::UnboundedReceiver<Event>,
    tasks: JoinSet<()>,
}

/// Where the nodes are, node 1 first.
#[derive(Debug, Clone)]
pub struct Nodes {
    pub urls: Vec<Url>,
}

impl Nodes {
    /// Each node's status; None where the node doesn't answer in time.
    pub async fn statuses(&self) -> Vec<Option<NodeStatus>> {
        join_all(self.urls.iter().map(|url| async { NodeStatus::fetch(url, ASK_TIMEOUT).await.ok() })).await
    }

    /// Whether each node takes requests.
    pub async fn ready(&self) -> Vec<bool> {
        join_all(self.urls.iter().map(|url| is_ready(url, ASK_TIMEOUT))).await
    }
}

impl Cluster {
    /// Must be called on the main thread, inside a current-thread runtime: a child dies with the thread that started
    /// it, and the main thread ends only with the process.
    pub fn launch(plan: Plan) -> Cluster {
        let (wish, seen) = watch::channel(Wish::Run);
        let (report, events) = mpsc::unbounded_channel();
        let peers =
            Peers((1..).zip(&plan.ports).map(|(id, ports)| (id, format!("127.0.0.1:{}", ports.peer))).collect());
        let mut tasks = JoinSet::new();
        for (id, ports) in (1..).zip(&plan.ports) {
            let spec = NodeSpec {
                id,
                executable: plan.executable.clone(),
                folder: plan.folder.clone(),
                ports: *ports,
                peers: peers.clone(),
                bootstrap: plan.found && id == 1,
                module: plan.module.clone().filter(|_| plan.found && id == 1),
                settings: plan.settings.clone().shared_by(plan.ports.len()),
                restart: plan.restart,
            };
            tasks.spawn(tend(spec, seen.clone(), report.clone()));
        }
        let urls = plan.ports.iter().map(|ports| Url::new("127.0.0.1", ports.client)).collect();
        Cluster { folder: plan.folder, nodes: Nodes { urls }, wish, events, tasks }
    }

    pub fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    /// What happens next to a child. None: no child runs any more, and none will.
    pub async fn next_event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Waits for a leader and until all nodes are ready, at most for `within`. A child that dies meanwhile is an error that shows the end
    /// of its log.
    pub async fn wait_until_ready(&mut self, within: Duration) -> anyhow::Result<Vec<NodeStatus>> {
        let begun = Instant::now();
        loop {
            let look = async {
                let (ready, statuses) = (self.nodes.ready().await, self.nodes.statuses().await);
                tokio::time::sleep(START_POLL).await;
                (ready, statuses)
            };
            let waiting = tokio::select! {
                (ready, statuses) = look => {
                    let all: Vec<_> = statuses.iter().flatten().cloned().collect();
                    let led = !all.is_empty() && all.iter().all(|s| s.leader_id.is_some());
                    if led && all.len() == self.nodes.urls.len() && ready.iter().all(|r| *r) {
                        return Ok(all);
                    }
                    (1..).zip(ready).filter(|(_, ready)| !ready).map(|(id, _)| id).collect::<Vec<u64>>()
                }
                event = self.events.recv() => bail!("{}", self.explain(event.as_ref())),
            };
            if begun.elapsed() > within {
                let id = waiting.first().copied().unwrap_or(1);
                let (log, tail) = (self.folder.log_file(id), self.folder.log_tail(id, TAIL_LINES));
                let seconds = within.as_secs();
                bail!("not ready within {seconds} s: nodes {waiting:?}; the end of {}:\n{tail}", log.display());
            }
        }
    }

    /// An unwanted event in words, with the end of the log.
    pub fn explain(&self, event: Option<&Event>) -> String {
        let (id, what) = match event {
            None => return "no node runs any more".into(),
            Some(Event::Died { id, how, .. }) => (*id, how.clone()),
            Some(Event::NotStarted { why, .. }) => return why.clone(),
            Some(Event::Killed { id }) => (*id, "killed".into()),
        };
        let (log, tail) = (self.folder.log_file(id), self.folder.log_tail(id, TAIL_LINES));
        format!("node {id} {what}; the end of {}:\n{tail}", log.display())
    }

    /// The last line that a node printed.
    pub fn last_words(&self, id: u64) -> String {
        self.folder.log_tail(id, 1)
    }

    /// Drains and ends all nodes. When `forced` is ready, those that still run are killed. Returns who had to be.
    pub async fn stop(mut self, forced: impl Future<Output = ()>) -> Vec<u64> {
        self.wish.send_replace(Wish::Drain);
        let mut forced = std::pin::pin!(forced);
        loop {
            tokio::select! {
                node = self.tasks.join_next() => if node.is_none() { break },
                () = &mut forced, if *self.wish.borrow() != Wish::Kill => { self.wish.send_replace(Wish::Kill); }
            }
        }
        let mut killed = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            if let Event::Killed { id } = event {
                killed.push(id);
            }
        }
        killed
    }
}
