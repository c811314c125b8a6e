//! From a snapshot's file to the first folder of a new cluster: new identities, the same state. The node that is
//! started on it is alone in its membership, elects itself, and takes its peers in as a founder does
//! (`raft/membership.rs`); they get the state by transfer. Never touches the cluster that the snapshot comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::config::check_peer_address;
use crate::log::{LogOptions, SledLog};
use crate::node::LOG_DIR;
use crate::raft::Bootstrap;
use crate::raft::identity::{Identity, random};
use crate::raft::types::{Member, Vote};
use crate::state_machine::snapshot::{self, Header, SnapshotError, Summary};
use openraft::storage::RaftLogStorage;

/// The folder of snapshots in a node's.
const SNAPSHOTS: &str = "snapshots";
/// A founder reads its module from its plan. Here it is in the snapshot, and this text is never run.
const PLAN: &[u8] = b"restored from a snapshot; the module is in it\n";

/// What to restore, and who the first node will be.
#[derive(Debug, Clone)]
pub struct Restore {
    pub snapshot: PathBuf,
    /// The node's folder: absent or empty.
    pub dir: PathBuf,
    pub node: u64,
    /// Where its peers will reach it, `host:port`.
    pub address: String,
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct Restored {
    pub summary: Summary,
    /// The new cluster's id.
    pub cluster: u64,
}

/// Why nothing was restored. The folder is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("id: 0 is no node id; ids begin with 1")]
    Id,
    #[error("{0}")]
    Address(String),
    #[error("{} is not empty; a restore makes a new cluster, in a folder of its own: give another --dir", .0.display())]
    NotEmpty(PathBuf),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("the snapshot {} has no module: it was taken before the cluster was founded", .0.display())]
    NoModule(PathBuf),
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("the new log can't be made: {0}")]
    Log(String),
}

impl Restore {
    /// Blocks while the snapshot is read and written. What it leaves when it is killed, no node starts on.
    pub async fn run(&self) -> Result<Restored, RestoreError> {
        if self.node == 0 {
            return Err(RestoreError::Id);
        }
        check_peer_address(self.node, &self.address).map_err(|e| RestoreError::Address(e.to_string()))?;
        let existed = self.check_empty()?;
        // Before a byte is written: a damaged file must not leave a folder behind.
        let summary = snapshot::verify(&self.snapshot)?;
        if summary.header.activation.is_none() {
            return Err(RestoreError::NoModule(self.snapshot.clone()));
        }
        let done = self.fill().await;
        if done.is_err() {
            self.clean_up(existed);
        }
        done
    }

    /// Whether the folder is there. It must have nothing in it.
    fn check_empty(&self) -> Result<bool, RestoreError> {
        let mut entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(RestoreError::Io { path: self.dir.clone(), error }),
        };
        match entries.next() {
            None => Ok(true),
            Some(_) => Err(RestoreError::NotEmpty(self.dir.clone())),
        }
    }

    async fn fill(&self) -> Result<Restored, RestoreError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| RestoreError::Io { path, error }
        };
        let snapshots = self.dir.join(SNAPSHOTS);
        fs::create_dir_all(&snapshots).map_err(io(&snapshots))?;
        let identity = Identity::founder(self.node, random());
        let cluster = identity.cluster.unwrap_or_default();
        let member = Member { address: self.address.clone(), identity: identity.identity };
        let unnamed = snapshots.join("restored.partial");
        let summary = snapshot::rewrite(&self.snapshot, &unnamed, |header| own(header, self.node, member, cluster))?;
        let last = summary.header.last;
        let named = snapshots.join(snapshot::file_name(last, summary.header.id));
        fs::rename(&unnamed, &named).map_err(io(&named))?;
        sync(&snapshots).map_err(io(&snapshots))?;
        self.log(last.leader_id.term).await.map_err(RestoreError::Log)?;
        Bootstrap::plan(&self.dir, PLAN).map_err(io(&self.dir))?;
        // Last: without it no node starts here.
        identity.save(&self.dir).map_err(io(&self.dir))?;
        if let Some(parent) = self.dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            sync(parent).map_err(io(parent))?;
        }
        Ok(Restored { summary, cluster })
    }

    /// An empty log whose vote is in the snapshot's term: the next term's leader follows what the snapshot ends with.
    async fn log(&self, term: u64) -> Result<(), String> {
        let dir = self.dir.join(LOG_DIR);
        let mut log = SledLog::open(&dir, LogOptions::default()).map_err(|e| e.to_string())?;
        log.save_vote(&Vote::new(term, self.node)).await.map_err(|e| e.to_string())?;
        log.close().await.map_err(|e| e.to_string())
    }

    fn clean_up(&self, existed: bool) {
        let removed = if existed {
            [SNAPSHOTS, LOG_DIR].iter().try_for_each(|name| match fs::remove_dir_all(self.dir.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            })
        } else {
            fs::remove_dir_all(&self.dir)
        };
        if let Err(e) = removed {
            tracing::warn!("{} can't be cleaned up ({e}); remove it before the next attempt", self.dir.display());
        }
    }
}

/// Makes the state the new cluster's. Its clock, its command numbers and its idempotency keys go on.
fn own(header: &mut Header, node: u64, member: Member, cluster: u64) {
    let membership = openraft::Membership::new(vec![BTreeSet::from([node])], BTreeMap::from([(node, member)]));
    let membership = membership.expect("one voter that is a node");
    header.membership = openraft::StoredMembership::new(*header.membership.log_id(), membership);
    header.cluster = cluster;
    if let Some(activation) = &mut header.activation {
        activation.cluster = cluster;
    }
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
