//! The replies that wait for their clients to read them. One may have 64 MiB and a client may take hours for it, so they
//! are counted together, and when they are too many no more batches are taken. Knows no reply's content.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use super::super::HttpMetrics;
use super::super::problem::Problem;
use super::super::server::Room;

/// A reply's bytes, counted as long as somebody holds them: the response's body, and then the buffers of the connection,
/// in HTTP/1 and HTTP/2 alike. They go when they are sent, when the client resets the stream, or with the connection.
pub(super) struct Unread {
    bytes: Bytes,
    metrics: Arc<HttpMetrics>,
}

/// Whether another batch may be taken.
pub(super) fn check(room: &Room) -> Result<(), Problem> {
    let (waiting, limit) = (room.metrics.bulk_replies_bytes.load(Relaxed), room.limits.bulk_replies_bytes_max);
    if waiting < limit as u64 { Ok(()) } else { Err(Problem::replies_unread(waiting, limit)) }
}

impl Unread {
    /// The same bytes, counted from now on.
    pub(super) fn body(bytes: Bytes, metrics: &Arc<HttpMetrics>) -> Bytes {
        metrics.bulk_replies_bytes.fetch_add(bytes.len() as u64, Relaxed);
        Bytes::from_owner(Unread { bytes, metrics: metrics.clone() })
    }
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.metrics.bulk_replies_bytes.fetch_sub(self.bytes.len() as u64, Relaxed);
    }
}
