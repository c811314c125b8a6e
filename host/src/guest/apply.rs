//! A whole batch: runs it, finds the commands to blame, runs the others again as if those had never been there. Every
//! decision follows from fuel, limits and the module alone, so that all replicas make the same one.
//!
//! A command that fails is left out and the same bytes run again on a fresh instance, with the store as it was. After
//! [`CULPRITS_MAX`] of them, or when nobody can be told to be the one to blame, the commands run one by one.
//! Next: `state_machine/` takes the store's writes and the replies (step 8).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use raftlet_machine::{ArchivedBatch, Batch, InvalidArchive};

use super::attempt::{Attempt, Entrance, Job, Verdict};
use super::engine::TICK;
use super::fault::LocalFault;
use super::host::Backing;
use super::module::Module;
use super::store::{CommandStore, ReadStore};
use crate::outcome::{BatchReplies, CommandReply, Failure};

/// So many commands are left out of a batch before the rest runs one by one.
pub const CULPRITS_MAX: usize = 8;

/// The only clock, identity and randomness that a module sees. The fields are those of `context` in the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    pub log_index: u64,
    pub term: u64,
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    pub first_command: u64,
    pub seed: u64,
}

/// What a run of queries may take beside the module's limits, which are for commands too.
#[derive(Debug, Clone, Copy)]
pub struct QueryBounds {
    pub within: Duration,
    /// Of the replies of those that are run one by one; beyond it the rest is answered [`Failure::BatchBudget`].
    pub reply_bytes_max: usize,
}

/// A batch whose archive was validated, which is done once for each place that takes one in.
#[derive(Clone, Copy)]
pub struct ValidBatch<'a> {
    bytes: &'a [u8],
    archived: &'a ArchivedBatch,
}

impl<'a> ValidBatch<'a> {
    /// # Errors
    /// The bytes are no archive of a batch.
    pub fn new(bytes: &'a [u8]) -> Result<Self, InvalidArchive> {
        Ok(ValidBatch { bytes, archived: Batch::access(bytes)? })
    }

    /// The batch, read in place.
    pub fn get(&self) -> &'a ArchivedBatch {
        self.archived
    }
}

impl Module {
    /// Runs the commands at the positions in `run` (ascending; empty: all) of a batch. Returns one reply for
    /// each of them, in that order, and the store with the writes of those that did not fail.
    ///
    /// Needs [`super::STACK_BYTES`] and 1 MiB more of stack. The calling thread is busy for at most about ten times
    /// the batch's fuel.
    ///
    /// # Errors
    /// This machine failed; the node must stop. Nothing may be concluded about the batch.
    pub fn apply<S: CommandStore>(
        &self,
        context: &Context,
        batch: ValidBatch<'_>,
        run: &[u32],
        store: S,
    ) -> Result<(BatchReplies, S), LocalFault> {
        let job = self.job(context, batch);
        let run = positions(run, job.count)?;
        let course = Course::new(self.apply_entrance(), job, Backing::Command(Box::new(store)), None);
        let (replies, backing) = course.finish(run)?;
        Ok((replies, store_of(backing)?))
    }

    /// The same on a thread that must not be held up: one run, with fuel for one or two milliseconds, 8 MiB of memory and
    /// 256 KiB for the replies, and no messages for the node's log. None if that wasn't enough, a command failed, or this
    /// machine did: then nothing has happened, and nothing may be concluded. What went well here would have gone just so
    /// with more.
    pub fn apply_lightly<S: CommandStore>(
        &self,
        context: &Context,
        batch: ValidBatch<'_>,
        run: &[u32],
        store: S,
    ) -> Option<(BatchReplies, S)> {
        let mut job = self.job(context, batch);
        (job.limits, job.is_light) = (job.limits.light(), true);
        let run = positions(run, job.count).ok()?;
        let budget = job.limits.fuel_per_batch;
        let attempt = self.apply_entrance().attempt(&job, &run, Backing::Command(Box::new(store)), budget, None);
        let attempt = attempt.inspect_err(|fault| tracing::warn!("in a light run, which is repeated: {fault}")).ok()?;
        let Verdict::Done(replies) = attempt.verdict else { return None };
        Some((BatchReplies::Whole(replies), store_of(attempt.backing).ok()?))
    }

    /// The same for queries. Those that are not done within the time are answered [`Failure::QueryTimeout`]. Waits while
    /// too many other queries run; waiting counts.
    ///
    /// # Errors
    /// This machine failed; the queries have no answer.
    pub fn query<S: ReadStore>(
        &self,
        context: &Context,
        batch: ValidBatch<'_>,
        run: &[u32],
        store: S,
        bounds: QueryBounds,
    ) -> Result<BatchReplies, LocalFault> {
        let deadline = Instant::now() + bounds.within;
        let _slot = self.engine().query_slot();
        let job = self.job(context, batch);
        let run = positions(run, job.count)?;
        let mut course = Course::new(self.query_entrance(), job, Backing::Query(Box::new(store)), Some(deadline));
        course.reply_bytes_left = bounds.reply_bytes_max;
        Ok(course.finish(run)?.0)
    }

    fn job<'a>(&self, context: &'a Context, batch: ValidBatch<'a>) -> Job<'a> {
        Job {
            context,
            batch: batch.bytes,
            count: batch.archived.commands.len(),
            limits: *self.limits(),
            is_light: false,
        }
    }
}

fn store_of<S: CommandStore>(backing: Backing) -> Result<S, LocalFault> {
    let Backing::Command(store) = backing else {
        return Err(LocalFault("the store of a command got lost".into()));
    };
    let store: Box<dyn std::any::Any> = store;
    Ok(*store.downcast::<S>().map_err(|_| LocalFault("the store of a command was swapped".into()))?)
}

fn positions(run: &[u32], count: usize) -> Result<Vec<u32>, LocalFault> {
    if run.is_empty() {
        return Ok((0..count as u32).collect());
    }
    let ascending = run.windows(2).all(|pair| pair[0] < pair[1]);
    let inside = run.last().is_some_and(|last| (*last as usize) < count);
    if !ascending || !inside {
        return Err(LocalFault(format!("the positions {run:?} don't fit a batch of {count}")));
    }
    Ok(run.to_vec())
}

/// A batch on its way through its runs.
struct Course<'a> {
    entrance: &'a Entrance,
    job: Job<'a>,
    backing: Backing,
    deadline: Option<Instant>,
    /// The batch's fuel, without what those left out have burnt.
    budget: u64,
    settled: BTreeMap<u32, CommandReply>,
    /// What the replies of commands that are run one by one may still take.
    reply_bytes_left: usize,
}

impl<'a> Course<'a> {
    fn new(entrance: &'a Entrance, job: Job<'a>, backing: Backing, deadline: Option<Instant>) -> Self {
        let budget = job.limits.fuel_per_batch;
        Course { entrance, job, backing, deadline, budget, settled: BTreeMap::new(), reply_bytes_left: usize::MAX }
    }

    fn finish(mut self, run: Vec<u32>) -> Result<(BatchReplies, Backing), LocalFault> {
        let replies = match self.together(run)? {
            Some(whole) => whole,
            None => BatchReplies::Each(self.settled.into_values().collect()),
        };
        Ok((replies, self.backing))
    }

    /// Settles them all. If the first run went well, its replies are all there is, and nothing is taken apart.
    fn together(&mut self, mut run: Vec<u32>) -> Result<Option<BatchReplies>, LocalFault> {
        let mut culprits = 0;
        while !run.is_empty() {
            let Attempt { verdict, burnt, .. } = self.attempt(&run)?;
            if let Verdict::Done(replies) = verdict {
                let replies = BatchReplies::Whole(replies);
                if self.settled.is_empty() {
                    return Ok(Some(replies));
                }
                self.settled.extend(run.into_iter().zip(replies.into_each()));
                return Ok(None);
            }
            if let Backing::Command(store) = &mut self.backing {
                store.discard();
            }
            match verdict {
                Verdict::Culprit(at, failure) if culprits < CULPRITS_MAX => {
                    culprits += 1;
                    self.budget -= burnt;
                    self.fail(run.remove(at), failure);
                }
                Verdict::BudgetFrom(at) => {
                    run.drain(at..).for_each(|position| self.fail(position, Failure::BatchBudget));
                }
                Verdict::Deadline(at) => self.fail(run.remove(at), Failure::QueryTimeout),
                _ => return self.one_by_one(run).map(|()| None),
            }
        }
        Ok(None)
    }

    /// Each on its own instance; its writes stay if it succeeds.
    fn one_by_one(&mut self, run: Vec<u32>) -> Result<(), LocalFault> {
        for position in run {
            if self.budget == 0 || self.reply_bytes_left == 0 {
                self.fail(position, Failure::BatchBudget);
                continue;
            }
            if let Backing::Command(store) = &mut self.backing {
                store.begin();
            }
            let Attempt { verdict, budget, .. } = self.attempt(&[position])?;
            self.budget = budget;
            let failure = match verdict {
                Verdict::Done(replies) => {
                    self.reply_bytes_left = self.reply_bytes_left.saturating_sub(replies.archive().len());
                    let replies = BatchReplies::Whole(replies).into_each();
                    self.settled.extend(replies.into_iter().map(|reply| (position, reply)));
                    continue;
                }
                Verdict::Culprit(_, failure) | Verdict::Unclear(failure) => failure,
                Verdict::BudgetFrom(_) => Failure::BatchBudget,
                Verdict::Deadline(_) => Failure::QueryTimeout,
            };
            if let Backing::Command(store) = &mut self.backing {
                store.rollback();
            }
            self.fail(position, failure);
        }
        Ok(())
    }

    fn attempt(&mut self, run: &[u32]) -> Result<Attempt, LocalFault> {
        let ticks = self.deadline.map(ticks_until);
        if ticks == Some(0) {
            let (verdict, budget) = (Verdict::Deadline(0), self.budget);
            return Ok(Attempt { verdict, backing: Backing::Closed, burnt: 0, budget });
        }
        let backing = std::mem::replace(&mut self.backing, Backing::Closed);
        let mut attempt = self.entrance.attempt(&self.job, run, backing, self.budget, ticks)?;
        self.backing = std::mem::replace(&mut attempt.backing, Backing::Closed);
        Ok(attempt)
    }

    fn fail(&mut self, position: u32, failure: Failure) {
        self.settled.insert(position, CommandReply::Failed(failure));
    }
}

/// Zero if it has passed.
fn ticks_until(deadline: Instant) -> u64 {
    let left = deadline.saturating_duration_since(Instant::now());
    left.as_nanos().div_ceil(TICK.as_nanos()) as u64
}
