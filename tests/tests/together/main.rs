//! Where the parts meet: idempotency keys in snapshots, quarantine and a state from a peer, snapshots on a disk without
//! room, restarts in the middle of transfers. Each part alone has a file of its own beside this folder.

mod disk;
mod keys;
mod restart;
#[cfg(debug_assertions)]
mod sound;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use raftlet_tests::cluster::Options;
use raftlet_tests::process::{Finished, run};
use raftlet_tests::{Cluster, wait};
use serde_json::Value;

/// For a command of the command line's.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);
/// For something that a node finds or does by itself.
const SEEN_WITHIN: Duration = Duration::from_secs(60);

/// Frequent snapshots and audits, and an admin listener.
fn options(more: &[&str]) -> Options {
    let always =
        ["--snapshot-log-bytes", "256KiB", "--admin-listen", "127.0.0.1:0", "--audit-interval", "200ms"].iter();
    Options { args: always.chain(more).map(Into::into).collect(), ..Options::default() }
}

fn start(more: &[&str]) -> Cluster {
    Cluster::start_with(3, options(more))
}

fn text(path: &Path) -> String {
    path.to_str().expect("a test's path is text").to_owned()
}

#[track_caller]
fn status(cluster: &Cluster, id: u64) -> Value {
    wait::until(&format!("node {id} gives its status"), SEEN_WITHIN, || {
        Some(cluster.client(id).answer_within(Duration::from_secs(5)).get("/_/status").ok()?.json())
    })
}

/// Where operators connect.
#[track_caller]
fn admin(cluster: &Cluster, id: u64) -> String {
    status(cluster, id)["admin_address"].as_str().expect("an admin listener").to_owned()
}

#[track_caller]
fn done<A: Into<OsString> + Clone>(args: &[A]) -> Finished {
    let finished = run(args, COMMAND_WITHIN);
    assert!(finished.status.success(), "{} {}", finished.status, finished.stderr);
    finished
}

/// Waits until the node's log, from this byte on, has the words.
#[track_caller]
fn wait_said(cluster: &Cluster, id: u64, from: usize, words: &str) {
    wait::until(&format!("node {id} says {words:?}"), SEEN_WITHIN, || {
        cluster.log(id).get(from..).is_some_and(|log| log.contains(words)).then_some(())
    });
}
