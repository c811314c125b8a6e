//! openraft's view of the state machine (step 6 of 8): committed entries arrive here as a stream. They are applied
//! on a thread of their own, so that no module can hold up an election. Next: `replica.rs`.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use futures_util::{FutureExt, Stream, StreamExt};
use openraft::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{OptionalSend, RaftSnapshotBuilder};
use tokio::sync::{oneshot, watch};

use super::replica::{Done, Replica};
use super::{Applied, Published, View};
use crate::guest::{Engine, STACK_BYTES};
use crate::metrics::Metrics;
use crate::raft::types::{Entry, LogId, SnapshotFile, StoredMembership, TypeConfig};

/// So many entries are applied before their state is published and their replies go out.
const GROUP_MAX: usize = 64;
/// Beside what a guest may use.
const HOST_STACK_BYTES: usize = 4 << 20;

struct Group {
    entries: Vec<Entry>,
    applied: oneshot::Sender<io::Result<()>>,
}

pub struct StateMachine {
    view: View,
    /// None when it is being dropped.
    groups: Option<mpsc::Sender<Group>>,
    thread: Option<JoinHandle<()>>,
}

impl StateMachine {
    /// Starts the apply thread, with an empty state.
    pub fn start(engine: Engine, sink: Arc<dyn Applied>, metrics: Arc<Metrics>) -> io::Result<(StateMachine, View)> {
        let replica = Replica::new(engine, metrics.clone());
        let (publish, view) = watch::channel(Arc::new(replica.state()));
        let (groups, incoming) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("apply".into())
            .stack_size(STACK_BYTES + HOST_STACK_BYTES)
            .spawn(move || run(replica, &incoming, &publish, &*sink, &metrics))?;
        let state_machine = StateMachine { view: view.clone(), groups: Some(groups), thread: Some(thread) };
        Ok((state_machine, view))
    }
}

impl Drop for StateMachine {
    fn drop(&mut self) {
        drop(self.groups.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the apply thread panicked");
        }
    }
}

fn run(
    mut replica: Replica,
    incoming: &mpsc::Receiver<Group>,
    publish: &watch::Sender<Arc<Published>>,
    sink: &dyn Applied,
    metrics: &Metrics,
) {
    let mut term = 0;
    while let Ok(Group { entries, applied }) = incoming.recv() {
        let started = std::time::Instant::now();
        let mut done = Vec::with_capacity(entries.len());
        let mut result = Ok(());
        for entry in entries {
            match replica.apply(entry) {
                Ok(d) => done.extend(d),
                Err(fault) => {
                    tracing::error!("{fault}");
                    result = Err(io::Error::other(fault.to_string()));
                    break;
                }
            }
        }
        let state = Arc::new(replica.state());
        let latest_term = state.applied.map_or(0, |l| l.leader_id.term);
        // Readable first, answered then: a client that was answered finds its write, even with a stale read here.
        publish.send_replace(state);
        for Done { id, log_id, replies } in done {
            sink.applied(id, log_id, replies);
        }
        if latest_term > term {
            term = latest_term;
            sink.term_began(term);
        }
        metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
        let failed = result.is_err();
        let _ = applied.send(result);
        if failed {
            return;
        }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = NoSnapshots;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.view.borrow();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let stopped = || io::Error::other("the apply thread has stopped");
        while let Some(first) = entries.next().await {
            let (entry, responder) = first?;
            let mut group = vec![entry];
            let mut responders = vec![responder];
            while group.len() < GROUP_MAX
                && let Some(Some(more)) = entries.next().now_or_never()
            {
                let (entry, responder) = more?;
                group.push(entry);
                responders.push(responder);
            }
            let (applied, done) = oneshot::channel();
            let groups = self.groups.as_ref().ok_or_else(stopped)?;
            groups.send(Group { entries: group, applied }).map_err(|_| stopped())?;
            done.await.map_err(|_| stopped())??;
            for responder in responders.into_iter().flatten() {
                responder.send(());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> NoSnapshots {
        NoSnapshots
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let _ = snapshot;
        Err(io::Error::new(io::ErrorKind::Unsupported, "snapshots are not installed yet"))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<TypeConfig, SnapshotFile>>, io::Error> {
        Ok(None)
    }
}

/// Snapshots are never asked for: the policy is `Never`, and the log is kept whole.
pub struct NoSnapshots;

impl RaftSnapshotBuilder<TypeConfig> for NoSnapshots {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, SnapshotFile>, io::Error> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "this version keeps the whole log and builds no snapshots"))
    }
}
