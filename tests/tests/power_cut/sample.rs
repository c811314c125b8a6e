//! The method on programs that are known to be right or wrong: it must find each mistake, and nothing in the right ones.

use std::fs;
use std::path::Path;
use std::process::Command;

use fastrand::Rng;
use raftlet_tests::disk_replay::{MODES, Recording};
use raftlet_tests::seed;

/// Builds of each cut and mode.
const SEEDS: u64 = 3;

/// Runs the sample above the recorder; how many of all cuts lost an acknowledged number, and how many there were.
fn losses(way: &str) -> (usize, usize) {
    let mut rng = seed::rng(way);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (root, out) = (folder.path().join("root"), folder.path().join("record"));
    fs::create_dir(&root).expect("a new folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_power_sample"));
    let output = command.arg(way).arg(root.join("sample")).envs(Recording::environment(&root, &out)).output();
    let output = output.expect("the sample runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let acknowledged: Vec<(u64, u64)> = String::from_utf8(output.stdout)
        .expect("the sample writes ASCII")
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(number, time)| (number.parse().expect("a number"), time.parse().expect("a time")))
        .collect();
    assert_eq!(acknowledged.len(), 8);
    let mut recording = Recording::new(&root);
    recording.add_run(&out, "sample").expect("the record is whole");
    let (mut lost, mut cuts) = (0, 0);
    let mut replay = recording.replay();
    for position in 0..=recording.records.len() {
        replay.advance(position);
        let time = recording.time_of(position);
        let expected = acknowledged.iter().filter(|(_, at)| *at < time).map(|(number, _)| *number).max().unwrap_or(0);
        for (mode, _) in MODES.iter().flat_map(|mode| (0..SEEDS).map(move |seed| (mode, seed))) {
            let target = tempfile::tempdir().expect("a temporary folder");
            replay.build(*mode, &mut Rng::with_seed(rng.u64(..)), target.path()).expect("the folder can be written");
            cuts += 1;
            lost += usize::from(!holds(&target.path().join("sample"), way, expected));
        }
    }
    println!("{way}: {lost} of {cuts} cuts lost what was acknowledged");
    (lost, cuts)
}

/// Whether the numbers up to this one are there: all of them in one file, or the last or a later one in a file of its own.
fn holds(folder: &Path, way: &str, expected: u64) -> bool {
    if expected == 0 {
        return true;
    }
    if way.starts_with("append") {
        let bytes = fs::read(folder.join("numbers")).unwrap_or_default();
        (1..=expected).all(|n| {
            let value = n.to_le_bytes().repeat(700);
            let from = (n as usize - 1) * value.len();
            bytes.get(from..from + value.len()) == Some(&value)
        })
    } else {
        let bytes = fs::read(folder.join("number")).unwrap_or_default();
        (expected..=8).any(|n| bytes == n.to_le_bytes().repeat(700))
    }
}

#[test]
fn right_programs_lose_nothing() {
    for way in ["append", "replace"] {
        assert_eq!(losses(way).0, 0, "{way}");
    }
}

#[test]
fn each_mistake_is_found() {
    let ways = ["append-acknowledged-early", "append-without-folder-sync"];
    let more = ["replace-without-file-sync", "replace-without-folder-sync"];
    for way in ways.into_iter().chain(more) {
        assert!(losses(way).0 > 0, "{way} was not caught");
    }
}
