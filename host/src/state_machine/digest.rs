//! The digest chain: one hash over the whole history of writes and replies. Two replicas with the same digest at the
//! same index hold the same state and gave the same answers. Every variable part is preceded by its length, so that
//! no two histories feed the hash the same bytes.

use super::overlay::Writes;
use crate::outcome::{CommandReply, Failure};

/// The link of one batch. BLAKE3 over: previous link, index, writes in key order, replies in command order.
pub fn link(previous: &[u8; 32], index: u64, writes: &Writes, replies: &[CommandReply]) -> [u8; 32] {
    let mut chain = Chain(blake3::Hasher::new());
    chain.0.update(previous);
    chain.number(index);
    chain.number(writes.len() as u64);
    for (key, value) in writes.iter() {
        chain.bytes(key);
        match value {
            Some(value) => {
                chain.number(1);
                chain.bytes(value);
            }
            None => chain.number(0),
        }
    }
    chain.number(replies.len() as u64);
    for reply in replies {
        chain.reply(reply);
    }
    *chain.0.finalize().as_bytes()
}

/// The link of an entry that activates a module.
pub fn activation(previous: &[u8; 32], index: u64, module: &[u8; 32]) -> [u8; 32] {
    let mut chain = Chain(blake3::Hasher::new());
    chain.0.update(previous);
    chain.number(index);
    chain.bytes(module);
    *chain.0.finalize().as_bytes()
}

struct Chain(blake3::Hasher);

impl Chain {
    fn number(&mut self, n: u64) {
        self.0.update(&n.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn reply(&mut self, reply: &CommandReply) {
        match reply {
            CommandReply::Module(reply) => {
                let reply = reply.get();
                self.number(u64::from(reply.status.to_native()));
                self.bytes(reply.content_type.as_bytes());
                self.number(reply.headers.len() as u64);
                for header in reply.headers.iter() {
                    self.bytes(header.name.as_bytes());
                    self.bytes(&header.value);
                }
                self.bytes(&reply.body);
            }
            // The kind decides; the texts are for people, and may be worded anew in a later version.
            CommandReply::Failed(failure) => self.number(match failure {
                Failure::Trap(_) => 1001,
                Failure::OutOfFuel => 1002,
                Failure::OutOfMemory => 1003,
                Failure::BatchBudget => 1004,
                Failure::InvalidReply(_) => 1005,
                Failure::NoModule => 1006,
                Failure::KeyReused => 1007,
                Failure::KeysFull => 1008,
                Failure::Skipped => 1009,
                Failure::QueryTimeout => unreachable!("commands are never cut off by the clock"),
            }),
        }
    }
}
