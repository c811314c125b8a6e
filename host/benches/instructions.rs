//! Steps of a command's way, for counting instructions: `cargo xtask instructions` runs this under callgrind and compares
//! with accepted figures. One thread, fixed seeds, the system's allocator (its counts don't depend on what is free), and
//! nothing but the functions named `measured_...` is counted. Alone it only says that the steps run.
//!
//! The apply is that of the module's source compiled natively: valgrind can't reserve the address space of wasmtime's
//! pools. So the map, the overlay, the replies and the digest are guarded here, the crossing into Wasm is not.

mod common;

use std::hint::black_box;

use bytes::Bytes;
use raftlet::log::round_trip;
use raftlet::raft::types::{Entry, Kind};
use raftlet::state_machine::digest;
use raftlet::state_machine::map::Map;
use raftlet_machine::{Batch, Method, Request};

const KEYS: u64 = 10_000;
const COMMANDS: u64 = 50;
const VALUE_BYTES: usize = 100;
/// Each step is run so often before it is counted once per run: caches of lazily made things are filled.
const WARM_UP: u64 = 8;
/// Counted runs. The figure is their sum.
const RUNS: u64 = 4;

fn main() {
    let mut map = common::map(KEYS, VALUE_BYTES);
    for run in 0..WARM_UP + RUNS {
        let batch = common::batch(COMMANDS, KEYS, VALUE_BYTES, run);
        map = if run < WARM_UP { apply(&map, &batch) } else { measured_apply(&map, &batch) };
    }
    for run in 0..RUNS {
        let commands = (0..COMMANDS).map(|at| put(run * COMMANDS + at)).collect();
        measured_seal(Batch { commands });
        let payload = |at: u64| common::batch(5, KEYS, VALUE_BYTES, run * 10 + at);
        let entries: Vec<Entry> = (0..10).map(|at| common::entry_at(at, Kind::Batch, payload(at))).collect();
        measured_log_codec(&entries);
    }
    println!("{} keys after {} batches", map.len(), WARM_UP + RUNS);
}

fn put(at: u64) -> Request {
    let path = format!("/kv/{}", common::key(common::mix(at) % KEYS));
    Request { method: Method::Put, path, query: String::new(), headers: Vec::new(), body: vec![b'v'; VALUE_BYTES] }
}

fn apply(map: &Map, batch: &[u8]) -> Map {
    let (replies, after, writes) = common::natively(map.clone(), batch, 1);
    black_box(digest::link(&[0; 32], 1, &writes, &replies));
    after
}

/// A batch of 50 writes of 100 bytes, through the module's logic and into the map and the digest.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn measured_apply(map: &Map, batch: &[u8]) -> Map {
    apply(map, batch)
}

/// What the batcher does when it seals 50 commands.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn measured_seal(batch: Batch) {
    black_box(Bytes::from(batch.to_bytes()));
}

/// Ten entries of five commands each into a group of the log, and out of it.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn measured_log_codec(entries: &[Entry]) {
    black_box(round_trip(entries).expect("what was written can be read"));
}
