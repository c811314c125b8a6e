//! What is too large to be given to sled at once: at every moment in between, the folder is a log that was closed before.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use openraft::RaftLogReader;
use openraft::storage::RaftLogStorage;

use super::journal::killed;
use super::support::{Gate, append, entries, entry, open, options, queue, read, tamper};
use crate::log::{LogOptions, SledLog, inspect, keys};
use crate::raft::codec::log_id;
use crate::raft::types::{Entry, Vote};

/// A log whose folder is copied before each fdatasync: what a kill at that moment leaves.
struct Recorded {
    log: SledLog,
    copies: Arc<Mutex<Vec<tempfile::TempDir>>>,
}

fn recorded(dir: &Path) -> Recorded {
    let copies = Arc::new(Mutex::new(Vec::new()));
    let (to, from) = (copies.clone(), dir.to_owned());
    let copy = move || {
        to.lock().unwrap().push(killed(&from));
        Ok(())
    };
    let log = SledLog::open(dir, LogOptions { before_sync: Some(Arc::new(copy)), ..options() }).unwrap();
    Recorded { log, copies }
}

impl Recorded {
    fn copies(&self) -> Vec<tempfile::TempDir> {
        std::mem::take(&mut *self.copies.lock().unwrap())
    }
}

/// Each copy holds some first entries of these, and the vote with them.
async fn assert_prefixes(copies: &[tempfile::TempDir], expected: &[Entry], at_least: usize, vote: Option<Vote>) {
    for copy in copies {
        let report = inspect(copy.path(), 0..99, |_| {}).unwrap();
        assert_eq!(report.damage, [""; 0]);
        let mut log = open(copy.path());
        let found = read(&log, 0..u64::MAX).await;
        assert!(found.len() >= at_least, "{} of {at_least}", found.len());
        assert_eq!(found, expected[..found.len()]);
        if found.len() > at_least {
            assert_eq!(log.read_vote().await.unwrap(), vote);
        }
        // What is left of a part is not mixed with what takes its place.
        let next = found.len() as u64;
        append(&log, vec![entry(9, next, 2_500)]).await;
        assert_eq!(read(&log, next..next + 9).await, [entry(9, next, 2_500)]);
        log.close().await.unwrap();
        tamper(copy.path(), |db| {
            assert_eq!(db.range(keys::range(next, None)).count(), 3, "three chunks and nothing behind them");
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_entry_counts_when_all_of_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let Recorded { mut log, copies } = recorded(dir.path());
    let recorded = Recorded { log: log.clone(), copies };
    // A part has 8 KiB: an entry of 40 needs five.
    append(&log, entries(1, 0..3, 200)).await;
    log.save_vote(&Vote::new(1, 1)).await.unwrap();
    recorded.copies();
    append(&log, vec![entry(1, 3, 200), entry(1, 4, 40_000), entry(1, 5, 300)]).await;
    let copies = recorded.copies();
    assert!(copies.len() >= 6, "{} syncs", copies.len());
    let expected = [entries(1, 0..4, 200), vec![entry(1, 4, 40_000), entry(1, 5, 300)]].concat();
    assert_prefixes(&copies, &expected, 3, Some(Vote::new(1, 1))).await;
    assert_eq!(read(&log, 0..9).await, expected);
    log.close().await.unwrap();
    let log = open(dir.path());
    assert_eq!(read(&log, 0..9).await, expected);
    log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_entries_of_one_append_are_there_up_to_some_part() {
    let dir = tempfile::tempdir().unwrap();
    let recorded = recorded(dir.path());
    append(&recorded.log, entries(1, 0..2, 900)).await;
    recorded.copies();
    append(&recorded.log, entries(1, 2..80, 600)).await;
    let copies = recorded.copies();
    assert!(copies.len() >= 6, "{} syncs", copies.len());
    let expected = [entries(1, 0..2, 900), entries(1, 2..80, 600)].concat();
    assert_prefixes(&copies, &expected, 2, None).await;
    recorded.log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_off_never_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let Recorded { mut log, copies } = recorded(dir.path());
    let recorded = Recorded { log: log.clone(), copies };
    append(&log, entries(1, 0..10, 100)).await;
    append(&log, entries(1, 10..60, 2_000)).await;
    log.save_vote(&Vote::new(2, 2)).await.unwrap();
    recorded.copies();
    // In the midst of a group, and 150 values behind it.
    log.truncate_after(Some(log_id(1, 4))).await.unwrap();
    append(&log, entries(2, 5..8, 1_500)).await;
    let copies = recorded.copies();
    for copy in &copies {
        let mut log = open(copy.path());
        let found = read(&log, 0..u64::MAX).await;
        assert!(found.starts_with(&entries(1, 0..5, 100)), "{}", found.len());
        let rest = &found[5..];
        let cut = entries(2, 5..8, 1_500);
        let uncut = [entries(1, 5..10, 100), entries(1, 10..60, 2_000)].concat();
        assert!(rest == uncut || cut.starts_with(rest), "{}", rest.len());
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(2, 2)));
        log.close().await.unwrap();
    }
    assert_eq!(read(&log, 0..99).await, [entries(1, 0..5, 100), entries(2, 5..8, 1_500)].concat());
    log.close().await.unwrap();
    tamper(dir.path(), |db| assert_eq!(db.range(keys::range(8, None)).count(), 0, "nothing is left"));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_writes_do_not_outrun_the_deletions() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    let mut log = SledLog::open(dir.path(), LogOptions { batch_bytes_max: 60_000, ..gate.options() }).unwrap();
    // 600 values.
    append(&log, entries(1, 0..100, 5_500)).await;
    gate.hold();
    let purge = tokio::spawn({
        let mut log = log.clone();
        async move { log.purge(log_id(1, 99)).await }
    });
    while log.get_log_state().await.unwrap().last_purged_log_id.is_none() {
        tokio::task::yield_now().await;
    }
    // The queue isn't empty before the last of them.
    let mut waiting = Vec::new();
    for index in 100..120 {
        waiting.push(queue(&log, vec![entry(1, index, 64_000)]).await);
    }
    gate.release();
    for rx in waiting {
        rx.await.unwrap().unwrap();
    }
    let deleted = log.metrics().values_purged.load(Relaxed);
    assert_eq!(deleted, 600);
    purge.await.unwrap().unwrap();
    log.close().await.unwrap();
}
