//! The digest chain: one hash over the whole history of writes and replies. Two replicas with the same digest at the
//! same index hold the same state and gave the same answers. Every variable part is preceded by its length, so that
//! no two histories feed the hash the same bytes.

use super::Published;
use super::overlay::Writes;
use crate::outcome::{BatchReplies, Failure, ReplyView};

/// The link of one batch. BLAKE3 over: previous link, index, writes and replies in their order.
pub fn link(previous: &[u8; 32], index: u64, writes: &Writes, replies: &BatchReplies) -> [u8; 32] {
    let mut chain = Chain::new();
    chain.raw(previous);
    chain.number(index);
    chain.number(writes.count());
    chain.raw(writes.as_bytes());
    chain.number(replies.len() as u64);
    for reply in replies.iter() {
        chain.reply(reply);
    }
    chain.finish()
}

/// The link of an entry that activates a module.
pub fn activation(previous: &[u8; 32], index: u64, module: &[u8; 32]) -> [u8; 32] {
    let mut chain = Chain::new();
    chain.raw(previous);
    chain.number(index);
    chain.bytes(module);
    chain.finish()
}

/// What a content digest covers besides the entries of the map and of the sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Of the last applied entry.
    pub index: u64,
    pub time_ms: u64,
    pub first_command: u64,
    pub cluster: u64,
    /// The digest chain.
    pub chain: [u8; 32],
    /// BLAKE3 of the active module's bytes; zeros if there is none.
    pub module: [u8; 32],
}

/// The digest of a whole state, entry by entry: first those of the map, in key order, then, after
/// [`Content::sessions`], the records of the sessions. It finds what the chain can't: a flipped bit in a key that
/// nobody reads.
pub struct Content(Chain);

impl Content {
    pub fn new(facts: &Facts) -> Self {
        let mut chain = Chain::new();
        for number in [facts.index, facts.time_ms, facts.first_command, facts.cluster] {
            chain.number(number);
        }
        chain.bytes(&facts.chain);
        chain.bytes(&facts.module);
        Content(chain)
    }

    pub fn entry(&mut self, key: &[u8], value: &[u8]) {
        self.0.number(1);
        self.0.bytes(key);
        self.0.bytes(value);
    }

    /// The map's entries are over; the sessions' follow.
    pub fn sessions(&mut self) {
        self.0.number(0);
    }

    pub fn finish(self) -> [u8; 32] {
        self.0.finish()
    }
}

/// The content digest of a state. Reads all of it: about a second for a gigabyte.
pub fn content(state: &Published) -> [u8; 32] {
    let mut content = Content::new(&Facts::of(state));
    for entry in state.map.iter() {
        content.entry(entry.key(), entry.value());
    }
    content.sessions();
    for entry in state.sessions.records().iter() {
        content.entry(entry.key(), entry.value());
    }
    content.finish()
}

impl Facts {
    pub fn of(state: &Published) -> Self {
        Facts {
            index: state.applied_index(),
            time_ms: state.time_ms,
            first_command: state.first_command,
            cluster: state.cluster,
            chain: state.digest,
            module: state.active.as_ref().map_or([0; 32], |a| a.activation.digest),
        }
    }
}

/// What is hashed, gathered first: BLAKE3 hashes some KiB at once several times as fast as field by field.
struct Chain {
    hasher: blake3::Hasher,
    gathered: Vec<u8>,
}

/// BLAKE3 takes up to 16 pieces of 1 KiB side by side, if they are whole.
const PIECES_BYTES: usize = 16 << 10;

impl Chain {
    fn new() -> Self {
        Chain { hasher: blake3::Hasher::new(), gathered: Vec::with_capacity(PIECES_BYTES) }
    }

    fn raw(&mut self, mut bytes: &[u8]) {
        let missing = PIECES_BYTES - self.gathered.len();
        if bytes.len() >= missing {
            // Pieces are counted from the beginning of all: whatever comes in one part has to begin with a whole one.
            let (filling, behind) = bytes.split_at(missing);
            self.gathered.extend_from_slice(filling);
            self.hasher.update(&self.gathered);
            self.gathered.clear();
            let (whole, rest) = behind.split_at(behind.len() / PIECES_BYTES * PIECES_BYTES);
            self.hasher.update(whole);
            bytes = rest;
        }
        self.gathered.extend_from_slice(bytes);
    }

    fn finish(mut self) -> [u8; 32] {
        self.hasher.update(&self.gathered);
        *self.hasher.finalize().as_bytes()
    }

    fn number(&mut self, n: u64) {
        self.raw(&n.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.raw(bytes);
    }

    fn reply(&mut self, reply: ReplyView<'_>) {
        match reply {
            ReplyView::Module(reply) => {
                self.number(u64::from(reply.status.to_native()));
                self.bytes(reply.content_type.as_bytes());
                self.number(reply.headers.len() as u64);
                for header in reply.headers.iter() {
                    self.bytes(header.name.as_bytes());
                    self.bytes(&header.value);
                }
                self.bytes(&reply.body);
            }
            ReplyView::Replayed(first) => self.reply(first.view()),
            // The kind decides; the texts are for people. (Records of idempotency keys hold them, so that a repetition
            // gets the same: worded anew, they need a new format there.)
            ReplyView::Failed(failure) => self.number(match failure {
                Failure::Trap(_) => 1001,
                Failure::OutOfFuel => 1002,
                Failure::OutOfMemory => 1003,
                Failure::BatchBudget => 1004,
                Failure::InvalidReply(_) => 1005,
                Failure::NoModule => 1006,
                Failure::KeyReused => 1007,
                Failure::KeysFull => 1008,
                Failure::Skipped => 1009,
                Failure::ReplayBudget => 1010,
                Failure::QueryTimeout => unreachable!("commands are never cut off by the clock"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use raftlet_machine::{Header, Replies, Reply};

    use super::*;
    use crate::outcome::CommandReply;
    use crate::state_machine::map::Map;
    use crate::state_machine::overlay::Overlay;

    /// By the words of this file alone: the fields one after the other.
    #[test]
    fn gathering_changes_no_hash() {
        let sizes = [0, 1, 300, 5_000, PIECES_BYTES - 8, PIECES_BYTES, PIECES_BYTES + 1, 70_000, 3];
        let (mut chain, mut plain) = (Chain::new(), blake3::Hasher::new());
        for (turn, size) in sizes.into_iter().cycle().take(40).enumerate() {
            let bytes = vec![turn as u8; size];
            chain.bytes(&bytes);
            plain.update(&(size as u64).to_le_bytes());
            plain.update(&bytes);
        }
        assert_eq!(chain.finish(), *plain.finalize().as_bytes());
    }

    #[test]
    fn a_link_covers_the_link_before_it_the_index_and_the_replies() {
        let (_, writes) = Overlay::new(Map::default()).finish();
        let failed = |failure| BatchReplies::Each(vec![CommandReply::Failed(failure)]);
        let link = |previous: u8, index, replies: &BatchReplies| super::link(&[previous; 32], index, &writes, replies);
        let one = link(1, 7, &failed(Failure::OutOfFuel));
        assert_eq!(one, link(1, 7, &failed(Failure::OutOfFuel)));
        assert_ne!(one, link(2, 7, &failed(Failure::OutOfFuel)));
        assert_ne!(one, link(1, 8, &failed(Failure::OutOfFuel)));
        assert_ne!(one, link(1, 7, &failed(Failure::OutOfMemory)));
        assert_ne!(one, link(1, 7, &BatchReplies::Each(Vec::new())));
    }

    #[test]
    fn no_two_failures_are_the_same_to_the_chain() {
        use Failure::*;
        let all = [
            Trap(String::new()),
            OutOfFuel,
            OutOfMemory,
            BatchBudget,
            InvalidReply(String::new()),
            NoModule,
            KeyReused,
            KeysFull,
            Skipped,
            ReplayBudget,
        ];
        let (_, writes) = Overlay::new(Map::default()).finish();
        let count = all.len();
        let link = |failure| link(&[0; 32], 1, &writes, &BatchReplies::Each(vec![CommandReply::Failed(failure)]));
        assert_eq!(all.map(link).into_iter().collect::<std::collections::BTreeSet<_>>().len(), count);
    }

    #[test]
    fn a_link_is_the_same_whether_the_replies_are_an_archive_or_taken_apart() {
        let (_, writes) = Overlay::new(Map::default()).finish();
        let header = Header { name: "etag".into(), value: b"1".to_vec() };
        let reply = |body: &[u8]| Reply {
            status: 201,
            content_type: "text/plain".into(),
            headers: vec![header.clone()],
            body: body.to_vec(),
        };
        let archive = Replies { replies: vec![reply(b"a"), reply(b"")] }.to_bytes();
        let whole = BatchReplies::whole(archive.into()).unwrap();
        let each = BatchReplies::Each(whole.clone().into_each());
        assert_eq!(link(&[1; 32], 7, &writes, &whole), link(&[1; 32], 7, &writes, &each));
    }
}
