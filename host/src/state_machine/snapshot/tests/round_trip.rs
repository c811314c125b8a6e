//! What is written is what is read.

use proptest::prelude::*;

use super::*;
use crate::state_machine::digest;
use crate::state_machine::snapshot::{SnapshotError, rewrite, verify};

fn assert_same(state: &Published, loaded: &Loaded) {
    let header = Header { id: loaded.header.id, ..Header::of(state).unwrap() };
    assert_eq!(loaded.header, header);
    assert_eq!(entries(&loaded.map), entries(&state.map));
    assert_eq!(entries(&loaded.records), entries(state.sessions.records()));
    assert_eq!(loaded.module, state.active.as_ref().map_or(&[][..], |a| &a.module));
    assert_eq!(loaded.pieces, state.pieces.as_ref().map_or(&[][..], |p| &p.bytes));
}

fn check(state: &Published) {
    let bytes = file_of(state);
    assert_same(state, &read(&bytes).unwrap());
    let summary = summary(&bytes).unwrap();
    assert_eq!((summary.keys, summary.bytes), (state.map.len(), state.map.bytes()));
    assert_eq!(summary.sessions, state.sessions.records().len());
    assert_eq!(summary.digest, digest::content(state));
    assert_eq!(summary.file_bytes, bytes.len() as u64);
}

#[test]
fn an_empty_state_survives() {
    check(&empty(1, 1));
}

#[test]
fn large_values_and_many_keys_survive() {
    // Records begin and end anywhere in a block, and go over many of them.
    let large = (0..4).map(|i| (vec![i], noise(1_500_000 + usize::from(i) * 77_777, i.into())));
    let small = (0..30_000_u32).map(|i| (i.to_be_bytes().to_vec(), vec![b'v'; (i % 50) as usize]));
    let largest = (vec![b'k'; 4 << 10], vec![1; raftlet_machine::limits::VALUE_BYTES_MAX]);
    check(&full(5, 1_000, map(large.chain(small).chain([largest])), &noise(700_000, 1)));
}

#[test]
fn a_block_that_is_just_full_is_no_special_case() {
    use crate::state_machine::snapshot::block::DATA_BYTES_MAX;
    for bytes in [DATA_BYTES_MAX - 1, DATA_BYTES_MAX, DATA_BYTES_MAX + 1, 2 * DATA_BYTES_MAX] {
        // 8 bytes of lengths and 1 of the key.
        check(&full(1, 9, map([(vec![1], noise(bytes - 9, 3)), (vec![2], vec![])]), &noise(bytes, 4)));
    }
}

#[test]
fn a_rewritten_snapshot_has_the_new_header_and_the_old_content() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let mut state = full(5, 1_000, map([(vec![1], noise(500_000, 3))]), b"module");
    std::fs::write(&from, file_of(&state)).unwrap();
    let summary = rewrite(&from, &to, |header| {
        header.cluster = 9;
        header.membership = Default::default();
    });
    (state.cluster, state.membership) = (9, Default::default());
    assert_eq!(summary.unwrap(), verify(&to).unwrap());
    let bytes = std::fs::read(&to).unwrap();
    assert_same(&state, &read(&bytes).unwrap());
    assert_eq!(verify(&to).unwrap().digest, digest::content(&state));
    assert_ne!(verify(&to).unwrap().header.id, verify(&from).unwrap().header.id);

    std::fs::write(&from, &bytes[..bytes.len() - 1]).unwrap();
    let error = rewrite(&from, &dir.path().join("third"), |_| {}).unwrap_err();
    assert!(matches!(&error, SnapshotError::Damaged { path, .. } if *path == from), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left of a copy that failed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_state_survives(
        entries in prop::collection::btree_map(prop::collection::vec(any::<u8>(), 0..20), prop::collection::vec(any::<u8>(), 0..3_000), 0..300),
        module in prop::collection::vec(any::<u8>(), 1..2_000),
    ) {
        check(&full(3, 17, map(entries), &module));
    }
}
