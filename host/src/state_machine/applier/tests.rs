//! Who applies what: openraft's task what is light and next, the apply thread all else, in the log's order.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::ThreadId;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use openraft::storage::RaftStateMachine;
use raftlet_machine::{Batch, Method};

use super::*;
use crate::config::SkipEntry;
use crate::guest::Limits;
use crate::guest::tests::assemble::{Guest, mark_and};
use crate::guest::tests::{ENGINE, request};
use crate::outcome::BatchReplies;
use crate::raft::codec::log_id;
use crate::raft::types::{BatchId, Envelope, LogId, Proposal};
use crate::state_machine::health::{Doubt, What, Why};
use crate::state_machine::note::Note;
use crate::state_machine::snapshot::Snapshots;
use crate::state_machine::{Activation, ApplyFault, Backlog, Held, StateMachine};

/// Commands that trap: those at the position 1 of a batch.
const TRAPS_AT: usize = 1;

/// Who told what.
#[derive(Default)]
struct Told {
    events: Mutex<Vec<(u64, String, ThreadId)>>,
    /// Whoever tells that a batch was applied waits for this.
    busy: Mutex<()>,
    panics: AtomicBool,
}

impl Applied for Told {
    fn applied(&self, id: BatchId, _: LogId, replies: BatchReplies) {
        drop(self.busy.lock().unwrap());
        assert!(!self.panics.load(Relaxed), "as the test wants it");
        let letters =
            replies.into_each().iter().map(|r| if format!("{r:?}").contains("Trap") { 'T' } else { '.' }).collect();
        self.events.lock().unwrap().push((id.sequence, letters, std::thread::current().id()));
    }

    fn term_began(&self, _: u64) {}

    fn withheld(&self, _: BatchId) {
        panic!("nothing is withheld");
    }

    fn replaced(&self) {}
}

/// All entries there ever were.
struct Log;

impl Backlog for Log {
    fn read(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        Ok((start..end).map(|index| batch(index, 2)).collect())
    }
}

fn entry(index: u64, kind: Kind, bytes: Bytes) -> Entry {
    let id = BatchId { node: 1, boot: 1, sequence: index };
    let envelope = Envelope { kind, id, time_ms: 7, stamp_index: 0, stamp_digest: [0; 16] };
    Entry::new(log_id(1, index), EntryPayload::Normal(Proposal { envelope, bytes }))
}

/// Of so many commands; with two of them one traps, with one none does.
fn batch(index: u64, commands: usize) -> Entry {
    let commands = vec![request(Method::Post, "/", b""); commands];
    entry(index, Kind::Batch, Batch { commands }.to_bytes().into())
}

fn large(index: u64) -> Entry {
    let commands = vec![request(Method::Post, "/", &vec![0; LIGHT_BYTES_MAX])];
    entry(index, Kind::Batch, Batch { commands }.to_bytes().into())
}

fn module() -> Vec<u8> {
    mark_and(&[TRAPS_AT], "unreachable").core()
}

/// The first two entries.
fn founding(module: &[u8]) -> [Entry; 2] {
    let activation = Activation::of(module, 7, Limits::default(), ENGINE.identity());
    let chunk = Bytes::copy_from_slice(module);
    [entry(0, Kind::ModuleChunk, chunk), entry(1, Kind::ActivateModule, activation.to_bytes())]
}

struct Room {
    machine: StateMachine,
    told: Arc<Told>,
    gate: Arc<Gate>,
    fault: ApplyFault,
    _dir: tempfile::TempDir,
}

impl Room {
    /// With a module; the next index is 2.
    async fn new() -> Room {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::open(dir.path()).unwrap();
        let told = Arc::new(Told::default());
        let gate = Gate::open(dir.path(), &[], None).unwrap();
        let held = Held { gate: gate.clone(), backlog: Box::new(Log) };
        let (machine, _, fault) =
            StateMachine::start(ENGINE.clone(), snapshots, told.clone(), Default::default(), held).unwrap();
        let mut room = Room { machine, told, gate, fault, _dir: dir };
        room.apply(founding(&module())).await;
        room.settles().await;
        room
    }

    async fn apply(&mut self, entries: impl IntoIterator<Item = Entry>) {
        let entries: Vec<_> = entries.into_iter().map(|entry| Ok((entry, None))).collect();
        self.machine.apply(futures_util::stream::iter(entries)).await.unwrap();
    }

    /// Until the apply thread has done what it was given.
    async fn settles(&mut self) {
        let settled = tokio::time::timeout(Duration::from_secs(30), self.machine.applied_state());
        settled.await.expect("it comes soon").unwrap();
    }

    /// Index, letters, and whether it was applied on this thread; once there are so many.
    async fn told(&self, count: usize) -> Vec<(u64, String, bool)> {
        let come = async {
            while self.told.events.lock().unwrap().len() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), come).await.expect("it comes soon");
        let here = std::thread::current().id();
        let events = std::mem::take(&mut *self.told.events.lock().unwrap());
        events.into_iter().map(|(index, letters, thread)| (index, letters, thread == here)).collect()
    }
}

fn told(events: &[(u64, &str, bool)]) -> Vec<(u64, String, bool)> {
    events.iter().map(|(index, letters, here)| (*index, (*letters).to_owned(), *here)).collect()
}

#[tokio::test]
async fn a_light_group_is_applied_at_once_and_a_large_one_by_the_apply_thread() {
    let mut room = Room::new().await;
    room.apply([batch(2, 1), batch(3, 1)]).await;
    assert_eq!(room.told(2).await, told(&[(2, ".", true), (3, ".", true)]));
    room.apply([large(4)]).await;
    assert_eq!(room.told(1).await, told(&[(4, ".", false)]));
    room.settles().await;
    room.apply([batch(5, 1)]).await;
    assert_eq!(room.told(1).await, told(&[(5, ".", true)]));
}

#[tokio::test]
async fn what_comes_while_the_apply_thread_is_at_work_waits_its_turn() {
    let mut room = Room::new().await;
    let sink = room.told.clone();
    let busy = sink.busy.lock().unwrap();
    assert!(room.apply([large(2)]).now_or_never().is_some(), "nobody waits for openraft to know");
    {
        let mut second = std::pin::pin!(room.apply([batch(3, 1)]));
        assert!(second.as_mut().now_or_never().is_none(), "what waits is bounded");
        drop(busy);
        second.await;
    }
    assert_eq!(room.told(2).await, told(&[(2, ".", false), (3, ".", false)]));
}

#[tokio::test]
async fn a_command_that_fails_is_the_apply_threads_and_so_are_the_next_groups() {
    let mut room = Room::new().await;
    // The first of them is light; the rest of the group isn't.
    room.apply([batch(2, 1), batch(3, 2), batch(4, 1)]).await;
    assert_eq!(room.told(3).await, told(&[(2, ".", true), (3, ".T", false), (4, ".", false)]));
    let next = 5 + u64::from(LIGHT_PAUSE_GROUPS);
    for index in 5..next {
        room.settles().await;
        room.apply([batch(index, 1)]).await;
        assert_eq!(room.told(1).await, told(&[(index, ".", false)]));
    }
    room.settles().await;
    room.apply([batch(next, 1)]).await;
    assert_eq!(room.told(1).await, told(&[(next, ".", true)]));
}

#[tokio::test]
async fn many_groups_in_a_row_are_not_applied_at_once() {
    let mut room = Room::new().await;
    room.apply((2..200).map(|index| batch(index, 1))).await;
    let told = room.told(198).await;
    assert!(told.iter().map(|(index, ..)| *index).eq(2..200), "in order");
    assert!(told[..128].iter().all(|(_, _, here)| !here));
}

#[tokio::test]
async fn what_a_closed_gate_held_comes_before_what_is_light() {
    let mut room = Room::new().await;
    // While the apply thread waits for its next group.
    room.apply([batch(2, 1)]).await;
    assert_eq!(room.told(1).await, told(&[(2, ".", true)]));
    room.gate.doubt(Doubt { what: What::Chain, index: 1, why: Why::NoMajority { digests: String::new() } });
    room.apply([batch(3, 1), batch(4, 1)]).await;
    room.apply([batch(5, 1)]).await;
    room.apply([batch(6, 1)]).await;
    assert_eq!(room.told(0).await, []);
    room.gate.cleared(What::Chain, 1);
    // The log's are of two commands, so that they can be told apart.
    assert_eq!(room.told(4).await, told(&[(3, ".T", false), (4, ".T", false), (5, ".T", false), (6, ".T", false)]));
}

#[tokio::test]
async fn a_panic_on_openrafts_task_is_told_to_the_node() {
    let mut room = Room::new().await;
    room.told.panics.store(true, Relaxed);
    let fault = room.fault.clone();
    let task = tokio::spawn(async move { room.apply([batch(2, 1)]).await });
    assert!(task.await.is_err());
    let met = tokio::time::timeout(Duration::from_secs(30), fault.met()).await;
    assert!(met.expect("the node is told").contains("panicked"));
}

/// An applier by itself, with a module; the next index is 2.
fn applier(dir: &std::path::Path, skips: &[SkipEntry], module: &[u8]) -> Applier {
    let replica = Replica::new(ENGINE.clone(), Arc::default());
    let publish = watch::Sender::new(Arc::new(replica.state()));
    let (sink, gate) = (Arc::new(Told::default()), Gate::open(dir, skips, None).unwrap());
    let mut applier =
        Applier { replica, publish, sink, metrics: Arc::default(), gate, term: 0, light_pause: 0, ahead: None };
    applier.apply(founding(module).into()).unwrap();
    applier
}

#[test]
fn only_what_is_next_is_light() {
    let dir = tempfile::tempdir().unwrap();
    let mut applier = applier(dir.path(), &[], &module());
    // What comes before it is with the apply thread, or with the gate.
    assert_eq!(applier.apply_lightly(vec![batch(3, 1)]).len(), 1);
    assert_eq!(applier.apply_lightly(vec![batch(2, 1), batch(3, 1)]).len(), 0);
    assert_eq!(applier.apply_lightly(vec![batch(3, 1)]).len(), 1);
    assert_eq!(applier.replica.state.applied_index(), 3);
}

#[test]
fn what_is_skipped_or_given_up_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let skip = SkipEntry { index: 2, checksum: [0; 8] };
    let mut applier = applier(dir.path(), &[skip], &module());
    // To skip it may write to the disk.
    assert_eq!(applier.apply_lightly(vec![batch(2, 1)]).len(), 1);
    applier.apply(vec![batch(2, 1)]).unwrap();
    let before = applier.replica.state();
    assert_eq!(applier.apply_lightly(vec![batch(3, TRAPS_AT + 1)]).len(), 1);
    let after = applier.replica.state();
    assert_eq!((after.applied, after.digest, after.map.len()), (before.applied, before.digest, before.map.len()));
    drop(applier);
    assert_eq!(Note::open(dir.path()).unwrap().1, None, "nobody died of it");
}

#[test]
fn a_light_group_ends_when_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let burns = "(local $i i32) (local.set $i (i32.const 180000))
        (loop $again (br_if $again (local.tee $i (i32.sub (local.get $i) (i32.const 1))))) (i32.const 0)";
    let mut applier = applier(dir.path(), &[], &Guest::new(burns).core());
    // Each within the fuel; all of them would take some 30 ms.
    let left = applier.apply_lightly((2..62).map(|index| batch(index, 1)).collect());
    assert!((1..60).contains(&left.len()), "{} are left", left.len());
    let next = left[0].log_id().index;
    assert_eq!(applier.replica.state.applied_index() + 1, next);
    // That was no failure.
    assert_eq!(applier.apply_lightly(vec![batch(next, 1)]).len(), 0);
}

/// Index, digest and number of keys.
fn looks(state: &Published) -> (u64, [u8; 32], u64) {
    (state.applied_index(), state.digest, state.map.len())
}

/// With another term, as if another leader had written it.
fn of_term(term: u64, entry: Entry) -> Entry {
    Entry::new(log_id(term, entry.log_id().index), entry.payload)
}

#[test]
fn what_is_applied_ahead_is_seen_when_it_is_committed() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut ahead = applier(dir.path(), &[], &module());
    let mut plain = applier(other.path(), &[], &module());
    for (index, taken) in [(2, 1), (3, 2)] {
        let before = looks(&ahead.replica.state);
        ahead.apply_ahead(&batch(index, 1));
        // A second time it is known, and what is not next waits.
        ahead.apply_ahead(&batch(index, 1));
        ahead.apply_ahead(&batch(index + 1, 1));
        assert_eq!(looks(&ahead.replica.state), before, "not yet");
        assert_eq!(looks(&ahead.publish.borrow()), before, "nor for readers");
        assert_eq!(ahead.gate.applied(), Some(index - 1), "nobody is told of its digest");
        assert_eq!(ahead.apply_lightly(vec![batch(index, 1)]).len(), 0);
        assert_eq!(plain.apply_lightly(vec![batch(index, 1)]).len(), 0);
        assert_eq!(looks(&ahead.replica.state), looks(&plain.replica.state));
        assert_eq!(looks(&ahead.publish.borrow()), looks(&plain.publish.borrow()));
        assert_eq!(ahead.metrics.applied_ahead.get(), taken);
    }
    // The apply thread takes it just as well.
    ahead.apply_ahead(&batch(4, 1));
    ahead.apply(vec![batch(4, 1), batch(5, 1)]).unwrap();
    plain.apply(vec![batch(4, 1), batch(5, 1)]).unwrap();
    assert_eq!(looks(&ahead.replica.state), looks(&plain.replica.state));
    assert_eq!((ahead.metrics.applied_ahead.get(), plain.metrics.applied_ahead.get()), (3, 0));
}

#[test]
fn what_was_applied_ahead_of_an_entry_that_is_overwritten_has_no_effect() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut ahead = applier(dir.path(), &[], &module());
    let mut plain = applier(other.path(), &[], &module());
    ahead.apply_ahead(&batch(2, 1));
    // The next leader's entry at the same index.
    for applier in [&mut ahead, &mut plain] {
        assert_eq!(applier.apply_lightly(vec![of_term(2, Entry::new(log_id(2, 2), EntryPayload::Blank))]).len(), 0);
    }
    assert_eq!(looks(&ahead.replica.state), looks(&plain.replica.state));
    // And one that was tried on a state that another one has replaced.
    ahead.apply_ahead(&of_term(2, batch(3, 1)));
    let mut newer = plain.replica.state();
    newer.applied = Some(log_id(2, 3));
    ahead.replace(newer.clone());
    plain.replace(newer);
    for applier in [&mut ahead, &mut plain] {
        assert_eq!(applier.apply_lightly(vec![of_term(2, batch(4, 1))]).len(), 0);
    }
    assert_eq!(looks(&ahead.replica.state), looks(&plain.replica.state));
    assert_eq!(ahead.metrics.applied_ahead.get(), 0);
    // Terms never go back.
    ahead.apply_ahead(&batch(5, 1));
    assert!(ahead.ahead.is_none());
}

#[test]
fn nothing_is_applied_ahead_that_is_held_skipped_or_not_light() {
    let dir = tempfile::tempdir().unwrap();
    let mut applier = applier(dir.path(), &[SkipEntry { index: 3, checksum: [0; 8] }], &module());
    let before = looks(&applier.replica.state);
    applier.apply_ahead(&large(2));
    assert!(applier.ahead.is_none());
    // One of its commands fails: that is the apply thread's.
    applier.apply_ahead(&batch(2, TRAPS_AT + 1));
    assert!(applier.ahead.is_none() && looks(&applier.replica.state) == before);
    assert_eq!(std::mem::take(&mut applier.light_pause), LIGHT_PAUSE_GROUPS);
    // A gate that closes meanwhile holds it all the same.
    applier.apply_ahead(&batch(2, 1));
    assert!(applier.ahead.is_some());
    applier.gate.doubt(Doubt { what: What::Chain, index: 1, why: Why::NoMajority { digests: String::new() } });
    applier.apply(vec![batch(2, 1)]).unwrap();
    assert_eq!(looks(&applier.replica.state), before);
    applier.ahead = None;
    applier.apply_ahead(&batch(2, 1));
    assert!(applier.ahead.is_none(), "nothing is tried while it is closed");
    applier.gate.cleared(What::Chain, 1);
    applier.apply(vec![batch(2, 1)]).unwrap();
    applier.apply_ahead(&batch(3, 1));
    assert!(applier.ahead.is_none(), "whether it is skipped is known later");
    applier.apply(vec![batch(3, 1)]).unwrap();
    applier.apply_ahead(&batch(4, 1));
    assert!(applier.ahead.is_some());
    drop(applier);
    assert_eq!(Note::open(dir.path()).unwrap().1, None, "nobody died of it");
}

#[tokio::test]
async fn openrafts_task_waits_for_what_is_applied_ahead_and_then_takes_it() {
    let mut room = Room::new().await;
    let ahead = room.machine.ahead();
    ahead.apply(|index| Some(batch(index, 1)));
    room.apply([batch(2, 1)]).await;
    assert_eq!(room.told(1).await, told(&[(2, ".", true)]));
    // While it is at it.
    let turn = room.machine.turn_of_ahead();
    let turn = turn.lock().await;
    {
        let mut applied = std::pin::pin!(room.apply([batch(3, 1)]));
        assert!(applied.as_mut().now_or_never().is_none());
        drop(turn);
        applied.await;
    }
    assert_eq!(room.told(1).await, told(&[(3, ".", true)]));
    // Nothing is tried when there is nothing.
    ahead.apply(|_| None);
}
