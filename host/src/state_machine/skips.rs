//! `skip.json` in a node's folder: the entries that this node has skipped. Kept, because the log may be applied again
//! after a restart, and then the same entries must be left out. Next: `gate.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::health::{Checksum, hex};
use crate::config::SkipEntry;
use crate::durable::{checked, read_checked, write_checked};

pub const FILE: &str = "skip.json";

/// # Errors
/// The file can't be read as what it is. Without it an entry could be applied on this node alone.
pub fn read(dir: &Path) -> io::Result<BTreeMap<u64, Checksum>> {
    let wrong =
        |why: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {why}", dir.join(FILE).display()));
    let entries: Vec<String> = read_checked(dir, FILE)?.unwrap_or_default();
    let read = |text: String| text.parse().map(|SkipEntry { index, checksum }| (index, Checksum(checksum)));
    entries.into_iter().map(|text| read(text).map_err(|e| wrong(e.to_string()))).collect()
}

pub fn write(dir: &Path, skips: BTreeMap<u64, Checksum>) -> io::Result<()> {
    crate::failpoint!("skip.before-write", io);
    let entries: Vec<String> = skips.into_iter().map(|(index, c)| format!("{index}:{}", hex(&c.0))).collect();
    if fs::read(dir.join(FILE)).is_ok_and(|old| old == checked(&entries)) {
        return Ok(());
    }
    write_checked(dir, FILE, &entries)?;
    crate::failpoint!("skip.after-write", io);
    Ok(())
}
