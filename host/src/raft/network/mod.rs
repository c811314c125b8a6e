//! Nodes talking to nodes. hyper opens each connection (an HTTP upgrade, so that versions, identities and refusals
//! are plain HTTP), frames follow. Never looks into a batch.

mod client;
mod frame;
mod handshake;
pub mod message;
mod server;

pub use client::Links;
pub use frame::{FrameReader, FrameWriter, Outgoing};
pub use handshake::Peers;
pub use server::{Served, serve};
