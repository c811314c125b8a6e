//! A host for tests of machines: one node, no log, a map in memory. Commands take the same way as in Wasm (archive,
//! loop, archive). Never part of a module.

use std::marker::PhantomData;

use super::bindings::raftlet::machine::types;
use super::{Machine, Store, StoreView, run};
use crate::{Batch, Replies, Reply, Request};

/// Runs a [`Machine`] natively.
pub struct TestHost<M> {
    store: Store,
    /// Of the next batch. Tests may turn the clock.
    pub context: types::Context,
    machine: PhantomData<M>,
}

impl<M: Machine> Default for TestHost<M> {
    fn default() -> Self {
        let context = types::Context { log_index: 1, term: 1, time_ms: 0, first_command: 1, seed: 0 };
        TestHost { store: Store::new(), context, machine: PhantomData }
    }
}

impl<M: Machine> TestHost<M> {
    /// Runs one request: as a query or as a command, by its method.
    pub fn send(&mut self, request: Request) -> Reply {
        let query = request.method.is_query();
        let replies = if query { self.query(vec![request]) } else { self.apply(vec![request]) };
        replies.into_iter().next().expect("one request has one reply")
    }

    /// Runs one batch of commands.
    pub fn apply(&mut self, commands: Vec<Request>) -> Vec<Reply> {
        let count = commands.len() as u64;
        let replies = self.run(commands, M::apply);
        self.context.log_index += 1;
        self.context.first_command += count;
        replies
    }

    /// Runs one batch of queries.
    pub fn query(&mut self, queries: Vec<Request>) -> Vec<Reply> {
        self.run(queries, run::query_of::<M>())
    }

    /// The state.
    pub fn store(&self) -> &StoreView {
        &self.store
    }

    fn run(
        &mut self,
        commands: Vec<Request>,
        each: fn(&super::Context, &crate::ArchivedRequest, &mut Store) -> Reply,
    ) -> Vec<Reply> {
        let bytes = Batch { commands }.to_bytes();
        let batch = Batch::access(&bytes).expect("a batch just archived is valid");
        let archive = run::replies(&self.context, batch, &[], &mut self.store, each).to_bytes();
        Replies::from_bytes(&archive).expect("replies just archived are valid").replies
    }
}

/// The store's imports, in memory.
pub(super) mod memory {
    use std::collections::BTreeMap;
    use std::ops::Bound;

    use super::super::bindings::raftlet::machine::store::{Entry, Order, ScanRange};

    #[derive(Default)]
    pub struct Map {
        entries: BTreeMap<Vec<u8>, Vec<u8>>,
        savepoint: BTreeMap<Vec<u8>, Vec<u8>>,
    }

    impl Map {
        pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
            self.entries.get(key).cloned()
        }

        pub fn scan(&self, range: &ScanRange, limit: u32, bytes_max: u32) -> Vec<Entry> {
            let mut bytes = 0;
            let mut out = Vec::new();
            let mut keys = self.keys(range);
            if range.order == Order::Descending {
                keys.reverse();
            }
            for key in keys.into_iter().take(limit as usize) {
                let value = self.entries[&key].clone();
                bytes += key.len() + value.len();
                if bytes > bytes_max as usize && !out.is_empty() {
                    break;
                }
                out.push(Entry { key, value });
            }
            out
        }

        pub fn set(&mut self, key: &[u8], value: &[u8]) -> bool {
            self.entries.insert(key.to_vec(), value.to_vec()).is_some()
        }

        pub fn delete(&mut self, key: &[u8]) -> bool {
            self.entries.remove(key).is_some()
        }

        pub fn delete_range(&mut self, range: &ScanRange) -> u64 {
            let keys = self.keys(range);
            keys.iter().for_each(|key| drop(self.entries.remove(key)));
            keys.len() as u64
        }

        pub fn rollback(&mut self) {
            self.entries.clone_from(&self.savepoint);
        }

        pub fn begin(&mut self, _position: u32) {
            self.savepoint.clone_from(&self.entries);
        }

        fn keys(&self, range: &ScanRange) -> Vec<Vec<u8>> {
            // BTreeMap::range panics on bounds that cross.
            if matches!((&range.start, &range.end), (Some(start), Some(end)) if start >= end) {
                return Vec::new();
            }
            let start = range.start.clone().map_or(Bound::Unbounded, Bound::Included);
            let end = range.end.clone().map_or(Bound::Unbounded, Bound::Excluded);
            self.entries.range((start, end)).map(|(key, _)| key.clone()).collect()
        }
    }
}
