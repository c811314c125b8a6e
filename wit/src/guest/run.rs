//! Step 7 of 8, the guest's half: splits a batch, runs its commands one by one, archives the replies. Between the
//! bindings (`bindings.rs`) and the author's [`Machine`]; decides nothing about a request.

use std::mem::ManuallyDrop;

use super::bindings::raftlet::machine::types;
use super::{Context, Machine, Store, bindings};
use crate::{ArchivedBatch, Replies, Reply};

/// What one export does with one request.
type Run = fn(&Context, &crate::ArchivedRequest, &mut Store) -> Reply;

impl<M: Machine> bindings::Guest for M {
    fn describe() -> types::Description {
        let route = |r: &super::Route| types::Route {
            method: format!("{:?}", r.method).to_uppercase(),
            path: r.path.into(),
            summary: r.summary.into(),
        };
        types::Description {
            name: M::NAME.into(),
            version: M::VERSION.into(),
            schema: M::SCHEMA,
            routes: M::routes().iter().map(route).collect(),
        }
    }

    fn apply(ctx: types::Context, batch: Vec<u8>, run: Vec<u32>) -> Vec<u8> {
        log_panics();
        archived(replies(&ctx, trusted(&batch), &run, &mut Store::new(), M::apply))
    }

    fn query(ctx: types::Context, batch: Vec<u8>, run: Vec<u32>) -> Vec<u8> {
        log_panics();
        archived(replies(&ctx, trusted(&batch), &run, &mut Store::new(), query_of::<M>()))
    }

    fn migrate(from_schema: u32) -> Result<(), String> {
        log_panics();
        M::migrate(from_schema, &mut Store::new())
    }
}

/// The machine's query, which sees the store read-only.
pub(super) fn query_of<M: Machine>() -> Run {
    |ctx, request, store| M::query(ctx, request, store)
}

/// One reply for each position in `run` (empty: all positions), in that order.
pub fn replies(ctx: &types::Context, batch: &ArchivedBatch, run: &[u32], store: &mut Store, each: Run) -> Replies {
    let all = 0..batch.commands.len() as u32;
    let mut one = |position: u32| {
        store.begin(position);
        each(&Context::of_command(ctx, position), &batch.commands[position as usize], store)
    };
    let replies = if run.is_empty() { all.map(one).collect() } else { run.iter().map(|&p| one(p)).collect() };
    Replies { replies }
}

/// The replies themselves go with the instance, all at once: freeing each of them costs more than half of making them.
fn archived(replies: Replies) -> Vec<u8> {
    ManuallyDrop::new(replies).to_bytes()
}

/// A panic ends in a trap that says nothing of its reason; so it is logged first.
fn log_panics() {
    #[cfg(target_arch = "wasm32")]
    std::panic::set_hook(Box::new(|panic| super::log(super::Level::Error, &panic.to_string())));
}

/// Reads the batch in place, without validating it again.
fn trusted(batch: &[u8]) -> &ArchivedBatch {
    // SAFETY: the host validates every batch where it comes in (`Batch::access`), before it is logged, and calls with
    // those bytes. Were they invalid all the same, the damage would stay inside this instance's linear memory, which
    // is thrown away after the batch.
    unsafe { rkyv::access_unchecked::<ArchivedBatch>(batch) }
}
