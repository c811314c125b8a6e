//! The thread that applies what openraft's task doesn't apply by itself (step 6 of 8): groups of committed entries from
//! `feed.rs`. Next: `applier.rs`.

use std::io;
use std::sync::mpsc;

use tokio::sync::{oneshot, watch};

use super::applier::Shared;
use super::feed::Feed;
use super::{Published, View};
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

/// Until openraft is gone or this machine has failed.
pub(super) fn run(applier: &Shared, view: &View, mut feed: Feed, incoming: &mpsc::Receiver<Work>, fault: &Fault) {
    // What the feed was given is in there once it is applied. It spares the lock, for which openraft's task doesn't wait.
    let applied = || view.borrow().applied;
    let _watch = fault.watch();
    while let Some(work) = feed.next(incoming, applied) {
        let mut applier = applier.lock().expect("nobody panicked");
        match work {
            Work::Apply(Group { entries, applied }) => {
                let result = applier.apply(entries);
                drop(applier);
                let met = result.as_ref().err().map(io::Error::to_string);
                let _ = applied.send(result);
                if met.is_some() {
                    fault.0.send_replace(met);
                    return;
                }
            }
            Work::Replace { state, replaced } => {
                applier.replace(*state);
                let _ = replaced.send(());
            }
        }
    }
}

/// Tells the node of a fault by itself: openraft may not ask how a group went before it has another one.
#[derive(Clone)]
pub(super) struct Fault(pub(super) watch::Sender<Option<String>>);

impl Fault {
    /// Tells it of a panic until it is dropped.
    pub(super) fn watch(&self) -> PanicWatch<'_> {
        PanicWatch(self)
    }
}

pub(super) struct PanicWatch<'a>(&'a Fault);

impl Drop for PanicWatch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.0.send_replace(Some("the application of an entry panicked".into()));
        }
    }
}
