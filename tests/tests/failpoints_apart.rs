//! Failpoints that need a cluster for themselves: while it is founded, when nodes differ, when an entry is skipped, when
//! a node is reloaded. See `failpoints.rs`, which has the others and the test that the list is complete.

use std::fs;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use fastrand::Rng;
use raftlet_tests::cluster::{ELECT_WITHIN, Options};
use raftlet_tests::failpoints::{self, Failpoint, How, OnError, Reach};
use raftlet_tests::process::{Process, Signal, tail};
use raftlet_tests::{Cluster, Load, features, poison, seed, slots, wait};

const WRITERS: usize = 8;
const PROGRESS_WITHIN: Duration = Duration::from_secs(60);
const REACHED_WITHIN: Duration = Duration::from_secs(60);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The host changes its state where this stands in a command, if it was started with the failpoint of this name.
const CORRUPT: &str = "apply.corrupt-write=return";
const CALL: &[u8] = b"failpoint:corrupt-write";

#[test]
fn steps_of_founding() {
    let mut rng = seed::rng("steps_of_founding");
    for failpoint in failpoints::chosen(&[Reach::Founds, Reach::Joins]) {
        for how in failpoint.ways(&mut rng) {
            let cluster = found(failpoint, how, &mut rng);
            check_all(&cluster, &mut rng);
        }
    }
}

#[test]
fn steps_of_divergence() {
    let mut rng = seed::rng("steps_of_divergence");
    for failpoint in failpoints::chosen(&[Reach::Diverges, Reach::Judges]) {
        for how in failpoint.ways(&mut rng) {
            let cluster = diverge(failpoint, how, &mut rng);
            check_all(&cluster, &mut rng);
        }
    }
}

#[test]
fn steps_of_skipping() {
    let mut rng = seed::rng("steps_of_skipping");
    let failpoints = failpoints::chosen(&[Reach::Skips]);
    if failpoints.is_empty() {
        return;
    }
    let mut cluster = Cluster::prepare(3, Options::default(), Some(slots::take()));
    let skip = poison::hold_everywhere(&mut cluster);
    let mut cases = Vec::new();
    for failpoint in failpoints {
        cases.extend(failpoint.ways(&mut rng).into_iter().map(|how| (failpoint, how)));
    }
    for (failpoint, how) in cases {
        let armed = rng.u64(1..=3);
        let setting = failpoint.setting(how, 0);
        println!("node {armed}: {setting}");
        cluster.kill(armed);
        // What an earlier case has left.
        let _ = fs::remove_file(cluster.data(armed).join("skip.json"));
        let log_from = cluster.log(armed).len();
        poison::start_skipping(&mut cluster, armed, &skip, &format!("{setting};{}", poison::FAILPOINT));
        wait_end(&mut cluster, armed, failpoint, how, log_from);
        if cluster.is_running(armed) {
            // It couldn't remember the skip, so it still holds the entry.
            assert_eq!(cluster.client(armed).get("/_/ready").expect("an answer").status, 503);
            cluster.kill(armed);
        }
        poison::start_skipping(&mut cluster, armed, &skip, poison::FAILPOINT);
        wait::until("the skip is remembered", PROGRESS_WITHIN, || {
            cluster.data(armed).join("skip.json").exists().then_some(())
        });
    }
    for id in cluster.ids() {
        cluster.kill(id);
        poison::start_skipping(&mut cluster, id, &skip, poison::FAILPOINT);
    }
    cluster.restart_all();
    check_all(&cluster, &mut rng);
}

#[test]
fn steps_of_a_reload() {
    let mut rng = seed::rng("steps_of_a_reload");
    for failpoint in failpoints::chosen(&[Reach::Marks, Reach::Rejoins]) {
        for how in failpoint.ways(&mut rng) {
            let cluster = reload(failpoint, how, &mut rng);
            check_all(&cluster, &mut rng);
        }
    }
}

/// A new cluster one of whose nodes dies while it comes into being.
fn found(failpoint: &Failpoint, how: How, rng: &mut Rng) -> Cluster {
    let mut cluster = Cluster::prepare(3, Options::default(), Some(slots::take()));
    let armed = if failpoint.reach == Reach::Founds { 1 } else { rng.u64(2..=3) };
    let setting = failpoint.setting(how, rng.u32(0..=failpoint.passes_max));
    println!("node {armed}: {setting}");
    cluster.set_variable(armed, "FAILPOINTS", &setting);
    let ids: Vec<u64> = cluster.ids().collect();
    ids.iter().for_each(|id| cluster.restart(*id));
    wait_end(&mut cluster, armed, failpoint, how, 0);
    // As a service file would start it: a folder that has data ignores the flag.
    let args = cluster.arguments(armed, armed == 1);
    cluster.restart_as(armed, &args);
    cluster.restart_all();
    cluster
}

/// The leader's state changes, or, for one that must judge, another node's. The node with the failpoint dies of it.
fn diverge(failpoint: &Failpoint, how: How, rng: &mut Rng) -> Cluster {
    let mut options = Options::default();
    if features::has_flag("--audit-interval") {
        options.args.extend(["--audit-interval", "200ms"].map(Into::into));
    }
    let mut cluster = Cluster::prepare(3, options, Some(slots::take()));
    let setting = failpoint.setting(how, 0);
    // All have it: the leader is whoever it is.
    for id in 1..=3 {
        cluster.set_variable(id, "FAILPOINTS", &setting);
    }
    // Node 1 founds the cluster and leads at first; the wrong one is that, or another.
    let wrong = if failpoint.reach == Reach::Diverges { 1 } else { rng.u64(2..=3) };
    cluster.set_variable(wrong, "FAILPOINTS", &format!("{setting};{CORRUPT}"));
    println!("{setting}, wrong: node {wrong}");
    cluster.restart_all();
    let leader = cluster.leader();
    let armed = if failpoint.reach == Reach::Diverges { wrong } else { leader };
    let _ = cluster.client(leader).answer_within(ANSWER_WITHIN).put("/kv/call", CALL);
    wait_end(&mut cluster, armed, failpoint, how, 0);
    heal(&mut cluster, wrong);
    cluster
}

/// Starts what is dead, without failpoints. A node that is in quarantine is reloaded from the others first.
fn heal(cluster: &mut Cluster, wrong: u64) {
    for id in cluster.ids() {
        if cluster.is_running(id) {
            // It has failpoints too.
            cluster.kill(id);
        }
        cluster.restart(id);
    }
    let quarantined = wait::until("it is ready or in quarantine", PROGRESS_WITHIN, || {
        let mut client = cluster.client(wrong).answer_within(ANSWER_WITHIN);
        let ready = client.get("/_/ready").ok()?;
        let status = client.get("/_/status").ok()?.json();
        (ready.status == 200 || status["quarantine"].is_object()).then(|| status["quarantine"].is_object())
    });
    if quarantined {
        println!("node {wrong} is in quarantine and is reloaded");
        cluster.terminate(wrong);
        let (status, said) = rejoin(&cluster.data(wrong), cluster.folder(), &[]);
        assert!(status.success(), "{said}");
        cluster.restart(wrong);
    }
    cluster.ids().for_each(|id| cluster.wait_ready(id));
}

/// A node is marked, or is reloaded after it was marked.
fn reload(failpoint: &Failpoint, how: How, rng: &mut Rng) -> Cluster {
    let args = features::frequent_snapshots("256KiB");
    let mut cluster = Cluster::start_with(3, Options { args, ..Options::default() });
    let armed = rng.u64(1..=3);
    let setting = failpoint.setting(how, 0);
    println!("node {armed}: {setting}");
    cluster.terminate(armed);
    if failpoint.reach == Reach::Marks {
        let (status, said) = rejoin(&cluster.data(armed), cluster.folder(), &[("FAILPOINTS".into(), setting)]);
        how.check_end(status, &said);
    } else {
        let (status, said) = rejoin(&cluster.data(armed), cluster.folder(), &[]);
        assert!(status.success(), "{said}");
        cluster.set_variable(armed, "FAILPOINTS", &setting);
        cluster.restart(armed);
        wait_end(&mut cluster, armed, failpoint, how, 0);
    }
    cluster.restart_all();
    cluster
}

/// `raftlet node rejoin`: how it ended and what it said.
fn rejoin(dir: &Path, folder: &Path, environment: &[(String, String)]) -> (ExitStatus, String) {
    let args = ["node".into(), "rejoin".into(), "--dir".into(), dir.into()];
    let mut process = Process::start_in("rejoin", folder, &args, environment, Signal::KILL);
    let status = process.wait(ELECT_WITHIN);
    (status, process.stderr())
}

/// Until the failpoint has done what it can: the node is dead, or tells of the error, in its log from `log_from` on.
fn wait_end(cluster: &mut Cluster, armed: u64, failpoint: &Failpoint, how: How, log_from: usize) {
    let said = |cluster: &Cluster| cluster.log(armed).split_off(log_from);
    if matches!(how, How::Error(_, OnError::GoesOn)) {
        let what = format!("node {armed} tells of the error at {}", failpoint.name);
        return wait::until(&what, REACHED_WITHIN, || said(cluster).contains(how.trace()).then_some(()));
    }
    let status = wait::poll(REACHED_WITHIN, || cluster.exited(armed));
    let said = said(cluster);
    let Some(status) = status else {
        panic!("{}: node {armed} was not reached\n{}", failpoint.name, tail(&said, 30));
    };
    cluster.wait_exit(armed);
    how.check_end(status, &said);
}

/// Writes arrive everywhere.
fn check_all(cluster: &Cluster, rng: &mut Rng) {
    let load = Load::start_small(cluster, WRITERS, rng);
    load.wait_for_more(50, PROGRESS_WITHIN);
    let ledger = load.stop();
    cluster.wait_converged();
    ledger.verify(cluster);
}
