//! Waiting for a condition instead of for luck.

use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// Polls until `probe` gives something.
///
/// # Panics
/// When `within` has passed; the message has `what`.
#[track_caller]
pub fn until<T>(what: &str, within: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    match poll(within, &mut probe) {
        Some(found) => found,
        None => panic!("waited {within:?} in vain until {what}"),
    }
}

/// Polls until `probe` gives something or `within` has passed.
pub fn poll<T>(within: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// Checks all the while that something does not happen: `probe` gives the reason if it did.
#[track_caller]
pub fn never(what: &str, during: Duration, probe: impl FnMut() -> Option<String>) {
    if let Some(reason) = poll(during, probe) {
        panic!("{what} must not happen, but: {reason}");
    }
}
