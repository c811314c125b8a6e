//! What a running process holds, read from Linux' /proc, and what a folder takes on disk.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A moment of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    pub resident_bytes: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    pub threads: u64,
}

/// None if the process has ended.
pub fn process(pid: u32) -> Option<Sample> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
    Some(Sample { resident_bytes: field("VmRSS:")? << 10, descriptors, threads: field("Threads:")? })
}

/// Bytes that all files below a folder take on disk. What vanishes meanwhile isn't counted.
pub fn disk_bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => disk_bytes(&entry.path()),
        // A block is 512 bytes here, whatever the file system's own are.
        Ok(meta) => meta.blocks() * 512,
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_and_written_is_seen() {
        let before = process(std::process::id()).expect("this process runs");
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join("inner")).expect("a folder");
        let held: Vec<_> = (0..20).map(|n| fs::File::create(folder.path().join(format!("inner/{n}")))).collect();
        let after = process(std::process::id()).expect("this process runs");
        assert!(after.descriptors >= before.descriptors.saturating_sub(10) + held.len() as u64, "{before:?} {after:?}");
        let empty = disk_bytes(folder.path());
        fs::write(folder.path().join("inner/large"), vec![1; 100_000]).expect("a file");
        assert!(disk_bytes(folder.path()) >= empty + 98_304, "the file's blocks are counted");
        assert_eq!(process(u32::MAX), None);
    }
}
