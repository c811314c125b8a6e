//! A group: consecutive small entries of one commit and its stamp in one value, so that an ordinary commit is a single
//! write of sled's, atomic by itself. Owns its bytes; never touches sled. Entries' own bytes are `raft/codec.rs`'s.
//! An entry that is too large for a group is cut into chunks by `record.rs`. What reads both is `walk.rs`, next.
//!
//! ```text
//! group   0 version (2)  1 kind (1)  2 reserved (0)  4 crc32  8 stamp (88)  96 entries  100 reserved (0)
//!         104 the entries' records, one after the other
//! ```
//!
//! Integers are little-endian. The checksum covers the key and everything else in the value.

use sled::IVec;

use super::keys;
use super::record::{Damage, KIND_GROUP, RECORD_VERSION, check_value, put_crc};
use super::stamp::{STAMP_BYTES, Stamp};
use crate::raft::codec::{self, HEADER_BYTES};

/// Bytes before the first record.
pub(super) const GROUP_HEADER_BYTES: usize = 16 + STAMP_BYTES;

const STAMP_AT: usize = 8;
const COUNT_AT: usize = STAMP_AT + STAMP_BYTES;

/// A group that is being filled. Its memory is used again for the next one.
#[derive(Default)]
pub(super) struct Builder {
    bytes: Vec<u8>,
    first: u64,
    count: u32,
}

impl Builder {
    /// Whether a record of this many bytes can be in any group.
    pub(super) fn can_hold(record_bytes: usize, value_bytes_max: usize) -> bool {
        GROUP_HEADER_BYTES + record_bytes <= value_bytes_max
    }

    /// Whether the entry at `index` can be in this one. An empty one takes whatever a group can hold.
    pub(super) fn has_room(&self, index: u64, record_bytes: usize, value_bytes_max: usize) -> bool {
        self.count == 0
            || (index == self.first + u64::from(self.count) && self.bytes.len() + record_bytes <= value_bytes_max)
    }

    pub(super) fn push(&mut self, index: u64, head: &[u8], payload: &[u8]) {
        if self.count == 0 {
            self.first = index;
            self.bytes.clear();
            self.bytes.resize(GROUP_HEADER_BYTES, 0);
        }
        self.count += 1;
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(payload);
    }

    /// The group as key and value, if there is anything in it. It is empty then.
    pub(super) fn finish(&mut self, stamp: &Stamp) -> Option<(IVec, IVec)> {
        if self.count == 0 {
            return None;
        }
        let key = keys::chunk(self.first, 0);
        self.bytes[..2].copy_from_slice(&[RECORD_VERSION, KIND_GROUP]);
        self.bytes[STAMP_AT..COUNT_AT].copy_from_slice(&stamp.to_bytes());
        self.bytes[COUNT_AT..COUNT_AT + 4].copy_from_slice(&self.count.to_le_bytes());
        put_crc(&key, &mut self.bytes);
        self.count = 0;
        Some((IVec::from(&key), IVec::from(self.bytes.as_slice())))
    }
}

/// An undamaged group.
pub(super) struct Group<'a> {
    pub stamp: Stamp,
    pub first: u64,
    pub count: u32,
    value: &'a [u8],
}

impl Group<'_> {
    /// Index after its last entry.
    pub(super) fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// Where in the value the records are, in the entries' order.
    pub(super) fn records(&self) -> Result<Vec<std::ops::Range<usize>>, Damage> {
        let broken = |why| Damage::Format { index: self.first, why };
        let mut records = Vec::new();
        let mut at = GROUP_HEADER_BYTES;
        while at < self.value.len() {
            let payload = codec::payload_len(&self.value[at..])
                .map_err(|error| Damage::Entry { index: self.first + records.len() as u64, error })?;
            let end = usize::try_from(payload).ok().and_then(|payload| at.checked_add(HEADER_BYTES + payload));
            let end = end.filter(|end| *end <= self.value.len()).ok_or(broken("a record is longer than its group"))?;
            records.push(at..end);
            at = end;
        }
        if records.len() != self.count as usize {
            return Err(broken("it has another number of entries than it says"));
        }
        Ok(records)
    }
}

/// Checks the value under the key of the entry at `index`, which says that it is a group.
pub(super) fn open<'a>(key: &[u8], value: &'a [u8], index: u64) -> Result<Group<'a>, Damage> {
    check_value(key, value, index, 0, GROUP_HEADER_BYTES)?;
    let broken = |why| Damage::Format { index, why };
    let stamp = value[STAMP_AT..COUNT_AT].try_into().ok().and_then(Stamp::from_bytes);
    let stamp = stamp.ok_or(broken("its stamp contradicts itself"))?;
    let count = u32::from_le_bytes(value[COUNT_AT..COUNT_AT + 4].try_into().expect("4 bytes"));
    if count == 0 || index.checked_add(u64::from(count)).is_none() {
        return Err(broken("it has an impossible number of entries"));
    }
    Ok(Group { stamp, first: index, count, value })
}
