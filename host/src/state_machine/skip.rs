//! Step 6 of 8 for an entry that the operators took out: it takes its index and its command numbers, and has no other
//! effect. The same on every replica that skips it. Who decides is `gate.rs`.

use openraft::EntryPayload;
use openraft::entry::RaftEntry;
use raftlet_machine::Batch;

use super::digest;
use super::overlay::Overlay;
use super::replica::{Done, Replica};
use crate::outcome::{BatchReplies, CommandReply, Failure};
use crate::raft::types::{Entry, Kind, Proposal};

impl Replica {
    /// Instead of [`Replica::apply`].
    pub fn skip(&mut self, entry: &Entry) -> Option<Done> {
        let log_id = entry.log_id();
        let state = &mut self.state;
        assert_eq!(log_id.index, state.applied.map_or(0, |l| l.index + 1), "entries are applied one after the other");
        let EntryPayload::Normal(Proposal { envelope, bytes }) = &entry.payload else {
            unreachable!("the gate skips nothing else");
        };
        state.time_ms = state.time_ms.max(envelope.time_ms);
        let batch = (envelope.kind == Kind::Batch).then(|| Batch::access(bytes).ok()).flatten();
        let done = batch.map(|batch| {
            let replies = BatchReplies::Each(vec![CommandReply::Failed(Failure::Skipped); batch.commands.len()]);
            let (_, writes) = Overlay::new(state.map.clone()).finish();
            state.digest = digest::link(&state.digest, log_id.index, &writes, &replies);
            state.first_command += replies.len() as u64;
            Done { id: envelope.id, log_id, replies }
        });
        state.applied = Some(log_id);
        done
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use raftlet_machine::{Method, Request};

    use super::*;
    use crate::guest::Engine;
    use crate::metrics::Metrics;
    use crate::outcome::ReplyView;
    use crate::raft::codec::log_id;
    use crate::raft::types::{BatchId, Envelope};

    #[test]
    fn skipped_commands_are_answered_take_their_numbers_and_do_nothing_else() {
        let id = BatchId { node: 1, boot: 2, sequence: 3 };
        let entry = |index, kind, bytes| {
            let envelope = Envelope { kind, id, time_ms: 77, stamp_index: 0, stamp_digest: [0; 16] };
            Entry::new(log_id(1, index), EntryPayload::Normal(Proposal { envelope, bytes }))
        };
        let request = || Request {
            method: Method::Put,
            path: "/kv/a".into(),
            query: String::new(),
            headers: Vec::new(),
            body: b"b".to_vec(),
        };
        let batch = Batch { commands: vec![request(), request()] }.to_bytes();
        let mut replica = Replica::new(Engine::new().unwrap(), Arc::new(Metrics::default()));
        let done = replica.skip(&entry(0, Kind::Batch, batch.into())).expect("somebody waits for it");
        let skipped = |r| matches!(r, ReplyView::Failed(Failure::Skipped));
        assert_eq!((done.id, done.replies.len(), done.replies.iter().all(skipped)), (id, 2, true));
        let state = replica.state();
        assert_eq!((state.applied_index(), state.first_command, state.time_ms, state.map.len()), (0, 3, 77, 0));
        assert_ne!(state.digest, [0; 32]);
        // A piece of a module, and bytes that are no batch, have nobody to answer.
        for kind in [Kind::ModuleChunk, Kind::ActivateModule, Kind::Batch] {
            let next = replica.state().applied_index() + 1;
            assert!(replica.skip(&entry(next, kind, Bytes::from_static(b"x"))).is_none());
            assert_eq!(replica.state().applied_index(), next);
        }
        assert!(replica.state().pieces.is_none() && replica.state().digest == state.digest);
    }
}
