//! The record's bytes: what the recorder writes and `raftlet_tests::disk_replay` reads (it includes this file). Owns
//! the layout of one record; knows nothing of files or replays.
//!
//! A record is 40 bytes, then the path, then the data; integers are little-endian.
//!
//! | offset | what | offset | what |
//! |---|---|---|---|
//! | 0 | `u32` bytes of the whole record | 8 | `u64` CLOCK_MONOTONIC in ns, when the call began |
//! | 4 | `u8` kind | 16 | `u64` handle: an open file of this process |
//! | 5 | `u8` flags | 24 | `u64` a |
//! | 6 | `u16` bytes of the path | 32 | `u64` b |
//!
//! A record of a change stands before the change and is followed by [`DONE`] with its result, both under one lock. So
//! at most the last change of a killed process has none.

pub const HEADER_BYTES: usize = 40;

/// A file was opened, maybe made or emptied by that. `handle`, path, flags.
pub const OPEN: u8 = 1;
/// `handle`, a = offset, data.
pub const WRITE: u8 = 2;
/// `handle`, a = the new length.
pub const SET_LEN: u8 = 3;
/// Space was allocated, which may make the file longer. `handle`, a = the length that it has at least.
pub const ALLOCATE: u8 = 4;
/// A sync began. a = a number for its end; `handle`, or a folder's path with flag [`FOLDER`].
pub const SYNC_START: u8 = 5;
/// The sync with number a has returned without an error.
pub const SYNC_END: u8 = 6;
/// From path to the path in data.
pub const RENAME: u8 = 7;
pub const UNLINK: u8 = 8;
pub const MKDIR: u8 = 9;
pub const RMDIR: u8 = 10;
/// The path in data is another name of path.
pub const LINK: u8 = 11;
/// `handle` was mapped writable and shared: from here on its content may be anything.
pub const MAPPED: u8 = 12;
/// Something that the record can't show; path is its name.
pub const UNSUPPORTED: u8 = 13;
/// a = result of the change before (`i64`): negative if it failed, for a write the bytes written.
pub const DONE: u8 = 14;

/// Flag of [`OPEN`]: the file was not there.
pub const CREATED: u8 = 1;
/// Flag of [`OPEN`]: the file was emptied.
pub const TRUNCATED: u8 = 2;
/// Flag of [`SYNC_START`]: fdatasync.
pub const DATA_ONLY: u8 = 1;
/// Flag of [`SYNC_START`]: of a folder.
pub const FOLDER: u8 = 2;

/// The fields before path and data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    pub bytes: u32,
    pub kind: u8,
    pub flags: u8,
    pub path_bytes: u16,
    pub time_ns: u64,
    pub handle: u64,
    pub a: u64,
    pub b: u64,
}

impl Header {
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[4] = self.kind;
        bytes[5] = self.flags;
        bytes[6..8].copy_from_slice(&self.path_bytes.to_le_bytes());
        for (place, number) in bytes[8..].chunks_exact_mut(8).zip([self.time_ns, self.handle, self.a, self.b]) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }
}
