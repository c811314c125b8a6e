//! Bits that flip in the files of a stopped log, each in its turn: a start refuses and names the file or the entry, or
//! everything that was acknowledged is there. Never anything else, and looking into such a log never panics.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use openraft::RaftLogReader;
use openraft::storage::RaftLogStorage;

use super::support::{append, entries, options, read};
use crate::log::{LogOptions, SledLog, inspect};
use crate::raft::codec::log_id;
use crate::raft::types::Vote;

/// A small generator (splitmix64) is enough, and its seed is printed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// A log with groups, large entries, a purge, a truncation and votes, opened and closed a few times.
async fn make(dir: &Path, options: &LogOptions) {
    let open = || SledLog::open(dir, options.clone()).unwrap();
    let mut log = open();
    log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    for first in (0..60).step_by(5) {
        append(&log, entries(1, first..first + 5, 200)).await;
    }
    append(&log, entries(1, 60..70, 3_000)).await;
    log.close().await.unwrap();
    let mut log = open();
    log.truncate_after(Some(log_id(1, 65))).await.unwrap();
    log.save_vote(&Vote::new_committed(3, 2)).await.unwrap();
    append(&log, entries(3, 66..80, 700)).await;
    log.purge(log_id(1, 20)).await.unwrap();
    log.close().await.unwrap();
    let log = open();
    append(&log, entries(3, 80..90, 100)).await;
    log.close().await.unwrap();
}

async fn check(mut log: SledLog) -> Result<(), String> {
    let expected =
        [entries(1, 21..60, 200), entries(1, 60..66, 3_000), entries(3, 66..80, 700), entries(3, 80..90, 100)].concat();
    let found = log.clone().try_get_log_entries(0..u64::MAX).await.map_err(|e| format!("reading: {e}"))?;
    if found != expected || read(&log, 0..u64::MAX).await != expected {
        return Err(format!("{} entries of {}, or others", found.len(), expected.len()));
    }
    let (vote, state) = (log.read_vote().await.unwrap(), log.get_log_state().await.unwrap());
    if vote != Some(Vote::new_committed(3, 2)) || state.last_purged_log_id != Some(log_id(1, 20)) {
        return Err(format!("vote {vote:?}, {state:?}"));
    }
    append(&log, entries(3, 90..91, 50)).await;
    log.close().await.map_err(|e| format!("closing: {e}"))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for file in fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()) {
        if file.is_dir() { files.extend(self::files(&file)) } else { files.push(file) }
    }
    files.retain(|file| !file.ends_with("lock"));
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(|f| f.unwrap().path()) {
        let target = to.join(file.file_name().unwrap());
        if file.is_dir() { copy(&file, &target) } else { fs::copy(&file, target).map(drop).unwrap() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_refused_by_name_or_does_no_harm() {
    let (seed, flips) = (number("RAFTLET_SEED", 1), number("RAFTLET_LOG_FLIPS", 150));
    println!("RAFTLET_SEED={seed} RAFTLET_LOG_FLIPS={flips}");
    let mut random = Random(seed);
    let temporary = tempfile::tempdir().unwrap();
    let whole = temporary.path().join("whole");
    make(&whole, &options()).await;
    let all = files(&whole);
    for name in ["db", "conf", "snap.", "watermark", "log.json"] {
        let named = |file: &PathBuf| file.file_name().unwrap().to_string_lossy().starts_with(name);
        assert!(all.iter().any(named), "no {name} in {all:?}");
    }
    let (mut refused, mut whole_ones) = (0, 0);
    for flip in 0..flips {
        let dir = temporary.path().join(format!("flip-{flip}"));
        copy(&whole, &dir);
        // Most of it is in one file; the others have their turns.
        let file = if random.below(2) == 0 {
            whole.join("sled/db")
        } else {
            all[random.below(all.len() as u64) as usize].clone()
        };
        let file = dir.join(file.strip_prefix(&whole).unwrap());
        let mut bytes = fs::read(&file).unwrap();
        let (at, bit) = (random.below(bytes.len() as u64) as usize, random.below(8));
        bytes[at] ^= 1 << bit;
        fs::write(&file, bytes).unwrap();
        let what = format!("flip {flip}: bit {bit} of byte {at} in {}", file.display());
        let looked = dir.clone();
        let opening = tokio::task::spawn_blocking(move || {
            let report = inspect(&looked, 0..u64::MAX, |_| {});
            (report, SledLog::open(&looked, options()))
        });
        let opened = tokio::time::timeout(Duration::from_secs(60), opening).await;
        let (report, opened) =
            opened.unwrap_or_else(|_| panic!("{what}: hangs")).unwrap_or_else(|e| panic!("{what}: {e}"));
        match opened {
            Ok(log) => {
                check(log).await.unwrap_or_else(|why| panic!("{what}: opened with {why}"));
                whole_ones += 1;
            }
            Err(e) => {
                let text = e.to_string();
                let named = ["entry ", "sled", "log.json", "watermark", "value '", "commit "];
                assert!(named.iter().any(|name| text.contains(name)), "{what}: {text}");
                let seen = report.map_or(true, |report| !report.damage.is_empty());
                assert!(seen, "{what}: refused ({text}), but nothing was seen by an inspection");
                refused += 1;
            }
        }
        fs::remove_dir_all(&dir).unwrap();
    }
    println!("{refused} refused, {whole_ones} whole");
    assert!(refused > 0 && whole_ones > 0);
}
