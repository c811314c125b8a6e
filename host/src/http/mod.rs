//! The client listener. Step 1 of 8: a request comes in, is checked against the limits, and becomes a command or a
//! query of the module's, or one of the host's own pages under `/_/`. Owns every status code and every client
//! socket. Never decides what a command does and never waits for consensus itself: that is behind [`Api`]. Read on in
//! `server.rs` (accepting), `connection.rs` (one connection), `route.rs` (one request), `bulk.rs` (many in one),
//! `problem.rs` (the table of errors); step 2 is in `batcher/`. Beside it the admin listener, for operators (`admin.rs`).

mod admin;
mod body;
mod bulk;
mod connection;
mod limits;
mod metrics;
mod problem;
mod pulse;
mod reply;
mod request;
mod route;
mod server;
mod status;
mod wire;

#[cfg(test)]
mod tests;

use std::future::Future;

use bytes::Bytes;
use raftlet_machine::Request;

pub use admin::{Admin, AdminServer, Backup};
pub use limits::HttpLimits;
pub use metrics::{HttpMetrics, RequestClass, StatusClass};
pub use server::Server;
pub use status::{
    DiskStatus, HoldStatus, IdempotencyStatus, Member, MemberRole, ModuleStatus, QuarantineStatus, Status,
};

use crate::outcome::{Answer, BatchAnswer, Refusal};

/// What a read promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Sees every write that was acknowledged anywhere before the read began.
    Linearizable,
    /// This node's applied state, without asking any other node (`?consistency=stale`).
    Stale,
}

/// What this room asks of the node behind it.
///
/// These futures may be dropped at any time (the client went away): a command that was queued may then still take
/// effect. They must end by themselves within the node's own time limits; this room sets none on them.
pub trait Api: Send + Sync + 'static {
    fn command(&self, request: Request) -> impl Future<Output = Result<Answer, Refusal>> + Send;
    fn query(&self, request: Request, consistency: Consistency)
    -> impl Future<Output = Result<Answer, Refusal>> + Send;
    /// `archive` is a valid archive of so many commands, each of which obeys what a single one has to. They are
    /// refused together or not at all.
    fn command_batch(
        &self,
        archive: Bytes,
        commands: usize,
    ) -> impl Future<Output = Result<BatchAnswer, Refusal>> + Send;
    /// The same for queries.
    fn query_batch(
        &self,
        archive: Bytes,
        queries: usize,
        consistency: Consistency,
    ) -> impl Future<Output = Result<BatchAnswer, Refusal>> + Send;
    /// Must not block: it is called on the server's own tasks.
    fn status(&self) -> Status;
    /// `Err` says, for operators, why this node can't serve requests now.
    fn ready(&self) -> Result<(), String>;
    /// OpenMetrics text, `# EOF` included.
    fn metrics(&self) -> String;
}
