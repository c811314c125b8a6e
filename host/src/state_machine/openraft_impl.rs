//! openraft's view of the state machine (step 6 of 8): committed entries arrive here as a stream. They are applied
//! on a thread of their own, so that no module can hold up an election; only what is light and next is applied at once,
//! on the thread of openraft's task. Next: `applier.rs`, `apply_thread.rs`.

use std::io;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use futures_util::{FutureExt, Stream, StreamExt};
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use tokio::sync::{oneshot, watch};

use super::applier::{Applier, ApplyAhead, Shared};
use super::apply_thread::{self, Fault, Group, Work};
use super::feed::Feed;
use super::replica::{Replica, restore};
use super::snapshot::Snapshots;
use super::{Applied, Backlog, Gate, Published, View};
use crate::failpoint;
use crate::guest::{Engine, Module, STACK_BYTES};
use crate::metrics::Metrics;
use crate::raft::types::{Entry, LogId, SnapshotFile, StoredMembership, TypeConfig};

/// So many entries are applied before their state is published and their replies go out.
pub(super) const GROUP_MAX: usize = 64;
/// Beside what a guest may use.
const HOST_STACK_BYTES: usize = 4 << 20;
/// Of each thread that may apply: the apply thread and those of the runtime.
pub const APPLY_STACK_BYTES: usize = STACK_BYTES + HOST_STACK_BYTES;

/// What decides whether entries are applied, and where those come from that were held.
pub struct Held {
    pub gate: Arc<Gate>,
    pub backlog: Box<dyn Backlog>,
}

pub struct StateMachine {
    engine: Engine,
    view: View,
    snapshots: Arc<Snapshots>,
    applier: Shared,
    /// Whoever applies on the runtime's threads holds it: openraft's task, or what applies ahead.
    turn: Arc<tokio::sync::Mutex<()>>,
    fault: Fault,
    /// None when it is being dropped.
    work: Option<mpsc::Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    /// The group that openraft believes to be applied.
    believed: Option<oneshot::Receiver<io::Result<()>>>,
}

/// Why nothing is applied any more: a fault of this machine or a panic, of the apply thread, of openraft's task or of the one
/// that applies ahead. Never,
/// if they are ended in good order.
#[derive(Clone)]
pub struct ApplyFault(watch::Receiver<Option<String>>);

impl ApplyFault {
    pub async fn met(mut self) -> String {
        let met = self.0.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
        match met {
            Some(why) => why,
            None => std::future::pending().await,
        }
    }
}

impl StateMachine {
    /// Starts the apply thread, with an empty state: openraft installs the newest snapshot first.
    pub fn start(
        engine: Engine,
        snapshots: Arc<Snapshots>,
        sink: Arc<dyn Applied>,
        metrics: Arc<Metrics>,
        held: Held,
    ) -> io::Result<(StateMachine, View, ApplyFault)> {
        let replica = Replica::new(engine.clone(), metrics.clone());
        let (publish, view) = watch::channel(Arc::new(replica.state()));
        let (work, incoming) = mpsc::channel();
        let Held { gate, backlog } = held;
        let feed = Feed::new(gate.clone(), backlog);
        let (fault, met) = watch::channel(None);
        let fault = Fault(fault);
        let applier = Applier { replica, publish, sink, metrics, gate, term: 0, light_pause: 0, ahead: None };
        let applier: Shared = Arc::new(Mutex::new(applier));
        let (shared, tells, seen) = (applier.clone(), fault.clone(), view.clone());
        let thread = std::thread::Builder::new()
            .name("apply".into())
            .stack_size(APPLY_STACK_BYTES)
            .spawn(move || apply_thread::run(&shared, &seen, feed, &incoming, &tells))?;
        let (work, thread) = (Some(work), Some(thread));
        let view_too = view.clone();
        let state_machine = StateMachine {
            engine,
            view: view_too,
            snapshots,
            applier,
            turn: Arc::default(),
            fault,
            work,
            thread,
            believed: None,
        };
        Ok((state_machine, view, ApplyFault(met)))
    }

    /// Applies the group here as far as that is light; returns the rest. Never waits.
    fn apply_here(&self, entries: Vec<Entry>) -> Vec<Entry> {
        let _watch = self.fault.watch();
        match self.applier.try_lock() {
            Ok(mut applier) => applier.apply_lightly(entries),
            // The apply thread is at work, or is no more.
            Err(_) => entries,
        }
    }

    /// What applies entries ahead of their commit.
    pub fn ahead(&self) -> ApplyAhead {
        ApplyAhead::new(&self.applier, &self.fault, &self.turn)
    }

    #[cfg(test)]
    pub(super) fn turn_of_ahead(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.turn.clone()
    }

    fn hand_over(&self, work: Work) -> io::Result<()> {
        self.work.as_ref().ok_or_else(stopped)?.send(work).map_err(|_| stopped())
    }

    /// The newest snapshot that openraft may know of: one that was fetched and not installed yet is beyond its log. At
    /// the start, when nothing is applied, it is about to be installed.
    fn newest(&self) -> Option<SnapshotOf<TypeConfig, SnapshotFile>> {
        let applied = self.view.borrow().applied;
        let known = |file: &SnapshotFile| applied.is_none() || file.meta.last_log_id <= applied;
        let snapshot = self.snapshots.kept().into_iter().find(known)?;
        Some(SnapshotOf::<TypeConfig, SnapshotFile> { meta: snapshot.meta.clone(), snapshot })
    }
}

fn stopped() -> io::Error {
    io::Error::other("the apply thread has stopped")
}

impl Drop for StateMachine {
    fn drop(&mut self) {
        drop(self.work.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the apply thread panicked");
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Newest;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        // openraft asks after it has had what was committed applied again at its start, and then the node is ready.
        if let Some(before) = self.believed.take() {
            before.await.map_err(|_| stopped())??;
        }
        let state = self.view.borrow();
        Ok((state.applied, state.membership.clone()))
    }

    /// Nobody waits for openraft to learn that entries without a responder are applied, as all are on a follower: their
    /// clients are answered by whoever applies, and to tell openraft costs a change of threads for each round. So it is
    /// told at once, one group ahead, which bounds what waits. It believes more to be applied than is, as while a gate is
    /// closed (`feed.rs`).
    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(first) = entries.next().await {
            let (entry, responder) = first?;
            let mut group = vec![entry];
            let mut responders = vec![responder];
            let mut is_last = false;
            while group.len() < GROUP_MAX && !is_last {
                match entries.next().now_or_never() {
                    Some(Some(more)) => {
                        let (entry, responder) = more?;
                        group.push(entry);
                        responders.push(responder);
                    }
                    Some(None) | None => is_last = true,
                }
            }
            // Many groups in a row, as at the start, would hold up others even if each is light.
            if is_last {
                // On a follower newer entries have just been logged. If the log's writer was woken on this processor, it
                // would begin their sync, for which the leader waits, only when this is done.
                if responders.iter().all(Option::is_none) {
                    std::thread::yield_now();
                }
                let turn = self.turn.lock().await;
                group = self.apply_here(group);
                drop(turn);
                if group.is_empty() {
                    responders.into_iter().flatten().for_each(|responder| responder.send(()));
                    tokio::task::yield_now().await;
                    continue;
                }
            }
            if let Some(before) = self.believed.take() {
                before.await.map_err(|_| stopped())??;
            }
            let (applied, done) = oneshot::channel();
            self.hand_over(Work::Apply(Group { entries: group, applied }))?;
            if responders.iter().all(Option::is_none) {
                self.believed = Some(done);
                continue;
            }
            done.await.map_err(|_| stopped())??;
            for responder in responders.into_iter().flatten() {
                responder.send(());
            }
        }
        Ok(())
    }

    /// Snapshots are made elsewhere (`raft/compaction.rs`), because an error here would stop the node, and a full disk is
    /// no reason to. openraft is given the newest one, and asks only after there is one.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Newest> {
        let newest = self.newest();
        (newest.is_some() || force).then_some(Newest(newest))
    }

    async fn get_snapshot_builder(&mut self) -> Newest {
        Newest(self.newest())
    }

    /// The file is loaded on a thread of its own, while older entries are still applied; then the state is swapped
    /// between two of them.
    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let (engine, snapshots) = (self.engine.clone(), self.snapshots.clone());
        let active = self.view.borrow().module.clone();
        let (tx, rx) = oneshot::channel();
        let load = move || {
            let _ = tx.send(load(&engine, &snapshots, &snapshot, active.as_ref()));
        };
        // As much stack as the apply thread: a module describes itself when it is compiled.
        std::thread::Builder::new().name("install".into()).stack_size(APPLY_STACK_BYTES).spawn(load)?;
        let state = rx.await.map_err(|_| io::Error::other("the thread that read the snapshot panicked"))??;
        let (replaced, done) = oneshot::channel();
        self.hand_over(Work::Replace { state: Box::new(state), replaced })?;
        done.await.map_err(|_| stopped())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>, io::Error> {
        Ok(self.newest())
    }
}

fn load(engine: &Engine, snapshots: &Snapshots, file: &SnapshotFile, active: Option<&Module>) -> io::Result<Published> {
    failpoint!("snapshot.install", io);
    let started = std::time::Instant::now();
    let loaded = snapshots.load(file).map_err(io::Error::other)?;
    let state = restore(engine, loaded, active).map_err(|fault| io::Error::other(fault.to_string()))?;
    tracing::info!(
        index = state.applied_index(),
        keys = state.map.len(),
        ms = started.elapsed().as_millis() as u64,
        "the state was read from {}",
        file.path.display()
    );
    Ok(state)
}

/// Gives openraft the newest snapshot there is.
pub struct Newest(Option<SnapshotOf<TypeConfig, SnapshotFile>>);

impl RaftSnapshotBuilder<TypeConfig> for Newest {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotFile>, io::Error> {
        // openraft asks for one at the start when the log was purged and there is none: of an empty state, then. The
        // node's start refuses that before; this is the second line.
        self.0.take().ok_or_else(|| io::Error::other("the log was purged, but there is no usable snapshot"))
    }
}
