//! Snapshots where the disk has little room: none ends a node, and none is the reason that there never is room again.

use std::fs;
use std::time::Duration;

use raftlet_tests::cluster::Options;
use raftlet_tests::snapshots::{assert_values, files, leave_behind, metric};
use raftlet_tests::{Cluster, Fate, wait};

use super::{SEEN_WITHIN, start, status, wait_said};

const QUOTA: u64 = 96 << 20;
/// A write that has to wait until the disk has room again.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);

#[track_caller]
fn wait_low(cluster: &Cluster, id: u64, low: bool) {
    wait::until(&format!("node {id} says low: {low}"), SEEN_WITHIN, || {
        (status(cluster, id)["disk"]["low"] == low).then_some(())
    });
}

#[test]
fn a_quota_with_room_for_the_state_is_never_used_up() {
    const KEYS: usize = 4;
    const BYTES: usize = 900_000;
    let args = vec![format!("--disk-quota={QUOTA}").into()];
    let cluster = Cluster::start_with(1, Options { args, ..Options::default() });
    let mut rng = fastrand::Rng::with_seed(4);
    let value: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(BYTES).collect();
    let mut client = cluster.client(1);
    let mut most = 0;
    // Some times the quota, in a state of a few megabytes.
    for number in 0..6 * QUOTA as usize / BYTES {
        wait::until("a write is acknowledged", WRITTEN_WITHIN, || {
            let result = client.put(&format!("/kv/k{}", number % KEYS), &value);
            (Fate::of(&result) == Fate::Acknowledged).then_some(())
        });
        if number % 20 == 0 {
            most = most.max(metric(&cluster, 1, "raftlet_disk_used_bytes"));
        }
    }
    println!("{most} bytes of {QUOTA}");
    assert!(metric(&cluster, 1, "raftlet_snapshots_built_total") > 5);
}

#[test]
fn a_follower_without_room_fetches_nothing_until_there_is_some() {
    let cluster = start(&[&format!("--disk-quota={QUOTA}")]);
    let (leader, full) = (cluster.leader(), cluster.follower());
    let ballast = cluster.data(full).join("ballast");
    fs::write(&ballast, vec![7; QUOTA as usize]).expect("there is room for it");
    wait_low(&cluster, full, true);
    let count = leave_behind(&cluster, full, leader, 0);
    wait_said(&cluster, leader, 0, &format!("node {full} does not install the snapshot: there is no room for it"));
    let log = cluster.log(leader);
    assert!(log.matches("does not install the snapshot").count() < 4, "each reason is told once");
    assert!(files(&cluster.data(full), |name| name.ends_with(".partial")).is_empty());
    // It still has a voice and answers what it can.
    assert_eq!(cluster.client(full).get("/_/health").expect("an answer").status, 200);
    fs::remove_file(ballast).expect("it is there");
    wait_low(&cluster, full, false);
    wait_said(&cluster, full, 0, "is installed");
    cluster.wait_converged();
    assert_values(&mut cluster.client(full), count);
}
