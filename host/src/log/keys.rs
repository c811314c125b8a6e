//! The one catalogue of keys in the log's tree. Owns their bytes and their order; knows nothing of values, which are
//! `record.rs`'s, the next file.
//!
//! ```text
//! e <index u64 BE> <chunk u32 BE>   a group of entries that begins with this one (chunk 0), or one piece of one entry
//! m/identity                        the same random bytes as in the marker file
//! m/filler <n>                      nothing; see `FILLERS`
//! m/last                            the stamp of the newest commit that was not one group
//! ```

use sled::IVec;

pub(super) const IDENTITY: &[u8] = b"m/identity";
pub(super) const LAST: &[u8] = b"m/last";
/// Keys that stay in the newest leaf of the tree, behind the newest entries, for the sake of their number: sled splits
/// a leaf of 17 values in the middle and writes both halves again. With seven small values at the end nearly all
/// entries go to the left half, which is then never touched again. Measured over 8,000 commits of 5 KiB: 14.5 KB
/// written for each, instead of 17.6 KB without these. More than seven in all are worse than none.
pub(super) const FILLERS: [&[u8]; 5] = [b"m/filler0", b"m/filler1", b"m/filler2", b"m/filler3", b"m/filler4"];

const ENTRY: u8 = b'e';
/// The first key after all of the entries'.
pub(super) const ENTRY_END: [u8; 1] = [ENTRY + 1];
/// Bytes of a chunk's key. Not more than sled keeps inside its own key type without an allocation.
pub(super) const CHUNK_KEY_BYTES: usize = 13;

/// The key of one piece of the record of the entry at `index`, or of the group that begins with it.
pub(super) fn chunk(index: u64, chunk: u32) -> [u8; CHUNK_KEY_BYTES] {
    let mut key = [ENTRY; CHUNK_KEY_BYTES];
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9..].copy_from_slice(&chunk.to_be_bytes());
    key
}

/// Index and chunk number of a key made by [`chunk`]; `None` for any other key.
pub(super) fn parse_chunk(key: &[u8]) -> Option<(u64, u32)> {
    let key: &[u8; CHUNK_KEY_BYTES] = key.try_into().ok()?;
    if key[0] != ENTRY {
        return None;
    }
    let index = u64::from_be_bytes(key[1..9].try_into().ok()?);
    let chunk = u32::from_be_bytes(key[9..].try_into().ok()?);
    Some((index, chunk))
}

/// Keys of all values that begin with the entries from `start` on. `end` is exclusive; `None`: to the end of the log.
pub(super) fn range(start: u64, end: Option<u64>) -> std::ops::Range<IVec> {
    let end = match end {
        Some(end) => IVec::from(&chunk(end, 0)),
        None => IVec::from(&ENTRY_END),
    };
    IVec::from(&chunk(start, 0))..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_sort_by_index_then_number_and_lie_in_their_range() {
        let keys = [chunk(1, 0), chunk(1, 300), chunk(2, 0), chunk(255, 1), chunk(256, 0), chunk(u64::MAX, 9)];
        assert!(keys.is_sorted());
        assert_eq!(keys.map(|k| parse_chunk(&k).unwrap().0), [1, 1, 2, 255, 256, u64::MAX]);
        assert!(range(0, None).contains(&IVec::from(&keys[5])));
        assert!(!range(1, Some(2)).contains(&IVec::from(&keys[2])));
        assert!(range(1, Some(2)).contains(&IVec::from(&keys[1])));
    }

    #[test]
    fn other_keys_are_no_chunks() {
        for key in [IDENTITY, LAST, FILLERS[0], b"", b"e", b"e1234567890123"] {
            assert_eq!(parse_chunk(key), None);
            assert!(!range(0, None).contains(&IVec::from(key)) || key.first() == Some(&ENTRY));
        }
    }
}
