//! The SDK's host for tests, over a `BTreeMap`: guest-kv's own tests show that the source means the same here.

use std::collections::BTreeMap;
use std::marker::PhantomData;

use machine::{Batch, Replies, Reply, Request};

use super::guest::{Backend, Context, Entry, KeyRange, Machine, Store, StoreView, run};

pub struct TestHost<M> {
    map: BTreeMap<Vec<u8>, Vec<u8>>,
    next_command: u64,
    machine: PhantomData<M>,
}

impl<M> Default for TestHost<M> {
    fn default() -> Self {
        TestHost { map: BTreeMap::new(), next_command: 1, machine: PhantomData }
    }
}

impl<M: Machine> TestHost<M> {
    /// Runs one request: as a query or as a command, by its method.
    pub fn send(&mut self, request: Request) -> Reply {
        if !request.method.is_query() {
            return self.apply(vec![request]).remove(0);
        }
        let bytes = Batch { commands: vec![request] }.to_bytes();
        let batch = Batch::access(&bytes).expect("a batch just archived is valid");
        let context = Context { log_index: 1, term: 1, time_ms: 0, command_number: self.next_command, seed: 0 };
        M::query(&context, &batch.commands[0], &Store(StoreView(&mut self.map)))
    }

    /// Runs one batch of commands.
    pub fn apply(&mut self, commands: Vec<Request>) -> Vec<Reply> {
        let count = commands.len() as u64;
        let archive = run::<M>(self.next_command, &Batch { commands }.to_bytes(), &mut self.map);
        self.next_command += count;
        Replies::from_bytes(&archive).expect("replies just archived are valid").replies
    }
}

impl Backend for BTreeMap<Vec<u8>, Vec<u8>> {
    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        BTreeMap::get(self, key).cloned()
    }

    fn scan(&self, range: &KeyRange, limit: u32, bytes_max: u32) -> Vec<Entry> {
        let above = |key: &Vec<u8>| range.start.as_ref().is_none_or(|start| key >= start);
        let below = |key: &Vec<u8>| range.end.as_ref().is_none_or(|end| key < end);
        let inside = self.iter().filter(|(key, _)| above(key) && below(key));
        let pair = |(key, value): (&Vec<u8>, &Vec<u8>)| Entry { key: key.clone(), value: value.clone() };
        let mut entries: Vec<Entry> = inside.map(pair).collect();
        if range.descending {
            entries.reverse();
        }
        entries.truncate(limit as usize);
        let mut bytes = 0;
        let fits = |entry: &Entry| {
            bytes += entry.key.len() + entry.value.len();
            bytes <= bytes_max as usize
        };
        let many = entries.iter().map(fits).take_while(|fit| *fit).count();
        entries.truncate(many.max(1));
        entries
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> bool {
        self.insert(key.into(), value.into()).is_some()
    }

    fn delete(&mut self, key: &[u8]) -> bool {
        self.remove(key).is_some()
    }

    fn begin(&mut self) {}
}
