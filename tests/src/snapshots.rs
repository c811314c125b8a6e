//! What tests of snapshots share: the files in a node's folder, values that fill a log fast, and a node that is left so
//! far behind that only a snapshot helps it.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cluster::Cluster;
use crate::http::Client;
use crate::load::Fate;
use crate::wait;

pub const VALUE_BYTES: usize = 20_000;
/// For as many writes as make snapshots, on a busy machine.
pub const PROGRESS_WITHIN: Duration = Duration::from_secs(90);

/// A value that says which one it is and can't be compressed much.
pub fn value(number: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(number as u64);
    let mut value = format!("value {number} ").into_bytes();
    value.resize_with(VALUE_BYTES, || rng.u8(..));
    value
}

/// Writes the keys of these numbers through this node; all are acknowledged.
#[track_caller]
pub fn write(cluster: &Cluster, node: u64, numbers: Range<usize>) {
    let mut client = cluster.client(node);
    for number in numbers {
        wait::until("a write is acknowledged", PROGRESS_WITHIN, || {
            let result = client.put(&format!("/kv/k{number}"), &value(number));
            (Fate::of(&result) == Fate::Acknowledged).then_some(())
        });
    }
}

/// Reads the keys of the numbers below `count`.
#[track_caller]
pub fn assert_values(client: &mut Client, count: usize) {
    for number in 0..count {
        let found = client.get(&format!("/kv/k{number}")).expect("an answer");
        assert!(found.status == 200 && found.body == value(number), "key {number}: {found}");
    }
}

/// Files in the node's folder of snapshots whose names are such, the newest first.
pub fn files(data: &Path, matches: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(folder) = fs::read_dir(data.join("snapshots")) else { return Vec::new() };
    let names = folder.map(|f| f.expect("the folder can be read").file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| matches(name)).collect();
    names.sort_by(|a, b| b.cmp(a));
    names.into_iter().map(|name| data.join("snapshots").join(name)).collect()
}

/// The snapshots that the node can use, the newest first.
pub fn whole(data: &Path) -> Vec<PathBuf> {
    files(data, |name| name.ends_with(".snapshot") && !name.starts_with("damaged-"))
}

/// Index of a snapshot's last entry: `{term:016x}-{index:016x}-...`.
#[track_caller]
pub fn index_of(path: &Path) -> u64 {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    u64::from_str_radix(name.split('-').nth(1).expect("an index"), 16).expect("hexadecimal")
}

/// Bytes of the partial file of a node that fetches.
pub fn partial_bytes(data: &Path) -> Option<u64> {
    let partial = files(data, |name| name.ends_with(".partial"));
    // It may have become a whole one meanwhile.
    partial.first().and_then(|path| fs::metadata(path).ok()).map(|meta| meta.len())
}

/// Damages a file; a second time repairs it.
#[track_caller]
pub fn flip_a_byte(path: &Path) {
    let mut bytes = fs::read(path).expect("the file can be read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).expect("the file can be written");
}

/// What a node's metrics say; it has to run.
#[track_caller]
pub fn metric(cluster: &Cluster, id: u64, name: &str) -> u64 {
    let text = cluster.client(id).get("/_/metrics").expect("metrics").body;
    let text = String::from_utf8_lossy(&text).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|l| l.parse::<f64>().ok()).unwrap_or_else(|| panic!("no metric {name} in {text}")) as u64
}

/// Entries up to here are not in the node's log any more.
#[track_caller]
pub fn purged(cluster: &Cluster, id: u64) -> u64 {
    metric(cluster, id, "raftlet_log_purged_index")
}

/// Writes through `writer` until all others but `down` have purged every entry that there is now. Keys have numbers
/// from `from`; returns how many there are then.
#[track_caller]
pub fn leave_behind(cluster: &Cluster, down: u64, writer: u64, from: usize) -> usize {
    /// Enough for a snapshot of some pieces.
    const NEW: usize = 120;
    const AT_ONCE: usize = 20;
    let there = cluster.status(writer).and_then(|s| s.last_log_index).expect("the writer has a log");
    let count = from + NEW;
    write(cluster, writer, from..count);
    // The same ones again: a state that grew with the log would put off the next snapshot each time.
    let mut again = (from..count).step_by(AT_ONCE).cycle();
    wait::until("the others have purged their logs", PROGRESS_WITHIN, || {
        let first = again.next().expect("a cycle has no end");
        write(cluster, writer, first..first + AT_ONCE);
        // Waited for, because it follows the snapshot; not for long, because only writes make the next one.
        let beyond = |id: u64| wait::poll(Duration::from_millis(300), || (purged(cluster, id) > there).then_some(()));
        cluster.ids().filter(|id| *id != down).all(|id| beyond(id).is_some()).then_some(count)
    })
}
