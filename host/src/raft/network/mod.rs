//! Nodes talking to nodes. hyper opens each connection (an HTTP upgrade, so that versions, identities and refusals
//! are plain HTTP), frames follow. Never looks into a batch.

mod bandwidth;
mod client;
pub mod fetch;
mod frame;
mod handshake;
mod install;
mod interest;
pub mod message;
mod pipeline;
mod server;
pub mod snapshots;

pub use client::Links;
pub use frame::{FrameReader, FrameWriter, Outgoing};
pub use handshake::Peers;
pub use install::Installer;
pub use interest::Interests;
pub use server::{Served, serve};
