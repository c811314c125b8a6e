//! Content digests at checkpoints: a clone of the state is digested on a thread of its own, beside the applies. Keeps
//! the last few digests; `raft/audit.rs` compares them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use super::Published;
use super::digest;
use super::ring::{Short, short};

/// Digests that are kept.
const KEPT: usize = 8;

#[derive(Default)]
pub struct Checkpoints {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    known: VecDeque<(u64, Short)>,
    last: Option<u64>,
    /// A thread digests.
    busy: bool,
    /// The newest state that waits for it. One that an even newer one overtakes is never digested: when a log is applied
    /// anew only the last checkpoint matters.
    next: Option<Published>,
}

impl Checkpoints {
    /// The state at a checkpoint.
    pub fn take(self: &Arc<Self>, state: Published) {
        let mut inner = self.lock();
        inner.last = Some(state.applied_index());
        inner.next = Some(state);
        if inner.busy {
            return;
        }
        let this = self.clone();
        let started = std::thread::Builder::new().name("checkpoint".into()).spawn(move || this.run());
        match started {
            Ok(_) => inner.busy = true,
            Err(e) => {
                inner.next = None;
                tracing::warn!("this checkpoint isn't digested: no thread: {e}");
            }
        }
    }

    fn run(&self) {
        loop {
            let state = {
                let mut inner = self.lock();
                let Some(state) = inner.next.take() else {
                    inner.busy = false;
                    return;
                };
                state
            };
            crate::failpoint!("checkpoint.before-digest");
            let digest = short(&digest::content(&state));
            let mut inner = self.lock();
            if inner.known.len() == KEPT {
                inner.known.pop_front();
            }
            inner.known.push_back((state.applied_index(), digest));
        }
    }

    /// Oldest first.
    pub fn known(&self) -> Vec<(u64, Short)> {
        self.lock().known.iter().copied().collect()
    }

    pub fn last(&self) -> Option<u64> {
        self.lock().last
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no code panics under this lock")
    }
}
