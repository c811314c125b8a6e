//! What `/_/status` of a node says, as far as the command line reads it. Shows nothing itself.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::http::{StatusCode, Url};

/// Unknown members are kept, so that `--json` hands on what a newer node says.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct NodeStatus {
    pub node_id: u64,
    pub role: String,
    pub leader_id: Option<u64>,
    pub term: u64,
    pub last_log_index: Option<u64>,
    pub applied_index: Option<u64>,
    pub module: Option<ModuleStatus>,
    pub state_digest: Option<String>,
    #[serde(default)]
    pub members: Vec<Member>,
    #[serde(flatten)]
    pub more: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct ModuleStatus {
    pub name: String,
    pub version: String,
    pub digest: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Member {
    pub id: u64,
    pub peer_address: String,
    pub role: String,
    #[serde(flatten)]
    pub more: BTreeMap<String, serde_json::Value>,
}

impl NodeStatus {
    /// Where operators connect.
    pub fn admin(&self) -> Option<&str> {
        self.more.get("admin_address")?.as_str()
    }

    /// Asks the node at `url`.
    pub async fn fetch(url: &Url, timeout: Duration) -> anyhow::Result<NodeStatus> {
        let response = url.get("/_/status", timeout).await?;
        if response.status != StatusCode::OK {
            bail!("{url}/_/status answered {}; is this a raftlet node?", response.status);
        }
        serde_json::from_slice(&response.body)
            .with_context(|| format!("{url}/_/status is not what a raftlet node answers"))
    }
}

/// Whether the node takes requests now (200 from `/_/ready`).
pub async fn is_ready(url: &Url, timeout: Duration) -> bool {
    url.get("/_/ready", timeout).await.is_ok_and(|response| response.status == StatusCode::OK)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What node `id` of three could answer.
    pub fn status(id: u64, leader: Option<u64>, term: u64) -> NodeStatus {
        let member = |id: u64| Member {
            id,
            peer_address: format!("127.0.0.1:{}", 9079 + id),
            role: "voter".into(),
            more: BTreeMap::new(),
        };
        let module = ModuleStatus { name: "kv".into(), version: "0.1.0".into(), digest: "ab".repeat(32) };
        NodeStatus {
            node_id: id,
            role: if leader == Some(id) { "leader".into() } else { "follower".into() },
            leader_id: leader,
            term,
            last_log_index: Some(12),
            applied_index: Some(11),
            module: Some(module),
            state_digest: Some("cd".repeat(16)),
            members: (1..=3).map(member).collect(),
            more: BTreeMap::new(),
        }
    }

    #[test]
    fn what_a_newer_node_says_is_handed_on() {
        let text = r#"{"node_id":1,"role":"leader","leader_id":1,"term":3,"last_log_index":9,"applied_index":9,
            "snapshot_index":null,"module":null,"state_digest":null,"members":[{"id":1,"peer_address":"a:1","role":"voter"}],
            "quarantined":false}"#;
        let status: NodeStatus = serde_json::from_str(text).unwrap();
        assert_eq!(status.leader_id, Some(1));
        let again = serde_json::to_value(&status).unwrap();
        assert_eq!(again, serde_json::from_str::<serde_json::Value>(text).unwrap());
    }
}
