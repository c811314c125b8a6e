//! Faults under load. What was acknowledged stays, what was rejected never appears, and nobody answers from the past.

use std::time::Duration;

use raftlet_tests::cluster::{ELECT_WITHIN, Options};
use raftlet_tests::process::Signal;
use raftlet_tests::proxy::Flow;
use raftlet_tests::{Client, Cluster, Fate, Load, Response, Status, seed, slots, wait};

/// For writes to be acknowledged again after a fault: an election, and clients whose requests hung.
const PROGRESS_WITHIN: Duration = Duration::from_secs(60);
/// No refusal may take longer.
const REFUSED_WITHIN: Duration = Duration::from_secs(30);
const WRITERS: usize = 10;

#[test]
fn a_killed_leader_loses_no_acknowledged_write() {
    const KILLS: usize = 3;
    let mut rng = seed::rng("a_killed_leader");
    let mut cluster = Cluster::start(3);
    let load = Load::start(&cluster, WRITERS, &mut rng);
    for _ in 0..KILLS {
        load.wait_for_more(rng.u64(50..300), PROGRESS_WITHIN);
        let leader = cluster.leader();
        cluster.kill(leader);
        load.wait_for_more(rng.u64(50..200), PROGRESS_WITHIN);
        assert_ne!(cluster.leader(), leader);
        cluster.restart(leader);
        cluster.wait_ready(leader);
    }
    let ledger = load.stop();
    cluster.wait_converged();
    ledger.verify(&cluster);
    cluster.wait_converged();
}

#[test]
fn all_nodes_killed_lose_no_acknowledged_write() {
    const ROUNDS: usize = 2;
    let mut rng = seed::rng("all_nodes_killed");
    let mut cluster = Cluster::start(3);
    let load = Load::start(&cluster, WRITERS, &mut rng);
    for _ in 0..ROUNDS {
        load.wait_for_more(rng.u64(50..300), PROGRESS_WITHIN);
        cluster.kill_all();
        cluster.restart_all();
    }
    load.wait_for_more(50, PROGRESS_WITHIN);
    // Once more at the very end, so that what was acknowledged last is also read from disk.
    cluster.kill_all();
    let ledger = load.stop();
    cluster.restart_all();
    cluster.wait_converged();
    ledger.verify(&cluster);
}

#[test]
fn nodes_stopped_one_after_the_other_lose_nothing() {
    let mut rng = seed::rng("nodes_stopped_one_after_the_other");
    let mut cluster = Cluster::start(3);
    let load = Load::start(&cluster, WRITERS, &mut rng);
    for id in cluster.ids() {
        load.wait_for_more(rng.u64(50..150), PROGRESS_WITHIN);
        let status = cluster.terminate(id);
        assert!(status.success(), "SIGTERM ends node {id} with {status}");
        load.wait_for_more(rng.u64(50..150), PROGRESS_WITHIN);
        cluster.restart(id);
        cluster.wait_ready(id);
    }
    let ledger = load.stop();
    cluster.wait_converged();
    ledger.verify(&cluster);
}

#[test]
fn a_minority_refuses_until_the_others_are_back() {
    let mut cluster = Cluster::start(3);
    write_until_acknowledged(&cluster, 1, "/kv/before", b"here");
    cluster.wait_converged();

    let leader = cluster.leader();
    let others: Vec<u64> = cluster.ids().filter(|id| *id != leader).collect();
    println!("leader {leader} alone, the others paused");
    others.iter().for_each(|id| cluster.pause(*id));
    let refused = refusals(&cluster, leader, "paused");
    others.iter().for_each(|id| cluster.resume(*id));
    recovers(&cluster, &refused);

    let leader = cluster.leader();
    let survivor = cluster.follower();
    let others: Vec<u64> = cluster.ids().filter(|id| *id != survivor).collect();
    println!("follower {survivor} alone, the others (leader {leader}) killed");
    others.iter().for_each(|id| cluster.kill(*id));
    let refused = refusals(&cluster, survivor, "killed");
    cluster.restart_all();
    recovers(&cluster, &refused);
}

/// What a node without a majority must answer; the refused writes.
fn refusals(cluster: &Cluster, node: u64, name: &str) -> Vec<(String, Fate)> {
    const WRITES: usize = 4;
    let client = || cluster.client(node).answer_within(REFUSED_WITHIN);
    let write = |number: usize| {
        let path = format!("/kv/minority/{name}/{number}");
        let reply = client().put(&path, b"refused").expect("a refusal in time, not silence");
        let fate = Fate::of(&Ok(reply.clone()));
        assert_ne!(fate, Fate::Acknowledged, "a minority acknowledged a write: {reply}");
        let status = if fate == Fate::Rejected { 503 } else { 504 };
        assert_eq!(reply.status, status, "{reply}");
        (path, fate)
    };
    let read = || {
        let reply = client().get("/kv/before").expect("a refusal in time, not silence");
        assert!(matches!(reply.status, 503 | 504) && reply.refusal().is_some(), "a read without a majority: {reply}");
    };
    std::thread::scope(|scope| {
        let writes: Vec<_> = (0..WRITES).map(|number| scope.spawn(move || write(number))).collect();
        scope.spawn(read);
        let stale = client().get("/kv/before?consistency=stale").expect("an answer");
        assert_eq!((stale.status, stale.body.as_slice()), (200, b"here".as_slice()), "a stale read needs no majority");
        let refused = writes.into_iter().map(|w| w.join().expect("the write did not panic")).collect();
        println!("{refused:?}");
        refused
    })
}

/// All is well again, and nothing that was called rejected has happened.
fn recovers(cluster: &Cluster, refused: &[(String, Fate)]) {
    for node in cluster.ids() {
        write_until_acknowledged(cluster, node, "/kv/after", b"again");
    }
    cluster.wait_converged();
    for (path, fate) in refused {
        let found: Vec<u16> = cluster.ids().map(|id| cluster.client(id).get(path).expect("an answer").status).collect();
        assert!(found.iter().all(|s| *s == found[0]), "{path}: the nodes disagree: {found:?}");
        assert!(matches!((fate, found[0]), (_, 404) | (Fate::Unknown, 200)), "{fate:?} write of {path}: {found:?}");
    }
}

#[track_caller]
fn write_until_acknowledged(cluster: &Cluster, node: u64, path: &str, value: &[u8]) {
    let mut client = cluster.client(node);
    wait::until(&format!("a write through node {node} is acknowledged"), PROGRESS_WITHIN, || {
        (Fate::of(&client.put(path, value)) == Fate::Acknowledged).then_some(())
    });
}

#[test]
fn a_paused_leader_does_not_answer_from_the_past() {
    const ROUNDS: usize = 3;
    const READS: usize = 8;
    let mut cluster = Cluster::start(3);
    for round in 0..ROUNDS {
        let old = cluster.leader();
        write_until_acknowledged(&cluster, old, "/kv/x", format!("{round} by the old leader").as_bytes());
        cluster.pause(old);
        let new = cluster.leader();
        assert_ne!(new, old);
        let value = format!("{round} by the new leader");
        write_until_acknowledged(&cluster, new, "/kv/x", value.as_bytes());
        // The requests wait in the paused node's sockets, so it has them before it can hear of the new leader.
        let mut clients: Vec<Client> = (0..READS).map(|_| cluster.client(old)).collect();
        for client in &mut clients {
            client.send(b"GET /kv/x HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("the kernel accepts for it");
        }
        cluster.resume(old);
        for client in &mut clients {
            let reply = client.receive(false).expect("an answer");
            match reply.status {
                200 => assert_eq!(String::from_utf8_lossy(&reply.body), value, "an answer from the past"),
                _ => assert!(reply.refusal().is_some(), "{reply}"),
            }
        }
        cluster.wait_converged();
    }
}

#[test]
fn a_slow_follower_catches_up() {
    let mut rng = seed::rng("a_slow_follower");
    let mut cluster = Cluster::start(3);
    let load = Load::start(&cluster, WRITERS, &mut rng);
    load.wait_for_more(50, PROGRESS_WITHIN);
    let follower = cluster.follower();
    cluster.pause(follower);
    load.wait_for_more(500, PROGRESS_WITHIN);
    cluster.resume(follower);
    load.wait_for_more(50, PROGRESS_WITHIN);
    let ledger = load.stop();
    cluster.wait_converged();
    ledger.verify(&cluster);
}

/// A large entry takes longer on its way than a follower that says nothing is waited for.
#[test]
fn a_large_entry_passes_a_slow_link() {
    const BYTES: usize = 8 << 20;
    let args = vec!["--body-bytes-max=8MiB".into(), "--request-timeout=60s".into()];
    let cluster = Cluster::start_with(3, Options { args, proxied: true, ..Default::default() });
    let leader = cluster.leader();
    for follower in (1..=3).filter(|node| *node != leader) {
        let slow = Flow::Slow { latency: Duration::ZERO, bytes_per_second: (BYTES / 7) as u32 };
        cluster.network().set_one_way(leader, follower, slow);
    }
    let answer = cluster.client(leader).answer_within(PROGRESS_WITHIN).put("/kv/large", &vec![7; BYTES - 1]);
    assert_eq!(answer.expect("an answer").status, 201);
}

#[test]
fn empty_folders_never_elect_a_leader() {
    const OBSERVED: Duration = Duration::from_secs(4);
    let mut cluster = Cluster::prepare(3, Options::default(), Some(slots::take()));
    for id in [2, 3] {
        cluster.restart(id);
        wait::until("the node answers", PROGRESS_WITHIN, || cluster.status(id));
    }
    never_a_leader(&cluster, OBSERVED);
    let write = cluster.client(2).answer_within(REFUSED_WITHIN).put("/kv/a", b"1");
    assert_eq!(Fate::of(&write), Fate::Rejected, "{write:?}");
    assert_eq!(cluster.client(3).get("/_/ready").expect("an answer").status, 503);
    assert_eq!(cluster.client(3).get("/_/health").expect("an answer").status, 200);
    // They wait for the node that bootstraps.
    cluster.restart_all();
    write_until_acknowledged(&cluster, 2, "/kv/a", b"1");
    cluster.wait_converged();
}

#[test]
fn a_wiped_folder_gives_no_vote() {
    const OBSERVED: Duration = Duration::from_secs(5);
    let mut rng = seed::rng("a_wiped_folder");
    let mut cluster = Cluster::start(3);
    let load = Load::start(&cluster, WRITERS, &mut rng);
    load.wait_for_more(100, PROGRESS_WITHIN);
    // Node 1 is behind; nodes 2 and 3 alone know the last acknowledged writes.
    cluster.kill(1);
    load.wait_for_more(100, PROGRESS_WITHIN);
    cluster.kill_all();
    let ledger = load.stop();
    std::fs::remove_dir_all(cluster.data(3)).expect("the folder can be removed");
    // Nodes 1 and 3 are no majority of those who know: with node 3's vote, writes would be lost.
    cluster.restart(1);
    cluster.restart(3);
    wait::until("node 1 answers", PROGRESS_WITHIN, || cluster.status(1));
    never_a_leader(&cluster, OBSERVED);
    let write = cluster.client(1).answer_within(REFUSED_WITHIN).put("/kv/a", b"1");
    assert_ne!(Fate::of(&write), Fate::Acknowledged, "{write:?}");
    // With node 2 there is a majority again; the wiped node may be refused for good.
    cluster.restart(2);
    cluster.wait_ready(2);
    write_until_acknowledged(&cluster, 2, "/kv/b", b"2");
    if cluster.exited(3).is_none() {
        cluster.signal(3, Signal::KILL);
    }
    cluster.wait_exit(3);
    ledger.verify_on(&cluster, &[1, 2]);
}

#[test]
fn a_founder_alone_acknowledges_nothing() {
    const OBSERVED: Duration = Duration::from_secs(3);
    let mut cluster = Cluster::prepare(3, Options::default(), Some(slots::take()));
    cluster.restart(1);
    wait::until("the node answers", PROGRESS_WITHIN, || cluster.status(1));
    // One of three is a minority, also in the cluster's first second: its disk alone must not hold a write.
    wait::never("an acknowledged write on one of three nodes", OBSERVED, || {
        let write = cluster.client(1).answer_within(REFUSED_WITHIN).put("/kv/a", b"1");
        (Fate::of(&write) == Fate::Acknowledged).then(|| format!("{write:?}"))
    });
    assert_eq!(cluster.client(1).get("/_/ready").expect("an answer").status, 503);
    cluster.restart_all();
    write_until_acknowledged(&cluster, 3, "/kv/a", b"1");
    cluster.wait_converged();
}

#[test]
fn a_wiped_first_node_founds_no_second_cluster() {
    const OBSERVED: Duration = Duration::from_secs(4);
    let mut cluster = Cluster::start(3);
    write_until_acknowledged(&cluster, 2, "/kv/a", b"kept");
    cluster.kill(1);
    std::fs::remove_dir_all(cluster.data(1)).expect("the folder can be removed");
    // As a careless service file would.
    let args = cluster.arguments(1, true);
    cluster.restart_as(1, &args);
    wait::never("a second cluster", OBSERVED, || {
        let mut client = cluster.client(1).answer_within(REFUSED_WITHIN);
        let read = client.get("/kv/a").ok().filter(|r| r.refusal().is_none() && r.body != b"kept");
        let write = client.put("/kv/theirs", b"1").ok().filter(Response::is_success);
        read.or(write).map(|r| format!("node 1 answered for itself: {r}"))
    });
    write_until_acknowledged(&cluster, 3, "/kv/b", b"2");
    assert_eq!(cluster.client(2).get("/kv/a").expect("an answer").body, b"kept");
}

fn never_a_leader(cluster: &Cluster, during: Duration) {
    wait::never("a leader", during, || {
        let led = |s: &Status| s.role == "leader";
        cluster.statuses().into_iter().find(led).map(|s| format!("{s:?}"))
    });
}

#[test]
fn a_folder_of_another_cluster_is_refused() {
    let mut ours = Cluster::start(3);
    let mut theirs = Cluster::start_beside(&ours, 3);
    write_until_acknowledged(&theirs, 1, "/kv/theirs", b"1");
    theirs.wait_converged();
    theirs.kill_all();
    ours.kill(2);
    std::fs::remove_dir_all(ours.data(2)).expect("the folder can be removed");
    std::fs::rename(theirs.data(2), ours.data(2)).expect("the folder can be moved");
    ours.restart(2);
    let status = wait::until("the node ends", ELECT_WITHIN, || ours.exited(2));
    assert!(!status.success(), "{status}");
    assert!(ours.log(2).contains("cluster"), "{}", ours.log(2));
    // The others go on and have nothing of the other cluster's.
    write_until_acknowledged(&ours, 1, "/kv/ours", b"2");
    assert_eq!(ours.client(3).get("/kv/theirs").expect("an answer").status, 404);
}
