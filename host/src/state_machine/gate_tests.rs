//! Tests of `gate.rs`: what is applied, skipped and held, over restarts.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use openraft::EntryPayload;

use super::*;
use crate::raft::codec::log_id;
use crate::raft::types::{BatchId, Envelope, StoredMembership};

/// The term that the gates of these tests follow.
const TERM: u64 = 4;

fn gate(dir: &Path, skips: &[SkipEntry]) -> Arc<Gate> {
    let gate = Gate::open(dir, skips, None).unwrap();
    gate.follow(Some(TERM));
    gate
}

fn stamped(kind: Kind, term: u64, index: u64, stamp: (u64, Short)) -> Entry {
    let id = BatchId { node: 1, boot: 2, sequence: index };
    let envelope = Envelope { kind, id, time_ms: 5, stamp_index: stamp.0, stamp_digest: stamp.1 };
    let bytes = Bytes::from(format!("command {index}"));
    Entry::new(log_id(term, index), EntryPayload::Normal(Proposal { envelope, bytes }))
}

fn entry(index: u64) -> Entry {
    stamped(Kind::Batch, TERM, index, (0, [0; 16]))
}

fn digest(n: u8) -> [u8; 32] {
    [n; 32]
}

fn state(index: u64, digest: [u8; 32]) -> Published {
    Published {
        applied: Some(log_id(TERM, index)),
        membership: StoredMembership::default(),
        time_ms: 0,
        first_command: 1,
        digest,
        cluster: 0,
        map: Default::default(),
        module: None,
        active: None,
        pieces: None,
        sessions: Default::default(),
    }
}

/// Lets the process die while it applies the entry, so often.
fn die(dir: &Path, entry: &Entry, times: u32) {
    for _ in 0..times {
        assert_eq!(gate(dir, &[]).before(entry), Pass::Apply);
    }
}

fn skip(entry: &Entry) -> SkipEntry {
    SkipEntry { index: entry.log_id().index, checksum: checksum(entry).0 }
}

#[test]
fn an_entry_that_killed_the_process_twice_is_held_and_named() {
    let dir = tempfile::tempdir().unwrap();
    die(dir.path(), &entry(9), DEATHS_MAX);
    let gate = gate(dir.path(), &[]);
    assert_eq!(gate.before(&entry(8)), Pass::Apply);
    gate.after(&state(8, digest(8)), Pass::Apply);
    assert_eq!(gate.before(&entry(9)), Pass::Hold);
    assert_eq!(gate.before(&entry(10)), Pass::Hold);
    let poison = gate.health().poison.expect("it is held");
    let named = format!("--skip-entry 9:{}", checksum(&entry(9)));
    assert!(poison.to_string().contains(&named) && poison.to_string().contains("2 times"), "{poison}");
    // What was applied before is right, but nothing is vouched for while others go on.
    assert_eq!((gate.may_serve(), gate.is_open(), gate.stamp()), (Ok(()), false, (0, [0; 16])));
}

#[test]
fn a_death_ahead_of_the_commit_counts_and_nothing_is_tried_that_killed_the_process() {
    let dir = tempfile::tempdir().unwrap();
    assert!(gate(dir.path(), &[]).may_try(&entry(9)));
    // It died of that.
    let again = gate(dir.path(), &[]);
    assert!(!again.may_try(&entry(9)));
    assert_eq!(again.before(&entry(9)), Pass::Apply, "once isn't enough to be held");
    drop(again);
    let gate = gate(dir.path(), &[]);
    assert_eq!(gate.before(&entry(9)), Pass::Hold);
    assert!(!gate.may_try(&entry(10)), "nothing is while it holds");
}

#[test]
fn the_entry_of_another_term_at_that_index_is_innocent_and_so_is_one_that_was_survived() {
    let dir = tempfile::tempdir().unwrap();
    die(dir.path(), &entry(9), DEATHS_MAX);
    assert_eq!(gate(dir.path(), &[]).before(&stamped(Kind::Batch, TERM + 1, 9, (0, [0; 16]))), Pass::Apply);

    let dir = tempfile::tempdir().unwrap();
    die(dir.path(), &entry(9), DEATHS_MAX - 1);
    let survivor = gate(dir.path(), &[]);
    assert_eq!(survivor.before(&entry(9)), Pass::Apply);
    survivor.after(&state(9, digest(9)), Pass::Apply);
    drop(survivor);
    die(dir.path(), &entry(9), DEATHS_MAX);
}

#[test]
fn an_activation_may_take_the_process_with_it_more_often() {
    let dir = tempfile::tempdir().unwrap();
    let activation = stamped(Kind::ActivateModule, TERM, 3, (0, [0; 16]));
    die(dir.path(), &activation, ACTIVATION_DEATHS_MAX);
    assert_eq!(gate(dir.path(), &[]).before(&activation), Pass::Hold);
}

#[test]
fn the_right_skip_is_done_and_remembered() {
    let dir = tempfile::tempdir().unwrap();
    die(dir.path(), &entry(9), DEATHS_MAX);
    assert_eq!(gate(dir.path(), &[skip(&entry(9))]).before(&entry(9)), Pass::Skip);
    // The log is applied again, without the flag.
    let again = gate(dir.path(), &[]);
    assert_eq!(again.before(&entry(9)), Pass::Skip);
    again.after(&state(9, digest(9)), Pass::Skip);
    assert!(again.is_open());
    assert_eq!(again.before(&entry(10)), Pass::Apply);
    // Another one for the same index doesn't undo it.
    assert_eq!(
        gate(dir.path(), &[skip(&stamped(Kind::Batch, TERM + 7, 9, (0, [0; 16])))]).before(&entry(9)),
        Pass::Skip
    );
}

#[test]
fn a_skip_with_a_wrong_checksum_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    die(dir.path(), &entry(9), DEATHS_MAX);
    let wrong = SkipEntry { index: 9, checksum: [1; 8] };
    let held = gate(dir.path(), &[wrong]);
    assert_eq!(held.before(&entry(9)), Pass::Hold);
    let text = held.health().poison.expect("it is held").to_string();
    assert!(text.contains("--skip-entry 9:0101010101010101 names another entry"), "{text}");
    assert!(!dir.path().join(skips::FILE).exists());
    // An innocent entry is not hurt by a typing error.
    assert_eq!(gate(dir.path(), &[SkipEntry { index: 5, ..wrong }]).before(&entry(5)), Pass::Apply);
}

#[test]
fn a_skip_works_on_a_node_that_the_entry_did_not_kill() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(gate(dir.path(), &[skip(&entry(9))]).before(&entry(9)), Pass::Skip);
}

#[test]
fn a_damaged_skip_file_refuses_the_start() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(skips::FILE), "[\"nine\"]").unwrap();
    let error = Gate::open(dir.path(), &[], None).err().expect("an error").to_string();
    assert!(error.contains("skip.json"), "{error}");
}

#[test]
fn a_state_that_has_the_held_entry_in_it_opens_the_gate() {
    let dir = tempfile::tempdir().unwrap();
    die(dir.path(), &entry(9), DEATHS_MAX);
    let gate = gate(dir.path(), &[]);
    assert_eq!(gate.before(&entry(9)), Pass::Hold);
    gate.after(&state(20, digest(20)), Pass::Apply);
    assert!(gate.is_open());
}

#[test]
fn a_stamp_that_differs_closes_the_gate_until_the_majority_agrees_with_this_node() {
    let dir = tempfile::tempdir().unwrap();
    let gate = gate(dir.path(), &[]);
    for index in 1..=6 {
        assert_eq!(gate.before(&entry(index)), Pass::Apply);
        gate.after(&state(index, digest(index as u8)), Pass::Apply);
    }
    let right = stamped(Kind::Batch, TERM, 7, (6, [6; 16]));
    let unknown = stamped(Kind::Batch, TERM, 7, (99, [1; 16]));
    assert_eq!((gate.before(&right), gate.before(&unknown)), (Pass::Apply, Pass::Apply));
    // A leader of the past proves nothing about now.
    assert_eq!(gate.before(&stamped(Kind::Batch, TERM - 1, 7, (6, [1; 16]))), Pass::Apply);

    let wrong = stamped(Kind::Batch, TERM, 7, (5, [1; 16]));
    assert_eq!(gate.before(&wrong), Pass::Hold);
    assert!(gate.may_serve().unwrap_err().contains(&hex(&[5; 16])));
    // Too early to tell, and about something else.
    gate.cleared(What::Chain, 4);
    gate.cleared(What::Content, 6);
    assert!(!gate.is_open());
    gate.cleared(What::Chain, 5);
    assert!(gate.is_open());
    // It was the leader that is wrong; its other stamps are not listened to.
    assert_eq!(gate.before(&wrong), Pass::Apply);
}

#[test]
fn the_first_split_counts_and_a_quarantine_ends_all_doubts() {
    let dir = tempfile::tempdir().unwrap();
    let gate = gate(dir.path(), &[]);
    let split = |index| Doubt { what: What::Chain, index, why: Why::NoMajority { digests: String::new() } };
    gate.doubt(split(5));
    gate.doubt(split(8));
    assert_eq!(gate.health().doubt.map(|d| d.index), Some(5));
    let text = |n: u8| hex(&[n; 16]);
    let quarantine = Quarantine { what: What::Chain, index: 6, ours: text(1), theirs: text(2), time_ms: 0 };
    gate.quarantine(quarantine.clone());
    gate.doubt(split(9));
    gate.cleared(What::Chain, 100);
    assert_eq!(gate.health(), Health { quarantine: Some(quarantine), ..Health::default() });
    assert_eq!(gate.before(&entry(1)), Pass::Hold);
    let said = gate.may_serve().unwrap_err();
    assert!(said.contains(&text(1)) && said.contains(&text(2)) && said.contains("index 6"), "{said}");
}

#[test]
fn a_quarantine_of_an_earlier_run_holds_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (hex(&[1; 16]), hex(&[2; 16]));
    let quarantine = Quarantine { what: What::Content, index: 6, ours, theirs, time_ms: 0 };
    let gate = Gate::open(dir.path(), &[], Some(quarantine)).unwrap();
    assert_eq!((gate.before(&entry(7)), gate.stamp()), (Pass::Hold, (0, [0; 16])));
    assert!(gate.may_serve().unwrap_err().contains("quarantine"));
}

#[test]
fn a_checkpoint_is_digested_beside_the_applies() {
    let dir = tempfile::tempdir().unwrap();
    let gate = gate(dir.path(), &[]);
    let checkpoint = stamped(Kind::Checkpoint, TERM, 7, (0, [0; 16]));
    assert_eq!(gate.before(&checkpoint), Pass::Checkpoint);
    let state = state(7, digest(7));
    gate.after(&state, Pass::Checkpoint);
    let expected = short(&super::super::digest::content(&state));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while gate.contents() != [(7, expected)] {
        assert!(std::time::Instant::now() < deadline, "{:?}", gate.contents());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(gate.last_checkpoint(), Some(7));
}
