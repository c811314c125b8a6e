//! What the room needs of a store. The implementations live in `state_machine/`, which this room never sees.
//! The next file is `host.rs`, which charges for every call.

use std::any::Any;

/// The order of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// Keys from `start` (inclusive) to `end` (exclusive). An absent bound is open; an empty range is no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange<'a> {
    pub start: Option<&'a [u8]>,
    pub end: Option<&'a [u8]>,
    pub order: Order,
}

/// A store that queries read. `Any`, so that the caller gets its own type back after a run.
pub trait ReadStore: Any + Send {
    fn get(&self, key: &[u8]) -> Option<&[u8]>;

    /// Key and value of each entry in the range, in its order. Lazy: the caller stops when the fuel is out.
    fn scan<'a>(&'a self, range: KeyRange<'a>) -> Box<dyn Iterator<Item = (&'a [u8], &'a [u8])> + 'a>;
}

/// A store that commands write. Reads see the writes before them.
pub trait CommandStore: ReadStore {
    /// True if the key was there before.
    fn set(&mut self, key: &[u8], value: &[u8]) -> bool;

    /// True if the key was there.
    fn delete(&mut self, key: &[u8]) -> bool;

    /// How many keys it deleted.
    fn delete_range(&mut self, range: KeyRange<'_>) -> u64;

    /// A command starts: what came before it is out of reach of [`CommandStore::rollback`].
    fn begin(&mut self);

    /// Undoes all writes since the last [`CommandStore::begin`], or since the store was made.
    fn rollback(&mut self);

    /// Undoes all writes since the store was made.
    fn discard(&mut self);
}
