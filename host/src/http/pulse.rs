//! What one connection is doing, and until when it may. The wire and the requests write it, the connection's task
//! reads it. A request that arrives whole touches no timer and no lock: there is one timer for each connection, and
//! it is set again only when it fires or when something got slow. Read on in `wire.rs`.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::limits::{HttpLimits, PROGRESS_BYTES_MIN};

/// No time: nothing of the kind is going on.
const NEVER: u64 = u64::MAX;

/// Why a connection's time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expiry {
    /// Nothing was asked.
    Idle,
    /// A head began and did not end.
    Head,
    /// The client doesn't read.
    Write,
}

/// Times are milliseconds since `epoch`.
#[derive(Debug)]
pub(super) struct Pulse {
    epoch: Instant,
    in_flight: AtomicU32,
    idle_since: AtomicU64,
    head_since: AtomicU64,
    blocked_since: AtomicU64,
    /// Written since then.
    blocked_bytes: AtomicU64,
    /// False for HTTP/2, where bytes without a request are usual (pings).
    has_heads: AtomicBool,
    /// The client may still be sending: closing at once would destroy our last reply (RFC 9112 §9.6).
    pub(super) lingers: AtomicBool,
}

/// A request being answered.
pub(super) struct Busy<'a>(&'a Pulse);

impl Pulse {
    pub(super) fn new() -> Self {
        Pulse {
            epoch: Instant::now(),
            in_flight: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            head_since: AtomicU64::new(NEVER),
            blocked_since: AtomicU64::new(NEVER),
            blocked_bytes: AtomicU64::new(0),
            has_heads: AtomicBool::new(true),
            lingers: AtomicBool::new(false),
        }
    }

    fn now(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    pub(super) fn is_http2(&self) {
        self.has_heads.store(false, Relaxed);
        self.head_since.store(NEVER, Relaxed);
    }

    pub(super) fn request(&self) -> Busy<'_> {
        self.in_flight.fetch_add(1, Relaxed);
        self.head_since.store(NEVER, Relaxed);
        Busy(self)
    }

    /// Bytes came in. Between requests they begin the next head.
    pub(super) fn received(&self) {
        if self.in_flight.load(Relaxed) == 0 && self.has_heads.load(Relaxed) && self.head_since.load(Relaxed) == NEVER {
            self.head_since.store(self.now(), Relaxed);
        }
    }

    /// The operating system takes no more bytes.
    pub(super) fn write_blocked(&self) {
        if self.blocked_since.load(Relaxed) == NEVER {
            self.blocked_bytes.store(0, Relaxed);
            self.blocked_since.store(self.now(), Relaxed);
        }
    }

    pub(super) fn wrote(&self, bytes: usize) {
        if self.blocked_since.load(Relaxed) != NEVER {
            let written = self.blocked_bytes.fetch_add(bytes as u64, Relaxed) + bytes as u64;
            if written >= PROGRESS_BYTES_MIN {
                self.flushed();
            }
        }
    }

    /// Nothing is left to be written, or enough was for a new period to begin.
    pub(super) fn flushed(&self) {
        if self.blocked_since.load(Relaxed) != NEVER {
            self.blocked_since.store(NEVER, Relaxed);
            self.idle_since.store(self.now(), Relaxed);
        }
    }

    pub(super) fn is_write_blocked(&self) -> bool {
        self.blocked_since.load(Relaxed) != NEVER
    }

    /// When the connection's time will be over, if nothing changes. `None` while a request is answered: its body has
    /// an own timer, and the node limits the rest.
    fn deadline(&self, limits: &HttpLimits) -> Option<(u64, Expiry)> {
        let after = |since: u64, timeout: Duration| since.saturating_add(timeout.as_millis() as u64);
        let blocked = self.blocked_since.load(Relaxed);
        if blocked != NEVER {
            return Some((after(blocked, limits.write_timeout), Expiry::Write));
        }
        if self.in_flight.load(Relaxed) > 0 {
            return None;
        }
        match self.head_since.load(Relaxed) {
            NEVER => Some((after(self.idle_since.load(Relaxed), limits.idle_timeout), Expiry::Idle)),
            head => Some((after(head, limits.header_read_timeout), Expiry::Head)),
        }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        // First the time: between the two the connection must not look long idle.
        self.0.idle_since.store(self.0.now(), Relaxed);
        self.0.in_flight.fetch_sub(1, std::sync::atomic::Ordering::Release);
    }
}

/// The connection's one timer.
pub(super) struct Watch<'a> {
    timer: Pin<&'a mut Sleep>,
    /// What the timer is set to, or later.
    set_to: u64,
    is_polled: bool,
}

impl<'a> Watch<'a> {
    /// The timer must not have been polled.
    pub(super) fn new(timer: Pin<&'a mut Sleep>) -> Self {
        Watch { timer, set_to: NEVER, is_polled: false }
    }

    /// Ready when the connection's time is over. To be asked after each poll of the connection, by its own task.
    pub(super) fn poll_expired(&mut self, pulse: &Pulse, limits: &HttpLimits, cx: &mut Context<'_>) -> Poll<Expiry> {
        loop {
            let Some((deadline, expiry)) = pulse.deadline(limits) else { return Poll::Pending };
            if deadline < self.set_to {
                self.set(pulse, deadline);
            }
            // A timer that was polled once wakes this task; polling it again would only cost.
            if self.is_polled && !self.timer.is_elapsed() {
                return Poll::Pending;
            }
            self.is_polled = true;
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            if deadline <= pulse.now() {
                return Poll::Ready(expiry);
            }
            self.set(pulse, deadline);
        }
    }

    fn set(&mut self, pulse: &Pulse, deadline: u64) {
        self.timer.as_mut().reset(pulse.epoch + Duration::from_millis(deadline));
        self.set_to = deadline;
        self.is_polled = false;
    }
}
