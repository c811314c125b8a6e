//! The state machine's map beside other ordered maps: `cargo bench --workspace --bench map`. Keys and values as the
//! built-in module stores them (15 and 108 bytes), 10,000 and 1,000,000 of them in random order. The standard library's
//! map can't be held while it is written; the others are what a persistent map may cost. `RAFTLET_BENCH_KEYS` for
//! another size.

mod common;

use std::collections::BTreeMap;
use std::hint::black_box;

use divan::Bencher;
use divan::counter::ItemsCount;
use raftlet::state_machine::map::{Entry, Map};

/// The binary's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Rpds = rpds::RedBlackTreeMapSync<Box<[u8]>, Box<[u8]>>;
type Chunks = immutable_chunkmap::map::MapM<std::sync::Arc<[u8]>, std::sync::Arc<[u8]>>;

/// Operations in one measured run, after which an old state is let go of.
const BATCH: u64 = 50;
const VALUE: [u8; 108] = [b'v'; 108];

fn main() {
    divan::main();
}

fn sizes() -> Vec<u64> {
    let set = std::env::var("RAFTLET_BENCH_KEYS").ok();
    set.map_or(vec![10_000, 1_000_000], |keys| vec![keys.parse().expect("a number of keys")])
}

/// What is measured, of each kind of map.
trait Ordered {
    fn fill(keys: u64) -> Self;
    fn get(&self, key: &[u8]) -> usize;
    fn put(&mut self, key: &[u8]);
}

impl Ordered for Map {
    fn fill(keys: u64) -> Self {
        common::map(keys, VALUE.len() - 8)
    }

    fn get(&self, key: &[u8]) -> usize {
        Map::get(self, key).map_or(0, |entry| entry.value().len())
    }

    fn put(&mut self, key: &[u8]) {
        self.insert(Entry::new(key, &VALUE));
    }
}

impl Ordered for BTreeMap<Box<[u8]>, Box<[u8]>> {
    fn fill(keys: u64) -> Self {
        (0..keys).map(|number| (common::stored_key(number).into(), VALUE.into())).collect()
    }

    fn get(&self, key: &[u8]) -> usize {
        BTreeMap::get(self, key).map_or(0, |value| value.len())
    }

    fn put(&mut self, key: &[u8]) {
        self.insert(key.into(), VALUE.into());
    }
}

impl Ordered for Rpds {
    fn fill(keys: u64) -> Self {
        let mut map = Rpds::new_sync();
        (0..keys).for_each(|number| map.put(&common::stored_key(number)));
        map
    }

    fn get(&self, key: &[u8]) -> usize {
        Rpds::get(self, key).map_or(0, |value| value.len())
    }

    fn put(&mut self, key: &[u8]) {
        self.insert_mut(key.into(), VALUE.into());
    }
}

impl Ordered for Chunks {
    fn fill(keys: u64) -> Self {
        let mut map = Chunks::new();
        (0..keys).for_each(|number| map.put(&common::stored_key(number)));
        map
    }

    fn get(&self, key: &[u8]) -> usize {
        Chunks::get(self, key).map_or(0, |value| value.len())
    }

    fn put(&mut self, key: &[u8]) {
        self.insert_cow(key.into(), VALUE.into());
    }
}

fn keys_of(run: &mut u64, keys: u64) -> Vec<Vec<u8>> {
    *run += 1;
    (0..BATCH).map(|at| common::stored_key(common::mix(*run << 32 | at) % keys)).collect()
}

#[divan::bench(types = [Map, BTreeMap<Box<[u8]>, Box<[u8]>>, Rpds, Chunks], args = sizes(), sample_count = 2000)]
fn get<M: Ordered>(bencher: Bencher, keys: u64) {
    let (map, mut run) = (M::fill(keys), 0);
    bencher
        .counter(ItemsCount::new(BATCH))
        .with_inputs(|| keys_of(&mut run, keys))
        .bench_local_refs(|batch| batch.iter().map(|key| black_box(&map).get(key)).sum::<usize>());
}

/// Nobody holds the state before.
#[divan::bench(types = [Map, BTreeMap<Box<[u8]>, Box<[u8]>>, Rpds, Chunks], args = sizes(), sample_count = 2000)]
fn put<M: Ordered>(bencher: Bencher, keys: u64) {
    let (mut map, mut run) = (M::fill(keys), 0);
    bencher
        .counter(ItemsCount::new(BATCH))
        .with_inputs(|| keys_of(&mut run, keys))
        .bench_local_refs(|batch| batch.iter().for_each(|key| map.put(key)));
}

/// The state before each batch is held until the batch is done, as the state machine holds it.
#[divan::bench(types = [Map, Rpds, Chunks], args = sizes(), sample_count = 2000)]
fn put_while_held<M: Ordered + Clone>(bencher: Bencher, keys: u64) {
    let (mut map, mut run) = (M::fill(keys), 0);
    bencher.counter(ItemsCount::new(BATCH)).with_inputs(|| keys_of(&mut run, keys)).bench_local_refs(|batch| {
        let held = map.clone();
        batch.iter().for_each(|key| map.put(key));
        drop(held);
    });
}
