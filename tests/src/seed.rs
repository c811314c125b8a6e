//! Randomness that can be repeated.

use fastrand::Rng;

/// A generator for one test. Prints its seed; `RAFTLET_SEED` sets it.
pub fn rng(test: &str) -> Rng {
    let seed = match std::env::var("RAFTLET_SEED") {
        Ok(text) => text.parse().expect("RAFTLET_SEED is a whole number"),
        Err(_) => fastrand::u64(..),
    };
    println!("{test}: seed {seed} (repeat with RAFTLET_SEED={seed})");
    Rng::with_seed(seed)
}
