//! Step [7] of 8: runs a module on a batch. The only room that knows wasmtime. It gets a store behind a trait, gives
//! back replies, and knows neither the map nor Raft.
//!
//! `engine.rs` (settings) → `module.rs` (compiles, describes) → `host.rs` (what imports do and cost) → `apply.rs` (one
//! batch) → `attempt.rs` (one instance) → `core_module.rs`, `core_imports.rs` or `component.rs` (how it is called, and how it
//! calls). From here the path goes on in `state_machine/` (step 8).

mod apply;
mod attempt;
mod component;
mod core_imports;
mod core_module;
mod engine;
mod fault;
mod host;
mod inspect;
mod limits;
mod module;
mod reply;
mod store;

#[cfg(test)]
pub(crate) mod tests;

pub use apply::{CULPRITS_MAX, Context, QueryBounds, ValidBatch};
pub use engine::{Engine, EngineError, MEMORY_BYTES_CAP, STACK_BYTES};
pub use fault::LocalFault;
pub use inspect::{Inspection, inspect};
pub use limits::{InvalidLimits, Limits};
pub use module::{Description, Module, ModuleError, Route};
pub use store::{CommandStore, KeyRange, Order, ReadStore};
