//! What becomes of the commands of one batch: which are run, which get a reply that is known, which are refused. Made
//! before the module is run, finished with its replies. Both follow from the batch, the sessions and the replicated
//! clock alone.

use std::collections::{HashMap, HashSet};

use raftlet_machine::limits::{IDEMPOTENCY_KEY_BYTES_MAX, REPLIES_BYTES_MAX};
use raftlet_machine::{ArchivedBatch, ArchivedRequest, IDEMPOTENCY_KEY};

use super::record::{Fingerprint, HEAD_BYTES};
use super::{SessionLimits, Sessions};
use crate::outcome::{BatchReplies, CommandReply, Failure};

/// For a batch that has commands with idempotency keys; without one there is nothing to plan.
pub struct Plan<'a> {
    /// Of those that are run, in order.
    run: Vec<u32>,
    /// One for each command.
    fates: Vec<Fate<'a>>,
    replays: Replays,
}

/// What is copied from earlier replies. A known key costs its client nothing and may stand for a large reply, so that a
/// batch's replays are bounded as its replies are.
#[derive(Default)]
struct Replays {
    bytes: u64,
}

impl Replays {
    /// The reply, unless this batch has repeated too much: then it may be sent again. That is not [`Failure::BatchBudget`],
    /// whose client may conclude that nothing has happened, and do something else.
    fn of(&mut self, reply: CommandReply) -> CommandReply {
        self.bytes += match &reply {
            CommandReply::Module(reply) => reply.get().body.len() as u64,
            _ => 0,
        };
        if self.bytes > REPLIES_BYTES_MAX as u64 {
            return CommandReply::Failed(Failure::ReplayBudget);
        }
        CommandReply::Replayed(Box::new(reply))
    }
}

enum Fate<'a> {
    /// Run. It has no key.
    Plain,
    /// Run; its reply is kept.
    First { key: &'a [u8], fingerprint: Fingerprint },
    /// Not run: this is its reply.
    Answered(CommandReply),
    /// Not run: it repeats the command at this position, which is a `First`.
    As(usize),
}

/// What was planned for the new keys of this batch.
#[derive(Default)]
struct New<'a> {
    first: HashMap<&'a [u8], (usize, Fingerprint)>,
    /// What was looked up: each reply is copied out of its record once.
    known: HashMap<&'a [u8], (Fingerprint, CommandReply)>,
    replays: Replays,
    /// What they will take at least.
    bytes: u64,
}

impl Sessions {
    /// Begins with a batch: forgets what has expired, looks up its keys. None: all its commands are run, and nothing
    /// will have to be kept.
    pub fn plan<'a>(&mut self, batch: &'a ArchivedBatch, now_ms: u64, limits: &SessionLimits) -> Option<Plan<'a>> {
        self.forget_expired(now_ms, limits, batch.commands.len());
        batch.commands.iter().find_map(key_of)?;
        let mut new = New::default();
        let (mut run, mut fates) = (Vec::new(), Vec::with_capacity(batch.commands.len()));
        for (position, command) in batch.commands.iter().enumerate() {
            let fate = match key_of(command) {
                None => Fate::Plain,
                Some(key) => self.fate(key, fingerprint(command), position, &mut new, now_ms, limits),
            };
            if matches!(fate, Fate::Plain | Fate::First { .. }) {
                run.push(position as u32);
            }
            fates.push(fate);
        }
        Some(Plan { run, fates, replays: new.replays })
    }

    fn fate<'a>(
        &mut self,
        key: &'a [u8],
        fingerprint: Fingerprint,
        position: usize,
        new: &mut New<'a>,
        now_ms: u64,
        limits: &SessionLimits,
    ) -> Fate<'a> {
        let refused = |failure| Fate::Answered(CommandReply::Failed(failure));
        if let Some((first, known)) = new.first.get(key) {
            return if *known == fingerprint { Fate::As(*first) } else { refused(Failure::KeyReused) };
        }
        if !new.known.contains_key(key)
            && let Some(found) = self.look_up(key, now_ms, limits)
        {
            new.known.insert(key, found);
        }
        if let Some((known, reply)) = new.known.get(key) {
            let same = *known == fingerprint;
            return if same { Fate::Answered(new.replays.of(reply.clone())) } else { refused(Failure::KeyReused) };
        }
        // Younger keys are never forgotten to make room: their commands may be repeated yet.
        let keys = self.keys() + new.first.len() as u64;
        if keys >= limits.keys_max || self.bytes() + new.bytes >= limits.bytes_max {
            return refused(Failure::KeysFull);
        }
        new.first.insert(key, (position, fingerprint));
        new.bytes += (key.len() + HEAD_BYTES) as u64;
        Fate::First { key, fingerprint }
    }
}

impl Plan<'_> {
    /// The positions of the commands that are to be run. May be empty.
    pub fn run(&self) -> &[u32] {
        &self.run
    }

    /// Takes the replies of those that were run, in order; keeps those that have a key; returns one for each command.
    /// `first_command` is the number of the batch's first.
    ///
    /// # Panics
    /// If there isn't one reply for each position of [`Plan::run`].
    pub fn finish(
        mut self,
        ran: BatchReplies,
        sessions: &mut Sessions,
        now_ms: u64,
        first_command: u64,
    ) -> BatchReplies {
        assert_eq!(ran.len(), self.run.len(), "every command that is run is answered");
        // If all are run these are the replies, and an archive of them stays one.
        let all = self.run.len() == self.fates.len();
        let whole = if all && matches!(ran, BatchReplies::Whole(_)) { Some(ran.clone()) } else { None };
        let mut ran = ran.into_each().into_iter();
        let mut next = || ran.next().expect("there is one for each");
        let mut kept = HashSet::new();
        let mut replies: Vec<CommandReply> = Vec::with_capacity(self.fates.len());
        for (position, fate) in self.fates.into_iter().enumerate() {
            let reply = match fate {
                Fate::Plain => next(),
                Fate::First { key, fingerprint } => {
                    let reply = next();
                    if sessions.keep(key, now_ms, first_command + position as u64, &fingerprint, &reply) {
                        kept.insert(position);
                    }
                    reply
                }
                Fate::Answered(reply) => reply,
                // Where nothing was kept, nothing happened: both clients may send it again.
                Fate::As(first) if kept.contains(&first) => self.replays.of(replies[first].clone()),
                Fate::As(first) => replies[first].clone(),
            };
            replies.push(reply);
        }
        whole.unwrap_or(BatchReplies::Each(replies))
    }
}

/// What the client listener lets through. Anything else in an archive is no key, on all replicas alike.
pub(super) fn is_key(key: &[u8]) -> bool {
    (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic)
}

pub(super) fn key_of(command: &ArchivedRequest) -> Option<&[u8]> {
    let header = command.headers.iter().find(|header| header.name == IDEMPOTENCY_KEY)?;
    Some(header.value.as_slice()).filter(|key| is_key(key))
}

/// Of all that makes a request but its key. Each part stands behind its length, so that no two requests feed the hash
/// the same bytes.
fn fingerprint(command: &ArchivedRequest) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(&[command.method as u8]);
    part(command.path.as_bytes());
    part(command.query.as_bytes());
    part(&command.body);
    for header in command.headers.iter().filter(|header| header.name != IDEMPOTENCY_KEY) {
        part(header.name.as_bytes());
        part(&header.value);
    }
    let hash = hasher.finalize();
    hash.as_bytes()[..16].try_into().expect("a hash has 32 bytes")
}
