//! The body of a bulk request: an archive of [`raftlet_machine::Batch`], written from requests where they lie into a
//! buffer that is used again. Next: `queue.rs`.

use bytes::{Bytes, BytesMut};
use raftlet_machine::{ArchivedBatch, ArchivedRequest, Request};
use rkyv::rancor::{Error as RancorError, Fallible};
use rkyv::ser::allocator::Arena;
use rkyv::ser::{Allocator, Positional, Writer};
use rkyv::vec::{ArchivedVec, VecResolver};
use rkyv::{Archive, Place, Serialize};

/// Memory that is kept from one archive to the next.
#[derive(Default)]
pub(crate) struct Encoder {
    buffer: BytesMut,
    /// Scratch memory of rkyv's. Its memory only grows, and a batch is bounded.
    arena: Option<Arena>,
}

impl Encoder {
    /// The archive. Its memory is used again when all of its clones are gone.
    pub(crate) fn batch<'a, I>(&mut self, requests: I, bytes_expected: usize) -> Bytes
    where
        I: ExactSizeIterator<Item = &'a Request> + Clone,
    {
        self.buffer.reserve(bytes_expected);
        let mut arena = self.arena.take().unwrap_or_default();
        let writer = Output(&mut self.buffer);
        let written =
            rkyv::api::high::to_bytes_in_with_alloc::<_, _, RancorError>(&Commands(requests), writer, arena.acquire());
        written.map(drop).expect("archiving into memory can't fail");
        self.arena = Some(arena);
        self.buffer.split().freeze()
    }
}

/// Archived as a `Batch` is, without being one.
struct Commands<I>(I);

impl<'a, I: ExactSizeIterator<Item = &'a Request> + Clone> Archive for Commands<I> {
    type Archived = ArchivedBatch;
    type Resolver = VecResolver;

    fn resolve(&self, resolver: VecResolver, out: Place<ArchivedBatch>) {
        rkyv::munge::munge!(let ArchivedBatch { commands } = out);
        ArchivedVec::resolve_from_len(self.0.len(), resolver, commands);
    }
}

impl<'a, I, S> Serialize<S> for Commands<I>
where
    I: ExactSizeIterator<Item = &'a Request> + Clone,
    S: Fallible + Allocator + Writer + ?Sized,
    S::Error: rkyv::rancor::Source,
{
    fn serialize(&self, serializer: &mut S) -> Result<VecResolver, S::Error> {
        ArchivedVec::<ArchivedRequest>::serialize_from_iter::<Request, _, S>(self.0.clone(), serializer)
    }
}

/// The archive begins where the buffer does: `split` leaves an empty one.
struct Output<'a>(&'a mut BytesMut);

impl Positional for Output<'_> {
    fn pos(&self) -> usize {
        self.0.len()
    }
}

impl<E> Writer<E> for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), E> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{archived_bytes, keyed, request};
    use raftlet_machine::{Batch, Method};

    fn requests(count: usize) -> Vec<Request> {
        let one = |n| keyed(request(Method::Put, &format!("/kv/{n}?a={n}"), vec![n as u8; n % 50]), "key");
        (0..count).map(one).collect()
    }

    #[test]
    fn the_bytes_are_those_of_a_batch() {
        let mut encoder = Encoder::default();
        for count in [1, 2, 300, 0, 7] {
            let commands = requests(count);
            let archive = encoder.batch(commands.iter(), 0);
            // rkyv puts a text of up to 8 bytes into the place of its pointer.
            let expected: usize = commands.iter().map(archived_bytes).sum();
            assert!((expected * 3 / 4..=expected + 8).contains(&archive.len()), "{} of {expected}", archive.len());
            assert_eq!(archive, Batch { commands }.to_bytes());
        }
    }

    #[test]
    fn memory_is_used_again() {
        let mut encoder = Encoder::default();
        let commands = requests(100);
        let place = encoder.batch(commands.iter(), 20_000).as_ptr();
        let same = (0..50).filter(|_| encoder.batch(commands.iter(), 20_000).as_ptr() == place).count();
        assert!(same > 20, "{same}");
    }
}
