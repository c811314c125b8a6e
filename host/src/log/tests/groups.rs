//! Groups: one commit of small entries is one value of sled's; what truncation, purge and damage do in the midst of one.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use openraft::RaftLogReader;
use openraft::storage::RaftLogStorage;

use super::support::{Gate, append, entries, entry, open, options, queue, read, read_indices, settled, tamper};
use crate::log::record::{Damage, KIND_GROUP};
use crate::log::{LogOptions, OpenError, SledLog, keys, lock, stamp};
use crate::raft::codec::log_id;
use crate::raft::types::{Entry, Vote};

fn wide() -> LogOptions {
    LogOptions { chunk_bytes: 1_500, ..options() }
}

/// Three groups of five entries: 0 to 4, 5 to 9, 10 to 14.
async fn three_groups(dir: &Path) -> SledLog {
    let log = SledLog::open(dir, wide()).unwrap();
    for first in [0, 5, 10] {
        append(&log, entries(1, first..first + 5, 100)).await;
    }
    log
}

fn group_keys(log: &SledLog) -> Vec<u64> {
    settled(log);
    let turn = lock(&log.shared.disk);
    let keys = turn.as_ref().unwrap().range(keys::range(0, None)).map(Result::unwrap);
    keys.map(|(key, value)| {
        assert_eq!(value[1], KIND_GROUP);
        keys::parse_chunk(&key).unwrap().0
    })
    .collect()
}

async fn until_groups_are(log: &SledLog, expected: &[u64]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while group_keys(log) != expected {
        assert!(Instant::now() < deadline, "{:?} instead of {expected:?}", group_keys(log));
        tokio::task::yield_now().await;
    }
}

/// What is there now, and after each of two reopenings, the second with every entry read from sled.
async fn assert_holds(dir: &Path, log: SledLog, expected: &[Entry]) {
    assert_eq!(read(&log, 0..u64::MAX).await, expected);
    log.close().await.unwrap();
    let log = SledLog::open(dir, LogOptions { tail_bytes_max: 0, ..wide() }).unwrap();
    assert_eq!(read(&log, 0..u64::MAX).await, expected);
    for entry in expected {
        let index = entry.log_id.index;
        assert_eq!(read(&log, index..index + 1).await, std::slice::from_ref(entry));
        assert_eq!(read(&log, index..index + 3).await[0], *entry);
    }
    log.close().await.unwrap();
}

fn refusal(dir: &Path) -> OpenError {
    SledLog::open(dir, options()).expect_err("the log must be refused")
}

#[tokio::test(flavor = "multi_thread")]
async fn ordinary_commits_are_one_value_and_take_no_batch() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    let mut log =
        SledLog::open(dir.path(), LogOptions { segment_bytes: 1 << 20, chunk_bytes: 5_000, ..gate.options() }).unwrap();
    gate.hold();
    let first = queue(&log, entries(1, 0..1, 100)).await;
    gate.wait_until_held();
    let mut waiting = Vec::new();
    for index in 1..21 {
        waiting.push(queue(&log, vec![entry(1, index, 100)]).await);
    }
    log.save_committed(Some(log_id(1, 0))).await.unwrap();
    gate.release();
    first.await.unwrap().unwrap();
    for rx in waiting {
        rx.await.unwrap().unwrap();
    }
    assert_eq!(group_keys(&log), [0, 1], "twenty appends and a committed id are one value");
    log.save_vote(&Vote::new(2, 1)).await.unwrap();
    log.truncate_after(Some(log_id(1, 18))).await.unwrap();
    assert_eq!(group_keys(&log), [0, 1]);
    let metrics = log.metrics();
    let counts = |log: &SledLog| {
        settled(log);
        (metrics.single_writes.load(Relaxed), metrics.fsyncs.load(Relaxed))
    };
    assert_eq!(counts(&log), (3, 4), "the vote too");
    append(&log, entries(2, 19..60, 100)).await;
    append(&log, entries(2, 60..61, 6_000)).await;
    log.truncate_after(Some(log_id(2, 20))).await.unwrap();
    assert_eq!(counts(&log), (3, 7), "two groups, chunks, removals: a Batch each");
    log.close().await.unwrap();
    let mut log = open(dir.path());
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(2, 1)));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 0)));
    assert_eq!(read(&log, 0..99).await, [entries(1, 0..19, 100), entries(2, 19..21, 100)].concat());
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_truncation_in_the_midst_of_a_group_leaves_nothing_after_it() {
    for keep in 0..15u64 {
        let dir = tempfile::tempdir().unwrap();
        let mut log = three_groups(dir.path()).await;
        log.truncate_after(keep.checked_sub(1).map(|last| log_id(1, last))).await.unwrap();
        let mut expected = entries(1, 0..keep, 100);
        let mut firsts = vec![0, 5, 10];
        firsts.retain(|first| *first < keep);
        assert_eq!(group_keys(&log), firsts, "{keep}");
        assert_holds(dir.path(), log, &expected).await;

        let log = SledLog::open(dir.path(), wide()).unwrap();
        append(&log, entries(2, keep..keep + 2, 10)).await;
        expected.extend(entries(2, keep..keep + 2, 10));
        firsts.push(keep);
        assert_eq!(group_keys(&log), firsts);
        assert_holds(dir.path(), log, &expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn truncations_and_purges_leave_nothing_of_a_cut_group() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    let mut log = SledLog::open(dir.path(), LogOptions { chunk_bytes: 1_500, ..gate.options() }).unwrap();
    append(&log, entries(1, 0..5, 100)).await;
    gate.hold();
    let inflight = queue(&log, entries(1, 5..10, 100)).await;
    gate.wait_until_held();
    let do_later = |after: Option<u64>, purge: Option<u64>, mut log: SledLog| {
        tokio::spawn(async move {
            if let Some(after) = after {
                log.truncate_after(Some(log_id(1, after))).await.unwrap();
            }
            if let Some(upto) = purge {
                log.purge(log_id(1, upto)).await.unwrap();
            }
        })
    };
    let last_is = |mut log: SledLog, last| async move {
        while log.get_log_state().await.unwrap().last_log_id != Some(last) {
            tokio::task::yield_now().await;
        }
    };
    let first = do_later(Some(7), None, log.clone());
    last_is(log.clone(), log_id(1, 7)).await;
    let queued = queue(&log, entries(1, 8..12, 50)).await;
    let second = do_later(Some(8), None, log.clone());
    last_is(log.clone(), log_id(1, 8)).await;
    let requeued = queue(&log, entries(3, 9..11, 10)).await;
    let third = do_later(None, Some(7), log.clone());
    while log.get_log_state().await.unwrap().last_purged_log_id.is_none() {
        tokio::task::yield_now().await;
    }
    gate.release();
    for rx in [inflight, queued, requeued] {
        rx.await.unwrap().unwrap();
    }
    for task in [first, second, third] {
        task.await.unwrap();
    }
    assert_eq!(gate.passed(), 6, "truncations are commits of their own");
    let expected = [entries(1, 8..9, 50), entries(3, 9..11, 10)].concat();
    assert_holds(dir.path(), log.clone(), &expected).await;
    log = SledLog::open(dir.path(), wide()).unwrap();
    until_groups_are(&log, &[8, 9]).await;
    log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_cut_and_purged_at_once_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    let log = SledLog::open(dir.path(), LogOptions { chunk_bytes: 1_500, ..gate.options() }).unwrap();
    gate.hold();
    let inflight = queue(&log, entries(1, 0..10, 50)).await;
    gate.wait_until_held();
    let mut other = log.clone();
    let truncation = tokio::spawn(async move { other.truncate_after(Some(log_id(1, 7))).await });
    while log.clone().get_log_state().await.unwrap().last_log_id != Some(log_id(1, 7)) {
        tokio::task::yield_now().await;
    }
    let mut other = log.clone();
    let purge = tokio::spawn(async move { other.purge(log_id(1, 7)).await });
    while log.clone().get_log_state().await.unwrap().last_purged_log_id.is_none() {
        tokio::task::yield_now().await;
    }
    gate.release();
    inflight.await.unwrap().unwrap();
    truncation.await.unwrap().unwrap();
    purge.await.unwrap().unwrap();
    assert_eq!(gate.passed(), 3);
    // Neither what was cut off nor what was purged; the writer deletes when it has nothing else to do.
    until_groups_are(&log, &[]).await;
    assert_holds(dir.path(), log, &[]).await;
}

#[tokio::test]
async fn a_purge_in_the_midst_of_a_group_keeps_the_group_until_its_last_entry_goes() {
    for upto in 0..15 {
        let dir = tempfile::tempdir().unwrap();
        let mut log = three_groups(dir.path()).await;
        log.purge(log_id(1, upto)).await.unwrap();
        let mut left = vec![0, 5, 10];
        left.retain(|first| first + 4 > upto);
        until_groups_are(&log, &left).await;
        let mut expected = entries(1, upto + 1..15, 100);
        assert_holds(dir.path(), log, &expected).await;

        let mut log = SledLog::open(dir.path(), wide()).unwrap();
        append(&log, entries(1, 15..17, 100)).await;
        expected.extend(entries(1, 15..17, 100));
        assert_eq!(read(&log, 0..99).await, expected);
        log.purge(log_id(1, 15)).await.unwrap();
        until_groups_are(&log, &[15]).await;
        assert_holds(dir.path(), log, &entries(1, 16..17, 100)).await;
    }
}

#[tokio::test]
async fn a_group_that_was_purged_and_then_cut_is_whole_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = three_groups(dir.path()).await;
    log.purge(log_id(1, 6)).await.unwrap();
    log.truncate_after(Some(log_id(1, 8))).await.unwrap();
    append(&log, entries(2, 9..11, 10)).await;
    let expected = [entries(1, 7..9, 100), entries(2, 9..11, 10)].concat();
    assert_holds(dir.path(), log, &expected).await;
    // Down to what is purged: nothing of the group can be read.
    let mut log = SledLog::open(dir.path(), wide()).unwrap();
    log.truncate_after(Some(log_id(1, 6))).await.unwrap();
    assert_holds(dir.path(), log, &[]).await;
    let log = SledLog::open(dir.path(), wide()).unwrap();
    append(&log, entries(3, 7..8, 10)).await;
    assert_holds(dir.path(), log, &entries(3, 7..8, 10)).await;
}

#[tokio::test]
async fn a_damaged_group_refuses_the_start_and_names_its_index() {
    for (first, at) in [(5, 3), (10, 1), (10, 4), (10, 8), (10, 96), (10, 150), (10, 500)] {
        let dir = tempfile::tempdir().unwrap();
        three_groups(dir.path()).await.close().await.unwrap();
        tamper(dir.path(), |db| {
            let mut value = db.get(keys::chunk(first, 0)).unwrap().unwrap().to_vec();
            value[at] ^= 1;
            db.insert(keys::chunk(first, 0), value).unwrap();
        });
        let refused = refusal(dir.path());
        let OpenError::Damaged { damage, .. } = refused else { panic!("{refused}") };
        assert_eq!(damage, Damage::Checksum { index: first, chunk: 0 }, "byte {at}");
    }
}

#[tokio::test]
async fn a_missing_group_refuses_the_start_and_names_its_index() {
    for (first, words) in [(0, "entry 0 is missing"), (5, "entry 5 is missing"), (10, "entries 10 to 14 are missing")] {
        let dir = tempfile::tempdir().unwrap();
        three_groups(dir.path()).await.close().await.unwrap();
        tamper(dir.path(), |db| drop(db.remove(keys::chunk(first, 0)).unwrap().unwrap()));
        let refused = refusal(dir.path());
        assert_eq!(matches!(refused, OpenError::RolledBack { .. }), first == 10);
        assert!(refused.to_string().contains(words), "{refused}");
    }
    // A newer stamp than the group's tells it as well, whatever became of the watermark.
    let dir = tempfile::tempdir().unwrap();
    let mut log = three_groups(dir.path()).await;
    log.save_vote(&Vote::new(2, 1)).await.unwrap();
    log.close().await.unwrap();
    tamper(dir.path(), |db| drop(db.remove(keys::chunk(10, 0)).unwrap().unwrap()));
    let refused = refusal(dir.path());
    assert!(matches!(refused, OpenError::Damaged { damage: Damage::Missing(10), .. }), "{refused}");
}

#[tokio::test]
async fn an_older_form_of_a_cut_group_refuses_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = three_groups(dir.path()).await;
    log.truncate_after(Some(log_id(1, 11))).await.unwrap();
    log.save_vote(&Vote::new(2, 1)).await.unwrap();
    log.close().await.unwrap();
    let older = tempfile::tempdir().unwrap();
    three_groups(older.path()).await.close().await.unwrap();
    let mut value = None;
    tamper(older.path(), |db| value = db.get(keys::chunk(10, 0)).unwrap());
    tamper(dir.path(), |db| {
        assert!(stamp::newest(db).unwrap().sequence > 4);
        db.insert(keys::chunk(10, 0), value.unwrap()).unwrap();
    });
    assert!(matches!(refusal(dir.path()), OpenError::Damaged { damage: Damage::Meta("last"), .. }));
}

#[tokio::test]
async fn reads_from_within_groups_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    three_groups(dir.path()).await.close().await.unwrap();
    let small = LogOptions { tail_bytes_max: 0, read_bytes_max: 3 * 188, ..wide() };
    let mut log = SledLog::open(dir.path(), small).unwrap();
    for start in 0..15 {
        let some = log.limited_get_log_entries(start, 15).await.unwrap();
        assert_eq!(some, entries(1, start..(start + 3).min(15), 100));
    }
    assert_eq!(read_indices(&log).await, (0..15).collect::<Vec<_>>());
    log.close().await.unwrap();
}
