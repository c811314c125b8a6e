//! The limits of the client listener and their defaults. Every one is tested obeyed and violated in `tests/`.

use std::time::Duration;

/// Limits of the client listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpLimits {
    /// Bytes of one request's body. Over it: 413.
    pub body_bytes_max: usize,
    /// Bytes of a batch's body, and of the batch's archive. Over it: 413.
    pub bulk_bytes_max: usize,
    /// Bytes that bodies still being received may hold together. Bodies up to 16 KiB are not counted, the
    /// connections bound them. Over it: 503.
    pub bodies_bytes_max: usize,
    /// Bytes of replies to batches that are finished and not sent yet. From there on batches get 503; what is under way
    /// then is finished.
    pub bulk_replies_bytes_max: usize,
    /// Bytes of request line and headers. Over it: 431. At least 8192.
    pub header_bytes_max: usize,
    /// Header lines of one request. Over it: 431.
    pub headers_max: usize,
    /// Open connections. Beyond it new ones wait in the operating system's backlog.
    pub connections_max: usize,
    /// From a head's first byte to its last. Over it: 408.
    pub header_read_timeout: Duration,
    /// Each period of this length must bring 16 KiB of a body, or the rest of it. Else: 408.
    pub body_read_timeout: Duration,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Duration,
    /// Each period of this length must take 16 KiB of a blocked reply, or the rest of it. Else the connection is reset.
    pub write_timeout: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        HttpLimits {
            body_bytes_max: 1 << 20,
            bulk_bytes_max: 8 << 20,
            bodies_bytes_max: 128 << 20,
            bulk_replies_bytes_max: 256 << 20,
            header_bytes_max: 32 << 10,
            headers_max: 100,
            connections_max: 10_000,
            header_read_timeout: Duration::from_secs(10),
            body_read_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// What a slow client must move in each period: about 550 bytes/s with the default timeouts.
pub(super) const PROGRESS_BYTES_MIN: u64 = 16 << 10;
