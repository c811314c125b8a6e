//! Before Raft starts: a node whose log was purged further than its snapshots reach, or that was told to rejoin, takes
//! the state from a peer. Vote and log stay as they are: what this node has promised and acknowledged is in them.
//! Next: `reconcile` in `compaction.rs`, then `Consensus::start`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use openraft::RaftLogReader;
use openraft::storage::RaftLogStorage;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::identity::Identity;
use super::network::Peers;
use super::network::fetch::{FetchError, Source, percent};
use super::quarantine;
use super::types::{LogId, NodeId, SnapshotFile, Vote};
use crate::durable::write_durably;
use crate::log::SledLog;
use crate::state_machine::note;
use crate::state_machine::snapshot::Snapshots;

/// In the node's folder: the next start takes the state from a peer, whatever is here.
const MARKER: &str = "rejoin";
/// Between two rounds of asking all peers.
const ROUND: Duration = Duration::from_secs(1);
/// For so long the peers' states must be past what was wrong here. After that an older one will do: perhaps no peer can
/// get there without this node's vote.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why the state comes from a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// An operator said so (`raftlet node rejoin`).
    Rejoin,
    /// The text says which entries are neither in the log nor in a snapshot.
    Gap(String),
}

/// Marks the folder of a stopped node, durably.
pub fn mark(dir: &Path) -> io::Result<()> {
    crate::failpoint!("rejoin.before-mark", io);
    write_durably(dir, MARKER, b"The next start takes the state from a peer (raftlet node rejoin).\n")
}

pub fn is_marked(dir: &Path) -> bool {
    dir.join(MARKER).exists()
}

/// A node that has to take its state from a peer before it can start.
pub struct Reload {
    pub dir: PathBuf,
    pub identity: Identity,
    pub addresses: BTreeMap<NodeId, String>,
    pub snapshots: Arc<Snapshots>,
    /// What to tell whoever asks meanwhile.
    pub progress: watch::Sender<String>,
}

impl Reload {
    /// Whether, and why, the state must come from a peer.
    pub async fn reason(dir: &Path, log: &mut SledLog, snapshots: &Snapshots) -> anyhow::Result<Option<Reason>> {
        if is_marked(dir) {
            return Ok(Some(Reason::Rejoin));
        }
        let purged = log.get_log_state().await?.last_purged_log_id.map(|l| l.index);
        Ok(snapshots.gap(purged).map(|gap| Reason::Gap(gap.to_string())))
    }

    /// Returns when a peer's snapshot is durable here. Asks all peers, again and again, as long as it takes.
    pub async fn run(self, reason: &Reason, log: &mut SledLog) -> anyhow::Result<()> {
        let purged = log.get_log_state().await?.last_purged_log_id;
        let why = match reason {
            Reason::Rejoin => "this folder was marked by `raftlet node rejoin`",
            Reason::Gap(text) => text,
        };
        if self.addresses.keys().all(|id| *id == self.identity.node) {
            let advice = match reason {
                Reason::Rejoin => {
                    format!("remove {} to go on with the state that is here", self.dir.join(MARKER).display())
                }
                Reason::Gap(_) => {
                    "put all that it had at its end back, or make a new cluster from a backup with `raftlet snapshot restore`"
                        .into()
                }
            };
            bail!("{why}; but there is no other node in --peers to take the state from: {advice}");
        }
        tracing::warn!("{why}; taking the state from a peer; vote and log stay");
        self.progress.send_replace("reloading the state: looking for a peer".into());
        let peers = Arc::new(Peers::new(self.dir.clone(), self.identity, self.addresses.clone()));
        if *reason == Reason::Rejoin {
            for file in self.snapshots.kept() {
                self.snapshots.set_aside(&file, "the node rejoins with a peer's state")?;
            }
        }
        let file = self.search(reason, &peers, purged).await?;
        self.done(&file)
    }

    /// Asks all peers, round by round, until one has given its state.
    async fn search(&self, reason: &Reason, peers: &Arc<Peers>, purged: Option<LogId>) -> anyhow::Result<SnapshotFile> {
        let past = if *reason == Reason::Rejoin { self.trouble()? } else { 0 };
        let (began, mut said) = (Instant::now(), String::new());
        loop {
            let past = if began.elapsed() < PATIENCE { past } else { 0 };
            let mut complaints = Vec::new();
            for (node, address) in self.addresses.iter().filter(|(id, _)| **id != self.identity.node) {
                let source = Source { peers: peers.clone(), node: *node, address: address.clone(), identity: None };
                match self.from(&source, purged, past).await {
                    Ok(file) => return Ok(file),
                    Err(e) => complaints.push(e.to_string()),
                }
            }
            if let Some(text) = peers.misplaced.borrow().clone() {
                bail!("{text}");
            }
            let mut text = complaints.join("; ");
            if matches!(reason, Reason::Gap(_)) {
                text +=
                    "; if no node has a usable state, make a new cluster from a backup with `raftlet snapshot restore`";
            }
            if said != text {
                tracing::warn!("no peer has given its state yet: {text}");
            }
            self.progress.send_replace(format!("reloading the state: {text}"));
            said = text;
            sleep(ROUND).await;
        }
    }

    /// Where the node was found to be wrong, or which entry it holds. With an older state it would come there again.
    fn trouble(&self) -> io::Result<u64> {
        let quarantined = quarantine::read(&self.dir)?.map(|quarantine| quarantine.index);
        Ok(quarantined.max(note::held(&self.dir)?).unwrap_or(0))
    }

    /// `past`: the index of an entry that should be in the state.
    async fn from(&self, source: &Source, purged: Option<LogId>, past: u64) -> Result<SnapshotFile, FetchError> {
        let begin = purged.map_or(0, |p| p.index);
        let offer = source.offer(begin.max(past)).await?;
        let fits = offer.meta.last_log_id.is_some_and(|last| last.index > begin || Some(last) == purged);
        if !fits && purged.is_some() {
            let why =
                format!("its snapshot ends at {:?}, the log here begins after {purged:?}", offer.meta.last_log_id);
            return Err(FetchError::Refused(source.node, why));
        }
        let (node, bytes) = (source.node, offer.bytes);
        let (progress, mut have) = watch::channel(0);
        let fetch = source.fetch(&self.snapshots, &offer, &progress);
        let tell = async {
            while have.changed().await.is_ok() {
                let done = percent(*have.borrow_and_update(), bytes);
                self.progress.send_replace(format!("reloading the state from node {node}: {done} %"));
            }
            std::future::pending().await
        };
        tokio::select! { fetched = fetch => fetched, never = tell => never }
    }

    /// Only now, with the state durable here, is the node no longer in quarantine and no longer to be reloaded.
    fn done(&self, file: &SnapshotFile) -> anyhow::Result<()> {
        tracing::info!("the state up to entry {:?} comes from a peer", file.meta.last_log_id.map(|l| l.index));
        if is_marked(&self.dir) {
            crate::failpoint!("rejoin.before-unmark");
            remove_durably(&self.dir, quarantine::FILE)?;
            remove_durably(&self.dir, MARKER)?;
        }
        Ok(())
    }
}

fn remove_durably(dir: &Path, name: &str) -> anyhow::Result<()> {
    match fs::remove_file(dir.join(name)) {
        Ok(()) => Ok(fs::File::open(dir)?.sync_all()?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("{} can't be removed", dir.join(name).display())),
    }
}

/// The vote's term can't be below the term of what is in the state: a leader of a lower one must never follow. At each
/// start, because a crash may come between a snapshot's arrival and this.
pub async fn raise_vote(log: &mut SledLog, newest: Option<LogId>, me: NodeId) -> anyhow::Result<()> {
    let Some(term) = newest.map(|l| l.leader_id.term) else { return Ok(()) };
    let vote = log.read_vote().await?;
    if vote.is_none_or(|v| v.leader_id.term < term) {
        // As a candidate that nobody answered: in that term this node gives its vote to nobody else.
        log.save_vote(&Vote::new(term, me)).await?;
    }
    Ok(())
}
