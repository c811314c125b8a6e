//! Steps of a command's way, for counting instructions: `cargo xtask instructions` runs this under callgrind and compares
//! with accepted figures. One thread, fixed seeds, the system's allocator (its counts don't depend on what is free), and
//! nothing but the functions named `measured_...` is counted. Alone it only says that the steps run.

mod common;

use std::hint::black_box;

use bytes::Bytes;
use raftlet::guest::Engine;
use raftlet::log::round_trip;
use raftlet::raft::types::{Entry, Kind};
use raftlet::state_machine::Replica;
use raftlet_machine::{Batch, Method, Request};

const KEYS: u64 = 10_000;
const COMMANDS: u64 = 50;
const VALUE_BYTES: usize = 100;
/// Each step is run so often before it is counted once per run: caches of lazily made things are filled.
const WARM_UP: u64 = 8;
/// Counted runs. The figure is their sum.
const RUNS: u64 = 4;

fn main() {
    let engine = Engine::new().expect("the engine starts");
    let mut replica = common::replica(&engine, common::map(KEYS, VALUE_BYTES));
    for run in 0..WARM_UP + RUNS {
        let batch = common::batch(COMMANDS, KEYS, VALUE_BYTES, run);
        let entry = common::entry(&replica, Kind::Batch, batch);
        if run < WARM_UP { apply(&mut replica, entry) } else { measured_apply(&mut replica, entry) }
    }
    for run in 0..RUNS {
        let commands = (0..COMMANDS).map(|at| put(run * COMMANDS + at)).collect();
        measured_seal(Batch { commands });
        let payload = |at: u64| common::batch(5, KEYS, VALUE_BYTES, run * 10 + at);
        let entries: Vec<Entry> = (0..10).map(|at| common::entry_at(at, Kind::Batch, payload(at))).collect();
        measured_log_codec(&entries);
    }
    println!("{} keys after {} batches", replica.state().map.len(), WARM_UP + RUNS);
}

fn put(at: u64) -> Request {
    let path = format!("/kv/{}", common::key(common::mix(at) % KEYS));
    Request { method: Method::Put, path, query: String::new(), headers: Vec::new(), body: vec![b'v'; VALUE_BYTES] }
}

fn apply(replica: &mut Replica, entry: Entry) {
    drop(replica.apply(entry).expect("this machine is sound"));
}

/// A batch of 50 writes of 100 bytes, through the module and into the map.
#[unsafe(no_mangle)]
#[inline(never)]
pub fn measured_apply(replica: &mut Replica, entry: Entry) {
    apply(replica, entry);
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
