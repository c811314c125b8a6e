//! What is in one node of the tree: entries in key order, the small ones packed into one buffer. A node that is copied
//! in order to be written costs a copy of that buffer, and nothing for each entry: with an allocation and a reference
//! count of its own each entry would be fetched from memory for it. Knows no tree; the next file is `cursor.rs`.
//!
//! A search looks at `heads` first: for each key the eight bytes after what all keys of the node have in common. They lie
//! side by side, so that it fetches two or three lines of memory instead of one for each key that it compares.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Entries in a node, at most; one more while it is about to be split.
pub(super) const NODE_MAX: usize = 24;
const ROOM: usize = NODE_MAX + 1;
/// Key and value together, in bytes, of an entry that is packed. Larger ones have an allocation of their own, which
/// the copies of a node share.
const PACKED_BYTES_MAX: usize = 256;
/// Unused bytes in a node's buffer, beyond which it is packed anew.
const DEAD_BYTES_MAX: usize = 1_024;
/// In [`Slot::value`]: the entry has an allocation of its own.
const ALONE: u16 = u16::MAX;

// Offsets have 16 bits.
const _: () = assert!(ROOM * PACKED_BYTES_MAX + DEAD_BYTES_MAX + PACKED_BYTES_MAX < ALONE as usize);

/// One key with its value, where they lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    key: &'a [u8],
    value: &'a [u8],
}

impl<'a> Entry<'a> {
    pub fn new(key: &'a [u8], value: &'a [u8]) -> Self {
        Entry { key, value }
    }

    pub fn key(&self) -> &'a [u8] {
        self.key
    }

    pub fn value(&self) -> &'a [u8] {
        self.value
    }

    /// Bytes of key and value.
    pub fn size(&self) -> u64 {
        (self.key.len() + self.value.len()) as u64
    }
}

impl fmt::Debug for Entry<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key.escape_ascii(), self.value.escape_ascii())
    }
}

/// A value that was replaced or removed.
#[derive(Clone, Copy)]
pub enum Old<'a> {
    /// Of at most some hundred bytes: to be copied.
    Short(&'a [u8]),
    /// To be shared.
    Long(&'a Long),
}

/// An entry with an allocation of its own. Cloning is cheap.
#[derive(Clone)]
pub struct Long {
    bytes: Arc<[u8]>,
    key_len: usize,
}

impl Long {
    fn new(entry: Entry<'_>) -> Self {
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, entry.key.len() + entry.value.len()).collect();
        let room = Arc::get_mut(&mut bytes).expect("a new Arc has one owner");
        room[..entry.key.len()].copy_from_slice(entry.key);
        room[entry.key.len()..].copy_from_slice(entry.value);
        Long { bytes, key_len: entry.key.len() }
    }

    pub fn get(&self) -> Entry<'_> {
        let (key, value) = self.bytes.split_at(self.key_len);
        Entry { key, value }
    }

    #[cfg(test)]
    pub(super) fn watch(&self) -> std::sync::Weak<[u8]> {
        Arc::downgrade(&self.bytes)
    }
}

impl Old<'_> {
    pub(super) fn value(&self) -> &[u8] {
        match self {
            Old::Short(value) => value,
            Old::Long(long) => long.get().value,
        }
    }

    /// Bytes of the value.
    pub(super) fn len(&self) -> usize {
        self.value().len()
    }
}

/// Where an entry lies.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// In `bytes`, key before value; of an entry with an allocation of its own its place in `alone`.
    at: u16,
    key: u16,
    value: u16,
}

/// Up to [`NODE_MAX`] entries in key order.
pub(super) struct Packed {
    len: usize,
    /// Bytes that all keys have in common at their beginning; perhaps more bytes are.
    skip: usize,
    /// For each key what [`head`] says of it.
    heads: [u64; ROOM],
    slots: [Slot; ROOM],
    bytes: Vec<u8>,
    /// Bytes of `bytes` that no slot points to.
    dead: usize,
    alone: Vec<Long>,
}

/// The eight bytes behind `skip` as a number that orders like them. Where a key ends there are zeros: if two heads are
/// equal, the keys may still differ.
fn head(key: &[u8], skip: usize) -> u64 {
    let rest = key.get(skip..).unwrap_or_default();
    let mut bytes = [0; 8];
    match rest.first_chunk::<8>() {
        Some(eight) => bytes = *eight,
        None => bytes[..rest.len()].copy_from_slice(rest),
    }
    u64::from_be_bytes(bytes)
}

pub(super) fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Packed {
    pub(super) fn new() -> Self {
        Packed::with_room(0)
    }

    fn with_room(bytes: usize) -> Self {
        Packed {
            len: 0,
            skip: 0,
            heads: [0; ROOM],
            slots: [Slot::default(); ROOM],
            bytes: Vec::with_capacity(bytes),
            dead: 0,
            alone: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, at: usize) -> Entry<'_> {
        let slot = self.slots[..self.len][at];
        if slot.value == ALONE {
            return self.alone[usize::from(slot.at)].get();
        }
        let key_at = usize::from(slot.at);
        let value_at = key_at + usize::from(slot.key);
        Entry { key: &self.bytes[key_at..value_at], value: &self.bytes[value_at..value_at + usize::from(slot.value)] }
    }

    pub(super) fn key(&self, at: usize) -> &[u8] {
        self.get(at).key
    }

    pub(super) fn old(&self, at: usize) -> Old<'_> {
        let slot = self.slots[..self.len][at];
        if slot.value == ALONE { Old::Long(&self.alone[usize::from(slot.at)]) } else { Old::Short(self.get(at).value) }
    }

    /// Where the key is, or where it would have to be.
    pub(super) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        if self.len == 0 {
            return Err(0);
        }
        let prefix = &self.key(0)[..self.skip];
        if !key.starts_with(prefix) {
            return Err(if key < prefix { 0 } else { self.len });
        }
        let wanted = head(key, self.skip);
        let heads = &self.heads[..self.len];
        let mut at = heads.partition_point(|head| *head < wanted);
        while at < self.len && heads[at] == wanted {
            match self.key(at).cmp(key) {
                std::cmp::Ordering::Less => at += 1,
                std::cmp::Ordering::Equal => return Ok(at),
                std::cmp::Ordering::Greater => break,
            }
        }
        Err(at)
    }

    /// Puts an entry before the one at `at`. There must be room, and the order must be kept.
    pub(super) fn insert(&mut self, at: usize, entry: Entry<'_>) {
        let slot = self.store(entry);
        self.place(at, entry.key, slot);
    }

    fn place(&mut self, at: usize, key: &[u8], slot: Slot) {
        assert!(self.len < ROOM && at <= self.len, "a node has room for one more than it may keep");
        let skip = if self.len == 0 { key.len() } else { common(key, &self.key(0)[..self.skip]) };
        self.skip_to(skip);
        self.heads.copy_within(at..self.len, at + 1);
        self.slots.copy_within(at..self.len, at + 1);
        self.heads[at] = head(key, skip);
        self.slots[at] = slot;
        self.len += 1;
    }

    pub(super) fn push(&mut self, entry: Entry<'_>) {
        self.insert(self.len, entry);
    }

    /// Gives the key at `at` another value.
    pub(super) fn set_value(&mut self, at: usize, entry: Entry<'_>) {
        let slot = self.slots[..self.len][at];
        let key_len = entry.key.len();
        if slot.value != ALONE && entry.value.len() <= usize::from(slot.value) {
            let value_at = usize::from(slot.at) + key_len;
            self.bytes[value_at..value_at + entry.value.len()].copy_from_slice(entry.value);
            self.dead += usize::from(slot.value) - entry.value.len();
            self.slots[at].value = entry.value.len() as u16;
        } else {
            self.forget(slot);
            self.slots[at] = self.store(entry);
        }
        self.pack_if_loose();
    }

    pub(super) fn remove(&mut self, at: usize) {
        self.forget(self.slots[..self.len][at]);
        self.heads.copy_within(at + 1..self.len, at);
        self.slots.copy_within(at + 1..self.len, at);
        self.len -= 1;
        self.pack_if_loose();
    }

    /// Takes the entries from `cut` on.
    pub(super) fn split_off(&mut self, cut: usize) -> Packed {
        let right = self.part(cut..self.len);
        self.truncate(cut);
        right
    }

    pub(super) fn truncate(&mut self, len: usize) {
        while self.len > len {
            self.len -= 1;
            self.forget(self.slots[self.len]);
        }
        if len > 0 {
            self.skip_to(common(self.key(0), self.key(len - 1)));
        }
        self.pack_if_loose();
    }

    fn skip_to(&mut self, skip: usize) {
        if skip != self.skip {
            for at in 0..self.len {
                self.heads[at] = head(self.key(at), skip);
            }
            self.skip = skip;
        }
    }

    /// Puts those entries of `other`, which are all above, behind these.
    pub(super) fn append(&mut self, other: &Packed, range: Range<usize>) {
        for at in range {
            let slot = self.store_of(other, at);
            self.place(self.len, other.key(at), slot);
        }
    }

    /// A copy of those entries.
    pub(super) fn part(&self, range: Range<usize>) -> Packed {
        let packed = self.slots[range.clone()].iter().filter(|slot| slot.value != ALONE);
        let bytes: usize = packed.map(|slot| usize::from(slot.key) + usize::from(slot.value)).sum();
        let mut part = Packed::with_room(bytes + PACKED_BYTES_MAX);
        if !range.is_empty() {
            // In a sorted row, what the first and the last have in common all have.
            part.skip = common(self.key(range.start), self.key(range.end - 1));
        }
        for at in range {
            let slot = part.store_of(self, at);
            part.heads[part.len] = head(self.key(at), part.skip);
            part.slots[part.len] = slot;
            part.len += 1;
        }
        part
    }

    /// Of another node's entry. One with an allocation of its own is shared.
    fn store_of(&mut self, other: &Packed, at: usize) -> Slot {
        match other.old(at) {
            Old::Short(_) => self.store(other.get(at)),
            Old::Long(long) => self.store_long(long.clone()),
        }
    }

    fn store(&mut self, entry: Entry<'_>) -> Slot {
        if entry.key.len() + entry.value.len() > PACKED_BYTES_MAX {
            return self.store_long(Long::new(entry));
        }
        let at = self.bytes.len() as u16;
        self.bytes.extend_from_slice(entry.key);
        self.bytes.extend_from_slice(entry.value);
        Slot { at, key: entry.key.len() as u16, value: entry.value.len() as u16 }
    }

    fn store_long(&mut self, long: Long) -> Slot {
        self.alone.push(long);
        Slot { at: (self.alone.len() - 1) as u16, key: 0, value: ALONE }
    }

    /// What this slot points to isn't needed any more.
    fn forget(&mut self, slot: Slot) {
        if slot.value != ALONE {
            self.dead += usize::from(slot.key) + usize::from(slot.value);
            return;
        }
        self.alone.swap_remove(usize::from(slot.at));
        let moved = self.alone.len() as u16;
        if let Some(other) = self.slots[..self.len].iter_mut().find(|other| other.value == ALONE && other.at == moved) {
            other.at = slot.at;
        }
    }

    fn pack_if_loose(&mut self) {
        if self.dead > DEAD_BYTES_MAX {
            *self = self.clone();
        }
    }
}

impl Clone for Packed {
    /// Without dead bytes, and with room for one more entry, because a node is cloned in order to be written.
    fn clone(&self) -> Self {
        let mut bytes = Vec::with_capacity(self.bytes.len() - self.dead + PACKED_BYTES_MAX);
        let mut slots = self.slots;
        if self.dead == 0 {
            bytes.extend_from_slice(&self.bytes);
        } else {
            for slot in slots[..self.len].iter_mut().filter(|slot| slot.value != ALONE) {
                let at = usize::from(slot.at);
                slot.at = bytes.len() as u16;
                bytes.extend_from_slice(&self.bytes[at..at + usize::from(slot.key) + usize::from(slot.value)]);
            }
        }
        Packed { bytes, slots, dead: 0, alone: self.alone.clone(), ..*self }
    }
}

#[cfg(test)]
impl Packed {
    /// The rules of a node; panics at the first that is broken.
    pub(super) fn audit(&self) {
        let slots = &self.slots[..self.len];
        for at in 0..self.len {
            assert_eq!(self.heads[at], head(self.key(at), self.skip));
            assert!(at == 0 || self.key(at - 1) < self.key(at), "keys out of order");
            assert_eq!(common(self.key(at), self.key(0)).min(self.skip), self.skip);
        }
        let live = slots.iter().filter(|slot| slot.value != ALONE).map(|slot| slot.key + slot.value);
        assert_eq!(live.map(usize::from).sum::<usize>() + self.dead, self.bytes.len());
        assert!(self.dead <= DEAD_BYTES_MAX);
        let mut alone: Vec<u16> = slots.iter().filter(|slot| slot.value == ALONE).map(|slot| slot.at).collect();
        alone.sort_unstable();
        assert!(alone.into_iter().map(usize::from).eq(0..self.alone.len()), "each has one slot");
    }
}
