//! The limits of the contract, in bytes or counts, enforced by the host. A module may rely on them. All are part of the
//! contract's version: lowering one could refuse what a log already holds. How much a node accepts from clients by
//! default (1 MiB bodies, say) is configuration and stays below these.

/// Commands in one [`crate::Batch`].
pub const BATCH_COMMANDS_MAX: usize = 65_536;

/// Bytes of a request's body: 8 MiB. A node may be set to accept less, never more.
pub const REQUEST_BODY_BYTES_MAX: usize = 8 << 20;

/// Bytes of the archived [`crate::Replies`] to one batch: 64 MiB.
pub const REPLIES_BYTES_MAX: usize = 64 << 20;

/// Bytes of a key in the store. A longer one traps.
pub const KEY_BYTES_MAX: usize = 4 << 10;

/// Bytes of a value in the store: a whole request body and 64 KiB of the module's own. A longer one traps.
pub const VALUE_BYTES_MAX: usize = REQUEST_BODY_BYTES_MAX + (64 << 10);

/// Bytes of an idempotency key, all of them visible ASCII. At least 1.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

// The archive's relative pointers have 32 bits, one of them the sign.
const _: () = assert!(REPLIES_BYTES_MAX < i32::MAX as usize);
