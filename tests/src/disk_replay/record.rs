//! Reads a record. Owns the meaning of its bytes; `disk.rs`, the next file, does what it says.

use std::path::PathBuf;
use std::sync::Arc;

use super::format::{self, HEADER_BYTES, Header};

/// One operation and when it began.
#[derive(Debug, Clone)]
pub struct Record {
    /// CLOCK_MONOTONIC.
    pub time_ns: u64,
    pub operation: Operation,
}

/// Handles are open files of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Another run of the process begins: handles and syncs of the one before are gone.
    Start,
    Open {
        handle: u64,
        path: PathBuf,
        created: bool,
        truncated: bool,
    },
    Write {
        handle: u64,
        offset: u64,
        data: Arc<[u8]>,
    },
    SetLen {
        handle: u64,
        length: u64,
    },
    /// The file is made this long, if it is shorter.
    Allocate {
        handle: u64,
        length: u64,
    },
    SyncStart {
        token: u64,
        what: Synced,
    },
    SyncEnd {
        token: u64,
        data_only: bool,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    Mkdir {
        path: PathBuf,
    },
    Rmdir {
        path: PathBuf,
    },
    Link {
        from: PathBuf,
        to: PathBuf,
    },
    /// Written through memory: the content may be anything from now on.
    Mapped {
        handle: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Synced {
    File(u64),
    Folder(PathBuf),
}

impl Record {
    pub fn start() -> Record {
        Record { time_ns: 0, operation: Operation::Start }
    }
}

/// A run's operations. The result of the last one is not known if the process was killed.
#[derive(Debug)]
pub struct Parsed {
    pub records: Vec<Record>,
    pub last_is_open: bool,
}

/// Operations that failed are left out, writes that were cut short are cut.
pub fn parse(mut bytes: &[u8]) -> Result<Parsed, String> {
    let mut records: Vec<Record> = Vec::new();
    let mut last_is_open = false;
    // What is left over at the end is a record that was being written when the process was killed: its operation was
    // not begun.
    while let Some((header, path, data)) = next(&mut bytes)? {
        if header.kind == format::DONE {
            if !last_is_open {
                return Err("a result without an operation".into());
            }
            settle(&mut records, header.a as i64);
            last_is_open = false;
            continue;
        }
        if last_is_open {
            return Err(format!("an operation without a result: {:?}", records.last()));
        }
        let operation = operation(&header, path, data)?;
        last_is_open =
            !matches!(operation, Operation::SyncStart { .. } | Operation::SyncEnd { .. } | Operation::Mapped { .. });
        records.push(Record { time_ns: header.time_ns, operation });
    }
    Ok(Parsed { records, last_is_open })
}

/// Gives the last operation its result.
pub fn settle(records: &mut Vec<Record>, result: i64) {
    let Some(last) = records.last_mut() else { return };
    match (&mut last.operation, usize::try_from(result)) {
        (_, Err(_)) => drop(records.pop()),
        (Operation::Write { data, .. }, Ok(written)) if written < data.len() => *data = data[..written].into(),
        _ => {}
    }
}

type Fields<'a> = (Header, PathBuf, &'a [u8]);

fn next<'a>(bytes: &mut &'a [u8]) -> Result<Option<Fields<'a>>, String> {
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
    let header = Header {
        bytes: u32::from_le_bytes(head[..4].try_into().expect("4 bytes")),
        kind: head[4],
        flags: head[5],
        path_bytes: u16::from_le_bytes([head[6], head[7]]),
        time_ns: number(8),
        handle: number(16),
        a: number(24),
        b: number(32),
    };
    let (all, data_at) = (header.bytes as usize, HEADER_BYTES + usize::from(header.path_bytes));
    if all < data_at {
        return Err(format!("a record of {all} bytes with a path to {data_at}"));
    }
    if bytes.len() < all {
        return Ok(None);
    }
    let path = text(&bytes[HEADER_BYTES..data_at])?;
    let data = &bytes[data_at..all];
    *bytes = &bytes[all..];
    Ok(Some((header, path, data)))
}

fn text(bytes: &[u8]) -> Result<PathBuf, String> {
    Ok(std::str::from_utf8(bytes).map_err(|e| format!("a path that is no UTF-8: {e}"))?.into())
}

fn operation(header: &Header, path: PathBuf, data: &[u8]) -> Result<Operation, String> {
    let (handle, a) = (header.handle, header.a);
    let flag = |flag: u8| header.flags & flag != 0;
    Ok(match header.kind {
        format::OPEN => {
            Operation::Open { handle, path, created: flag(format::CREATED), truncated: flag(format::TRUNCATED) }
        }
        format::WRITE => Operation::Write { handle, offset: a, data: data.into() },
        format::SET_LEN => Operation::SetLen { handle, length: a },
        format::ALLOCATE => Operation::Allocate { handle, length: a },
        format::SYNC_START if flag(format::FOLDER) => Operation::SyncStart { token: a, what: Synced::Folder(path) },
        format::SYNC_START => Operation::SyncStart { token: a, what: Synced::File(handle) },
        format::SYNC_END => Operation::SyncEnd { token: a, data_only: flag(format::DATA_ONLY) },
        format::RENAME => Operation::Rename { from: path, to: text(data)? },
        format::UNLINK => Operation::Unlink { path },
        format::MKDIR => Operation::Mkdir { path },
        format::RMDIR => Operation::Rmdir { path },
        format::LINK => Operation::Link { from: path, to: text(data)? },
        format::MAPPED => Operation::Mapped { handle },
        format::UNSUPPORTED => return Err(format!("a replay can't show {}", path.display())),
        kind => return Err(format!("a record of unknown kind {kind}")),
    })
}
