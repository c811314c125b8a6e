//! Snapshots of real nodes: made while writes go on, the log purged behind them, the state rebuilt from them.

use std::fs;
use std::path::PathBuf;

use raftlet_tests::cluster::{Options, START_WITHIN};
use raftlet_tests::snapshots::{PROGRESS_WITHIN, VALUE_BYTES, files, flip_a_byte, metric, purged, value, whole};
use raftlet_tests::{Cluster, Fate, Load, seed, wait};

/// The least that may be set is 64 KiB.
const LOG_BYTES: usize = 256 << 10;

fn start(nodes: u64) -> Cluster {
    let args = ["--snapshot-log-bytes", "256KiB"].map(Into::into).into();
    Cluster::start_with(nodes, Options { args, ..Options::default() })
}

/// Few keys, written over and over: the state stays smaller than the log that makes a snapshot due.
const KEYS: usize = 10;

fn path(number: usize) -> String {
    format!("/kv/k{}", number % KEYS)
}

/// Writes number `from` and onwards until every node has made `count` more snapshots. Returns the next number.
fn write_until_snapshots(cluster: &Cluster, from: usize, count: u64) -> usize {
    let before: Vec<_> = cluster.ids().map(|id| built(cluster, id)).collect();
    let mut number = from;
    wait::until("all nodes have made snapshots", PROGRESS_WITHIN, || {
        write(cluster, number);
        number += 1;
        let made = |id: u64| built(cluster, id) >= before[id as usize - 1] + count;
        cluster.ids().all(made).then_some(number)
    })
}

fn write(cluster: &Cluster, number: usize) {
    let node = 1 + (number as u64 % cluster.ids().count() as u64);
    let mut client = cluster.client(node);
    wait::until("a write is acknowledged", PROGRESS_WITHIN, || {
        let result = client.put(&path(number), &value(number));
        (Fate::of(&result) == Fate::Acknowledged).then_some(())
    });
}

fn built(cluster: &Cluster, id: u64) -> u64 {
    metric(cluster, id, "raftlet_snapshots_built_total")
}

/// The last values of all keys, on every node. `count`: the number that would be written next.
#[track_caller]
fn assert_values(cluster: &Cluster, count: usize) {
    for id in cluster.ids() {
        let mut client = cluster.client(id);
        for number in count.saturating_sub(KEYS)..count {
            let found = client.get(&path(number)).expect("an answer");
            assert!(found.status == 200 && found.body == value(number), "node {id}, key {number}: {found}");
        }
    }
}

#[test]
fn a_restart_begins_with_the_snapshot_and_nothing_is_lost() {
    let mut cluster = start(3);
    let count = write_until_snapshots(&cluster, 0, 3);
    let digest = cluster.wait_converged();
    for id in cluster.ids() {
        assert_eq!(whole(&cluster.data(id)).len(), 2, "two are kept on node {id}");
        assert!(cluster.status(id).unwrap().snapshot_index > Some(1));
        assert_eq!(metric(&cluster, id, "raftlet_snapshots_failed_total"), 0);
    }
    cluster.kill_all();
    cluster.restart_all();
    // The digest chain goes over every write and reply since the beginning; new terms add entries, but no link to it.
    assert_eq!(cluster.wait_converged(), digest);
    for id in cluster.ids() {
        let (log, status) = (cluster.log(id), cluster.status(id).unwrap());
        assert!(log.contains("the state was read from"), "node {id} began without a snapshot");
        assert!(status.snapshot_index.is_some());
    }
    assert_values(&cluster, count);
    // And on from there.
    let count = write_until_snapshots(&cluster, count, 1);
    cluster.wait_converged();
    assert_values(&cluster, count);
}

#[test]
fn a_damaged_snapshot_is_set_aside_and_the_older_one_used() {
    let mut cluster = start(3);
    let count = write_until_snapshots(&cluster, 0, 3);
    let digest = cluster.wait_converged();
    cluster.kill_all();
    for id in cluster.ids() {
        flip_a_byte(&whole(&cluster.data(id))[0]);
    }
    cluster.restart_all();
    assert_eq!(cluster.wait_converged(), digest);
    assert_values(&cluster, count);
    for id in cluster.ids() {
        let damaged = files(&cluster.data(id), |name| name.starts_with("damaged-"));
        let name = damaged[0].file_name().unwrap().to_str().unwrap();
        assert!(cluster.log(id).contains(name), "node {id} doesn't name {name}");
    }
}

/// The files of a node whose log was purged.
fn purged_node() -> (Cluster, PathBuf) {
    let cluster = start(1);
    // The log is purged up to the older of two.
    write_until_snapshots(&cluster, 0, 3);
    wait::until("the log is purged", PROGRESS_WITHIN, || (purged(&cluster, 1) > 0).then_some(()));
    let data = cluster.data(1);
    (cluster, data)
}

#[test]
fn a_node_without_a_usable_snapshot_refuses_to_start_and_names_the_files() {
    let (mut cluster, data) = purged_node();
    assert!(cluster.terminate(1).success());
    let snapshots = whole(&data);
    snapshots.iter().for_each(|path| flip_a_byte(path));
    cluster.restart(1);
    assert!(!cluster.wait_exit(1).success());
    let log = cluster.log(1);
    for path in &snapshots {
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(log.contains(&format!("damaged-{name}")), "{name} isn't named");
    }
    assert!(log.contains("the log begins after entry"), "the reason isn't told");
    // It stays refused: nothing was changed that would let it begin anew.
    cluster.restart(1);
    assert!(!cluster.wait_exit(1).success());
    // With one of them repaired it starts.
    let aside = files(&data, |name| name.starts_with("damaged-"));
    let name = aside[0].file_name().unwrap().to_str().unwrap().strip_prefix("damaged-").unwrap().to_owned();
    let repaired = data.join("snapshots").join(name);
    fs::rename(&aside[0], &repaired).unwrap();
    flip_a_byte(&repaired);
    cluster.restart(1);
    cluster.wait_ready(1);
}

#[test]
fn the_log_is_purged_behind_the_older_snapshot() {
    const ROUNDS: u64 = 6;
    let cluster = start(1);
    let mut number = 0;
    for _ in 0..ROUNDS {
        number = write_until_snapshots(&cluster, number, 1);
    }
    assert!(number * VALUE_BYTES > ROUNDS as usize * LOG_BYTES, "a snapshot was made too early");
    let applied = cluster.status(1).unwrap().applied_index.unwrap();
    // Two more: from then on the older one is behind this.
    write_until_snapshots(&cluster, number, 2);
    wait::until("the log is purged", PROGRESS_WITHIN, || (purged(&cluster, 1) >= applied).then_some(()));
    let kept = whole(&cluster.data(1));
    let bytes: u64 = kept.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(kept.len() == 2 && bytes < 2 * (KEYS * VALUE_BYTES + LOG_BYTES) as u64, "{bytes} bytes of snapshots");
}

#[cfg(debug_assertions)]
#[test]
fn a_crash_at_any_step_of_a_snapshot_loses_nothing() {
    const STEPS: [&str; 9] = [
        "snapshot.begin",
        "snapshot.block",
        "snapshot.before-sync",
        "snapshot.before-rename",
        "snapshot.after-rename",
        "snapshot.before-delete",
        "snapshot.before-purge",
        "snapshot.install",
        "snapshot.before-swap",
    ];
    let mut rng = seed::rng("a_crash_at_any_step_of_a_snapshot");
    let mut cluster = start(3);
    let mut count = write_until_snapshots(&cluster, 0, 1);
    for step in STEPS {
        let at_start = matches!(step, "snapshot.install" | "snapshot.before-swap");
        let victim = rng.u64(1..=3);
        println!("{step} on node {victim}");
        cluster.terminate(victim);
        let setting = if at_start { format!("{step}=return") } else { format!("{step}={}*off->return", rng.u8(0..3)) };
        cluster.set_variable(victim, "FAILPOINTS", &setting);
        cluster.restart(victim);
        wait::until(&format!("node {victim} dies at {step}"), PROGRESS_WITHIN + START_WITHIN, || {
            let others = cluster.ids().find(|id| *id != victim).unwrap();
            let put = cluster.client(others).put(&path(count), &value(count));
            if Fate::of(&put) == Fate::Acknowledged {
                count += 1;
            }
            cluster.exited(victim)
        });
        cluster.wait_exit(victim);
        cluster.restart(victim);
        cluster.wait_ready(victim);
    }
    cluster.wait_converged();
    cluster.kill_all();
    cluster.restart_all();
    cluster.wait_converged();
    assert_values(&cluster, count);
}

#[cfg(debug_assertions)]
#[test]
fn a_full_disk_stops_no_node() {
    let mut cluster = start(1);
    write(&cluster, 0);
    for (step, how) in [("snapshot.begin", "enospc"), ("snapshot.block", "enospc"), ("snapshot.before-sync", "eio")] {
        assert!(cluster.terminate(1).success());
        cluster.set_variable(1, "FAILPOINTS", &format!("{step}=return({how})"));
        cluster.restart(1);
        cluster.wait_ready(1);
        let mut number = 1;
        wait::until("a snapshot fails", PROGRESS_WITHIN, || {
            write(&cluster, number);
            number += 1;
            (metric(&cluster, 1, "raftlet_snapshots_failed_total") > 0).then_some(())
        });
        assert!(cluster.log(1).contains("no snapshot could be made"));
        assert!(files(&cluster.data(1), |name| name.ends_with(".building")).is_empty(), "something is left of it");
        write(&cluster, number);
    }
}

#[test]
fn snapshots_under_load_and_kills() {
    let mut rng = seed::rng("snapshots_under_load_and_kills");
    let args = ["--snapshot-log-bytes", "64KiB"].map(Into::into).into();
    let mut cluster = Cluster::start_with(3, Options { args, ..Options::default() });
    let load = Load::start(&cluster, 8, &mut rng);
    for _ in 0..4 {
        load.wait_for_more(rng.u64(100..400), PROGRESS_WITHIN);
        cluster.kill_all();
        cluster.restart_all();
    }
    load.wait_for_more(50, PROGRESS_WITHIN);
    cluster.kill_all();
    let ledger = load.stop();
    cluster.restart_all();
    cluster.wait_converged();
    ledger.verify(&cluster);
    assert!(cluster.ids().all(|id| !whole(&cluster.data(id)).is_empty()));
}
