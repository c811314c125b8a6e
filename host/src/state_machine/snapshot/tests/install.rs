//! A snapshot becomes the state: in which order who is told, and what is left alone.

use std::sync::Mutex;

use openraft::storage::RaftStateMachine;

use super::*;
use crate::guest::Engine;
use crate::outcome::BatchReplies;
use crate::raft::types::{BatchId as Id, Entry, LogId, SnapshotFile};
use crate::state_machine::snapshot::Snapshots;
use crate::state_machine::{Applied, ApplyFault, Backlog, Gate, Held, StateMachine, View, digest};

/// Remembers what it was told, and what could be read then.
#[derive(Default)]
struct Told {
    events: Mutex<Vec<(String, u64)>>,
    view: std::sync::OnceLock<View>,
    /// Whoever tells it that a batch was applied waits for this.
    busy: Mutex<()>,
}

impl Told {
    fn note(&self, what: String) {
        let readable = self.view.get().map_or(0, |view| view.borrow().applied_index());
        self.events.lock().unwrap().push((what, readable));
    }
}

impl Applied for Told {
    fn applied(&self, id: Id, _: LogId, _: BatchReplies) {
        drop(self.busy.lock().unwrap());
        self.note(format!("applied {}", id.sequence));
    }

    fn term_began(&self, term: u64) {
        self.note(format!("term {term}"));
    }

    fn withheld(&self, id: Id) {
        self.note(format!("withheld {}", id.sequence));
    }

    fn replaced(&self) {
        self.note("replaced".into());
    }
}

/// Nothing is held here.
struct Nothing;

impl Backlog for Nothing {
    fn read(&self, _start: u64, _end: u64) -> std::io::Result<Vec<Entry>> {
        unreachable!("the gate stays open")
    }
}

struct Room {
    machine: StateMachine,
    view: View,
    told: Arc<Told>,
    snapshots: Arc<Snapshots>,
    gate: Arc<Gate>,
    fault: ApplyFault,
    _dir: tempfile::TempDir,
}

fn room() -> Room {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path()).unwrap();
    let told = Arc::new(Told::default());
    let engine = Engine::new().unwrap();
    let gate = Gate::open(dir.path(), &[], None).unwrap();
    let held = Held { gate: gate.clone(), backlog: Box::new(Nothing) };
    let (machine, view, fault) =
        StateMachine::start(engine, snapshots.clone(), told.clone(), Default::default(), held).unwrap();
    let _ = told.view.set(view.clone());
    Room { machine, view, told, snapshots, gate, fault, _dir: dir }
}

impl Room {
    async fn install(&mut self, file: SnapshotFile) -> std::io::Result<()> {
        self.machine.install_snapshot(&file.meta.clone(), file).await
    }

    /// So many events, once they have come.
    async fn told(&self, count: usize) -> Vec<(String, u64)> {
        let come = async {
            while self.told.events.lock().unwrap().len() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(30), come).await.expect("it comes soon");
        self.events()
    }

    fn events(&self) -> Vec<(String, u64)> {
        std::mem::take(&mut *self.told.events.lock().unwrap())
    }
}

/// No module, which would have to be a real one.
fn state(term: u64, index: u64) -> Published {
    Published { active: None, ..full(term, index, map([(vec![1], vec![2; 100_000])]), b"pieces") }
}

#[tokio::test]
async fn tickets_are_closed_before_the_state_is_swapped_and_the_term_is_told_after() {
    let mut room = room();
    let wanted = state(3, 40);
    let file = room.snapshots.build(&wanted).unwrap();
    assert_eq!(room.machine.applied_state().await.unwrap().0, None);
    room.install(file).await.unwrap();
    assert_eq!(room.events(), [("replaced".into(), 0), ("term 3".into(), 40)]);
    let installed = room.view.borrow().clone();
    assert_eq!(digest::content(&installed), digest::content(&wanted));
    assert_eq!((installed.time_ms, installed.first_command), (wanted.time_ms, wanted.first_command));
    assert_eq!(
        (installed.digest, installed.cluster, &installed.pieces),
        (wanted.digest, wanted.cluster, &wanted.pieces)
    );
    assert_eq!(installed.sessions.keys(), 3, "a repeated command must not happen again");
    assert_eq!(room.machine.applied_state().await.unwrap(), (wanted.applied, wanted.membership));
}

#[tokio::test]
async fn entries_go_on_behind_a_snapshot() {
    use crate::log::tests::support::entry;
    let mut room = room();
    let file = room.snapshots.build(&state(3, 40)).unwrap();
    room.install(file).await.unwrap();
    room.events();
    let next = entry(3, 41, 0);
    room.machine.apply(futures_util::stream::iter([Ok((next, None))])).await.unwrap();
    // The term is not told again.
    assert_eq!(room.told(1).await, [("applied 41".into(), 41)]);
}

#[tokio::test]
async fn openraft_may_be_one_group_ahead_of_the_apply_thread() {
    use futures_util::FutureExt;

    use crate::log::tests::support::entry;
    let mut room = room();
    let file = room.snapshots.build(&state(3, 40)).unwrap();
    room.install(file).await.unwrap();
    let told = room.told.clone();
    let busy = told.busy.lock().unwrap();
    let apply = |machine: &mut StateMachine, index| {
        // Too large to be applied at once.
        let next = futures_util::stream::iter([Ok((entry(3, index, 100_000), None))]);
        machine.apply(next).now_or_never().map(Result::unwrap)
    };
    assert!(apply(&mut room.machine, 41).is_some(), "nobody waits for openraft to know");
    assert!(apply(&mut room.machine, 42).is_none(), "what waits is bounded");
    drop(busy);
    room.view.wait_for(|state| state.applied_index() == 41).await.unwrap();
}

#[tokio::test]
async fn a_fault_of_the_apply_thread_needs_no_other_entry_to_be_seen() {
    use crate::log::tests::support::entry;
    let mut room = room();
    let file = room.snapshots.build(&state(3, 40)).unwrap();
    room.install(file).await.unwrap();
    // One is missing.
    let applied = room.machine.apply(futures_util::stream::iter([Ok((entry(3, 42, 0), None))])).await;
    assert!(applied.is_ok(), "openraft is told before it is tried");
    let met = tokio::time::timeout(std::time::Duration::from_secs(30), room.fault.clone().met()).await;
    assert!(met.expect("the node is told").contains("panicked"));
    assert!(room.machine.apply(futures_util::stream::iter([Ok((entry(3, 43, 0), None))])).await.is_err());
}

#[tokio::test]
async fn an_older_snapshot_changes_nothing() {
    let mut room = room();
    let (older, newer) = (room.snapshots.build(&state(3, 30)).unwrap(), room.snapshots.build(&state(3, 40)).unwrap());
    room.install(newer).await.unwrap();
    room.events();
    room.install(older).await.unwrap();
    assert_eq!((room.events(), room.view.borrow().applied_index()), (vec![], 40));
}

#[tokio::test]
async fn openraft_is_not_given_a_snapshot_that_is_beyond_the_state() {
    let mut room = room();
    let first = room.snapshots.build(&state(3, 30)).unwrap();
    let index = |found: Option<openraft::alias::SnapshotOf<crate::raft::types::TypeConfig, SnapshotFile>>| {
        found.map(|s| s.meta.last_log_id.unwrap().index)
    };
    assert_eq!(index(room.machine.get_current_snapshot().await.unwrap()), Some(30));
    room.install(first).await.unwrap();
    room.snapshots.build(&state(3, 40)).unwrap();
    assert_eq!(index(room.machine.get_current_snapshot().await.unwrap()), Some(30));
}

#[tokio::test]
async fn a_file_that_was_damaged_meanwhile_is_not_installed() {
    let mut room = room();
    let file = room.snapshots.build(&state(3, 40)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&file.path).unwrap().set_len(file.bytes - 1).unwrap();
    let (path, error) = (file.path.clone(), room.install(file).await.unwrap_err().to_string());
    assert!(error.contains(path.to_str().unwrap()), "{error}");
    assert_eq!((room.events(), room.view.borrow().applied), (vec![], None));
}

/// The leader's stamp at an index says that one of the two nodes is wrong.
#[tokio::test]
async fn a_batch_that_was_applied_beside_a_wrong_stamp_is_withheld_before_the_term_is_told() {
    use crate::log::tests::support::entry;
    use openraft::EntryPayload;
    let mut room = room();
    let file = room.snapshots.build(&state(3, 40)).unwrap();
    room.install(file).await.unwrap();
    room.events();
    room.gate.follow(Some(4));
    let (batch, mut wrong) = (entry(4, 41, 0), entry(4, 42, 0));
    let EntryPayload::Normal(proposal) = &mut wrong.payload else { panic!("a batch") };
    (proposal.envelope.stamp_index, proposal.envelope.stamp_digest) = (40, [0xee; 16]);
    room.machine.apply(futures_util::stream::iter([Ok((batch, None)), Ok((wrong, None))])).await.unwrap();
    assert_eq!(room.told(2).await, [("withheld 41".into(), 41), ("term 4".into(), 41)]);
    assert!(room.gate.may_serve().is_err());
}
