//! Who this folder is: `identity.json` in the node's data folder. Written once, before the node says a word to
//! anyone, so that a folder can't answer for two nodes, and a node that lost its disk can't pass for its old self.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::types::NodeId;
pub use crate::durable::write_durably;
use crate::durable::{create_durably, temporary};

const FILE: &str = "identity.json";
const FORMAT: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Identity {
    format: u32,
    pub node: NodeId,
    /// Random, drawn when the folder was made.
    pub identity: u64,
    /// Drawn by the bootstrapping node. None: this node hasn't joined; it neither votes nor takes entries.
    pub cluster: Option<u64>,
}

/// As in the file. Without a checksum, one digit that became another would pass as another node or cluster.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    node: NodeId,
    identity: u64,
    cluster: Option<u64>,
    /// CRC-32 of the members before it, as text.
    crc32: u32,
}

impl From<Identity> for Stored {
    fn from(Identity { format, node, identity, cluster }: Identity) -> Self {
        let crc32 = crc32fast::hash(format!("{format} {node} {identity} {cluster:?}").as_bytes());
        Stored { format, node, identity, cluster, crc32 }
    }
}

impl TryFrom<Stored> for Identity {
    type Error = &'static str;

    fn try_from(Stored { format, node, identity, cluster, crc32 }: Stored) -> Result<Self, Self::Error> {
        let read = Identity { format, node, identity, cluster };
        if Stored::from(read).crc32 == crc32 { Ok(read) } else { Err("its checksum is wrong") }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{path} belongs to node {found}, but this is node {expected}; give --id {found} or another --dir")]
    OtherNode { path: PathBuf, found: NodeId, expected: NodeId },
    #[error(
        "{path} holds data but no {FILE}; it is not a node's folder, or the file was lost: restore it or use an empty folder"
    )]
    NoIdentity { path: PathBuf },
    #[error("{path} can't be read as a node's identity: {why}")]
    Damaged { path: PathBuf, why: String },
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: io::Error },
}

impl Identity {
    /// Reads the folder's identity, or makes one if the folder is empty or absent. `ours` are names that may be
    /// there before the identity is (the launcher's log and pid).
    pub fn open(dir: &Path, node: NodeId, ours: &[&str]) -> Result<Identity, IdentityError> {
        let io = |error| IdentityError::Io { path: dir.to_owned(), error };
        create_durably(dir).map_err(io)?;
        match Identity::read(dir) {
            Ok(found) => {
                if found.node != node {
                    return Err(IdentityError::OtherNode { path: dir.into(), found: found.node, expected: node });
                }
                Ok(found)
            }
            Err(IdentityError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                for entry in fs::read_dir(dir).map_err(io)? {
                    let name = entry.map_err(io)?.file_name();
                    // A temporary identity is what a crash within `save` leaves.
                    if !ours.iter().any(|o| name == *o) && name != temporary(FILE).as_str() {
                        return Err(IdentityError::NoIdentity { path: dir.into() });
                    }
                }
                let identity = Identity { format: FORMAT, node, identity: random(), cluster: None };
                identity.save(dir).map_err(io)?;
                Ok(identity)
            }
            Err(e) => Err(e),
        }
    }

    /// The identity of a folder that has one.
    pub fn read(dir: &Path) -> Result<Identity, IdentityError> {
        let path = dir.join(FILE);
        let damaged = |why: String| IdentityError::Damaged { path: path.clone(), why };
        let bytes = fs::read(&path).map_err(|error| IdentityError::Io { path: path.clone(), error })?;
        let found: Identity = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        match found.format {
            FORMAT => Ok(found),
            other => Err(damaged(format!("format {other}; this binary knows {FORMAT}"))),
        }
    }

    /// The first node of a new cluster. Nothing is written.
    pub fn founder(node: NodeId, cluster: u64) -> Identity {
        Identity { format: FORMAT, node, identity: random(), cluster: Some(cluster) }
    }

    /// Joins a cluster, durably. Only for a folder that has none yet.
    pub fn join(&mut self, dir: &Path, cluster: u64) -> io::Result<()> {
        assert!(self.cluster.is_none(), "a folder joins one cluster in its life");
        let joined = Identity { cluster: Some(cluster), ..*self };
        joined.save(dir)?;
        *self = joined;
        Ok(())
    }

    /// Durable when it returns. Only for a folder that has none yet, or has this one.
    pub fn save(&self, dir: &Path) -> io::Result<()> {
        write_durably(dir, FILE, &serde_json::to_vec_pretty(self).expect("numbers can be encoded"))
    }
}

/// From the operating system's generator: for ids that must not repeat.
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .expect("the kernel's random generator answers");
    }
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_its_identity_and_refuses_another_node() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Identity::open(dir.path(), 1, &[]).unwrap();
        first.join(dir.path(), 77).unwrap();
        assert_eq!(Identity::open(dir.path(), 1, &[]).unwrap(), first);
        let error = Identity::open(dir.path(), 2, &[]).unwrap_err().to_string();
        assert!(error.contains("belongs to node 1"), "{error}");
    }

    #[test]
    fn a_folder_with_foreign_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("log"), "").unwrap();
        assert!(Identity::open(dir.path(), 1, &["log"]).is_ok());
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("holiday.jpg"), "").unwrap();
        assert!(matches!(Identity::open(dir.path(), 1, &["log"]), Err(IdentityError::NoIdentity { .. })));
    }

    #[test]
    fn a_damaged_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        Identity::open(dir.path(), 1, &[]).unwrap();
        fs::write(dir.path().join(FILE), "{\"format\": 1").unwrap();
        assert!(matches!(Identity::open(dir.path(), 1, &[]), Err(IdentityError::Damaged { .. })));
    }

    #[test]
    fn a_digit_that_became_another_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        Identity::open(dir.path(), 1, &[]).unwrap().join(dir.path(), 77).unwrap();
        let good = fs::read(dir.path().join(FILE)).unwrap();
        for at in (0..good.len()).filter(|at| good[*at].is_ascii_digit()) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(dir.path().join(FILE), &bad).unwrap();
            let opened = Identity::open(dir.path(), 1, &[]);
            // A number with a leading zero is no JSON; all else is for the checksum.
            assert!(matches!(opened, Err(IdentityError::Damaged { .. })), "{}", String::from_utf8_lossy(&bad));
        }
    }
}
