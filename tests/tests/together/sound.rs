//! Nodes that were found wrong, or that hold an entry, and how they become sound again: by a state from a peer that is
//! past it. The faults are failpoints, which debug builds have.

use std::fs;
use std::time::Duration;

use raftlet_tests::Cluster;
use raftlet_tests::process::run;
use raftlet_tests::snapshots::{assert_values, index_of, leave_behind, whole, write};
use raftlet_tests::{slots, wait};
use serde_json::Value;

use super::{COMMAND_WITHIN, SEEN_WITHIN, admin, done, options, status, text, wait_said};

const WRONG: &str = "apply.corrupt-write=return";
const POISON: &str = "apply.poison=return";
/// openraft gives entries to the state machine through a channel of this length.
const CHANNEL: usize = 1024;

/// Three nodes that are ready, the third with a fault that a command calls for.
fn with_fault(fault: &str) -> Cluster {
    let mut cluster = Cluster::prepare(3, options(&[]), Some(slots::take()));
    cluster.set_variable(3, "FAILPOINTS", fault);
    cluster.restart_all();
    cluster
}

/// Says the fault's name in a command. Who answers, and what, doesn't matter: the node may be gone then.
fn call_for(cluster: &Cluster, fault: &str) {
    let client = cluster.client(1).answer_within(Duration::from_secs(5));
    let _ = { client }.put(&format!("/kv/fault/{fault}"), format!("failpoint:{fault}").as_bytes());
}

#[track_caller]
fn wait_member(cluster: &Cluster, id: u64, member: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    wait::until(&format!("the status of node {id} shows its {member}"), SEEN_WITHIN, || {
        Some(status(cluster, id)).filter(|s| is_so(&s[member]))
    })
}

#[test]
fn a_quarantined_node_gives_nothing_away_and_comes_back_by_rejoining() {
    let mut cluster = with_fault(WRONG);
    write(&cluster, 1, 0..30);
    call_for(&cluster, "corrupt-write");
    let quarantined = wait_member(&cluster, 3, "quarantine", Value::is_object);
    let stands_at = quarantined["applied_index"].as_u64().expect("an index");
    let leader = wait::until("a sound node leads", SEEN_WITHIN, || Some(cluster.leader()).filter(|id| *id != 3));
    let count = leave_behind(&cluster, 3, leader, 30);

    // While the others have made snapshots and purged, it has made none, and gives out none.
    for path in whole(&cluster.data(3)) {
        assert!(index_of(&path) <= stands_at, "{} was made in quarantine", path.display());
    }
    let file = text(&cluster.folder().join("wrong.snapshot"));
    let refused = run(&["snapshot", "save", &file, "--admin", &admin(&cluster, 3)], COMMAND_WITHIN);
    assert!(!refused.status.success() && refused.stderr.contains("quarantine"), "{}", refused.stderr);

    assert!(cluster.terminate(3).success());
    assert!(cluster.data(3).join("quarantine.json").exists());
    done(&["node", "rejoin", "--dir", &text(&cluster.data(3))]);
    cluster.restart(3);
    cluster.wait_ready(3);
    cluster.wait_converged();
    assert!(status(&cluster, 3)["quarantine"].is_null() && !cluster.data(3).join("quarantine.json").exists());
    assert_values(&mut cluster.client(3), count);
    write(&cluster, 3, count..count + 5);
    // And so it stays, from its own folder.
    cluster.kill(3);
    cluster.restart(3);
    cluster.wait_ready(3);
    cluster.wait_converged();
    assert_values(&mut cluster.client(3), count + 5);
}

#[test]
fn a_state_from_the_leader_does_not_end_a_quarantine() {
    let mut cluster = with_fault(WRONG);
    write(&cluster, 1, 0..30);
    call_for(&cluster, "corrupt-write");
    wait_member(&cluster, 3, "quarantine", Value::is_object);
    assert!(cluster.terminate(3).success());
    let leader = cluster.leader();
    let count = leave_behind(&cluster, 3, leader, 30);
    // It is sent the leader's state, which is right; that it was wrong once isn't forgotten for it.
    let from = cluster.log(3).len();
    cluster.restart(3);
    wait_said(&cluster, 3, from, "is installed");
    for target in ["/kv/k1", "/kv/k1?consistency=stale"] {
        let answer = cluster.client(3).get(target).expect("an answer");
        assert_eq!((answer.status, &answer.json()["type"]), (503, &"/_/problems/quarantined".into()), "{answer}");
    }
    assert!(cluster.terminate(3).success());
    done(&["node", "rejoin", "--dir", &text(&cluster.data(3))]);
    cluster.restart(3);
    cluster.wait_ready(3);
    cluster.wait_converged();
    assert_values(&mut cluster.client(3), count);
}

/// A node that holds an entry which the others have applied; `count` keys are written.
fn held(count: usize) -> Cluster {
    let mut cluster = with_fault(POISON);
    write(&cluster, 1, 0..count);
    call_for(&cluster, "poison");
    let held = wait::until("node 3 holds the entry", Duration::from_secs(120), || {
        if cluster.exited(3).is_some() {
            cluster.wait_exit(3);
            cluster.set_variable(3, "FAILPOINTS", POISON);
            cluster.restart(3);
        }
        let client = cluster.client(3).answer_within(Duration::from_secs(2));
        let status = { client }.get("/_/status").ok()?.json();
        status["hold"].is_object().then_some(status)
    });
    assert_eq!(held["hold"]["reason"], "entry", "{held}");
    cluster
}

#[test]
fn what_came_during_a_long_hold_is_caught_up_from_the_log() {
    let mut cluster = held(5);
    let held_at = status(&cluster, 3)["applied_index"].clone();
    let leader = wait::until("a sound node leads", SEEN_WITHIN, || Some(cluster.leader()).filter(|id| *id != 3));
    let mut client = cluster.client(leader);
    for number in 0..CHANNEL + 200 {
        let written = client.put("/kv/small", number.to_string().as_bytes()).expect("an answer");
        assert!(written.is_success(), "{written}");
    }
    let last = cluster.status(leader).and_then(|s| s.last_log_index);
    wait::until("the held node has the log", SEEN_WITHIN, || (cluster.status(3)?.last_log_index >= last).then_some(()));
    assert_eq!(status(&cluster, 3)["applied_index"], held_at);
    assert!(cluster.terminate(3).success());
    // As its message says: to try it again.
    fs::remove_file(cluster.data(3).join("applying")).expect("the note is there");
    cluster.restart(3);
    cluster.wait_ready(3);
    cluster.wait_converged();
    assert_eq!(cluster.client(3).get("/kv/small").expect("an answer").body, (CHANNEL + 199).to_string().as_bytes());
}

#[test]
fn a_snapshot_that_is_past_a_held_entry_ends_the_hold() {
    let mut cluster = held(5);
    assert!(cluster.terminate(3).success());
    let leader = cluster.leader();
    let count = leave_behind(&cluster, 3, leader, 5);
    let from = cluster.log(3).len();
    // With the fault: whoever applied the entry would die.
    cluster.set_variable(3, "FAILPOINTS", POISON);
    cluster.restart(3);
    cluster.wait_ready(3);
    wait_said(&cluster, 3, from, "is installed");
    cluster.wait_converged();
    assert!(status(&cluster, 3)["hold"].is_null());
    assert_values(&mut cluster.client(3), count);
}

#[test]
fn a_node_that_holds_an_entry_rejoins_with_a_state_that_is_past_it() {
    // Snapshots of the peers that are older than the entry must not do.
    let mut cluster = held(40);
    write(&cluster, cluster.leader(), 40..42);
    assert!(cluster.terminate(3).success());
    done(&["node", "rejoin", "--dir", &text(&cluster.data(3))]);
    cluster.set_variable(3, "FAILPOINTS", POISON);
    cluster.restart(3);
    cluster.wait_ready(3);
    cluster.wait_converged();
    assert!(status(&cluster, 3)["hold"].is_null());
    assert_values(&mut cluster.client(3), 42);
}
