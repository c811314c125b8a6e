//! The thread that changes the state (steps 6 and 8 of 8): groups of committed entries from `feed.rs`, each entry through
//! the gate (`gate.rs`) and into the state machine proper (`replica.rs`); then the state is published and the replies go
//! out. Never waits for a client, a disk or a peer.

use std::io;
use std::sync::{Arc, mpsc};

use tokio::sync::{oneshot, watch};

use super::feed::Feed;
use super::gate::{Gate, Pass};
use super::replica::{Done, Replica};
use super::{Applied, Published};
use crate::failpoint;
use crate::metrics::Metrics;
use crate::raft::types::Entry;

/// What the apply thread does, in this order.
pub(super) enum Work {
    Apply(Group),
    /// The state is a snapshot's from now on.
    Replace {
        state: Box<Published>,
        replaced: oneshot::Sender<()>,
    },
}

pub(super) struct Group {
    pub(super) entries: Vec<Entry>,
    pub(super) applied: oneshot::Sender<io::Result<()>>,
}

pub(super) struct ApplyThread {
    pub(super) replica: Replica,
    pub(super) publish: watch::Sender<Arc<Published>>,
    pub(super) sink: Arc<dyn Applied>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) gate: Arc<Gate>,
    /// Of the newest entry in the state.
    pub(super) term: u64,
    /// openraft may not ask how a group went before it has another one: the node is told of a fault by itself.
    pub(super) fault: watch::Sender<Option<String>>,
}

impl ApplyThread {
    /// Until openraft is gone or this machine has failed.
    pub(super) fn run(mut self, mut feed: Feed, incoming: &mpsc::Receiver<Work>) {
        while let Some(work) = feed.next(incoming, self.replica.state.applied) {
            match work {
                Work::Apply(Group { entries, applied }) => {
                    let result = self.apply(entries);
                    let fault = result.as_ref().err().map(io::Error::to_string);
                    let _ = applied.send(result);
                    if fault.is_some() {
                        self.fault.send_replace(fault);
                        return;
                    }
                }
                Work::Replace { state, replaced } => {
                    self.replace(*state);
                    let _ = replaced.send(());
                }
            }
        }
    }

    fn apply(&mut self, entries: Vec<Entry>) -> io::Result<()> {
        let started = std::time::Instant::now();
        let mut done = Vec::with_capacity(entries.len());
        let mut result = Ok(());
        for entry in entries {
            let pass = self.gate.before(&entry);
            #[cfg(debug_assertions)]
            let fault = super::faults::before(&entry, pass);
            let outcome = match pass {
                // It stays in the log, and so does what follows.
                Pass::Hold => break,
                Pass::Skip => Ok(self.replica.skip(entry)),
                Pass::Apply | Pass::Checkpoint => self.replica.apply(entry),
            };
            match outcome {
                Ok(d) => {
                    done.extend(d);
                    #[cfg(debug_assertions)]
                    fault.after(&mut self.replica.state);
                    self.gate.after(&self.replica.state, pass);
                }
                Err(fault) => {
                    tracing::error!("{fault}");
                    result = Err(io::Error::other(fault.to_string()));
                    break;
                }
            }
        }
        // Readable first, answered then: a client that was answered finds its write, even with a stale read here.
        self.publish.send_replace(Arc::new(self.replica.state()));
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
        self.metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
        result
    }

    /// Swaps the state. The order matters to the term rule (`raft/proposals.rs`), which says that a batch that wasn't
    /// applied here before an entry of a later term was, never will be. The snapshot's entries weren't applied here, so
    /// any ticket that is open now may be of a batch in the snapshot: all of them are closed first. A ticket that is
    /// issued after that is of a batch that was sealed when the snapshot was whole already, so the batch isn't in it, and
    /// for such tickets the rule holds again: nothing of a term before the snapshot's can be committed behind the
    /// snapshot's last entry. Hence the term is told after the swap, and never before the tickets are closed.
    fn replace(&mut self, state: Published) {
        if self.replica.state().applied >= state.applied {
            return;
        }
        self.sink.replaced();
        failpoint!("snapshot.before-swap");
        let new = Arc::new(state.clone());
        let old = self.replica.replace(state);
        self.gate.after(&self.replica.state, Pass::Apply);
        let seen = self.publish.send_replace(new);
        // A large map takes a while to be freed.
        let freed = std::thread::Builder::new().name("free".into()).spawn(move || drop((old, seen)));
        if let Err(e) = freed {
            tracing::debug!("the old state was freed on the apply thread: {e}");
        }
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

impl Drop for ApplyThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fault.send_replace(Some("the apply thread panicked".into()));
        }
    }
}
