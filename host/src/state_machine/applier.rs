//! What changes the state (steps 6 and 8 of 8): each entry of a group through the gate (`gate.rs`) and into the state
//! machine proper (`replica.rs`); then the state is published and the replies go out. One at a time has it: the apply
//! thread (`apply_thread.rs`), or for a light group, while that one has nothing to do, openraft's task, which spares a round two
//! changes of threads, or what tries an entry ahead of its commit (`applier/ahead.rs`). Never waits for a client, a disk or a peer.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use tokio::sync::watch;

use super::gate::{Gate, Pass};
use super::replica::{Done, Effort, Replica, Step};
use super::{Applied, Published};
use crate::failpoint;
use crate::guest::LocalFault;
use crate::metrics::Metrics;
use crate::raft::types::{Entry, Kind};

mod ahead;

use ahead::Ahead;
pub use ahead::ApplyAhead;

/// A group of more bytes isn't light. Checking and hashing them takes a tenth of a millisecond.
const LIGHT_BYTES_MAX: usize = 64 << 10;
/// So long after a light group was begun, no other entry of it is. One may take as long as that again, or twice as long.
const LIGHT_TIME_MAX: Duration = Duration::from_millis(1);
/// After a light effort was not enough, so many groups go to the apply thread unseen: a module whose commands are
/// heavy isn't run twice for each.
const LIGHT_PAUSE_GROUPS: u32 = 64;
/// A state that is replaced by one that holds so much less is freed elsewhere: fuel doesn't pay for what deleted values
/// held.
const FREED_BYTES_MAX: u64 = 1 << 20;

/// Whoever applies holds the lock meanwhile.
pub(super) type Shared = Arc<Mutex<Applier>>;

pub(super) struct Applier {
    pub(super) replica: Replica,
    pub(super) publish: watch::Sender<Arc<Published>>,
    pub(super) sink: Arc<dyn Applied>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) gate: Arc<Gate>,
    /// Of the newest entry in the state.
    pub(super) term: u64,
    /// Groups until a light effort is made again.
    pub(super) light_pause: u32,
    /// What the next entry will make of the state, if it is committed.
    pub(super) ahead: Option<Ahead>,
}

/// Why what follows of a group isn't in the state.
enum Stop {
    Held,
    TooMuch {
        ran: bool,
    },
    /// A light group's time is over.
    Time,
    Fault(LocalFault),
}

impl Applier {
    /// Applies the group as far as the gate lets it.
    ///
    /// # Errors
    /// This machine failed; the node must stop. What was applied before is published.
    pub(super) fn apply(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        match self.steps(&entries, Effort::Whole).1 {
            Some(Stop::Fault(fault)) => Err(io::Error::other(fault.to_string())),
            _ => Ok(()),
        }
    }

    /// Applies what it can of the group if it is the next one and light, within a few milliseconds. Returns what is left
    /// for the apply thread.
    pub(super) fn apply_lightly(&mut self, mut entries: Vec<Entry>) -> Vec<Entry> {
        // If what was given before isn't applied, the apply thread is at it, or the gate holds it.
        let next = self.replica.state.applied.map_or(0, |l| l.index + 1);
        let is_next = entries.first().is_some_and(|first| first.log_id().index == next);
        if !is_next || !is_light(&entries) || entries.iter().any(|entry| self.gate.marks(entry)) {
            return entries;
        }
        if self.light_pause > 0 {
            self.light_pause -= 1;
            return entries;
        }
        let (applied, stop) = self.steps(&entries, Effort::Light);
        debug_assert!(!matches!(stop, Some(Stop::Fault(_))), "a light effort meets no fault");
        if matches!(stop, Some(Stop::TooMuch { ran: true })) {
            self.light_pause = LIGHT_PAUSE_GROUPS;
        }
        entries.drain(..applied);
        entries
    }

    /// How many of the entries are in the state afterwards, and what stopped the others.
    fn steps(&mut self, entries: &[Entry], effort: Effort) -> (usize, Option<Stop>) {
        let started = Instant::now();
        let mut done = Vec::with_capacity(entries.len());
        let mut applied = 0;
        let mut stop = None;
        for entry in entries {
            if effort == Effort::Light && applied > 0 && started.elapsed() > LIGHT_TIME_MAX {
                stop = Some(Stop::Time);
                break;
            }
            let pass = self.gate.before(entry);
            #[cfg(debug_assertions)]
            let fault = super::faults::before(entry, pass);
            let step = match pass {
                // It stays in the log, and so does what follows.
                Pass::Hold => {
                    stop = Some(Stop::Held);
                    break;
                }
                Pass::Skip => Ok(Step::Applied(self.replica.skip(entry))),
                Pass::Apply | Pass::Checkpoint => match self.take_ahead(entry) {
                    Some(step) => Ok(step),
                    None => self.replica.apply(entry, effort),
                },
            };
            match step {
                Ok(Step::Applied(d)) => {
                    done.extend(d);
                    applied += 1;
                    #[cfg(debug_assertions)]
                    fault.after(&mut self.replica.state);
                    self.gate.after(&self.replica.state, pass);
                }
                Ok(Step::TooMuch { ran }) => {
                    self.gate.gave_up();
                    stop = Some(Stop::TooMuch { ran });
                    break;
                }
                Err(fault) => {
                    tracing::error!("{fault}");
                    stop = Some(Stop::Fault(fault));
                    break;
                }
            }
        }
        if applied > 0 || effort == Effort::Whole {
            self.publish(done);
            self.metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
        }
        (applied, stop)
    }

    fn publish(&mut self, done: Vec<Done>) {
        // Readable first, answered then: a client that was answered finds its write, even with a stale read here.
        let old = self.publish.send_replace(Arc::new(self.replica.state()));
        let held = |state: &Published| state.map.bytes() + state.sessions.bytes();
        if held(&old) > held(&self.replica.state) + FREED_BYTES_MAX {
            free(old);
        }
        // Nobody is told what may be wrong: these clients learn that the outcome is unknown.
        let in_doubt = self.gate.may_serve().is_err();
        for Done { id, log_id, replies } in done {
            if in_doubt {
                self.sink.withheld(id);
            } else {
                self.sink.applied(id, log_id, replies);
            }
        }
        self.tell_term();
    }

    /// Swaps the state. The order matters to the term rule (`raft/proposals.rs`), which says that a batch that wasn't
    /// applied here before an entry of a later term was, never will be. The snapshot's entries weren't applied here, so
    /// any ticket that is open now may be of a batch in the snapshot: all of them are closed first. A ticket that is
    /// issued after that is of a batch that was sealed when the snapshot was whole already, so the batch isn't in it, and
    /// for such tickets the rule holds again: nothing of a term before the snapshot's can be committed behind the
    /// snapshot's last entry. Hence the term is told after the swap, and never before the tickets are closed.
    pub(super) fn replace(&mut self, state: Published) {
        if self.replica.state().applied >= state.applied {
            return;
        }
        self.ahead = None;
        self.sink.replaced();
        failpoint!("snapshot.before-swap");
        let new = Arc::new(state.clone());
        let old = self.replica.replace(state);
        self.gate.after(&self.replica.state, Pass::Apply);
        let seen = self.publish.send_replace(new);
        free((old, seen));
        self.tell_term();
    }

    fn tell_term(&mut self) {
        let term = self.replica.term();
        if term > self.term {
            self.term = term;
            self.sink.term_began(term);
        }
    }
}

/// A large map takes a while to be freed.
fn free(states: impl Send + 'static) {
    let freed = std::thread::Builder::new().name("free".into()).spawn(move || drop(states));
    if let Err(e) = freed {
        tracing::debug!("an old state was freed by whoever applies: {e}");
    }
}

fn is_light(entries: &[Entry]) -> bool {
    let mut bytes = 0;
    entries.iter().all(|entry| match &entry.payload {
        EntryPayload::Blank => true,
        EntryPayload::Normal(proposal) => {
            bytes += proposal.bytes.len();
            proposal.envelope.kind == Kind::Batch && bytes <= LIGHT_BYTES_MAX
        }
        EntryPayload::Membership(_) => false,
    })
}

#[cfg(test)]
mod tests;
