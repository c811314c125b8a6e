//! What the log's tests share: entries, a log in a temporary folder, and openraft's calls with their callbacks.

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::RaftLogReader;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use tokio::sync::oneshot;

use crate::log::{LogOptions, OpenError, SledLog};
use crate::raft::codec::log_id;
use crate::raft::types::{BatchId, Entry, Envelope, Kind, Proposal, TypeConfig};

/// An entry whose payload has this many bytes, which tell its term and index apart from others'.
pub(crate) fn entry(term: u64, index: u64, payload_bytes: usize) -> Entry {
    let id = BatchId { node: 1, boot: term, sequence: index };
    let envelope = Envelope { kind: Kind::Batch, id, time_ms: 7, stamp_index: 0, stamp_digest: [0; 16] };
    let seed = (term * 31 + index * 7) as u8;
    let bytes: Bytes = (0..payload_bytes).map(|i| seed.wrapping_add(i as u8)).collect::<Vec<u8>>().into();
    Entry::new(log_id(term, index), EntryPayload::Normal(Proposal { envelope, bytes }))
}

/// Entries of one term with these indices.
pub(crate) fn entries(term: u64, indices: std::ops::Range<u64>, payload_bytes: usize) -> Vec<Entry> {
    indices.map(|index| entry(term, index, payload_bytes)).collect()
}

/// Small sizes, so that a few entries already fill segments and many chunks.
pub(crate) fn options() -> LogOptions {
    LogOptions { segment_bytes: 128 << 10, chunk_bytes: 1 << 10, ..LogOptions::default() }
}

/// Waits a moment for the lock: between fork and exec a child that another test starts has this process's descriptors,
/// and with them locks that were just given back.
pub(crate) fn open(dir: &Path) -> SledLog {
    let deadline = std::time::Instant::now() + Duration::from_secs(1);
    loop {
        match SledLog::open(dir, options()) {
            Err(OpenError::Locked(_)) if std::time::Instant::now() < deadline => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

/// Queues an append; the receiver gets its callback's result.
pub(crate) async fn queue(log: &SledLog, entries: Vec<Entry>) -> oneshot::Receiver<io::Result<()>> {
    let (tx, rx) = TypeConfig::oneshot();
    log.clone().append(entries, IOFlushed::<TypeConfig>::signal(tx)).await.unwrap();
    rx
}

/// Appends and waits until it is durable.
pub(crate) async fn append(log: &SledLog, entries: Vec<Entry>) {
    queue(log, entries).await.await.unwrap().unwrap();
}

pub(crate) async fn read(log: &SledLog, range: std::ops::Range<u64>) -> Vec<Entry> {
    log.clone().try_get_log_entries(range).await.unwrap()
}

pub(crate) async fn read_indices(log: &SledLog) -> Vec<u64> {
    read(log, 0..u64::MAX).await.iter().map(|e| e.log_id.index).collect()
}

/// No file may ever be in sled's folder of blobs: nothing syncs them.
pub(crate) fn assert_no_blobs(dir: &Path) {
    assert_eq!(std::fs::read_dir(dir.join("sled/blobs")).unwrap().count(), 0, "blob files appeared");
}

/// Waits until sled has what was acknowledged.
pub(crate) fn settled(log: &SledLog) {
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let is_settled = || {
        let view = log.shared.view.lock().unwrap();
        view.written == view.ticket
    };
    while !is_settled() {
        assert!(std::time::Instant::now() < deadline, "the writer has not come to an end");
        std::thread::yield_now();
    }
}

/// Empties the journal of a closed log, as if many commits had come since: it would mend what is damaged in sled.
pub(crate) fn forget_journal(dir: &Path) {
    let path = dir.join("journal");
    let bytes = std::fs::metadata(&path).unwrap().len();
    std::fs::write(&path, vec![0; bytes as usize]).unwrap();
}

/// Changes the tree of a closed log behind its back.
pub(crate) fn tamper(dir: &Path, change: impl FnOnce(&sled::Db)) {
    let config = sled::Config::new().path(dir.join("sled")).segment_size(128 << 10).flush_every_ms(None);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let db = loop {
        match config.open() {
            Ok(db) => break db,
            Err(e) if std::time::Instant::now() > deadline => panic!("{e}"),
            Err(_) => std::thread::yield_now(),
        }
    };
    change(&db);
    db.flush().unwrap();
    forget_journal(dir);
}

/// Stands before each fdatasync: lets it pass, holds it, or makes it fail.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    held: bool,
    waiting: u32,
    passed: u32,
    fail: bool,
}

impl Gate {
    pub(crate) fn options(&self) -> LogOptions {
        let gate = self.clone();
        LogOptions { before_sync: Some(Arc::new(move || gate.pass())), ..options() }
    }

    pub(crate) fn pass(&self) -> io::Result<()> {
        let (state, changed) = &*self.0;
        let mut state = state.lock().unwrap();
        state.waiting += 1;
        changed.notify_all();
        state = changed.wait_while(state, |state| state.held).unwrap();
        state.waiting -= 1;
        state.passed += 1;
        if state.fail { Err(io::Error::other("injected")) } else { Ok(()) }
    }

    fn set(&self, change: impl FnOnce(&mut GateState)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    pub(crate) fn hold(&self) {
        self.set(|state| state.held = true);
    }

    pub(crate) fn release(&self) {
        self.set(|state| state.held = false);
    }

    pub(crate) fn fail(&self) {
        self.set(|state| (state.fail, state.held) = (true, false));
    }

    pub(crate) fn passed(&self) -> u32 {
        self.0.0.lock().unwrap().passed
    }

    /// Until the writer stands before the gate.
    pub(crate) fn wait_until_held(&self) {
        let (state, changed) = &*self.0;
        let state = state.lock().unwrap();
        let (_state, timeout) =
            changed.wait_timeout_while(state, Duration::from_secs(20), |state| state.waiting == 0).unwrap();
        assert!(!timeout.timed_out(), "the writer never came to a sync");
    }
}
