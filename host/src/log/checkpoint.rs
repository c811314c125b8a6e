//! Syncs sled in the background, so that the journal's older half can be written anew. Owns one thread, and the order
//! of the syncs: sled's flush only hands pages to the kernel. `writer/mod.rs` says when and waits where it must.

use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use super::{lock, sled_error};
use crate::failpoint;

/// The thread, for as long as this lives.
pub(super) struct Checkpoints {
    state: Arc<(Mutex<State>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

/// What a test may want to know, or to hold up.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The thread is about to sync sled.
    Begins,
    /// The writer can't go on before it has.
    AwaitedFor,
}

#[cfg(test)]
pub type Observer = Arc<dyn Fn(Moment) + Send + Sync>;

struct State {
    /// Sled is asked to be durable up to this commit, and is up to that one.
    asked: u64,
    done: u64,
    ends: bool,
    /// Why no checkpoint is possible any more.
    failed: Option<Arc<str>>,
    #[cfg(test)]
    observer: Option<Observer>,
}

impl Checkpoints {
    /// `done`: the newest commit that sled has, durably.
    pub(super) fn start(db: sled::Db, db_file: File, done: u64) -> io::Result<Self> {
        let state = State {
            asked: done,
            done,
            ends: false,
            failed: None,
            #[cfg(test)]
            observer: None,
        };
        let state = Arc::new((Mutex::new(state), Condvar::new()));
        let shared = state.clone();
        let thread = std::thread::Builder::new().name("log-checkpoint".into());
        let thread = thread.spawn(move || work(&db, &db_file, &shared))?;
        Ok(Checkpoints { state, thread: Some(thread) })
    }

    #[cfg(test)]
    pub(super) fn observe(&self, observer: Option<Observer>) {
        lock(&self.state.0).observer = observer;
    }

    /// Sled has all commits up to this one, in memory: make them durable.
    pub(super) fn ask(&self, upto: u64) {
        {
            let mut state = lock(&self.state.0);
            state.asked = state.asked.max(upto);
        }
        // Whoever is woken needs the lock at once.
        self.state.1.notify_all();
    }

    /// Sled was synced by the writer.
    pub(super) fn done(&self, upto: u64) {
        let mut state = lock(&self.state.0);
        state.done = state.done.max(upto);
        state.asked = state.asked.max(upto);
    }

    /// Waits until sled is durable up to this commit, which must have been asked for.
    ///
    /// # Errors
    /// A checkpoint failed, this one or an earlier one.
    pub(super) fn wait(&self, upto: u64) -> io::Result<()> {
        let mut state = lock(&self.state.0);
        loop {
            if let Some(why) = &state.failed {
                return Err(io::Error::other(format!("sled could not be synced: {why}")));
            }
            if state.done >= upto {
                return Ok(());
            }
            #[cfg(test)]
            state.observer.iter().for_each(|observe| observe(Moment::AwaitedFor));
            state = self.state.1.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// # Errors
    /// A checkpoint failed.
    pub(super) fn check(&self) -> io::Result<()> {
        self.wait(0)
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        lock(&self.state.0).ends = true;
        self.state.1.notify_all();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn work(db: &sled::Db, db_file: &File, shared: &(Mutex<State>, Condvar)) {
    let (state, changed) = shared;
    loop {
        let upto = {
            let mut state = lock(state);
            while !state.ends && state.asked <= state.done {
                state = changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            if state.ends {
                return;
            }
            state.asked
        };
        #[cfg(test)]
        {
            let observer = lock(state).observer.clone();
            observer.iter().for_each(|observe| observe(Moment::Begins));
        }
        let synced = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| sync(db, db_file)));
        let synced = synced.unwrap_or_else(|_| Err(io::Error::other("sled panicked")));
        let has_failed = {
            let mut state = lock(state);
            match synced {
                Ok(()) => state.done = state.done.max(upto),
                Err(e) => state.failed = Some(e.to_string().into()),
            }
            state.failed.is_some()
        };
        changed.notify_all();
        if has_failed {
            return;
        }
    }
}

/// Everything that sled has in memory becomes durable.
pub(super) fn sync(db: &sled::Db, db_file: &File) -> io::Result<()> {
    failpoint!("log.before-flush", io);
    db.flush().map_err(sled_error)?;
    failpoint!("log.before-checkpoint", io);
    db_file.sync_data()
}
