//! One group on its way into bytes and back, without a disk: what `benches/instructions.rs` counts. No node calls it.

use bytes::Bytes;
use openraft::entry::RaftEntry;

use super::group::{self, Builder};
use super::record::Damage;
use super::stamp::Stamp;
use super::view::Bounds;
use crate::raft::codec;
use crate::raft::types::Entry;

/// Encodes consecutive small entries as the log's writer does, and reads them as a reader of the log does.
///
/// # Errors
/// What was written is not what can be read.
pub fn round_trip(entries: &[Entry]) -> Result<Vec<Entry>, Damage> {
    let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return Ok(Vec::new()) };
    let first = first.log_id().index;
    let bounds = Bounds { purged: None, first: 0, last: Some(last.log_id()) };
    let stamp = Stamp { sequence: 1, bounds, committed: None, vote: None };
    let mut builder = Builder::default();
    for entry in entries {
        let (head, payload) = codec::encode(entry);
        builder.push(entry.log_id().index, &head, &payload);
    }
    let Some((key, value)) = builder.finish(&stamp) else { return Ok(Vec::new()) };
    let group = group::open(&key, &value, first)?;
    let records = group.records()?.into_iter();
    let value = Bytes::copy_from_slice(&value);
    let decode = |record| codec::decode(value.slice(record)).map_err(|error| Damage::Entry { index: first, error });
    records.map(decode).collect()
}
