//! Receives one request's body: bounded in size, in speed, and together with all other bodies. Knows nothing of
//! statuses; `route.rs` comes next.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use tokio::time::{Instant, Sleep, sleep};

use super::limits::{HttpLimits, PROGRESS_BYTES_MIN};

/// Bodies up to this size are not counted: `connections_max` bounds them already.
const UNCOUNTED_BYTES_MAX: usize = 16 << 10;

/// Why there is no body.
#[derive(Debug)]
pub(super) enum BodyError {
    TooLarge,
    TooSlow,
    /// All bodies together have reached their limit.
    NoRoom,
    /// The client went away, or its framing is broken.
    Broken(hyper::Error),
}

/// Bytes that bodies being received hold together.
#[derive(Debug, Default)]
pub(super) struct BodyBudget {
    used_bytes: AtomicUsize,
}

/// One body's share of the budget; given back when dropped. To be kept until something else counts the bytes.
pub(super) struct Charge<'a> {
    budget: &'a BodyBudget,
    bytes: usize,
}

impl Charge<'_> {
    /// Bytes are charged when they arrive, not when they are announced: an announcement costs a client nothing.
    fn grow(&mut self, body_bytes: usize, limit_bytes: usize) -> Result<(), BodyError> {
        let more = body_bytes.saturating_sub(UNCOUNTED_BYTES_MAX).saturating_sub(self.bytes);
        if more == 0 {
            return Ok(());
        }
        let before = self.budget.used_bytes.fetch_add(more, Relaxed);
        self.bytes += more;
        if before + more > limit_bytes { Err(BodyError::NoRoom) } else { Ok(()) }
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.used_bytes.fetch_sub(self.bytes, Relaxed);
        }
    }
}

/// The whole body, of at most `bytes_max`. One copy: out of the connection's buffer.
pub(super) async fn collect<'a>(
    body: &mut Incoming,
    bytes_max: usize,
    limits: &HttpLimits,
    budget: &'a BodyBudget,
) -> Result<(Vec<u8>, Charge<'a>), BodyError> {
    let mut charge = Charge { budget, bytes: 0 };
    if body.is_end_stream() {
        return Ok((Vec::new(), charge));
    }
    // Exact if there is a Content-Length, else 0.
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > bytes_max {
        return Err(BodyError::TooLarge);
    }
    let mut bytes = Vec::with_capacity(announced);
    let mut pace = Pace { timeout: limits.body_read_timeout, period_bytes: 0, timer: None };
    while let Some(chunk) = pace.next(body).await? {
        if chunk.len() > bytes_max - bytes.len() {
            return Err(BodyError::TooLarge);
        }
        charge.grow(bytes.len() + chunk.len(), limits.bodies_bytes_max)?;
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes, charge))
}

/// Sees that each period brings enough bytes. A body that is already there needs no timer.
struct Pace {
    timeout: Duration,
    period_bytes: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    async fn next(&mut self, body: &mut Incoming) -> Result<Option<Bytes>, BodyError> {
        loop {
            match poll_fn(|cx| self.poll_frame(body, cx)).await? {
                None => return Ok(None),
                // Trailers are read over.
                Some(frame) => {
                    if let Ok(data) = frame.into_data() {
                        self.period_bytes += data.len() as u64;
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Result<Option<Frame<Bytes>>, BodyError>> {
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            return Poll::Ready(frame.transpose().map_err(BodyError::Broken));
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.timeout)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if self.period_bytes < PROGRESS_BYTES_MIN {
                return Poll::Ready(Err(BodyError::TooSlow));
            }
            self.period_bytes = 0;
            timer.as_mut().reset(Instant::now() + self.timeout);
        }
    }
}
