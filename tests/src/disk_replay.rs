//! What a disk may hold after a power cut. From the record of a process' file operations (`tests/recorder`) it builds,
//! for any point in it, folders that a disk could hold then: all that was synced before, and of the rest as much as
//! the mode and a seeded generator say. Boots nothing and judges nothing: see `tests/power_cut/`.
//!
//! The disk that is assumed keeps only what POSIX promises, which is less than ext4 does:
//!
//! - A sync makes durable what was written to the file before the sync *began*, with the length; fdatasync too, because
//!   a length that is needed to read data back is data.
//! - Anything else may be there or not, by sectors of 512 bytes: a sector holds what it held at the last sync or after
//!   any of the writes since. A length may be there without its data: then there are zeros.
//! - A name is durable once its folder was synced after it was given, whatever was synced of the file. Before that each
//!   change of a folder may be there or not; a rename within a folder is there or not, but never half.
//! - `sync_file_range` promises nothing.
//!
//! Reading order: `record.rs` (reading), `disk.rs` (what was done and what is durable), `build.rs` (what survives),
//! `finish.rs` (after a process' end: is the record whole, does it lead to the real folder).

pub mod build;
pub mod disk;
mod finish;
#[path = "../recorder/src/format.rs"]
#[allow(dead_code)]
mod format;
pub mod record;
#[cfg(test)]
mod tests;

pub use build::{MODES, Mode};
pub use disk::Disk;
pub use record::{Operation, Record};

use std::path::{Path, PathBuf};

use fastrand::Rng;

/// The records of all runs of one node, in order.
#[derive(Debug)]
pub struct Recording {
    /// The folder that was recorded.
    root: PathBuf,
    pub records: Vec<Record>,
    ignore_data_syncs: bool,
}

impl Recording {
    /// Before the first run. `root` must not be reached through a symbolic link.
    pub fn new(root: &Path) -> Recording {
        Recording { root: root.to_owned(), records: Vec::new(), ignore_data_syncs: false }
    }

    /// A folder in the root that was there, durably, before the first run.
    pub fn with_folder(mut self, name: &str) -> Recording {
        let path = self.root.join(name);
        let operations = [
            Operation::Mkdir { path },
            Operation::SyncStart { token: 0, what: record::Synced::Folder(self.root.clone()) },
            Operation::SyncEnd { token: 0, data_only: false },
        ];
        self.records.extend(operations.map(|operation| Record { time_ns: 0, operation }));
        self
    }

    /// The variables of a process that is to be recorded into `out`, a new file for each run.
    pub fn environment(root: &Path, out: &Path) -> [(&'static str, String); 3] {
        let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        [
            ("LD_PRELOAD", text(&crate::paths::recorder())),
            ("RAFTLET_RECORD_ROOT", text(root)),
            ("RAFTLET_RECORD_OUT", text(out)),
        ]
    }

    /// Takes in the record of a run that has ended, however it did, and compares what all runs lead to with the real
    /// folder, below `name` in the root.
    ///
    /// # Errors
    /// The record shows something that a replay can't, or the folder differs: some operation was not seen.
    pub fn add_run(&mut self, out: &Path, name: &str) -> Result<(), String> {
        let bytes = std::fs::read(out).map_err(|e| format!("{}: {e}", out.display()))?;
        self.records.push(Record::start());
        let records = record::parse(&bytes)?;
        finish::add(self, records)?;
        self.disk_at(self.records.len()).compare(&self.root, name)
    }

    /// As if fdatasync did nothing: a planted bug.
    pub fn ignoring_data_syncs(mut self) -> Recording {
        self.ignore_data_syncs = true;
        self
    }

    /// After this many records.
    pub fn disk_at(&self, position: usize) -> Disk {
        let mut replay = self.replay();
        replay.advance(position);
        replay.disk
    }

    pub fn replay(&self) -> Replay<'_> {
        Replay { recording: self, disk: Disk::new(&self.root), position: 0 }
    }

    /// How many records began before a time.
    pub fn position_at(&self, time_ns: u64) -> usize {
        self.records.partition_point(|r| r.time_ns < time_ns)
    }

    /// The latest time at which the power may have gone with this many records written: before it, all is seen.
    pub fn time_of(&self, position: usize) -> u64 {
        self.records.get(position).map_or(u64::MAX, |r| r.time_ns)
    }
}

/// Goes forward through a recording, once for many cuts.
#[derive(Debug)]
pub struct Replay<'a> {
    recording: &'a Recording,
    disk: Disk,
    position: usize,
}

impl Replay<'_> {
    /// To a position that is not before the last one.
    pub fn advance(&mut self, position: usize) {
        assert!(position >= self.position, "a replay only goes forward");
        for record in &self.recording.records[self.position..position] {
            let ignored = matches!(record.operation, Operation::SyncEnd { data_only: true, .. });
            if !(ignored && self.recording.ignore_data_syncs) {
                self.disk.apply(&record.operation);
            }
        }
        self.position = position;
    }

    /// Writes into the empty folder `target` what the disk may hold if the power goes here.
    pub fn build(&self, mode: Mode, rng: &mut Rng, target: &Path) -> std::io::Result<()> {
        build::build(&self.disk, mode, rng, target)
    }
}
