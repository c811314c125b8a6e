//! Restarts of all nodes while a state is on its way, and with snapshots that nobody can use.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use raftlet_tests::snapshots::{PROGRESS_WITHIN, assert_values, files, flip_a_byte, leave_behind, partial_bytes};
use raftlet_tests::snapshots::{purged, whole, write};
use raftlet_tests::{Cluster, Fate, wait};

use super::{SEEN_WITHIN, start, wait_said};

/// Bytes a second: some seconds for the states of these tests.
const SLOW: &str = "512KiB";
/// What a transfer asks for at once (`raft/network/snapshots.rs`).
const PIECE_BYTES: u64 = 256 << 10;

#[test]
fn all_are_restarted_while_one_takes_a_snapshot() {
    let mut cluster = start(&["--snapshot-bandwidth", SLOW]);
    let (up, down) = (cluster.leader(), cluster.follower());
    cluster.kill(down);
    let count = leave_behind(&cluster, down, up, 0);
    cluster.restart(down);
    wait::until("a part of the snapshot is there", PROGRESS_WITHIN, || {
        partial_bytes(&cluster.data(down)).filter(|bytes| *bytes >= PIECE_BYTES)
    });
    let from = cluster.log(down).len();
    cluster.kill_all();
    cluster.restart_all();
    cluster.wait_converged();
    wait_said(&cluster, down, from, "is installed");
    for id in cluster.ids() {
        assert_values(&mut cluster.client(id), count);
    }
}

/// Damages all snapshots of all nodes, whose logs were purged; how many keys there were.
fn without_any_snapshot(cluster: &mut Cluster) -> (usize, Vec<PathBuf>) {
    let leader = cluster.leader();
    let mut count = 0;
    wait::until("all have purged their logs", PROGRESS_WITHIN, || {
        write(cluster, leader, count..count + 20);
        count += 20;
        cluster.ids().all(|id| purged(cluster, id) > 0).then_some(())
    });
    cluster.wait_converged();
    cluster.kill_all();
    let damaged: Vec<PathBuf> = cluster.ids().flat_map(|id| whole(&cluster.data(id))).collect();
    damaged.iter().for_each(|path| flip_a_byte(path));
    (count, damaged)
}

#[test]
fn a_cluster_without_any_usable_snapshot_serves_nobody_until_one_is_repaired() {
    let mut cluster = start(&[]);
    let (count, damaged) = without_any_snapshot(&mut cluster);
    assert!(damaged.len() >= 3);
    cluster.ids().for_each(|id| cluster.restart(id));
    for id in cluster.ids() {
        wait_said(&cluster, id, 0, "there is no usable snapshot in");
        // Who has none anywhere must be told what is left to do.
        wait_said(&cluster, id, 0, "raftlet snapshot restore");
        for path in damaged.iter().filter(|path| path.starts_with(cluster.data(id))) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            assert!(cluster.log(id).contains(&format!("damaged-{name}")), "node {id} doesn't name {name}");
        }
    }
    wait::never("a node serves", Duration::from_secs(5), || {
        cluster.ids().find_map(|id| {
            let mut client = cluster.client(id).answer_within(Duration::from_secs(5));
            let answers = [client.get("/kv/k0"), client.get("/kv/k0?consistency=stale"), client.put("/kv/new", b"x")];
            assert!(client.get("/_/health").is_ok_and(|a| a.status == 200), "node {id} is alive");
            answers.iter().find(|a| Fate::of(a) != Fate::Rejected).map(|a| format!("node {id}: {a:?}"))
        })
    });

    // One repaired file is enough for all.
    cluster.kill_all();
    let aside = files(&cluster.data(1), |name| name.starts_with("damaged-"));
    let name = aside[0].file_name().and_then(|n| n.to_str()?.strip_prefix("damaged-")).expect("a name").to_owned();
    let repaired = aside[0].with_file_name(name);
    fs::rename(&aside[0], &repaired).expect("it can be renamed");
    flip_a_byte(&repaired);
    cluster.restart_all();
    cluster.wait_converged();
    for id in cluster.ids() {
        assert_values(&mut cluster.client(id), count);
    }
}

#[test]
fn a_node_that_was_down_for_several_purges_and_elections_comes_back() {
    let mut cluster = start(&[]);
    let down = cluster.follower();
    write(&cluster, down, 0..5);
    cluster.kill(down);
    let mut count = 5;
    for _ in 0..2 {
        let leader = cluster.leader();
        count = leave_behind(&cluster, down, leader, count);
        // Another term, so that its log and theirs end in different ones.
        cluster.terminate(leader);
        cluster.restart(leader);
        cluster.wait_ready(leader);
    }
    let from = cluster.log(down).len();
    cluster.restart(down);
    wait::until("it is ready", SEEN_WITHIN, || {
        cluster.client(down).get("/_/ready").is_ok_and(|a| a.status == 200).then_some(())
    });
    wait_said(&cluster, down, from, "is installed");
    cluster.wait_converged();
    assert_values(&mut cluster.client(down), count);
}
