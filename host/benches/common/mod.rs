//! What the benchmarks share: a state of many keys, batches of writes to it, the built-in module, and the module's own
//! source compiled natively over the same map. Everything follows from fixed seeds.

#![allow(dead_code, reason = "each benchmark uses a part")]

use std::sync::Arc;

use bytes::Bytes;
use openraft::EntryPayload;
use raftlet::guest::{CommandStore, Context, Engine, Limits, Module, ReadStore, ValidBatch};
use raftlet::outcome::{BatchReplies, ModuleReplies};
use raftlet::raft::codec::log_id;
use raftlet::raft::types::{BatchId, Entry, Envelope, Kind, Proposal};
use raftlet::state_machine::map::{Entry as Pair, Map};
use raftlet::state_machine::overlay::{Overlay, Writes};
use raftlet::state_machine::{Activation, Effort, Replica};
use raftlet_machine::{Batch, Method, Request};
use raftlet_native_sdk::guest::{Backend, Entry as Scanned, KeyRange};

pub const KV: &[u8] = include_bytes!("../../modules/kv.wasm");

/// SplitMix64 (Steele, Lea, Flood 2014): a fixed sequence without a crate.
pub fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// As clients write it, behind `/kv/`.
pub fn key(number: u64) -> String {
    format!("key-{number:010}")
}

/// As the module stores it.
pub fn stored_key(number: u64) -> Vec<u8> {
    format!("k{}", key(number)).into_bytes()
}

/// A state with so many keys, and values of so many bytes behind their revisions.
pub fn map(keys: u64, value_bytes: usize) -> Map {
    let value = vec![b'v'; 8 + value_bytes];
    let mut map = Map::new();
    for number in 0..keys {
        map.insert(Pair::new(&stored_key(number), &value));
    }
    map
}

/// A batch of PUTs to keys below `keys`. Two of the same `seed` are equal.
pub fn batch(commands: u64, keys: u64, value_bytes: usize, seed: u64) -> Bytes {
    let put = |at: u64| {
        let path = format!("/kv/{}", key(mix(seed << 32 | at) % keys));
        let body = vec![b'a' + (at % 26) as u8; value_bytes];
        Request { method: Method::Put, path, query: String::new(), headers: Vec::new(), body }
    };
    Batch { commands: (0..commands).map(put).collect() }.to_bytes().into()
}

pub fn module(engine: &Engine) -> Module {
    Module::compile(engine, KV, Limits::default()).expect("the built-in module compiles")
}

pub type Applied = (BatchReplies, Map, Writes);

/// The batch through the module, as the state machine does it, without digest and sessions.
pub fn through_wasm(module: &Module, map: Map, batch: &[u8], first_command: u64) -> Applied {
    let context = Context { log_index: 1, term: 1, time_ms: 0, first_command, seed: 0 };
    let batch = ValidBatch::new(batch).expect("the batch is valid");
    let (replies, overlay) = module.apply(&context, batch, &[], Overlay::new(map)).expect("this machine is sound");
    let (map, writes) = overlay.finish();
    (replies, map, writes)
}

/// The same logic natively: validated batch, overlay, archived replies, and these taken apart.
pub fn natively(map: Map, batch: &[u8], first_command: u64) -> Applied {
    Batch::access(batch).expect("the batch is valid");
    let mut native = Native(Overlay::new(map));
    let archive = raftlet_native_kv::apply(first_command, batch, &mut native);
    let replies = BatchReplies::Whole(ModuleReplies::new(archive.into()).expect("the replies are valid"));
    let (map, writes) = native.0.finish();
    (replies, map, writes)
}

struct Native(Overlay);

impl Backend for Native {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        ReadStore::get(&self.0, key).map(<[u8]>::to_vec)
    }

    fn scan(&self, _: &KeyRange, _: u32, _: u32) -> Vec<Scanned> {
        unimplemented!("no command scans")
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> bool {
        self.0.set(key, value)
    }

    fn delete(&mut self, key: &[u8]) -> bool {
        self.0.delete(key)
    }

    fn begin(&mut self) {
        self.0.begin();
    }
}

/// A replica with the built-in module and this map. The next entry is `entry(replica, ...)`.
pub fn replica(engine: &Engine, map: Map) -> Replica {
    let mut replica = Replica::new(engine.clone(), Arc::default());
    let activation = Activation::of(KV, 7, Limits::default(), engine.identity());
    for (kind, bytes) in [(Kind::ModuleChunk, Bytes::from_static(KV)), (Kind::ActivateModule, activation.to_bytes())] {
        let entry = entry(&replica, kind, bytes);
        replica.apply(&entry, Effort::Whole).expect("the module compiles");
    }
    let mut state = replica.state();
    state.applied = state.applied.map(|id| log_id(1, id.index + 1));
    state.map = map;
    replica.replace(state);
    replica
}

/// The entry that this replica expects next.
pub fn entry(replica: &Replica, kind: Kind, bytes: Bytes) -> Entry {
    let index = replica.state().applied.map_or(0, |id| id.index + 1);
    entry_at(index, kind, bytes)
}

pub fn entry_at(index: u64, kind: Kind, bytes: Bytes) -> Entry {
    let id = BatchId { node: 1, boot: 1, sequence: index };
    let envelope = Envelope { kind, id, time_ms: 1_000_000 + index, stamp_index: 0, stamp_digest: [0; 16] };
    Entry { log_id: log_id(1, index), payload: EntryPayload::Normal(Proposal { envelope, bytes }) }
}
