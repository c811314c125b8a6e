//! Who leads: learned from the nodes' `/_/status`, forgotten when a node refuses, breaks off or names a later term.
//! Never sends a request of a caller's. Next: `worker.rs`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http_body_util::Full;
use serde::Deserialize;

use crate::node::Node;
use crate::wire::Wire;

/// The nodes, and what is known about them.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    /// For a connection, and for a status.
    within: Duration,
    /// Where to send, as [`Aim::pack`] has it; 0: to be found out.
    aim: AtomicU64,
    /// Raft's term of the newest answer.
    term: AtomicU64,
    /// The node that failed last: it is believed only if no other one says that it leads.
    suspect: Mutex<Option<usize>>,
    /// Only one asks at a time; the others wait for what it hears.
    asking: tokio::sync::Mutex<()>,
}

/// Where requests go until that is known to be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Aim {
    pub(crate) node: usize,
    /// Rises with each change, so that an old failure isn't held against a new aim. Not 0.
    round: u64,
}

#[derive(Debug, Deserialize)]
struct Status {
    node_id: u64,
    role: String,
    leader_id: Option<u64>,
    term: u64,
    #[serde(default)]
    quarantine: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    hold: Option<serde::de::IgnoredAny>,
}

impl Aim {
    const NODE_BITS: u32 = 16;

    fn pack(self) -> u64 {
        (self.round << Self::NODE_BITS) | self.node as u64
    }

    fn unpack(packed: u64) -> Option<Aim> {
        let node = (packed & ((1 << Self::NODE_BITS) - 1)) as usize;
        (packed != 0).then_some(Aim { node, round: packed >> Self::NODE_BITS })
    }
}

impl Cluster {
    /// Of 1 to 1,024 nodes.
    pub(crate) fn new(nodes: Vec<Node>, within: Duration) -> Cluster {
        assert!((1..=1024).contains(&nodes.len()), "the builder has checked it");
        Cluster {
            nodes,
            within,
            aim: AtomicU64::new(0),
            term: AtomicU64::new(0),
            suspect: Mutex::new(None),
            asking: tokio::sync::Mutex::new(()),
        }
    }

    pub(crate) fn node(&self, node: usize) -> &Node {
        &self.nodes[node]
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// What is known now, without asking anybody.
    pub(crate) fn known(&self) -> Option<Aim> {
        Aim::unpack(self.aim.load(Ordering::Relaxed))
    }

    /// Where to send. None: nobody knows a leader, or nobody answers.
    pub(crate) async fn aim(&self) -> Option<Aim> {
        if let Some(aim) = self.known() {
            return Some(aim);
        }
        let _turn = self.asking.lock().await;
        if let Some(aim) = self.known() {
            return Some(aim);
        }
        let node = self.ask().await?;
        Some(self.set(node))
    }

    /// Whether this node hangs and another one leads by now; aims there if so. A node that still says how it is sees
    /// what it was sent through by itself, and then its answer is worth more than a doubt.
    pub(crate) async fn has_left(&self, node: usize) -> bool {
        if self.status(node).await.is_some() {
            return false;
        }
        self.suspect(node);
        let _turn = self.asking.lock().await;
        match self.ask().await {
            Some(found) if found != node => {
                if self.known().is_none_or(|aim| aim.node != found) {
                    self.set(found);
                }
                true
            }
            _ => false,
        }
    }

    /// The node of this aim refused or broke off: it is to be found out who leads now.
    pub(crate) fn lost(&self, aim: Aim) {
        self.suspect(aim.node);
        let _ = self.aim.compare_exchange(aim.pack(), 0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// An answer had this term. A later one than was known: somebody else may lead.
    pub(crate) fn seen(&self, term: u64, aim: Aim) {
        if term > self.term.load(Ordering::Relaxed) && self.term.fetch_max(term, Ordering::Relaxed) < term {
            let _ = self.aim.compare_exchange(aim.pack(), 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn suspect(&self, node: usize) {
        *self.suspect.lock().unwrap_or_else(PoisonError::into_inner) = Some(node);
    }

    fn set(&self, node: usize) -> Aim {
        static ROUNDS: AtomicU64 = AtomicU64::new(0);
        let aim = Aim { node, round: ROUNDS.fetch_add(1, Ordering::Relaxed) + 1 };
        self.aim.store(aim.pack(), Ordering::Relaxed);
        aim
    }

    /// Asks all nodes. The first that leads in a term that isn't over ends it, unless it is the suspect.
    async fn ask(&self) -> Option<usize> {
        let suspect = *self.suspect.lock().unwrap_or_else(PoisonError::into_inner);
        let term_known = self.term.load(Ordering::Relaxed);
        let ask = |node| async move { (node, self.status(node).await) };
        let mut asked: FuturesUnordered<_> = (0..self.nodes.len()).map(ask).collect();
        let mut heard = Vec::with_capacity(self.nodes.len());
        while let Some((node, status)) = asked.next().await {
            let Some(status) = status else { continue };
            let leads = status.role == "leader" && status.term >= term_known && suspect != Some(node);
            heard.push((node, status));
            if leads {
                break;
            }
        }
        let (node, term) = choose(&heard, suspect)?;
        self.term.fetch_max(term, Ordering::Relaxed);
        Some(node)
    }

    async fn status(&self, node: usize) -> Option<Status> {
        let node = self.node(node);
        let answered = tokio::time::timeout(self.within, async {
            let mut wire = Wire::connect(node, self.within).await.ok()?;
            let mut request = hyper::Request::new(Full::<Bytes>::default());
            *request.uri_mut() = hyper::Uri::from_static("/_/status");
            wire.exchange(request).await.ok()
        });
        let response = answered.await.ok()??;
        serde_json::from_slice(&response.body).ok()
    }
}

/// The node to send to, and the newest term that was heard: the leader of that term, or a sound node that knows it,
/// if the leader isn't among those who answered. None: nobody knows a leader.
fn choose(heard: &[(usize, Status)], suspect: Option<usize>) -> Option<(usize, u64)> {
    let sound = |status: &Status| status.quarantine.is_none() && status.hold.is_none() && status.role != "starting";
    let newest = heard.iter().filter(|(_, status)| status.leader_id.is_some()).max_by_key(|(node, status)| {
        // Of the same term a leader's own word counts most, and the suspect's least.
        (status.term, status.role == "leader", suspect != Some(*node))
    });
    let (_, newest) = newest?;
    let leader = heard.iter().find(|(_, status)| Some(status.node_id) == newest.leader_id && sound(status));
    let other = heard.iter().filter(|(_, status)| status.leader_id.is_some() && sound(status));
    let chosen = leader.or_else(|| other.max_by_key(|(node, status)| (suspect != Some(*node), status.term)));
    chosen.map(|(node, _)| (*node, newest.term))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(node_id: u64, role: &str, leader_id: Option<u64>, term: u64) -> Status {
        Status { node_id, role: role.into(), leader_id, term, quarantine: None, hold: None }
    }

    #[test]
    fn the_leader_of_the_newest_term_is_chosen() {
        let deposed = (0, status(1, "leader", Some(1), 4));
        let follower = (1, status(2, "follower", Some(3), 5));
        let leader = (2, status(3, "leader", Some(3), 5));
        assert_eq!(choose(&[deposed, follower, leader], None), Some((2, 5)));
    }

    #[test]
    fn a_follower_stands_in_for_a_leader_that_was_not_heard() {
        let heard = [(0, status(1, "follower", Some(3), 5)), (1, status(2, "follower", Some(3), 5))];
        assert_eq!(choose(&heard, Some(1)), Some((0, 5)));
        assert_eq!(choose(&heard, Some(0)), Some((1, 5)));
    }

    #[test]
    fn nobody_is_chosen_while_there_is_no_leader() {
        assert_eq!(choose(&[(0, status(1, "candidate", None, 6)), (1, status(2, "follower", None, 6))], None), None);
        assert_eq!(choose(&[], None), None);
    }

    #[test]
    fn a_node_that_answers_nobody_is_not_chosen() {
        let mut leader = status(1, "leader", Some(1), 5);
        leader.quarantine = Some(serde::de::IgnoredAny);
        let heard = [(0, leader), (1, status(2, "follower", Some(1), 5))];
        assert_eq!(choose(&heard, None), Some((1, 5)));
    }

    #[test]
    fn a_statuss_null_is_none() {
        let text =
            r#"{"node_id":1,"role":"leader","leader_id":null,"term":3,"quarantine":null,"hold":{"reason":"x"},"x":1}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert!(status.quarantine.is_none() && status.hold.is_some() && status.leader_id.is_none());
    }

    #[test]
    fn an_old_failure_isnt_held_against_a_new_aim() {
        let cluster = Cluster::new(vec!["http://127.0.0.1:1".parse().unwrap()], Duration::from_secs(1));
        let old = cluster.set(0);
        cluster.lost(old);
        assert_eq!(cluster.known(), None);
        let new = cluster.set(0);
        cluster.lost(old);
        assert_eq!(cluster.known(), Some(new));
        cluster.seen(3, new);
        assert_eq!(cluster.known(), None, "a later term");
        let newer = cluster.set(0);
        cluster.seen(3, newer);
        assert_eq!(cluster.known(), Some(newer), "the same term");
    }
}
