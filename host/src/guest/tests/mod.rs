//! Hostile modules against the room: small ones written as text, one behaviour each, and the real guests.

pub(crate) mod assemble;
mod contract;
mod isolation;
mod limits;
mod modules;
mod real;

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use raftlet_machine::{Batch, Method, Request};

use super::*;
use crate::outcome::{BatchReplies, CommandReply, Failure, ReplyView};

/// One for all tests: its pools take address space.
pub(crate) static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new().unwrap());

const CONTEXT: Context = Context { log_index: 7, term: 2, time_ms: 1_000, first_command: 100, seed: 3 };
const LONG: QueryBounds = QueryBounds { within: Duration::from_secs(60), reply_bytes_max: usize::MAX };

/// A store that is too simple to be wrong.
#[derive(Clone, Default, Debug, PartialEq)]
pub(crate) struct Shelf {
    base: BTreeMap<Vec<u8>, Vec<u8>>,
    saved: BTreeMap<Vec<u8>, Vec<u8>>,
    now: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Shelf {
    fn of(keys: impl IntoIterator<Item = u32>) -> Self {
        let base: BTreeMap<_, _> = keys.into_iter().map(|key| (key.to_le_bytes().to_vec(), vec![1])).collect();
        Shelf { saved: base.clone(), now: base.clone(), base }
    }

    /// The keys that the text guests write: a position as four bytes.
    fn keys(&self) -> Vec<u32> {
        self.now.keys().filter_map(|key| Some(u32::from_le_bytes(key.as_slice().try_into().ok()?))).collect()
    }
}

impl ReadStore for Shelf {
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.now.get(key).map(Vec::as_slice)
    }

    fn scan<'a>(&'a self, range: KeyRange<'a>) -> Box<dyn Iterator<Item = (&'a [u8], &'a [u8])> + 'a> {
        let inside = move |key: &[u8]| range.start.is_none_or(|s| key >= s) && range.end.is_none_or(|e| key < e);
        let all = self.now.iter().map(|(k, v)| (k.as_slice(), v.as_slice())).filter(move |(k, _)| inside(k));
        match range.order {
            Order::Ascending => Box::new(all),
            Order::Descending => Box::new(all.rev()),
        }
    }
}

impl CommandStore for Shelf {
    fn set(&mut self, key: &[u8], value: &[u8]) -> bool {
        self.now.insert(key.to_vec(), value.to_vec()).is_some()
    }

    fn delete(&mut self, key: &[u8]) -> bool {
        self.now.remove(key).is_some()
    }

    fn delete_range(&mut self, range: KeyRange<'_>) -> u64 {
        let doomed: Vec<Vec<u8>> = self.scan(range).map(|(key, _)| key.to_vec()).collect();
        doomed.iter().for_each(|key| drop(self.now.remove(key)));
        doomed.len() as u64
    }

    fn begin(&mut self) {
        self.saved = self.now.clone();
    }

    fn rollback(&mut self) {
        self.now = self.saved.clone();
    }

    fn discard(&mut self) {
        self.now = self.base.clone();
        self.saved = self.base.clone();
    }
}

pub(crate) fn request(method: Method, path: &str, body: &[u8]) -> Request {
    Request { method, path: path.into(), query: String::new(), headers: Vec::new(), body: body.to_vec() }
}

fn batch_of(count: usize) -> Vec<u8> {
    Batch { commands: vec![request(Method::Post, "/", b""); count] }.to_bytes()
}

fn valid(batch: &[u8]) -> ValidBatch<'_> {
    ValidBatch::new(batch).unwrap()
}

/// Replies in one letter each, so that a whole batch is one line.
fn letters(replies: &BatchReplies) -> String {
    let letter = |reply: ReplyView| match reply {
        ReplyView::Module(_) => '.',
        ReplyView::Failed(Failure::Trap(_)) => 'T',
        ReplyView::Failed(Failure::OutOfFuel) => 'F',
        ReplyView::Failed(Failure::OutOfMemory) => 'M',
        ReplyView::Failed(Failure::BatchBudget) => 'B',
        ReplyView::Failed(Failure::InvalidReply(_)) => 'I',
        ReplyView::Failed(Failure::QueryTimeout) => 'Q',
        ReplyView::Failed(other) => panic!("the guest room doesn't decide {other:?}"),
        ReplyView::Replayed(_) => panic!("the guest room knows no keys"),
    };
    replies.iter().map(letter).collect()
}

fn failure(reply: &CommandReply) -> String {
    match reply {
        CommandReply::Failed(failure) => failure.to_string(),
        CommandReply::Module(_) | CommandReply::Replayed(_) => panic!("the module replied"),
    }
}
