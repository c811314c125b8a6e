//! A log that lives long: disk use that stays bounded while entries are purged, commits that don't wait for that, and a
//! large log that is opened in little time and memory. Small by default; the variables make them as large as wanted.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use openraft::storage::RaftLogStorage;

use super::support::{entry, queue};
use crate::log::{LogOptions, SledLog};
use crate::raft::codec::log_id;
use crate::raft::types::Entry;

/// Bytes of a variable, in MiB.
fn mib(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number of MiB")) << 20
}

/// What the files in a folder take on the disk.
fn disk_bytes(dir: &Path) -> u64 {
    let mut bytes = 0;
    for file in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        // sled renames and deletes its snapshots meanwhile.
        let Ok(meta) = file.metadata() else { continue };
        bytes += if meta.is_dir() { disk_bytes(&file.path()) } else { meta.blocks() * 512 };
    }
    bytes
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times.get(times.len() * percent / 100).copied().unwrap_or_default()
}

/// Entries as a busy cluster has them: most of a few KiB, some large, one in a hundred of a megabyte.
fn payload_bytes(index: u64) -> usize {
    match index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57 {
        0 => 1 << 20,
        1..12 => 60_000,
        12..60 => 12_000,
        _ => 3_000,
    }
}

/// Appends entries until they have this many bytes, eight at once; tells how long each append took.
struct Load {
    log: SledLog,
    next: u64,
    /// Bytes of entries up to each index that is still in the log.
    written: Vec<(u64, u64)>,
    bytes: u64,
    payload: fn(u64) -> usize,
}

impl Load {
    fn new(log: SledLog, payload: fn(u64) -> usize) -> Load {
        Load { log, next: 0, written: Vec::new(), bytes: 0, payload }
    }

    async fn append(&mut self) -> Duration {
        let entries: Vec<Entry> = (self.next..self.next + 8).map(|i| entry(1, i, (self.payload)(i))).collect();
        self.bytes += (self.next..self.next + 8).map(|i| (self.payload)(i) as u64).sum::<u64>();
        self.next += 8;
        self.written.push((self.next, self.bytes));
        let started = Instant::now();
        queue(&self.log, entries).await.await.unwrap().unwrap();
        started.elapsed()
    }

    /// Purges what is older than the newest `keep` bytes.
    async fn purge(&mut self, keep: u64) {
        let old = self.written.partition_point(|(_, bytes)| bytes + keep <= self.bytes);
        let Some((end, _)) = self.written.drain(..old).next_back() else { return };
        self.log.purge(log_id(1, end - 1)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_use_stays_bounded_while_old_entries_are_purged() {
    let total = mib("RAFTLET_LOG_WRITE_MIB", 160);
    let live = mib("RAFTLET_LOG_LIVE_MIB", 16);
    let dir = tempfile::tempdir().unwrap();
    let log = SledLog::open(dir.path(), LogOptions::default()).unwrap();
    let metrics = log.metrics();
    let mut load = Load::new(log.clone(), payload_bytes);
    let (mut peak, mut since_look, mut since_purge) = (0, 0, 0);
    let (mut quiet, mut purging) = (Vec::new(), Vec::new());
    let started = Instant::now();
    while load.bytes < total {
        let (before, deleted) = (load.bytes, metrics.values_purged.load(Relaxed));
        let time = load.append().await;
        let busy = metrics.values_purged.load(Relaxed) != deleted;
        if busy { &mut purging } else { &mut quiet }.push(time);
        since_look += load.bytes - before;
        since_purge += load.bytes - before;
        if since_purge > live / 2 {
            since_purge = 0;
            load.purge(live / 2).await;
        }
        if since_look > 4 << 20 {
            since_look = 0;
            peak = peak.max(disk_bytes(dir.path()));
        }
    }
    let time = started.elapsed();
    log.close().await.unwrap();
    let end = disk_bytes(dir.path());
    println!(
        "{} MiB in {time:?}, at most {} MiB live: folder {} MiB at its peak, {} MiB at the end; \
         p50/p99/max of {} appends {:?}/{:?}/{:?}, of {} appends beside deletions {:?}/{:?}/{:?}",
        load.bytes >> 20,
        live >> 20,
        peak >> 20,
        end >> 20,
        quiet.len(),
        percentile(&mut quiet, 50),
        percentile(&mut quiet, 99),
        quiet.last().unwrap(),
        purging.len(),
        percentile(&mut purging, 50),
        percentile(&mut purging, 99),
        purging.last().unwrap(),
    );
    assert!(metrics.values_purged.load(Relaxed) > 0);
    // Some segments of 8 MiB are always half empty.
    let bound = 5 * live + (64 << 20);
    assert!(peak <= bound, "{} MiB at the peak with {} MiB live", peak >> 20, live >> 20);
}

/// Resident memory now and at its peak, of this process.
fn memory() -> (u64, u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let field = |name| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).expect("a field of proc(5)");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// Set in the process that only opens.
const OPEN_DIR: &str = "RAFTLET_LOG_OPEN_DIR";

#[tokio::test(flavor = "multi_thread")]
async fn a_large_log_is_opened_in_little_memory() {
    if let Some(dir) = std::env::var_os(OPEN_DIR) {
        let (before, _) = memory();
        let started = Instant::now();
        let log = SledLog::open(Path::new(&dir), LogOptions::default()).unwrap();
        let (_, peak) = memory();
        let bytes = log.metrics().bytes_at_open.load(Relaxed);
        println!("opened {bytes} in_ms {} memory {}", started.elapsed().as_millis(), peak - before);
        log.close().await.unwrap();
        return;
    }
    let total = mib("RAFTLET_LOG_OPEN_MIB", 640);
    let dir = tempfile::tempdir().unwrap();
    let log = SledLog::open(dir.path(), LogOptions::default()).unwrap();
    let mut load = Load::new(
        log.clone(),
        if std::env::var_os("RAFTLET_LOG_LARGE").is_some() { |_| 200_000 } else { payload_bytes },
    );
    let started = Instant::now();
    while load.bytes < total {
        load.append().await;
    }
    log.close().await.unwrap();
    println!(
        "written in {:?}, {} MiB on disk, this process' peak {} MiB",
        started.elapsed(),
        disk_bytes(dir.path()) >> 20,
        memory().1 >> 20
    );
    let name = "log::tests::endurance::a_large_log_is_opened_in_little_memory";
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", name, "--nocapture"]).env(OPEN_DIR, dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    let line = text.lines().find(|l| l.starts_with("opened ")).unwrap_or_else(|| panic!("{output:?}"));
    let words: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(words[0] >= total, "{line}");
    // 200 MiB however large the log is. Without the touching in `walk.rs` it is about 60 % of the log.
    assert!(words[2] < 256 << 20, "{} MiB of memory to open {} MiB", words[2] >> 20, total >> 20);
}
