//! What a running cluster's launcher tells its user: leader changes, nodes lost, nodes back. Pure: it is shown what
//! was seen and returns lines.

use std::collections::BTreeMap;

use super::process::Event;
use crate::cli::node_status::NodeStatus;

/// So many looks without an answer make a running node a lost one.
const MISSES_MAX: u32 = 3;

/// What the user was told so far.
#[derive(Debug)]
pub struct Watch {
    leader: Option<(u64, u64)>,
    nodes: BTreeMap<u64, Node>,
}

#[derive(Debug, Default)]
struct Node {
    lost: bool,
    misses: u32,
}

impl Watch {
    /// All nodes are there and this is the leader (id, term).
    pub fn new(nodes: u64, leader: Option<(u64, u64)>) -> Watch {
        Watch { leader, nodes: (1..=nodes).map(|id| (id, Node::default())).collect() }
    }

    /// True while something is amiss, so that looking more often is worth it.
    pub fn unsettled(&self) -> bool {
        self.leader.is_none() || self.nodes.values().any(|node| node.lost || node.misses > 0)
    }

    /// A child process ended. `last_words` is asked for the last line of its log.
    pub fn process(&mut self, event: &Event, last_words: impl FnOnce(u64) -> String) -> String {
        let again = |again_in: &Option<std::time::Duration>| match again_in {
            Some(pause) => format!("starting it again in {pause:?}"),
            None => "it stays down (--no-restart)".into(),
        };
        let (id, line) = match event {
            Event::Died { id, how, again_in } => {
                let words = if how.starts_with("killed") { String::new() } else { format!(" ({})", last_words(*id)) };
                (*id, format!("node {id} lost: {how}{words}; {}", again(again_in)))
            }
            Event::NotStarted { id, why, again_in } => {
                (*id, format!("node {id} can't be started: {why}; {}", again(again_in)))
            }
            Event::Killed { id } => (*id, format!("node {id} had to be killed")),
        };
        self.nodes.entry(id).or_default().lost = true;
        line
    }

    /// The answers of one look, node 1 first.
    pub fn look(&mut self, statuses: &[Option<NodeStatus>], ready: &[bool]) -> Vec<String> {
        let mut lines = Vec::new();
        for ((id, status), ready) in (1..).zip(statuses).zip(ready) {
            let node = self.nodes.entry(id).or_default();
            if status.is_some() {
                node.misses = 0;
            } else {
                node.misses = node.misses.saturating_add(1);
                if !node.lost && node.misses >= MISSES_MAX {
                    node.lost = true;
                    lines.push(format!("node {id} lost: its process runs but doesn't answer"));
                }
            }
            if node.lost && *ready && status.is_some() {
                node.lost = false;
                lines.push(format!("node {id} is back"));
            }
        }
        // The newest term knows best; a node cut off may still believe in an old leader.
        let newest = statuses.iter().flatten().filter_map(|s| Some((s.term, s.leader_id?))).max();
        let leader = newest.map(|(term, id)| (id, term)).filter(|(id, _)| !self.is_lost(*id));
        // A term that grew under the same leader is no change worth a line.
        if leader.map(|(id, _)| id) != self.leader.map(|(id, _)| id) {
            lines.push(match leader {
                Some((id, term)) => format!("node {id} is the leader now (term {term})"),
                None => "the cluster has no leader".into(),
            });
        }
        self.leader = leader;
        lines
    }

    fn is_lost(&self, id: u64) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::node_status::tests::status;
    use std::time::Duration;

    fn all(leader: Option<u64>, term: u64) -> Vec<Option<NodeStatus>> {
        (1..=3).map(|id| Some(status(id, leader, term))).collect()
    }

    fn watch() -> Watch {
        Watch::new(3, Some((1, 2)))
    }

    #[test]
    fn a_calm_cluster_says_nothing() {
        let mut watch = watch();
        assert_eq!(watch.look(&all(Some(1), 2), &[true; 3]), [""; 0]);
        assert_eq!(watch.look(&all(Some(1), 3), &[true; 3]), [""; 0]);
        assert!(!watch.unsettled());
    }

    #[test]
    fn a_killed_leader_is_lost_replaced_and_back() {
        let mut watch = watch();
        let died = Event::Died { id: 1, how: "killed (SIGKILL)".into(), again_in: Some(Duration::from_millis(500)) };
        assert_eq!(watch.process(&died, |_| "x".into()), "node 1 lost: killed (SIGKILL); starting it again in 500ms");
        let mut seen = all(Some(1), 2);
        seen[0] = None;
        // The others still name the dead leader: that is no leader.
        assert_eq!(watch.look(&seen, &[false, true, true]), ["the cluster has no leader"]);
        assert!(watch.unsettled());
        let mut seen = all(Some(3), 3);
        seen[0] = None;
        assert_eq!(watch.look(&seen, &[false, true, true]), ["node 3 is the leader now (term 3)"]);
        assert_eq!(watch.look(&all(Some(3), 3), &[false, true, true]), [""; 0]);
        assert_eq!(watch.look(&all(Some(3), 3), &[true; 3]), ["node 1 is back"]);
        assert!(!watch.unsettled());
    }

    #[test]
    fn a_node_that_exits_is_quoted() {
        let died = Event::Died { id: 2, how: "exited with code 1".into(), again_in: None };
        let line = watch().process(&died, |id| format!("error: disk {id} is full"));
        assert_eq!(line, "node 2 lost: exited with code 1 (error: disk 2 is full); it stays down (--no-restart)");
    }

    #[test]
    fn a_silent_process_is_lost_after_three_looks() {
        let mut watch = watch();
        let mut seen = all(Some(1), 2);
        seen[2] = None;
        for _ in 1..MISSES_MAX {
            assert_eq!(watch.look(&seen, &[true, true, false]), [""; 0]);
        }
        assert_eq!(watch.look(&seen, &[true, true, false]), ["node 3 lost: its process runs but doesn't answer"]);
        assert_eq!(watch.look(&seen, &[true, true, false]), [""; 0]);
        assert_eq!(watch.look(&all(Some(1), 2), &[true; 3]), ["node 3 is back"]);
    }

    #[test]
    fn the_newest_term_decides_who_leads() {
        let seen = vec![Some(status(1, Some(1), 2)), Some(status(2, Some(2), 5)), Some(status(3, Some(2), 5))];
        assert_eq!(watch().look(&seen, &[true; 3]), ["node 2 is the leader now (term 5)"]);
    }
}
