use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use fastrand::Rng;

use super::format::*;
use super::record::{Operation, Record, Synced, parse};
use super::*;

const ROOT: &str = "/r";

fn recording(operations: &[Operation]) -> Recording {
    let mut recording = Recording::new(Path::new(ROOT));
    let record = |(at, operation): (usize, &Operation)| Record { time_ns: at as u64, operation: operation.clone() };
    recording.records = operations.iter().enumerate().map(record).collect();
    recording
}

fn open(handle: u64, name: &str, created: bool) -> Operation {
    Operation::Open { handle, path: Path::new(ROOT).join(name), created, truncated: false }
}

fn write(handle: u64, offset: u64, byte: u8, bytes: usize) -> Operation {
    Operation::Write { handle, offset, data: vec![byte; bytes].into() }
}

fn sync(token: u64, what: Synced) -> [Operation; 2] {
    [Operation::SyncStart { token, what }, Operation::SyncEnd { token, data_only: true }]
}

fn sync_root(token: u64) -> [Operation; 2] {
    sync(token, Synced::Folder(ROOT.into()))
}

fn rename(from: &str, to: &str) -> Operation {
    Operation::Rename { from: Path::new(ROOT).join(from), to: Path::new(ROOT).join(to) }
}

/// What the file `a` holds after a cut at the end; all that was found over many seeds.
fn found(recording: &Recording, mode: Mode, name: &str) -> BTreeSet<Option<Vec<u8>>> {
    let mut replay = recording.replay();
    replay.advance(recording.records.len());
    let build = |seed| {
        let folder = tempfile::tempdir().unwrap();
        replay.build(mode, &mut Rng::with_seed(seed), folder.path()).unwrap();
        fs::read(folder.path().join(name)).ok()
    };
    (0..200).map(build).collect()
}

fn only(bytes: &[u8]) -> BTreeSet<Option<Vec<u8>>> {
    BTreeSet::from([Some(bytes.to_vec())])
}

#[test]
fn a_synced_file_without_a_synced_name_may_be_missing() {
    let mut operations = vec![open(1, "a", true), write(1, 0, 7, 3)];
    operations.extend(sync(1, Synced::File(1)));
    assert_eq!(found(&recording(&operations), Mode::Nothing, "a"), BTreeSet::from([None]));
    assert_eq!(found(&recording(&operations), Mode::Random, "a"), BTreeSet::from([None, Some(vec![7; 3])]));
    operations.extend(sync_root(2));
    for mode in MODES {
        assert_eq!(found(&recording(&operations), mode, "a"), only(&[7; 3]), "{mode:?}");
    }
}

#[test]
fn what_was_written_after_a_sync_began_is_not_covered_by_it() {
    let [start, end] = sync(1, Synced::File(1));
    let mut operations = vec![open(1, "a", true)];
    operations.extend(sync_root(9));
    operations.extend([write(1, 0, 1, 512), start, write(1, 0, 2, 512), end]);
    assert_eq!(found(&recording(&operations), Mode::Nothing, "a"), only(&[1; 512]));
    assert_eq!(found(&recording(&operations), Mode::Everything, "a"), only(&[2; 512]));
    let both = BTreeSet::from([Some(vec![1; 512]), Some(vec![2; 512])]);
    assert_eq!(found(&recording(&operations), Mode::Random, "a"), both);
    // A sync that hasn't returned covers nothing.
    operations.pop();
    assert_eq!(found(&recording(&operations), Mode::Nothing, "a"), only(&[]));
}

#[test]
fn a_fdatasync_that_is_to_be_ignored_covers_nothing() {
    let mut operations = vec![open(1, "a", true)];
    operations.extend([Operation::SyncStart { token: 1, what: Synced::Folder(ROOT.into()) }]);
    operations.extend([Operation::SyncEnd { token: 1, data_only: false }, write(1, 0, 1, 5)]);
    operations.extend(sync(2, Synced::File(1)));
    assert_eq!(found(&recording(&operations), Mode::Nothing, "a"), only(&[1; 5]));
    assert_eq!(found(&recording(&operations).ignoring_data_syncs(), Mode::Nothing, "a"), only(&[]));
}

#[test]
fn a_write_is_torn_between_sectors_and_only_there() {
    let mut operations = vec![open(1, "a", true), write(1, 0, 1, 4 * 512)];
    operations.extend(sync(1, Synced::File(1)));
    operations.extend(sync_root(2));
    operations.push(write(1, 256, 2, 2 * 512));
    let found = found(&recording(&operations), Mode::Random, "a");
    for content in &found {
        let content = content.as_ref().expect("its name is durable");
        assert_eq!(content.len(), 4 * 512);
        for (sector, from, to) in [(0, 256, 512), (1, 0, 512), (2, 0, 256)] {
            let part = &content[sector * 512 + from..sector * 512 + to];
            assert!(part.iter().all(|b| b == &part[0]), "sector {sector} is torn inside");
        }
        assert!(content[..256].iter().chain(&content[2 * 512 + 256..]).all(|b| *b == 1), "more than was written");
    }
    assert_eq!(found.len(), 8, "each of three sectors may have it or not");
}

#[test]
fn a_sector_has_the_older_writes_to_it_too() {
    let mut operations = vec![open(1, "a", true)];
    operations.extend(sync_root(1));
    operations.extend([write(1, 0, 1, 10), write(1, 10, 2, 10)]);
    let second = [vec![1; 10], vec![2; 10]].concat();
    let found = found(&recording(&operations), Mode::Newest, "a");
    assert!(found.contains(&Some(second)), "{found:?}");
    assert!(!found.contains(&Some([vec![0; 10], vec![2; 10]].concat())), "a page is written as it was");
}

#[test]
fn the_newest_may_survive_alone() {
    let mut operations = vec![open(1, "a", true)];
    operations.extend(sync_root(1));
    operations.extend([write(1, 0, 1, 512), write(1, 512, 2, 512)]);
    let newest = [vec![0; 512], vec![2; 512]].concat();
    assert!(found(&recording(&operations), Mode::Newest, "a").contains(&Some(newest)));
}

#[test]
fn a_length_may_be_there_without_its_data_and_a_cut_may_be_lost() {
    let mut operations = vec![open(1, "a", true), write(1, 0, 1, 1024)];
    operations.extend(sync(1, Synced::File(1)));
    operations.extend(sync_root(2));
    operations.extend([Operation::SetLen { handle: 1, length: 512 }, write(1, 512, 3, 1024)]);
    let found = found(&recording(&operations), Mode::Random, "a");
    let lengths: BTreeSet<usize> = found.iter().flatten().map(Vec::len).collect();
    assert_eq!(lengths, BTreeSet::from([512, 1024, 1536]));
    assert!(found.contains(&Some([vec![1; 512], vec![0; 1024]].concat())), "zeros after the new length");
    assert!(found.contains(&Some(vec![1; 1024])), "as it was");
}

#[test]
fn a_rename_is_there_or_not() {
    let mut operations = vec![open(1, "a", true), write(1, 0, 1, 5)];
    operations.extend(sync(1, Synced::File(1)));
    operations.extend(sync_root(2));
    operations.extend([open(2, "a.new", true), write(2, 0, 2, 5)]);
    operations.extend(sync(3, Synced::File(2)));
    operations.push(rename("a.new", "a"));
    let both = BTreeSet::from([Some(vec![1; 5]), Some(vec![2; 5])]);
    assert_eq!(found(&recording(&operations), Mode::Random, "a"), both);
    operations.extend(sync_root(4));
    assert_eq!(found(&recording(&operations), Mode::Nothing, "a"), only(&[2; 5]));
    assert_eq!(found(&recording(&operations), Mode::Random, "a.new"), BTreeSet::from([None]));
}

#[test]
fn a_file_in_a_folder_without_a_synced_name_goes_with_it() {
    let folder = Path::new(ROOT).join("f");
    let mut operations = vec![Operation::Mkdir { path: folder.clone() }, open(1, "f/a", true), write(1, 0, 1, 5)];
    operations.extend(sync(1, Synced::File(1)));
    operations.extend(sync(2, Synced::Folder(folder)));
    assert_eq!(found(&recording(&operations), Mode::Nothing, "f/a"), BTreeSet::from([None]));
    operations.extend(sync_root(3));
    assert_eq!(found(&recording(&operations), Mode::Nothing, "f/a"), only(&[1; 5]));
}

#[test]
fn a_rename_between_folders_never_loses_the_file() {
    let folder = Path::new(ROOT).join("f");
    let mut operations = vec![Operation::Mkdir { path: folder.clone() }, open(1, "f/a", true), write(1, 0, 1, 5)];
    operations.extend(sync(1, Synced::File(1)));
    operations.extend(sync(2, Synced::Folder(folder)));
    operations.extend(sync_root(3));
    operations.push(rename("f/a", "b"));
    let old_folder_synced = sync(4, Synced::Folder(Path::new(ROOT).join("f")));
    for more in [&[][..], &old_folder_synced] {
        let operations = [&operations, more].concat();
        for mode in MODES {
            let both = ["f/a", "b"].map(|name| found(&recording(&operations), mode, name));
            let [old, new] = both.map(|found| found.into_iter().flatten().collect::<BTreeSet<_>>());
            assert!(old.union(&new).eq([&vec![1; 5]]), "{mode:?}");
        }
        let disk = recording(&operations).disk_at(operations.len());
        for (seed, mode) in (0..100).flat_map(|seed| MODES.map(|mode| (seed, mode))) {
            let target = tempfile::tempdir().unwrap();
            build::build(&disk, mode, &mut Rng::with_seed(seed), target.path()).unwrap();
            let there = ["f/a", "b"].map(|name| target.path().join(name).exists());
            assert_ne!(there, [false, false], "{mode:?}, seed {seed}, {} operations", operations.len());
        }
    }
}

/// A record's bytes.
fn raw(kind: u8, flags: u8, handle: u64, a: u64, path: &str, data: &[u8]) -> Vec<u8> {
    let bytes = (HEADER_BYTES + path.len() + data.len()) as u32;
    let header = Header { bytes, kind, flags, path_bytes: path.len() as u16, time_ns: 1, handle, a, b: 0 };
    [&header.to_bytes()[..], path.as_bytes(), data].concat()
}

fn done(result: i64) -> Vec<u8> {
    raw(DONE, 0, 0, result as u64, "", b"")
}

#[test]
fn results_are_heeded_and_a_torn_end_is_left_out() {
    let opened = raw(OPEN, CREATED, 1, 0, "/r/a", b"");
    let failed = raw(UNLINK, 0, 0, 0, "/r/b", b"");
    let written = raw(WRITE, 0, 1, 0, "", b"abcdef");
    let all = [opened, done(3), failed, done(-1), written, done(4)].concat();
    let parsed = parse(&all).unwrap();
    assert!(!parsed.last_is_open);
    let operations: Vec<Operation> = parsed.records.into_iter().map(|r| r.operation).collect();
    let data = b"abcd".as_slice().into();
    assert_eq!(operations, [open(1, "a", true), Operation::Write { handle: 1, offset: 0, data }]);
    // Without the last result, or with half of it; then without the end of the write's own record.
    for missing in 1..=HEADER_BYTES {
        let parsed = parse(&all[..all.len() - missing]).unwrap();
        assert_eq!((parsed.records.len(), parsed.last_is_open), (2, true));
    }
    let parsed = parse(&all[..all.len() - HEADER_BYTES - 1]).unwrap();
    assert_eq!((parsed.records.len(), parsed.last_is_open), (1, false));
}

#[test]
fn a_record_that_a_replay_cannot_show_is_refused() {
    let error = parse(&raw(UNSUPPORTED, 0, 0, 0, "a symbolic link", b"")).unwrap_err();
    assert!(error.contains("a symbolic link"), "{error}");
    assert!(parse(&raw(99, 0, 0, 0, "", b"")).is_err());
    assert!(parse(&done(0)).is_err());
}

#[test]
fn an_operation_that_was_not_recorded_is_found() {
    let real = tempfile::tempdir().unwrap();
    fs::create_dir(real.path().join("n")).unwrap();
    fs::write(real.path().join("n/a"), "abc").unwrap();
    let below = |name: &str| real.path().join(name);
    let mut operations = vec![Operation::Mkdir { path: below("n") }];
    let compare = |operations: &[Operation]| {
        let mut disk = Disk::new(real.path());
        operations.iter().for_each(|operation| disk.apply(operation));
        disk.compare(real.path(), "n")
    };
    assert!(compare(&[]).unwrap_err().contains("did not see"));
    assert!(compare(&operations).unwrap_err().contains("\"a\""));
    operations.push(Operation::Open { handle: 1, path: below("n/a"), created: true, truncated: false });
    assert!(compare(&operations).unwrap_err().contains("(3, 0)"));
    operations.push(Operation::Write { handle: 1, offset: 0, data: b"abc".as_slice().into() });
    assert_eq!(compare(&operations), Ok(()));
}
