//! What a log must still have after it was closed, and what it must refuse to open.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use openraft::RaftLogReader;
use openraft::storage::{LogState, RaftLogStorage};

use super::support::{
    append, assert_no_blobs, entries, entry, forget_journal, open, options, read, read_indices, tamper,
};
use crate::log::record::Damage;
use crate::log::{LogOptions, OpenError, SledLog, keys, lock};
use crate::raft::codec::log_id;
use crate::raft::types::Vote;

async fn state(log: &SledLog) -> LogState<crate::raft::types::TypeConfig> {
    log.clone().get_log_state().await.unwrap()
}

fn refusal(dir: &Path) -> OpenError {
    SledLog::open(dir, options()).expect_err("the log must be refused")
}

fn damage(dir: &Path) -> Damage {
    match refusal(dir) {
        OpenError::Damaged { damage, .. } => damage,
        other => panic!("{other}"),
    }
}

/// A closed log with the entries 0 to 9 of 3,000 bytes, four chunks each.
async fn closed_log(dir: &Path) {
    let log = open(dir);
    append(&log, entries(1, 0..10, 3_000)).await;
    log.close().await.unwrap();
}

#[tokio::test]
async fn everything_is_there_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    let vote = Vote::new_committed(3, 2);
    log.save_vote(&vote).await.unwrap();
    append(&log, entries(1, 0..200, 300)).await;
    append(&log, entries(3, 200..250, 5_000)).await;
    log.purge(log_id(1, 120)).await.unwrap();
    log.save_committed(Some(log_id(3, 230))).await.unwrap();
    log.close().await.unwrap();

    let mut log = open(dir.path());
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(3, 230)));
    let expected = LogState { last_purged_log_id: Some(log_id(1, 120)), last_log_id: Some(log_id(3, 249)) };
    assert_eq!(state(&log).await, expected);
    assert_eq!(read(&log, 121..200).await, entries(1, 121..200, 300));
    assert_eq!(read(&log, 200..250).await, entries(3, 200..250, 5_000));
    append(&log, entries(3, 250..251, 10)).await;
    assert_eq!(read_indices(&log).await, (121..251).collect::<Vec<_>>());
    assert_no_blobs(dir.path());
    // Purged entries are deleted in the end, except for those in the first entry's group.
    let left = || log.shared.disk.lock().unwrap().as_ref().unwrap().range(keys::range(0, Some(121))).count();
    let deadline = Instant::now() + Duration::from_secs(10);
    while left() > 1 {
        assert!(Instant::now() < deadline, "{} purged values are left", left());
        tokio::task::yield_now().await;
    }
    log.close().await.unwrap();
}

#[tokio::test]
async fn large_entries_are_cut_and_never_become_blob_files() {
    let dir = tempfile::tempdir().unwrap();
    let wide = || SledLog::open(dir.path(), LogOptions::default()).unwrap();
    let log = wide();
    let big = vec![entry(1, 0, 5 << 20), entry(1, 1, 200), entry(1, 2, (5 << 20) + 77)];
    append(&log, big.clone()).await;
    for index in 3..60 {
        append(&log, vec![entry(1, index, 60_000)]).await;
    }
    log.clone().truncate_after(Some(log_id(1, 30))).await.unwrap();
    log.close().await.unwrap();
    assert_no_blobs(dir.path());
    let log = wide();
    assert_eq!(read(&log, 0..3).await, big);
    assert_eq!(read(&log, 3..99).await, entries(1, 3..31, 60_000));
    log.clone().purge(log_id(1, 29)).await.unwrap();
    // The deletion goes on after the purge has returned.
    let purged_chunks = || {
        let turn = lock(&log.shared.disk);
        turn.as_ref().unwrap().range(keys::range(0, Some(30))).count()
    };
    while purged_chunks() > 0 {
        tokio::task::yield_now().await;
    }
    log.close().await.unwrap();
    assert_no_blobs(dir.path());
}

#[tokio::test]
async fn a_shorter_record_at_the_same_index_leaves_no_chunks_of_the_longer_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    append(&log, entries(1, 0..4, 20_000)).await;
    log.truncate_after(Some(log_id(1, 1))).await.unwrap();
    append(&log, entries(2, 2..4, 10)).await;
    let expected = [entries(1, 0..2, 20_000), entries(2, 2..4, 10)].concat();
    assert_eq!(read(&log, 0..9).await, expected);
    log.close().await.unwrap();
    tamper(dir.path(), |db| assert_eq!(db.range(keys::range(2, None)).count(), 1));
    let log = open(dir.path());
    assert_eq!(read(&log, 0..9).await, expected);
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_log_emptied_by_a_snapshot_goes_on_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    append(&log, entries(1, 0..5, 10)).await;
    log.purge(log_id(2, 40)).await.unwrap();
    log.close().await.unwrap();
    let log = open(dir.path());
    let expected = LogState { last_purged_log_id: Some(log_id(2, 40)), last_log_id: Some(log_id(2, 40)) };
    assert_eq!(state(&log).await, expected);
    append(&log, entries(2, 41..43, 10)).await;
    assert_eq!(read_indices(&log).await, [41, 42]);
    log.close().await.unwrap();
}

/// What an installed snapshot does to a log that is shorter than it, or has other entries.
#[tokio::test]
async fn a_purge_beyond_the_end_takes_whatever_was_there() {
    // Of the entries that are there, the last may even be of a later term than the snapshot.
    for (term, truncated) in [(1, None), (1, Some(20)), (3, None), (3, Some(5))] {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        append(&log, entries(1, 0..10, 300)).await;
        append(&log, entries(term, 10..50, 3_000)).await;
        if let Some(index) = truncated {
            log.truncate_after(Some(log_id(if index < 10 { 1 } else { term }, index))).await.unwrap();
        }
        log.purge(log_id(2, 100)).await.unwrap();
        let expected = LogState { last_purged_log_id: Some(log_id(2, 100)), last_log_id: Some(log_id(2, 100)) };
        assert_eq!(state(&log).await, expected);
        // The start of a node after a crash right behind the purge, and of one that went on.
        log.close().await.unwrap();
        let log = open(dir.path());
        assert_eq!((state(&log).await, read_indices(&log).await), (expected, vec![]));
        append(&log, entries(4, 101..110, 300)).await;
        log.close().await.unwrap();
        let log = open(dir.path());
        assert_eq!(read(&log, 0..u64::MAX).await, entries(4, 101..110, 300));
        log.close().await.unwrap();
    }
}

#[tokio::test]
async fn what_lies_beyond_the_last_entry_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    closed_log(dir.path()).await;
    // What a longer log has there.
    let longer = tempfile::tempdir().unwrap();
    let log = open(longer.path());
    append(&log, entries(1, 0..12, 3_000)).await;
    log.close().await.unwrap();
    let mut beyond = Vec::new();
    tamper(longer.path(), |db| beyond.extend(db.range(keys::range(10, None)).map(Result::unwrap)));
    assert_eq!(beyond.len(), 8);
    tamper(dir.path(), |db| {
        for (key, value) in &beyond[..6] {
            db.insert(key, value).unwrap();
        }
    });
    let log = open(dir.path());
    assert_eq!(read_indices(&log).await, (0..10).collect::<Vec<_>>());
    append(&log, entries(1, 10..11, 10)).await;
    log.close().await.unwrap();
    tamper(dir.path(), |db| assert_eq!(db.range(keys::range(10, None)).count(), 1));
}

#[tokio::test]
async fn a_damaged_or_missing_record_refuses_the_start_and_names_the_index() {
    for (chunk, expected) in
        [(0, Damage::MissingChunk { index: 4, chunk: 0 }), (2, Damage::MissingChunk { index: 4, chunk: 2 })]
    {
        let dir = tempfile::tempdir().unwrap();
        closed_log(dir.path()).await;
        tamper(dir.path(), |db| drop(db.remove(keys::chunk(4, chunk)).unwrap()));
        assert_eq!(damage(dir.path()), expected);
        assert!(refusal(dir.path()).to_string().contains("entry 4"), "again, and in words");
    }
    let dir = tempfile::tempdir().unwrap();
    closed_log(dir.path()).await;
    tamper(dir.path(), |db| {
        for chunk in 0..4 {
            db.remove(keys::chunk(7, chunk)).unwrap().unwrap();
        }
    });
    assert_eq!(damage(dir.path()), Damage::Missing(7));

    let dir = tempfile::tempdir().unwrap();
    closed_log(dir.path()).await;
    tamper(dir.path(), |db| {
        let mut value = db.get(keys::chunk(9, 3)).unwrap().unwrap().to_vec();
        *value.last_mut().unwrap() ^= 4;
        db.insert(keys::chunk(9, 3), value).unwrap();
    });
    assert_eq!(damage(dir.path()), Damage::Checksum { index: 9, chunk: 3 });
}

#[tokio::test]
async fn a_lost_tail_refuses_the_start() {
    let dir = tempfile::tempdir().unwrap();
    closed_log(dir.path()).await;
    tamper(dir.path(), |db| {
        for chunk in 0..4 {
            db.remove(keys::chunk(9, chunk)).unwrap().unwrap();
        }
    });
    assert_eq!(damage(dir.path()), Damage::Missing(9));
}

#[tokio::test]
async fn a_damaged_or_missing_stamp_refuses_the_start() {
    for lose in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        log.save_vote(&Vote::new(1, 1)).await.unwrap();
        append(&log, entries(1, 0..5, 10)).await;
        log.purge(log_id(1, 1)).await.unwrap();
        log.close().await.unwrap();
        tamper(dir.path(), |db| {
            let mut value = db.remove(keys::LAST).unwrap().unwrap().to_vec();
            if !lose {
                value[9] ^= 1;
                db.insert(keys::LAST, value).unwrap();
            }
        });
        assert_eq!(damage(dir.path()), Damage::Meta("last"));
    }
}

#[tokio::test]
async fn a_log_without_its_data_refuses_the_start() {
    let lose = |what: &'static str| async move {
        let dir = tempfile::tempdir().unwrap();
        closed_log(dir.path()).await;
        match what {
            "db" => fs::remove_file(dir.path().join("sled/db")).unwrap(),
            "empty db" => fs::write(dir.path().join("sled/db"), b"").unwrap(),
            "sled" => fs::remove_dir_all(dir.path().join("sled")).unwrap(),
            "watermark" => fs::remove_file(dir.path().join("watermark")).unwrap(),
            "tree" => tamper(dir.path(), |db| db.clear().unwrap()),
            "marker" => fs::remove_file(dir.path().join("log.json")).unwrap(),
            _ => unreachable!(),
        }
        refusal(dir.path())
    };
    for what in ["db", "empty db", "sled", "watermark", "tree"] {
        assert!(matches!(lose(what).await, OpenError::DataMissing { .. }), "{what}");
    }
    assert!(matches!(lose("marker").await, OpenError::MarkerMissing(_)));
}

#[tokio::test]
async fn an_older_state_refuses_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    closed_log(dir.path()).await;
    let files = ["sled/db", "sled/conf"];
    fs::create_dir(copy.path().join("sled")).unwrap();
    for file in files {
        fs::copy(dir.path().join(file), copy.path().join(file)).unwrap();
    }
    let log = open(dir.path());
    append(&log, entries(1, 10..11, 10)).await;
    log.close().await.unwrap();
    fs::remove_dir_all(dir.path().join("sled")).unwrap();
    fs::create_dir(dir.path().join("sled")).unwrap();
    for file in files {
        fs::copy(copy.path().join(file), dir.path().join(file)).unwrap();
    }
    forget_journal(dir.path());
    let refused = refusal(dir.path());
    assert!(matches!(refused, OpenError::RolledBack { .. }));
    assert!(refused.to_string().contains("entry 10 is missing"), "{refused}");
}

#[tokio::test]
async fn the_data_of_another_log_refuses_the_start() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    closed_log(a.path()).await;
    closed_log(b.path()).await;
    fs::copy(a.path().join("sled/db"), b.path().join("sled/db")).unwrap();
    for file in fs::read_dir(b.path().join("sled")).unwrap().map(|f| f.unwrap().path()) {
        if file.file_name().unwrap().to_string_lossy().starts_with("snap.") {
            fs::remove_file(file).unwrap();
        }
    }
    assert!(matches!(refusal(b.path()), OpenError::OtherIdentity(_)));
}

#[tokio::test]
async fn one_folder_is_open_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    assert!(matches!(refusal(dir.path()), OpenError::Locked(_)));
    log.close().await.unwrap();
    open(dir.path()).close().await.unwrap();
}

#[tokio::test]
async fn a_log_that_must_exist_is_not_created() {
    let dir = tempfile::tempdir().unwrap();
    let must_exist = LogOptions { create: false, ..options() };
    for path in [dir.path().join("none"), dir.path().to_owned()] {
        let refused = SledLog::open(&path, must_exist.clone()).err();
        assert!(matches!(refused, Some(OpenError::Absent(_))));
        assert!(!path.join("sled").exists());
    }
}

#[tokio::test]
async fn a_creation_that_was_cut_off_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    closed_log(dir.path()).await;
    fs::rename(dir.path().join("log.json"), dir.path().join("log.json.creating")).unwrap();
    let log = open(dir.path());
    assert_eq!(read_indices(&log).await, [0; 0]);
    append(&log, entries(1, 0..1, 10)).await;
    log.close().await.unwrap();
    assert_eq!(read_indices(&open(dir.path())).await, [0]);
}

#[test]
fn sizes_that_could_make_blob_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = |segment_bytes, chunk_bytes| {
        let options = LogOptions { segment_bytes, chunk_bytes, ..LogOptions::default() };
        SledLog::open(dir.path(), options).err()
    };
    for (segment, chunk) in
        [(8 << 20, 128 << 10), (2 << 20, 64 << 10), (3 << 20, 1 << 10), (8 << 20, 24), (32 << 20, 64 << 10)]
    {
        assert!(matches!(sizes(segment, chunk), Some(OpenError::Options(_))), "{segment} {chunk}");
    }
    assert!(sizes(2 << 20, 16 << 10).is_none());
}
