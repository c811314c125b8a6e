//! A launcher's directory: where each node's files are, the record of the cluster, and the lock that says who runs
//! it. Never looks into a node's data.
//!
//! ```text
//! DIR/lock           held by the running launcher
//! DIR/cluster.toml   how many nodes, and whether the cluster was founded
//! DIR/node-N/        node N's data
//! DIR/node-N/pid     its process id while it runs
//! DIR/node-N/log     what it printed
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::process::{Flock, FlockType, Pid, fcntl_getlk};
use serde::Deserialize;

use crate::durable::create_durably;

/// Bytes of a node's log from which on it is put aside (as `log.old`) when the node is started.
const LOG_ROTATE_BYTES: u64 = 16 << 20;
/// Bytes at the end of a log that are read for a message.
const TAIL_BYTES: u64 = 8 << 10;

/// The directory of one local cluster.
#[derive(Debug, Clone)]
pub struct Folder {
    dir: PathBuf,
}

/// `cluster.toml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub nodes: u64,
    /// False until the first start saw a leader: till then node 1 is started with `--bootstrap`.
    pub founded: bool,
}

/// Proof that this process is the directory's launcher. The kernel takes the lock back when the process ends, however
/// it ends. It must stay the only open handle of that file: closing another one would give the lock up (POSIX).
#[derive(Debug)]
pub struct Held {
    _lock: File,
}

impl Folder {
    pub fn new(dir: &Path) -> Folder {
        Folder { dir: dir.into() }
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub fn node(&self, id: u64) -> PathBuf {
        self.dir.join(format!("node-{id}"))
    }

    pub fn pid_file(&self, id: u64) -> PathBuf {
        self.node(id).join("pid")
    }

    pub fn log_file(&self, id: u64) -> PathBuf {
        self.node(id).join("log")
    }

    fn lock_file(&self) -> PathBuf {
        self.dir.join("lock")
    }

    fn record_file(&self) -> PathBuf {
        self.dir.join("cluster.toml")
    }

    /// Creates the directory if needed and becomes its launcher.
    pub fn lock(&self) -> anyhow::Result<Held> {
        create_durably(&self.dir).with_context(|| format!("can't create {}", self.dir.display()))?;
        let path = self.lock_file();
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.with_context(|| format!("can't open {}", path.display()))?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
                let dir = self.dir.display();
                bail!(
                    "a cluster already runs in {dir}; stop it with `raftlet cluster stop --dir {dir}` or give another --dir"
                );
            }
            Err(error) => return Err(error).with_context(|| format!("can't lock {}", path.display())),
        }
        // For the eyes of people; `launcher` asks the kernel.
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Held { _lock: file })
    }

    /// The process that holds the lock now. A process id left behind in a file can't be taken for it.
    pub fn launcher(&self) -> anyhow::Result<Option<Pid>> {
        let file = match File::open(self.lock_file()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("can't open {}", self.lock_file().display())),
        };
        let Some(held) = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))? else { return Ok(None) };
        match held.pid {
            Some(pid) => Ok(Some(pid)),
            None => bail!("the cluster in {} is run from another container; stop it there", self.dir.display()),
        }
    }

    /// The record, or None if no cluster was ever started here.
    pub fn record(&self) -> anyhow::Result<Option<Record>> {
        let path = self.record_file();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.node(1).exists() {
                    let (dir, name) = (self.dir.display(), path.display());
                    bail!("{dir} has nodes but no {name}: give another --dir, or put the file back");
                }
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| format!("can't read {}", path.display())),
        };
        let record: Record = toml::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Some(record))
    }

    /// Writes the record so that a crash leaves the old one or the new one.
    pub fn write_record(&self, record: Record) -> anyhow::Result<()> {
        let Record { nodes, founded } = record;
        let text = format!(
            "# Written by `raftlet cluster start`; it says how this directory goes on.\nnodes = {nodes}\nfounded = {founded}\n"
        );
        write_whole(&self.record_file(), text.as_bytes()).context("can't record the cluster")
    }

    pub fn write_pid(&self, id: u64, pid: u32) -> io::Result<()> {
        write_whole(&self.pid_file(id), format!("{pid}\n").as_bytes())
    }

    /// A node that doesn't run has no pid file.
    pub fn remove_pid(&self, id: u64) {
        // The next start writes it anew; a process id that stays behind is never signalled.
        drop(fs::remove_file(self.pid_file(id)));
    }

    /// The node's log, to be appended to. Creates the node's directory.
    pub fn open_log(&self, id: u64) -> anyhow::Result<File> {
        let path = self.log_file(id);
        fs::create_dir_all(self.node(id)).with_context(|| format!("can't create {}", self.node(id).display()))?;
        if fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() > LOG_ROTATE_BYTES) {
            fs::rename(&path, path.with_extension("old"))?;
        }
        let file = OpenOptions::new().append(true).create(true).open(&path);
        file.with_context(|| format!("can't write {}", path.display()))
    }

    /// The last lines of a node's log, or a few words if there are none.
    pub fn log_tail(&self, id: u64, lines: usize) -> String {
        let tail = read_end(&self.log_file(id)).unwrap_or_default();
        let all: Vec<&str> = tail.lines().collect();
        if all.is_empty() { "(its log is empty)".into() } else { all[all.len().saturating_sub(lines)..].join("\n") }
    }
}

fn read_end(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Replaces a small file durably and at once.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Folder::new(&temporary.path().join("data"));
        (temporary, folder)
    }

    #[test]
    fn the_record_is_read_as_written_and_damage_is_named() {
        let (_temporary, folder) = folder();
        let _held = folder.lock().unwrap();
        assert_eq!(folder.record().unwrap(), None);
        for record in [Record { nodes: 3, founded: false }, Record { nodes: 3, founded: true }] {
            folder.write_record(record).unwrap();
            assert_eq!(folder.record().unwrap(), Some(record));
        }
        fs::write(folder.record_file(), "nodes = 3\nfounded = true\nsize = 1\n").unwrap();
        let error = format!("{:#}", folder.record().unwrap_err());
        assert!(error.contains("cluster.toml is damaged") && error.contains("size"), "{error}");
    }

    #[test]
    fn nodes_without_a_record_are_refused() {
        let (_temporary, folder) = folder();
        fs::create_dir_all(folder.node(1)).unwrap();
        assert!(folder.record().unwrap_err().to_string().contains("has nodes but no"));
    }

    #[test]
    fn without_a_lock_there_is_no_launcher_whatever_the_file_says() {
        let (_temporary, folder) = folder();
        assert_eq!(folder.launcher().unwrap(), None);
        drop(folder.lock().unwrap());
        fs::write(folder.lock_file(), format!("{}\n", std::process::id())).unwrap();
        assert_eq!(folder.launcher().unwrap(), None);
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        let (_temporary, folder) = folder();
        assert_eq!(folder.log_tail(1, 2), "(its log is empty)");
        let mut log = folder.open_log(1).unwrap();
        writeln!(log, "{}\none\ntwo \u{fffd}\nthree", "x".repeat(20_000)).unwrap();
        assert_eq!(folder.log_tail(1, 2), "two \u{fffd}\nthree");
    }

    #[test]
    fn a_long_log_is_put_aside() {
        let (_temporary, folder) = folder();
        folder.open_log(1).unwrap().set_len(LOG_ROTATE_BYTES).unwrap();
        assert_eq!(folder.open_log(1).unwrap().metadata().unwrap().len(), LOG_ROTATE_BYTES);
        folder.open_log(1).unwrap().set_len(LOG_ROTATE_BYTES + 1).unwrap();
        assert_eq!(folder.open_log(1).unwrap().metadata().unwrap().len(), 0);
        assert!(folder.node(1).join("log.old").exists());
    }
}
