//! The folder: what is kept, what is deleted, what is set aside, and what comes in.

use std::fs;
use std::io::Write;
use std::path::Path;

use super::*;
use crate::state_machine::snapshot::{Incoming, SnapshotError, Snapshots};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir.join("snapshots"))
        .unwrap()
        .map(|file| file.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

fn indices(snapshots: &Snapshots) -> Vec<u64> {
    snapshots.kept().iter().map(|file| file.meta.last_log_id.unwrap().index).collect()
}

fn state(index: u64) -> Published {
    full(2, index, map([(vec![1], index.to_le_bytes().to_vec())]), b"module")
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn the_two_newest_are_kept_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path()).unwrap();
    assert!(snapshots.kept().is_empty());
    let oldest = snapshots.build(&state(10)).unwrap();
    for index in [20, 30] {
        snapshots.build(&state(index)).unwrap();
    }
    assert_eq!(indices(&snapshots), [30, 20]);
    assert_eq!(names(dir.path()).len(), 2);
    // Whoever reads one that was deleted meanwhile reads it to its end.
    assert_eq!(entries(&snapshots.load(&oldest).unwrap().map), entries(&state(10).map));
    // The same state again is the same file.
    let again = snapshots.build(&state(30)).unwrap();
    assert_eq!(again.path, snapshots.kept()[0].path);

    let reopened = Snapshots::open(dir.path()).unwrap();
    assert_eq!(indices(&reopened), [30, 20]);
    let loaded = reopened.load(&reopened.kept()[0]).unwrap();
    assert_eq!((loaded.header.last, entries(&loaded.map)), (log_id(2, 30), entries(&state(30).map)));
    assert_eq!(reopened.kept()[0].bytes, fs::metadata(&reopened.kept()[0].path).unwrap().len());
}

#[test]
fn an_empty_state_has_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path()).unwrap();
    let nothing = Published { applied: None, ..empty(0, 0) };
    assert!(matches!(snapshots.build(&nothing), Err(SnapshotError::Io { .. })));
    assert!(names(dir.path()).is_empty());
}

#[test]
fn damaged_ones_are_set_aside_and_leftovers_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path()).unwrap();
    for index in [20, 30] {
        snapshots.build(&state(index)).unwrap();
    }
    let newest = snapshots.kept()[0].path.clone();
    let name = newest.file_name().unwrap().to_str().unwrap().to_owned();
    flip(&newest);
    fs::write(dir.path().join(format!("snapshots/{name}.building")), "half").unwrap();
    let reopened = Snapshots::open(dir.path()).unwrap();
    assert_eq!(indices(&reopened), [20]);
    assert!(names(dir.path()).contains(&format!("damaged-{name}")));
    assert_eq!(names(dir.path()).len(), 2);
    assert_eq!(reopened.gap(Some(20)), None);

    // One snapshot's bytes under another's name.
    let (good, other) = (reopened.kept()[0].path.clone(), dir.path().join("snapshots").join(&name));
    fs::rename(good, &other).unwrap();
    let reopened = Snapshots::open(dir.path()).unwrap();
    assert!(indices(&reopened).is_empty());
    let gap = reopened.gap(Some(20)).unwrap();
    assert_eq!((gap.purged, gap.snapshot), (20, None));
    let text = gap.to_string();
    assert!(text.contains(&format!("damaged-{name}")) && text.contains("entry 20"), "{text}");
}

#[test]
fn a_gap_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path()).unwrap();
    assert_eq!(snapshots.gap(None), None);
    assert!(snapshots.gap(Some(1)).is_some());
    snapshots.build(&state(20)).unwrap();
    assert_eq!(snapshots.gap(None), None);
    assert_eq!(snapshots.gap(Some(19)), None);
    assert_eq!(snapshots.gap(Some(20)), None);
    assert_eq!(snapshots.gap(Some(21)).unwrap().snapshot, Some(20));
}

/// A snapshot as it comes from a peer.
fn fetched(into: &Snapshots, index: u64) -> (String, Vec<u8>, Incoming) {
    let dir = tempfile::tempdir().unwrap();
    let file = Snapshots::open(dir.path()).unwrap().build(&state(index)).unwrap();
    let name = file.path.file_name().unwrap().to_str().unwrap().to_owned();
    let incoming = into.incoming(&name).unwrap();
    (name, fs::read(file.path).unwrap(), incoming)
}

#[test]
fn a_fetched_one_is_adopted_whole_and_resumed_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path()).unwrap();
    snapshots.build(&state(20)).unwrap();
    let (name, bytes, mut incoming) = fetched(&snapshots, 40);
    assert_eq!(incoming.have, 0);
    incoming.file.write_all(&bytes[..100]).unwrap();
    drop(incoming);

    let snapshots = Snapshots::open(dir.path()).unwrap();
    let mut incoming = snapshots.incoming(&name).unwrap();
    assert_eq!(incoming.have, 100);
    use std::io::Seek;
    incoming.file.seek(std::io::SeekFrom::Start(100)).unwrap();
    incoming.file.write_all(&bytes[100..]).unwrap();
    let file = snapshots.adopt(incoming).unwrap();
    assert_eq!((indices(&snapshots), file.bytes), (vec![40, 20], bytes.len() as u64));
    assert_eq!(indices(&Snapshots::open(dir.path()).unwrap()), [40, 20]);

    // Another one of the same entry takes its place and leaves the older one.
    let (_, bytes, mut incoming) = fetched(&snapshots, 40);
    incoming.file.write_all(&bytes).unwrap();
    let second = snapshots.adopt(incoming).unwrap();
    assert_ne!(second.path, file.path);
    assert_eq!(indices(&snapshots), [40, 20]);
    assert_eq!(snapshots.kept()[0].path, second.path);
    assert_eq!(names(dir.path()).len(), 2);
}

#[test]
fn a_damaged_or_old_fetch_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path()).unwrap();
    for index in [20, 30] {
        snapshots.build(&state(index)).unwrap();
    }
    let (_, mut bytes, mut incoming) = fetched(&snapshots, 40);
    bytes[50] ^= 1;
    incoming.file.write_all(&bytes).unwrap();
    assert!(matches!(snapshots.adopt(incoming), Err(SnapshotError::Damaged { .. })));
    let (_, bytes, mut incoming) = fetched(&snapshots, 10);
    incoming.file.write_all(&bytes).unwrap();
    assert!(matches!(snapshots.adopt(incoming), Err(SnapshotError::Obsolete { .. })));
    assert_eq!((indices(&snapshots), names(dir.path()).len()), (vec![30, 20], 2));
    // A newer fetch voids an older one's beginning.
    let (first, _, _) = fetched(&snapshots, 50);
    let (second, _, _) = fetched(&snapshots, 60);
    assert!(names(dir.path()).contains(&format!("{second}.partial")));
    assert!(!names(dir.path()).contains(&format!("{first}.partial")));
}

#[test]
fn names_from_peers_stay_in_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path()).unwrap();
    let good = "0000000000000001-000000000000000a-0123abcd.snapshot";
    assert!(snapshots.incoming(good).is_ok());
    for bad in [
        "",
        "../../identity.json",
        "x.snapshot",
        "0000000000000001-000000000000000a-0123abcd",
        "0000000000000001-000000000000000A-0123abcd.snapshot",
        "000000000000001-0000000000000000a-0123abcd.snapshot",
        "0000000000000001-000000000000000a-0123abcd-0123abcd.snapshot",
        "0000000000000001-00000000000/000a-0123abcd.snapshot",
    ] {
        assert!(snapshots.incoming(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_is_set_aside_is_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path()).unwrap();
    for index in [20, 30] {
        snapshots.build(&state(index)).unwrap();
    }
    snapshots.set_aside(&snapshots.kept()[0], "a test").unwrap();
    assert_eq!(indices(&snapshots), [20]);
    assert_eq!(indices(&Snapshots::open(dir.path()).unwrap()), [20]);
}
