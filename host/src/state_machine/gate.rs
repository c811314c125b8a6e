//! The gate before step 6 of 8: whether the next committed entry is applied, skipped or held. Whoever applies (`applier.rs`) asks
//! before each entry and reports after it; `raft/audit.rs` closes and opens the gate; `node.rs` reads why. While it is
//! closed the log and the votes go on, only the state stands still. Never applies anything itself; how the entries that
//! came meanwhile are caught up is `feed.rs`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};

use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use tokio::sync::watch;

use super::checkpoints::Checkpoints;
use super::health::{Checksum, Doubt, Health, Poison, Quarantine, What, Why, hex};
use super::note::{Deaths, Note};
use super::ring::{Ring, Short, short};
use super::{Published, skips};
use crate::config::SkipEntry;
use crate::raft::codec;
use crate::raft::types::{Entry, Kind, LogId, Proposal};

/// Deaths in a row after which an entry is held.
const DEATHS_MAX: u32 = 2;
/// The same for an entry that activates a module. Compiling takes so long that a process which is killed from outside
/// while it starts dies there most often.
const ACTIVATION_DEATHS_MAX: u32 = 5;

/// What becomes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    Apply,
    /// Apply it, and digest the whole content afterwards.
    Checkpoint,
    /// Its commands are answered with an error and have no effect.
    Skip,
    /// Not now; nor what follows.
    Hold,
}

/// Shared by whoever applies, the audit and the node.
pub struct Gate {
    dir: PathBuf,
    health: watch::Sender<Health>,
    ring: Mutex<Ring>,
    checkpoints: Arc<Checkpoints>,
    note: Note,
    deaths: Option<Deaths>,
    skips: Mutex<BTreeMap<u64, Skip>>,
    /// The term whose leader this node follows; 0: none. Stamps of other terms prove nothing about it.
    leader_term: AtomicU64,
    /// A term whose leader's stamps are known to be wrong.
    distrusted_term: AtomicU64,
    /// The term about whose stamps was complained last, so that each is logged once.
    complained_term: AtomicU64,
}

struct Skip {
    checksum: Checksum,
    /// In `skip.json`.
    durable: bool,
}

impl Gate {
    /// `given`: the `--skip-entry` of this start. `quarantine`: what an earlier run found.
    ///
    /// # Errors
    /// The node's folder can't be read or written, or `skip.json` can't be read as what it is.
    pub fn open(dir: &Path, given: &[SkipEntry], quarantine: Option<Quarantine>) -> io::Result<Arc<Gate>> {
        let mut skips: BTreeMap<u64, Skip> =
            skips::read(dir)?.into_iter().map(|(index, checksum)| (index, Skip { checksum, durable: true })).collect();
        for SkipEntry { index, checksum } in given {
            let checksum = Checksum(*checksum);
            match skips.get(index) {
                Some(known) if known.checksum != checksum => tracing::error!(
                    "--skip-entry {index}:{checksum} is ignored: this node has skipped {index}:{} before",
                    known.checksum
                ),
                Some(_) => {}
                None => drop(skips.insert(*index, Skip { checksum, durable: false })),
            }
        }
        let (note, deaths) = Note::open(dir)?;
        if let Some(Deaths { index, count, .. }) = deaths {
            tracing::warn!(index, count, "the process ended while it applied this entry, so often in a row");
        }
        if let Some(quarantine) = &quarantine {
            tracing::error!("this node is in quarantine: {quarantine}");
        }
        Ok(Arc::new(Gate {
            dir: dir.into(),
            health: watch::Sender::new(Health { quarantine, ..Health::default() }),
            ring: Mutex::default(),
            checkpoints: Arc::default(),
            note,
            deaths,
            skips: Mutex::new(skips),
            leader_term: AtomicU64::new(0),
            distrusted_term: AtomicU64::new(0),
            complained_term: AtomicU64::new(0),
        }))
    }

    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Tells of every change.
    pub fn watch(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    pub fn is_open(&self) -> bool {
        self.health.borrow().is_open()
    }

    /// Whether others may be given this state: as replies, reads or snapshots. An error says why not.
    pub fn may_serve(&self) -> Result<(), String> {
        let health = self.health.borrow();
        match (&health.quarantine, &health.doubt) {
            (Some(quarantine), _) => Err(format!("this node is in quarantine: {quarantine}")),
            (None, Some(doubt)) => Err(format!("this node's state is in doubt: {doubt}")),
            (None, None) => Ok(()),
        }
    }

    /// Asked before each entry, in log order. [`Gate::after`] follows unless it says hold, or [`Gate::gave_up`], and then
    /// the same entry is asked for again.
    pub fn before(&self, entry: &Entry) -> Pass {
        if !self.is_open() {
            return Pass::Hold;
        }
        let EntryPayload::Normal(proposal) = &entry.payload else { return Pass::Apply };
        let log_id = entry.log_id();
        let term = log_id.leader_id.term;
        if self.is_suspect(term, proposal) {
            return Pass::Hold;
        }
        if let Some(pass) = self.skip_or_hold(entry, term, proposal.envelope.kind) {
            return pass;
        }
        self.note.begin(term, log_id.index);
        if proposal.envelope.kind == Kind::Checkpoint { Pass::Checkpoint } else { Pass::Apply }
    }

    /// The entry is about to be applied ahead of its commit, if this is `true`; [`Gate::gave_up`] follows. Nothing of the
    /// state is reported: [`Gate::before`] is asked when it is committed.
    pub fn may_try(&self, entry: &Entry) -> bool {
        if !self.is_open() || self.marks(entry) {
            return false;
        }
        let LogId { leader_id, index } = entry.log_id();
        self.note.begin(leader_id.term, index);
        true
    }

    /// Whether [`Gate::before`] has more to do for this entry than to look at its stamp: it may write to the disk, and
    /// what this process died of must not be tried by two.
    pub fn marks(&self, entry: &Entry) -> bool {
        let LogId { leader_id, index } = entry.log_id();
        let is_dead = self.deaths.is_some_and(|d| (d.term, d.index) == (leader_id.term, index));
        is_dead || lock(&self.skips).contains_key(&index)
    }

    /// What was begun last is not being applied any more, and will be begun again.
    pub fn gave_up(&self) {
        self.note.clear();
    }

    /// The process is about to end in good order, perhaps in the middle of an entry that takes long. That is no death.
    pub fn ending(&self) {
        self.note.clear();
    }

    /// The entry was applied or skipped; `state` has it. Also for a state that was installed.
    pub fn after(&self, state: &Published, pass: Pass) {
        self.note.end();
        let index = state.applied_index();
        lock(&self.ring).push(index, short(&state.digest));
        if pass == Pass::Checkpoint {
            self.checkpoints.take(state.clone());
        }
        // A state from elsewhere may have the entry in it.
        if self.health.borrow().poison.is_some() {
            self.health.send_if_modified(|health| health.poison.take_if(|p| p.index <= index).is_some());
        }
    }

    /// The leader said what its chain was at an index. If this node's was another one, one of the two is wrong.
    fn is_suspect(&self, term: u64, proposal: &Proposal) -> bool {
        let (index, theirs) = (proposal.envelope.stamp_index, proposal.envelope.stamp_digest);
        if index == 0 {
            return false;
        }
        let Some(ours) = lock(&self.ring).get(index).filter(|ours| *ours != theirs) else { return false };
        if term == self.distrusted_term.load(Relaxed) {
            return false;
        }
        if term != self.leader_term.load(Relaxed) {
            if self.complained_term.swap(term, Relaxed) != term {
                tracing::warn!(
                    index,
                    "the leader of term {term} had the digest {}, this node has {}; the audit compares what is now",
                    hex(&theirs),
                    hex(&ours)
                );
            }
            return false;
        }
        self.doubt(Doubt { what: What::Chain, index, why: Why::Stamp { term, ours, theirs } });
        true
    }

    fn skip_or_hold(&self, entry: &Entry, term: u64, kind: Kind) -> Option<Pass> {
        let index = entry.log_id().index;
        let deaths = self.deaths.filter(|d| (d.term, d.index) == (term, index)).map_or(0, |d| d.count);
        let is_poison = deaths >= if kind == Kind::ActivateModule { ACTIVATION_DEATHS_MAX } else { DEATHS_MAX };
        let mut skips = lock(&self.skips);
        if !is_poison && !skips.contains_key(&index) {
            return None;
        }
        let checksum = checksum(entry);
        let refused_skip = match skips.get_mut(&index) {
            Some(skip) if skip.checksum == checksum => {
                skip.durable = true;
                let durable = skips.iter().filter(|(_, s)| s.durable).map(|(i, s)| (*i, s.checksum)).collect();
                match skips::write(&self.dir, durable) {
                    Ok(()) => {
                        tracing::warn!("the entry {index}:{checksum} is skipped, as --skip-entry says");
                        return Some(Pass::Skip);
                    }
                    Err(e) => tracing::error!("the entry {index}:{checksum} can't be skipped: skip.json: {e}"),
                }
                None
            }
            Some(Skip { checksum: given, .. }) => {
                tracing::error!("--skip-entry {index}:{given} is refused: the entry at {index} is {index}:{checksum}");
                Some(*given)
            }
            None => None,
        };
        // A wrong flag harms no innocent entry. A skip that can't be remembered must not be done.
        let is_innocent = !is_poison && refused_skip.is_some();
        (!is_innocent).then(|| self.hold(Poison { index, checksum, deaths, refused_skip }))
    }

    fn hold(&self, poison: Poison) -> Pass {
        tracing::error!("held: {poison}");
        self.health.send_modify(|health| health.poison = Some(poison));
        Pass::Hold
    }

    /// Closes the gate until a comparison at the doubt's index or later.
    pub fn doubt(&self, doubt: Doubt) {
        self.health.send_if_modified(|health| {
            // The first index at which they differ is enough: chains that have parted never meet again.
            let is_known = health.doubt.as_ref().is_some_and(|d| {
                let splits = matches!((&d.why, &doubt.why), (Why::NoMajority { .. }, Why::NoMajority { .. }));
                // One that can't be decided is enough, and the chain says more.
                *d == doubt || splits && (d.what == doubt.what || d.what == What::Chain)
            });
            let is_new = health.quarantine.is_none() && !is_known;
            if is_new {
                tracing::error!("this node applies nothing for now: {doubt}");
                health.doubt = Some(doubt);
            }
            is_new
        });
    }

    /// This node's digest was found to be the majority's.
    pub fn cleared(&self, what: What, index: u64) {
        self.health.send_if_modified(|health| {
            let Some(doubt) = health.doubt.take_if(|d| d.what == what && d.index <= index) else { return false };
            if let Why::Stamp { term, .. } = doubt.why {
                self.distrusted_term.store(term, Relaxed);
            }
            tracing::warn!(index, "this node's {what} is the majority's; it goes on");
            true
        });
    }

    /// For good: only a state from elsewhere, and a restart, end it.
    pub fn quarantine(&self, quarantine: Quarantine) {
        self.health.send_if_modified(|health| {
            if health.quarantine.is_some() {
                return false;
            }
            tracing::error!("this node goes into quarantine: {quarantine}");
            health.quarantine = Some(quarantine);
            health.doubt = None;
            true
        });
    }

    /// Whom this node follows now.
    pub fn follow(&self, term: Option<u64>) {
        self.leader_term.store(term.unwrap_or(0), Relaxed);
    }

    /// What this node vouches for to others; zeros while it vouches for nothing.
    pub fn stamp(&self) -> (u64, Short) {
        if !self.is_open() {
            return (0, [0; 16]);
        }
        lock(&self.ring).newest().unwrap_or_default()
    }

    pub fn applied(&self) -> Option<u64> {
        lock(&self.ring).newest().map(|(index, _)| index)
    }

    /// The chain at an index. None: not applied yet, or too long ago.
    pub fn chain(&self, index: u64) -> Option<Short> {
        lock(&self.ring).get(index)
    }

    /// The content digests of the last checkpoints, oldest first.
    pub fn contents(&self) -> Vec<(u64, Short)> {
        self.checkpoints.known()
    }

    /// The index of the last checkpoint that was applied since the start.
    pub fn last_checkpoint(&self) -> Option<u64> {
        self.checkpoints.last()
    }
}

/// What `--skip-entry` names beside the index: of the whole entry, as it is in the log.
pub fn checksum(entry: &Entry) -> Checksum {
    let (header, payload) = codec::encode(entry);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header).update(&payload);
    Checksum(hasher.finalize().as_bytes()[..8].try_into().expect("8 bytes"))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no code panics under this lock")
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
