//! What an inspection says of whole logs and of damaged ones.

use std::path::Path;

use openraft::storage::RaftLogStorage;

use super::support::{append, entries, entry, open, options, tamper};
use crate::log::{Found, OpenError, Place, Report, SledLog, inspect, keys};
use crate::raft::codec::log_id;
use crate::raft::types::Vote;

fn look(dir: &Path) -> (Report, Vec<u64>) {
    let mut indices = Vec::new();
    let report = inspect(dir, 0..u64::MAX, |found| {
        if let Found::Entry { entry, .. } = found {
            indices.push(entry.log_id.index);
        }
    });
    (report.unwrap(), indices)
}

/// A closed log: entries 0 to 9 of four pieces each, then 10 to 14 in one group, 15 to 17 in another.
async fn closed_log(dir: &Path) {
    let log = open(dir);
    append(&log, entries(1, 0..10, 3_000)).await;
    append(&log, entries(1, 10..15, 50)).await;
    append(&log, entries(2, 15..18, 50)).await;
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_whole_log_is_told_entry_by_entry() {
    let dir = tempfile::tempdir().unwrap();
    closed_log(dir.path()).await;
    let mut log = open(dir.path());
    log.save_vote(&Vote::new(3, 2)).await.unwrap();
    assert!(matches!(inspect(dir.path(), 0..9, |_| {}), Err(OpenError::Locked(_))), "it is in use");
    log.close().await.unwrap();
    let mut places = Vec::new();
    let report = inspect(dir.path(), 8..12, |found| {
        let Found::Entry { entry: found, bytes, place } = found else { panic!("{found:?}") };
        let index = found.log_id.index;
        assert_eq!(found, entry(1, index, if index < 10 { 3_000 } else { 50 }));
        places.push((index, bytes, place));
    });
    let report = report.unwrap();
    let (large, small) = (88 + 3_000, 88 + 50);
    let group = Place::Group(5);
    let expected = [(8, large, Place::Chunks(4)), (9, large, Place::Chunks(4)), (10, small, group), (11, small, group)];
    assert_eq!(places, expected);
    let bounds = report.bounds.unwrap();
    assert_eq!((bounds.first, bounds.last, bounds.vote), (0, Some(log_id(2, 17)), Some(Vote::new(3, 2))));
    assert_eq!((report.entries, report.groups, report.chunks, &report.damage[..]), (4, 1, 8, &[][..]));
    let (report, indices) = look(dir.path());
    assert_eq!((report.damage, indices), (vec![], (0..18).collect()));
}

#[tokio::test]
async fn damage_is_named_and_what_lies_behind_it_is_still_told() {
    let damaged = |change: fn(&sled::Db)| async move {
        let dir = tempfile::tempdir().unwrap();
        closed_log(dir.path()).await;
        tamper(dir.path(), change);
        assert!(SledLog::open(dir.path(), options()).is_err(), "a node refuses");
        let (report, indices) = look(dir.path());
        (report.damage, indices)
    };
    let without = |gone: &[u64]| (0..18).filter(|index| !gone.contains(index)).collect::<Vec<u64>>();

    let (damage, indices) = damaged(|db| drop(db.remove(keys::chunk(4, 2)).unwrap().unwrap())).await;
    assert_eq!((damage, indices), (vec!["entry 4: chunk 2 of its record is missing".into()], without(&[4])));

    let (damage, indices) = damaged(|db| drop(db.remove(keys::chunk(9, 3)).unwrap().unwrap())).await;
    assert_eq!((damage, indices), (vec!["entry 9: chunk 3 of its record is missing".into()], without(&[9])));

    let lose = |db: &sled::Db| {
        for chunk in 0..4 {
            db.remove(keys::chunk(6, chunk)).unwrap().unwrap();
            db.remove(keys::chunk(7, chunk)).unwrap().unwrap();
        }
    };
    let (damage, indices) = damaged(lose).await;
    assert_eq!((damage, indices), (vec!["entries 6 to 7 are missing".into()], without(&[6, 7])));

    let flip = |db: &sled::Db| {
        for (index, chunk) in [(2, 1), (10, 0)] {
            let mut value = db.get(keys::chunk(index, chunk)).unwrap().unwrap().to_vec();
            *value.last_mut().unwrap() ^= 4;
            db.insert(keys::chunk(index, chunk), value).unwrap();
        }
    };
    let (damage, indices) = damaged(flip).await;
    let texts = [
        "entry 2: chunk 1 of its record has a wrong checksum",
        "entry 10: chunk 0 of its record has a wrong checksum",
        "entries 11 to 14 are missing",
    ];
    assert_eq!((damage, indices), (texts.map(String::from).to_vec(), without(&[2, 10, 11, 12, 13, 14])));

    let (damage, indices) = damaged(|db| drop(db.remove(keys::LAST).unwrap().unwrap())).await;
    assert_eq!((damage, indices), (vec!["the log's value 'last' is damaged or missing".into()], without(&[])));
}

#[tokio::test]
async fn what_is_gone_or_left_over_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(inspect(dir.path(), 0..9, |_| {}), Err(OpenError::Absent(_))));
    closed_log(dir.path()).await;
    let mut beyond = Vec::new();
    tamper(dir.path(), |db| beyond.extend(db.range(keys::range(15, None)).map(Result::unwrap)));
    let mut log = open(dir.path());
    log.truncate_after(Some(log_id(1, 12))).await.unwrap();
    log.close().await.unwrap();
    tamper(dir.path(), |db| drop(db.insert(keys::chunk(14, 0), beyond[0].1.clone()).unwrap()));
    std::fs::remove_file(dir.path().join("watermark")).unwrap();
    let report = inspect(dir.path(), 0..u64::MAX, |_| {}).unwrap();
    assert!(report.damage[0].contains("watermark"), "{:?}", report.damage);
}
