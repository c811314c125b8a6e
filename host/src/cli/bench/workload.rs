//! What the clients of a bench do: operation n of a seed is always the same, so that any value can be checked without
//! having been kept. Pure; `clients.rs` sends it.

use std::fmt::Write as _;

use bytes::{BufMut as _, Bytes, BytesMut};

/// A seed and the shape of the operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    pub seed: u64,
    pub value_bytes: usize,
    /// 0 to 100.
    pub read_percent: u8,
    /// Writes go to so many keys in turn; none: each to a new one.
    pub keys: Option<u64>,
}

impl Workload {
    /// Whether operation `op` wants to read. A client that has written nothing yet writes all the same.
    pub fn reads(&self, op: u64) -> bool {
        mix(self.seed ^ mix(op)) % 100 < u64::from(self.read_percent)
    }

    /// The path of the key that operation `op` writes; no two seeds share one, nor do two operations but by `keys`.
    pub fn path(&self, op: u64, into: &mut String) {
        let key = self.keys.map_or(op, |keys| op % keys);
        into.clear();
        write!(into, "/kv/bench-{:016x}-{key}", self.seed).expect("writing to a string can't fail");
    }

    /// The same as a string of its own.
    pub fn path_of(&self, op: u64) -> String {
        let mut path = String::new();
        self.path(op, &mut path);
        path
    }

    /// The value that operation `op` writes. `buffer` is used again as soon as the last value is dropped.
    pub fn value(&self, op: u64, buffer: &mut BytesMut) -> Bytes {
        buffer.reserve(self.value_bytes + 8);
        let start = mix(self.seed).wrapping_add(mix(op));
        for word in 0..self.value_bytes.div_ceil(8) as u64 {
            buffer.put_u64_le(mix(start.wrapping_add(word)));
        }
        buffer.truncate(self.value_bytes);
        buffer.split().freeze()
    }

    /// Which of `count` earlier keys operation `op` reads.
    pub fn pick(&self, op: u64, count: usize) -> usize {
        (mix(self.seed.wrapping_add(op)) % count as u64) as usize
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection, so that distinct inputs stay distinct.
pub fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKLOAD: Workload = Workload { seed: 7, value_bytes: 100, read_percent: 30, keys: None };

    #[test]
    fn values_are_reproducible_and_distinct() {
        let value = |w: Workload, op| w.value(op, &mut BytesMut::new());
        assert_eq!(value(WORKLOAD, 5), value(WORKLOAD, 5));
        assert_ne!(value(WORKLOAD, 5), value(WORKLOAD, 6));
        assert_ne!(value(WORKLOAD, 5), value(Workload { seed: 8, ..WORKLOAD }, 5));
        for value_bytes in [0, 1, 8, 9, 100] {
            assert_eq!(value(Workload { value_bytes, ..WORKLOAD }, 1).len(), value_bytes);
        }
    }

    #[test]
    fn a_dropped_values_memory_is_used_again() {
        let mut buffer = BytesMut::new();
        let first = WORKLOAD.value(0, &mut buffer);
        let place = first.as_ptr();
        drop(first);
        let places = (1..100).map(|op| WORKLOAD.value(op, &mut buffer).as_ptr());
        assert!(places.filter(|p| *p == place).count() > 10);
    }

    #[test]
    fn reads_come_in_their_share() {
        let reads = |read_percent| (0..10_000).filter(|op| Workload { read_percent, ..WORKLOAD }.reads(*op)).count();
        assert_eq!(reads(0), 0);
        assert_eq!(reads(100), 10_000);
        assert!((2_800..3_200).contains(&reads(30)), "{}", reads(30));
    }

    #[test]
    fn paths_are_distinct() {
        let (mut a, mut b) = (String::from("x"), String::new());
        WORKLOAD.path(1, &mut a);
        assert_eq!(a, "/kv/bench-0000000000000007-1");
        WORKLOAD.path(11, &mut b);
        assert_ne!(a, b);
        Workload { keys: Some(10), ..WORKLOAD }.path(11, &mut b);
        assert_eq!(a, b);
    }
}
