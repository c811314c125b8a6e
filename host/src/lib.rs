//! Raftlet: a WebAssembly-pluggable replicated state machine host.

pub mod batcher;
pub mod config;
pub mod guest;
pub mod http;
pub mod log;
pub mod metrics;
pub mod outcome;
pub mod raft;
pub mod state_machine;
