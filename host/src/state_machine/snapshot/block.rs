//! One block of a snapshot's file: a head of 24 bytes, then the data, compressed where that makes it smaller. Owns the
//! checksum, which covers the snapshot's id and the block's position: a block that was moved, repeated, or taken from
//! another file is found. Knows nothing of what is in it; that is `write.rs` and `read.rs`.
//!
//! ```text
//! 0  section   1  coding (0 as it is, 1 LZ4)   2  zeros (2)   4  bytes (u32)   8  bytes in the file (u32)
//! 12 position (u64)   20 CRC-32 over the id, the head so far, and the data as it is in the file
//! ```

use std::io::{self, Read, Write};

use super::read::ReadError;

/// Bytes of a block's head.
pub(super) const HEAD_BYTES: usize = 24;
/// Bytes of a block's data before it is compressed: large enough to compress well, small enough for the caches.
pub(super) const DATA_BYTES_MAX: usize = 256 << 10;
/// Where the checksum stands in the head.
const CRC_AT: usize = 20;

const AS_IT_IS: u8 = 0;
const LZ4: u8 = 1;

/// What a block is a part of. They come in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Section {
    Module = 1,
    Pieces = 2,
    Map = 3,
    Sessions = 4,
    Footer = 5,
}

impl Section {
    fn of(byte: u8) -> Option<Section> {
        use Section::{Footer, Map, Module, Pieces, Sessions};
        [Module, Pieces, Map, Sessions, Footer].into_iter().find(|s| *s as u8 == byte)
    }
}

/// Writes blocks one after the other. Holds the room for compressing.
pub(super) struct BlockWriter {
    id: u32,
    position: u64,
    room: Vec<u8>,
}

impl BlockWriter {
    pub(super) fn new(id: u32) -> Self {
        let most = lz4_flex::block::get_maximum_output_size(DATA_BYTES_MAX);
        BlockWriter { id, position: 0, room: vec![0; HEAD_BYTES + most] }
    }

    /// Blocks written so far.
    pub(super) fn count(&self) -> u64 {
        self.position
    }

    /// # Panics
    /// If there are more than [`DATA_BYTES_MAX`] bytes.
    pub(super) fn write(&mut self, out: &mut impl Write, section: Section, data: &[u8]) -> io::Result<()> {
        assert!(data.len() <= DATA_BYTES_MAX, "a block is bounded");
        let (head, room) = self.room.split_at_mut(HEAD_BYTES);
        let packed = lz4_flex::block::compress_into(data, room).map_err(io::Error::other)?;
        let coding = if packed < data.len() { LZ4 } else { AS_IT_IS };
        let stored = if coding == LZ4 { packed } else { data.len() };
        if coding == AS_IT_IS {
            room[..stored].copy_from_slice(data);
        }
        head[..4].copy_from_slice(&[section as u8, coding, 0, 0]);
        head[4..8].copy_from_slice(&(data.len() as u32).to_le_bytes());
        head[8..12].copy_from_slice(&(stored as u32).to_le_bytes());
        head[12..CRC_AT].copy_from_slice(&self.position.to_le_bytes());
        let crc = checksum(self.id, &head[..CRC_AT], &room[..stored]);
        head[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        self.position += 1;
        out.write_all(&self.room[..HEAD_BYTES + stored])
    }
}

/// Reads blocks one after the other. Its memory is two blocks, whatever the file says.
pub(super) struct BlockReader {
    id: u32,
    position: u64,
    stored: Vec<u8>,
    data: Vec<u8>,
}

impl BlockReader {
    pub(super) fn new(id: u32) -> Self {
        BlockReader { id, position: 0, stored: Vec::new(), data: vec![0; DATA_BYTES_MAX] }
    }

    /// Blocks read so far.
    pub(super) fn count(&self) -> u64 {
        self.position
    }

    /// The next block: its section and its data.
    pub(super) fn read(&mut self, input: &mut impl Read) -> Result<(Section, &[u8]), ReadError> {
        let position = self.position;
        let bad = |why: &str| ReadError::Damaged(format!("block {position}: {why}"));
        let mut head = [0; HEAD_BYTES];
        input.read_exact(&mut head)?;
        let (bytes, stored_bytes) = (u32_at(&head, 4) as usize, u32_at(&head, 8) as usize);
        // What is stored is never larger than the data itself.
        if bytes > DATA_BYTES_MAX || stored_bytes > bytes {
            return Err(bad("its lengths can't be"));
        }
        self.stored.resize(stored_bytes, 0);
        input.read_exact(&mut self.stored)?;
        if checksum(self.id, &head[..CRC_AT], &self.stored) != u32_at(&head, CRC_AT) {
            return Err(bad("its checksum is wrong"));
        }
        let said = u64::from_le_bytes(head[12..CRC_AT].try_into().expect("8 bytes"));
        if said != position {
            return Err(bad(&format!("it is block {said}, in the wrong place")));
        }
        let section = Section::of(head[0]).ok_or_else(|| bad("its section is unknown"))?;
        let data = &mut self.data[..bytes];
        match head[1] {
            AS_IT_IS if stored_bytes == bytes => data.copy_from_slice(&self.stored),
            LZ4 if lz4_flex::block::decompress_into(&self.stored, data).is_ok_and(|n| n == bytes) => {}
            _ => return Err(bad("it can't be unpacked")),
        }
        self.position += 1;
        Ok((section, data))
    }
}

pub(super) fn checksum(id: u32, head: &[u8], data: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&id.to_le_bytes());
    crc.update(head);
    crc.update(data);
    crc.finalize()
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}
