//! The SDK's face (`wit/src/guest/`) over any store: `../kv` compiles guest-kv's source against this crate, so that a
//! benchmark can run the same logic natively over the host's own map. The SDK's test host isn't used, because it copies
//! its whole map for each command. Never part of a node or of a module.

mod test_host;

pub use machine::{ArchivedRequest, Header, Method, Reply, Request, limits};

pub mod guest {
    //! What a module's source imports.

    use std::ops::Deref;

    pub use super::test_host::TestHost;
    pub use machine::guest::{Context, Entry, KeyRange, Route, percent_decode, percent_decode_into, percent_encode};
    use machine::{ArchivedBatch, ArchivedRequest, Replies, Reply};

    /// The store behind the imports.
    pub trait Backend {
        fn get(&self, key: &[u8]) -> Option<Vec<u8>>;
        fn scan(&self, range: &KeyRange, limit: u32, bytes_max: u32) -> Vec<Entry>;
        fn set(&mut self, key: &[u8], value: &[u8]) -> bool;
        fn delete(&mut self, key: &[u8]) -> bool;
        fn begin(&mut self);
    }

    pub struct StoreView<'a>(pub(super) &'a mut dyn Backend);

    pub struct Store<'a>(pub(super) StoreView<'a>);

    impl StoreView<'_> {
        pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
            self.0.get(key)
        }

        pub fn scan(&self, range: &KeyRange, limit: u32, bytes_max: u32) -> Vec<Entry> {
            self.0.scan(range, limit, bytes_max)
        }
    }

    impl<'a> Deref for Store<'a> {
        type Target = StoreView<'a>;

        fn deref(&self) -> &StoreView<'a> {
            &self.0
        }
    }

    impl Store<'_> {
        pub fn set(&mut self, key: &[u8], value: &[u8]) -> bool {
            self.0.0.set(key, value)
        }

        pub fn delete(&mut self, key: &[u8]) -> bool {
            self.0.0.delete(key)
        }
    }

    pub trait Machine {
        const NAME: &'static str;
        const VERSION: &'static str;

        fn routes() -> &'static [Route];
        fn apply(context: &Context, request: &ArchivedRequest, store: &mut Store) -> Reply;
        fn query(context: &Context, request: &ArchivedRequest, store: &StoreView) -> Reply;
    }

    /// What `wit/src/guest/run.rs` does in Wasm: the batch's commands one by one, then their replies as an archive.
    pub fn run<M: Machine>(first_command: u64, batch: &[u8], backend: &mut dyn Backend) -> Vec<u8> {
        // SAFETY: as in Wasm, the host has validated the batch before it calls.
        let batch = unsafe { rkyv::access_unchecked::<ArchivedBatch>(batch) };
        let mut store = Store(StoreView(backend));
        let mut context = Context { log_index: 1, term: 1, time_ms: 0, command_number: first_command, seed: 0 };
        let mut replies = Vec::with_capacity(batch.commands.len());
        for command in batch.commands.iter() {
            store.0.0.begin();
            replies.push(M::apply(&context, command, &mut store));
            context.command_number += 1;
        }
        Replies { replies }.to_bytes()
    }
}

/// In place of the component's exports: one function for the benchmark.
#[macro_export]
macro_rules! export {
    ($machine:ident) => {
        /// Runs an archived, validated batch; returns the archived replies.
        pub fn apply(first_command: u64, batch: &[u8], backend: &mut dyn $crate::guest::Backend) -> Vec<u8> {
            $crate::guest::run::<$machine>(first_command, batch, backend)
        }
    };
}
