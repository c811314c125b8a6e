//! A client of Raftlet clusters.
//!
//! - It finds the leader and sends commands and linearizable queries there; any node may be down.
//! - Requests that wait at the same time are sent as one bulk request, as soon as a connection is free. One caller alone
//!   waits for nothing.
//! - What was refused is sent again until the deadline. What may have happened is not, unless a repetition can do no
//!   harm: queries, and commands with an idempotency key.
//! - An error says whether anything may have happened: [`Error::Rejected`] or [`Error::Unknown`].
//!
//! ```no_run
//! # async fn example() -> Result<(), raftlet_client::Error> {
//! use raftlet_client::Client;
//!
//! let client = Client::new(["http://127.0.0.1:8080", "http://127.0.0.1:8081", "http://127.0.0.1:8082"])?;
//! let written = client.put("/kv/greeting", "hello").await?;
//! assert!(written.is_success());
//! assert_eq!(client.get("/kv/greeting").await?.body(), "hello");
//! # Ok(())
//! # }
//! ```
//!
//! The source reads in the order of the modules below: a request is checked, waits in `queue`, is taken by a `worker`,
//! and sent by `exchange` over a `wire` to where `cluster` says.

mod client;
mod cluster;
mod encode;
mod error;
mod exchange;
mod node;
mod options;
mod queue;
mod reply;
mod request;
mod wire;
mod worker;

pub use client::{Client, Consistency, Figures};
pub use error::{Error, Refusal};
pub use options::Builder;
pub use raftlet_machine::{Header, Method, Request};
pub use reply::{Replies, Reply};
pub use request::{keyed, request};
