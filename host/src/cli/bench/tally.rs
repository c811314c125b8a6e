//! What all clients of a phase count in: operations, errors, latencies. One thread, no lock.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Errors that are quoted.
const QUOTED_MAX: usize = 5;
/// The histogram's largest value, microseconds: longer than any time limit of a client.
const LATENCY_US_MAX: u64 = 120_000_000;

/// What all clients of a phase count in.
pub struct Tally {
    total: u64,
    /// No operation begins after this.
    until: Option<Instant>,
    /// Operations of one request.
    bulk: u64,
    next: Cell<u64>,
    done: Cell<u64>,
    errors: Cell<u64>,
    retries: Cell<u64>,
    refused: Cell<u64>,
    quoted: RefCell<Vec<String>>,
    read_us: RefCell<Histogram<u64>>,
    write_us: RefCell<Histogram<u64>>,
}

/// What a request did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Did {
    Read,
    Write,
}

impl Tally {
    /// For `total` operations, or as many as begin within `duration`; `bulk` of them make one request.
    pub fn new(total: u64, duration: Option<Duration>, bulk: u64) -> Rc<Tally> {
        let histogram = || RefCell::new(Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("constant bounds"));
        Rc::new(Tally {
            total,
            until: duration.map(|duration| Instant::now() + duration),
            bulk,
            next: Cell::new(0),
            done: Cell::new(0),
            errors: Cell::new(0),
            retries: Cell::new(0),
            refused: Cell::new(0),
            quoted: RefCell::default(),
            read_us: histogram(),
            write_us: histogram(),
        })
    }

    /// The operations of the next request; None when all are taken or the time is over.
    pub fn take(&self) -> Option<Range<u64>> {
        let first = self.next.get();
        if first >= self.total || self.until.is_some_and(|until| Instant::now() >= until) {
            return None;
        }
        let end = first.saturating_add(self.bulk).min(self.total);
        self.next.set(end);
        Some(first..end)
    }

    /// One request with so many operations.
    pub fn succeeded(&self, did: Did, ops: u64, took: Duration) {
        self.done.set(self.done.get() + ops);
        let histogram = match did {
            Did::Read => &self.read_us,
            Did::Write => &self.write_us,
        };
        histogram.borrow_mut().saturating_record(took.as_micros() as u64);
    }

    /// The cluster had too much to do, and did nothing of it.
    pub fn refused(&self, ops: u64) {
        self.done.set(self.done.get() + ops);
        self.refused.set(self.refused.get() + ops);
    }

    pub fn failed(&self, ops: u64, error: &anyhow::Error) {
        self.done.set(self.done.get() + ops);
        self.errors.set(self.errors.get() + ops);
        let mut quoted = self.quoted.borrow_mut();
        if quoted.len() < QUOTED_MAX {
            quoted.push(format!("{error:#}"));
        }
    }

    pub fn retried(&self) {
        self.retries.set(self.retries.get() + 1);
    }

    /// Answered, refused or failed.
    pub fn done(&self) -> u64 {
        self.done.get()
    }

    pub fn errors(&self) -> u64 {
        self.errors.get()
    }

    /// How often a request was sent again.
    pub fn retries(&self) -> u64 {
        self.retries.get()
    }

    /// Operations that were refused for want of room.
    pub fn refusals(&self) -> u64 {
        self.refused.get()
    }

    /// The first few errors.
    pub fn quoted(&self) -> Vec<String> {
        self.quoted.borrow().clone()
    }

    /// Of requests with reads that were answered.
    pub fn read_us(&self) -> Histogram<u64> {
        self.read_us.borrow().clone()
    }

    /// Of requests with writes that were answered.
    pub fn write_us(&self) -> Histogram<u64> {
        self.write_us.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_taken_in_requests_until_none_is_left() {
        let tally = Tally::new(25, None, 10);
        let taken: Vec<_> = std::iter::from_fn(|| tally.take()).collect();
        assert_eq!(taken, [0..10, 10..20, 20..25]);
        tally.succeeded(Did::Write, 10, Duration::from_millis(1));
        tally.refused(10);
        tally.failed(5, &anyhow::anyhow!("oh"));
        assert_eq!((tally.done(), tally.errors(), tally.refusals(), tally.write_us().len()), (25, 5, 10, 1));
        assert_eq!(tally.quoted(), ["oh"]);
        tally.succeeded(Did::Read, 1, Duration::from_millis(1));
        assert_eq!((tally.read_us().len(), tally.write_us().len()), (1, 1));
    }

    #[test]
    fn none_is_taken_when_the_time_is_over() {
        assert_eq!(Tally::new(u64::MAX, Some(Duration::ZERO), 1).take(), None);
        assert_eq!(Tally::new(u64::MAX, Some(Duration::from_secs(1000)), 1).take(), Some(0..1));
    }
}
