//! Limits how many clusters run at a time in this process: each is several nodes, and machines have few cores.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

const CLUSTERS_DEFAULT: usize = 2;

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// The right to run one cluster, given back on drop.
#[derive(Debug)]
pub struct Slot(());

/// Waits for a slot. A test must not take a second one while it holds one: two such tests would wait for each other.
pub fn take() -> Slot {
    let limit = std::env::var("RAFTLET_TEST_CLUSTERS").ok().and_then(|v| v.parse().ok()).unwrap_or(CLUSTERS_DEFAULT);
    let mut taken = FREED.wait_while(lock(), |taken| *taken >= limit.max(1)).unwrap_or_else(PoisonError::into_inner);
    *taken += 1;
    Slot(())
}

impl Drop for Slot {
    fn drop(&mut self) {
        *lock() -= 1;
        FREED.notify_one();
    }
}

fn lock() -> MutexGuard<'static, usize> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}
