//! Applying the next entry ahead of its commit: while a leader waits for disks and followers, it finds out what the entry
//! will make of the state. Nobody sees that before the entry is committed; then it is taken as it is, which takes the run
//! of the module out of the time that clients wait. Owns what was found out. Only for what is light; when it is
//! done is `node/ahead.rs`.

use std::sync::Arc;

use openraft::entry::RaftEntry;
use tokio::sync::Mutex;

use super::super::Published;
use super::super::apply_thread::Fault;
use super::super::replica::{Done, Effort, Step};
use super::{Applier, LIGHT_PAUSE_GROUPS, Shared, is_light};
use crate::raft::types::{Entry, LogId};

/// What an entry makes of a state. Both are known by their log ids: one is never given to two entries, and this process has
/// one state at each.
pub(in super::super) struct Ahead {
    base: Option<LogId>,
    log_id: LogId,
    state: Published,
    done: Option<Done>,
}

impl Applier {
    /// Finds out what the entry will make of the state, if it is the next one and light. Takes a millisecond or two at most.
    pub(super) fn apply_ahead(&mut self, entry: &Entry) {
        let (base, log_id) = (self.replica.state.applied, entry.log_id());
        let is_next =
            log_id.index == base.map_or(0, |l| l.index + 1) && base.is_none_or(|l| l.leader_id <= log_id.leader_id);
        let is_known = self.ahead.as_ref().is_some_and(|ahead| (ahead.base, ahead.log_id) == (base, log_id));
        if !is_next || is_known || self.light_pause > 0 || !is_light(std::slice::from_ref(entry)) {
            return;
        }
        self.ahead = None;
        // A death in there is the entry's, as it is when the entry is committed.
        if !self.gate.may_try(entry) {
            return;
        }
        let now = self.replica.state();
        let step = self.replica.apply(entry, Effort::Light);
        self.gate.gave_up();
        let state = std::mem::replace(&mut self.replica.state, now);
        match step {
            Ok(Step::Applied(done)) => self.ahead = Some(Ahead { base, log_id, state, done }),
            Ok(Step::TooMuch { ran: true }) => self.light_pause = LIGHT_PAUSE_GROUPS,
            Ok(Step::TooMuch { ran: false }) => {}
            Err(_) => debug_assert!(false, "a light effort meets no fault"),
        }
    }

    /// The entry is committed: if what was found out is of this entry and of the state now, that is the state from now on.
    pub(super) fn take_ahead(&mut self, entry: &Entry) -> Option<Step> {
        let Ahead { base, log_id, state, done } = self.ahead.take()?;
        if (base, log_id) != (self.replica.state.applied, entry.log_id()) {
            return None;
        }
        self.replica.state = state;
        self.metrics.applied_ahead.inc();
        Some(Step::Applied(done))
    }
}

/// What applies entries ahead of their commit.
pub struct ApplyAhead {
    applier: Shared,
    fault: Fault,
    turn: Arc<Mutex<()>>,
}

impl ApplyAhead {
    /// `turn`: held meanwhile, so that openraft's task waits with what is committed rather than to leave it to the
    /// apply thread.
    pub(in super::super) fn new(applier: &Shared, fault: &Fault, turn: &Arc<Mutex<()>>) -> Self {
        ApplyAhead { applier: applier.clone(), fault: fault.clone(), turn: turn.clone() }
    }

    /// Looks at the entry that is next, if there is one already. Never waits.
    pub fn apply(&self, entry: impl FnOnce(u64) -> Option<Entry>) {
        let _watch = self.fault.watch();
        // Whoever is at it just now applies what is committed.
        let Ok(_turn) = self.turn.try_lock() else { return };
        let Ok(mut applier) = self.applier.try_lock() else { return };
        let next = applier.replica.state.applied.map_or(0, |l| l.index + 1);
        if let Some(entry) = entry(next) {
            applier.apply_ahead(&entry);
        }
    }
}
