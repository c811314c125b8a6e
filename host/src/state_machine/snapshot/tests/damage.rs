//! Whatever happens to a file, reading it is an error: never a panic, never another state.

use proptest::prelude::*;

use super::*;
use crate::state_machine::snapshot::block::{DATA_BYTES_MAX, HEAD_BYTES, checksum, u32_at};

fn sample() -> Published {
    full(5, 1_000, map((0..9_u8).map(|i| (vec![i], vec![i; usize::from(i)]))), b"some module")
}

/// Where the blocks begin, and where the last one ends.
fn blocks(file: &[u8]) -> Vec<usize> {
    let mut at = 20 + u32_at(file, 12) as usize;
    let mut blocks = vec![at];
    while at + HEAD_BYTES < file.len() {
        at += HEAD_BYTES + u32_at(file, at + 8) as usize;
        blocks.push(at);
    }
    blocks
}

#[track_caller]
fn assert_damaged(file: &[u8], what: &str) {
    match read(file) {
        Err(ReadError::Damaged(_)) => {}
        Err(other) => panic!("{what}: {other:?}"),
        Ok(_) => panic!("{what} was not noticed"),
    }
}

#[test]
fn every_truncation_is_found() {
    let file = file_of(&sample());
    for length in 0..file.len() {
        assert_damaged(&file[..length], &format!("a cut at {length}"));
    }
    assert_damaged(&[&file[..], b"\0"].concat(), "a byte more");
    assert_damaged(&[&file[..], &file[..]].concat(), "the file twice");
}

#[test]
fn every_flipped_bit_is_found() {
    let file = file_of(&sample());
    for at in 0..file.len() {
        for bit in 0..8 {
            let mut flipped = file.clone();
            flipped[at] ^= 1 << bit;
            assert_damaged(&flipped, &format!("bit {bit} of byte {at}"));
        }
    }
}

#[test]
fn moved_repeated_missing_and_foreign_blocks_are_found() {
    let state = full(5, 1_000, map((0..4_u8).map(|i| (vec![i], noise(DATA_BYTES_MAX, i.into())))), b"m");
    let file = file_of(&state);
    let at = blocks(&file);
    // The id is random, and a small one takes a byte less in the header.
    let mut others = std::iter::repeat_with(|| file_of(&state)).take(100);
    let other = others.find(|other| blocks(other) == at).expect("an id of the same length");
    let part = |i: usize| &file[at[i]..at[i + 1]];
    // 0 module, 1 pieces, then the map: two whole blocks have the same length.
    let (head, tail) = (&file[..at[2]], &file[at[4]..]);
    assert_eq!([head, part(2), part(3), tail].concat(), file);
    assert_damaged(&[head, part(3), part(2), tail].concat(), "two blocks that changed places");
    assert_damaged(&[head, part(2), part(2), tail].concat(), "a block in another's place");
    assert_damaged(&[head, part(2), part(2), part(3), tail].concat(), "a block twice");
    assert_damaged(&[head, part(3), tail].concat(), "a missing block");
    assert_damaged(&[head, part(2), &other[at[3]..at[4]], tail].concat(), "another file's block");
}

/// A block as it should be, except for what it says.
fn forged(id: u32, section: u8, coding: u8, bytes: u32, position: u64, stored: &[u8]) -> Vec<u8> {
    let mut block = vec![section, coding, 0, 0];
    block.extend(bytes.to_le_bytes());
    block.extend((stored.len() as u32).to_le_bytes());
    block.extend(position.to_le_bytes());
    block.extend(checksum(id, &block, stored).to_le_bytes());
    block.extend(stored);
    block
}

#[test]
fn lies_with_right_checksums_are_found() {
    let file = file_of(&empty(1, 1));
    let id = read(&file).unwrap().header.id;
    let (start, end) = (&file[..blocks(&file)[0]], &file[blocks(&file)[0]..]);
    let lie = |block: Vec<u8>, what: &str| assert_damaged(&[start, &block, end].concat(), what);
    lie(forged(id, 3, 1, u32::MAX, 0, &[0; 100]), "a block of four gigabytes");
    lie(forged(id, 3, 1, 1_000, 0, &[0; 100]), "bytes that are no LZ4");
    lie(forged(id, 3, 0, 1_000, 0, &[0; 100]), "a length that isn't the data's");
    lie(forged(id, 3, 2, 100, 0, &[0; 100]), "an unknown coding");
    lie(forged(id, 9, 0, 100, 0, &[0; 100]), "an unknown section");
    // A key of four gigabytes.
    lie(forged(id, 3, 0, 100, 0, &[0xff; 100]), "a record that can't be");
    let record = |key: u8| [&1_u32.to_le_bytes()[..], &0_u32.to_le_bytes(), &[key]].concat();
    for (keys, what) in [([2, 1], "keys that fall"), ([1, 1], "a key twice")] {
        lie(forged(id, 3, 0, 18, 0, &keys.map(record).concat()), what);
    }
    lie(forged(id, 3, 0, 9, 0, &record(1)), "an entry that the footer doesn't count");
    lie(forged(id, 1, 0, 9, 0, &record(1)), "a module that the header doesn't know");
}

#[test]
fn a_newer_format_is_no_damage() {
    let mut file = file_of(&empty(1, 1));
    let header_end = blocks(&file)[0];
    file[8] = 2;
    let crc = checksum(0, &file[..16], &file[20..header_end]);
    file[16..20].copy_from_slice(&crc.to_le_bytes());
    assert!(matches!(read(&file), Err(ReadError::Version(2))));
}

proptest! {
    #[test]
    fn any_bytes_are_no_snapshot(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(read(&bytes).is_err());
        let mut begun = file_of(&empty(1, 1));
        begun.truncate(blocks(&begun)[0]);
        begun.extend(bytes);
        prop_assert!(read(&begun).is_err());
    }
}
