//! Counters of the client listener. Renders nothing: `node.rs` exports them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Whose request it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestClass {
    Command,
    Query,
    /// A batch of commands or queries.
    Bulk,
    /// Another page under `/_/`, or a request that could be assigned to no one.
    Host,
}

/// The first digit of a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusClass {
    Success,
    Redirection,
    ClientError,
    ServerError,
}

/// Plain atomics, read and written without any order between them.
#[derive(Debug, Default)]
pub struct HttpMetrics {
    requests: [[AtomicU64; 4]; 4],
    /// Gauge: requests whose head has arrived and whose reply is not made yet.
    pub requests_in_flight: AtomicU64,
    /// Gauge: bytes of replies to batches that are finished and not sent yet. The limit on them goes by it.
    pub bulk_replies_bytes: AtomicU64,
    /// Gauge.
    pub connections_open: AtomicU64,
    pub connections_accepted: AtomicU64,
    /// Accepting failed, for example because file descriptors ran out.
    pub accept_errors: AtomicU64,
    /// Connections that ended because what they sent is not HTTP, or over the limits of a head.
    pub protocol_errors: AtomicU64,
    /// Clients that were too slow to send a head.
    pub head_timeouts: AtomicU64,
    /// Clients that were too slow to send a body.
    pub body_timeouts: AtomicU64,
    /// Clients that were too slow to read a reply.
    pub write_timeouts: AtomicU64,
    /// Connections closed because nothing was asked.
    pub idle_timeouts: AtomicU64,
}

impl RequestClass {
    pub const ALL: [RequestClass; 4] =
        [RequestClass::Command, RequestClass::Query, RequestClass::Bulk, RequestClass::Host];

    /// The label's value: `command`, `query`, `bulk` or `host`.
    pub fn name(self) -> &'static str {
        match self {
            RequestClass::Command => "command",
            RequestClass::Query => "query",
            RequestClass::Bulk => "bulk",
            RequestClass::Host => "host",
        }
    }
}

impl StatusClass {
    pub const ALL: [StatusClass; 4] =
        [StatusClass::Success, StatusClass::Redirection, StatusClass::ClientError, StatusClass::ServerError];

    /// The label's value: `2xx` and so on.
    pub fn name(self) -> &'static str {
        match self {
            StatusClass::Success => "2xx",
            StatusClass::Redirection => "3xx",
            StatusClass::ClientError => "4xx",
            StatusClass::ServerError => "5xx",
        }
    }

    fn of(status: hyper::StatusCode) -> StatusClass {
        match status.as_u16() / 100 {
            0..=2 => StatusClass::Success,
            3 => StatusClass::Redirection,
            4 => StatusClass::ClientError,
            _ => StatusClass::ServerError,
        }
    }
}

impl HttpMetrics {
    /// Requests answered so far.
    pub fn requests(&self, class: RequestClass, status: StatusClass) -> u64 {
        self.requests[class as usize][status as usize].load(Relaxed)
    }

    pub(super) fn answered(&self, class: RequestClass, status: hyper::StatusCode) {
        self.requests[class as usize][StatusClass::of(status) as usize].fetch_add(1, Relaxed);
    }
}

/// Counts up while it lives.
pub(super) struct Gauge<'a>(&'a AtomicU64);

impl<'a> Gauge<'a> {
    pub(super) fn up(gauge: &'a AtomicU64) -> Self {
        gauge.fetch_add(1, Relaxed);
        Gauge(gauge)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
