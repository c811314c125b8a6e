//! Power cuts. Real nodes run under varied loads above a recorder of their file operations. From any point in the
//! record the folders are built that disks may hold after a power cut there, nodes are booted on them, and every write
//! that was acknowledged before the cut must be there, with its value or a later one of the same key.
//!
//! `RAFTLET_CUTS` says how many cuts there are in all, 60 by default. `RAFTLET_RECORD_IGNORE_SYNC=1` takes every
//! fdatasync for nothing, as if the log relied on sled's own flush: then these tests must fail.

mod cuts;
mod journal;
mod recorded;
mod sample;

use std::time::Duration;

use fastrand::Rng;
use raftlet_tests::{process, seed};

use cuts::Outcome;
use journal::Profile;
use recorded::Recorded;

const CUTS_DEFAULT: usize = 60;
/// Of the shares below.
const SHARES: usize = 60;
const SMALL: Profile = Profile { clients: 1, keys: 20, writes: 200, value_bytes_max: 200, deletes: 5 };

/// Cuts a load's power, its share of all cuts.
#[track_caller]
fn survives(test: &str, share: usize, rng: &mut Rng, mut recorded: Recorded) {
    recorded.end();
    let planted = std::env::var_os("RAFTLET_RECORD_IGNORE_SYNC").is_some();
    if planted {
        recorded.recordings = recorded.recordings.into_iter().map(|r| r.ignoring_data_syncs()).collect();
    }
    let all: usize =
        std::env::var("RAFTLET_CUTS").map_or(CUTS_DEFAULT, |n| n.parse().expect("RAFTLET_CUTS is a number"));
    let Outcome { cuts, refused, failures } = cuts::cut(&recorded, (all * share).div_ceil(SHARES), true, rng);
    let records: Vec<usize> = recorded.recordings.iter().map(|r| r.records.len()).collect();
    let acknowledged = recorded.journal.acknowledged_before(u64::MAX);
    println!(
        "{test}: {cuts} cuts in records of {records:?} operations with {acknowledged} acknowledged writes: {} failed, \
         {refused} refused to start before anything was acknowledged",
        failures.len()
    );
    if !failures.is_empty() {
        let records = recorded.records.keep();
        panic!(
            "{} of {cuts} cuts failed; the records are in {}:\n{}",
            failures.len(),
            records.display(),
            failures.join("\n")
        );
    }
    assert!(acknowledged > 0, "nothing was acknowledged: the load proves nothing");
}

#[test]
fn founding_alone() {
    let mut rng = seed::rng("founding_alone");
    let mut recorded = Recorded::start(1, &[]);
    recorded.load(Profile { writes: 5, ..SMALL }, "founding", &mut rng);
    survives("founding_alone", 6, &mut rng, recorded);
}

/// As at the very first start, when nobody made a folder.
#[test]
fn founding_in_a_folder_of_its_own() {
    let mut rng = seed::rng("founding_in_a_folder_of_its_own");
    let mut recorded = Recorded::start_without_folders(1);
    recorded.load(Profile { writes: 50, ..SMALL }, "founding", &mut rng);
    survives("founding_in_a_folder_of_its_own", 4, &mut rng, recorded);
}

#[test]
fn founding_of_three() {
    let mut rng = seed::rng("founding_of_three");
    let mut recorded = Recorded::start_without_folders(3);
    recorded.load(Profile { writes: 5, ..SMALL }, "founding", &mut rng);
    survives("founding_of_three", 5, &mut rng, recorded);
}

#[test]
fn one_client() {
    let mut rng = seed::rng("one_client");
    let mut recorded = Recorded::start(1, &[]);
    recorded.load(SMALL, "one", &mut rng);
    survives("one_client", 5, &mut rng, recorded);
}

#[test]
fn eight_clients() {
    let mut rng = seed::rng("eight_clients");
    let mut recorded = Recorded::start(1, &[]);
    recorded.load(Profile { clients: 8, keys: 10, writes: 60, ..SMALL }, "eight", &mut rng);
    survives("eight_clients", 7, &mut rng, recorded);
}

#[test]
fn fifty_clients() {
    let mut rng = seed::rng("fifty_clients");
    let mut recorded = Recorded::start(1, &[]);
    recorded.load(Profile { clients: 50, keys: 4, writes: 20, value_bytes_max: 4_000, deletes: 5 }, "fifty", &mut rng);
    survives("fifty_clients", 7, &mut rng, recorded);
}

/// Commits that are small enough for the log's journal, and so many bytes of them that its halves change some times.
#[test]
fn a_journal_that_is_written_anew() {
    let mut rng = seed::rng("a_journal_that_is_written_anew");
    let mut recorded = Recorded::start(1, &[]);
    let profile = Profile { clients: 8, keys: 10, writes: 60, value_bytes_max: 40_000, deletes: 5 };
    recorded.load(profile, "journal", &mut rng);
    survives("a_journal_that_is_written_anew", 10, &mut rng, recorded);
}

#[test]
fn large_values() {
    let mut rng = seed::rng("large_values");
    let mut recorded = Recorded::start(1, &[]);
    let profile = Profile { clients: 4, keys: 3, writes: 20, value_bytes_max: 1_000_000, deletes: 10 };
    recorded.load(profile, "large", &mut rng);
    survives("large_values", 7, &mut rng, recorded);
}

/// Commits for which sled writes several segments: it doesn't see a hole in an older one of what it has unsynced.
#[test]
fn values_of_a_segment() {
    let mut rng = seed::rng("values_of_a_segment");
    let mut recorded = Recorded::start(1, &["--body-bytes-max", "8MiB", "--snapshot-log-bytes", "16MiB"]);
    let profile = Profile { clients: 3, keys: 2, writes: 10, value_bytes_max: 8_000_000, deletes: 10 };
    recorded.load(profile, "segment", &mut rng);
    survives("values_of_a_segment", 7, &mut rng, recorded);
}

/// The method finds what it is there for: sled's own flush doesn't survive a power cut.
#[test]
fn a_log_without_its_fdatasync_is_caught() {
    const CUTS: usize = 12;
    let mut rng = seed::rng("a_log_without_its_fdatasync");
    let mut recorded = Recorded::start(1, &[]);
    recorded.load(Profile { clients: 8, keys: 10, writes: 20, ..SMALL }, "planted", &mut rng);
    recorded.end();
    recorded.recordings = recorded.recordings.into_iter().map(|r| r.ignoring_data_syncs()).collect();
    let outcome = cuts::cut(&recorded, CUTS, false, &mut rng);
    println!("without fdatasync {} of {} cuts lost acknowledged writes", outcome.failures.len(), outcome.cuts);
    assert!(!outcome.failures.is_empty());
}

/// What a recovery writes is cut too, and the next one stands on what the cut left of both.
#[test]
fn many_restarts() {
    let mut rng = seed::rng("many_restarts");
    let mut recorded = Recorded::start(1, &[]);
    for round in 0..6 {
        let profile = Profile { clients: 4, keys: 4, writes: 15, value_bytes_max: 40_000, deletes: 30 };
        if round % 3 == 2 {
            recorded.load(profile, &format!("restart-{round}"), &mut rng);
            recorded.terminate(1);
        } else {
            let pause = Duration::from_millis(rng.u64(20..120));
            recorded.load_while(profile, &format!("restart-{round}"), &mut rng, |recorded| {
                std::thread::sleep(pause);
                recorded.kill(1);
                recorded.run(1);
            });
            recorded.cluster.wait_ready(1);
            recorded.kill(1);
        }
        recorded.restart(1);
    }
    survives("many_restarts", 9, &mut rng, recorded);
}

#[test]
fn three_nodes_and_changing_leaders() {
    let mut rng = seed::rng("three_nodes");
    let mut recorded = Recorded::start(3, &[]);
    let profile = Profile { clients: 6, keys: 6, writes: 60, value_bytes_max: 20_000, deletes: 10 };
    for round in 0..3 {
        let pause = Duration::from_millis(rng.u64(100..400));
        recorded.load_while(profile, &format!("three-{round}"), &mut rng, |recorded| {
            std::thread::sleep(pause);
            let leader = recorded.cluster.leader();
            recorded.kill(leader);
            recorded.cluster.leader();
            recorded.run(leader);
        });
    }
    survives("three_nodes", 10, &mut rng, recorded);
}

/// Only a binary that makes snapshots has the flag.
#[test]
fn snapshots_and_purges() {
    let help = process::run(&["node", "start", "--help"], Duration::from_secs(20)).stdout;
    if !help.contains("--snapshot-log-bytes") {
        println!("this binary makes no snapshots");
        return;
    }
    let mut rng = seed::rng("snapshots_and_purges");
    let mut recorded = Recorded::start(1, &["--snapshot-log-bytes", "1MiB"]);
    for round in 0..3 {
        let profile = Profile { clients: 6, keys: 10, writes: 60, value_bytes_max: 60_000, deletes: 20 };
        recorded.load(profile, &format!("snapshots-{round}"), &mut rng);
        if round == 1 {
            recorded.terminate(1)
        } else {
            recorded.kill(1)
        }
        recorded.restart(1);
    }
    survives("snapshots_and_purges", 12, &mut rng, recorded);
}
