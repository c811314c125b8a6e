//! The harness of the whole-system tests: real `raftlet` processes on reserved loopback ports, faults by signal, and
//! an HTTP client that controls every byte. It never links the host: what it knows is what a user can know. The tests
//! are in `tests/tests/`; read `cluster.rs` first, then `load.rs`.
//!
//! Environment: `RAFTLET_BIN` (the binary), `RAFTLET_GUESTS` (the folder of built guests), `RAFTLET_SEED` (repeats a
//! run), `RAFTLET_TEST_CLUSTERS` (how many clusters run at a time, 2 by default), and how long the proofs take
//! (`RAFTLET_KILLS`, `RAFTLET_SOAK_SECONDS`, ...; `docs/reliability.md` has all).

pub mod cluster;
pub mod features;
pub mod http;
pub mod launcher;
pub mod load;
pub mod paths;
pub mod payload;
pub mod ports;
pub mod process;
pub mod sample;
pub mod seed;
pub mod slots;
pub mod wait;

pub use cluster::{Cluster, Status};
pub use http::{Client, Response};
pub use launcher::Launcher;
pub use load::{Fate, Ledger, Load};
pub use process::Process;
