//! The harness of the whole-system tests: real `raftlet` processes on reserved loopback ports, faults by signal, and
//! an HTTP client that controls every byte. It never links the host: what it knows is what a user can know. The tests
//! are in `tests/tests/`; read `cluster.rs` first, then `load.rs`.
//!
//! Environment: `RAFTLET_BIN` (the binary), `RAFTLET_GUESTS` (the folder of built guests), `RAFTLET_SEED` (repeats a
//! run), `RAFTLET_TEST_CLUSTERS` (how many clusters run at a time, 2 by default), and how long the proofs take
//! (`RAFTLET_KILLS`, `RAFTLET_SOAK_SECONDS`, ...; `docs/reliability.md` has all).

pub mod checker;
pub mod clock;
pub mod clocks;
pub mod cluster;
pub mod disk_replay;
pub mod failpoints;
pub mod features;
pub mod history;
pub mod http;
pub mod keyed;
pub mod launcher;
pub mod load;
pub mod model;
pub mod nemesis;
pub mod paths;
pub mod payload;
pub mod poison;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod rot;
pub mod sample;
pub mod seed;
pub mod slots;
pub mod snapshots;
pub mod steady;
pub mod wait;
pub mod workload;

pub use cluster::{Cluster, Status};
pub use http::{Client, Response};
pub use launcher::Launcher;
pub use load::{Fate, Ledger, Load};
pub use process::Process;
