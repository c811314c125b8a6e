//! What the admin listener reaches: backups of the whole state, taken while the node serves.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::http::{Admin, Backup};
use crate::raft::Consensus;
use crate::state_machine::View;

/// For the leader to be found and confirmed, and this node to have applied what it says.
const CATCH_UP: Duration = Duration::from_secs(10);
/// For a snapshot of the largest state. The connection shows that the node is alive only by being open.
const BUILD_WITHIN: Duration = Duration::from_secs(600);
/// Between attempts to confirm the leader.
const RETRY: Duration = Duration::from_millis(50);

pub struct Backups {
    pub consensus: Arc<Consensus>,
    pub view: View,
}

impl Backups {
    /// An index that covers all that was acknowledged anywhere before the call, once it is applied here.
    async fn applied_now(&self) -> Result<u64, String> {
        let index = async {
            loop {
                match self.consensus.proposals.read_index().await {
                    Some(index) => return index,
                    None => sleep(RETRY).await,
                }
            }
        };
        let seconds = CATCH_UP.as_secs();
        let index = timeout(CATCH_UP, index).await.map_err(|_| {
            format!(
                "no leader was confirmed within {seconds} s; a backup must have all that was acknowledged before it"
            )
        })?;
        let mut view = self.view.clone();
        let applied = timeout(CATCH_UP, view.wait_for(|s| s.applied_index() >= index)).await;
        match applied {
            Ok(Ok(_)) => Ok(index),
            Ok(Err(_)) => Err("this node's state machine has stopped".into()),
            Err(_) => Err(format!("this node has not applied entry {index} within {seconds} s; ask another node")),
        }
    }
}

impl Admin for Backups {
    async fn snapshot(&self) -> Result<Backup, String> {
        // Before the wait: a node whose state isn't trusted applies nothing.
        self.consensus.serving.may_serve()?;
        let index = self.applied_now().await?;
        let file = self.consensus.serving.at_least(index, BUILD_WITHIN).await?;
        let (index, term) = file.meta.last_log_id.map_or((0, 0), |l| (l.index, l.leader_id.term));
        let name = file.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Backup { name, index, term, bytes: file.bytes, file: file.file })
    }

    async fn pace(&self, bytes: u64) {
        self.consensus.serving.pace(bytes).await;
    }
}
