//! The contract between Raftlet and its modules: the WIT package (`wit/machine.wit`), the rkyv types of batches and
//! replies, the limits, and (feature `guest`) the SDK. No I/O.

#[cfg(feature = "guest")]
pub mod guest;
pub mod limits;
mod types;

pub use types::*;

// The generated bindings name this crate and its runtime as any module's crate would.
#[cfg(feature = "guest")]
extern crate self as raftlet_machine;
#[cfg(feature = "guest")]
#[doc(hidden)]
pub use wit_bindgen::rt as wit_bindgen_rt;

/// The header by which the host recognizes a repeated command. It reaches a command's module as the bare key, whether
/// the client sent it quoted or not, and never reaches a query: there it means nothing.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The request headers a module gets to see, in lower case. All others stay with the host.
pub const FORWARDED_HEADERS: [&str; 11] = [
    "accept",
    "authorization",
    "content-encoding",
    "content-type",
    IDEMPOTENCY_KEY,
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-unmodified-since",
    "prefer",
    "range",
];
