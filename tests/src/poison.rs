//! An entry that a whole cluster dies of, holds and skips: how a test gets there. Debug builds of the host only.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::wait;

/// For `FAILPOINTS`: a node dies when it applies a command that names this failpoint.
pub const FAILPOINT: &str = "apply.poison=return";
const COMMAND: &[u8] = b"failpoint:poison";
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// For all nodes to have died twice, and to have elected a leader in between.
const HELD_WITHIN: Duration = Duration::from_secs(120);

/// Starts all nodes, which do not run yet, and lets them die of an entry until all hold it; what `--skip-entry` takes.
/// All nodes run then, with the failpoint.
#[track_caller]
pub fn hold_everywhere(cluster: &mut Cluster) -> String {
    cluster.ids().for_each(|id| cluster.set_variable(id, "FAILPOINTS", FAILPOINT));
    cluster.restart_all();
    let _ = cluster.client(cluster.leader()).answer_within(ANSWER_WITHIN).put("/kv/poison", COMMAND);
    wait::until("all nodes hold the entry", HELD_WITHIN, || {
        for id in cluster.ids() {
            if cluster.exited(id).is_some() {
                cluster.wait_exit(id);
                cluster.set_variable(id, "FAILPOINTS", FAILPOINT);
                cluster.restart(id);
            }
        }
        let skips: Vec<String> = cluster.ids().filter_map(|id| held(cluster, id)).collect();
        (skips.len() == cluster.ids().count()).then(|| skips[0].clone())
    })
}

fn held(cluster: &Cluster, id: u64) -> Option<String> {
    let status = cluster.client(id).answer_within(ANSWER_WITHIN).get("/_/status").ok()?.json();
    status["hold"]["skip"].as_str().map(str::to_owned)
}

/// Starts a node, with these `FAILPOINTS`, that is to skip the entry. Does not wait.
pub fn start_skipping(cluster: &mut Cluster, id: u64, skip: &str, failpoints: &str) {
    cluster.set_variable(id, "FAILPOINTS", failpoints);
    let mut args = cluster.arguments(id, false);
    args.extend(["--skip-entry".into(), skip.into()]);
    cluster.restart_as(id, &args);
}
