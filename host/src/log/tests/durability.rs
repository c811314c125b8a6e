//! When the log says "durable", in which order, and what it does when it can't be.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use openraft::RaftLogReader;
use openraft::storage::{LeaderBoundedStreamError, RaftLogStorage};

use super::support::{Gate, append, entries, entry, open, options, queue, read, read_indices, tamper};
use crate::log::{LogOptions, SledLog, keys, stamp};
use crate::raft::codec::log_id;
use crate::raft::types::Vote;

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_readable_at_once_and_acknowledged_together() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    let log = SledLog::open(dir.path(), LogOptions { segment_bytes: 1 << 20, ..gate.options() }).unwrap();
    gate.hold();
    let mut first = queue(&log, entries(1, 0..1, 100)).await;
    gate.wait_until_held();
    let mut waiting = Vec::new();
    for index in 1..51 {
        waiting.push(queue(&log, vec![entry(1, index, 100)]).await);
    }
    assert_eq!(read(&log, 0..99).await, entries(1, 0..51, 100), "readable before durable");
    assert!(first.try_recv().is_err(), "written, but not synced");
    assert!(waiting.iter_mut().all(|rx| rx.try_recv().is_err()), "nothing is durable yet");
    gate.release();
    first.await.unwrap().unwrap();
    for rx in waiting {
        rx.await.unwrap().unwrap();
    }
    assert_eq!(gate.passed(), 2, "one sync for the first, one for the fifty that waited");
    let metrics = log.metrics();
    assert_eq!((metrics.fsyncs.load(Relaxed), metrics.entries.load(Relaxed)), (2, 51));
    assert_eq!(metrics.entries_per_fsync_last.load(Relaxed), 50);
    log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_callback_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    let log = SledLog::open(dir.path(), gate.options()).unwrap();
    gate.hold();
    let first = queue(&log, entries(1, 0..1, 1)).await;
    gate.wait_until_held();
    // The order in which receivers are read says nothing: note it as they are woken.
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for index in 1..20 {
        let (rx, order) = (queue(&log, vec![entry(1, index, 1)]).await, order.clone());
        let waker = Noted { index, order };
        tasks.push((rx, waker));
    }
    let mut polled: Vec<_> = tasks
        .into_iter()
        .map(|(rx, noted)| {
            let waker = std::task::Waker::from(Arc::new(noted));
            let mut rx = Box::pin(rx);
            let pending = rx.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending();
            assert!(pending);
            rx
        })
        .collect();
    gate.release();
    // All are answered then, and until then nothing may poll again: that would take the waker's place.
    log.close().await.unwrap();
    assert_eq!(*order.lock().unwrap(), (1..20).rev().collect::<Vec<_>>());
    first.await.unwrap().unwrap();
    for rx in &mut polled {
        rx.await.unwrap().unwrap();
    }
}

struct Noted {
    index: u64,
    order: Arc<Mutex<Vec<u64>>>,
}

impl std::task::Wake for Noted {
    fn wake(self: Arc<Self>) {
        self.order.lock().unwrap().push(self.index);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn later_operations_win() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    let mut log = SledLog::open(dir.path(), gate.options()).unwrap();
    append(&log, entries(1, 0..6, 1_100)).await;
    gate.hold();
    let first = queue(&log, entries(1, 6..8, 1_100)).await;
    gate.wait_until_held();
    let vote = {
        let mut log = log.clone();
        tokio::spawn(async move { log.save_vote(&Vote::new(2, 3)).await })
    };
    while log.read_vote().await.unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    let second = queue(&log, entries(1, 8..10, 1_100)).await;
    let truncate = {
        let mut log = log.clone();
        tokio::spawn(async move { log.truncate_after(Some(log_id(1, 3))).await })
    };
    while log.get_log_state().await.unwrap().last_log_id != Some(log_id(1, 3)) {
        tokio::task::yield_now().await;
    }
    let third = queue(&log, entries(2, 4..7, 100)).await;
    let expected = [entries(1, 0..4, 1_100), entries(2, 4..7, 100)].concat();
    assert_eq!(read(&log, 0..99).await, expected);
    gate.release();
    for rx in [first, second, third] {
        rx.await.unwrap().unwrap();
    }
    vote.await.unwrap().unwrap();
    truncate.await.unwrap().unwrap();
    assert_eq!(gate.passed(), 5, "a truncation is a commit of its own, what comes before and after it too");
    log.close().await.unwrap();
    tamper(dir.path(), |db| assert_eq!(db.range(keys::range(4, None)).count(), 1, "one group"));
    let mut log = open(dir.path());
    assert_eq!(read(&log, 0..99).await, expected);
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(2, 3)));
    log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_is_fatal_and_never_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    let mut log = SledLog::open(dir.path(), gate.options()).unwrap();
    append(&log, entries(1, 0..1, 10)).await;
    gate.hold();
    let inflight = queue(&log, entries(1, 1..2, 10)).await;
    gate.wait_until_held();
    let queued = queue(&log, entries(1, 2..3, 10)).await;
    gate.fail();
    for rx in [inflight, queued] {
        let error = rx.await.unwrap().unwrap_err();
        assert!(error.to_string().contains("injected"), "{error}");
    }
    assert_eq!(&*log.failed().await, "injected");
    assert_eq!(gate.passed(), 2, "the failed sync was not repeated");
    let is_failed = |result: io::Result<()>| assert!(result.unwrap_err().to_string().contains("injected"));
    is_failed(log.save_vote(&Vote::new(1, 1)).await);
    is_failed(log.truncate_after(None).await);
    is_failed(log.purge(log_id(1, 0)).await);
    is_failed(log.append(entries(1, 3..4, 10), openraft::storage::IOFlushed::noop()).await);
    is_failed(log.save_committed(None).await);
    is_failed(log.close().await);
    assert_eq!(gate.passed(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_makes_append_wait_but_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    let log = SledLog::open(dir.path(), LogOptions { queue_bytes_max: 64 << 10, ..gate.options() }).unwrap();
    gate.hold();
    let first = queue(&log, entries(1, 0..6, 10_000)).await;
    gate.wait_until_held();
    let mut second = Box::pin(queue(&log, entries(1, 6..7, 10_000)));
    assert!(futures_util::poll!(&mut second).is_pending(), "60 KB of 64 are taken");
    gate.release();
    first.await.unwrap().unwrap();
    second.await.await.unwrap().unwrap();
    append(&log, entries(1, 7..8, 1 << 20)).await;
    assert_eq!(read_indices(&log).await, (0..8).collect::<Vec<_>>(), "one larger than the queue passes alone");
    log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_is_saved_without_a_sync_of_its_own_and_never_ahead_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    let mut log = SledLog::open(dir.path(), gate.options()).unwrap();
    append(&log, entries(1, 0..5, 10)).await;
    log.save_committed(Some(log_id(1, 3))).await.unwrap();
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 3)));
    append(&log, entries(1, 5..6, 10)).await;
    assert_eq!(gate.passed(), 2, "it went along with the entries");
    // Ahead of what the log has: kept in memory only.
    log.save_committed(Some(log_id(1, 9))).await.unwrap();
    log.close().await.unwrap();
    let saved = |dir: &std::path::Path| {
        let mut saved = None;
        tamper(dir, |db| saved = stamp::newest(db).unwrap().committed);
        saved.unwrap()
    };
    assert_eq!(saved(dir.path()), log_id(1, 3));

    // Without another write it is saved when the writer has been idle, and a sleeping writer is woken for it.
    for committed in [4, 5] {
        let commits = Arc::new(tokio::sync::Notify::new());
        let notify = commits.clone();
        let on_commit: crate::log::CommitObserver = Arc::new(move |_| notify.notify_one());
        let mut log = SledLog::open(dir.path(), LogOptions { on_commit: Some(on_commit), ..options() }).unwrap();
        if committed == 5 {
            while !crate::log::lock(&log.shared.view).writer_sleeps {
                tokio::task::yield_now().await;
            }
        }
        log.save_committed(Some(log_id(1, committed))).await.unwrap();
        commits.notified().await;
        log.close().await.unwrap();
        assert_eq!(saved(dir.path()), log_id(1, committed));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_left_the_tail_is_read_from_sled_in_bounded_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let small = LogOptions { tail_bytes_max: 50_000, read_bytes_max: 20_000, ..options() };
    let mut log = SledLog::open(dir.path(), small).unwrap();
    for index in 0..100 {
        append(&log, vec![entry(1, index, 5_000)]).await;
    }
    let metrics = log.metrics();
    assert!(metrics.tail_bytes.load(Relaxed) <= 50_000);
    assert_eq!(read(&log, 0..200).await, entries(1, 0..100, 5_000));
    assert!((80..=95).contains(&metrics.entries_read_from_disk.load(Relaxed)));
    for start in [0, 50, 88, 95] {
        let some = log.limited_get_log_entries(start, 100).await.unwrap();
        let bytes: usize = some.len() * 5_088;
        assert!(!some.is_empty() && bytes <= 20_000, "{start}: {}", some.len());
        assert_eq!(some, entries(1, start..start + some.len() as u64, 5_000));
    }
    let before = metrics.entries_read_from_disk.load(Relaxed);
    {
        let stream = log.entries_stream(0..100).await;
        let mut stream = std::pin::pin!(stream);
        assert_eq!(stream.next().await.unwrap().unwrap().log_id, log_id(1, 0));
        let read = metrics.entries_read_from_disk.load(Relaxed) - before;
        assert!(read <= 5, "{read} entries were read for the first one");
        let rest: Vec<_> = stream.map(|e| e.unwrap().log_id.index).collect().await;
        assert_eq!(rest, (1..100).collect::<Vec<_>>());
    }
    log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaders_stream_ends_when_the_vote_changes() {
    let dir = tempfile::tempdir().unwrap();
    let small = LogOptions { tail_bytes_max: 0, read_bytes_max: 300, ..options() };
    let mut log = SledLog::open(dir.path(), small).unwrap();
    log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    append(&log, entries(1, 0..20, 100)).await;
    let leader = Vote::new(1, 1).leader_id;
    let mut reader = log.clone();
    {
        let stream = reader.leader_bounded_stream(leader, 0..20).await;
        let mut stream = std::pin::pin!(stream);
        for index in 0..5 {
            assert_eq!(stream.next().await.unwrap().unwrap().log_id.index, index);
        }
        log.save_vote(&Vote::new(2, 3)).await.unwrap();
        log.truncate_after(Some(log_id(1, 3))).await.unwrap();
        let end = stream.next().await.unwrap();
        assert!(matches!(end, Err(LeaderBoundedStreamError::LeaderChanged(_))), "{end:?}");
        assert!(stream.next().await.is_none());
    }
    let all: Vec<_> = reader.leader_bounded_stream(leader, 0..20).await.collect().await;
    assert!(matches!(all[..], [Err(LeaderBoundedStreamError::LeaderChanged(_))]));
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_hole_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    append(&log, entries(2, 0..3, 10)).await;
    for bad in [entries(2, 4..5, 10), entries(1, 3..4, 10), vec![entry(2, 3, 1), entry(2, 5, 1)]] {
        let error = log.append(bad, openraft::storage::IOFlushed::noop()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    append(&log, entries(2, 3..4, 10)).await;
    assert_eq!(read_indices(&log).await, [0, 1, 2, 3]);
    log.close().await.unwrap();
    assert!(log.save_vote(&Vote::new(1, 1)).await.unwrap_err().to_string().contains("closed"));
}
