//! How long applies take beside the making of a snapshot. Only prints: the machine that runs the tests may be busy.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::guest::CommandStore;
use crate::outcome::BatchReplies;
use crate::state_machine::digest;
use crate::state_machine::overlay::Overlay;
use crate::state_machine::snapshot::Snapshots;

const KEYS: u32 = 1_000_000;
const WRITES: u32 = 50;

/// What a batch costs besides the module: overlay, writes, digest, and the clone that is published.
fn apply(state: &mut Published, number: u32) -> (Duration, Arc<Published>) {
    let started = Instant::now();
    let mut overlay = Overlay::new(state.map.clone());
    for i in 0..WRITES {
        let key = (number * WRITES + i).wrapping_mul(2_654_435_761) % KEYS;
        overlay.set(&key.to_be_bytes(), &[number as u8; 100]);
    }
    let (map, writes) = overlay.finish();
    state.digest = digest::link(&state.digest, number.into(), &writes, &BatchReplies::Each(Vec::new()));
    state.map = map;
    let published = Arc::new(state.clone());
    (started.elapsed(), published)
}

/// Number of applies, and of their times the median, the 99th percentile and the longest.
fn run(state: &mut Published, until: impl Fn(u32) -> bool) -> (usize, Duration, Duration, Duration) {
    let mut times = Vec::new();
    let mut published = Arc::new(state.clone());
    while !until(times.len() as u32) {
        let (time, newer) = apply(state, times.len() as u32);
        times.push(time);
        // As in the state machine: what was published before is dropped then.
        drop(std::mem::replace(&mut published, newer));
    }
    times.sort();
    (times.len(), times[times.len() / 2], times[times.len() * 99 / 100], times[times.len() - 1])
}

#[test]
fn applies_beside_a_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = Snapshots::open(dir.path()).unwrap();
    let mut state = full(1, 7, map((0..KEYS).map(|i| (i.to_be_bytes().to_vec(), noise(100, i.into())))), b"module");
    let alone = run(&mut state, |applies| applies == 2_000);
    let (done, frozen) = (AtomicBool::new(false), Arc::new(state.clone()));
    let beside = std::thread::scope(|scope| {
        scope.spawn(|| {
            let started = Instant::now();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let file = runtime.block_on(snapshots.build_apart(frozen)).unwrap();
            println!("{KEYS} keys: {} bytes in {:?}", file.bytes, started.elapsed());
            done.store(true, Ordering::Release);
        });
        run(&mut state, |_| done.load(Ordering::Acquire))
    });
    println!("applies of {WRITES} writes alone: {alone:?} (number, p50, p99, max); beside the snapshot: {beside:?}");
    let started = Instant::now();
    let loaded = snapshots.load(&snapshots.kept()[0]).unwrap();
    println!("loaded {} keys in {:?}", loaded.map.len(), started.elapsed());
}
