//! The store as a machine sees it: reads on [`StoreView`], writes on [`Store`]. In Wasm both are the host's imports;
//! natively they are a map in memory with the same meaning, for tests.

use std::ops::Deref;

#[cfg(not(target_arch = "wasm32"))]
use super::test_host::memory as backend;
#[cfg(target_arch = "wasm32")]
use imports as backend;

use super::bindings::raftlet::machine::store::{Entry, Order, ScanRange};

/// The ordered map of byte strings, to be read.
pub struct StoreView(backend::Map);

/// The ordered map of byte strings that the host keeps for the module: its only memory. Limits:
/// [`crate::limits::KEY_BYTES_MAX`] and [`crate::limits::VALUE_BYTES_MAX`]; beyond them the command traps.
pub struct Store(StoreView);

/// Keys from an inclusive to an exclusive bound, in one of two orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    pub start: Option<Vec<u8>>,
    pub end: Option<Vec<u8>>,
    pub descending: bool,
}

impl KeyRange {
    /// All keys, ascending.
    pub fn all() -> Self {
        KeyRange { start: None, end: None, descending: false }
    }

    /// The keys that begin with `prefix`, ascending.
    pub fn prefix(prefix: &[u8]) -> Self {
        // The first key beyond: the prefix up to its last byte that can be raised, raised.
        let raised = prefix.iter().rposition(|&b| b != 0xff);
        let end = raised.map(|at| [&prefix[..at], &[prefix[at] + 1]].concat());
        KeyRange { start: Some(prefix.to_vec()), end, descending: false }
    }

    /// Only the keys greater than `key`.
    pub fn after(mut self, key: &[u8]) -> Self {
        let next = [key, &[0]].concat();
        if self.start.as_ref().is_none_or(|start| *start < next) {
            self.start = Some(next);
        }
        self
    }

    /// The same keys, greatest first.
    pub fn reversed(mut self) -> Self {
        self.descending = !self.descending;
        self
    }

    fn to_wit(&self) -> ScanRange {
        let order = if self.descending { Order::Descending } else { Order::Ascending };
        ScanRange { start: self.start.clone(), end: self.end.clone(), order }
    }
}

impl StoreView {
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.get(key)
    }

    /// At most `limit` entries of at most `bytes_max` bytes (keys and values together), but at least one if there is
    /// one. So an empty answer, and only that, means the end of the range.
    pub fn scan(&self, range: &KeyRange, limit: u32, bytes_max: u32) -> Vec<Entry> {
        self.0.scan(&range.to_wit(), limit, bytes_max)
    }
}

impl Deref for Store {
    type Target = StoreView;

    fn deref(&self) -> &StoreView {
        &self.0
    }
}

impl Store {
    pub(super) fn new() -> Self {
        Store(StoreView(backend::Map::default()))
    }

    /// True if the key was there before.
    #[inline(always)]
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> bool {
        self.0.0.set(key, value)
    }

    /// True if the key was there.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        self.0.0.delete(key)
    }

    /// How many keys it deleted.
    pub fn delete_range(&mut self, range: &KeyRange) -> u64 {
        self.0.0.delete_range(&range.to_wit())
    }

    /// Undoes this command's writes.
    pub fn rollback(&mut self) {
        self.0.0.rollback();
    }

    #[inline(always)]
    pub(super) fn begin(&mut self, position: u32) {
        self.0.0.begin(position);
    }
}

#[cfg(target_arch = "wasm32")]
mod imports {
    use super::super::bindings::raftlet::machine::store::{self, Entry, ScanRange};

    // Nearly every command calls it, and wit-bindgen's function isn't inlined. A module whose import has another type than
    // the contract's isn't accepted.
    #[link(wasm_import_module = "raftlet:machine/store@0.1.0")]
    unsafe extern "C" {
        #[link_name = "set"]
        fn raw_set(key: *const u8, key_bytes: usize, value: *const u8, value_bytes: usize) -> i32;
    }

    /// Nothing on this side: the host has it all.
    #[derive(Default)]
    pub struct Map;

    impl Map {
        pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
            store::get(key)
        }
        pub fn scan(&self, range: &ScanRange, limit: u32, bytes_max: u32) -> Vec<Entry> {
            store::scan(range, limit, bytes_max)
        }
        #[inline(always)]
        pub fn set(&mut self, key: &[u8], value: &[u8]) -> bool {
            // SAFETY: this is `set` as the canonical ABI flattens it; the host only reads the two slices.
            unsafe { raw_set(key.as_ptr(), key.len(), value.as_ptr(), value.len()) != 0 }
        }
        pub fn delete(&mut self, key: &[u8]) -> bool {
            store::delete(key)
        }
        pub fn delete_range(&mut self, range: &ScanRange) -> u64 {
            store::delete_range(range)
        }
        pub fn rollback(&mut self) {
            store::rollback();
        }
        #[inline(always)]
        pub fn begin(&mut self, position: u32) {
            store::begin(position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_range() {
        let bounds = |r: KeyRange| (r.start.unwrap(), r.end);
        assert_eq!(bounds(KeyRange::prefix(b"ab")), (b"ab".to_vec(), Some(b"ac".to_vec())));
        assert_eq!(bounds(KeyRange::prefix(b"a\xff\xff")), (b"a\xff\xff".to_vec(), Some(b"b".to_vec())));
        assert_eq!(bounds(KeyRange::prefix(b"\xff")), (b"\xff".to_vec(), None));
        assert_eq!(bounds(KeyRange::prefix(b"")), (Vec::new(), None));
    }

    #[test]
    fn after_only_ever_narrows() {
        let range = KeyRange::prefix(b"m");
        assert_eq!(range.clone().after(b"a").start, Some(b"m".to_vec()));
        assert_eq!(range.clone().after(b"m").start, Some(b"m\0".to_vec()));
        assert_eq!(range.after(b"mm").start, Some(b"mm\0".to_vec()));
        assert_eq!(KeyRange::all().after(b"x").start, Some(b"x\0".to_vec()));
    }
}
