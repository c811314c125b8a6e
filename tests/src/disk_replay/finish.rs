//! The end of a run's record. A killed process may have begun one change of which the record has no result: the real
//! folder says what became of it.

use std::fs;
use std::path::Path;

use super::Recording;
use super::record::{Operation, Parsed, settle};

/// Adds the records of a run to a recording that ends with its start.
pub(super) fn add(recording: &mut Recording, parsed: Parsed) -> Result<(), String> {
    recording.records.extend(parsed.records);
    // A start has no time of its own.
    let times: Vec<u64> = recording.records.iter().map(|r| r.time_ns).collect();
    for (at, record) in recording.records.iter_mut().enumerate() {
        if record.operation == Operation::Start {
            record.time_ns = times.get(at + 1).copied().unwrap_or_default().max(times[at.saturating_sub(1)]);
        }
    }
    if parsed.last_is_open {
        let result = result_of_last(recording)?;
        settle(&mut recording.records, result);
    }
    match recording.records.is_sorted_by_key(|r| r.time_ns) {
        true => Ok(()),
        false => Err("the record goes back in time".into()),
    }
}

fn result_of_last(recording: &Recording) -> Result<i64, String> {
    let before = recording.disk_at(recording.records.len() - 1);
    let open_path = |handle: u64| before.path_of(handle).ok_or("the last operation is on a file that has no name");
    let flag = |happened: bool| if happened { 0 } else { -1 };
    let last = recording.records.last().expect("an operation without a result is one");
    Ok(match &last.operation {
        Operation::Write { handle, offset, data } => {
            let real = fs::read(open_path(*handle)?).map_err(|e| e.to_string())?;
            let there = real.get(*offset as usize..).unwrap_or_default();
            // A kill may stop a write between two pages.
            there.iter().zip(data.iter()).take_while(|(a, b)| a == b).count() as i64
        }
        Operation::SetLen { handle, length } => flag(bytes_of(&open_path(*handle)?)? == *length),
        Operation::Allocate { handle, length } => flag(bytes_of(&open_path(*handle)?)? >= *length),
        Operation::Open { path, created: true, .. } | Operation::Mkdir { path } => flag(path.exists()),
        Operation::Open { path, truncated: true, .. } => flag(bytes_of(path)? == 0),
        Operation::Open { .. } => 0,
        Operation::Rename { from, .. } => flag(!from.exists()),
        Operation::Unlink { path } | Operation::Rmdir { path } => flag(!path.exists()),
        Operation::Link { to, .. } => flag(to.exists()),
        other => return Err(format!("the record ends in {other:?} without a result")),
    })
}

fn bytes_of(path: &Path) -> Result<u64, String> {
    fs::metadata(path).map(|m| m.len()).map_err(|e| format!("{}: {e}", path.display()))
}
