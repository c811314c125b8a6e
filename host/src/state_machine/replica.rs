//! The state machine proper: one entry in, new state and replies out, the same on every replica. Used by one thread at a time,
//! knows neither openraft's traits nor any client. Its batches run in `guest/` (step 7 of 8).

use std::sync::Arc;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry;

use super::digest;
use super::overlay::Overlay;
use super::sessions::{SessionLimits, Sessions};
use super::snapshot::Loaded;
use super::{Activation, Active, Pieces, Published};
use crate::guest::{Context, Engine, LocalFault, Module, ValidBatch};
use crate::metrics::Metrics;
use crate::outcome::{BatchReplies, CommandReply, Failure, ReplyView};
use crate::raft::types::{BatchId, Entry, Envelope, Kind, LogId, Proposal, StoredMembership};

pub struct Replica {
    engine: Engine,
    metrics: Arc<Metrics>,
    pub(super) state: Published,
}

/// A batch of more commands takes more than a light effort.
const LIGHT_COMMANDS_MAX: usize = 256;

/// How much an entry may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// What its module's limits say.
    Whole,
    /// About a millisecond (`Module::apply_lightly`). Only for entries that are batches or blank.
    Light,
}

/// What became of an entry.
pub enum Step {
    /// It is in the state; there are replies if it was a batch.
    Applied(Option<Done>),
    /// It takes more than a light effort, or one of its commands fails or isn't run. The state is as it was. Whether the
    /// module was run.
    TooMuch { ran: bool },
}

/// Replies of one batch, for whoever sealed it.
pub struct Done {
    pub id: BatchId,
    pub log_id: LogId,
    pub replies: BatchReplies,
}

impl Replica {
    pub fn new(engine: Engine, metrics: Arc<Metrics>) -> Self {
        let state = Published {
            applied: None,
            membership: StoredMembership::default(),
            time_ms: 0,
            first_command: 1,
            digest: [0; 32],
            cluster: 0,
            map: Default::default(),
            module: None,
            active: None,
            pieces: None,
            sessions: Default::default(),
        };
        Replica { engine, metrics, state }
    }

    /// The state now. O(1).
    pub fn state(&self) -> Published {
        self.state.clone()
    }

    /// Of the newest entry in the state.
    pub fn term(&self) -> u64 {
        self.state.applied.map_or(0, |l| l.leader_id.term)
    }

    /// The state now is this one, which must be newer. Returns the one it was.
    pub fn replace(&mut self, state: Published) -> Published {
        assert!(self.state.applied < state.applied, "a snapshot never takes a state back");
        std::mem::replace(&mut self.state, state)
    }

    /// Applies the next entry. An error is this machine's, never the entry's: the node must stop.
    pub fn apply(&mut self, entry: &Entry, effort: Effort) -> Result<Step, LocalFault> {
        let log_id = entry.log_id();
        let expected = self.state.applied.map_or(0, |l| l.index + 1);
        assert_eq!(log_id.index, expected, "entries are applied one after the other");
        assert!(self.state.applied.is_none_or(|l| l.leader_id <= log_id.leader_id), "terms never go back");
        let done = match &entry.payload {
            EntryPayload::Blank => None,
            EntryPayload::Membership(membership) => {
                self.state.membership = StoredMembership::new(Some(log_id), membership.clone());
                None
            }
            EntryPayload::Normal(Proposal { envelope, bytes }) => {
                // The clock never runs backwards, whoever leads.
                let before_ms = self.state.time_ms;
                self.state.time_ms = before_ms.max(envelope.time_ms);
                match envelope.kind {
                    Kind::Batch => {
                        let step = self.batch(log_id, envelope, bytes, effort)?;
                        let Step::Applied(done) = step else {
                            self.state.time_ms = before_ms;
                            return Ok(step);
                        };
                        done
                    }
                    Kind::ModuleChunk => {
                        self.module_piece(envelope.id, bytes);
                        None
                    }
                    Kind::Checkpoint => None,
                    Kind::ActivateModule => {
                        self.activate(log_id, envelope.id, bytes)?;
                        None
                    }
                }
            }
        };
        self.state.applied = Some(log_id);
        Ok(Step::Applied(done))
    }

    fn batch(&mut self, log_id: LogId, envelope: &Envelope, bytes: &[u8], effort: Effort) -> Result<Step, LocalFault> {
        let id = envelope.id;
        let Ok(batch) = ValidBatch::new(bytes) else {
            // Archives are checked before they are logged, so this is the work of another program. All replicas see
            // the same bytes and drop them alike.
            tracing::error!(index = log_id.index, "the batch is no valid archive; it has no effect");
            return Ok(Step::Applied(Some(Done { id, log_id, replies: BatchReplies::Each(Vec::new()) })));
        };
        let count = batch.get().commands.len();
        let context = self.state.context(log_id);
        let (now_ms, limits) = (self.state.time_ms, self.state.session_limits());
        let is_light = effort == Effort::Light;
        // Keys that have expired are forgotten, in proportion to the commands, and known replies are repeated, which may be
        // large ones: none of that costs fuel.
        if is_light && (count > LIGHT_COMMANDS_MAX || self.state.sessions.knows_any(batch.get())) {
            return Ok(Step::TooMuch { ran: false });
        }
        let mut sessions = self.state.sessions.clone();
        let plan = self.state.module.as_ref().and_then(|_| sessions.plan(batch.get(), now_ms, &limits));
        let run = plan.as_ref().map_or(&[][..], |plan| plan.run());
        let to_run = if plan.is_some() { run.len() } else { count };
        if is_light && to_run < count {
            return Ok(Step::TooMuch { ran: false });
        }
        let started = std::time::Instant::now();
        let overlay = Overlay::new(self.state.map.clone());
        let (replies, overlay) = match &self.state.module {
            // For the module an empty `run` means all commands.
            Some(module) if to_run > 0 && is_light => match module.apply_lightly(&context, batch, run, overlay) {
                Some(done) => done,
                None => return Ok(Step::TooMuch { ran: true }),
            },
            Some(module) if to_run > 0 => module.apply(&context, batch, run, overlay)?,
            _ => (BatchReplies::Each(vec![CommandReply::Failed(Failure::NoModule); to_run]), overlay),
        };
        let (map, writes) = overlay.finish();
        self.metrics.guest_seconds.observe(started.elapsed().as_secs_f64());
        let replies = match plan {
            Some(plan) => plan.finish(replies, &mut sessions, now_ms, self.state.first_command),
            None => replies,
        };
        assert_eq!(replies.len(), count, "every command is answered");
        let replays = replies.iter().filter(|reply| matches!(reply, ReplyView::Replayed(_))).count();
        self.metrics.replays.inc_by(replays as u64);
        self.state.digest = digest::link(&self.state.digest, log_id.index, &writes, &replies);
        self.state.map = map;
        self.state.sessions = sessions;
        self.state.first_command += count as u64;
        Ok(Step::Applied(Some(Done { id, log_id, replies })))
    }

    fn module_piece(&mut self, id: BatchId, bytes: &[u8]) {
        if self.state.module.is_some() {
            return;
        }
        Pieces::add(&mut self.state.pieces, id, bytes);
    }

    fn activate(&mut self, log_id: LogId, id: BatchId, bytes: &[u8]) -> Result<(), LocalFault> {
        if self.state.module.is_some() {
            tracing::info!(index = log_id.index, "a module is active already; this activation has no effect");
            return Ok(());
        }
        let pieces = self.state.pieces.take();
        let activation = match Activation::read(bytes) {
            Ok(activation) => activation,
            Err(e) => {
                tracing::error!(index = log_id.index, "{e}; it has no effect");
                return Ok(());
            }
        };
        let bytes = Bytes::from(Pieces::complete(pieces, id));
        if blake3::hash(&bytes) != activation.digest {
            tracing::error!(index = log_id.index, "the module's pieces aren't all there; the activation has no effect");
            return Ok(());
        }
        warn_of_other_engine(&activation, &self.engine);
        // The proposer compiled these bytes with these limits. What fails here fails on this machine alone.
        let module = Module::compile(&self.engine, &bytes, activation.limits)
            .map_err(|e| LocalFault::new(format!("the active module can't be compiled on this node: {e}")))?;
        let description = module.description();
        tracing::info!(index = log_id.index, "module {} {} is active", description.name, description.version);
        self.state.cluster = activation.cluster;
        self.state.digest = digest::activation(&self.state.digest, log_id.index, &activation.digest);
        self.state.module = Some(module);
        self.state.active = Some(Arc::new(Active { activation, module: bytes }));
        Ok(())
    }
}

/// The state that a snapshot holds. Compiles its module, unless it is the `active` one; may take seconds. An error is
/// this machine's: another node made the snapshot of a state with this module in it.
pub fn restore(engine: &Engine, loaded: Loaded, active: Option<&Module>) -> Result<Published, LocalFault> {
    let Loaded { header, map, records, module: bytes, pieces } = loaded;
    let sessions = Sessions::restore(records)
        .map_err(|e| LocalFault::new(format!("the snapshot's idempotency keys can't be read: {e}")))?;
    let active = match header.activation {
        None => None,
        Some(activation) => {
            let same = active.filter(|m| *m.digest() == activation.digest && *m.limits() == activation.limits).cloned();
            let module = match same {
                Some(module) => module,
                None => Module::compile(engine, &bytes, activation.limits).map_err(|e| {
                    LocalFault::new(format!("the snapshot's module can't be compiled on this node: {e}"))
                })?,
            };
            warn_of_other_engine(&activation, engine);
            Some((module, Arc::new(Active { activation, module: Bytes::from(bytes) })))
        }
    };
    let (module, active) = active.unzip();
    let pieces = header
        .pieces
        .map(|head| Arc::new(Pieces { first: head.first, next_sequence: head.next_sequence, bytes: pieces }));
    Ok(Published {
        applied: Some(header.last),
        membership: header.membership,
        time_ms: header.time_ms,
        first_command: header.first_command,
        digest: header.chain,
        cluster: header.cluster,
        map,
        module,
        active,
        pieces,
        sessions,
    })
}

fn warn_of_other_engine(activation: &Activation, engine: &Engine) {
    if activation.engine != engine.identity() {
        let (theirs, ours) = (&activation.engine, engine.identity());
        tracing::warn!("the module was activated for the engine {theirs}, this node's is {ours}");
    }
}

impl Published {
    /// Of idempotency keys. The defaults until a module is active.
    pub fn session_limits(&self) -> SessionLimits {
        self.active.as_ref().map_or_else(SessionLimits::default, |active| active.activation.sessions)
    }

    /// What a module sees when it runs on this state, for the entry `log_id`.
    pub fn context(&self, log_id: LogId) -> Context {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.cluster.to_le_bytes()).update(&self.first_command.to_le_bytes());
        let time_ms = self.time_ms;
        #[cfg(debug_assertions)]
        let time_ms = super::faults::own_clock().unwrap_or(time_ms);
        let seed = u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().expect("8 bytes"));
        Context {
            log_index: log_id.index,
            term: log_id.leader_id.term,
            time_ms,
            first_command: self.first_command,
            seed,
        }
    }
}

#[cfg(test)]
mod once_tests;
