//! `quarantine.json` in a node's folder: this node's state was found to be wrong. It survives restarts, because a restart
//! may not cure what made it wrong, and it keeps both digests for whoever studies the case. Only who reloads the state
//! from a peer removes it. Next: `audit.rs`.

use std::io;
use std::path::Path;

use crate::durable::{read_checked, write_checked};
use crate::state_machine::health::Quarantine;

pub const FILE: &str = "quarantine.json";

/// # Errors
/// The file can't be read as what it is: a node that may be in quarantine must not serve.
pub fn read(dir: &Path) -> io::Result<Option<Quarantine>> {
    read_checked(dir, FILE)
}

pub(super) fn write(dir: &Path, quarantine: &Quarantine) -> io::Result<()> {
    crate::failpoint!("quarantine.before-marker", io);
    write_checked(dir, FILE, quarantine)?;
    crate::failpoint!("quarantine.after-marker", io);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::state_machine::health::What;

    #[test]
    fn the_marker_survives_and_a_damaged_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let text = |c: char| c.to_string().repeat(32);
        let quarantine = Quarantine { what: What::Chain, index: 7, ours: text('a'), theirs: text('b'), time_ms: 1 };
        write(dir.path(), &quarantine).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(quarantine));
        fs::write(dir.path().join(FILE), "{").unwrap();
        let error = read(dir.path()).unwrap_err().to_string();
        assert!(error.contains(FILE), "{error}");
    }
}
