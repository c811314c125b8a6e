//! What the tests of snapshots share: states, and files in memory.

mod damage;
mod figures;
mod folder;
mod install;
mod round_trip;

use std::sync::Arc;

use crate::guest::Limits;
use crate::raft::codec::log_id;
use crate::raft::types::BatchId;
use crate::state_machine::map::{Entry, Map};
use crate::state_machine::sessions::Sessions;
use crate::state_machine::{Activation, Active, Pieces, Published};

use super::read::{ReadError, Reader};
use super::write::write_state;
use super::{Header, Loaded, Summary, load};

pub(super) fn empty(term: u64, index: u64) -> Published {
    Published {
        applied: Some(log_id(term, index)),
        membership: Default::default(),
        time_ms: 0,
        first_command: 1,
        digest: [0; 32],
        cluster: 0,
        map: Map::new(),
        module: None,
        active: None,
        pieces: None,
        sessions: Sessions::default(),
    }
}

/// A state in which nothing is empty.
pub(super) fn full(term: u64, index: u64, map: Map, module: &[u8]) -> Published {
    let members = [(1, Default::default()), (2, Default::default())];
    let membership = openraft::Membership::new(vec![[1, 2].into()], std::collections::BTreeMap::from(members)).unwrap();
    let first = BatchId { node: 2, boot: 77, sequence: 5 };
    Published {
        membership: crate::raft::types::StoredMembership::new(Some(log_id(1, 3)), membership),
        time_ms: 1_700_000_000_123,
        first_command: 99,
        digest: [7; 32],
        cluster: 0xc1,
        map,
        active: Some(Arc::new(Active {
            activation: Activation::of(module, 0xc1, Limits::default(), "engine"),
            module: module.to_vec().into(),
        })),
        pieces: Some(Arc::new(Pieces { first, next_sequence: 8, bytes: module.repeat(2) })),
        sessions: Sessions::sample(3),
        ..empty(term, index)
    }
}

pub(super) fn map(entries: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Map {
    let mut map = Map::new();
    for (key, value) in entries {
        map.insert(Entry::new(&key, &value));
    }
    map
}

/// Bytes that LZ4 can't make smaller.
pub(super) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

pub(super) fn file_of(state: &Published) -> Vec<u8> {
    write_state(Vec::new(), Header::of(state).unwrap(), state).unwrap().0
}

pub(super) fn read(bytes: &[u8]) -> Result<Loaded, ReadError> {
    let mut loading = load::Loading::default();
    let summary = Reader::open(bytes)?.walk(&mut loading)?;
    Ok(loading.finish(summary))
}

pub(super) fn summary(bytes: &[u8]) -> Result<Summary, ReadError> {
    Reader::open(bytes)?.walk(&mut ())
}

pub(super) fn entries(map: &Map) -> Vec<Entry<'_>> {
    map.iter().collect()
}
