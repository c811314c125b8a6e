//! Idempotency keys are state: they are in snapshots, in what a follower is sent, and in backups.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use raftlet_tests::cluster::Options;
use raftlet_tests::http::Outcome;
use raftlet_tests::keyed::{REPLAYED, essence, insist};
use raftlet_tests::snapshots::{PROGRESS_WITHIN, leave_behind, purged};
use raftlet_tests::{Client, Cluster, Launcher, Response, paths, wait};

use super::{admin, done, options, start, text, wait_said};

#[track_caller]
fn repeat(nodes: &[SocketAddr], first: &Response, when: &str) {
    for node in 0..nodes.len() {
        let again = insist(nodes, node, "PUT", "/kv/once", "the-key", b"first");
        assert_eq!(essence(&again), essence(first), "{when}: {again}");
        assert_eq!(again.header(REPLAYED), Some("true"), "{when}: {again}");
        let read = Client::new(nodes[node]).get("/kv/once").expect("an answer");
        assert_eq!(read.body, b"second", "{when}: the repetition had an effect");
    }
}

#[test]
fn a_key_is_known_wherever_the_state_goes() {
    let mut cluster = start(&[]);
    let nodes = cluster.addresses();
    let first = insist(&nodes, 0, "PUT", "/kv/once", "the-key", b"first");
    assert_eq!((first.status, first.header(REPLAYED)), (201, None), "{first}");
    insist(&nodes, 1, "PUT", "/kv/once", "another-key", b"second");
    cluster.wait_converged();
    let (up, down) = (cluster.leader(), cluster.follower());
    cluster.kill(down);
    leave_behind(&cluster, down, up, 0);
    // Now it is only in snapshots that the key is.
    let entry = first.number("raftlet-index");
    for id in cluster.ids().filter(|id| *id != down) {
        assert!(purged(&cluster, id) >= entry, "node {id} has the entry in its log");
    }
    let from = cluster.log(down).len();
    cluster.restart(down);
    cluster.wait_ready(down);
    wait_said(&cluster, down, from, "is installed");
    repeat(&nodes[down as usize - 1..][..1], &first, "on the node that was sent the state");
    cluster.wait_converged();
    cluster.kill_all();
    cluster.restart_all();
    repeat(&nodes, &first, "after a restart of all");
    cluster.wait_converged();

    let folder = tempfile::tempdir().expect("a folder");
    let file = text(&folder.path().join("all.snapshot"));
    done(&["snapshot", "save", &file, "--admin", &admin(&cluster, down)]);
    // It has the slot that the launcher takes.
    drop(cluster);
    let mut launcher = Launcher::new(3);
    launcher.start(&["--restore", &file]);
    let restored: Vec<SocketAddr> = launcher.ids().map(|id| launcher.client(id).address()).collect();
    repeat(&restored, &first, "in a new cluster");
}

/// What one client was told of its own counter, to which it adds one again and again.
#[derive(Default)]
struct Told {
    done: u64,
    unknown: u64,
    replaced: u64,
}

fn add(client: &mut Client, path: &str, told: &mut Told) {
    match client.request("POST", path, &[], b"1") {
        Ok(answer) if answer.is_success() => {
            told.done += 1;
            let total: u64 = String::from_utf8_lossy(&answer.body).trim().parse().expect("a number");
            let most = told.done + told.unknown;
            assert!((told.done..=most).contains(&total), "{path} is {total}, not from {} to {most}", told.done);
        }
        Ok(refused) => match refused.refusal().expect("a problem with an outcome") {
            Outcome::Rejected => std::thread::sleep(Duration::from_millis(20)),
            Outcome::Unknown => {
                assert_eq!(refused.status, 504, "{refused}");
                told.unknown += 1;
                told.replaced += u64::from(refused.json()["type"] == "/_/problems/replaced");
            }
        },
        Err(e) => panic!("a node that is only paused answers in the end: {e:?}"),
    }
}

#[test]
fn clients_of_a_follower_whose_state_is_replaced_are_told_so() {
    const CLIENTS: usize = 6;
    // The pause must not use up what a request may take.
    let args = options(&["--request-timeout", "5m"]).args;
    let mut cluster =
        Cluster::start_with(3, Options { module: Some(paths::guest("counter")), args, ..Options::default() });
    let (leader, slow) = (cluster.leader(), cluster.follower());
    let (stop, added) = (AtomicBool::new(false), AtomicU64::new(0));
    let address = cluster.address(slow);
    let more = |writes| {
        let goal = added.load(Ordering::Acquire) + writes;
        wait::until("more is added", PROGRESS_WITHIN, || (added.load(Ordering::Acquire) >= goal).then_some(()));
    };
    let told: Vec<Told> = std::thread::scope(|scope| {
        let one = |number| {
            let mut client = Client::new(address).answer_within(Duration::from_secs(300));
            let mut told = Told::default();
            while !stop.load(Ordering::Acquire) {
                let before = told.done;
                add(&mut client, &format!("/counter/{number}"), &mut told);
                added.fetch_add(told.done - before, Ordering::AcqRel);
            }
            told
        };
        let clients: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || one(number))).collect();
        // However the rest ends, the clients do.
        let _stops = Stop(&stop);
        more(30);
        replace_state(&mut cluster, leader, slow);
        more(30);
        stop.store(true, Ordering::Release);
        clients.into_iter().map(|c| c.join().expect("a client did not panic")).collect()
    });
    cluster.wait_converged();
    let replaced: u64 = told.iter().map(|t| t.replaced).sum();
    println!("{replaced} were told that the state was replaced");
    for (number, Told { done, unknown, .. }) in told.iter().enumerate() {
        for id in cluster.ids() {
            let read = cluster.client(id).get(&format!("/counter/{number}")).expect("an answer");
            let total: u64 = String::from_utf8_lossy(&read.body).trim().parse().expect("a number");
            let most = done + unknown;
            assert!((*done..=most).contains(&total), "node {id}: counter {number} is {total}, not {done} to {most}");
        }
    }
    assert!(replaced > 0, "nobody waited when the state was replaced: this proves nothing");
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Pauses the node until the others have purged what it needs, so that it must take a snapshot.
fn replace_state(cluster: &mut Cluster, leader: u64, slow: u64) {
    /// Spaces around the number: the log grows, the state doesn't.
    const PADDING: usize = 60_000;
    let from = cluster.log(slow).len();
    cluster.pause(slow);
    let there = cluster.status(leader).and_then(|s| s.last_log_index).expect("the leader has a log");
    let body = format!("1{}", " ".repeat(PADDING));
    let mut client = cluster.client(leader);
    wait::until("the others have purged their logs", PROGRESS_WITHIN, || {
        let answer = client.request("POST", "/counter/filler", &[], body.as_bytes());
        assert!(answer.is_ok(), "{answer:?}");
        cluster.ids().filter(|id| *id != slow).all(|id| purged(cluster, id) > there).then_some(())
    });
    cluster.resume(slow);
    wait_said(cluster, slow, from, "is installed");
}
