//! Raftlet: a WebAssembly-pluggable replicated state machine host. `ARCHITECTURE.md` has the map.

pub mod batcher;
pub mod cli;
pub mod config;
pub mod durable;
pub mod failpoint;
pub mod guest;
pub mod http;
pub mod log;
pub mod metrics;
pub mod node;
pub mod outcome;
pub mod raft;
pub mod restore;
pub mod state_machine;
