//! The journal: what is acknowledged is there although sled has nothing of it yet, as after a SIGKILL at any moment.
//! A copy of the folder of a log that is open stands for that: sled keeps its newest commits in memory.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use openraft::RaftLogReader;
use openraft::storage::RaftLogStorage;
use tokio::sync::oneshot::error::TryRecvError;

use super::support::{Gate, append, entries, entry, open, options, queue, read, read_indices};
use crate::log::checkpoint::Moment;
use crate::log::{LogOptions, OpenError, SledLog, inspect};
use crate::raft::codec::log_id;
use crate::raft::types::Vote;

/// What the disk would have if the process died now.
pub(super) fn killed(dir: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    copy(dir, to.path());
    to
}

fn copy(from: &Path, to: &Path) {
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let to = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copy(&file.path(), &to);
        } else {
            fs::copy(file.path(), &to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_journal_has_is_there_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    let (mut last, mut term) = (0, 1);
    // Sizes from one sector to several, a commit that is too large for the journal, cuts, votes, purges; the halves
    // change every thirty commits or so.
    for round in 0..75_u64 {
        let bytes = [50, 700, 3_000, 20_000][(round % 9).min(3) as usize];
        append(&log, entries(term, last..last + 1 + round % 3, bytes)).await;
        last += 1 + round % 3;
        if round % 31 == 30 {
            term += 1;
            log.save_vote(&Vote::new(term, 2)).await.unwrap();
            log.truncate_after(Some(log_id(term - 1, last - 2))).await.unwrap();
            last -= 1;
        }
        if round % 50 == 49 {
            log.purge(log_id(term, last - 10)).await.unwrap();
        }
        if round % 7 == 6 {
            let expected =
                (log.get_log_state().await.unwrap(), log.read_vote().await.unwrap(), read(&log, 0..999).await);
            let killed = killed(dir.path());
            let mut again = open(killed.path());
            let found =
                (again.get_log_state().await.unwrap(), again.read_vote().await.unwrap(), read(&again, 0..999).await);
            assert_eq!(found.2, expected.2, "round {round}");
            assert_eq!(found, expected, "round {round}");
            again.close().await.unwrap();
        }
    }
    log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_put_into_sled_as_often_as_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, entries(1, 0..5, 100)).await;
    let mut newest = killed(dir.path());
    for index in 5..25 {
        // Each starts from what the one before had written when it was killed.
        let log = open(newest.path());
        append(&log, vec![entry(1, index, 100)]).await;
        let next = killed(newest.path());
        log.close().await.unwrap();
        newest = next;
    }
    assert_eq!(read_indices(&open(newest.path())).await, (0..25).collect::<Vec<_>>());
    log.close().await.unwrap();
}

/// The halves take turns: what is written over must be in sled, durably, however long that takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_is_written_anew_only_when_sled_has_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    let (observed, awaited) = (gate.clone(), Arc::new(AtomicBool::new(false)));
    let sees = awaited.clone();
    let on_checkpoint = move |moment| match moment {
        Moment::Begins => observed.pass().unwrap(),
        Moment::AwaitedFor => sees.store(true, Relaxed),
    };
    let log =
        SledLog::open(dir.path(), LogOptions { on_checkpoint: Some(Arc::new(on_checkpoint)), ..options() }).unwrap();
    gate.hold();
    // Each half has room for 16 commits of one sector.
    let mut acknowledged = 0;
    let mut waiting = None;
    while acknowledged < 100 && waiting.is_none() {
        let mut done = queue(&log, entries(1, acknowledged..acknowledged + 1, 100)).await;
        let result = loop {
            match done.try_recv() {
                Err(TryRecvError::Empty) if !awaited.load(Relaxed) => tokio::task::yield_now().await,
                result => break result,
            }
        };
        match result {
            Ok(result) => result.unwrap(),
            Err(TryRecvError::Empty) => waiting = Some(done),
            Err(TryRecvError::Closed) => panic!("the writer is gone"),
        }
        acknowledged += u64::from(waiting.is_none());
    }
    let killed = killed(dir.path());
    assert_eq!(read_indices(&open(killed.path())).await, (0..acknowledged).collect::<Vec<_>>());
    assert!((30..40).contains(&acknowledged), "{acknowledged}");
    gate.release();
    waiting.expect("the writer waited").await.unwrap().unwrap();
    log.close().await.unwrap();
}

/// Deletions after a purge have sequences, but no records. A torn record that was never acknowledged may have one that
/// is higher than what the restarted log knows of.
#[tokio::test(flavor = "multi_thread")]
async fn a_torn_record_never_comes_after_a_later_commit() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, entries(1, 0..3, 100)).await;
    append(&log, entries(1, 3..4, 100)).await;
    let path = dir.path().join("journal");
    let mut bytes = fs::read(&path).unwrap();
    // As if a record behind these two (of two sectors and one) had been torn: a whole header, and nothing behind it.
    let identity: serde_json::Value = serde_json::from_slice(&fs::read(dir.path().join("log.json")).unwrap()).unwrap();
    let header = crate::log::journal::torn_header(identity["identity"].as_str().unwrap().as_bytes(), 106, 4);
    bytes[1536..1536 + header.len()].copy_from_slice(&header);
    fs::write(&path, &bytes).unwrap();
    let killed = killed(dir.path());
    let again = open(killed.path());
    append(&again, entries(1, 4..5, 100)).await;
    let twice = self::killed(killed.path());
    assert_eq!(read_indices(&open(twice.path())).await, [0, 1, 2, 3, 4]);
    again.close().await.unwrap();
    log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_without_the_newest_commits_refuses_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for index in 0..5 {
        append(&log, vec![entry(1, index, 100)]).await;
    }
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let killed = killed(dir.path());
        let path = killed.path().join("journal");
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let error = SledLog::open(killed.path(), options()).expect_err("it was acknowledged");
        let report = inspect(killed.path(), 0..99, |_| {}).unwrap();
        assert!(!report.damage.is_empty(), "inspect names it too: {error}");
        error
    };
    // The last record, one in the middle, all of them: each takes one sector.
    let last = damaged(&|bytes| bytes[4 * 512 + 40] ^= 1);
    assert!(matches!(&last, OpenError::RolledBack { lost, .. } if *lost == (4..5)), "{last}");
    let middle = damaged(&|bytes| bytes[2 * 512 + 40] ^= 1);
    assert!(matches!(&middle, OpenError::Damaged { .. }), "{middle}");
    let all = damaged(&|bytes| bytes.fill(0));
    assert!(matches!(&all, OpenError::RolledBack { lost, .. } if *lost == (0..5)), "{all}");
    let none = damaged(&|bytes| bytes.clear());
    assert!(matches!(&none, OpenError::DataMissing { .. }), "{none}");
    log.close().await.unwrap();
}
