//! What the client listener accepts: defaults with their reasons, and the rules between them. Enforced in `http/` and
//! `batcher/`.

use std::time::Duration;

use super::{BatchingConfig, ConfigError, KIB, MIB, must};

/// What the client listener accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpLimits {
    /// Bytes of one request's body; beyond it the answer is 413.
    pub body_bytes_max: usize,
    /// Bytes of one batch of requests that a client makes; beyond it the answer is 413.
    pub bulk_bytes_max: usize,
    /// Bytes of all requests that wait or run; beyond it the answer is 503 with Retry-After.
    pub queue_bytes_max: usize,
    /// Bytes of finished replies to batches that clients have not read yet. From there on the answer to a batch is 503
    /// with Retry-After.
    pub bulk_replies_bytes_max: usize,
    /// Bytes of one request's head; beyond it the answer is 431.
    pub header_bytes_max: usize,
    /// Client connections at the same time; more wait in the listener's backlog.
    pub connections_max: usize,
    /// From a complete request to its answer; beyond it the outcome is unknown.
    pub request_timeout: Duration,
    /// From the first byte of a request to the end of its head.
    pub header_read_timeout: Duration,
    /// How long a connection may be without a request.
    pub idle_timeout: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        HttpLimits {
            // The logic is for small records; a large body is copied into every replica's log.
            body_bytes_max: MIB,
            // Tens of thousands of small commands; it is one log entry, which every node holds in memory.
            bulk_bytes_max: 8 * MIB,
            // Two seconds of a slow disk's throughput, and a bound on the memory that waiting clients can cost.
            queue_bytes_max: 64 * MIB,
            // Four of the largest replies: whoever reads at a usual speed never notices it.
            bulk_replies_bytes_max: 256 * MIB,
            // Room for cookies and tokens; four times what common web servers allow for one line.
            header_bytes_max: 32 * KIB,
            // About 20 KiB of buffers each: 200 MiB in the worst case.
            connections_max: 10_000,
            // Eight elections: whoever waits longer meets a cluster without a majority.
            request_timeout: Duration::from_secs(10),
            // A head fits in a few packets; slower than this is a client that holds connections on purpose.
            header_read_timeout: Duration::from_secs(10),
            // Longer than the pause between two requests of a connection pool, shorter than a day of leaks.
            idle_timeout: Duration::from_secs(75),
        }
    }
}

impl HttpLimits {
    /// Bytes of the largest body limit that may be asked for: a body is in one log entry.
    pub const BODY_BYTES_LIMIT: usize = raftlet_machine::limits::REQUEST_BODY_BYTES_MAX;
    /// Bytes of the largest batch limit that may be asked for: the batch is one log entry, as those made here are.
    pub const BULK_BYTES_LIMIT: usize = BatchingConfig::MAX_BYTES_LIMIT;
    /// Least difference between the queue's limit and a batch's: a batch weighs a little more than its bytes.
    const BULK_MARGIN: usize = KIB;

    pub fn validate(&self) -> Result<(), ConfigError> {
        must((1..=Self::BODY_BYTES_LIMIT).contains(&self.body_bytes_max), || {
            format!("body-bytes-max: {} is not from 1 to 8MiB", self.body_bytes_max)
        })?;
        must((KIB..=Self::BULK_BYTES_LIMIT).contains(&self.bulk_bytes_max), || {
            format!("bulk-bytes-max: {} is not from 1KiB to 16MiB", self.bulk_bytes_max)
        })?;
        must(self.queue_bytes_max >= self.bulk_bytes_max.saturating_add(Self::BULK_MARGIN), || {
            format!(
                "queue-bytes-max: {} can't hold one largest batch (bulk-bytes-max {} and 1KiB); raise it, or lower that",
                self.queue_bytes_max, self.bulk_bytes_max
            )
        })?;
        must(self.queue_bytes_max >= self.body_bytes_max.saturating_add(self.header_bytes_max), || {
            format!(
                "queue-bytes-max: {} can't hold one largest request (body-bytes-max {} + header-bytes-max {}); raise it",
                self.queue_bytes_max, self.body_bytes_max, self.header_bytes_max
            )
        })?;
        // A reply that begins below the limit may end above it, so that any limit lets one through; with less than this
        // usual clients would refuse each other.
        must(self.bulk_replies_bytes_max >= MIB, || {
            format!("bulk-replies-bytes-max: {} is too little; give at least 1MiB", self.bulk_replies_bytes_max)
        })?;
        // The HTTP server's own buffer can't be smaller than 8 KiB.
        must((8 * KIB..=MIB).contains(&self.header_bytes_max), || {
            format!("header-bytes-max: {} is not from 8KiB to 1MiB", self.header_bytes_max)
        })?;
        must(self.connections_max >= 1, || "connections-max: 0 would serve nobody; give at least 1".into())?;
        let timeouts = [
            ("request-timeout", self.request_timeout),
            ("header-read-timeout", self.header_read_timeout),
            ("idle-timeout", self.idle_timeout),
        ];
        for (name, given) in timeouts {
            must(given >= Duration::from_millis(100), || {
                format!("{name}: {} is too short; give at least 100ms", humantime::format_duration(given))
            })?;
        }
        Ok(())
    }
}
