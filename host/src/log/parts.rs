//! How much sled is given to write between two syncs. Owns the sizes and their reasons.
//!
//! Less than one of sled's segments must be unsynced at any time. What sled recovers is all up to some commit only if no
//! segment before the last but one lacks anything: it looks for torn ends in the newest ones, and goes on behind a hole in
//! an older one. And each full segment takes a thread of its pool until it is written: if all seven wait for the lock of
//! a writer that waits for the pool itself, sled hangs.
//!
//! sled writes more than it is given: a leaf is written anew after ten changes and when it is split. Measured, in
//! multiples of the values, with leaves full of the largest values: a single one at most 30 times, 8 at once 8 times, 32
//! at once 6.3 times, 64 at once 5.2 times, on the average 3.5 times. Deletions of 64 of them, purged or cut off: 4.1 MiB.
//! So, in a segment of 8 MiB: what the journal has (two halves of 64 KiB, at most some 64 commits of a stamp alone) stays
//! under 2 MiB, a part under 3.3 MiB, a round of deletions under 4.2 MiB; a part waits until deletions are synced, and is
//! synced itself.

/// What is written to sled without a sync between has so many parts of a segment: 512 KiB of 8 MiB.
const PARTS_PER_SEGMENT: usize = 16;
/// Deleted at once are as many of the largest values as fit into such a part of a segment: 64 of 16 KiB.
const DELETIONS_PER_SEGMENT: usize = 8;

/// The sizes for one log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    /// Of entries' records that are written together.
    pub bytes_max: usize,
    /// The largest value.
    pub value_bytes_max: usize,
    /// Values that are deleted together.
    pub deletions_max: usize,
}

impl Parts {
    pub(super) fn new(segment_bytes: usize, value_bytes_max: usize) -> Self {
        Parts {
            bytes_max: (segment_bytes / PARTS_PER_SEGMENT).max(value_bytes_max),
            value_bytes_max,
            deletions_max: (segment_bytes / DELETIONS_PER_SEGMENT / value_bytes_max).max(1),
        }
    }

    /// Largest values that are written together.
    pub(super) fn values_max(&self) -> usize {
        self.bytes_max / self.value_bytes_max
    }
}
