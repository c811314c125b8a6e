//! The journal: what makes a commit durable. sled has no cheap sync: its flush wakes all of its I/O threads and, on a
//! file that grows, costs the file system a transaction, and fdatasync comes on top. So a commit is one write and one
//! fdatasync of a file whose blocks are all there already, and sled, which has the same commit in memory, is synced only
//! now and then (`checkpoint.rs`). Owns the file and its format. Never reads sled; `open.rs` puts what sled lacks into it.
//!
//! Two halves take turns. A half is written anew once sled has all that is in it.
//!
//! ```text
//! record  0 magic (4)  4 bytes of the changes  8 sequence  16 the sequence before it  24 crc32 of the changes
//!         28 crc32 of the bytes before and the log's identity  32 the changes; then zeros up to a whole sector
//! change  0 kind: 0 remove, 1 insert  1 bytes of the key (u16)  [3 bytes of the value (u32)]  key  [value]
//! ```
//!
//! Integers are little-endian. Each record is synced before the next one is written, so a power cut tears the newest one
//! at most. A damaged one with a newer one behind it was acknowledged: that is refused.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sled::IVec;

use super::pending::{Change, Write};
use super::record::Damage;

/// A half has so many parts of a segment of sled's: 64 KiB of 8 MiB. What is in both is what sled has not synced, and has
/// to be small (`parts.rs`).
const HALVES_PER_SEGMENT: usize = 128;
/// With segments under a mebibyte, which nobody needs to have.
const HALF_BYTES_MIN: usize = 8 << 10;
/// A commit that takes more than this part of a half is not worth writing twice: sled is synced for it.
const RECORDS_PER_HALF: u64 = 2;
/// A disk writes a sector whole or not at all.
const SECTOR_BYTES: usize = 512;
const MAGIC: &[u8; 4] = b"RJ1\n";
const HEADER_BYTES: usize = 32;

/// The open journal.
pub(super) struct Journal {
    file: File,
    crc_seed: u32,
    half_bytes: u64,
    /// The half in use, and where in it the next record goes.
    half: usize,
    at: u64,
    /// The newest sequence in each half.
    newest: [u64; 2],
    /// The sequence of the commit before the next one.
    before: u64,
    buffer: Vec<u8>,
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// Durable after a sync of the journal. `filled`: the half before this one is full, up to this sequence.
    Here { filled: Option<u64> },
    /// Too large: sled must be synced for it.
    Elsewhere,
}

/// One commit that was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub sequence: u64,
    /// Of the commit before it that was made durable by itself.
    pub before: u64,
    pub write: Write,
}

impl Journal {
    /// A new file with all its blocks written, so that a sync never has to wait for the file system's own records.
    /// Durable when it returns, except for its name.
    pub(super) fn create(path: &Path, segment_bytes: usize) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
        io::Write::write_all(&mut &file, &vec![0; file_bytes(segment_bytes)])?;
        file.sync_all()
    }

    /// To be written from now on. All that it has must be in sled, durably, which is up to `have`. Records above that
    /// were torn by a crash: behind the next one, if that is torn too, they would seem to come after it.
    pub(super) fn open(path: &Path, identity: &[u8], have: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let half_bytes = file.metadata()?.len() / 2;
        let crc_seed = crc32fast::hash(identity);
        let mut sectors = vec![0; 2 * half_bytes as usize];
        file.read_exact_at(&mut sectors, 0)?;
        for at in (0..sectors.len()).step_by(SECTOR_BYTES) {
            if header(&sectors, at, crc_seed).is_some_and(|header| header.sequence > have) {
                file.write_all_at(&[0; SECTOR_BYTES], at as u64)?;
            }
        }
        file.sync_data()?;
        Ok(Journal { file, crc_seed, half_bytes, half: 0, at: 0, newest: [have; 2], before: have, buffer: Vec::new() })
    }

    /// The sequence up to which sled must be durable before the next commit can be written, if that needs the other half.
    pub(super) fn needs(&self, write: &Write) -> Option<u64> {
        let bytes = record_bytes(write);
        (self.fits(bytes) && self.at + bytes as u64 > self.half_bytes).then(|| self.newest[1 - self.half])
    }

    fn fits(&self, bytes: usize) -> bool {
        bytes as u64 <= self.half_bytes / RECORDS_PER_HALF
    }

    /// Writes one commit, without a sync. What [`Journal::needs`] says must have been waited for.
    pub(super) fn write(&mut self, sequence: u64, write: &Write) -> io::Result<Written> {
        let bytes = record_bytes(write);
        let before = std::mem::replace(&mut self.before, sequence);
        if !self.fits(bytes) {
            return Ok(Written::Elsewhere);
        }
        let mut filled = None;
        if self.at + bytes as u64 > self.half_bytes {
            filled = Some(self.newest[self.half]);
            (self.half, self.at) = (1 - self.half, 0);
        }
        self.encode(sequence, before, write);
        debug_assert_eq!(self.buffer.len(), bytes);
        self.file.write_all_at(&self.buffer, self.half as u64 * self.half_bytes + self.at)?;
        self.at += bytes as u64;
        self.newest[self.half] = sequence;
        Ok(Written::Here { filled })
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn encode(&mut self, sequence: u64, before: u64, write: &Write) {
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.resize(HEADER_BYTES, 0);
        for (key, value) in &write.changes {
            buffer.push(u8::from(value.is_some()));
            buffer.extend_from_slice(&(key.len() as u16).to_le_bytes());
            if let Some(value) = value {
                buffer.extend_from_slice(&(value.len() as u32).to_le_bytes());
            }
            buffer.extend_from_slice(key);
            if let Some(value) = value {
                buffer.extend_from_slice(value);
            }
        }
        let changes = (buffer.len() - HEADER_BYTES) as u32;
        let crc = crc32fast::hash(&buffer[HEADER_BYTES..]);
        buffer[..4].copy_from_slice(MAGIC);
        buffer[4..8].copy_from_slice(&changes.to_le_bytes());
        buffer[8..16].copy_from_slice(&sequence.to_le_bytes());
        buffer[16..24].copy_from_slice(&before.to_le_bytes());
        buffer[24..28].copy_from_slice(&crc.to_le_bytes());
        let crc = header_crc(self.crc_seed, &buffer[..28]);
        buffer[28..32].copy_from_slice(&crc.to_le_bytes());
        buffer.resize(buffer.len().next_multiple_of(SECTOR_BYTES), 0);
    }
}

/// How large the file of a log with such segments is.
pub(super) fn file_bytes(segment_bytes: usize) -> usize {
    2 * (segment_bytes / HALVES_PER_SEGMENT).max(HALF_BYTES_MIN)
}

fn record_bytes(write: &Write) -> usize {
    let change = |(key, value): &Change| 3 + key.len() + value.as_ref().map_or(0, |value| 4 + value.len());
    (HEADER_BYTES + write.changes.iter().map(change).sum::<usize>()).next_multiple_of(SECTOR_BYTES)
}

fn header_crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

struct Header {
    sequence: u64,
    before: u64,
    changes: usize,
    crc: u32,
}

/// The commits in a journal behind `have`, the newest that sled has, in their order.
///
/// # Errors
/// One of them is damaged or missing. The newest one of all may be: it was never acknowledged, if the watermark agrees.
pub(super) fn read(file: &[u8], identity: &[u8], have: u64) -> Result<Vec<Record>, Damage> {
    let seed = crc32fast::hash(identity);
    let (first, second) = file.split_at(file.len() / 2);
    let mut records = Vec::new();
    for half in [first, second] {
        read_half(half, seed, have, &mut records)?;
    }
    records.sort_by_key(|record| record.sequence);
    let mut last = have;
    for record in &records {
        if record.before > last {
            return Err(Damage::Journal { commit: last + 1, why: "it is missing" });
        }
        last = record.sequence;
    }
    Ok(records)
}

fn read_half(half: &[u8], seed: u32, have: u64, records: &mut Vec<Record>) -> Result<(), Damage> {
    let (mut at, mut last) = (0, 0);
    while let Some(header) = header(half, at, seed).filter(|header| header.sequence > last) {
        let end = at + HEADER_BYTES + header.changes;
        let Some(changes) = half.get(at + HEADER_BYTES..end).filter(|c| crc32fast::hash(c) == header.crc) else {
            break;
        };
        if header.sequence > have {
            let broken = Damage::Journal { commit: header.sequence, why: "it contradicts itself" };
            let write = Write { changes: decode(changes).ok_or(broken)? };
            records.push(Record { sequence: header.sequence, before: header.before, write });
        }
        last = header.sequence;
        at = end.next_multiple_of(SECTOR_BYTES);
    }
    // Older ones are left from when the half was in use before.
    let mut behind = (at..half.len()).step_by(SECTOR_BYTES).skip(1).filter_map(|at| header(half, at, seed));
    match behind.find(|header| header.sequence > last.max(have)) {
        Some(newer) => {
            Err(Damage::Journal { commit: newer.before, why: "it is damaged, and a newer one is behind it" })
        }
        None => Ok(()),
    }
}

fn header(half: &[u8], at: usize, seed: u32) -> Option<Header> {
    let bytes = half.get(at..at + HEADER_BYTES)?;
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    (bytes.starts_with(MAGIC) && header_crc(seed, &bytes[..28]) == u32_at(28)).then(|| Header {
        sequence: u64_at(8),
        before: u64_at(16),
        changes: u32_at(4) as usize,
        crc: u32_at(24),
    })
}

fn decode(mut bytes: &[u8]) -> Option<Vec<Change>> {
    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = bytes.split_at_checked(count)?;
        *bytes = rest;
        Some(taken)
    }
    let mut changes = Vec::new();
    while let [kind, rest @ ..] = bytes {
        bytes = rest;
        let key_bytes = u16::from_le_bytes(take(&mut bytes, 2)?.try_into().ok()?);
        let value_bytes = match kind {
            0 => None,
            1 => Some(u32::from_le_bytes(take(&mut bytes, 4)?.try_into().ok()?)),
            _ => return None,
        };
        let key = IVec::from(take(&mut bytes, key_bytes.into())?);
        let value = match value_bytes {
            Some(count) => Some(IVec::from(take(&mut bytes, count as usize)?)),
            None => None,
        };
        changes.push((key, value));
    }
    Some(changes)
}

/// What a record whose first sector alone was written leaves.
#[cfg(test)]
pub(super) fn torn_header(identity: &[u8], sequence: u64, before: u64) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal");
    Journal::create(&path, 2 << 20).unwrap();
    let mut journal = Journal::open(&path, identity, before).unwrap();
    journal.encode(sequence, before, &Write { changes: vec![(b"torn".into(), Some(vec![7; 2_000].into()))] });
    journal.buffer[..SECTOR_BYTES].to_vec()
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
