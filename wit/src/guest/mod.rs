//! The SDK: a module is a type that implements [`Machine`] and one line, [`export!`](crate::export).
//!
//! A machine is a pure function from (state, request) to (state changes, reply). It keeps nothing between commands:
//! all state is in the [`Store`], and all it knows of time, identity and chance is in the [`Context`]. A panic or a
//! trap undoes that command alone. This file owns the contract with the author; `run.rs` has the loop over a batch.
//! On other targets than Wasm the same code runs over a map in memory ([`TestHost`]), so that a module can be tested
//! with plain `cargo test`.

#[cfg(any(test, target_arch = "wasm32"))]
mod allocator;
#[doc(hidden)]
pub mod bindings;
mod context;
mod reply;
mod request;
#[doc(hidden)]
pub mod run;
mod store;
#[cfg(not(target_arch = "wasm32"))]
mod test_host;

pub use bindings::raftlet::machine::log::Level;
pub use bindings::raftlet::machine::store::Entry;
pub use context::Context;
pub use request::{MalformedEncoding, percent_decode, percent_decode_into, percent_encode};
pub use store::{KeyRange, Store, StoreView};
#[cfg(not(target_arch = "wasm32"))]
pub use test_host::TestHost;

use crate::{ArchivedRequest, Method, Reply};

/// The logic of a service. There is no `self`: an instance lives for one batch.
pub trait Machine {
    /// Shown in `/_/status`; names the module for ever.
    const NAME: &'static str;
    /// Usually `env!("CARGO_PKG_VERSION")`.
    const VERSION: &'static str;
    /// Of the stored data. Raise it when the data's shape changes, and write [`Machine::migrate`].
    const SCHEMA: u32 = 1;

    /// What the module answers to. For people and tools: the host sends every request.
    fn routes() -> &'static [Route] {
        &[]
    }

    /// Executes a command (POST, PUT, PATCH or DELETE). Its writes are kept, whatever the reply's status, unless it
    /// traps or calls [`Store::rollback`].
    fn apply(ctx: &Context, request: &ArchivedRequest, store: &mut Store) -> Reply;

    /// Answers a query (GET or HEAD; the host drops the body of a reply to HEAD).
    fn query(ctx: &Context, request: &ArchivedRequest, store: &StoreView) -> Reply;

    /// Called once, when this module takes over from one with another schema. An error keeps the old module.
    fn migrate(from_schema: u32, _store: &mut Store) -> Result<(), String> {
        if from_schema == Self::SCHEMA {
            return Ok(());
        }
        Err(format!("{} has no migration from schema {from_schema} to {}", Self::NAME, Self::SCHEMA))
    }
}

/// One line of a module's table of contents.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    pub method: Method,
    pub path: &'static str,
    pub summary: &'static str,
}

impl Route {
    /// `path` is for people: `/kv/{key}`.
    pub const fn new(method: Method, path: &'static str, summary: &'static str) -> Self {
        Route { method, path, summary }
    }
}

/// Writes to the node's log. Every replica does.
pub fn log(level: Level, message: &str) {
    #[cfg(target_arch = "wasm32")]
    bindings::raftlet::machine::log::write(level, message);
    #[cfg(not(target_arch = "wasm32"))]
    eprintln!("{level:?}: {message}");
}

/// Makes a [`Machine`] the module of this crate. Once per crate; the crate's type must be `cdylib`.
#[macro_export]
macro_rules! export {
    ($machine:ident) => {
        // The names of component exports mean nothing to a native linker.
        #[cfg(target_arch = "wasm32")]
        $crate::guest::bindings::export_component!($machine with_types_in $crate::guest::bindings);
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() -> $crate::guest::TestHost<$machine> = Default::default;
    };
}

#[cfg(target_arch = "wasm32")]
#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator::new();

/// An empty list with room for so many.
#[inline(always)]
fn vec_with_capacity<T>(capacity: usize) -> Vec<T> {
    #[cfg(target_arch = "wasm32")]
    // SAFETY: it is the global allocator.
    return unsafe { ALLOCATOR.vec(capacity) };
    #[cfg(not(target_arch = "wasm32"))]
    Vec::with_capacity(capacity)
}
